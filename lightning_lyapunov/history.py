"""What was measured in the course of a run: a bounded record that a checkpoint can carry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

LIMIT = 256
"""Measurements kept; when there are more, every second one is dropped, so that the whole run stays covered."""
NUMBERS = 2**16
"""Exponents kept in all, which bounds the record to a megabyte whatever the size of the network."""


def key_of(name: str, prefix: str = "lyapunov") -> str:
    """The key that a figure is logged under: ``max`` or ``aelle/performance`` under the default prefix or another."""
    return name if name.startswith("aelle/") and prefix == "lyapunov" else f"{prefix}/{name}"


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
    stderr: Tensor | None = None
    """(K,) standard errors of the exponents, nats per step; NaN where not known."""
    trusted: Tensor | None = None
    """(K,) bool: inside the precision law."""
    dimension: int | None = None
    """D of the state: K of these exponents were measured."""
    length: int | None = None
    """Steps of the longest sequence that the network was driven with, of which the first ones were measured."""
    layers: dict[str, list[float]] = field(default_factory=dict)
    """Of each layer, if there are several, the largest exponent and its standard error, nats per step."""
    latent: Tensor | None = None
    """(L,) the AeLLE code of the spectrum, if it was scored."""
    reached: float | None = None
    """Skill so far, as the scorer was told it."""


class History:
    """Measurements of a run, oldest first, thinned out evenly as they become many.

    Args:
        prefix: First part of the keys of their metrics: the callback's.
    """

    def __init__(self, prefix: str = "lyapunov") -> None:
        self.prefix = prefix
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

    def values(self, name: str) -> list[float]:
        """One figure, as ``max`` or ``aelle/performance``, at every measurement; NaN where it was not known."""
        key = key_of(name, self.prefix)
        return [measurement.metrics.get(key, math.nan) for measurement in self]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that a checkpoint loads under ``weights_only=True``."""
        return {
            "seen": self._seen,
            "stride": self._stride,
            "measurements": [{f.name: getattr(m, f.name) for f in fields(m)} for m in self],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._seen, self._stride = state["seen"], state["stride"]
        self._measurements = [Measurement(**measurement) for measurement in state["measurements"]]
