"""Times that follow from an exponent."""

from __future__ import annotations

import math

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum


def predictability_time(rate: float | LyapunovSpectrum) -> float:
    r"""Steps in which a small error doubles, the predictability time of chaotic data or of a network.

    .. math:: \tau = \frac{\ln 2}{\lambda_1}

    An upper bound for how far apart a forecaster may be shown the data as it learns (the forcing interval), and for
    the lengths that backpropagation is truncated to. It is no advice to go so far: on the Lorenz system forcing at this
    interval fails, and a quarter of it is safe, as the table in ``docs/acting.md``, "Sizes and times", shows.

    Args:
        rate: A largest exponent, nats per step; or a spectrum, whose largest one it is. One per unit of time is first
            multiplied by the time of a step.

    Returns:
        Steps; infinite where the exponent is not above 0, as nothing grows; NaN where it is not known.

    Source: Mikhaeil, Monfared and Durstewitz, NeurIPS 2022, for its use as a forcing interval.

    Example:
        >>> round(predictability_time(0.9056 * 0.05), 1)  # the Lorenz system, a sample every 0.05 units of time
        15.3
    """
    value = float(rate.exponents[0]) if isinstance(rate, LyapunovSpectrum) else float(rate)
    if math.isnan(value):
        return math.nan
    return math.log(2) / value if value > 0 else math.inf
