"""Ranks of a distributed run: what each says, heard by all, and how sequences are shared out among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

T = TypeVar("T")


def gather(trainer: pl.Trainer, thing: T) -> list[T]:
    """What every rank brings, in their order; to be called on all of them at once.

    Tensors in it must be on the CPU, since it is pickled. Where the ranks are not torch's own (XLA), rank zero's alone.
    """
    if trainer.world_size == 1:
        return [thing]
    if not torch.distributed.is_initialized():
        return [trainer.strategy.broadcast(thing)]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, thing)
    return everyone


def from_rank_zero(trainer: pl.Trainer, thing: T) -> T:
    """What rank zero brings; to be called on all of them at once."""
    return thing if trainer.world_size == 1 else trainer.strategy.broadcast(thing)


def data_rank(trainer: pl.Trainer) -> int:
    """Which share of the data this rank sees: ranks that hold pieces of one model see the same."""
    kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return int(kwargs.get("rank", trainer.global_rank))


def share_out(wanted: int, there_are: Sequence[int]) -> list[int]:
    """How many each contributes of ``wanted`` in all: as evenly as what they have allows.

    >>> share_out(16, [10, 10, 1])
    [8, 7, 1]
    """
    shares = [0] * len(there_are)
    for _ in range(min(wanted, sum(there_are))):
        left = [rank for rank, has in enumerate(there_are) if shares[rank] < has]
        shares[min(left, key=shares.__getitem__)] += 1
    return shares
