r"""The precision law: how often tangent vectors must be made orthonormal again, and which exponents are to be trusted.

Between two reorthonormalisations the tangent vectors lean towards the fastest direction, and what is left of direction
*i* shrinks against rounding like :math:`e^{m(\lambda_1 - \lambda_i)}` over *m* steps. So the error of an exponent is
about

.. math:: \delta\lambda_i \approx 30\,u\, e^{g_i}, \qquad g_i = \max_{\text{intervals}} (\ln R_{11} - \ln R_{ii}),

with *u* the unit roundoff and *g* the *gap* that direction fell behind within one interval; behind the length of
the tangents, where that is more than :math:`R_{11}`, as it is where the fastest direction all but dies. Keeping the gap
under :func:`gap_budget` keeps the error under :data:`TOLERANCE`, a mean over many steps; an exponent whose gap stayed
there, and whose predecessors' did, is *trusted*. What blocks leave in a later direction, :math:`u e^{2\ell + g}`, is
counted as a gap too (:func:`gaps_in_blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.orthonormal import Blocks

TOLERANCE = 1e-3
"""Error of a trusted exponent, nats per step."""
SLACK = math.log(90)
"""How much farther, in nats, than a gap may go what a block leaves in a later direction: it acts by its square."""
PILOT = 8
"""Steps reorthonormalised one by one before the law first has a spread to go by."""
CAUTION = 0.8
"""Share of the budget that is aimed at once a stretch had to be pushed again, which costs twice."""
_MEMORY = 0.98
"""What is left of a remembered spread after one more interval."""


def log_pivots(diagonal: Tensor, steps: Sequence[int], size: int, length: Tensor | None = None) -> Tensor:
    r"""Logarithms of :math:`|R_{ii}|` in float64, told apart from what is not known.

    A direction below the rounding of the tangents, or at the end of the floating range, has left no trace in them:
    after a single step its growth is :math:`-\infty` (that Jacobian is singular as far as the arithmetic can see),
    after several it is NaN (unknown: the interval was too long). What overflowed is NaN too.

    Args:
        diagonal: ``(I, B, K)`` of I reorthonormalisations, in the type of the tangents.
        steps: (I,) steps since the one before.
        size: D, the length of a tangent vector.
        length: ``(I, B)`` of the tangents before each, their root mean square; 0 where it is not known.
    """
    info = torch.finfo(diagonal.dtype)
    resolution = 4 * math.sqrt(size) * unit_roundoff(diagonal.dtype)
    wide = diagonal.to(widest_dtype(diagonal.device))
    wide = wide.masked_fill(wide.isinf(), math.nan)
    top = wide.amax(-1, keepdim=True)
    if length is not None:  # a tangent may be long and yet all but in the span of those before it
        top = torch.maximum(top, length.to(wide.dtype).unsqueeze(-1))
    lost = wide <= (resolution * top).clamp(min=info.smallest_normal / info.eps)
    nothing = wide.new_full((len(steps), 1, 1), math.nan)
    for place, since in enumerate(steps):  # filled one by one: a list that is moved to a GPU makes the host wait
        if since == 1:
            nothing[place] = -math.inf
    return torch.where(lost, nothing, wide.log())


def gaps(log: Tensor, length: Tensor | None = None) -> Tensor:
    """How far each direction fell behind the fastest within an interval, of ``(..., K)`` growth in it: as many nats.

    Or behind the ``length`` ``(...)`` of the tangents, if that is more: their rounding is what it drowns in.
    """
    top = log.nan_to_num(nan=-math.inf).amax(-1, keepdim=True)
    if length is not None:
        top = torch.maximum(top, length.to(log.dtype).log().unsqueeze(-1))
    return top - log


def gaps_in_blocks(
    log: Tensor, blocks: Blocks, dtype: torch.dtype, length: Tensor | None = None, squares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for growth by :func:`~lightning_lyapunov.engine.orthonormal.by_blocks`, with what a block leaves later.

    Args:
        log: ``(..., K)`` growth in one interval.
        blocks: How the directions were divided.
        dtype: Floating type of the tangents.
        length: ``(...)`` of the tangents, their root mean square.
        squares: ``(..., K)`` what it sets; zeros where it sets nothing.

    Returns:
        The gaps ``(..., K)``; and () bool, whether some block or direction was beyond what this way can see at all, as
        where a direction is dead: a pivot of Cholesky's that is nothing but rounding need not look like one.
    """
    k, leaf = log.shape[-1], blocks.leaf
    count = math.ceil(k / leaf)
    padded = nn.functional.pad(log, (0, count * leaf - k), value=math.nan).unflatten(-1, (count, leaf))
    top = padded.nan_to_num(nan=-math.inf).amax(-1, keepdim=True)
    within = 2 * (top - padded)
    if blocks.careful_last:
        within[..., -1, :] = 0
    left = within.nan_to_num(nan=-math.inf).amax(-1, keepdim=True) + top
    before = torch.cat([torch.full_like(left[..., :1, :], -math.inf), left[..., :-1, :].cummax(-2).values], -2)
    within, across = within.flatten(-2)[..., :k], (before - padded).flatten(-2)[..., :k]
    u = unit_roundoff(dtype)
    # Where all that is left is float32, living directions fall so far behind that no way could tell them from dead.
    far = math.log(3e-2 / u) if dtype == torch.float64 else math.inf
    is_blind = (within > math.log(1e-3 / u)).any() | (across > far).any()
    if squares is not None:
        is_blind = is_blind | (squares.to(log.dtype).log() - 2 * log > math.log(1e-3 / u)).any()
    return torch.maximum(gaps(log, length), torch.maximum(within, across) - SLACK), is_blind


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, except on the one device that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of the numbers around 1."""
    return torch.finfo(dtype).eps / 2


def gap_budget(dtype: torch.dtype, steps: float = math.inf) -> float:
    """Largest gap, in nats within one interval, at which an exponent is still right to :data:`TOLERANCE`.

    Args:
        dtype: Floating type of the tangents.
        steps: Over how many the exponent is a mean, those of all sequences together: a single one may be off by
            twenty times as much as they are on average.
    """
    return math.log(TOLERANCE / (max(30.0, 600.0 / steps) * unit_roundoff(dtype)))


class PrecisionLaw:
    """Which floating type, interval and method the coming stretch may use, learnt from those before.

    Args:
        dtype: The widest type there is for this map.
        interval: Fixed by the user, or None.
        may_narrow: Whether float32 may be used where it loses nothing.
        limit: Longest interval.
        stretch: Steps to push before the law is asked again, at most; the limit if None.
        steps: Over how many exponents will be means, as for :func:`gap_budget`.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        interval: int | None,
        *,
        may_narrow: bool,
        limit: int,
        stretch: int | None = None,
        steps: float = math.inf,
    ) -> None:
        self.dtype = self._widest = dtype
        self.interval = interval or 1
        self.may_use_blocks = True
        self._adaptive = interval is None
        self._may_narrow = may_narrow and self._adaptive and dtype != torch.float32
        self._limit, self._stretch, self._steps = limit, stretch or limit, steps
        self._spread = 0.0
        self._learnt = 0  # steps
        self._failures = 0
        self._aim = 1.0  # share of the budget

    @property
    def budget(self) -> float:
        """Largest gap that is allowed at present."""
        return gap_budget(self.dtype, self._steps)

    @property
    def stretch(self) -> int:
        """Steps to push before the law is asked again: few at first, then more, and a whole number of intervals."""
        if not self._adaptive:
            return self.interval * max(1, self._stretch // self.interval)
        return min(self._stretch, max(PILOT, self._learnt))

    def limited(self, limit: int) -> PrecisionLaw:
        """One that begins with what this one has learnt, of another chain of the same map, for means over any steps."""
        law = PrecisionLaw(self._widest, None, may_narrow=self._may_narrow, limit=limit)
        if self._adaptive and self._learnt:
            law._learnt, law._spread = self._learnt, self._spread
            law._choose()
        return law

    def refuses(self, gap: float, failed: bool) -> bool:
        """Whether a stretch with this worst gap must be pushed again; if so, more carefully from now on."""
        is_careful = not self._adaptive or (self.interval == 1 and self.dtype == self._widest)
        if not failed and (is_careful or gap <= self.budget):
            return False
        if is_careful:
            if not self.may_use_blocks:
                return False
            self._failures += 1
            self.may_use_blocks = False
            return True
        self.dtype, self._aim = self._widest, CAUTION
        self.interval = 1 if failed else longest_interval(gap / self.interval, CAUTION * self.budget, self.interval)
        return True

    def learn(self, gap: float, intervals: int, longest: int) -> None:
        """Choose for the next stretch, from the worst gap of one that had so many intervals, the longest of so long."""
        self.may_use_blocks = self._failures < 3  # a map that fails again and again, as with dead units, always will
        if not self._adaptive:
            return
        self._learnt += intervals * longest
        remembered = self._spread * _MEMORY**intervals if self._spread < math.inf else 0.0
        self._spread = max(gap / longest, remembered)
        self._choose()

    def _choose(self) -> None:
        """The type and the interval that suit the spread."""
        if self._may_narrow:
            # Blocks in float32 see less than its budget allows, and a stretch that they fail at costs twice.
            # Below four steps an interval, what float32 saves in products it spends on reorthonormalising.
            budget = gap_budget(torch.float32, self._steps)
            if longest_interval(self._spread, budget, self._limit) >= 4:
                self.dtype = torch.float32
                self.interval = max(4, longest_interval(self._spread, CAUTION * budget, self._limit))
                return
        self.dtype = self._widest
        self.interval = longest_interval(self._spread, self._aim * self.budget, self._limit)


def longest_interval(spread: float, budget: float, limit: int) -> int:
    """Steps that may pass between reorthonormalisations while the frame spreads by ``spread`` nats per step."""
    if not spread < math.inf:
        return 1
    return max(1, min(limit, int(budget / max(spread, 1e-9))))
