"""A trajectory that gradients flow along: to what its map is made of, to the inputs and to the first state."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Stretch
from lightning_lyapunov.engine.maps.base import LinearStretch
from lightning_lyapunov.engine.maps.forms import Factors
from lightning_lyapunov.engine.trajectory import Trajectory


class LivePath(Trajectory):
    """A trajectory whose states and Jacobians are recorded by autograd.

    The states are written out step by step, where the engine runs torch's compiled layers with weights of its own; the
    formulas of the Jacobians are the engine's. While nothing is recorded, it is followed as any trajectory.
    """

    def follow(self, stop: int) -> Stretch:
        """As of any trajectory."""
        if torch.is_grad_enabled():
            return super().follow(stop)
        # Of a copy of the map: what it keeps of its weights for the next time has no part in what is recorded later.
        return LinearStretch(copy(self.recurrence), self.factors(stop))

    def factors(self, stop: int, *, by_input: bool = False) -> Factors:
        """As of any trajectory."""
        if not torch.is_grad_enabled():
            return super().factors(stop, by_input=by_input)
        return self.recurrence.linearise(*self._written_out(stop), by_input)

    def skip(self, stop: int) -> None:
        """As of any trajectory."""
        if not torch.is_grad_enabled():
            super().skip(stop)
        elif stop > self.time:
            self._written_out(stop)

    def _written_out(self, stop: int) -> tuple[Tensor, Tensor]:
        """States before each of the steps up to ``stop``, and their drive, ``(S, B, ...)`` both."""
        drive, states = self.recurrence.drive(self.inputs[self.time : stop]), [self.state]
        for x in drive.unbind():
            states.append(self.recurrence.step(states[-1], x))
        self._advance(torch.stack(states), stop)
        return torch.stack(states[:-1]), drive
