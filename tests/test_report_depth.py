"""The page across depth is judged by what a reader and a browser find in it."""

import base64
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from made_depth import chain

from lightning_lyapunov import report_depth
from lightning_lyapunov.names_depth import QUANTITIES
from lightning_lyapunov.page import ROWS
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.report_depth import write_depth_report

INF, NAN = math.inf, math.nan
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEAD = [-1.0] * 6 + [-INF] + [-1.0] * 5


class Page(HTMLParser):
    """A page taken apart: every tag with its attributes, the text, and whether all that was opened was closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def rows(self, table: str) -> list[list[str]]:
        """Cells of a table."""
        (body,) = re.findall(rf'<table class="{table}">.*?<tbody>(.*?)</tbody>', self.source, re.DOTALL)
        return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]


def history(*measurements: DepthMeasurement) -> History[DepthMeasurement]:
    made: History[DepthMeasurement] = History("depth", DepthMeasurement)
    for one in measurements:
        made.append(one)
    return made


def written(directory: Path, *measurements: DepthMeasurement, pictures: bool = False, **options: Any) -> Page:
    """The page of a run; without pictures, which take their time, where a test is about the words."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(report_depth, "_pictures", lambda *_: [])
        return Page(write_depth_report(history(*measurements), directory / "page.html", **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with everything on it; drawing it leaves the random state alone."""
    before = torch.random.get_rng_state()
    run = [chain([0.1] * 12, DEAD, step=50 * i) for i in range(4)]
    page = written(tmp_path_factory.mktemp("whole"), *run, pictures=True, title="<i>title</i>")
    assert torch.equal(before, torch.random.get_rng_state())
    return page


def test_page_needs_nothing_from_elsewhere(whole: Page) -> None:
    for _, attributes in whole.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not whole.all("script") and not whole.all("link")
    assert "url(" not in whole.source and "@import" not in whole.source


def test_the_verdict_comes_first_then_the_picture_then_all_that_was_found(whole: Page) -> None:
    order = [
        "Watch</span>\nBlock 7 of 12 (layers.6) passes everything on unchanged: its branch is dead.</h2>",
        "<b>What to do:</b> Look for output weights or gates at zero",
        '<div class="watch"><dt><b title="watch">⚠</b> Blocks that stand out</dt>',
        '<img src="data:image/',
        "Watch</b>Block 7 of 12 (layers.6) passes",
        "What else the last measurement comes to",
        "Block by block now",
        '<h2 id="blocks">',
        '<h2 id="measurements">',
        "What the words mean",
    ]
    places = [whole.source.index(words) for words in order]
    assert places == sorted(places)


def test_pictures_are_whole_and_described(whole: Page) -> None:
    pictures = whole.all("img")
    assert len(pictures) == 2
    for picture in pictures:
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.*)", picture["src"] or "").groups()  # type: ignore[union-attr]
        data = base64.b64decode(content, validate=True)
        assert data.startswith(b"\x89PNG") if kind == "png" else data.rstrip().endswith(b"</svg>")
    assert pictures[0]["alt"] == (
        "The chain and its blocks over training. Largest growth of a gradient: +2.20 ± 0.30 nats at update 0, +2.20 ± "
        "0.30 nats at update 150, in 4 measurements of 12 blocks."
    )
    assert "Gains of 12 blocks at update 150, from +0.10 nats, in layers.0" in (pictures[1]["alt"] or "")


def test_everything_from_outside_is_text(whole: Page, tmp_path: Path) -> None:
    assert not whole.all("i")
    evil = '"><script>alert(1)</script>'
    made = chain([0.1] * 2, names=[f"a {evil}", "b"], kinds=[f"kind {evil}", "Block"], fewer=f"fewer {evil}")
    page = written(tmp_path, made, settings={f"name {evil}": f"value {evil}"})
    assert not page.all("script")
    for where in ("a", "kind", "fewer", "name", "value"):
        assert f"{where} {evil}" in page.text


def test_the_table_of_blocks_says_what_each_does(tmp_path: Path) -> None:
    """Oracle: e^-1 = 37 %; the parts 0.75 and 1.25 of 2 nats are 38 and 62 %."""
    made = chain(
        [0.5, 1.0, 0.0], [-1.0, NAN, -INF], total=2.0, contributions=[0.75, 1.25, 0.0], dimensions=[8, 8, 4, 4],
        kinds=["A", "B", "A"],
    )  # fmt: skip
    page = written(tmp_path, made)
    assert page.rows("blocks") == [
        ["1", "layers.0", "A", "8", "+0.500 ± 0.020", "37 %", "+0.75 (38 %)", ""],
        ["2", "layers.1", "B", "8 → 4", "+1.000 ± 0.020", "–", "+1.25 (62 %)", ""],
        ["3", "layers.2", "A", "4", "+0.000 ± 0.020", "nothing", "+0.00 (0 %)", "dead branch"],
    ]
    assert [row.get("class") for row in page.all("tr")[1:4]] == [None, None, "told"]
    small = written(tmp_path, chain([0.1] * 2, total=0.4))
    assert small.rows("blocks")[0][6] == "+0.20"  # a share of next to nothing says nothing


def test_remarks_are_those_of_the_findings(tmp_path: Path) -> None:
    late = written(tmp_path, chain([0.1] * 12, [-0.4] * 8 + [-3.0] * 4, step=100))
    assert [row[-1] for row in late.rows("blocks")] == [""] * 8 + ["idle"] * 4
    odd = written(tmp_path, chain([0.1] * 5 + [1.1] + [0.1] * 6))
    assert [row[-1] for row in odd.rows("blocks")] == [""] * 5 + ["stands out"] + [""] * 6
    cut = written(tmp_path, chain([0.1, -INF, 0.1], total=-INF, gain=-INF))
    assert cut.rows("blocks")[1][4:] == ["−∞", "33 %", "–", "lets nothing pass"]
    assert "× 0" in cut.text and '<section class="verdict act"' in cut.source


def test_row_of_a_measurement(tmp_path: Path) -> None:
    """Oracle: e^2 = 7.4, e^1 = 2.7."""
    metrics = {"gain": 1.0, "gain_error": 0.1, "block_gain_max": 0.6, "block_gain_min": -0.1, "trusted_fraction": 1.0}
    made = chain([0.1] * 12, DEAD, total=2.0, step=1000, metrics=metrics)
    (row,) = written(tmp_path, made).rows("measurements")
    assert row == [
        "1,000", "11", "× 7.4", "+2.00 ± 0.30", "× 2.7", "+1.00 ± 0.10", "+0.60", "−0.10", "1", "100 %", "8", "–",
    ]  # fmt: skip
    unknown = chain([NAN] * 2, total=NAN, gain=NAN, metrics={}, samples=None)
    assert written(tmp_path, unknown).rows("measurements") == [["0", "0", *["–"] * 6, "0", *["–"] * 3]]


def test_data_are_named_where_they_differ(tmp_path: Path) -> None:
    run = [chain([0.1] * 2, source="training"), chain([0.1] * 2, step=9)]
    assert [row[2] for row in written(tmp_path, *run).rows("measurements")] == ["training data", "validation data"]


def test_table_is_thinned_to_both_ends(tmp_path: Path) -> None:
    page = written(tmp_path, *(chain([0.1] * 2, step=10 * i) for i in range(150)))
    steps = [int(row[0].replace(",", "")) for row in page.rows("measurements")]
    assert (len(steps), steps[0], steps[-1]) == (ROWS, 0, 1490)
    assert f"{ROWS} of 150 measurements" in page.text


def test_summary_names_the_extremes_and_the_widths(tmp_path: Path) -> None:
    page = written(tmp_path, chain([0.5, -0.25, 0.1], dimensions=[8, 16, 16, 4]))
    assert "widths 8 → 16 → 4" in page.text
    assert "+0.50" in page.text and "nats, in layers.0" in page.text
    assert "−0.25" in page.text and "nats, in layers.1" in page.text
    many = written(tmp_path, chain([0.1] * 7, dimensions=list(range(1, 9))))
    assert "widths 1 → 2 → … → 7 → 8" in many.text


def test_the_words_are_those_of_the_table_of_names(whole: Page) -> None:
    for quantity in QUANTITIES.values():
        assert quantity.meaning[1:] in whole.text and quantity.advice in whole.text


def test_of_several_fits_the_page_is_of_the_last(tmp_path: Path) -> None:
    made = history(chain([0.1] * 2, step=50))
    made.begin()
    made.append(chain([0.2] * 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_depth, "_pictures", lambda *_: [])
        page = Page(write_depth_report(made, tmp_path / "page.html"))
    assert "the last of 2 runs" in page.text and len(page.rows("measurements")) == 1


def test_one_measurement_has_one_picture(tmp_path: Path) -> None:
    page = written(tmp_path, chain([0.1] * 12), pictures=True)
    assert len(page.all("img")) == 1 and "Block by block now" in (page.all("img")[0]["alt"] or "")
    assert '<h2 id="figures">' not in page.source


def test_longest_history_of_a_long_chain_stays_under_two_megabytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    made = history(*(chain(torch.randn(120, generator=generator).tolist(), step=i) for i in range(200)))
    assert write_depth_report(made, tmp_path / "page.html").stat().st_size < 2e6


def test_without_matplotlib_the_words_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_lyapunov.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = written(tmp_path, chain([0.1] * 12, DEAD), pictures=True)
    assert "lightning-lyapunov[plot]" in page.text and "its branch is dead" in page.text
    assert not page.all("img")


def test_nothing_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        write_depth_report(history(), tmp_path / "page.html")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_a_browser_shows_it_on_a_phone_without_scrolling_sideways(whole: Page, tmp_path: Path) -> None:
    """In a frame of 400 pixels the page is no wider; the first screen holds the verdict, what to do and the cards."""
    (tmp_path / "page.html").write_text(whole.source, "utf-8")
    frame = (
        '<body><iframe id="f" src="page.html" style="width:400px;height:800px;border:0"></iframe><p id="said"></p>'
        "<script>addEventListener('load', () => { const d = document.getElementById('f').contentDocument;"
        "document.getElementById('said').textContent = JSON.stringify([d.documentElement.scrollWidth,"
        "d.querySelector('.cards').getBoundingClientRect().bottom]); });</script></body>"
    )
    (tmp_path / "frame.html").write_text(frame, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    width, bottom = re.findall(r'<p id="said">\[([\d.]+),([\d.]+)\]', shown)[0]
    assert float(width) <= 400 and float(bottom) <= 800
