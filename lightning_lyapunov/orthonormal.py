r"""Reorthonormalisation of tangent vectors, and the precision law that says how often it is needed.

Between two reorthonormalisations the tangent vectors lean towards the fastest direction, and what is left of direction
*i* shrinks against rounding like :math:`e^{m(\lambda_1 - \lambda_i)}` over *m* steps. So the error of an exponent is
about

.. math:: \delta\lambda_i \approx 30\,u\, e^{g_i}, \qquad g_i = \max_{\text{intervals}} (\ln R_{11} - \ln R_{ii}),

with *u* the unit roundoff and *g* the *gap* that direction fell behind within one interval; behind the length of
the tangents, where that is more than :math:`R_{11}`, as it is where the fastest direction all but dies. Keeping the gap
under :func:`gap_budget` keeps the error under :data:`TOLERANCE`, a mean over many steps; an exponent whose gap stayed
there, and whose predecessors' did, is *trusted*.

Two ways lead to the same triangle. :func:`by_householder` is exact to rounding. :func:`by_blocks` is all products of
matrices and two to three times faster where there are enough directions and sequences: blocks of :data:`LEAF` are made
orthonormal by Cholesky of their Gram matrix, and taken out of all later ones; the last of several, where the spectrum
of a square matrix drops off, by Householder. A Gram matrix squares what it sees, so a block that spreads by
:math:`\ell` nats is orthonormal to :math:`u e^{2\ell}` only. That is no error of the exponents by itself, as
tangents = triangle · frame holds to rounding all the same and the next interval starts from that frame, as long as what
it leaves in a later direction, :math:`u e^{2\ell + g}`, is small: :func:`gaps_in_blocks` counts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Error of a trusted exponent, nats per step."""
LEAF = 32
"""Directions that are orthonormalised at once by Cholesky."""
SLACK = math.log(90)
"""How much farther, in nats, than a gap may go what a block leaves in a later direction: it acts by its square."""
_ENOUGH = 128
"""Directions times sequences from which on products beat LAPACK's loops on a CPU."""
PILOT = 8
"""Steps reorthonormalised one by one before the law first has a spread to go by."""
_MEMORY = 0.98
"""What is left of a remembered spread after one more interval."""


def prefers_blocks(tangents: Tensor) -> bool:
    """Whether blocks are the faster way for tangents ``(B, D, K)``: but for few of them on a CPU, they are."""
    if tangents.device.type == "mps":
        return False  # not all that they need is there
    return tangents.device.type != "cpu" or tangents.shape[0] * tangents.shape[2] >= _ENOUGH


def by_householder(tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal frame of tangents ``(B, D, K)`` with the same flag, and :math:`|R_{ii}|` ``(B, K)``."""
    frame, r = torch.linalg.qr(tangents)
    return frame, r.diagonal(dim1=-2, dim2=-1).abs()


def by_blocks(tangents: Tensor, failed: Tensor, squares: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by recursive block Gram-Schmidt; nothing is read from the device.

    Args:
        tangents: ``(B, D, K)``; overwritten where their columns are contiguous.
        failed: (B,) int32, set to other than 0 for sequences in which a block was not positive definite: their frame
            and diagonal are nonsense.
        squares: ``(B, K)``, set to the squared lengths of what blocks were made orthonormal from, where that was by
            Cholesky: a pivot that is nothing but rounding is known by them.
    """
    rows = tangents.mT.contiguous()
    diagonal = rows.new_empty(rows.shape[:2])
    squares = torch.empty_like(diagonal) if squares is None else squares
    _orthonormalise_rows(rows, diagonal, squares, failed, with_last=rows.shape[1] > LEAF)
    return rows.mT, diagonal


def _orthonormalise_rows(rows: Tensor, diagonal: Tensor, squares: Tensor, failed: Tensor, *, with_last: bool) -> None:
    """Make rows ``(B, K, D)`` orthonormal in place, first to last; the last block, if it is here, by Householder."""
    k = rows.shape[1]
    if k > LEAF:
        middle = (k // 2 + LEAF - 1) // LEAF * LEAF
        first, rest = rows[:, :middle], rows[:, middle:]
        _orthonormalise_rows(first, diagonal[:, :middle], squares[:, :middle], failed, with_last=False)
        rest.baddbmm_(rest @ first.mT, first, alpha=-1)
        _orthonormalise_rows(rest, diagonal[:, middle:], squares[:, middle:], failed, with_last=with_last)
        return
    if with_last:
        frame, size = by_householder(rows.mT)
        rows.copy_(frame.mT)
        diagonal.copy_(size)
        return
    gram = rows @ rows.mT
    triangle, info = torch.linalg.cholesky_ex(gram)
    failed.bitwise_or_(info)
    squares.copy_(gram.diagonal(dim1=-2, dim2=-1))
    diagonal.copy_(triangle.diagonal(dim1=-2, dim2=-1))
    # From the right and on columns, which is how LAPACK holds them: four times faster than from the left.
    rows.copy_(torch.linalg.solve_triangular(triangle.mT, rows.mT, upper=True, left=False).mT)


def growth(diagonal: Tensor, steps: Sequence[int], size: int, length: Tensor | None = None) -> Tensor:
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
    wide = diagonal if diagonal.device.type == "mps" else diagonal.double()
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
    log: Tensor, dtype: torch.dtype, length: Tensor | None = None, squares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for growth found by :func:`by_blocks`, with what blocks leave in later directions.

    Args:
        log: ``(..., K)`` growth in one interval.
        dtype: Floating type of the tangents.
        length: ``(...)`` of the tangents, their root mean square.
        squares: ``(..., K)`` what :func:`by_blocks` sets; zeros where it sets nothing.

    Returns:
        The gaps ``(..., K)``; and () bool, whether some block or direction was beyond what this way can see at all, as
        where a direction is dead: a pivot of Cholesky's that is nothing but rounding need not look like one.
    """
    k = log.shape[-1]
    blocks = math.ceil(k / LEAF)
    padded = nn.functional.pad(log, (0, blocks * LEAF - k), value=math.nan).unflatten(-1, (blocks, LEAF))
    top = padded.nan_to_num(nan=-math.inf).amax(-1, keepdim=True)
    within = 2 * (top - padded)
    if blocks > 1:
        within[..., -1, :] = 0  # by Householder
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
        steps: Over how many exponents will be means, as for :func:`gap_budget`.
    """

    def __init__(
        self, dtype: torch.dtype, interval: int | None, *, may_narrow: bool, limit: int, steps: float = math.inf
    ) -> None:
        self.dtype = self._widest = dtype
        self.interval = interval or 1
        self.may_use_blocks = True
        self._adaptive = interval is None
        self._may_narrow = may_narrow and self._adaptive and dtype != torch.float32
        self._limit, self._steps = limit, steps
        self._spread = 0.0
        self._has_learnt = False
        self._failures = 0

    @property
    def budget(self) -> float:
        """Largest gap that is allowed at present."""
        return gap_budget(self.dtype, self._steps)

    @property
    def stretch(self) -> int:
        """Steps to push before the law is asked again: few at first, and a whole number of intervals."""
        if not self._adaptive:
            return self.interval * max(1, self._limit // self.interval)
        return self._limit if self._has_learnt else PILOT

    def refuses(self, gap: float, failed: bool) -> bool:
        """Whether a stretch with this worst gap must be pushed again; if so, more carefully from now on."""
        careful = not self._adaptive or (self.interval == 1 and self.dtype == self._widest)
        if failed and self.may_use_blocks:
            self._failures += 1
            self.may_use_blocks = False
        elif careful or gap <= self.budget:
            return False
        if self._adaptive:
            self.interval, self.dtype = 1, self._widest
        return True

    def learn(self, gap: float, intervals: int) -> None:
        """Choose for the next stretch, from the worst gap of one that had so many intervals."""
        self.may_use_blocks = self._failures < 3  # a map that fails again and again, as with dead units, always will
        if not self._adaptive:
            return
        self._has_learnt = True
        remembered = self._spread * _MEMORY**intervals if self._spread < math.inf else 0.0
        self._spread = max(gap / self.interval, remembered)
        if self._may_narrow:
            # Below four steps an interval, what float32 saves in products it spends on reorthonormalising.
            narrow = longest_interval(self._spread, gap_budget(torch.float32, self._steps), self._limit) >= 4
            self.dtype = torch.float32 if narrow else self._widest
        self.interval = longest_interval(self._spread, self.budget, self._limit)


def longest_interval(spread: float, budget: float, limit: int) -> int:
    """Steps that may pass between reorthonormalisations while the frame spreads by ``spread`` nats per step."""
    if not spread < math.inf:
        return 1
    return max(1, min(limit, int(budget / max(spread, 1e-9))))
