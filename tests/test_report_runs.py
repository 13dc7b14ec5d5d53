"""The page that compares runs is read back: the order, the links, the twins, and what it carries."""

import base64
import csv
import math
import re
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from made import course, history, measured, rates_of
from made_depth import chain
from test_report_depth import Page

from lightning_lyapunov import report, report_runs
from lightning_lyapunov.cli import main
from lightning_lyapunov.cli.entry import OK, USAGE
from lightning_lyapunov.figures.runs import NAMED, runs_compared
from lightning_lyapunov.reading import History, rates
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.report_runs import Run, fits_of, write_runs_report

NAN = math.nan


@pytest.fixture(autouse=True)
def graded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every concern was right in 97 of 100 networks: it calls for action."""
    monkeypatch.setattr(rates, "shipped", lambda: rates_of(97))


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Page]:
    """The page of runs, without its picture."""
    monkeypatch.setattr(report_runs, "_pictures", lambda *_: [])
    return lambda *runs, **options: Page(write_runs_report(runs, tmp_path / "runs.html", **options))


def calm(name: str, reached: float | None = None, predicted: float = NAN, **settings: Any) -> Run:
    """A healthy run."""
    scores = {} if math.isnan(predicted) else {"performance": predicted}
    return Run(name, history(measured(-0.05, step=40, gain=-1.0, reached=reached, scores=scores)), settings)


def wild(name: str, reached: float | None = None, **settings: Any) -> Run:
    """One that calls for action."""
    return Run(name, history(measured(0.3, step=40, gain=8.0, reached=reached)), settings)


def names(page: Page) -> list[str]:
    return [row[0] for row in page.rows("runs")]


def column(page: Page, table: str, heading: str) -> list[str]:
    """Cells under a heading."""
    head = page.source.partition(f'<table class="{table}">')[2].partition("</thead>")[0]
    place = re.findall(r"<th scope=\"col\">(.*?)</th>", head).index(heading)
    return [row[place] for row in page.rows(table)]


def test_healthy_runs_come_first_and_among_them_the_one_that_reached_most(compared: Callable[..., Page]) -> None:
    page = compared(wild("a", 0.9), calm("b", 0.2), calm("c", 0.8))
    assert names(page) == ["c", "b", "a"]
    assert [word.split(">")[1].split("<")[0] for word in column(page, "runs", "verdict")] == [
        "✓ healthy", "✓ healthy", "✖ act",
    ]  # fmt: skip
    assert "Of 3 runs 2 are healthy and 1 calls for action." in page.text
    assert "where that is the same by the skill reached, the highest first." in page.text
    assert '<section class="verdict act"' in page.source
    assert "a: Gradients explode: of 100 networks" in page.text
    assert "b:" not in page.text  # nothing is to be done about it


def test_what_is_not_known_of_all_does_not_sort(compared: Callable[..., Page]) -> None:
    page = compared(calm("a", 0.9, 0.3), calm("b", None, 0.4))
    assert names(page) == ["b", "a"] and "by the skill predicted, the highest first" in page.text
    assert "All 2 runs are healthy." in page.text and "The run calls for action." in compared(wild("a")).text
    still = Run("z", history(measured(-0.05, gain=0.1)))
    assert names(compared(calm("a", 0.9), still)) == ["z", "a"]
    assert "by how little a gradient changes." in compared(calm("a", 0.9), still).text


def test_settings_that_differ_are_columns_and_those_that_do_not_are_told_once(compared: Callable[..., Page]) -> None:
    page = compared(calm("a", 0.9, model={"size": 8, "lr": 0.1}), calm("b", 0.5, model={"size": 16, "lr": 0.1}))
    assert column(page, "runs", "model.size") == ["8", "16"]
    assert page.source.count("model.lr") == 1 and '<th scope="row">model.lr</th><td>0.1</td>' in page.source
    assert "Twins</h2>" not in page.source


def test_twins_share_a_letter_and_a_mean_with_its_error(compared: Callable[..., Page]) -> None:
    """Oracle by hand: 0.7 and 0.9 have mean 0.8, standard error 0.1 and for one degree of freedom a bar of 1.27."""
    page = compared(
        calm("a", 0.7, size=8, seed=0), calm("b", 0.8, size=4, seed=0), calm("c", 0.9, size=8, seed=1),
    )  # fmt: skip
    assert names(page) == ["c", "b", "a"] and column(page, "runs", "twins") == ["A", "B", "A"]
    assert column(page, "twins", "runs") == ["2", "1"] and column(page, "twins", "size") == ["8", "4"]
    assert column(page, "twins", "reached") == ["0.80 ± 1.27", "0.80"]
    assert column(page, "twins", "healthy") == ["2", "1"]


def test_the_fits_of_one_callback_are_rows_of_their_own(compared: Callable[..., Page]) -> None:
    made = History()
    for reached in (0.5, 0.7, 0.6):
        made.begin()
        made.append(measured(-0.05, gain=-1.0, reached=reached))
    page = compared(*fits_of(Run("cv", made)))
    assert names(page) == ["cv, fit 2 of 3", "cv, fit 3 of 3", "cv, fit 1 of 3"]
    assert column(page, "twins", "runs") == ["3"] and "twins" not in page.rows("runs")[0]
    alone = Run("one", course(-0.05))
    assert fits_of(alone) == [alone]


def test_runs_link_to_their_own_pages_from_where_the_page_lies(tmp_path: Path, compared: Callable[..., Page]) -> None:
    own = tmp_path / "a b" / "report.html"
    own.parent.mkdir()
    own.touch()
    page = compared(Run("<i>a</i>", course(-0.05), page=own), calm("b"))
    links = [link["href"] or "" for link in page.all("a") if "download" not in link]
    assert links == ["a%20b/report.html"] and not page.all("i") and "<i>a</i>" in page.text


def test_everything_can_be_downloaded(compared: Callable[..., Page]) -> None:
    page = compared(wild("a, b", size=8), calm("c", 0.5, 0.25, size=4))
    (link,) = page.all("a")
    rows = list(csv.DictReader(StringIO(base64.b64decode((link["href"] or "").partition(",")[2]).decode())))
    assert [(row["run"], row["verdict"], row["settings.size"]) for row in rows] == [
        ("c", "healthy", "4"), ("a, b", "act", "8"),
    ]  # fmt: skip
    assert float(rows[0]["aelle/performance"]) == 0.25 and rows[1]["aelle/performance"] == ""


def test_until_when_a_run_was_measured_is_told(compared: Callable[..., Page]) -> None:
    run = wild("a")
    run.history.missed = 188, "max_overhead=0.03 left no room for it"
    page = compared(run, calm("b"))
    assert column(page, "runs", "measured at update") == ["40", "40 of 188"]
    assert "Not measured since update 40 of 188: max_overhead=0.03 left no room for it." in page.text


def test_runs_across_depth_are_compared_by_their_largest_growth(compared: Callable[..., Page]) -> None:
    def deep(name: str, total: float) -> Run:
        made: History[DepthMeasurement] = History("depth", DepthMeasurement)
        made.append(chain([0.1] * 4, total=total, step=100))
        return Run(name, made)

    page = compared(deep("far", 3.0), deep("near", -0.5))
    assert names(page) == ["near", "far"] and column(page, "runs", "ln ± error") == ["−0.50 ± 0.30", "+3.00 ± 0.30"]
    assert "reached" not in page.source.partition("<thead>")[2].partition("</thead>")[0]
    with pytest.raises(ValueError, match="of recurrent layers or all across depth; got"):
        compared(deep("a", 1.0), calm("b"))


def test_what_cannot_be_compared_is_refused(compared: Callable[..., Page]) -> None:
    with pytest.raises(ValueError, match="at least one; got none"):
        compared()
    with pytest.raises(ValueError, match="empty holds none"):
        compared(calm("a"), Run("empty", History()))


def test_the_page_needs_nothing_beside_it_and_shows_its_picture(tmp_path: Path) -> None:
    page = Page(write_runs_report([calm("a", 0.5, 0.6), wild("b", 0.1)], tmp_path / "runs.html"))
    (picture,) = page.all("img")
    assert (picture["src"] or "").startswith("data:image/") and not page.all("script") and not page.all("link")
    assert picture["alt"] == "Runs compared. a healthy, −1.00 ± 0.10 nats; b act, +8.00 ± 0.10 nats."


# ------------------------------------------------------------------ the picture


def test_the_picture_has_a_row_for_each_run_in_the_order_given() -> None:
    unknown = (NAN, NAN, NAN)
    figure = runs_compared(
        ["best", "a/long/name/of/a/run/version_0", "$dead"], ["healthy", "watch", "act"],
        [(1.0, 0.2), (3.0, NAN), (-math.inf, NAN)], [(0.5, 0.25, 0.75), unknown, unknown], [0.5, NAN, 0.1],
    )  # fmt: skip
    growth, skill = figure.axes
    labels = growth.get_yticklabels()
    assert [label.get_text() for label in labels] == ["best", "…f/a/run/version_0", "$dead"]
    assert [label.get_color() for label in labels] == ["#1b7f5c", "#b8720a", "#b2182b"]
    assert growth.get_ylim()[0] > growth.get_ylim()[1]  # the first on top
    drawn = skill.get_lines()[-1]
    best, _, dead = drawn.get_xdata()
    assert (best, dead) == (0.5, 0.1)
    figure.savefig(BytesIO())


def test_an_axis_that_is_stretched_says_so_and_one_that_is_not_does_not() -> None:
    def label(value: float) -> str:
        return runs_compared(["a"], ["act"], [(value, 0.1)], [(NAN,) * 3], [NAN]).axes[0].get_xlabel()  # type: ignore[list-item]

    assert "stretched around ±2" in label(40.0) and "stretched" not in label(1.0)


def test_of_many_runs_names_are_left_out_of_the_picture() -> None:
    count = NAMED + 1
    figure = runs_compared(["a"] * count, ["act"] * count, [(1.0, 0.1)] * count, [(NAN,) * 3] * count, [NAN] * count)  # type: ignore[list-item]
    (axes,) = figure.axes
    assert axes.get_ylabel() == f"{count} runs, best on top" and not axes.get_yticklabels()


# ------------------------------------------------------------------ the command


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of runs as Lightning leaves it, of a monitor's state, and of what is neither."""
    monkeypatch.chdir(tmp_path)
    for module in (report, report_runs):
        monkeypatch.setattr(module, "_pictures", lambda *_: [])

    def checkpoint(file: Path, made: History, **more: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        states = {"LyapunovSpectrumCallback{'module': None, 'prefix': 'lyapunov'}": {"history": made.state_dict()}}
        torch.save({"pytorch-lightning_version": "2.5.0", "callbacks": states, **more}, file)

    for seed, reached in enumerate((0.4, 0.6)):
        folder = tmp_path / "runs" / f"version_{seed}"
        made = history(measured(-0.05, step=40, gain=-1.0, reached=reached))
        settings = {"hyper_parameters": {"seed": seed, "size": 8}, "global_step": 90}
        checkpoint(folder / "checkpoints" / "epoch=0.ckpt", wild("old").history, **settings)
        checkpoint(folder / "checkpoints" / "last.ckpt", made, **settings)
        (folder / "report.html").write_text("")
    torch.save({"history": course(-0.05, reached=0.5).state_dict()}, tmp_path / "runs" / "monitor.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "runs" / "weights.pt")
    (tmp_path / "runs" / "notes.txt").write_text("")
    (tmp_path / "runs" / "empty").mkdir()
    return tmp_path / "runs"


def test_report_of_several_paths_compares_them(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest checkpoint of each run is read; what holds no history is left out, and said."""
    assert main(["report", *map(str, sorted(runs.iterdir())), "--title", "Three"]) == OK
    said = capsys.readouterr()
    assert said.out == "runs/runs.html\n"
    for left_out in ("weights.pt", "notes.txt", "empty"):
        assert f"{left_out} is left out" in said.err
    page = Page(runs / "runs.html")
    assert [name.partition(">")[2].partition("<")[0] or name for name in names(page)] == [
        "version_1", "monitor", "version_0",
    ]  # fmt: skip
    assert [link["href"] for link in page.all("a") if "download" not in link] == [
        "version_1/report.html", "version_0/report.html",
    ]  # fmt: skip
    assert column(page, "runs", "measured at update") == ["40 of 90", "0", "40 of 90"]
    assert "Three" in page.text and column(page, "runs", "seed") == ["1", "–", "0"]


def test_report_of_a_directory_is_of_the_runs_below_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--output", "both.html", "runs"]) == OK
    assert len(Page(runs.parent / "both.html").rows("runs")) == 2
    assert main(["report", "runs/version_0"]) == OK  # of one its own page
    page = (runs / "version_0" / "checkpoints" / "last.html").read_text("utf-8")
    assert "Not measured since update 40 of 90: the checkpoint was written before the next measurement." in page


def test_report_of_nothing_says_what_would_do(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "runs/empty", "runs/notes.txt"]) == USAGE
    assert "there is no history in runs/empty, runs/notes.txt: give checkpoints" in capsys.readouterr().err
    assert main(["report", "runs/none.ckpt"]) == USAGE
    assert "there is no file runs/none.ckpt" in capsys.readouterr().err
