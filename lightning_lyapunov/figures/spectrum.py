"""The spectrum as a curve, with its error band: as it is now, and as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_lyapunov.figures.style import (
    FADES,
    GROWS,
    PALE,
    alive,
    exponent_axis,
    legend_below,
    measured,
    new_figure,
    panels,
    verdict_of,
    whole_numbers,
    words,
)
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import Verdict

EARLIER = ("#fdd0a2", "#f5a55a", "#c96a1b")
"""From the first measurement on: the later the darker."""
_DOTS = 40
"""Exponents up to which each is a dot, and of those outside the precision law how many are at most."""


def spectrum_now(history: History, said: Verdict | None = None) -> Figure:
    """Draw the spectrum as last measured, and faintly how it was at up to three measurements before.

    The band is the error, the 95 % bar. Exponents that have not settled are pale, those outside the precision law
    hollow, on a dashed line; dead and unknown ones are counted in the legend.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Raises:
        ValueError: If nothing was measured.
    """
    measurements = measured(history)
    now = measurements[-1]
    places = np.unique(np.linspace(0, len(measurements) - 1, len(EARLIER) + 1).round().astype(int))[:-1]
    earlier = [measurements[place] for place in places]
    figure = new_figure("Lyapunov spectrum", said or verdict_of(measurements), height=4.0)
    (axes,) = panels(figure)
    _draw_now(axes, now)
    for measurement, colour in zip(earlier, EARLIER, strict=False):
        curve = alive(measurement.exponents)
        label = f"update {measurement.step:,}"
        if measurement.source != now.source:
            label += f"\n({measurement.source or 'other'} data)"
        axes.plot(_places(curve), curve, color=colour, linewidth=1.3, zorder=1.5, label=label)
    exponent_axis(axes, np.concatenate([_reach(m) for m in [now, *earlier]]))
    side: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    words(axes, (1, 0), "perturbations grow", xytext=(-5, 4), va="bottom", color=GROWS, **side)
    words(axes, (1, 0), "perturbations fade", xytext=(-5, -4), va="top", color=FADES, **side)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlim(0.5, max(len(m.exponents) for m in [now, *earlier]) + 0.5)
    count = len(now.exponents)
    partial = now.dimension is not None and count < now.dimension
    axes.set_xlabel("exponent, largest first" + (f" ({count} of {now.dimension} measured)" if partial else ""))
    for note in _notes(now):
        axes.plot([], [], linestyle="none", label=note)
    legend_below(figure)
    return figure


def _draw_now(axes: Any, now: Measurement) -> None:
    curve = alive(now.exponents)
    x = _places(curve)
    if now.error is not None:
        error = np.asarray(now.error, dtype=float)
        axes.fill_between(x, curve - error, curve + error, color=FADES, alpha=0.3, linewidth=0, label="95 % bar")
        if len(x) <= _DOTS:  # of a single exponent the band is a line that nobody sees
            axes.errorbar(x, curve, error, linestyle="none", color=FADES, alpha=0.6)
    trusted = np.ones(len(x), bool) if now.trusted is None else np.asarray(now.trusted, dtype=bool)
    bold: dict[str, Any] = {"color": FADES, "markersize": 4}
    dots = "o" if len(x) <= _DOTS else "none"
    label = f"now, update {now.step:,}"
    axes.plot(x, np.where(trusted, curve, math.nan), linewidth=2.4, marker=dots, label=label, **bold)
    if not trusted.all():
        axes.plot(x, curve, linewidth=1.2, linestyle="--", **bold)
        every = -(-int((~trusted).sum()) // _DOTS)
        hollow = x[~trusted][::every], curve[~trusted][::every]
        label = "beyond the precision:\nnot to be trusted"
        axes.plot(*hollow, linestyle="none", marker="o", markerfacecolor="white", label=label, **bold)
    pale = trusted & (np.zeros(len(x), bool) if now.settled is None else ~np.asarray(now.settled, dtype=bool))
    if pale.any():
        every = -(-int(pale.sum()) // _DOTS)
        light: dict[str, Any] = {"markerfacecolor": PALE, "markeredgecolor": FADES, "markersize": 5}
        axes.plot(x[pale][::every], curve[pale][::every], "o", label="not settled: no rate\nin the long run", **light)


def _reach(measurement: Measurement) -> np.ndarray:
    """All that the axis must hold: the exponents, and how far the largest may be off."""
    curve = alive(measurement.exponents)
    error = 0.0 if measurement.error is None else np.nan_to_num(np.asarray(measurement.error, dtype=float))
    return np.append(curve, (curve + error)[:1])


def _places(curve: np.ndarray) -> np.ndarray:
    return np.arange(len(curve)) + 1


def _notes(now: Measurement) -> list[str]:
    """Of what is not drawn."""
    exponents = np.asarray(now.exponents, dtype=float)
    unknown = int(np.isnan(exponents).sum())
    dead = len(exponents) - unknown - int(np.isfinite(alive(exponents)).sum())
    return [f"{count} {what}" for count, what in ((dead, "dead (−∞)"), (unknown, "unknown")) if count]
