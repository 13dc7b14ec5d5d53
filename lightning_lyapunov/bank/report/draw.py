"""The picture of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_lyapunov.bank.evaluation import summary
from lightning_lyapunov.bank.report.page import RATE, Page
from lightning_lyapunov.bank.report.tables import FULL, Scored, so_far


def draw(page: Page) -> Any:
    """Who tells what before training, and how the rank correlation grows with it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    family, useful = page.by_family, page.useful
    shown = {
        "cell + size + rate": family.scorer("none", False, RATE, 0, useful),
        "all hyperparameters, trees": page.bars["all hyperparameters, trees", 0],
        "spectrum alone": family.scorer("all", False, 0, 0, useful),
        "cell + size + spectrum": family.scorer("all", False, 1, 0, useful),
        "cell + size + rate + spectrum": family.scorer("all", False, RATE, 0, useful),
    }
    for offset, (score, colour) in zip(
        (-0.15, 0.15), (("fail in cell", "#d95f02"), ("take-off in cell", "#1b9e77")), strict=True
    ):
        values = [summary(one, score)[:2] for one in shown.values()]
        place = np.arange(len(shown)) + offset
        left.errorbar([v[0] for v in values], place, xerr=[v[1] for v in values], fmt="o", color=colour, label=score)
    left.axvline(0.5, color="0.6", linewidth=1)
    left.set_yticks(range(len(shown)), list(shown))
    left.invert_yaxis()
    left.set_xlabel("area under the ROC curve, families left out")
    left.set_title("Before the first update: who fails, who takes off")
    left.legend()
    moments = [u for u in family.table.bank.checkpoints if bool((family.table.updates == u).any())]
    lines: dict[str, tuple[str, Callable[[int], Scored]]] = {
        "skill so far": ("0.2", lambda u: family.scored(so_far(family.table), u)),
        "all that is known, with the spectrum": ("#2166ac", lambda u: family.scorer("all", True, FULL, u)),
        "the same without the skill": ("#1b9e77", lambda u: family.scorer("all", False, FULL, u)),
    }
    places = np.log1p(np.array(moments) / 10)
    for name, (colour, scored) in lines.items():
        points = [summary(scored(u), "rho")[:2] for u in moments]
        right.errorbar(places, [p[0] for p in points], [p[1] for p in points], color=colour, marker="o", label=name)
    right.set_xticks(places, [f"{u:,}" for u in moments], rotation=45)
    right.set_xlabel("updates when scored")
    right.set_ylabel("Spearman ρ with the final skill, within tasks")
    right.set_title("Ranking the networks of a task never seen")
    right.legend()
    return figure
