"""Where along a sequence memory is lost: how a push to the state grows or shrinks from its first step on."""

from __future__ import annotations

import math
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_lyapunov.figures.style import (
    FADES,
    GROWS,
    SMALL,
    NothingToShow,
    legend_below,
    measured,
    new_figure,
    panels,
    verdict_of,
    whole_numbers,
)
from lightning_lyapunov.reading.along import Stretches, most_of, stretches, where_lost
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict

_LINE = 56
"""Letters of a line of words above the picture."""


def growth_along(history: History, said: Verdict | None = None) -> Figure:
    """Draw how a push to the state before the first step fares along the sequence.

    On top its growth by block of steps at the newest measurement: the line is the mean over sequences, the grey band
    the spread between them, one standard deviation either way; red where it grows, blue where it fades. Thin, the first
    measurement that the same data drove. Below, how much of the push is left by where, on a logarithmic axis; grey is
    where half of the change falls, if that is in a quarter of the steps or less.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Raises:
        NothingToShow: If growth along the sequence was not measured.
    """
    measurements = measured(history)
    newest = measurements[-1]
    now = stretches(newest)
    if now is None:
        raise NothingToShow("history holds no growth along the sequence: older versions did not measure it.")
    first = next(m for m in measurements if m.source == newest.source)
    before = None if first is newest else stretches(first)
    figure = new_figure("Where memory is lost", said or verdict_of(measurements), height=4.9)
    told = fill(where_lost(newest), _LINE)
    above, below = panels(figure, [3, 2], left=0.8, top=0.42 + 0.16 * (1 + told.count("\n")))
    above.set_title(told, fontsize=SMALL, loc="left", x=-0.17)
    if before is not None:
        _thin(above, before, before.rates, label=f"update {first.step:,}")
    draw_rates(above, now, label=f"mean now, update {newest.step:,}")
    above.set_ylabel("growth (nats per step)")
    if before is not None:
        _draw_left(below, before, "#c96a1b", 1.2)
    _draw_left(below, now, "black", 2.0)
    below.axhline(0.0, color="0.3", linewidth=1)
    low, high = below.get_ylim()
    below.yaxis.set_major_locator(MaxNLocator(4, integer=high - low > 2))
    below.yaxis.set_major_formatter(lambda tick, _: power(tick))
    below.set_ylabel("left of a push")
    below.set_xlabel("step of the sequence")
    where = most_of(now)
    if where is not None:
        for axes in (above, below):
            axes.axvspan(where[0] - 1, where[1], color="0.5", alpha=0.18, linewidth=0, zorder=0)
    above.set_xlim(now.starts[0], now.ends[-1])
    legend_below(figure)
    return figure


def draw_rates(axes: Any, blocks: Stretches, label: str = "") -> None:
    """Draw growth by block of steps: mean, spread, and in colour what grows and what fades.

    Args:
        axes: Steps across, nats per step upwards.
        blocks: What is drawn.
        label: Of the mean in the legend; none if empty.
    """
    edges = np.array([blocks.starts[0], *blocks.ends], dtype=float)
    rates = np.where(np.isfinite(blocks.rates), blocks.rates, math.nan)
    spread = np.nan_to_num(np.array(blocks.spreads))
    if np.any(spread > 0):
        known = np.nan_to_num(rates)
        told = "spread between sequences" if label else None
        band: dict[str, Any] = {"fill": True, "color": "0.8", "linewidth": 0, "label": told}
        axes.stairs(known + spread, edges, baseline=known - spread, **band)
    for colour, part in ((GROWS, np.clip(rates, 0, None)), (FADES, np.clip(rates, None, 0))):
        axes.stairs(part, edges, fill=True, color=colour, alpha=0.55, linewidth=0)
    axes.stairs(rates, edges, baseline=None, color="black", linewidth=1.8, label=label or None)
    axes.axhline(0.0, color="0.3", linewidth=1)
    gone = np.flatnonzero(np.isneginf(blocks.rates))
    if len(gone):
        axes.axvspan(edges[gone[0]], edges[-1], facecolor="0.9", edgecolor="0.5", hatch="///", linewidth=0, zorder=0)
        axes.plot([], [], "s", color="0.7", label="nothing is left" if label else None)
    axes.xaxis.set_major_locator(whole_numbers())


def power(decades: float) -> str:
    """A power of ten as it is written at an axis.

    Example:
        >>> power(-12), power(0), power(-0.5)
        ('10⁻¹²', '1', '0.32')
    """
    if abs(decades) < 1.5 or decades != round(decades):
        return f"{10.0**decades:.2g}"
    return "10" + f"{decades:.0f}".translate(str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _thin(axes: Any, blocks: Stretches, values: list[float], label: str) -> None:
    shown = np.where(np.isfinite(values), values, math.nan)
    axes.stairs(shown, [blocks.starts[0], *blocks.ends], baseline=None, color="#c96a1b", linewidth=1.2, label=label)


def _draw_left(axes: Any, blocks: Stretches, colour: str, width: float) -> None:
    """What is left of a push after each block, in powers of ten."""
    left = np.cumsum([0.0, *blocks.changes]) / math.log(10)
    left = np.where(np.isfinite(left), left, math.nan)
    axes.plot([blocks.starts[0], *blocks.ends], left, color=colour, linewidth=width, zorder=3)
