r"""Layers on top of each other as one chain: its Jacobian is block triangular, coupled by the input weights.

In one step layer *l* moves by its own Jacobian and by what the layer below it hands up:

.. math:: v_l' = J_l v_l + \frac{\partial f_l}{\partial x} (v_{l-1}')_h

Rates in the long run are those of the layers, and need no stack. Growth over a sequence does: what enters below comes
out on top.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Chain, Steps, Stretch
from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.trajectory import Trajectory


class StackSteps(Steps):
    """The Jacobians of a stack; the state of the top layer comes first.

    Args:
        layers: Map and factors ``(T, B, ...)`` of each layer, from the top down, in the type of the vectors.
    """

    def __init__(self, layers: Sequence[tuple[Recurrence, Factors]]) -> None:
        self._layers = layers
        self._sizes = [recurrence.state_size for recurrence, _ in layers]

    def __len__(self) -> int:
        return len(self._layers[0][1][0])

    def push(self, t: int, tangents: Tensor) -> Tensor:
        parts, rows = tangents.split(self._sizes, -2), len(tangents)
        moved: list[Tensor] = []
        for (recurrence, factors), part in zip(reversed(self._layers), reversed(parts), strict=True):
            if not moved:
                moved.append(recurrence.push_forward(tuple(f[t, :rows] for f in factors), part))
            else:
                below = moved[-1][:, : self._visible(len(moved) - 1)]
                moved.append(recurrence.push_driven(factors, t, part, below))
        return torch.cat(moved[::-1], -2)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        parts, rows = list(cotangents.split(self._sizes, -2)), len(cotangents)
        moved: list[Tensor] = []
        for place, (recurrence, factors) in enumerate(self._layers):
            if place + 1 == len(self._layers):
                moved.append(recurrence.pull_back(tuple(f[t, :rows] for f in factors), parts[place]))
                break
            before, handed_down = recurrence.pull_driven(factors, t, parts[place])
            moved.append(before)
            below = parts[place + 1]
            seen = handed_down.shape[1]
            parts[place + 1] = torch.cat([below[:, :seen] + handed_down, below[:, seen:]], 1)
        return torch.cat(moved, -2)

    def _visible(self, layer: int) -> int:
        """Entries of the state of a layer, counted from the bottom, that the one above sees."""
        return self._layers[len(self._layers) - 1 - layer][0].output_size


class StackStretch(Stretch):
    """A few steps of a stack, linearised; layers from the top down."""

    def __init__(self, layers: Sequence[tuple[Recurrence, Factors]]) -> None:
        self._layers = layers

    def steps(self, k: int, dtype: torch.dtype) -> Steps:
        return StackSteps(
            [
                (recurrence.to(dtype), tuple(factor.to(dtype) for factor in factors))
                for recurrence, factors in self._layers
            ]
        )


class Stack(Chain):
    """The trajectories of the layers of one module, from the bottom up, as one chain."""

    def __init__(self, paths: Sequence[Trajectory]) -> None:
        self._paths = list(reversed(paths))  # the top first, whose output is what is seen
        top = self._paths[0]
        self.running, self.order = top.running, top.order
        self.is_pure = all(path.is_pure for path in paths)
        self.initial = torch.cat([path.initial for path in self._paths], -1)
        for path in paths:
            _ = path.inputs  # the outputs of the layer below, which is followed to its end for them
        self.rewind(0, self.initial)

    @property
    def dtype(self) -> torch.dtype:
        return self._paths[0].dtype

    @property
    def can_narrow(self) -> bool:
        return all(path.can_narrow for path in self._paths)

    @property
    def size(self) -> int:
        return self.initial.shape[-1]

    @property
    def visible(self) -> int:
        return self._paths[0].visible

    @property
    def state(self) -> Tensor:
        return torch.cat([path.state for path in self._paths], -1)

    @property
    def time(self) -> int:
        return self._paths[0].time

    def follow(self, stop: int) -> Stretch:
        bottom = self._paths[-1]
        layers = [(path.recurrence, path.factors(stop, by_input=path is not bottom)) for path in self._paths]
        return StackStretch(layers)

    def skip(self, stop: int) -> None:
        for path in self._paths:
            path.skip(stop)

    def rewind(self, time: int, state: Tensor) -> None:
        sizes = [path.size for path in self._paths]
        for path, part in zip(self._paths, state.split(sizes, -1), strict=True):
            path.rewind(time, part)
