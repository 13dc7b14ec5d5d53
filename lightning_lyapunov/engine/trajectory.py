"""The path of a recurrent map along its inputs: a chain whose steps follow time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Chain, Stretch
from lightning_lyapunov.engine.maps.base import LinearStretch, Recurrence
from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.visited import Visited

STRETCH = 32
"""Steps that are run and linearised at once: what bounds the memory."""
LONG_STRETCH, SMALL = 128, 4096
"""The same where B·D² is no more than this, since there what each stretch costs by itself is most of it."""


class Trajectory(Chain):
    """The path of one map, run stretch by stretch as it is needed: no more than a stretch of it is held.

    Args:
        recurrence: The map.
        inputs: ``(T, B, ...)`` what drives it, or a function that gives this once it is needed.
        initial: ``(B, D)`` the state before the first step.
        running: (T,) how many sequences, counted from the first row, still run at each step.
        order: (B,) the user's row of each row here; None if it is the same.
        drives_another: Whether the outputs are kept for a layer above.

    Attributes:
        visited: The states that the path came through so far; None before the first.
    """

    def __init__(
        self,
        recurrence: Recurrence,
        inputs: Tensor | Callable[[], Tensor],
        initial: Tensor,
        running: list[int],
        order: Tensor | None = None,
        *,
        drives_another: bool = False,
    ) -> None:
        self.recurrence, self.initial, self.running, self.order = recurrence, initial, running, order
        self.is_pure = recurrence.is_pure
        self._inputs, self._drives_another = inputs, drives_another
        self._state, self._time, self._outputs = initial, 0, list[Tensor]()
        self._known = 0  # steps that the path was ever followed to
        self.visited: Visited | None = None

    @property
    def inputs(self) -> Tensor:
        """``(T, B, ...)`` what drives the map."""
        if not isinstance(self._inputs, Tensor):
            self._inputs = self._inputs()
        return self._inputs

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the path."""
        return self.recurrence.dtype

    @property
    def can_narrow(self) -> bool:
        """Whether the map runs in float32 too."""
        return self.recurrence.to(torch.float32).dtype == torch.float32

    @property
    def size(self) -> int:
        """D."""
        return self.recurrence.state_size

    @property
    def visible(self) -> int:
        """Entries of the state that the next layer sees."""
        return self.recurrence.output_size

    @property
    def stretch(self) -> int:
        """Steps that are best run and linearised at once."""
        return LONG_STRETCH if len(self.initial) * self.size**2 <= SMALL else STRETCH

    @property
    def state(self) -> Tensor:
        """``(B, D)`` the state that the path was followed to."""
        return self._state

    @property
    def time(self) -> int:
        """The step that the path was followed to."""
        return self._time

    def follow(self, stop: int) -> Stretch:
        """The Jacobians from where the path was last followed to, up to step ``stop``."""
        return LinearStretch(self.recurrence, self.factors(stop))

    def factors(self, stop: int, *, by_input: bool = False) -> Factors:
        """What they are made of, each ``(S, B, ...)``; with the derivative by the input if asked for."""
        states, factors = self.recurrence.follow(self.inputs[self._time : stop], self._state, by_input)
        self._advance(states, stop)
        return factors

    def skip(self, stop: int) -> None:
        """Follow the path without linearising it, a stretch at a time."""
        while self._time < stop:
            end = min(self._time + self.stretch, stop)
            inputs = self.inputs[self._time : end]
            self._advance(self.recurrence.run(inputs, self.recurrence.drive(inputs), self._state), end)

    def rewind(self, time: int, state: Tensor) -> None:
        """Go back to an earlier step; outputs that are kept already stay as they are."""
        self._time, self._state = time, state

    def _advance(self, states: Tensor, stop: int) -> None:
        if stop > self._known:
            new = states[1 + self._known - self._time :, :, : self.visible]
            come = Visited.of(new, self.running[self._known : stop])
            self.visited = come if self.visited is None else Visited.merge([self.visited, come])
            if self._drives_another:
                self._outputs.append(new.clone())
            self._known = stop
        self._state, self._time = states[-1].clone(), stop

    def outputs(self) -> Tensor:
        """``(T, B, output_size)`` what a layer above sees; follows the rest of the path if need be."""
        if self._known < len(self.running):
            self.skip(len(self.running))
        self._outputs = [torch.cat(self._outputs)]
        return self._outputs[0]

    @property
    def drive(self) -> Tensor:
        """``(T, B, ...)`` what the map makes of all the inputs."""
        return self.recurrence.drive(self.inputs)

    @property
    def states(self) -> Tensor:
        """``(T + 1, B, D)`` the whole path at once; ``states[t]`` is the state before step t."""
        return self.recurrence.run(self.inputs, self.drive, self.initial)
