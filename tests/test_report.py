"""The report of the bank: constructed sayings, whose scores are known because they were put in."""

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import bank_of
from torch import Tensor

from lightning_lyapunov import AeLLEScorer
from lightning_lyapunov.aelle.autoencoder import RANKED
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, Rows
from lightning_lyapunov.aelle.knowledge import limited
from lightning_lyapunov.bank.evaluation import SCORES, Table, development
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.report import left_out as making
from lightning_lyapunov.bank.report import writing
from lightning_lyapunov.bank.report.draw import draw
from lightning_lyapunov.bank.report.gates import BRIER, gates
from lightning_lyapunov.bank.report.left_out import STATES, Said, Sayings, left_out, say
from lightning_lyapunov.bank.report.page import Page, card
from lightning_lyapunov.bank.report.tables import (
    FULL,
    Comparison,
    difference,
    gain,
    gains_table,
    markdown,
    mean_and_error,
    scores_table,
    so_far,
)

ENDS = [0.0, 0.02, 0.04, 0.06, 0.2, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
"""Final skills of a task's networks of one cell: four fail, six take off."""
MOMENTS = (0, 1, 2, 3)
"""Checkpoints at 0, 10, 40 and 80 updates."""


def tiny(families: int = 3, cells: tuple[str, ...] = ("rnn", "gru"), moments: tuple[int, ...] = MOMENTS) -> Bank:
    """Networks in use of at most three tasks, whose chance is 0."""
    tasks = ("adding-20", "compare-8", "mackey-wait")[:families]
    kinds = [(task, cell) for task in tasks for cell in cells for _ in ENDS]
    bank = bank_of(kinds, ENDS * (families * len(cells)), measured=moments)
    for made in bank.networks:
        made["gain"] = 1.25
    return bank


def said(table: Table, noise: float = 0.0, width: float = 0.2, seed: int = 0) -> Said:
    """What somebody says who knows the end but for some noise, and is a little too careful."""
    generator = torch.Generator().manual_seed(seed)
    skill = 0.05 + 0.9 * (table.skill + noise * torch.randn(len(table), generator=generator)).clamp(0.0, 1.0)
    heads = torch.stack([skill, 0.9 * (1 - skill).square(), skill.sqrt()], 1)
    ends = (skill - width).clamp(min=0.0), (skill + width).clamp(max=1.0)
    return Said(heads, heads.clone(), *ends, torch.ones(len(table)))


def sayings(table: Table, blind: float = 3.0, seeing: float = 0.0, width: float = 0.2) -> Sayings:
    """Who sees a spectrum knows more than who does not, whose intervals are as wide as can be."""
    return {
        state: said(table, blind, 1.0, seed=i) if state[0] == "none" else said(table, seeing, width, seed=i)
        for i, state in enumerate(STATES)
    }


def comparison(table: Table, **options: float) -> Comparison:
    return Comparison(table, sayings(table, **options))


@pytest.fixture(scope="module")
def general() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.of(tiny())


@pytest.fixture(scope="module")
def page(general: AeLLEScorer, table: Table) -> Page:
    """Of a scorer that knows the end where it sees a spectrum."""
    by_family = comparison(table)
    return Page(general, by_family, by_family, {"A kind of cell that is not in the fit": by_family})


def assert_in_words(lines: list[str]) -> None:
    """Every number that is not known is a dash."""
    text = "\n".join(lines)
    assert not re.findall(r"\b(?:nan|inf|None)\b", text)
    rows = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


# ------------------------------------------------------------------ tables


def test_differences_are_family_by_family() -> None:
    one = {"a": {"rho": 0.5}, "b": {"rho": 0.9}, "c": {"rho": math.nan}}
    other = {"a": {"rho": 0.4}, "b": {"rho": 0.6}, "c": {"rho": 0.1}}
    mean, error, count = difference(one, other, "rho")
    assert (mean, error, count) == (pytest.approx(0.2), pytest.approx(0.1), 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (mean_and_error(0.421, 0.034), "0.42 ± 0.03"),
        (mean_and_error(math.nan, math.nan), "–"),
        (gain(0.03, 0.01), "**+0.030 ± 0.010**"),
        (gain(-0.03, 0.01), "**-0.030 ± 0.010**"),
        (gain(0.02, 0.01), "+0.020 ± 0.010"),
        (gain(math.nan, math.nan), "–"),
    ],
)
def test_numbers_in_words(text: str, expected: str) -> None:
    assert text == expected


def test_tables_have_a_row_for_each_predictor_and_a_dash_for_what_is_not_known() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    families = {f: dict.fromkeys(SCORES, 0.5) | {"fail": math.nan} for f in "ab"}
    header, _, one, _ = scores_table({"one": families, "two": families})
    assert "rho (2)" in header and "fail (0)" in header
    cells = one.split(" | ")
    assert cells[0] == "| one" and cells[1 + SCORES.index("fail")] == "–" and cells[1] == "0.50 ± 0.00"
    better = {f: dict.fromkeys(SCORES, 0.5 + 0.2 * (f == "b")) for f in "ab"}
    assert gains_table("who", {"it": (better, families)}, ("rho", "fail"))[2] == "| it | +0.100 ± 0.100 | – |"


def test_a_scorer_that_knows_the_end_ranks_perfectly_and_one_that_does_not_by_chance(table: Table) -> None:
    found = comparison(table)
    for name in ("rho", "fail", "take-off in cell"):
        assert found.scorer("all", True, FULL, 40)["adding"][name] == pytest.approx(1.0)
        assert found.ridge("part", False, 0, 0)["adding"][name] == pytest.approx(1.0)
    assert abs(found.scorer("none", True, FULL, 40)["adding"]["rho"]) < 0.6
    few = table.where(cell=["gru"])
    assert found.at(10, few).sum() == 36 and found.at(10).sum() == 72 and not found.at(160).any()


def test_predictors_are_fitted_at_one_checkpoint_without_the_family(table: Table) -> None:
    seen: list[Any] = []

    def predict(train: Table, test: Table) -> Tensor:
        assert set(train.updates.tolist()) == set(test.updates.tolist()) == {40}
        seen.append((set(test.column("family")), set(train.column("family"))))
        return test.skill

    found = comparison(table).by(predict, 40)
    assert found["mackey"]["rho"] == pytest.approx(1.0)
    assert len(seen) == 3 and not any(test & train for test, train in seen)


def test_coverage_counts_every_family_the_same() -> None:
    """All of 12 networks of one family inside, none of 3 of the other: half, and the error of two such families."""
    table = Table.of(bank_of([("adding-20", "gru")] * 12 + [("compare-8", "gru")] * 3, [0.8] * 15, measured=(0,)))
    inside = torch.from_numpy(table.column("family") == "adding")
    low, high = (torch.where(inside, table.skill + shift, 2.0) for shift in (-0.1, 0.1))
    one = Said(torch.zeros(15, RANKED), torch.zeros(15, RANKED), low, high, torch.ones(15))
    found = Comparison(table, {})
    assert found.coverage(one, torch.ones(15, dtype=torch.bool)) == (pytest.approx(0.5), pytest.approx(0.5))
    mean, error = found.coverage(one, inside)
    assert mean == 1.0 and math.isnan(error)


def test_squared_errors_count_every_family_the_same() -> None:
    table = Table.of(bank_of([("adding-20", "gru")] * 12 + [("compare-8", "gru")] * 3, [0.5] * 15, measured=(0,)))
    off = torch.from_numpy(table.column("family") == "adding").float() * 0.5
    predicted = torch.stack([table.skill + off, off, 1 - off], 1)
    every = torch.ones(15, dtype=torch.bool)
    assert [Comparison(table, {}).brier(predicted, head, every) for head in range(3)] == pytest.approx([0.125] * 3)


def test_the_skill_so_far_says_all(table: Table) -> None:
    skill = table.rows.context[:, CONTEXT.index("skill")]
    assert torch.equal(so_far(table), torch.stack([skill, -skill, skill], 1))


# ------------------------------------------------------------------ what was left out


def test_what_a_scorer_says_is_what_it_predicts(general: AeLLEScorer, table: Table) -> None:
    rows = table.rows[torch.arange(7)]
    found = say(general, rows, is_unknown=False)
    assert set(found) == set(STATES) and len(STATES) == 36
    known = limited(rows, part="all", rung=3, skill=False)
    expected, one = general.predict(known), found["all", False, 3]
    heads = torch.stack([expected.performance, expected.failure, expected.takeoff], 1)
    for ours, theirs in ((one.heads, heads), (one.low, expected.low), (one.familiarity, expected.familiarity)):
        assert torch.equal(ours, theirs)
    ridge = general.heads.ridges(general.heads.ranges.clamped(known))[:, :RANKED].sigmoid()
    assert torch.equal(one.ridge, ridge)
    blind = found["none", False, 3]  # of no spectrum, what is said without one
    torch.testing.assert_close(blind.heads, expected.baseline[:, :RANKED])
    assert ((blind.low <= blind.heads[:, 0]) & (blind.heads[:, 0] <= blind.high)).all()


def test_a_cell_that_was_left_out_is_not_named(general: AeLLEScorer, table: Table) -> None:
    """What is said with its name hidden is what is said of a network whose kind is not told."""
    rows = table.rows[torch.arange(7)]
    hidden = rows.context.clone()
    hidden[:, [CONTEXT.index(kind) for kind in ARCHITECTURES]] = math.nan
    said = say(general, rows, is_unknown=True)["all", True, FULL]
    expected = general.predict(Rows(rows.spectrum, hidden), torch.ones(7, dtype=torch.bool))
    torch.testing.assert_close(said.heads[:, 0], expected.performance, rtol=0, atol=0)
    assert (said.familiarity <= 0.25).all()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Cells that each scorer was fitted on, one after another; each says its number of everything."""
    fitted: list[set[str]] = []

    def fit(table: Table, **options: Any) -> float:
        assert options == {"members": 1, "folds": 3}
        fitted.append(set(table.column("cell")))
        return float(len(fitted))

    def speak(scorer: float, rows: Rows, *, is_unknown: bool) -> Sayings:
        assert is_unknown
        values = torch.full((len(rows),), scorer)
        heads = values.unsqueeze(1).expand(-1, RANKED)
        return {state: Said(heads, heads, values, values, values) for state in STATES}

    monkeypatch.setattr(making, "fit_general", fit)
    monkeypatch.setattr(making, "say", speak)
    return fitted


def test_each_row_is_spoken_of_by_a_scorer_that_saw_none_like_it(
    fits: list[set[str]], table: Table, tmp_path: Path
) -> None:
    found = left_out(table, "cell", tmp_path, "one")
    assert fits == [{"rnn"}, {"gru"}]
    expected = [{"gru": 1.0, "rnn": 2.0}[cell] for cell in table.column("cell")]
    for one in found.values():
        assert one.low.tolist() == expected and one.heads[:, 2].tolist() == expected


def test_what_was_kept_is_not_fitted_again(fits: list[set[str]], table: Table, tmp_path: Path) -> None:
    first = left_out(table, "cell", tmp_path, "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell-gru.safetensors", "cell-rnn.safetensors"]
    again = left_out(table, "cell", tmp_path, "one")
    assert len(fits) == 2
    for state in STATES:
        assert torch.equal(again[state].ridge, first[state].ridge)
    (tmp_path / "cell-rnn.safetensors").unlink()
    left_out(table, "cell", tmp_path, "one")
    assert fits[2:] == [{"gru"}]


def test_what_others_made_is_fitted_again(fits: list[set[str]], table: Table, tmp_path: Path) -> None:
    left_out(table, "cell", tmp_path, "one")
    assert left_out(table, "cell", tmp_path, "two")["all", True, 0].low.unique().tolist() == [3.0, 4.0]
    left_out(table, "cell", tmp_path, "two")
    assert len(fits) == 4


def test_what_is_damaged_is_refused_by_name(fits: list[set[str]], table: Table, tmp_path: Path) -> None:
    left_out(table, "cell", tmp_path, "one")
    path = tmp_path / "cell-rnn.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"path must be a file of format .*left-out/1; .*cell-rnn"):
        left_out(table, "cell", tmp_path, "one")


# ------------------------------------------------------------------ the page


def test_the_page_is_in_words(page: Page) -> None:
    lines = page.lines()
    assert_in_words(lines)
    titles = [line for line in lines if line.startswith("## ")]
    assert titles[0] == "## What to trust" and len(titles) == 10
    assert page.moments == [0, 10, 40, 80]


def test_the_first_screen_follows_from_what_was_said(general: AeLLEScorer, page: Page, table: Table) -> None:
    before, after, sure = page.first_screen()[:3]
    for line in (before, after):
        assert "the spectrum adds to the rank" in line and "the spectrum tells which networks of one kind" in line
        assert "ρ 1.00 (without" in line and "(AUC 1.00, without it " in line
    assert "hold 100% to 100% of the networks of families left out" in sure
    alike = comparison(table, blind=0.0)  # as much is known without
    none = Page(general, alike, alike, {}).first_screen()
    assert "to the rank the spectrum adds nothing" in none[0] and "the spectrum tells" not in none[0]


def test_intervals_that_miss_are_told_of(general: AeLLEScorer, table: Table) -> None:
    missing = comparison(table, seeing=3.0, width=0.0)
    said = Page(general, missing, missing, {})
    low = int(re.search(r"hold (\d+)% to", said.first_screen()[2])[1])  # type: ignore[index]
    assert low < 75
    assert any(f"{low}% ±" in line for line in said.intervals())


def test_demands_that_are_missed_are_in_bold(general: AeLLEScorer, page: Page, table: Table) -> None:
    met = gates(page)
    assert_in_words(met)
    demands = [line for line in met if "≥" in line]
    assert len(demands) == 6 and not any("**" in line for line in demands)
    assert any(line.endswith(f"above {BRIER} of its: none.") for line in met)
    bad = comparison(table, seeing=3.0)
    below = Comparison(table, {state: _below_its_ridge(one, table) for state, one in bad.said.items()})
    missed = gates(Page(general, below, bad, {}))
    assert all("**" in line for line in missed if "≥" in line)
    reasons = [line for line in missed if line.startswith("- ")]
    assert any("of the ridge's" in line and "rho" in line for line in reasons)
    assert any("squared error of failure" in line for line in reasons)


def _below_its_ridge(one: Said, table: Table) -> Said:
    """The same with a ridge that knows."""
    return Said(one.heads, said(table).heads, one.low, one.high, one.familiarity)


def test_the_picture_shows_both_panels(page: Page) -> None:
    figure = draw(page)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()][2] == "spectrum alone"
    assert [text.get_text() for text in right.get_xticklabels()] == ["0", "10", "40", "80"]
    assert len(right.containers) == 3


def test_the_card_tells_of_file_fit_and_evaluation(page: Page, general: AeLLEScorer) -> None:
    written = card(page, "own.safetensors", 321.4, "a" * 64, "page.md")
    assert_in_words(written.splitlines())
    assert f"`own.safetensors`, 321 kB, safetensors, sha256 `{'a' * 64}`" in written
    assert page.first_screen()[0] in written and "(page.md has all of it)" in written
    assert f"Fitted on {general.card['networks']} networks" in written


# ------------------------------------------------------------------ all of it


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, general: AeLLEScorer) -> Callable[[Bank], None]:
    """Banks are what they are said to be; scorers are the one that ships, and what they say is constructed."""

    def use(bank: Bank) -> None:
        monkeypatch.setattr(writing.Bank, "load", staticmethod(lambda path: bank))
        monkeypatch.setattr(writing, "fit_on", lambda bank: general)
        monkeypatch.setattr(writing, "left_out", lambda table, key, kept, digest, jobs: sayings(table))

    return use


@pytest.mark.parametrize("cells", [("rnn", "gru"), ("rnn", "gru", "antisymmetric")], ids=len)
def test_a_report_is_written_whole(
    cells: tuple[str, ...], made_up: Callable[[Bank], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and their card, page and picture; also of a bank without cells that the scorer does not know."""
    made_up(tiny(cells=cells))
    weights, page, picture = tmp_path / "w.safetensors", tmp_path / "page.md", tmp_path / "picture.png"
    writing.write_report(Path("bank"), weights, page, picture, tmp_path / "kept", with_gates=True)
    text = page.read_text("utf-8")
    assert text.startswith("# The same recipe on the first bank") and "## What was demanded on the first bank" in text
    assert_in_words(text.splitlines())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"sha256 `{digest}`" in weights.with_suffix(".md").read_text("utf-8")
    assert str(weights) in capsys.readouterr().out


def test_a_report_of_hardly_anything_is_in_words(made_up: Callable[[Bank], None], tmp_path: Path) -> None:
    """Two families before training: nothing is known of what comes after."""
    made_up(tiny(families=2, cells=("rnn",), moments=(0,)))
    writing.write_report(Path("bank"), tmp_path / "w", tmp_path / "p.md", tmp_path / "p.png", tmp_path / "kept")
    assert_in_words((tmp_path / "p.md").read_text("utf-8").splitlines())


def test_the_general_scorer_is_fitted_on_what_choices_may_be_based_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(writing, "fit_general", lambda table, **card: asked.append((table, card)))
    bank = tiny(cells=("rnn", "antisymmetric"))
    writing.fit_on(bank, seed=3)
    ((table, said),) = asked
    assert torch.equal(table.network, development(Table.of(bank)).network)
    assert said == {"seed": 3, "checkpoints": list(bank.checkpoints), "bank": bank.digest}
    assert set(table.column("cell")) == {"rnn"}


def test_a_card_says_what_the_scorer_was_fitted_on(monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(making, "fit_scorer", lambda examples, card, **how: asked.append((examples, card, how)))
    making.fit_general(table, bank="digest")
    ((examples, said, how),) = asked
    families, tasks = ["adding", "compare", "mackey"], ["adding-20", "compare-8", "mackey-wait"]
    assert said == {"name": "general", "families": families, "tasks": tasks, "networks": 72, "bank": "digest"}
    assert how == {"members": 3, "folds": 4, "seed": 0} and len(examples) == 288


@pytest.mark.parametrize("name", ["README.md", "docs/scorer.md"])
def test_what_it_is_worth_is_told_in_the_words_of_the_report(name: str) -> None:
    root = Path(__file__).parents[1]

    def words(path: Path, begin: str, end: str) -> list[str]:
        return path.read_text("utf-8").split(begin)[1].split(end)[0].split()

    report = words(root / "docs" / "bank-report.md", "## What to trust", "![")
    assert len(report) > 100
    assert words(root / name, "<!-- report: begin -->", "<!-- report: end -->") == report
