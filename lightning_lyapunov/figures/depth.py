"""What each block of a chain does to a gradient: while a network was trained, and now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby, takewhile
from typing import Any

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lightning_lyapunov.figures.style import (
    FADES,
    GROWS,
    QUIET,
    SMALL,
    NothingToShow,
    dots,
    edges_of,
    new_figure,
    updates_axis,
    words,
)
from lightning_lyapunov.reading.depth_conditions import SEVERED, THRESHOLDS, TRAINED, idle, severed, unchanging
from lightning_lyapunov.reading.depth_history import DepthMeasurement, evenly
from lightning_lyapunov.reading.depth_rules import verdict
from lightning_lyapunov.reading.words import factor

COLOURS = "RdBu_r"
"""Red above zero, blue below, white at zero: tells the two apart under every common colour blindness."""
FAINTEST = 0.5
"""Nats. The ends of the scale are never nearer to zero, or every difference would look like a fault."""
LABELS = 24
"""Blocks that are named; of more, as many evenly chosen."""
LONGEST = 18
"""Letters of a block's name; of longer ones only the end is written."""
LIMITS = (-7.0, 12.0)
"""Nats that an axis of the largest growth shows at least: all thresholds, each time at the same place."""
_ROW, _LEAST, _MOST = 0.18, 1.6, 4.6
"""Inches of a block's row, and of all of them at least and at most."""
_DEAD, _CUT = "changes nothing of what passes", "lets nothing pass"
_MARKS: dict[str, dict[str, Any]] = {
    _DEAD: {"facecolor": "0.88", "edgecolor": "0.45", "hatch": "/////", "linewidth": 0},
    _CUT: {"facecolor": "black", "linewidth": 0},
}
"""How blocks that are dead are marked."""


def figures_of_depth(history: Iterable[DepthMeasurement]) -> dict[str, Figure]:
    """Draw every figure that a history across depth holds the data for.

    Args:
        history: Measurements of a run: :attr:`DepthSpectrumCallback.history`.

    Returns:
        By name: ``depth`` over training, and of several measurements ``blocks`` now; none of an empty history.
    """
    measurements = list(history)
    if not measurements:
        return {}
    figures = {"depth": depth_over_training(measurements)}
    if len(_alike(measurements)) > 1:
        figures["blocks"] = blocks_now(measurements)
    return figures


def depth_over_training(history: Iterable[DepthMeasurement]) -> Figure:
    """Draw what a chain, and each block of it, does to a gradient in the course of a run.

    On top the largest growth from output to input with its error, the 95 % bar, as a band, and the gain in a typical
    direction where input and output are of one width; the shaded parts are those in which few networks learnt. Below,
    a row for each block with its name, red where a gradient grows in it, blue where it fades, hatched where the block
    changes nothing of what passes, black where nothing passes; at the right its gain now. Of a single measurement
    :func:`blocks_now` is drawn. Measurements of other blocks than the newest are left out.

    Args:
        history: Measurements of a run: :attr:`DepthSpectrumCallback.history`.

    Raises:
        NothingToShow: If nothing was measured.
    """
    measurements = _alike(list(history))
    if len(measurements) == 1:
        return blocks_now(measurements)
    newest = measurements[-1]
    rows = _height(newest)
    figure = new_figure("What blocks do to a gradient", verdict(measurements), height=3.4 + rows)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.9, rows])
    updates = np.array([float(m.step) for m in measurements])
    edges = edges_of(updates)
    _draw_totals(above, updates, measurements)
    _draw_blocks(below, edges, measurements)
    updates_axis(below)
    below.set_xlim(edges[0], edges[-1])
    return figure


def blocks_now(history: Iterable[DepthMeasurement]) -> Figure:
    """Draw what a chain, and each block of it, does to a gradient at the newest measurement.

    On top the largest growth from output to input with its error, the 95 % bar, among the thresholds. Below, for each
    block with its name, at the left its gain with its error, at the right how much of what passes it changes, where it
    keeps the width.

    Args:
        history: Measurements of a run: :attr:`DepthSpectrumCallback.history`.

    Raises:
        NothingToShow: If nothing was measured.
    """
    measurements = _alike(list(history))
    newest = measurements[-1]
    rows = _height(newest)
    figure = new_figure("What blocks do to a gradient", verdict(measurements), height=2.9 + rows)
    whole, blocks = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.25, rows + 0.7])[:, 0]
    _draw_total(whole.subplots(), newest)
    gains, changes = blocks.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _draw_gains(gains, newest)
    _draw_changes(changes, newest)
    return figure


def _alike(measurements: Sequence[DepthMeasurement]) -> list[DepthMeasurement]:
    """Those of the same blocks as the newest, of which there must be one."""
    if not measurements:
        raise NothingToShow("history must hold at least one measurement; got none.")
    return [m for m in measurements if m.names == measurements[-1].names]


def _height(measurement: DepthMeasurement) -> float:
    return min(max(_ROW * measurement.depth, _LEAST), _MOST)


# ------------------------------------------------------------------ the whole chain


def _draw_totals(axes: Any, updates: np.ndarray, measurements: Sequence[DepthMeasurement]) -> None:
    """The largest growth and the gain over updates; hollow squares are of other data."""
    newest = measurements[-1]
    totals, errors = np.array([m.total for m in measurements]).T
    curve = np.where(np.isfinite(totals), totals, math.nan)
    other = np.array([m.source != newest.source for m in measurements])
    line = np.where(other, math.nan, curve)
    axes.fill_between(updates, line - errors, line + errors, color="#4393c3", alpha=0.35, linewidth=0)
    axes.plot(updates, line, color=FADES, linewidth=1.8, clip_on=False, label="at most, ln σ₁", **dots(len(updates)))
    if newest.dimensions[0] == newest.dimensions[-1]:
        gains = np.array([m.gain[0] for m in measurements])
        gains = np.where(np.isfinite(gains) & ~other, gains, math.nan)
        if np.isfinite(gains).any():
            axes.plot(updates, gains, color=QUIET, linewidth=1.4, linestyle="--", label="in a typical direction")
    if other.any():
        data = {m.source for m, is_other in zip(measurements, other, strict=True) if is_other}
        label = f"of {' and '.join(sorted(filter(None, data))) or 'other'} data"
        axes.plot(updates[other], curve[other], "s", color=FADES, markerfacecolor="white", label=label, clip_on=False)
    nothing = updates[totals == -math.inf]
    if len(nothing):
        _gone(axes, nothing)
    axes.set_ylim(*_limits(curve - np.nan_to_num(errors), curve + np.nan_to_num(errors)))
    _thresholds(axes, "y")
    axes.set_ylabel("growth of a gradient (nats)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, frameon=False, fontsize=SMALL, ncols=2)


def _gone(axes: Any, updates: np.ndarray) -> None:
    bottom: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.plot(updates, np.full(len(updates), 0.04), "v", color="black", label="−∞: no gradient passes", **bottom)


def _draw_total(axes: Any, newest: DepthMeasurement) -> None:
    """The largest growth with its bar, and the gain, on an axis that lies."""
    value, error = newest.total
    usual = newest.gain[0] if newest.dimensions[0] == newest.dimensions[-1] else math.nan
    bar = 0.0 if math.isnan(error) else error
    axes.set_xlim(*_limits(np.array([value - bar]), np.array([value + bar])))
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _thresholds(axes, "x")
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
    if math.isfinite(value):
        axes.errorbar([value], [0.4], xerr=[bar], fmt="o", color=FADES, capsize=3, markersize=7, zorder=4)
        words(axes, (value + bar, 0.4), "at most", xytext=(7, 0), color=FADES, **beside)
    elif value == -math.inf:
        words(axes, (0.5, 0.4), "no gradient passes", xycoords="axes fraction", ha="center", fontweight="bold")
    if math.isfinite(usual):
        axes.plot([usual], [0.4], "D", color=QUIET, markersize=5, zorder=3)
        words(axes, (min(usual, value - bar), 0.4), "typical", xytext=(-8, 0), ha="right", color=QUIET, **beside)
    axes.set_xlabel(f"growth from output to input (nats), update {newest.step:,}", fontsize=SMALL)


def _limits(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """What the axis of the largest growth shows: always the thresholds, and all there is."""
    bottom = float(np.min(low[np.isfinite(low)], initial=LIMITS[0]))
    top = float(np.max(high[np.isfinite(high)], initial=LIMITS[1]))
    margin = 0.08 * (top - bottom)
    return bottom - margin * (bottom < LIMITS[0]), top + margin * (top > LIMITS[1])


def _thresholds(axes: Any, along: str) -> None:
    """Where training is doubtful or not to be expected, as faint parts that say what they mean; and the factors."""
    is_y = along == "y"
    low, high = axes.get_ylim() if is_y else axes.get_xlim()
    span, line = (axes.axhspan, axes.axhline) if is_y else (axes.axvspan, axes.axvline)
    vanishes, doubtful, explodes = (THRESHOLDS[name] for name in ("vanishes", "doubtful", "explodes"))
    parts = [
        (low, vanishes.nats, FADES, 0.13, vanishes),
        (doubtful.nats, explodes.nats, GROWS, 0.06, doubtful),
        (explodes.nats, high, GROWS, 0.14, explodes),
    ]
    line(0.0, color="0.3", linewidth=1)
    for start, end, colour, alpha, threshold in parts:
        span(start, end, color=colour, alpha=alpha, linewidth=0, zorder=0)
        edge = end if threshold is vanishes else start
        line(edge, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
        wide = (end - start) / (high - low)
        text = threshold.told
        middle = (start + end) / 2
        if is_y and wide > 0.07:
            place, how = (0.01, middle), {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
            words(axes, place, text, color="0.35", fontsize=SMALL, zorder=1.5, **how)
        elif not is_y and wide > 0.09:
            place, how = (middle, 0.97), {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
            words(
                axes,
                place,
                text.replace(" networks ", "\n").replace(" of\n", "\n"),
                color="0.35",
                fontsize=SMALL,
                zorder=1.5,
                **how,
            )
    factors = [0.0, *(threshold.nats for threshold in THRESHOLDS.values())]
    names = [f"×{factor(nats).removesuffix('-fold').removesuffix('.0')}" for nats in factors]
    side = axes.secondary_yaxis("right") if is_y else axes.secondary_xaxis("top")
    crowded = (explodes.nats - doubtful.nats) / (high - low) < 0.07
    kept = [i for i in range(len(factors)) if not (crowded and factors[i] == doubtful.nats)]
    ticks, labels = [factors[i] for i in kept], [names[i] for i in kept]
    (side.set_yticks if is_y else side.set_xticks)(ticks, labels, fontsize=SMALL, color=QUIET)
    side.tick_params(color="0.6", length=2)


# ------------------------------------------------------------------ its blocks


def _draw_blocks(axes: Any, edges: np.ndarray, measurements: Sequence[DepthMeasurement]) -> None:
    """Heat map of gains, a row for each block, the first that the input meets on top."""
    newest = measurements[-1]
    gains = np.array([m.block_gain.double().numpy() for m in measurements]).T
    most = max(FAINTEST, float(np.quantile(np.abs(gains[np.isfinite(gains)]), 0.98))) if np.isfinite(gains).any() else 1
    rows = np.arange(newest.depth + 1) + 0.5
    mesh = axes.pcolormesh(
        edges, rows, np.ma.masked_invalid(gains), cmap=COLOURS, norm=CenteredNorm(0.0, most), rasterized=True
    )
    axes.set_facecolor("0.75")
    marked = _mark(axes, edges, measurements)
    axes.set_ylim(rows[-1], rows[0])
    _name(axes, newest)
    place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "annotation_clip": False}
    above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "va": "bottom"}
    words(axes, (1.012, 0.5), "now", fontsize=SMALL, color=QUIET, **above, **place)
    for block in _labelled(newest):
        text, colour = _says(newest, block)
        words(axes, (1.012, block + 1), text, color=colour, fontsize=SMALL, va="center", **place)
    bar = axes.figure.colorbar(
        mesh, ax=axes, orientation="horizontal", extend="both", pad=0.03, aspect=45, fraction=0.06, shrink=0.7
    )
    unit = " per unit" * (len(set(newest.dimensions)) > 1)
    bar.set_label(f"gain of a block (nats{unit}): blue shrinks, red grows", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    if marked:
        axes.figure.legend(
            handles=[Patch(label=label, **_MARKS[label]) for label in marked],
            loc="outside lower center", frameon=False, fontsize=SMALL, ncols=len(marked),
        )  # fmt: skip


def _mark(axes: Any, edges: np.ndarray, measurements: Sequence[DepthMeasurement]) -> list[str]:
    """Mark dead blocks where and as long as they are dead.

    Returns:
        Which marks there are.
    """
    states: dict[str, list[list[int]]] = {
        _DEAD: [unchanging(m) for m in measurements],
        _CUT: [severed(m) for m in measurements],
    }
    for label, blocks in states.items():
        for block in sorted({one for every in blocks for one in every}):
            holding = [block in every for every in blocks]
            for holds, run in groupby(range(len(blocks)), key=holding.__getitem__):
                if holds:
                    first, *_, last = [*run] * 2
                    left, right = edges[first], edges[last + 1]
                    axes.add_patch(Rectangle((left, block + 0.5), right - left, 1, **_MARKS[label]))
    return [label for label, blocks in states.items() if any(blocks)]


def _draw_gains(axes: Any, newest: DepthMeasurement) -> None:
    gains = newest.block_gain.double().numpy()
    errors = np.nan_to_num(newest.block_gain_error.double().numpy(), posinf=0.0) * np.isfinite(gains)
    known = np.where(np.isfinite(gains), gains, 0.0)
    places = np.arange(newest.depth) + 1
    colours = [GROWS if gain > 0 else FADES for gain in known]
    few = newest.depth <= LABELS
    axes.barh(places, known, height=0.72 if few else 1.0, color=colours)
    if few:
        axes.errorbar(known, places, xerr=errors, linestyle="none", color="0.2", linewidth=0.9)
    axes.axvline(0.0, color="0.3", linewidth=1)
    reach = max(0.1, float(np.abs(known).max()))
    low, high = min(0.0, float((known - errors).min())), max(0.0, float((known + errors).max()))
    axes.set_xlim(low - 0.08 * reach, high + 0.08 * reach)
    for block in severed(newest):
        words(axes, (0, block + 1), _CUT, xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL)
    _name(axes, newest)
    axes.set_ylim(newest.depth + 0.6, 0.4)
    unit = " per unit" * (len(set(newest.dimensions)) > 1)
    axes.set_xlabel(f"gain (nats{unit})", fontsize=SMALL)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _draw_changes(axes: Any, newest: DepthMeasurement) -> None:
    """Shares that blocks change, on an axis of powers of ten; at its left end those that change nothing."""
    changes = 100 * np.exp(newest.block_change.double().numpy())
    places = np.arange(newest.depth) + 1
    dead, late = unchanging(newest), idle(newest) if newest.step >= TRAINED else []
    seen = changes[np.isfinite(changes) & (changes > 100 * math.exp(SEVERED))]
    low, high = (min(1.0, seen.min() / 3), max(100.0, seen.max() * 2)) if len(seen) else (1.0, 100.0)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    at = np.clip(changes, low, None)
    colours = ["black" if block in dead else "#b35806" if block in late else QUIET for block in range(newest.depth)]
    axes.hlines(places, low, at, color="0.85", linewidth=1)
    axes.scatter(at, places, s=18 if newest.depth <= LABELS else 7, c=colours, zorder=3, clip_on=False)
    shown = _labelled(newest)
    told = [(block, "dead") for block in dead if block in shown]
    told += [(late[len(late) // 2], "idle")] if late else []
    for block, text in told:
        put: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": SMALL}
        words(axes, (at[block], block + 1), text, color=colours[block], **put)
    ticks = [t for t in (0.001, 0.01, 0.1, 1, 10, 100, 1000) if low <= t <= high]
    axes.set_xticks(ticks if len(ticks) < 5 else ticks[::-2])
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g} %")
    axes.set_xlabel("what it changes", fontsize=SMALL)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _says(newest: DepthMeasurement, block: int) -> tuple[str, str]:
    """A block's gain now in a word, and its colour."""
    gain = float(newest.block_gain[block])
    if block in severed(newest):
        return "ends here", "black"
    if block in unchanging(newest):
        return "dead", "black"
    if math.isnan(gain):
        return "unknown", QUIET
    rest = " idle" * (newest.step >= TRAINED and block in idle(newest))
    if abs(gain) < 0.005:
        return f"0.00{rest}", QUIET
    return f"{gain:+.2f}{rest}".replace("-", "−"), GROWS if gain > 0 else FADES


def _labelled(measurement: DepthMeasurement) -> list[int]:
    """Blocks that have room for a name, those that are dead before others."""
    depth = measurement.depth
    apart = -(-depth // LABELS)
    chosen: list[int] = []
    for block in [*severed(measurement), *unchanging(measurement), *evenly(depth, LABELS)]:
        if all(abs(block - other) >= apart for other in chosen):
            chosen.append(block)
    return sorted(chosen)


def _name(axes: Any, measurement: DepthMeasurement) -> None:
    """Names of blocks at the left."""
    shown = _labelled(measurement)
    names = _short([measurement.names[block] for block in shown])
    axes.set_yticks([block + 1 for block in shown], names, fontsize=SMALL, parse_math=False)
    axes.set_ylabel("blocks, input on top", fontsize=SMALL)
    axes.tick_params(axis="y", length=0)


def _short(names: Sequence[str]) -> list[str]:
    """Names that are no longer than fits: where one is, without the parts at either end that all of them share."""
    parts = [name.split(".") for name in names]
    if max(map(len, names)) > LONGEST and len(names) > 1:
        head = _shared([part[:-1] for part in parts])
        tail = _shared([part[:head:-1] for part in parts])
        parts = [part[head : len(part) - tail] for part in parts]
        names = [f"{'…' * (head > 0)}{'.'.join(part)}{'…' * (tail > 0)}" for part in parts]
    return [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :].lstrip('.')}" for name in names]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many of their first parts all have in common."""
    return sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False)))
