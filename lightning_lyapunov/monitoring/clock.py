"""How long a network has been trained, the time taken by measurements apart."""

from __future__ import annotations

import time
from collections.abc import Callable

FORWARDS = 3
"""Forward passes that take about as long as an update: a backward pass is two."""


class Clock:
    """Counts seconds of training over several fits.

    Args:
        spent: Tells the seconds that were spent on measurements so far, which are no training.
    """

    def __init__(self, spent: Callable[[], float]) -> None:
        self._spent = spent
        self._before = 0.0
        self._first: tuple[int, float] | None = None  # updates and seconds trained when they were first asked for
        self.forward = 0.0
        """Seconds that a forward pass over a batch takes, the shortest that was seen; 0 while none was."""
        self._started: tuple[float, float] | None = None  # the time, and what was spent by then

    def start(self) -> None:
        """Training begins."""
        self._started = time.perf_counter(), self._spent()

    def stop(self) -> None:
        """Training ends, if it had begun."""
        self._before, self._started = self.trained, None

    @property
    def trained(self) -> float:
        """Seconds trained so far."""
        if self._started is None:
            return self._before
        start, spent = self._started
        return self._before + time.perf_counter() - start - (self._spent() - spent)

    @trained.setter
    def trained(self, seconds: float) -> None:
        self._before, self._first = seconds, None
        if self._started is not None:
            self.start()

    def per_step(self, step: int) -> float:
        """Seconds that an update takes, by those made since this was first asked; before there are, by a forward pass.

        Args:
            step: Updates made so far.
        """
        trained = self.trained
        if self._first is None or step < self._first[0]:
            self._first = step, trained
        updates = step - self._first[0]
        return (trained - self._first[1]) / updates if updates else FORWARDS * self.forward

    def note_forward(self, seconds: float) -> None:
        """A forward pass over a batch was seen to take so long."""
        self.forward = min(seconds, self.forward or seconds)
