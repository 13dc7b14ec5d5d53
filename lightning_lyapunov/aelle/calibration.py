"""What stands between predictions and what is said of them: intervals, familiarity, and what the spectrum is worth.

Everything here is fitted on predictions for networks of tasks that the predicting model had not seen.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import RANKED
from lightning_lyapunov.aelle.combining import Pairs
from lightning_lyapunov.aelle.features import Rows, Tensors
from lightning_lyapunov.aelle.fitting import CLEAR
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, SKILL, STATES, between, near_knots, place, rung, state

BINS = 5
"""Intervals differ between so many ranges of the prediction."""
COVERAGE = 0.8
UNFAMILIAR = 0.04
"""Share of the bank outside the interval of a network of which nothing is known."""
FEWEST = 60
"""Rows that an interval rests on."""
NEIGHBOURS, COMPONENTS = 5, 6
COMMON = 0.1
"""A spectrum is as familiar as can be while at least this share of those known are as isolated."""


@dataclass(frozen=True)
class Intervals(Tensors):
    """The 80 % interval around a prediction: how far off such predictions were for tasks not seen."""

    quantiles: Tensor
    """(STATES, knots, BINS, 2) of truth less prediction, by what is known, updates and prediction."""
    spread: Tensor
    """(2,) the interval of a network of which nothing is known."""

    @staticmethod
    def fit(prediction: Tensor, rows: Rows, skill: Tensor, weights: Tensor) -> Intervals:
        """Fit on rows of every state of knowledge that is wanted; states without rows get the widest interval.

        Args:
            prediction: (R,).
            rows: R rows.
            skill: (R,) final.
            weights: (R,).
        """
        tails = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=skill.dtype)
        spread = weighted_quantile(skill, weights, skill.new_tensor([UNFAMILIAR / 2, 1 - UNFAMILIAR / 2]))
        table = (spread - prediction.mean()).expand(STATES, len(KNOTS), BINS, 2).clone()
        there, known = place(rows), state(rows)
        for number in known.unique().tolist():
            inside = known == number
            said, error, w, at = prediction[inside], (skill - prediction)[inside], weights[inside], there[inside]
            near_by = near_knots(at, FEWEST)
            for near, knots in near_by:
                for b in range(BINS):
                    # Predictions of about the same size; the range grows until it holds enough.
                    distance = (said[near] - (b + 0.5) / BINS).abs()
                    enough = distance.sort().values[min(FEWEST, len(near)) - 1].clamp(min=0.5 / BINS)
                    cell = near[distance <= enough]
                    table[number, knots, b] = weighted_quantile(error[cell], w[cell], tails)
            # Ends that many networks reach, no skill or all of it, hold more than their share: until 80 % are inside.
            below, above = _between_bins(table[number], said, at).unbind(1)
            factor = torch.maximum(error / above.clamp(min=1e-3), error / below.clamp(max=-1e-3))
            for near, knots in near_by:
                table[number, knots] *= weighted_quantile(factor[near], w[near], factor.new_tensor([COVERAGE]))
        return Intervals(table, spread)

    def __call__(self, prediction: Tensor, rows: Rows, familiarity: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Ends (R,) and (R,); the less familiar, the wider.

        Args:
            prediction: (R,).
            rows: R rows.
            familiarity: (R,) of their spectra: below one half the interval gives way to the widest.
            share: (R,) of it that is left for what lies beyond the ranges seen.
        """
        ends = prediction.unsqueeze(1) + _between_bins(self.quantiles[state(rows)], prediction, place(rows))
        far = (1 - (familiarity / 0.5).clamp(max=1.0) * share).unsqueeze(1)
        widest = torch.stack([torch.minimum(ends[:, 0], self.spread[0]), torch.maximum(ends[:, 1], self.spread[1])], 1)
        ends = torch.lerp(ends, widest, far).clamp(0.0, 1.0)
        return torch.minimum(ends[:, 0], prediction), torch.maximum(ends[:, 1], prediction)


def _between_bins(table: Tensor, prediction: Tensor, place: Tensor) -> Tensor:
    """(R, 2) of a table ``(knots, BINS, 2)``, or one for each row, at predictions and places (R,)."""
    position = (prediction * BINS - 0.5).clamp(0, BINS - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=BINS - 1)
    by_knot, index = table.expand(len(prediction), -1, -1, -1), torch.arange(len(prediction))
    by_bin = torch.lerp(by_knot[index, :, low], by_knot[index, :, high], (position - low).view(-1, 1, 1))
    return between(by_bin, place)


def weighted_quantile(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of values (n,) that count by their weights (n,), at levels in [0, 1]."""
    order = values.argsort()
    total = weights[order].double().cumsum(0)
    middle = (total - weights[order].double() / 2) / total[-1]
    above = torch.searchsorted(middle, levels.double()).clamp(1, max(len(values) - 1, 1))
    low, high = above - 1, above.clamp(max=len(values) - 1)
    gap = (middle[high] - middle[low]).clamp(min=1e-12)
    share = ((levels.double() - middle[low]) / gap).clamp(0.0, 1.0).to(values.dtype)
    return torch.lerp(values[order][low], values[order][high], share)


@dataclass(frozen=True)
class Worth(Tensors):
    """What the spectrum adds to everything else that is known, for networks of families not seen.

    In pairs of networks of one task that are put in the right order, as a share of all such pairs: an area under the
    ROC curve for failure and take-off.
    """

    gain: Tensor
    """(2, rungs, knots, RANKED): skill so far known or not, mean over families; NaN where it is not known."""
    error: Tensor
    """Its standard errors."""

    @staticmethod
    def unknown() -> Worth:
        """That of a scorer that was never compared."""
        table = torch.full((2, len(RUNGS), len(KNOTS), RANKED), math.nan, dtype=torch.float32)
        return Worth(table, table.clone())

    @staticmethod
    def fit(said: Tensor, without: Tensor, rows: Rows, wanted: Tensor, groups: Tensor, families: Tensor) -> Worth:
        """Compare predictions with and without the spectrum, by models that had not seen the rows' families.

        Args:
            said: ``(R, RANKED)`` from whole spectra.
            without: The same without.
            rows: R rows, of any states of knowledge.
            wanted: ``(R, RANKED)``.
            groups: (R,) long: rows are ranked within a group.
            families: (R,) long.
        """
        worth = Worth.unknown()
        nearest, known, height = place(rows).round().long(), (~rows.context[:, SKILL].isnan()).long(), rung(rows)
        both = torch.stack([said, without], -1).double()
        for skill, r, knot in itertools.product((0, 1), range(len(RUNGS)), range(len(KNOTS))):
            here = ((known == skill) & (height == r) & (nearest == knot)).nonzero()[:, 0]
            for head in range(RANKED):
                gains = []
                for family in families[here].unique():
                    use = here[families[here] == family]
                    use = use[~wanted[use, head].isnan()]
                    ones, clear = torch.ones(len(use)), CLEAR if head == 0 else 1.0
                    pair = Pairs.of(wanted[use, head], ones, groups[use], clear).concordance(both[use, head])
                    if not bool(pair.isnan().any()):
                        gains.append(pair[0] - pair[1])
                if len(gains) >= 3:
                    by_family = torch.stack(gains)
                    worth.gain[skill, r, knot, head] = by_family.mean()
                    worth.error[skill, r, knot, head] = by_family.std() / math.sqrt(len(gains))
        return worth

    def speaks(self, rows: Rows) -> Tensor:
        """(R, RANKED) bool: whether the spectrum adds more than twice its standard error."""
        skill = (~rows.context[:, SKILL].isnan()).long()
        index = (skill, rung(rows), place(rows).round().long())
        return self.gain[index] > 2 * self.error[index]


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
