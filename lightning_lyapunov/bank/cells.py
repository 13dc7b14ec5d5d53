"""Recurrent cells that run one network or a population of them: every product broadcasts over leading dimensions.

A population of N networks keeps its weights as ``(N, ...)`` and its states as ``(N, B, H)``; without the leading N the
same step runs a single network, which is how a network of the population is measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
State = tuple[Tensor, ...]


class Cell(ABC):
    r"""One kind of recurrent cell, with weights ``ih`` ``(gH, I)``, ``hh`` ``(gH, H)`` and ``bias`` ``(gH,)``.

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
        """What :meth:`step` needs of the weights, computed once for all steps."""
        return weights

    def module(self, weights: Weights) -> nn.Module:
        """A single network's recurrent part as a torch module, to be measured by the engine."""
        return _CellModule(self, weights)


class ElmanCell(Cell):
    """:class:`torch.nn.RNN` with tanh."""

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        return (torch.tanh(_recur(drive, h, weights["hh"])),)

    def module(self, weights: Weights) -> nn.Module:
        return _torch_module(nn.RNN, weights)


class GRUCell(Cell):
    """:class:`torch.nn.GRU` with the recurrent biases at zero: gates r, z, n."""

    gates = 3
    memory_gate = 1

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        size = h.shape[-1]
        recurrent = h @ weights["hh"].mT
        r, z = torch.sigmoid(drive[..., : 2 * size] + recurrent[..., : 2 * size]).chunk(2, -1)
        n = torch.tanh(drive[..., 2 * size :] + r * recurrent[..., 2 * size :])
        return (torch.lerp(n, h, z),)

    def module(self, weights: Weights) -> nn.Module:
        return _torch_module(nn.GRU, weights)


class LSTMCell(Cell):
    """:class:`torch.nn.LSTM`: gates i, f, g, o."""

    gates = 4
    parts = 2
    memory_gate = 1

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = _recur(drive, h, weights["hh"]).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def module(self, weights: Weights) -> nn.Module:
        return _torch_module(nn.LSTM, weights)


class AntisymmetricCell(Cell):
    r""":math:`h' = h + \epsilon \tanh((W - W^T - \gamma) h + V x + b)`: a rotation, stable by design.

    Source: Chang, Chen, Haber, Chi, ICLR 2019, equation 11.
    """

    epsilon, gamma = 0.3, 0.01

    def prepared(self, weights: Weights) -> Weights:
        hh = weights["hh"]
        return {**weights, "hh": hh - hh.mT - self.gamma * torch.eye(hh.shape[-1], dtype=hh.dtype, device=hh.device)}

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        return (h + self.epsilon * torch.tanh(_recur(drive, h, weights["hh"])),)


class OscillatorCell(Cell):
    r"""coRNN: :math:`z' = z + \Delta(\tanh(W y + V x + b) - \gamma y - \epsilon z)`, :math:`y' = y + \Delta z'`.

    Coupled damped oscillators, driven; the coupling through velocities is left out.
    Source: Rusch, Mishra, ICLR 2021, equations 3 and 4.
    """

    parts = 2
    delta, gamma, epsilon = 0.25, 1.0, 0.5

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        y, z = state
        force = torch.tanh(_recur(drive, y, weights["hh"])) - self.gamma * y - self.epsilon * z
        z = z + self.delta * force
        return y + self.delta * z, z


CELLS: dict[str, Cell] = {
    "rnn": ElmanCell(),
    "gru": GRUCell(),
    "lstm": LSTMCell(),
    "antisymmetric": AntisymmetricCell(),
    "oscillator": OscillatorCell(),
}
"""Every kind of cell in the bank, by name."""
UNKNOWN_CELLS = ("antisymmetric", "oscillator")
"""Kinds that no scorer is fitted on: they stand for the architectures of users that the bank does not know."""


def _recur(drive: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    if h.dim() == 3:
        return torch.baddbmm(drive, h, weight.mT)  # one launch
    return drive + h @ weight.mT


def _torch_module(kind: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM], weights: Weights) -> nn.Module:
    inputs, hidden = weights["ih"].shape[-1], weights["hh"].shape[-1]
    module = kind(inputs, hidden, device="meta").to_empty(device="cpu")  # draws nothing
    named = {"weight_ih": "ih", "weight_hh": "hh", "bias_ih": "bias"}
    state = {f"{theirs}_l0": weights[ours] for theirs, ours in named.items()}
    module.load_state_dict({**state, "bias_hh_l0": torch.zeros_like(weights["bias"])})
    return module


class _CellModule(nn.Module):
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
            state = tuple(drive.new_zeros(len(x), weights["hh"].shape[-1]) for _ in range(self.cell.parts))
        after = self.cell.step(weights, drive, (state,) if isinstance(state, Tensor) else state)
        return after if len(after) > 1 else after[0]


def initial_weights(
    cell: Cell,
    inputs: int,
    hidden: int,
    *,
    kind: str,
    gain: float,
    input_gain: float,
    memory_bias: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weights of one network.

    Args:
        cell: Its kind.
        inputs: I, width of the input.
        hidden: H, units.
        kind: ``"normal"``, ``"uniform"`` or ``"orthogonal"``, the distribution of each recurrent block ``(H, H)``.
        gain: Spectral radius of a block, about: standard deviation gain/√H. PyTorch's own is uniform of gain 0.58.
        input_gain: Standard deviation of the input weights, times √I.
        memory_bias: Bias of the gate that remembers, where the cell has one.
        generator: Source of the draws.

    Raises:
        ValueError: If there is no such ``kind``.
    """
    blocks = []
    for _ in range(cell.gates):
        if kind == "orthogonal":
            block = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q * gain
        elif kind == "normal":
            block = torch.randn(hidden, hidden, generator=generator) * (gain / math.sqrt(hidden))
        elif kind == "uniform":
            block = (2 * torch.rand(hidden, hidden, generator=generator) - 1) * (gain * math.sqrt(3 / hidden))
        else:
            raise ValueError(f"kind must be 'normal', 'uniform' or 'orthogonal'; got {kind!r}.")
        blocks.append(block)
    bias = torch.zeros(cell.gates, hidden)
    if cell.memory_gate is not None:
        bias[cell.memory_gate] = memory_bias
    return {
        "ih": torch.randn(cell.gates * hidden, inputs, generator=generator) * (input_gain / math.sqrt(inputs)),
        "hh": torch.cat(blocks),
        "bias": bias.flatten(),
    }
