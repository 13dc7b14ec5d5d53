"""Whatever precision a run computes in, and whatever it compiles, the spectrum is that of its weights in float64.

Oracle everywhere: the same weights, cast up, along the same inputs, by hand. Where a run has rounded its inputs, these
are the inputs that it rounded.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Leaky, Looped, Regressor, loader, trainer
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrum, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.engine.precision import TOLERANCE

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)
FAMILIES = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def measure_always(module: str | None = None, **options: Any) -> LyapunovSpectrumCallback:
    return LyapunovSpectrumCallback(
        module, **{"max_overhead": None, "scorer": None, "figures": None, "k": None, "transient": 3, **options}
    )


def first_inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    """The 16 sequences that validation begins with, as a run of this type sees them."""
    return next(iter(loader(batch=16)))[0].to(dtype)


def is_that_of_the_float64_weights(measured: LyapunovSpectrum, layer: nn.Module, inputs: Tensor) -> None:
    """To the tolerance that is promised of trusted exponents, and these are nearly all."""
    careful = lyapunov_spectrum(copy.deepcopy(layer).double(), inputs.double(), transient=3, dtype=torch.float64)
    trusted = measured.trusted & careful.trusted
    assert trusted.double().mean() > 0.9
    torch.testing.assert_close(measured.exponents[trusted], careful.exponents[trusted], rtol=0.0, atol=TOLERANCE)


def switches() -> dict[str, Any]:
    """What a run may have set, and a measurement sets for itself."""
    found = {
        "default dtype": torch.get_default_dtype(),
        "products": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.enabled,
        "mkldnn": torch.backends.mkldnn.enabled,
        "autocast": torch.is_autocast_enabled("cpu"),
        "gradient": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if hasattr(torch.backends, "fp32_precision"):
        mkldnn = torch.backends.mkldnn
        parts = {"cuda": torch.backends.cuda.matmul, "matmul": mkldnn.matmul, "conv": mkldnn.conv, "rnn": mkldnn.rnn}
        found |= {f"precision of {name}": part.fp32_precision for name, part in parts.items()}
    return found


class Switches(pl.Callback):
    """Compares them at the beginning and at the end of training."""

    def __init__(self) -> None:
        self.differ: list[tuple[Any, Any]] = []

    def on_train_start(self, *_: Any) -> None:
        self.before = switches()

    def on_train_end(self, *_: Any) -> None:
        if (now := switches()) != self.before:
            self.differ.append((self.before, now))


@contextmanager
def products(precision: str) -> Iterator[None]:
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)


class Descended(Regressor):
    """Without Adam, whose squares underflow in half precision."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


# ------------------------------------------------------------------ precision

# What torch has no kernels for on some CPUs is tried first: an LSTM in bfloat16 under autocast needs AVX-512.
RUNS = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("precision", RUNS)
def test_the_runs_precision_does_not_reach_the_measurement(precision: Any, kind: str) -> None:
    pl.seed_everything(0)
    model, ours, watch = Descended(FAMILIES[kind](3, 6, batch_first=True)), measure_always(), Switches()
    found = switches()
    plain = trainer(precision=precision)
    try:
        plain.fit(copy.deepcopy(model), loader(), loader())
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot do it here, without a callback either: {error}")
    fit = trainer(ours, watch, precision=precision)
    fit.fit(model, loader(), loader())
    assert [m.step for m in ours.history] == [0, 4, 8] and not watch.differ and switches() == found
    # Under autocast the layer is handed what came before it: here the inputs, as they are.
    inputs = first_inputs() if precision == "bf16-mixed" else first_inputs(RUNS[precision])
    is_that_of_the_float64_weights(ours.spectrum, model.rnn, inputs)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_products_that_a_run_allows_to_be_coarse_are_full_in_the_measurement(precision: str, kind: str) -> None:
    pl.seed_everything(0)
    model, ours, watch = Regressor(FAMILIES[kind](3, 6, batch_first=True)), measure_always(), Switches()
    with products(precision):
        found = switches()
        trainer(ours, watch).fit(model, loader(), loader())
        assert found["products"] == precision and switches() == found and not watch.differ
        is_that_of_the_float64_weights(ours.spectrum, model.rnn, first_inputs())


@pytest.mark.parametrize("default", [torch.float64, torch.float32])
def test_the_default_type_does_not_matter(default: torch.dtype) -> None:
    found = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        model, ours, watch = Regressor(), measure_always(), Switches()
        trainer(ours, watch).fit(model.to(default), loader(), loader())
        assert not watch.differ and torch.get_default_dtype() == default
        is_that_of_the_float64_weights(ours.spectrum, model.rnn, first_inputs(default))
    finally:
        torch.set_default_dtype(found)


def test_validation_in_inference_mode_before_and_after_leaves_the_measurement_alone() -> None:
    """And is left alone by it: the callback is for fits."""
    pl.seed_everything(0)
    model, ours, watch = Regressor(), measure_always(), Switches()
    fit = trainer(ours, watch, inference_mode=True)
    before = fit.validate(model, loader(), verbose=False)
    assert before == fit.validate(model, loader(), verbose=False) and len(ours.history) == 0
    fit.fit(model, loader(), loader())
    measured = ours.spectrum
    is_that_of_the_float64_weights(measured, model.rnn, first_inputs())
    after = fit.validate(model, loader(), verbose=False)
    assert after == trainer().validate(model, loader(), verbose=False)
    assert ours.spectrum is measured and [m.step for m in ours.history] == [0, 4, 8] and not watch.differ
    assert not model.rnn._forward_hooks


def test_inputs_made_in_inference_mode_are_measured() -> None:
    with torch.inference_mode():
        inputs = first_inputs()
        model = nn.LSTM(3, 6, batch_first=True)
    is_that_of_the_float64_weights(lyapunov_spectrum(model, inputs, transient=3), model, inputs)


# ------------------------------------------------------------------ compiled

# The eager backend traces like the others, and leaves kernels alone: what matters here is what hooks still see.
COMPILED = {
    "layer": lambda model: setattr(model, "rnn", torch.compile(model.rnn, backend="eager")),
    "layer, in place": lambda model: model.rnn.compile(backend="eager"),
    "head": lambda model: setattr(model, "out", torch.compile(model.out, backend="eager")),
    "forward": lambda model: setattr(model, "forward", torch.compile(model.forward, backend="eager")),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("what", COMPILED)
def test_a_compiled_part_is_measured_under_its_own_name(what: str, kind: str) -> None:
    pl.seed_everything(0)
    model, ours, watch = Regressor(FAMILIES[kind](3, 6, batch_first=True)), measure_always("rnn"), Switches()
    layer = model.rnn
    COMPILED[what](model)
    trainer(ours, watch).fit(model, loader(), loader())
    torch._dynamo.reset()
    assert [m.step for m in ours.history] == [0, 4, 8] and not watch.differ
    is_that_of_the_float64_weights(ours.spectrum, layer, first_inputs())


@pytest.mark.parametrize("way", ["wrapped", "in place", "not"])
def test_a_compiled_cell_by_hand_is_measured_or_said_not_to_be(way: str) -> None:
    """What reaches it may be hidden by the compiler, which is told: nothing false is logged."""
    pl.seed_everything(0)
    model, ours, watch = Looped(Leaky()), measure_always("cell", num_sequences=8), Switches()
    cell = model.cell
    if way == "wrapped":
        model.cell = torch.compile(cell, backend="eager")
    elif way == "in place":
        cell.compile(backend="eager")
    fit = trainer(ours, watch)
    with nullcontext() if way == "not" else pytest.warns(UserWarning, match="a compiled cell cannot be watched"):
        fit.fit(model, loader())
    torch._dynamo.reset()
    assert not watch.differ and fit.current_epoch == 2
    assert bool(len(ours.history)) == (way == "not")
    if way == "not":
        x = list(loader())[-1][0].transpose(0, 1)
        state = {"state": torch.zeros(8, 6).double(), "transient": 3}
        expected = lyapunov_spectrum(copy.deepcopy(cell).double(), x.double(), **state).exponents
        torch.testing.assert_close(ours.spectrum.exponents, expected, rtol=0.0, atol=TOLERANCE)


def test_a_compiled_module_is_measured() -> None:
    """Torch 2.12 and 2.13 with Lightning up to 2.6.6 cannot run such a fit once ``self.log`` is called (Lightning's
    issue 21836): the same fit without the callback tells their defect from ours."""
    pl.seed_everything(0)
    model, ours = Regressor(), measure_always()
    try:
        trainer(max_epochs=1).fit(torch.compile(copy.deepcopy(model), backend="eager"), loader(), loader())
    except Exception as error:
        torch._dynamo.reset()
        pytest.xfail(f"so it is without the callback: {type(error).__name__}")
    trainer(ours).fit(torch.compile(model, backend="eager"), loader(), loader())
    torch._dynamo.reset()
    assert [m.step for m in ours.history] == [0, 4, 8]
    is_that_of_the_float64_weights(ours.spectrum, model.rnn, first_inputs())


class Silent(Regressor):
    """Logs nothing, so that it can be compiled whole by every torch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)


def test_a_compiled_module_that_logs_nothing_is_measured() -> None:
    pl.seed_everything(0)
    model, ours = Silent(), measure_always()
    trainer(ours).fit(torch.compile(model, backend="eager"), loader(), loader())
    torch._dynamo.reset()
    assert [m.step for m in ours.history] == [0, 4, 8]
    is_that_of_the_float64_weights(ours.spectrum, model.rnn, first_inputs())
