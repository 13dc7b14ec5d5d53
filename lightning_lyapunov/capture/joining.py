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
DISTINCT = 8
"""More values than these a row must hold to be known again after dropout: rows of zeros and ones look alike."""


@dataclass(frozen=True, eq=False)
class Kept(Call):
    """A bounded copy of a call."""

    totals: list[int] = field(default_factory=list)
    """(B,) steps of each row, those included that were not kept."""
    turn: int = 0
    """Which forward pass over the batch it belongs to."""

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
    is_held: bool = False
    """Whether its last step began in the state that the step before had begun in, which then did not count."""
    age: int = 0
    """Grows with each call."""

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
        for row, thread in enumerate(rows):
            if thread is not None:
                thread.is_held = False
            elif before is not None and (thread := came_from.take(before[row], row, same_row=True)) is not None:
                thread.is_held = True
                thread.pieces.pop()
            else:
                threads.append(thread := Thread(limit))
            thread.pieces.append((call, row))
            thread.age += 1
            rows[row] = thread
        for row, thread in enumerate(rows):  # not before: a row does not go on from another one of the same call
            assert thread is not None
            came_to.put(after[row], row, thread)
            if before is not None and call.totals[row] == 1:
                came_from.put(before[row], row, thread)
    for thread in threads:
        if thread.is_held and len(thread.pieces) > 1:
            thread.pieces.pop()  # it was held to the end, and nothing went on from this step either
    return _once_each(threads)


class _States:
    """Threads by the number of a state that they are, or were, in."""

    def __init__(self) -> None:
        self._threads: dict[int, list[tuple[int, int, Thread]]] = defaultdict(list)

    def put(self, state: int, row: int, thread: Thread) -> None:
        """Note that a thread is there, in a row of the newest call."""
        self._threads[state].append((row, thread.age, thread))

    def take(self, state: int, row: int, *, same_row: bool = False) -> Thread | None:
        """A thread that is still there, of the same row if it can be, or must; then it is there no longer."""
        there = [entry for entry in self._threads.get(state, ()) if entry[1] == entry[2].age]
        entry = next((entry for entry in there if entry[0] == row), None if same_row or not there else there[0])
        if entry is None:
            return None
        entry[2].age += 1
        return entry[2]


def _once_each(threads: list[Thread]) -> list[Thread]:
    """Without those that come again in a later pass, or in another call as dropout made something else of them."""
    last = {(thread.row, thread.total): thread.turn for thread in sorted(threads, key=lambda thread: thread.turn)}
    found: list[Thread] = []
    for thread in reversed(threads):
        rivals = [t for t in found if t.row == thread.row and t.total == thread.total]
        again = any(t.pieces[0][0] is not thread.pieces[0][0] and _differ_by_dropout(t, thread) for t in rivals)
        if thread.turn == last[thread.row, thread.total] and not again:
            found.append(thread)
    return found[::-1]


def _differ_by_dropout(one: Thread, other: Thread) -> bool:
    x, y = one.inputs, other.inputs
    if x.shape != y.shape or not x.is_floating_point():
        return False
    both = (x != 0) & (y != 0)
    if int(both.sum()) < SHARED * x.numel() or not torch.equal(x[both], y[both]):
        return False
    return len(x[both].unique()) > DISTINCT


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
