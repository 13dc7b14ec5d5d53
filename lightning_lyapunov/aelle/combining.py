r"""One prediction out of three: the autoencoder's, the ridge's, and the skill so far.

.. math:: p = \sigma\bigl(a + b \textstyle\sum_k w_k z_k\bigr), \qquad w_k \ge 0

The weights w are those that rank the networks of a task best, on tasks that the predictors had not seen: of the least
mean pairwise loss within groups, with some of the cross-entropy, which is convex. A skill is ranked by one predictor
alone where the others add next to nothing. Level a and slope b > 0, by cross-entropy alone, make probabilities of ranks
(Platt 1999). All are fitted for each head, state of knowledge and knot of the updates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.features import Rows, Tensors
from lightning_lyapunov.aelle.fitting import CLEAR
from lightning_lyapunov.aelle.knowledge import KNOTS, SKILL, STATES, between, near_knots, place, state

PREDICTORS = ("autoencoder", "ridge", "skill so far")
HABIT = (0.5, 0.5, 0.0)
"""Their weights where nothing was fitted."""
SLOPE = 1e-3
"""Of ranks, at least."""
PENALTY = 1e-3
"""Of the squares of the weights, of predictors in units of what they vary by."""
RANKING = 8.0
"""Weight of the pairwise loss beside the cross-entropy."""
MARGIN = 0.003
"""Concordance that several predictors of the skill must gain over one alone: less is what chance gains."""
MOST_PAIRS = 8_000
"""That a fit looks at."""
FEWEST = 60
"""Rows of a knot that are enough to fit it."""
SURE = 0.001
"""Of the skill so far, from both ends: beyond, it counts as this."""
SIGNS = (1.0, -1.0, 1.0, 1.0)
"""Of the skill so far as a predictor of each head."""


@dataclass(frozen=True, eq=False)
class Combination(Tensors):
    """The weights of the predictors and the intercept."""

    table: Tensor
    """(STATES, knots, heads, 1 + predictors): the intercept first."""

    @staticmethod
    def unfitted() -> Combination:
        """The autoencoder's rank and the ridge, with equal weight."""
        weights = torch.tensor([0.0, *HABIT])
        return Combination(weights.expand(STATES, len(KNOTS), len(HEADS), -1).clone())

    @staticmethod
    def fit(shown: Iterable[tuple[Rows, Tensor]], wanted: Tensor, weights: Tensor, groups: Tensor) -> Combination:
        """Fit on rows in some states of knowledge; for the others it stays unfitted.

        Args:
            shown: The same R rows in one state of knowledge after another, each with what :func:`predictors` makes of
                them, ``(R, heads, predictors)``, by models that had not seen them.
            wanted: ``(R, heads)``; NaN where not known.
            weights: (R,).
            groups: (R,) long: rows are ranked within a group.
        """
        table, lessons = Combination.unfitted().table, None
        for rows, said in shown:
            lessons = lessons or _lessons(place(rows), wanted, weights, groups)
            numbers = state(rows)
            for lesson in lessons:
                most = int(numbers[lesson.rows].mode().values)  # of a few, some entry is no number
                found = lesson.weights_of(said[lesson.rows, lesson.head], may_be_plain=lesson.head == 0)
                table[most, lesson.knots, lesson.head] = found
        return Combination(table)

    def __call__(self, said: Tensor, rows: Rows) -> Tensor:
        """``(R, heads)`` in [0, 1]."""
        weights = between(self.table[state(rows)], place(rows))
        return torch.sigmoid(weights[..., 0] + (weights[..., 1:] * said).sum(-1))


def predictors(ranks: Tensor, ridge: Tensor, rows: Rows) -> Tensor:
    """``(R, heads, predictors)`` what is combined; 0 for a skill so far that is not known.

    Args:
        ranks: ``(R, heads)`` of the autoencoders.
        ridge: ``(R, heads)`` logits.
        rows: R rows.
    """
    so_far = rows.context[:, SKILL].clamp(SURE, 1 - SURE).logit().nan_to_num()
    return torch.stack([ranks, ridge, so_far.unsqueeze(1) * ranks.new_tensor(SIGNS)], -1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of rows of one group that differ in what is wanted."""

    better: Tensor
    """(P,) rows that should rank higher."""
    worse: Tensor
    """(P,) than these."""
    worth: Tensor
    """(P,) of each pair; a group counts as much as its rows together, however many pairs it has."""

    @staticmethod
    def of(wanted: Tensor, weights: Tensor, groups: Tensor, clear: float) -> Pairs:
        """All pairs within groups.

        Args:
            wanted: (R,) what rows should rank by.
            weights: (R,).
            groups: (R,) long.
            clear: Difference from which a pair counts in full; below, in proportion.
        """
        better, worse, worth = [], [], []
        for group in groups.unique():
            inside = (groups == group).nonzero()[:, 0]
            y = wanted[inside].double()
            apart = ((y.unsqueeze(1) - y.unsqueeze(0)) / clear).clamp(0.0, 1.0)
            first, second = apart.nonzero().unbind(1)
            if len(first):
                better.append(inside[first])
                worse.append(inside[second])
                worth.append(apart[first, second] * (weights[inside].double().sum() / apart.sum()))
        if not better:
            return Pairs(*(torch.empty(0, dtype=kind) for kind in (torch.long, torch.long, torch.double)))
        return Pairs(torch.cat(better), torch.cat(worse), torch.cat(worth))

    def some(self, most: int) -> Pairs:
        """At most so many, drawn in proportion to their worth, and then all of the same; every call draws the same."""
        if len(self.worth) <= most:
            return self
        drawn = torch.multinomial(self.worth, most, replacement=True, generator=torch.Generator().manual_seed(0))
        return Pairs(self.better[drawn], self.worse[drawn], torch.ones_like(self.worth[drawn]))

    def concordance(self, score: Tensor) -> Tensor:
        """(S,) share of the pairs that scores ``(R, S)`` put in the right order, ties half; NaN without pairs."""
        apart = score[self.better] - score[self.worse]
        ordered = (apart > 0).double() + 0.5 * (apart == 0).double()
        return (self.worth @ ordered) / self.worth.sum()


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What one head is taught at one knot, or at several that have no rows of their own."""

    head: int
    knots: list[int]
    rows: Tensor
    """(n,) long."""
    wanted: Tensor
    """(n,)."""
    weights: Tensor
    """(n,)."""
    pairs: Pairs
    """Of these rows."""

    def weights_of(self, said: Tensor, *, may_be_plain: bool) -> Tensor:
        """(1 + predictors,): see the module.

        Args:
            said: ``(n, predictors)``.
            may_be_plain: Whether one predictor alone is enough where the others add less than :data:`MARGIN`.
        """
        said = said.double()
        spread = said.std(0)
        scale = torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0.0)
        z = said * scale
        weights = self._direction(z)
        if may_be_plain:
            plain = torch.diag((scale > 0).to(z))
            gained = self.pairs.concordance(z @ torch.cat([weights.unsqueeze(1), plain], 1)).nan_to_num(0.5)
            best = int(gained[1:].argmax())
            weights = plain[best] if gained[0] - gained[1 + best] < MARGIN else weights
        x = torch.stack([torch.ones(len(z)).to(z), z @ weights], 1)
        level, slope = _non_negative_logistic(x, self.wanted.double(), self._counts)
        return torch.cat([level.unsqueeze(0), slope.clamp(min=SLOPE) * weights * scale]).float()

    @property
    def _counts(self) -> Tensor:
        return self.weights.double() / self.weights.double().sum()

    def _direction(self, z: Tensor) -> Tensor:
        """(predictors,) weights of ``(n, predictors)`` that rank best."""
        apart = z[self.pairs.better] - z[self.pairs.worse]
        worth = self.pairs.worth / self.pairs.worth.sum().clamp(min=1e-12)
        # Pairs are further rows that should be 1, of which the intercept knows nothing.
        intercept = torch.cat([torch.ones(len(z)), torch.zeros(len(apart))]).to(z).unsqueeze(1)
        x = torch.cat([intercept, torch.cat([z, apart])], 1)
        y = torch.cat([self.wanted.double(), torch.ones_like(worth)])
        return _non_negative_logistic(x, y, torch.cat([self._counts, RANKING * worth]))[1:]


def _lessons(place: Tensor, wanted: Tensor, weights: Tensor, groups: Tensor) -> list[_Lesson]:
    """For each knot and head where there is enough to learn from."""
    lessons = []
    for near, knots in near_knots(place, FEWEST):
        for head in range(len(HEADS)):
            use = near[~wanted[near, head].isnan()]
            if len(use) >= FEWEST:
                answers, counts = wanted[use, head], weights[use]
                pairs = Pairs.of(answers, counts, groups[use], CLEAR if head == 0 else 1.0).some(MOST_PAIRS)
                lessons.append(_Lesson(head, knots, use, answers, counts, pairs))
    return lessons


def _non_negative_logistic(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Coefficients of least cross-entropy, all but the first not negative: L-BFGS-B (Byrd, Lu, Nocedal, Zhu 1995)."""
    from scipy.optimize import minimize

    penalty = torch.full_like(x[0], PENALTY)
    penalty[0] = 1e-6

    def loss(values: Any) -> tuple[float, Any]:
        beta = torch.from_numpy(values)
        z = x @ beta
        value = weights @ (softplus(z) - y * z) + penalty @ beta.square() / 2
        return float(value), (x.mT @ (weights * (torch.sigmoid(z) - y)) + penalty * beta).numpy()

    start = torch.full_like(x[0], 0.1)
    start[0] = 0.0
    bounds = [(None, None), *[(0, None)] * (x.shape[1] - 1)]
    found = minimize(
        loss, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-9}
    )
    return torch.from_numpy(found.x)
