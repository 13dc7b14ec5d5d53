"""Exponents in the loss, or held below zero, while a network learns recall: what it costs, and that it gains nothing.

Off: nothing. Guard: λ₁ measured every 8 updates, and recurrent weights scaled down by exp(−λ₁) where it is above 0.
One-sided: max(λ₁, 0)² + max(λ₂, 0)² added to the loss of every update, through :func:`lyapunov_exponents`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from plan import Run
from starts import open_gates, orthogonal
from tasks import RECALL
from torch import Tensor, nn
from training import asked, read

from lightning_lyapunov import lyapunov_spectrum

LOOK = 8
"""Updates between two looks of the guard, and sequences that it and the regulariser look at."""


def network(net: str) -> nn.RNNBase:
    """By its name in the table."""
    layer = nn.LSTM(4, 32) if net == "LSTM, bias 5" else nn.RNN(4, 32)
    if net == "RNN, orthogonal":
        orthogonal(layer, torch.empty(0), 0)
    elif net == "RNN, gain 1":
        nn.init.normal_(layer.weight_hh_l0, std=1 / math.sqrt(32))
    else:
        open_gates(layer, torch.empty(0), 0)
    return layer


def regularised(run: Run, quick: bool) -> dict[str, Any]:
    """Accuracy, the largest exponent afterwards in nats per step, and CPU seconds."""
    torch.manual_seed(run.seed)
    layer, head = network(run.net), nn.Linear(32, 4)
    task = RECALL.of(None, quick)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=task.rate)
    begun = time.process_time()
    for update, (x, y) in zip(range(task.updates), task.batches(run.seed), strict=False):
        loss = task.judge.loss(asked(layer, head, x, len(y)), y)
        if run.start == "one-sided":
            loss = loss + above_zero(layer, x[:, :LOOK])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run.start == "guard" and update % LOOK == 0:
            held(layer, x[:, :LOOK])
    seconds = time.process_time() - begun
    x, y = task.held_out(run.seed)
    largest = float(lyapunov_spectrum(layer, x[:, :64], k=1, growth=0).exponents[0])
    return {"result": read(task, layer, head, x, y), "largest": round(largest, 4), "seconds": round(seconds, 2)}


def above_zero(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """The penalty, differentiable."""
    from lightning_lyapunov import lyapunov_exponents

    return lyapunov_exponents(layer, x, k=2).clamp(min=0).square().sum()


def held(layer: nn.RNNBase, x: Tensor) -> None:
    """The guard's one look, and what it does."""
    largest = float(lyapunov_spectrum(layer, x, k=1, growth=0).exponents[0])
    if largest > 0:
        with torch.no_grad():
            layer.weight_hh_l0.mul_(math.exp(-largest))
