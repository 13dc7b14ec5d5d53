"""One network made, started, trained and read; times are CPU seconds of the process."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import torch
from starts import start_of
from tasks import Task, network
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum

PROBES = 16
"""Sequences that a start may look at."""


def trained(task: Task, net: str, start: str, seed: int) -> dict[str, Any]:
    """What became of it: readings, the result, and what the start was like."""
    torch.manual_seed(seed)
    layer, head = network(task, net)
    inputs = next(task.batches(20_000 + seed))[0][:, :PROBES]
    begun = time.process_time()
    kept = start_of(start, net)(layer, inputs, task.lag)
    tuning = time.process_time() - begun
    found = {"start_of": kept, "tuning": round(tuning, 3), **first_look(task, layer, 30_000 + seed)}
    begun = time.process_time()
    readings = fitted(task, layer, head, seed)
    return {
        **found,
        "training": round(time.process_time() - begun, 2),
        "updates": len(readings) * task.every,
        "readings": [round(reading, 4) for reading in readings],
        "result": round(statistics.fmean(readings[-task.tail :]), 4),
    }


def fitted(task: Task, layer: nn.RNNBase, head: nn.Linear, seed: int) -> list[float]:
    """Train by Adam; what was read on the way."""
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=task.rate)
    recent: deque[float] = deque(maxlen=20)
    readings: list[float] = []
    held_out = task.held_out(seed) if task.held_out else None
    for update, (x, y) in zip(range(1, task.updates + 1), task.batches(seed), strict=False):
        outputs = asked(layer, head, x, len(y))
        optimizer.zero_grad()
        task.judge.loss(outputs, y).backward()
        nn.utils.clip_grad_norm_(parameters, task.clip)
        optimizer.step()
        recent.append(float(task.judge.score(outputs.detach(), y)))
        if update % task.every == 0:
            readings.append(read(task, layer, head, *held_out) if held_out else statistics.fmean(recent))
            if readings[-1] >= task.stop:
                break
    return readings


@torch.no_grad()
def read(task: Task, layer: nn.RNNBase, head: nn.Linear, x: Tensor, y: Tensor) -> float:
    """The score on sequences that were held out."""
    return float(task.judge.score(asked(layer, head, x, len(y)), y))


def asked(layer: nn.RNNBase, head: nn.Linear, x: Tensor, steps: int) -> Tensor:
    """Outputs ``(S, B, O)`` of the last S steps."""
    return head(layer(x)[0][-steps:])


def first_look(task: Task, layer: nn.RNNBase, seed: int) -> dict[str, Any]:
    """What a network is like before its first update, on sequences that it was not set on.

    ``exponents``: the largest, the median and the last of the leading H (at most 75), nats per step; ``seen``: ln of
    the norm of ∂h_T/∂x_0 over the lag, mean over sequences, in nats.
    """
    inputs = next(task.batches(seed))[0][:, :4]
    found = lyapunov_spectrum(layer, inputs, k=min(75, task.hidden), growth=0).exponents
    exponents = [float(found[0]), float(found.median()), float(found[-1])]
    return {"exponents": [round(value, 4) for value in exponents], "seen": round(seen(layer, inputs, task.lag), 2)}


def seen(layer: nn.RNNBase, inputs: Tensor, lag: int) -> float:
    """Mean ln of the Frobenius norm of the derivative of the output after the lag by the first input."""
    first = inputs[0].detach().clone().requires_grad_()
    last = layer(torch.cat((first[None], inputs[1 : lag + 1])))[0][-1]
    rows = [torch.autograd.grad(unit.sum(), first, retain_graph=True)[0] for unit in last.unbind(-1)]
    return float(torch.stack(rows).square().sum((0, 2)).sqrt().log().mean())
