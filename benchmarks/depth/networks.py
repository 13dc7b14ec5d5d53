"""The networks: a stem that makes the first state, a chain of blocks that keep its width, and a head that reads it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from data import WINDOW, Task
from draws import Draw
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_lyapunov.engine.maps.blocks import Function

WIDTHS = {"dense": 48, "conv": 12, "attention": 24}
"""Units, channels and features of a token; images have 4 × 4 places or tokens, text as many as its window."""
HEADS = 2
ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "tanh": (nn.Tanh, 1.0),
    "relu": (nn.ReLU, math.sqrt(2)),
    "gelu": (nn.GELU, math.sqrt(2)),
}
"""With the gain that keeps the size of what passes."""


class Network(nn.Module):
    """A stem, D blocks and a head, for one task."""

    def __init__(self, draw: Draw, task: Task) -> None:
        super().__init__()
        layers = draw.kind.split()[-1]
        width = WIDTHS[layers]
        self.stem = stem(layers, task, width)
        self.blocks = nn.ModuleList(block(draw, layers, task, width) for _ in range(draw.depth))
        self.pool = _pools(layers, task.name)
        self.norm = nn.LayerNorm(width) if draw.norm == "pre" else nn.Identity()
        self.head = scaled(nn.Linear(width, task.classes), 1.0)

    def states(self, inputs: Tensor) -> list[Tensor]:
        """``x_0`` to ``x_D``."""
        states = [self.stem(inputs)]
        for one in self.blocks:
            states.append(one(states[-1]))
        return states

    def read(self, last: Tensor) -> Tensor:
        """Logits ``(R, classes)`` from the last state."""
        return self.head(self.norm(self.pool(last)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.states(inputs)[-1])

    @property
    def chain(self) -> list[Function]:
        """The blocks, as they are measured."""
        return [Function(one, f"blocks.{place}") for place, one in enumerate(self.blocks)]


def made(draw: Draw, task: Task) -> Network:
    """The network of a draw, before its first update."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.number)
        return Network(draw, task)


def held(network: Network, inputs: Tensor) -> Network:
    """A copy for measuring: BatchNorm acts with the statistics of a training batch, held fixed."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_pre_hook(_hold)
    with torch.no_grad():
        network.train()(inputs)
    return network.eval().requires_grad_(False)


def _hold(module: nn.Module, inputs: tuple[Tensor]) -> None:
    """Keep mean and variance of what reaches BatchNorm in training."""
    if module.training:
        over = [dim for dim in range(inputs[0].dim()) if dim != 1]
        variance, mean = torch.var_mean(inputs[0], over, correction=0)
        module.momentum = 0.0  # what is kept is what it finds, and stays
        module.running_mean, module.running_var = mean, variance


# Parts ----------------------------------------------------------------------------------------------------------------


def scaled(layer: Any, gain: float) -> Any:
    """A layer whose weights are random, of standard deviation gain/√fan-in, without biases to begin with."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    nn.init.zeros_(layer.bias)
    return layer


def mixing(layers: str, task: Task, width: int, gain: float) -> nn.Module:
    """The linear map inside a block."""
    if layers == "conv":
        conv = nn.Conv2d if task.name == "images" else nn.Conv1d
        return scaled(conv(width, width, 3, padding=1), gain)
    return scaled(nn.Linear(width, width), gain)


def normalising(norm: str, layers: str, task: Task, width: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(width) if layers == "conv" and task.name == "images" else nn.BatchNorm1d(width)
    return nn.GroupNorm(1, width) if layers == "conv" else nn.LayerNorm(width)


def block(draw: Draw, layers: str, task: Task, width: int) -> nn.Module:
    activation, keeping = ACTIVATIONS[draw.activation]
    gain = draw.gain * keeping

    def linear() -> nn.Module:
        return mixing(layers, task, width, gain)

    def norm() -> nn.Module:
        return normalising(draw.norm, layers, task, width)

    if not draw.is_residual:
        return nn.Sequential(linear(), norm(), activation())
    branch = nn.Sequential(linear(), activation(), linear())
    if layers != "attention":
        return Residual(branch, norm(), draw)
    mixed = Residual(Attention(width, draw.gain), norm(), draw)
    return nn.Sequential(mixed, Residual(branch, norm(), draw))


class Residual(nn.Module):
    """A branch beside a skip: ``x + α f(norm(x))``, or ``norm(x + α f(x))`` for ``post``."""

    def __init__(self, branch: nn.Module, norm: nn.Module, draw: Draw) -> None:
        super().__init__()
        self.branch, self.norm, self.scale, self.is_post = branch, norm, draw.branch, draw.norm == "post"

    def forward(self, state: Tensor) -> Tensor:
        if self.is_post:
            return self.norm(state + self.scale * self.branch(state))
        return state + self.scale * self.branch(self.norm(state))


class Attention(nn.Module):
    """Every token looks at all."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.inner, self.out = scaled(nn.Linear(width, 3 * width), gain), scaled(nn.Linear(width, width), gain)

    def forward(self, state: Tensor) -> Tensor:
        parts = self.inner(state).unflatten(-1, (3, HEADS, -1)).transpose(1, 3).unbind(2)
        return self.out(scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


# Ends -----------------------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A learnt vector added to each place."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.randn(places, width) / 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.added


class Transposed(nn.Module):
    """Its last two dimensions change places."""

    def forward(self, state: Tensor) -> Tensor:
        return state.transpose(-1, -2)


def stem(layers: str, task: Task, width: int) -> nn.Module:
    """Makes a first state of about unit size."""
    if task.name == "text":
        if layers == "dense":
            return nn.Sequential(nn.Embedding(task.classes, 8), nn.Flatten(), scaled(nn.Linear(8 * WINDOW, width), 1.0))
        places = Positions(WINDOW, width)
        return nn.Sequential(nn.Embedding(task.classes, width), places, *[Transposed()] * (layers == "conv"))
    if layers == "conv":
        return scaled(nn.Conv2d(1, width, 3, stride=2, padding=1), 1.0)
    if layers == "attention":
        patches = nn.Sequential(nn.PixelUnshuffle(2), nn.Flatten(2), Transposed())
        return nn.Sequential(patches, scaled(nn.Linear(4, width), 1.0), Positions(16, width))
    return nn.Sequential(nn.Flatten(), scaled(nn.Linear(task.inputs[0].numel(), width), 1.0))


def _pools(layers: str, task: str) -> Callable[[Tensor], Tensor]:
    """The last place of a text, the mean over those of an image."""
    if layers == "dense":
        return nn.Identity()
    return Pool(is_last=task == "text", places=1 if layers == "attention" else 2)


class Pool(nn.Module):
    """``(R, features)`` from all places, which begin at a dimension."""

    def __init__(self, is_last: bool, places: int) -> None:
        super().__init__()
        self.is_last, self.places = is_last, places

    def forward(self, state: Tensor) -> Tensor:
        if self.is_last:
            return state.select(self.places, -1)
        return state.flatten(self.places).mean(-1) if self.places == 2 else state.mean(1)
