"""What a monitor can be told, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.closed_loop import Closing
from lightning_lyapunov.monitoring.reference import Spectra
from lightning_lyapunov.names import SPECTRA, Metrics, Table, selection
from lightning_lyapunov.reading.history import History

Precision = Literal["float32", "float64"]
Modules = str | Sequence[str] | Mapping[str, Any] | None
"""Names of layers; or names with what reads each; None: all that are known."""


@dataclass(frozen=True)
class CommonOptions:
    """What can be told of any measurement: where, how exactly, at what cost, and what the loggers get."""

    module: Modules = None
    k: int | None = None
    dtype: Precision | None = None
    tolerance: float | None = None
    max_overhead: float | None = 0.03
    prefix: str = ""
    metrics: Metrics = "default"
    figures: bool = True

    table: ClassVar[Table]
    """Of what is measured."""
    counts: ClassVar[tuple[str, ...]] = ("k",)
    """Names of those that must be at least 1."""

    def __post_init__(self) -> None:
        for name in self.counts:
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        if self.max_overhead is not None and not self.max_overhead > 0:
            raise ValueError(f"max_overhead must be above 0, or None; got {self.max_overhead}.")
        if self.dtype not in (None, "float32", "float64"):
            raise ValueError(f"dtype must be 'float32', 'float64' or None; got {self.dtype!r}.")
        if not self.prefix or self.prefix != self.prefix.strip("/"):
            raise ValueError(f"prefix must be a name without slashes at its ends; got {self.prefix!r}.")
        _ = self.logged

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of what the loggers get."""
        return selection(self.metrics, self.prefix, self.table)

    @property
    def with_histogram(self) -> bool:
        """Whether they get the spectrum as a histogram too."""
        return False

    @property
    def precision(self) -> torch.dtype | None:
        """Arithmetic of the tangent vectors; None where the engine chooses."""
        return None if self.dtype is None else getattr(torch, self.dtype)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all options."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class Options(CommonOptions):
    """What to measure of recurrent layers, how much of it, and what to make of it: plain values.

    The meaning of each is told by :class:`~lightning_lyapunov.LyapunovSpectrumCallback`.

    Raises:
        ValueError: For one that is out of range; the message names it.
    """

    k: int | None = 32
    prefix: str = "lyapunov"
    num_sequences: int = 16
    num_steps: int = 64
    transient: int | None = None
    interval: int | None = None
    growth: int | None = None
    warm_start: bool = False
    histogram: bool = True
    scorer: str | AeLLEScorer | None = "general"
    performance: str | None = None
    performance_range: tuple[float, float] | None = None
    closed_loop: Closing | None = None
    reference: Spectra | None = None

    table: ClassVar[Table] = SPECTRA
    counts: ClassVar[tuple[str, ...]] = ("k", "num_sequences", "num_steps", "interval")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transient is not None and not 0 <= self.transient < self.num_steps:
            raise ValueError(f"transient must lie in [0, {self.num_steps - 1}], below num_steps; got {self.transient}.")
        _ = self.settings  # which checks what is its own
        if self.scorer is not None and not isinstance(self.scorer, str | AeLLEScorer):
            raise ValueError(
                "scorer must be 'general', a path, an AeLLEScorer or None; got an object of "
                f"{type(self.scorer).__name__}."
            )
        if not (self.closed_loop is None or isinstance(self.closed_loop, str) or callable(self.closed_loop)):
            raise ValueError(
                "closed_loop must be a function of the model, the name of a method of its own, or None; got an object "
                f"of {type(self.closed_loop).__name__}."
            )
        if not isinstance(self.reference, str | Path | History | LyapunovSpectrum | Sequence | None):
            raise ValueError(
                "reference must be the path of a checkpoint, a History, a LyapunovSpectrum, a list of pairs "
                f"(step, exponents), or None; got an object of {type(self.reference).__name__}."
            )
        self._check_performance()

    def _check_performance(self) -> None:
        if self.performance is not None and self.performance_range is None and self.scorer == "general":
            raise ValueError(
                "performance needs performance_range=(worst, best), the metric by chance and at best, as the general "
                f"scorer reads a skill from 0 to 1; got performance={self.performance!r} alone."
            )
        if self.performance_range is None:
            return
        if self.performance is None:
            raise ValueError(f"performance_range is that of performance, which is None; got {self.performance_range}.")
        worst, best = self.performance_range
        if not (math.isfinite(worst) and math.isfinite(best)) or worst == best:
            raise ValueError(f"performance_range must be two different numbers; got {self.performance_range}.")

    @property
    def settings(self) -> Settings:
        """What the engine is told."""
        return Settings(self.k, self.transient, self.interval, self.precision, self.tolerance, self.growth)

    @property
    def with_histogram(self) -> bool:
        """As in the base."""
        return self.histogram

    def skill_of(self, performance: float) -> float | None:
        """The user's metric as the scorer takes it, from 0 by chance to 1 at best; None where it is no such metric.

        That is not finite, or so far beyond the best that it is of another unit, as per cent are.
        """
        if not math.isfinite(performance) or self.why_not_told(performance):
            return None
        if self.performance_range is None:
            return performance
        worst, best = self.performance_range
        return min(max((performance - worst) / (best - worst), 0.0), 1.0)

    def why_not_told(self, performance: float) -> str:
        """What to say of a metric that is better than the best by more than the whole range; nothing of others."""
        if self.performance_range is None:
            return ""
        worst, best = self.performance_range
        if not (performance - worst) / (best - worst) > 2:
            return ""
        return (
            f"performance is {performance:g}, far beyond the best of performance_range={self.performance_range}, "
            "(worst, best), so the scorer is not told it, nor is the verdict. Give the range in the unit of the "
            "metric: per cent have a best of 100, and a loss has its higher end first."
        )
