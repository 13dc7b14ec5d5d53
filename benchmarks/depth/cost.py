"""A measurement as the callback makes it, in units of a training step of the benchmark's networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from data import task
from draws import Draw
from fitting import BATCH
from looking import SAMPLES
from networks import held, made
from torch.nn.functional import cross_entropy

from lightning_lyapunov.engine.depth import DepthSettings, measure_depth

SETTINGS = DepthSettings(k=2, tolerance=0.05, probes=2, columns=2, most=8)
"""What the callback measures by default."""
ROUNDS = 15
KINDS = ("dense", "residual dense", "conv", "residual conv", "attention")
COSTS = [(kind, depth) for kind in KINDS for depth in (6, 12, 24)]


def measured(kind: str, depth: int) -> dict[str, Any]:
    """CPU milliseconds of a step, of a measurement, and the median of their ratios; they take turns."""
    norm = {"dense": "none", "conv": "batch", "residual conv": "batch"}.get(kind, "pre")
    draw = Draw(0, "images", kind, depth, norm, "relu", 1.0, 1.0 if norm == "none" else 0.5, "adam")
    own = task("images")
    network = made(draw, own)
    steps, batches = torch.optim.Adam(network.parameters(), 1e-3), own.batches(BATCH, 0)

    def step() -> None:
        inputs, targets = next(batches)
        steps.zero_grad()
        cross_entropy(network.train()(inputs), targets).backward()
        steps.step()

    copy = held(network, next(batches)[0])
    first = copy.stem(own.inputs[:SAMPLES])

    def measure() -> None:
        measure_depth(copy.chain, first, SETTINGS)

    step(), measure()
    rounds = [(_took(step), _took(measure)) for _ in range(ROUNDS)]
    ratios = [look / own_step for own_step, look in rounds]
    step_ms, look_ms = (statistics.median(one) * 1e3 for one in zip(*rounds, strict=True))
    return {"step": round(step_ms, 2), "look": round(look_ms, 2), "steps": round(statistics.median(ratios), 2)}


def _took(work: Callable[[], None], repeats: int = 3) -> float:
    """CPU seconds of one, the mean of some."""
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begun) / repeats
