"""Block Golub-Kahan-Lanczos on matrices whose singular values are known (float64)."""

import math

import pytest
import torch
from torch import Tensor

from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.lanczos import Effort, Map, errors, is_rounding, leading
from lightning_lyapunov.engine.maps.blocks import BlockSteps, Function

N = 60


def matrix(values: Tensor, seed: int = 0) -> Tensor:
    left, right = random_frames([seed, seed + 100], N, N, torch.device("cpu"))
    return left @ values.diag() @ right.mT


def of(*matrices: Tensor) -> Map:
    blocks = [Function(lambda x, m=m: x @ m.mT, "matrix") for m in matrices]
    return Map(BlockSteps(blocks, torch.zeros(1, matrices[0].shape[1], dtype=torch.float64)))


def start(p: int, n: int = N) -> Tensor:
    return random_frames([0], n, p, torch.device("cpu"), 7)


SPECTRA = {
    "decaying": torch.linspace(0, -6, N, dtype=torch.float64).exp(),
    "flat": 1 + torch.linspace(0.1, 0, N, dtype=torch.float64),
    "equal pairs": torch.linspace(0, -3, N // 2, dtype=torch.float64).exp().repeat_interleave(2),
    "one large": torch.cat([torch.tensor([30.0]), torch.ones(N - 1)]).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_values_are_never_above_and_the_error_holds(name: str) -> None:
    values, chain = SPECTRA[name], of(matrix(SPECTRA[name]))
    found = leading(chain, start(4), 4, N, Effort(1e-3, 24))
    pushed = torch.linalg.svdvals(chain.push(found.right)) * chain.scale.exp()
    below = values[:4].log() - pushed[0].log()
    assert below.min() > -1e-12 and (below <= found.error[0] + 1e-12).all()
    assert (below < 1e-3).all() or not (found.error <= 1e-3).all()


def test_a_flat_spectrum_is_found_where_nearly_all_of_the_space_is_seen() -> None:
    found = leading(of(matrix(SPECTRA["flat"])), start(4), 1, N, Effort(1e-4, 24))
    assert found.left.shape[-1] > 20 and found.error.max() < 1e-3


def test_products_keep_their_scale_however_long() -> None:
    values = SPECTRA["decaying"]
    chain = of(*[1e-30 * torch.eye(N, dtype=torch.float64)] * 30, matrix(values))
    found = leading(chain, start(4), 4, N, Effort(1e-6, 24))
    pushed = torch.linalg.svdvals(chain.push(found.right)).log() + chain.scale
    assert torch.allclose(pushed[0], values[:4].log() - 900 * math.log(10), atol=1e-4)


def test_a_space_that_is_used_up_ends_the_search() -> None:
    low = torch.zeros(N, dtype=torch.float64)
    low[:3] = torch.tensor([3.0, 2.0, 1.0])
    chain = of(matrix(low))
    found = leading(chain, start(4), 4, N, Effort(1e-6, 24))
    assert found.left.shape[-1] <= 12
    assert (found.error[0, :3] <= 1e-6).all() and found.error[0, 3] == math.inf
    pushed = torch.linalg.svdvals(chain.push(found.right))[0] * chain.scale.exp()
    assert torch.allclose(pushed[:3], low[:3], atol=1e-6)


def test_one_pull_of_everything_tells_all() -> None:
    values = SPECTRA["decaying"]
    found = leading(of(matrix(values)), start(N), 5, N, Effort(1e-3, 24))
    assert found.left.shape[-1] == N and (found.error == 0).all()


def test_entries_that_do_not_count_are_neither_pushed_nor_seen() -> None:
    whole = torch.randn(1, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))[0]
    counts = torch.ones(1, N, dtype=torch.float64)
    counts[:, 20:] = 0
    steps = BlockSteps([Function(lambda x: x @ whole.mT, "m")], torch.zeros(1, N, dtype=torch.float64))
    chain = Map(steps, (counts, counts))
    begin = torch.linalg.qr(start(4) * counts.unsqueeze(-1)).Q
    found = leading(chain, begin, 4, 20, Effort(1e-8, 24))
    pushed = torch.linalg.svdvals(chain.push(found.right))[0] * chain.scale.exp()
    assert torch.allclose(pushed, torch.linalg.svdvals(whole[:20, :20])[:4], atol=1e-5)


def test_bounds_on_numbers() -> None:
    """One value alone is within r, and within r² / (2 gap) of squares; a close pair only as a group."""
    values, residuals = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.1, 0.0]])
    assert torch.allclose(errors(values, residuals, 1), torch.tensor([[0.01 / (2 * 3)]]))
    pair = torch.tensor([[2.0, 1.999999, 1.0]])
    both = errors(pair, torch.tensor([[0.1, 0.1, 0.0]]), 2)
    assert torch.allclose(both[0, 0], torch.tensor(0.02 / 6), rtol=1e-3)
    assert is_rounding(torch.tensor([[1.0, 1e-8]]), torch.tensor([[1.0, 1.0]])).tolist() == [[False, True]]
