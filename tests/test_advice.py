"""Advice before the first update, followed to the letter: what the sentence says is done, and the network is cured."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovMonitor, condition
from lightning_lyapunov.reading import Finding, state_of
from lightning_lyapunov.reading.conditions import grows_much, is_chaotic

INPUT, HIDDEN, STEPS, BATCH = 4, 32, 41, 16


class Network(nn.Module):
    """A recurrent layer inside a network."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.read = nn.Linear(INPUT, INPUT)
        self.rnn = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.rnn(self.read(x))[0]
        return outputs[:, -1]


def relu(*args: int, **options: bool) -> nn.RNN:
    return nn.RNN(*args, nonlinearity="relu", **options)


def strong(make: Callable[..., nn.RNNBase], gain: float, layers: int = 1) -> nn.RNNBase:
    layer = make(INPUT, HIDDEN, layers, batch_first=True)
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.normal_(weight, std=gain / HIDDEN**0.5)
    return layer


def measured(model: Network, x: Tensor) -> LyapunovMonitor:
    """Before the first update."""
    with LyapunovMonitor(model, scorer=None, max_overhead=None) as monitor:
        with monitor.record():
            model(x)
        monitor.measure(step=0)
    return monitor


def finding(monitor: LyapunovMonitor) -> Finding:
    (one,) = [f for f in monitor.findings if f.state in ("forgetting", "exploding", "chaotic", "growing")]
    return one


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(BATCH, STEPS, INPUT, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("make", "gain", "layers"),
    [
        *((nn.RNN, 2.5, 1), (nn.RNN, 6.0, 1), (nn.RNN, 4.0, 2), (relu, 4.0, 1), (relu, 240.0, 1)),
        *((nn.GRU, 12.0, 1), (nn.LSTM, 10.0, 1)),
    ],
)
def test_recurrent_weights_that_are_scaled_as_told_are_no_longer_chaotic(
    make: Callable[..., nn.RNNBase], gain: float, layers: int, inputs: Tensor
) -> None:
    torch.manual_seed(1)
    model = Network(strong(make, gain, layers))
    before = measured(model, inputs)
    told = re.search(r"scale the recurrent weights of model\.(\w+) by ([\d.]+)", finding(before).text)
    assert told is not None and 0 < float(told[2]) < 1
    with torch.no_grad():
        for name, weight in model.get_submodule(told[1]).named_parameters():
            if name.startswith("weight_hh"):
                weight.mul_(float(told[2]))
    after = measured(model, inputs).history[-1]
    assert grows_much(before.history[-1]) and not grows_much(after) and not is_chaotic(after)
    assert -0.5 < float(after.exponents[0]) < 0.0


def test_of_a_stack_the_layer_that_is_too_strong_is_scaled_alone(inputs: Tensor) -> None:
    """Its upper layer has gain 5, the lower one 0.9."""
    torch.manual_seed(1)
    model = Network(strong(nn.RNN, 5.0, 2))
    with torch.no_grad():
        model.rnn.get_parameter("weight_hh_l0").mul_(0.9 / 5)
    before = measured(model, inputs)
    told = re.search(r"scale (weight_hh_l1) of model\.rnn by ([\d.]+), to take", finding(before).text)
    assert told is not None
    with torch.no_grad():
        model.rnn.get_parameter(told[1]).mul_(float(told[2]))
    after = measured(model, inputs).history[-1]
    assert not grows_much(after) and not is_chaotic(after) and after.layers["rnn.l0"][0] > -0.5


@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_network_that_forgets_remembers_after_the_call_that_is_named(
    make: Callable[..., nn.RNNBase], inputs: Tensor
) -> None:
    torch.manual_seed(2)
    model = Network(make(INPUT, HIDDEN, batch_first=True))
    before = measured(model, inputs)
    assert state_of(before.history) == "forgetting"
    call = re.search(r"`(condition\(model\.rnn, x, lag=\d+\))`", finding(before).text)
    assert call is not None and call[1].endswith(f"lag={STEPS - 1})")
    report = eval(call[1], {"condition": condition, "model": model, "x": model.read(inputs).detach()})
    assert report.applied
    after = measured(model, inputs)
    assert state_of(after.history) in ("remembering", "mild growth", "fading", "stable")
    assert after.history[-1].gain > -5 > before.history[-1].gain


def test_a_network_that_cannot_be_conditioned_is_not_told_to_be() -> None:
    """A cell of one's own has no weights that we know."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(INPUT + HIDDEN, HIDDEN)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.cell(torch.cat([x, h], -1)))

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), HIDDEN)
            for t in range(x.shape[1]):
                h = self.own(x[:, t], h)
            return h

    torch.manual_seed(3)
    model = Loop()
    with LyapunovMonitor(model, "own", scorer=None, max_overhead=None) as monitor:
        with monitor.record():
            model(torch.randn(BATCH, STEPS, INPUT))
        monitor.measure(step=0)
    assert "condition(" not in finding(monitor).text and "raise the recurrent gain" in finding(monitor).text


def test_later_the_advice_is_to_begin_again(inputs: Tensor) -> None:
    torch.manual_seed(1)
    model = Network(strong(nn.RNN, 3.0))
    with LyapunovMonitor(model, scorer=None, max_overhead=None) as monitor:
        for step in (0, 10):
            with monitor.record():
                model(inputs)
            monitor.measure(step=step)
    assert re.search(r"Begin again and scale the recurrent weights of model\.rnn by 0\.\d+", finding(monitor).text)
