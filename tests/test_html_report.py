"""The page is judged by what a reader and a browser find in it: its words, its pictures, and nothing from elsewhere."""

import base64
import csv
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from made import course, layer, rates_of

from lightning_lyapunov import report
from lightning_lyapunov.page import Bar
from lightning_lyapunov.reading import Finding, History, Measurement, rates
from lightning_lyapunov.reading.verdict import verdict
from lightning_lyapunov.report import ROWS, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


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
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def rows(self) -> list[list[str]]:
        """Cells of the table of measurements."""
        (body,) = re.findall(r"<tbody>(.*?)</tbody>", self.source, re.DOTALL)
        return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]


def history(largest: Sequence[float], *, size: int = 6, error: float = 0.01, **known: object) -> History:
    """A run with these largest exponents, ten updates apart; what else is known of each measurement."""
    made = History()
    for i, top in enumerate(largest):
        exponents = torch.linspace(0, -2, size) + top
        errors, settled = torch.full((size,), error), torch.ones(size, dtype=torch.bool)
        known = {"error": errors, "settled": settled, **known}
        made.append(Measurement(10 * i, i, exponents, {"seconds": 0.25}, **known))  # type: ignore[arg-type]
    return made


def scored(count: int) -> History:
    """A run of which everything is known, its two layers and its scores."""
    made = History()
    for i in range(count):
        scores = {"performance": 0.7, "performance_low": 0.5, "performance_high": 0.9, "baseline": 0.6}
        scores |= {"failure_probability": 0.1, "takeoff_probability": 0.8, "stability": 0.9, "familiarity": 0.8}
        metrics = {
            "max": -0.1,
            "near_zero_fraction": 0.25,
            "unstable_fraction": 0.0,
            "seconds": 0.5,
        }
        metrics |= {"kaplan_yorke_dimension": 0.0, "gradient_horizon": 10.0, "trusted_fraction": 1.0}
        made.append(
            Measurement(
                step=10 * i,
                epoch=i,
                exponents=torch.linspace(-0.1, -2, 8),
                metrics=metrics | {f"aelle/{k}": v for k, v in scores.items()},
                stderr=torch.full((8,), 0.01),
                error=torch.full((8,), 0.02),
                settled=torch.ones(8, dtype=torch.bool),
                growth=torch.tensor([1.0]),
                gain=-1.0,
                gain_error=0.1,
                growth_steps=64.0,
                trusted=torch.ones(8, dtype=torch.bool),
                dimension=8,
                length=64,
                layers={"below": layer(-0.1, -1.0), "<i>above</i>": layer(-0.4, -9.0)},
                latent=torch.zeros(8),
                reached=0.4,
            )
        )
    return made


def written(directory: Path, made: History, *, pictures: bool = False, **options: object) -> Page:
    """The page of a history; without pictures, which take their time, where a test is about the words."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(report, "_pictures", lambda *_: [])
        return Page(write_report(made, directory / "page.html", **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with everything on it, and whether drawing it touched the random state."""
    before = torch.random.get_rng_state()
    page = written(tmp_path_factory.mktemp("whole"), scored(5), pictures=True, title="<i>title</i>")
    assert torch.equal(before, torch.random.get_rng_state())
    return page


def test_page_needs_nothing_from_elsewhere(whole: Page) -> None:
    for _, attributes in whole.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not whole.all("script")
    assert not whole.all("link")
    assert "url(" not in whole.source
    assert "@import" not in whole.source


def test_pictures_are_whole_and_described(whole: Page) -> None:
    pictures = whole.all("img")
    assert len(pictures) >= 3
    for picture in pictures:
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.*)", picture["src"] or "").groups()  # type: ignore[union-attr]
        data = base64.b64decode(content, validate=True)
        assert data.startswith(b"\x89PNG") if kind == "png" else data.rstrip().endswith(b"</svg>")
        assert len(picture["alt"] or "") > 20


def test_meaning_comes_first_and_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding(level, level, f"This is {level}.") for level in ("warning", "note", "good")]  # type: ignore[arg-type]
    monkeypatch.setattr(report, "findings", lambda history: found)
    page = written(tmp_path, history([0.1, 0.2]))
    order = ("What to do", "All that was found", "Watch", "Note", "Good", "Figures", "Measurements")
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)
    for finding in found:
        assert finding.text in page.text


def test_a_chaotic_run_is_told_so(tmp_path: Path) -> None:
    page = written(tmp_path, history([0.1, 0.2, 0.3], length=64, gain=3.0, gain_error=0.1))
    assert re.search("Note|Watch|Act", page.text.partition("Figures")[0])  # as its rate says
    assert "is chaotic" in page.text.partition("Figures")[0]


@pytest.mark.parametrize(("right", "word", "sign"), [(97, "act", "✖"), (90, "watch", "⚠"), (60, "healthy", "✓")])
def test_the_verdict_is_the_headline_with_its_rate_what_to_do_and_coloured_numbers(
    right: int, word: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a file of rates by which every concern was right in so many of 100 networks."""
    monkeypatch.setattr(rates, "shipped", lambda: rates_of(right))
    made = course(0.2, 0.2)
    page, said = written(tmp_path, made), verdict(made)
    assert said is not None and said.word == word
    head = page.source.partition('<section class="verdict')[2].partition("</section>")[0]
    assert head.startswith(f' {word}"') and f"</span> {word.capitalize()}</span>" in head and sign in head
    assert said.text in head and f"{100 - right} % learnt their task" in head
    advice = "Lower the recurrent gain, or initialise it orthogonally."
    assert re.search("What to do:</b> .*ower the recurrent gain, or initialise it orthogonally.", head)
    assert page.source.count("<title>" + sign) == 1
    assert said.advice.startswith(advice) is (word != "healthy")
    colours = re.findall(r'<div(?: class="(\w*)")?><dt>', page.source.partition("</dl>")[0])
    assert colours == (["", ""] if word == "healthy" else [word, word])


def test_no_findings_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "findings", lambda history: [])
    assert "Nothing stands out" in written(tmp_path, history([0.1])).text


def test_everything_from_outside_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of layers, settings, findings and the title are text, whatever they hold."""
    evil = '"><script>alert(1)</script>'
    monkeypatch.setattr(report, "findings", lambda history: [Finding("x", "note", f"finding {evil}")])
    options = {"title": f"title {evil}", "settings": {f"name {evil}": f"value {evil}"}}
    page = written(tmp_path, scored(3), **options)
    assert not page.all("script")
    for where in ("title", "name", "value", "finding"):
        assert f"{where} {evil}" in page.text


def test_names_of_layers_are_escaped(whole: Page) -> None:
    assert not whole.all("i")
    assert any("<i>above</i>" in (picture["alt"] or "") for picture in whole.all("img"))


def test_table_is_thinned_to_both_ends(tmp_path: Path) -> None:
    page = written(tmp_path, history([-0.1] * 200))
    steps = [int(row[0].replace(",", "")) for row in page.rows]
    assert len(steps) == ROWS
    assert (steps[0], steps[-1]) == (0, 1990)
    assert steps == sorted(set(steps))
    assert f"{ROWS} of 200 measurements" in page.text


def test_short_tables_are_whole(tmp_path: Path) -> None:
    page = written(tmp_path, history([-0.1] * 7))
    assert [row[0] for row in page.rows] == ["0", "10", "20", "30", "40", "50", "60"]
    assert " of 7 measurements" not in page.text


def test_row_says_what_was_measured(tmp_path: Path) -> None:
    (row,) = written(tmp_path, scored(1)).rows
    assert row == [
        "0", "0", "−0.100 ± 0.020", "yes", "× 1/2.7", "× 2.7", "25 %", "0 %", "0.0", "10.0",
        "0.70 (0.50 to 0.90)", "0.40", "100 %", "0.50",
    ]  # fmt: skip


@pytest.mark.parametrize("made", [scored(1), history([0.1])])
def test_pictures_of_one_measurement(tmp_path: Path, made: History) -> None:
    assert written(tmp_path, made, pictures=True).all("img")


@pytest.mark.parametrize(("largest", "shown"), [(-math.inf, "dead (−∞)"), (math.nan, "–"), (0.5, "+0.500 ± 0.010")])
def test_one_measurement_without_scores(tmp_path: Path, largest: float, shown: str) -> None:
    """What is not known is a dash, never a number."""
    (row,) = written(tmp_path, history([largest], size=2)).rows
    assert row == ["0", "0", shown, "yes", *["–"] * 9, "0.25"]


def test_what_other_data_drove_is_told_in_the_table(tmp_path: Path) -> None:
    """The point before training of a run without a sanity check, driven by a training batch."""
    made = History()
    for one, source in zip(history([0.1] * 3), ("training", "validation", "validation"), strict=True):
        made.append(replace(one, source=source))
    page = written(tmp_path, made)
    assert [row[2] for row in page.rows] == ["training data", "validation data", "validation data"]
    assert "driven by" in page.source.partition("<tbody>")[0].rpartition("<thead>")[2]
    alike = written(tmp_path, history([0.1] * 3, source="validation"))
    assert [row[2] for row in alike.rows] == ["+0.100 ± 0.010"] * 3
    told = report._told("training", made)
    assert told.startswith("Largest exponent: +0.100 ± 0.010 at update 0 (driven by training data), +0.100")
    assert "driven" not in report._told("training", history([0.1] * 3))


def test_what_was_asked_for_has_a_column_and_a_line(tmp_path: Path) -> None:
    """Of a run that asked for nothing the page has neither."""
    plain = written(tmp_path, history([0.1, 0.1]))
    assert "closed loop" not in plain.source and "Distance from" not in plain.source
    figures = {"closed_loop_max": -0.0412, "closed_loop_error": 0.003, "distance": 0.25}
    made = History()
    for one in history([0.1, 0.1]):
        made.append(replace(one, metrics=figures))
    page = written(tmp_path, made)
    headings = page.source.partition("<tbody>")[0].rpartition("<thead>")[2]
    assert "closed loop" in headings and "distance" in headings
    assert page.source.count("−0.041 ± 0.003") == 3 == page.source.count(">0.250<")


def test_every_card_has_an_error_or_says_that_it_has_none(tmp_path: Path) -> None:
    """Oracle by hand: e^-1.1 to e^-0.9; of 8 exponents −0.1 ± 0.02 to −2 none can be near 0."""
    page = written(tmp_path, scored(2))
    notes = re.findall(r'<dd class="unit">(.*?)</dd></div>', page.source.partition("</dl>")[0], re.DOTALL)
    assert notes == [
        "± 0.020 nats per step of its layer",
        "between × 1/3.0 and × 1/2.5; at most × 2.7, over your 64 steps",
        "of the state, |λ| below 0.05",
        "80 % interval 0.50 to 0.90; reached so far 0.40; 0 chance, 1 best",
    ]
    assert "10.0" in page.text and "steps, 58.2 to 71.1 within the error of the gain; the longest" in page.text
    near = history(
        [0.04], size=2, error=0.02, dimension=2
    )  # 0.04 ± 0.02 and −1.96: one may be near 0, none is for sure
    near[0].metrics["near_zero_fraction"] = 0.5
    assert "0 to 50 % within the errors; of the state" in written(tmp_path, near).text
    assert "no error is known" in written(tmp_path, history([0.1], error=math.nan)).text


def test_bars_of_cards_lie_where_their_numbers_are() -> None:
    """Oracle: on an axis from −0.5 to 0.5, 0.1 ± 0.05 is from 55 to 65 % with 0 in the middle."""
    assert Bar.around_zero(0.1, 0.05, (0.5, 1)) == Bar(("−0.5", "+0.5"), 55.0, 65.0, 60.0, 50.0)
    assert Bar.around_zero(0.6, 0.05, (0.5, 1)) == Bar(("−1", "+1"), 77.5, 82.5, 80.0, 50.0)
    assert Bar.of_share(0.25, 0.0, 0.5) == Bar(("0", "1"), 0.0, 50.0, 25.0, None)
    assert Bar.around_zero(-math.inf, 0.1, (1,)) is None and Bar.of_share(0.2, math.nan, 1.0) is None


def test_all_measurements_and_all_keys_can_be_downloaded(tmp_path: Path) -> None:
    """Read back from the page: of 200 measurements the table has 60, the file all, with figures that it has not."""
    made = history([-0.1] * 200)
    for i, one in enumerate(made):
        one.metrics.update({"max": -0.1, "mean": 0.5 * i, "<layer>, a/max": float(i)})
    (link,) = written(tmp_path, made).all("a")
    assert link["download"] == "lyapunov.csv"
    kind, _, content = (link["href"] or "").partition(";base64,")
    rows = list(csv.DictReader(StringIO(base64.b64decode(content).decode())))
    assert kind == "data:text/csv;charset=utf-8" and len(rows) == 200
    assert [float(row["mean"]) for row in rows] == [0.5 * i for i in range(200)]
    assert rows[7]["step"] == "70" and rows[7]["<layer>, a/max"] == "7.0"


def test_since_when_nothing_was_measured_and_why(tmp_path: Path) -> None:
    made = history([0.1] * 5)
    assert "Not measured" not in written(tmp_path, made).text
    made.missed = 188, "max_overhead=0.03 left no room for <it>"
    assert (
        "Not measured since update 40 of 188: max_overhead=0.03 left no room for <it>." in written(tmp_path, made).text
    )


def test_where_to_read_on_are_pages_that_exist(whole: Page) -> None:
    named = re.findall(r"<code>(docs/.*?\.md)</code>", whole.source)
    assert len(named) >= 3 and all((Path(__file__).parents[1] / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"sequences": 16, "steps": 64}, "It is of 16 sequences of up to 64 steps."),
        (
            {"sequences": 1, "steps": 9, "source": "training", "fewer": "1 of 7 sequences (<b>)"},
            "It is of 1 sequence of 9 steps, driven by training data. Measured were 1 of 7 sequences (<b>).",
        ),
        ({"source": "validation"}, "It was driven by validation data."),
    ],
)
def test_how_much_of_what_was_seen_it_is_is_told(tmp_path: Path, known: dict[str, object], told: str) -> None:
    page = written(tmp_path, history([0.1, 0.1], **known))
    assert told in page.text and "(<b>)" not in page.source
    assert "It is of" not in written(tmp_path, history([0.1])).text


def test_of_several_fits_the_page_is_of_the_last_and_says_so(tmp_path: Path) -> None:
    """As in a cross-validation with one callback: oracle, the page of the last fold alone."""
    made, last = History(), history([0.3, 0.4])
    for fold in (history([0.1] * 5), history([0.2] * 3), last):
        made.begin()
        for one in fold:
            made.append(one)
    page, alone = written(tmp_path, made), written(tmp_path, last)
    assert page.rows == alone.rows and "2 measurements, written" in page.text
    assert "the last of 3 runs" in page.text and "without the 2 before it" in page.text
    assert "the last of" not in alone.text
    assert len(written(tmp_path, made.earlier[0]).rows) == 5


def test_exponents_of_several_layers_are_per_step_of_their_layer(tmp_path: Path) -> None:
    assert "nats per step of its layer" in written(tmp_path, scored(1)).text
    assert "of its layer" not in written(tmp_path, history([0.1])).text


def test_only_what_is_beyond_its_error_is_marked_chaotic(tmp_path: Path) -> None:
    page = written(tmp_path, history([0.15, 0.25], error=0.2))
    assert [row.get("class") for row in page.all("tr")[1:3]] == [None, "chaotic"]


def test_what_has_not_settled_is_told_and_not_marked_chaotic(tmp_path: Path) -> None:
    page = written(tmp_path, history([0.25], settled=torch.zeros(6, dtype=torch.bool)))
    assert page.rows[0][3] == "no" and [row.get("class") for row in page.all("tr")[1:2]] == [None]
    assert "nats per step, not settled" in page.text
    assert "not settled" not in written(tmp_path, history([0.25])).text


def test_summary_tells_what_happens_to_a_gradient(tmp_path: Path) -> None:
    """Oracle: e^-1 = 1/2.7 and e^1 = 2.7; the horizon is at least what the error of the gain leaves."""
    page = written(tmp_path, scored(1))
    assert "× 1/2.7" in page.text and "at most × 2.7, over your 64 steps" in page.text
    made = history([0.0], gain=0.1, gain_error=0.4, growth_steps=64.0, length=64)
    made[0].metrics["gradient_horizon"] = 160.0
    assert written(tmp_path, made).rows[0][9] == "at least 160"


def test_of_an_older_version_the_error_is_two_standard_errors(tmp_path: Path) -> None:
    made = History("teacher")
    made.append(Measurement(3, 0, torch.tensor([0.25]), {"max_stderr": 0.125, "aelle/performance": 0.5}))
    (row,) = written(tmp_path, made).rows
    assert (row[2], row[3], row[10]) == ("+0.250 ± 0.250", "–", "0.50")


def test_settings_are_flattened_and_cut(tmp_path: Path) -> None:
    page = written(tmp_path, history([0.1]), settings={"model": {"hidden": 64}, "long": "x" * 5000, "none": None})
    assert "model.hidden" in page.text
    assert "x" * report.LONGEST + "…" in page.text
    assert "x" * (report.LONGEST + 1) not in page.text


def test_versions_are_told(tmp_path: Path) -> None:
    assert f"torch {torch.__version__}" in written(tmp_path, history([0.1])).text


def test_longest_history_stays_under_two_megabytes(tmp_path: Path) -> None:
    made = History()
    generator = torch.Generator().manual_seed(0)
    for i in range(300):
        exponents = torch.randn(256, generator=generator).sort(descending=True).values
        made.append(Measurement(i, i, exponents, {"max": float(exponents[0])}, stderr=exponents.abs() / 9))
    assert write_report(made, tmp_path / "page.html").stat().st_size < 2e6


def test_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(history([0.1]), tmp_path / "new" / "page.html", title="first")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]

    def full(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(report, "_pictures", lambda *_: [])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_report(history([0.1]), path, title="second")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    assert "first" in Page(path).text


def test_without_matplotlib_the_words_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_lyapunov.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = written(tmp_path, history([0.1]), pictures=True)
    assert "lightning-lyapunov[plot]" in page.text
    assert not page.all("img")


def test_nothing_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        write_report(History(), tmp_path / "page.html")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_of_text_has_the_contrast_that_wcag_asks_for(tmp_path: Path) -> None:
    """4.5 to 1 on page and panel, in light, in dark and on paper (WCAG 2, criterion 1.4.3)."""
    schemes = re.findall(r":root \{(.*?)\}", written(tmp_path, history([0.1])).source, re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ground in ("page", "panel"):
            for text in ("text", "faint", "good", "note", "watch", "act", "link"):
                assert contrast(colours[ground], colours[text]) >= 4.5, (ground, text)


def test_verdicts_stand_on_their_colours_in_letters_large_enough_for_them(tmp_path: Path) -> None:
    """Oracle: WCAG 2 asks for 3 to 1 of bold letters from 18.7 pixels on; these are 20."""
    source = written(tmp_path, history([0.1])).source
    grades = re.findall(r"--grade: (#[0-9a-f]{6})", source)
    assert grades == ["#1b7f5c", "#b8720a", "#b2182b"]
    assert all(contrast(grade, "#ffffff") >= 3 for grade in grades)
    assert ".verdict h2 { margin: 0 0 .5rem; font-size: 1.25rem" in source


def test_figures_follow_a_dark_page_on_screen_alone(whole: Page) -> None:
    """Turned by the page's own style: there is no second picture, and paper is white."""
    (rule,) = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n\}", whole.source, re.DOTALL)
    assert "filter: invert(" in rule and "hue-rotate(180deg)" in rule and "filter" not in whole.source.replace(rule, "")
