"""A guest leaves no trace: with callback, stopper, scorer, pictures and report a run is, bit for bit, what it was.

The oracle is the same run without them, and :func:`differences` between what the two leave.
"""

import math
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations, product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fits import Recorder, Regressor, Varied, loader, trainer
from lightning.pytorch import callbacks as of_lightning
from switches import precision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback
from lightning_lyapunov.engine import tangent
from lightning_lyapunov.monitoring import layers
from lightning_lyapunov.training.stopping import CONDITIONS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*",
    "ignore:.*log_every_n_steps.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*in eval mode at the start.*",
)

FACTORS: dict[str, Sequence[Any]] = {
    "cell": ["RNN", "GRU", "LSTM", "loop", "resets", "masked", "own", "subclass", "dropped"],
    "front": ["linear", "dropout", "batch norm"],
    "data": ["in order", "shuffled", "shuffled by workers"],
    "optimisation": ["automatic", "manual", "several", "closures"],
    "averaging": ["none", "before ours", "after ours"] if hasattr(of_lightning, "EMAWeightAveraging") else ["none"],
    "validation": ["each epoch", "within epochs", "absent"],
    "sanity check": [True, False],
    "accumulate": [1, 2],
    "chunks": [1, 2],
    "frozen": [False, True],
    "clip": [None, 0.05],
    "measurement": ["works", "raises"],
    "pictures": [False, True],
    "growth": [None, 0],
}
"""What runs differ in, and how."""
Case = dict[str, Any]


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Few cases in which every two levels of different factors meet; greedily, the same ones each time."""

    def met(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        return set(combinations([(name, case[name]) for name in factors if name in case], 2))

    levels = [[(name, level) for level in factors[name]] for name in factors]
    missing = dict.fromkeys(pair for two in combinations(levels, 2) for pair in product(*two))
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for name in factors:
            if name not in case:
                case[name] = max(factors[name], key=lambda level: len(met({**case, name: level}) & missing.keys()))
        for pair in met(case):
            missing.pop(pair, None)
        cases.append({name: case[name] for name in factors})
    return cases


def sample(factors: Mapping[str, Sequence[Any]], count: int) -> list[Case]:
    """Cases drawn at random, the same ones each time."""
    drawn = random.Random(0)
    return [{name: drawn.choice(levels) for name, levels in factors.items()} for _ in range(count)]


def shown(case: Case) -> str:
    return ", ".join(level if isinstance(level, str) else f"{name}={level}" for name, level in case.items())


# ------------------------------------------------------------------ what a run leaves


class Noisy(TensorDataset):
    """Adds noise that is drawn where the batch is made: in a worker, with its seed."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape), y


def run(
    case: Case,
    *callbacks: pl.Callback,
    logger: Recorder | None = None,
    accelerator: str = "cpu",
    max_epochs: int = 2,
    interrupted: bool = False,
) -> dict[str, Any]:
    """Epochs of four batches, and everything about them that anybody could notice."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    by_hand = case["optimisation"] not in ("automatic", "closures")  # where Lightning refuses to do it
    model = Varied(
        case["cell"],
        case["front"],
        frozen=case["frozen"],
        optimisation=case["optimisation"],
        chunks=case["chunks"],
        accumulate=case["accumulate"],
        clip=case["clip"],
        hidden=case.get("hidden", 6),
    )
    averaging = [] if case["averaging"] == "none" else [of_lightning.EMAWeightAveraging(decay=0.5)]
    behind = averaging if case["averaging"] == "after ours" else []
    logger, workers = logger or Recorder(), int(case["data"] == "shuffled by workers")
    fit = trainer(
        *([] if behind else averaging),
        *callbacks,
        *behind,
        logger=logger,
        accelerator=accelerator,
        max_epochs=max_epochs,
        log_every_n_steps=1,
        accumulate_grad_batches=1 if by_hand else case["accumulate"],
        gradient_clip_val=None if by_hand else case["clip"],
        num_sanity_val_steps=2 if case["sanity check"] else 0,
        limit_val_batches=0 if case["validation"] == "absent" else None,
        val_check_interval=0.5 if case["validation"] == "within epochs" else None,
    )
    data = Noisy(*loader().dataset.tensors)
    batches = DataLoader(data, 8, shuffle=case["data"] != "in order", num_workers=workers)
    with pytest.raises(SystemExit) if interrupted else nullcontext():  # how Lightning ends after Ctrl-C
        fit.fit(model, batches, loader())
    return left_by(fit, model, logger)


def left_by(fit: pl.Trainer, model: Varied, logger: Recorder) -> dict[str, Any]:
    parts = dict(model.named_modules())
    return {
        "weights": dict(model.state_dict()),
        "gradients": {name: value.grad for name, value in model.named_parameters()},
        "learning": {name: value.requires_grad for name, value in model.named_parameters()},
        "optimisers": [optimizer.state_dict() for optimizer in fit.optimizers],
        "random states": [random.getstate(), [*np.random.get_state()], torch.get_rng_state(), *of_gpus()],
        "logged": [row for row in map(of_the_user, logger.rows) if row is not None],
        "metrics": of_the_user((None, dict(fit.callback_metrics))),
        "data": model.batches,
        "modes": {name: part.training for name, part in parts.items()},
        "attributes": {name: [*vars(part)] for name, part in parts.items()},
        "hooks": {
            name: [len(vars(part)[kind]) for kind in vars(part) if "hooks" in kind] for name, part in parts.items()
        },
        "precision": precision(),
        "contexts": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()],
        "progress": [fit.global_step, fit.current_epoch, fit.should_stop],
    }


def of_gpus() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def of_the_user(row: tuple[int | None, dict[str, Any]]) -> tuple[int | None, dict[str, Any]] | None:
    """A row of the logger without what is ours; None if all of it is."""
    step, metrics = row
    kept = {key: value for key, value in metrics.items() if not key.startswith(("lyapunov", "aelle"))}
    return None if len(kept) < len(metrics) and not kept.keys() - {"epoch"} else (step, kept)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two runs left something different, to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = (one.dtype, one.shape, _bits(one)) == (other.dtype, other.shape, _bits(other))
    elif isinstance(one, np.ndarray):
        same = bool(np.array_equal(one, other))
    elif isinstance(one, dict) and isinstance(other, dict) and [*one] == [*other]:
        return [d for key in one for d in differences(one[key], other[key], f"{place}/{key}")]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{place}/{i}")]
    else:
        same = one == other or (one != one and other != other)  # two that are no number are the same
    return [] if same else [place]


def _bits(values: Tensor) -> bytes:
    return values.detach().cpu().numpy().tobytes()


def ours(case: Case, path: Path) -> list[pl.Callback]:
    """All that this package brings to a run, with a stopper that never stops."""
    dressed = {"figures": True, "report": str(path)} if case["pictures"] else {"figures": False}
    never = LyapunovEarlyStopping(
        CONDITIONS, monitor="lyapunov/max", patience=10**6, min_updates=0, before_training=True
    )
    whole = {"max_overhead": None, "k": None, "growth": case["growth"], "prog_bar": True}
    module = "rnn" if case["cell"] == "own" else None
    return [LyapunovSpectrumCallback(module, **whole, **dressed), never]


def break_off(monkeypatch: pytest.MonkeyPatch, error: BaseException, measurement: int = 1) -> None:
    """Let a measurement fail in the middle: when its second interval is reorthonormalised."""
    measure, times = layers.measure_layers, {"measured": 0, "factorised": 0}

    def counts(*args: Any, **kwargs: Any) -> Any:
        times.update(measured=times["measured"] + 1, factorised=0)
        return measure(*args, **kwargs)

    def breaking(factorise: Callable[..., Any]) -> Callable[..., Any]:
        def breaks(*args: Any) -> Any:
            times["factorised"] += 1
            if (times["measured"], times["factorised"]) == (measurement, 2):
                raise error
            return factorise(*args)

        return breaks

    monkeypatch.setattr(layers, "measure_layers", counts)
    for name in ("by_householder", "by_blocks"):
        monkeypatch.setattr(tangent, name, breaking(getattr(tangent, name)))


# ------------------------------------------------------------------ with and without


def compare(case: Case, path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str = "cpu") -> None:
    """One run with and one without; what was measured and drawn tells that there was something to leave a trace."""
    without = run(case, accelerator=accelerator)
    raises = case["measurement"] == "raises"
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if raises:
            break_off(patch, RuntimeError("in the middle of it"))
        measuring, stopper = ours(case, path)
        logger = Recorder()
        with_it = run(case, measuring, stopper, logger=logger, accelerator=accelerator)
    assert differences(without, with_it) == []
    assert len(measuring.history) + raises == (5 if case["validation"] == "within epochs" else 3)
    assert sum("in the middle of it" in str(warning.message) for warning in told) == raises
    assert all(map(math.isfinite, measuring.history.values("aelle/performance")))
    assert all(("gradient_gain" in m.metrics) == (case["growth"] is None) for m in measuring.history)
    assert bool(logger.pictures) == case["pictures"] == (path / "lyapunov.html").exists()


PAIRS = pairwise(FACTORS)


def test_every_two_levels_meet() -> None:
    for first, second in combinations(FACTORS, 2):
        met = {(case[first], case[second]) for case in PAIRS}
        assert met == set(product(FACTORS[first], FACTORS[second])), (first, second)
    assert len(PAIRS) < 45


@pytest.mark.parametrize("case", PAIRS, ids=shown)
def test_nothing_tells_whether_it_was_there(
    case: Case, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(case, tmp_path, monkeypatch, device.type)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(300))
def test_nothing_tells_whether_it_was_there_in_any_mixture(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(sample(FACTORS, number + 1)[-1], tmp_path, monkeypatch)


PLAIN: Case = {name: levels[0] for name, levels in FACTORS.items()}
BUSY: Case = {**PLAIN, "front": "dropout", "data": "shuffled", "frozen": True}


@pytest.mark.parametrize("cell", ["LSTM", "loop"])
def test_passes_along_a_large_state_leave_nothing(cell: str) -> None:
    """Of few of many directions growth takes several passes, forward and back; of a stack also those of the whole."""
    case = {**BUSY, "cell": cell, "hidden": 16}
    measuring = LyapunovSpectrumCallback(k=2, max_overhead=None, figures=False)
    assert differences(run(case), run(case, measuring)) == []
    assert len(measuring.history) == 3 and all("gradient_gain" in m.metrics for m in measuring.history)


class Raises(pl.Callback):
    """Somebody else's, at a hook."""

    def __init__(self, hook: str, error: BaseException) -> None:
        def breaks(fit: pl.Trainer, *_: Any) -> None:
            if not fit.sanity_checking:
                raise error

        setattr(self, hook, breaks)


@pytest.mark.parametrize(("measurement", "hook"), [(1, "on_train_start"), (2, "on_validation_epoch_end")])
def test_ctrl_c_in_the_middle_of_a_measurement_leaves_everything_as_found(
    measurement: int, hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: Ctrl-C at the same hook of a run without."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning ignores Ctrl-C from then on, in our process too
    without = run(BUSY, Raises(hook, KeyboardInterrupt()), interrupted=True)
    break_off(monkeypatch, KeyboardInterrupt(), measurement)
    measuring, stopper = ours({**BUSY, "pictures": False}, tmp_path)
    assert differences(without, run(BUSY, measuring, stopper, interrupted=True)) == []
    assert len(measuring.history) == measurement - 1


def test_somebody_elses_exception_leaves_no_hooks() -> None:
    model, callback = Regressor(), LyapunovSpectrumCallback(scorer=None)
    for ends_well in (True, False):
        breaks = [] if ends_well else [Raises("on_train_batch_end", ArithmeticError())]
        with nullcontext() if ends_well else pytest.raises(ArithmeticError):
            trainer(callback, *breaks).fit(model, loader(), loader())
        assert not model.rnn._forward_hooks and len(callback.history)


def test_a_stopped_run_is_a_shorter_one(tmp_path: Path) -> None:
    """Oracle: a run of as many epochs. A count of floored exponents that stays 0 never improves."""
    measuring, _ = ours({**BUSY, "pictures": False}, tmp_path)
    stopper = LyapunovEarlyStopping(monitor="lyapunov/floored", patience=2)
    stopped = run(BUSY, measuring, stopper, max_epochs=8)
    assert stopper.reason is not None and stopped["progress"][:2] == [12, 3]
    assert differences(run(BUSY, max_epochs=3), stopped) == ["/progress/2"]  # that it was told to stop


class Counted(torch.utils.data.Sampler[int]):
    """Knows how often it was gone through."""

    def __init__(self) -> None:
        self.times = 0

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[int]:
        self.times += 1
        return iter(range(32))


def test_no_loader_is_gone_through_but_by_the_trainer() -> None:
    data = loader().dataset
    times = []
    for callbacks in ([], [LyapunovSpectrumCallback(max_overhead=None)]):
        samplers = [Counted(), Counted()]
        trainer(*callbacks).fit(Regressor(), *(DataLoader(data, 8, sampler=sampler) for sampler in samplers))
        times.append([sampler.times for sampler in samplers])
    assert times[0] == times[1] == [2, 3]  # epochs; validations, with the sanity check


# ------------------------------------------------------------------ the oracle itself

SINS: dict[str, tuple[Callable[[pl.Trainer, Any], Any], str]] = {
    "draws a number": (lambda *_: torch.rand(()), "random states"),
    "draws one of Python's": (lambda *_: random.random(), "random states"),
    "draws one of numpy's": (lambda *_: np.random.rand(), "random states"),
    "goes through the data": (lambda fit, _: next(iter(fit.train_dataloader)), "data"),
    "changes a weight by a bit": (
        lambda _, model: model.out.bias.data.copy_(model.out.bias.nextafter(torch.ones(1))),
        "weights",
    ),
    "leaves eval mode": (lambda _, model: model.rnn.eval(), "modes"),
    "wakes what is frozen": (lambda _, model: model.train(), "modes"),
    "leaves a gradient": (lambda _, model: setattr(model.out.bias, "grad", torch.ones(1)), "gradients"),
    "freezes a weight": (lambda _, model: model.out.bias.requires_grad_(False), "learning"),
    "leaves a hook": (lambda _, model: model.rnn.register_forward_hook(print), "hooks"),
    "leaves an attribute": (lambda _, model: setattr(model.rnn, "seen", True), "attributes"),
    "forgets momentum": (lambda fit, _: fit.optimizers[0].state.clear(), "optimisers"),
    "sets a switch": (lambda *_: torch.set_float32_matmul_precision("medium"), "precision"),
    "logs in its name": (lambda _, model: model.log("val_loss", 1.0), "logged"),
    "logs beside it": (lambda fit, _: fit.logger.log_metrics({"weights": 1.0}, 2), "logged"),
    "ends it": (lambda fit, _: setattr(fit, "should_stop", True), "progress"),
}


class Sins(pl.Callback):
    """Does what a guest must not."""

    def __init__(self, sin: Callable[[pl.Trainer, Any], Any], at: str) -> None:
        setattr(self, at, lambda fit, model: None if fit.sanity_checking else sin(fit, model))


@pytest.mark.parametrize("sin", SINS)
def test_the_oracle_sees_every_trace(sin: str) -> None:
    """Each is found, where it was left; and nothing where nothing was."""
    does, where = SINS[sin]
    at = "on_validation_epoch_end" if where in ("logged", "data") else "on_train_end"  # so that all the rest is equal
    try:
        found = differences(run(BUSY), run(BUSY, Sins(does, at)))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert any(place.startswith(f"/{where}") for place in found), found
    assert where == "data" or len(found) < 20


def test_the_oracle_finds_nothing_between_equals() -> None:
    assert differences(run(BUSY), run(BUSY)) == []
