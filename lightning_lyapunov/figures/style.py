"""What all pictures share: an empty figure without pyplot, colours, and the axis that exponents are read on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lightning_lyapunov.reading.conditions import DEAD
from lightning_lyapunov.reading.history import Measurement

GROWS, FADES, QUIET, PALE = "#b2182b", "#2166ac", "0.4", "#c6dbef"
"""Above zero and below it, which every colour blindness tells apart; what is said beside the point; and not settled."""
_LINEAR = 0.1
"""Nats per step. An axis of exponents is linear closer to zero and logarithmic beyond, and shows at least so much."""
FEW = 60
"""Points up to which each is a dot: more would run into each other."""
_TICKS = [sign * size for sign in (-1, 1) for size in (0.1, 0.3, 1, 3, 10, 30, 100)]


class NothingToShow(ValueError):
    """The history does not hold what a figure is about."""


def new_figure(title: str, width: float = 6.8, height: float = 4.2) -> Figure:
    """An empty figure, its sides in inches, on a canvas without display and a white ground of its own."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def measured(history: Iterable[Measurement]) -> list[Measurement]:
    """The measurements, of which there must be one."""
    measurements = list(history)
    if not measurements:
        raise NothingToShow("history must hold at least one measurement; got none.")
    return measurements


def driven_otherwise(measurements: list[Measurement]) -> np.ndarray:
    """Which of them other data drove than the newest, which they must not be compared with."""
    return np.array([m.source != measurements[-1].source for m in measurements])


def draw_otherwise(
    axes: Any,
    updates: np.ndarray,
    values: np.ndarray,
    colour: str,
    measurements: list[Measurement],
    *,
    errors: np.ndarray | None = None,
    label: bool = True,
) -> None:
    """Draw what other data drove as hollow squares, beside the line of what is comparable.

    Args:
        axes: Where to.
        updates: Of all measurements (N,).
        values: Of all measurements (N,).
        colour: Of the line.
        measurements: N of them.
        errors: Of the values (N,), half-widths; without bars if None.
        label: Whether the legend is to say it.
    """
    other = driven_otherwise(measurements)
    hollow: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5, "clip_on": False, "zorder": 4}
    for source in dict.fromkeys(m.source for m, is_other in zip(measurements, other, strict=True) if is_other):
        of_it = np.array([m.source == source for m in measurements])
        words = f"driven by {source} data" if source else "driven by other data"
        if errors is not None:
            axes.errorbar(updates[of_it], values[of_it], errors[of_it], color=colour, linestyle="none", clip_on=False)
        axes.plot(updates[of_it], values[of_it], "s", color=colour, label=words if label else None, **hollow)


def updates_of(measurements: list[Measurement]) -> np.ndarray:
    """Updates made before each."""
    return np.array([float(m.step) for m in measurements])


def edges_of(updates: np.ndarray) -> np.ndarray:
    """Where measurements meet: halfway between them."""
    if updates[0] == updates[-1]:
        return np.linspace(updates[0] - 0.5, updates[0] + 0.5, len(updates) + 1)
    return np.concatenate([updates[:1], (updates[1:] + updates[:-1]) / 2, updates[-1:]])


def updates_axis(axes: Any) -> None:
    """Make the x axis one of updates."""
    axes.set_xlabel("updates")
    axes.xaxis.set_major_locator(whole_numbers())


def whole_numbers() -> MaxNLocator:
    """Round ticks without decimals."""
    return MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def dots(points: int) -> dict[str, Any]:
    """How a line of so many points is marked."""
    return {"marker": "o" if points <= FEW else "none", "markersize": 3}


def alive(exponents: Any) -> np.ndarray:
    """Exponents in float64, those dead or unknown as NaN, which no line is drawn through."""
    exponents = np.asarray(exponents, dtype=float)
    return np.where(np.isfinite(exponents) & (exponents > DEAD), exponents, math.nan)


def exponent_axis(axes: Any, shown: np.ndarray) -> None:
    """Make the y axis one of exponents: logarithmic either way, linear around zero, which is marked.

    Exponents span five orders of magnitude around a zero that matters: a linear axis shows either end, not both.
    """
    shown = shown[np.isfinite(shown)]
    bottom = 1.4 * min(float(shown.min(initial=0.0)), -_LINEAR)
    top = 1.4 * max(float(shown.max(initial=0.0)), _LINEAR)
    axes.set_yscale("symlog", linthresh=_LINEAR)
    ticks = [tick for tick in [0.0, *_TICKS] if bottom < tick < top]
    axes.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(bottom, top)
    axes.grid(axis="y", color="0.92")
    axes.axhspan(0.0, top, color=GROWS, alpha=0.07, linewidth=0)
    axes.axhline(0.0, color="0.2", linewidth=1.2)
    axes.set_ylabel("nats per step")


def words(axes: Any, place: tuple[float, float], text: str, **options: Any) -> None:
    """Words that stay legible on whatever lies below, and that are no formula whatever they hold."""
    seam = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, place, **{"path_effects": seam, "parse_math": False, "fontsize": 9, **options})
