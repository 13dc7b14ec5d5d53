"""Lyapunov exponents the slow way: float64 steps, Jacobians by autograd, one QR a step. The package is not used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Parts = tuple[Tensor, ...]
Step = Callable[[Tensor, Parts], Parts]
"""``(x, state) -> state``: x ``(1, ...)``, each part of the state ``(1, ...)``, float64."""


def exponents(step: Step, inputs: Sequence[Tensor], states: Sequence[Parts], *, identity: bool = False) -> Tensor:
    """All D exponents (D,) in nats per step, largest first, their mean over all steps that count.

    Benettin, Galgani, Giorgilli, Strelcyn (Meccanica 15, 1980). The first half of each sequence, 64 steps at most, does
    not count.

    Args:
        step: One step.
        inputs: A tensor ``(T, ...)`` for each sequence.
        states: Parts of the state before the first step of each, ``(...)``.
        identity: Whether tangents begin along the axes, rather than in general position.
    """
    sequences = enumerate(zip(inputs, states, strict=True))
    growth = [_growth(step, x, state, None if identity else place) for place, (x, state) in sequences]
    steps = sum(len(x) - _skipped(x) for x in inputs)
    return (torch.stack(growth).sum(0) / steps).sort(descending=True).values


def _skipped(inputs: Tensor) -> int:
    return min(len(inputs) // 2, 64)


def _growth(step: Step, inputs: Tensor, state: Parts, place: int | None) -> Tensor:
    """Of one sequence (D,) nats, in the order of its tangents."""
    shapes = [part.shape for part in state]
    sizes = [part.numel() for part in state]
    flat = torch.cat([part.double().flatten() for part in state])

    def flat_step(x: Tensor, h: Tensor) -> Tensor:
        parts = tuple(part.view(1, *shape) for part, shape in zip(h.split(sizes), shapes, strict=True))
        return torch.cat([part.flatten() for part in step(x, parts)])

    frame = torch.eye(len(flat), dtype=torch.float64) if place is None else _frame(place, len(flat))
    growth = torch.zeros_like(flat)
    for t, x in enumerate(inputs):
        x = x.unsqueeze(0).double() if x.is_floating_point() else x.unsqueeze(0)
        jacobian = torch.autograd.functional.jacobian(lambda h, x=x: flat_step(x, h), flat)
        flat = flat_step(x, flat).detach()
        frame, triangle = torch.linalg.qr(jacobian @ frame)
        if t >= _skipped(inputs):
            growth += triangle.diagonal().abs().log()
    return growth


def _frame(place: int, size: int) -> Tensor:
    """Where the tangents of a sequence begin ``(D, D)``: over some steps exponents depend on it, so it is the same."""
    count = -(-size * size // 16) * 16
    drawn = torch.empty(count, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(place))
    return torch.linalg.qr(drawn[: size * size].view(size, size).mT).Q


def torch_step(layer: nn.Module, suffix: str = "_l0") -> Step:
    """The step of one layer of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, or of a class that inherits from them."""
    names = [f"weight_ih{suffix}", f"weight_hh{suffix}", f"bias_ih{suffix}", f"bias_hh{suffix}"]
    weights: Any = [None if (w := getattr(layer, name, None)) is None else w.detach().double() for name in names]
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        return lambda x, state: torch.lstm_cell(x, state, *weights)
    if isinstance(layer, nn.GRU | nn.GRUCell):
        return lambda x, state: (torch.gru_cell(x, state[0], *weights),)
    cell = torch.rnn_relu_cell if layer.nonlinearity == "relu" else torch.rnn_tanh_cell
    return lambda x, state: (cell(x, state[0], *weights),)
