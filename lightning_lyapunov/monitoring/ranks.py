"""Ranks of a distributed run: what each says, heard by all, and how sequences are shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


class Ranks:
    """This process alone; the ranks of a distributed run are a subclass.

    Attributes:
        count: How many there are.
        rank: Which this one is.
        data_rank: Which share of the data it sees: ranks that hold pieces of one model see the same.
    """

    count = 1
    rank = 0
    data_rank = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank zero, which decides, writes and remembers."""
        return self.rank == 0

    def gather(self, thing: T) -> list[T]:
        """What every rank brings, in their order; to be called on all of them at once.

        Tensors in it must be on the CPU, since it is pickled.
        """
        return [thing]

    def from_first(self, thing: T) -> T:
        """What rank zero brings; to be called on all of them at once."""
        return self.gather(thing)[0]


class ProcessGroup(Ranks):
    """The ranks of torch's default process group, each with a share of the data of its own."""

    def __init__(self) -> None:
        self.count, self.rank = distributed.get_world_size(), distributed.get_rank()
        self.data_rank = self.rank

    def gather(self, thing: T) -> list[T]:
        """As in the base."""
        everyone: list[Any] = [None] * self.count
        distributed.all_gather_object(everyone, thing)
        return everyone

    def from_first(self, thing: T) -> T:
        """As in the base."""
        things = [thing]
        distributed.broadcast_object_list(things)
        return things[0]


def current_ranks() -> Ranks:
    """Those of the process group, if there is one."""
    there_are = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return ProcessGroup() if there_are else Ranks()


@dataclass(frozen=True)
class Trouble:
    """What came in the way of a rank."""

    text: str


def attempt(what: Callable[[], T]) -> T | Trouble:
    """What it returns, or what came in the way: a rank that gave up alone would leave the others waiting."""
    try:
        return what()
    except Exception as error:
        return Trouble(str(error) or type(error).__name__)


def agreed(everyone: Sequence[T | Trouble]) -> list[T]:
    """What all ranks brought, if none of them is in trouble.

    Raises:
        ValueError: If one is, with what came in its way.
    """
    for rank, brought in enumerate(everyone):
        if isinstance(brought, Trouble):
            raise ValueError(brought.text + (f" (on rank {rank})" if len(everyone) > 1 else ""))
    return [brought for brought in everyone if not isinstance(brought, Trouble)]


@dataclass(frozen=True)
class Offer:
    """What a rank could measure."""

    data_rank: int
    """Which share of the data it sees; those that see the same count once."""
    count: int
    is_second_choice: bool
    """Whether it is not from where it is preferred: it counts if no rank has any from there."""


def shares_of(offers: Sequence[Offer], wanted: int) -> list[int]:
    """How many each rank measures of ``wanted`` in all.

    >>> shares_of([Offer(0, 4, False), Offer(0, 4, False), Offer(1, 9, True)], 8)
    [4, 0, 0]
    """
    no_first_choice = all(offer.is_second_choice for offer in offers)
    seen: set[int] = set()
    there_are = []
    for offer in offers:
        counts = offer.data_rank not in seen and (no_first_choice or not offer.is_second_choice)
        there_are.append(offer.count if counts else 0)
        seen.add(offer.data_rank)
    return share_out(wanted, there_are)


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
