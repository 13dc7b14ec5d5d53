"""How sure a share is, where networks of one family are alike: bounds of Clopper and Pearson for clusters."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.95
"""Of every bound, one-sided."""


def upper_bound(happened: np.ndarray, families: np.ndarray, level: float = LEVEL) -> float:
    r"""The share that the truth lies below in 95 of 100 cases; of nothing seen 1.

    The exact bound of Clopper and Pearson for :math:`n^* = n / d \cdot (t_{n-1} / t_{m-1})^2` networks instead of n,
    with d the factor by which m families make the variance of the share larger than n independent networks would, at
    least 1, and t Student's factors. Where it happened to none, or to all, d cannot be told and is 1.

    Args:
        happened: (n,) bool, whether it did, of each network.
        families: (n,) the family of each.
        level: Of the bound.

    Source: Korn and Graubard, Survey Methodology 24 (1998) 193-201.

    Example:
        >>> round(upper_bound(np.zeros(99, bool), np.arange(99)), 3)  # 1 - 0.05^(1/99)
        0.03
    """
    from scipy.stats import beta, t

    n = len(happened)
    if n == 0:
        return math.nan
    share, effective = float(happened.mean()), float(n)
    clusters = [happened[families == family] for family in np.unique(families)]
    m = len(clusters)
    if 0 < share < 1:
        residuals = np.array([float((cluster - share).sum()) for cluster in clusters])
        variance = m / (m - 1) * float((residuals**2).sum()) / n**2 if m > 1 else math.inf
        effect = max(variance / (share * (1 - share) / (n - 1)), 1.0)
        factor = t.ppf(level, n - 1) / t.ppf(level, m - 1) if m > 1 else 1.0
        effective = max(n / effect * min(factor, 1.0) ** 2, 1.0)
    counted = share * effective
    return float(beta.ppf(level, counted + 1, effective - counted)) if share < 1 else 1.0


def lower_bound(happened: np.ndarray, families: np.ndarray, level: float = LEVEL) -> float:
    """The share that the truth lies above in 95 of 100 cases."""
    return 1 - upper_bound(~happened, families, level)
