"""Conditioning a layer, of every kind and however it is driven: what it comes to, and that all else is as it was.

Oracles: spectra by hand on the sequences that were not used, layers of a stack set one by one, a task that is learnt
with it and not without.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from kinds import CELLS, LAYERS, changed, noise, rows_of, weights_of, with_gain
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.conditioning import condition

of_condition = sys.modules["lightning_lyapunov.conditioning.condition"]  # the function hides it
LAG = 40


def packed(lengths: list[int]) -> PackedSequence:
    return pack_sequence([noise(n, 1, seed=n)[:, 0] for n in lengths], enforce_sorted=False)


def state(rows: int, *parts: tuple[int, int]) -> Any:
    """Of as many layers and units as said, of each part."""
    made = tuple(torch.randn(layers, rows, size) for layers, size in parts)
    return made if len(made) > 1 else made[0]


CASES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    **{name: (lambda make=make: make(3, 8), noise(), None) for name, make in (LAYERS | CELLS).items()},
    "batch first, two layers, dropout": (
        lambda: nn.GRU(3, 6, num_layers=2, batch_first=True, dropout=0.5), noise().movedim(0, 1), None,
    ),
    "both directions, two layers": (lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True), noise(), None),
    "projection": (lambda: nn.LSTM(3, 8, proj_size=3), noise(), None),
    "no bias": (lambda: nn.RNN(3, 8, bias=False), noise(), None),
    "no bias, relu, cell": (lambda: nn.RNNCell(3, 8, bias=False, nonlinearity="relu"), noise(), None),
    "float64": (lambda: nn.RNN(3, 8).double(), noise(), None),
    "unbatched": (lambda: nn.RNN(3, 8), noise()[:, 0], None),
    "unbatched, state": (lambda: nn.LSTM(3, 8), noise()[:, 0], (torch.randn(1, 8), torch.randn(1, 8))),
    "unbatched, state, cell": (lambda: nn.GRUCell(3, 8), noise()[:, 0], torch.randn(8)),
    "state": (lambda: nn.LSTM(3, 8), noise(), state(6, (1, 8), (1, 8))),
    "state, cell, float64": (lambda: nn.RNNCell(3, 8), noise(), torch.randn(6, 8).double()),
    "state, projection, both directions": (
        lambda: nn.LSTM(3, 6, proj_size=2, bidirectional=True), noise(), state(6, (2, 2), (2, 6)),
    ),
    "packed, state": (lambda: nn.GRU(3, 8), packed([9, 24, 17, 20]), state(4, (1, 8))),
    "packed, both directions": (lambda: nn.RNN(3, 8, bidirectional=True), packed([9, 24, 17, 20]), None),
    "two sequences": (lambda: nn.LSTM(3, 8), noise(rows=2), None),
    "three sequences": (lambda: nn.RNN(3, 8), noise(rows=3), None),
    "one unit": (lambda: nn.GRU(3, 1), noise(), None),
    "one step": (lambda: nn.LSTM(3, 8), noise(1), None),
    "two steps": (lambda: nn.RNN(3, 8), noise(2), None),
    "large inputs": (lambda: nn.RNN(3, 8), 1e4 * noise(), None),
    "small inputs": (lambda: nn.RNN(3, 8), 1e-4 * noise(), None),
    "weights of zero": (lambda: with_gain(nn.RNN(3, 8), 0.0), noise(), None),
    "compiled": (lambda: Compiled(nn.RNN(3, 8)), noise(), None),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.RNN(3, 8), "weight_hh_l0"), noise(), None),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.RNN(3, 8), "weight_hh_l0"), noise(), None),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.RNN(3, 8), "weight_hh_l0"), noise(), None),
    "pruned where nothing is set": (
        lambda: prune.random_unstructured(nn.LSTM(3, 8), "weight_hh_l0", 0.5), noise(), None,
    ),
    "frozen where nothing is set": (lambda: frozen(nn.GRU(3, 8), "weight_hh_l0"), noise(), None),
}  # fmt: skip


class Compiled(nn.Module):
    """As torch.compile wraps a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def frozen(layer: nn.Module, name: str) -> nn.Module:
    layer.get_parameter(name).requires_grad_(False)
    return layer


def of_the_others(layer: Any, inputs: Any, given: Any) -> tuple[Any, Any]:
    """Every second sequence, from the second on, and its state; longest first where they are packed."""
    axis = 1 if isinstance(layer, nn.RNNBase) else 0
    if isinstance(inputs, PackedSequence):
        values, lengths = pad_packed_sequence(inputs)
        order = lengths.argsort(descending=True, stable=True)[1::2]
        ordered = None if given is None else given.index_select(axis, order)
        return pack_sequence([values[: lengths[i], i] for i in order]), ordered
    if inputs.dim() == 2:
        return inputs, given
    rows = 0 if getattr(layer, "batch_first", False) else 1
    return (inputs[1::2] if rows == 0 else inputs[:, 1::2]), rows_of(given, axis, slice(1, None, 2))


@pytest.mark.parametrize("case", CASES)
def test_report_tells_the_spectrum_of_sequences_that_were_not_used(case: str) -> None:
    """Oracle: lyapunov_spectrum by hand, before and after, on them. Nearer to the target, and nothing else touched."""
    make, inputs, given = CASES[case]
    wrapped, called = make(), list[Any]()
    layer = getattr(wrapped, "_orig_mod", wrapped)
    hook = layer.register_forward_hook(lambda *args: called.append(args))
    parameters = dict(layer.named_parameters())
    first = next(iter(parameters.values()))
    first.grad = held = torch.ones_like(first)
    required = [parameter.requires_grad for parameter in parameters.values()]
    others, of_others = of_the_others(layer, inputs, given)
    before = lyapunov_spectrum(layer, others, state=of_others, k=layer.hidden_size)
    random = torch.get_rng_state()

    report = condition(wrapped, inputs, lag=LAG, state=given)

    assert torch.equal(torch.get_rng_state(), random)
    assert layer.training and not called and hook.id in layer._forward_hooks
    now = dict(layer.named_parameters())
    assert now.keys() == parameters.keys() and all(now[name] is parameters[name] for name in now)
    assert [parameter.requires_grad for parameter in now.values()] == required
    assert first.grad is held and torch.equal(held, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in list(now.values())[1:])

    assert report.applied, str(report)
    assert not report.rms_after >= report.rms_before  # which is not known where nothing lived
    after = lyapunov_spectrum(layer, others, state=of_others, k=layer.hidden_size)
    for told, measured in ((report.before, before), (report.after, after)):
        assert told.layers.keys() == measured.layers.keys()
        for name, one in measured.layers.items():
            torch.testing.assert_close(told.layers[name].exponents, one.exponents, rtol=0, atol=1e-9)
    alive = torch.cat([one.exponents for one in after.layers.values()])
    alive = alive[alive.isfinite()] - report.target
    assert report.rms_after == pytest.approx(float(alive.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_stack_is_set_from_below(kind: str) -> None:
    """Oracle: single layers, each set along the outputs of the one below as that was set; for the same sequences."""
    options = {"bidirectional": True} if kind == "tanh" else {}
    stack, inputs = LAYERS[kind](3, 6, num_layers=2, **options), noise(rows=8)
    below, above = LAYERS[kind](3, 6, **options), LAYERS[kind](12 if options else 6, 6, **options)
    for layer, number in ((below, "0"), (above, "1")):
        own = {name.replace(f"l{number}", "l0"): w for name, w in stack.state_dict().items() if f"l{number}" in name}
        layer.load_state_dict(own)
    condition(stack, inputs, lag=LAG)
    condition(below, inputs, lag=LAG)
    with torch.no_grad():
        condition(above, below(inputs)[0], lag=LAG)
    for layer, number in ((below, "0"), (above, "1")):
        for name, weight in layer.named_parameters():
            expected = stack.get_parameter(name.replace("l0", f"l{number}"))
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_wide_layer_is_looked_at_by_its_leading_exponents() -> None:
    layer = nn.RNN(3, 70)
    report = condition(layer, noise(12), lag=LAG)
    assert report.applied and len(report.after.exponents) == 64
    assert len(condition(nn.RNN(3, 8), noise(), lag=LAG, k=3).after.exponents) == 3


# ------------------------------------------------------------------ again, and where it cannot help


@pytest.mark.parametrize("kind", LAYERS)
def test_done_twice_it_is_no_worse(kind: str) -> None:
    """The second time finds nothing to do, or next to it."""
    layer = LAYERS[kind](3, 8)
    first = condition(layer, noise(), lag=LAG)
    found = weights_of(layer)
    second = condition(layer, noise(), lag=LAG)
    assert first.applied and second.rms_before == pytest.approx(first.rms_after, rel=1e-3)
    if second.applied:
        assert second.rms_after < second.rms_before
    for name in found if second.applied else changed(layer, found):
        torch.testing.assert_close(layer.get_parameter(name).detach(), found[name], rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("make", "inputs", "reason"),
    [
        (lambda: nn.RNN(3, 8, nonlinearity="relu"), 0 * noise(), "all directions of its state are dead after it"),
        (lambda: nn.GRU(3, 8), 1e4 * noise(), "all directions of its state are dead after it"),
    ],
)
def test_where_it_did_not_help_weights_come_back(make: Callable[[], Any], inputs: Tensor, reason: str) -> None:
    """No unit is on without an input; gates that inputs in the thousands slam shut."""
    layer = make()
    found = weights_of(layer)
    report = condition(layer, inputs, lag=LAG)
    assert not report.applied and report.reason == reason
    assert not changed(layer, found)


def test_where_it_is_no_nearer_weights_come_back() -> None:
    """For a lag of one step exponents are to be far below zero, and those of torch's weights are nearer to that."""
    layer = nn.RNN(3, 12)
    found = weights_of(layer)
    report = condition(layer, noise(), lag=1)
    assert report.target == -2 and report.rms_after >= report.rms_before
    assert not report.applied and "no nearer to the target" in report.reason
    assert not changed(layer, found)


def test_sequences_longer_than_the_lag_do_not_make_a_layer_blind() -> None:
    """What counts is what is left after the lag: over all 200 steps it would be e^-10 of the first input."""
    report = condition(nn.RNN(3, 16), noise(200), lag=LAG)
    assert report.applied and not report.is_blind and report.reach_after > -4


def test_chaos_that_is_left_is_not_taken_for_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are nearer to the target in the mean, but with a largest exponent well above zero, come back."""
    layer = nn.RNN(3, 32)
    found = weights_of(layer)

    def spoilt(module: Any, *_: Any) -> Any:
        with torch.no_grad():
            module.weight_hh_l0.copy_(2 * torch.linalg.qr(torch.randn(32, 32))[0])
            module.weight_ih_l0.mul_(0.1)
        return of_condition._Made(("spoilt",), -0.05)

    monkeypatch.setattr(of_condition, "_scale", spoilt)
    report = condition(layer, noise(40), lag=LAG)
    assert report.rms_after < report.rms_before
    assert report.reason == "its largest exponent is well above 0 after it"
    assert not changed(layer, found)


# ------------------------------------------------------------------ in whatever surroundings


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: float64_by_default(),
}


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["tanh", "LSTM"])
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_surroundings_change_nothing(kind: str, surroundings: str) -> None:
    """Oracle: the same layer without them, bit by bit; inputs and state are made within them, as in validation."""
    results = []
    for context in (nullcontext, SURROUNDINGS[surroundings]):
        torch.manual_seed(5)
        layer, inputs = LAYERS[kind](3, 6), noise(rows=1)
        with context():
            part = torch.ones(1, 1, 6, dtype=torch.float32)
            switches = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
            report = condition(layer, inputs.clone(), lag=LAG, state=(part, part.clone()) if kind == "LSTM" else part)
            assert switches == (
                torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
            )  # fmt: skip
        assert report.applied and math.isfinite(report.reach_after)
        results.append(weights_of(layer))
    for name, weight in results[0].items():
        assert torch.equal(results[1][name], weight), name


def test_mode_is_as_found() -> None:
    layer = nn.GRU(3, 6, num_layers=2, dropout=0.5).eval()
    assert condition(layer, noise(), lag=LAG).applied
    assert not layer.training


@pytest.mark.parametrize("kind", LAYERS)
def test_on_every_device(kind: str, device: torch.device) -> None:
    layer = LAYERS[kind](3, 8).to(device)
    report = condition(layer, noise().to(device), lag=LAG)
    assert report.applied and {weight.device.type for weight in layer.parameters()} == {device.type}


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple's GPU")
def test_on_mps() -> None:
    layer = nn.RNN(3, 8).to("mps")
    assert condition(layer, noise().to("mps"), lag=LAG).applied


# ------------------------------------------------------------------ refusals


def with_nan(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(layer.parameters())[0] = torch.nan
    return layer


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.around = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.inward(x) + self.around(state))


class Reversed(nn.GRU):
    def forward(self, *args: Any) -> Any:
        return super().forward(args[0].flip(0), *args[1:])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: nn.GRU(3, 4, bias=False),
            r"GRU\(bias=False\) has no bias to open its gates by; make it with bias=True",
        ),
        (lambda: nn.LSTMCell(3, 4, bias=False), r"LSTMCell\(bias=False\) has no bias"),
        (lambda: nn.Linear(3, 4), "layer must be an nn.RNN, nn.GRU or nn.LSTM, or one of torch's cells; got Linear"),
        (Own, "of your own can be flossed: method='flossing'"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4)), "got Sequential. To set a layer inside it, .*: 1[.]"),
        (lambda: Reversed(3, 4), "Reversed replaces the forward pass of nn.GRU"),
        (lambda: frozen(nn.RNN(3, 4), "weight_hh_l0"), "weight_hh_l0 is frozen"),
        (lambda: frozen(nn.RNN(3, 4, num_layers=2), "weight_hh_l1"), "weight_hh_l1 is frozen"),
        (lambda: frozen(nn.LSTM(3, 4), "bias_hh_l0"), "bias_hh_l0 is frozen"),
        (lambda: nn.RNN(3, 4).half(), "is torch.float16; condition it in float32, then cast it"),
        (lambda: nn.GRU(3, 4).bfloat16(), "is torch.bfloat16; condition it in float32, then cast it"),
        (lambda: prune.random_unstructured(nn.RNN(3, 8), "weight_hh_l0", 0.5), "by a mask or a parametrization"),
        (lambda: with_nan(nn.GRU(3, 4)), "weight_ih_l0 holds NaN"),
    ],
)
def test_layer_that_cannot_be_set_is_refused_and_left(make: Callable[[], Any], sentence: str) -> None:
    layer = make()
    found = {name: value.nan_to_num(7.0) for name, value in weights_of(layer).items()}
    with pytest.raises(ValueError, match=sentence):
        condition(layer, noise(), lag=LAG)
    now = {name: value.nan_to_num(7.0) for name, value in layer.state_dict().items()}
    assert all(torch.equal(now[name], found[name]) for name in found)


@pytest.mark.parametrize("lag", [True, -3, 0, 0.5, "40", None, math.nan, math.inf, torch.tensor(40.0)])
def test_lag_must_be_a_number_of_steps(lag: Any) -> None:
    with pytest.raises(ValueError, match="lag must be a number of steps, at least 1"):
        condition(nn.RNN(3, 4), noise(), lag=lag)


@pytest.mark.parametrize("lag", [np.int64(40), np.float32(40), 40.0])
def test_lag_is_a_number_of_whatever_type(lag: Any) -> None:
    report = condition(nn.RNN(3, 4), noise(), lag=lag)
    assert report.target == -0.05 and type(report.target) is float


@pytest.mark.parametrize("kind", LAYERS)
def test_long_lag_gives_a_report(kind: str) -> None:
    report = condition(LAYERS[kind](3, 8), noise(), lag=1e6)
    assert report.applied and report.rms_after < 0.05


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"k": "3"}, "k must be at least 1"),
        ({"k": True}, "k must be at least 1"),
        ({"k": 2.5}, "k must be at least 1"),
        ({"shape": "flat"}, "shape must be 'hold' or 'spread'; got 'flat'"),
        ({"method": "magic"}, "method must be 'scaling' or 'flossing'; got 'magic'"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        condition(nn.RNN(3, 4), noise(), lag=LAG, **options)


def test_inputs_of_which_one_is_not_a_number_are_refused() -> None:
    inputs, layer = noise(), nn.LSTM(3, 4)
    inputs[3, 2, 1] = torch.nan  # of a sequence that weights are set on
    found = weights_of(layer)
    with pytest.raises(ValueError, match="inputs hold NaN"):
        condition(layer, inputs, lag=LAG)
    assert not changed(layer, found)


# ------------------------------------------------------------------ a task


def recall_data(size: int, seed: int, lag: int = 40) -> tuple[Tensor, Tensor]:
    """One of four symbols at the first of ``(B, lag + 1, 4)`` steps, noise of standard deviation 0.1; the symbols."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(4, (size,), generator=generator)
    sequences = 0.1 * torch.randn(size, lag + 1, 4, generator=generator)
    sequences[:, 0] += nn.functional.one_hot(symbols, 4)
    return sequences, symbols


@pytest.mark.parametrize(("kind", "epochs"), [("tanh", 3), ("LSTM", 9)])
def test_recall_over_40_steps_is_learnt_with_it_and_not_without(kind: str, epochs: int) -> None:
    """A real training: which symbol was it at the start, 40 steps of noise ago? A guess is right in a quarter."""
    (sequences, symbols), (new, answers) = recall_data(1024, 0), recall_data(256, 1)

    def accuracy(is_conditioned: bool) -> float:
        torch.manual_seed(0)
        layer, head = LAYERS[kind](4, 32, batch_first=True), nn.Linear(32, 4)
        if is_conditioned:
            assert condition(layer, sequences[:16], lag=40).applied
        optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 3e-3)
        for _ in range(epochs):
            for x, y in zip(sequences.split(64), symbols.split(64), strict=True):
                loss = nn.functional.cross_entropy(head(layer(x)[0][:, -1]), y)
                optimizer.zero_grad()
                loss.backward()
                # Unclipped, rounding alone decides how well the LSTM does after so few epochs.
                nn.utils.clip_grad_norm_([*layer.parameters(), *head.parameters()], 0.3)
                optimizer.step()
        with torch.no_grad():
            return float((head(layer(new)[0][:, -1]).argmax(-1) == answers).float().mean())

    assert accuracy(True) >= 0.95
    assert accuracy(False) <= 0.5
