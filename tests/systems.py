"""Maps whose exponents are known, small networks, and torch's own derivatives to compare ours with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrum
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.gradient import plain_product
from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.cell import as_parts
from lightning_lyapunov.engine.measure import Settings, Start, SystemTally, measure
from lightning_lyapunov.engine.system import trajectories

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


# ------------------------------------------------------------------ measured as part of a whole


def tally_of(
    system: Any, inputs: Any, *, place: int = 0, state: Any = None, steps: int | None = None, **settings: Any
) -> SystemTally:
    """Raw sums of a measurement whose first sequence stands at a place among all: its frame is that of the place."""
    return measure(system, inputs, Settings(**settings), state=state, steps=steps, start=Start(first_place=place))


def at_place(system: Any, inputs: Any, place: int, **options: Any) -> dict[str, LyapunovSpectrum]:
    """The spectrum of each layer and direction, measured with the frames of sequences from a place on."""
    return tally_of(system, inputs, place=place, **options).spectra(options.get("k"))


class TwoParts(nn.Module):
    """State parts of two shapes, one with two trailing axes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(size, size, seed=3))
        self.register_buffer("shift", noise(2, 3, seed=4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return torch.tanh(a @ self.weight + x), b * torch.sigmoid(a[:, :1, None]) + self.shift


class Embedded(nn.Module):
    """A cell whose inputs are indices."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(10, inputs), nn.GRUCell(inputs, hidden)

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        return self.cell(self.embedding(x), state)


class Opaque(nn.Module):
    """Only reverse mode, one row at a time, can differentiate it."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hh, self.xh = nn.Linear(hidden, hidden), nn.Linear(inputs, hidden)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return OpaqueTanh.apply(self.hh(state) + self.xh(x))


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


def dense_rates(jacobians: list[Tensor], k: int | None = None, place: int = 0) -> Tensor:
    """Growth rates (K,), largest first, from one QR of the product of all Jacobians ``(D, D)``, the last leftmost.

    In exact arithmetic and in the engine's initial frame A of the sequence at a place: the diagonal of R is squared in
    A'J'JA = L diag(R²) L'.
    """
    size = len(jacobians[0])
    columns = Matrix.of(random_frames([place], size, k or size, torch.device("cpu"))[0])
    for jacobian in jacobians:
        columns = Matrix.of(jacobian) @ columns
    gram = (columns.mT @ columns).entries
    squares = []
    while gram:
        pivot, rest = gram[0], gram[1:]
        squares.append(pivot[0])
        gram = [
            [entry - row[0] * top / pivot[0] for entry, top in zip(row[1:], pivot[1:], strict=True)] for row in rest
        ]
    rates = [(math.log(r.numerator) - math.log(r.denominator)) / 2 / len(jacobians) for r in squares]
    return torch.tensor(rates, dtype=torch.float64).sort(descending=True).values


@dataclass(frozen=True)
class Matrix:
    """A matrix of fractions: arithmetic without rounding, whatever the spread."""

    entries: list[list[Fraction]]

    @staticmethod
    def of(matrix: Tensor) -> "Matrix":
        return Matrix([[Fraction(entry) for entry in row] for row in matrix.tolist()])

    @property
    def mT(self) -> "Matrix":  # as torch calls it
        return Matrix([list(row) for row in zip(*self.entries, strict=True)])

    def __matmul__(self, other: "Matrix") -> "Matrix":
        columns = other.mT.entries
        return Matrix(
            [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction()) for c in columns] for row in self.entries]
        )

    def squares(self) -> Fraction:
        """Sum of the squares of its entries."""
        return sum((entry * entry for row in self.entries for entry in row), Fraction())

    def minors(self, size: int) -> "Matrix":
        """The determinants of all its square parts of a size."""
        choices = list(combinations(range(len(self.entries)), size))
        return Matrix([[_det([[self.entries[i][j] for j in js] for i in rows]) for js in choices] for rows in choices])


def _det(rows: list[list[Fraction]]) -> Fraction:
    if len(rows) == 1:
        return rows[0][0]
    below = rows[1:]
    return sum(
        ((-1) ** j * top * _det([row[:j] + row[j + 1 :] for row in below]) for j, top in enumerate(rows[0])), Fraction()
    )


@dataclass(frozen=True)
class Products:
    """Dense products of all Jacobians, one for each sequence, in float64."""

    dense: Tensor
    """``(B, D, D)``"""

    def log_singular_values(self) -> Tensor:
        return torch.linalg.svdvals(self.dense).log()


def products_of(system: Any, inputs: Tensor, state: Any) -> tuple[Products, int]:
    """Along sequences of equal length, with a gradient or without; and the entries of the state that are seen."""
    (path,) = trajectories(system, inputs, state, None, torch.float64).values()
    return Products(plain_product(path.recurrence, path.inputs, path.initial).detach()), path.visible


def careful_exponents(module: nn.RNNBase, inputs: Tensor, k: int | None = None, transient: int = 0) -> Tensor:
    """Exponents (K,) by float64, Householder after every step and nothing else; two columns more are pushed."""
    (path,) = trajectories(module, inputs, None, None, torch.float64).values()
    recurrence, states, drive = path.recurrence, path.states, path.drive
    size = recurrence.state_size
    frame = random_frames(range(states.shape[1]), size, min((k or size) + 2, size), torch.device("cpu"))
    total = torch.zeros(frame.shape[-1], dtype=torch.float64)
    for t in range(len(drive)):
        factors = recurrence.linearise(states[t : t + 1], drive[t : t + 1])
        frame, r = torch.linalg.qr(recurrence.push_forward(tuple(factor[0] for factor in factors), frame))
        if t >= transient:
            total += r.diagonal(dim1=-2, dim2=-1).abs().log().mean(0)
    return (total / (len(drive) - transient)).sort(descending=True).values[:k]


def worst_trusted_error(spectrum: LyapunovSpectrum, reference: LyapunovSpectrum | Tensor) -> float:
    """Largest error of an exponent called trusted; the spectra are compared index by index."""
    expected = reference if isinstance(reference, Tensor) else reference.exponents
    error = (spectrum.exponents - expected).abs()[spectrum.trusted]
    return float(error.max()) if len(error) else 0.0
