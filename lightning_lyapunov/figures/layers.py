"""Which layer explodes, which forgets."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_lyapunov.figures.style import (
    FADES,
    FEW,
    GROWS,
    QUIET,
    SMALL,
    NothingToShow,
    alive,
    dots,
    draw_otherwise,
    driven_otherwise,
    exponent_axis,
    measured,
    new_figure,
    panels,
    updates_axis,
    updates_of,
    verdict_of,
    words,
)
from lightning_lyapunov.reading.conditions import DEAD
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.verdict import Verdict

MANY = 8
"""Layers of which each is named; of more, the highest and the lowest few."""
_LONGEST = 14
"""Letters of a layer's name; of longer ones only what tells them apart is written."""


def layers_over_training(history: History, said: Verdict | None = None) -> Figure:
    """Draw the largest exponent of each layer, with its error, the 95 % bar, as a band.

    Red are layers in which perturbations now grow, blue those in which they fade, grey those whose error does not
    tell. Of many, only the highest and the lowest few are named and coloured. Hollow squares are measurements that
    other data drove than the newest. Each exponent is per step of its own layer, which need not be that of another.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        said: The verdict on it, if it is known already.

    Raises:
        ValueError: If the network has no more than one layer.
    """
    measurements = measured(history)
    names = list(dict.fromkeys(name for m in measurements for name in m.layers))
    if not names:
        raise NothingToShow("history holds no layers: they are kept where there are several.")
    updates = updates_of(measurements)
    unknown = [math.nan, math.nan]
    known = np.array([[m.layers.get(name, unknown)[:2] for m in measurements] for name in names], dtype=float)
    figure = new_figure("Largest exponent of layers", said or verdict_of(measurements), height=3.9)
    (axes,) = panels(figure, right=2.3, top=0.36 + 0.3 * bool(driven_otherwise(measurements).any()))
    _draw(axes, names, updates, known[..., 0], known[..., 1], measurements)
    return figure


def _draw(
    axes: Any,
    names: list[str],
    updates: np.ndarray,
    largest: np.ndarray,
    errors: np.ndarray,
    measurements: list[Measurement],
) -> None:
    order = np.argsort(-np.nan_to_num(largest[:, -1], nan=-math.inf, posinf=math.inf, neginf=-math.inf), kind="stable")
    named = order if len(names) <= MANY else np.concatenate([order[: MANY // 2], order[-MANY // 2 :]])
    curves = alive(largest)
    exponent_axis(axes, curves)
    axes.set_ylabel("nats per step of the layer, stretched near 0", fontsize=SMALL)
    other = driven_otherwise(measurements)
    lines = np.where(other, math.nan, curves)
    for row in order:
        colour = _colour(largest[row, -1], errors[row, -1])
        if row not in named:
            few = np.unique(np.linspace(0, len(updates) - 1, FEW).round().astype(int))
            axes.plot(updates[few], lines[row, few], color="0.75", linewidth=0.8, zorder=1)
            continue
        axes.plot(updates, lines[row], color=colour, linewidth=1.8, **dots(len(updates)))
        error = errors[row]
        axes.fill_between(updates, lines[row] - error, lines[row] + error, color=colour, alpha=0.2, linewidth=0)
        draw_otherwise(axes, updates, curves[row], colour, measurements, errors=error, label=bool(row == named[0]))
    if other.any():
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1, frameon=False, fontsize=SMALL)
    updates_axis(axes, ticks=4)
    _name(axes, [names[row] for row in named], largest[named, -1], errors[named, -1], updates[-1])


def _name(axes: Any, names: list[str], largest: np.ndarray, errors: np.ndarray, end: float) -> None:
    """Names at the right edge, one below the other, each with a line to its curve."""
    transform = axes.transScale + axes.transLimits
    bottom = axes.get_ylim()[0]
    ends = [value if np.isfinite(value) and value > DEAD else bottom for value in largest]
    wanted = np.array([transform.transform((end, y))[1] for y in ends])
    for name, value, error, y, height in zip(_short(names), largest, errors, ends, _apart(wanted), strict=True):
        colour = _colour(value, error)
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0}
        words(
            axes, (1.0, y), f"{name}  {_says(value, error)}", xycoords=("axes fraction", "data"),
            xytext=(1.03, height), textcoords="axes fraction", va="center", color=colour, arrowprops=arrow,
            annotation_clip=False,
        )  # fmt: skip


def _apart(wanted: np.ndarray, gap: float = 0.06) -> np.ndarray:
    """Heights in [0, 1] at least a gap apart, from the top down, near those wanted, which descend."""
    heights = np.clip(wanted, 0.0, 1.0)
    for i in range(1, len(heights)):
        heights[i] = min(heights[i], heights[i - 1] - gap)
    for i in reversed(range(len(heights))):  # those pushed out below go back in
        heights[i] = max(heights[i], gap * (len(heights) - 1 - i))
    return heights


def _colour(largest: float, error: float) -> str:
    return GROWS if largest > error else FADES if largest < -error or largest <= DEAD else QUIET


def _says(largest: float, error: float) -> str:
    if math.isnan(largest):
        return "not measured"
    if largest <= DEAD:
        return "dead"
    known = "" if math.isnan(error) else f" ± {error:.2f}"
    said = {GROWS: " grows", FADES: " fades", QUIET: known}[_colour(largest, error)]
    return f"{largest:+.2f}{said}".replace("-", "−")


def _short(names: list[str]) -> list[str]:
    """Names that are no longer than fits, where they must be without the parts that all of them share."""
    parts = [name.split(".") for name in names]
    if max(map(len, names)) > _LONGEST and len(names) > 1:
        head, tail = _shared(parts), _shared([p[::-1] for p in parts])
        head = min(head, min(map(len, parts)) - tail - 1)
        names = ["…" * (head > 0) + ".".join(p[head : len(p) - tail]) + "…" * (tail > 0) for p in parts]
    return [name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}" for name in names]


def _shared(parts: list[list[str]]) -> int:
    """Leading parts that all have in common, beside at least one more."""
    return sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*(p[:-1] for p in parts), strict=False)))
