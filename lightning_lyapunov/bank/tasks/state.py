"""Tasks of a state that lasts: a bit to hold, evidence to gather, a heading to turn, a wave to keep up."""

from __future__ import annotations

import math

import torch
from torch import Generator
from torch.nn.functional import one_hot

from lightning_lyapunov.bank.tasks.sequences import last_time
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
    batch: int, generator: Generator, held_out: bool, *, steps: int, noise: float, cue: int, asked: int = 4
) -> Batch:
    """Two noisy channels carry evidence; a cue, shown for the first steps, tells whose mean is asked at the end.

    Source: context-dependent integration, Mante, Sussillo, Shenoy and Newsome, Nature 503 (2013) 78-84.
    """
    evidence = torch.randn(batch, 2, generator=generator)
    relevant = torch.randint(2, (batch, 1), generator=generator)
    inputs = torch.zeros(steps, batch, 4)
    inputs[..., :2] = evidence + noise * torch.randn(steps, batch, 2, generator=generator)
    inputs[:cue, :, 2:] = one_hot(relevant[:, 0], 2).float()
    targets = torch.full((steps, batch, 1), torch.nan)
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
    batch: int, generator: Generator, held_out: bool, *, steps: int, periods: tuple[float, float], shown: int
) -> Batch:
    """A level tells a frequency for the first steps; then that sine should come out with nothing going in.

    Source: Sussillo and Barak, Neural Computation 25 (2013) 626-649.
    """
    level = torch.rand(batch, generator=generator)
    slow, fast = (2 * math.pi / period for period in reversed(periods))
    phase = (slow + (fast - slow) * level) * (torch.arange(steps)[:, None] - shown)
    inputs = torch.zeros(steps, batch, 1)
    inputs[:shown, :, 0] = 2 * level
    targets = (math.sqrt(2) * phase.sin())[..., None]
    targets[: shown + 1] = torch.nan
    return Batch(inputs, targets)
