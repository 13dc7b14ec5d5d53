"""The states that a measurement came through, as the few numbers that are kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.engine.precision import widest_dtype


@dataclass(frozen=True, eq=False)
class Visited:
    """Sums over every entry that is seen (h, not c) of every state after a step, of all sequences.

    The state before the first step is not among them.
    """

    count: int
    """Entries."""
    sums: Tensor
    """(3,) of them, of their sizes, and of their squares."""

    @staticmethod
    def of(states: Tensor, running: Sequence[int]) -> Visited:
        """That of states ``(S, B, H)``, of which the first ``running[t]`` rows count at step t."""
        _, sequences, units = states.shape
        states = states.detach()
        if running[-1] < sequences:
            counted = torch.arange(sequences) < torch.tensor(running).unsqueeze(1)
            states = torch.where(counted.to(states.device, non_blocking=True).unsqueeze(-1), states, 0.0)
        sizes, length = torch.linalg.vector_norm(states, 1), torch.linalg.vector_norm(states)
        return Visited(units * sum(running), torch.stack([states.sum(), sizes, length.square()]))

    @staticmethod
    def merge(several: Sequence[Visited | None]) -> Visited | None:
        """That of all of them together; None if one is not known, or there are none."""
        known = [one for one in several if one is not None]
        if not known or len(known) < len(several):
            return None
        wide = widest_dtype(known[0].sums.device)
        sums = torch.stack([one.sums.to(known[0].sums.device, wide) for one in known]).sum(0)
        return Visited(sum(one.count for one in known), sums)

    def to(self, device: torch.device | str) -> Visited:
        """The same on another device."""
        return Visited(self.count, self.sums.to(device))

    def __repr__(self) -> str:
        return f"Visited({self.count:,} entries, mean |h| {self.mean_size:.3g}, spread {self.spread:.3g})"

    @property
    def mean_size(self) -> float:
        """Mean of ``|h|``."""
        return float(self.sums[1]) / self.count if self.count else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of h."""
        if self.count < 2:
            return math.nan
        total, _, squares = self.sums.tolist()
        variance = (squares - total**2 / self.count) / (self.count - 1)
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
