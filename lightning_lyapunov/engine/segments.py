"""Few long sequences cut into pieces of time that run side by side, faster than one after another.

The states are those of the one long path. The frame of each piece begins anew and settles in the steps before it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lyapunov.engine.exponents import Counting, Meter
from lightning_lyapunov.engine.precision import PrecisionLaw
from lightning_lyapunov.engine.trajectory import Trajectory

FEW, SEGMENTS, SHORTEST_SEGMENT, BURN_IN = 2, 16, 2048, 64
"""Sequences up to which time is cut; how many rows the pieces make at most; the fewest steps of one, since each adds to
the bias of finite time; and the steps before it in which its frame settles."""


def segments(path: Trajectory, transient: int) -> int:
    """Pieces of time to run side by side: more than one where sequences are so few that they leave the machine idle."""
    steps, sequences = len(path.running) - transient, len(path.initial)
    if not path.is_pure or sequences > FEW or path.running[-1] < sequences:
        return 1
    return max(1, min(SEGMENTS // sequences, steps // SHORTEST_SEGMENT))


def cut_in_time(path: Trajectory, transient: int, count: int, frame: Tensor, law: PrecisionLaw) -> Meter:
    """The time after the transient as ``count`` pieces, each a sequence of its own, with frames that have settled.

    Args:
        path: Sequences of equal length.
        transient: Steps before growth counts.
        count: Pieces.
        frame: ``(B, D, K)`` where the frames of the sequences begin.
        law: How frames are pushed.
    """
    inputs, sequences, total = path.inputs, len(path.initial), len(path.running)
    length = math.ceil((total - transient) / count)
    starts = [transient + i * length for i in range(count)]
    first = Meter(path, frame, law, Counting.of([total] * sequences, [transient] * sequences))
    first.advance(transient, counts=False)
    states = [path.state]
    for start in starts[1:]:
        path.skip(start - BURN_IN)
        states.append(path.state)
    before = torch.cat([inputs[start - BURN_IN : start] for start in starts[1:]], 1)
    rows = before.shape[1]
    settling = Trajectory(path.recurrence, before, torch.cat(states[1:]), [rows] * BURN_IN)
    rest = Meter(settling, frame.repeat(count - 1, 1, 1), law, Counting.of([BURN_IN] * rows, [BURN_IN] * rows))
    rest.advance(BURN_IN, counts=False)

    pieces = [inputs[start : start + length] for start in starts]
    missing = length - len(pieces[-1])
    pieces[-1] = torch.cat([pieces[-1], pieces[-1].new_zeros(missing, *pieces[-1].shape[1:])])
    running = [count * sequences] * (length - missing) + [(count - 1) * sequences] * missing
    state = torch.cat([states[0], settling.state])
    middle = (total - transient) // 2
    lengths = [length] * (count - 1) * sequences + [length - missing] * sequences
    halves = [min(max(middle - i * length, 0), length) for i in range(count) for _ in range(sequences)]
    counting = Counting(lengths, [0] * len(lengths), halves, pieces=count, offset=transient)
    meter = Meter(
        Trajectory(path.recurrence, torch.cat(pieces, 1), state, running),
        torch.cat([first.frame.to(rest.frame.dtype), rest.frame]),
        law,
        counting,
    )
    meter.trusted = torch.cat([first.trusted, rest.trusted])
    return meter
