"""Splits and scores of the bank's evaluation: pairs that are counted, scipy, and a bank small enough to check."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, quantiles
from lightning_lyapunov.bank.evaluation import (
    FEWEST,
    SCORES,
    Table,
    area,
    boosted,
    correlation,
    development,
    leave_out,
    ridge,
    scores,
    summary,
)
from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS, SECOND_PROBE
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS

MADE = {"init": "normal", "gain": 1.25, "input_gain": 0.7, "memory_bias": 0.0, "learning_rate": 0.0023}
D = 6
ALL = tuple(range(len(CHECKPOINTS)))


def bank_of(
    kinds: list[tuple[str, str]], final: list[float], so_far: float = 0.0, measured: tuple[int, ...] = ALL
) -> Bank:
    """Networks of tasks and cells with known ends; the best of every task is 1, and chance counts as it does."""
    count = len(kinds)
    networks = [
        {"task": task, "family": TASKS[task].family, "cell": cell, "hidden_size": 16, "dimension": D, "number": n}
        | MADE
        | {"gain": 0.1 if n % 3 == 2 else 1.25, "init": ("normal", "uniform", "orthogonal")[n % 3]}
        for n, (task, cell) in enumerate(kinds)
    ]
    spectra = noise(count, len(CHECKPOINTS), D).float().sort(descending=True).values
    spectra[:, [c for c in ALL if c not in measured]] = math.nan
    metrics = noise(count, len(CHECKPOINTS), len(METRICS), seed=1).float().abs()
    metrics[..., 0] = so_far
    bank = Bank(
        networks,
        list(spectra),
        list(noise(count, len(CHECKPOINTS), 3, seed=2).float().abs()),
        [torch.full((len(SECOND_PROBE), D), math.nan)] * count,
        metrics,
        torch.tensor(final),
    )
    bank.__dict__["best"] = {task: 1.0 for task, _ in kinds}  # rather than a quantile of what is here
    return bank


def chance(task: str) -> float:
    return float(TASKS[task].chance)


# ------------------------------------------------------------------ scores of a ranking


@pytest.mark.parametrize("seed", range(5))
def test_area_counts_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 6, 30).astype(float)  # with ties, each worth half a pair
    positive = generator.random(30) < 0.3
    pairs = list(itertools.product(score[positive], score[~positive]))
    counted = sum((good > bad) + 0.5 * (good == bad) for good, bad in pairs) / len(pairs)
    assert area(score, positive) == pytest.approx(counted)


def test_area_of_extremes_and_of_too_few() -> None:
    score, positive = np.arange(10.0), np.arange(10) >= 10 - FEWEST
    assert (area(score, positive), area(-score, positive), area(0 * score, positive)) == (1.0, 0.0, 0.5)
    for few in (np.arange(10) >= 11 - FEWEST, np.arange(10) < 11 - FEWEST, np.zeros(10, dtype=bool)):
        assert math.isnan(area(score, few)) == (min(few.sum(), (~few).sum()) < FEWEST)
    assert math.isnan(area(score[:0], positive[:0]))


def test_correlation_is_that_of_scipy_and_of_nothing_is_nothing() -> None:
    x, y = noise(20).numpy().round(1), noise(20, seed=1).numpy()
    assert correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert correlation(np.arange(5.0), np.exp(np.arange(5.0))) == pytest.approx(1.0)
    assert correlation(np.ones(20), y) == 0.0
    assert math.isnan(correlation(x, np.ones(20)))
    assert math.isnan(correlation(x[:4], y[:4]))


def test_summary_worked_by_hand() -> None:
    families = {"a": {"rho": 0.2}, "b": {"rho": 0.4}, "c": {"rho": math.nan}, "d": {"rho": 0.9}}
    mean, error, count = summary(families, "rho")
    assert (mean, count) == (pytest.approx(0.5), 3)
    assert error == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2 / 3))
    for few, known in (({"a": {"rho": 0.3}, "b": {"rho": math.nan}}, 1), ({}, 0)):
        mean, error, count = summary(few, "rho")
        assert math.isnan(mean) and math.isnan(error) and count == known


def one_task(skill: list[float], so_far: float = 0.0, cells: tuple[str, ...] = ("rnn",)) -> Table:
    """Networks of one task, whose chance is 0, at one checkpoint."""
    kinds = [("adding-20", cells[n * len(cells) // len(skill)]) for n in range(len(skill))]
    return Table.of(bank_of(kinds, skill, so_far, measured=(0,)))


SKILL = [0.0, 0.02, 0.04, 0.06, 0.2, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(("sign", "expected"), [(1, (1.0, 1.0, 1.0, 1.0)), (-1, (-1.0, 0.0, 0.0, 0.0))])
def test_a_perfect_ranking_and_its_opposite(sign: int, expected: tuple[float, ...]) -> None:
    table = one_task(SKILL)
    found = scores(table, sign * table.skill)
    assert list(found) == ["adding"] and set(found["adding"]) == set(SCORES)
    for suffix in ("", " in cell"):
        values = tuple(found["adding"][name + suffix] for name in ("rho", "fail", "take-off"))
        assert values == pytest.approx(expected[:3])
    assert found["adding"]["top quarter"] == pytest.approx(expected[3])


def test_scores_worked_by_hand() -> None:
    """The failed (0 to 0.06) are ranked 1, 2, 3 and 9; those that took off (0.5 to 1) hold all but 4, 5 and 9."""
    table = one_task(SKILL)
    predicted = torch.tensor([1.0, 2, 3, 9, 4, 5, 6, 7, 8, 10, 11, 12])
    found = scores(table, predicted)["adding"]
    assert found["fail"] == pytest.approx((3 * 8 + 3) / 32)  # the ninth is above five of the eight that did not fail
    assert found["take-off"] == pytest.approx((5 * 6 + 3) / 36)
    assert found["top quarter"] == 1.0
    assert found["rho"] == pytest.approx(1 - 6 * (25 + 5) / (12 * 143))


def test_take_off_is_asked_of_networks_that_still_wait() -> None:
    assert math.isnan(scores(one_task(SKILL, so_far=0.2), torch.arange(12.0))["adding"]["take-off"])
    assert scores(one_task(SKILL, so_far=0.09), torch.arange(12.0))["adding"]["take-off"] == 1.0


def test_knowing_the_cell_counts_for_nothing_within_it() -> None:
    table = one_task(SKILL, cells=("rnn", "gru"))
    kind = torch.tensor([0.0] * 6 + [1.0] * 6)
    found = scores(table, kind)["adding"]
    assert found["rho"] > 0.8 and found["take-off"] == 1.0
    assert found["rho in cell"] == 0.0
    assert found["fail in cell"] != found["fail"]
    assert math.isnan(found["take-off in cell"])  # no cell has both kinds


def test_variants_are_ranked_apart_and_averaged_within_their_family() -> None:
    """One variant ranked right and one wrong; the second's level does not matter."""
    skill = [0.05 * n for n in range(10)]
    kinds = [("adding-20", "rnn")] * 10 + [("adding-40", "rnn")] * 10 + [("compare-8", "rnn")] * 10
    table = Table.of(bank_of(kinds, skill * 3, measured=(0,)))
    predicted = torch.cat([torch.arange(10.0), -torch.arange(10.0) + 1000, torch.arange(10.0)])
    found = scores(table, predicted)
    assert found["adding"]["rho"] == pytest.approx(0.0) and found["compare"]["rho"] == pytest.approx(1.0)
    assert found["adding"]["take-off"] == pytest.approx(0.5)


def test_a_predictor_may_have_heads_of_its_own() -> None:
    table = one_task(SKILL)
    found = scores(table, table.skill, {"fail": -table.skill})["adding"]
    assert (found["rho"], found["fail"], found["take-off"]) == (pytest.approx(1.0), 0.0, 1.0)


# ------------------------------------------------------------------ the table

MIXED = [("recall-6", "rnn")] * 3 + [("adding-20", "gru")] * 4 + [("adding-40", "antisymmetric"), ("match-6", "lstm")]
ENDS = [0.125, 0.5625, 1.0, -0.5, 0.25, 0.5, 1.5, 0.75, 0.5]


def test_rows_are_networks_at_their_checkpoints() -> None:
    bank = bank_of(MIXED, ENDS, so_far=0.5)
    bank.spectra[1][2] = math.nan  # could not be measured
    table = Table.of(bank)
    expected = [(n, u) for n in range(9) for u in CHECKPOINTS if (n, u) != (1, CHECKPOINTS[2])]
    assert list(zip(table.network.tolist(), table.updates.tolist(), strict=True)) == expected
    assert len(table) == len(table.rows) == len(expected)
    n, c = 4, 3
    row = expected.index((n, CHECKPOINTS[c]))
    torch.testing.assert_close(table.rows.spectrum[row], quantiles(bank.spectra[n][c], D), rtol=0, atol=0)
    assert table.column("task")[row] == "adding-20" and table.column("cell")[row] == "gru"
    known = dict(zip(CONTEXT, table.rows.context[row].tolist(), strict=True))
    assert known == pytest.approx(
        {"rnn": 0, "gru": 1, "lstm": 0, "log_size": math.log(0.5), "log_updates": math.log1p(8), "skill": 0.5}
    )
    assert table.rows.context[table.column("cell") == "antisymmetric"][:, :3].isnan().all()


def test_skill_is_the_share_of_the_way_from_chance_to_the_best() -> None:
    table = Table.of(bank_of(MIXED, ENDS, so_far=0.5))
    assert (chance("recall-6"), chance("adding-20"), chance("match-6")) == (0.125, 0.0, 0.5)
    by_network = [0.0, 0.5, 1.0, 0.0, 0.25, 0.5, 1.0, 0.75, 0.0]
    assert table.skill.tolist() == pytest.approx([s for s in by_network for _ in CHECKPOINTS])
    so_far = table.rows.context[:, CONTEXT.index("skill")]
    assert so_far[0] == pytest.approx((0.5 - 0.125) / 0.875) and so_far[-1] == 0.0


def test_stable_is_what_the_last_spectrum_says() -> None:
    bank = bank_of(MIXED, ENDS)
    for n, value in ((0, -0.1), (1, 0.0), (2, 0.1)):
        bank.spectra[n][-1, 0] = value
    bank.spectra[3][-1] = math.nan
    table = Table.of(bank)
    found = [float(table.stable[table.network == n][0]) for n in range(4)]
    assert found[:3] == [1.0, 1.0, 0.0] and math.isnan(found[3])


def test_what_else_is_known_worked_by_hand() -> None:
    bank = bank_of(MIXED, ENDS)
    bank.spectra[1][0] = math.nan  # nothing to compare with
    bank.stderr[0][3] = torch.tensor([0.9, 0.1, 0.0])
    table = Table.of(bank)
    first = table.network == 0
    # The logarithms of what the bank keeps, and of a millionth for what is smaller.
    assert table.spread[first][3].tolist() == pytest.approx([math.log(0.9), math.log(0.1), math.log(1e-6)])
    columns = [0, LEVELS // 4, LEVELS // 2, LEVELS]
    change = quantiles(bank.spectra[0][5], D) - quantiles(bank.spectra[0][0], D)
    torch.testing.assert_close(table.change[first][5], change[columns])
    assert (table.change[first][0] == 0).all() and table.change[table.network == 1].isnan().all()
    torch.testing.assert_close(table.cheap[first][2], bank.metrics[0, 2, 3:6].log())
    assert METRICS[3:6] == ("gradient_norm", "mean_abs_h", "std_h")


def test_families_weigh_the_same_and_so_do_their_tasks() -> None:
    table = Table.of(bank_of(MIXED, ENDS))
    families, tasks = table.column("family"), table.column("task")
    for family in ("recall", "adding", "match"):
        assert float(table.weights[torch.from_numpy(families == family)].sum()) == pytest.approx(1.0)
    for task in ("adding-20", "adding-40"):
        assert float(table.weights[torch.from_numpy(tasks == task)].sum()) == pytest.approx(0.5)


def test_selection_takes_the_same_rows_of_everything() -> None:
    table = Table.of(bank_of(MIXED, ENDS))
    some = table[table.where(cell=["gru"], task=["adding-20", "recall-6"])]
    assert set(some.network.tolist()) == {3, 4, 5, 6}
    assert len(some) == len(some.skill) == len(some.cheap) == len(some.rows) == 4 * len(CHECKPOINTS)
    torch.testing.assert_close(some.rows.spectrum, table.rows.spectrum[3 * len(ALL) : 7 * len(ALL)])
    assert float(some.weights.sum()) == pytest.approx(1.0)  # of its own families, not of all
    assert not table.where(cell=["none"]).any() and table.where().all()


def test_useful_range_is_that_of_the_draw() -> None:
    table = Table.of(bank_of(MIXED, ENDS, measured=(0, 2)))
    assert table.is_useful.tolist() == [n % 3 != 2 for n in range(9) for _ in range(2)]  # a third has a gain of 0.1


def test_hyperparameters_are_logarithms_their_squares_and_kinds() -> None:
    table = Table.of(bank_of(MIXED, ENDS, measured=(0,)))
    found = table.hyperparameters()
    logs = [math.log(1.25), math.log(0.7), math.log(0.0023), 0.0]
    assert found.shape == (9, 4 + 4 + 3 * 8 + 3 + 4)
    assert found[0, :8].tolist() == pytest.approx(logs + [v**2 for v in logs], abs=1e-5)
    assert found[0, 8:16].tolist() == pytest.approx(found[0, :8].tolist())  # an RNN
    assert found[0, 16:32].tolist() == [0.0] * 16
    assert found[:3, 32:35].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_development_leaves_out_families_set_aside_and_unknown_cells() -> None:
    """The eighth is of a kind of cell that is set aside; then one network of each of those families."""
    aside = [next(name for name, task in TASKS.items() if task.family == family) for family in SET_ASIDE]
    kinds = [*MIXED[:8], *((task, "lstm") for task in aside)]
    chosen = development(Table.of(bank_of(kinds, [0.5] * len(kinds))))
    assert set(chosen.network.tolist()) == set(range(7))
    assert not set(chosen.column("family")) & set(SET_ASIDE)
    assert set(chosen.column("cell")) == {"rnn", "gru"}


# ------------------------------------------------------------------ predictors


@pytest.mark.parametrize("key", ["family", "task", "cell", "number"])
def test_leave_out_never_shows_a_predictor_what_it_is_asked_about(key: str) -> None:
    table = Table.of(bank_of(MIXED, ENDS))
    asked: list[Any] = []

    def predict(train: Table, test: Table) -> Tensor:
        (value,) = set(test.column(key))
        assert value not in set(train.column(key))
        assert len(train) + len(test) == len(table)
        asked.append(value)
        return test.network.float()

    found = leave_out(table, key, predict)
    assert found.tolist() == table.network.tolist()
    assert asked == sorted(set(table.column(key)))


def test_ridge_and_trees_find_a_feature_that_decides() -> None:
    kinds = [(task, "gru") for task in ("recall-6", "adding-20", "compare-8") for _ in range(40)]
    ends = torch.rand(120, generator=torch.Generator().manual_seed(0))
    table = Table.of(bank_of(kinds, (0.2 + 0.7 * ends).tolist(), measured=(0,)))

    def features(part: Table) -> Tensor:
        return torch.stack([part.skill**2, torch.ones(len(part))], 1)

    trees = boosted(features)
    for predictor in (ridge(features), trees):
        found = leave_out(table, "family", predictor)
        assert found.dtype == torch.float32
        assert spearmanr(found, table.skill).statistic > 0.95
        assert predictor is trees or ((found > 0) & (found < 1)).all()  # a ridge cannot say what no skill is


def test_ridge_counts_families_alike() -> None:
    """With nothing to go by it says the mean over families, not over networks."""
    kinds = [("adding-20", "gru")] * 30 + [("compare-8", "gru")] * 5
    table = Table.of(bank_of(kinds, [0.0] * 30 + [1.0] * 5, measured=(0,)))
    found = ridge(lambda part: torch.zeros(len(part), 1))(table, table)
    torch.testing.assert_close(found, torch.full((35,), 0.5), rtol=0, atol=1e-4)
