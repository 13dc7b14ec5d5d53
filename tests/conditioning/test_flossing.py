"""Gradient steps on exponents: how near to zero they get, from chaos too, and that they touch nothing else."""

import math
from typing import Any

import pytest
import torch
from kinds import LAYERS, changed, noise, weights_of, with_gain
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.conditioning import Conditioning, condition, flossing
from lightning_lyapunov.conditioning.rows import Rows


def flossed(layer: Any, inputs: Tensor | None = None, **options: Any) -> Conditioning:
    return condition(layer, noise(40, 8) if inputs is None else inputs, lag=40, method="flossing", **options)


def mean_square(layer: nn.Module, inputs: Tensor) -> float:
    """Of the leading H exponents, by lyapunov_spectrum, (nats/step)²."""
    return float(lyapunov_spectrum(layer, inputs, k=layer.hidden_size, growth=0).exponents.square().mean())


SHORT = {"steps": 90, "learning_rate": 5e-3, "num_steps": 30, "transient": 10}
WHOLE = {"steps": 200}


@pytest.mark.parametrize(
    ("kind", "size", "scale", "options"),
    [
        ("tanh", 8, 0.3, SHORT),
        pytest.param("tanh", 32, 1.0, WHOLE, marks=pytest.mark.slow),
        pytest.param("GRU", 32, 1.0, WHOLE, marks=pytest.mark.slow),
    ],
)
def test_exponents_come_close_to_zero(kind: str, size: int, scale: float, options: dict[str, Any]) -> None:
    """Oracle: lyapunov_spectrum on sequences that were not used: 2e-3 (nats/step)², where it was 0.3 and more."""
    layer, inputs = LAYERS[kind](4, size), scale * noise(41, 8, 4)
    before = mean_square(layer, inputs[:, 1::2])
    report = flossed(layer, inputs, **options)
    assert report.applied and report.target == 0 and 0 < report.steps <= options["steps"]
    assert kind == "GRU" or report.steps < options["steps"]  # it stops at the tolerance
    assert before > 0.3
    assert mean_square(layer, inputs[:, 1::2]) <= 2e-3
    assert report.rms_after**2 == pytest.approx(mean_square(layer, inputs[:, 1::2]), rel=1e-4)
    assert 0 < report.largest_gradient < math.inf


def chaotic() -> Any:
    return with_gain(nn.RNN(3, 32), 3.0)


def test_from_chaos_it_is_softened_first() -> None:
    layer, inputs = chaotic(), 0.5 * noise(40, 8)
    largest = [float(lyapunov_spectrum(layer, inputs, k=1, growth=0).exponents[0])]
    report = flossed(layer, inputs, steps=20)
    largest.append(float(lyapunov_spectrum(layer, inputs, k=1, growth=0).exponents[0]))
    assert largest[0] > 0.1 and largest[1] < 0
    assert report.applied and report.rms_after < report.rms_before
    assert report.changed[0].startswith("recurrent weights × 0.")


def test_from_chaos_without_that_it_fails_and_weights_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients along a chaotic orbit diverge."""
    monkeypatch.setattr(flossing, "_soften", lambda module, rows: [])
    layer = chaotic()
    found = weights_of(layer)
    report = flossed(layer, 0.5 * noise(40, 8), steps=20)
    assert not report.applied
    assert not changed(layer, found)


# ------------------------------------------------------------------ what it leaves alone


def test_no_step_changes_nothing() -> None:
    """A learning rate of 0, no steps, no time."""
    for options in ({"learning_rate": 0.0, "steps": 3}, {"steps": 0}, {"max_seconds": 0.0}):
        layer = nn.GRU(3, 6)
        found = weights_of(layer)
        report = flossed(layer, **options)
        assert not changed(layer, found), options
        assert not report.applied and report.steps == (3 if "learning_rate" in options else 0)
        assert math.isnan(report.largest_gradient) == (report.steps == 0)


def test_gradients_and_hooks_of_the_user_are_as_found() -> None:
    """The gradient of an earlier backward pass, none where there was none, and hooks that are set off by one."""
    layer, called = nn.RNN(3, 6), list[Any]()
    layer.weight_hh_l0.grad = held = torch.ones(6, 6)
    layer.bias_hh_l0.register_post_accumulate_grad_hook(called.append)
    assert flossed(layer, steps=5).applied
    assert layer.weight_hh_l0.grad is held and torch.equal(held, torch.ones(6, 6))
    assert layer.weight_ih_l0.grad is layer.bias_hh_l0.grad is None
    assert not called


def test_frozen_parameters_stay() -> None:
    layer = nn.GRU(3, 6)
    layer.weight_ih_l0.requires_grad_(False)
    found = weights_of(layer)
    flossed(layer, steps=8)
    assert changed(layer, found) == {"weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    assert not layer.weight_ih_l0.requires_grad and layer.weight_hh_l0.requires_grad


def test_it_is_the_same_again_and_other_windows_with_another_seed() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        layer = nn.RNN(3, 6)
        torch.manual_seed(len(results))  # the user's random state is not in it
        flossed(layer, steps=4, seed=seed, num_steps=20)
        results.append(weights_of(layer))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_best_weights_are_kept_rather_than_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: weights and loss of every step, as they are asked for; the rate is so large that it gets worse."""
    seen = list[tuple[float, dict[str, Tensor]]]()
    asked = flossing.lyapunov_exponents

    def watched(module: nn.Module, *args: Any, **options: Any) -> Tensor:
        exponents = asked(module, *args, **options)
        seen.append((float(exponents.detach().square().mean()), weights_of(module)))
        return exponents

    monkeypatch.setattr(flossing, "lyapunov_exponents", watched)
    layer = nn.RNN(3, 6)
    descent = flossing.Descent(25, 0.0, 0.2, 10.0, 30, 10, 60.0, 0)
    flossing.floss(layer, Rows.of(layer, noise(40, 4), None), 6, descent)
    best = min(range(len(seen)), key=lambda i: seen[i][0])
    assert len(seen) == 26 and best < 25
    assert not changed(layer, seen[best][1])


# ------------------------------------------------------------------ cells of one's own, and refusals


class Own(nn.Module):
    """A leaky cell with a state in two parts, the second of which counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.around = nn.Linear(3, 6), nn.Linear(6, 6)
        self.register_buffer("leak", torch.tensor(0.3))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        h, n = (x.new_zeros(len(x), 2, 3), x.new_zeros(len(x), 1)) if state is None else state
        new = self.leak * h.flatten(1) + (1 - self.leak) * torch.tanh(self.inward(x) + self.around(h.flatten(1)))
        return new.unflatten(1, (2, 3)), 0.9 * n


@pytest.mark.parametrize("with_state", [False, True])
def test_cell_of_ones_own_is_flossed(with_state: bool) -> None:
    """Oracle: lyapunov_spectrum of it."""
    cell, inputs = Own(), noise(40, 6)
    state = (torch.randn(6, 2, 3), torch.zeros(6, 1)) if with_state else None
    others = None if state is None else tuple(part[1::2] for part in state)
    report = flossed(cell, inputs, state=state, steps=12)
    after = lyapunov_spectrum(cell, inputs[:, 1::2], state=others, growth=0).exponents
    assert report.applied and report.changed == ("12 gradient steps on 7 exponents",)
    assert report.rms_after < report.rms_before
    torch.testing.assert_close(report.after.exponents, after, rtol=0, atol=1e-6)
    assert cell.leak == torch.tensor(0.3)


def relu_with_only_a_bias_to_train() -> nn.Module:
    layer = nn.RNN(3, 6, nonlinearity="relu").requires_grad_(False)
    layer.weight_ih_l0.abs_()  # and inputs that are positive: there is an exponent, of units that are on
    layer.bias_hh_l0.requires_grad_(True)
    return layer


class Noisy(Own):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, n = super().forward(x, state)
        return h + 0.1 * torch.randn_like(h), n


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.GRU(3, 6).requires_grad_(False), "no parameter of GRU requires a gradient"),
        (lambda: nn.GRU(3, 6).half(), "float16; floss it in float32"),
        (relu_with_only_a_bias_to_train, "the exponents depend on no parameter of RNN that requires a gradient"),
        (Noisy, "draws random numbers"),
        (lambda: nn.Sequential(nn.RNN(3, 6)), "pass one of: 0"),
    ],
)
def test_what_cannot_be_flossed_is_refused_and_left(make: Any, sentence: str) -> None:
    layer = make()
    found, inputs = weights_of(layer), noise().abs()
    with pytest.raises(ValueError, match=sentence):
        flossed(layer, inputs.half() if "float16" in sentence else inputs, steps=3)
    assert not changed(layer, found)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": -1}, "steps must be a number, at least 0; got -1"),
        ({"steps": 2.5}, "steps must be a whole number; got 2.5"),
        ({"seed": "a"}, "seed must be a whole number; got 'a'"),
        ({"clip": "0.1"}, "clip must be a number, at least 0; got '0.1'"),
        ({"tolerance": math.nan}, "tolerance must be a number, at least 0; got nan"),
        ({"learning_rate": -1e-3}, "learning_rate must be a number, at least 0; got -0.001"),
        ({"clip": -1.0}, "clip must be a number, at least 0"),
        ({"max_seconds": -1.0}, "max_seconds must be a number, at least 0"),
        ({"transient": 55}, r"transient must lie in \[0, 54\], below num_steps; got 55"),
        ({"num_steps": 0, "transient": 0}, "transient must lie in"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        flossed(nn.RNN(3, 6), **options)
