"""A run that is broken off and resumed ends as the one that was not: its record, its budget, its stopper, its scores.

The oracle is the uninterrupted run, with a clock that only training and measuring move.
"""

import copy
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, Resumable, loader, trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from packaging.version import Version
from test_no_trace import break_off, differences
from test_stopping import Scripted
from torch import nn

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.figures import figures_of
from lightning_lyapunov.monitoring import layers
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import findings
from lightning_lyapunov.report import write_report
from lightning_lyapunov.training import guest as module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*",
    "ignore:.*callbacks used to create the checkpoint.*", "ignore:.*was called without a model.*",
    "ignore:.*no last checkpoint available.*",
)  # fmt: skip


LIGHTNING = Version(pl.__version__)


class Clock:
    """Stands still unless it is moved, by numbers whose sums are exact."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Works(pl.Callback):
    """A batch takes a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Training takes a second a batch, a measurement one in proportion to its work."""
    clock, measure = Clock(), layers.measure_layers

    def takes_time(*args: Any, **kwargs: Any) -> Any:
        tallies = measure(*args, **kwargs)
        clock.now += sum(part.log[0].numel() for tally in tallies.values() for part in tally.parts.values()) / 256
        return tallies

    monkeypatch.setattr(layers, "measure_layers", takes_time)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Validations(pl.Callback):
    """What the user's own validations came to, and at which update; the same however often it is seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))


class Run:
    """Four epochs of four batches, with all there is to resume."""

    def __init__(
        self, clock: Clock, *others: pl.Callback, epochs: int = 4, plugins: Any = None, **options: Any
    ) -> None:
        torch.manual_seed(0)
        options = {
            "max_overhead": 0.5,
            "figures": None,
            "performance": "val_loss",
            "performance_range": (1.0, 0.0),
            **options,
        }
        self.model, self.ours = Regressor(nn.LSTM(3, 6, batch_first=True)), LyapunovSpectrumCallback(**options)
        self.stopper = LyapunovEarlyStopping(
            ["chaotic", "converged"], monitor="lyapunov/floored", patience=99, min_updates=0, before_training=True
        )
        self.validations = Validations()
        self.trainer = trainer(
            self.ours, self.stopper, Works(clock), self.validations, *others,
            max_epochs=epochs, plugins=plugins, enable_checkpointing=any(isinstance(o, Checkpoint) for o in others),
        )  # fmt: skip

    def fit(self, checkpoint: Path | None = None) -> "Run":
        self.trainer.fit(self.model, Resumable(loader()), loader(), ckpt_path=checkpoint)
        return self

    def goes_on_as(self, whole: "Run", update: int) -> bool:
        """Whether Lightning resumed as if nothing had happened: before 2.6 it may validate once more, or not at all."""
        return self.validations.seen == [(step, loss) for step, loss in whole.validations.seen if step > update]

    @property
    def end(self) -> dict[str, Any]:
        """What it came to."""
        return {
            "record and budget": self.ours.state_dict(),
            "stopper": [self.stopper.state_dict(), self.stopper.reason],
            "prediction": vars(self.ours.score),
            "weights": dict(self.model.state_dict()),
        }


def at_every_update(path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(path, "{step}", save_top_k=-1, every_n_train_steps=1)


def at_every_epoch(path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(path, "{epoch}", save_top_k=-1)


# ------------------------------------------------------------------ as if nothing had happened


def test_a_run_resumed_at_any_update_ends_as_if_nothing_had_happened(clock: Clock, tmp_path: Path) -> None:
    """But at the last update of an epoch, where Lightning resumes with the next one and skips the validation."""
    whole = Run(clock, at_every_update(tmp_path)).fit()
    assert len(whole.ours.history) == 5
    for update in (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15):
        resumed = Run(clock).fit(tmp_path / f"step={update}.ckpt")
        assert differences(whole.end["weights"], resumed.end["weights"]) == []
        if Version("2.6") > LIGHTNING and not resumed.goes_on_as(whole, update):
            continue
        assert differences(whole.end, resumed.end) == [], f"resumed after {update} updates"


class Torn(TorchCheckpointIO):
    """The disk is full in the middle of the third checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        if checkpoint["global_step"] == 12:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError("no space left on device")


def breaks_at(update: int, error: BaseException, act: Callable[..., Any]) -> Callable[..., Any]:
    def breaks(model: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
        if model.global_step == update:
            raise error
        return act(model, *args, **kwargs)

    return breaks


@pytest.mark.parametrize(
    "how", ["in a training step", "in the middle of a measurement", "between measurement and log", "while writing"]
)
def test_a_run_broken_off_goes_on_from_its_last_whole_checkpoint(
    how: str, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(clock).fit().end
    with monkeypatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)  # Lightning ignores Ctrl-C from then on
        if how == "in a training step":
            patch.setattr(Regressor, "training_step", breaks_at(10, ArithmeticError(), Regressor.training_step))
        elif how == "in the middle of a measurement":
            break_off(patch, KeyboardInterrupt(), 5)  # with the pilot
        elif how == "between measurement and log":
            patch.setattr(module, "log_figures", breaks_at(12, KeyboardInterrupt(), module.log_figures))
        broken = Run(clock, at_every_epoch(tmp_path), plugins=[Torn()] if how == "while writing" else None)
        with pytest.raises((ArithmeticError, SystemExit, OSError)):
            broken.fit()
    assert 8 < broken.trainer.global_step <= 12
    assert differences(whole, Run(clock).fit(tmp_path / "epoch=1.ckpt").end) == []


def test_a_run_goes_on_from_the_checkpoint_that_is_written_when_it_breaks_off(clock: Clock, tmp_path: Path) -> None:
    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 10:
                raise ArithmeticError

    whole = Run(clock).fit()
    with pytest.raises(ArithmeticError):
        Run(clock, Breaks(), OnExceptionCheckpoint(tmp_path)).fit()
    resumed = Run(clock).fit(tmp_path / "on_exception.ckpt")
    assert differences(whole.end["weights"], resumed.end["weights"]) == []
    if Version("2.6") > LIGHTNING and not resumed.goes_on_as(whole, 10):
        pytest.skip("this Lightning validates otherwise after such a resume, without the callback too")
    assert differences(whole.end, resumed.end) == []


@pytest.mark.parametrize(
    ("options", "uninterrupted", "resumed"),
    [
        ({"every_n_epochs": 2}, [0, 4, 12, 16], [0, 4, 8, 16]),  # the last one is promised
        ({"every_n_epochs": 3}, [0, 4, 16], [0, 4, 8, 16]),
        ({"every_n_train_steps": 3}, [0, 3, 6, 9, 12, 15, 16], [0, 3, 5, 8, 11, 14, 16]),
    ],
    ids=str,
)
def test_the_first_epoch_after_a_resume_measures_in_any_case(
    options: dict[str, Any], uninterrupted: list[int], resumed: list[int], clock: Clock, tmp_path: Path
) -> None:
    """Monitors know no value then: a stock EarlyStopping that is strict would end the run."""
    stopper = EarlyStopping("lyapunov/max", patience=99)
    whole = Run(clock, stopper, at_every_epoch(tmp_path), **options).fit()
    assert [m.step for m in whole.ours.history] == uninterrupted
    again = Run(clock, EarlyStopping("lyapunov/max", patience=99), **options).fit(tmp_path / "epoch=0.ckpt")
    assert [m.step for m in again.ours.history] == resumed


@pytest.mark.parametrize("patience", [1, 3])
def test_a_stopper_goes_on_in_the_middle_of_its_patience(patience: int, tmp_path: Path) -> None:
    """Oracle: one that was not broken off. Its third chaotic measurement is at update 16, whatever came between."""
    stopper = LyapunovEarlyStopping("chaotic", monitor="lyapunov/max", patience=patience, min_updates=0)
    fit = trainer(Scripted([-0.5, -0.5, 0.2], scorer=None), stopper, max_epochs=2)
    fit.fit(Regressor(), loader(), loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    assert (stopper.reason is not None) == (patience == 1)

    again = LyapunovEarlyStopping("chaotic", monitor="lyapunov/max", patience=patience, min_updates=0)
    fit = trainer(Scripted([0.2], scorer=None), again, max_epochs=8)
    fit.fit(Regressor(), loader(), loader(), ckpt_path=tmp_path / "c.ckpt")
    assert fit.global_step == {1: 12, 3: 16}[patience]  # one that had stopped goes on until its next measurement
    assert "improved on -0.5 at" in again.reason and again.reason.startswith("chaotic")


def test_a_warm_start_begins_cold_after_a_resume(tmp_path: Path) -> None:
    """Frames are too large for a checkpoint. Oracle: the spectrum of the weights and inputs alone, by hand."""
    model, x = Regressor(), next(iter(loader(batch=16)))[0]
    options = {"warm_start": True, "k": None, "max_overhead": None, "scorer": None, "figures": None}
    trainer(LyapunovSpectrumCallback(**options), at_every_epoch(tmp_path), enable_checkpointing=True).fit(
        model, loader(), loader()
    )
    resumed = LyapunovSpectrumCallback(**options)
    trainer(resumed).fit(model, loader(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    by_hand = lyapunov_spectrum(model.rnn, x)
    assert [m.step for m in resumed.history] == [0, 4, 8]
    assert torch.equal(resumed.history[-1].exponents, by_hand.exponents.float())


# ------------------------------------------------------------------ what a checkpoint holds


def test_checkpoints_load_without_pickle_and_each_callback_finds_its_own(clock: Clock, tmp_path: Path) -> None:
    def run(checkpoint: Path | None = None) -> list[LyapunovSpectrumCallback]:
        torch.manual_seed(0)
        options: dict[str, Any] = {"max_overhead": None, "figures": None}
        both = [LyapunovSpectrumCallback(**options), LyapunovSpectrumCallback("rnn", k=3, prefix="again", **options)]
        fit = trainer(*both, LyapunovEarlyStopping("chaotic", patience=99), max_epochs=1 if checkpoint is None else 2)
        model = Regressor(nn.GRU(3, 6, 2, batch_first=True))
        fit.fit(model, loader(), loader(), ckpt_path=checkpoint)
        fit.save_checkpoint(tmp_path / "c.ckpt")
        return both

    first = run()
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    for callback in first:
        assert differences(saved[callback.state_key], callback.state_dict()) == []
    for before, after in zip(first, run(tmp_path / "c.ckpt"), strict=True):
        assert [m.step for m in after.history] == [0, 4, 8]
        assert differences([vars(m) for m in before.history], [vars(m) for m in list(after.history)[:2]]) == []


def test_a_checkpoint_without_the_callback_resumes(tmp_path: Path) -> None:
    fit = trainer(max_epochs=2)
    fit.fit(Regressor(), loader(), loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    ours = LyapunovSpectrumCallback(scorer=None)
    trainer(ours, LyapunovEarlyStopping("chaotic"), max_epochs=3).fit(
        Regressor(), loader(), loader(), ckpt_path=tmp_path / "c.ckpt"
    )
    assert [m.step for m in ours.history] == [12]


# ------------------------------------------------------------------ of another version


def of_an_older_version(state: dict[str, Any]) -> None:
    del state["budget"]
    for measurement in state["history"]["measurements"]:
        del measurement["reached"]


def of_a_newer_version(state: dict[str, Any]) -> None:
    state["colour"] = state["history"]["shape"] = 1
    for measurement in state["history"]["measurements"]:
        measurement["smell"] = [1.0]


def with_other_names(state: dict[str, Any]) -> None:
    state["record"] = state.pop("history")


def of_somebody_else(state: dict[str, Any]) -> None:
    state.clear()
    state["best"] = 0.5


STATES: dict[str, tuple[Callable[[dict[str, Any]], None], list[str], list[int]]] = {
    "older": (of_an_older_version, ["state has no budget", "a measurement has no reached"], [0, 4, 8, 12, 16]),
    "newer": (of_a_newer_version, ["colour of state", "shape of history", "smell of a measurement"], [0, 4, 8, 12, 16]),
    "renamed": (with_other_names, ["state has no history", "record of state is not known"], [12, 16]),
    "foreign": (of_somebody_else, ["no history", "no training_seconds", "no budget", "best of state"], [12, 16]),
}


# Of version 0.1, two layers and k=2, digits cut off: its metrics had the names that they are logged under, and it knew
# neither growth, nor whether exponents had settled, nor an error beside the standard error.
OLD_METRICS = {
    "lyapunov/max": -0.4427,
    "lyapunov/max_stderr": 0.0115,
    "lyapunov/near_zero_fraction": 0.0,
    "lyapunov/unstable_fraction": 0.0,
    "lyapunov/kaplan_yorke_dimension": 0.0,
    "lyapunov/kolmogorov_sinai_entropy": 0.0,
    "lyapunov/gradient_horizon": 2.2589,
    "lyapunov/stability_margin": 0.4197,
    "lyapunov/trusted_fraction": 1.0,
    "lyapunov/floored": 0.0,
    "lyapunov/rnn.l0/max": -0.4427,
    "lyapunov/rnn.l1/max": -0.4514,
    "lyapunov/seconds": 0.023,
    "lyapunov/overhead": 1.2436,
    "aelle/performance": 0.9934,
    "aelle/failure_probability": 0.0112,
    "aelle/familiarity": 0.375,
}
OLD_STATE = {
    "history": {
        "seen": 2,
        "stride": 1,
        "measurements": [
            {
                "step": step,
                "epoch": 0,
                "exponents": torch.tensor([-0.4427, -0.4514]),
                "metrics": OLD_METRICS,
                "stderr": torch.tensor([0.0115, 0.0026]),
                "trusted": torch.tensor([True, True]),
                "dimension": 12,
                "length": 12,
                "layers": {"rnn.l0": [-0.4427, 0.0115], "rnn.l1": [-0.4514, 0.0026]},
                "latent": torch.tensor([0.3006, -1.3585, -0.6231, -1.2568, 0.5351, -0.3593, -1.5260, -0.8919]),
                "reached": reached,
            }
            for step, reached in ((0, None), (4, 0.7645))
        ],
    },
    "measuring_seconds": 0.0464,
    "training_seconds": 0.0615,
    "costs": [[16, 2, 0.023]],
}


@pytest.mark.parametrize("prefix", ["lyapunov", "encoder"])
def test_a_checkpoint_of_the_version_before_this_one_resumes(prefix: str, tmp_path: Path) -> None:
    """With its history under today's names; the run is read and drawn as a whole."""
    options: dict[str, Any] = {"k": 2, "prefix": prefix, "max_overhead": None, "figures": None}
    model, first = Regressor(nn.GRU(3, 6, 2, batch_first=True)), LyapunovSpectrumCallback(**options)
    fit = trainer(first, max_epochs=1)
    fit.fit(model, loader(), loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert first.state_key == f"LyapunovSpectrumCallback{{'prefix': '{prefix}', 'module': None}}"
    state = copy.deepcopy(OLD_STATE)
    for old in state["history"]["measurements"]:
        if prefix != "lyapunov":
            scored = {f"{prefix}/{key}": v for key, v in old["metrics"].items() if key.startswith("aelle")}
            ours = {key.replace("lyapunov/", f"{prefix}/"): v for key, v in old["metrics"].items() if key[0] == "l"}
            old["metrics"] = ours | scored
    checkpoint["callbacks"][first.state_key] = state
    torch.save(checkpoint, tmp_path / "old.ckpt")

    ours, stopper = LyapunovSpectrumCallback(**options), LyapunovEarlyStopping("chaotic", patience=9, prefix=prefix)
    with pytest.warns(UserWarning, match="another version of this package .*a measurement has no growth"):
        trainer(ours, stopper, max_epochs=2).fit(model, loader(), loader(), ckpt_path=tmp_path / "old.ckpt")
    assert [m.step for m in ours.history] == [0, 4, 8]
    old, new = ours.history[1], ours.history[2]
    assert old.metrics == {key.removeprefix("lyapunov/"): value for key, value in OLD_METRICS.items()}
    assert old.metrics.keys() < new.metrics.keys() and old.reached == 0.7645
    assert ours.history.values("max")[1] == -0.4427 and math.isnan(ours.history.values("gradient_gain")[1])
    assert torch.equal(old.error, 2 * old.stderr) and old.layer("rnn.l1").error.item() == pytest.approx(0.0052)
    assert {"spectrum", "training", "layers"} <= figures_of(ours.history).keys()
    page = write_report(ours.history, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "rnn.l1" in page and findings(ours.history)


@pytest.mark.parametrize("kind", STATES)
def test_a_state_of_another_version_is_told_of_once_and_training_goes_on(
    kind: str, clock: Clock, tmp_path: Path
) -> None:
    """Oracle for the weights: the run that was not broken off."""
    whole = Run(clock, at_every_epoch(tmp_path)).fit()
    change, told, steps = STATES[kind]
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    change(checkpoint["callbacks"][whole.ours.state_key])
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    resumed = Run(clock)
    with pytest.warns(UserWarning) as record:
        resumed.fit(tmp_path / "changed.ckpt")
    (text,) = [str(w.message) for w in record if str(w.message).startswith("Lyapunov")]
    assert text.startswith("LyapunovSpectrumCallback: the checkpoint is of another version")
    assert all(words in text for words in told)
    assert [m.step for m in resumed.ours.history] == steps
    assert differences(whole.end["weights"], resumed.end["weights"]) == []


def test_a_stoppers_state_of_another_version_is_told_of_once() -> None:
    stopper = LyapunovEarlyStopping("chaotic")
    with pytest.warns(UserWarning, match=r"another version.*state has no best; colour of state is not known") as record:
        stopper.load_state_dict({"counts": {"chaotic": 2}, "colour": 1})
    assert len(record) == 1 and stopper.state_dict() == {"counts": {"chaotic": 2}, "best": None}


def spoiled(state: Any, by: Any) -> Iterator[tuple[str, Any]]:
    """A state with each of its entries in turn left out, or replaced; with where it was."""
    keys = list(state) if isinstance(state, dict) else range(len(state)) if isinstance(state, list) else []
    for key in keys:
        changed = copy.copy(state)
        if by is not LEFT_OUT:
            changed[key] = by
        else:
            del changed[key]
        yield str(key), changed
        for place, inner in spoiled(state[key], by):
            changed = copy.copy(state)
            changed[key] = inner
            yield f"{key}/{place}", changed


LEFT_OUT = object()


@pytest.mark.parametrize("by", [LEFT_OUT, None, "x", -1, [], {}, torch.zeros(2)], ids=lambda by: type(by).__name__)
def test_no_entry_of_a_state_is_relied_on(by: Any) -> None:
    """Whichever is missing or of another kind: it loads, goes on, and can be saved again."""
    ours, stopper = (
        LyapunovSpectrumCallback(scorer=None),
        LyapunovEarlyStopping("converged", monitor="lyapunov/max", min_updates=0),
    )
    for measurement in (measured(step, 3, layers=2, keys=2) for step in range(5)):
        ours.history.append(measurement)
        stopper._decide(ours.history)
    ours._budget.note(Plan(16, 64, 3), 0.5)
    states = {"callback": ours.state_dict(), "stopper": stopper.state_dict()}
    tried = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, state in spoiled(states, by):
            again = LyapunovSpectrumCallback(scorer=None)
            stopping = LyapunovEarlyStopping("converged", monitor="lyapunov/max", min_updates=0)
            if "callback" in state:
                again.load_state_dict(state["callback"])
            if "stopper" in state:
                stopping.load_state_dict(state["stopper"])
            again.history.append(measured(5, 3, layers=2, keys=2))
            again._budget.choose(Plan(16, 64, 3), 100.0)
            stopping._decide(again.history)
            torch.save([again.state_dict(), stopping.state_dict()], io.BytesIO())
            tried += 1
    assert tried > 80


# ------------------------------------------------------------------ small enough for every checkpoint


def measured(step: int, size: int, layers: int = 1, keys: int = 20) -> Measurement:
    """As the callback makes them: with all fields, and each key a string of its own."""
    top = -step / 7
    names = [f"encoder.blocks.{i}.rnn" for i in range(layers)] if layers > 1 else []
    metrics = {name: top for name in ("max", *(f"key_{i}" for i in range(keys)))}
    return Measurement(
        step,
        step // 4,
        torch.linspace(0, -1, size),
        metrics | {f"{name}/max": top for name in names},
        stderr=torch.full((size,), 0.1),
        error=torch.full((size,), 0.2),
        settled=torch.ones(size, dtype=torch.bool),
        trusted=torch.ones(size, dtype=torch.bool),
        dimension=size,
        length=12,
        growth=torch.full((8,), top),
        growth_error=torch.full((8,), 0.1),
        gain=top,
        gain_error=0.1,
        growth_steps=12.0,
        layers={name: [top, 0.1, 1.0, 12 * top, 0.5, 12 * top] for name in names},
        latent=torch.zeros(64)[:16],
        reached=0.5,
    )


def saved_bytes(history: History) -> int:
    buffer = io.BytesIO()
    torch.save(history.state_dict(), buffer)
    return buffer.tell()


def test_a_view_is_saved_without_what_it_is_a_view_of() -> None:
    history = History()
    history.append(Measurement(0, 0, torch.zeros(10**6)[:4], {}))
    assert saved_bytes(history) < 10_000


@pytest.mark.parametrize(
    ("count", "size", "layers", "keys"),
    [
        *[(10**5, 32, 1, 20), (20_000, 1024, 4, 20), (20_000, 32, 64, 20)],
        *[(1000, 1, 1, 20), (1000, 256, 1, 20), (1000, 300, 2, 20), (1000, 8192, 1, 20)],
        *[(1000, 32, 1, 500), (1000, 600, 300, 40)],
    ],
)
def test_the_record_stays_under_a_megabyte(count: int, size: int, layers: int, keys: int) -> None:
    """As torch.save writes it: in between, where it is fullest, and at the end."""
    history, sizes = History(), []
    for step in range(count):
        if step < 600 or step % 64 == 0:  # those that are kept in the end are among them
            newest = measured(step, size, layers, keys)
        history.append(replace(newest, step=step))
        if step < 600 and (step % 50 == 49 or 250 <= step < 256):
            sizes.append(saved_bytes(history))
    sizes.append(saved_bytes(history))
    assert max(sizes) < 1_000_000
    assert sizes[-1] > 150_000 and len(history) > 2  # and the room is used
    assert (history[0].step, history[-1].step) == (0, count - 1)
