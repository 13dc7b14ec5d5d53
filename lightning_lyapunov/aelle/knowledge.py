"""What may be known of a network, and how predictions differ by it.

Predictions are made, weighed and calibrated by two things: *what is known* (how much of the spectrum, the skill so far,
and one of six rungs of what stands beside them) and the *place* of the updates made among :data:`KNOTS`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import CELL, CHEAP, CONTEXT, LEVELS, RATE, Rows

KNOTS = (0.0, 10.0, 40.0, 80.0, 160.0, 320.0, 560.0, 800.0, 1400.0, 2000.0)
"""Updates at which predictions are fitted and calibrated; in between, on a logarithmic scale, they are interpolated."""
_SIZE = ("log_size",)
RUNGS: tuple[tuple[str, ...], ...] = (
    (),
    CELL,
    (*_SIZE, *RATE),
    (*CELL, *RATE),
    (*_SIZE, *RATE, *CHEAP),
    (*CELL, *RATE, *CHEAP),
)
"""What may be known beside spectrum, skill and updates: nothing; kind and size of the cell; how it is trained, and also
what is cheap to see, each without a kind of cell that is known, and with it. Of what lies between, the lower counts."""
SKILL, TIME = CONTEXT.index("skill"), CONTEXT.index("log_updates")
PARTS = ("none", "part", "all")
"""How much of a spectrum may be known."""
STATES = 2 * len(PARTS) * len(RUNGS)
UNKNOWN_TIME = KNOTS.index(40.0)
"""The knot that a network is taken to be at if its updates are not known: after one epoch of the bank."""
_MARKS = [math.log1p(knot / 10) for knot in KNOTS]


def state(rows: Rows) -> Tensor:
    """(R,) long in 0..STATES-1: what is known of rows."""
    unknown = rows.spectrum[:, :LEVELS].isnan()
    part = (~unknown[:, 0]).long() + is_whole(rows).long()
    skill = (~rows.context[:, SKILL].isnan()).long()
    return (skill * len(PARTS) + part) * len(RUNGS) + rung(rows)


def is_whole(rows: Rows) -> Tensor:
    """(R,) bool: whether every level of the spectrum is known."""
    return ~rows.spectrum[:, :LEVELS].isnan().any(1)


def rung(rows: Rows) -> Tensor:
    """(R,) long: the highest of :data:`RUNGS` that is known; one of the cheap entries is enough for them."""
    kind, size, rate = (~rows.context[:, CONTEXT.index(name)].isnan() for name in (CELL[0], "log_size", "log_rate"))
    cheap = ~rows.context[:, [CONTEXT.index(name) for name in CHEAP]].isnan().all(1)
    trained = (size & rate).long() * (1 + cheap.long())
    return 2 * trained + (kind & size).long()


def place(rows: Rows) -> Tensor:
    """(R,) where the updates lie among the knots, in [0, knots - 1]."""
    logs = rows.context[:, TIME]
    marks = torch.tensor(_MARKS, dtype=logs.dtype)
    logs = torch.where(logs.isnan(), marks[UNKNOWN_TIME], logs).clamp(marks[0], marks[-1])
    before = (torch.searchsorted(marks, logs, right=True) - 1).clamp(0, len(KNOTS) - 2)
    return before + (logs - marks[before]) / (marks[before + 1] - marks[before])


def between(by_knot: Tensor, place: Tensor) -> Tensor:
    """``(R, ...)`` values at a place (R,) between those at the knots, ``(R, knots, ...)``."""
    before = place.floor().long().clamp(max=len(KNOTS) - 2)
    index = torch.arange(len(place))
    share = (place - before).view(-1, *(1,) * (by_knot.dim() - 2))
    return torch.lerp(by_knot[index, before], by_knot[index, before + 1], share)


def near_knots(place: Tensor, fewest: int) -> list[tuple[Tensor, list[int]]]:
    """Rows (n,) long that are nearest to a knot, and all knots that they must serve, for each that has enough rows.

    A knot that has too few is served by the rows of the nearest one that has enough, or by all.

    Args:
        place: (R,).
        fewest: Rows that are enough.
    """
    nearest = place.round().long()
    rows = [(nearest == knot).nonzero()[:, 0] for knot in range(len(KNOTS))]
    enough = [knot for knot in range(len(KNOTS)) if len(rows[knot]) >= max(fewest, 1)]
    if not enough:
        return [(torch.arange(len(place)), list(range(len(KNOTS))))]
    serves: dict[int, list[int]] = {knot: [] for knot in enough}
    for knot in range(len(KNOTS)):
        serves[min(enough, key=lambda other: (abs(other - knot), other))].append(knot)
    return [(rows[knot], knots) for knot, knots in serves.items()]


def limited(rows: Rows, *, part: str = "all", rung: int = len(RUNGS) - 1, skill: bool = True) -> Rows:
    """The rows with no more known of them than this; ``"part"`` of a spectrum leaves what is there."""
    known = rows.context.clone()
    hidden = [CONTEXT.index(name) for name in RUNGS[-1] if name not in RUNGS[rung]]
    known[:, hidden] = math.nan
    if not skill:
        known[:, SKILL] = math.nan
    return Rows(torch.full_like(rows.spectrum, math.nan) if part == "none" else rows.spectrum, known)


def cut(rows: Rows, generator: torch.Generator) -> Rows:
    """The rows with the leading part of each spectrum alone, from a tenth of it to nine; its mean is not known."""
    kept = 0.1 + 0.8 * torch.rand(len(rows), 1, generator=generator)
    beyond = (torch.arange(LEVELS) + 0.5) / LEVELS > kept
    beyond = torch.cat([beyond, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
    beyond[:, 0] = False
    return Rows(torch.where(beyond, math.nan, rows.spectrum), rows.context)
