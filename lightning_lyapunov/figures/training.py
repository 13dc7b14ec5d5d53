"""How a spectrum moved while a network was trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from lightning_lyapunov.figures.style import (
    FADES,
    FEW,
    SMALL,
    dots,
    draw_otherwise,
    draw_verdicts,
    driven_otherwise,
    edges_of,
    measured,
    new_figure,
    panels,
    updates_axis,
    updates_of,
    verdict_of,
    whole_numbers,
)
from lightning_lyapunov.reading.conditions import has_settled, largest
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.verdict import Verdict

COLOURS = "RdBu_r"
"""Red above zero, blue below, white at zero: tells the two apart under every common colour blindness."""
FAINTEST = 0.25
"""Nats per step. The red end of the scale is never nearer to zero, or rounding would look like chaos."""


def spectrum_over_training(history: Iterable[Measurement], said: Verdict | None = None) -> Figure:
    """Draw how a spectrum moved while a network was trained.

    On top the largest exponent with its error, the 95 % bar, as a band, hollow where it has not settled, and along the
    edge what the verdict was at each measurement. Below, the whole spectrum: one column for each measurement, the
    largest exponent at the top, black line where exponents change sign; grey is unknown. What other data drove than the
    newest stands apart: a hollow square, and a hatched column. The picture has a background of its own and can be read
    on light and dark pages.

    Args:
        history: Measurements of a run, oldest first: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Returns:
        A figure on a canvas without display: ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If nothing was measured.
    """
    measurements = measured(history)
    updates = updates_of(measurements)
    edges = edges_of(updates)
    unsettled = np.array([m.settled is not None and not has_settled(m) for m in measurements])

    said = said or verdict_of(measurements)
    figure = new_figure("Lyapunov spectrum in training", said, height=4.4)
    above, below = panels(figure, [2, 3], right=0.95)
    exponents, errors = np.array([largest(m) for m in measurements]).T
    _draw_largest(above, updates, exponents, errors, unsettled, measurements)
    draw_verdicts(above, edges, measurements, said)
    _draw_spectra(below, edges, _stacked([m.exponents.numpy() for m in measurements]))
    for column in driven_otherwise(measurements).nonzero()[0]:
        below.axvspan(*edges[column : column + 2], facecolor="none", edgecolor="0.35", hatch="///", linewidth=0)
    updates_axis(below)
    below.set_xlim(edges[0], edges[-1])
    return figure


def _draw_largest(
    axes: Any,
    updates: np.ndarray,
    exponents: np.ndarray,
    errors: np.ndarray,
    unsettled: np.ndarray,
    measurements: list[Measurement],
) -> None:
    curve = np.where(np.isfinite(exponents), exponents, math.nan)
    other = driven_otherwise(measurements)
    line = np.where(other, math.nan, curve)
    axes.axhline(0.0, color="0.3", linewidth=1)
    axes.fill_between(updates, line - errors, line + errors, color="#4393c3", alpha=0.4, linewidth=0)
    axes.errorbar(updates, line, errors, color=FADES, linewidth=1.5, clip_on=False, **dots(len(updates)))
    draw_otherwise(axes, updates, curve, FADES, measurements, errors=errors)
    unsettled = unsettled & ~other
    if unsettled.any() and len(updates) <= FEW:
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5, "clip_on": False, "zorder": 4}
        axes.plot(updates[unsettled], curve[unsettled], "o", color=FADES, label="not settled", **hollow)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", frameon=False, fontsize=SMALL)
    axes.margins(y=0.3)
    axes.set_ylabel("largest exponent\n(nats per step)", fontsize=SMALL)


def _draw_spectra(axes: Any, edges: np.ndarray, spectra: np.ndarray) -> None:
    """Heat map of exponents ``(K, measurements)``; dead directions are as blue as it gets, unknown ones grey."""
    finite = spectra[np.isfinite(spectra)]
    lowest = min(float(np.percentile(finite, 5)), -FAINTEST) if len(finite) else -1.0
    highest = max(float(finite.max()), FAINTEST) if len(finite) else 1.0
    indices = np.arange(len(spectra) + 1) + 0.5
    shown = np.ma.masked_invalid(np.where(spectra == -math.inf, lowest, spectra))
    mesh = axes.pcolormesh(
        edges, indices, shown, cmap=COLOURS, norm=TwoSlopeNorm(0.0, lowest, highest), rasterized=True
    )
    ticks = [lowest, lowest / 2, 0.0, highest / 2, highest]  # matplotlib itself would crowd the steeper side of zero
    place = axes.get_position()
    beside = axes.figure.add_axes((place.x1 + 0.02, place.y0, 0.025, place.height))
    axes.figure.colorbar(mesh, cax=beside, extend="both", label="nats per step", ticks=ticks, format="{x:.2g}")
    positive = (spectra > 0).sum(0)
    if positive.any():
        axes.stairs(positive + 0.5, edges, baseline=None, color="black", linewidth=1.2)
    axes.set_facecolor("0.75")
    axes.set_ylim(indices[-1], indices[0])
    axes.yaxis.set_major_locator(whole_numbers())
    axes.set_ylabel("exponent, largest first")


def _stacked(spectra: list[np.ndarray]) -> np.ndarray:
    """Columns of one length, NaN where a measurement had fewer exponents."""
    stacked = np.full((max(map(len, spectra)), len(spectra)), math.nan)
    for column, spectrum in enumerate(spectra):
        stacked[: len(spectrum), column] = spectrum
    return stacked
