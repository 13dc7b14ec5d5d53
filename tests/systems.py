"""Maps whose exponents are known, small networks, and torch's own derivatives to compare ours with."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrum
from lightning_lyapunov.recurrence import Recurrence, as_parts
from lightning_lyapunov.tangent import random_frame
from lightning_lyapunov.trajectory import trajectories

FAMILIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
}
CELLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tanh cell": (nn.RNNCell, {}),
    "relu cell": (nn.RNNCell, {"nonlinearity": "relu"}),
    "gru cell": (nn.GRUCell, {}),
    "lstm cell": (nn.LSTMCell, {}),
}


# ------------------------------------------------------------------ maps with known exponents

HENON = (0.4194, -1.6234)
HENON_SUM = math.log(0.3)
LORENZ = (0.9056, 0.0, -14.572)
LORENZ_SUM = -(10 + 1 + 8 / 3)


def henon(_: Tensor | None, state: Tensor) -> Tensor:
    x, y = state[:, :1], state[:, 1:]
    return torch.cat([1 - 1.4 * x**2 + y, 0.3 * x], 1)


def logistic(_: Tensor | None, state: Tensor) -> Tensor:
    """λ = ln 2 exactly; the state has no axis but the batch."""
    return 4 * state * (1 - state)


def lorenz(dt: float) -> Callable[[Tensor | None, Tensor], Tensor]:
    """The Lorenz flow, one Runge-Kutta step of ``dt``."""

    def velocity(p: Tensor) -> Tensor:
        x, y, z = p.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    def step(_: Tensor | None, p: Tensor) -> Tensor:
        a = velocity(p)
        b = velocity(p + dt / 2 * a)
        c = velocity(p + dt / 2 * b)
        d = velocity(p + dt * c)
        return p + dt / 6 * (a + 2 * b + 2 * c + d)

    return step


def linear(matrix: Tensor) -> Callable[[Tensor | None, Tensor], Tensor]:
    return lambda _, state: state @ matrix.mT


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(size, size, seed=seed)).Q


# ------------------------------------------------------------------ small networks


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(kind: str, *size: int, gain: float | None = None, seed: int = 0, **options: Any) -> Any:
    """A recurrent module in float64, torch's initial weights, or normal ones of standard deviation gain / √H."""
    family, own = (FAMILIES | CELLS)[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = family(*size, **own, **options).double()
        if gain is not None:
            for weight in module.parameters():
                nn.init.normal_(weight, std=gain / math.sqrt(size[-1]))
    return module


class Wrapped(nn.Module):
    """A cell the engine does not know, around one it knows."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.inner = cell

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.inner(x, state)


class OpaqueTanh(torch.autograd.Function):
    """A tanh with a backward pass alone: neither a forward-mode rule nor a batching rule."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        out = torch.tanh(a)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return grad * (1 - out**2)


# ------------------------------------------------------------------ what to compare with


def jacobian(recurrence: Recurrence, state: Tensor, drive: Tensor) -> Tensor:
    """Our Jacobians ``(B, D, D)`` of one step at ``state`` ``(B, D)``, made dense."""
    factors = recurrence.linearise(state[None], drive[None])
    frame = torch.eye(state.shape[1], dtype=state.dtype, device=state.device).expand(len(state), -1, -1)
    return recurrence.push_forward(tuple(factor[0] for factor in factors), frame)


def jacobian_by_autograd(step: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """Jacobians ``(B, D, D)`` of a step ``(B, D) -> (B, D)`` whose rows do not act on each other."""
    return torch.autograd.functional.jacobian(lambda s: step(s).sum(0), state).movedim(0, 1)


def flat(state: Any) -> Tensor:
    """A cell's state, side by side."""
    return torch.cat([part.flatten(1) for part in as_parts(state)], -1)


def dense_rates(jacobians: list[Tensor], k: int | None = None) -> Tensor:
    """Growth rates (K,), largest first, from one QR of the product of all Jacobians ``(D, D)``, the last leftmost.

    In exact arithmetic and in the engine's initial frame A: the diagonal of R is squared in A'J'JA = L diag(R²) L'.
    """
    size = len(jacobians[0])
    columns = _exact(random_frame(size, k or size, torch.device("cpu"), None))
    for jacobian in jacobians:
        columns = _product(_exact(jacobian), columns)
    gram = _product([list(row) for row in zip(*columns, strict=True)], columns)
    squares = []
    while gram:
        pivot, rest = gram[0], gram[1:]
        squares.append(pivot[0])
        gram = [
            [entry - row[0] * top / pivot[0] for entry, top in zip(row[1:], pivot[1:], strict=True)] for row in rest
        ]
    rates = [(math.log(r.numerator) - math.log(r.denominator)) / 2 / len(jacobians) for r in squares]
    return torch.tensor(rates, dtype=torch.float64).sort(descending=True).values


def _exact(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(entry) for entry in row] for row in matrix.tolist()]


def _product(a: list[list[Fraction]], b: list[list[Fraction]]) -> list[list[Fraction]]:
    return [[sum((x * y for x, y in zip(row, column, strict=True)), Fraction()) for column in zip(*b, strict=True)]
            for row in a]  # fmt: skip


def careful_exponents(module: nn.RNNBase, inputs: Tensor, k: int | None = None, transient: int = 0) -> Tensor:
    """Exponents (K,) by float64, Householder after every step and nothing else."""
    (path,) = trajectories(module, inputs, None, None, torch.float64).values()
    recurrence, states, drive = path.recurrence, path.states, path.drive
    size = recurrence.state_size
    frame = random_frame(size, k or size, torch.device("cpu"), None).expand(states.shape[1], -1, -1)
    total = torch.zeros(frame.shape[-1], dtype=torch.float64)
    for t in range(len(drive)):
        factors = recurrence.linearise(states[t : t + 1], drive[t : t + 1])
        frame, r = torch.linalg.qr(recurrence.push_forward(tuple(factor[0] for factor in factors), frame))
        if t >= transient:
            total += r.diagonal(dim1=-2, dim2=-1).abs().log().mean(0)
    return (total / (len(drive) - transient)).sort(descending=True).values


def worst_trusted_error(spectrum: LyapunovSpectrum, reference: LyapunovSpectrum | Tensor) -> float:
    """Largest error of an exponent called trusted; the spectra are compared index by index."""
    expected = reference if isinstance(reference, Tensor) else reference.exponents
    error = (spectrum.exponents - expected).abs()[spectrum.trusted]
    return float(error.max()) if len(error) else 0.0
