r"""The leading singular values of a product of Jacobians that is known by what it does to vectors alone.

.. math:: J = J_D \cdots J_1, \qquad Z = J^\top U, \quad W = J V

Block Golub-Kahan-Lanczos with full reorthogonalisation, for each sample by itself: a few random cotangents U are pulled
back, what is new in Z is made orthonormal and pushed, what is new in W is pulled, and so on. The largest singular
values of J on the space V are never above the true ones, and close in on them with the square of the residual

.. math:: r_i = \|J^\top u_i - \theta_i v_i\|, \qquad u_i, \theta_i, v_i \text{ the Ritz triples},

which costs nothing, as all that it needs is there. At last the leading v_i are pushed once more with a QR at each
block: its triangles give the values, half a step better, and the share of each block.

Vectors are scaled at every block, sample by sample, so that nothing over- or underflows in deep chains.

Sources: Golub, Luk, Overton, ACM TOMS 7 (1981) 149-169; bounds: Parlett, The Symmetric Eigenvalue Problem (1998),
theorems 4.6.1 (Krylov-Weinstein) and 11.7.1 (Kato-Temple).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.maps.blocks import BlockSteps

_ROUNDING = 16.0
"""Units in the last place, times the root of the number of values, below the largest at which rounding hides others."""
_AGREE = 1e-2
"""Share of their size by which products with J and with its transpose may differ: float32 leaves far less."""
_NOTHING = 100.0
"""Units in the last place to which what passes may shrink and be more than rounding."""


class Map:
    """The whole of a chain's steps, as one matrix for each sample.

    Args:
        steps: The Jacobians.
        ends: Which entries of the first state and of the last count, ``(B, D)`` 1 or 0; all where None.

    Attributes:
        ends: The same.
        scale: (B,) nats, set by the first product: all are e^scale times what is returned.
    """

    def __init__(self, steps: BlockSteps, ends: tuple[Tensor | None, Tensor | None] = (None, None)) -> None:
        self._steps, self.ends = steps, ends
        self.scale: Tensor | None = None

    def push(self, tangents: Tensor) -> Tensor:
        """``J V`` ``(B, D', K)``, over e^scale."""
        return self._carried(tangents, back=False)

    def pull(self, cotangents: Tensor) -> Tensor:
        """``Jᵀ U`` ``(B, D, K)``, over e^scale."""
        return self._carried(cotangents, back=True)

    def _carried(self, vectors: Tensor, *, back: bool) -> Tensor:
        first, last = self.ends[::-1] if back else self.ends
        vectors = restricted(vectors, first)
        moved, scale = self._through(self._steps.stretches, vectors, back=back)
        if len(self._steps.stretches) < len(self._steps) and not bool(scale.isfinite().all()):
            moved, scale = self._through([range(t, t + 1) for t in range(len(self._steps))], vectors, back=back)
        scale = torch.where(scale.isfinite(), scale, 0.0)
        if self.scale is None:
            self.scale = scale
        return restricted(moved, last) * (scale - self.scale).clamp(max=80.0).exp()[:, None, None]

    def _through(self, stretches: Sequence[range], vectors: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        """Vectors of about length 1, and the logarithm of what they were scaled by, -inf if nothing is left."""
        scale = vectors.new_zeros(len(vectors))
        for stretch in reversed(stretches) if back else stretches:
            vectors = self._steps.carry(stretch, vectors, back=back)
            length = torch.linalg.vector_norm(vectors, dim=(-2, -1))
            vectors, scale = vectors / torch.where(length > 0, length, 1.0)[:, None, None], scale + length.log()
        return vectors, scale


def restricted(vectors: Tensor, counts: Tensor | None) -> Tensor:
    """Vectors ``(B, D, K)`` without the entries that do not count: ``counts`` ``(B, D)`` is 0 there, 1 elsewhere."""
    return vectors if counts is None else vectors * counts.unsqueeze(-1)


@dataclass(frozen=True)
class Effort:
    """How exactly the values are to be found, and what that may take."""

    tolerance: float
    """Nats to which the logarithm of the largest is to be right; the others to ten times that."""
    most: int
    """Blocks of vectors that are pushed at most."""

    def tolerances(self, like: Tensor) -> Tensor:
        """That of each value ``(B, K)``."""
        wanted = torch.full_like(like, 10 * self.tolerance)
        wanted[:, 0] = self.tolerance
        return wanted


@dataclass(frozen=True)
class Leading:
    """What was found of a map."""

    right: Tensor
    """``(B, D, K)`` orthonormal: the leading right singular vectors, as far as they are found."""
    left: Tensor
    """``(B, D', P)`` orthonormal cotangents that were pulled."""
    pulled: Tensor
    """``(B, D, P)`` what they were pulled to, over e^scale."""
    error: Tensor
    """``(B, K)`` nats: how far the logarithms of the values may still be below the true ones; inf for those so far
    below the largest that rounding hides them."""


def leading(chain: Map, start: Tensor, k: int, rank: int, effort: Effort) -> Leading:
    """Find the k leading right singular vectors.

    Args:
        chain: The map J.
        start: ``(B, D', P)`` random orthonormal cotangents to begin with, as many as are carried at once; where they
            fill the space, one pull tells all.
        k: How many, at most ``rank``.
        rank: That the map can have at most, by the widths on the way.
        effort: When to end.

    Raises:
        ValueError: If J and its transpose do not belong together.
    """
    left, pulled = start, chain.pull(start)
    if left.shape[-1] >= min(left.shape[1], rank):
        right, _ = _ritz(pulled)
        _check(chain, left, pulled, right[..., :1], chain.push(right[..., :1]))
        return Leading(right[..., :k], left, pulled, pulled.new_zeros(len(pulled), k))
    fresh = _new(pulled, None, rank)
    right, pushed = fresh, chain.push(fresh)
    _check(chain, left, pulled, right, pushed)
    error = pulled.new_full((len(pulled), k), torch.inf)
    for made in range(1, effort.most + 1):
        vectors, values, inner = _decomposed(pushed)
        is_full = right.shape[-1] >= rank
        beyond = _beyond(pushed[..., -fresh.shape[-1] :], left, seed=made)
        fresh = _new(beyond, left, rank - left.shape[-1] if is_full else start.shape[-1])
        if fresh.shape[-1]:
            left, pulled = torch.cat([left, fresh], -1), torch.cat([pulled, chain.pull(fresh)], -1)
        residual = pulled @ (left.mT @ vectors) - right @ (inner * values.unsqueeze(-2))
        lengths = torch.linalg.vector_norm(residual, dim=-2)
        now = errors(values, lengths, k).masked_fill(is_rounding(values, values)[:, :k], torch.inf)
        error[:, : now.shape[1]] = torch.minimum(error[:, : now.shape[1]], now)
        # What is told is the mean over samples, of which some are found sooner than others.
        known = error[:, : now.shape[1]]
        is_found = (known.mean(0) <= effort.tolerances(now)[0]) | is_rounding(lengths, values)[:, :k].all(0)
        is_enough = now.shape[1] == k and bool((is_found | known.isinf().any(0)).all())
        if is_full or is_enough or made == effort.most:
            break
        fresh = _new(pulled[..., -fresh.shape[-1] :], right, min(fresh.shape[-1], rank - right.shape[-1]))
        right, pushed = torch.cat([right, fresh], -1), torch.cat([pushed, chain.push(fresh)], -1)
    best, _ = _ritz(pulled)
    return Leading(best[..., :k], left, pulled, error)


def _check(chain: Map, left: Tensor, pulled: Tensor, right: Tensor, pushed: Tensor) -> None:
    """Compare u · J v with Jᵀ u · v, which are one number.

    Raises:
        ValueError: If they differ by more than rounding, or rounding is all there is.
    """
    assert chain.scale is not None
    forward, back = left.mT @ pushed, pulled.mT @ right
    size = torch.linalg.matrix_norm(forward) + torch.linalg.matrix_norm(back)
    apart = torch.linalg.matrix_norm(forward - back)
    differs = apart > _AGREE * size
    if bool((differs & (chain.scale < math.log(_NOTHING * torch.finfo(forward.dtype).eps))).any()):
        raise ValueError(
            "what the blocks let through is no more than rounding leaves: one of them takes out all that it is given, "
            "as a normalisation does whose groups hold a single value each."
        )
    if bool(differs.any()):
        share = float((apart / size).nan_to_num().max())
        raise ValueError(
            f"the blocks' derivatives forward and back differ by {share:.0%}: one of them is not that of the block. "
            "A torch.autograd.Function whose jvp is wrong, or whose backward takes part of what it computes out of the "
            "graph (detach, .data), does that."
        )


def _beyond(vectors: Tensor, basis: Tensor, seed: int) -> Tensor:
    """Vectors ``(B, D, P)``; random ones for those that add nothing to a basis, as its space is used up."""
    outside = vectors - basis @ (basis.mT @ vectors)
    length, rest = (torch.linalg.vector_norm(v, dim=-2, keepdim=True) for v in (vectors, outside))
    drawn = torch.randn(vectors.shape[1:], generator=torch.Generator().manual_seed(seed)).to(vectors)
    return torch.where(rest <= _ROUNDING * torch.finfo(vectors.dtype).eps * length, drawn, outside)


def _new(vectors: Tensor, basis: Tensor | None, most: int) -> Tensor:
    """Orthonormal columns of what vectors ``(B, D, P)`` add to a basis ``(B, D, Q)``, at most so many."""
    for _ in range(2):  # the second time takes out what rounding left
        if basis is not None:
            vectors = vectors - basis @ (basis.mT @ vectors)
        vectors = torch.linalg.qr(vectors).Q
    return vectors[..., : max(0, min(most, vectors.shape[1] - (0 if basis is None else basis.shape[-1])))]


def _decomposed(pushed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors ``(B, D', Q)``, values ``(B, Q)`` and inner vectors ``(B, Q, Q)`` of W, in columns."""
    outer, triangle = torch.linalg.qr(pushed)
    left, values, inner = torch.linalg.svd(triangle, full_matrices=False)
    return outer @ left, values, inner.mT


def _ritz(pulled: Tensor) -> tuple[Tensor, Tensor]:
    """Right vectors ``(B, D, P)`` and values ``(B, P)`` of Z, largest first."""
    outer, triangle = torch.linalg.qr(pulled)
    right, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    return outer @ right, values


def is_rounding(lengths: Tensor, values: Tensor) -> Tensor:
    """Whether lengths ``(B, Q)`` are so far below the largest of the values ``(B, Q)`` that they may be rounding."""
    width = math.sqrt(values.shape[-1])
    return lengths <= _ROUNDING * width * torch.finfo(values.dtype).eps * values[:, :1]


def errors(values: Tensor, residuals: Tensor, k: int) -> Tensor:
    r"""How far the leading k logarithms may still be below the true ones, ``(B, k)`` nats.

    By Krylov and Weinstein there is a singular value within the residual r of each; by Kato and Temple the value of a
    group that stands apart by a gap is closer than the residuals of the group, squared, over the gap. Taken is the
    least of these, over all groups that begin with the largest value.

    Args:
        values: ``(B, Q)`` largest first.
        residuals: ``(B, Q)`` of each.
        k: How many are asked for.
    """
    least = torch.finfo(values.dtype).tiny
    squares, asked = values.square(), min(k, values.shape[-1])
    gaps = squares[:, :asked, None] - squares[:, None, 1:]  # of value i and the first that is no more of the group
    inside = residuals.square().cumsum(-1)[:, None, :-1]
    bounds = torch.where(gaps > 0, inside / (2 * gaps).clamp(min=least), torch.inf)
    simple = residuals[:, :asked] / values[:, :asked].clamp(min=least)
    return torch.minimum(simple, bounds.amin(-1)) if bounds.shape[-1] else simple
