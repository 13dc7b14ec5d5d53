"""What samplers of several kinds are made of: windows of a long series, looks into the past, questions at the end."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

HELD_OUT = 0.25
"""Share of a trajectory, a text or a data set, at its end, that only held-out batches are drawn from."""


def windows(series: Tensor, span: int, batch: int, generator: Generator, held_out: bool) -> Tensor:
    """Random stretches ``(span, B, V)`` of a series; those held out lie after all others and overlap none."""
    split = len(series) - int(HELD_OUT * len(series))
    first, end = (split, len(series)) if held_out else (0, split)
    starts = torch.randint(first, end - span + 1, (batch,), generator=generator)
    chains = torch.randint(series.shape[1], (batch,), generator=generator)
    return series[starts + torch.arange(span)[:, None], chains]


def delayed(signal: Tensor, delay: int) -> Tensor:
    """The signal ``(T, ...)`` as it was ``delay`` steps ago, NaN before its start."""
    return torch.cat((torch.full_like(signal[:delay], torch.nan), signal[: len(signal) - delay]))


def last_time(events: Tensor) -> Tensor:
    """When the last event happened, up to and including now; -1 before the first. ``(T, ...)`` both."""
    times = torch.arange(len(events)).view(-1, *[1] * (events.ndim - 1))
    return times.where(events, -1).cummax(0).values


def at_the_end(labels: Tensor, steps: int) -> Tensor:
    """Targets ``(T, B)`` that ask for the labels ``(B,)`` at the last step only."""
    targets = torch.full((steps, len(labels)), -1)
    targets[-1] = labels
    return targets


def followed_by_nothing(inputs: Tensor, wait: int) -> Tensor:
    """Inputs ``(T, ...)`` and ``wait`` steps of zeros."""
    return torch.cat((inputs, inputs.new_zeros(wait, *inputs.shape[1:])))
