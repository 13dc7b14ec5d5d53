"""Several runs side by side: a row for each, in the order that the caller has put them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_lyapunov.figures.style import SMALL, VERDICTS, NothingToShow, new_figure
from lightning_lyapunov.reading.verdict import SIGNS, WORDS, Word

MARKERS: dict[Word, str] = {"healthy": "o", "watch": "^", "act": "X"}
NAMED = 40
"""Rows up to which each has its name: more would run into each other."""
LONGEST = 18
"""Characters of a name that are shown, its last ones: those before are often the same."""
LINEAR = 2.0
"""Nats. The axis of growth is linear closer to zero and logarithmic beyond."""
_ORANGE = "#d95f02"
_TICKS = (1, 2, 5, 10, 100, 1000)
"""Nats. Of these the largest on the axis is marked, on either side."""


def runs_compared(
    names: Sequence[str],
    words: Sequence[Word],
    growth: Sequence[tuple[float, float]],
    predicted: Sequence[tuple[float, float, float]],
    reached: Sequence[float],
    *,
    what: str = "over a sequence",
) -> Figure:
    """Draw a row for each run, the first on top: growth of a gradient, and where it is known the skill.

    Args:
        names: Of the N runs.
        words: Their verdicts, which say colour and mark.
        growth: Growth of a gradient and its error, nats.
        predicted: Final skill as predicted, and its interval; NaN where not known.
        reached: Skill so far; NaN where not known.
        what: Where a gradient grows so.

    Raises:
        ValueError: Of no runs.
    """
    if not names:
        raise NothingToShow("runs must hold at least one; got none.")
    count = len(names)
    counts = "   ".join(f"{SIGNS[word]} {words.count(word)} {word}" for word in WORDS if word in words)
    figure = new_figure(f"{count} runs:  {counts}", height=1.6 + min(0.26 * count, 12))
    with_skill = any(not math.isnan(value) for value in [*(one[0] for one in predicted), *reached])
    shares = [4, 3] if with_skill else [1]
    axes = figure.subplots(1, len(shares), sharey=True, squeeze=False, width_ratios=shares)[0]
    _draw_growth(axes[0], words, growth, what)
    if with_skill:
        _draw_skill(axes[1], words, predicted, reached)
    axes[0].set_ylim(count - 0.5, -0.5)
    if count <= NAMED:
        axes[0].set_yticks(range(count), [_short(name) for name in names], parse_math=False)
        for label, word in zip(axes[0].get_yticklabels(), words, strict=True):
            label.set_color(VERDICTS[word])
    else:
        axes[0].set_ylabel(f"{count} runs, best on top")
        axes[0].set_yticks([])
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[-LONGEST + 1 :]}"


def _draw_growth(axes: Axes, words: Sequence[Word], growth: Sequence[tuple[float, float]], what: str) -> None:
    values = np.array([value for value, _ in growth], dtype=float)
    errors = np.nan_to_num(np.array([error for _, error in growth], dtype=float), nan=0.0, posinf=0.0)
    rows = np.arange(len(values))
    known = np.abs(values[np.isfinite(values)])
    most = 1.3 * max(float(known.max(initial=0.0) + errors[np.isfinite(values)].max(initial=0.0)), LINEAR)
    values = np.clip(values, -most, most)  # of what is without end, at the end of the axis
    for word in WORDS:
        own = np.array([its == word for its in words]) & ~np.isnan(values)
        if own.any():
            colour = VERDICTS[word]
            axes.errorbar(
                values[own], rows[own], xerr=errors[own], fmt=MARKERS[word], color=colour, capsize=2, clip_on=False
            )
    stretched = most > 2 * LINEAR
    if stretched:
        axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_xlim(-most, most)
    mark = max(tick for tick in _TICKS if tick <= most)
    axes.set_xticks([-mark, 0, mark], [f"−{mark}", "0", f"+{mark}"])
    axes.minorticks_off()
    axes.axvline(0.0, color="0.2", linewidth=1.2)
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(f"growth of a gradient\n{what} (nats)" + "\nstretched around ±2" * stretched, fontsize=SMALL)


def _draw_skill(
    axes: Axes, words: Sequence[Word], predicted: Sequence[tuple[float, float, float]], reached: Sequence[float]
) -> None:
    rows = np.arange(len(words))
    skill, low, high = (np.array(values, dtype=float) for values in zip(*predicted, strict=True))
    axes.hlines(rows, low, high, color="0.6", linewidth=3)
    axes.plot(skill, rows, "|", color="0.1", markersize=9, markeredgewidth=2)
    axes.plot(reached, rows, "D", color=_ORANGE, markeredgecolor="black", markersize=5)
    shown = np.concatenate([skill, low, high, np.array(reached, dtype=float)])
    shown = shown[np.isfinite(shown)]
    if shown.min(initial=0.0) >= 0 and shown.max(initial=1.0) <= 1:  # a skill; a scorer of one's own may say anything
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel("skill\n▬ predicted, 80 %\n◆ reached", fontsize=SMALL)
