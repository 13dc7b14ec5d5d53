r"""Weights that hold: where a layer's exponents must lie for a task of some lag, and what puts them there.

What lets a network learn to hold something over many steps is a flat spectrum near zero whose directions still see the
input. Each family of layers gets there by closed forms and one bisection:

RNN (tanh)
    Orthogonal recurrent weights have every exponent at 0 in a linear network; the slope of tanh takes off
    :math:`\lambda_\text{mean} = \langle \ln(1 - h^2) \rangle`, by how far the inputs drive the units. One factor on
    input weights and biases brings it to :math:`-2 / \text{lag}`. Closer to 0 the network is all but linear, and tasks
    that ask for more than holding are not learnt.
RNN (relu)
    Recurrent weights of :math:`e^{-1 / (3\,\text{lag})}` times the identity, no bias: a unit that is on fades so fast.
GRU, LSTM
    One bias b for the gate that keeps, z or f, of all units. Where it is open the rates of the state are those of the
    gate itself, and b brings :math:`\langle \ln \sigma(b + W x + U h) \rangle` to :math:`-1 / (3\,\text{lag})`. Where
    the largest exponent is far above 0 all the same, the recurrent weights are scaled down.

Source: orthogonal weights, Saxe, McClelland, Ganguli, arXiv:1312.6120; the identity, Le, Jaitly, Hinton,
arXiv:1504.00941; bias of the gate by the lag, Tallec, Ollivier, arXiv:1804.11188.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.maps.elman import ElmanMap
from lightning_lyapunov.engine.maps.gated import GatedMap
from lightning_lyapunov.engine.measure import measure_path
from lightning_lyapunov.engine.sequences import Inputs, lengths_of
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.system import check_supported, device_of, trajectories
from lightning_lyapunov.engine.tally import BIAS
from lightning_lyapunov.engine.trajectory import Trajectory

PLAIN, GATED = 2.0, 1 / 3
"""Times 1 / lag: how far below 0 the exponents of a network without gates, and of one with gates, are put."""
TOO_MUCH = 2.0
"""Nats over the lag, or over the sequences if they are shorter: more growth than that is not left in a layer."""
SHORTEST = 1.5
"""Steps: the shortest time constant of gates that are spread."""
SOFT = -0.05
"""Nats per step. Where a chaotic network's largest exponent is put by scaling its recurrent weights."""
_HALVINGS, _FEW = 12, 7
"""Of the interval in which a number is looked for; and where each takes a spectrum, which find a factor to 2 %."""


@dataclass(frozen=True)
class Setting:
    """Weights that a map is to have."""

    weights: dict[str, Tensor]
    """By torch's names without suffix, as ``weight_hh``."""
    changes: tuple[str, ...]
    """What becomes of them, in words."""
    target: float
    """Nats per step: where the exponents are put."""


def target_of(recurrence: GatedMap, lag: float) -> float:
    """Nats per step: where the exponents of a layer are to lie that holds something over so many steps."""
    is_tanh = isinstance(recurrence, ElmanMap) and recurrence.nonlinearity == "tanh"
    return -(PLAIN if is_tanh else GATED) / lag


def is_gated(module: nn.Module) -> bool:
    """Whether a module of torch's has gates."""
    return not isinstance(module, nn.RNN | nn.RNNCell)


def hold(path: Trajectory, lag: float) -> Setting:
    """The weights that hold what enters a layer for about so many steps, along the inputs of its trajectory."""
    recurrence = path.recurrence
    assert isinstance(recurrence, GatedMap)
    if not isinstance(recurrence, ElmanMap):
        return _hold_by_gate(path, recurrence, lag)
    return (_hold_by_tanh if recurrence.nonlinearity == "tanh" else _hold_by_relu)(path, recurrence, lag)


def spread(path: Trajectory, lag: float) -> Setting:
    r"""The weights of a layer whose units hold what enters it for between 1.5 steps and about so many.

    Time constants :math:`\tau` of the gates are spread evenly in :math:`\ln \tau` over the units, by biases
    :math:`b = \ln(\tau - 1)`, so that :math:`\ln \sigma(b) = \ln(1 - 1 / \tau)`. Of an RNN the recurrent weights are
    made orthogonal, and nothing else.

    Raises:
        ValueError: For an RNN with relu.
    """
    recurrence = path.recurrence
    assert isinstance(recurrence, GatedMap)
    if isinstance(recurrence, ElmanMap):
        if recurrence.nonlinearity != "tanh":
            raise ValueError("shape of an RNN with relu must be 'hold'; got 'spread'.")
        weights = {"weight_hh": polar_factor(recurrence.weight_hh)}
        return Setting(weights, ("recurrent weights made orthogonal",), 0.0)
    places = (torch.arange(recurrence.hidden_size).to(recurrence.bias_ih) + 0.5) / recurrence.hidden_size
    constants = SHORTEST * (max(lag, SHORTEST) / SHORTEST) ** places
    weights = _gate_bias(recurrence, (constants - 1).log())
    gate = "update" if recurrence.gates == 3 else "forget"
    changes = (f"biases of the {gate} gate spread over time constants of {SHORTEST:g} to {lag:g} steps",)
    return Setting(weights, changes, float((1 - 1 / constants).log().mean()))


def _hold_by_tanh(path: Trajectory, recurrence: ElmanMap, lag: float) -> Setting:
    target, orthogonal = target_of(recurrence, lag), polar_factor(recurrence.weight_hh)

    def scaled(logarithm: float) -> dict[str, Tensor]:
        factor = math.exp(logarithm)
        weights = {name: factor * getattr(recurrence, name) for name in ("weight_ih", "bias_ih", "bias_hh")}
        return weights | {"weight_hh": orthogonal}

    def excess(logarithm: float) -> float:
        return target - mean_exponent(path, recurrence.replace(**scaled(logarithm)))

    low, high = math.log(1e-3), math.log(10.0)
    while low > math.log(1e-12) and excess(low) > 0:  # inputs in the thousands
        low, high = low + math.log(1e-3), low
    if excess(high) <= 0:  # nothing, or next to it, drives the units: no reason to drive them ten times as hard
        high = 0.0
    logarithm = _root(excess, low, high)
    changes = ("recurrent weights made orthogonal", f"inputs × {math.exp(logarithm):.2g}")
    return Setting(scaled(logarithm), changes, target)


def _hold_by_relu(path: Trajectory, recurrence: ElmanMap, lag: float) -> Setting:
    target = target_of(recurrence, lag)
    identity = math.exp(target) * torch.ones_like(recurrence.bias_hh).diag()
    zeros = torch.zeros_like(recurrence.bias_ih)
    weights = {"weight_hh": identity, "bias_ih": zeros, "bias_hh": zeros}
    changes = (f"recurrent weights {math.exp(target):.3g} × the identity",)
    has_bias = bool(recurrence.bias_ih.any() or recurrence.bias_hh.any())
    return Setting(weights, (*changes, "no bias") if has_bias else changes, target)


def _hold_by_gate(path: Trajectory, recurrence: GatedMap, lag: float) -> Setting:
    target, factor = target_of(recurrence, lag), 1.0

    def opened(bias: float) -> GatedMap:
        return recurrence.replace(weight_hh=factor * recurrence.weight_hh, **_gate_bias(recurrence, bias))

    def excess(bias: float) -> float:
        _, factors = opened(bias).follow(path.inputs, path.initial)
        return _mean(path, factors[1].log()) - target  # the second factor of either family is the gate that keeps

    most = TOO_MUCH / min(lag, len(path.running))
    start = -math.log(math.expm1(-target))  # where ln σ(b) is the target
    for _ in range(3):
        bias = _root(excess, start - 4.0, start + 4.0)
        now = measured(path, opened(bias), 1)
        error = float(now.error[0])
        error = BIAS / now.steps if math.isnan(error) else error  # of one short sequence, what start and frame leave
        if not float(now.exponents[0]) - error > most:
            break
        factor *= softening(_along(path, opened(bias)), 1 / lag)
    changes: tuple[str, ...] = (f"bias of the {'update' if recurrence.gates == 3 else 'forget'} gate {bias:.2g}",)
    changes += (f"recurrent weights × {factor:.2g}",) * (factor < 1)
    weights = {"weight_hh": factor * recurrence.weight_hh} if factor < 1 else {}
    return Setting(weights | _gate_bias(recurrence, bias), changes, target)


def _gate_bias(recurrence: GatedMap, bias: float | Tensor) -> dict[str, Tensor]:
    """Both biases, with that of the gate that keeps set: z of (r, z, n), f of (i, f, g, o), second in either."""
    gate = slice(recurrence.hidden_size, 2 * recurrence.hidden_size)
    by_input, by_state = recurrence.bias_ih.clone(), recurrence.bias_hh.clone()
    by_input[gate], by_state[gate] = bias, 0.0
    return {"bias_ih": by_input, "bias_hh": by_state}


def softening(path: Trajectory, rate: float = SOFT) -> float:
    r"""The factor on its recurrent weights that takes a layer's largest exponent from above 0 to a rate or below.

    1 where neither the largest exponent nor the gain over the sequences is above 0. With tanh a state close to zero
    dies out at the rate :math:`\ln(s \rho)`, with the spectral radius :math:`\rho` of the weights, which gives s at
    once. A spectrum would be deceived: above a radius of 1 such a network drives itself, and where that saturates it
    the exponents are low for the wrong reason. With relu and with gates s is bisected.

    Args:
        path: The trajectory of the layer.
        rate: Nats per step.
    """
    recurrence = path.recurrence
    assert isinstance(recurrence, GatedMap)
    now = measure_path(_along(path, recurrence), Settings(k=1, growth=1)).spectrum(1)
    if not (float(now.exponents[0]) > 0 or now.gain > 0):
        return 1.0
    if isinstance(recurrence, ElmanMap) and recurrence.nonlinearity == "tanh":
        radius = float(torch.linalg.eigvals(recurrence.weight_hh).abs().amax())
        return min(1.0, math.exp(rate) / radius)

    def excess(logarithm: float) -> float:
        scaled = recurrence.replace(weight_hh=math.exp(logarithm) * recurrence.weight_hh)
        return float(measured(path, scaled, 1).exponents[0]) - rate

    low = math.log(1e-2)
    while excess(low) > 0 and low > math.log(1e-8):
        low *= 2
    return math.exp(_root(excess, low, 0.0, _FEW))


def softening_of(layer: Any, inputs: Inputs, state: State | None = None) -> float:
    """The factor on all recurrent weights of a module that brings each of its layers down to :data:`SOFT`.

    1 where none is chaotic.

    Args:
        layer: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or one of torch's cells.
        inputs: What drives it, as its forward takes it, or sequences as they were recorded.
        state: Before the first step, as it takes it.

    Raises:
        ValueError: For a layer of another kind, or inputs that do not fit.
    """
    check_supported(layer)
    with measuring(layer, device_of(layer, inputs, state)):
        paths = trajectories(layer, inputs, state, None, None)
        return min(softening(path) for path in paths.values())


def polar_factor(weights: Tensor) -> Tensor:
    """The orthogonal matrix that is closest to a square one."""
    left, _, right = torch.linalg.svd(weights)
    return left @ right


def measured(path: Trajectory, recurrence: GatedMap, k: int) -> LyapunovSpectrum:
    """The leading k exponents of a map along the inputs of a trajectory."""
    return measure_path(_along(path, recurrence), Settings(k=k, growth=0)).spectrum(k)


def mean_exponent(path: Trajectory, recurrence: GatedMap) -> float:
    """The mean of all exponents of a map along the inputs of a trajectory: the rate of volume over the dimension."""
    _, factors = recurrence.follow(path.inputs, path.initial)
    volumes = recurrence.log_volume(factors, recurrence.state_size)
    assert volumes is not None
    return _mean(path, volumes.unsqueeze(-1)) / recurrence.state_size


def _mean(path: Trajectory, values: Tensor) -> float:
    """Mean of ``(T, B, N)`` over what is measured: the steps of each sequence after its transient."""
    lengths = torch.tensor(lengths_of(path.running), device=values.device)
    transients = torch.tensor([Settings().transient_of(n) for n in lengths.tolist()], device=values.device)
    time = torch.arange(len(values), device=values.device).unsqueeze(1)
    return float(values[(time >= transients) & (time < lengths)].mean())


def _along(path: Trajectory, recurrence: GatedMap) -> Trajectory:
    return Trajectory(recurrence, path.inputs, path.initial, path.running, path.order)


def _root(rising: Callable[[float], float], low: float, high: float, halvings: int = _HALVINGS) -> float:
    """Where a rising function crosses 0, by bisection; the nearer end where it does not."""
    for _ in range(halvings):
        middle = (low + high) / 2
        if rising(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2
