"""Reorthonormalisation against factors known beforehand, and the law that paces it."""

import math
from types import SimpleNamespace

import pytest
import torch
from systems import noise, orthogonal
from torch import Tensor

from lightning_lyapunov.orthonormal import (
    LEAF,
    PILOT,
    SLACK,
    TOLERANCE,
    PrecisionLaw,
    by_blocks,
    by_householder,
    gap_budget,
    gaps,
    gaps_in_blocks,
    growth,
    longest_interval,
    prefers_blocks,
    unit_roundoff,
)

NAN = math.nan
METHODS = ("householder", "blocks")
both_methods = pytest.mark.parametrize("method", METHODS)


def reorthonormalise(tangents: Tensor, steps: int, method: str = "householder") -> tuple[Tensor, Tensor]:
    """Frame and growth, after so many steps; by blocks nothing may have failed."""
    failed = torch.zeros(len(tangents), dtype=torch.int32, device=tangents.device)
    frame, diagonal = by_householder(tangents) if method == "householder" else by_blocks(tangents.clone(), failed)
    assert not failed.any()
    return frame, growth(diagonal[None], [steps], tangents.shape[1])[0]


def with_diagonal(diagonal: list[float], columns: int | None = None) -> Tensor:
    """Q R with R of a given diagonal, ``(1, D, K)``."""
    size, k = len(diagonal) + 2, columns or len(diagonal)
    strict = torch.triu(noise(k, k, seed=1), 1) * torch.tensor(diagonal).abs().min()
    return (orthogonal(size)[:, :k] @ (strict + torch.diag(torch.tensor(diagonal, dtype=torch.float64))))[None]


@both_methods
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 6, 6), (3, 6, 2), (2, 40, 40), (5, 33, 1), (2, 80, 65), (1, 130, 130)]
)
def test_frame_is_orthonormal_and_spans_the_same_flag(
    shape: tuple[int, int, int], method: str, device: torch.device
) -> None:
    # Not too far from orthonormal: of what is, Cholesky keeps less.
    tangents = (noise(*shape) / math.sqrt(shape[1]) + 2 * torch.eye(*shape[1:])).to(device)
    frame, log = reorthonormalise(tangents, 1, method)
    eye = torch.eye(shape[2], device=device).double().expand(shape[0], -1, -1)
    torch.testing.assert_close(frame.mT @ frame, eye, rtol=0.0, atol=1e-12)
    r = frame.mT @ tangents
    torch.testing.assert_close(r.tril(-1), torch.zeros_like(r), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(frame @ r, tangents, rtol=0.0, atol=1e-12)
    # The volume spanned by the vectors is the product of the growths.
    torch.testing.assert_close((tangents.mT @ tangents).logdet(), 2 * log.sum(-1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, 5 * LEAF + 7])
def test_blocks_find_what_householder_finds(k: int, dtype: torch.dtype, device: torch.device) -> None:
    """Directions that spread by 2 nats, as within an interval that the law allows."""
    q, p = orthogonal(200), orthogonal(k, 1)
    spread = torch.linspace(0, -2, k, dtype=torch.float64).exp()
    tangents = (q[:, :k] * spread @ p)[None].to(device, dtype)
    (frame, log), (expected_frame, expected) = (reorthonormalise(tangents, 1, method) for method in METHODS[::-1])
    near = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(log, expected, rtol=0.0, atol=near)
    torch.testing.assert_close(frame.abs(), expected_frame.abs(), rtol=0.0, atol=20 * near)  # columns up to a sign


def test_blocks_say_where_they_broke_down() -> None:
    """The second of three sequences has a NaN: its Gram matrix is not positive definite."""
    tangents = noise(3, 40, 20)
    tangents[1, 5, 3] = NAN
    failed = torch.zeros(3, dtype=torch.int32)
    frame, _ = by_blocks(tangents, failed)
    assert (failed != 0).tolist() == [False, True, False]
    assert frame[::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 32, 96])
def test_blocks_break_down_or_are_blind_where_directions_have_no_image(size: int, dtype: torch.dtype) -> None:
    """Half of the columns lie in the span of the other half, in random order, as far as rounding lets them."""
    low = size // 2
    for seed in range(5):
        living = orthogonal(size, seed)[:, :low]
        every = torch.cat([living, living @ orthogonal(low, seed + 9)], 1)
        order = torch.randperm(2 * low, generator=torch.Generator().manual_seed(seed))
        failed = torch.zeros(1, dtype=torch.int32)
        _, diagonal = by_blocks(every[:, order].to(dtype)[None], failed)
        log = growth(diagonal[None], [1], size)
        dead = int((log == -math.inf).sum())  # those that the last block, by Householder, has found by itself
        assert failed.any() or gaps_in_blocks(log, dtype)[1] or dead == low


def test_blocks_are_for_many_directions_and_sequences_on_a_cpu() -> None:
    assert prefers_blocks(torch.empty(16, 64, 32)) and prefers_blocks(torch.empty(1, 256, 256))
    assert not prefers_blocks(torch.empty(1, 64, 32)) and not prefers_blocks(torch.empty(16, 64, 4))
    assert prefers_blocks(torch.empty(1, 64, 4, device="meta"))


# ------------------------------------------------------------------ gaps


def test_gap_is_the_distance_to_the_fastest() -> None:
    log = torch.tensor([[1.0, 3.0, -2.0], [0.0, -math.inf, -1.0]], dtype=torch.float64)
    assert gaps(log).tolist() == [[2.0, 0.0, 5.0], [0.0, math.inf, 1.0]]


def test_blocks_that_spread_burden_what_comes_after() -> None:
    """One block spreads by 8, the next follows 1 below it: u e^{2 · 8 + 9} instead of u e^9, less the slack."""
    log = torch.zeros(1, 2 * LEAF, dtype=torch.float64)
    log[0, LEAF - 1], log[0, LEAF:] = -8.0, -9.0
    gap, is_blind = gaps_in_blocks(log[0], torch.float64)
    assert not is_blind and gaps_in_blocks(log[0], torch.float32)[1]
    assert gap[0] == 0 and gap[LEAF - 1] == pytest.approx(max(8.0, 2 * 8 - SLACK))
    assert gap[LEAF:].tolist() == pytest.approx([2 * 8 + 9 - SLACK] * LEAF)
    assert gaps(log)[0, LEAF:].tolist() == [9.0] * LEAF


@pytest.mark.parametrize("k", [5, LEAF, LEAF + 3])
def test_small_gaps_are_the_same_in_blocks(k: int) -> None:
    log = -torch.rand(4, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap, is_blind = gaps_in_blocks(log, torch.float32)
    torch.testing.assert_close(gap, gaps(log))
    assert not is_blind


# ------------------------------------------------------------------ what was lost


def test_growth_is_the_known_diagonal_whatever_its_sign() -> None:
    diagonal = [3.0, -2.0, 0.5, -1e-3]
    found = reorthonormalise(with_diagonal(diagonal), 1)[1]
    expected = torch.tensor(diagonal, dtype=torch.float64).abs().log()[None]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-11)


def test_logarithms_of_float32_tangents_are_float64() -> None:
    tangents = noise(2, 5, 3, dtype=torch.float32)
    frame, log = reorthonormalise(tangents, 3)
    assert frame.dtype == torch.float32 and log.dtype == torch.float64
    torch.testing.assert_close(log, reorthonormalise(tangents.double(), 3)[1], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 32, 96])
def test_directions_without_an_image_are_dead_after_one_step_and_unknown_after_several(
    size: int, dtype: torch.dtype
) -> None:
    """Half of the columns lie in the span of the other half, as far as rounding lets them."""
    low = size // 2
    for seed in range(3):
        living = orthogonal(size, seed)[:, :low]
        tangents = torch.cat([living, living @ orthogonal(low, seed + 9)], 1).to(dtype)[None]
        once, many = (reorthonormalise(tangents, steps)[1][0] for steps in (1, 2))
        assert once[:low].isfinite().all() and torch.equal(once[:low], many[:low])
        assert (once[low:] == -math.inf).all() and many[low:].isnan().all()


def test_silence_is_dead_and_nonsense_is_unknown() -> None:
    assert reorthonormalise(torch.zeros(1, 3, 2).double(), 1)[1].tolist() == [[-math.inf] * 2]
    assert reorthonormalise(torch.zeros(1, 3, 2).double(), 2)[1].isnan().all()
    for value in (math.nan, math.inf):
        tangents = noise(1, 3, 2)
        tangents[0, 1, 0] = value
        for steps in (1, 5):
            assert reorthonormalise(tangents, steps)[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_run_out_of_the_floating_range_is_unknown(dtype: torch.dtype) -> None:
    """Near the smallest number there are few digits left, though no direction has fallen behind another."""
    vanishing = orthogonal(4)[None].to(dtype) * (3 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    assert reorthonormalise(vanishing, 8)[1].isnan().all()


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
    law.learn(2.0, intervals=8)
    assert law.interval == int(gap_budget(torch.float64, steps) / 2.0)
    assert law.refuses(gap_budget(torch.float64, steps) + 0.01, failed=False)


def test_longest_interval_keeps_the_gap_within_the_budget() -> None:
    assert longest_interval(2.0, gap_budget(torch.float64), 32) == 13
    assert longest_interval(2.0, gap_budget(torch.float32), 32) == 3
    assert longest_interval(0.0, gap_budget(torch.float64), 32) == 32
    assert longest_interval(100.0, gap_budget(torch.float64), 32) == 1
    assert longest_interval(math.inf, gap_budget(torch.float64), 32) == 1
    assert longest_interval(math.nan, gap_budget(torch.float64), 32) == 1


# ------------------------------------------------------------------ the law


def test_law_begins_carefully_and_lengthens_once_it_has_seen_a_spread() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    assert (law.interval, law.dtype) == (1, torch.float64)
    law.learn(2.0, intervals=8)
    assert law.interval == 13
    assert not law.refuses(26.0, failed=False)
    for gap in (27.0, math.inf, math.nan):
        law.learn(2.0, intervals=8)
        assert law.refuses(gap, failed=False) and law.interval == 1
        assert not law.refuses(gap, failed=False)  # nothing more careful is left


def test_law_forgets_a_spread_slowly_and_a_dead_direction_at_once() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    law.learn(2.0, intervals=8)
    law.learn(13 * 0.1, intervals=10)
    assert law.interval == int(gap_budget(torch.float64) / (2.0 * 0.98**10))
    for gap in (math.nan, math.inf):
        law.learn(gap, intervals=1)
        assert law.interval == 1
    law.learn(0.5, intervals=32)
    assert law.interval == int(gap_budget(torch.float64) / 0.5)


def test_law_narrows_only_where_float32_allows_four_steps() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32)
    law.learn(1.5, intervals=8)
    assert (law.interval, law.dtype) == (4, torch.float32)
    assert law.refuses(6.4, failed=False)
    assert (law.interval, law.dtype) == (1, torch.float64)
    law.learn(1.7, intervals=8)
    assert (law.interval, law.dtype) == (15, torch.float64)


def test_a_fixed_interval_is_never_changed() -> None:
    law = PrecisionLaw(torch.float64, 5, may_narrow=True, limit=32)
    assert not law.refuses(math.nan, failed=False)
    assert law.refuses(math.nan, failed=True) and law.interval == 5 and not law.may_use_blocks
    law.learn(100.0, intervals=8)
    assert (law.interval, law.dtype) == (5, torch.float64)


def test_what_broke_down_is_done_again_by_householder_and_after_three_times_for_good() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    for _ in range(3):
        law.learn(1.0, intervals=8)
        assert law.may_use_blocks
        assert law.refuses(1.0, failed=True)
        assert not law.may_use_blocks and law.interval == 1
        assert not law.refuses(1.0, failed=False)
    law.learn(1.0, intervals=8)
    assert not law.may_use_blocks and law.interval == 26


# ------------------------------------------------------------------ at the edges


def test_blocks_begin_to_pay_at_128_directions_of_all_sequences() -> None:
    assert prefers_blocks(torch.empty(4, 64, 32)) and not prefers_blocks(torch.empty(1, 127, 127))
    apple = SimpleNamespace(device=torch.device("mps"), shape=(16, 64, 32))  # where not all that they need is there
    assert not prefers_blocks(apple)


def test_the_last_of_several_blocks_may_drop_off_farther_than_cholesky_sees() -> None:
    """By 14 nats, of which its Gram matrix would see 28: orthonormal to 1e-4, as the first of them would be alone."""
    spread = torch.linspace(0, -14, LEAF, dtype=torch.float64).exp()
    q, drops = orthogonal(3 * LEAF), orthogonal(3 * LEAF)[:, -LEAF:] * spread @ orthogonal(LEAF, 1)
    eye = torch.eye(2 * LEAF).double()
    failed = torch.zeros(1, dtype=torch.int32)
    frame = by_blocks(torch.cat([q[:, :LEAF], drops], 1)[None], failed)[0][0]
    torch.testing.assert_close(frame.mT @ frame, eye, rtol=0.0, atol=1e-9)
    frame = by_blocks(torch.cat([drops, q[:, :LEAF]], 1)[None], failed)[0][0]
    assert (frame.mT @ frame - eye).abs().max() > 1e-7


def test_gaps_know_of_unknown_directions_and_of_ones_that_all_shrink() -> None:
    found = gaps(torch.tensor([-3.0, NAN, -5.0]))
    assert found[[0, 2]].tolist() == [0.0, 2.0] and found[1].isnan()


def test_what_is_lost_is_told_by_the_fastest_of_its_own_sequence_at_any_scale() -> None:
    diagonal = torch.tensor([1.0, 1e-3, 1e-17]) * torch.tensor([[1e9], [1e-9]], dtype=torch.float64)
    found = growth(diagonal[None], [1], 3)[0]
    torch.testing.assert_close(found[:, :2], diagonal[:, :2].log())
    assert (found[:, 2] == -math.inf).all()


def burden_by_loops(log: list[float]) -> list[float]:
    """Gaps of one interval by blocks, from the definition in the module: one direction and one block after another."""
    blocks = [log[i : i + LEAF] for i in range(0, len(log), LEAF)]
    found, left = [], -math.inf
    for b, block in enumerate(blocks):
        by_cholesky = len(blocks) == 1 or b < len(blocks) - 1
        top = max(value for value in block if not math.isnan(value))
        for value in block:
            within = 2 * (top - value) if by_cholesky else 0.0
            found.append(max(within, left - value) - SLACK)
        left = max(left, *(3 * top - 2 * value for value in block if not math.isnan(value)))
    fastest = max(value for value in log if not math.isnan(value))
    return [max(fastest - value, burden) for value, burden in zip(log, found, strict=True)]


@pytest.mark.parametrize("k", [5, LEAF, 2 * LEAF, 2 * LEAF + 5])
def test_burdens_of_many_intervals_are_those_of_each_by_loops(k: int) -> None:
    """All shrink, by other rates in each of three sequences; a direction is lost, and later blocks are the faster."""
    shifts = torch.tensor([[[-4.0], [-9.0], [-1.0]], [[-2.0], [-7.0], [-3.0]]], dtype=torch.float64)
    log = shifts - 10 * torch.rand(2, 3, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log[0, 1, 3] = NAN
    log[1, :, LEAF:] += 15.0
    found, is_blind = gaps_in_blocks(log, torch.float64)
    expected = torch.tensor([[burden_by_loops(row) for row in rows] for rows in log.tolist()], dtype=torch.float64)
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
    assert bool(gaps_in_blocks(log[:, 2:3], dtype, squares=squares[:, 2:3])[1]) == blind
    assert not gaps_in_blocks(log[1], dtype, squares=squares[1])[1]


def test_gaps_in_blocks_too_are_told_by_the_length_of_the_tangents() -> None:
    log, length = torch.full((2, 4), -3.0, dtype=torch.float64), torch.tensor([math.exp(2.0), math.exp(-9.0)])
    for found in (gaps(log, length), gaps_in_blocks(log, torch.float64, length)[0]):
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
    assert bool(gaps_in_blocks(log, dtype)[1]) == blind


def test_law_looks_soon_at_first_and_then_after_as_many_steps_as_it_may() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    assert law.stretch == PILOT
    law.learn(0.08, intervals=8)
    assert law.stretch == 1000 and law.interval == int(gap_budget(torch.float64) / 0.08)
    assert not law.refuses(gap_budget(torch.float64), failed=False)  # just within it
    assert [PrecisionLaw(torch.float64, m, may_narrow=False, limit=32).stretch for m in (5, 50)] == [30, 50]
