"""Sentences across depth: each rule holds where its formula does, and not a step beside."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_depth import chain

from lightning_lyapunov.reading.depth_conditions import (
    BENCHMARK,
    OTHERWISE,
    THRESHOLDS,
    idle,
    makers,
    odd,
    severed,
    state_of_depth,
    unchanging,
)
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.depth_rules import findings, news, verdict
from lightning_lyapunov.reading.depth_words import block_words, exponential, share
from lightning_lyapunov.reading.rules import Finding

INF, NAN = math.inf, math.nan


def found(*run: DepthMeasurement) -> dict[str, Finding]:
    """What is found at the newest measurement of a run, by its state."""
    every = findings(run)
    assert len({finding.state for finding in every}) == len(every)
    return {finding.state: finding for finding in every}


# ---------------------------------------------------------------- the whole chain


@pytest.mark.parametrize(
    ("total", "error", "state"),
    [
        (10.4, 0.3, "explodes"),
        (10.2, 0.3, "doubtful"),
        (6.4, 0.3, "doubtful"),
        (6.2, 0.3, "undecided"),
        (5.9, 0.3, "undecided"),
        (5.7, 0.3, "passes"),
        (0.0, 0.3, "passes"),
        (-4.7, 0.3, "passes"),
        (-4.9, 0.3, "undecided"),
        (-4.0, 5.8, "undecided"),
        (-5.2, 0.3, "undecided"),
        (-5.4, 0.3, "vanishes"),
        (10.1, NAN, "explodes"),
        (-5.1, INF, "vanishes"),
        (NAN, NAN, "unknown"),
        (-INF, NAN, "no_gradient"),
    ],
)
def test_the_state_is_that_of_the_largest_growth_beyond_its_error(total: float, error: float, state: str) -> None:
    made = chain([0.1] * 12, total=total, error=error)
    assert state_of_depth(made) == state
    assert state in found(made)


def test_what_is_within_its_error_of_a_threshold_is_a_note_and_no_claim() -> None:
    """Oracle: e^-5.9 = 1/370."""
    made = chain([-0.4] * 12, total=-5.9, error=1.9, gain=-8.0)
    assert found(made)["undecided"].text == (
        "Whether a gradient shrinks too much across the 12 blocks is not decided: from output to input one shrinks to "
        "1/370 (e^-5.9 ± 1.9) at best and to 1/3,000 in a typical direction, and the threshold, e^-5, lies within its "
        "error. To tell, measure more samples (num_samples)."
    )
    told = verdict([made])
    assert told is not None and told.word == "healthy"
    assert str(told).startswith("healthy: No more than a note: Whether a gradient shrinks too much")
    assert "grows too much" in found(chain([0.5] * 12, total=6.1))["undecided"].text


def test_growth_is_told_in_factors_at_most_and_in_a_typical_direction() -> None:
    """Oracle: e^12.02 = 166,000, e^9 = 8,100, e^-6 = 1/400."""
    text = found(chain([1.0] * 12, total=12.02, error=0.41, gain=9.0))["explodes"].text
    assert text == (
        "Gradients explode across the 12 blocks: from output to input one grows 170,000-fold (e^12.0 ± 0.4) at most "
        "and 8,100-fold in a typical direction. It is spread over the blocks: about +1.00 nats each. Of 420 small "
        "networks of three tasks, none of the 46 above 10 nats learnt, and 240 of the 303 between -5 and 6. Lower the "
        "gain of the weights, normalise between blocks, or scale the branches down."
    )
    text = found(chain([-0.5] * 12, total=-6.0, gain=-9.0))["vanishes"].text
    assert "one shrinks to 1/400 (e^-6.0 ± 0.3) at best and to 1/8,100 in a typical direction" in text
    text = found(chain([0.1] * 12, total=1.0, gain=-0.5))["passes"].text
    assert text == (
        "Gradients pass the 12 blocks: from output to input one grows 2.7-fold (e^1.0 ± 0.3) at most and shrinks to "
        "1/1.6 in a typical direction."
    )
    wider = chain([0.1] * 2, dimensions=[4, 8, 8])
    assert "in a typical direction (per unit)" in found(wider)["passes"].text


def test_what_one_block_makes_is_said_to_be_its_doing() -> None:
    """Oracle: 7.1 of 11.2 nats is more than half; of eleven blocks that share in it none is."""
    made = chain([0.3] * 12, total=11.2, contributions=[0.3, 0.4, 7.1, *[3.4 / 9] * 9])
    assert makers(made) == [2]
    assert "Most of it comes from block 3 of 12 (layers.2): +7.1 of the +11.2 nats." in found(made)["explodes"].text
    two = replace(made, contributions=torch.tensor([0.2, 4.0, 3.4, *[3.6 / 9] * 9]))
    assert makers(two) == [1, 2]
    assert makers(chain([0.3] * 12, total=11.2)) == [] == makers(chain([0.3], total=11.2))


def test_rates_are_told_before_the_first_update_alone_and_grade_what_is_beyond_a_threshold() -> None:
    first, later = chain([1.0] * 12), chain([1.0] * 12, step=300)
    told = "Of 420 small networks of three tasks, none of the 46 above 10 nats learnt"
    assert told in found(first)["explodes"].text and told not in found(later)["explodes"].text
    assert (found(first)["explodes"].level, verdict([first]).word) == ("act", "act")  # type: ignore[union-attr]
    shrinks = chain([-0.6] * 12)
    assert (found(shrinks)["vanishes"].level, verdict([shrinks]).word) == ("warning", "watch")  # type: ignore[union-attr]
    doubtful = chain([0.5] * 12, total=7.0, step=300)
    assert (found(doubtful)["doubtful"].level, verdict([doubtful]).word) == ("note", "healthy")  # type: ignore[union-attr]
    assert found(replace(doubtful, step=0))["doubtful"].is_concern
    assert found(chain([0.5] * 12, total=7.0))["doubtful"].level == "warning"


def test_the_rates_are_those_of_the_benchmark_and_its_thresholds_hold() -> None:
    """What ``python benchmarks/depth`` wrote: the last count of a row is that of all tasks."""
    page = (Path(__file__).parents[2] / "docs" / "depth-benchmark.md").read_text(encoding="utf-8")
    bands = {"vanishes": "below −5", "doubtful": "6 to 10", "explodes": "above 10"}
    for state, band in bands.items():
        (counts,), (verdicts,) = _rows_of(page, band)
        learnt, networks = map(int, re.findall(r"(\d+) of (\d+)", counts[3])[0])
        assert (THRESHOLDS[state].learnt, THRESHOLDS[state].networks) == (learnt, networks)
        assert verdicts[-1] == "yes"
    (middle,), _ = _rows_of(page, "−5 to 6")
    assert "{} of the {}".format(*re.findall(r"(\d+) of (\d+)", middle[3])[0]) in OTHERWISE
    networks, tasks = re.search(r"^(\d+) networks, drawn", page, re.MULTILINE)[1], page.count("140 | ")  # type: ignore[index]
    assert BENCHMARK.startswith(f"{networks} small networks") and tasks >= 3


def _rows_of(page: str, band: str) -> tuple[list[list[str]], list[list[str]]]:
    """The cells of the rows of a band: of the table of shares, and of that of what holds."""
    rows = [
        [cell.strip() for cell in row.split("|")[2:-1]] for row in page.splitlines() if row.startswith(f"| {band} |")
    ]
    return [row for row in rows if len(row) > 4], [row for row in rows if len(row) == 4]


def test_where_it_was_at_first_is_told_once_it_has_moved() -> None:
    first = chain([0.1] * 12, total=2.2)
    assert "Before the first update it was e^2.2 at most." in found(first, chain([0.35] * 12, step=90))["passes"].text
    assert "it was" not in found(first, chain([0.1] * 12, total=2.9, step=90))["passes"].text
    other = replace(first, source="training")  # of other data, which nothing is compared with
    assert "it was" not in found(other, chain([0.35] * 12, step=90))["passes"].text


# ---------------------------------------------------------------- blocks


def test_the_block_at_which_a_gradient_ends_is_named_and_calls_for_action() -> None:
    made = chain([0.1] * 6 + [-INF] + [0.1] * 5, total=-INF, gain=-INF)
    finding = found(made)["no_gradient"]
    assert finding.text.startswith("Block 7 of 12 (layers.6) passes nothing on: the gradient ends there.")
    assert (finding.level, finding.subject) == ("act", "block 7 of 12 (layers.6)")
    assert str(verdict([made])) == "act: Block 7 of 12 (layers.6) passes nothing on: the gradient ends there."
    two = chain([0.1, -INF, 0.1, -INF, 0.1], total=-INF)
    assert found(two)["no_gradient"].text.startswith(
        "Blocks 2 and 4 of 5 (layers.1 and layers.3) pass nothing on: the gradient ends at each of them."
    )
    assert severed(chain([0.1] * 6 + [-10.5] + [0.1] * 5)) == [6]
    assert severed(chain([-10.5] * 12)) == []  # no block more than the others
    assert found(chain([-1.0] * 3, total=-INF))["no_gradient"].text.startswith("Nothing gets through the 3 blocks")


def test_a_dead_branch_is_named_beside_what_the_others_change() -> None:
    """Oracle: e^-1.1 = 33 %, e^-7.1 = 0.083 %."""
    made = chain([0.1] * 12, [-1.1] * 6 + [-INF] + [-1.1] * 5)
    finding = found(made)["dead_branch"]
    assert finding.text.startswith(
        "Block 7 of 12 (layers.6) passes everything on unchanged: its branch is dead. It changes nothing of what "
        "passes, others typically 33 %."
    )
    assert (finding.level, verdict([made]).word) == ("warning", "watch")  # type: ignore[union-attr]
    text = found(chain([0.1] * 12, [-1.1] * 6 + [-7.1] * 2 + [-1.1] * 4))["dead_branch"].text
    assert "Blocks 7 and 8 of 12 (layers.6 and layers.7) pass everything on unchanged: their branches are dead." in text
    assert "The most that they change is 0.083 %" in text


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ([-1.0] * 5 + [-4.7], [5]),  # under 1 %, and a gap of 3
        ([-1.0] * 5 + [-4.5], []),  # over 1 %
        ([-2.0] * 5 + [-4.7], []),  # a gap of less than 3
        ([-1.0, -5.0, -1.0, -5.0, -1.0, -1.0], [1, 3]),
        ([-5.0, -5.0, -5.0, -1.0, -1.0, -1.0], []),  # half of them are no exception
        ([-INF, -INF, -INF, -INF, -1.0, -1.0], [0, 1, 2, 3]),  # but the identity is the identity
        ([-1.0 - 0.6 * i for i in range(12)], []),  # nobody is dead where each does a little less than the one before
        ([-1.0, NAN, -INF, NAN, -1.0, -1.0], [2]),
        ([-1.0, -1.0, -7.0], []),  # too few to compare
    ],
)
def test_dead_is_what_lies_far_below_the_others_or_changes_nothing(changes: Sequence[float], dead: list[int]) -> None:
    assert unchanging(chain([0.1] * len(changes), changes)) == dead


def test_blocks_are_compared_with_their_like_and_those_without_weights_with_none() -> None:
    changes = [-1.0, -INF, -1.0, -INF, -1.0, -6.0, -1.0]
    kinds = ["Linear", "Dropout", "Linear", "ReLU", "Linear", "Gate", "Linear"]
    assert unchanging(chain([0.1] * 7, changes, kinds=kinds)) == []
    assert unchanging(chain([0.1] * 7, changes, kinds=[])) == [1, 3, 5]


def test_where_all_begin_as_the_identity_that_is_a_note_at_first_and_a_concern_later() -> None:
    made = chain([0.0] * 12, [-INF] * 12)
    assert set(found(made)) == {"passes", "all_unchanged", "measured"}
    assert found(made)["all_unchanged"].text.startswith("All 12 blocks pass everything on unchanged. That is as it")
    assert str(verdict([made])) == "healthy: No more than a note: All 12 blocks pass everything on unchanged."
    later = found(replace(made, step=100, epoch=1))["all_unchanged"]
    assert later.is_concern and later.text.startswith("All 12 blocks still pass everything on unchanged (epoch 2).")


@pytest.mark.parametrize(
    ("changes", "step", "late"),
    [
        ([-0.4] * 8 + [-2.8] * 4, 100, [8, 9, 10, 11]),
        ([-0.4] * 8 + [-2.8] * 3 + [-0.4], 100, [8, 9, 10]),  # the last may work again
        ([-0.4] * 8 + [-2.6] * 4, 100, []),  # more than a tenth
        ([-0.4] * 8 + [-2.8] * 4, 99, []),  # nothing can be said of the untrained
        ([-0.4] * 11 + [-2.8], 100, []),  # one is no row
        ([-0.4, -2.8, -2.8, -0.4] * 3, 100, []),
        ([-0.4] * 8 + [-6.0] * 4, 100, [8, 9, 10, 11]),  # idle rather than dead one by one
    ],
)
def test_late_blocks_are_idle_below_a_tenth_of_what_the_first_do(
    changes: Sequence[float], step: int, late: list[int]
) -> None:
    made = found(chain([0.1] * 12, changes, step=step))
    assert ("idle_late" in made) == bool(late)
    if late:
        assert idle(chain([0.1] * 12, changes)) == late
        assert f"blocks 9 to {late[-1] + 1} of 12 (layers.8 to layers.{late[-1]}) change" in made["idle_late"].text
        assert "the first 4 typically by 67 %" in made["idle_late"].text and "dead_branch" not in made


def test_a_block_that_stands_out_is_a_concern_before_training_alone() -> None:
    """Oracle: e^1.1 = 3.0."""
    made = chain([0.1] * 6 + [1.2] + [0.1] * 5)
    finding = found(made)["odd_block"]
    assert finding.text.startswith(
        "Block 7 of 12 (layers.6) stands out: it acts 3.0-fold more than its neighbours, with a gain of +1.20 nats."
    )
    assert (finding.level, found(replace(made, step=50))["odd_block"].level) == ("warning", "note")
    assert "stands out" in verdict([replace(made, step=50)]).text  # type: ignore[union-attr]
    low = chain([0.1] * 6 + [-1.0] + [0.1] * 5)
    assert "3.0-fold less" in found(low)["odd_block"].text


@pytest.mark.parametrize(
    ("gains", "blocks"),
    [
        ([0.1] * 5 + [0.69] + [0.1] * 6, []),  # nearer than 0.6
        ([0.1] * 5 + [0.72] + [0.1] * 6, [5]),
        ([2.0, *[0.1] * 11], []),  # the first differs from the others in healthy networks
        ([3.2, *[0.1] * 11], [0]),
        ([0.5 / (i + 1) + 2.0 for i in range(12)], []),
        ([0.8 * (i % 2) for i in range(12)], []),  # all of them scatter so
        ([0.1, 0.9, 0.1, 0.1], []),  # too few to compare
        ([0.1] * 5 + [NAN] + [0.1] * 6, []),
    ],
)
def test_blocks_stand_out_from_both_neighbours_and_the_scatter(gains: Sequence[float], blocks: list[int]) -> None:
    assert [block for block, _ in odd(chain(gains))] == blocks


# ---------------------------------------------------------------- what was measured, news, verdict


def test_what_was_measured_and_on_what_conditions_is_told() -> None:
    assert found(chain([0.1] * 12))["measured"].text == (
        "Measured were 12 blocks, layers.0 to layers.11 (Block), at 8 samples of validation data."
    )
    made = chain(
        [0.1] * 3, kinds=["A", "B", "A"], samples=1, source="", error=NAN, masked=0.25, normalisation="batch",
        conditional="up.0", fewer="1 of 8 samples (max_overhead allows no more)",
    )  # fmt: skip
    assert found(made)["measured"].text == (
        "Measured were 3 blocks, layers.0 to layers.2 (2 A, 1 B), at 1 sample. That is less than was seen: 1 of 8 "
        "samples (max_overhead allows no more). 25 % of the state, behind a mask, was left out. BatchNorm was taken "
        "with the statistics of the recorded batch, held constant. Held constant were the skips that up.0 is given: "
        "what passes them is not in it. Errors are not known: measure two samples or more (num_samples)."
    )
    assert "untrusted" in found(chain([0.1] * 3, trusted=torch.zeros(2, dtype=torch.bool)))
    assert [finding.state for finding in findings([])] == ["measured"]


def test_news_is_what_began_with_the_newest_measurement() -> None:
    well, bad = chain([0.1] * 12), chain([0.1] * 12, [-1.1] * 6 + [-INF] + [-1.1] * 5)
    run = [replace(m, step=10 * i) for i, m in enumerate([well, bad, bad, well, bad])]
    told = [[finding.state for finding in news(run[: i + 1])] for i in range(len(run))]
    assert told == [[], ["dead_branch"], [], [], []]  # one that flickers is told once
    assert [finding.state for finding in news([bad])] == ["dead_branch"]  # before the first update is the time
    worse = chain([0.1] * 12, [-1.1] * 6 + [-INF] + [-1.1] * 4 + [-INF], step=20)
    assert [finding.subject for finding in news([*run[:2], worse])] == [
        "blocks 7 and 12 of 12 (layers.6 and layers.11)"
    ]
    assert news([]) == []


def test_the_verdict_is_the_gravest_finding() -> None:
    assert verdict([]) is None
    assert str(verdict([chain([0.1] * 12)])) == "healthy: Gradients pass, and no block stands out."
    both = chain([0.1] * 6 + [-INF] + [0.1] * 5, [-1.0] * 11 + [-INF], total=-INF)
    assert verdict([both]).word == "act"  # type: ignore[union-attr]
    assert [finding.level for finding in findings([both])] == ["act", "warning", "note"]
    assert verdict([chain([NAN] * 3)]).word == "watch"  # type: ignore[union-attr]


@pytest.mark.parametrize("depth", [1, 2, 3, 100])
@pytest.mark.parametrize("value", [0.1, NAN, INF, -INF])
def test_any_chain_is_read_in_lines_of_80(depth: int, value: float) -> None:
    for step in (0, 500):
        for finding in findings([chain([value] * depth, [value] * depth, step=step)]):
            assert all(len(line) <= 80 for line in textwrap.wrap(finding.text, 80))
            assert not re.search(r"\b(nan|inf)\b", finding.text)


def test_blocks_and_shares_in_words() -> None:
    made = chain([0.1] * 20)
    assert block_words(made, [6]) == "block 7 of 20 (layers.6)"
    assert block_words(made, [0, 1]) == "blocks 1 and 2 of 20 (layers.0 and layers.1)"
    assert block_words(made, [2, 4, 5, 6]) == "blocks 3 and 5 to 7 of 20 (layers.2 and layers.4 to layers.6)"
    assert block_words(made, [0, 2, 4, 6, 8, 10]).startswith("blocks 1, 3, 5, 7 and 2 more of 20 (layers.0, ")
    assert [share(math.log(x)) for x in (0.333, 1.5, 5e-5, 1e-7)] == ["33 %", "150 %", "0.005 %", "under 0.001 %"]
    assert (share(-INF), exponential(3.04, 0.02)) == ("nothing", "e^3.04 ± 0.02")
