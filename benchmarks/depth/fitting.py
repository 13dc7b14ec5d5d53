"""One network trained, looked at and validated on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from data import Task, task
from draws import Draw
from looking import kept, look
from networks import Network, made
from torch import nn
from torch.nn.functional import cross_entropy

UPDATES = 320
BATCH = 64
EPOCH = UPDATES // 20
"""Updates that are called an epoch here: a twentieth of training."""
LOOKS = (0, EPOCH, UPDATES // 8, UPDATES // 4, UPDATES // 2, UPDATES)
VALIDATIONS = (0, EPOCH, UPDATES // 8, 3 * EPOCH, UPDATES // 4, UPDATES // 2, UPDATES)
WINDOW = 8
"""Updates whose losses are kept as one mean."""
LOSS = 1e4
"""What is kept of a loss that is larger, or not a number."""


def optimiser(name: str, network: nn.Module) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    return torch.optim.SGD(network.parameters(), 0.03, momentum=0.9, fused=True)


def trained(draw: Draw, scale: float = 1.0) -> dict[str, Any]:
    """What became of a network: a row to keep.

    Args:
        draw: Which.
        scale: Share of the training that is done; all moments are brought forward by it.
    """
    own = task(draw.task)
    network = made(draw, own)
    moments = {round(scale * at): at for at in sorted({*LOOKS, *VALIDATIONS})}
    looks, validation, seconds = {}, {}, {"looking": 0.0}
    begun = time.process_time()
    losses: list[float] = []
    for update, loss in enumerate(_losses(network, own, draw, round(scale * UPDATES))):
        losses += [] if loss is None else [loss]
        at = moments.get(update)
        if at is not None:
            validation[at] = validated(network, own)
        if at in LOOKS:
            before = time.process_time()
            looks[at] = look(network, *next(own.batches(BATCH, 10_000 + draw.number)))
            seconds["looking"] += time.process_time() - before
    seconds["training"] = time.process_time() - begun - seconds["looking"]
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "losses": [kept(sum(some) / len(some)) for some in _chunks(losses, WINDOW)],
        "validation": validation,
        "looks": looks,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def _losses(network: Network, own: Task, draw: Draw, updates: int) -> Iterator[float | None]:
    """Nothing before the first update, then the loss of each; once one is not finite no more updates are made."""
    steps, batches = optimiser(draw.optimiser, network), own.batches(BATCH, draw.number)
    yield None
    has_ended = False
    for _ in range(updates):
        if has_ended:
            yield LOSS
            continue
        inputs, targets = next(batches)
        steps.zero_grad()
        loss = cross_entropy(network.train()(inputs), targets)
        has_ended = not bool(loss.isfinite())
        loss.backward()
        steps.step()
        yield LOSS if has_ended else min(float(loss.detach()), LOSS)


@torch.no_grad()
def validated(network: Network, own: Task) -> list[float | None]:
    """Accuracy and loss on what was held out, BatchNorm with its running statistics."""
    inputs, targets = own.held_out
    logits = network.eval()(inputs)
    accuracy = float((logits.argmax(1) == targets).float().mean())
    return [round(accuracy, 4), kept(min(float(cross_entropy(logits, targets).nan_to_num(LOSS)), LOSS))]


def _chunks(values: list[float], size: int) -> list[list[float]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
