"""Pictures that an object draws of itself: of one measurement, or of the run that it is."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.figures.depth import depth_over_training
from lightning_lyapunov.figures.overview import overview
from lightning_lyapunov.figures.spectrum import spectrum_now
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.features import spectrum_features
from lightning_lyapunov.reading.history import History, Measurement


def spectrum_alone(spectrum: LyapunovSpectrum, updates: int | None = None) -> Figure:
    """Draw a spectrum as a curve with its error.

    Args:
        spectrum: As measured.
        updates: After how many it was; not said if None.
    """
    history = History()
    metrics = {name: value for name, value in spectrum_features(spectrum).items() if math.isfinite(value)}
    history.append(Measurement.of(spectrum, step=updates or 0, metrics=metrics))
    figure = spectrum_now(history)
    if updates is None:
        # A verdict is on a run, and this is of none.
        figure.suptitle("Lyapunov spectrum", fontsize=11, fontweight="normal", color="black")
        for text in figure.legends[0].get_texts():
            text.set_text(text.get_text().partition(", update")[0])
    return figure


def depth_alone(spectrum: DepthSpectrum) -> Figure:
    """Draw what each block of a chain does to a gradient."""
    return depth_over_training([DepthMeasurement.of(spectrum)])


def run_alone(history: History[Any]) -> Figure:
    """Draw a run: its overview, or of one across depth its blocks.

    Raises:
        NothingToShow: If nothing was measured.
    """
    if history.kind is DepthMeasurement:
        return depth_over_training(history)
    return overview(history)
