"""What all pictures share: an empty figure without pyplot whose title is the verdict, sizes, colours, common axes.

A picture is read at 340 pixels on a phone: its sides are few inches, so that words of :data:`SMALL` points or more are
nine pixels there. It has a flat white ground and few colours, which a page may invert for the dark. Nothing in it
grades a run but the verdict: red and blue say what grows and what fades, whether or not that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lightning_lyapunov.reading.conditions import DEAD
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import SIGNS, WORDS, Verdict, Word, verdict

GROWS, FADES, QUIET, PALE = "#b2182b", "#2166ac", "0.4", "#c6dbef"
"""Above zero and below it, which every colour blindness tells apart; what is said beside the point; and not settled."""
VERDICTS: dict[Word, str] = {"healthy": "#1b7f5c", "watch": "#b8720a", "act": "#b2182b"}
"""Always beside the sign and the word."""
WIDTH, DPI = 4.6, 160
"""Inches, and pixels in each: sharp on a desktop."""
SMALL = 9.0
"""Points: the least that words have. The title has a little more."""
_BELOW = 0.5
"""Inches below the panels for numbers and what they are of."""
_WORD = 0.16
"""Share of an axis that the word of a verdict takes: on shorter stretches stands its sign alone."""
_LINEAR = 0.1
"""Nats per step. An axis of exponents is linear closer to zero and logarithmic beyond, and shows at least so much."""
FEW = 60
"""Points up to which each is a dot: more would run into each other."""
_TICKS = [sign * size for sign in (-1, 1) for size in (0.1, 0.3, 1, 3, 10, 30, 100)]


class NothingToShow(ValueError):
    """The history does not hold what a figure is about."""


def new_figure(title: str, said: Verdict | None = None, height: float = 3.5, width: float = WIDTH) -> Figure:
    """An empty figure on a canvas without display and a white ground of its own.

    Args:
        title: What it shows.
        said: The verdict on the run, which the title begins with.
        height: Inches.
        width: Inches.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if said is None:
        figure.suptitle(title, fontsize=11)
    else:
        text = f"{said.sign} {said.word} · {title}"
        figure.suptitle(text, fontsize=10.5, fontweight="bold", color=VERDICTS[said.word])
    return figure


def panels(
    figure: Figure, ratios: Sequence[float] = (1,), *, left: float = 0.72, right: float = 0.16, top: float = 0.36
) -> list[Any]:
    """Axes one below the other, which share what is across, each at its place.

    An engine that searches for places takes half as long again as drawing.

    Args:
        figure: Of :func:`new_figure`.
        ratios: Of their heights.
        left: Inches beside them for names and numbers.
        right: Inches.
        top: Inches above them.
    """
    figure.set_layout_engine(None)
    width, height = figure.get_size_inches()
    sides = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": _BELOW / height}
    figure.texts[0].set_y(1 - 0.08 / height)  # the title
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    figure.subplots_adjust(hspace=0.15, **sides)
    return list(axes[:, 0])


def legend_below(figure: Figure, columns: int = 2) -> None:
    """Write what each line is below all panels, which make room."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    first = labels[: -(-len(labels) // columns)]  # those below each other in the longest column
    lines = len(first) + sum(label.count("\n") for label in first)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(bottom=(_BELOW + 0.06 + 0.19 * lines) / height)
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.3}
    figure.legend(frameon=False, fontsize=SMALL, ncols=columns, labelspacing=0.25, **place)


def verdict_of(measurements: Sequence[Measurement]) -> Verdict | None:
    """The verdict on a run of these measurements."""
    return verdict(cast(History, measurements))


def draw_verdicts(
    axes: Any, edges: np.ndarray, measurements: Sequence[Measurement], said: Verdict | None, *, ground: bool = True
) -> None:
    """Say along the top what the verdict was at each measurement: the last one is that of the title.

    What was not healthy stands out on a tinted ground. Measurements that know none are left without.

    Args:
        axes: Over updates.
        edges: Where measurements meet (N + 1,).
        measurements: N of them.
        said: The verdict at the last.
        ground: Whether to tint it.
    """
    known = [measurement.metrics.get("verdict", math.nan) for measurement in measurements]
    if said is not None:
        known[-1] = float(said.number)
    told = [WORDS[round(number)] if 0 <= number < len(WORDS) else None for number in known]
    top = axes.get_xaxis_transform()
    for word, run in groupby(range(len(told)), key=told.__getitem__):
        if word is None:
            continue
        first, *_, last = [*run] * 2
        left, right = edges[first], edges[last + 1]
        share = (right - left) / (edges[-1] - edges[0])
        if ground and word != "healthy":
            axes.axvspan(left, right, color=VERDICTS[word], alpha=0.12, linewidth=0, zorder=0)
        axes.plot([left, right], [1, 1], color=VERDICTS[word], linewidth=4, transform=top, solid_capstyle="butt")
        text = f"{SIGNS[word]} {word}" if share >= _WORD else SIGNS[word] if share >= _WORD / 4 else ""
        place = {"xycoords": top, "ha": "center", "va": "top", "xytext": (0, -3), "textcoords": "offset points"}
        words(axes, ((left + right) / 2, 1.0), text, color=VERDICTS[word], fontsize=SMALL, zorder=5, **place)


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


def updates_axis(axes: Any, ticks: int = 7) -> None:
    """Make the x axis one of updates, with so many numbers at most."""
    axes.set_xlabel("updates")
    axes.xaxis.set_major_locator(whole_numbers(ticks))


def whole_numbers(ticks: int = 7) -> MaxNLocator:
    """Round ticks without decimals."""
    return MaxNLocator(ticks, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


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
    axes.set_ylabel("nats per step, stretched near 0")


def words(axes: Any, place: tuple[float, float], text: str, **options: Any) -> None:
    """Words that stay legible on whatever lies below, and that are no formula whatever they hold."""
    seam = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(text, place, **{"path_effects": seam, "parse_math": False, "fontsize": SMALL, **options})
