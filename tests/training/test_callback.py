"""The callback in real fits: fresh for whoever monitors it, and without a trace in what it watches."""

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Leaky, Looped, Manual, Recorder, Regressor, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from lightning_lyapunov import LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.lyapunov_session import FLOOR
from lightning_lyapunov.names import key_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)


def measure_always(module: str | None = None, **options: Any) -> LyapunovSpectrumCallback:
    return LyapunovSpectrumCallback(module, **{"max_overhead": None, "scorer": None, **options})


# ------------------------------------------------------------------ right numbers


def test_last_measurement_is_the_spectrum_of_the_final_weights_along_the_validation_inputs() -> None:
    """Oracle: lyapunov_spectrum called by hand on the trained layer and the first validation sequences."""
    pl.seed_everything(0)
    model, callback = Regressor(), measure_always(k=None)
    trainer(callback).fit(model, loader(), loader())
    x = next(iter(loader(batch=16)))[0]
    by_hand = lyapunov_spectrum(model.rnn, x)
    assert torch.equal(callback.spectrum.exponents, by_hand.exponents)
    assert torch.equal(callback.spectrum.error, by_hand.error)
    assert torch.equal(callback.spectrum.log_singular_values, by_hand.log_singular_values)
    assert callback.history[-1].metrics["max"] == float(by_hand.exponents[0])
    assert callback.history[-1].metrics["gradient_gain"] == by_hand.gain
    assert callback.spectrum.sequences == 16 and callback.spectrum.steps == callback.spectrum.transient == 6
    assert [m.step for m in callback.history] == [0, 4, 8]


def test_a_warm_start_keeps_the_frames_of_the_last_measurement() -> None:
    """Oracle: lyapunov_spectrum by hand on the weights of either moment, with frames kept in between."""
    pl.seed_everything(0)
    model, callback = Regressor(), measure_always(k=None, warm_start=True)
    initial, x, frames = copy.deepcopy(model.rnn), next(iter(loader(batch=16)))[0], Frames()
    trainer(callback, max_epochs=1).fit(model, loader(), loader())
    for rnn, measured in zip((initial, model.rnn), callback.history, strict=True):
        expected = lyapunov_spectrum(rnn, x, frames=frames).exponents.float()
        torch.testing.assert_close(measured.exponents, expected)
    assert not torch.allclose(expected, lyapunov_spectrum(model.rnn, x).exponents.float(), atol=1e-4)


def test_measurement_before_training_is_of_the_initial_weights() -> None:
    pl.seed_everything(0)
    model = Regressor()
    initial = copy.deepcopy(model.rnn)
    x = next(iter(loader(batch=16)))[0]
    expected = lyapunov_spectrum(initial, x, k=None).exponents.float()
    for options in (
        {},
        {"num_sanity_val_steps": 0},
    ):  # from the sanity check's batches, or from the first training batch
        callback = measure_always(k=None, num_sequences=8)
        trainer(callback, **options).fit(copy.deepcopy(model), loader(), loader())
        expected = lyapunov_spectrum(initial, x[:8]).exponents.float()
        assert callback.history[0].step == 0
        assert torch.equal(callback.history[0].exponents, expected)


@pytest.mark.parametrize(
    "cell", [nn.RNNCell(3, 6), nn.GRUCell(3, 6), nn.LSTMCell(3, 6)], ids=lambda c: type(c).__name__
)
def test_a_cell_in_a_python_loop_equals_the_layer_of_the_same_weights(cell: nn.Module) -> None:
    pl.seed_everything(0)
    model, callback = Looped(copy.deepcopy(cell)), measure_always(k=None, num_sequences=8)
    trainer(callback).fit(model, loader())
    layer = {nn.RNNCell: nn.RNN, nn.GRUCell: nn.GRU, nn.LSTMCell: nn.LSTM}[type(cell)](3, 6, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    x = list(loader())[-1][0]  # no validation: what drove it last, in training
    assert torch.allclose(callback.spectrum.exponents, lyapunov_spectrum(layer, x).exponents, atol=1e-12)


def test_a_cell_of_ones_own_is_measured_when_named() -> None:
    pl.seed_everything(0)
    model, callback = Looped(Leaky()), measure_always("cell", k=None, num_sequences=8)
    trainer(callback).fit(model, loader())
    x = list(loader())[-1][0].transpose(0, 1)
    expected = lyapunov_spectrum(model.cell, x, state=torch.zeros(8, 6)).exponents
    assert torch.allclose(callback.spectrum.exponents, expected, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 1}], ids=["epochs", "steps"])
def test_the_progress_bar_shows_the_largest_exponent(options: dict[str, Any]) -> None:
    ours = measure_always(prog_bar=True, **options)
    fit = trainer(ours)
    fit.fit(Regressor(), loader(), loader())
    assert fit.progress_bar_metrics["lyapunov_max"] == pytest.approx(ours.history[-1].metrics["max"], rel=1e-3)


def test_layers_of_a_stack_have_keys_of_their_own() -> None:
    model = Regressor(nn.GRU(3, 6, num_layers=2, batch_first=True, bidirectional=True))
    callback = measure_always()
    fit = trainer(callback)
    fit.fit(model, loader(), loader())
    layers = [f"lyapunov/rnn.l{n}{d}/max" for n in (0, 1) for d in ("", "_reverse")]
    values = [float(fit.callback_metrics[key]) for key in layers]
    assert max(values) == pytest.approx(float(fit.callback_metrics["lyapunov/max"]))


def by_autograd(rnn: nn.RNNBase, x: Tensor) -> tuple[float, float]:
    """Mean over sequences of the gain and of ln σ₁ from the whole state before to the last output."""
    gains, largest = [], []
    for row in x.double():
        state = torch.zeros(rnn.num_layers, 1, rnn.hidden_size).double()
        whole = torch.autograd.functional.jacobian(lambda h, row=row: rnn(row[None], h)[1].flatten(), state)
        whole = whole.flatten(1)
        top = whole[-rnn.hidden_size :]
        gains.append(float(top.square().sum().div(rnn.hidden_size).log() / 2))
        largest.append(float(torch.linalg.svdvals(whole)[0].log()))
    return sum(gains) / len(gains), sum(largest) / len(largest)


def test_a_stack_tells_what_a_gradient_grows_by_through_all_its_layers() -> None:
    """Oracle: autograd through the module. It is more than through either layer alone."""
    pl.seed_everything(0)
    model, ours = Regressor(nn.GRU(3, 6, num_layers=2, batch_first=True)), measure_always(k=None)
    fit = trainer(ours)
    fit.fit(model, loader(), loader())
    gain, largest = by_autograd(copy.deepcopy(model.rnn).double(), next(iter(loader(batch=16)))[0])
    assert float(fit.callback_metrics["lyapunov/gradient_gain"]) == pytest.approx(gain, abs=0.02)
    assert float(fit.callback_metrics["lyapunov/gradient_growth"]) == pytest.approx(largest, abs=0.05)
    assert ours.history[-1].growth_of == "" and gain > max(part.gain for part in ours.spectrum.parts.values())


def test_of_separate_layers_the_one_with_the_largest_gain_speaks_by_name() -> None:
    """Oracle: each by hand. What both are together depends on what lies between them."""

    class Two(Regressor):
        def __init__(self) -> None:
            super().__init__(nn.GRU(3, 6, batch_first=True))
            self.wild = nn.RNN(6, 6, batch_first=True)
            nn.init.orthogonal_(self.wild.weight_hh_l0, 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.wild(self.rnn(x)[0])[0][:, -1])

    pl.seed_everything(0)
    model, ours = Two(), measure_always(k=None)
    fit = trainer(ours)
    fit.fit(model, loader(), loader())
    x = next(iter(loader(batch=16)))[0]
    wild = lyapunov_spectrum(model.wild, model.rnn(x)[0].detach())
    assert wild.gain > lyapunov_spectrum(model.rnn, x).gain
    assert float(fit.callback_metrics["lyapunov/gradient_gain"]) == pytest.approx(wild.gain, abs=1e-5)
    newest = ours.history[-1]
    assert newest.growth_of == "wild" and newest.metrics["gradient_growth"] == pytest.approx(float(newest.growth[0]))
    assert math.isnan(ours.spectrum.gain) and newest.layers.keys() == {"rnn", "wild"}


def test_without_growth_its_keys_are_not_logged() -> None:
    ours = measure_always(growth=0)
    fit = trainer(ours)
    fit.fit(Regressor(), loader(), loader())
    assert "lyapunov/max" in fit.callback_metrics
    assert not any(key.startswith("lyapunov/gradient_") for key in fit.callback_metrics)
    newest = ours.history[-1]
    assert newest.growth is None and math.isnan(newest.gain)


@pytest.mark.parametrize("growth", [1, 3, 99])
def test_as_many_singular_values_as_asked_for_or_as_there_are(growth: int) -> None:
    ours = measure_always(growth=growth)
    trainer(ours, max_epochs=1).fit(Regressor(), loader(), loader())
    assert len(ours.history[-1].growth) == min(growth, 12)


def test_a_transient_that_is_given_is_obeyed() -> None:
    """Where no sequence is longer, there is nothing to measure, and it says so once."""
    ours = measure_always(transient=11)
    trainer(ours).fit(Regressor(), loader(), loader())
    assert (ours.spectrum.transient, ours.spectrum.steps) == (11, 1)
    with pytest.warns(UserWarning) as told:
        fit = trainer(measure_always(transient=12))
        fit.fit(Regressor(), loader(), loader())
    (text,) = [str(w.message) for w in told if str(w.message).startswith("LyapunovSpectrumCallback")]
    assert "transient must leave at least one of the 12 steps to measure; got 12" in text
    assert fit.current_epoch == 2 and "lyapunov/max" not in fit.callback_metrics


# ------------------------------------------------------------------ fresh for whoever monitors


class Reads(pl.Callback):
    """What a monitor reads, and the updates made when it reads it."""

    def __init__(self, hook: str) -> None:
        self.read: list[tuple[int, float]] = []
        setattr(self, hook, self._look)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.read.append((trainer.global_step, float(trainer.callback_metrics["lyapunov/max"])))


class EarlyStoppingReads(EarlyStopping):
    def __init__(self) -> None:
        super().__init__("lyapunov/max", patience=1000)
        self.read: list[tuple[int, float]] = []

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        self.read.append((trainer.global_step, float(trainer.callback_metrics["lyapunov/max"])))
        super()._run_early_stopping_check(trainer)


class SeeingPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Keeps the values it is given."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer, patience=1000)
        self.seen: list[float] = []

    def step(self, metrics: Any, *args: Any) -> None:
        self.seen.append(float(metrics))
        super().step(metrics, *args)


class Plateau(Regressor):
    """Reduces its learning rate on a plateau of the largest exponent."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        config = {"scheduler": SeeingPlateau(optimizer), "monitor": "lyapunov/max", "interval": "epoch", "strict": True}
        return {"optimizer": optimizer, "lr_scheduler": config}


SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "sparse": {"check_val_every_n_epoch": 2},
    "mid-epoch": {"val_check_interval": 0.5},
    "step-based": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "absent": {"limit_val_batches": 0},
    "accumulation": {"accumulate_grad_batches": 2},
    "no sanity check": {"num_sanity_val_steps": 0},
}


@pytest.mark.parametrize("schedule", [*SCHEDULES, "manual"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_monitors_read_the_value_of_the_current_weights(schedule: str, ours_first: bool, tmp_path: Any) -> None:
    """Oracle: the history, which says at which update each value was measured."""
    model = Manual() if schedule == "manual" else Plateau()
    ours, stopper = measure_always(), EarlyStoppingReads()
    checkpoint = ModelCheckpoint(tmp_path, monitor="lyapunov/max", save_top_k=-1, auto_insert_metric_name=False)
    hook = "on_train_epoch_end" if schedule == "absent" else "on_validation_end"  # where Optuna's callback looks
    reads = Reads(hook)
    callbacks = [ours, stopper, reads, checkpoint] if ours_first else [checkpoint, reads, stopper, ours]
    if schedule == "absent" and not ours_first:
        callbacks = [checkpoint, stopper, ours, reads]  # a plain callback reads in list order
    options = SCHEDULES.get(schedule, {})
    fit = trainer(*callbacks, max_epochs=4, enable_checkpointing=True, **options)
    fit.fit(model, loader(), loader())

    measured = {m.step: m.metrics["max"] for m in ours.history}
    assert len(measured) == len(ours.history), "measured twice for the same weights"
    assert 0 in measured
    seen = [*stopper.read, *reads.read]
    if isinstance(model, Plateau):
        ends = [4 * (epoch + 1) // fit.accumulate_grad_batches for epoch in range(4)]
        at_all = [0, *(step for step, _ in seen)]  # the last measurement may come after all of them
        per_epoch = [measured[max(step for step in at_all if step <= end)] for end in ends]
        assert fit.lr_scheduler_configs[0].scheduler.seen == pytest.approx(per_epoch, rel=1e-6)
    assert len(stopper.read) >= 2 and len(reads.read) >= 2
    for step, value in seen:
        assert value == pytest.approx(measured[step], rel=1e-6), f"stale at update {step}"
    assert checkpoint.best_model_score is not None
    assert float(checkpoint.best_model_score) == pytest.approx(min(value for _, value in reads.read), rel=1e-6)


# Optuna's callback looks when validation ends, so not where there is none.
@pytest.mark.parametrize("schedule", [*(name for name in SCHEDULES if name != "absent"), "manual"])
def test_optuna_is_told_the_value_of_the_epoch(schedule: str) -> None:
    optuna = pytest.importorskip("optuna")
    integration = pytest.importorskip("optuna_integration")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trial = optuna.create_study().ask()
    ours, reads = measure_always(), Reads("on_validation_end")
    pruning = integration.PyTorchLightningPruningCallback(trial, "lyapunov/max")
    model = Manual() if schedule == "manual" else Regressor()
    trainer(pruning, ours, reads, max_epochs=4, **SCHEDULES.get(schedule, {})).fit(model, loader(), loader())
    told = trial.storage.get_trial(trial._trial_id).intermediate_values
    measured = {m.step: m for m in ours.history}
    by_epoch: dict[int, float] = {}
    for step, _ in reads.read:  # the first report of an epoch counts
        by_epoch.setdefault(measured[step].epoch, measured[step].metrics["max"])
    assert told == pytest.approx(by_epoch, rel=1e-6) and len(told) >= 2


def test_stock_early_stopping_ends_a_run_that_became_chaotic() -> None:
    rnn = nn.RNN(3, 64, batch_first=True)
    nn.init.normal_(rnn.weight_hh_l0, std=3 / 8)
    stopper = EarlyStopping("lyapunov/max", mode="min", patience=100, divergence_threshold=0.0)
    fit = trainer(measure_always(), stopper, max_epochs=5)
    fit.fit(Regressor(rnn, lr=0.0), loader(), loader())
    assert fit.current_epoch == 1
    assert "diverg" in getattr(stopper, "stopping_reason_message", "diverged").lower()  # not told by Lightning 2.4


# ------------------------------------------------------------------ when


def test_thinning_counts_epochs_and_the_first_one_measures() -> None:
    ours = measure_always(every_n_epochs=2)
    trainer(ours, max_epochs=5).fit(Regressor(), loader(), loader())
    assert [m.step for m in ours.history] == [0, 4, 12, 20]


def test_thinning_counts_updates() -> None:
    ours = measure_always(every_n_train_steps=3)
    trainer(ours, max_epochs=2).fit(Regressor(), loader(), loader())
    assert [m.step for m in ours.history] == [0, 3, 6, 8]  # the last one, at the end, is promised


def test_budget_makes_measurements_smaller_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Oracle: a clock that says a whole measurement takes a second, others in proportion, and each epoch ten."""
    clock, plans = {"now": 0.0}, []
    spectrum, whole = Layers.spectrum, Plan(16, 12, 12)  # all there is of 12 steps and as many exponents

    def takes_a_second(self: Layers, ranks: Any, source: Any, plan: Plan, *args: Any, **options: Any) -> Any:
        plans.append(plan)
        clock["now"] += plan.work / whole.work
        return spectrum(self, ranks, source, plan, *args, **options)

    class TenSeconds(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            clock["now"] += 10.0

    monkeypatch.setattr(Layers, "spectrum", takes_a_second)
    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    ours = LyapunovSpectrumCallback(max_overhead=0.05, scorer=None)
    with caplog.at_level("INFO"):
        trainer(ours, TenSeconds(), max_epochs=20).fit(Regressor(), loader(), loader())
    assert plans[0] == whole.pilot  # nothing is known yet of what it costs
    assert [m.step for m in ours.history][:2] == [0, 4] and ours.history[-1].step == 80  # those that are promised
    overheads = [m.metrics["overhead"] for m in list(ours.history)[2:]]
    assert max(overheads) <= 0.05 and overheads[-1] > 0.03  # kept, and not left unused
    assert {plan.k for plan in plans[2:]} == {12} and min(plan.sequences for plan in plans) == 4
    assert sum("made smaller or spaced out" in record.message for record in caplog.records) == 1


def test_the_overhead_at_the_end_counts_the_last_pictures_and_the_report(tmp_path: Any) -> None:
    ours = LyapunovSpectrumCallback(max_overhead=None, scorer=None, report=str(tmp_path))
    fit = trainer(ours, logger=Recorder())
    fit.fit(Regressor(), loader(), loader())
    spent = {kind: seconds for kind, seconds in ours._budget.by_kind.items() if kind != "imports"}
    assert spent["pictures"] > 0 and spent["report"] > 0 and spent["recording"] > 0
    assert ours.overhead == pytest.approx(sum(spent.values()) / ours._clock.trained, rel=0.3)
    assert ours.overhead > ours.history[-1].metrics["overhead"]  # which was logged before the last pictures
    assert float(fit.callback_metrics["lyapunov/overhead"]) == pytest.approx(ours.history[-1].metrics["overhead"])


def test_a_barebones_run_is_left_alone() -> None:
    ours = measure_always()
    fit = pl.Trainer(max_epochs=1, barebones=True, accelerator="cpu", callbacks=[ours])
    fit.fit(Regressor(), loader(), loader())
    assert len(ours.history) == 0


def test_fast_dev_run_measures() -> None:
    ours = measure_always()
    trainer(ours, fast_dev_run=True).fit(Regressor(), loader(), loader())
    assert [m.step for m in ours.history] == [0, 1]


# ------------------------------------------------------------------ beside others


def test_pickles_before_the_fit() -> None:
    assert pickle.loads(pickle.dumps(LyapunovSpectrumCallback(k=3))).k == 3


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda thing: pickle.loads(pytest.importorskip("cloudpickle").dumps(thing)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_history_and_not_the_model(how: str) -> None:
    """Darts, Ray and joblib pickle the callbacks of a fitted model, neuralforecast copies them."""

    class Unpicklable(Regressor):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("the model was pickled with the callback")

    ours = measure_always(k=None, prefix="mine", metrics=["max"])
    trainer(ours).fit(Unpicklable(), loader(), loader())
    ours.note = "of the user"
    again = COPIES[how](ours)
    assert [m.step for m in again.history] == [0, 4, 8] and again.note == "of the user"
    assert (again.prefix, again.metrics, again.k) == ("mine", ["max"], None)
    trainer(again).fit(Regressor(), loader(), loader())  # a fit of its own, which does not go on from the copied one
    assert [m.step for m in again.history] == [0, 4, 8] and again.history.runs_before == 1
    assert ours.history.runs_before == 0


@pytest.mark.skipif(not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"), reason="of torch 2.6")
def test_a_safe_load_needs_no_more_than_the_class() -> None:
    """Oracle: what torch itself says that the file asks for."""
    ours = measure_always()
    trainer(ours).fit(Regressor(), loader(), loader())
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    with torch.serialization.safe_globals([]):
        asked = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    assert asked <= {"lightning_lyapunov.training.callback.LyapunovSpectrumCallback"}
    file.seek(0)
    again = torch.load(file, weights_only=True)  # importing the package has allowed the class
    assert [m.step for m in again.history] == [0, 4, 8]


def test_a_profiler_names_the_measurement() -> None:
    fit = trainer(measure_always(), profiler="simple")
    fit.fit(Regressor(), loader(), loader())
    assert len(fit.profiler.recorded_durations["[LyapunovSpectrumCallback]measure"]) == 3


def test_a_name_of_before_goes_on_working_with_one_warning() -> None:
    stopper = EarlyStopping("aelle/stability", mode="max", patience=99)
    ours = measure_always(scorer="general")
    with pytest.warns(UserWarning, match="'aelle/stability' is now called 'aelle/ends_stable_probability'") as told:
        fit = trainer(ours, stopper)
        fit.fit(Regressor(), loader(), loader())
    assert sum("is now called" in str(w.message) for w in told) == 1
    newest = ours.history[-1].metrics["aelle/ends_stable_probability"]
    assert float(fit.callback_metrics["aelle/stability"]) == pytest.approx(newest)
    assert float(stopper.best_score) > 0


def test_keys_are_groups_and_names_that_every_tracker_takes() -> None:
    """MLflow's rule is the strictest: letters, digits and ``_/. -``."""
    ours = measure_always(scorer="general")
    fit = trainer(ours)
    fit.fit(Regressor(nn.GRU(3, 6, 2, batch_first=True)), loader(), loader())
    keys = {key_of(name) for name in ours.history[-1].metrics}
    assert keys == fit.callback_metrics.keys() - {"train_loss", "val_loss"}
    assert len(keys) > 20 and all(re.fullmatch(r"(lyapunov|aelle)/[a-zA-Z0-9_./ -]+", key) for key in keys)


# ------------------------------------------------------------------ trouble


def test_a_failed_measurement_warns_once_and_training_goes_on() -> None:
    rnn = nn.RNN(3, 6, batch_first=True)
    fit = trainer(ours := measure_always(), max_epochs=3)

    class Poison(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.rnn.weight_hh_l0.data[0, 0] = math.nan

    fit.callbacks.append(Poison())
    with pytest.warns(UserWarning) as told:
        fit.fit(Regressor(rnn), loader(), loader())
    ours_told = [w for w in told if "could not be measured" in str(w.message)]
    assert len(ours_told) == 1 and "weight_ih_l0" in str(ours_told[0].message)
    assert fit.current_epoch == 3
    assert [m.step for m in ours.history] == [0, 4]


@pytest.mark.parametrize(
    ("module", "told"),
    [("encoder", r"no 'encoder'; it has .*rnn \(LSTM\)"), ("out", "must take")],
    ids=["unknown name", "not recurrent"],
)
def test_a_wrong_name_warns_and_training_goes_on(module: str, told: str) -> None:
    fit = trainer(measure_always(module))
    with pytest.warns(UserWarning, match=told):
        fit.fit(Regressor(), loader(), loader())
    assert fit.current_epoch == 2


def test_a_model_without_recurrence_is_told_what_it_has() -> None:
    class Flat(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[:, -1])

    with pytest.warns(UserWarning, match=r"no nn\.RNN.*rnn \(Linear\)"):
        trainer(measure_always()).fit(Flat(), loader(), loader())


def test_what_is_found_but_not_supported_is_named_once_and_skipped() -> None:
    class Doubling(nn.GRU):
        def forward(self, x: Tensor, state: Tensor | None = None) -> Any:
            return super().forward(2 * x, state)

    class Two(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.doubling = Doubling(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.doubling(x)[0])

    ours = measure_always(k=None)
    with pytest.warns(UserWarning) as told:
        for _ in range(2):
            trainer(ours).fit(Two(), loader(), loader())
    texts = [str(w.message) for w in told if str(w.message).startswith("LyapunovSpectrumCallback")]
    assert len(texts) == 2  # once in each fit
    assert all("doubling is not measured: Doubling replaces the forward pass of nn.GRU" in text for text in texts)
    assert len(ours.history) == 3
    assert ours.spectrum.dimension == 12  # of the LSTM alone


def test_monitors_go_on_without_a_value_where_they_can(tmp_path: Any) -> None:
    """As the warning says: EarlyStopping that is not strict; ModelCheckpoint has no such option."""
    fit = trainer(measure_always("encoder"), EarlyStopping("lyapunov/max", strict=False))
    with pytest.warns(UserWarning, match=r"EarlyStopping.* strict=False .* ModelCheckpoint that does cannot"):
        fit.fit(Regressor(), loader(), loader())
    assert fit.current_epoch == 2
    checkpoint = ModelCheckpoint(tmp_path, monitor="lyapunov/max")
    fit = trainer(measure_always("encoder"), checkpoint, enable_checkpointing=True)
    with pytest.warns(UserWarning), pytest.raises(MisconfigurationException, match="could not find the monitored key"):
        fit.fit(Regressor(), loader(), loader())


def test_a_layer_that_no_inputs_reach_is_named_and_left_out() -> None:
    model, ours = Regressor(), measure_always(k=None)
    model.idle = nn.GRU(3, 6)
    with pytest.warns(UserWarning, match="idle is not measured: no inputs reached it"):
        trainer(ours).fit(model, loader(), loader())
    assert len(ours.history) == 3 and ours.spectrum.dimension == 12


def test_states_that_overflow_are_told_and_training_goes_on() -> None:
    rnn = nn.RNN(3, 6, nonlinearity="relu", batch_first=True)
    nn.init.normal_(rnn.weight_hh_l0, std=1e35)
    fit = trainer(measure_always())
    with pytest.warns(UserWarning, match="the largest exponent is NaN: the states of the network overflow"):
        fit.fit(Regressor(rnn), loader(), loader())
    assert fit.current_epoch == 2


def test_dead_directions_are_floored_and_counted() -> None:
    rnn = nn.LSTM(3, 6, batch_first=True)
    nn.init.zeros_(rnn.weight_hh_l0)
    fit = trainer(ours := measure_always(k=None), max_epochs=1)
    fit.fit(Regressor(rnn, lr=0.0), loader(), loader())
    metrics = fit.callback_metrics
    assert metrics["lyapunov/floored"] == 6 and metrics["lyapunov/mean"] == FLOOR
    assert all(math.isfinite(v) for m in ours.history for v in m.metrics.values())


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"num_sequences": 0}, "num_sequences must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"transient": 64}, r"transient must lie in \[0, 63\].*got 64"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"growth": -1}, "growth must be at least 0"),
        ({"max_overhead": -1.0}, "max_overhead must be above 0"),
        ({"dtype": "float16"}, "dtype must be.*'float16'"),
        ({"prefix": "a/"}, "prefix must be.*'a/'"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_options_are_refused(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LyapunovSpectrumCallback(**option)


def test_a_clash_of_prefixes_is_refused() -> None:
    fit = trainer(measure_always(), measure_always("rnn"))
    with pytest.raises(MisconfigurationException, match="prefix 'lyapunov'"):
        fit.fit(Regressor(), loader(), loader())


def test_two_instances_with_prefixes_of_their_own() -> None:
    fit = trainer(measure_always(), measure_always(prefix="again"))
    fit.fit(Regressor(), loader(), loader())
    assert fit.callback_metrics["lyapunov/max"] == pytest.approx(float(fit.callback_metrics["again/max"]), abs=1e-6)


# ------------------------------------------------------------------ other ways to run


def test_the_other_lightning_package() -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        forward, loss, configure_optimizers = Regressor.forward, Regressor.loss, Regressor.configure_optimizers
        training_step, validation_step = Regressor.training_step, Regressor.validation_step

        def __init__(self) -> None:
            super().__init__()
            self.drop, self.rnn, self.out, self.lr = (
                nn.Identity(),
                nn.LSTM(3, 6, batch_first=True),
                nn.Linear(6, 1),
                0.01,
            )

    ours = measure_always()
    fit = other.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ours],
    )  # fmt: skip
    fit.fit(Other(), loader(), loader())
    assert [m.step for m in ours.history] == [0, 4, 8]


def test_lightning_cli_configures_it_by_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    name = "lightning_lyapunov.LyapunovSpectrumCallback"
    arguments = [f"--trainer.callbacks+={name}", "--trainer.callbacks.k=4", "--trainer.callbacks.max_overhead=null"]
    cli = LightningCLI(Regressor, run=False, args=arguments)
    (ours,) = (c for c in cli.trainer.callbacks if isinstance(c, LyapunovSpectrumCallback))
    assert ours.k == 4 and ours.max_overhead is None
    with pytest.raises(SystemExit):
        LightningCLI(Regressor, run=False, args=[arguments[0], "--trainer.callbacks.k=many"])
