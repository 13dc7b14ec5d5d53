r"""Small sequence tasks of many families, for networks that are trained by the thousand.

A task draws batches of input sequences and says what should be read out of a network that sees them, one step at a
time. Variants of one *family* share a sampler and differ in delay, length, noise or difficulty; they are one task asked
in several ways, so a claim about "a task never seen" leaves out a whole family.

Three choices run through all of them. Sequences are short (at most 64 steps), as thousands of networks see thousands of
batches of them. Difficulty is *graded*: a task asks several things, some near and some far, or is noisy, so that its
outcome is a scale rather than learnt or not learnt. And inputs and targets are of order one, so that a rate which suits
one task suits the others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

SET_ASIDE = ("associate", "ring")
"""Families that nothing is fitted on: no choice but that of their own difficulty rests on them."""

HELD_OUT = 0.25
"""Share of a trajectory, a text or a data set, at its end, that only held-out batches are drawn from."""


class Batch(NamedTuple):
    """What the networks see, and what should be read out of them."""

    inputs: Tensor
    """``(T, B, input_size)``, float32."""

    targets: Tensor
    """Classes: ``(T, B)``, long, -1 where nothing is asked. Bits, values: ``(T, B, output_size)``, NaN there."""


@dataclass(frozen=True)
class Task:
    """One variant of a task family.

    Example:
        >>> task = TASKS["recall-6"]
        >>> batch = task.sample(32, torch.Generator().manual_seed(0))
        >>> batch.inputs.shape == (task.steps, 32, task.input_size)
        True
    """

    name: str
    """Unique, such as ``recall-6``."""

    family: str
    """What its variants have in common, such as ``recall``."""

    input_size: int
    output_size: int
    """Width of the read-out: logits, or values."""

    steps: int
    """Length T of every sequence."""

    kind: Literal["classes", "bits", "values"]
    """Read-out: one of several classes, independent bits, or real values of about unit variance."""

    chance: float
    """The :func:`metric` of the best constant answer, one that ignores the input."""

    sampler: Callable[[int, Generator, bool], Batch] = field(repr=False, compare=False)

    def sample(self, batch: int, generator: Generator, *, held_out: bool = False) -> Batch:
        """Draw sequences.

        Args:
            batch: Number B of sequences.
            generator: Random numbers, on the CPU; its state decides the batch.
            held_out: Draw from the part that training never draws from. Tasks that are made up afresh every time have
                no such part and just draw.
        """
        return self.sampler(batch, generator, held_out)


def loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each of N networks over all that is asked: cross-entropy in nats, or squared error.

    Args:
        task: The task.
        outputs: Read-outs of the networks, ``(N, T, B, output_size)``.
        targets: The targets of a :class:`Batch`, the same for all networks.

    Returns:
        ``(N,)``. What is not asked gives no gradient.
    """
    if task.kind == "classes":
        outputs, answers = _asked_classes(outputs, targets)
        chosen = outputs.gather(-1, answers.expand(len(outputs), -1)[..., None])[..., 0]
        return (outputs.logsumexp(-1) - chosen).mean(-1)
    asked = targets.isfinite()
    targets = targets.where(asked, 0.0).expand_as(outputs)  # a NaN times 0 would still be NaN
    if task.kind == "bits":
        errors = binary_cross_entropy_with_logits(outputs, targets, weight=asked.to(outputs.dtype), reduction="none")
    else:
        errors = (outputs - targets).square() * asked
    return errors.flatten(1).sum(-1) / asked.sum()


@torch.no_grad()
def metric(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    r"""How well each of N networks does; larger is better.

    Accuracy in [0, 1] for classes and bits. For values

    .. math:: 1 - \sqrt{\textstyle\sum (y - \hat{y})^2 \,/\, \sum (y - \bar{y})^2},

    with the mean of each output taken over all that is asked of it: 1 is perfect, 0 the best constant, less is worse.

    Args:
        task: The task.
        outputs: Read-outs of the networks, ``(N, T, B, output_size)``.
        targets: The targets of a :class:`Batch`, the same for all networks.

    Returns:
        ``(N,)``; NaN for a network whose read-out is not finite.
    """
    finite = outputs.isfinite().flatten(1).all(-1)
    if task.kind == "classes":
        outputs, answers = _asked_classes(outputs, targets)
        values = (outputs.argmax(-1) == answers).float().mean(-1)
    elif task.kind == "bits":
        asked = targets.isfinite()
        values = ((outputs > 0) == (targets > 0.5)).logical_and(asked).flatten(1).sum(-1) / asked.sum()
    else:
        spread = (targets - targets.nanmean((0, 1))).square().nansum()
        values = 1 - ((outputs - targets).square().flatten(1).nansum(-1) / spread).sqrt()
    return values.where(finite, torch.nan)


def _asked_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The M places where a class is asked: read-outs ``(N, M, O)`` and answers ``(M,)``."""
    asked = (targets.flatten() >= 0).nonzero()[:, 0]
    return outputs.flatten(1, 2).index_select(1, asked), targets.flatten()[asked]


# Memory ---------------------------------------------------------------------------------------------------------------


def _recall(batch: int, generator: Generator, held_out: bool, *, symbols: int, length: int, delay: int) -> Batch:
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


def _capacity(batch: int, generator: Generator, held_out: bool, *, steps: int, delays: Sequence[int]) -> Batch:
    """White noise goes in; what went in some steps ago should come out, for several delays at once.

    Source: short-term memory capacity, Jaeger (2001), GMD report 152.
    """
    noise = torch.rand(steps, batch, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))
    return Batch(noise[..., None], torch.stack([_delayed(noise, delay) for delay in delays], -1))


def _adding(batch: int, generator: Generator, held_out: bool, *, steps: int) -> Batch:
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


def _compare(
    batch: int, generator: Generator, held_out: bool, *, delay: int, distraction: float, noise: float, hold: int = 2
) -> Batch:
    """Two stimuli, each held for some noisy steps, with a delay between them; their difference is asked.

    A second line tells stimuli from what else may come in during the delay.

    Source: vibrotactile discrimination, Romo, Brody, Hernández and Lemus, Nature 399 (1999) 470-473.
    """
    steps = 2 * hold + delay
    stimuli = torch.rand(2, batch, generator=generator) * 2 - 1
    present = torch.zeros(steps, batch)
    present[:hold] = present[-hold:] = 1
    level = distraction * (torch.rand(steps, batch, generator=generator) * 2 - 1)
    level[:hold], level[-hold:] = stimuli
    level += noise * torch.randn(steps, batch, generator=generator)
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = (stimuli[0] - stimuli[1]) * math.sqrt(1.5)  # variance 2/3 becomes 1
    return Batch(torch.stack((level, present), -1), targets)


def _match(
    batch: int, generator: Generator, held_out: bool, *, symbols: int, items: int, delay: int, probes: int, noise: float
) -> Batch:
    """Some symbols are shown, and after a delay probes in a row: was this one among them?

    Source: delayed match to sample, Miller, Erickson and Desimone (1996), with a memory set as in Sternberg (1966).
    """
    order = torch.rand(symbols, batch, generator=generator).argsort(0)  # the first few are the memory set
    seen = torch.rand(probes, batch, generator=generator) < 0.5
    from_set = torch.randint(items, (probes, batch), generator=generator)
    from_rest = torch.randint(items, symbols, (probes, batch), generator=generator)
    steps = items + delay + probes
    inputs = noise * torch.randn(steps, batch, symbols + 1, generator=generator)
    inputs[:items, :, :-1] += one_hot(order[:items], symbols)
    inputs[-probes:, :, :-1] += one_hot(order.gather(0, torch.where(seen, from_set, from_rest)), symbols)
    inputs[-probes:, :, -1] += 1
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-probes:, :, 0] = seen.float()
    return Batch(inputs, targets)


def _order(batch: int, generator: Generator, held_out: bool, *, steps: int, marks: int, distractors: int = 4) -> Batch:
    """Some marks of two kinds come in at random times among distractors; their order is asked at the end.

    Source: temporal order, Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    """
    span = steps // marks
    times = torch.randint(span - 1, (marks, batch), generator=generator) + span * torch.arange(marks)[:, None]
    kinds = torch.randint(2, (marks, batch), generator=generator)
    symbols = torch.randint(2, 2 + distractors, (steps, batch), generator=generator).scatter_(0, times, kinds)
    answer = (kinds * 2 ** torch.arange(marks)[:, None]).sum(0)
    return Batch(one_hot(symbols, 2 + distractors).float(), _at_the_end(answer, steps))


def _associate(
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


def _timing(batch: int, generator: Generator, held_out: bool, *, longest: int, delay: int, noise: float) -> Batch:
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


def _winner(batch: int, generator: Generator, held_out: bool, *, steps: int) -> Batch:
    """Bids come in, each with a value; the value of the highest bid is asked at the end.

    Source: a regression form of choosing by relevance, as in Graves, Wayne and Danihelka (2014), arXiv:1410.5401.
    """
    bids, values = torch.rand(2, steps, batch, generator=generator).mul_(2).sub_(1).mul_(math.sqrt(3))
    targets = torch.full((steps, batch, 1), torch.nan)
    targets[-1, :, 0] = values.gather(0, bids.argmax(0, keepdim=True))[0]
    return Batch(torch.stack((bids, values), -1), targets)


# Logic and state ------------------------------------------------------------------------------------------------------


def _xor(batch: int, generator: Generator, held_out: bool, *, steps: int, lags: Sequence[int]) -> Batch:
    """Does this bit differ from the one some steps ago? Asked at every step, for several lags at once."""
    bits = torch.randint(2, (steps, batch), generator=generator).float()
    differs = [(bits - _delayed(bits, lag)).abs() for lag in lags]
    return Batch(2 * bits[..., None] - 1, torch.stack(differs, -1))


def _parity(batch: int, generator: Generator, held_out: bool, *, steps: int, widths: Sequence[int]) -> Batch:
    """Is the number of ones among the last few bits odd? Asked at every step, for several widths at once."""
    bits = torch.randint(2, (steps, batch), generator=generator).float()
    counts = torch.stack([_delayed(bits, lag) for lag in range(max(widths))]).cumsum(0)
    return Batch(2 * bits[..., None] - 1, counts[[width - 1 for width in widths]].movedim(0, -1).remainder(2))


def _flipflop(
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
    last = _last_time(pulses != 0)
    age = torch.arange(steps)[:, None, None] - last
    targets = (pulses.gather(0, last.clamp(min=0)) > 0).float().where((last >= 0) & (age >= gap), torch.nan)
    return Batch(pulses + noise * torch.randn(shape, generator=generator), targets)


def _context(
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


def _dyck(
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
    opened = torch.stack([_last_time(opening & (level == d)) for d in range(1, depth + 1)]).clamp(min=0)
    innermost = kinds.expand(depth, -1, -1).gather(1, opened)  # (depth, T, B)
    age = torch.arange(steps)[:, None] - (opened * (depths == level)).sum(0)
    inside = torch.where(opening, level, level + 1)  # the depth within the bracket that this step opens or closes
    shown = (innermost * (depths == inside)).sum(0)
    symbols = torch.where(opening, shown, types + shown)
    targets = (innermost * (depths == level)).sum(0).where(~opening & (level > 0) & (age >= gap), -1)
    return Batch(one_hot(symbols, 2 * types).float(), targets)


def _modular(batch: int, generator: Generator, held_out: bool, *, steps: int, modulus: int, after: int) -> Batch:
    """How many ones there were so far, modulo a number; asked from some step on.

    Source: the word problem of a cyclic group, as in Merrill, Petty and Sabharwal, ICML (2024).
    """
    bits = torch.randint(2, (steps, batch), generator=generator)
    targets = bits.cumsum(0).remainder(modulus).where(torch.arange(steps)[:, None] >= after, -1)
    return Batch(one_hot(bits, 2).float(), targets)


def _ring(batch: int, generator: Generator, held_out: bool, *, steps: int, speed: float, noise: float) -> Batch:
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


def _sine(
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


def _delayed(signal: Tensor, delay: int) -> Tensor:
    """The signal ``(T, ...)`` as it was ``delay`` steps ago, NaN before its start."""
    return torch.cat((torch.full_like(signal[:delay], torch.nan), signal[: len(signal) - delay]))


def _last_time(events: Tensor) -> Tensor:
    """When the last event happened, up to and including now; -1 before the first. ``(T, ...)`` both."""
    times = torch.arange(len(events)).view(-1, *[1] * (events.ndim - 1))
    return times.where(events, -1).cummax(0).values


# Dynamical systems ----------------------------------------------------------------------------------------------------

Series = Callable[[], Tensor]
"""Recordings ``(L, C, V)`` of V variables from C sources over L steps."""

CHAINS, LENGTH = 64, 640
"""Independent trajectories of a system, and how many steps of each are kept."""


def _forecast(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    series: Series,
    steps: int,
    horizon: int,
    noise: float = 0.0,
    warmup: int = 4,
) -> Batch:
    """The first variable of a system is observed with noise; its true value ``horizon`` steps ahead is asked.

    The first steps are not asked, as nothing can be known from so short a past.
    """
    window = _windows(series(), steps + horizon, batch, generator, held_out)[..., :1]
    targets = window[horizon:].clone()
    targets[:warmup] = torch.nan
    return Batch(window[:steps] + noise * torch.randn(steps, batch, 1, generator=generator), targets)


def _windows(series: Tensor, span: int, batch: int, generator: Generator, held_out: bool) -> Tensor:
    """Random stretches ``(span, B, V)`` of a series; those held out lie after all others and overlap none."""
    split = len(series) - int(HELD_OUT * len(series))
    first, end = (split, len(series)) if held_out else (0, split)
    starts = torch.randint(first, end - span + 1, (batch,), generator=generator)
    chains = torch.randint(series.shape[1], (batch,), generator=generator)
    return series[starts + torch.arange(span)[:, None], chains]


def _standardised(series: Tensor) -> Tensor:
    """Zero mean and unit variance of each variable over the part that is not held out; float32."""
    seen = series[: len(series) - int(HELD_OUT * len(series))]
    return ((series - seen.mean((0, 1))) / seen.std((0, 1))).float()


def _iterated(step: Callable[[Tensor], Tensor], state: Tensor, *, every: int = 1, washout: int = 200) -> Tensor:
    """States ``(L, C, V)`` that a map visits, one in ``every``, after ``washout`` of them."""
    kept = []
    for time in range((washout + LENGTH) * every):
        state = step(state)
        if time % every == 0:
            kept.append(state)
    return _standardised(torch.stack(kept[washout:]))


def _start(variables: int) -> Tensor:
    """Initial states ``(C, V)`` in the unit cube, always the same."""
    return torch.rand(CHAINS, variables, generator=Generator().manual_seed(0), dtype=torch.float64)


@cache
def _lorenz() -> Tensor:
    """The Lorenz system (1963), sampled every 0.1 units of time."""

    def flow(state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), -1)

    def step(state: Tensor, dt: float = 0.02) -> Tensor:  # fourth-order Runge-Kutta
        a = flow(state)
        b = flow(state + dt / 2 * a)
        c = flow(state + dt / 2 * b)
        d = flow(state + dt * c)
        return state + dt / 6 * (a + 2 * b + 2 * c + d)

    return _iterated(step, _start(3), every=5)


@cache
def _mackey_glass(delay: int, dt: float = 0.25, spacing: int = 12) -> Tensor:
    """The delay equation of Mackey and Glass (1977), by Euler steps, sampled every 3 units of time."""
    lag = round(delay / dt)
    past = [0.5 + _start(1)] * (lag + 1)
    for _ in range((LENGTH + 200) * spacing):
        delayed, now = past[-lag - 1], past[-1]
        past.append(now + dt * (0.2 * delayed / (1 + delayed**10) - 0.1 * now))
    return _standardised(torch.stack(past[lag + 1 + 200 * spacing :: spacing]))


@cache
def _henon() -> Tensor:
    """The map of Hénon (1976)."""

    def step(state: Tensor) -> Tensor:
        x, y = state.unbind(-1)
        return torch.stack((1 - 1.4 * x**2 + y, 0.3 * x), -1)

    return _iterated(step, 0.1 * _start(2))


@cache
def _coupled_logistic(coupling: float = 0.1) -> Tensor:
    """Two logistic maps at a = 3.9 and 4, each pulled towards the other; Kaneko (1983). Other pulls end in a cycle."""
    rates = torch.tensor([3.9, 4.0], dtype=torch.float64)

    def step(state: Tensor) -> Tensor:
        image = rates * state * (1 - state)
        return (1 - coupling) * image + coupling * image.flip(-1)

    return _iterated(step, _start(2))


@cache
def _ikeda(u: float = 0.9) -> Tensor:
    """The map of Ikeda (1979) in the plane; Hammel, Jones and Moloney (1985)."""

    def step(state: Tensor) -> Tensor:
        x, y = state.unbind(-1)
        angle = 0.4 - 6 / (1 + x**2 + y**2)
        sin, cos = angle.sin(), angle.cos()
        return torch.stack((1 + u * (x * cos - y * sin), u * (x * sin + y * cos)), -1)

    return _iterated(step, _start(2))


def _narma(batch: int, generator: Generator, held_out: bool, *, order: int, steps: int) -> Batch:
    """Noise drives a system with a memory of some steps; its next output is asked. The past before the start is hidden.

    Source: Atiya and Parlos, IEEE Transactions on Neural Networks 11 (2000) 697-709.
    """
    window = _windows(_narma_series(order), steps, batch, generator, held_out)
    targets = window[..., 1:].clone()
    targets[:order] = torch.nan
    return Batch(window[..., :1], targets)


@cache
def _narma_series(order: int) -> Tensor:
    """Drive and response ``(L, C, 2)``, standardised."""
    return _standardised(_narma_system(order))


def _narma_system(order: int, washout: int = 100) -> Tensor:
    """Drive u, uniform in [0, 0.5], and response y one step later, ``(L, C, 2)``."""
    drive = 0.5 * torch.rand(washout + LENGTH, CHAINS, generator=Generator().manual_seed(order), dtype=torch.float64)
    response = torch.zeros(washout + LENGTH + 1, CHAINS, dtype=torch.float64)
    for t in range(order, washout + LENGTH):
        past = response[t - order + 1 : t + 1]
        after = 0.3 * past[-1] + 0.05 * past[-1] * past.sum(0) + 1.5 * drive[t - order + 1] * drive[t] + 0.1
        response[t + 1] = after.clamp(max=1)  # a rare run of large inputs would send it to infinity
    return torch.stack((drive, response[1:]), -1)[washout:]


# Text -----------------------------------------------------------------------------------------------------------------

Source = Literal["prose", "code"]
"""Which text: English documentation that comes with Python, or source code of its library."""

ALPHABETS: dict[Source, str] = {
    "prose": " abcdefghijklmnopqrstuvwxyz.,-",
    "code": "\n abcdefghijklmnopqrstuvwxyz()[]:=_.,#'",
}
"""The characters that are kept."""

MODULES = ("argparse", "difflib", "doctest", "pdb", "tarfile", "typing")
"""Whose source is read."""


@cache
def text(source: Source) -> str:
    """What the tasks ``chars`` read, in lower case; every run of spaces and of other characters is one space.

    It changes a little from one Python to the next.
    """
    if source == "prose":
        from pydoc_data.topics import topics

        raw = " ".join(topics[key] for key in sorted(topics))
    else:
        specs = [importlib.util.find_spec(module) for module in MODULES]
        files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
        raw = "\n".join(file.read_text(encoding="utf-8") for file in files)
    kept = "".join(letter if letter in ALPHABETS[source] else " " for letter in raw.lower())
    return " ".join(part for part in kept.split(" ") if part)


def text_sha256(source: Source) -> str:
    """Hash of :func:`text`, which tells whether two banks read the same one."""
    return hashlib.sha256(text(source).encode()).hexdigest()


@cache
def _letters(source: Source) -> Tensor:
    """The text as indices into its alphabet, ``(L, 1, 1)``."""
    place = {letter: index for index, letter in enumerate(ALPHABETS[source])}
    return torch.tensor([place[letter] for letter in text(source)], dtype=torch.uint8)[:, None, None]


def _chars(batch: int, generator: Generator, held_out: bool, *, source: Source, steps: int) -> Batch:
    """Characters of a text; the next one is asked at every step."""
    window = _windows(_letters(source), steps + 1, batch, generator, held_out)[..., 0].long()
    return Batch(one_hot(window[:-1], len(ALPHABETS[source])).float(), window[1:])


# Shapes and recordings ------------------------------------------------------------------------------------------------


def _templates(
    batch: int,
    generator: Generator,
    held_out: bool,
    *,
    steps: int,
    classes: int,
    noise: float,
    waves: int = 5,
    wait: int = 0,
) -> Batch:
    """A curve, one of several, is shifted, stretched, scaled, tilted and made noisy; which one is asked at the end.

    The end may come after a ``wait`` of so many steps in which only noise comes in.

    Source: after MNIST-1D, Greydanus (2020), arXiv:2011.14439, with curves of our own and no limit on the examples.
    """
    labels = torch.randint(classes, (batch,), generator=generator)
    shift, width, scale, tilt = torch.rand(4, batch, generator=generator)
    width = steps * (0.4 + 0.3 * width)
    phase = (torch.arange(steps)[:, None] - shift * (steps - width)) / width  # (T, B): 0 to 1 within the curve
    orders = math.pi * torch.arange(1, waves + 1)
    curves = (_curves(classes, waves)[labels] * (phase[..., None] * orders).sin()).sum(-1)
    inside = (phase >= 0) & (phase <= 1)
    ramp = torch.linspace(-1, 1, steps)[:, None] * (2 * tilt - 1)
    inputs = _followed_by_nothing((0.6 + 0.8 * scale) * curves * inside + 0.5 * ramp, wait)
    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator)
    return Batch(inputs[..., None], _at_the_end(labels, len(inputs)))


@cache
def _curves(classes: int, waves: int) -> Tensor:
    """Sine coefficients ``(classes, waves)`` of curves that begin and end at zero, of unit mean square."""
    coefficients = torch.randn(classes, waves, generator=Generator().manual_seed(1))
    return coefficients * math.sqrt(2) / coefficients.norm(dim=-1, keepdim=True)


def _digits(batch: int, generator: Generator, held_out: bool, *, pixels: int, noise: float, wait: int = 0) -> Batch:
    """Handwritten digits of 8 x 8 pixels, some pixels a step, with noise; the digit is asked at the end.

    The end may come after a ``wait`` of so many steps in which only noise comes in.

    Source: Alpaydin and Kaynak (1998), UCI machine learning repository, CC BY 4.0; a copy ships in scikit-learn.
    """
    images, labels = _digit_images()
    split = len(images) - int(HELD_OUT * len(images))
    first, end = (split, len(images)) if held_out else (0, split)
    chosen = torch.randint(first, end, (batch,), generator=generator)
    inputs = _followed_by_nothing(images[chosen].view(batch, -1, pixels).transpose(0, 1), wait)
    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator)
    return Batch(inputs, _at_the_end(labels[chosen], len(inputs)))


@cache
def _digit_images() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 64)`` of about unit variance, and their labels; shuffled, as writers follow one another."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    return (torch.as_tensor(images, dtype=torch.float32)[order] - 5) / 6, torch.as_tensor(labels).long()[order]


def _followed_by_nothing(inputs: Tensor, wait: int) -> Tensor:
    """Inputs ``(T, ...)`` and ``wait`` steps of zeros."""
    return torch.cat((inputs, inputs.new_zeros(wait, *inputs.shape[1:])))


def _at_the_end(labels: Tensor, steps: int) -> Tensor:
    """Targets ``(T, B)`` that ask for the labels ``(B,)`` at the last step only."""
    targets = torch.full((steps, len(labels)), -1)
    targets[-1] = labels
    return targets


def _shipped(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing it."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"This task reads a recording of the package {package}: pip install {package}."
        ) from None


@cache
def _laser() -> Tensor:
    """Intensity of a chaotic far-infrared laser, 10,093 samples; Hübner, Abraham and Weiss (1989)."""
    import numpy

    # Data set A of the Santa Fe competition (Weigend and Gershenfeld, 1993), published there for anyone's use with no
    # licence of its own; reservoirpy, which carries the file, is under MIT. The bank keeps none of it.
    series = numpy.load(_shipped("reservoirpy", "reservoirpy/datasets/santafe_laser.npy"))
    return _standardised(torch.as_tensor(series, dtype=torch.float64).view(-1, 1, 1))


# The table ------------------------------------------------------------------------------------------------------------


def _task(
    name: str,
    kind: Literal["classes", "bits", "values"],
    sizes: tuple[int, int, int],
    chance: float,
    sampler: Callable[..., Batch],
    **options: Any,
) -> Task:
    """One row: input and output size and steps follow from the options, and stand beside them."""
    input_size, output_size, steps = sizes
    return Task(name, name.split("-")[0], input_size, output_size, steps, kind, chance, partial(sampler, **options))


def _variants() -> Iterator[Task]:
    """All tasks, family by family.

    Difficulties are such that a gated network of 32 units is well above chance after a thousand updates, and that it
    and plain ones of recurrent gain 0.3 to 2.5 end far from each other.
    """
    options: dict[str, Any]
    series: Series
    for symbols, length, delay in ((8, 5, 6), (6, 3, 12), (6, 3, 20), (4, 2, 40)):
        sizes, options = (symbols + 1, symbols, 2 * length + delay), {"symbols": symbols, "length": length}
        yield _task(f"recall-{delay}", "classes", sizes, 1 / symbols, _recall, delay=delay, **options)
    for delays in ((2, 4, 8, 12, 16), (8, 12, 16, 20, 24), (20, 26, 32)):
        steps = 48 if max(delays) > 24 else 40
        yield _task(
            f"capacity-{max(delays)}", "values", (1, len(delays), steps), 0, _capacity, steps=steps, delays=delays
        )
    for steps in (20, 40, 60):
        yield _task(f"adding-{steps}", "values", (2, 1, steps), 0, _adding, steps=steps)
    for delay, distraction in ((8, 1.0), (20, 0.0)):
        options = {"delay": delay, "distraction": distraction, "noise": 0.1}
        yield _task(f"compare-{delay}", "values", (2, 1, 4 + delay), 0, _compare, **options)
    for delay in (6, 14):
        sizes, options = (7, 1, 6 + delay), {"symbols": 6, "items": 2, "probes": 4, "noise": 0.2}
        yield _task(f"match-{delay}", "bits", sizes, 0.5, _match, delay=delay, **options)

    for lags in ((2, 4, 7, 11), (4, 8, 12, 16), (14, 18)):
        steps = 40 if max(lags) > 16 else 32
        yield _task(f"xor-{max(lags)}", "bits", (1, len(lags), steps), 0.5, _xor, steps=steps, lags=lags)
    for widths in ((3, 5, 8), (3, 6, 12), (7, 9)):
        yield _task(f"parity-{max(widths)}", "bits", (1, len(widths), 24), 0.5, _parity, steps=24, widths=widths)
    for bits, rate in ((2, 0.15), (3, 0.1)):
        options = {"steps": 32, "bits": bits, "rate": rate, "noise": 0.25}
        yield _task(f"flipflop-{bits}", "bits", (bits, bits, 32), 0.5, _flipflop, **options)
    options = {"steps": 60, "bits": 2, "rate": 0.03, "noise": 0.5, "gap": 24}
    yield _task("flipflop-gap", "bits", (2, 2, 60), 0.5, _flipflop, **options)
    for steps, cue, noise in ((20, 20, 1.0), (32, 2, 1.0), (60, 1, 2.0)):
        yield _task(f"context-{steps}", "values", (4, 1, steps), 0, _context, steps=steps, cue=cue, noise=noise)
    for types, depth, steps in ((4, 6, 32), (2, 12, 48)):
        sizes, options = (2 * types, types, steps), {"steps": steps, "types": types, "depth": depth}
        yield _task(f"dyck-{types}x{depth}", "classes", sizes, 1 / types, _dyck, **options)
    yield _task("dyck-gap", "classes", (8, 4, 60), 1 / 4, _dyck, steps=60, types=4, depth=8, gap=20)

    for order in (5, 10):
        yield _task(f"narma-{order}", "values", (1, 1, 32), 0, _narma, order=order, steps=32)
    for name, series, steps, horizon, noise in (
        ("mackey-17", partial(_mackey_glass, 17), 32, 12, 0.2),
        ("mackey-30", partial(_mackey_glass, 30), 32, 12, 0.1),
        ("lorenz-3", _lorenz, 32, 3, 0.2),
        ("lorenz-6", _lorenz, 32, 6, 0.1),
        ("maps-henon", _henon, 20, 2, 0.05),
        ("maps-logistic", _coupled_logistic, 20, 2, 0.02),
        ("maps-ikeda", _ikeda, 24, 1, 0.02),
        ("recordings-laser-4", _laser, 32, 4, 0.0),
        ("recordings-laser-10", _laser, 32, 10, 0.0),
    ):
        options = {"series": series, "steps": steps, "horizon": horizon, "noise": noise}
        yield _task(name, "values", (1, 1, steps), 0, _forecast, **options)

    chances: dict[Source, float] = {"prose": 0.17, "code": 0.14}  # the share of the space, the commonest character
    for source, chance in chances.items():
        width = len(ALPHABETS[source])
        yield _task(f"chars-{source}", "classes", (width, width, 32), chance, _chars, source=source, steps=32)
    for classes, steps, noise in ((5, 24, 0.4), (10, 40, 0.1)):
        sizes, options = (1, classes, steps), {"steps": steps, "classes": classes, "noise": noise}
        yield _task(f"templates-{classes}", "classes", sizes, 1 / classes, _templates, **options)
    options = {"steps": 24, "classes": 5, "noise": 0.2, "wait": 36}
    yield _task("templates-wait", "classes", (1, 5, 60), 1 / 5, _templates, **options)
    for pixels, noise in ((1, 0.1), (4, 0.6)):
        yield _task(f"digits-{pixels}", "classes", (pixels, 10, 64 // pixels), 0.1, _digits, pixels=pixels, noise=noise)
    yield _task("digits-wait", "classes", (4, 10, 56), 0.1, _digits, pixels=4, noise=0.3, wait=40)

    for steps, marks in ((40, 3), (60, 4)):
        yield _task(f"order-{marks}", "classes", (6, 2**marks, steps), 2**-marks, _order, steps=steps, marks=marks)
    for pairs, delay in ((3, 24), (4, 16)):
        options = {"pairs": pairs, "keys": 6, "values": 4, "delay": delay}
        yield _task(f"associate-{pairs}", "classes", (10, 4, 2 * pairs + delay), 1 / 4, _associate, **options)
    for longest, delay in ((16, 4), (24, 24)):
        options = {"longest": longest, "delay": delay, "noise": 0.1}
        yield _task(f"timing-{longest}", "values", (2, 1, longest + delay + 2), 0, _timing, **options)
    for steps in (24, 40):
        yield _task(f"winner-{steps}", "values", (2, 1, steps), 0, _winner, steps=steps)
    for modulus, steps in ((5, 24), (7, 32)):
        options = {"steps": steps, "modulus": modulus, "after": steps // 3}
        yield _task(f"modular-{modulus}", "classes", (2, modulus, steps), 1 / modulus, _modular, **options)
    for steps, speed in ((24, 0.5), (16, 0.7)):
        yield _task(f"ring-{steps}", "values", (3, 2, steps), 0, _ring, steps=steps, speed=speed, noise=0.1)
    for name, steps, periods in (("sine-slow", 40, (10.0, 30.0)), ("sine-fast", 40, (4.0, 10.0))):
        yield _task(name, "values", (1, 1, steps), 0, _sine, steps=steps, periods=periods, shown=4)


TASKS: dict[str, Task] = {task.name: task for task in _variants()}
"""Every variant by its name."""
