"""Adapters for other libraries' modules, against brute force in float64 (Jacobians by autograd, Householder each step).

The recurrences are written anew here, plainly, from the papers, in classes that are called as the libraries' own are;
the same tests run on the libraries themselves where these are installed. A step of the oracle is the module's forward
for one step.
"""

import copy
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.capture.adapters import adapter_of
from lightning_lyapunov.capture.calls import Call
from lightning_lyapunov.capture.conventions import (
    adapted,
    keep,
    needs_raw_calls,
    read_calls,
    signature_of,
    watch_forward,
)
from lightning_lyapunov.capture.finding import find
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from tests.capture.brute import exponents_of
from tests.systems import flat, noise

STEPS, ROWS, INPUT, UNITS = 12, 3, 4, 5


def called(name: str) -> Callable[[type], type]:
    """Gives a class the full name of another."""

    def give(kind: type) -> type:
        kind.__module__, _, kind.__qualname__ = name.rpartition(".")
        return kind

    return give


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def calls_of(module: nn.Module, run: Callable[[], Any]) -> list[Call]:
    adapter, calls = adapter_of(module), list[Call]()
    assert adapter is not None
    handle = module.register_forward_hook(lambda m, *call: calls.append(adapter.read(m, *call)), with_kwargs=True)
    run()
    handle.remove()
    return calls


def spectrum(module: nn.Module, calls: Sequence[Call]) -> LyapunovSpectrum:
    adapter, before = adapter_of(module), calls[0].before
    assert adapter is not None
    parts = before or tuple(torch.zeros_like(part) for part in calls[0].after)
    inputs = torch.cat([call.inputs for call in calls])
    state = parts if len(parts) > 1 else parts[0]
    return lyapunov_spectrum(adapted(module.eval(), adapter), inputs, state=state, transient=0, interval=1)


def assert_same(exponents: Tensor, expected: Tensor) -> None:
    """To 1e-8; what is dead is -inf in ours, and what rounding makes of it in brute force."""
    alive = expected > -25
    torch.testing.assert_close(exponents[alive], expected[alive], rtol=0, atol=1e-8)
    assert bool((exponents[~alive] < -25).all())


# ---------------------------------------------------------------------- ncps


@called("ncps.torch.cfc_cell.CfCCell")
class PlainCfCCell(nn.Module):
    """h' = tanh(f₁) (1 - s) + tanh(f₂) s, s = σ(a Δt + b), heads on a backbone of (x, h)."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = INPUT
        self.backbone, self.heads = nn.Linear(INPUT + UNITS, 16), nn.Linear(16, 4 * UNITS)

    def forward(self, input: Tensor, hx: Tensor, ts: Any) -> tuple[Tensor, Tensor]:
        f, g, a, b = self.heads(self.backbone(torch.cat([input, hx], 1)).tanh()).chunk(4, 1)
        s = torch.sigmoid(a * ts + b)
        h = f.tanh() * (1 - s) + g.tanh() * s
        return h, h


@called("ncps.torch.ltc_cell.LTCCell")
class PlainLTCCell(nn.Module):
    """The fused solver of dh/dt = -(1/τ + f) h + f A, by parameters that it keeps in a dict of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {
            "w": (UNITS, UNITS),
            "mu": (UNITS, UNITS),
            "input_w": (INPUT, UNITS),
            "leak": (UNITS,),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape)))
        self._params = dict(self.named_parameters())

    @property
    def sensory_size(self) -> int:
        return INPUT

    def forward(self, inputs: Tensor, states: Tensor, elapsed_time: Any = 1.0) -> tuple[Tensor, Tensor]:
        p, h = self._params, states
        drive, rate = inputs @ p["input_w"], 3 / elapsed_time
        for _ in range(3):
            f = p["w"] * torch.sigmoid(5 * (h.unsqueeze(2) - p["mu"]))
            h = (rate * h + f.sum(1) * p["mu"].mean(0) + drive) / (rate + p["leak"] + f.sum(1))
        return 2 * h, h


class PlainMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(INPUT + UNITS, 4 * UNITS)

    def forward(self, inputs: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = states
        i, f, g, o = self.gates(torch.cat([inputs, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class PlainLayer(nn.Module):
    def __init__(self, cell: nn.Module, batch_first: bool, mixed_memory: bool) -> None:
        super().__init__()
        self.rnn_cell, self.batch_first, self.use_mixed = cell, batch_first, mixed_memory
        if mixed_memory:
            self.lstm = PlainMemory()

    def forward(self, input: Tensor, hx: Any = None, timespans: Tensor | None = None) -> tuple[Tensor, Any]:
        is_batched, axis = input.dim() == 3, 1 if self.batch_first else 0
        if not is_batched:
            input = input.unsqueeze(1 - axis)
            timespans = None if timespans is None else timespans.unsqueeze(1 - axis)
        rows = input.shape[1 - axis]
        h, c = hx if self.use_mixed and hx is not None else (hx, None)
        h = input.new_zeros(rows, UNITS) if h is None else h.reshape(rows, UNITS)
        c = input.new_zeros(rows, UNITS) if c is None else c
        out = []
        for t, x in enumerate(input.unbind(axis)):
            ts = 1.0 if timespans is None else timespans.select(axis, t).squeeze()
            if self.use_mixed:
                h, c = self.lstm(x, (h, c))
            y, h = self.rnn_cell.forward(x, h, ts)
            out.append(y)
        h, c = (h, c) if is_batched else (h[0], c[0])
        return torch.stack(out, axis), (h, c) if self.use_mixed else h


@called("ncps.torch.cfc.CfC")
class PlainCfC(PlainLayer):
    def __init__(self, *_: Any, batch_first: bool = True, mixed_memory: bool = False) -> None:
        super().__init__(PlainCfCCell(), batch_first, mixed_memory)


@called("ncps.torch.ltc.LTC")
class PlainLTC(PlainLayer):
    def __init__(self, *_: Any, batch_first: bool = True, mixed_memory: bool = False) -> None:
        super().__init__(PlainLTCCell(), batch_first, mixed_memory)


@pytest.fixture(params=["plain", "library"])
def ncps(request: pytest.FixtureRequest) -> Any:
    if request.param == "plain":
        return SimpleNamespace(CfC=PlainCfC, LTC=PlainLTC)
    return pytest.importorskip("ncps.torch")


def layer_step(layer: Any) -> Callable[[Any, Tensor], Tensor]:
    """One step of a layer's forward on a flat state, for ``(x, times)``."""

    def step(given: tuple[Tensor, Tensor | None], state: Tensor) -> Tensor:
        x, times = (part if part is None else part.unsqueeze(1 if layer.batch_first else 0) for part in given)
        parts = tuple(state.chunk(2, 1)) if layer.use_mixed else state
        return flat(layer(x, parts, timespans=times)[1])

    return step


@pytest.mark.parametrize("kind", ["CfC", "LTC"])
@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"mixed_memory": True}])
def test_continuous_time_layers(ncps: Any, kind: str, options: dict[str, Any]) -> None:
    layer = seeded(lambda: getattr(ncps, kind)(INPUT, UNITS, **options)).double()
    x, axis = noise(ROWS, STEPS, INPUT), 1 if layer.batch_first else 0
    start = tuple(0.5 * noise(ROWS, UNITS, seed=seed) for seed in (1, 2))[: 2 if layer.use_mixed else 1]
    calls = calls_of(layer, lambda: layer(x.movedim(1, axis), start if layer.use_mixed else start[0]))
    (call,) = calls
    assert torch.equal(call.inputs, x.transpose(0, 1)) and call.lengths.tolist() == [STEPS] * ROWS
    assert call.before is not None and torch.equal(flat(call.before), flat(start))
    expected = exponents_of(layer_step(layer), flat(start), [(part, None) for part in x.unbind(1)])
    assert_same(spectrum(layer, calls).exponents, expected)


@pytest.mark.parametrize("kind", ["CfC", "LTC"])
def test_time_between_steps_drives_as_well(ncps: Any, kind: str) -> None:
    layer = seeded(lambda: getattr(ncps, kind)(INPUT, UNITS)).double()
    x, times = noise(1, STEPS, INPUT), 0.1 + noise(1, STEPS, 1, seed=3).abs()
    calls = calls_of(layer, lambda: layer(x, timespans=times))
    assert calls[0].inputs.shape == (STEPS, 1, INPUT + 1) and calls[0].before is None
    steps = list(zip(x.unbind(1), times.unbind(1), strict=True))
    expected = exponents_of(layer_step(layer), torch.zeros(1, UNITS, dtype=torch.float64), steps)
    assert_same(spectrum(layer, calls).exponents, expected)


def test_time_of_each_unit_drives_as_well(ncps: Any) -> None:
    layer = seeded(lambda: ncps.CfC(INPUT, UNITS)).double()
    x, times = noise(ROWS, STEPS, INPUT), 0.1 + noise(ROWS, STEPS, UNITS, seed=3).abs()
    calls = calls_of(layer, lambda: layer(x, timespans=times))
    steps = list(zip(x.unbind(1), times.unbind(1), strict=True))
    expected = exponents_of(layer_step(layer), torch.zeros(ROWS, UNITS, dtype=torch.float64), steps)
    assert_same(spectrum(layer, calls).exponents, expected)


def test_times_that_the_library_takes_for_those_of_units_are_refused(ncps: Any) -> None:
    layer = ncps.CfC(INPUT, UNITS)
    with pytest.raises(ValueError, match=r"CfC takes its timespans \(12, 5\) \(T, B\) for one of each unit"):
        calls_of(layer, lambda: layer(torch.ones(UNITS, STEPS, INPUT), timespans=torch.ones(UNITS, STEPS)))
    times = torch.ones(UNITS, STEPS).unsqueeze(-1).expand(-1, -1, UNITS)  # what it says
    assert calls_of(layer, lambda: layer(torch.ones(UNITS, STEPS, INPUT), timespans=times))


def test_weights_of_single_precision_are_measured_in_double(ncps: Any) -> None:
    """As people have them: the exponents of the float32 weights, in float64 arithmetic."""
    for kind in (ncps.CfC, ncps.LTC):
        layer = seeded(lambda kind=kind: kind(INPUT, UNITS))
        x = noise(ROWS, STEPS, INPUT, dtype=torch.float32)
        calls, double = calls_of(layer, lambda layer=layer, x=x: layer(x)), copy.deepcopy(layer).double()
        steps = [(part.double(), None) for part in x.unbind(1)]
        expected = exponents_of(layer_step(double), torch.zeros(ROWS, UNITS, dtype=torch.float64), steps)
        assert_same(spectrum(layer, calls).exponents, expected)


def test_single_sequence_without_an_axis_of_rows(ncps: Any) -> None:
    layer = seeded(lambda: ncps.CfC(INPUT, UNITS)).double()
    (call,) = calls_of(layer, lambda: layer(noise(STEPS, INPUT), noise(UNITS)))
    assert call.inputs.shape == (STEPS, 1, INPUT) and call.after[0].shape == (1, UNITS)
    assert call.before is not None and torch.equal(call.before[0][0], noise(UNITS))


def test_layers_are_found_and_their_cells_belong_to_them(ncps: Any) -> None:
    model = nn.ModuleDict({"cfc": ncps.CfC(INPUT, UNITS, mixed_memory=True), "ltc": ncps.LTC(INPUT, UNITS)})
    found, unsupported = find(model)
    assert list(found) == ["cfc", "ltc"] and unsupported == []


def test_cell_in_a_loop_is_read_by_its_calls(ncps: Any) -> None:
    cell = seeded(lambda: ncps.CfC(INPUT, UNITS)).double().rnn_cell
    adapter, raws, signature = adapter_of(cell), list[Any](), signature_of(cell)
    assert needs_raw_calls(adapter)
    watch = watch_forward(cell, lambda *call: raws.append(keep(cell, *call, 99, signature)))
    h = noise(ROWS, UNITS, seed=5)
    for t in range(STEPS):
        h = cell.forward(noise(STEPS, ROWS, INPUT)[t], h, 0.5)[1]
    watch.remove()
    convention, (calls,) = read_calls(cell.eval(), [raws], adapter)
    inputs, state = torch.cat([call.inputs for call in calls]), noise(ROWS, UNITS, seed=5)
    exponents = lyapunov_spectrum(adapted(cell, convention), inputs, state=state, transient=0, interval=1).exponents
    assert_same(exponents, exponents_of(lambda x, h: cell(x, h, 0.5)[1], state, inputs))


def test_wired_network_of_the_library() -> None:
    library, wirings = pytest.importorskip("ncps.torch"), pytest.importorskip("ncps.wirings")
    for kind in (library.CfC, library.LTC):
        layer = seeded(lambda kind=kind: kind(INPUT, wirings.AutoNCP(10, 2), mixed_memory=True)).double()
        x, start = noise(ROWS, STEPS, INPUT), (0.5 * noise(ROWS, 10, seed=1), noise(ROWS, 10, seed=2))
        calls = calls_of(layer, lambda layer=layer, x=x, start=start: layer(x, start))
        expected = exponents_of(layer_step(layer), flat(start), [(part, None) for part in x.unbind(1)])
        assert_same(spectrum(layer, calls).exponents, expected)


# ---------------------------------------------------------------------- snntorch


class Spike(torch.autograd.Function):
    """A jump that is differentiated as an arc tangent, and comes in single precision."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * u) ** 2)


class PlainNeuron(nn.Module):
    """Keeps its state in buffers, calls a method that it keeps as an attribute, and resets by subtraction."""

    names: tuple[str, ...] = ("mem",)

    def __init__(self, beta: float = 0.8, init_hidden: bool = False) -> None:
        super().__init__()
        self.beta, self.init_hidden = nn.Parameter(torch.tensor(beta)), init_hidden
        for name in self.names:
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self.state_function = self._base

    def run(self, x: Tensor, *given: Tensor | None) -> Any:
        for name, part in zip(self.names, given, strict=True):
            if part is not None:
                setattr(self, name, part)
            if getattr(self, name).shape != x.shape:
                setattr(self, name, torch.zeros_like(x))
        self.reset = Spike.apply(self.mem - 1).detach()
        self.mem = self.state_function(x)
        spk = Spike.apply(self.mem - 1)
        if "spk" in self.names:
            self.spk = spk
        state = tuple(getattr(self, name) for name in self.names if name != "spk")
        return spk if self.init_hidden else (spk, *state)

    def _base(self, x: Tensor) -> Tensor:
        return self.beta.clamp(0, 1) * self.mem + x - self.reset


@called("snntorch._neurons.leaky.Leaky")
class PlainLeaky(PlainNeuron):
    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        return self.run(input_, mem)


@called("snntorch._neurons.rleaky.RLeaky")
class PlainRLeaky(PlainNeuron):
    names = ("spk", "mem")

    def __init__(self, beta: float = 0.8, linear_features: int = UNITS, init_hidden: bool = False) -> None:
        super().__init__(beta, init_hidden)
        self.recurrent = nn.Linear(linear_features, linear_features)

    def _base(self, x: Tensor) -> Tensor:
        return super()._base(x) + self.recurrent(self.spk)

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        return self.run(input_, spk, mem)


@called("snntorch._neurons.slstm.SLSTM")
class PlainSLSTM(PlainNeuron):
    names = ("syn", "mem")

    def __init__(self, input_size: int, hidden_size: int, init_hidden: bool = False) -> None:
        super().__init__(init_hidden=init_hidden)
        self.hidden_size, self.lstm_cell = hidden_size, nn.LSTMCell(input_size, hidden_size)

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        for name, part in (("syn", syn), ("mem", mem)):
            if part is not None:
                setattr(self, name, part)
            if getattr(self, name).shape != input_.shape:
                setattr(self, name, input_.new_zeros(len(input_), self.hidden_size))
        self.mem, self.syn = self.lstm_cell(input_, (self.mem, self.syn))
        spk = Spike.apply(self.mem - 1)
        return spk if self.init_hidden else (spk, self.syn, self.mem)


@pytest.fixture(params=["plain", "library"])
def snn(request: pytest.FixtureRequest) -> Any:
    if request.param == "plain":
        return SimpleNamespace(Leaky=PlainLeaky, RLeaky=PlainRLeaky, SLSTM=PlainSLSTM)
    return pytest.importorskip("snntorch")


NEURONS = {
    "Leaky": (("mem",), lambda snn, **options: snn.Leaky(beta=0.8, **options)),
    "RLeaky": (("spk", "mem"), lambda snn, **options: snn.RLeaky(beta=0.8, linear_features=UNITS, **options)),
    "SLSTM": (("syn", "mem"), lambda snn, **options: snn.SLSTM(UNITS, UNITS, **options)),
}


def currents() -> Tensor:
    return 0.3 + 0.8 * noise(STEPS, ROWS, UNITS, seed=2)


def neuron_step(neuron: Any, names: tuple[str, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """One forward on a flat state, which is put where the neuron keeps it; in float64, spikes too."""

    def step(x: Tensor, state: Tensor) -> Tensor:
        for name, part in zip(names, state.chunk(len(names), 1), strict=True):
            setattr(neuron, name, part)
        neuron(x)
        return torch.cat([getattr(neuron, name).double() for name in names], 1)

    return step


@pytest.mark.parametrize("kind", list(NEURONS))
@pytest.mark.parametrize("init_hidden", [False, True])
def test_spiking_neurons(snn: Any, kind: str, init_hidden: bool) -> None:
    """Exponents of the Jacobians that autograd has, whose spikes are surrogates."""
    names, make = NEURONS[kind]
    neuron = seeded(lambda: make(snn, init_hidden=init_hidden))
    zeros, x = [torch.zeros(ROWS, UNITS) for _ in names], currents().float()

    def run() -> None:
        state = zeros
        for name, part in zip(names, zeros, strict=True):
            setattr(neuron, name, part)
        for part in x:
            out = neuron(part) if init_hidden else neuron(part, *state)
            state = out[-len(names) :]

    calls = calls_of(neuron, run)
    for call, then in pairwise(calls):
        assert then.before is not None and torch.equal(flat(then.before), flat(call.after))
    assert calls[0].before is not None and not flat(calls[0].before).any()
    neuron.double()  # for the oracle
    buffers = {name: buffer.clone() for name, buffer in neuron.named_buffers()}
    measured = spectrum(neuron, calls).exponents
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in neuron.named_buffers())
    assert_same(measured, exponents_of(neuron_step(neuron, names), flat(zeros).double(), x.double()))


def test_leaky_neuron_decays_at_its_rate(snn: Any) -> None:
    """ln β for each unit: of the resets, which the library does not differentiate, nothing remains."""
    neuron = snn.Leaky(beta=0.8).double()
    calls = calls_of(neuron, lambda: [neuron(x) for x in currents()])
    expected = torch.full((UNITS,), 0.8, dtype=torch.float32).log().double()
    torch.testing.assert_close(spectrum(neuron, calls).exponents, expected, rtol=0, atol=1e-7)


def test_state_that_the_neuron_keeps_is_where_it_came_to_or_zeros_or_not_known(snn: Any) -> None:
    neuron, x = snn.Leaky(beta=0.8, init_hidden=True), currents().float()
    first, second = calls_of(neuron, lambda: [neuron(part) for part in x[:2]])
    assert first.before is not None and second.before is not None
    assert not first.before[0].any() and torch.equal(second.before[0], first.after[0])
    neuron.mem = torch.zeros_like(neuron.mem)
    (anew,) = calls_of(neuron, lambda: neuron(x[2]))
    assert anew.before is not None and not anew.before[0].any()
    neuron.mem = torch.where(torch.arange(ROWS).unsqueeze(1) == 1, 0.0, neuron.mem)  # one row is reset
    (partly,) = calls_of(neuron, lambda: neuron(x[3]))
    assert partly.before is not None
    assert not partly.before[0][1].any() and torch.equal(partly.before[0][::2], anew.after[0][::2])
    neuron(x[4])  # unseen
    (unknown,) = calls_of(neuron, lambda: neuron(x[5]))
    assert unknown.before is not None and unknown.before[0].isnan().all()


def test_state_made_lazily_by_the_library(snn: Any) -> None:
    """``mem = lif.init_leaky()`` is a tensor of no entries before the first call."""
    neuron = snn.Leaky(beta=0.8)

    def run() -> None:
        mem = torch.zeros(0)
        for x in currents().float():
            _, mem = neuron(x, mem)

    calls = calls_of(neuron, run)
    assert calls[0].before is not None and not calls[0].before[0].any()
    for call, then in pairwise(calls):
        assert then.before is not None and torch.equal(call.after[0], then.before[0])


def test_lstm_of_other_width_than_its_inputs_has_no_recurrence_and_says_so(snn: Any) -> None:
    neuron = snn.SLSTM(INPUT, UNITS)
    with pytest.raises(ValueError, match=r"begins each step from zeros where its state \(3, 5\) .* inputs \(3, 4\)"):
        calls_of(neuron, lambda: neuron(torch.ones(ROWS, INPUT)))


def test_spiking_adapters_are_copied_and_pickled_without_what_they_saw() -> None:
    neuron = PlainLeaky()
    adapter: Any = adapter_of(neuron)
    calls_of(neuron, lambda: neuron(torch.ones(2, 3)))
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert twin.names == ("mem",) and len(twin._latest) == 0


# ---------------------------------------------------------------------- xlstm


@called("xlstm.blocks.slstm.cell.sLSTMCellBase")
class PlainCell(nn.Module):
    """Equations 8–17 of the paper with their stabiliser, along a sequence; the state is (4, B, H)."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(function=function, forward_clipval=None, input_shape="BSGNH")
        self._recurrent_kernel_ = nn.Parameter(torch.rand(2, 4, 4, 4) - 0.5)  # heads, from, gates, to
        self._bias_ = nn.Parameter(torch.rand(2, 4, 4))

    def _recurrent_kernel_int2ext(self, kernel: Tensor) -> Tensor:
        return kernel

    def _bias_int2ext(self, bias: Tensor) -> Tensor:
        return bias

    def forward(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, count = len(input), 4 if self.config.function == "slstm" else 2
        state = input.new_zeros(count, rows, 8) if state is None else state
        out = []
        for x in input.unbind(1):
            heads = [state[0].view(rows, 2, 4)[:, n] for n in range(2)]
            r = [torch.stack([h @ self._recurrent_kernel_[n, :, g] for g in range(4)], 1) for n, h in enumerate(heads)]
            i, f, z, o = (x.view(rows, 4, 8) + torch.cat(r, 2) + torch.cat(list(self._bias_), 1)).unbind(1)
            if count == 2:
                c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
                state = torch.stack([o.sigmoid() * c.tanh(), c])
            else:
                _, c, n, m = state
                forget = nn.functional.logsigmoid(f) + m
                top = torch.where(n == 0, i, torch.maximum(i, forget))
                c = (forget - top).exp() * c + (i - top).exp() * z.tanh()
                n = (forget - top).exp() * n + (i - top).exp()
                state = torch.stack([o.sigmoid() * c / n, c, n, top])
            out.append(state[0])
        return torch.stack(out, 1), state


@pytest.fixture(params=["plain", "library"])
def make_cell(request: pytest.FixtureRequest) -> Any:
    if request.param == "plain":
        return PlainCell
    library = pytest.importorskip("xlstm.blocks.slstm.cell")
    options = {"recurrent_weight_init": "standard", "bias_init": "standard", "backend": "vanilla"}
    return lambda function: library.sLSTMCell(
        library.sLSTMCellConfig(hidden_size=8, num_heads=2, function=function, **options)
    )


def cell_step(cell: nn.Module, count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The library's step in the units of a stabiliser of zero, which its memory is multiplied back into."""

    def step(x: Tensor, state: Tensor) -> Tensor:
        parts = list(state.chunk(count, 1))
        given = parts if count == 2 else [*parts, torch.zeros_like(parts[0])]
        after = cell(x.unsqueeze(1), torch.stack(given))[1]
        if count == 2:
            return flat(tuple(after))
        y, c, n, m = after
        return flat((y, c * m.exp(), n * m.exp()))

    return step


@pytest.mark.parametrize(("function", "count"), [("slstm", 3), ("lstm", 2)])
def test_scalar_lstm_without_its_stabiliser(make_cell: Any, function: str, count: int) -> None:
    cell = seeded(lambda: make_cell(function)).double()
    y, c, n = (noise(ROWS, 8, seed=seed) for seed in (4, 5, 6))
    start = (y, c, 1 + n.abs())[:count]
    stabilised = torch.stack([*start, torch.zeros_like(y)][: 4 if count == 3 else 2])
    x = noise(ROWS, STEPS, 32)
    calls = calls_of(cell, lambda: cell(x, state=stabilised))
    (call,) = calls
    assert torch.equal(call.inputs, x.transpose(0, 1))
    assert call.before is not None and torch.equal(flat(call.before), flat(start))
    measured = spectrum(cell, calls)
    assert measured.dimension == 8 * count
    assert_same(measured.exponents, exponents_of(cell_step(cell, count), flat(start), x.unbind(1)))


def test_scalar_lstm_goes_on_in_the_state_it_came_to(make_cell: Any) -> None:
    cell = seeded(lambda: make_cell("slstm")).double()
    x, kept = noise(ROWS, STEPS, 32), list[Tensor]()

    def run() -> None:
        kept.append(cell(x[:, :4])[1])
        kept.append(cell(x[:, 4:], state=kept[0])[1])

    first, second = calls_of(cell, run)
    assert second.before is not None and torch.equal(flat(first.after), flat(second.before))
    adapter: Any = adapter_of(cell)
    state = tuple(torch.zeros_like(part) for part in first.after)
    for step in x.unbind(1):
        state = adapter.step(cell, step, state)
    torch.testing.assert_close(flat(state), flat(second.after), rtol=1e-12, atol=1e-12)


def test_scalar_lstm_of_another_function_is_refused() -> None:
    cell = PlainCell("slstm")
    cell.config.forward_clipval = 3.0
    with pytest.raises(ValueError, match="has another step than an sLSTM's"):
        calls_of(cell, lambda: cell(torch.ones(ROWS, STEPS, 32)))
