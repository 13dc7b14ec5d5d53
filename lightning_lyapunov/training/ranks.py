"""The ranks of a Trainer, of which the first alone speaks."""

from __future__ import annotations

from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from lightning_lyapunov.monitoring.notices import caution, say
from lightning_lyapunov.monitoring.ranks import ProcessGroup, Ranks

T = TypeVar("T")

inform, warn = rank_zero_only(say), rank_zero_only(caution)
"""Where information and warnings of a callback go; silent on other ranks than zero."""


class TrainerRanks(Ranks):
    """Those of a Trainer's strategy.

    Where they are not torch's own (XLA), rank zero speaks for all.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._strategy = trainer.strategy
        self.count, self.rank = trainer.world_size, trainer.global_rank
        kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        self.data_rank = int(kwargs.get("rank", self.rank))
        self._group = ProcessGroup() if self.count > 1 and torch.distributed.is_initialized() else None

    def gather(self, thing: T) -> list[T]:
        """As in the base."""
        if self.count == 1:
            return [thing]
        return self._group.gather(thing) if self._group is not None else [self._strategy.broadcast(thing)]

    def from_first(self, thing: T) -> T:
        """As in the base."""
        return thing if self.count == 1 else self._strategy.broadcast(thing)
