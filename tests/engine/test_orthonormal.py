"""Reorthonormalisation against factors known beforehand."""

import math
from types import SimpleNamespace

import pytest
import torch
from systems import noise, orthogonal
from torch import Tensor

from lightning_lyapunov.engine.orthonormal import Blocks, by_blocks, by_householder, prefers_blocks
from lightning_lyapunov.engine.precision import (
    gaps_in_blocks,
    log_pivots,
)

NAN = math.nan
METHODS = ("householder", "blocks of 32", "blocks of 16", "blocks of 16, careful", "blocks of 32, careful")
LEAF = 32
CAREFUL, PLAIN = Blocks(LEAF, careful_last=True), Blocks(LEAF, careful_last=False)
both_methods = pytest.mark.parametrize("method", METHODS)
careful_or_not = pytest.mark.parametrize("careful", [False, True])


def blocks_of(method: str, k: int) -> Blocks:
    """As they are named; what is no more than a block is left to Cholesky."""
    leaf = int(method.split()[2].strip(","))
    return Blocks(leaf, careful_last="careful" in method and k > leaf)


def in_blocks(
    tangents: Tensor, blocks: Blocks, failed: Tensor, triangle: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return by_blocks(tangents, blocks, failed, tangents.new_zeros(tangents.shape[::2]), triangle)


def reorthonormalise(tangents: Tensor, steps: int, method: str = "householder") -> tuple[Tensor, Tensor]:
    """Frame and growth, after so many steps; by blocks nothing may have failed."""
    failed = torch.zeros(len(tangents), dtype=torch.int32, device=tangents.device)
    if method == "householder":
        frame, triangle = by_householder(tangents)
        diagonal = triangle.diagonal(dim1=-2, dim2=-1).abs()
    else:
        frame, diagonal = in_blocks(tangents.clone(), blocks_of(method, tangents.shape[2]), failed)
    assert not failed.any()
    return frame, log_pivots(diagonal[None], [steps], tangents.shape[1])[0]


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
@pytest.mark.parametrize("method", METHODS[1:])
def test_blocks_find_what_householder_finds(method: str, k: int, dtype: torch.dtype, device: torch.device) -> None:
    """Directions that spread by 2 nats, as within an interval that the law allows."""
    q, p = orthogonal(200), orthogonal(k, 1)
    spread = torch.linspace(0, -2, k, dtype=torch.float64).exp()
    tangents = (q[:, :k] * spread @ p)[None].to(device, dtype)
    (frame, log), (expected_frame, expected) = (reorthonormalise(tangents, 1, m) for m in (method, METHODS[0]))
    near = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(log, expected, rtol=0.0, atol=near)
    torch.testing.assert_close(frame.abs(), expected_frame.abs(), rtol=0.0, atol=20 * near)  # columns up to a sign


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("k", [5, 16, 40, 70])
def test_triangle_leads_back_to_the_tangents(k: int, method: str) -> None:
    """Vectors = frame · triangle, the growth on its diagonal, zeros below."""
    tangents, failed = noise(3, 90, k), torch.zeros(3, dtype=torch.int32)
    triangle = torch.zeros(3, k, k).double()
    frame, diagonal = in_blocks(tangents.clone(), blocks_of(method, k), failed, triangle)
    torch.testing.assert_close(frame @ triangle, tangents, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(triangle.diagonal(dim1=-2, dim2=-1).abs(), diagonal, rtol=0.0, atol=1e-12)
    assert torch.equal(triangle.tril(-1), torch.zeros_like(triangle)) and not failed.any()


def test_squares_are_those_that_a_block_was_made_from() -> None:
    """What the blocks before left of each vector; none for the last block, by Householder."""
    tangents, squares = noise(2, 60, 40), torch.zeros(2, 40).double()
    before, failed = tangents.clone(), torch.zeros(2, dtype=torch.int32)
    frame, _ = by_blocks(tangents.clone(), Blocks(16, careful_last=True), failed, squares)
    left = before.clone()
    for start in (16, 32):
        rest = left[..., start:]
        left[..., start:] = rest - frame[..., start - 16 : start] @ (frame[..., start - 16 : start].mT @ rest)
    torch.testing.assert_close(squares[:, :32], left[..., :32].square().sum(1))
    assert not squares[:, 32:].any()


def test_blocks_say_where_they_broke_down() -> None:
    """The second of three sequences has a NaN: its Gram matrix is not positive definite."""
    tangents = noise(3, 40, 20)
    tangents[1, 5, 3] = NAN
    failed = torch.zeros(3, dtype=torch.int32)
    frame, _ = in_blocks(tangents, PLAIN, failed)
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
        tangents = every[:, order].to(dtype)[None]
        blocks, squares = Blocks.of(tangents), tangents.new_zeros(1, 2 * low)
        _, diagonal = by_blocks(tangents, blocks, failed, squares)
        log = log_pivots(diagonal[None], [1], size)
        dead = int((log == -math.inf).sum())  # those that the last block, by Householder, has found by itself
        assert failed.any() or gaps_in_blocks(log, blocks, dtype, squares=squares[None])[1] or dead == low


@pytest.mark.parametrize(
    ("size", "k", "device", "expected"),
    [
        *((64, 48, "cpu", Blocks(48, False)), (64, 49, "cpu", Blocks(16, True)), (128, 60, "cpu", Blocks(16, False))),
        *(
            (48, 48, "meta", Blocks(48, False)),
            (64, 49, "meta", Blocks(32, True)),
            (256, 60, "meta", Blocks(32, False)),
        ),
    ],
)
def test_blocks_are_one_or_small_on_a_cpu_and_the_last_is_careful_where_the_space_is_filled(
    size: int, k: int, device: str, expected: Blocks
) -> None:
    assert Blocks.of(torch.empty(8, size, k, device=device)) == expected


def test_blocks_are_for_many_directions_and_sequences_on_a_cpu() -> None:
    assert prefers_blocks(torch.empty(16, 64, 32)) and prefers_blocks(torch.empty(1, 256, 256))
    assert not prefers_blocks(torch.empty(1, 64, 32)) and not prefers_blocks(torch.empty(16, 64, 4))
    assert prefers_blocks(torch.empty(1, 64, 4, device="meta"))


# ------------------------------------------------------------------ gaps


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


# ------------------------------------------------------------------ the law


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
    frame = in_blocks(torch.cat([q[:, :LEAF], drops], 1)[None], CAREFUL, failed)[0][0]
    torch.testing.assert_close(frame.mT @ frame, eye, rtol=0.0, atol=1e-9)
    frame = in_blocks(torch.cat([drops, q[:, :LEAF]], 1)[None], CAREFUL, failed)[0][0]
    assert (frame.mT @ frame - eye).abs().max() > 1e-7
