"""Reorthonormalisation against factors known beforehand, and the law that paces it."""

import math

import pytest
import torch
from systems import noise, orthogonal
from torch import Tensor

from lightning_lyapunov.orthonormal import (
    TOLERANCE,
    PrecisionLaw,
    gap_budget,
    longest_interval,
    reorthonormalise,
    unit_roundoff,
)


def with_diagonal(diagonal: list[float], columns: int | None = None) -> Tensor:
    """Q R with R of a given diagonal, ``(1, D, K)``."""
    size, k = len(diagonal) + 2, columns or len(diagonal)
    strict = torch.triu(noise(k, k, seed=1), 1) * torch.tensor(diagonal).abs().min()
    return (orthogonal(size)[:, :k] @ (strict + torch.diag(torch.tensor(diagonal, dtype=torch.float64))))[None]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 6, 6), (3, 6, 2), (2, 40, 40), (5, 33, 1)])
def test_frame_is_orthonormal_and_spans_the_same_flag(shape: tuple[int, int, int], device: torch.device) -> None:
    tangents = noise(*shape).to(device)
    frame, growth = reorthonormalise(tangents, 1)
    torch.testing.assert_close(frame.mT @ frame, torch.eye(shape[2], device=device).double().expand(shape[0], -1, -1))
    r = frame.mT @ tangents
    torch.testing.assert_close(r.tril(-1), torch.zeros_like(r), rtol=0.0, atol=1e-13)
    torch.testing.assert_close(frame @ r, tangents)
    # The volume spanned by the vectors is the product of the growths.
    torch.testing.assert_close((tangents.mT @ tangents).logdet(), 2 * growth.sum(-1), rtol=1e-9, atol=1e-10)


def test_growth_is_the_known_diagonal_whatever_its_sign() -> None:
    diagonal = [3.0, -2.0, 0.5, -1e-3]
    growth = reorthonormalise(with_diagonal(diagonal), 1)[1]
    expected = torch.tensor(diagonal, dtype=torch.float64).abs().log()[None]
    torch.testing.assert_close(growth, expected, rtol=0.0, atol=1e-11)


def test_logarithms_of_float32_tangents_are_float64() -> None:
    tangents = noise(2, 5, 3, dtype=torch.float32)
    frame, growth = reorthonormalise(tangents, 3)
    assert frame.dtype == torch.float32 and growth.dtype == torch.float64
    torch.testing.assert_close(growth, reorthonormalise(tangents.double(), 3)[1], rtol=0.0, atol=1e-5)


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


def test_longest_interval_keeps_the_gap_within_the_budget() -> None:
    assert longest_interval(2.0, torch.float64, 32) == 13
    assert longest_interval(2.0, torch.float32, 32) == 3
    assert longest_interval(0.0, torch.float64, 32) == 32
    assert longest_interval(100.0, torch.float64, 32) == 1
    assert longest_interval(math.inf, torch.float64, 32) == 1
    assert longest_interval(math.nan, torch.float64, 32) == 1


# ------------------------------------------------------------------ the law


def test_law_begins_carefully_and_lengthens_once_it_has_seen_a_spread() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=32)
    assert (law.interval, law.dtype) == (1, torch.float64)
    law.learn(2.0, intervals=8)
    assert law.interval == 13
    assert not law.is_breached_by(26.0)
    assert law.is_breached_by(27.0) and law.is_breached_by(math.inf) and law.is_breached_by(math.nan)
    law.retreat()
    assert law.interval == 1
    assert not any(map(law.is_breached_by, (27.0, math.inf, math.nan)))  # nothing more careful is left


def test_law_forgets_a_spread_slowly_and_a_dead_direction_at_once() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=False, limit=1000)
    law.learn(2.0, intervals=8)
    law.learn(13 * 0.1, intervals=10)
    assert law.interval == int(gap_budget(torch.float64) / (2.0 * 0.98**10))
    for gap in (math.inf, math.nan):
        law.learn(gap, intervals=1)
        assert law.interval == 1
    law.learn(0.5, intervals=32)
    assert law.interval == int(gap_budget(torch.float64) / 0.5)


def test_law_narrows_only_where_float32_allows_four_steps() -> None:
    law = PrecisionLaw(torch.float64, None, may_narrow=True, limit=32)
    law.learn(1.5, intervals=8)
    assert (law.interval, law.dtype) == (4, torch.float32)
    assert law.is_breached_by(6.4)
    law.retreat()
    assert (law.interval, law.dtype) == (1, torch.float64)
    law.learn(1.7, intervals=8)
    assert (law.interval, law.dtype) == (15, torch.float64)


def test_a_fixed_interval_is_never_changed() -> None:
    law = PrecisionLaw(torch.float64, 5, may_narrow=True, limit=32)
    assert not law.is_breached_by(math.nan)
    law.learn(100.0, intervals=8)
    assert (law.interval, law.dtype) == (5, torch.float64)
