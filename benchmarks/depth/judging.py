"""How well scores tell apart who learns, and how sure that is: nothing here knows of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Z = 1.959964
"""Of a 95 % interval."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_above_zero(self) -> bool:
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        return self.high < 0


def resamples(groups: Array) -> Array:
    """``(R + 1, N)`` how often each row is taken: once in the first place, then as drawn anew within each group."""
    chance = np.random.default_rng(0)
    taken = np.ones((RESAMPLES + 1, len(groups)))
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        taken[1:, mine] = chance.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), RESAMPLES)
    return taken


def aucs(scores: Array, learned: Array, groups: Array, taken: Array) -> Array:
    """(R,) share of pairs, of one that learned and one of its group that did not, in which the first scores higher.

    Ties count half. NaN without any pair.
    """
    right = pairs = np.zeros(len(taken))
    for group in np.unique(groups):
        yes, no = (np.flatnonzero((groups == group) & (learned == is_)) for is_ in (True, False))
        higher = scores[yes][:, None] > scores[no]
        wins = higher + 0.5 * (scores[yes][:, None] == scores[no])
        right = right + ((taken[:, yes] @ wins) * taken[:, no]).sum(1)
        pairs = pairs + taken[:, yes].sum(1) * taken[:, no].sum(1)
    return np.divide(right, pairs, out=np.full(len(taken), math.nan), where=pairs > 0)


def rank_correlations(scores: Array, results: Array, groups: Array, taken: Array) -> Array:
    """(R,) Spearman's ρ, the mean over groups by their size; ranks are those among all rows of the group."""
    total = np.zeros(len(taken))
    for group in np.unique(groups):
        mine = groups == group
        weights = taken[:, mine] / mine.sum()
        centred = [ranks - (weights @ ranks)[:, None] for ranks in (rankdata(scores[mine]), rankdata(results[mine]))]
        first, second = centred
        both, *own = ((weights * product).sum(1) for product in (first * second, first**2, second**2))
        spread = np.sqrt(own[0] * own[1])
        total += mine.sum() * np.divide(both, spread, out=np.zeros(len(taken)), where=spread > 0)
    return total / len(groups)


def estimate(values: Array) -> Estimate:
    """The first value, and the 95 % percentile interval of the others."""
    known = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
    return Estimate(float(values[0]), float(low), float(high))


def auc_of(scores: Array, learned: Array, groups: Array) -> Estimate:
    return estimate(aucs(scores, learned, groups, resamples(groups)))


def auc_gain(scores: Array, others: Array, learned: Array, groups: Array) -> Estimate:
    """By how much the AUC of scores is above that of others, in the same rows."""
    taken = resamples(groups)
    return estimate(aucs(scores, learned, groups, taken) - aucs(others, learned, groups, taken))


def correlation_of(scores: Array, results: Array, groups: Array) -> Estimate:
    return estimate(rank_correlations(scores, results, groups, resamples(groups)))


def correlation_gain(scores: Array, others: Array, results: Array, groups: Array) -> Estimate:
    """The same of rank correlations with the result."""
    taken = resamples(groups)
    one, other = (rank_correlations(each, results, groups, taken) for each in (scores, others))
    return estimate(one - other)


def wilson(hits: int, count: int) -> Estimate:
    """A share and Wilson's interval, JASA 22 (1927) 209-212; all of 0 to 1 where nothing was counted."""
    if not count:
        return Estimate(math.nan, 0.0, 1.0)
    share, spread = hits / count, Z * Z / count
    centre, half = share + spread / 2, Z * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return Estimate(share, max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread)))


def less(first: Sequence[int], second: Sequence[int]) -> Estimate:
    """How far the share of the second, (hits, count), is above that of the first.

    Newcombe's interval 10, Stat. Med. 17 (1998) 873-890.
    """
    one, other = wilson(*first), wilson(*second)
    value = other.value - one.value
    low = value - math.hypot(other.value - other.low, one.high - one.value)
    return Estimate(value, low, value + math.hypot(other.high - other.value, one.value - one.low))
