"""What the scorer predicted in the course of a run, beside what the run had reached by then."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_lyapunov.figures.style import (
    FADES,
    FEW,
    GROWS,
    QUIET,
    NothingToShow,
    dots,
    draw_otherwise,
    driven_otherwise,
    edges_of,
    measured,
    new_figure,
    updates_axis,
    updates_of,
)
from lightning_lyapunov.reading.conditions import FAMILIAR
from lightning_lyapunov.reading.history import History, Measurement

_ORANGE = "#d95f02"


def prediction_over_training(history: History) -> Figure:
    """Draw the final performance as predicted at each measurement, with its 80 % interval, and what was reached.

    Dashed, the baseline: the same prediction without the spectrum. Below, the probability of failure and the
    familiarity; hatched is where the network is unlike those that the scorer was fitted on. Hollow squares are
    predictions from spectra that other data drove than the newest.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.

    Raises:
        ValueError: If none of them was scored.
    """
    measurements = measured(history)
    updates = updates_of(measurements)
    names = ("performance", "performance_low", "performance_high", "baseline", "failure_probability", "familiarity")
    said = {name: np.array(history.values(f"aelle/{name}")) for name in names}
    if not np.isfinite(said["performance"]).any():
        raise NothingToShow("history holds no prediction: the callback needs a scorer.")
    reached = np.array([math.nan if m.reached is None else m.reached for m in measurements])

    figure = new_figure("Predicted final performance", height=4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_predicted(above, updates, said, reached, measurements)
    _draw_belief(below, updates, said, measurements)
    for axes, label in ((above, "unfamiliar: a guess"), (below, None)):
        _mark_guesses(axes, edges_of(updates), said["familiarity"] < FAMILIAR, label)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False)
    return figure


def _draw_predicted(
    axes: Any,
    updates: np.ndarray,
    said: dict[str, np.ndarray],
    reached: np.ndarray,
    measurements: list[Measurement],
) -> None:
    few = len(updates) <= FEW
    low, high, other = said["performance_low"], said["performance_high"], driven_otherwise(measurements)
    alike = {name: np.where(other, math.nan, values) for name, values in said.items()}
    ends = alike["performance_low"], alike["performance_high"]
    axes.fill_between(updates, *ends, color=FADES, alpha=0.2, linewidth=0, label="80 % interval")
    single = np.full(len(updates), few) | other  # of which the band is a line that nobody sees
    axes.vlines(updates[single], low[single], high[single], color=FADES, alpha=0.4)
    axes.plot(updates, alike["performance"], color=FADES, linewidth=2.2, label="predicted", **dots(len(updates)))
    draw_otherwise(axes, updates, said["performance"], FADES, measurements)
    axes.plot(updates, said["baseline"], color=QUIET, linestyle="--", label="predicted without\nthe spectrum")
    edge, size = ("black", 6) if few else (_ORANGE, 2)
    axes.plot(updates, reached, "D", color=_ORANGE, markeredgecolor=edge, markersize=size, label="reached so far")
    shown = np.concatenate([said["performance"], low, high, said["baseline"], reached])
    if np.nanmin(shown) >= 0 and np.nanmax(shown) <= 1:  # a skill; a scorer of one's own may speak of anything
        axes.set_ylim(-0.04, 1.04)
    axes.set_ylabel("performance")


def _draw_belief(axes: Any, updates: np.ndarray, said: dict[str, np.ndarray], measurements: list[Measurement]) -> None:
    other = driven_otherwise(measurements)
    for name, label, line in (
        ("failure_probability", "probability of failure", {"color": GROWS, "linewidth": 1.8}),
        ("familiarity", "familiarity", {"color": "#1b7837", "linestyle": "-."}),
    ):
        axes.plot(updates, np.where(other, math.nan, said[name]), label=label, **line, **dots(len(updates)))
        draw_otherwise(axes, updates, said[name], str(line["color"]), measurements, label=False)
    axes.set_ylim(-0.08, 1.08)
    axes.set_yticks([0, 0.5, 1])
    updates_axis(axes)


def _mark_guesses(axes: Any, edges: np.ndarray, is_guess: np.ndarray, label: str | None) -> None:
    for guess, run in groupby(range(len(is_guess)), key=lambda i: bool(is_guess[i])):
        if guess:
            first, *_, last = [*run] * 2
            grey: dict[str, Any] = {
                "facecolor": "0.9",
                "edgecolor": "0.65",
                "hatch": "///",
                "linewidth": 0,
                "zorder": 0,
            }
            axes.axvspan(edges[first], edges[last + 1], label=label, **grey)
            label = None  # one entry in the legend is enough
