"""Maps that run by themselves, h[t+1] = f(h[t]): a recurrent layer at zero inputs, or a module of the user's own."""

from __future__ import annotations

import inspect
from typing import cast

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.finding import find
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.measure import SystemTally, measure
from lightning_lyapunov.engine.settings import Settings

STARTS = 8
"""Random states that a layer begins at: from zeros, one without biases would never leave."""


class _Stepping(nn.Module):
    """A module whose forward is (state) -> state, called as a cell is."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, _: None, state: State) -> State:
        return cast(State, self.step(state))


def measure_alone(
    network: nn.Module, names: str | list[str] | None, steps: int, state: Tensor | None, settings: Settings
) -> tuple[dict[str, nn.Module], dict[str, SystemTally]]:
    """Measure the one recurrent layer of a network, or the network as a map of its own, without inputs.

    Args:
        network: In eval mode.
        names: Name of the layer; None for the only one there is, or for the network itself where there is none.
        steps: Steps to run, the transient included.
        state: States to begin at, ``(B, D)`` or as the layer takes it; :data:`STARTS` random ones, each number uniform
            in [-1, 1), if None.
        settings: What to measure, and how.

    Returns:
        The layer and what was measured of it, each under its name.

    Raises:
        ValueError: If there are several layers, or the states are not known.
    """
    try:
        found, _ = find(network, names)
        layers = {name: one.module for name, one in found.items()}
    except ValueError:
        if names is not None:
            raise
        layers = {type(network).__name__: network}
    if len(layers) > 1:
        raise ValueError(f"module must name the one layer that runs by itself; there are {', '.join(layers)}.")
    ((name, layer),) = layers.items()
    name = name or type(layer).__name__
    start = _random_state(layer) if state is None else state
    is_map = family_of(layer) is None and len(inspect.signature(layer.forward).parameters) == 1
    return {name: layer}, {
        name: measure(_Stepping(layer) if is_map else layer, None, settings, state=start, steps=steps)
    }


def _random_state(layer: nn.Module) -> State:
    """States of a layer of torch's, the same every time."""
    family = family_of(layer)
    if family is None:
        raise ValueError(
            f"state: give --state FILE, the states (B, D) that {type(layer).__name__} begins at, as numpy.save writes "
            "them; of torch's layers and cells alone the size is known."
        )
    weight = next(layer.parameters())
    generator = torch.Generator().manual_seed(0)
    rows = layer.num_layers * (1 + layer.bidirectional) if isinstance(layer, nn.RNNBase) else None
    shapes = [(STARTS, size) if rows is None else (rows, STARTS, size) for size in family.sizes(layer)]
    parts = tuple((2 * torch.rand(shape, generator=generator) - 1).to(weight) for shape in shapes)
    return parts[0] if len(parts) == 1 else parts
