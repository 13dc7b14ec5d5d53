"""Tasks of looking up: a key, a place, a slot or a line is named, and what is there is asked."""

from __future__ import annotations

import math

import torch
from torch import Generator
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import last_time
from lightning_lyapunov.bank.tasks.task import Batch


def associate(
    batch: int, generator: Generator, held_out: bool, *, pairs: int, keys: int, values: int, delay: int
) -> Batch:
    """Pairs of a key and a value are shown, one a step; after a delay keys come back and their values are asked.

    Source: associative retrieval, Ba, Hinton, Mnih, Leibo and Ionescu, NeurIPS (2016).
    """
    shown = torch.rand(keys, batch, generator=generator).argsort(0)[:pairs]
    paired = torch.randint(values, (pairs, batch), generator=generator)
    asked = torch.rand(pairs, batch, generator=generator).argsort(0)
    steps = 2 * pairs + delay
    inputs = torch.zeros(steps, batch, keys + values)
    inputs[:pairs, :, :keys] = one_hot(shown, keys).float()
    inputs[:pairs, :, keys:] = one_hot(paired, values).float()
    inputs[-pairs:, :, :keys] = one_hot(shown.gather(0, asked), keys).float()
    targets = torch.full((steps, batch), -1)
    targets[-pairs:] = paired.gather(0, asked)
    return Batch(inputs, targets)


def position(batch: int, generator: Generator, held_out: bool, *, symbols: int, length: int, delay: int) -> Batch:
    """Symbols are shown one by one, and after a delay a few places are named: which symbol stood there?

    Source: probed serial recall, Waugh and Norman, Psychological Review 72 (1965) 89-104.
    """
    shown = torch.randint(symbols, (length, batch), generator=generator)
    places = torch.rand(length, batch, generator=generator).argsort(0)[: length // 2]
    steps = length + delay + len(places)
    inputs = torch.zeros(steps, batch, symbols + length)
    inputs[:length, :, :symbols] = one_hot(shown, symbols).float()
    inputs[-len(places) :, :, symbols:] = one_hot(places, length).float()
    targets = torch.full((steps, batch), -1)
    targets[-len(places) :] = shown.gather(0, places)
    return Batch(inputs, targets)


def registers(
    batch: int, generator: Generator, held_out: bool, *, steps: int, slots: int, values: int, rate: float, gap: int = 0
) -> Batch:
    """Values are written to slots, over what was there, and slots are read: what stands there?

    Most steps say nothing. A slot is asked once what it holds is ``gap`` steps old.
    """
    happens = torch.rand(steps, batch, generator=generator) < rate
    reads = torch.rand(steps, batch, generator=generator) < 0.5
    slot = torch.randint(slots, (steps, batch), generator=generator)
    value = torch.randint(values, (steps, batch), generator=generator)
    inputs = torch.zeros(steps, batch, slots + values + 1)
    inputs[..., :slots] = one_hot(slot, slots) * happens[..., None]
    inputs[..., slots:-1] = one_hot(value, values) * (happens & ~reads)[..., None]
    inputs[..., -1] = (happens & reads).float()
    writes = (happens & ~reads)[..., None] & (slot[..., None] == torch.arange(slots))
    last = last_time(writes).gather(-1, slot[..., None])[..., 0]
    old = torch.arange(steps)[:, None] - last
    targets = value.gather(0, last.clamp(min=0)).where(happens & reads & (last >= 0) & (old >= gap), -1)
    return Batch(inputs, targets)


def tally(
    batch: int, generator: Generator, held_out: bool, *, steps: int, lines: int, rate: float, wait: int = 0
) -> Batch:
    """Pulses come in on several lines; after a ``wait`` one line is named: how many were there?"""
    pulses = (torch.rand(steps, batch, lines, generator=generator) < rate).float()
    asked = torch.randint(lines, (batch, 1), generator=generator)
    inputs = torch.zeros(steps + wait + 1, batch, 2 * lines)
    inputs[:steps, :, :lines] = pulses
    inputs[-1, :, lines:] = one_hot(asked[:, 0], lines).float()
    targets = torch.full((steps + wait + 1, batch, 1), torch.nan)
    counts = pulses.sum(0).gather(1, asked)
    targets[-1] = (counts - steps * rate) / math.sqrt(steps * rate * (1 - rate))
    return Batch(inputs, targets)
