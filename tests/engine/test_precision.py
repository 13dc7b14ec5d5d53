"""What an interval leaves of directions that fall behind, and the law that paces reorthonormalisation by it."""

import math

import pytest
import torch

from lightning_lyapunov.engine.orthonormal import Blocks
from lightning_lyapunov.engine.precision import (
    PILOT,
    SLACK,
    TOLERANCE,
    PrecisionLaw,
    gap_budget,
    gaps,
    gaps_in_blocks,
    log_pivots,
    longest_interval,
    unit_roundoff,
    widest_dtype,
)

NAN = math.nan
LEAF = 32
CAREFUL, PLAIN = Blocks(LEAF, careful_last=True), Blocks(LEAF, careful_last=False)
careful_or_not = pytest.mark.parametrize("careful", [False, True])


def learn(law: PrecisionLaw, gap: float, intervals: int) -> None:
    """Of a stretch whose intervals were as long as the law wished."""
    law.learn(gap, intervals, law.interval)


def test_gap_is_the_distance_to_the_fastest() -> None:
    log = torch.tensor([[1.0, 3.0, -2.0], [0.0, -math.inf, -1.0]], dtype=torch.float64)
    assert gaps(log).tolist() == [[2.0, 0.0, 5.0], [0.0, math.inf, 1.0]]


def test_blocks_that_spread_burden_what_comes_after() -> None:
    """One block spreads by 8, the next follows 1 below it: u e^{2 · 8 + 9} instead of u e^9, less the slack."""
    log = torch.zeros(1, 2 * LEAF, dtype=torch.float64)
    log[0, LEAF - 1], log[0, LEAF:] = -8.0, -9.0
    gap, is_blind = gaps_in_blocks(log[0], PLAIN, torch.float64)
    assert not is_blind and gaps_in_blocks(log[0], PLAIN, torch.float32)[1]
    assert gap[0] == 0 and gap[LEAF - 1] == pytest.approx(max(8.0, 2 * 8 - SLACK))
    assert gap[LEAF:].tolist() == pytest.approx([2 * 8 + 9 - SLACK] * LEAF)
    assert gaps(log)[0, LEAF:].tolist() == [9.0] * LEAF


@pytest.mark.parametrize("k", [5, LEAF, LEAF + 3])
def test_small_gaps_are_the_same_in_blocks(k: int) -> None:
    log = -torch.rand(4, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap, is_blind = gaps_in_blocks(log, PLAIN, torch.float32)
    torch.testing.assert_close(gap, gaps(log))
    assert not is_blind


def test_budget_is_the_gap_at_which_rounding_reaches_the_tolerance() -> None:
    assert unit_roundoff(torch.float64) == 2.0**-53 and unit_roundoff(torch.float32) == 2.0**-24
    for dtype, nats in ((torch.float32, 6.3), (torch.float64, 26.4)):
        assert 30 * unit_roundoff(dtype) * math.exp(gap_budget(dtype)) == pytest.approx(TOLERANCE)
        assert gap_budget(dtype) == pytest.approx(nats, abs=0.1)


@pytest.mark.parametrize(("steps", "factor"), [(1, 600), (12, 50), (20, 30), (1000, 30)])
def test_a_mean_over_few_steps_has_less_to_spend(steps: int, factor: float) -> None:
    assert factor * unit_roundoff(torch.float64) * math.exp(gap_budget(torch.float64, steps)) == pytest.approx(
        TOLERANCE
    )
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32, steps=steps)
    learn(law, 2.0, intervals=8)
    assert law.interval == int(gap_budget(torch.float64, steps) / 2.0)
    assert law.refuses(gap_budget(torch.float64, steps) + 0.01, failed=False)


def test_longest_interval_keeps_the_gap_within_the_budget() -> None:
    assert longest_interval(2.0, gap_budget(torch.float64), 32) == 13
    assert longest_interval(2.0, gap_budget(torch.float32), 32) == 3
    assert longest_interval(0.0, gap_budget(torch.float64), 32) == 32
    assert longest_interval(100.0, gap_budget(torch.float64), 32) == 1
    assert longest_interval(math.inf, gap_budget(torch.float64), 32) == 1
    assert longest_interval(math.nan, gap_budget(torch.float64), 32) == 1


def test_law_begins_carefully_and_lengthens_once_it_has_seen_a_spread() -> None:
    """After a refusal it aims at four fifths of the budget, as far as the gap says; one by one if that is lost."""
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    assert (law.interval, law.dtype) == (1, torch.float64)
    learn(law, 2.0, intervals=8)
    assert law.interval == 13
    assert not law.refuses(26.0, failed=False)
    budget = gap_budget(torch.float64)
    for gap, then in ((27.0, int(0.8 * budget / (27.0 / 13))), (math.inf, 1), (math.nan, 1)):
        law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
        learn(law, 2.0, intervals=8)
        assert law.refuses(gap, failed=False) and law.interval == then
        learn(law, 2.0, intervals=8)
        law.interval = 1
        assert not law.refuses(gap, failed=False)  # nothing more careful is left


@pytest.mark.parametrize("gap", [26.5, 40.0, 1e3, math.inf, math.nan])
@pytest.mark.parametrize("may_narrow", [False, True])
def test_a_stretch_is_refused_until_nothing_more_careful_is_left(may_narrow: bool, gap: float) -> None:
    """Whatever the gap stays at: a few times at most."""
    law = PrecisionLaw(torch.float64, None, may_narrow=may_narrow, limit=32)
    law.learn(0.1, intervals=8, longest=1)
    refused = 0
    while law.refuses(gap, failed=True):
        refused += 1
        assert refused < 5
    assert law.interval == 1 and law.dtype == torch.float64 and not law.may_use_blocks


def test_law_forgets_a_spread_slowly_and_a_dead_direction_at_once() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    learn(law, 2.0, intervals=8)
    learn(law, 13 * 0.1, intervals=10)
    assert law.interval == int(gap_budget(torch.float64) / (2.0 * 0.98**10))
    for gap in (math.nan, math.inf):
        learn(law, gap, intervals=1)
        assert law.interval == 1
    learn(law, 0.5, intervals=32)
    assert law.interval == int(gap_budget(torch.float64) / 0.5)


def test_law_narrows_only_where_float32_allows_four_steps() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32)
    law.learn(1.5, intervals=8, longest=1)
    assert (law.interval, law.dtype) == (4, torch.float32)
    assert law.refuses(6.4, failed=False)
    assert (law.interval, law.dtype) == (4, torch.float64)  # which is far from the budget of float64
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32)
    law.learn(1.7, intervals=8, longest=1)
    assert (law.interval, law.dtype) == (15, torch.float64)
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32)
    law.learn(0.5, intervals=8, longest=1)
    assert (law.interval, law.dtype) == (int(0.8 * gap_budget(torch.float32) / 0.5), torch.float32)


def test_a_fixed_interval_is_never_changed() -> None:
    law = PrecisionLaw(torch.float64, 5, may_narrow=True, limit=32)
    assert not law.refuses(math.nan, failed=False)
    assert law.refuses(math.nan, failed=True) and law.interval == 5 and not law.may_use_blocks
    learn(law, 100.0, intervals=8)
    assert (law.interval, law.dtype) == (5, torch.float64)


def test_what_broke_down_is_done_again_by_householder_and_after_three_times_for_good() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    for _ in range(3):
        learn(law, 1.0, intervals=8)
        assert law.may_use_blocks and law.interval > 1
        assert law.refuses(1.0, failed=True)
        assert law.may_use_blocks and law.interval == 1  # first step by step, and if that fails, by the other way
        assert law.refuses(1.0, failed=True)
        assert not law.may_use_blocks and law.interval == 1
        assert not law.refuses(1.0, failed=False)
    learn(law, 1.0, intervals=8)
    assert not law.may_use_blocks and law.interval > 1


def test_gaps_know_of_unknown_directions_and_of_ones_that_all_shrink() -> None:
    found = gaps(torch.tensor([-3.0, NAN, -5.0]))
    assert found[[0, 2]].tolist() == [0.0, 2.0] and found[1].isnan()


def test_what_is_lost_is_told_by_the_fastest_of_its_own_sequence_at_any_scale() -> None:
    diagonal = torch.tensor([1.0, 1e-3, 1e-17]) * torch.tensor([[1e9], [1e-9]], dtype=torch.float64)
    found = log_pivots(diagonal[None], [1], 3)[0]
    torch.testing.assert_close(found[:, :2], diagonal[:, :2].log())
    assert (found[:, 2] == -math.inf).all()


def burden_by_loops(log: list[float], careful: bool) -> list[float]:
    """Gaps of one interval by blocks, from the definition in the module: one direction and one block after another."""
    blocks = [log[i : i + LEAF] for i in range(0, len(log), LEAF)]
    found, left = [], -math.inf
    for b, block in enumerate(blocks):
        by_cholesky = not careful or b < len(blocks) - 1
        top = max(value for value in block if not math.isnan(value))
        for value in block:
            within = 2 * (top - value) if by_cholesky else 0.0
            found.append(max(within, left - value) - SLACK)
        left = max(left, *(3 * top - 2 * value for value in block if not math.isnan(value)))
    fastest = max(value for value in log if not math.isnan(value))
    return [max(fastest - value, burden) for value, burden in zip(log, found, strict=True)]


@careful_or_not
@pytest.mark.parametrize("k", [5, LEAF, 2 * LEAF, 2 * LEAF + 5])
def test_burdens_of_many_intervals_are_those_of_each_by_loops(k: int, careful: bool) -> None:
    """All shrink, by other rates in each of three sequences; a direction is lost, and later blocks are the faster."""
    shifts = torch.tensor([[[-4.0], [-9.0], [-1.0]], [[-2.0], [-7.0], [-3.0]]], dtype=torch.float64)
    log = shifts - 10 * torch.rand(2, 3, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log[0, 1, 3] = NAN
    log[1, :, LEAF:] += 15.0
    careful = careful and k > LEAF
    found, is_blind = gaps_in_blocks(log, CAREFUL if careful else PLAIN, torch.float64)
    rows = [[burden_by_loops(row, careful) for row in interval] for interval in log.tolist()]
    expected = torch.tensor(rows, dtype=torch.float64)
    known = ~log.isnan()
    torch.testing.assert_close(found[known], expected[known])
    assert found[0, 1, 3].isnan() and not is_blind


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("above", "blind"), [(-0.1, False), (0.1, True)])
def test_blocks_are_blind_for_a_pivot_that_is_the_rounding_of_what_it_is_left_of(
    above: float, blind: bool, dtype: torch.dtype
) -> None:
    """Where its square is below 1000 u of the squared length: whatever the scale, also of another column."""
    log = torch.full((2, 4), -30.0, dtype=torch.float64)
    log[0, 2] = 5.0
    squares = torch.zeros_like(log)
    squares[0, 2] = math.exp(2 * 5.0 + math.log(1e-3 / unit_roundoff(dtype)) + above)
    squares[1, 1] = math.exp(2 * -30.0)
    assert bool(gaps_in_blocks(log[:, 2:3], PLAIN, dtype, squares=squares[:, 2:3])[1]) == blind
    assert not gaps_in_blocks(log[1], PLAIN, dtype, squares=squares[1])[1]


def test_gaps_in_blocks_too_are_told_by_the_length_of_the_tangents() -> None:
    log, length = torch.full((2, 4), -3.0, dtype=torch.float64), torch.tensor([math.exp(2.0), math.exp(-9.0)])
    for found in (gaps(log, length), gaps_in_blocks(log, PLAIN, torch.float64, length)[0]):
        torch.testing.assert_close(found, torch.tensor([[5.0] * 4, [0.0] * 4], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("behind", "dtype", "blind"),
    [(33.0, torch.float64, False), (35.0, torch.float64, True), (35.0, torch.float32, False)],
)
def test_blocks_are_blind_for_what_lies_too_far_behind_those_before(
    behind: float, dtype: torch.dtype, blind: bool
) -> None:
    """Beyond ln(0.03 / u), 33.2 nats, in float64; in float32 nothing else would see it either."""
    log = torch.zeros(2 * LEAF, dtype=torch.float64)
    log[LEAF:] = -behind
    assert bool(gaps_in_blocks(log, PLAIN, dtype)[1]) == blind


def test_law_looks_soon_at_first_and_then_after_as_many_steps_as_it_may() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    assert law.stretch == PILOT
    learn(law, 0.08, intervals=8)
    assert law.stretch == 8 and law.interval == int(gap_budget(torch.float64) / 0.08)
    law.learn(8 * 0.08, intervals=1, longest=8)
    assert law.stretch == 16  # as many as it has learnt from
    law.learn(2000 * 0.08, intervals=200, longest=10)
    assert law.stretch == 1000
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    learn(law, 0.08, intervals=8)
    assert not law.refuses(gap_budget(torch.float64), failed=False)  # just within it
    assert [PrecisionLaw(torch.float64, m, may_narrow=False, limit=32).stretch for m in (5, 50)] == [30, 50]


def test_a_law_for_another_chain_begins_with_what_was_learnt() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32, steps=10)
    assert law.limited(8).interval == 1 and law.limited(8).stretch == PILOT
    law.learn(0.2, intervals=32, longest=1)
    other = law.limited(8)
    assert (other.interval, other.dtype, other.stretch) == (8, torch.float32, 8)
    assert PrecisionLaw(torch.float64, 3, may_narrow=True, limit=32).limited(8).interval == 1


def test_a_law_of_dead_directions_comes_back_once_they_are_alive() -> None:
    """Infinite gaps are not remembered; the longest interval that was made says how fast a finite one grew."""
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    law.learn(6.0, intervals=2, longest=3)
    assert law.interval == int(gap_budget(torch.float64) / 2.0)
    law.learn(math.inf, intervals=2, longest=3)
    assert law.interval == 1
    law.learn(6.0, intervals=2, longest=6)
    assert law.interval == int(gap_budget(torch.float64) / 1.0)


def test_the_widest_type_is_float64_but_on_the_one_device_that_has_none() -> None:
    assert [widest_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [torch.float64] * 2 + [
        torch.float32
    ]
