"""A frame of vectors carried along the steps of a chain, forward or back: how much each direction grows."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Steps
from lightning_lyapunov.engine.orthonormal import Blocks, by_blocks, by_householder, prefers_blocks
from lightning_lyapunov.engine.precision import gaps, gaps_in_blocks, log_pivots


@dataclass
class Growth:
    """What some steps did to a frame of K directions in each of B sequences, interval by interval."""

    log: Tensor
    """``(I, B, K)`` nats; 0 where a sequence had ended."""
    gap: Tensor
    """``(B, K)`` nats; the most a direction fell behind the fastest within one interval."""
    ends: list[int]
    """(I,) after how many of the steps each interval ended."""
    failed: Tensor
    """() bool: the faster way to reorthonormalise broke down, and all of this is nonsense."""
    triangles: list[Tensor]
    """(I,) of ``(B', K, K)``: R of each interval, of the sequences that ran; empty if not asked for."""

    @property
    def spans(self) -> list[int]:
        """(I,) steps in each interval."""
        return [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]


def carry(
    steps: Steps,
    running: list[int],
    frame: Tensor,
    interval: int,
    *,
    back: bool = False,
    cuts: Collection[int] = (),
    may_use_blocks: bool = True,
    with_triangles: bool = False,
) -> tuple[Tensor, Growth]:
    """Carry an orthonormal frame along some steps.

    Nothing here reads from the device: no value decides what is done next.

    Args:
        steps: The Jacobians.
        running: (T,) how many sequences, counted from the first row, run at each step; never rises.
        frame: ``(B, D, K)``, orthonormal columns.
        interval: Steps between reorthonormalisations; the steps, and a sequence, always end with one.
        back: Whether to pull the frame from the last step to the first instead of pushing it.
        cuts: After how many steps, counted as they are made, there is to be one in any case.
        may_use_blocks: Whether the faster way to reorthonormalise may be used, where it is the faster.
        with_triangles: Whether to keep the triangle of each interval.

    Returns:
        The frame at the end, and the growth on the way.
    """
    in_blocks = may_use_blocks and prefers_blocks(frame)
    blocks = Blocks.of(frame)
    sequences, size, k = frame.shape
    order = range(len(running) - 1, -1, -1) if back else range(len(running))
    rows_at = [running[t] for t in order]
    ends = _ends(rows_at, interval, cuts)
    diagonal, squares = frame.new_ones(len(ends), sequences, k), frame.new_zeros(len(ends), sequences, k)
    length = frame.new_zeros(len(ends), sequences)
    failed = torch.zeros(sequences, dtype=torch.int32, device=frame.device)
    triangles: list[Tensor] = []
    apply, place = (steps.pull if back else steps.push), 0
    for made, t in enumerate(order, 1):
        rows = running[t]
        moved = apply(t, frame if rows == sequences else frame[:rows])
        if made == ends[place]:
            torch.linalg.vector_norm(moved, dim=(-2, -1), out=length[place, :rows])
            if in_blocks:
                triangle = moved.new_zeros(rows, k, k) if with_triangles else None
                moved, diagonal[place, :rows] = by_blocks(moved, blocks, failed[:rows], squares[place, :rows], triangle)
            else:
                moved, triangle = by_householder(moved)
                diagonal[place, :rows] = triangle.diagonal(dim1=-2, dim2=-1)
            if with_triangles and triangle is not None:
                triangles.append(triangle)
            place += 1
        frame = moved if rows == sequences else torch.cat([moved, frame[rows:]])
    diagonal = diagonal.abs()
    length = length.masked_fill(length.isinf(), 0.0) / math.sqrt(k)  # squares overflow before the tangents do
    spans = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    log = log_pivots(diagonal, spans, size, length)
    if in_blocks:
        gap, is_blind = gaps_in_blocks(log, blocks, frame.dtype, length, squares)
    else:
        gap, is_blind = gaps(log, length), failed.new_zeros((), dtype=torch.bool)
    # What rounding left of a direction that is gone is not to look like a small one.
    triangles = [
        triangle.masked_fill(gone[: len(triangle)].unsqueeze(-1), 0.0)
        for triangle, gone in zip(triangles, log.isneginf(), strict=False)
    ]
    return frame, Growth(log, gap.amax(0), ends, failed.any() | is_blind, triangles)


def _ends(rows: list[int], interval: int, cuts: Collection[int]) -> list[int]:
    """After how many steps the frame is reorthonormalised, where so many ``rows`` take each step."""
    ends, since = [], 0
    for made, now in enumerate(rows, 1):
        since += 1
        if since == interval or made == len(rows) or rows[made] < now or made in cuts:
            ends.append(made)
            since = 0
    return ends
