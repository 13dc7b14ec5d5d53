"""Tangent vectors pushed along a trajectory: how much each direction grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.orthonormal import by_blocks, by_householder, gaps, gaps_in_blocks, growth, prefers_blocks
from lightning_lyapunov.recurrence import Factors, Recurrence


@dataclass
class Growth:
    """What a stretch of trajectory did to a frame of K directions in each of B sequences."""

    log: Tensor
    """``(B, K)`` nats, summed over the steps of the stretch."""
    gap: Tensor
    """``(B, K)`` nats; the most a direction fell behind the fastest within one interval, by :func:`gaps`."""
    intervals: int
    """How often the frame was reorthonormalised."""
    last: Tensor
    """(B,) nats; growth in the last interval, summed over the directions."""
    last_steps: int
    """How many steps the last interval had."""
    failed: Tensor
    """() bool: the faster way to reorthonormalise broke down, and all of this is nonsense."""


def random_frame(size: int, k: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """An orthonormal frame ``(D, K)`` in general position, float64, the same for a seed on every device."""
    generator = generator or torch.Generator().manual_seed(0)
    # Drawn by sixteens, as torch's generator does, so that the first K directions are the same whatever K is.
    drawn = torch.randn(-(-k * size // 16) * 16, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.linalg.qr(drawn[: k * size].view(k, size).cpu().mT).Q.to(
        device, torch.float32 if device.type == "mps" else None
    )


def push_along(
    recurrence: Recurrence,
    factors: Factors,
    running: list[int],
    frame: Tensor,
    interval: int,
    *,
    may_use_blocks: bool = True,
) -> tuple[Tensor, Growth]:
    """Push an orthonormal frame along a stretch of trajectory.

    Nothing here reads from the device: no value decides what is done next.

    Args:
        recurrence: The map.
        factors: Its Jacobians along the stretch, each ``(T, B, ...)``.
        running: (T,) how many sequences, counted from the first row, still run at each step; never rises.
        frame: ``(B, D, K)``, orthonormal columns.
        interval: Steps between reorthonormalisations; the stretch, and a sequence, always ends with one.
        may_use_blocks: Whether the faster way to reorthonormalise may be used, where it is the faster.

    Returns:
        The frame at the end, and the growth on the way.
    """
    in_blocks = may_use_blocks and prefers_blocks(frame)
    sequences, size, k = frame.shape
    ends = _ends(running, interval)
    diagonal, squares = frame.new_ones(len(ends), sequences, k), frame.new_zeros(len(ends), sequences, k)
    length = frame.new_zeros(len(ends), sequences)
    failed = torch.zeros(sequences, dtype=torch.int32, device=frame.device)
    push = recurrence.push_forward
    if k > recurrence.crossover:
        factors, push = recurrence.condense(factors), recurrence.push_condensed
    place = 0
    for t, rows in enumerate(running):
        whole = rows == sequences
        pushed = push(
            tuple(factor[t] if whole else factor[t, :rows] for factor in factors), frame if whole else frame[:rows]
        )
        if t + 1 == ends[place][0]:
            torch.linalg.vector_norm(pushed, dim=(-2, -1), out=length[place, :rows])
            if in_blocks:
                pushed, diagonal[place, :rows] = by_blocks(pushed, failed[:rows], squares[place, :rows])
            else:
                pushed, diagonal[place, :rows] = by_householder(pushed)
            place += 1
        frame = pushed if whole else torch.cat([pushed, frame[rows:]])
    length = length.masked_fill(length.isinf(), 0.0) / math.sqrt(k)  # squares overflow before the tangents do
    log = growth(diagonal, [steps for _, steps in ends], size, length)
    gap, is_blind = gaps_in_blocks(log, frame.dtype, length, squares) if in_blocks else (gaps(log, length), False)
    return frame, Growth(
        log=log.sum(0),
        gap=gap.amax(0),
        intervals=len(ends),
        last=log[-1].sum(-1),
        last_steps=ends[-1][1],
        failed=failed.any() | is_blind,
    )


def _ends(running: list[int], interval: int) -> list[tuple[int, int]]:
    """Where a stretch is reorthonormalised: after how many steps of it, and how many since the last time."""
    ends, since = [], 0
    for t, rows in enumerate(running):
        since += 1
        if since == interval or t + 1 == len(running) or running[t + 1] < rows:
            ends.append((t + 1, since))
            since = 0
    return ends
