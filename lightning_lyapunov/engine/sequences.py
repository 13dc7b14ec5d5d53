"""Driving inputs as sequences side by side, from where they are recorded to where they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of inputs, time first, padded to the longest."""

    values: Tensor
    """``(T, B, ...)``; what stands beyond the end of a sequence is not looked at."""
    lengths: list[int]
    """(B,) steps of each."""
    order: Tensor | None = None
    """(B,) the user's row of each row here; None if it is the same."""

    @staticmethod
    def of_packed(inputs: PackedSequence) -> Sequences:
        """What a PackedSequence holds, in the user's order.

        Raises:
            ValueError: If it is not of torch's own packing and does not hold together.
        """
        sizes, rows = inputs.batch_sizes.tolist(), len(inputs.data)
        named = [len(indices) for indices in (inputs.sorted_indices, inputs.unsorted_indices) if indices is not None]
        falls = inputs.batch_sizes.dim() == 1 and len(sizes) > 0 and all(a >= b for a, b in pairwise([*sizes, 1]))
        if not falls or sum(sizes) != rows or any(n != sizes[0] for n in named):
            raise ValueError(
                f"inputs: the batch_sizes of a PackedSequence must fall from the number of its sequences to at least "
                f"1, as each has a step, and sum to the {rows} rows of its data; got {sizes}"
                + (f" and the indices of {named[0]} sequences." if named else ".")
            )
        values, lengths = pad_packed_sequence(inputs)
        return Sequences(values, lengths.tolist())

    def __len__(self) -> int:
        return len(self.lengths)

    def first(self, rows: int) -> Sequences:
        """The first so many of them."""
        return replace(self, values=self.values[:, :rows], lengths=self.lengths[:rows])

    def cut(self, steps: int | None) -> Sequences:
        """Their first so many steps."""
        return replace(self, values=self.values[:steps], lengths=[min(n, steps or n) for n in self.lengths])

    def sorted(self) -> Sequences:
        """The same, longest first."""
        if all(a >= b for a, b in pairwise(self.lengths)):
            return self
        lengths, order = torch.tensor(self.lengths).sort(descending=True, stable=True)
        order = order.to(self.values.device)
        return Sequences(self.values.index_select(1, order), lengths.tolist(), order)

    @property
    def running(self) -> list[int]:
        """(T,) how many of the first rows still run at each step, where the longest come first."""
        if self.lengths[-1] == len(self.values):
            return [len(self.lengths)] * len(self.values)
        return [sum(length > t for length in self.lengths) for t in range(len(self.values))]

    def reversed(self, values: Tensor) -> Tensor:
        """``values`` ``(T, B, ...)`` with time reversed within each sequence's own length."""
        if min(self.lengths) == len(values):
            return values.flip(0)
        time = torch.arange(len(values), device=values.device).unsqueeze(1)
        lengths = torch.tensor(self.lengths, device=values.device)
        source = torch.where(time < lengths, lengths - 1 - time, time)
        return values[source, torch.arange(values.shape[1], device=values.device)]


def lengths_of(running: list[int]) -> list[int]:
    """(B,) steps of each sequence, from how many run at each step: the inverse of :attr:`Sequences.running`."""
    if running[-1] == running[0]:
        return [len(running)] * running[0]
    return [sum(rows > row for rows in running) for row in range(running[0])]


Inputs = Tensor | PackedSequence | Sequences
