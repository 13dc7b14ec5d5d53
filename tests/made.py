"""Spectra and measurements made by hand, whose figures are known because they were put in."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum, SequenceGrowth
from lightning_lyapunov.reading.history import History, Measurement


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def growth(
    gains: Sequence[float], most: Sequence[float] | None = None, steps: int | Sequence[int] = 64
) -> SequenceGrowth:
    """Growth of one sequence for each gain, with one ln σ each, by default a nat above the gain."""
    largest = [gain + 1 for gain in gains] if most is None else list(most)
    lengths = [steps] * len(gains) if isinstance(steps, int) else list(steps)
    return SequenceGrowth(numbers(*largest).unsqueeze(1), numbers(*gains), torch.tensor(lengths))


def spectrum(*values: float, **options: Any) -> LyapunovSpectrum:
    """Exponents in the order given, each with a standard error of 0.01 and an error of 0.03, all of them settled."""
    exponents = numbers(*values)
    measured: dict[str, Any] = {
        "exponents": exponents,
        "stderr": torch.full_like(exponents, 0.01),
        "error": torch.full_like(exponents, 0.03),
        "per_sequence": exponents.expand(2, -1),
        "trusted": exponents.isfinite(),
        "settled": exponents.isfinite(),
        "dimension": len(values),
        "steps": 100,
        "sequences": 2,
        "transient": 0,
        "interval": 1.0,
        "dtype": torch.float64,
        "driven": True,
        "volume_rate": float(exponents.sum()),
    }
    return LyapunovSpectrum(**measured | options)


def measured(
    top: float,
    error: float = 0.02,
    *,
    rest: Sequence[float] = (-0.5, -1.0),
    settled: bool | None = True,
    gain: float | None = None,
    gain_error: float = 0.1,
    most: float | None = None,
    scores: dict[str, float] | None = None,
    **more: Any,
) -> Measurement:
    """A measurement over sequences of 64 steps.

    Where no gain is given it is that of a map that does the same at every step, 64 times the largest exponent; the
    largest ln σ is a nat above. NaN, with ``settled=None``: as an older version would have kept it.
    """
    exponents = torch.tensor([top, *rest])
    options: dict[str, Any] = {"step": 40, "epoch": 3, "length": 64} | more
    options["metrics"] = {f"aelle/{name}": value for name, value in (scores or {}).items()} | options.get("metrics", {})
    gain = 64 * top if gain is None else gain
    if not math.isnan(gain):
        known = {"gain": gain, "gain_error": gain_error, "growth_steps": float(min(64, options["length"] or 64))}
        known |= {"growth": torch.tensor([gain + 1 if most is None else most]), "growth_error": torch.tensor([0.1])}
        options = known | options
    return Measurement(
        exponents=exponents,
        stderr=torch.full_like(exponents, error / 2),
        error=torch.full_like(exponents, error),
        settled=None if settled is None else torch.full((len(exponents),), settled),
        dimension=len(exponents),
        **options,
    )


def of_an_older_version(top: float, stderr: float = 0.01, **more: Any) -> Measurement:
    """Neither growth nor whether exponents have settled is known."""
    return measured(top, 2 * stderr, settled=None, gain=math.nan, **more)


def layer(largest: float, gain: float = math.nan, error: float = 0.02, settled: bool = True) -> list[float]:
    """What a measurement keeps of a layer."""
    return [largest, error, float(settled), gain, 0.1, gain + 1]


def history(*measurements: Measurement, prefix: str = "lyapunov") -> History:
    made = History(prefix)
    for measurement in measurements:
        made.append(measurement)
    return made


def course(*tops: float, error: float = 0.02, **options: Any) -> History:
    """A run whose largest exponent went so: one measurement before the first update, then one an epoch of ten."""
    return history(*(measured(t, error, step=10 * i, epoch=max(0, i - 1), **options) for i, t in enumerate(tops)))


CONCERNS = (
    *("saturated", "collapsed", "exploding", "may explode", "chaotic", "growing", "forgetting"),
    *("predicted_to_fail", "layer_explodes", "layer_died"),
)


def rates_of(right: int = 90, networks: int = 100, **more: Any) -> dict[str, Any]:
    """A file of rates by which every concern was right in so many of some networks, at any time, however long.

    The rules of the stopper are as they stand, from the first update on.
    """
    stops = [
        *([condition, skill, 0, 2.0] for condition in ("chaotic",) for skill in ("", "at chance")),
        *(["collapsed", skill, 0, 40.0] for skill in ("", "at chance")),
        *(["converged", skill, 0, 0.0] for skill in ("", "known")),
        *(["predicted_to_fail", skill, 0, 0.9] for skill in ("", "at chance")),
    ]
    counts = [networks, right, networks - right, 0, 0.5]
    rates = {state: {group: {"0": counts} for group in ("all", "at chance", "learning")} for state in CONCERNS}
    return {"until": 10**9, "ends": [10**9], "longest": 10**9, "moments": [0], "told": rates, "stops": stops} | more
