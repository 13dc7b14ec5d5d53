"""The benchmark across depth: its statistics against published numbers and brute force, its rules on made-up results,
its networks against plain autograd, and a run in its short form.

What each oracle is stands with its test.
"""

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

HERE = Path(__file__).parents[1] / "benchmarks" / "depth"
NAMES = [path.stem for path in HERE.glob("*.py") if path.stem != "__main__"]


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmark, which stand beside each other in a folder; nobody else sees their names after."""
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(HERE))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(HERE))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


# Statistics -----------------------------------------------------------------------------------------------------------


def test_auc_counts_pairs_of_the_same_group(parts: dict[str, ModuleType]) -> None:
    """By brute force over all pairs; ties count half."""
    chance = np.random.default_rng(0)
    scores = chance.integers(0, 5, 40).astype(float)
    learned, groups = chance.random(40) < 0.4, chance.integers(0, 3, 40)
    pairs = [(i, j) for i in range(40) for j in range(40) if learned[i] and not learned[j] and groups[i] == groups[j]]
    right = sum(1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]) for i, j in pairs)
    assert parts["judging"].auc_of(scores, learned, groups).value == pytest.approx(right / len(pairs))


def test_auc_of_one_kind_of_outcome_is_not_known(parts: dict[str, ModuleType]) -> None:
    assert math.isnan(parts["judging"].auc_of(np.arange(3.0), np.ones(3) > 0, np.zeros(3)).value)


def test_intervals_are_the_published_ones(parts: dict[str, ModuleType]) -> None:
    """Newcombe, Stat. Med. 17 (1998) 857-872, table I, method 3; and 873-890, table II, method 10: 56/70 less 48/80."""
    wilson, less = parts["judging"].wilson, parts["judging"].less
    for (hits, count), interval in {
        (81, 263): (0.2553, 0.3662),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        found = wilson(hits, count)
        assert (found.low, found.high) == pytest.approx(interval, abs=1e-4)
    found = less((48, 80), (56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_a_difference_of_equals_is_nothing_and_of_a_better_score_is_found(parts: dict[str, ModuleType]) -> None:
    """A score that knows the outcome beside one that is noise."""
    chance = np.random.default_rng(0)
    learned, groups = np.arange(60) % 3 > 0, np.arange(60) % 2
    noise = chance.random(60)
    same = parts["judging"].auc_gain(noise, noise, learned, groups)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = parts["judging"].auc_gain(learned + 0.5 * noise, noise, learned, groups)
    alone = parts["judging"].auc_of(noise, learned, groups)
    assert better.is_above_zero and better.value == pytest.approx(1 - alone.value)


def test_an_interval_is_that_of_rows_drawn_anew(parts: dict[str, ModuleType]) -> None:
    """By brute force: rows drawn one by one within each group, and pairs counted again; ρ by scipy in one group."""
    judging, chance = parts["judging"], np.random.default_rng(1)
    groups = np.arange(50) % 2
    learned = chance.random(50) < 0.5
    scores = learned + chance.normal(size=50)

    def again() -> float:
        rows = np.concatenate([chance.choice(np.flatnonzero(groups == group), 25) for group in (0, 1)])
        return judging.aucs(scores[rows], learned[rows], groups[rows], np.ones((1, 50)))[0]

    found = judging.auc_of(scores, learned, groups)
    assert (found.low, found.high) == pytest.approx(
        np.quantile([again() for _ in range(1000)], (0.025, 0.975)), abs=0.02
    )
    known = spearmanr(scores[:9], groups[:9]).statistic
    assert judging.correlation_of(scores[:9], groups[:9], np.zeros(9)).value == pytest.approx(known)


# Thresholds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beyond", "middle", "is_no_training", "holds"),
    [
        ((1, 10), (70, 80), True, True),
        ((5, 10), (70, 80), True, False),  # fewer, but half of them
        ((2, 8), (70, 80), True, False),  # may be more than half
        ((1, 10), (10, 80), True, False),  # the others do not learn either
        ((5, 10), (70, 80), False, True),
        ((0, 4), (70, 80), False, False),  # too few to say
    ],
)
def test_a_threshold_holds_beyond_its_errors(
    parts: dict[str, ModuleType],
    beyond: tuple[int, int],
    middle: tuple[int, int],
    is_no_training: bool,
    holds: bool,
) -> None:
    """By what was laid down: worse than the middle by more than the error; and below one half."""
    assert parts["bands"].holds(beyond, middle, is_no_training) is holds


def test_every_growth_has_its_band(parts: dict[str, ModuleType]) -> None:
    band_of = parts["bands"].band_of
    told = [band_of(value) for value in (-999.0, -5.1, -5.0, -0.1, 0.0, 5.9, 6.0, 10.0, 998.0, 999.0)]
    assert told == [
        "below −5", "below −5", "−5 to 0", "−5 to 0", "0 to 3", "3 to 6", "6 to 10", "above 10", "above 10",
        "states not finite",
    ]  # fmt: skip


def test_two_tasks_of_three_make_a_rule(parts: dict[str, ModuleType]) -> None:
    bands = parts["bands"]
    good, bad = {name: (9, 10) for name in (*bands.BANDS, bands.MIDDLE)}, (0, 10)
    told = bands.verdicts({"a": {**good, "above 10": bad, "below −5": bad}, "b": {**good, "above 10": bad}, "c": good})
    assert {one.threshold: one.holds for one in told} == {"below −5": False, "6 to 10": False, "above 10": True}


# Networks -------------------------------------------------------------------------------------------------------------


def drawn(parts: dict[str, ModuleType], task: str, kind: str, norm: str) -> tuple[Any, Any]:
    """A small network, its task."""
    draw = parts["draws"].Draw(0, task, kind, 3, norm, "gelu", 1.0, 0.5, "adam")
    own = parts["data"].task(task)
    return parts["networks"].made(draw, own), own


CASES = [
    ("images", "conv", "batch"), ("images", "residual conv", "pre"), ("images", "attention", "post"),
    ("images", "residual dense", "batch"), ("text", "attention", "pre"), ("text", "conv", "layer"),
    ("text", "residual conv", "batch"), ("text", "dense", "none"), ("tabular", "dense", "batch"),
    ("tabular", "residual dense", "post"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "kind", "norm"), CASES)
def test_what_is_measured_is_the_network_that_trains(
    parts: dict[str, ModuleType], task: str, kind: str, norm: str
) -> None:
    """The copy makes of its batch what the network makes of it in training, which is left as it was."""
    network, own = drawn(parts, task, kind, norm)
    inputs, _ = next(own.batches(64, 0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    held = parts["networks"].held(network, inputs)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        states, trained = held.states(inputs), network.train().states(inputs)
    for one, other in zip(states, trained, strict=True):
        assert one.shape == states[0].shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_ratio_is_the_gain_where_the_output_is_random(parts: dict[str, ModuleType]) -> None:
    """Both tell by what a gradient grows: of a linear chain, 1.5 times at each block, exactly and by training."""
    network, own = drawn(parts, "tabular", "dense", "none")
    for block in network.blocks:
        torch.nn.init.orthogonal_(block[0].weight, 1.5)
        block[2] = torch.nn.Identity()
    inputs, targets = next(own.batches(64, 0))
    found = parts["looking"].look(network, inputs, targets)
    expected = 3 * math.log(1.5)
    assert found["total"] == pytest.approx(expected, abs=1e-3)
    assert found["gain"] == pytest.approx(expected, abs=1e-3)
    assert found["gradient_ratio"] == pytest.approx(expected, abs=1e-3)
    assert found["block_gradient"] == pytest.approx([expected / 3] * 3, abs=1e-3)


def test_free_numbers_leave_batch_norm_as_it_was(parts: dict[str, ModuleType]) -> None:
    network, own = drawn(parts, "images", "conv", "batch")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parts["looking"].free(network, *next(own.batches(64, 0)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_states_that_overflow_are_kept_as_not_known(parts: dict[str, ModuleType]) -> None:
    network, own = drawn(parts, "tabular", "dense", "none")
    with torch.no_grad():
        network.blocks[0][0].weight.fill_(math.inf)
    found = parts["looking"].look(network, *next(own.batches(64, 0)))
    assert "not finite" in found["refused"] and found["gradient_ratio"] is None
    assert parts["features"].seen({"looks": {"0": found}}, "total") == 999.0


def test_a_dead_branch_is_found_by_its_change(parts: dict[str, ModuleType]) -> None:
    """The change of a block whose units are off is −∞, wherever it stands."""
    found = parts["faults"].located("dead branch, pre-LN: units off", 3, 2)
    assert found["before"]["block change"] == [found["place"]] * 2 and found["before"]["rule"] == [found["place"]]


def test_a_profile_that_falls_names_no_end(parts: dict[str, ModuleType]) -> None:
    """As gains of pre-LN do, ½ ln(1 + 1/(l + 1)); with one block that is off by .3 nats."""
    falling = [0.5 * math.log1p(1 / (block + 1)) for block in range(12)]
    for place in range(12):
        assert parts["faults"].farthest([gain + 0.3 * (at == place) for at, gain in enumerate(falling)]) == place


def test_draws_do_not_depend_on_how_many_there_are(parts: dict[str, ModuleType]) -> None:
    draws = parts["draws"]
    few, many = list(draws.draws(6)), list(draws.draws(240))
    assert many[:6] == few and len({json.dumps(one.key) for one in many}) == 240
    assert {one.task for one in few} == set(draws.TASKS) and all(2 <= one.depth <= 50 for one in many)


# Whether anything is added --------------------------------------------------------------------------------------------


def row(parts: dict[str, ModuleType], number: int, chance: np.random.Generator, is_told: bool) -> dict[str, Any]:
    """A network whose fate is chance, and told by its block gains or not at all."""
    fate = chance.random()
    gain = fate if is_told else chance.random()
    look = {
        "total": 1.0, "gain": 0.5, "state_growth": 0.1, "block_gain": [gain] * 4, "block_change": [-1.0] * 4,
        "gradient_ratio": 0.1, "gradient_norm": 0.2, "activation_ratio": 0.1, "cosine": 0.0,
        "block_gradient": [0.1] * 4, "block_activation": [0.1] * 4,
    }  # fmt: skip
    moments = [str(moment) for moment in parts["fitting"].VALIDATIONS]
    return {
        "part": "networks", "draw": parts["draws"].draw(number).key, "losses": [float(chance.random())] * 40,
        "validation": {at: [0.3 + 0.6 * fate if at == "320" else 0.2, 1.0] for at in moments},
        "looks": {at: look for at in moments}, "seconds": {"training": 1.0},
    }  # fmt: skip


@pytest.mark.parametrize("is_told", [True, False])
def test_what_block_gains_add_is_found_and_nothing_else(parts: dict[str, ModuleType], is_told: bool) -> None:
    """Fates that the block gains alone know of, and fates that nothing knows of."""
    chance = np.random.default_rng(1)
    networks = parts["features"].networks([row(parts, number, chance, is_told) for number in range(90)])
    adding = parts["adding"]
    sets = adding.BASE, adding.BLOCKS, adding.BACKWARD
    found = {one.name: one for one in adding.compared(networks, 40, is_grouped=False, sets=sets)}
    gain = found[adding.BLOCKS].auc_gain
    assert gain.is_above_zero is is_told
    if is_told:
        assert found[adding.BLOCKS].auc > 0.95 and found[adding.BLOCKS].correlation_gain.is_above_zero
    assert not found[adding.BACKWARD].auc_gain.is_above_zero


# As a whole -----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_run_again(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    """A second call runs the second network alone, and leaves the first line as it is."""
    spec = importlib.util.spec_from_file_location("depth_benchmark", HERE / "__main__.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    path = tmp_path / "results.jsonl"
    lines = []
    for number in (1, 1, 2):
        assert benchmark.go_on(path, "networks", number, quick=True) == 0
        lines.append(path.read_text(encoding="utf-8").splitlines())
    assert lines[0] == lines[1] == lines[2][:1]
    first, second = map(json.loads, lines[2])
    assert (first["draw"]["number"], second["draw"]["number"]) == (0, 1)
    assert set(first["looks"]) == {"0", "16", "40", "80", "160", "320"} and len(first["validation"]) == 7


def test_the_page_tells_what_is_there(parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of made-up results: as many as there are, who learned, no threshold held; and gains of .1, all above zero."""
    adding, chance = parts["adding"], np.random.default_rng(0)
    gain = parts["judging"].Estimate(0.1, 0.05, 0.15)

    def compared(_: object, moment: int, is_grouped: bool) -> list[Any]:
        names = adding.ADDED if moment else adding.FIRST
        return [adding.Comparison(name, moment, 0.8, 0.5, 0.7, gain, gain, gain) for name in names]

    monkeypatch.setattr(parts["page"], "compared", compared)
    rows = [row(parts, number, chance, is_told=False) for number in range(62)]
    told = parts["page"].page(rows)
    for task in parts["draws"].TASKS:
        networks = parts["features"].networks(rows).where(lambda one, task=task: one["draw"]["task"] == task)
        assert 0 < networks.learned.sum() < len(networks.rows)
        assert f" | {networks.learned.sum()} of {len(networks.rows)} (" in told
    assert told.startswith("# Across depth") and "62 networks" in told
    assert "| above 10 | does not | does not | does not | no |" in told
    assert "better beyond the interval in 12 of 12 comparisons, worse in 0; the most gained is +.100" in told
    assert "## What it costs" not in told and "nan" not in told
