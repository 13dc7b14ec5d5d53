"""Rows of recorded calls joined to sequences: each row lives a life of its own.

A model calls a layer once a batch, or a cell once a step, and what happens between the calls is its own affair: some
rows go on from the state they came to, others begin anew (an environment was reset), end (a caption is finished) or are
held (a mask gives them back the state they had). Rows are therefore followed one by one, by the values of their states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_lyapunov.capture.calls import Call, Parts

SHARED = 0.25
"""Share of the entries of two rows that must be nonzero in both, and equal, for dropout to have made both of one."""
NEAR = 0.1
"""Share of its variance by which a row may differ from itself when it comes again after an update."""
LOST = 0.01
"""Share of them that must be zero in the one and not in the other, and the other way round."""
DISTINCT = 8
"""More values than these a row must hold to be known again after dropout: rows of zeros and ones look alike."""


@dataclass(frozen=True, eq=False)
class Kept(Call):
    """A bounded copy of a call."""

    totals: list[int] = field(default_factory=list)
    """(B,) steps of each row, those included that were not kept."""
    turn: int = 0
    """Which part of the batch it belongs to: an optimiser may have made a step before it."""
    is_training: bool = False
    """Whether the layer was in training mode."""
    is_again: bool = False
    """Whether such parts are passes over the same rows for certain; else their values tell."""

    @property
    def rows(self) -> int:
        """B."""
        return self.inputs.shape[1]

    @cached_property
    def steps(self) -> list[int]:
        """(B,) steps of each row that were kept."""
        return [int(length) for length in self.lengths]


@dataclass(eq=False)
class Thread:
    """One sequence: a row of a call, and the rows of later calls that went on from the state that it came to."""

    limit: int
    """Steps at most that are wanted of it."""
    pieces: list[tuple[Kept, int]] = field(default_factory=list)
    """Calls, and its row in each."""
    held: Thread | None = None
    """One whose last step began in the state in which the last step of this one began; None where it has gone on."""
    branch_age: int | None = None
    """Age that the other one had when this one began."""
    is_anew: bool = False
    """Whether it begins in the middle, where other rows of the batch go on."""
    age: int = 0
    """Grows with each call."""

    def __post_init__(self) -> None:
        self.branch_of, self.shared = self.held, len(self.pieces)

    @cached_property
    def inputs(self) -> Tensor:
        """``(T, ...)`` of its first steps, as many as were kept without a gap, and as are wanted."""
        parts, left = list[Tensor](), self.limit
        for call, row in self.pieces:
            parts.append(call.inputs[: min(left, call.steps[row]), row])
            left -= len(parts[-1])
            if left == 0 or call.steps[row] < call.totals[row]:
                break
        return torch.cat(parts)

    @property
    def total(self) -> int:
        """Steps of the whole sequence."""
        return sum(call.totals[row] for call, row in self.pieces)

    @property
    def row(self) -> int:
        """Which row of its first call it is."""
        return self.pieces[0][1]

    @property
    def turn(self) -> int:
        """Which forward pass over its batch it begins in."""
        return self.pieces[0][0].turn

    @property
    def before(self) -> Parts | None:
        """Parts of the state before its first step, each without the axis of rows; None if it was given none."""
        call, row = self.pieces[0]
        return None if call.before is None else tuple(part[row] for part in call.before)

    @property
    def number(self) -> tuple[int, ...]:
        """The same as that of another thread where inputs, initial state and length are, and else hardly ever."""
        parts = [self.inputs, *(self.before or ())]
        return (self.total, *(int(fingerprints(part.unsqueeze(0))) for part in parts))


def join(calls: Sequence[Kept], limit: int) -> list[Thread]:
    """The sequences that the calls of one batch are made of, in the order in which they begin.

    A row counts once. Of several passes over the batch the latest does: what begins in an earlier one is left out where
    as many steps of the same row begin again in a later one, or the same values but for those that dropout made zero.

    Args:
        calls: In the order they were made.
        limit: Steps wanted of each sequence, the first ones.
    """
    befores, afters = _states_of(calls)
    threads: list[Thread] = []
    came_to, came_from = _States(), _States()  # which threads are in a state; which made their last step from it
    for call, before, after in zip(calls, befores, afters, strict=True):
        rows = [None if before is None else came_to.take(before[row], row) for row in range(call.rows)]
        some_go_on = any(thread is not None for thread in rows)
        for row, thread in enumerate(rows):
            if thread is not None:
                thread.held = None
            else:
                held = None if before is None else came_from.find(before[row], row)
                pieces = [] if held is None else held.pieces[:-1]
                is_anew = some_go_on and held is None
                age = None if held is None else held.age
                threads.append(thread := Thread(limit, pieces, held, age, is_anew=is_anew))
            thread.pieces.append((call, row))
            thread.age += 1
            rows[row] = thread
        for row, thread in enumerate(rows):  # not before: a row does not go on from another one of the same call
            assert thread is not None
            came_to.put(after[row], row, thread)
            if before is not None and call.totals[row] == 1:
                came_from.put(before[row], row, thread)
    return _once_each(_without_held(threads))


def _without_held(threads: list[Thread]) -> list[Thread]:
    """Without steps from which nothing went on, as the row was given back the state from before them.

    A row that is held makes a step again and again from one state; the last of these counts only if the row goes on
    from it. Two sequences that begin in the same state, as two levels that share a cell do, both go on.
    """
    void = {id(t.branch_of) for t in threads if t.branch_of is not None and t.branch_of.age == t.branch_age}
    kept = [thread for thread in threads if id(thread) not in void]
    for thread in kept:
        shared = thread.branch_of
        while shared is not None and id(shared) in void:
            shared = shared.branch_of
        if shared is not None:  # which went on too: the steps before are its own
            del thread.pieces[: thread.shared]
        elif thread.held is not None and len(thread.pieces) > 1:
            thread.pieces.pop()  # held to the end
    return kept


class _States:
    """Threads by the number of a state that they are, or were, in."""

    def __init__(self) -> None:
        self._threads: dict[int, list[tuple[int, int, Thread]]] = defaultdict(list)

    def put(self, state: int, row: int, thread: Thread) -> None:
        """Note that a thread is there, in a row of the newest call."""
        self._threads[state].append((row, thread.age, thread))

    def take(self, state: int, row: int) -> Thread | None:
        """A thread that is still there, of the same row if it can be; then it is there no longer."""
        there = [entry for entry in self._threads.get(state, ()) if entry[1] == entry[2].age]
        thread = next((thread for at, _, thread in there if at == row), there[0][2] if there else None)
        if thread is not None:
            thread.age += 1
        return thread

    def find(self, state: int, row: int) -> Thread | None:
        """The last thread of this row that is still there."""
        there = reversed(self._threads.get(state, ()))
        return next((thread for at, age, thread in there if at == row and age == thread.age), None)


def _once_each(threads: list[Thread]) -> list[Thread]:
    """Without those that come again: in a later pass, or as another of which dropout made something else."""
    found: list[Thread] = []
    for thread in reversed(threads):
        later = [t for t in found if t.row == thread.row and t.total == thread.total and t.turn > thread.turn]
        if not any(thread.pieces[0][0].is_again or _are_near(other, thread) for other in later):
            found.append(thread)
    return _without_twins(found[::-1])


def _without_twins(threads: list[Thread]) -> list[Thread]:
    """Without those of a call in training all rows of which come again in a later one, dropped out differently."""
    by_call: dict[int, list[Thread]] = defaultdict(list)
    for thread in threads:
        by_call[id(thread.pieces[0][0])].append(thread)
    groups = list(by_call.values())
    twins = {
        id(thread)
        for i, group in enumerate(groups)
        if any(_are_twins(group, later) for later in groups[i + 1 :])
        for thread in group
    }
    return [thread for thread in threads if id(thread) not in twins]


def _are_twins(group: list[Thread], later: list[Thread]) -> bool:
    """Whether rows are equal wherever neither is zero, and each has zeros where the other has none."""
    if [t.row for t in group] != [t.row for t in later] or not group[0].pieces[0][0].is_training:
        return False
    for one, other in zip(group, later, strict=True):
        x, y = one.inputs, other.inputs
        if x.shape != y.shape or not x.is_floating_point():
            return False
        both = (x != 0) & (y != 0)
        lost = min(int(((x == 0) & (y != 0)).sum()), int(((x != 0) & (y == 0)).sum()))
        is_much = int(both.sum()) >= SHARED * x.numel() and lost >= LOST * x.numel()
        if not is_much or not torch.equal(x[both], y[both]) or len(x[both].unique()) <= DISTINCT:
            return False
    return True


def _are_near(one: Thread, other: Thread) -> bool:
    """Whether two rows are one, which came a little changed the second time, as what is below the layer has learnt."""
    x, y = one.inputs, other.inputs
    if x.shape != y.shape:
        return False
    x, y = x.double(), y.double()
    return bool((x - y).square().sum() < NEAR * (x - x.mean()).square().sum())


def without_doubles(threads: Sequence[Thread]) -> list[Thread]:
    """The last of those that are the same in inputs and initial state: they would say the same twice."""
    numbers = [thread.number for thread in threads]
    last = {number: i for i, number in enumerate(numbers)}
    return [thread for i, thread in enumerate(threads) if last[numbers[i]] == i]


def chosen(threads: Sequence[Thread], most: int, short: int) -> list[Thread]:
    """At most so many, the first ones; those of fewer than ``short`` steps only where there are not enough others."""
    ranked = sorted(range(len(threads)), key=lambda i: (len(threads[i].inputs) < short, i))
    return [threads[i] for i in sorted(ranked[:most])]


# ---------------------------------------------------------------- states known again


def _states_of(calls: Sequence[Kept]) -> tuple[list[list[int] | None], list[list[int]]]:
    """Numbers of the states, row by row, before and after each call; read from the device at once."""
    states = [*(call.before for call in calls if call.before is not None), *(call.after for call in calls)]
    flat = [torch.cat([part.flatten(1).double() for part in state], 1) for state in states if state]
    width = max((part.shape[1] for part in flat), default=0)
    padded = [pad(part, (0, width - part.shape[1])) for part in flat]
    numbers = fingerprints(torch.cat(padded)).cpu().split([len(part) for part in flat]) if flat else ()
    read = iter([part.tolist() for part in numbers])
    befores = [None if call.before is None else next(read) for call in calls]
    return befores, [next(read) if call.after else list(range(call.rows)) for call in calls]


def fingerprints(rows: Tensor) -> Tensor:
    """A 64-bit number for each of ``(N, ...)`` rows ``(N,)``: the same for the same values, and else hardly ever."""
    values = rows.flatten(1).double() + 0.0  # which makes one zero of two
    bits = values.contiguous().view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    weights = 2 * torch.randint(-(2**61), 2**61, (bits.shape[1],), generator=generator) + 1
    return ((bits ^ (bits >> 32)) * weights.to(bits.device)).sum(1)
