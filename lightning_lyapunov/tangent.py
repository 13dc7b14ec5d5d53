"""Tangent vectors pushed along a trajectory: how much each direction grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.orthonormal import reorthonormalise
from lightning_lyapunov.recurrence import Factors, Recurrence


@dataclass
class Growth:
    """What a stretch of trajectory did to a frame of K directions in each of B sequences."""

    log: Tensor
    """``(B, K)`` nats, summed over the steps of the stretch."""
    gap: Tensor
    """``(B, K)`` nats; the most a direction fell behind the fastest within one interval."""
    intervals: int
    """How often the frame was reorthonormalised."""


def random_frame(size: int, k: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """An orthonormal frame ``(D, K)`` in general position, float64, the same for a seed on every device."""
    generator = generator or torch.Generator().manual_seed(0)
    # All D are drawn, so that the first K are the same whatever K is.
    directions = torch.randn(size, size, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.linalg.qr(directions[:k].cpu().mT).Q.to(device, torch.float32 if device.type == "mps" else None)


def push_along(
    recurrence: Recurrence, factors: Factors, running: list[int], frame: Tensor, interval: int
) -> tuple[Tensor, Growth]:
    """Push an orthonormal frame along a stretch of trajectory.

    Nothing here reads from the device: no value decides what is done next.

    Args:
        recurrence: The map.
        factors: Its Jacobians along the stretch, each ``(T, B, ...)``.
        running: (T,) how many sequences, counted from the first row, still run at each step; never rises.
        frame: ``(B, D, K)``, orthonormal columns.
        interval: Steps between reorthonormalisations; the stretch, and a sequence, always ends with one.

    Returns:
        The frame at the end, and the growth on the way.
    """
    wide = torch.float32 if frame.device.type == "mps" else torch.float64
    log = torch.zeros(frame.shape[0], frame.shape[2], dtype=wide, device=frame.device)
    gap = torch.zeros_like(log)
    since = intervals = 0
    for t, rows in enumerate(running):
        pushed = recurrence.push_forward(tuple(factor[t, :rows] for factor in factors), frame[:rows])
        since += 1
        if since == interval or t + 1 == len(running) or running[t + 1] < rows:
            pushed, growth = reorthonormalise(pushed, since)
            log[:rows] += growth
            fastest = growth.nan_to_num(nan=-math.inf).amax(-1, keepdim=True)
            gap[:rows] = torch.maximum(gap[:rows], fastest - growth)
            intervals += 1
            since = 0
        frame = pushed if rows == len(frame) else torch.cat([pushed, frame[rows:]])
    return frame, Growth(log, gap, intervals)
