"""What a recurrent cell of the bank is: it runs one network or a population, every product broadcasts over the front.

A population of N networks keeps its weights as ``(N, ...)`` and its states as ``(N, B, H)``; without the leading N the
same step runs a single network, which is how a network of the population is measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

Weights = Mapping[str, Tensor]
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Initial:
    """How the weights of a network are drawn."""

    init: str
    """``"normal"``, ``"uniform"`` or ``"orthogonal"``: the distribution of each recurrent block ``(H, H)``."""
    gain: float
    """Spectral radius of a block, about: standard deviation gain/√H. PyTorch's own is uniform of gain 0.58."""
    input_gain: float
    """Standard deviation of the input weights, times √I."""
    memory_bias: float
    """Bias of the gate that remembers, where the cell has one."""


class Cell(ABC):
    r"""One kind of recurrent cell, with weights ``ih`` ``(gH, I)``, ``bias`` ``(gH,)`` and, mostly, ``hh`` ``(gH, H)``.

    Attributes:
        gates: g, the number of H-blocks in each weight.
        parts: Tensors of size H that the state is made of; the first is what the read-out sees.
        memory_gate: Block whose bias sets how long the cell remembers; None where there is none.
    """

    gates: ClassVar[int] = 1
    parts: ClassVar[int] = 1
    memory_gate: ClassVar[int | None] = None

    @abstractmethod
    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        """The state one step later; ``drive`` ``(..., B, gH)`` is the part that depends on the input alone."""

    def prepared(self, weights: Weights) -> Weights:
        """What :meth:`step` and the drive need of the weights, computed once for all steps."""
        return weights

    def seen(self, weights: Weights, states: Tensor) -> Tensor:
        """What the read-out sees of states ``(..., B, H)``, given the prepared weights."""
        return states

    def initial(self, inputs: int, hidden: int, how: Initial, generator: Generator) -> dict[str, Tensor]:
        """Weights of one network of ``hidden`` units that reads ``inputs`` values a step."""
        return {
            "ih": torch.randn(self.gates * hidden, inputs, generator=generator) * (how.input_gain / math.sqrt(inputs)),
            "hh": torch.cat([block(hidden, how.init, how.gain, generator) for _ in range(self.gates)]),
            "bias": self._initial_bias(hidden, how),
        }

    def _initial_bias(self, hidden: int, how: Initial) -> Tensor:
        bias = torch.zeros(self.gates, hidden)
        if self.memory_gate is not None:
            bias[self.memory_gate] = how.memory_bias
        return bias.flatten()

    def module(self, *layers: Weights) -> nn.Module:
        """A single network's recurrent part as a torch module, to be measured by the engine."""
        (weights,) = layers
        return CellModule(self, weights)


class CellModule(nn.Module):
    """A network of the population as ``cell(x, state) -> state``."""

    def __init__(self, cell: Cell, weights: Weights) -> None:
        super().__init__()
        self.cell = cell
        self.weights = nn.ParameterDict({name: nn.Parameter(w.clone()) for name, w in weights.items()})

    def forward(self, x: Tensor, state: Tensor | State | None) -> Tensor | State:
        """The next state, given inputs ``(B, I)``; zeros before the first step."""
        weights = self.cell.prepared(dict(self.weights.items()))
        drive = x @ weights["ih"].mT + weights["bias"]
        if state is None:
            zeros = drive.new_zeros(len(x), drive.shape[-1] // self.cell.gates)
            state = (zeros,) * self.cell.parts
        after = self.cell.step(weights, drive, (state,) if isinstance(state, Tensor) else state)
        return after if len(after) > 1 else after[0]


def recur(drive: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """``drive`` and the product of a state ``(..., B, H)`` with a recurrent weight."""
    if h.dim() == 3:
        return torch.baddbmm(drive, h, weight.mT)  # one launch
    return drive + h @ weight.mT


def block(hidden: int, kind: str, gain: float, generator: Generator) -> Tensor:
    """One recurrent weight ``(H, H)``.

    Raises:
        ValueError: If there is no such ``kind``.
    """
    if kind == "orthogonal":
        return torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q * gain
    if kind == "normal":
        return torch.randn(hidden, hidden, generator=generator) * (gain / math.sqrt(hidden))
    if kind == "uniform":
        return (2 * torch.rand(hidden, hidden, generator=generator) - 1) * (gain * math.sqrt(3 / hidden))
    raise ValueError(f"kind must be 'normal', 'uniform' or 'orthogonal'; got {kind!r}.")
