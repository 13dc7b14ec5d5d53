"""What conditioning a layer came to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.reading.words import plus_minus, two_digits

BLIND = math.log(1e-3)
"""Nats. Where the first input counts less, beside the last one, nothing of it is held."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A layer's spectrum before and after it was conditioned, and what was changed.

    Both spectra are measured on sequences that the setting did not see, where there were two or more.
    """

    before: LyapunovSpectrum
    """As the layer was found."""
    after: LyapunovSpectrum
    """As it was set; also where that was taken back."""
    changed: tuple[str, ...]
    """What was set, in words: ``"recurrent weights made orthogonal"``, ``"inputs × 0.14"``."""
    target: float
    """Nats per step: where the exponents were to lie."""
    rms_before: float
    """Nats per step: root mean square of the leading exponents that are not dead less the target, before."""
    rms_after: float
    """The same after it."""
    reach_before: float
    """Nats: what the output after the lag feels of the first input beside what it feels of the last one, before; near 0
    all inputs count alike. Where sequences are shorter than the lag it is their last output."""
    reach_after: float
    """The same after it."""
    seconds: float
    """What it took."""
    steps: int = 0
    """Gradient steps made; 0 where there were none to make."""
    largest_gradient: float = math.nan
    """Largest norm of a gradient on the way; NaN where there was none."""
    reason: str = ""
    """Why the weights were put back; empty where they stay."""

    @property
    def applied(self) -> bool:
        """Whether the layer has the new weights; False where they were put back."""
        return not self.reason

    @property
    def is_blind(self) -> bool:
        """Whether the first input counts less than a thousandth of the last one in the last output.

        Exponents near zero do not tell: a saturated state has them too.
        """
        return self.reach_after < BLIND

    def __str__(self) -> str:
        done = f"{', '.join(self.changed)}, {self.seconds:.1f} s"
        told = f"exponents from {_span(self.before)} to {_span(self.after)} nats/step (target {self.target or 0.0:.2g})"
        if not self.applied:
            return f"left as it was, as {self.reason}: {told}; tried: {done}"
        now, then = _times(self.reach_after), _times(self.reach_before)
        reach = f"after the lag the first input counts {now} as much as the last ({then} before)"
        if self.is_blind:
            reach += ", so nothing of it is held, whatever the exponents say"
        return f"{told}; {reach}: {done}"


def _times(nats: float) -> str:
    """A ratio, as ``0.4 times``; ``3·10^-9 times`` where next to nothing is left."""
    if math.isinf(nats):
        return "∞ times" if nats > 0 else "0 times"
    if nats > 0:
        return f"{two_digits(math.exp(nats))} times"
    return f"{math.exp(nats):.1g} times".replace("e-0", "·10^-").replace("e-", "·10^-")


def _span(spectrum: LyapunovSpectrum) -> str:
    """The smallest and the largest exponent that were measured, the latter with its error."""
    smallest, largest = float(spectrum.exponents[-1]), float(spectrum.exponents[0])
    return f"{plus_minus(smallest, math.nan)} … {plus_minus(largest, float(spectrum.error[0]))}"
