r"""Ways to make tangent vectors orthonormal again: two that lead to the same triangle.

.. math:: V = Q R, \qquad Q^\top Q = 1, \quad R \text{ upper triangular}

:func:`by_householder` is exact to rounding. :func:`by_blocks` is all products of matrices and two to three times faster
where there are enough directions and sequences: blocks of some directions are made orthonormal by Cholesky of their
Gram matrix, and taken out of all later ones; the last block of a square matrix, where its spectrum drops off, by
Householder. A Gram matrix squares what it sees, so a block that spreads by :math:`\ell` nats is orthonormal to
:math:`u e^{2\ell}` only. That is no error of the growth by itself, as vectors = frame · triangle holds to rounding all
the same and the next interval starts from that frame; :mod:`~lightning_lyapunov.engine.precision` counts what it leaves
in later directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ONE_BLOCK = 48
"""Directions up to which they are one block."""
_MANY = 8
"""Sequences from which on smaller blocks pay on a CPU."""
_ENOUGH = 128
"""Directions times sequences from which on products beat LAPACK's loops on a CPU."""


@dataclass(frozen=True)
class Blocks:
    """How K directions of a D-dimensional state are divided."""

    leaf: int
    """Directions that are made orthonormal at once by Cholesky."""
    careful_last: bool
    """Whether the last block is left to Householder: of a frame that fills most of the space."""

    @staticmethod
    def of(frame: Tensor) -> Blocks:
        """Those for frames ``(B, D, K)``: one if they are few; smaller ones for many sequences on a CPU."""
        sequences, size, k = frame.shape
        leaf = k if k <= ONE_BLOCK else 16 if frame.device.type == "cpu" and sequences >= _MANY else 32
        return Blocks(leaf, careful_last=k > leaf and 2 * k > size)


def prefers_blocks(tangents: Tensor) -> bool:
    """Whether blocks are the faster way for tangents ``(B, D, K)``: but for few of them on a CPU, they are."""
    if tangents.device.type == "mps":
        return False  # not all that they need is there
    return tangents.device.type != "cpu" or tangents.shape[0] * tangents.shape[2] >= _ENOUGH


def by_householder(tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal frame of tangents ``(B, D, K)`` with the same flag, and the triangle R ``(B, K, K)``."""
    frame, triangle = torch.linalg.qr(tangents)
    return frame, triangle


def by_blocks(
    tangents: Tensor, blocks: Blocks, failed: Tensor, squares: Tensor, triangle: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by recursive block Gram-Schmidt; nothing is read from the device.

    Args:
        tangents: ``(B, D, K)``; overwritten where their columns are contiguous.
        blocks: How they are divided.
        failed: (B,) int32, set to other than 0 for sequences in which a block was not positive definite: their frame
            and diagonal are nonsense.
        squares: ``(B, K)``, set to the squared lengths of what blocks were made orthonormal from, where that was by
            Cholesky: a pivot that is nothing but rounding is known by them.
        triangle: ``(B, K, K)`` zeros, set to R if given.

    Returns:
        The frame, and :math:`|R_{ii}|` ``(B, K)``.
    """
    rows = tangents.mT.contiguous()
    diagonal = rows.new_empty(rows.shape[:2])
    lower = None if triangle is None else triangle.mT
    _orthonormalise(rows, blocks, diagonal, squares, failed, lower, has_last=True)
    return rows.mT, diagonal


def _orthonormalise(
    rows: Tensor,
    blocks: Blocks,
    diagonal: Tensor,
    squares: Tensor,
    failed: Tensor,
    lower: Tensor | None,
    *,
    has_last: bool,
) -> None:
    """Make rows ``(B, K, D)`` orthonormal in place, first to last; before it they are ``lower`` times what they become.

    ``has_last`` says whether the last block of all is among them.
    """
    k, leaf = rows.shape[1], blocks.leaf
    if k > leaf:
        middle = (k // 2 + leaf - 1) // leaf * leaf
        first, rest = rows[:, :middle], rows[:, middle:]
        upper, bottom = slice(None, middle), slice(middle, None)
        part = None if lower is None else lower[:, upper, upper]
        _orthonormalise(first, blocks, diagonal[:, upper], squares[:, upper], failed, part, has_last=False)
        shared = rest @ first.mT
        rest.baddbmm_(shared, first, alpha=-1)
        if lower is not None:
            lower[:, bottom, upper] = shared
        part = None if lower is None else lower[:, bottom, bottom]
        _orthonormalise(rest, blocks, diagonal[:, bottom], squares[:, bottom], failed, part, has_last=has_last)
        return
    if has_last and blocks.careful_last:
        frame, r = by_householder(rows.mT)
        rows.copy_(frame.mT)
        factor = r.mT
        diagonal.copy_(r.diagonal(dim1=-2, dim2=-1).abs())
    else:
        gram = rows @ rows.mT
        factor, info = torch.linalg.cholesky_ex(gram)
        failed.bitwise_or_(info)
        squares.copy_(gram.diagonal(dim1=-2, dim2=-1))
        diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1))
        # From the right and on columns, which is how LAPACK holds them: four times faster than from the left.
        rows.copy_(torch.linalg.solve_triangular(factor.mT, rows.mT, upper=True, left=False).mT)
    if lower is not None:
        lower.copy_(factor)
