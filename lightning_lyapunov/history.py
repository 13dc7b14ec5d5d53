"""What was measured in the course of a run: a bounded record that a checkpoint can carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LIMIT = 256
"""Measurements kept; when there are more, every second one is dropped, so that the whole run stays covered."""
NUMBERS = 2**17
"""Exponents kept in all, which bounds the record to a megabyte whatever the size of the network."""


@dataclass(frozen=True)
class Measurement:
    """One measurement of a run."""

    step: int
    """The Trainer's ``global_step``: updates made before it."""
    epoch: int
    """Epoch in which it was made; the one before the first update has epoch 0 as well, and step 0."""
    exponents: Tensor
    """(K,) nats per step, float32 on the CPU, largest first."""
    metrics: dict[str, float]
    """What was logged, by key."""


class History:
    """Measurements of a run, oldest first, thinned out evenly as they become many."""

    def __init__(self) -> None:
        self._measurements: list[Measurement] = []
        self._stride = 1  # keep one measurement out of so many
        self._seen = 0

    def append(self, measurement: Measurement) -> None:
        """Add the newest measurement; the newest is always kept."""
        if self._measurements and (self._seen - 1) % self._stride:
            self._measurements.pop()  # the newest so far was between two that are kept
        self._measurements.append(measurement)
        self._seen += 1
        limit = max(16, min(LIMIT, NUMBERS // max(1, len(measurement.exponents))))
        while len(self._measurements) > limit:
            thinned = self._measurements[::2]
            if thinned[-1] is not measurement:
                thinned.append(measurement)
            self._measurements = thinned
            self._stride *= 2

    def __len__(self) -> int:
        return len(self._measurements)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._measurements)

    def __getitem__(self, index: int) -> Measurement:
        return self._measurements[index]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that a checkpoint loads under ``weights_only=True``."""
        return {
            "seen": self._seen,
            "stride": self._stride,
            "measurements": [
                {"step": m.step, "epoch": m.epoch, "exponents": m.exponents, "metrics": m.metrics} for m in self
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._seen, self._stride = state["seen"], state["stride"]
        self._measurements = [Measurement(**measurement) for measurement in state["measurements"]]
