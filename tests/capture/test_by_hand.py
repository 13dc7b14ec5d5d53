"""Layers inside a network measured by hand: against the same layer along the inputs that reach it, made by hand too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.capture import adapters
from lightning_lyapunov.capture.adapters import register
from lightning_lyapunov.capture.adapters.scans import Scan

ROWS, STEPS, HIDDEN = 4, 16, 5


class Encoder(nn.Module):
    """Two layers, the second of which reads what the first one says."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(STEPS))
        self.rnn = nn.LSTM(4, HIDDEN, batch_first=True)
        self.top = nn.GRU(HIDDEN, 3, batch_first=True)
        self.unused = nn.GRU(2, 2)

    def forward(self, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return self.top(self.rnn(self.front(x) * scale)[0])[0]


class Network(nn.Module):
    """An encoder, and what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = Encoder(), nn.Linear(3, 1)

    def forward(self, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return self.out(self.encoder(x, scale)[:, -1])


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def batch() -> Tensor:
    return torch.randn(ROWS, STEPS, 3, generator=torch.Generator().manual_seed(1))


def reaching(model: Network, scale: float = 1.0) -> Tensor:
    """What reaches the first layer in eval mode."""
    front = copy.deepcopy(model.encoder.front).eval()
    with torch.no_grad():
        return as_recorded(front(batch()) * scale)


def as_recorded(x: Tensor) -> Tensor:
    """The same numbers with one step after another in memory, as products round by the layout."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def assert_same(spectrum: LyapunovSpectrum, expected: LyapunovSpectrum) -> None:
    for name in ("exponents", "error", "log_singular_values", "per_sequence"):
        one, other = getattr(spectrum, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, equal_nan=True)
    assert (spectrum.steps, spectrum.sequences, spectrum.gain) == (expected.steps, expected.sequences, expected.gain)


def test_a_layer_inside_is_measured_along_the_inputs_that_reach_it() -> None:
    model = network()
    expected = lyapunov_spectrum(model.encoder.rnn, reaching(model))
    assert_same(lyapunov_spectrum(model, batch(), module="encoder.rnn"), expected)


@pytest.mark.parametrize(
    "inputs",
    [
        lambda: (batch(), 2.0),
        lambda: {"x": batch(), "scale": 2.0},
        lambda: {"scale": torch.tensor(2.0), "x": batch()},
    ],
    ids=["tuple", "dict", "dict of tensors"],
)
def test_a_batch_may_be_a_tuple_or_a_dict_of_arguments(inputs: Callable[[], Any]) -> None:
    model = network()
    expected = lyapunov_spectrum(model.encoder.rnn, reaching(model, 2.0))
    assert_same(lyapunov_spectrum(model, inputs(), module="encoder.rnn"), expected)


def test_settings_reach_the_engine() -> None:
    model = network()
    told: dict[str, Any] = {"k": 3, "steps": 10, "transient": 4, "interval": 1, "dtype": torch.float64, "growth": 2}
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected = lyapunov_spectrum(model.encoder.rnn, reaching(model), generator=seeds[0], **told)
    spectrum = lyapunov_spectrum(model, batch(), module="encoder.rnn", generator=seeds[1], **told)
    assert_same(spectrum, expected)
    assert spectrum.steps == 6 and len(spectrum.exponents) == 3 and len(spectrum.log_singular_values) == 2


def test_of_several_layers_it_is_the_union_with_each_by_name() -> None:
    model = network()
    spectrum = lyapunov_spectrum(model, batch(), module=["encoder.rnn", "encoder.top"])
    first = lyapunov_spectrum(model.encoder.rnn, reaching(model))
    with torch.no_grad():
        second = lyapunov_spectrum(model.encoder.top, as_recorded(model.encoder.rnn(reaching(model))[0]))
    assert set(spectrum.layers) == {"encoder.rnn", "encoder.top"}
    assert_same(spectrum.layers["encoder.rnn"], first)
    assert_same(spectrum.layers["encoder.top"], second)
    union = torch.cat([first.exponents, second.exponents]).sort(descending=True).values
    torch.testing.assert_close(spectrum.exponents, union, rtol=0, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_the_network_is_left_as_it_was(train: bool) -> None:
    """In its mode, with its hooks, statistics, gradients and the random state; the user's hooks see nothing."""
    model = network().train(train)
    model.encoder.rnn.eval()  # a frozen part
    model(batch()).sum().backward()
    calls: list[Any] = []
    model.encoder.rnn.register_forward_hook(lambda *call: calls.append(call))
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [part.training for part in model.modules()]
    random = torch.get_rng_state()
    lyapunov_spectrum(model, batch(), module="encoder.rnn")
    assert torch.equal(random, torch.get_rng_state())
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) if gradient is None else torch.equal(p.grad, gradient)  # type: ignore[arg-type]
    assert calls == [] and len(model.encoder.rnn._forward_hooks) == 1


def test_a_graph_of_the_inputs_is_no_obstacle() -> None:
    model = network()
    x = batch().requires_grad_()
    assert_same(
        lyapunov_spectrum(model, x * 1.0, module="encoder.rnn"), lyapunov_spectrum(model.encoder.rnn, reaching(model))
    )
    assert x.grad is None


class Looped(nn.Module):
    """A cell in a Python loop, called past its hooks."""

    def __init__(self, hidden_first: bool = False) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), HIDDEN)
        for step in x.unbind(1):
            h = self.cell.forward(step, h)
        return h


def test_a_cell_that_is_called_as_forward_is_seen() -> None:
    torch.manual_seed(0)
    model = Looped()
    spectrum = lyapunov_spectrum(model, batch(), module="cell")
    assert_same(spectrum, lyapunov_spectrum(model.cell, batch().transpose(0, 1)))
    assert "forward" not in vars(model.cell)  # the watch over its calls is taken off again


class Leaky(nn.Module):
    """A scan: h' = a(x) h + (1 - a(x)), a = σ(W x + b), written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(len(x), HIDDEN), []
        for a in torch.sigmoid(self.gate(x)).unbind(1):
            h = a * h + (1 - a)
            states.append(h)
        return torch.stack(states, 1)


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> Leaky:
    """One of a class that is registered under the name that it goes by."""
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    monkeypatch.setattr(Leaky, "__module__", "made_up.scans")
    register("made_up.scans.Leaky", Scan(lambda module, x: nn.functional.logsigmoid(module.gate(x))))
    torch.manual_seed(0)
    return Leaky()


@pytest.mark.parametrize("where", ["itself", "inside"])
def test_a_registered_scan_is_measured_by_its_gates(leaky: Leaky, where: str) -> None:
    """Oracle: the exponents are the means of ln a over the measured steps and sequences, sorted."""
    told: dict[str, Any] = {"transient": 4}
    if where == "itself":
        spectrum = lyapunov_spectrum(leaky, batch(), **told)
    else:
        spectrum = lyapunov_spectrum(nn.Sequential(leaky, nn.Linear(HIDDEN, 1)), batch(), module="0", **told)
    with torch.no_grad():
        gates = nn.functional.logsigmoid(copy.deepcopy(leaky).double().gate(batch().double()))
    expected = gates[:, 4:].mean((0, 1)).sort(descending=True).values
    torch.testing.assert_close(spectrum.exponents, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- mistakes


def test_a_function_has_no_layers_inside() -> None:
    with pytest.raises(
        ValueError, match=r"module names a layer inside a network; system is no nn\.Module but function"
    ):
        lyapunov_spectrum(lambda x, h: h, batch(), module="rnn")


def test_the_state_comes_from_the_forward_pass() -> None:
    with pytest.raises(ValueError, match=r"state is what reaches the layer in the forward pass; .*must be None"):
        lyapunov_spectrum(network(), batch(), module="encoder.rnn", state=torch.zeros(1))


def test_a_name_that_there_is_not_is_answered_by_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"the model has no 'rnn'; it has encoder\.rnn \(LSTM\), encoder\.top \(GRU\)"):
        lyapunov_spectrum(network(), batch(), module="rnn")


def test_a_layer_that_nothing_reaches_is_named() -> None:
    with pytest.raises(ValueError, match=r"module: no inputs reached encoder\.unused in the forward pass"):
        lyapunov_spectrum(network(), batch(), module=["encoder.rnn", "encoder.unused"])


def test_what_the_network_itself_raises_is_raised_and_leaves_nothing_behind() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        lyapunov_spectrum(model, batch()[..., :2], module="encoder.rnn")
    assert not model.encoder.rnn._forward_hooks and model.training
