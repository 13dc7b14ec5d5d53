"""What a spectrum says: a handful of numbers, each NaN where a partial spectrum cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lyapunov.engine.diagonal import DiagonalSpectrum
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum, SequenceGrowth

NEAR_ZERO = 0.05
"""Nats per step: an exponent closer to 0 than this remembers for more than 20 steps."""


def kaplan_yorke_dimension(exponents: Tensor | LyapunovSpectrum, *, complete: bool = True) -> float:
    r"""Dimension of the attractor as conjectured by Kaplan and Yorke.

    .. math:: D_{KY} = j + \frac{\lambda_1 + \dots + \lambda_j}{|\lambda_{j+1}|}

    with j the last index at which the running sum is not negative. A driven network that contracts has dimension 0,
    whatever it computes: this compares chaotic networks, and says nothing about the size that a task needs.

    Args:
        exponents: A spectrum, or exponents ``(K,)`` in any order and unit.
        complete: Whether a tensor holds all exponents of the state; a spectrum knows this itself.

    Returns:
        0 if even the first exponent is negative; the dimension of the state if the sum of all of them is not
        negative; NaN if the spectrum is partial and its sum not yet negative, or holds NaN.

    Source: Kaplan and Yorke, Lecture Notes in Mathematics 730 (1979) 204-227.

    Example:
        >>> round(kaplan_yorke_dimension(torch.tensor([0.906, 0.0, -14.572])), 3)  # the Lorenz system
        2.062
    """
    values, complete = _sorted_values(exponents, complete)
    total = 0.0
    for index, value in enumerate(values):
        if math.isnan(value):
            return math.nan
        if total + value < 0:
            return index + total / abs(value)
        total += value
    return float(len(values)) if complete else math.nan


def kolmogorov_sinai_entropy(exponents: Tensor | LyapunovSpectrum, *, complete: bool = True) -> float:
    """Sum of the positive exponents, nats per step: Pesin's entropy, in general Ruelle's upper bound of it.

    Args:
        exponents: A spectrum, or exponents ``(K,)`` in any order and unit.
        complete: Whether a tensor holds all exponents of the state; a spectrum knows this itself.

    Returns:
        The sum; NaN if the spectrum is partial and all of it positive, or holds NaN.

    Source: Pesin, Russ. Math. Surv. 32 (1977) 55-114; Ruelle, Bol. Soc. Bras. Mat. 9 (1978) 83-87.
    """
    values, complete = _sorted_values(exponents, complete)
    if any(map(math.isnan, values)) or not (complete or values[-1] <= 0):
        return math.nan
    return math.fsum(value for value in values if value > 0)


def spectrum_features(spectrum: LyapunovSpectrum) -> dict[str, float]:
    """The numbers a spectrum is summarised by, named as the callback logs them.

    Returns:
        ``max``, ``max_error``, ``max_stderr``, ``mean``, ``kolmogorov_sinai_entropy``, ``stability_margin`` (nats per
        step); ``gradient_gain``, ``gradient_growth`` (nats over a sequence); ``gradient_horizon`` (steps in which a
        gradient changes e-fold); ``near_zero_fraction``, ``unstable_fraction`` (shares of the state's dimension);
        ``kaplan_yorke_dimension``; ``trusted_fraction``, ``settled_fraction`` (shares of the exponents measured).
        Unknown values are NaN. What each means stands in :data:`lightning_lyapunov.names.QUANTITIES`.
    """
    values, complete = _sorted_values(spectrum, True)
    top, error, stderr = (float(each[0]) for each in (spectrum.exponents, spectrum.error, spectrum.stderr))
    if any(part.exponents[0].isnan() for part in spectrum.layers.values()):
        top = error = stderr = math.nan  # that of a layer that has overflowed may well be the largest
    total = sum(values) if complete else math.nan
    _, growth = known_growth(spectrum)
    return {
        "max": top,
        "max_error": error,
        "max_stderr": stderr,
        "settled_fraction": float(spectrum.settled.double().mean()),
        "gradient_gain": math.nan if growth is None else growth.gain,
        "gradient_growth": math.nan if growth is None else float(growth.log_singular_values[0]),
        "gradient_horizon": _horizon(growth),
        "stability_margin": -top - error,
        "near_zero_fraction": _share(spectrum, values, lambda v: abs(v) < NEAR_ZERO, known_from=-NEAR_ZERO),
        "unstable_fraction": _share(spectrum, values, lambda v: v > 0, known_from=0.0),
        "kaplan_yorke_dimension": kaplan_yorke_dimension(spectrum),
        "kolmogorov_sinai_entropy": kolmogorov_sinai_entropy(spectrum),
        "mean": (spectrum.volume_rate if math.isnan(total) else total) / spectrum.dimension,
        "trusted_fraction": float(spectrum.trusted.double().mean()),
    }


def known_growth(spectrum: LyapunovSpectrum) -> tuple[str, SequenceGrowth | None]:
    """The growth over a sequence of a spectrum, or where its layers have one each but together none, that of one.

    Returns:
        The name of the layer with the largest gain, empty where the growth is that of the whole; and the growth, None
        where there is none at all. A gain that is not known may well be the largest.
    """
    layers = {name: part.growth for name, part in spectrum.parts.items() if part.growth is not None}
    for stack, growth in spectrum.stacks.items():  # which takes the place of its layers
        layers = {name: one for name, one in layers.items() if not name.startswith(f"{stack}.")} | {stack: growth}
    if spectrum.growth is not None or not layers:
        return "", spectrum.growth
    return max(layers.items(), key=lambda layer: math.inf if math.isnan(layer[1].gain) else layer[1].gain)


def _horizon(growth: SequenceGrowth | None) -> float:
    """Steps in which a gradient changes e-fold at its pace over a sequence; NaN where growth is not known."""
    if growth is None or math.isnan(growth.gain):
        return math.nan
    # Python's max may return NaN or not, whichever comes first.
    gain = max(abs(growth.gain), 0.0 if math.isnan(growth.gain_error) else growth.gain_error)
    return float(growth.lengths.double().mean()) / gain if gain else math.inf


def _share(
    spectrum: LyapunovSpectrum, values: list[float], belongs: Callable[[float], bool], known_from: float
) -> float:
    """Share of the state's dimensions whose exponent belongs; known if those not measured lie below ``known_from``."""
    if any(map(math.isnan, values)):
        return math.nan
    if spectrum.complete or values[-1] <= known_from:
        return sum(map(belongs, values)) / spectrum.dimension
    if isinstance(spectrum, DiagonalSpectrum):  # of which all are known, though not all are listed
        return sum(map(belongs, spectrum.quantiles.tolist())) / len(spectrum.quantiles)
    parts = spectrum.parts.values()
    shares = [part.dimension * _share(part, _sorted_values(part, True)[0], belongs, known_from) for part in parts]
    return sum(shares) / spectrum.dimension if shares else math.nan


def _sorted_values(exponents: Tensor | LyapunovSpectrum, complete: bool) -> tuple[list[float], bool]:
    if isinstance(exponents, LyapunovSpectrum):
        complete, exponents = exponents.complete, exponents.exponents
    if exponents.dim() != 1 or len(exponents) == 0:
        raise ValueError(f"exponents must have shape (K,) with K >= 1; got {tuple(exponents.shape)}.")
    return torch.sort(exponents.detach().double().cpu(), descending=True).values.tolist(), complete
