r"""Reorthonormalisation of tangent vectors, and the precision law that says how often it is needed.

Between two reorthonormalisations the tangent vectors lean towards the fastest direction, and what is left of direction
*i* shrinks against rounding like :math:`e^{m(\lambda_1 - \lambda_i)}` over *m* steps. So the error of an exponent is
about

.. math:: \delta\lambda_i \approx 30\,u\, e^{g_i}, \qquad g_i = \max_{\text{intervals}} (\ln R_{11} - \ln R_{ii}),

with *u* the unit roundoff and *g* the *gap* that direction fell behind within one interval. Keeping the gap under
:func:`gap_budget` keeps the error under :data:`TOLERANCE`; an exponent whose gap stayed there is *trusted*.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Error of a trusted exponent, nats per step."""
_MEMORY = 0.98
"""What is left of a remembered spread after one more interval."""


def reorthonormalise(tangents: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""Replace tangents ``(B, D, K)`` by an orthonormal frame of the same flag, and say how much each direction grew.

    Householder QR; the logarithms are float64 whatever the tangents are. A direction below the rounding of the fastest
    one, or at the end of the floating range, has left no trace in the tangents: after a single step its growth is
    :math:`-\infty` (that Jacobian is singular as far as the arithmetic can see), after several it is NaN (unknown: the
    interval was too long). What overflowed is NaN too.

    Args:
        tangents: Vectors as columns, D >= K.
        steps: Steps since the last reorthonormalisation.

    Returns:
        The frame ``(B, D, K)`` and :math:`\ln |R_{ii}|` ``(B, K)``.
    """
    frame, r = torch.linalg.qr(tangents)
    growth = r.diagonal(dim1=-2, dim2=-1).abs()
    if growth.device.type != "mps":
        growth = growth.double()
    growth = growth.masked_fill(growth.isinf(), math.nan)
    resolution = 4 * math.sqrt(tangents.shape[-2]) * unit_roundoff(tangents.dtype)
    smallest = torch.finfo(tangents.dtype).smallest_normal / torch.finfo(tangents.dtype).eps
    lost = growth <= (resolution * growth.amax(-1, keepdim=True)).clamp(min=smallest)
    return frame, torch.where(lost, -math.inf if steps == 1 else math.nan, growth.log())


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of the numbers around 1."""
    return torch.finfo(dtype).eps / 2


def gap_budget(dtype: torch.dtype) -> float:
    """Largest gap, in nats within one interval, at which an exponent is still right to :data:`TOLERANCE`."""
    return math.log(TOLERANCE / (30 * unit_roundoff(dtype)))


class PrecisionLaw:
    """Which floating type and interval the coming stretch may use, learnt from the gaps of those before.

    Args:
        dtype: The widest type there is for this map.
        interval: Fixed by the user, or None.
        may_narrow: Whether float32 may be used where it loses nothing.
        limit: Longest interval.
    """

    def __init__(self, dtype: torch.dtype, interval: int | None, *, may_narrow: bool, limit: int) -> None:
        self.dtype = self._widest = dtype
        self.interval = interval or 1
        self._adaptive = interval is None
        self._may_narrow = may_narrow and self._adaptive and dtype != torch.float32
        self._limit = limit
        self._spread = 0.0

    def is_breached_by(self, gap: float) -> bool:
        """Whether a stretch with this worst gap must be pushed again, more carefully."""
        careful = self.interval == 1 and self.dtype == self._widest
        return self._adaptive and not careful and not gap <= gap_budget(self.dtype)

    def retreat(self) -> None:
        """Be as careful as can be."""
        self.interval, self.dtype = 1, self._widest

    def learn(self, gap: float, intervals: int) -> None:
        """Choose for the next stretch, from the worst gap of one that had so many intervals."""
        if not self._adaptive:
            return
        per_step = gap / self.interval if gap < math.inf else math.inf
        remembered = self._spread * _MEMORY**intervals if self._spread < math.inf else 0.0
        self._spread = max(per_step, remembered)
        if self._may_narrow:
            # Below four steps an interval, what float32 saves in products it spends on reorthonormalising.
            narrow = longest_interval(self._spread, torch.float32, self._limit) >= 4
            self.dtype = torch.float32 if narrow else self._widest
        self.interval = longest_interval(self._spread, self.dtype, self._limit)


def longest_interval(spread: float, dtype: torch.dtype, limit: int) -> int:
    """Steps that may pass between reorthonormalisations while the frame spreads by ``spread`` nats per step."""
    if not spread < math.inf:
        return 1
    return max(1, min(limit, int(gap_budget(dtype) / max(spread, 1e-9))))
