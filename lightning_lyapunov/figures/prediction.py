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
    legend_below,
    measured,
    new_figure,
    panels,
    updates_axis,
    updates_of,
    verdict_of,
)
from lightning_lyapunov.reading.conditions import FAMILIAR
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import Verdict

ORANGE = "#d95f02"
"""What was reached."""


def prediction_over_training(history: History, said: Verdict | None = None) -> Figure:
    """Draw the final performance as predicted at each measurement, with its 80 % interval, and what was reached.

    Dashed, the baseline: the same prediction without the spectrum. Below, the probability of failure and the
    familiarity; hatched is where the network is unlike those that the scorer was fitted on. Hollow squares are
    predictions from spectra that other data drove than the newest.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Raises:
        ValueError: If none of them was scored.
    """
    measurements = measured(history)
    updates = updates_of(measurements)
    names = ("performance", "performance_low", "performance_high", "baseline", "failure_probability", "familiarity")
    scores = {name: np.array(history.values(f"aelle/{name}")) for name in names}
    if not np.isfinite(scores["performance"]).any():
        raise NothingToShow("history holds no prediction: the callback needs a scorer.")
    reached = np.array([math.nan if m.reached is None else m.reached for m in measurements])

    figure = new_figure("Predicted final performance", said or verdict_of(measurements), height=4.4)
    above, below = panels(figure, [3, 1.2], left=0.6)
    _draw_predicted(above, updates, scores, reached, measurements)
    _draw_belief(below, updates, scores, measurements)
    for axes, label in ((above, "unfamiliar: a guess"), (below, None)):
        _mark_guesses(axes, edges_of(updates), scores["familiarity"] < FAMILIAR, label)
    legend_below(figure)
    return figure


def _draw_predicted(
    axes: Any,
    updates: np.ndarray,
    scores: dict[str, np.ndarray],
    reached: np.ndarray,
    measurements: list[Measurement],
) -> None:
    few = len(updates) <= FEW
    low, high, other = scores["performance_low"], scores["performance_high"], driven_otherwise(measurements)
    alike = {name: np.where(other, math.nan, values) for name, values in scores.items()}
    ends = alike["performance_low"], alike["performance_high"]
    axes.fill_between(updates, *ends, color=FADES, alpha=0.2, linewidth=0, label="80 % interval")
    single = np.full(len(updates), few) | other  # of which the band is a line that nobody sees
    axes.vlines(updates[single], low[single], high[single], color=FADES, alpha=0.4)
    axes.plot(updates, alike["performance"], color=FADES, linewidth=2.2, label="predicted", **dots(len(updates)))
    draw_otherwise(axes, updates, scores["performance"], FADES, measurements)
    axes.plot(updates, scores["baseline"], color=QUIET, linestyle="--", label="without the spectrum")
    edge, size = ("black", 6) if few else (ORANGE, 2)
    axes.plot(updates, reached, "D", color=ORANGE, markeredgecolor=edge, markersize=size, label="reached so far")
    shown = np.concatenate([scores["performance"], low, high, scores["baseline"], reached])
    if np.nanmin(shown) >= 0 and np.nanmax(shown) <= 1:  # a skill; a scorer of one's own may speak of anything
        axes.set_ylim(-0.04, 1.04)
    axes.set_ylabel("performance")


def _draw_belief(
    axes: Any, updates: np.ndarray, scores: dict[str, np.ndarray], measurements: list[Measurement]
) -> None:
    other = driven_otherwise(measurements)
    for name, label, line in (
        ("failure_probability", "probability of failure", {"color": GROWS, "linewidth": 1.8}),
        ("familiarity", "familiarity", {"color": FADES, "linestyle": "-."}),
    ):
        axes.plot(updates, np.where(other, math.nan, scores[name]), label=label, **line, **dots(len(updates)))
        draw_otherwise(axes, updates, scores[name], str(line["color"]), measurements, label=False)
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
