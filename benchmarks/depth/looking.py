"""What a network is like at one moment: its spectrum across depth, and what one forward and one backward pass tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from networks import Network, held
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lightning_lyapunov.engine.depth import DepthSettings, measure_depth

SAMPLES = 8
SETTINGS = DepthSettings(k=4, tolerance=0.02, probes=4)
INFINITE = 999.0
"""Stands for ∞ in what is kept; NaN is null."""


def look(network: Network, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Both, on a training batch; the spectrum on its first samples."""
    return {**spectrum(network, inputs), **free(network, inputs, targets)}


def spectrum(network: Network, inputs: Tensor) -> dict[str, Any]:
    """The spectrum across the blocks, nats; empty where a state is not finite."""
    network = held(network, inputs)
    try:
        with torch.no_grad():
            first = network.stem(inputs[:SAMPLES])
        found = measure_depth(network.chain, first, SETTINGS)
    except ValueError as error:
        return {"refused": str(error)}
    return {
        "total": kept(found.log_singular_values[0]),
        "total_error": kept(found.error[0]),
        "trusted": bool(found.trusted[0]),
        "gain": kept(found.gain),
        "typical": kept(found.typical),
        "state_growth": kept(found.state_growth),
        "block_gain": kept_all(found.block_gain),
        "block_change": kept_all(found.block_change),
    }


def free(network: Network, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """What training itself passes by: sizes of states and gradients, ln of norms.

    ``gradient_ratio`` is ln ‖∂L/∂x_0‖ / ‖∂L/∂x_D‖, ``gradient_norm`` that of all weights; ``block_gradient`` and
    ``block_activation`` are the steps of the gradient going back and of the state going on, block by block; ``cosine``
    is the mean between last states of different samples less that between the first. Statistics of BatchNorm are
    left as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    states = network.train().states(inputs)
    loss = cross_entropy(network.read(states[-1]), targets)
    wanted = [*states, *network.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    network.load_state_dict(buffers, strict=False)
    back = [log_norm([gradient]) for gradient in gradients[: len(states)]]
    sizes = [log_norm([state.detach()]) for state in states]
    return {
        "loss": kept(loss.detach()),
        "gradient_ratio": kept(back[0] - back[-1]),
        "gradient_norm": kept(log_norm(gradients[len(states) :])),
        "activation_ratio": kept(sizes[-1] - sizes[0]),
        "cosine": kept(_cosine(states[-1].detach()) - _cosine(states[0].detach())),
        "block_gradient": kept_all([before - after for before, after in pairwise(back)]),
        "block_activation": kept_all([after - before for before, after in pairwise(sizes)]),
    }


def log_norm(parts: Iterable[Tensor | None]) -> float:
    """Logarithm of the norm of all of them together."""
    norms = [float(torch.linalg.vector_norm(part.double())) for part in parts if part is not None]
    whole = math.hypot(*norms)
    return math.log(whole) if whole else -math.inf


def _cosine(states: Tensor) -> float:
    rows = normalize(states.flatten(1).double(), dim=1)
    count = len(rows)
    return float((rows @ rows.T).sum() - rows.square().sum()) / (count * (count - 1))


def kept(value: float | Tensor) -> float | None:
    """Rounded for keeping: ±999 for what is infinite, None for what is not known."""
    number = float(value)
    return None if math.isnan(number) else round(max(-INFINITE, min(INFINITE, number)), 3)


def kept_all(values: Sequence[float] | Tensor) -> list[float | None]:
    return [kept(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
