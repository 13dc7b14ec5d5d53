"""A measurement leaves no trace, and nothing of the run reaches its numbers."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from switches import precision
from systems import OpaqueTanh, Wrapped, network, noise
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.isolation import _cudnn_off, _highest_products, full_precision

INPUT, HIDDEN, STEPS, BATCH = 3, 3, 10, 2


class Busy(nn.Module):
    """A cell that does all it should not: draws noise, counts in a buffer, notes tensors on itself."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.cell, self.norm, self.drop = nn.GRUCell(INPUT, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Dropout(0.5)
        self.fails = fails
        self.last: Any = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        self.calls += 1
        self.last = self.cell(x, state)
        if self.fails and state is not None:
            raise RuntimeError("on purpose")
        return self.drop(self.norm(self.last)) + 0.01 * torch.randn(HIDDEN, dtype=x.dtype)


class Failing(nn.RNN):
    """Torch's own, but refused."""

    def forward(self, *args: Any) -> Any:
        raise RuntimeError("on purpose")


def everything(module: nn.Module) -> dict[str, Any]:
    """What a run could notice."""
    return {
        "random state": torch.get_rng_state().tolist(),
        "modes": [part.training for part in module.modules()],
        "attributes": [{name: id(value) for name, value in vars(part).items()} for part in module.modules()],
        "hooks": [[*part._forward_hooks, *part._forward_pre_hooks, *part._backward_hooks] for part in module.modules()],
        "state_dict": {
            name: (id_of(value), value.tolist()) for name, value in module.state_dict(keep_vars=True).items()
        },
        "gradients": {name: value.grad.tolist() for name, value in module.named_parameters() if value.grad is not None},
        "requires_grad": [value.requires_grad for value in module.parameters()],
        "precision": precision(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
    }


def id_of(value: Tensor) -> tuple[int, int, torch.dtype]:
    return id(value), value.data_ptr(), value.dtype


def rnn() -> tuple[nn.Module, Any]:
    return nn.LSTM(INPUT, HIDDEN, 2, dropout=0.5, bidirectional=True), None


def parametrised() -> tuple[nn.Module, Any]:
    module = nn.RNN(INPUT, HIDDEN)
    return parametrizations.spectral_norm(module, "weight_hh_l0"), None  # its power iteration lives in buffers


def hooked() -> tuple[nn.Module, Any]:
    return Wrapped(torch.nn.utils.weight_norm(nn.GRUCell(INPUT, HIDDEN), "weight_hh")), torch.zeros(BATCH, HIDDEN)


def reverse() -> tuple[nn.Module, Any]:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return OpaqueTanh.apply(self.linear(state) + x[:, :1])

    return Opaque(), torch.zeros(BATCH, HIDDEN)


SYSTEMS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "lstm": rnn,
    "spectral norm": parametrised,
    "hooked weights": hooked,
    "busy cell": lambda: (Busy(), None),
    "reverse mode": reverse,
    "refused": lambda: (Failing(INPUT, HIDDEN), None),
    "fails within": lambda: (Busy(fails=True), None),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", SYSTEMS)
def test_everything_is_as_found(name: str) -> None:
    module, state = SYSTEMS[name]()
    module.train()
    list(module.modules())[-1].eval()  # a frozen part
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(module.parameters()).requires_grad_(False)
    before = everything(module)
    with pytest.raises(ValueError) if name in ("refused", "fails within") else nullcontext():
        lyapunov_spectrum(module, noise(STEPS, BATCH, INPUT, dtype=torch.float32), state=state)
    assert everything(module) == before


def test_a_bound_method_speaks_for_its_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(HIDDEN, HIDDEN).double(), nn.Dropout(0.5)

        def step(self, x: Tensor | None, state: Tensor) -> Tensor:
            return self.drop(torch.tanh(self.linear(state)))

    model = Model()
    start = noise(BATCH, HIDDEN)
    measured = lyapunov_spectrum(model.step, None, state=start, steps=STEPS)
    assert model.training and model.drop.training
    expected = lyapunov_spectrum(model.eval().step, None, state=start, steps=STEPS)
    assert torch.equal(measured.exponents, expected.exponents)


@pytest.mark.filterwarnings("ignore:.*hook.*:UserWarning")
def test_no_hook_of_the_user_fires() -> None:
    cell = Wrapped(network("gru cell", INPUT, HIDDEN))
    fired: list[str] = []

    def told(name: str) -> Callable[..., None]:
        return lambda *_, **__: fired.append(name)

    handles = [
        cell.inner.register_forward_hook(told("forward")),
        cell.inner.register_forward_hook(told("always"), always_call=True),
        cell.register_forward_hook(told("keywords"), with_kwargs=True),
        cell.inner.register_full_backward_hook(told("backward")),
        cell.register_full_backward_pre_hook(told("backward pre")),
    ]
    lyapunov_spectrum(cell, noise(STEPS, BATCH, INPUT), state=noise(BATCH, HIDDEN))
    assert fired == []
    x = noise(BATCH, INPUT).requires_grad_()
    cell(x, noise(BATCH, HIDDEN)).sum().backward()  # and after it they all do
    assert set(fired) == {"forward", "always", "keywords", "backward", "backward pre"}
    for handle in handles:
        handle.remove()
    assert not cell._forward_hooks and not cell.inner._forward_hooks and not cell.inner._backward_hooks


# ------------------------------------------------------------------ the run's arithmetic does not reach the numbers


@contextmanager
def default_dtype() -> Iterator[None]:
    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(found)


RUNS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["lstm", "cell", "callable"])
def test_same_numbers_under(name: str, run: str) -> None:
    system = {
        "lstm": lambda: network("lstm", INPUT, HIDDEN, num_layers=2),
        "cell": lambda: Wrapped(network("gru cell", INPUT, HIDDEN)),
        "callable": lambda: network("gru cell", INPUT, HIDDEN).forward,
    }[name]()
    inputs = noise(STEPS, BATCH, INPUT)
    expected = lyapunov_spectrum(system, inputs)
    with RUNS[run]():
        found = lyapunov_spectrum(system, inputs)
    assert torch.equal(found.per_sequence, expected.per_sequence)
    assert found.volume_rate == expected.volume_rate


def test_same_numbers_of_what_inference_mode_made() -> None:
    """Weights, inputs and state born in inference mode, in forward and in reverse mode."""
    for kind in ("lstm cell", "wrapped", "reverse"):

        def build(kind: str = kind) -> tuple[Any, Tensor, Any]:
            torch.manual_seed(3)
            parts = (noise(BATCH, HIDDEN), noise(BATCH, HIDDEN, seed=1))
            if kind == "lstm cell":
                return network(kind, INPUT, HIDDEN), noise(STEPS, BATCH, INPUT), parts
            if kind == "wrapped":
                return Wrapped(network("gru cell", INPUT, HIDDEN)), noise(STEPS, BATCH, INPUT), parts[0]
            return reverse()[0], noise(STEPS, BATCH, INPUT), parts[0]

        system, inputs, state = build()
        expected = lyapunov_spectrum(system, inputs, state=state)
        with torch.inference_mode():
            system, inputs, state = build()
            within = lyapunov_spectrum(system, inputs, state=state)
        after = lyapunov_spectrum(system, inputs, state=state)
        assert torch.equal(within.per_sequence, expected.per_sequence)
        assert torch.equal(after.per_sequence, expected.per_sequence)


def test_half_precision_weights_and_inputs_are_measured_as_the_numbers_they_are() -> None:
    module = nn.GRU(INPUT, HIDDEN).bfloat16()
    inputs = noise(STEPS, BATCH, INPUT, dtype=torch.bfloat16)
    expected = lyapunov_spectrum(deepcopy(module).double(), inputs.double())
    assert torch.equal(lyapunov_spectrum(module, inputs).per_sequence, expected.per_sequence)
    cell = nn.GRUCell(INPUT, HIDDEN).bfloat16()
    expected = lyapunov_spectrum(Wrapped(deepcopy(cell).double()), inputs.double())
    assert torch.equal(lyapunov_spectrum(Wrapped(cell), inputs).per_sequence, expected.per_sequence)


# ------------------------------------------------------------------ the precision of products


def fine(switch: str) -> bool:
    return not switch.endswith(("fp32_precision", "finer")) or hasattr(torch.backends, "fp32_precision")


SWITCHES = {
    "untouched": lambda: None,
    "medium, then finer": lambda: (
        torch.set_float32_matmul_precision("medium"),
        setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    ),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cuda.matmul.fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "mkldnn.matmul.fp32_precision": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "fp32_precision": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.fixture
def switches() -> Iterator[None]:
    """The switches as torch starts with them, for each test."""
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        if hasattr(torch.backends, "fp32_precision"):
            mkldnn = torch.backends.mkldnn
            for switch in (torch.backends, torch.backends.cuda.matmul, mkldnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn):
                switch.fp32_precision = "none"  # type: ignore[attr-defined]
            for switch in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):  # type: ignore[attr-defined]
                switch.fp32_precision = "tf32"


@pytest.mark.parametrize("switch", [*filter(fine, SWITCHES)])
def test_products_are_full_within_and_as_found_after(switch: str, switches: None) -> None:
    SWITCHES[switch]()
    before = precision()
    with pytest.raises(ZeroDivisionError), full_precision():
        within = precision()
        assert within["cuda.matmul"] in ("ieee", "AttributeError")
        assert within["mkldnn.matmul"] in ("ieee", "AttributeError")
        assert within["all"] in ("highest", "RuntimeError")
        assert within["cuda allows TF32"] in (False, "RuntimeError")
        assert not within["cudnn"]
        raise ZeroDivisionError
    assert precision() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_a_switch_that_followed_the_one_above_it_follows_on(switches: None) -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with full_precision():
        pass
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_older_torch_has_one_switch_for_all(switches: None) -> None:
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(ZeroDivisionError), _highest_products(), _cudnn_off():
        assert torch.get_float32_matmul_precision() == "highest"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.enabled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is the GPU's")
def test_tf32_of_the_run_does_not_reach_the_gpu(switches: None) -> None:
    module = nn.RNN(64, 64).cuda()
    inputs = noise(STEPS, BATCH, 64).float().cuda()
    expected = lyapunov_spectrum(module, inputs, dtype=torch.float32)
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(lyapunov_spectrum(module, inputs, dtype=torch.float32).per_sequence, expected.per_sequence)


# ------------------------------------------------------------------ the random state


@pytest.mark.parametrize("as_module", [True, False])
def test_a_noisy_cell_does_not_move_the_random_state(as_module: bool) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor | None, state: Tensor) -> Tensor:
            return 0.5 * state + torch.randn_like(state)

    system: Any = Noisy() if as_module else Noisy().forward
    before = torch.get_rng_state()
    spectrum = lyapunov_spectrum(system, None, state=noise(BATCH, HIDDEN), steps=STEPS)
    assert torch.equal(torch.get_rng_state(), before)
    assert spectrum.exponents.tolist() == pytest.approx([math.log(0.5)] * HIDDEN, abs=1e-6)  # its derivative is 1/2
