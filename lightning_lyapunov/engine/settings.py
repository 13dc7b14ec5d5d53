"""What is measured, and how: one set of settings from the user down to the loops, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.engine.growth import ON_REQUEST

LONGEST_TRANSIENT = 64
"""Steps that settle state and frame at most, where nothing else is said."""
GROWTH = 8
"""Leading singular values of the whole sequence that are measured where nothing else is said."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Raises:
        ValueError: For a value out of range.
    """

    k: int | None = None
    """Leading exponents; all if None."""
    transient: int | None = None
    """Steps at the start that do not count; half of each sequence, at most 64, if None."""
    interval: int | None = None
    """Steps between reorthonormalisations; chosen by the precision law if None."""
    dtype: torch.dtype | None = None
    """float32 or float64; chosen by the precision law if None."""
    tolerance: float | None = None
    """Nats per step: end once every standard error is below it."""
    growth: int | None = None
    """Leading singular values over the whole sequence; 8, or k if that is less, if None; none and no gain if 0."""
    second_start: bool = False
    """Whether to measure again from states that other sequences ended in, and to call settled only what agrees."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k must be at least 1, or None for the whole spectrum; got {self.k}.")
        if self.transient is not None and self.transient < 0:
            raise ValueError(
                f"transient must be at least 0, or None for half of each sequence, at most {LONGEST_TRANSIENT} steps; "
                f"got {self.transient}."
            )
        if self.interval is not None and self.interval < 1:
            raise ValueError(
                f"interval must be at least 1, or None for the precision law to choose; got {self.interval}."
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32, torch.float64 or None; got {self.dtype}.")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0 nats per step, or None; got {self.tolerance}.")
        if self.growth is not None and self.growth < 0:
            raise ValueError(
                f"growth must be at least 0, the number of singular values, or None for {GROWTH}; got {self.growth}."
            )

    def transient_of(self, length: int) -> int:
        """Steps of a sequence that do not count."""
        return min(length // 2, LONGEST_TRANSIENT) if self.transient is None else self.transient

    def growth_of(self, k: int, size: int, steps: int) -> int:
        """Singular values to be measured of a chain beside k exponents."""
        if self.growth is None:
            return min(k, GROWTH) if steps <= ON_REQUEST else 0
        return min(self.growth, size)


@dataclass(frozen=True)
class Start:
    """Where the frames of a measurement begin."""

    seed: int = 0
    first_place: int = 0
    """Place of the first sequence among all that are measured, by whomever."""
    frames: Frames | None = None
    """Those of an earlier measurement."""


FROM_SEED_0 = Start()
"""Where a measurement begins if nothing else is said."""
