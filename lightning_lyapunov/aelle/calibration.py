"""What stands between raw predictions and what is said: the skill so far, intervals, and familiarity.

Everything here is fitted on predictions for networks of tasks that the predicting model had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows, Tensors

KNOTS = (0.0, 10.0, 40.0, 160.0, 800.0)
"""Updates at which calibration is fitted; in between it is interpolated on a logarithmic scale."""
TRUSTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""How much a spectrum may count beside the skill so far: what is tried. Above ½ more skill could count as less."""
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the autoencoders beside the ridge: what is tried."""
BINS = 5
"""Intervals differ between so many ranges of the prediction."""
COVERAGE = 0.8
UNFAMILIAR = 0.04
"""Share of the bank outside the interval of a network of which nothing is known."""
NEIGHBOURS, COMPONENTS = 5, 6
COMMON = 0.1
"""A spectrum is as familiar as can be while at least this share of those known are as isolated."""


@dataclass(frozen=True)
class Gate(Tensors):
    r"""What the spectrum says, weighed against the skill so far.

    .. math:: r = s + \kappa(u)\,(1 - s)^2\,p, \qquad \text{performance} = \sigma(a(u) + b(u)\, r)

    with s the skill after u updates and p the prediction that does not know it. A network that has not yet learnt
    anything is judged by its spectrum, one that has by how far it came: among networks of a task the spectrum cannot
    overrule the skill so far where that says more, since κ is what ranks best on tasks not seen, and may be 0.
    """

    trust: Tensor
    """(knots,) κ."""
    offset: Tensor
    """(knots,) a."""
    slope: Tensor
    """(knots,) b, positive."""

    @staticmethod
    def fit(prediction: Tensor, rows: Rows, skill: Tensor, groups: Tensor, weights: Tensor) -> Gate:
        """Choose κ by the rank correlation within groups (tasks), then the levels by least squares.

        Args:
            prediction: (R,) what is said without the skill so far.
            rows: R rows that know it.
            skill: (R,) final.
            groups: (R,) long; networks are only ranked within a group.
            weights: (R,).
        """
        known = ~rows.context[:, CONTEXT.index("skill")].isnan()
        if int(known.sum()) < 5:  # nothing to learn from: the skill so far will not count
            return Gate(*(prediction.new_full((len(KNOTS),), math.nan) for _ in range(3)))
        prediction, rows, skill, groups, weights = (
            prediction[known], rows[known], skill[known], groups[known], weights[known],
        )  # fmt: skip
        so_far, place = rows.context[:, CONTEXT.index("skill")], _place(rows)
        trust, offset, slope = [], [], []
        for knot in range(len(KNOTS)):
            near = (place - knot).abs() < 0.5
            if int(near.sum()) < 5:
                near = torch.ones_like(near)
            p, s, y = prediction[near], so_far[near], skill[near]
            ranked = [_mean_correlation(_combined(p, s, torch.tensor(k)), y, groups[near]) for k in TRUSTS]
            trust.append(TRUSTS[max(range(len(TRUSTS)), key=lambda i: (ranked[i], -i))])
            a, b = _logistic(_combined(p, s, torch.tensor(trust[-1])), y, weights[near])
            offset.append(a)
            slope.append(b)
        return Gate(*(torch.tensor(values, dtype=prediction.dtype) for values in (trust, offset, slope)))

    def __call__(self, prediction: Tensor, rows: Rows) -> Tensor:
        """Performance (R,); the prediction itself for rows that do not know their skill so far."""
        so_far, place = rows.context[:, CONTEXT.index("skill")], _place(rows)
        trust, offset, slope = (_at(values, place) for values in (self.trust, self.offset, self.slope))
        gated = torch.sigmoid(offset + slope * _combined(prediction, so_far, trust))
        return torch.where(gated.isnan(), prediction, gated)


def _combined(prediction: Tensor, so_far: Tensor, trust: Tensor) -> Tensor:
    return so_far + trust * (1 - so_far) ** 2 * prediction


@dataclass(frozen=True)
class Intervals(Tensors):
    """The 80 % interval around a prediction: how far off such predictions were for tasks not seen."""

    quantiles: Tensor
    """(8, knots, BINS, 2) of truth less prediction, by :func:`knowledge`, updates and prediction."""
    spread: Tensor
    """(2,) the interval of a network of which nothing is known."""

    @staticmethod
    def fit(prediction: Tensor, rows: Rows, skill: Tensor) -> Intervals:
        """Fit on rows of every state of knowledge that is wanted; states without rows get the widest interval."""
        tails = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=skill.dtype)
        place, known = _place(rows).round().long(), knowledge(rows)
        error = skill - prediction
        spread = skill.quantile(tails.new_tensor([UNFAMILIAR / 2, 1 - UNFAMILIAR / 2]))
        table = skill.new_empty(8, len(KNOTS), BINS, 2)
        for state in range(8):
            here = known == state
            for knot in range(len(KNOTS)):
                near = here & (place == knot)
                for b in range(BINS):
                    # Predictions of about the same size; ranges grow until they hold enough.
                    middle = (b + 0.5) / BINS
                    distance = (prediction - middle).abs()
                    cell = near & (distance <= 0.5 / BINS)
                    if int(cell.sum()) < 60:
                        pool = near if int(near.sum()) >= 60 else here
                        cell = pool & (distance <= 1.0 / BINS)
                        cell = cell if int(cell.sum()) >= 20 else pool
                    table[state, knot, b] = (
                        error[cell].quantile(tails) if int(cell.sum()) >= 5 else spread - prediction.mean()
                    )
        return Intervals(table, spread)

    def __call__(
        self, prediction: Tensor, rows: Rows, familiarity: Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ends (R,) and (R,); the less familiar, the wider.

        Args:
            prediction: (R,).
            rows: R rows.
            familiarity: (R,) of their spectra: below one half the interval gives way to the widest.
            share: (R,) of it that is left for what lies beyond the ranges seen; all if None.
        """
        place = _place(rows)
        position = (prediction * BINS - 0.5).clamp(0, BINS - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=BINS - 1)
        by_knot = self.quantiles[knowledge(rows)]  # (R, knots, BINS, 2)
        index = torch.arange(len(prediction))
        by_bin = torch.lerp(by_knot[index, :, low], by_knot[index, :, high], (position - low).view(-1, 1, 1))
        before = place.floor().long().clamp(max=len(KNOTS) - 2)
        error = torch.lerp(by_bin[index, before], by_bin[index, before + 1], (place - before).unsqueeze(1))
        ends = prediction.unsqueeze(1) + error
        near = (familiarity / 0.5).clamp(max=1.0)
        far = (1 - (near if share is None else near * share)).unsqueeze(1)
        widest = torch.stack([torch.minimum(ends[:, 0], self.spread[0]), torch.maximum(ends[:, 1], self.spread[1])], 1)
        ends = torch.lerp(ends, widest, far).clamp(0.0, 1.0)
        return torch.minimum(ends[:, 0], prediction), torch.maximum(ends[:, 1], prediction)


@dataclass(frozen=True)
class Shares(Tensors):
    """How much the autoencoders count beside the ridge: of each the more, the better it did on tasks not seen."""

    table: Tensor
    """(6, knots, heads) in [0, 1], by what is known (:meth:`state`), updates and head."""

    @staticmethod
    def equal(heads: int) -> Shares:
        """One half, for everything."""
        return Shares(torch.full((6, len(KNOTS), heads), 0.5))

    @staticmethod
    def state(rows: Rows) -> Tensor:
        """(R,) in 0..5: no spectrum, a part of it or all; from 3 on, the skill so far too."""
        unknown = rows.spectrum[:, :LEVELS].isnan()
        skill = ~rows.context[:, CONTEXT.index("skill")].isnan()
        return (~unknown[:, 0]).long() + (~unknown.any(1)).long() + 3 * skill.long()

    @staticmethod
    def fit(by_model: Tensor, by_ridge: Tensor, rows: Rows, wanted: Tensor, weights: Tensor) -> Shares:
        """Choose the shares by the squared error, for each state of knowledge that there are rows of.

        Args:
            by_model: ``(R, heads)`` what the autoencoders say.
            by_ridge: The same of the ridge.
            rows: R rows.
            wanted: ``(R, heads)`` what should be said; NaN where not known.
            weights: (R,).
        """
        parts = by_model.new_tensor(PARTS).view(-1, 1, 1)
        told = ~wanted.isnan()
        counts = told * weights.unsqueeze(1)
        errors = (torch.lerp(by_ridge, by_model, parts) - wanted).square().nan_to_num() * counts  # (parts, R, heads)
        place, state = _place(rows).round().long(), Shares.state(rows)
        table = Shares.equal(wanted.shape[1]).table.to(by_model.dtype)
        for known in range(6):
            here = told & (state == known).unsqueeze(1)
            for knot in range(len(KNOTS)):
                near = here & (place == knot).unsqueeze(1)
                near = torch.where(near.sum(0) >= 5, near, here)
                # Rounded, so that noise does not decide between two of the same.
                total = ((errors * near).sum(1) / (counts * near).sum(0)).round(decimals=4)
                table[known, knot] = torch.where(near.any(0), parts[total.argmin(0), 0, 0], table[known, knot])
        return Shares(table)

    def __call__(self, rows: Rows) -> Tensor:
        """(R, heads)."""
        by_knot, place = self.table[Shares.state(rows)], _place(rows)
        before = place.floor().long().clamp(max=len(KNOTS) - 2)
        index = torch.arange(len(rows))
        return torch.lerp(by_knot[index, before], by_knot[index, before + 1], (place - before).unsqueeze(1))


def knowledge(rows: Rows) -> Tensor:
    """(R,) in 0..7: whether the skill so far, the whole spectrum, and the kind of cell are known."""
    skill = ~rows.context[:, CONTEXT.index("skill")].isnan()
    whole = ~rows.spectrum[:, :LEVELS].isnan().any(1)
    kind = ~rows.context[:, 0].isnan()
    return skill.long() + 2 * whole.long() + 4 * kind.long()


@dataclass(frozen=True)
class Familiarity(Tensors):
    """How ordinary a spectrum is among those that a scorer was fitted on."""

    centre: Tensor
    """(LEVELS + 1,)."""
    components: Tensor
    """(LEVELS + 1, COMPONENTS): principal directions, scaled to unit variance."""
    reference: Tensor
    """(M, COMPONENTS): spectra of the bank."""
    distances: Tensor
    """(M,) sorted: how far each of them is from its nearest others."""

    @staticmethod
    def fit(rows: Rows, generator: torch.Generator, most: int = 1500) -> Familiarity:
        """Remember at most so many of the rows whose spectra are whole."""
        whole = rows.spectrum[~rows.spectrum.isnan().any(1)]
        if len(whole) == 0:
            whole = rows.spectrum.nan_to_num()
        centre = whole.mean(0)
        _, singular, directions = torch.linalg.svd(whole - centre, full_matrices=False)
        count = min(COMPONENTS, len(singular))
        scale = (singular[:count] / math.sqrt(len(whole))).clamp(min=0.05)
        components = directions[:count].mT / scale
        chosen = whole[torch.randperm(len(whole), generator=generator)[:most]]
        reference = (chosen - centre) @ components
        apart = torch.cdist(reference, reference)
        apart.fill_diagonal_(math.inf)
        nearest = apart.topk(min(NEIGHBOURS, max(len(reference) - 1, 1)), largest=False).values.mean(1)
        return Familiarity(centre, components, reference, nearest.sort().values)

    def joined_by(self, rows: Rows) -> Familiarity:
        """The same once these rows are known too: what is ordinary stays what it is."""
        seen = torch.where(rows.spectrum.isnan(), self.centre, rows.spectrum)
        return replace(self, reference=torch.cat([self.reference, (seen - self.centre) @ self.components]))

    def __call__(self, rows: Rows, is_unknown_kind: Tensor) -> Tensor:
        """(R,) in [0, 1].

        1 for spectra such as most of the bank's, below where fewer than a tenth of them are as isolated, 0 for what
        is more isolated than any; a quarter for a kind of cell that is none of those known; 0 where there is no
        spectrum. Unknown parts of one are taken to be ordinary.
        """
        seen = torch.where(rows.spectrum.isnan(), self.centre, rows.spectrum)
        there = (seen - self.centre) @ self.components
        count = min(NEIGHBOURS, len(self.reference))
        distance = torch.cdist(there, self.reference).topk(count, largest=False).values.mean(1)
        farther = 1 - torch.searchsorted(self.distances, distance).to(distance.dtype) / len(self.distances)
        ordinary = (farther / COMMON).clamp(max=1.0)
        ordinary = torch.where(is_unknown_kind, 0.25 * ordinary, ordinary)
        return torch.where(rows.spectrum.isnan().all(1), 0.0, ordinary)


def _place(rows: Rows) -> Tensor:
    """(R,) where the updates lie among the knots, in [0, knots - 1]; unknown counts as one epoch."""
    logs = rows.context[:, CONTEXT.index("log_updates")]
    marks = torch.tensor([math.log1p(knot / 10) for knot in KNOTS], dtype=logs.dtype)
    logs = torch.where(logs.isnan(), marks[2], logs).clamp(marks[0], marks[-1])
    before = (torch.searchsorted(marks, logs, right=True) - 1).clamp(0, len(KNOTS) - 2)
    return before + (logs - marks[before]) / (marks[before + 1] - marks[before])


def _at(values: Tensor, place: Tensor) -> Tensor:
    before = place.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[before], values[before + 1], place - before)


def _mean_correlation(score: Tensor, skill: Tensor, groups: Tensor) -> float:
    """Mean over groups of the rank correlation, rounded so that noise does not decide between two of the same."""
    found: Sequence[float] = [
        float(torch.corrcoef(torch.stack([_ranks(score[groups == g]), _ranks(skill[groups == g])]))[0, 1])
        for g in groups.unique()
        if int((groups == g).sum()) >= 5
    ]
    known = [value for value in found if not math.isnan(value)]
    return round(sum(known) / len(known), 3) if known else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks, ties averaged."""
    _, inverse, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).float()
    return (ends - (counts.float() - 1) / 2)[inverse]


def _logistic(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
    """A and b > 0 of σ(a + b x) nearest to y in cross-entropy, lightly regularised: Newton's method."""
    x, y, w = x.double(), y.double(), (weights / weights.sum() * len(x)).double()
    design = torch.stack([torch.ones_like(x), x], 1)
    beta = torch.tensor([0.0, 1.0], dtype=torch.float64)
    penalty = torch.tensor([0.0, 0.01 * len(x) / 100 + 0.01], dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(design @ beta)
        gradient = design.mT @ (w * (p - y)) + penalty * beta
        hessian = (design * (w * p * (1 - p)).unsqueeze(1)).mT @ design + torch.diag(penalty + 1e-6)
        step = torch.linalg.solve(hessian, gradient)
        beta = beta - step.clamp(-2.0, 2.0)
    return float(beta[0]), max(float(beta[1]), 0.1)
