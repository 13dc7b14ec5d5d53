"""The sequences a layer is conditioned on, and those that the result is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.precision import widest_dtype
from lightning_lyapunov.engine.sequences import Inputs, Sequences
from lightning_lyapunov.engine.system import device_of, sequences_of, trajectories

SEQUENCES, STEPS = 8, 256
"""Sequences that weights are set on, and as many others that the result is measured on; steps of each at most."""


@dataclass(frozen=True)
class Rows:
    """Sequences of inputs, and the state before each; rows of either axis in the same order."""

    inputs: Sequences
    state: State | None
    batch_axis: int
    """Of the parts of the state: 1 for a layer of torch's, 0 for a cell."""

    @staticmethod
    def of(layer: Any, inputs: Inputs, state: State | None) -> Rows:
        """What a user passes.

        Raises:
            ValueError: For inputs or a state that do not fit the layer, or hold NaN or infinite values.
        """
        if inputs is None:
            raise ValueError("inputs must be given: the task's own, two sequences or more; got None.")
        trajectories(layer, inputs, state, None, None)  # refuses what does not fit
        axis = 1 if isinstance(layer, nn.RNNBase) else 0
        if family_of(layer) is not None:
            device = device_of(layer, inputs, state)
            given = sequences_of(layer, inputs, state, None, widest_dtype(device), device)
            state = _batched(state, axis)
        elif isinstance(inputs, Sequences):
            given = inputs
        elif isinstance(inputs, Tensor) and inputs.dim() >= 2:
            given = Sequences(inputs, [len(inputs)] * inputs.shape[1])
        else:
            raise ValueError(f"inputs of a cell must be a tensor (T, B, ...); got {type(inputs).__name__}.")
        if given.order is None or state is None:
            return Rows(Sequences(given.values, given.lengths), state, axis)
        return Rows(Sequences(given.values, given.lengths), _picked(state, given.order, axis), axis)

    def some(self, places: list[int]) -> Rows:
        """Those at some places, their first steps."""
        lengths = [self.inputs.lengths[place] for place in places]
        index = torch.tensor(places, device=self.inputs.values.device)
        values = self.inputs.values.index_select(1, index)[: max(lengths)]
        state = _picked(self.state, index, self.batch_axis)
        return Rows(Sequences(values, lengths).cut(STEPS), state, self.batch_axis)

    def halves(self) -> tuple[Rows, Rows]:
        """Sequences to set weights on, and others to measure on; the same ones where there is one alone."""
        places = list(range(len(self.inputs)))
        mine, others = places[0::2][:SEQUENCES], places[1::2][:SEQUENCES]
        return self.some(mine), self.some(others or mine)

    def window(self, steps: int, generator: torch.Generator) -> Rows:
        """So many steps of one sequence, at a random place; from the state at its beginning where that is the first."""
        row = int(torch.randint(len(self.inputs), (), generator=generator, device="cpu"))
        one = self.some([row])
        latest = max(one.inputs.lengths[0] - steps, 0)
        first = int(torch.randint(latest + 1, (), generator=generator, device="cpu"))
        values = one.inputs.values[first : first + steps]
        state = one.state if first == 0 or self.batch_axis == 0 else None
        return Rows(Sequences(values, [len(values)]), state, self.batch_axis)


def _batched(state: State | None, axis: int) -> State | None:
    """A state of a layer of torch's with its batch axis, which that of a single sequence may lack."""
    if state is None:
        return None
    parts = tuple(part if part.dim() == axis + 2 else part.unsqueeze(axis) for part in as_parts(state))
    return parts[0] if len(parts) == 1 else parts


def _picked(state: State | None, index: Tensor, axis: int) -> State | None:
    """The rows of a state at some places."""
    if state is None:
        return None
    parts = tuple(part.index_select(axis, index) for part in as_parts(state))
    return parts[0] if isinstance(state, Tensor) else parts
