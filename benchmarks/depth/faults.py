"""One faulty block among twelve, and which profile along the depth points at it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from data import task
from draws import Draw, draw
from fitting import BATCH, optimiser
from looking import SAMPLES, SETTINGS, free
from networks import Network, held, made
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_lyapunov.engine.depth import measure_depth
from lightning_lyapunov.reading.depth_conditions import odd, severed, unchanging
from lightning_lyapunov.reading.depth_history import DepthMeasurement

BLOCKS = 12
FAR = 1e3
"""Nats that stand for −∞ in a profile."""


@torch.no_grad()
def _off(network: Network, place: int) -> None:
    """The units of the branch are never on."""
    network.blocks[place].branch[0].bias.fill_(-20.0)


@torch.no_grad()
def _unheard(network: Network, place: int) -> None:
    """Next to nothing of the branch is let out; training may mend that."""
    network.blocks[place].branch[2].weight.mul_(1e-3)


@torch.no_grad()
def _times(network: Network, place: int, factor: float) -> None:
    for layer in network.blocks[place].modules():
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(factor)


@torch.no_grad()
def _saturated(network: Network, place: int) -> None:
    """Units at their limits, by biases of ±3."""
    bias = network.blocks[place][0].bias
    bias.copy_(torch.where(torch.arange(len(bias)) % 2 == 0, 3.0, -3.0))


FAULTS: dict[str, tuple[str, Callable[[Network, int], None], bool]] = {
    "dead branch, pre-LN: units off": ("pre", _off, True),
    "dead branch, pre-LN: output weights × .001": ("pre", _unheard, True),
    "gain × 3, plain": ("plain", partial(_times, factor=3.0), False),
    "gain × 1.5, pre-LN": ("pre", partial(_times, factor=1.5), False),
    "saturated, plain": ("plain", _saturated, True),
}
"""The network that each is put into, what is done to the block, and whether its figures should be low."""
NETWORKS: dict[str, dict[str, Any]] = {
    "pre": {"kind": "residual dense", "norm": "pre", "activation": "relu", "gain": 1.0, "branch": 1.0},
    "plain": {"kind": "dense", "norm": "none", "activation": "tanh", "gain": 1.2, "branch": 1.0},
}


def located(fault: str, seed: int, updates: int) -> dict[str, Any]:
    """Where each profile points before the first update and after some, and where the fault is."""
    network_of, break_it, is_low = FAULTS[fault]
    settings = {**NETWORKS[network_of], "depth": BLOCKS, "optimiser": "adam"}
    one: Draw = replace(draw(seed), task=("images", "tabular")[seed % 2], number=seed, **settings)
    own, place = task(one.task), torch.randint(BLOCKS, (1,), generator=torch.Generator().manual_seed(seed)).item()
    network = made(one, own)
    break_it(network, int(place))
    found = {"place": place, "before": _pointed_at(network, *next(own.batches(BATCH, 1)), is_low)}
    steps = optimiser("adam", network)
    for inputs, targets in islice(own.batches(BATCH, seed), updates):
        steps.zero_grad()
        cross_entropy(network.train()(inputs), targets).backward()
        steps.step()
    return {**found, "after": _pointed_at(network, *next(own.batches(BATCH, 1)), is_low)}


def _pointed_at(network: Network, inputs: Tensor, targets: Tensor, is_low: bool) -> dict[str, list[int]]:
    """The blocks that the rule names; and of each other way the most extreme and the one that stands out."""
    measured = held(network, inputs)
    found = measure_depth(measured.chain, measured.stem(inputs[:SAMPLES]), SETTINGS)
    passing = free(network, inputs, targets)
    profiles = {
        "block gain": found.block_gain.tolist(),
        "block change": found.block_change.tolist(),
        "leading direction": found.contributions[:, 0].tolist(),
        "gradient ratio": passing["block_gradient"],
        "activation ratio": passing["block_activation"],
    }
    told = DepthMeasurement.of(found, kinds=[type(block).__name__ for block in network.blocks])
    rule = {*severed(told), *unchanging(told), *(block for block, _ in odd(told))}
    return {**{name: [extreme(one, is_low), farthest(one)] for name, one in profiles.items()}, "rule": sorted(rule)}


def extreme(profile: Sequence[float], is_low: bool) -> int:
    """The block of the lowest figure, or of the highest."""
    values = _finite(profile)
    return values.index(min(values) if is_low else max(values))


def farthest(profile: Sequence[float]) -> int:
    """The block that lies farthest from the median of its neighbours, two on either side.

    So a profile that rises or falls with depth, as of pre-LN networks, names none of its ends for that alone.
    """
    values = _finite(profile)

    def distance(place: int) -> float:
        first = min(max(place - 2, 0), len(values) - 5)
        around = [values[at] for at in range(first, first + 5) if at != place]
        return abs(values[place] - statistics.median(around))

    return max(range(len(values)), key=distance)


def _finite(profile: Sequence[float]) -> list[float]:
    return [0.0 if math.isnan(value) else max(-FAR, value) for value in profile]
