"""The kinds of cell that scorers know, which are those of torch, and the table of all kinds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.bank.cell import Cell, State, Weights, recur
from lightning_lyapunov.bank.unknown_cells import AntisymmetricCell, CfCCell, DiagonalCell, MinGRUCell, OscillatorCell


class ElmanCell(Cell):
    """:class:`torch.nn.RNN` with tanh."""

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        return (torch.tanh(recur(drive, h, weights["hh"])),)

    def module(self, *layers: Weights) -> nn.Module:
        return _torch_module(nn.RNN, layers)


class ReLUCell(Cell):
    """:class:`torch.nn.RNN` with relu."""

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        (h,) = state
        return (torch.relu(recur(drive, h, weights["hh"])),)

    def module(self, *layers: Weights) -> nn.Module:
        return _torch_module(nn.RNN, layers, nonlinearity="relu")


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

    def module(self, *layers: Weights) -> nn.Module:
        return _torch_module(nn.GRU, layers)


class LSTMCell(Cell):
    """:class:`torch.nn.LSTM`: gates i, f, g, o."""

    gates = 4
    parts = 2
    memory_gate = 1

    def step(self, weights: Weights, drive: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = recur(drive, h, weights["hh"]).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def module(self, *layers: Weights) -> nn.Module:
        return _torch_module(nn.LSTM, layers)


CELLS: dict[str, Cell] = {
    "rnn": ElmanCell(),
    "rnn_relu": ReLUCell(),
    "gru": GRUCell(),
    "lstm": LSTMCell(),
    "mingru": MinGRUCell(),
    "diagonal": DiagonalCell(),
    "antisymmetric": AntisymmetricCell(),
    "oscillator": OscillatorCell(),
    "cfc": CfCCell(),
}
"""Every kind of cell in the bank, by name."""
UNKNOWN_CELLS = ("mingru", "diagonal", "antisymmetric", "oscillator", "cfc")
"""Kinds that no scorer is fitted on: they stand for the architectures of users that the bank does not know."""


def _torch_module(
    kind: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM], layers: tuple[Weights, ...], **options: Any
) -> nn.Module:
    inputs, hidden = layers[0]["ih"].shape[-1], layers[0]["hh"].shape[-1]
    module = kind(inputs, hidden, num_layers=len(layers), device="meta", **options).to_empty(device="cpu")  # no draws
    state: dict[str, Tensor] = {}
    for i, weights in enumerate(layers):
        state |= {f"weight_ih_l{i}": weights["ih"], f"weight_hh_l{i}": weights["hh"], f"bias_ih_l{i}": weights["bias"]}
        state[f"bias_hh_l{i}"] = torch.zeros_like(weights["bias"])
    module.load_state_dict(state)
    return module
