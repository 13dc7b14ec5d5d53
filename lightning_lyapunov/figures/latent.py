"""Where a run stands among the networks that the scorer knows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.aelle.atlas import NETWORKS, Atlas
from lightning_lyapunov.figures.style import (
    FEW,
    QUIET,
    SMALL,
    NothingToShow,
    measured,
    new_figure,
    panels,
    verdict_of,
    words,
)
from lightning_lyapunov.reading.conditions import FAMILIAR, score
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict


class LatentMap(Atlas):
    """The codes of the bank's networks, seen along their two principal directions."""

    @classmethod
    def of_bank(cls, scorer: AeLLEScorer, networks: int = NETWORKS) -> LatentMap:
        """Networks of the bank as a scorer's first autoencoder sees them: whose codes the path is made of.

        The same scorer gives the same map.

        Args:
            scorer: Whose codes the path on the map will be made of.
            networks: How many, evenly spaced over those that ship; each makes two points.

        Raises:
            ValueError: If ``networks`` is not positive, or the scorer's codes have fewer than two values.
        """
        return cls(**vars(Atlas.of(scorer.heads.models[0], float(scorer.card["scale"]), networks)))


def latent_map(history: History, map: LatentMap, said: Verdict | None = None) -> Figure:
    """Draw the way of a run among the bank's networks, coloured by the skill that each reached in the end.

    Args:
        history: Measurements of a run: :attr:`LyapunovSpectrumCallback.history`.
        map: The map of the scorer that scored it.
        said: The verdict on the run, if it is known already.

    Raises:
        ValueError: If none of the measurements was scored, or only by a scorer with codes of another size.
    """
    size = len(map.centre)
    coded = [
        (m, m.latent)
        for m in measured(history)
        if m.latent is not None and len(m.latent) == size and m.latent.isfinite().all()
    ]
    if not coded:
        raise NothingToShow(f"history holds no codes of {size} values, which the map is made of.")
    points, path = map.points.numpy(), map.place(torch.stack([code for _, code in coded])).numpy()
    figure = new_figure("Among networks of the bank", said or verdict_of(measured(history)), height=4.0)
    guess = ":\nunlike all of them, its place is a guess" * (score(coded[-1][0], "familiarity") < FAMILIAR)
    (axes,) = panels(figure, left=0.35, right=0.85, top=0.62 + 0.15 * bool(guess))
    dots = axes.scatter(points[:, 0], points[:, 1], s=8, c=map.skill.numpy(), vmin=0, vmax=1, linewidths=0)
    place = axes.get_position()
    beside = figure.add_axes((place.x1 + 0.02, place.y0, 0.03, place.height))
    figure.colorbar(dots, cax=beside, label="skill that each reached in the end")
    _draw_path(axes, path)
    _frame(axes, points, path)
    first, now = coded[0][0], coded[-1][0]
    familiarity = score(now, "familiarity")
    when = f"{first.step:,} to {now.step:,}" if first is not now else f"{now.step:,}"
    known = "" if math.isnan(familiarity) else f"; familiarity now {familiarity:.2f}"
    axes.set_title(f"update {when}{known}{guess}", fontsize=SMALL, color="black" if guess else QUIET)
    return figure


def _draw_path(axes: Any, path: np.ndarray) -> None:
    seam = [withStroke(linewidth=4.5, foreground="white")]
    way = path[np.unique(np.linspace(0, len(path) - 1, FEW).round().astype(int))]
    axes.plot(*way.T, color="black", linewidth=1.4, marker="o", markersize=3, path_effects=seam, zorder=3)
    across = -1 if path[-1, 0] < path[0, 0] else 1  # the words stand on the outer side of either end
    ends = [(0, "start", "black", "white", -across)] if len(path) > 1 else []
    for end, text, edge, inside, side in [*ends, (-1, "now", "white", "black", across)]:
        axes.plot(*path[end], "o", markeredgecolor=edge, markerfacecolor=inside, markersize=9, zorder=4)
        place = {"xytext": (9 * side, 0), "textcoords": "offset points", "ha": "left" if side > 0 else "right"}
        words(axes, tuple(path[end]), text, va="center", fontweight="bold", zorder=5, **place)


def _frame(axes: Any, points: np.ndarray, path: np.ndarray) -> None:
    """All but the outermost networks, and the whole path; room for the words at its ends."""
    inner = np.quantile(points, [0.005, 0.995], axis=0)
    low, high = np.minimum(inner[0], path.min(0)), np.maximum(inner[1], path.max(0))
    margin = np.array([0.13, 0.06]) * (high - low)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_facecolor("0.9")  # on which both ends of the colours stand out
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first principal direction of the code")
    axes.set_ylabel("second principal direction")
