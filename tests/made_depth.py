"""Measurements across depth made by hand, and by brute force: dense Jacobians of each block in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, stack_module_state, vmap

from lightning_lyapunov.engine.statistics import half_width, mean_and_error
from lightning_lyapunov.reading.depth_history import DepthMeasurement


def chain(
    gains: Sequence[float],
    changes: Sequence[float] | None = None,
    *,
    total: float | None = None,
    error: float = 0.3,
    gain: float | None = None,
    step: int = 0,
    contributions: Sequence[float] | None = None,
    **more: Any,
) -> DepthMeasurement:
    """A chain with these gains of its blocks; each changes a third of what passes it unless something else is said.

    The largest growth is the sum of the gains and a nat more, which all share in, and the gain is their sum.
    """
    depth = len(gains)
    summed = sum(gains)
    total = summed + 1 if total is None else total
    gain = summed if gain is None else gain
    if contributions is None:
        contributions = [own + (total - summed) / depth if math.isfinite(own) else math.nan for own in gains]
    return DepthMeasurement(
        **{
            "step": step,
            "epoch": step // 100,
            "metrics": {"total": total, "total_error": error, "gain": gain, "gain_error": 0.1, "seconds": 0.25},
            "names": [f"layers.{i}" for i in range(depth)],
            "dimensions": [32] * (depth + 1),
            "log_singular_values": torch.tensor([total, total - 0.5]),
            "error": torch.full((2,), error),
            "trusted": torch.ones(2, dtype=torch.bool),
            "block_gain": torch.tensor(list(gains), dtype=torch.float32),
            "block_gain_error": torch.full((depth,), 0.02),
            "block_change": torch.tensor(list(changes) if changes is not None else [math.log(1 / 3)] * depth),
            "contributions": torch.tensor(contributions),
            "kinds": ["Block"] * depth,
            "source": "validation",
            "samples": 8,
            **more,
        }
    )


@dataclass
class Dense:
    """What a ``DepthSpectrum`` says of a chain of blocks, from the dense Jacobian of each."""

    jacobians: list[Tensor]
    """D of ``(B, n', n)``."""
    k: int = 4
    conditional: tuple[str, ...] = ()
    normalisation: str = ""
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(f"layers.{i}" for i in range(len(self.jacobians)))
        self.dimensions = (self.jacobians[0].shape[2], *(j.shape[1] for j in self.jacobians))
        self.samples, self.depth = len(self.jacobians[0]), len(self.jacobians)
        whole = self.jacobians[0]
        for jacobian in self.jacobians[1:]:
            whole = jacobian @ whole
        _, values, right = torch.linalg.svd(whole)
        self.log_singular_values, self.stderr, self.error = _over(values[:, : self.k].log())
        self.exponents = self.log_singular_values / self.depth
        self.trusted = torch.ones_like(self.exponents, dtype=torch.bool)
        gains = torch.stack([_norm(jacobian) for jacobian in self.jacobians], 1)
        self.block_gain, _, self.block_gain_error = _over(gains)
        self.block_change = _over(torch.stack([_change(jacobian) for jacobian in self.jacobians], 1))[0]
        self.contributions = _contributions(self.jacobians, right.mT[..., : self.k])
        gain, _, gain_error = _over(_norm(whole).unsqueeze(1))
        self.gain, self.gain_error, self.typical = float(gain), float(gain_error), float(gain) - 0.1
        self.anisotropy, self.state_growth = float(self.log_singular_values[0]) - self.gain, 0.5


def _over(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, stderr, count = mean_and_error(values, values.new_ones(len(values)))
    return mean, stderr, half_width(stderr, count)


def _norm(matrices: Tensor) -> Tensor:
    return 0.5 * (matrices.square().sum((1, 2)) / matrices.shape[1]).log()


def _change(jacobian: Tensor) -> Tensor:
    rows, columns = jacobian.shape[1:]
    if rows != columns:
        return jacobian.new_full((len(jacobian),), math.nan)
    return _norm(jacobian - torch.eye(rows, dtype=jacobian.dtype))


def _contributions(jacobians: Sequence[Tensor], frame: Tensor) -> Tensor:
    """(D, k) ln R_ii of each block, from the right singular vectors on: they sum to ln σ_i."""
    grown = []
    for jacobian in jacobians:
        frame, upper = torch.linalg.qr(jacobian @ frame)
        grown.append(upper.diagonal(dim1=1, dim2=2).abs().log().mean(0))
    return torch.stack(grown)


def jacobians(blocks: Sequence[nn.Module], state: Tensor) -> list[Tensor]:
    """Dense Jacobians ``(B, n, n)`` of each block, all alike, at the states that samples ``(B, n)`` come to."""
    states = [state]
    for block in blocks:
        states.append(block(states[-1]).detach())
    weights, _ = stack_module_state(list(blocks))

    def one(of_block: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(blocks[0], of_block, (row.unsqueeze(0),))[0]

    every = vmap(vmap(jacrev(one, argnums=1), in_dims=(None, 0)))(weights, torch.stack(states[:-1]))
    return list(every.detach())


class Residual(nn.Module):
    """x + gate · f(x), f of one hidden layer of ReLUs, of the normalised x or of x itself; or f alone."""

    def __init__(self, width: int, *, gate: float = 1.0, norm: bool = True, skip: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.first, self.last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (self.first, self.last):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.gate = nn.Parameter(torch.tensor(gate))
        self.skip = skip

    def forward(self, state: Tensor) -> Tensor:
        return state * self.skip + self.gate * self.last(torch.relu(self.first(self.norm(state))))


def dense(
    blocks: Sequence[nn.Module], width: int, *, step: int = 200, seed: int = 0, **options: Any
) -> DepthMeasurement:
    """What is kept of a chain of float32 blocks, by brute force in float64 at four samples."""
    state = torch.randn(4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spectrum = Dense(jacobians(nn.ModuleList(blocks).double(), state))
    return DepthMeasurement.of(spectrum, step=step, kinds=["Residual"] * len(blocks), **options)  # type: ignore[arg-type]
