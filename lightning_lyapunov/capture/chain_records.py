"""What was recorded of the passes of samples through a chain, laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.capture.chain_arguments import tokens_alive
from lightning_lyapunov.capture.chain_blocks import RecordedBlock
from lightning_lyapunov.capture.chain_paths import sample_axis


@dataclass(eq=False)
class Record:
    """One pass of samples through a chain.

    Attributes:
        state: Before the first block, as it came.
        blocks: With what they were given beside it.
        rows: The axis of the samples in states of tokens.
        seen: Samples of the pass, kept or not.
    """

    state: Tensor
    blocks: list[RecordedBlock]
    rows: int
    seen: int

    @property
    def axis(self) -> int:
        """Of the samples."""
        return sample_axis(self.state.shape, self.rows)

    @property
    def samples(self) -> int:
        """How many were kept."""
        return self.state.shape[self.axis]

    @property
    def is_normalised_by_batch(self) -> bool:
        """Whether its samples were normalised in a way of their own."""
        return any(block.normalisation == "batch" for block in self.blocks)

    def joined(self, other: Record) -> Record | None:
        """With the samples of another pass behind its own; None where they differ in more than their samples."""
        shapes = {(*one.state.shape[: self.axis], *one.state.shape[self.axis + 1 :]) for one in (self, other)}
        if len(shapes) > 1 or self.state.dtype != other.state.dtype:
            return None
        blocks = []
        for one, another in zip(self.blocks, other.blocks, strict=True):
            block = one.joined([another])
            if block is None:
                return None
            blocks.append(block)
        state = torch.cat([self.state, other.state], self.axis)
        return Record(state, blocks, self.rows, self.seen + other.seen)

    def alive(self) -> Tensor | None:
        """Which tokens ``(B, T)`` count, as far as the masks tell that the blocks are given; None if none does."""
        for block in self.blocks:
            for step in block.steps:
                if (alive := tokens_alive(step.module, step.arguments, self.state, self.rows)) is not None:
                    return alive
        return None

    def chosen(self, most: int) -> tuple[list[RecordedBlock], Tensor, Tensor | None]:
        """The blocks, the states before the first, samples first, and which tokens count; of unpadded samples first."""
        alive, state, blocks = self.alive(), self.state.movedim(self.axis, 0), self.blocks
        if most < len(state):
            padded = torch.zeros(len(state)) if alive is None else (~alive).sum(1)
            index = padded.argsort(stable=True)[:most].sort().values
            blocks, state = [block.of(index) for block in blocks], state.index_select(0, index.to(state.device))
            alive = None if alive is None else alive.index_select(0, index.to(alive.device))
        return blocks, state, None if alive is None or bool(alive.all()) else alive


def side_by_side(records: Sequence[Record], enough: int) -> Record:
    """As many passes as are needed and can be laid side by side, beginning with the largest."""
    joined = largest = max(records, key=lambda record: record.samples)
    for record in records:
        if record is not largest and joined.samples < enough:
            joined = joined.joined(record) or joined
    return joined
