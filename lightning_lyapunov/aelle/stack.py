r"""A few plain predictors of one's own networks, weighed by how they do on networks left out.

Every candidate is a ridge on some view of a network. Its penalty is the one that predicts best what is left out, one
group (the rows of one network, twins) at a time. For a ridge with the hat matrix H that takes no second fit: with
residuals e, those of the fit without group g are

.. math:: e^{(-g)}_g = (I - H_{gg})^{-1} e_g

The stack is their sum with weights that are not negative (Breiman, *Stacked regressions*, Machine Learning 24, 1996),
fitted to these predictions and shrunk towards a weight of 1 on the prior: a general scorer, that knows networks of
other tasks, moved to the level of one's own. So it begins at the prior, and leaves it as far as one's own networks say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PRIOR = "prior"
COMPONENTS = ("raw components", "squashed components")
"""Candidates that see the principal components of what they are shown; the others see every column, standardised."""
KEPT = 8
"""Principal components: those of the published comparison."""
FEWEST = 30
"""Networks below which the prior stands alone: on slices of the bank with fewer nothing fitted ranked as well."""
WORTH = 3.0
"""Rows that the prior's weight, and its slope, count for."""
PENALTIES = torch.logspace(-3, 3, 13, dtype=torch.float64)
"""Tried, in rows of a network one standard deviation from the mean."""
TIED = 1e-3
"""Relative difference of two errors below which the larger penalty is taken, so that rounding does not decide."""
LEAST_SLOPE = 0.1
"""Of the prior: one's own networks may flatten it but not turn it round."""
CONSTANT = 1e-6
"""Standard deviation, relative to the largest value, of a column that says nothing."""
FOLDS = 10
"""In which weights are fitted on the others, to tell how far off the stack is."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows that are left out together."""

    places: Sequence[Tensor]
    """(groups, rows in each) long: the rows of all groups of one size, size after size."""
    count: int

    @staticmethod
    def of(names: Tensor) -> Groups:
        """Those of rows of the same name (n,)."""
        _, number, sizes = names.unique(return_inverse=True, return_counts=True)
        order = number.argsort(stable=True)
        starts = sizes.cumsum(0) - sizes
        places = [
            order[starts[sizes == size].unsqueeze(1) + torch.arange(size)] for size in sizes.unique().tolist()
        ]  # fmt: skip
        return Groups(places, len(sizes))

    def folds(self) -> Tensor:
        """(n,) long: as many folds as there are groups, :data:`FOLDS` at most, each group in one."""
        rows, number = [place.flatten() for place in self.places], []
        first = 0
        for place in self.places:
            number.append((first + torch.arange(len(place))).repeat_interleave(place.shape[1]))
            first += len(place)
        folds = torch.empty(sum(map(len, rows)), dtype=torch.long)
        folds[torch.cat(rows)] = torch.cat(number) % min(FOLDS, self.count)
        return folds


@dataclass(frozen=True, eq=False)
class Ridge:
    """Least squares with a penalty, and what it says of each group from the others alone."""

    centre: Tensor
    """(F,)."""
    slopes: Tensor
    """(F,)."""
    level: float
    low: Tensor
    """(F,) the smallest values seen; what lies beyond is taken for them."""
    high: Tensor
    """(F,)."""
    penalty: float
    left_out: Tensor
    """(n,) predictions for the rows fitted on, each by the fit without its group."""

    @staticmethod
    def fit(x: Tensor, directions: Tensor, y: Tensor, groups: Groups, penalties: Tensor = PENALTIES) -> Ridge:
        """Fit, with the penalty that does best on groups left out.

        Args:
            x: (n, F).
            directions: (F, k) in which x is seen; slopes in them are penalised alike.
            y: (n,).
            groups: Of the rows.
            penalties: To choose from.
        """
        centre, level = x.mean(0), y.mean()
        u, s, vh = torch.linalg.svd((x - centre) @ directions, full_matrices=False)
        along = u.mT @ y
        shrunk = s.square() / (s.square() + penalties.unsqueeze(1))  # (P, k)
        residuals = y - level - (shrunk * along) @ u.mT
        left_out = torch.empty_like(residuals)
        for place in groups.places:
            part, error = u[place], residuals[:, place]  # (G, m, k), (P, G, m)
            hat = (part * shrunk[:, None, None]) @ part.mT + 1 / len(x)
            unexplained = torch.eye(place.shape[1], dtype=x.dtype) - hat
            left_out[:, place] = y[place] - torch.linalg.solve(unexplained, error)
        errors = (left_out - y).square().mean(1)
        best = int((errors <= errors.min() * (1 + TIED)).nonzero()[-1])
        inverse = s / (s.square() + penalties[best])
        return Ridge(
            centre, directions @ (vh.mT @ (inverse * along)), float(level), x.amin(0), x.amax(0),
            float(penalties[best]), left_out[best],
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """(R,) of rows (R, F)."""
        return self.level + (x.clamp(self.low, self.high) - self.centre) @ self.slopes


def standardised(x: Tensor) -> Tensor:
    """(F, F) the columns of x (n, F), with equal parts of a variance of 1 in all; 0 for one that never varies."""
    spread = (x - x.mean(0)).square().mean(0).sqrt()
    varies = spread > CONSTANT * x.abs().amax(0).clamp(min=1.0)
    return torch.diag(varies / (spread.masked_fill(~varies, 1.0) * varies.sum().clamp(min=1).sqrt()))


def components(x: Tensor) -> Tensor:
    """(F, k) the first :data:`KEPT` principal directions of x (n, F), in a unit in which their variance in all is 1."""
    _, s, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    s, vh = s[:KEPT], vh[:KEPT]
    total = s.square().sum() / len(x)
    return vh.mT / total.sqrt() if total > CONSTANT**2 else vh.mT * 0.0


def line(prior: Tensor, y: Tensor, groups: Groups) -> Ridge:
    """The prior's predictions (n, 1) moved to the level of y (n,), with a slope shrunk towards 1."""
    worth = (WORTH * prior.var(correction=0)).clamp(min=CONSTANT**2)
    moved = Ridge.fit(prior, torch.ones(1, 1, dtype=y.dtype), y - prior[:, 0], groups, worth.view(1))
    return Ridge(
        moved.centre, (1 + moved.slopes).clamp(min=LEAST_SLOPE), float(y.mean()), moved.low, moved.high,
        float(worth), moved.left_out + prior[:, 0],
    )  # fmt: skip


def weights(predictions: Tensor, y: Tensor) -> Tensor:
    """(..., M) weights of M candidates, none negative: least squares, shrunk towards 1 on the first and 0 on the rest.

    There are so few that all sets of those which count are tried: the problem is convex, so the best of the
    solutions without a negative weight is the one.

    Args:
        predictions: (..., n, M) of rows left out, each candidate's less its mean.
        y: (..., n) less its mean.
    """
    count = predictions.shape[-1]
    worth = WORTH * y.square().mean(-1)[..., None, None]
    alike = predictions.mT @ predictions + worth * torch.eye(count, dtype=y.dtype)
    towards = (predictions.mT @ y.unsqueeze(-1))[..., 0] + worth[..., 0] * (torch.arange(count) == 0)
    sets = (torch.arange(2**count).unsqueeze(1) >> torch.arange(count)) % 2  # (sets, M)
    both = sets.unsqueeze(2) * sets.unsqueeze(1)
    system = alike.unsqueeze(-3) * both + torch.diag_embed(1 - sets)
    found = torch.linalg.solve(system, towards.unsqueeze(-2) * sets)
    cost = ((found @ alike) * found).sum(-1) - 2 * (found * towards.unsqueeze(-2)).sum(-1)
    best = cost.masked_fill((found < 0).any(-1), math.inf).argmin(-1)
    return found.gather(-2, best[..., None, None].expand(*best.shape, 1, count))[..., 0, :]


@dataclass(frozen=True, eq=False)
class Stack:
    """Candidates and their weights."""

    candidates: Mapping[str, Ridge]
    """The prior first."""
    weights: Tensor
    """(M,) of the candidates, none negative."""
    centre: Tensor
    """(M,) the mean of what each says of networks left out."""
    level: float
    """The mean of what is to be predicted."""
    residuals: Tensor
    """(n,) truth less what the stack says of each row: candidates and weights fitted without it."""

    @staticmethod
    def fit(views: Mapping[str, Tensor], context: Tensor, y: Tensor, groups: Groups) -> Stack:
        """Fit candidates, then weights.

        Args:
            views: What each candidate sees of n networks (n, F), the prior's prediction (n, 1) first; a view without
                a column makes none.
            context: (n, C) what all of them see besides.
            y: (n,).
            groups: Of the rows.
        """
        found = {PRIOR: line(views[PRIOR], y, groups)}
        if groups.count >= FEWEST:
            beside = standardised(context)
            for name, view in views.items():
                if name == PRIOR or not view.shape[1]:
                    continue
                seen = components(view) if name in COMPONENTS else standardised(view)
                x = torch.cat([view, context], 1)
                found[name] = Ridge.fit(x, torch.block_diag(seen, beside), y, groups)
        said = torch.stack([candidate.left_out for candidate in found.values()], 1)
        return Stack(found, _weights(said, y), said.mean(0), float(y.mean()), y - _unseen(said, y, groups.folds()))

    def __call__(self, views: Mapping[str, Tensor], context: Tensor) -> Tensor:
        """(R,) of the same views of other networks."""
        said = torch.stack(list(self.parts(views, context).values()), 1)
        return self.level + (said - self.centre) @ self.weights

    def parts(self, views: Mapping[str, Tensor], context: Tensor) -> dict[str, Tensor]:
        """What each candidate says (R,), its weight apart."""
        return {
            name: candidate(views[name] if name == PRIOR else torch.cat([views[name], context], 1))
            for name, candidate in self.candidates.items()
        }


def _weights(said: Tensor, y: Tensor) -> Tensor:
    if said.shape[1] == 1:
        return said.new_ones(1)
    return weights(said - said.mean(0), y - y.mean())


def _unseen(said: Tensor, y: Tensor, folds: Tensor) -> Tensor:
    """(n,) what the stack says of each row with weights from the other folds."""
    result = torch.empty_like(y)
    for fold in range(int(folds.max()) + 1):
        inside = folds == fold
        known, ends = said[~inside], y[~inside]
        result[inside] = ends.mean() + (said[inside] - known.mean(0)) @ _weights(known, ends)
    return result
