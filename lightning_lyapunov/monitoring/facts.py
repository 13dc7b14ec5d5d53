"""What is known of a run beside its spectrum and its updates, and free to know."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum


@dataclass(frozen=True)
class Facts:
    """What a scorer is told of a run: each as it takes it, None where it is not known."""

    performance: float | None = None
    """Skill reached so far."""
    learning_rate: float | None = None
    """The base rate of what trains the measured layers: see :mod:`~lightning_lyapunov.monitoring.learning`."""
    adaptive: bool | None = None
    """Whether their optimiser divides by a running size of the gradient."""
    gradient_norm: float | None = None
    """Of the last update's gradient as it came out of the backward pass, before clipping."""
    state_mean: float | None = None
    """Mean ``|h|`` of the states that the measurement came through."""
    state_spread: float | None = None
    """Standard deviation of h over the same."""
    steps: int | None = None
    """Length of the user's sequences; of several lengths the longest."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)

    def measured(self, spectrum: LyapunovSpectrum, steps: int | None) -> Facts:
        """The same with what a measurement tells.

        Args:
            spectrum: What was measured.
            steps: Of the longest sequence that was seen.
        """
        return replace(self, state_mean=spectrum.state_mean, state_spread=spectrum.state_spread, steps=steps)
