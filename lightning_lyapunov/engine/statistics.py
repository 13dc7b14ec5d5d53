"""Means and their errors: what a spread says of a mean, and when two halves of a measurement agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALL = (12.706205, 4.302653, 3.182446, 2.776445)
"""Student's factor for 1 to 4 degrees of freedom."""
_NORMAL = 1.959964


def half_width(stderr: Tensor, samples: Tensor) -> Tensor:
    """Half-widths (K,) of the 95 % bars of means: Student's factor times their standard errors (K,)."""
    factors = {n: student(n - 1) for n in samples.unique().tolist()}
    return stderr * stderr.new_tensor([factors[n] for n in samples.tolist()])


def student(freedom: float) -> float:
    """Student's factor: standard errors on either side of a mean that hold the truth in 95 of 100 cases.

    Args:
        freedom: Degrees of freedom, above 0; samples less one for a mean. NaN below 1.

    Source: Abramowitz and Stegun 26.7.5, right to 1e-3 from 5 on; below, the published table.

    Example:
        >>> [round(student(n), 2) for n in (1, 3, 15, 1e9)]
        [12.71, 3.18, 2.13, 1.96]
    """
    if not freedom >= 1:
        return math.nan
    if freedom < 5:  # between the entries of the table its logarithm is close to linear in 1 / freedom
        low = min(int(freedom), 4)
        upper = _SMALL[low] if low < 4 else student(5.0)
        share = (1 / low - 1 / freedom) / (1 / low - 1 / (low + 1))
        return float(_SMALL[low - 1] * (upper / _SMALL[low - 1]) ** share)
    z, n = _NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (i + 1) for i, term in enumerate(terms))


def mean_and_error(sums: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean rates (K,) of samples whose ``sums`` ``(S, K)`` were made in ``weights`` (S,) steps, and their errors.

    Samples without steps do not count; the others weigh by their steps. With equal steps the error is the usual one,
    the standard deviation over √S. Where most samples live, those that are dead, :math:`-\infty`, are left out: one
    among many does not make a typical one dead.

    Returns:
        The means; their standard errors, NaN for fewer than two samples; and how many samples each comes from (K,).
    """
    sums, weights = sums[weights > 0], weights[weights > 0].to(sums.dtype).unsqueeze(1)
    dead = sums.isneginf()
    left_out = dead & (2 * dead.sum(0) < len(sums))
    weights = weights * (~left_out)
    total, count = weights.sum(0), (~left_out).sum(0)
    mean = torch.where(left_out, 0.0, sums).sum(0) / total
    share = weights / total
    rates = torch.where(left_out, mean, sums / weights)
    variance = (share * (rates - mean)).square().sum(0) * count / (count - 1)
    return mean, torch.where(count > 1, variance.sqrt(), math.nan), count


def agree_in_pairs(first: Tensor, second: Tensor, slack: float = 0.0) -> Tensor:
    """Whether (K,) paired samples ``(S, K)`` have the same mean, by Student's test at 5 %.

    Not if there are fewer than 2. Where both of a pair are the same infinity they differ by nothing. Means that differ
    by less than ``slack`` agree in any case.
    """
    if len(first) < 2:
        return torch.zeros_like(first[0] if len(first) else first.sum(0), dtype=torch.bool)
    difference = torch.where(first == second, 0.0, first - second)
    error = difference.std(0) / math.sqrt(len(difference))
    return difference.mean(0).abs() <= (student(len(difference) - 1) * error).clamp(min=slack)


def agree(first: Tensor, second: Tensor, slack: float = 0.0) -> Tensor:
    """Whether (K,) unpaired samples ``(S, K)`` and ``(S', K)`` have the same mean, by Welch's test at 5 %.

    Not if either has fewer than 2. Means that differ by less than ``slack`` agree in any case.
    """
    if min(len(first), len(second)) < 2:
        return torch.zeros_like(first.sum(0), dtype=torch.bool)
    same = (first == first[0]).all(0) & (second == first[0]).all(0)
    same = same | ((first.mean(0) - second.mean(0)).abs() <= slack)
    parts = [part.var(0) / len(part) for part in (first, second)]
    squares = sum(part.square() / (len(half) - 1) for part, half in zip(parts, (first, second), strict=True))
    freedom = (parts[0] + parts[1]).square() / squares
    factor = torch.tensor([student(n) for n in freedom.tolist()], dtype=first.dtype, device=first.device)
    return same | ((first.mean(0) - second.mean(0)).abs() <= factor * (parts[0] + parts[1]).sqrt())
