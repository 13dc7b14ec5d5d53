"""What was measured in the course of a run: a bounded record that a checkpoint can carry."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_origin, get_type_hints

from torch import Tensor

LIMIT = 256
"""Measurements kept; when there are more, every second one is dropped, so that the whole run stays covered."""
BYTES = 800_000
"""What those kept may take in a checkpoint; where they are large, of many exponents or layers, fewer are kept."""


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
        self._bytes = 0  # of those kept

    def append(self, measurement: Measurement) -> None:
        """Add the newest measurement; the newest is always kept, and the first."""
        if self._measurements and (self._seen - 1) % self._stride:
            self._bytes -= _bytes_of(self._measurements.pop())  # the newest so far was between two that are kept
        self._measurements.append(measurement)
        self._bytes += _bytes_of(measurement)
        self._seen += 1
        while len(self) > LIMIT or (self._bytes > BYTES and len(self) > 2):
            thinned = self._measurements[::2]
            if thinned[-1] is not measurement:
                thinned.append(measurement)
            self._measurements = thinned
            self._bytes = sum(map(_bytes_of, thinned))
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
        return {"seen": self._seen, "stride": self._stride, "measurements": [_plain(m) for m in self]}

    def load_state_dict(self, state: Any) -> list[str]:
        """Go on from :meth:`state_dict`, or from as much of it as another version wrote.

        Returns:
            What was amiss, if anything, in words.
        """
        known, amiss = read_state(state, {"seen": int, "stride": int, "measurements": list}, "history")
        self._measurements = []
        for written in known.get("measurements", []):
            kept, troubles = read_state(written, _KINDS, "a measurement")
            amiss += [trouble for trouble in troubles if trouble not in amiss]
            if kept.keys() >= _NEEDED:
                self._measurements.append(Measurement(**kept))
        self._stride = max(1, known.get("stride", 1))
        self._seen = max(known.get("seen", 0), len(self))
        self._bytes = sum(map(_bytes_of, self))
        return amiss


_KINDS = {name: dict if get_origin(hint) is dict else hint for name, hint in get_type_hints(Measurement).items()}
"""What each field of a measurement is."""
_NEEDED = {f.name for f in fields(Measurement) if f.default is MISSING and f.default_factory is MISSING}


def _plain(measurement: Measurement) -> dict[str, Any]:
    """A measurement as a checkpoint takes it, and no more than it holds."""
    state = {f.name: getattr(measurement, f.name) for f in fields(measurement)}
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = value.clone()  # of a view, torch.save would write all that it is a view of
        elif isinstance(value, dict):
            state[name] = {sys.intern(key): item for key, item in value.items()}  # pickle writes one object once
    return state


def _bytes_of(measurement: Measurement) -> int:
    """About what it takes in a checkpoint: each tensor is a file of its own there, and each number a few bytes."""
    found = (measurement.exponents, measurement.stderr, measurement.trusted, measurement.latent)
    tensors = [tensor for tensor in found if tensor is not None]
    numbers = len(measurement.metrics) + 3 * len(measurement.layers)
    return 300 + sum(400 + tensor.numel() * tensor.element_size() for tensor in tensors) + 16 * numbers


def read_state(state: Any, kinds: Mapping[str, Any], of: str) -> tuple[dict[str, Any], list[str]]:
    """Of a state that another version may have written: the fields that are known and of the right kind.

    Args:
        state: What the checkpoint holds.
        kinds: The fields that it should have, and the types of their values.
        of: What it is the state of.

    Returns:
        The good ones, and what was amiss with the others, in words.
    """
    if not isinstance(state, dict):
        return {}, [f"{of} is {type(state).__name__}, not a dictionary"]
    known = {name: state[name] for name, kind in kinds.items() if name in state and isinstance(state[name], kind)}
    missing = [f"{of} has no {name}" for name in kinds if name not in state]
    wrong = [f"{name} of {of} is {type(state[name]).__name__}" for name in kinds if name in state and name not in known]
    unknown = [f"{name} of {of} is not known" for name in state if name not in kinds]
    return known, missing + wrong + unknown
