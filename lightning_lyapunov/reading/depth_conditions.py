r"""What holds of a measurement across depth: the conditions that its sentences and its verdict rest on.

Of the whole chain the largest growth ln σ₁ is judged, against :data:`THRESHOLDS`, beyond the half-width of its 95 %
bar. Of each block two figures are: its gain, which tells whether it amplifies or lets nothing through, and its change,
how far what passes it is from what it was, which alone tells a residual block that does a little from one that does
nothing.
Blocks are compared only with others of their class that keep the width, as only among these a figure that stands out
is that of the block and not of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.state import Level


@dataclass(frozen=True)
class Threshold:
    """A largest growth at which what is to be expected of a training changes, and what became of networks beyond it."""

    nats: float
    """ln σ₁ of the whole chain."""
    beyond: str
    """Where those networks lie, in words."""
    networks: int
    """How many there were in ``benchmarks/depth``, of three tasks."""
    learnt: int
    """How many of these came more than half of the way from chance to the best network of their task."""

    @property
    def evidence(self) -> str:
        """What became of them, in a clause."""
        return f"{self.learnt or 'none'} of the {self.networks} {self.beyond} learnt"

    @property
    def told(self) -> str:
        """The same in few words, for a picture."""
        return f"{self.learnt} of {self.networks} networks learnt"

    @property
    def level(self) -> Level:
        """How grave it is: ``act`` where 95 % did not learn, a warning from 80 % on, else a note."""
        failed = 1 - self.learnt / self.networks
        return "act" if failed >= 0.95 else "warning" if failed >= 0.8 else "note"


THRESHOLDS = {
    "vanishes": Threshold(-5.0, "below -5 nats", 42, 5),
    "doubtful": Threshold(6.0, "between 6 and 10 nats", 26, 2),
    "explodes": Threshold(10.0, "above 10 nats", 46, 0),
}
"""Of ln σ₁ before the first update, by the state that begins beyond them: below the first, above the others.

Each holds in at least two of three tasks: docs/depth-benchmark.md, which a test compares.
"""
BENCHMARK = "420 small networks of three tasks"
"""Whose rates these are."""
OTHERWISE = "and 240 of the 303 between -5 and 6"
"""What became of the others."""

SEVERED = -10.0
"""Nats. A block that by itself shrinks a gradient by more, to 0.005 %, ends it."""
UNCHANGED = math.log(1e-5)
"""A block that changes what passes it by less than this share is the identity but for rounding."""
DEAD_GAP = 3.0
"""Nats. So far, 20-fold, the dead blocks lie below the others in what they change; trained ones do not scatter so."""
DEAD_CHANGE = math.log(0.01)
"""And they change less than 1 %, or they are not dead, however much the others do."""
IDLE = math.log(10)
"""Nats. Late blocks that change what passes them by less than a tenth of what the first third does are idle."""
TRAINED = 100
"""Updates from which late blocks can be called idle: before, they had no chance to do more."""
ODD = 0.6
"""Nats. A block stands out if its neighbours on either side are so far away, 1.8-fold,"""
ODD_SCATTER = 5.0
"""and by so many times the scatter of all blocks."""
ODD_END = 3.0
"""Nats, of the first and the last block, which differ from the others in healthy networks, too."""
WINDOW = 2
"""Neighbours on either side that a block is compared with."""
FEWEST = 4
"""Blocks that must be alike before one of them can stand out."""

_WITHOUT_WEIGHTS = ("Identity", "Dropout", "DropPath", "StochasticDepth", "Flatten", "Unflatten", "ReLU", "Threshold")
"""Beginnings of the names of classes that pass everything on by design."""


# ------------------------------------------------------------------ of the whole chain


def state_of_depth(measurement: DepthMeasurement) -> str:
    """The state of a chain in a word: the first that holds.

    ================  ====================================================
    ``no_gradient``   ln σ₁ is −∞, or a block lets nothing through
    ``unknown``       ln σ₁ is not known, or has overflown
    ``explodes``      ln σ₁ − error > 10
    ``vanishes``      ln σ₁ + error < −5
    ``doubtful``      ln σ₁ − error > 6
    ``undecided``     −5 or 6 lies within the error of ln σ₁
    ``passes``        none of these
    ================  ====================================================

    An error that is not known, as of a single sample, counts as 0.
    """
    value, error = measurement.total
    error = error if math.isfinite(error) else 0.0
    if value == -math.inf or severed(measurement):
        return "no_gradient"
    if not math.isfinite(value):
        return "unknown"
    if value - error > THRESHOLDS["explodes"].nats:
        return "explodes"
    if value + error < THRESHOLDS["vanishes"].nats:
        return "vanishes"
    if value - error > THRESHOLDS["doubtful"].nats:
        return "doubtful"
    passes = THRESHOLDS["vanishes"].nats <= value - error and value + error <= THRESHOLDS["doubtful"].nats
    return "passes" if passes else "undecided"


def makers(measurement: DepthMeasurement) -> list[int]:
    """The blocks that make most of the largest growth, if few do: together at least half of it.

    At most three and a quarter of all blocks; none where the growth is spread more evenly.
    """
    value, _ = measurement.total
    if not math.isfinite(value) or not measurement.contributions.isfinite().all():
        return []
    shares = (measurement.contributions.double() / value).tolist()
    order = sorted(range(len(shares)), key=lambda block: -shares[block])
    most = min(3, max(1, measurement.depth // 4)) if measurement.depth > 1 else 0
    for count in range(1, most + 1):
        if sum(shares[block] for block in order[:count]) >= 0.5:
            return sorted(order[:count])
    return []


# ------------------------------------------------------------------ of its blocks


def severed(measurement: DepthMeasurement) -> list[int]:
    """Blocks that pass nothing on: of gain −∞, or below −10 while most others are above."""
    gains = measurement.block_gain
    few = 2 * int((gains < SEVERED).sum()) < len(gains)
    return [i for i, gain in enumerate(gains.tolist()) if gain == -math.inf or (few and gain < SEVERED)]


def comparable_blocks(measurement: DepthMeasurement) -> list[list[int]]:
    """Groups of blocks of one class that keep the width: what can be compared, class by class, in the order of depth.

    Those without weights are left out: that they pass everything on is no fault.
    """
    kinds = measurement.kinds or [""] * measurement.depth
    groups: dict[str, list[int]] = {}
    for block, kind in enumerate(kinds):
        known = not math.isnan(float(measurement.block_change[block]))
        if known and not kind.startswith(_WITHOUT_WEIGHTS) and not kind.endswith("Dropout"):
            groups.setdefault(kind, []).append(block)
    return list(groups.values())


def unchanging(measurement: DepthMeasurement) -> list[int]:
    """Blocks that pass everything on unchanged: whose branches beside the skip are dead.

    Those that are the identity but for rounding; and those that change less than 1 %, and less than a twentieth of what
    every other one of their class does, if they are fewer than half.
    """
    dead: list[int] = []
    for group in comparable_blocks(measurement):
        changes = measurement.block_change[group].double()
        limit = max(UNCHANGED, _gap(changes))
        dead += [block for block, change in zip(group, changes.tolist(), strict=True) if change < limit]
    return sorted(dead)


def all_unchanging(measurement: DepthMeasurement) -> bool:
    """Whether every block that could change anything passes everything on unchanged, two at least."""
    every = [block for group in comparable_blocks(measurement) for block in group]
    return len(every) > 1 and len(unchanging(measurement)) == len(every)


def _gap(changes: Tensor) -> float:
    """The change below which blocks are dead by comparison: under the widest gap among them; −∞ if there is none."""
    ordered = changes[changes > UNCHANGED].sort().values
    count = len(ordered)
    if count < FEWEST:
        return -math.inf
    gaps = ordered[1:] - ordered[:-1]
    gaps = gaps[: (count - 1) // 2]  # those below must be fewer than half
    widest = int(gaps.argmax())
    is_wide = gaps[widest] >= DEAD_GAP and ordered[widest] < DEAD_CHANGE
    return float(ordered[widest + 1]) if is_wide else -math.inf


def idle(measurement: DepthMeasurement) -> list[int]:
    """Late blocks that do next to nothing: a row of them to the end, or up to the last but one, in the second half.

    Each changes what passes it by less than a tenth of what the first third does. Two at least, and a sixth of all;
    those that are the identity but for rounding are dead, not idle.
    """
    every = sorted(block for group in comparable_blocks(measurement) for block in group)
    changes = measurement.block_change.tolist()
    alive = [block for block in every if changes[block] > UNCHANGED]
    if len(alive) < 2 * FEWEST:
        return []
    first = _median([changes[block] for block in alive[: len(alive) // 3]])
    late = alive[len(alive) // 2 :]
    for last in (len(late), len(late) - 1):
        row = last
        while row and changes[late[row - 1]] < first - IDLE:
            row -= 1
        if last - row >= max(2, len(alive) // 6):
            return late[row:last]
    return []


def odd(measurement: DepthMeasurement) -> list[tuple[int, float]]:
    """Blocks that stand out from their neighbours, and by how many nats, the farthest first.

    By their gain up or down, by their change up alone: a block that does less than its neighbours is no fault until it
    is dead. Further than 0.6 nats, and than five times the scatter of all of them, from the median of two neighbours to
    the left and of two to the right, whichever is nearer, so that a figure that falls with depth makes none; at either
    end by 3 nats.
    """
    known = {*severed(measurement), *unchanging(measurement)}
    found: dict[int, float] = {}
    for group in comparable_blocks(measurement):
        alive = [block for block in group if block not in known]
        if len(alive) <= FEWEST:
            continue
        gains, changes = (
            figure[alive].double().tolist() for figure in (measurement.block_gain, measurement.block_change)
        )
        for figures, signs in ((gains, (1, -1)), (changes, (1,))):
            if not all(map(math.isfinite, figures)):
                continue
            limit = max(ODD, ODD_SCATTER * _scatter(figures))
            for place, block in enumerate(alive):
                is_end = place in (0, len(alive) - 1)
                far = _beyond(figures, place, signs)
                if abs(far) > max(limit, ODD_END if is_end else 0) and abs(far) > abs(found.get(block, 0.0)):
                    found[block] = far
    return sorted(found.items(), key=lambda one: -abs(one[1]))


def _beyond(figures: Sequence[float], place: int, signs: Iterable[int]) -> float:
    """How far a figure lies beyond its neighbours on either side; 0 where it lies between them."""
    is_end = place in (0, len(figures) - 1)
    width = 2 * WINDOW if is_end else WINDOW
    sides = [figures[max(place - width, 0) : place], figures[place + 1 : place + 1 + width]]
    medians = [_median(side) for side in sides if side]
    for sign in signs:
        far = min(sign * (figures[place] - median) for median in medians)
        if far > 0:
            return sign * far
    return 0.0


def _scatter(figures: Sequence[float]) -> float:
    """Standard deviation of figures about what their neighbours come to, from the median of their distances."""
    rest = [
        figure - _median(figures[max(place - 2, 0) : place + 3])
        for place, figure in enumerate(figures)
    ]  # fmt: skip
    return 1.4826 * _median([abs(one) for one in rest])


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
