"""A run in one picture that can be read at 300 pixels: is it healthy, and what is there to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lightning_lyapunov.figures.along import draw_rates, power
from lightning_lyapunov.figures.prediction import ORANGE
from lightning_lyapunov.figures.style import (
    DPI,
    FADES,
    FEW,
    GROWS,
    QUIET,
    VERDICTS,
    dots,
    draw_verdicts,
    driven_otherwise,
    edges_of,
    measured,
    updates_of,
    verdict_of,
    whole_numbers,
    words,
)
from lightning_lyapunov.reading.along import stretches
from lightning_lyapunov.reading.conditions import FAMILIAR, LOST, MILD, gain, largest, score
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import Verdict

WIDTH = 3.6
"""Inches, in which :data:`TEXT` is ten pixels of 300."""
TEXT, TITLE = 9.0, 17.0
"""Points of the words and of the verdict."""
_LETTERS, _LINES = 46, 4
"""Of a line of words, and such lines at most."""
_LINE, _HEAD, _NAME, _PANEL, _TICKS, _GAP = 0.16, 0.4, 0.22, 0.78, 0.36, 0.06
"""Inches: of a line of words, the verdict, the name of a panel, the panel, what is below it, and between parts."""
_LEFT, _RIGHT = 0.5, 0.2
_LAYER = 16
"""Letters of a layer's name; of longer ones only the end is written."""
STRETCHED = 14
"""Powers of ten beyond which an axis is stretched around 1."""
_DECADE = math.log(10)
REACHED = "#b34700"
"""What was reached, dark enough for words."""


def overview(history: History, said: Verdict | None = None) -> Figure:
    """Draw a run so that a glance tells whether it is healthy and what to do.

    On top the verdict, its reason, and what to do. Below, as far as each is known: what a gradient is multiplied by
    over a sequence in the course of training, with its error, the 95 % bar, as a band, and what the verdict was along
    the edge (the largest exponent where growth was not measured); the final skill as predicted, with its 80 % interval,
    and what was reached; and growth along the sequence now: see
    :func:`~lightning_lyapunov.figures.along.growth_along`.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Raises:
        NothingToShow: If nothing was measured.
    """
    measurements = measured(history)
    said = said or verdict_of(measurements)
    panels = [_over_training(measurements, said)]
    if np.isfinite(history.values("aelle/performance")).any():
        panels.append(_skill(measurements))
    blocks = stretches(measurements[-1])
    if blocks is not None:
        layer = blocks.layer if len(blocks.layer) <= _LAYER else f"…{blocks.layer[1 - _LAYER :]}"
        name = f"Growth in {layer} (nats per step)" if layer else "Growth of a push (nats per step)"
        panels.append(Panel(name, "step of the sequence", lambda axes: draw_rates(axes, blocks)))
    return _composed(measurements[-1], said, panels)


class Panel(NamedTuple):
    """A part of the picture."""

    name: str
    along: str
    """What is across."""
    draw: Callable[[Any], None]


def _composed(newest: Measurement, said: Verdict | None, panels: list[Panel]) -> Figure:
    """Words on top and panels below them, each at its place: no engine that would have to search for one."""
    reason = _wrapped(said.text if said else "")
    advice = _wrapped(f"→ {said.advice}" if said and said.advice else "")
    top = _GAP + _HEAD + _LINE * (len(reason) + len(advice)) + _GAP
    # Of those that share an axis the last one names it.
    is_last = [panel.along != below.along for panel, below in pairwise(panels)] + [True]
    height = top + len(panels) * (_NAME + _PANEL + _GAP) + sum(is_last) * _TICKS
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    colour = VERDICTS[said.word] if said else QUIET
    whole: dict[str, Any] = {"transform": figure.transFigure, "linewidth": 0}
    figure.add_artist(Rectangle((0, 1 - top / height), 1, top / height, facecolor=colour, alpha=0.1, **whole))
    figure.add_artist(Rectangle((0, 1 - top / height), 0.018, top / height, facecolor=colour, **whole))

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x, 1 - y / height, text, parse_math=False, va="top", **{"fontsize": TEXT, **options})

    head = f"{said.sign} {said.word}" if said else "nothing to tell"
    write(0.05, _GAP + 0.04, head, fontsize=TITLE, fontweight="bold", color=colour)
    write(0.97, _GAP + 0.1, f"update {newest.step:,}", color=QUIET, ha="right")
    write(0.05, _GAP + _HEAD, "\n".join(reason), linespacing=1.2)
    write(0.05, _GAP + _HEAD + _LINE * len(reason), "\n".join(advice), linespacing=1.2, fontweight="bold")
    y = top
    for panel, is_labelled in zip(panels, is_last, strict=True):
        write(0.05, y + 0.05, panel.name, fontweight="bold")
        y += _NAME + _PANEL
        place = (_LEFT / WIDTH, 1 - y / height, 1 - (_LEFT + _RIGHT) / WIDTH, _PANEL / height)
        axes = figure.add_axes(place)
        panel.draw(axes)
        axes.xaxis.set_major_locator(whole_numbers(5))
        axes.tick_params(labelsize=TEXT, pad=2, length=2.5, labelbottom=is_labelled)
        if is_labelled:
            axes.set_xlabel(panel.along, fontsize=TEXT, labelpad=1)
        y += _GAP + _TICKS * is_labelled
    return figure


def _wrapped(text: str) -> list[str]:
    """Lines, the last of which ends in dots where there would be more."""
    lines = wrap(text.replace("`", ""), _LETTERS)
    if len(lines) <= _LINES:
        return lines
    return [*lines[: _LINES - 1], f"{lines[_LINES - 1][: _LETTERS - 1].rstrip(' ,;:.')}…"]


def _over_training(measurements: list[Measurement], said: Verdict | None) -> Panel:
    """What a gradient is multiplied by, or the largest exponent, over updates."""
    figures = np.array([gain(measurement) for measurement in measurements]).T / _DECADE
    is_gain = bool((~np.isnan(figures[0])).any())
    if not is_gain:
        figures = np.array([largest(measurement) for measurement in measurements]).T
    values, errors = figures
    shown = np.where(np.isfinite(values), values, math.nan)
    ends = np.concatenate([shown - np.nan_to_num(errors), shown + np.nan_to_num(errors)])
    low, high = np.min(ends, initial=-1.0, where=~np.isnan(ends)), np.max(ends, initial=1.0, where=~np.isnan(ends))
    if not is_gain:
        low, high = min(low, -0.1) if low > -1 else low, high
    is_stretched = is_gain and bool(high - low > STRETCHED)
    name = "A gradient over a sequence is multiplied by" if is_gain else "Largest exponent (nats per step)"

    def draw(axes: Any) -> None:
        updates, edges = updates_of(measurements), edges_of(updates_of(measurements))
        other = driven_otherwise(measurements)
        line = np.where(other, math.nan, shown)
        if is_stretched:
            axes.set_yscale("symlog", linthresh=1.0)
        axes.set_xlim(edges[0], edges[-1])
        if is_stretched:
            axes.set_ylim(1.6 * low, 4 * high)
        else:
            axes.set_ylim(low - 0.12 * (high - low), high + 0.35 * (high - low))
        axes.axhline(0.0, color="0.2", linewidth=1.2)
        if is_gain:
            _regions(axes)
        axes.fill_between(updates, line - errors, line + errors, color="#4393c3", alpha=0.4, linewidth=0)
        axes.errorbar(updates, line, errors, color=FADES, linewidth=1.8, clip_on=False, **dots(len(updates)))
        axes.plot(updates[other], shown[other], "s", color=FADES, markerfacecolor="white", markersize=4, clip_on=False)
        dead = updates[np.isneginf(values)]
        axes.plot(dead, np.full(len(dead), 0.06), "v", color="black", transform=axes.get_xaxis_transform())
        draw_verdicts(axes, edges, measurements, said, ground=False)
        _ticks(axes, is_gain, is_stretched)

    return Panel(name.replace("multiplied by", "× (stretched)") if is_stretched else name, "updates", draw)


def _regions(axes: Any) -> None:
    """Faintly, where gradients grow by more than training lives with, and where nothing is carried."""
    low, high = axes.get_ylim()
    if high > MILD / _DECADE:
        axes.axhspan(MILD / _DECADE, high, color=GROWS, alpha=0.08, linewidth=0, zorder=0)
    if low < -LOST / _DECADE:
        axes.axhspan(low, -LOST / _DECADE, color=FADES, alpha=0.12, linewidth=0, zorder=0)


def _ticks(axes: Any, is_gain: bool, is_stretched: bool) -> None:
    low, high = axes.get_ylim()
    if is_stretched:
        every = [sign * 10**k for k in range(6) for sign in (1, -1)]
        ticks = [0, *(tick for tick in every if low <= tick <= high)]
        axes.set_yticks(ticks)
        axes.set_yticks([], minor=True)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=is_gain, min_n_ticks=2))
    if is_gain:
        axes.yaxis.set_major_formatter(lambda tick, _: power(tick))


def _skill(measurements: list[Measurement]) -> Panel:
    """The final skill as predicted, with its interval, and what was reached."""
    names = ("performance", "performance_low", "performance_high")
    value, low, high = (np.array([score(m, name) for m in measurements]) for name in names)
    reached = np.array([math.nan if m.reached is None else m.reached for m in measurements])
    is_guess = score(measurements[-1], "familiarity") < FAMILIAR
    name = "Final skill, predicted" + (" (a guess)" if is_guess else " and 80 % interval")

    def draw(axes: Any) -> None:
        updates = updates_of(measurements)
        edges = edges_of(updates)
        axes.fill_between(updates, low, high, color=FADES, alpha=0.25, linewidth=0)
        if len(updates) <= FEW:
            axes.vlines(updates, low, high, color=FADES, alpha=0.4)
        axes.plot(updates, value, color=FADES, linewidth=1.8, clip_on=False, **dots(len(updates)))
        axes.plot(updates, reached, "D", color=ORANGE, markeredgecolor="black", markersize=4, clip_on=False)
        shown = np.concatenate([value, low, high, reached])
        if np.nanmin(shown) >= 0 and np.nanmax(shown) <= 1:
            axes.set_ylim(0, 1)
        axes.set_xlim(edges[0], edges[-1])
        if np.isfinite(reached).any():
            is_high = np.nanmean([reached[-1], value[-1]]) > np.mean(axes.get_ylim())
            y, side = (0.03, "bottom") if is_high else (0.97, "top")
            place = {"xycoords": "axes fraction", "ha": "right", "va": side}
            words(axes, (0.985, y), "◆ reached", color=REACHED, fontsize=TEXT, **place)
        axes.yaxis.set_major_locator(MaxNLocator(2))

    return Panel(name, "updates", draw)
