"""Splits and scores of the bank's evaluation: pairs that are counted, scipy, and a bank small enough to check."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from systems import noise
from test_records import record, write_bank_1
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, SCALE, quantiles, squash
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
from lightning_lyapunov.bank.population import CHECKPOINTS, METRICS
from lightning_lyapunov.bank.probes import MEASURED
from lightning_lyapunov.bank.records import Bank, write_record
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS

MADE = {
    "layers": 1, "hidden_size": 16, "dimension": 6, "seed": 0, "gain": 1.25, "input_gain": 0.7, "memory_bias": 0.0,
    "learning_rate": 0.0023, "optimizer": "adam", "clip": True, "warmup": 0,
}  # fmt: skip
ALL = tuple(range(len(CHECKPOINTS)))


def bank_of(
    kinds: list[tuple[str, str]], final: list[float], so_far: float = 0.0, measured: tuple[int, ...] = ALL
) -> Bank:
    """Networks of tasks and cells with known ends; the best of every task is 1, and chance counts as it does."""
    count, rows = len(kinds), len(CHECKPOINTS)
    networks = [
        {"task": task, "family": TASKS[task].family, "cell": cell, "number": n}
        | MADE
        | {"gain": 0.1 if n % 3 == 2 else 1.25, "init": ("normal", "uniform", "orthogonal")[n % 3]}
        for n, (task, cell) in enumerate(kinds)
    ]

    def spectra(moments: int, size: int, seed: int) -> Tensor:
        return noise(count, moments, size, seed=seed).float().sort(descending=True).values

    quantile_functions = spectra(rows, LEVELS, 0)
    quantile_functions[:, [c for c in ALL if c not in measured]] = math.nan
    metrics = noise(count, rows, len(METRICS), seed=1).float().abs()
    metrics[..., 0] = so_far
    bank = Bank(
        networks,
        CHECKPOINTS,
        end=torch.full((count,), CHECKPOINTS[-1]),
        quantiles=quantile_functions,
        leading=spectra(rows, 8, 2),
        measured=noise(count, rows, len(MEASURED), seed=3).float(),
        long_quantiles=spectra(3, LEVELS, 4),
        long_leading=spectra(3, 8, 5),
        long_measured=noise(count, 3, len(MEASURED), seed=6).float(),
        layers=torch.full((count, rows, 2, 2), math.nan),
        metrics=metrics,
        final=torch.tensor(final),
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
    bank.quantiles[1, 2] = math.nan  # could not be measured
    table = Table.of(bank)
    expected = [(n, u) for n in range(9) for u in CHECKPOINTS if (n, u) != (1, CHECKPOINTS[2])]
    assert list(zip(table.network.tolist(), table.updates.tolist(), strict=True)) == expected
    assert len(table) == len(table.rows) == len(expected)
    n, c = 4, 3
    row = expected.index((n, CHECKPOINTS[c]))
    seen = table.rows.spectrum[row]
    torch.testing.assert_close(seen[:-1], quantiles(bank.quantiles[n, c])[:-1])  # of 64 exponents, each a level
    mean = float(bank.measured[n, c, MEASURED.index("mean")])
    assert float(seen[-1]) == pytest.approx(math.copysign(math.log1p(abs(mean) / SCALE), mean), abs=1e-5)
    assert table.column("task")[row] == "adding-20" and table.column("cell")[row] == "gru"
    known = dict(zip(CONTEXT, table.rows.context[row].tolist(), strict=True))
    cheap = [math.log(value) for value in bank.metrics[n, c, 3:6].tolist()]
    assert METRICS[3:6] == ("gradient_norm", "mean_abs_h", "std_h")
    assert known == pytest.approx(
        {
            "rnn": 0, "rnn_relu": 0, "gru": 1, "lstm": 0, "log_size": math.log(0.5), "log_updates": math.log1p(8),
            "skill": 0.5, "log_rate": math.log(0.0023 / 3e-3), "adaptive": 1.0, "log_gradient": cheap[0],
            "log_state_mean": cheap[1], "log_state_spread": cheap[2], "log_steps": math.log(20 / 32),
        },
        abs=1e-5,
    )  # fmt: skip
    assert table.rows.context[table.column("cell") == "antisymmetric"][:, : len(ARCHITECTURES)].isnan().all()


def test_networks_of_sgd_are_told_apart() -> None:
    bank = bank_of(MIXED, ENDS, measured=(0,))
    bank.networks[2]["optimizer"] = "sgd"
    adaptive = Table.of(bank).rows.context[:, CONTEXT.index("adaptive")]
    assert adaptive.tolist() == [1.0, 1.0, 0.0] + [1.0] * 6


def test_banks_of_both_formats_are_tables(tmp_path: Path) -> None:
    """Of six networks of one record and three of another, of ten checkpoints and eight, the last were not measured."""
    write_record(record("adding-20", "rnn", 4, 6), tmp_path / "records" / "a.safetensors")
    two = record("recall-6", "lstm", 16, 3, rows=8, layers=2)
    write_record(two, tmp_path / "records" / "b.safetensors")
    table = Table.of(Bank.load(tmp_path / "records"))
    assert table.network.tolist() == [n for n in range(5) for _ in range(10)] + [n for n in (6, 7) for _ in range(8)]
    assert table.updates[-8:].tolist() == list(CHECKPOINTS[:8])
    assert not table.rows.spectrum.isnan().any() and not table.rows.context.isnan().any()

    spectra = write_bank_1(tmp_path / "bank.safetensors")
    before = Table.of(Bank.load(tmp_path / "bank.safetensors"))
    assert before.network.tolist() == [0] * 8 + [1] * 8
    for row in (3, 12):
        exponents = spectra[int(before.network[row])][row % 8]
        torch.testing.assert_close(before.rows.spectrum[row], quantiles(exponents), rtol=1e-4, atol=1e-4)
    assert before.growth.isnan().all() and before.stable.isfinite().all()


def test_skill_is_the_share_of_the_way_from_chance_to_the_best() -> None:
    table = Table.of(bank_of(MIXED, ENDS, so_far=0.5))
    assert (chance("recall-6"), chance("adding-20"), chance("match-6")) == (0.125, 0.0, 0.5)
    by_network = [0.0, 0.5, 1.0, 0.0, 0.25, 0.5, 1.0, 0.75, 0.0]
    assert table.skill.tolist() == pytest.approx([s for s in by_network for _ in CHECKPOINTS])
    so_far = table.rows.context[:, CONTEXT.index("skill")]
    assert so_far[0] == pytest.approx((0.5 - 0.125) / 0.875) and so_far[-1] == 0.0


def test_stable_is_what_the_long_probe_says_and_where_there_is_none_the_usual_one() -> None:
    bank = bank_of(MIXED, ENDS)
    bank.long_leading[:5, -1, 0] = math.nan
    bank.leading[:, -1, 0] = torch.tensor([-0.1, 0.0, 0.1, math.nan, 0.1, -0.1, 0.1, -0.1, 0.1])
    bank.end[4], bank.leading[4, CHECKPOINTS.index(800), 0] = 800, -0.1  # its end came before
    bank.long_leading[5:7, -1, 0] = torch.tensor([0.1, -0.1])
    table = Table.of(bank)
    found = [float(table.stable[table.network == n][0]) for n in range(7)]
    assert found[:3] == [1.0, 1.0, 0.0] and math.isnan(found[3])
    assert found[4:] == [1.0, 0.0, 1.0]


def test_what_else_is_known_worked_by_hand() -> None:
    bank = bank_of(MIXED, ENDS)
    bank.quantiles[1, 0] = math.nan  # nothing to compare with
    table = Table.of(bank)
    first = table.network == 0
    mean = MEASURED.index("mean")
    now, then = (squash(torch.cat([bank.quantiles[0, c], bank.measured[0, c, mean : mean + 1]])) for c in (5, 0))
    columns = [0, LEVELS // 4, LEVELS // 2, LEVELS]
    torch.testing.assert_close(table.change[first][5], (now - then)[columns])
    assert (table.change[first][0] == 0).all()
    assert table.change[table.network == 1][:, :3].isnan().all()
    names = [MEASURED.index(name) for name in ("gradient_growth", "gradient_gain")]
    assert torch.equal(table.growth[first][5], bank.measured[0, 5, names])


def test_groups_are_tasks_at_one_number_of_updates() -> None:
    table = Table.of(bank_of(MIXED, ENDS, measured=(0, 2)))
    made = list(zip(table.column("task").tolist(), table.updates.tolist(), strict=True))
    by_group: dict[int, set[tuple[str, int]]] = {}
    for group, key in zip(table.groups.tolist(), made, strict=True):
        by_group.setdefault(group, set()).add(key)
    assert sorted(next(iter(keys)) for keys in by_group.values()) == sorted(set(made))
    assert all(len(keys) == 1 for keys in by_group.values())
    examples = table.examples
    assert torch.equal(examples.groups, table.groups) and torch.equal(examples.skill, table.skill)
    families = dict(zip(table.column("family"), examples.families.tolist(), strict=True))
    assert sorted(families.values()) == list(range(len(families)))


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
    assert len(some) == len(some.skill) == len(some.growth) == len(some.rows) == 4 * len(CHECKPOINTS)
    torch.testing.assert_close(some.rows.spectrum, table.rows.spectrum[3 * len(ALL) : 7 * len(ALL)])
    assert float(some.weights.sum()) == pytest.approx(1.0)  # of its own families, not of all
    assert not table.where(cell=["none"]).any() and table.where().all()


def test_useful_range_is_that_of_the_draw() -> None:
    """A third has a gain of 0.1; a rate in use with Adam is a tenth of one in use with SGD."""
    bank = bank_of(MIXED, ENDS, measured=(0, 2))
    bank.networks[1]["optimizer"] = "sgd"
    bank.networks[3] |= {"optimizer": "sgd", "learning_rate": 0.023}
    useful = [n % 3 != 2 and n != 1 for n in range(9)]
    assert Table.of(bank).is_useful.tolist() == [is_one for is_one in useful for _ in range(2)]


def test_hyperparameters_are_logarithms_their_squares_and_kinds() -> None:
    bank = bank_of(MIXED, ENDS, measured=(0,))
    bank.networks[1] |= {"optimizer": "sgd", "clip": False, "warmup": 40}
    found = Table.of(bank).hyperparameters()
    logs = [math.log(1.25), math.log(0.7), math.log(0.0023), 0.0]
    assert found.shape == (9, 4 + 4 + 4 * 8 + 3 + 3 + 5)
    assert found[0, :8].tolist() == pytest.approx(logs + [v**2 for v in logs], abs=1e-5)
    assert found[0, 8:16].tolist() == pytest.approx(found[0, :8].tolist())  # an RNN
    assert found[0, 16:40].tolist() == [0.0] * 24
    assert found[:3, 40:43].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found[:2, 43:46].tolist() == [[0, 1, 0], [1, 0, 1]]


def test_development_leaves_out_families_set_aside_and_unknown_cells() -> None:
    """The eighth is of a kind of cell that is set aside; then one network of each of those families."""
    aside = [next(name for name, task in TASKS.items() if task.family == family) for family in SET_ASIDE]
    kinds = [*MIXED[:8], *((task, "lstm") for task in aside)]
    bank = bank_of(kinds, [0.5] * len(kinds))
    chosen = development(Table.of(bank))
    assert set(chosen.network.tolist()) == set(range(7))
    assert not set(chosen.column("family")) & set(SET_ASIDE)
    assert set(chosen.column("cell")) == {"rnn", "gru"}
    others = development(Table.of(replace(bank, set_aside=("adding",))))  # as another bank may set aside others
    assert set(others.network.tolist()) == {0, 1, 2, *range(8, 8 + len(aside))}


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
