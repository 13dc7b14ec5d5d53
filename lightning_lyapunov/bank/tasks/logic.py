"""Tasks of logic: what a rule makes of the bits or symbols so far, which come in without noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Generator
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import delayed, last_time
from lightning_lyapunov.bank.tasks.task import Batch


def xor(batch: int, generator: Generator, held_out: bool, *, steps: int, lags: Sequence[int]) -> Batch:
    """Does this bit differ from the one some steps ago? Asked at every step, for several lags at once."""
    bits = torch.randint(2, (steps, batch), generator=generator).float()
    differs = [(bits - delayed(bits, lag)).abs() for lag in lags]
    return Batch(2 * bits[..., None] - 1, torch.stack(differs, -1))


def parity(batch: int, generator: Generator, held_out: bool, *, steps: int, widths: Sequence[int]) -> Batch:
    """Is the number of ones among the last few bits odd? Asked at every step, for several widths at once."""
    bits = torch.randint(2, (steps, batch), generator=generator).float()
    counts = torch.stack([delayed(bits, lag) for lag in range(max(widths))]).cumsum(0)
    return Batch(2 * bits[..., None] - 1, counts[[width - 1 for width in widths]].movedim(0, -1).remainder(2))


def dyck(
    batch: int, generator: Generator, held_out: bool, *, steps: int, types: int, depth: int, gap: int = 0
) -> Batch:
    """Brackets of several types, nested to a bounded depth; after a closing one: which type closes next?

    Only asked where a bracket is still open after a closing one, as after an opening one it is just that one; and where
    it was opened at least ``gap`` steps ago.

    Source: Hewitt, Hahn, Ganguli, Liang and Manning, EMNLP (2020) 1978-2010.
    """
    walk = (2 * torch.randint(2, (steps, batch), generator=generator) - 1).cumsum(0)
    level = depth - (walk.remainder(2 * depth) - depth).abs()  # a free walk, folded at 0 and at the depth
    opening = level.diff(dim=0, prepend=torch.zeros(1, batch, dtype=level.dtype)) > 0
    kinds = torch.randint(types, (steps, batch), generator=generator)
    depths = torch.arange(1, depth + 1)[:, None, None]
    # No stack is needed: the innermost of d open brackets is the last one that brought the depth to d.
    opened = torch.stack([last_time(opening & (level == d)) for d in range(1, depth + 1)]).clamp(min=0)
    innermost = kinds.expand(depth, -1, -1).gather(1, opened)  # (depth, T, B)
    age = torch.arange(steps)[:, None] - (opened * (depths == level)).sum(0)
    inside = torch.where(opening, level, level + 1)  # the depth within the bracket that this step opens or closes
    shown = (innermost * (depths == inside)).sum(0)
    symbols = torch.where(opening, shown, types + shown)
    targets = (innermost * (depths == level)).sum(0).where(~opening & (level > 0) & (age >= gap), -1)
    return Batch(one_hot(symbols, 2 * types).float(), targets)


def modular(batch: int, generator: Generator, held_out: bool, *, steps: int, modulus: int, after: int) -> Batch:
    """How many ones there were so far, modulo a number; asked from some step on.

    Source: the word problem of a cyclic group, as in Merrill, Petty and Sabharwal, ICML (2024).
    """
    bits = torch.randint(2, (steps, batch), generator=generator)
    targets = bits.cumsum(0).remainder(modulus).where(torch.arange(steps)[:, None] >= after, -1)
    return Batch(one_hot(bits, 2).float(), targets)


def group(batch: int, generator: Generator, held_out: bool, *, steps: int, cards: int, after: int) -> Batch:
    """Cards in a row stay, or the first two change places, or the first goes to the end; how do they lie?

    Asked from some step on. The answer is the number of the order among all, sorted.

    Source: the word problem of a group that does not commute, as in Merrill, Petty and Sabharwal, ICML (2024).
    """
    orders = list(itertools.permutations(range(cards)))
    swapped = [orders.index((second, first, *rest)) for first, second, *rest in orders]
    turned = [orders.index((*rest, first)) for first, *rest in orders]
    after_move = torch.tensor([list(range(len(orders))), swapped, turned])
    moves = torch.randint(3, (steps, batch), generator=generator)
    states = [torch.zeros(batch, dtype=torch.long)]
    for move in moves:
        states.append(after_move[move, states[-1]])
    targets = torch.stack(states[1:]).where(torch.arange(steps)[:, None] >= after, -1)
    return Batch(one_hot(moves, 3).float(), targets)
