"""Pictures of a run. They need matplotlib (``pip install 'lightning-lyapunov[plot]'``) and leave pyplot alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from lightning_lyapunov.history import Measurement

COLOURS = "RdBu_r"
"""Red above zero, blue below, white at zero: tells the two apart under every common colour blindness."""
CHAOS = "#b2182b"
"""The red of that map."""
FAINTEST = 0.25
"""Nats per step. The red end of the scale is never nearer to zero, or rounding would look like chaos."""


def spectrum_over_training(history: Iterable[Measurement], *, prefix: str = "lyapunov") -> Figure:
    """Draw how a spectrum moved while a network was trained.

    Above, the whole spectrum: one column for each measurement, the largest exponent at the top, black line where
    exponents change sign; grey is unknown. Below, the largest exponent with a band of two standard errors. The picture
    has a background of its own and can be read on light and dark pages.

    Args:
        history: Measurements of a run, oldest first: :attr:`LyapunovSpectrumCallback.history`.
        prefix: The callback's prefix, under which the standard errors are kept.

    Returns:
        A figure on a canvas without display: ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If nothing was measured.
    """
    measurements = list(history)
    if not measurements:
        raise ValueError("history must hold at least one measurement; got none.")
    steps = np.array([float(m.step) for m in measurements])
    edges = _edges(steps)
    spectra = _stacked([m.exponents.numpy() for m in measurements])
    stderr = np.array([m.metrics.get(f"{prefix}/max_stderr", math.nan) for m in measurements])

    figure = Figure(figsize=(8, 5.5), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    figure.suptitle("Lyapunov spectrum during training")
    _draw_spectra(above, edges, spectra)
    _draw_largest(below, steps, edges, spectra[0], stderr)
    below.set_xlabel("updates")
    below.set_xlim(edges[0], edges[-1])
    return figure


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
    axes.figure.colorbar(mesh, ax=axes, extend="both", label="nats per step", pad=0.02, ticks=ticks, format="%.2g")
    positive = (spectra > 0).sum(0)
    if positive.any():
        axes.stairs(positive + 0.5, edges, baseline=None, color="black", linewidth=1.2)
    axes.set_facecolor("0.75")
    axes.set_ylim(indices[-1], indices[0])
    axes.set_ylabel("exponent, largest first")


def _draw_largest(axes: Any, steps: np.ndarray, edges: np.ndarray, largest: np.ndarray, stderr: np.ndarray) -> None:
    largest = np.where(np.isfinite(largest), largest, math.nan)
    axes.axhline(0.0, color="0.3", linewidth=1)
    axes.fill_between(steps, largest - 2 * stderr, largest + 2 * stderr, color="#4393c3", alpha=0.4, linewidth=0)
    axes.errorbar(steps, largest, 2 * stderr, color="#2166ac", marker="o", markersize=3, linewidth=1.5)
    for chaotic, run in groupby(range(len(steps)), key=lambda i: largest[i] > 0):
        if chaotic:
            first, *_, last = [*run] * 2
            axes.axvspan(edges[first], edges[last + 1], color=CHAOS, alpha=0.12, linewidth=0)
            place = (edges[first] + edges[last + 1]) / 2
            axes.text(place, 0.95, "chaotic", color=CHAOS, ha="center", va="top", transform=axes.get_xaxis_transform())
    axes.margins(y=0.25)
    axes.set_ylabel("largest exponent\n(nats per step)")


def _stacked(spectra: list[np.ndarray]) -> np.ndarray:
    """Columns of one length, NaN where a measurement had fewer exponents."""
    stacked = np.full((max(map(len, spectra)), len(spectra)), math.nan)
    for column, spectrum in enumerate(spectra):
        stacked[: len(spectrum), column] = spectrum
    return stacked


def _edges(steps: np.ndarray) -> np.ndarray:
    """Where the columns meet: halfway between measurements."""
    if steps[0] == steps[-1]:
        return np.linspace(steps[0] - 0.5, steps[0] + 0.5, len(steps) + 1)
    return np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
