"""What is done to a layer before its first update: nothing, a rule that looks at no spectrum, or a spectrum set.

Each takes a layer, sequences ``(T, B, I)`` of the task that are used for nothing else, and the lag; it changes the
layer in place and returns what is worth keeping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum

Start = Callable[[nn.RNNBase, Tensor, int], dict[str, Any]]


def as_made(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
    """Nothing."""
    return {}


def orthogonal(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
    """Recurrent weights that neither stretch nor shrink."""
    nn.init.orthogonal_(layer.weight_hh_l0)
    return {}


def small_inputs(layer: nn.RNNBase, inputs: Tensor, lag: int, factor: float = 0.1) -> dict[str, Any]:
    """Input weights × 0.1."""
    with torch.no_grad():
        layer.weight_ih_l0.mul_(factor)
    return {"inputs": factor}


def gain(layer: nn.RNNBase, inputs: Tensor, lag: int, target: float = 0.0) -> dict[str, Any]:
    """Recurrent weights scaled until the largest exponent is at a target, in nats per step, by bisection."""
    made = layer.weight_hh_l0.detach().clone()
    low, high = 0.0, 8.0

    def scaled(factor: float) -> float:
        with torch.no_grad():
            layer.weight_hh_l0.copy_(factor * made)
        return float(lyapunov_spectrum(layer, inputs[:, :8], k=1, growth=0).exponents[0])

    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if scaled(middle) > target else (middle, high)
    scaled((low + high) / 2)
    return {"gain": (low + high) / 2}


def radius(layer: nn.RNNBase, inputs: Tensor, lag: int, rate: float = -0.05) -> dict[str, Any]:
    """Recurrent weights scaled until a state close to zero dies out at a rate, in nats per step: by their radius."""
    with torch.no_grad():
        factor = math.exp(rate) / float(torch.linalg.eigvals(layer.weight_hh_l0).abs().max())
        layer.weight_hh_l0.mul_(factor)
    return {"gain": factor}


def both(*starts: Start) -> Start:
    """One after the other."""

    def start(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
        return {name: value for each in starts for name, value in each(layer, inputs, lag).items()}

    return start


def keeping(layer: nn.RNNBase, value: float | Tensor) -> None:
    """Set the bias of the gates that keep the state: the forget gate of an LSTM, the update gate of a GRU."""
    units = slice(layer.hidden_size, 2 * layer.hidden_size)
    with torch.no_grad():
        layer.bias_ih_l0[units] = value
        layer.bias_hh_l0[units] = 0.0


def open_gates(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
    """Bias 5: σ(5) = .993."""
    keeping(layer, 5.0)
    return {}


def chrono(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
    """Time constants drawn from 1 to the lag, and input gates of an LSTM closed as far.

    Source: Tallec and Ollivier, Can recurrent neural networks warp time? (2018), section 2.
    """
    size = layer.hidden_size
    bias = torch.empty(size).uniform_(1, max(2, lag - 1)).log()
    keeping(layer, bias)
    if isinstance(layer, nn.LSTM):
        with torch.no_grad():
            layer.bias_ih_l0[:size], layer.bias_hh_l0[:size] = -bias, 0.0
    return {}


def spread(layer: nn.RNNBase, inputs: Tensor, lag: int) -> dict[str, Any]:
    r"""Time constants τ of the gates from 1.5 steps to the lag, evenly in ln τ: bias ln(τ − 1). RNN: orthogonal."""
    if isinstance(layer, nn.RNN):
        return orthogonal(layer, inputs, lag)
    places = (torch.arange(layer.hidden_size) + 0.5) / layer.hidden_size
    constants = (math.log(1.5) + places * math.log(lag / 1.5)).exp()
    keeping(layer, (constants - 1).log())
    return {}


def conditioned(layer: nn.RNNBase, inputs: Tensor, lag: int, **options: Any) -> dict[str, Any]:
    """The library's own: the spectrum set to what a task of that lag wants."""
    from lightning_lyapunov.conditioning import condition

    report = condition(layer, inputs, lag=lag, **options)
    kept = {name: getattr(report, name) for name in KEPT}
    return {name: value if value == value else None for name, value in kept.items()}  # JSON has no NaN


KEPT = ("changed", "target", "steps", "seconds", "applied", "reason", "rms_before", "rms_after", "largest_gradient")
"""Of the library's report."""
SIMPLE: dict[str, Start] = {
    "RNN": orthogonal,
    "RNN, gain 3": partial(gain, target=-0.05),
    "GRU": open_gates,
    "LSTM": open_gates,
}
"""The simple rule of each net."""
FLOSSED_LONG = {"method": "flossing", "steps": 500, "clip": 0.03, "k": 75, "max_seconds": 300.0}
"""Settings of the paper on flossing, except that it is over once it has converged; its learning rate is 0.001."""
FLOSSED = {"method": "flossing", "num_steps": 40, "transient": 5}


def start_of(name: str, net: str) -> Start:
    """By its name in the tables."""
    if name == "simple":
        return SIMPLE[net]
    starts: dict[str, Start] = {
        "as made": as_made,
        "λ₁ = 0": gain,
        "orthogonal": orthogonal,
        "orthogonal, λ₁ = 0": both(orthogonal, gain),
        "inputs × .1": small_inputs,
        "orthogonal, inputs × .1": both(orthogonal, small_inputs),
        "spectral radius": radius,
        "chrono": chrono,
        "spread": spread,
        "hold": conditioned,
        "hold, lag 16": lambda layer, inputs, lag: conditioned(layer, inputs, 16),
        "flossing": partial(conditioned, **FLOSSED),
        "flossing, rate .001": partial(conditioned, **FLOSSED_LONG, learning_rate=1e-3),
        "flossing, rate .003": partial(conditioned, **FLOSSED_LONG, learning_rate=3e-3),
    }
    return starts[name]
