"""Tasks of memory: what was shown is asked for later, past a delay, distractors or noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import at_the_end, delayed, followed_by_nothing
from lightning_lyapunov.bank.tasks.task import Batch


def recall(batch: int, generator: Generator, held_out: bool, *, symbols: int, length: int, delay: int) -> Batch:
    """Symbols are shown one by one, and after a delay asked for in the same order; a cue marks the asking.

    Source: the copy task of Hochreiter and Schmidhuber (1997) as in Arjovsky, Shah and Bengio (2016).
    """
    shown = torch.randint(symbols, (length, batch), generator=generator)
    steps = 2 * length + delay
    inputs = torch.zeros(steps, batch, symbols + 1)
    inputs[:length, :, :-1] = one_hot(shown, symbols).float()
    inputs[-length:, :, -1] = 1
    targets = torch.full((steps, batch), -1)
    targets[-length:] = shown
    return Batch(inputs, targets)


def capacity(batch: int, generator: Generator, held_out: bool, *, steps: int, delays: Sequence[int]) -> Batch:
    """White noise goes in; what went in some steps ago should come out, for several delays at once.

    Source: short-term memory capacity, Jaeger (2001), GMD report 152.
    """
    noise = torch.rand(steps, batch, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))
    return Batch(noise[..., None], torch.stack([delayed(noise, delay) for delay in delays], -1))


def adding(batch: int, generator: Generator, held_out: bool, *, steps: int) -> Batch:
    """Two of many numbers are marked, one in each half; their sum is asked at the end.

    Source: Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    """
    numbers = torch.rand(steps, batch, generator=generator)
    half = steps // 2
    places = torch.randint(half, (2, batch), generator=generator) + torch.tensor([[0], [half]])
    marks = torch.zeros(steps, batch).scatter_(0, places, 1.0)
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = ((numbers * marks).sum(0) - 1) * math.sqrt(6)  # mean 1 and variance 2/12 become 0 and 1
    return Batch(torch.stack((numbers, marks), -1), targets)


def compare(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    delay: int,
    distraction: float,
    noise: float,
    hold: int = 2,
    wait: int = 0,
) -> Batch:
    """Two stimuli, each held for some noisy steps, with a delay between them; their difference is asked.

    A second line tells stimuli from what else may come in during the delay. The answer may come after a ``wait`` of so
    many steps in which only noise comes in.

    Source: vibrotactile discrimination, Romo, Brody, Hernández and Lemus, Nature 399 (1999) 470-473.
    """
    steps = 2 * hold + delay
    stimuli = torch.rand(2, batch, generator=generator) * 2 - 1
    present = torch.zeros(steps, batch)
    present[:hold] = present[-hold:] = 1
    level = distraction * (torch.rand(steps, batch, generator=generator) * 2 - 1)
    level[:hold], level[-hold:] = stimuli
    level, present = followed_by_nothing(level, wait), followed_by_nothing(present, wait)
    level += noise * torch.randn(level.shape, generator=generator)
    targets = torch.full((steps + wait, batch, 1), torch.nan)
    targets[-1, :, 0] = (stimuli[0] - stimuli[1]) * math.sqrt(1.5)  # variance 2/3 becomes 1
    return Batch(torch.stack((level, present), -1), targets)


def match(
    batch: int, generator: Generator, held_out: bool, *, symbols: int, items: int, delay: int, probes: int, noise: float
) -> Batch:
    """Some symbols are shown, and after a delay probes in a row: was this one among them?

    Source: delayed match to sample, Miller, Erickson and Desimone (1996), with a memory set as in Sternberg (1966).
    """
    shuffled = torch.rand(symbols, batch, generator=generator).argsort(0)  # the first few are the memory set
    seen = torch.rand(probes, batch, generator=generator) < 0.5
    from_set = torch.randint(items, (probes, batch), generator=generator)
    from_rest = torch.randint(items, symbols, (probes, batch), generator=generator)
    steps = items + delay + probes
    inputs = noise * torch.randn(steps, batch, symbols + 1, generator=generator)
    inputs[:items, :, :-1] += one_hot(shuffled[:items], symbols)
    inputs[-probes:, :, :-1] += one_hot(shuffled.gather(0, torch.where(seen, from_set, from_rest)), symbols)
    inputs[-probes:, :, -1] += 1
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-probes:, :, 0] = seen.float()
    return Batch(inputs, targets)


def order(
    batch: int, generator: Generator, held_out: bool, *, steps: int, marks: int, distractors: int = 4, wait: int = 0
) -> Batch:
    """Some marks of two kinds come in at random times among distractors; their order is asked at the end.

    The end may come after a ``wait`` of so many steps in which only distractors come in.

    Source: temporal order, Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    """
    span = steps // marks
    times = torch.randint(span - 1, (marks, batch), generator=generator) + span * torch.arange(marks)[:, None]
    kinds = torch.randint(2, (marks, batch), generator=generator)
    symbols = torch.randint(2, 2 + distractors, (steps, batch), generator=generator).scatter_(0, times, kinds)
    symbols = torch.cat((symbols, torch.randint(2, 2 + distractors, (wait, batch), generator=generator)))
    answer = (kinds * 2 ** torch.arange(marks)[:, None]).sum(0)
    return Batch(one_hot(symbols, 2 + distractors).float(), at_the_end(answer, steps + wait))


def timing(batch: int, generator: Generator, held_out: bool, *, longest: int, delay: int, noise: float) -> Batch:
    """Two pulses, some steps apart; after a delay and a third pulse, how many steps is asked.

    Source: interval timing, Jazayeri and Shadlen, Nature Neuroscience 13 (2010) 1020-1026.
    """
    steps = longest + delay + 2
    interval = torch.randint(2, longest + 1, (batch,), generator=generator)
    row = torch.arange(batch)
    inputs = noise * torch.randn(steps, batch, 2, generator=generator)
    inputs[longest - interval, row, 0] += 1
    inputs[longest, :, 0] += 1
    inputs[-1, :, 1] += 1
    middle, variance = (longest + 2) / 2, ((longest - 1) ** 2 - 1) / 12  # of whole numbers from 2 to the longest
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = (interval - middle) / math.sqrt(variance)
    return Batch(inputs, targets)


def winner(batch: int, generator: Generator, held_out: bool, *, steps: int) -> Batch:
    """Bids come in, each with a value; the value of the highest bid is asked at the end.

    Source: a regression form of choosing by relevance, as in Graves, Wayne and Danihelka (2014), arXiv:1410.5401.
    """
    bids, values = torch.rand(2, steps, batch, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = values.gather(0, bids.argmax(0, keepdim=True))[0]
    return Batch(torch.stack((bids, values), -1), targets)


def product(batch: int, generator: Generator, held_out: bool, *, steps: int) -> Batch:
    """Two of many numbers are marked, one in each half; their product is asked at the end.

    Source: the multiplication problem, Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    """
    numbers = torch.rand(steps, batch, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))
    half = steps // 2
    places = torch.randint(half, (2, batch), generator=generator) + torch.tensor([[0], [half]])
    marks = torch.zeros(steps, batch).scatter_(0, places, 1.0)
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = numbers.gather(0, places).prod(0)
    return Batch(torch.stack((numbers, marks), -1), targets)


def nback(batch: int, generator: Generator, held_out: bool, *, steps: int, back: int, symbols: int) -> Batch:
    """Is this symbol the one that came some steps ago? Asked at every step; every second time it is.

    Source: Kirchner, Journal of Experimental Psychology 55 (1958) 352-358.
    """
    same = torch.rand(steps, batch, generator=generator) < 0.5
    drawn = torch.randint(symbols, (steps, batch), generator=generator)
    changes = torch.randint(1, symbols, (steps, batch), generator=generator).where(~same, 0)
    shown = drawn[:back]
    for time in range(back, steps):
        shown = torch.cat((shown, (shown[time - back] + changes[time]).remainder(symbols)[None]))
    targets = same.float()
    targets[:back] = torch.nan
    return Batch(one_hot(shown, symbols).float(), targets[..., None])
