"""The families of maps that are known: what a module of each is, and how its map is made.

Another library's cell takes a file with its map beside those here, and a line in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.elman import ElmanMap
from lightning_lyapunov.engine.maps.gru import GRUMap
from lightning_lyapunov.engine.maps.lstm import LSTMMap
from lightning_lyapunov.engine.maps.weights import effective_weight


@dataclass(frozen=True)
class Family:
    """A kind of recurrent layer, and what the engine has to know of it."""

    name: str
    """``"rnn"``, ``"gru"`` or ``"lstm"``."""
    layer: type[nn.Module]
    """The module that runs along a whole sequence."""
    cell: type[nn.Module]
    """The module that makes one step."""
    parts: int
    """How many tensors its state is made of, as the module passes it."""
    sizes: Callable[[Any], tuple[int, ...]]
    """Width of each of them, for a module."""
    make: Callable[[Any, Callable[[str], Tensor | None]], Recurrence]
    """The map of a module, and of a function that gives its weights by torch's names without suffix."""


FAMILIES = (
    Family("rnn", nn.RNN, nn.RNNCell, ElmanMap.parts, ElmanMap.sizes, ElmanMap.of),
    Family("gru", nn.GRU, nn.GRUCell, GRUMap.parts, GRUMap.sizes, GRUMap.of),
    Family("lstm", nn.LSTM, nn.LSTMCell, LSTMMap.parts, LSTMMap.sizes, LSTMMap.of),
)


def family_of(module: object) -> Family | None:
    """The family that a module, layer or cell, belongs to."""
    return next((family for family in FAMILIES if isinstance(module, family.layer | family.cell)), None)


def module_map(module: nn.Module, dtype: torch.dtype, suffix: str = "", detach: bool = True) -> Recurrence:
    """The map of one layer and direction of a recurrent module, or of a cell.

    Args:
        module: Of one of the :data:`FAMILIES`, in eval mode (reading a parametrised weight in train mode may change
            it, as spectral normalisation does).
        dtype: Floating type of the map.
        suffix: Torch's suffix of the layer's weights: ``"_l0"``, ``"_l1_reverse"``; empty for a cell.
        detach: Whether to cut the map off from the module's parameters, so that no gradient reaches them.

    Raises:
        ValueError: If the module is of no family, or has no such weights.
    """
    family = family_of(module)
    if family is None:
        raise ValueError(f"system: {type(module).__name__} is of none of the known families.")
    if getattr(module, f"weight_hh{suffix}", None) is None:
        raise ValueError(f"system: {type(module).__name__} has no recurrent weights weight_hh{suffix}.")
    return family.make(module, lambda name: effective_weight(module, name + suffix, dtype, detach))
