"""Early stopping in real fits whose measurements are replaced by constructed ones: it stops at the right one."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from made import history as history_of
from made import measured as made_by_hand
from made import of_an_older_version, rates_of

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.names import MEASURED, SCORED, key_of
from lightning_lyapunov.reading import rates
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.training.stock import warn_of_impatience, warn_of_skip
from lightning_lyapunov.training.stopping import LyapunovEarlyStopping

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)


@pytest.fixture(autouse=True)
def rated(monkeypatch: pytest.MonkeyPatch) -> None:
    """All conditions count as they stand, from the first update on, whatever the bank says today."""
    monkeypatch.setattr(rates, "shipped", rates_of)


Script = Sequence[float | dict[str, float]]


class Scripted(LyapunovSpectrumCallback):
    """Measures what it is told, one entry a measurement: the largest exponent, or scores as well; the last goes on.

    The first entry is that of the measurement before the first update. Exponents have settled, with an error of 0.02,
    and over its 12 steps a gradient grows as the largest says, 12 times it.
    """

    def __init__(self, script: Script, **options: Any) -> None:
        super().__init__(**{"max_overhead": None, "figures": None, **options})
        self.script, self.at = list(script), 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        assert self._session is not None
        self._session.measure = self.told  # type: ignore[method-assign]

    def told(self, step: int, epoch: int = 0, **_: Any) -> dict[str, float]:
        entry = self.script[min(self.at, len(self.script) - 1)]
        self.at += 1
        entry = {"max": entry} if isinstance(entry, float) else {"max": -0.1, **entry}
        top, when = entry["max"], {"step": step, "epoch": epoch}
        self.history.append(
            made_by_hand(top, rest=[top - 1], gain=12 * top, gain_error=0.05, length=12, metrics=entry, **when)
        )
        return dict(entry)


def stopped(
    stopper: LyapunovEarlyStopping, script: Script, *, first: bool = False, measuring: Any = None, **options: Any
) -> int:
    """Updates made by a run of up to eight epochs of four."""
    ours = Scripted(script, **(measuring or {"scorer": None}))
    fit = trainer(*((stopper, ours) if first else (ours, stopper)), **{"max_epochs": 8, **options})
    fit.fit(Regressor(), loader(), loader())
    return int(fit.global_step)


FAILING = {"aelle/failure_probability": 0.95, "aelle/familiarity": 0.6}
WITH_SCORER: dict[str, Any] = {"scorer": "general"}


# ------------------------------------------------------------------ each condition


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize(
    ("schedule", "updates"),
    [
        ({}, 16),  # measured at 0, 4, 8, 12, 16: chaotic from 8 on, for the third time at 16
        ({"limit_val_batches": 0}, 16),
        ({"val_check_interval": 0.5}, 8),  # at 0, 2, 4, 6, 8
    ],
)
def test_stops_at_the_third_chaotic_measurement_in_a_row(
    schedule: dict[str, Any], updates: int, first: bool, caplog: Any
) -> None:
    stopper = LyapunovEarlyStopping("chaotic", patience=3)
    with caplog.at_level("INFO"):
        assert stopped(stopper, [-0.1, -0.1, 0.2], first=first, **schedule) == updates
    assert stopper.reason == (
        "chaotic: the largest exponent is +0.20 ± 0.02 nats/step, and over your 12 steps a gradient grows 11-fold in a "
        "typical sequence (at most 30-fold): so it was beyond either error at 3 measurements in a row."
    )
    (told,) = [r.message for r in caplog.records if r.message.startswith("LyapunovEarlyStopping")]
    assert stopper.reason in told and f"after {updates} updates" in told


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_stops_within_an_epoch_at_the_very_update_where_it_was_measured(first: bool) -> None:
    """The update of the measurement, the third of six: not one later, whatever stands first in the list."""
    measuring = {"scorer": None, "every_n_train_steps": 3}
    assert stopped(LyapunovEarlyStopping("chaotic", patience=2), [0.0, 0.2], first=first, measuring=measuring) == 6


def test_a_measurement_between_begins_the_count_anew() -> None:
    script = [-0.1, 0.2, 0.2, -0.1, 0.2, 0.2, 0.2]
    assert stopped(LyapunovEarlyStopping("chaotic", patience=3), script) == 24
    assert stopped(LyapunovEarlyStopping("chaotic", patience=2), script) == 8


@pytest.mark.parametrize("top", [0.019, -0.1, 0.16])
def test_goes_on_where_chaos_is_not_beyond_its_error_or_is_mild(top: float) -> None:
    """Oracle: 12 · 0.16 = 1.92 nats, below 2."""
    stopper = LyapunovEarlyStopping("chaotic", patience=1)
    assert stopped(stopper, [-0.1, top]) == 32 and stopper.reason is None


@pytest.mark.parametrize(("before_training", "updates"), [(False, 8), (True, 4)])
def test_chaos_of_the_initial_network_counts_if_asked(before_training: bool, updates: int) -> None:
    stopper = LyapunovEarlyStopping("chaotic", patience=2, before_training=before_training)
    assert stopped(stopper, [0.2]) == updates


def test_stops_when_collapsed() -> None:
    """Oracle: over 12 steps 3.4 nats a step are 40.8 in all."""
    stopper = LyapunovEarlyStopping("collapsed", patience=2)
    assert stopped(stopper, [-0.1, -3.3, -3.4, -3.4]) == 12
    assert stopper.reason.startswith("collapsed: the largest exponent is -3.40")
    assert stopped(LyapunovEarlyStopping("collapsed", patience=2), [-0.1, -3.3]) == 32  # 39.6


def test_stops_when_the_spectrum_agrees_with_as_many_before_as_patience_says() -> None:
    stopper = LyapunovEarlyStopping("converged", patience=2)
    assert stopped(stopper, [-0.3, -0.1, -0.2, -0.3, -0.3, -0.301]) == 20  # with those at 12 and 16
    assert stopper.reason == "converged: the spectrum has not moved beyond its noise over the last 3 measurements."


def test_a_drift_within_the_noise_of_each_next_does_not_converge() -> None:
    """Oracle: steps of 0.01 are within the noise √2 · 0.01 of the next, two of them beyond it."""
    drift = [-0.1 - 0.01 * i for i in range(9)]
    assert stopped(LyapunovEarlyStopping("converged", patience=2), drift) == 32


@pytest.mark.parametrize(
    ("script", "options", "updates"),
    [
        ([FAILING], {}, 4),  # the prediction before the first update counts
        ([FAILING], {"patience": 1}, 0),
        ([FAILING | {"aelle/familiarity": 0.29}], {}, 32),
        ([FAILING | {"aelle/familiarity": 0.29}], {"familiarity": 0.2}, 4),
        ([FAILING | {"aelle/failure_probability": 0.89}], {}, 32),
        ([FAILING | {"aelle/failure_probability": 0.89}], {"probability": 0.8}, 4),
        ([-0.1, FAILING, FAILING], {}, 8),  # the first had no score
    ],
)
def test_stops_what_is_predicted_to_fail_by_a_scorer_that_knows(
    script: Script, options: dict[str, Any], updates: int
) -> None:
    stopper = LyapunovEarlyStopping("predicted_to_fail", **{"patience": 2, **options})
    assert stopped(stopper, script, measuring=WITH_SCORER) == updates
    assert (stopper.reason is None) == (updates == 32)
    assert stopper.reason is None or stopper.reason.startswith("predicted to fail: the scorer gives a probability of ")


def test_any_of_several_stops_and_all_that_speak_for_it_are_told() -> None:
    stopper = LyapunovEarlyStopping(["collapsed", "chaotic"], monitor="lyapunov/max", patience=2)
    assert stopped(stopper, [-0.1, 0.4, 0.3, 0.2]) == 8  # chaotic, though the key improves
    assert stopper.reason.startswith("chaotic") and ";" not in stopper.reason
    assert stopped(stopper, [-0.1, -0.1, 0.2, 0.3]) == 12
    assert stopper.reason.startswith("chaotic") and "; lyapunov/max has not improved on -0.1 at 2" in stopper.reason


# ------------------------------------------------------------------ a monitored key


@pytest.mark.parametrize(
    ("script", "options", "updates"),
    [
        ([0.9, 0.3, 0.2, 0.2, 0.25, 0.1], {}, 16),  # best at 8; 12 and 16 are no better
        ([0.9, 0.3, 0.4, 0.2, 0.3, 0.1, 0.2, 0.05], {}, 32),  # better every other time
        ([0.9, 0.3, 0.29, 0.28], {"min_delta": 0.05}, 12),
        ([0.0, 0.3, 0.2, 0.1], {"mode": "max"}, 12),
        ([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"mode": "max"}, 32),
        ([0.0, 0.3, 0.2, 0.1], {"before_training": True}, 8),  # the initial network had the best
    ],
)
def test_patience_of_a_monitored_key(script: Script, options: dict[str, Any], updates: int) -> None:
    assert stopped(LyapunovEarlyStopping(monitor="lyapunov/max", patience=2, **options), script) == updates


@pytest.mark.parametrize("every", [1, 3])
def test_patience_counts_measurements_not_epochs(every: int) -> None:
    """Measured in epochs 0, 3, 6, ..., the third without improvement is that of epoch 9, after 40 updates."""
    stopper = LyapunovEarlyStopping(monitor="lyapunov/max", patience=3)
    measuring = {"scorer": None, "every_n_epochs": every}
    assert stopped(stopper, [-0.1], measuring=measuring, max_epochs=20) == 4 * (1 + 3 * every)
    assert stopper.reason == "lyapunov/max has not improved on -0.1 at 3 measurements in a row; now it is -0.1."


def test_a_key_that_is_not_measured_does_not_count_and_is_told_once() -> None:
    stopper = LyapunovEarlyStopping(monitor="lyapunov/rnn.l7/max", patience=1)
    with pytest.warns(UserWarning) as told:
        assert stopped(stopper, [{"mean": -0.5}]) == 32
    missed = "'lyapunov/rnn.l7/max' was not measured and does not count; measured are lyapunov/max, lyapunov/mean."
    assert sum(missed in str(w.message) for w in told) == 1


def test_every_key_that_is_logged_can_be_monitored() -> None:
    """Oracle: what a fit with a scorer and two layers logs."""
    ours = LyapunovSpectrumCallback(max_overhead=None, figures=None)
    model = Regressor(torch.nn.GRU(3, 6, num_layers=2, batch_first=True))
    trainer(ours, max_epochs=1).fit(model, loader(), loader())
    for name in (logged := ours.history[-1].metrics):
        assert LyapunovEarlyStopping(monitor=key_of(name)).monitor == key_of(name)
    assert {name for name in logged if not name.startswith("rnn.")} == {*MEASURED, *SCORED}


# ------------------------------------------------------------------ a guest


def test_the_trainers_least_number_of_epochs_holds() -> None:
    assert stopped(LyapunovEarlyStopping("chaotic", patience=1), [-0.1, 0.2], min_epochs=5) == 20


def test_a_second_fit_counts_anew() -> None:
    stopper = LyapunovEarlyStopping("chaotic", patience=3)
    assert [stopped(stopper, [0.2]) for _ in range(2)] == [12, 12]


def test_a_run_of_a_single_batch_to_try_things_out_is_not_stopped() -> None:
    stopper = LyapunovEarlyStopping("chaotic", patience=1)
    stopped(stopper, [0.2], fast_dev_run=True)
    assert stopper.reason is None


def through_torch(stopper: LyapunovEarlyStopping) -> Any:
    """As a library's save and load: with nothing allowed but the class itself, and as little asked for."""
    torch.save({"callback": stopper}, buffer := io.BytesIO())
    buffer.seek(0)
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    # The class of ours is allowed as the package is imported; that of a subclass is all that is asked for.
    assert set(asked) <= {f"{type(stopper).__module__}.{type(stopper).__name__}"}
    buffer.seek(0)
    with torch.serialization.safe_globals([type(stopper)]):
        return torch.load(buffer, weights_only=True)["callback"]


def through_cloudpickle(stopper: LyapunovEarlyStopping) -> Any:
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(stopper))


WAYS: list[Callable[[Any], Any]] = [
    lambda stopper: pickle.loads(pickle.dumps(stopper)),
    copy.deepcopy,
    copy.copy,
    through_torch,
    through_cloudpickle,
]


class Marked(LyapunovEarlyStopping):
    """A subclass with a constructor and an attribute of its own."""

    def __init__(self, mark: int) -> None:
        super().__init__("collapsed", patience=5)
        self.mark = mark


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "deepcopy", "copy", "torch", "cloudpickle"])
def test_libraries_copy_and_save_it_with_how_far_it_has_come(way: Callable[[Any], Any]) -> None:
    """As darts' save and load, Ray, joblib and copies do: oracle, the original, which goes on beside the copy."""
    stopper = LyapunovEarlyStopping(["chaotic"], monitor="lyapunov/max", mode="max", patience=2, before_training=True)
    fresh = way(stopper)
    assert vars(fresh) == vars(stopper) and fresh.state_key == stopper.state_key
    assert decides(stopper, {"max": 0.4}, {"max": 0.3}) == [False, False]
    again = way(stopper)
    assert type(again) is LyapunovEarlyStopping and vars(again) == vars(stopper) and again.reason is None
    assert decides(again, {"max": 0.3}) == [True] and again.reason is not None and stopper.reason is None
    assert way(again).reason == again.reason
    marked = way(Marked(3))
    assert (type(marked), marked.mark, marked.conditions, marked.patience) == (Marked, 3, ["collapsed"], 5)


def test_keeps_a_state_of_its_own_for_each_choice() -> None:
    stopper = LyapunovEarlyStopping(["chaotic"], patience=7)
    others = [LyapunovEarlyStopping("collapsed"), LyapunovEarlyStopping("chaotic", prefix="again")]
    others += [LyapunovEarlyStopping(monitor="lyapunov/max", mode=mode) for mode in ("min", "max")]
    assert len({callback.state_key for callback in [stopper, *others]}) == 5


# ------------------------------------------------------------------ several processes


def test_rank_zero_decides_for_all() -> None:
    """Two ranks in lockstep, of which only rank zero has a history: as many broadcasts, and the same decision."""
    sent: list[str | None] = []

    def rank(number: int, broadcast: Callable[[Any], Any]) -> tuple[LyapunovEarlyStopping, Any, Any]:
        strategy = SimpleNamespace(broadcast=broadcast)
        fit = SimpleNamespace(
            world_size=2, is_global_zero=number == 0, strategy=strategy, should_stop=False, fast_dev_run=False,
            global_step=0, current_epoch=0,
        )  # fmt: skip
        return LyapunovEarlyStopping("chaotic", patience=2), fit, Scripted([0.2], scorer=None)

    zero, one = rank(0, lambda x: sent.append(x) or x), rank(1, lambda x: received.pop(0))
    decisions = []
    for step in (4, 8, 12):
        count = len(sent)
        stopper, fit, ours = zero
        fit.global_step = step
        ours.told(step)
        stopper.on_lyapunov_measurement(fit, ours)
        received = sent[count:]
        one[0].on_lyapunov_measurement(one[1], one[2])  # pops from an empty list if it expects a broadcast more
        assert received == []
        decisions.append((fit.should_stop, one[1].should_stop))
    assert decisions == [(False, False), (True, True), (True, True)]
    assert len(sent) == 2 and zero[0].reason == one[0].reason is not None


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "conditions or monitor is needed; conditions are 'chaotic', 'collapsed'"),
        ({"conditions": "unstable"}, "'predicted_to_fail'; got 'unstable'"),
        ({"conditions": ["chaotic", "dead"]}, "must be among 'chaotic'.*got 'dead'"),
        (
            {"monitor": "val_loss"},
            r"lyapunov/max, .*aelle/familiarity, or .*<layer>/max; got 'val_loss'.*EarlyStopping",
        ),
        ({"monitor": "lyapunov/max", "prefix": "encoder"}, "encoder/max, .*encoder/aelle/performance.*'lyapunov/max'"),
        ({"monitor": "lyapunov/max", "mode": "low"}, "mode must be 'min' or 'max'; got 'low'"),
        ({"conditions": "chaotic", "patience": 0}, "patience must be at least 1 measurement; got 0"),
        ({"monitor": "lyapunov/max", "min_delta": -1.0}, "min_delta must be at least 0; got -1"),
        ({"conditions": "chaotic", "probability": 90.0}, r"probability must lie in \[0, 1\]; got 90"),
        ({"conditions": "chaotic", "familiarity": -0.1}, r"familiarity must lie in \[0, 1\]; got -0.1"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LyapunovEarlyStopping(**options)


@pytest.mark.parametrize(
    ("callbacks", "stopper", "told"),
    [
        (
            [],
            {"conditions": "chaotic"},
            r"^LyapunovEarlyStopping reads what a LyapunovSpectrumCallback of the same Trainer measures: add "
            r"LyapunovSpectrumCallback\(prefix='lyapunov'\) to its callbacks; there is none\.$",
        ),
        ([{"prefix": "a"}], {"conditions": "chaotic"}, "those have 'a'"),
        (
            [{}],
            {"conditions": ["chaotic", "predicted_to_fail"]},
            r"\('predicted_to_fail'\) needs scores.*scorer='general' is",
        ),
        ([{}], {"monitor": "aelle/performance"}, r"\('aelle/performance'\) needs scores"),
    ],
)
def test_a_trainer_that_cannot_serve_it_is_refused(
    callbacks: list[dict[str, Any]], stopper: dict[str, Any], told: str
) -> None:
    ours = [LyapunovSpectrumCallback(**{"scorer": None, **options}) for options in callbacks]
    with pytest.raises(MisconfigurationException, match=told):
        trainer(*ours, LyapunovEarlyStopping(**stopper)).fit(Regressor(), loader(), loader())


def test_the_one_of_its_own_prefix_is_read() -> None:
    stopper = LyapunovEarlyStopping("chaotic", patience=2, prefix="b")
    ours = [Scripted([0.2], scorer=None, prefix="a"), Scripted([-0.1, -0.1, 0.2], scorer=None, prefix="b")]
    fit = trainer(stopper, *ours, max_epochs=8)
    fit.fit(Regressor(), loader(), loader())
    assert fit.global_step == 12


def test_lightning_cli_configures_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    name = "--trainer.callbacks+=lightning_lyapunov.training.stopping.LyapunovEarlyStopping"
    options = ["--trainer.callbacks.conditions=[chaotic, collapsed]", "--trainer.callbacks.patience=5"]
    cli = LightningCLI(Regressor, run=False, args=[name, *options])
    (ours,) = (c for c in cli.trainer.callbacks if isinstance(c, LyapunovEarlyStopping))
    assert (ours.conditions, ours.patience, ours.prefix) == (["chaotic", "collapsed"], 5, "lyapunov")
    with pytest.raises(SystemExit):
        LightningCLI(Regressor, run=False, args=[name, "--trainer.callbacks.conditions=unstable"])


# ------------------------------------------------------------------ stock EarlyStopping


class Asks(pl.Callback):
    """Looks for impatient monitors when training starts, and counts the measurements that they are shown."""

    def __init__(self, ours: LyapunovSpectrumCallback) -> None:
        self.ours, self.shown = ours, 0

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
        self.shown += trainer.global_step > 0  # the one before training is not logged for monitors

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        warn_of_impatience(trainer, self.ours)


class Counting(EarlyStopping):
    checks = 0

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        self.checks += 1


@pytest.mark.parametrize(
    ("measuring", "options", "ratio"),
    [
        ({"every_n_epochs": 3}, {}, 3.0),
        ({"every_n_epochs": 3}, {"val_check_interval": 0.5}, 6.0),
        ({"every_n_epochs": 4}, {"check_val_every_n_epoch": 2}, 2.0),
        ({"every_n_epochs": 3}, {"limit_val_batches": 0}, 3.0),
        ({"every_n_train_steps": 8}, {}, 2.0),
        ({"every_n_train_steps": 8}, {"val_check_interval": 1, "check_val_every_n_epoch": None}, 8.0),
        ({"every_n_train_steps": 4}, {"accumulate_grad_batches": 2}, 2.0),
        ({"every_n_epochs": 1}, {}, 1.0),
        ({"every_n_train_steps": 2}, {}, 1.0),  # twice an epoch, checked once
        ({"every_n_epochs": 1}, {"val_check_interval": 0.25}, 1.0),
    ],
)
def test_a_patience_that_is_eaten_is_told_with_the_one_that_is_needed(
    measuring: dict[str, Any], options: dict[str, Any], ratio: float, recwarn: Any
) -> None:
    """Oracle: the checks made and the measurements taken in twelve epochs."""
    ours, stopper = Scripted([-0.1], scorer=None, **measuring), Counting("lyapunov/max", patience=1)
    trainer(ours, stopper, asks := Asks(ours), max_epochs=12, **options).fit(Regressor(), loader(), loader())
    assert max(1.0, stopper.checks / asks.shown) == pytest.approx(ratio, rel=0.15)
    told = {str(w.message) for w in recwarn if str(w.message).startswith("EarlyStopping(")}
    assert len(told) == (ratio > 1)
    for text in told:
        assert f"patience={math.ceil(ratio)}; or use LyapunovEarlyStopping(monitor='lyapunov/max', patience=1)" in text


@pytest.mark.parametrize(
    ("monitor", "patience", "warns"),
    [
        ("lyapunov/max", 5, True),
        ("lyapunov/max", 6, False),  # two measurements
        ("aelle/performance", 5, True),
        ("lyapunov/rnn.l0/max", 5, True),
        ("val_loss", 1, False),
        ("lyapunov_max", 1, False),
    ],
)
def test_only_impatient_monitors_of_our_keys_are_told(monitor: str, patience: int, warns: bool, recwarn: Any) -> None:
    ours = Scripted([-0.1], every_n_epochs=3)
    fit = trainer(ours, Asks(ours), Counting(monitor, patience=patience), max_epochs=1)
    fit.fit(Regressor(), loader(), loader())
    assert any(str(w.message).startswith("EarlyStopping(") for w in recwarn) == warns


class Skips(pl.Callback):
    """Tells of a measurement left out at the end of the first epoch, as the callback that measures does."""

    def __init__(self, prefix: str = "lyapunov") -> None:
        self.ours, self.warned = SimpleNamespace(prefix=prefix, max_overhead=0.03), False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.warned = warn_of_skip(trainer, self.ours)


FALLING = [-0.1 * i for i in range(9)]


def test_a_measurement_left_out_is_told_to_who_waits_for_it_and_the_advice_works(recwarn: Any) -> None:
    """One update in four epochs: stock EarlyStopping ends on a value measured once, though each is better."""

    def updates(*callbacks: pl.Callback) -> int:
        fit = trainer(Scripted(FALLING, scorer=None, every_n_epochs=4), *callbacks, max_epochs=16)
        fit.fit(Regressor(), loader(), loader())
        return int(fit.global_step)

    skips = Skips()
    assert updates(EarlyStopping("lyapunov/max", patience=3), skips) == 16 and skips.warned
    (text,) = [str(w.message) for w in recwarn if str(w.message).startswith("A measurement was left out")]
    assert text == (
        "A measurement was left out to stay within max_overhead=0.03, and more may follow. "
        "EarlyStopping(monitor='lyapunov/max', patience=3) watches what is measured, which takes a value that it reads "
        "again for one without improvement. LyapunovEarlyStopping(monitor='lyapunov/max', patience=3) in its place "
        "counts measurements; max_overhead=None leaves no measurement out, a larger share fewer. "
        "(docs/warnings.md#old-values)"
    )
    advised = eval(text[text.index("LyapunovEarlyStopping(") : text.index(" in its place")])
    assert updates(advised) == 64


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: ModelCheckpoint(monitor="lyapunov/max"), "ModelCheckpoint(monitor='lyapunov/max') watches"),
        (lambda: ModelCheckpoint(monitor="val_loss"), None),
        (lambda: ModelCheckpoint(), None),
        (lambda: EarlyStopping("val_loss"), None),
        (
            lambda: EarlyStopping("lyapunov/gradient_horizon", mode="max", patience=4),
            "LyapunovEarlyStopping(monitor='lyapunov/gradient_horizon', patience=4, mode='max') in its place",
        ),
        (lambda: LyapunovEarlyStopping(monitor="lyapunov/max"), None),
    ],
)
def test_only_stock_callbacks_on_our_keys_are_told_of_what_is_left_out(
    made: Callable[[], pl.Callback], told: str | None, recwarn: Any
) -> None:
    fit = SimpleNamespace(callbacks=[made(), SimpleNamespace()])
    assert warn_of_skip(fit, SimpleNamespace(prefix="lyapunov", max_overhead=0.03)) == (told is not None)
    texts = [str(w.message) for w in recwarn if "was left out" in str(w.message)]
    assert len(texts) == (told is not None) and all(str(told) in text for text in texts)


def test_the_advice_is_of_the_prefix_that_measures(recwarn: Any) -> None:
    fit = SimpleNamespace(callbacks=[EarlyStopping("b/max", patience=4)])
    assert warn_of_skip(fit, SimpleNamespace(prefix="b", max_overhead=0.03))
    assert "LyapunovEarlyStopping(monitor='b/max', patience=4, prefix='b') in" in str(recwarn.pop().message)
    assert not warn_of_skip(fit, SimpleNamespace(prefix="a", max_overhead=0.03))


# ------------------------------------------------------------------ worked by hand, without a fit


def decides(
    stopper: LyapunovEarlyStopping, *measured: dict[str, float], start: int = 1, sources: Sequence[str] = ()
) -> list[bool]:
    """Whether it had stopped after each of some measurements, told by their metrics, and by what drove them."""
    history, trainer = History(stopper.prefix), SimpleNamespace(
        fast_dev_run=False, is_global_zero=True, world_size=1, should_stop=False, global_step=0, current_epoch=0
    )  # fmt: skip
    ours, stops = SimpleNamespace(prefix=stopper.prefix, history=history), []
    for step, metrics in enumerate(measured, start):
        source = sources[step - start] if sources else ""
        history.append(Measurement(step, 0, torch.tensor([metrics.get("max", -0.1)]), metrics, source=source))
        stopper.on_lyapunov_measurement(trainer, ours)
        stops.append(trainer.should_stop)
    return stops


def test_a_gain_of_just_the_least_that_counts_is_none_and_moves_no_mark() -> None:
    stopper = LyapunovEarlyStopping(monitor="lyapunov/max", patience=2, min_delta=0.5)
    tops = [1.0, 0.5, 0.25, 0.0, 0.125]  # the third has gained 0.75 on the first, and the others no more than 0.25
    assert decides(stopper, *({"max": top} for top in tops)) == [False, False, False, False, True]
    assert "has not improved on 0.25 at 2 measurements in a row; now it is 0.125." in stopper.reason


def test_what_training_data_drove_before_the_first_update_sets_no_mark_for_validation() -> None:
    """Oracle: by hand. −.9 before training would be the best for good; patience runs from the first by validation."""
    tops = [{"max": top} for top in (-0.9, -0.1, -0.2, -0.2, -0.2)]
    sources = ["training", *["validation"] * 4]
    stopper = LyapunovEarlyStopping(monitor="lyapunov/max", patience=2, before_training=True)
    assert decides(stopper, *tops, start=0, sources=sources) == [False] * 4 + [True]
    assert "has not improved on -0.2 at 2 measurements in a row" in stopper.reason
    alike = LyapunovEarlyStopping(monitor="lyapunov/max", patience=2, before_training=True)
    assert decides(alike, *tops, start=0) == [False, False, True, True, True]


def test_a_condition_is_counted_among_measurements_of_one_source() -> None:
    failing = [FAILING] * 4
    stopper = LyapunovEarlyStopping("predicted_to_fail", patience=2)
    assert decides(stopper, *failing, start=0, sources=["training", *["validation"] * 3]) == [False, False, True, True]


def test_a_resumed_stopper_keeps_to_its_source() -> None:
    """One of an older version, which did not know it, goes on with whatever comes."""
    for source, stops in (("validation", True), ("training", False)):
        stopper, again, older = (LyapunovEarlyStopping(monitor="lyapunov/max", patience=1) for _ in range(3))
        decides(stopper, {"max": 0.1}, sources=["validation"])
        again.load_state_dict(stopper.state_dict())
        assert decides(again, {"max": 0.2}, sources=[source]) == [stops]
        older.load_state_dict({"counts": {}, "best": 0.1})
        assert decides(older, {"max": 0.2}, sources=[source]) == [True]


def test_keys_of_a_prefix_find_the_figures_of_their_names() -> None:
    stopper = LyapunovEarlyStopping(monitor="b/aelle/performance", mode="max", patience=1, prefix="b")
    assert decides(stopper, {"aelle/performance": 0.5}, {"aelle/performance": 0.4}) == [False, True]
    assert "b/aelle/performance has not improved on 0.5 at 1 measurements in a row; now it is 0.4." in stopper.reason
    stopper = LyapunovEarlyStopping("predicted_to_fail", patience=1, prefix="b")
    assert decides(stopper, FAILING) == [True]
    assert "a probability of 95% that the network never learns (familiarity 0.60)" in stopper.reason


DIGITS = {"top": 0.2, "error": 0.03, "settled": False, "gain": 2.5, "length": 8}


@pytest.mark.parametrize(
    ("made", "stops"),
    [
        (made_by_hand(**DIGITS), False),
        (made_by_hand(**DIGITS | {"settled": True}), True),
        (made_by_hand(**DIGITS | {"settled": True, "gain": 1.9}), False),
        (made_by_hand(**DIGITS | {"settled": True, "gain": math.nan}), False),
        (made_by_hand(**DIGITS | {"settled": True, "error": 0.3}), False),
        (of_an_older_version(0.2, 0.015), False),
    ],
)
def test_the_recipe_of_the_readme_stops_for_settled_chaos_in_which_gradients_grow_alone(
    made: Measurement, stops: bool
) -> None:
    """The LSTM on the digits, which goes on to 92 %: of 8 steps 4 are measured, and nothing settles."""
    stopper = LyapunovEarlyStopping(["chaotic", "predicted_to_fail"], patience=3)
    reasons = [stopper._decide(history_of(*[made] * count)) for count in (1, 2, 3)]
    assert [reason is not None for reason in reasons] == [False, False, stops]


def test_a_network_that_collapsed_over_the_sequence_alone_is_told_so() -> None:
    """Oracle: e^(-95/64) = 23 %."""
    stopper = LyapunovEarlyStopping("collapsed", patience=1)
    reason = stopper._decide(history_of(made_by_hand(-0.5, settled=False, gain=-96.0)))
    assert reason is not None and "over your 64 steps at most 23 % of a perturbation is left after each step" in reason


AFTER_VALIDATION = {"_check_on_train_epoch_end": False}


@pytest.mark.parametrize(
    ("measuring", "checking", "fitting", "needed"),
    [
        ({"every_n_epochs": 3}, {}, {}, 3),  # a version that does not say when it checks: each epoch
        ({"every_n_epochs": 2}, {}, {}, 2),
        ({"every_n_epochs": 2}, {"monitor": None}, {}, None),
        ({"every_n_epochs": 3}, AFTER_VALIDATION, {"val_check_batch": 3}, 6),  # twice an epoch, and two batches over
        ({"every_n_epochs": 3}, AFTER_VALIDATION, {"enable_validation": False}, None),
        ({"every_n_epochs": 3}, AFTER_VALIDATION, {"val_check_batch": None}, None),
        ({"every_n_train_steps": 6}, AFTER_VALIDATION, {"val_check_batch": 2, "check_val_every_n_epoch": None}, 3),
        (
            {"every_n_epochs": 8},
            AFTER_VALIDATION,
            {"num_training_batches": math.inf, "val_check_batch": math.inf, "check_val_every_n_epoch": 2},
            4,
        ),
        ({"every_n_train_steps": 6}, {}, {"num_training_batches": math.inf}, None),
    ],
)
def test_patience_of_one_measurement_in_checks_worked_by_hand(
    measuring: dict[str, int], checking: dict[str, Any], fitting: dict[str, Any], needed: int | None, recwarn: Any
) -> None:
    """Of Lightning's EarlyStopping and Trainer no more than is looked at; eight batches an epoch, unless said."""
    fit = SimpleNamespace(num_training_batches=8, val_check_batch=4, check_val_every_n_epoch=1, enable_validation=True)
    vars(fit).update(fitting, accumulate_grad_batches=1)
    fit.callbacks = [type("EarlyStopping", (), {"monitor": "lyapunov/max", "patience": 1, **checking})()]
    warn_of_impatience(fit, Scripted([-0.1], scorer=None, **measuring))
    told, ((name, value),) = [str(w.message) for w in recwarn], measuring.items()
    assert len(told) == (needed is not None)
    assert all(f"is patience={needed};" in text and f"({name}={value})" in text for text in told)


def test_before_training_a_prediction_counts_whatever_else_is_asked_for() -> None:
    stopper = LyapunovEarlyStopping(["chaotic", "predicted_to_fail"], patience=1)
    assert decides(stopper, {"max": 0.2, **FAILING}, start=0) == [True]
    assert stopper.reason.startswith("predicted to fail") and "chaotic" not in stopper.reason


def test_shares_may_be_nothing_and_all_and_patience_is_of_three() -> None:
    for share in (0.0, 1.0):
        stopper = LyapunovEarlyStopping("predicted_to_fail", probability=share, familiarity=share)
        assert (stopper.probability, stopper.familiarity, stopper.patience) == (share, share, 3)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        LyapunovEarlyStopping("predicted_to_fail", probability=1.5)


@pytest.mark.parametrize("prefix", ["lyapunov", "b"])
def test_a_key_that_was_renamed_still_works_with_one_warning(prefix: str) -> None:
    with pytest.warns(UserWarning, match="stability' is now called") as told:
        stopper = LyapunovEarlyStopping(
            monitor=key_of("aelle/stability", prefix), mode="max", patience=1, prefix=prefix
        )
    assert len(told) == 1 and stopper.monitor == key_of("aelle/ends_stable_probability", prefix)
    said = [{"aelle/ends_stable_probability": value} for value in (0.5, 0.4)]
    assert decides(stopper, *said) == [False, True]


@pytest.mark.parametrize("monitor", ["lyapunov/rnn.l0/mean", "lyapunov/top", "encoder/rnn.l0/max", "a/b/c", "max"])
def test_keys_that_no_measurement_logs_are_refused(monitor: str) -> None:
    with pytest.raises(ValueError, match="must be a key measured"):
        LyapunovEarlyStopping(monitor=monitor)


# ------------------------------------------------------------------ what the bank says of it


RULES = [
    ["chaotic", "", 8, 5.0, 40, 38, 1, 0, 39],
    ["chaotic", "at chance", 8, 2.0],
    ["converged", "", None, 0.0],
    ["converged", "known", 4, 0.98, 50, 0, 50, 50, 46],
]


@pytest.fixture
def from_update_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = rates_of(until=800, longest=64, stops=RULES)
    monkeypatch.setattr(rates, "shipped", lambda: contents)


def at(*steps: int, **known: Any) -> History:
    return history_of(*(made_by_hand(**{"top": 0.2, "length": 64, "step": step} | known) for step in steps))


def reason(history: History, **options: Any) -> str | None:
    """Why it stops at the last measurement, of chaos or convergence, three in a row."""
    stopper = LyapunovEarlyStopping(["chaotic", "converged"], **options)
    return [stopper._decide(history_of(*list(history)[: i + 1])) for i in range(len(history))][-1]


@pytest.mark.usefixtures("from_update_eight")
@pytest.mark.parametrize(
    ("history", "stops"),
    [
        (at(8, 9, 10), True),
        (at(7, 8, 9), False),  # that at 7 does not count
        (at(8, 9, 10, gain=4.9), False),  # not by as much as is asked for
        (at(8, 9, 10, gain=4.9, skill=0.0), True),  # at chance less will do
        (at(8, 9, 10, skill=0.1), False),  # it learns
        (at(8, 9, 10, top=-0.1), False),
        (at(8, 9, 10, 11, top=-0.1), False),  # whether it has converged nobody can tell
        (at(8, 9, 10, 11, top=-0.1, skill=0.97), False),
        (at(8, 9, 10, 11, top=-0.1, skill=0.98), True),
        (at(8, 9, 10, top=-0.1, skill=0.98), False),
    ],
)
def test_conditions_count_from_when_and_from_how_much_the_bank_says(history: History, stops: bool) -> None:
    assert (reason(history) is not None) == stops


@pytest.mark.usefixtures("from_update_eight")
def test_the_reason_tells_how_often_it_is_right() -> None:
    told = "of 40 runs of the bank that were ended so, 2.5 % would have come above a skill of 0.5."
    assert str(reason(at(8, 9, 10))).endswith(f"at 3 measurements in a row; {told}")
    learnt = reason(at(8, 9, 10, 11, top=-0.1, skill=0.99))
    assert str(learnt).endswith("; of 50 runs of the bank that were ended so, 92 % lost no more than 0.02 of skill.")
    for other in (
        reason(at(798, 799, 801)),  # longer than the runs of the bank
        reason(at(8, 9, 10, length=65)),
        reason(at(8, 9, 10, skill=0.0)),  # too few were ended
        reason(at(8, 9), patience=2),
        reason(at(8, 9, 10), min_updates=3),
        reason(at(8, 9, 10), probability=0.8),
    ):
        assert other is not None and "bank" not in other


@pytest.mark.usefixtures("from_update_eight")
def test_least_updates_of_the_users_own_take_the_place_of_what_the_bank_says() -> None:
    assert reason(at(4, 5, 6, gain=3.0, skill=0.5), min_updates=4) is not None
    assert reason(at(3, 4, 5, gain=3.0), min_updates=4) is None
    assert str(reason(at(4, 5, 6, 7, top=-0.1), min_updates=4)).startswith("converged: ")
    with pytest.raises(ValueError, match="min_updates must be at least 0, or None; got -1"):
        LyapunovEarlyStopping("chaotic", min_updates=-1)


@pytest.mark.usefixtures("from_update_eight")
@pytest.mark.parametrize(
    ("conditions", "options", "warns"),
    [("converged", {}, True), ("chaotic", {}, False), ("converged", {"min_updates": 0}, False)],
)
def test_what_will_end_nothing_is_told(conditions: Any, options: dict[str, Any], warns: bool, recwarn: Any) -> None:
    stopped(LyapunovEarlyStopping(conditions, **options), [-0.1], max_epochs=1)
    told = [str(w.message) for w in recwarn if "ends no run here" in str(w.message)]
    text = (
        "LyapunovEarlyStopping: 'converged' ends no run here: on the bank it was wrong too often where the skill so "
        "far is not known (performance, performance_range). With min_updates it counts nevertheless, from that "
        "update on. (docs/warnings.md#never-stops)"
    )
    assert told == [text] * warns
