"""Counting how often findings were right. Oracles: a bank made up of a few networks, counted by hand; SciPy."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_lyapunov.bank import rates as counting
from lightning_lyapunov.bank import stops as choosing
from lightning_lyapunov.bank import unseen
from lightning_lyapunov.bank.bounds import lower_bound, upper_bound
from lightning_lyapunov.bank.histories import STEPS, leading_exponents, runs
from lightning_lyapunov.bank.probes import MEASURED, quantile_function
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS
from lightning_lyapunov.reading import rates as reading
from lightning_lyapunov.reading.rules import told
from lightning_lyapunov.reading.stops import Rule, rule_in_words, shipped_rules
from lightning_lyapunov.training.stopping import LyapunovEarlyStopping

CHECKPOINTS = (0, 40, 80, 160, 320)
GROWS, KEEPS, FORGETS, DIES = 5.0, 0.0, -20.0, -60.0
"""Gains over a sequence, nats."""
FAMILIES = sorted({task.family for task in TASKS.values()} - set(SET_ASIDE))[:4]
TASK_OF = {family: next(name for name, task in TASKS.items() if task.family == family) for family in FAMILIES}
RECORDS = Path(__file__).parents[1] / "bank" / "records"

Made = tuple[str, float, Sequence[float], float]
"""Of a network: its family, its gain throughout, its skill so far at each checkpoint, and in the end."""


def bank_of(networks: Sequence[Made], cell: str = "rnn", dimension: int = 12) -> Bank:
    """A bank of such networks; one of skill 1 is added to each task, as skill is relative to the best."""
    networks = [*networks, *((family, KEEPS, [1.0] * 5, 1.0) for family in FAMILIES)]
    count, rows = len(networks), len(CHECKPOINTS)
    made = [
        {"task": TASK_OF[family], "family": family, "cell": cell, "dimension": dimension} for family, *_ in networks
    ]
    steps = torch.tensor([float(STEPS[one["task"]]) for one in made])
    gains = torch.tensor([gain for _, gain, *_ in networks])
    exponents = (gains / steps)[:, None] - torch.linspace(0, 1, dimension)
    figures = dict.fromkeys(MEASURED, 0.01) | {"max_settled": 1.0, "trusted_fraction": 1.0}
    measured = torch.tensor([list(figures.values())]).expand(count, rows, -1).clone()
    for name in ("gradient_gain", "gradient_growth"):
        measured[..., MEASURED.index(name)] = gains[:, None]
    chance = torch.tensor([TASKS[one["task"]].chance for one in made])

    def metric(skill: Any) -> torch.Tensor:
        return chance + torch.tensor(skill) * (1 - chance)  # the best of each task has a metric of 1

    metrics = torch.zeros(count, rows, 6)
    for row in range(rows):
        metrics[:, row, 0] = metric([so_far[row] for _, _, so_far, _ in networks])
    nothing = torch.full((count, 3, 10), math.nan)
    bank = Bank(
        networks=made,
        checkpoints=CHECKPOINTS,
        end=torch.full((count,), CHECKPOINTS[-1]),
        quantiles=torch.stack([quantile_function(row) for row in exponents])[:, None].expand(-1, rows, -1),
        leading=exponents[:, None, :8].expand(-1, rows, -1),
        measured=measured,
        long_quantiles=nothing,
        long_leading=nothing,
        long_measured=nothing,
        layers=nothing,
        metrics=metrics,
        final=metric([end for *_, end in networks]),
    )
    bank.__dict__["best"] = dict.fromkeys(TASK_OF.values(), 1.0)
    return bank


def flat(family: int, gain: float, skill: float, end: float) -> Made:
    return FAMILIES[family], gain, [0.0, *[skill] * 4], end


NETWORKS = [
    *[flat(n % 2, DIES, 0.0, 0.05) for n in range(6)],
    flat(2, DIES, 0.0, 0.6),
    *[flat(n % 4, FORGETS, 0.0, 0.2) for n in range(3)],
    *[flat(n % 4, FORGETS, 0.5, 0.95) for n in range(5)],
    *[flat(n % 3, GROWS, 0.05, 0.0) for n in range(4)],
]


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (0, 99), (5, 40), (40, 40)])
def test_of_networks_that_are_not_alike_the_bound_is_that_of_scipy(hits: int, n: int) -> None:
    """Each a family of its own: nothing is clustered."""
    from scipy.stats import binomtest

    happened = np.arange(n) < hits
    bound = binomtest(hits, n).proportion_ci(0.9, "exact").high  # two-sided 90 % is one-sided 95 %
    assert upper_bound(happened, np.arange(n)) == pytest.approx(bound)
    low = binomtest(hits, n).proportion_ci(0.9, "exact").low
    assert lower_bound(happened, np.arange(n)) == pytest.approx(low)


def test_networks_that_are_all_alike_count_once_a_family() -> None:
    """Ten copies of each of 20: the design effect is 10 · 19/20 · 20/19, near the bound of 20, wider by Student's."""
    few = np.arange(20) < 5
    many, families = np.repeat(few, 10), np.repeat(np.arange(20), 10)
    alone = upper_bound(few, np.arange(20))
    assert alone - 0.02 < upper_bound(many, families) < alone + 0.06
    assert upper_bound(many, families) > upper_bound(many, np.arange(200)) + 0.1


def test_bounds_hold_in_nineteen_of_twenty_clustered_samples() -> None:
    """Oracle: simulation. Families of 15 networks whose probability varies from family to family."""
    generator = np.random.default_rng(0)
    misses = 0
    for _ in range(400):
        chances = generator.beta(1, 4, 12)
        happened = generator.random((12, 15)) < chances[:, None]
        misses += upper_bound(happened.ravel(), np.repeat(np.arange(12), 15)) < 0.2
    assert misses / 400 < 0.09


def test_of_nothing_there_is_no_bound() -> None:
    assert math.isnan(upper_bound(np.zeros(0, bool), np.zeros(0)))


# ------------------------------------------------------------------ runs


def test_a_network_is_read_as_a_callback_would_have_recorded_it() -> None:
    bank = bank_of(NETWORKS[:1])
    run, *_ = runs(bank)
    assert [m.step for m in run] == list(CHECKPOINTS) and [m.epoch for m in run] == [0, 0, 1, 3, 7]
    assert all(m.gain == DIES and m.cell == "rnn" and m.length == STEPS[bank.networks[0]["task"]] for m in run)
    assert math.isnan(run[0].skill) and run[1].skill == pytest.approx(0.0, abs=1e-6)
    assert all(math.isnan(m.skill) and m.reached is None for m in next(iter(runs(bank, knows_skill=False))))


def test_the_layers_of_a_stack_are_told_apart() -> None:
    bank = bank_of([(FAMILIES[0], KEEPS, [0.0] * 5, 0.0), (FAMILIES[0], KEEPS, [0.0] * 5, 0.0)])
    bank.networks[0]["layers"], count = 2, len(bank)
    layers = torch.tensor([[0.4, 9.0], [-0.3, -4.0]]).expand(count, len(CHECKPOINTS), 2, 2)
    bank = dataclasses.replace(bank, layers=layers)
    stack, single, *_ = runs(bank)
    assert stack[0].layer("l0").gain == 9.0 and stack[0].layer("l1").gain == -4.0 and not single[0].layers
    assert {f.subject for f in told(stack) if f.state == "layer_explodes"} == {"l0"}


@pytest.mark.parametrize("dimension", [4, 16, 64, 100])
def test_exponents_are_found_again_among_the_quantiles(dimension: int) -> None:
    exponents = torch.linspace(0.3, -2.0, dimension)
    leading = torch.full((8,), math.nan)
    leading[: min(8, dimension)] = exponents[:8]
    found = leading_exponents(quantile_function(exponents), leading, dimension)
    assert len(found) == min(32, dimension)
    torch.testing.assert_close(found, exponents[:32], rtol=0, atol=0.02)


def test_what_an_older_bank_lacks_is_not_known() -> None:
    bank = bank_of(NETWORKS[:1])
    bank.measured.fill_(math.nan)
    (run, *_), last = runs(bank), -1
    assert run[last].settled is None and math.isnan(run[last].gain) and run[last].growth is None


# ------------------------------------------------------------------ counts


def by_hand(state: str, group: str, updates: int) -> list[float]:
    """Who was told, failed, came above ½ and above 0.9, by gain and skill alone."""
    gain = {"collapsed": DIES, "forgetting": FORGETS, "chaotic": GROWS}[state]
    skills = {"all": (0.0, 1.1), "at chance": (0.0, 0.1), "learning": (0.1, 1.1)}[group]
    row = CHECKPOINTS.index(updates)
    ends = [end for _, g, so_far, end in NETWORKS if g == gain and skills[0] <= so_far[row] < skills[1]]
    return [len(ends), *(sum(map(test, ends)) for test in (lambda e: e < 0.3, lambda e: e > 0.5, lambda e: e > 0.9))]


def test_counts_are_those_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "FEWEST", 2)
    bank = bank_of(NETWORKS)
    written = counting.rates(bank, counting.tell(bank))
    assert written["moments"] == [0, 40, 80, 160] and written["until"] == 320
    assert written["told"].keys() == {"collapsed", "forgetting", "chaotic"}
    for state, groups in written["told"].items():
        for group, moments in groups.items():
            assert group.replace("rnn, ", "").replace("rnn", "all") in ("all", "at chance", "learning")
            for updates, counts in moments.items():
                what = group.replace("rnn, ", "").replace("rnn", "all")
                assert counts[:4] == by_hand(state, what, int(updates)), (state, group, updates)
        expected = {"all", "rnn", "at chance", "rnn, at chance"} | ({"learning", "rnn, learning"} & groups.keys())
        assert groups.keys() == expected
    assert written["told"]["forgetting"]["learning"]["40"][:2] == [5, 0]


def test_of_fewer_than_fifty_networks_nothing_is_written_and_nothing_at_the_end() -> None:
    bank = bank_of([flat(n % 4, DIES, 0.0, 0.0) for n in range(50)] + [flat(0, GROWS, 0.0, 0.0)] * 49)
    written = counting.rates(bank, counting.tell(bank))
    assert written["told"].keys() == {"collapsed"}
    assert written["told"]["collapsed"]["all"].keys() == {"0", "40", "80", "160"}


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_of([flat(n % 4, DIES, 0.0, 0.05 if n < 57 else 0.8) for n in range(60)])
    noted, stops = counting.tell(bank), choosing.choose(bank)
    text = counting.text_of(counting.rates(bank, noted, stops))
    monkeypatch.setattr(reading, "shipped", lambda: json.loads(text))
    run = next(iter(runs(bank)))
    rate = reading.rate_of("collapsed", run[3])
    assert rate is not None and (rate.updates, rate.told, rate.failed, rate.level) == (160, 60, 57, "act")
    assert str(rate) == (
        "of 60 networks of their kind (rnn) told this after 160 updates while at chance, 5 % learnt their task within "
        "320 updates"
    )
    assert [rule.condition for rule in shipped_rules()].count("collapsed") == 2
    page = counting.page(bank, noted, stops)
    assert "| collapsed | – | **60: 95 (≥" in page and "| any network |" in page and "is_collapsed" in page


def test_families_set_aside_do_not_count() -> None:
    aside = next(name for name, task in TASKS.items() if task.family in SET_ASIDE)
    bank = bank_of(NETWORKS)
    bank.networks[0].update(task=aside, family=TASKS[aside].family)
    bank.best[aside] = 1.0
    assert len(counting.development(bank)) == len(bank) - 1


# ------------------------------------------------------------------ stops


def test_a_rule_is_chosen_on_one_half_and_told_of_the_other() -> None:
    """Collapsed is wrong in the first half before update 160, where those that recover do so; the second is counted."""
    early = (FAMILIES[0], DIES, [0.0, 0.0, 0.0, 0.0, 0.6], 0.95)
    lost = [flat(n % 2, DIES, 0.0, 0.05) for n in range(60)]
    bank = bank_of([*lost, *[flat(1, DIES, 0.0, 0.6)] * 3])
    (stop,) = [s for s in choosing.choose(bank) if s.name == "collapsed" and s.rule and s.rule.knowledge == "at chance"]
    assert stop.rule is not None and (stop.rule.start, stop.rule.amount) == (40, 40.0)
    out = stop.ends.outcome
    assert (out.ended, out.failed, out.half, out.most) == (33, 30, 3, 0)
    assert stop.ends.stopped[:33].tolist() == [160.0] * 33 and stop.ends.caught == 1.0
    saved = 33 * 160 / (320 * len(stop.ends.end))
    assert stop.ends.saved == pytest.approx(saved)
    worse = bank_of([*lost, *[early] * 3])
    stops = [s for s in choosing.choose(worse) if s.name == "collapsed" and s.rule]
    assert all(math.isinf(s.rule.start) and "never" in s.note and s.ends.outcome.ended == 0 for s in stops)
    assert [s.written()[2] for s in stops] == [None, None]


def test_what_could_not_be_tried_counts_as_it_stands() -> None:
    stops = [s for s in choosing.choose(bank_of(NETWORKS)) if s.name == "chaotic"]
    assert [(s.rule.start, s.rule.amount, s.note) for s in stops if s.rule] == [(40, 2.0, "could not be tried")] * 2
    assert [len(s.written()) for s in stops] == [4, 4]


def test_the_replay_is_that_of_the_stopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the stopper itself, told one measurement after the other."""
    rules = [
        Rule("collapsed", "at chance", 80, 40.0),
        Rule("chaotic", "", 40, 2.0),
        Rule("converged", "known", 80, 0.5),
    ]
    written = [[rule.condition, rule.knowledge, rule.start, rule.amount] for rule in rules]
    monkeypatch.setattr(reading, "shipped", lambda: {"stops": written, "until": 0, "longest": 0})
    found = set()
    for knows_skill in (True, False):
        for run in runs(bank_of(NETWORKS), knows_skill=knows_skill):
            stopper = LyapunovEarlyStopping(["collapsed", "chaotic", "converged"], patience=2)
            at = [m.step for i, m in enumerate(run) if stopper._decide(list(run[: i + 1]))]  # type: ignore[arg-type]
            assert choosing.first(run, rules, 2) == pytest.approx(at[0] if at else math.nan, nan_ok=True)
            found.add(at[0] if at else None)
    assert found == {None, 80, 160}


def test_stock_stopping_ends_what_no_longer_improves() -> None:
    run = next(iter(runs(bank_of([(FAMILIES[0], KEEPS, [0.0, 0.1, 0.3, 0.3, 0.31], 0.5)]))))
    assert choosing.first_stagnant(run, 1, 0.0) == 160 and choosing.first_stagnant(run, 2, 0.05) == 320
    assert math.isnan(choosing.first_stagnant(run, 2, 0.0))


# ------------------------------------------------------------------ the command


def test_the_command_writes_the_file_and_the_page_and_prints_the_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = bank_of([flat(n % 2, DIES, 0.0, 0.05) for n in range(60)])
    monkeypatch.setattr(Bank, "load", lambda path: bank)
    out, page = tmp_path / "rates.json", tmp_path / "rates.md"
    monkeypatch.setattr("sys.argv", ["rates", "bank", "--no-scores", "--out", str(out), "--page", str(page)])
    counting.main()
    noted = counting.tell(counting.development(bank))
    assert json.loads(out.read_text("utf-8"))["told"]["collapsed"]["all"]["0"][:2] == [60, 60]
    assert counting.markdown(bank, noted) in page.read_text("utf-8")
    told = capsys.readouterr().out
    assert "    - collapsed, skill at chance: from update 40; of 30 runs 30 failed, 0 came above 0.5.\n" in told
    assert f"{out}: {out.stat().st_size:,} bytes, 1 concerns; {page}" in told


def test_scores_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, made = bank_of(NETWORKS[:1]), []
    scores = {f"{knows}/{name}": torch.rand(len(bank), 5) for knows in (True, False) for name in unseen.SAID}
    monkeypatch.setattr(unseen, "_made", lambda bank: made.append(bank) or scores)
    first, again = (unseen.unseen_scores(bank, tmp_path / "scores") for _ in range(2))
    assert len(made) == 1 and first.keys() == {True, False}
    for knows in first:
        for name, values in first[knows].items():
            assert torch.equal(values, again[knows][name]) and torch.equal(values, scores[f"{knows}/{name}"])


# ------------------------------------------------------------------ what is shipped


def test_the_docstring_of_the_stopper_has_the_outcomes_of_the_file() -> None:
    told = " ".join((LyapunovEarlyStopping.__doc__ or "").split())
    assert shipped_rules()
    for rule in shipped_rules():
        assert f"- {rule_in_words(rule)}" in told


def test_the_file_is_small_and_of_rates_that_may_be_told() -> None:
    file = counting.SHIPPED
    assert file.stat().st_size < 40_000
    contents = json.loads(file.read_text("utf-8"))
    assert contents["format"] == reading.FORMAT and counting.text_of(contents) == file.read_text("utf-8")
    for groups in contents["told"].values():
        for moments in groups.values():
            for updates, (count, failed, half, most, least) in moments.items():
                assert int(updates) in contents["moments"] and count >= reading.FEWEST
                assert most <= half <= count - failed and 0 <= least <= failed / count


@pytest.mark.slow
def test_the_file_is_what_the_command_makes() -> None:
    """Of the bank in the repository; scores apart, for which scorers would have to be fitted."""
    contents = json.loads(counting.SHIPPED.read_text("utf-8"))
    if not any(RECORDS.glob("*.safetensors")) or Bank.load(RECORDS).digest != contents["bank"]["sha256"]:
        pytest.skip("the file is of another bank")
    bank = counting.development(Bank.load(RECORDS))
    made = json.loads(counting.text_of(counting.rates(bank, counting.tell(bank))))
    contents["told"].pop("predicted_to_fail", None)
    assert made["told"] == contents["told"] and made["moments"] == contents["moments"]
