"""Comparisons of what was said of networks left out, as numbers and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import CONTEXT
from lightning_lyapunov.aelle.knowledge import RUNGS
from lightning_lyapunov.bank.evaluation import SCORES, Predictor, Table, leave_out, scores, summary
from lightning_lyapunov.bank.report.left_out import Said, Sayings

NAMES = (
    "nothing else",
    "cell + size",
    "size + rate",
    "cell + size + rate",
    "size + rate + cheap",
    "cell + size + rate + cheap",
)
"""Of the rungs of what is known beside spectrum and skill."""
assert len(NAMES) == len(RUNGS)
FULL = len(RUNGS) - 1
AREAS = ("fail", "fail in cell", "take-off", "take-off in cell")
"""Scores that are areas under the ROC curve."""

Scored = dict[str, dict[str, float]]
"""Family to score to value."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was said of the rows of a table, and the scores of any of it at any moment."""

    table: Table
    said: Sayings

    def at(self, updates: int, keep: Tensor | None = None) -> Tensor:
        """(R,) bool: the rows after so many updates, of those kept."""
        here = self.table.updates == updates
        return here if keep is None else here & keep

    def scored(self, predicted: Tensor, updates: int, keep: Tensor | None = None) -> Scored:
        """Scores of ``(R, RANKED)`` skill, probabilities of failure and of take-off."""
        here = self.at(updates, keep)
        one = predicted[here]
        return scores(self.table[here], one[:, 0], {"fail": 1 - one[:, 1], "take-off": one[:, 2]})

    def scorer(self, part: str, skill: bool, rung: int, updates: int, keep: Tensor | None = None) -> Scored:
        """Scores of the scorer; of its baseline if ``part`` is ``"none"``."""
        return self.scored(self.said[part, skill, rung].heads, updates, keep)

    def ridge(self, part: str, skill: bool, rung: int, updates: int, keep: Tensor | None = None) -> Scored:
        """Scores of the ridge with heads of its own."""
        return self.scored(self.said[part, skill, rung].ridge, updates, keep)

    def by(self, predict: Predictor, updates: int, keep: Tensor | None = None) -> Scored:
        """Scores of a predictor fitted at this checkpoint alone, families left out."""
        here = self.table.updates == updates
        said = torch.full((len(self.table),), math.nan)
        said[here] = leave_out(self.table[here], "family", predict)
        chosen = self.at(updates, keep)
        return scores(self.table[chosen], said[chosen])

    def coverage(self, said: Said, keep: Tensor) -> tuple[float, float]:
        """Share of the rows kept whose end lies in the 80 % interval, and its standard error, families as clusters."""
        inside = ((said.low <= self.table.skill + 1e-6) & (self.table.skill <= said.high + 1e-6)).double()
        families = self.table.families[keep]
        by_family = np.array([float(inside[keep][families == f].mean()) for f in families.unique()])
        if len(by_family) < 2:
            return float(by_family.mean()), math.nan
        return float(by_family.mean()), float(by_family.std(ddof=1) / math.sqrt(len(by_family)))

    def brier(self, predicted: Tensor, head: int, keep: Tensor) -> float:
        """Mean squared error of a head, every family counting the same."""
        wanted, weights = self.table.examples.wanted[keep, head], self.table.weights[keep]
        return float(((predicted[keep, head] - wanted).square() * weights).sum() / weights.sum())


def so_far(table: Table) -> Tensor:
    """``(R, RANKED)`` the skill so far as a prediction of everything."""
    skill = table.rows.context[:, CONTEXT.index("skill")]
    return torch.stack([skill, -skill, skill], 1)


def difference(one: Scored, other: Scored, score: str) -> tuple[float, float, int]:
    """Mean over families of what one has more than the other, its standard error, and the number of families."""
    return summary({family: {score: one[family][score] - other[family][score]} for family in one}, score)


def mean_and_error(mean: float, error: float) -> str:
    """As ``0.42 ± 0.03``."""
    return "–" if math.isnan(mean) else f"{mean:.2f} ± {error:.2f}"


def gain(mean: float, error: float) -> str:
    """As ``+0.03 ± 0.01``, in bold beyond two standard errors."""
    if math.isnan(mean):
        return "–"
    text = f"{mean:+.3f} ± {error:.3f}"
    return f"**{text}**" if abs(mean) > 2 * error else text


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def scores_table(by_predictor: Mapping[str, Scored], shown: Sequence[str] = SCORES) -> list[str]:
    """One row for each predictor: mean over families ± standard error; in the header how many families say anything."""
    any_one = next(iter(by_predictor.values()))
    header = ["predictor", *(f"{score} ({summary(any_one, score)[2]})" for score in shown)]
    rows = [
        [name, *(mean_and_error(*summary(families, score)[:2]) for score in shown)]
        for name, families in by_predictor.items()
    ]
    return markdown(header, rows)


def gains_table(title: str, by_row: Mapping[str, tuple[Scored, Scored]], shown: Sequence[str]) -> list[str]:
    """One row for each pair: what the first has more than the second."""
    rows = [
        [name, *(gain(*difference(one, other, score)[:2]) for score in shown)] for name, (one, other) in by_row.items()
    ]
    return markdown([title, *shown], rows)
