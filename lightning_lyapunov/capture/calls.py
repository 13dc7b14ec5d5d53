"""One call of a recurrent module in somebody's forward pass, and how calls of other libraries' modules are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.maps.cell import State

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """What one call drove, in which state it began and in which it ended, row by row."""

    inputs: Tensor
    """``(T, B, ...)`` what drives each step; of any type."""
    lengths: Tensor
    """(B,) steps of each row, integers on the CPU, T at most."""
    before: Parts | None
    """Parts of the state that the rows were given, each ``(B, ...)``; None if they were given none."""
    after: Parts
    """Parts of the state that was returned, each ``(B, ...)``."""

    @staticmethod
    def of_step(inputs: Tensor, before: Parts | None, after: Parts) -> Call:
        """A call that makes one step: ``inputs`` ``(B, ...)``."""
        return Call(inputs.unsqueeze(0), torch.ones(len(inputs), dtype=torch.long), before, after)


class Adapter(ABC):
    """How a module of another kind is a recurrent map: what its calls are about, and what one step of it is.

    Register one for a class with :func:`~lightning_lyapunov.capture.adapters.register`, or give it to the callback:
    ``module={"encoder.cell": adapter}``.
    """

    @abstractmethod
    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """What a call of the module's forward was about. Runs inside the user's forward pass: no copies, no reads.

        Raises:
            ValueError: In words, if such a call cannot be read.
        """

    @abstractmethod
    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """The state one step later, ``x`` ``(B, ...)`` being one time of :attr:`Call.inputs`; can be differentiated."""
