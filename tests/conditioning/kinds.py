"""Layers of each kind, and what drives them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.cell import as_parts
from lightning_lyapunov.engine.system import trajectories
from lightning_lyapunov.engine.trajectory import Trajectory


def relu(*sizes: int, **options: Any) -> nn.RNN:
    return nn.RNN(*sizes, nonlinearity="relu", **options)


def relu_cell(*sizes: int, **options: Any) -> nn.RNNCell:
    return nn.RNNCell(*sizes, nonlinearity="relu", **options)


LAYERS: dict[str, Callable[..., Any]] = {"tanh": nn.RNN, "relu": relu, "GRU": nn.GRU, "LSTM": nn.LSTM}
CELLS: dict[str, Callable[..., Any]] = {
    "tanh cell": nn.RNNCell,
    "relu cell": relu_cell,
    "GRU cell": nn.GRUCell,
    "LSTM cell": nn.LSTMCell,
}


def noise(steps: int = 24, rows: int = 6, width: int = 3, seed: int = 0) -> Tensor:
    """``(T, B, I)`` standard normal."""
    return torch.randn(steps, rows, width, generator=torch.Generator().manual_seed(seed))


def with_gain(layer: Any, gain: float) -> Any:
    """The layer, its recurrent weights drawn from N(0, gain² / H)."""
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.normal_(weight, std=gain / math.sqrt(weight.shape[1]))
    return layer


@torch.no_grad()
def path_of(layer: Any, inputs: Any, state: Any = None) -> Trajectory:
    """The trajectory of a layer's only map."""
    return next(iter(trajectories(layer, inputs, state, None, None).values()))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, found: dict[str, Tensor]) -> set[str]:
    """Those that are no longer bit for bit what they were."""
    now = module.state_dict()
    assert now.keys() == found.keys()
    return {name for name in now if now[name].dtype != found[name].dtype or not torch.equal(now[name], found[name])}


def rows_of(state: Any, axis: int, rows: slice) -> Any:
    """Some rows of a state."""
    if state is None:
        return None
    parts = tuple(part.movedim(axis, 0)[rows].movedim(0, axis).contiguous() for part in as_parts(state))
    return parts if isinstance(state, tuple) else parts[0]
