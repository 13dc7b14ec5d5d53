"""Tasks of a state that lasts: a bit to hold, evidence to gather, a heading to turn, a wave to keep up."""

from __future__ import annotations

import math

import torch
from torch import Generator
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import followed_by_nothing, last_time
from lightning_lyapunov.bank.tasks.task import Batch


def flipflop(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    bits: int,
    rate: float,
    noise: float,
    gap: int = 0,
) -> Batch:
    """Rare pulses of either sign come in on noisy lines; each line's last pulse should be held.

    It is asked once the pulse is ``gap`` steps old.

    Source: Sussillo and Barak, Neural Computation 25 (2013) 626-649.
    """
    shape = (steps, batch, bits)
    pulses = (torch.rand(shape, generator=generator) < rate) * (2.0 * torch.randint(2, shape, generator=generator) - 1)
    last = last_time(pulses != 0)
    age = torch.arange(steps)[:, None, None] - last
    targets = (pulses.gather(0, last.clamp(min=0)) > 0).float().where((last >= 0) & (age >= gap), torch.nan)
    return Batch(pulses + noise * torch.randn(shape, generator=generator), targets)


def context(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    noise: float,
    cue: int,
    asked: int = 4,
    wait: int = 0,
) -> Batch:
    """Two noisy channels carry evidence; a cue, shown for the first steps, tells whose mean is asked at the end.

    The end may come after a ``wait`` of so many steps in which only noise comes in.

    Source: context-dependent integration, Mante, Sussillo, Shenoy and Newsome, Nature 503 (2013) 78-84.
    """
    evidence = torch.randn(batch, 2, generator=generator)
    relevant = torch.randint(2, (batch, 1), generator=generator)
    inputs = torch.zeros(steps + wait, batch, 4)
    inputs[..., :2] = noise * torch.randn(steps + wait, batch, 2, generator=generator)
    inputs[:steps, :, :2] += evidence
    inputs[:cue, :, 2:] = one_hot(relevant[:, 0], 2).float()
    targets = torch.full((steps + wait, batch, 1), torch.nan)
    targets[-asked:] = evidence.gather(1, relevant)
    return Batch(inputs, targets)


def ring(batch: int, generator: Generator, held_out: bool, *, steps: int, speed: float, noise: float) -> Batch:
    """Turns come in; the heading, which starts anywhere and is shown at first, is asked from the middle on.

    Source: path integration on a ring, as in Cueva and Wei, ICLR (2018).
    """
    start = 2 * math.pi * torch.rand(1, batch, generator=generator)
    turns = torch.randn(steps, batch, generator=generator)
    turns[0] = 0
    heading = start + speed * turns.cumsum(0)
    inputs = torch.zeros(steps, batch, 3)
    inputs[..., 0] = turns + noise * torch.randn(steps, batch, generator=generator)
    inputs[0, :, 1:] = torch.stack((start[0].cos(), start[0].sin()), -1)
    targets = math.sqrt(2) * torch.stack((heading.cos(), heading.sin()), -1)
    targets[: steps // 2] = torch.nan
    return Batch(inputs, targets)


def sine(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    periods: tuple[float, float],
    shown: int,
    after: int = 0,
) -> Batch:
    """A level tells a frequency for the first steps; then that sine should come out with nothing going in.

    It may be asked only from some step on.

    Source: Sussillo and Barak, Neural Computation 25 (2013) 626-649.
    """
    level = torch.rand(batch, generator=generator)
    slow, fast = (2 * math.pi / period for period in reversed(periods))
    phase = (slow + (fast - slow) * level) * (torch.arange(steps)[:, None] - shown)
    inputs = torch.zeros(steps, batch, 1)
    inputs[:shown, :, 0] = 2 * level
    targets = (math.sqrt(2) * phase.sin())[..., None]
    targets[: max(shown + 1, after)] = torch.nan
    return Batch(inputs, targets)


def walk(batch: int, generator: Generator, held_out: bool, *, steps: int, side: int, wait: int = 0) -> Batch:
    """Steps on a square board, lost where they would leave it; where one stands is asked from the middle on.

    The start, any square, is shown at first. After a ``wait``, in which one stands still, it is asked only at the end.

    Source: path integration between walls, as in Banino et al., Nature 557 (2018) 429-433, on a board.
    """
    place = torch.randint(side, (batch, 2), generator=generator)
    moves = torch.randint(4, (steps, batch), generator=generator)
    middle, spread = (side - 1) / 2, math.sqrt((side**2 - 1) / 12)
    inputs = torch.zeros(steps, batch, 6)
    inputs[1:, :, :4] = one_hot(moves[1:], 4).float()
    inputs[0, :, 4:] = (place - middle) / spread
    ways = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
    places = [place]
    for move in moves[1:]:
        places.append((places[-1] + ways[move]).clamp(0, side - 1))
    targets = (torch.stack(places) - middle) / spread
    if wait:
        inputs, targets = followed_by_nothing(inputs, wait), targets[-1:].expand(steps + wait, -1, -1).clone()
    targets[: -1 if wait else steps // 2] = torch.nan
    return Batch(inputs, targets)


def rhythm(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    periods: tuple[int, int],
    beats: int,
    after: int = 0,
) -> Batch:
    """Beats come in at some period and stop; where in the bar one is, as a cosine and a sine, is asked from then on.

    It may be asked only from some step on.

    Source: the continuation of a metronome, Wing and Kristofferson, Perception and Psychophysics 14 (1973) 5-12.
    """
    shortest, longest = periods
    period = torch.randint(shortest, longest + 1, (batch,), generator=generator)
    first = (torch.rand(batch, generator=generator) * period).long()
    times = torch.arange(steps)[:, None]
    since, silent = times - first, first + beats * period
    heard = (since >= 0) & (times < silent) & (since.remainder(period) == 0)
    angle = 2 * math.pi * since / period
    targets = math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), -1)
    unasked = times < silent.clamp(min=after)
    return Batch(heard[..., None].float(), targets.masked_fill(unasked[..., None], torch.nan))
