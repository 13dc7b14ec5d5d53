"""Where along a sequence memory is lost: how a push to the state fares, block by block of steps.

A push that the state is given before the first step, in a random direction, is what is left there of anything that came
in. How it grows and shrinks from then on is known of every sequence, so there is a mean and a spread of each block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lyapunov.engine.statistics import student
from lightning_lyapunov.reading.conditions import MILD
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import factor

BRIEF = 0.25
"""Share of the steps. Where half of a change falls within fewer, that is told; else it happens all along."""


@dataclass(frozen=True)
class Stretches:
    """Growth of a push, block by block of steps, as a measurement keeps it."""

    starts: list[int]
    """(S,) the step before which each begins; blocks follow each other without a gap."""
    ends: list[int]
    """(S,) the step before which it ends."""
    rates: list[float]
    """(S,) nats per step, mean over sequences."""
    spreads: list[float]
    """(S,) nats per step, standard deviation between sequences; NaN of a single one."""
    whole: tuple[float, float]
    """Nats over all of them, mean over sequences, and the half-width of its 95 % bar; NaN of a single sequence."""
    errors: list[float]
    """(S,) nats over the block: half-widths of the 95 % bars of their means."""
    layer: str = ""
    """Whose growth it is where there are several layers."""

    @property
    def steps(self) -> int:
        """From the first block to the last."""
        return self.ends[-1] - self.starts[0]

    @property
    def changes(self) -> list[float]:
        """(S,) nats over each block."""
        return [rate * (end - start) for start, end, rate in zip(self.starts, self.ends, self.rates, strict=True)]


def stretches(measurement: Measurement) -> Stretches | None:
    """What a measurement keeps of growth along the sequence; None where it keeps nothing."""
    if measurement.along is None or measurement.along.ndim != 2 or measurement.along.shape[1] < 2:
        return None
    starts, ends, rates, spreads = measurement.along.double().tolist()
    count = measurement.sequences or 0
    bar = student(count - 1) / math.sqrt(count) if count > 1 else math.nan
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    errors = [bar * spread * length for spread, length in zip(spreads, lengths, strict=True)]
    return Stretches(
        [round(start) for start in starts[:-1]],
        [round(end) for end in ends[:-1]],
        rates[:-1],
        spreads[:-1],
        (rates[-1] * lengths[-1], errors[-1]),
        errors[:-1],
        measurement.along_of,
    )


def most_of(blocks: Stretches) -> tuple[int, int] | None:
    """The shortest run of blocks that half of the whole change falls in, its first step and its last, from 1.

    None where the whole change is not more than 2 nats, 7-fold, beyond its error; where that run takes more than a
    quarter of the steps, or changes no more than its share of them beyond its error; and where something is not known,
    or is without end.
    """
    (total, total_error), changes = blocks.whole, blocks.changes
    if not abs(total) - total_error > MILD or not all(map(math.isfinite, [total, *changes])):
        return None
    sign = math.copysign(1.0, total)
    runs = []
    for first in range(len(changes)):
        grown = error = 0.0
        for last in range(first, len(changes)):
            grown += sign * changes[last]
            error += blocks.errors[last]  # at most: those of neighbours may go together
            if 2 * grown >= abs(total):
                runs.append((blocks.ends[last] - blocks.starts[first], -grown, error, first, last))
                break
    if not runs:
        return None
    length, grown, error, first, last = min(runs)
    share = length / blocks.steps
    if share > BRIEF or not -grown - error > share * abs(total):
        return None
    return blocks.starts[first] + 1, blocks.ends[last]


def where_lost(measurement: Measurement) -> str:
    """What becomes of a push along the sequence, and where, in a sentence; empty where that was not measured.

    As "A push to the state before step 1 shrinks to 1/140 by step 40; half of the loss falls in steps 3 to 9." Where
    half of it falls is said where it stands out: see :func:`most_of`.
    """
    blocks = stretches(measurement)
    if blocks is None or math.isnan(blocks.whole[0]):
        return ""
    total, where = blocks.whole[0], most_of(blocks)
    layer = f" of {blocks.layer}" if blocks.layer else ""
    push = f"A push to the state{layer} before step {blocks.starts[0] + 1}"
    gone = next((i for i, rate in enumerate(blocks.rates) if rate == -math.inf), None)
    if gone is not None:
        first, last = blocks.starts[gone] + 1, blocks.ends[gone]
        return f"Of {push[0].lower()}{push[1:]} nothing is left after step{_steps(first, last)}."
    changes = "grows" if total > 0 else "shrinks to"
    told = f"{push} {changes} {factor(total)} by step {blocks.ends[-1]}"
    if where is None:
        return f"{told}."
    return f"{told}; half of the {'growth' if total > 0 else 'loss'} falls in step{_steps(*where)}."


def _steps(first: int, last: int) -> str:
    return f" {last}" if first == last else f"s {first} to {last}"
