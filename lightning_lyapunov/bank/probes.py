"""What is measured of a network: its exponents as a quantile function, the leading ones, and figures beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from lightning_lyapunov.aelle.features import FLOOR, SCALE, squash
from lightning_lyapunov.bank.tasks import Task
from lightning_lyapunov.capture.by_hand import lyapunov_spectrum
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum

LEVELS, LEADING = 64, 8
"""Levels of the quantile function; exponents from the largest on that are kept as they are."""
MEASURED = (
    "max_error", "median_error", "max_settled", "settled_fraction", "trusted_fraction", "mean",
    "gradient_growth", "gradient_growth_error", "gradient_gain", "gradient_gain_error",
)  # fmt: skip
"""Per measurement, beside the exponents: half-widths of 95 % bars of the largest exponent and of the median one,
whether the largest is settled, shares of settled and of trusted ones, mean (dead directions at -100), and, over the
sequence, the largest logarithmic singular value and the gain, in nats, with their bars."""
SEQUENCES = 8
"""Sequences of a probe, of the task's own length; measured as users measure, with the defaults of the engine."""
LONG_STEPS, LONG_SEQUENCES, LONG_TRANSIENT = 256, 4, 64
"""The long probe: steps at least, made of sequences of the task one after another, and steps that settle."""


def probe(task: Task, generator: Generator) -> Tensor:
    """Inputs ``(T, SEQUENCES, I)`` of the task's own length."""
    return task.sample(SEQUENCES, generator, held_out=True).inputs


def long_probe(task: Task, generator: Generator) -> Tensor:
    """Inputs of at least :data:`LONG_STEPS` steps, ``(T, LONG_SEQUENCES, I)``."""
    count = math.ceil(LONG_STEPS / task.steps)
    return torch.cat([task.sample(LONG_SEQUENCES, generator, held_out=True).inputs for _ in range(count)])


def measure(module: nn.Module, inputs: Tensor, transient: int | None = None) -> LyapunovSpectrum | None:
    """A network's spectrum on inputs ``(T, B, I)``; None where weights or states are no longer finite."""
    try:
        return lyapunov_spectrum(module, inputs, transient=transient)
    except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return None


class Measurements:
    """What was measured of N networks at C moments, filled in one by one; NaN where nothing was, or it failed.

    Attributes:
        quantiles: ``(N, C, LEVELS)`` nats per step, from the top down; ``-inf`` for dead directions.
        leading: ``(N, C, LEADING)`` the largest exponents; NaN beyond the dimension.
        measured: ``(N, C, len(MEASURED))``.
        layers: ``(N, C, L, 2)`` largest exponent and gain of each of L layers.
    """

    def __init__(self, networks: int, moments: int, layers: int) -> None:
        self.quantiles = torch.full((networks, moments, LEVELS), math.nan)
        self.leading = torch.full((networks, moments, LEADING), math.nan)
        self.measured = torch.full((networks, moments, len(MEASURED)), math.nan)
        self.layers = torch.full((networks, moments, layers, 2), math.nan)

    def put(self, n: int, moment: int, spectrum: LyapunovSpectrum | None) -> None:
        """Fill in what a spectrum says."""
        if spectrum is None:
            return
        exponents = spectrum.exponents
        self.quantiles[n, moment] = quantile_function(exponents)
        count = min(LEADING, len(exponents))
        self.leading[n, moment, :count] = exponents[:count].float()
        self.measured[n, moment] = torch.tensor(_figures(spectrum))
        layers = [(float(part.exponents[0]), part.gain) for part in spectrum.layers.values()]
        self.layers[n, moment] = torch.tensor(layers)


def _figures(spectrum: LyapunovSpectrum) -> list[float]:
    """:data:`MEASURED` of a spectrum."""
    growth, grown = spectrum.growth, len(spectrum.log_singular_values) > 0
    return [
        float(spectrum.error[0]),
        float(spectrum.error.nanmedian()),
        float(spectrum.settled[0]),
        float(spectrum.settled.double().mean()),
        float(spectrum.trusted.double().mean()),
        float(spectrum.exponents.clamp(min=FLOOR).mean()),
        float(growth.log_singular_values[0]) if growth and grown else math.nan,
        float(growth.error[0]) if growth and grown else math.nan,
        spectrum.gain,
        growth.gain_error if growth else math.nan,
    ]


def quantile_function(exponents: Tensor, levels: int = LEVELS) -> Tensor:
    """Whole spectra ``(..., D)`` read at the middles of ``levels`` equal shares of their directions, from the top down.

    Between two exponents it is linear on the scale that scorers see them on
    (:func:`lightning_lyapunov.aelle.features.squash`); between a live and a dead direction it falls to the floor of
    that scale, and where both are dead it is ``-inf``. NaN are left out, and levels below what is left are NaN.
    """
    values = exponents.double().nan_to_num(-math.inf, math.inf, -math.inf).sort(dim=-1, descending=True).values
    last = (~exponents.isnan()).sum(-1, keepdim=True) - 1
    wanted = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels * exponents.shape[-1] - 0.5
    low = torch.minimum(wanted.floor().clamp(min=0).long(), last).clamp(min=0)
    high = torch.minimum(low + 1, last.clamp(min=0))
    squashed = squash(values)
    at = torch.lerp(squashed.gather(-1, low), squashed.gather(-1, high), (wanted - low).clamp(0.0, 1.0))
    result = at.sign() * SCALE * at.abs().expm1()
    result = result.masked_fill(values.gather(-1, low).isneginf(), -math.inf)
    return result.masked_fill(wanted > last + 0.5, math.nan).float()


def halved(values: Tensor) -> Tensor:
    """As float16, finite where it was finite."""
    limit = torch.finfo(torch.float16).max
    return torch.where(values.isinf(), values, values.clamp(-limit, limit)).half()


def moments_of_long_probe(end: int) -> Sequence[int]:
    """Updates at which the long probe is measured."""
    return (0, 40, end)
