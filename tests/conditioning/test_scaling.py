"""Closed forms, against linear algebra, against the whole spectrum, and where the gate's bias is known by hand."""

import math
from typing import Any

import pytest
import torch
from kinds import LAYERS, noise, path_of, with_gain
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.conditioning.scaling import (
    SOFT,
    Setting,
    hold,
    mean_exponent,
    measured,
    polar_factor,
    softening,
    softening_of,
    spread,
)
from lightning_lyapunov.engine.trajectory import Trajectory

LAG = 40.0


def along(path: Trajectory, setting: Setting) -> Trajectory:
    """The trajectory of the map as it is set, along the same inputs."""
    return Trajectory(path.recurrence.replace(**setting.weights), path.inputs, path.initial, path.running)


# ------------------------------------------------------------------ linear algebra


def test_polar_factor_leaves_a_symmetric_positive_rest() -> None:
    """Oracle: the polar decomposition W = P S, which is unique."""
    weights = torch.randn(7, 7, dtype=torch.float64)
    factor = polar_factor(weights)
    rest = factor.T @ weights
    identity = torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, identity, rtol=0, atol=1e-13)
    torch.testing.assert_close(rest, rest.T, rtol=0, atol=1e-13)
    assert torch.linalg.eigvalsh(rest).min() > 0


def test_polar_factor_of_an_orthogonal_matrix_is_itself() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    torch.testing.assert_close(polar_factor(rotation), rotation, rtol=0, atol=1e-13)


def test_polar_factor_of_a_singular_matrix_is_orthogonal() -> None:
    factor = polar_factor(torch.outer(torch.arange(1.0, 5), torch.ones(4)).double())
    torch.testing.assert_close(factor @ factor.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


# ------------------------------------------------------------------ the mean of all exponents


@pytest.mark.parametrize("kind", ["tanh", "LSTM"])
@pytest.mark.parametrize("lengths", [[24] * 4, [24, 9, 17, 1]])
def test_mean_exponent_is_that_of_the_whole_spectrum(kind: str, lengths: list[int]) -> None:
    """Oracle: every exponent, by the engine's frames; sequences of one length and of several."""
    layer, inputs = LAYERS[kind](3, 6), pack_sequence([noise(n, 1)[:, 0] for n in lengths], enforce_sorted=False)
    path = path_of(layer, inputs)
    spectrum = lyapunov_spectrum(layer, inputs, growth=0)
    assert spectrum.complete
    assert mean_exponent(path, path.recurrence) == pytest.approx(float(spectrum.exponents.mean()), abs=1e-9)


# ------------------------------------------------------------------ RNN


@pytest.mark.parametrize("lag", [10.0, 40.0, 200.0])
def test_tanh_is_put_where_the_lag_wants_it(lag: float) -> None:
    """Oracle: the mean of the whole spectrum on the same inputs, to what 12 halvings leave; weights orthogonal."""
    path = path_of(nn.RNN(3, 12), noise())
    setting = hold(path, lag)
    assert setting.target == -2 / lag
    spectrum = measured(path, along(path, setting).recurrence, 12)
    assert float(spectrum.exponents.mean()) == pytest.approx(-2 / lag, rel=0.01)
    product = setting.weights["weight_hh"] @ setting.weights["weight_hh"].T
    torch.testing.assert_close(product, torch.eye(12).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3, 1e6])
def test_inputs_of_any_scale_are_met(scale: float) -> None:
    """Oracle: without bias units feel the product of inputs and factor alone, so that it is the same for all."""
    layer, inputs = nn.RNN(3, 12, bias=False), noise()
    factors = []
    for values in (inputs, scale * inputs):
        path = path_of(layer, values)
        setting = hold(path, LAG)
        factors.append(float((setting.weights["weight_ih"] / path.recurrence.weight_ih).mean()))
    if scale < 0.1:  # not reached within a factor of 10, and then there is no reason to go up to it
        assert factors[1] == pytest.approx(1, rel=0.01)
    else:
        assert factors[1] * scale == pytest.approx(factors[0], rel=0.01)


def test_inputs_that_are_all_zero_are_not_scaled_up() -> None:
    """Nothing drives a unit then: every factor gives the same exponents, and 1 is the one that changes nothing."""
    layer = nn.RNN(3, 8, bias=False)
    path = path_of(layer, 0 * noise())
    torch.testing.assert_close(hold(path, LAG).weights["weight_ih"], path.recurrence.weight_ih, rtol=2e-3, atol=0)


def test_units_of_relu_that_are_on_fade_by_the_factor() -> None:
    """Oracle: positive inputs by positive weights keep every unit on, and the exponents of c times 1 are ln c."""
    layer = nn.RNN(3, 5, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_ih_l0.abs_()
    path = path_of(layer, noise().abs())
    setting = hold(path, LAG)
    assert setting.target == pytest.approx(-1 / 120)
    assert setting.weights["bias_ih"].count_nonzero() == setting.weights["bias_hh"].count_nonzero() == 0
    factor = math.exp(-1 / 120)
    torch.testing.assert_close(setting.weights["weight_hh"], factor * torch.eye(5).double(), rtol=0, atol=1e-15)
    exponents = measured(path, along(path, setting).recurrence, 5).exponents
    torch.testing.assert_close(exponents, torch.full_like(exponents, -1 / 120), rtol=0, atol=1e-6)


# ------------------------------------------------------------------ gates


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("lag", [1.0, 40.0, 1e6])
def test_bias_of_a_gate_that_nothing_else_moves_is_the_logit(kind: str, lag: float) -> None:
    """Oracle: σ(b) = e^(-1/(3 lag)), where neither state nor input reaches the gate."""
    layer = LAYERS[kind](3, 6)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    setting = hold(path_of(layer, 0 * noise()), lag)
    keeps = math.exp(-1 / (3 * lag))
    logit = math.log(keeps) - math.log(-math.expm1(-1 / (3 * lag)))
    torch.testing.assert_close(
        setting.weights["bias_ih"][6:12], torch.full((6,), logit).double(), rtol=0, atol=8 / 2**12
    )
    assert setting.weights["bias_hh"][6:12].count_nonzero() == 0


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gate_that_keeps_has_the_mean_log_asked_for(kind: str) -> None:
    """Oracle: torch's cell, gate by gate, along the outputs of torch's layer; nothing but that gate's bias is set."""
    layer, inputs = LAYERS[kind](3, 8).double(), noise().double()
    setting = hold(path_of(layer, inputs), LAG)
    assert setting.weights.keys() == {"bias_ih", "bias_hh"}
    for name, value in setting.weights.items():
        found = getattr(layer, f"{name}_l0").detach()
        assert torch.equal(torch.cat([value[:8], value[16:]]), torch.cat([found[:8], found[16:]]))
        with torch.no_grad():
            getattr(layer, f"{name}_l0").copy_(value)
    with torch.no_grad():
        outputs = layer(inputs)[0]
        states = torch.cat([torch.zeros(1, 6, 8).double(), outputs[:-1]])
        gates = inputs @ layer.weight_ih_l0.T + layer.bias_ih_l0 + states @ layer.weight_hh_l0.T + layer.bias_hh_l0
        kept = gates[12:, :, 8:16].sigmoid().log().mean()  # after the first half, the transient
    assert float(kept) == pytest.approx(-1 / 120, rel=0.01)


def test_gated_layer_that_stays_chaotic_has_its_recurrent_weights_scaled_down() -> None:
    """Oracle: the largest exponent, measured, is at 1 / lag where it had been above 2 / lag."""
    layer, lag = nn.LSTM(3, 24), 40
    nn.init.normal_(layer.weight_hh_l0, std=20 / 24**0.5, generator=torch.Generator().manual_seed(0))
    path = path_of(layer, noise(steps=60))
    setting = hold(path, lag)
    ratio = setting.weights["weight_hh"] / path.recurrence.weight_hh
    assert torch.allclose(ratio, ratio[0, 0])
    assert 0.01 < ratio[0, 0] < 0.9
    without = Setting(setting.weights | {"weight_hh": path.recurrence.weight_hh}, (), 0.0)
    assert float(measured(path, along(path, without).recurrence, 1).exponents[0]) > 2 / lag
    after = measured(path, along(path, setting).recurrence, 1)
    assert float(after.exponents[0] - after.error[0]) < 2 / lag


# ------------------------------------------------------------------ spread


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_time_constants_are_spread_evenly_in_their_logarithm(kind: str) -> None:
    """Oracle: a gate of σ(b) forgets in 1 / (1 - σ(b)) steps; the target is the mean of ln σ(b)."""
    setting = spread(path_of(LAYERS[kind](3, 6), noise()), 40.0)
    gates = setting.weights["bias_ih"][6:12].sigmoid()
    constants = 1 / (1 - gates)
    expected = [1.5 * (40 / 1.5) ** (place / 12) for place in (1, 3, 5, 7, 9, 11)]
    torch.testing.assert_close(constants, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert setting.target == pytest.approx(float(gates.log().mean()), abs=1e-9)
    assert setting.weights["bias_hh"][6:12].count_nonzero() == 0


def test_spread_leaves_the_inputs_of_an_rnn_and_refuses_relu() -> None:
    setting = spread(path_of(nn.RNN(3, 6), noise()), 40.0)
    assert setting.weights.keys() == {"weight_hh"}
    with pytest.raises(ValueError, match="relu must be 'hold'"):
        spread(path_of(nn.RNN(3, 6, nonlinearity="relu"), noise()), 40.0)


# ------------------------------------------------------------------ chaos


@pytest.mark.parametrize("rows", [6, 1])
@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM])
def test_softening_brings_chaos_of_gates_to_its_rate(make: Any, rows: int) -> None:
    """Oracle: the largest exponent of the scaled weights; of a single short sequence too, which has no error bar."""
    path = path_of(with_gain(make(3, 24), 15.0), noise(steps=50, rows=rows))
    assert float(measured(path, path.recurrence, 1).exponents[0]) > 0.1
    factor = softening(path)
    scaled = path.recurrence.replace(weight_hh=factor * path.recurrence.weight_hh)
    assert float(measured(path, scaled, 1).exponents[0]) == pytest.approx(SOFT, abs=0.03)
    assert factor < 0.8


@pytest.mark.parametrize("rows", [6, 1])
def test_softening_of_tanh_is_that_of_its_spectral_radius(rows: int) -> None:
    """Oracle: ln of the radius of the scaled weights: the rate where inputs are so small that tanh is linear."""
    path = path_of(with_gain(nn.RNN(3, 24), 3.0), 1e-6 * noise(steps=50, rows=rows))
    factor = softening(path)
    scaled = path.recurrence.replace(weight_hh=factor * path.recurrence.weight_hh)
    assert float(torch.linalg.eigvals(scaled.weight_hh).abs().amax().log()) == pytest.approx(SOFT)
    assert float(measured(path, scaled, 1).exponents[0]) < 0
    assert factor < 0.5


def test_softening_of_relu_does_not_make_it_forget() -> None:
    """Units that are off count: the radius alone would take the exponent to about -.5. It jumps as units switch."""
    path = path_of(with_gain(nn.RNN(3, 24, nonlinearity="relu"), 3.0), noise(steps=50))
    assert float(measured(path, path.recurrence, 1).exponents[0]) > 0.2
    scaled = path.recurrence.replace(weight_hh=softening(path) * path.recurrence.weight_hh)
    assert -0.15 < float(measured(path, scaled, 1).exponents[0]) < 0.0


def test_softening_is_exactly_one_where_there_is_no_chaos() -> None:
    assert softening(path_of(nn.RNN(3, 12), noise())) == 1.0
    assert softening(path_of(nn.LSTM(3, 12), noise(2, 1))) == 1.0


def test_softening_of_a_module_is_that_of_its_most_chaotic_layer() -> None:
    """Oracle: each layer alone, the upper one along the outputs of the lower."""
    layer, inputs = with_gain(nn.RNN(3, 24, num_layers=2), 3.0), noise(steps=50)
    lower, upper = nn.RNN(3, 24), nn.RNN(24, 24)
    lower.load_state_dict({name: value for name, value in layer.state_dict().items() if name.endswith("l0")})
    upper.load_state_dict({f"{name[:-1]}0": value for name, value in layer.state_dict().items() if name[-1] == "1"})
    with torch.no_grad():
        by_hand = [softening(path_of(lower, inputs)), softening(path_of(upper, lower(inputs)[0]))]
    assert min(by_hand) < 1
    assert softening_of(layer, inputs) == pytest.approx(min(by_hand), rel=0.01)


@pytest.mark.parametrize("layer", [nn.Linear(3, 3), None, lambda x, h: h])
def test_softening_of_another_kind_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match="none of nn"):
        softening_of(layer, noise())
