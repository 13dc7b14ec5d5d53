"""What is checked of every model: found, finite, weights untouched, saved and loaded, copied, stopped, exact."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from clients.oracle import Parts, Step, exponents, torch_step
from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrum, LyapunovSpectrumCallback

EXACT = 1e-8
"""Nats per step by which an exponent may differ from brute force."""
WITHIN = 9
"""Nats per step below the largest exponent, beyond which brute force in float64 is less exact than that itself."""
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""For the Trainer."""
SEQUENCES = 4
"""Sequences that brute force follows."""


@dataclass
class Fit:
    """A fitted model."""

    network: nn.Module
    """Its weights are compared."""
    callbacks: Sequence[Any]
    """Those that were at work, copies or not."""
    reload: Callable[[Path], nn.Module] | None = None
    """Saves the model into a folder as its library does, loads it, and returns its network."""


@dataclass
class Call:
    """One call of a watched layer."""

    inputs: Tensor
    """``(T, B, ...)``."""
    lengths: list[int]
    """(B,)."""
    before: Parts | None
    """Parts of the state, ``(B, ...)`` each; zeros if None."""
    after: Parts
    """Parts of the state, of which only the shapes are needed where calls do not go on from each other."""


def read_torch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    """A call of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` of one layer, or of a class that inherits from them."""

    def parts(state: Any) -> Parts:
        return tuple(part.detach().clone()[0] for part in (state if isinstance(state, tuple) else (state,)))

    x: Any = args[0] if args else kwargs.get("x", kwargs.get("input"))
    before, lengths = args[1] if len(args) > 1 else kwargs.get("hx"), kwargs.get("lengths")
    if isinstance(x, PackedSequence):
        x, lengths = pad_packed_sequence(x)
    elif layer.batch_first:
        x = x.transpose(0, 1)
    steps = [len(x)] * x.shape[1] if lengths is None else lengths.tolist()
    return Call(x.detach().clone(), steps, None if before is None else parts(before), parts(output[1]))


@dataclass
class Oracle:
    """How the exponents of a layer are computed by brute force."""

    layer: str
    """Its name in the LightningModule."""
    step: Callable[[nn.Module], Step] = torch_step
    """One step of the layer."""
    read: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Call] = read_torch
    """What a call is about: of layer, arguments, keyword arguments and output."""
    identity: bool = False
    """Whether tangents begin along the axes."""


@dataclass
class Client:
    """A model of a library."""

    fit: Callable[[list[Any]], Fit]
    """Makes the model anew, fits it with these callbacks and returns it."""
    options: dict[str, Any] | None = None
    """Of the callback, where nothing is found without arguments."""
    by_hand: bool = False
    """Whether there is no Trainer: callbacks are then for :func:`begin`, :func:`record` and :func:`measure`."""
    oracle: Oracle | None = None
    """Of a layer whose exponents are computed by brute force."""


@dataclass
class Row:
    """A row of the table; each cell is "yes", a number, or what went wrong."""

    library: str
    model: str
    found: str = "-"
    measured: str = "-"
    weights: str = "-"
    saved: str = "-"
    copied: str = "-"
    stopped: str = "-"
    exact: str = "-"
    seconds: float = 0.0


def check(library: str, model: str, client: Client | Callable[[], None]) -> Row:
    """Fit it without and with the callbacks, and look at what came of it; or run it, if it is an example."""
    row, start = Row(library, model), time.perf_counter()
    if not isinstance(client, Client):
        with _told(row, "measured"):
            client()
            row.measured = "runs"
        row.seconds = time.perf_counter() - start
        return row
    with _told(row, "weights"):
        plain, watch = _fit(client, []), ByHand if client.by_hand else LyapunovSpectrumCallback
        stops = [] if client.by_hand else [LyapunovEarlyStopping("chaotic", patience=1000)]
        fit = _fit(client, [watch(), *stops])
        row.found = "yes" if _measured(fit).history else "no"
        if row.found == "no" and client.options is not None:
            fit = _fit(client, [watch(**client.options), *stops])
            row.found = "by name" if _measured(fit).history else "no, nor by name"
        row.weights = "identical" if _are_identical(plain.network, fit.network) else "DIFFER"
        if not client.by_hand and _traces(plain.network) != _traces(fit.network):
            row.weights += ", HOOKS LEFT"
        with _told(row, "measured"):
            row.measured = _figures(_measured(fit))
        with _told(row, "saved"):
            row.saved = _saved(fit)
        if stops:
            with _told(row, "copied"):
                row.copied = _copied(_measured(fit), next(c for c in fit.callbacks if type(c) is type(stops[0])))
    if client.oracle is not None:
        if not client.by_hand:
            with _told(row, "stopped"):
                row.stopped = _stopped(client)
        with _told(row, "exact"):
            row.exact = _exact(client)
    row.seconds = time.perf_counter() - start
    return row


@contextmanager
def _told(row: Row, cell: str) -> Iterator[None]:
    """Write down what goes wrong and go on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        setattr(row, cell, f"{type(error).__name__}: {first[:160]}")


def _fit(client: Client, callbacks: list[Any]) -> Fit:
    """From the same random numbers each time; what our callbacks warn of is printed."""
    pl.seed_everything(0, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Lyapunov")
        return client.fit(callbacks)


def _measured(fit: Fit) -> Any:
    return next(c for c in fit.callbacks if isinstance(c, LyapunovSpectrumCallback | ByHand))


def _are_identical(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _traces(network: nn.Module) -> list[tuple[str, int]]:
    """Class and number of hooks of each module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [(type(m).__qualname__, sum(len(getattr(m, kind)) for kind in kinds)) for m in network.modules()]


def _figures(callback: Any) -> str:
    spectrum, history = callback.spectrum, callback.history
    if spectrum is None:
        return "nothing"
    values = [value for measurement in history for value in measurement.metrics.values()]
    unknown = [part for part in (spectrum, *spectrum.parts.values()) if part.exponents.isnan().any()]
    if unknown or not all(map(math.isfinite, values)):
        return "NOT FINITE"
    return f"{float(spectrum.exponents[0]):+.3f} ± {float(spectrum.error[0]):.3f}, {len(history)} times"


def _saved(fit: Fit) -> str:
    if fit.reload is None:
        return "-"
    with tempfile.TemporaryDirectory() as folder:
        return "yes" if _are_identical(fit.network, fit.reload(Path(folder))) else "OTHER WEIGHTS"


def _copied(callback: LyapunovSpectrumCallback, stop: LyapunovEarlyStopping) -> str:
    """Copies of both, by whatever copies things, keep what was measured and nothing of the model."""
    import cloudpickle
    import joblib

    file = io.BytesIO()
    joblib.dump((callback, stop), file)
    copies = {
        "deepcopy": copy.deepcopy((callback, stop)),
        "pickle": pickle.loads(pickle.dumps((callback, stop))),
        "cloudpickle": pickle.loads(cloudpickle.dumps((callback, stop))),
        "joblib": joblib.load(io.BytesIO(file.getvalue())),
    }
    file = io.BytesIO()
    torch.save((callback, stop), file)
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(file.getvalue()))
    with torch.serialization.safe_globals([LyapunovEarlyStopping]):  # the callback's class is known to torch
        if strange := [name for name in needed if "LyapunovSpectrumCallback" not in name and "Stopping" not in name]:
            return f"safe loading asks for {', '.join(strange)[:120]}"
        copies["torch.load"] = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    wrong = [name for name, (other, _) in copies.items() if not _same_history(callback, other)]
    heavy = [name for name, pair in copies.items() if any(map(_holds_a_module, pair))]
    lost = f"history lost by {', '.join(wrong)}" if wrong else ""
    return lost or (f"the model hangs on the copy by {', '.join(heavy)}" if heavy else "yes")


def _same_history(one: LyapunovSpectrumCallback, other: LyapunovSpectrumCallback) -> bool:
    pairs = zip(one.history, other.history, strict=True)
    return len(one.history) == len(other.history) and all(torch.equal(a.exponents, b.exponents) for a, b in pairs)


def _holds_a_module(callback: object) -> bool:
    return any(isinstance(getattr(value, "__self__", None), nn.Module) for value in vars(callback).values())


def _stopped(client: Client) -> str:
    """Whether a stopper that is content with nothing ends the fit at the second measurement of training."""
    lyapunov = LyapunovSpectrumCallback(max_overhead=None, **(client.options or {}))
    fit = _fit(client, [lyapunov, LyapunovEarlyStopping(monitor="lyapunov/max", patience=1, min_delta=1e6)])
    stop = next(c for c in fit.callbacks if isinstance(c, LyapunovEarlyStopping))
    made = sum(measurement.step > 0 for measurement in _measured(fit).history)
    return "yes" if stop.reason is not None and made == 2 else f"NO: {made} measurements, {stop.reason}"


# ---------------------------------------------------------------- exponents by brute force


def _exact(client: Client) -> str:
    assert client.oracle is not None
    # A longer interval leaves what the precision law allows, about 1e-7 here.
    settings: dict[str, Any] = {"k": None, "num_sequences": SEQUENCES, "interval": 1, "max_overhead": None}
    watch = ByHand if client.by_hand else LyapunovSpectrumCallback
    fit = _fit(client, [watch(**settings, **(client.options or {})), Witness(client.oracle)])
    witness = next(c for c in fit.callbacks if isinstance(c, Witness))
    if witness.difference is None:
        return "nothing to compare"
    told = f"{witness.difference:.0e}"
    return told if witness.difference < EXACT else f"{told}, NO"


class Witness(pl.Callback):
    """Watches what drives a layer in validation, and computes its exponents again whenever they are measured.

    Args:
        oracle: What to watch, and how.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.difference: float | None = None
        self._calls: list[Call] = []
        self._is_recording = False

    def begin(self, network: nn.Module) -> None:
        """Watch the layer."""
        layer = network.get_submodule(self.oracle.layer)
        self._handle = layer.register_forward_hook(self._note, with_kwargs=True)

    def end(self) -> None:
        """Watch it no more."""
        self._handle.remove()
        del self._handle

    @contextmanager
    def record(self) -> Iterator[None]:
        """Note the calls that are made meanwhile, instead of those noted before."""
        self._calls, self._is_recording = [], True
        try:
            yield
        finally:
            self._is_recording = False

    def _note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._is_recording:
            self._calls.append(self.oracle.read(layer, args, kwargs, output))

    def compare(self, network: nn.Module, spectrum: LyapunovSpectrum) -> None:
        """Compute the exponents of the weights as they are."""
        name = self.oracle.layer
        expected = exponents(
            self.oracle.step(network.get_submodule(name)), *self._sequences(), identity=self.oracle.identity
        )
        measured = spectrum.parts.get(name, spectrum).exponents.cpu()
        compared = expected[: len(measured)] > expected[0] - WITHIN
        self.difference = float((expected[: len(measured)] - measured)[compared].abs().max())

    def _sequences(self) -> tuple[list[Tensor], list[Parts]]:
        """The first ones: a row that begins a call where it ended the one before goes on with it."""
        inputs, states = list[list[Tensor]](), list[Parts]()
        came_to, places = list[Parts](), list[int]()
        for call in self._calls:
            before = call.before if call.before is not None else tuple(map(torch.zeros_like, call.after))
            for b, length in enumerate(call.lengths):
                start = tuple(part[b] for part in before)
                if b >= len(places) or call.before is None or not all(map(torch.equal, start, came_to[b])):
                    places[b:], came_to[b:] = [len(inputs), *places[b + 1 :]], [start, *came_to[b + 1 :]]
                    inputs.append([])
                    states.append(start)
                inputs[places[b]].append(call.inputs[:length, b])
                came_to[b] = tuple(part[b] for part in call.after)
        return [torch.cat(one)[:64] for one in inputs[:SEQUENCES]], states[:SEQUENCES]

    # What Lightning calls.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the layer."""
        self.begin(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch it no more."""
        if stage == "fit":
            self.end()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The first batch alone."""
        if batch_idx == 0:
            self._calls, self._is_recording = [], True

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """No more."""
        self._is_recording = False

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: LyapunovSpectrumCallback) -> None:
        """Called by the callback that has just measured."""
        if callback.history[-1].step > 0 and self._calls and callback.spectrum is not None:
            self.compare(trainer.lightning_module, callback.spectrum)


# ---------------------------------------------------------------- loops without a Trainer


class ByHand:
    """A LyapunovMonitor, in the place of the callback where there is no Trainer.

    Args:
        settings: Of the monitor.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def begin(self, network: nn.Module) -> None:
        """Watch a network."""
        from lightning_lyapunov import LyapunovMonitor

        self.monitor = LyapunovMonitor(network, **self.settings)

    @property
    def spectrum(self) -> LyapunovSpectrum | None:
        """The last one."""
        return self.monitor.spectrum

    @property
    def history(self) -> Any:
        """What was measured."""
        return self.monitor.history


def begin(callbacks: Sequence[Any], network: nn.Module) -> None:
    """Watch a network, in a loop of one's own."""
    for callback in callbacks:
        callback.begin(network)


@contextmanager
def record(callbacks: Sequence[Any]) -> Iterator[None]:
    """Record what drives it meanwhile."""
    with ExitStack() as stack:
        for callback in callbacks:
            stack.enter_context(callback.monitor.record() if isinstance(callback, ByHand) else callback.record())
        yield


def measure(callbacks: Sequence[Any], network: nn.Module, step: int) -> None:
    """Measure after so many updates."""
    for callback in callbacks:
        if isinstance(callback, ByHand):
            callback.monitor.measure(step)
            watched = callback
        elif watched.spectrum is not None:
            callback.compare(network, watched.spectrum)


# ---------------------------------------------------------------- data, and a library's turn


def waves(steps: int = 400, seed: int = 0) -> np.ndarray[Any, Any]:
    """A noisy wave (steps,), float32."""
    noise = np.random.default_rng(seed).normal(size=steps)
    return (np.sin(np.arange(steps) / 5) + 0.1 * noise).astype(np.float32)


def run(library: str, path: Path, done: Sequence[str] = ()) -> None:
    """Check the models of a library, and add a row to the file after each."""
    models: dict[str, Client | Callable[[], None]] = importlib.import_module(f"clients.{library}").MODELS
    for name, client in models.items():
        if name in done:
            continue
        print(f"\n==== {library} {name}", flush=True)
        row = check(library, name, client)
        print(row, flush=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
