"""Networks of one kind trained side by side: weights are stacked, and none acts on another.

Gradients are clipped and steps are taken network by network, by Adam or by SGD with momentum as each was drawn. A
network that diverges holds NaN from then on, and the others go their way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_lyapunov.bank.cell import Cell, Weights
from lightning_lyapunov.bank.cells import LSTMCell
from lightning_lyapunov.bank.draws import Draw, generator
from lightning_lyapunov.bank.tasks import Batch, Task, loss

DECAY, DECAY_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam's moments, the first of which is SGD's momentum too; what Adam adds to the root of the second."""


class Trainer:
    """The weights of N networks, views of one ``(N, P)`` tensor, and two moments of their gradients, tensors like it.

    Args:
        task: What they learn.
        cell: Their kind.
        hidden: H, units of a layer.
        layers: One, or several on top of each other.
        networks: How each is made.
        names: Of the networks, which decide their weights.
    """

    def __init__(
        self, task: Task, cell: Cell, hidden: int, layers: int, networks: Sequence[Draw], names: Sequence[str]
    ) -> None:
        self.task, self.cell, self.hidden, self.layers = task, cell, hidden, layers
        weights = [self._initial(how, name) for how, name in zip(networks, names, strict=True)]
        shapes = {key: weight.shape for key, weight in weights[0].items()}
        self.flat = torch.stack([torch.cat([w.flatten() for w in one.values()]) for one in weights])
        self.gradient = torch.zeros_like(self.flat)
        self.weights = {key: view.requires_grad_() for key, view in _views(self.flat, shapes)}
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.updates = 0
        self.rate = _column([how.learning_rate for how in networks])
        self.warmup = _column([how.warmup for how in networks]).clamp(min=1)
        self.is_clipped = _column([how.clip for how in networks]).bool()
        self.is_adam = _column([how.optimizer == "adam" for how in networks]).bool()
        # Torch's own kernel, one network after the other, beats stacked products.
        self.is_plain = isinstance(cell, LSTMCell)

    def _initial(self, how: Draw, name: str) -> dict[str, Tensor]:
        source, task = generator("weights", name), self.task
        weights: dict[str, Tensor] = {}
        for layer in range(self.layers):
            inputs = self.hidden if layer else task.input_size
            drawn = self.cell.initial(inputs, self.hidden, how, source)
            weights |= {f"{layer}.{key}": weight for key, weight in drawn.items()}
        out = (2 * torch.rand(task.output_size, self.hidden, generator=source) - 1) / math.sqrt(self.hidden)
        return {**weights, "out": out, "out_bias": torch.zeros(task.output_size)}

    def layer(self, number: int) -> Weights:
        """Weights of one layer of all networks."""
        start = f"{number}."
        return {key.removeprefix(start): w for key, w in self.weights.items() if key.startswith(start)}

    def network(self, n: int) -> list[Weights]:
        """Recurrent weights of one network, layer by layer."""
        return [{key: w[n].detach() for key, w in self.layer(i).items()} for i in range(self.layers)]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Read-outs ``(N, T, B, O)`` and last layers' states ``(N, T, B, H)`` on ``inputs`` ``(T, B, I)``."""
        steps, batch, _ = inputs.shape
        below = states = inputs.unsqueeze(0)
        for number in range(self.layers):
            weights = self.cell.prepared(self.layer(number))
            states = self._plain_states(weights, below) if self.is_plain else self._stacked_states(weights, below)
            below = self.cell.seen(weights, states.flatten(1, 2)).unflatten(1, (steps, batch))
        read = torch.baddbmm(self.weights["out_bias"].unsqueeze(1), below.flatten(1, 2), self.weights["out"].mT)
        return read.unflatten(1, (steps, batch)), states

    def _stacked_states(self, weights: Weights, inputs: Tensor) -> Tensor:
        """States ``(N, T, B, H)`` of a layer on inputs ``(N, T, B, I)``, or ``(1, T, B, I)`` that all share."""
        networks, (_, steps, batch, width) = len(self.flat), inputs.shape
        flat = inputs.reshape(-1, steps * batch, width).expand(networks, -1, -1)
        drive = torch.baddbmm(weights["bias"].unsqueeze(1), flat, weights["ih"].mT)
        state = (drive.new_zeros(networks, batch, self.hidden),) * self.cell.parts
        visited = []
        for step_drive in drive.unflatten(1, (steps, batch)).unbind(1):
            state = self.cell.step(weights, step_drive, state)
            visited.append(state[0])
        return torch.stack(visited, 1)

    def _plain_states(self, weights: Weights, inputs: Tensor) -> Tensor:
        """The same by torch's own LSTM, network by network."""
        networks, batch = len(self.flat), inputs.shape[2]
        zeros = inputs.new_zeros(1, batch, self.hidden)
        parts = zip(*(weights[key].unbind(0) for key in ("ih", "hh", "bias")), strict=True)
        no_bias = torch.zeros(4 * self.hidden)
        return torch.stack(
            [
                torch.lstm(x, (zeros, zeros), (ih, hh, bias, no_bias), True, 1, 0.0, True, False, False)[0]
                for x, (ih, hh, bias) in zip(inputs.expand(networks, -1, -1, -1), parts, strict=True)
            ]
        )

    def differentiate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of each network's loss on a batch; the losses and the norms of the gradients, both (N,)."""
        losses = loss(self.task, self.forward(batch.inputs)[0], batch.targets)
        gradients = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        self.gradient = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
        return losses.detach(), self.gradient.norm(dim=1)

    def step(self) -> None:
        r"""Clip, and go one step: :math:`m \leftarrow 0.9 m + g` for SGD, Adam's own for Adam."""
        self.updates += 1
        norm = self.gradient.norm(dim=1, keepdim=True)
        scale = torch.where(self.is_clipped, (1 / (norm + 1e-6)).clamp(max=1.0), 1.0)  # as torch clips
        gradient = self.gradient * scale
        self.first.mul_(DECAY).add_(gradient * torch.where(self.is_adam, 1 - DECAY, 1.0))
        self.second.lerp_(gradient.square_(), 1 - DECAY_OF_SQUARES)
        size = (self.second / (1 - DECAY_OF_SQUARES**self.updates)).sqrt_().add_(EPSILON)
        size.mul_(1 - DECAY**self.updates).masked_fill_(~self.is_adam, 1.0)
        rate = self.rate * (self.updates / self.warmup).clamp(max=1.0)
        self.flat.addcdiv_(rate * self.first, size, value=-1)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.get_default_dtype()).unsqueeze(1)


def _views(flat: Tensor, shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """The parts of a flat tensor ``(N, P)``, each ``(N, *shape)`` on the same memory."""
    start = 0
    for key, shape in shapes.items():
        stop = start + shape.numel()
        yield key, flat[:, start:stop].unflatten(1, shape)
        start = stop
