"""What a session needs of that which watches a network and records what reaches its parts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

Source = Literal["validation", "training"]
"""Whose batches drive a measurement."""


def other_than(source: Source) -> Source:
    """The other one."""
    return "training" if source == "validation" else "validation"


class Watch(Protocol):
    """Records batches, in a network that somebody else runs."""

    def begin_batch(self, source: Source) -> None:
        """Record a batch: the first ones of validation, the latest ones of training."""

    def end_turn(self, source: Source, *, is_again: bool) -> None:
        """A part of the batch has ended; what follows is another pass over the same rows if ``is_again``."""

    def end_batch(self, source: Source) -> None:
        """Stop recording."""

    def forget(self, source: Source) -> None:
        """Let go of what was recorded: the network may have learnt since."""

    @property
    def seconds(self) -> float:
        """Spent recording so far."""

    @property
    def batches_needed(self) -> int:
        """Training batches that bring as much as is wanted, going by the last; 1 before there was any."""

    def have_recorded(self, source: Source | None = None) -> bool:
        """Whether anything has been recorded on this rank."""

    def paused(self) -> AbstractContextManager[None]:
        """Record nothing meanwhile; the network is as it was found, for a measurement to look at and to call."""

    def remove(self) -> None:
        """Take the hooks off the network and let go of what was recorded."""
