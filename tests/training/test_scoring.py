"""The callback and its scorer: told what is true at the time, heard in the logs, and never in the way of training."""

import csv
import math
import pickle
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Leaky, Looped, Regressor, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_lyapunov import AeLLEScore, AeLLEScorer, LyapunovSpectrum, LyapunovSpectrumCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

KEYS = {
    "performance": "performance",
    "performance_low": "low",
    "performance_high": "high",
    "baseline": "baseline",
    "failure_probability": "failure_probability",
    "takeoff_probability": "takeoff_probability",
    "ends_stable_probability": "stability",
    "familiarity": "familiarity",
}


class Oracle(AeLLEScorer):
    """Says a function of what it is told, and keeps what it was told."""

    def __init__(self, familiarity: float = 0.9) -> None:
        self.familiarity = familiarity
        self.told: list[dict[str, Any]] = []
        self.said: list[AeLLEScore] = []

    def score(self, spectrum: LyapunovSpectrum | Tensor, **context: Any) -> AeLLEScore:
        assert isinstance(spectrum, LyapunovSpectrum)
        self.told.append({"spectrum": spectrum, **context})
        torch.randn(3)  # none of the run's
        skill = 1 / (2 + context["updates"])
        score = AeLLEScore(
            skill, skill / 2, 2 * skill, 1 - skill, skill, 0.75, self.familiarity, torch.zeros(4), skill / 3
        )
        self.said.append(score)
        return score


class Broken(AeLLEScorer):
    def __init__(self) -> None:
        pass

    def score(self, *_: Any, **__: Any) -> AeLLEScore:
        torch.randn(3)
        raise RuntimeError("no idea")


def scored(scorer: Any, **options: Any) -> LyapunovSpectrumCallback:
    return LyapunovSpectrumCallback(**{"max_overhead": None, "k": None, **options}, scorer=scorer)


def ours_told(told: Any) -> list[str]:
    return [str(w.message) for w in told if str(w.message).startswith("LyapunovSpectrumCallback")]


# ------------------------------------------------------------------ what is logged


def test_scores_are_logged_beside_the_spectrum_by_every_logger(tmp_path: Path) -> None:
    """Oracle: what the scorer said, read back from the files."""
    oracle = Oracle()
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path)]
    ours = scored(oracle, metrics="all")
    fit = trainer(ours, logger=loggers)
    fit.fit(Regressor(), loader(), loader())
    assert ours.score is oracle.said[-1] and len(oracle.said) == 3

    with open(Path(loggers[0].log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["lyapunov/max"]]
    events = EventAccumulator(loggers[1].log_dir).Reload()
    for key, field in KEYS.items():
        said = [getattr(score, field) for score in oracle.said]
        assert [float(row[f"aelle/{key}"]) for row in rows] == pytest.approx(said)  # so in the same rows
        points = events.Scalars(f"aelle/{key}")
        assert [point.value for point in points] == pytest.approx(said)
        assert [point.step for point in points] == [point.step for point in events.Scalars("lyapunov/max")]
        assert [m.metrics[f"aelle/{key}"] for m in ours.history] == said
        assert float(fit.callback_metrics[f"aelle/{key}"]) == pytest.approx(said[-1])


def test_without_a_scorer_there_are_no_scores() -> None:
    ours = scored(None, performance="val_loss")
    assert ours.score is None
    fit = trainer(ours)
    fit.fit(Regressor(), loader(), loader())
    assert ours.score is None and len(ours.history) == 3
    assert not any("aelle" in key for key in [*fit.callback_metrics, *ours.history[-1].metrics])


def test_what_is_not_finite_is_not_logged() -> None:
    class Unsure(Oracle):
        def score(self, *args: Any, **context: Any) -> AeLLEScore:
            return AeLLEScore(0.5, -math.inf, math.inf, math.nan, 0.5, 0.5, 0.5, torch.zeros(4), 0.5)

    ours = scored(Unsure())
    trainer(ours).fit(Regressor(), loader(), loader())
    logged = {key.removeprefix("aelle/") for key in ours.history[-1].metrics if key.startswith("aelle/")}
    assert KEYS.keys() - logged == {"performance_low", "performance_high", "failure_probability"}


def test_two_instances_have_scores_of_their_own() -> None:
    one, two = Oracle(0.8), Oracle(0.4)
    fit = trainer(scored(one), scored(two, prefix="again"))
    fit.fit(Regressor(), loader(), loader())
    assert float(fit.callback_metrics["aelle/familiarity"]) == pytest.approx(0.8)
    assert float(fit.callback_metrics["again/aelle/familiarity"]) == pytest.approx(0.4)


@pytest.mark.parametrize("check", [{}, {"val_check_interval": 0.5}, {"limit_val_batches": 0}], ids=str)
def test_early_stopping_on_a_score_reads_that_of_the_current_weights(check: dict[str, Any]) -> None:
    """Oracle: the scorer says 1 - 1 / (2 + updates)."""
    read: list[tuple[int, float]] = []

    class Reads(EarlyStopping):
        def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
            read.append((trainer.global_step, float(trainer.callback_metrics["aelle/failure_probability"])))
            super()._run_early_stopping_check(trainer)

    stopper = Reads("aelle/failure_probability", mode="min", patience=1000, divergence_threshold=0.85)
    fit = trainer(scored(Oracle()), stopper, max_epochs=5, **check)
    fit.fit(Regressor(), loader(), loader())
    assert read == [(step, pytest.approx(1 - 1 / (2 + step))) for step, _ in read]
    assert read[0][0] in (2, 4) and fit.global_step in (6, 8)


# ------------------------------------------------------------------ what the scorer is told


@pytest.mark.parametrize(
    ("layer", "architecture", "hidden_size"),
    [
        (nn.RNN(3, 5, nonlinearity="relu", batch_first=True), "rnn_relu", 5),
        (nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True), "gru", 4),
        (nn.LSTM(3, 7, batch_first=True), "lstm", 7),
        (nn.RNNCell(3, 6), "rnn", 6),
        (nn.GRUCell(3, 6), "gru", 6),
        (nn.LSTMCell(3, 6), "lstm", 6),
        (Leaky(), "Leaky", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_scorer_is_told_the_kind_of_network(layer: nn.Module, architecture: str, hidden_size: int | None) -> None:
    oracle = Oracle()
    looped = not isinstance(layer, nn.RNNBase)
    ours = scored(oracle, module="cell" if isinstance(layer, Leaky) else None)
    trainer(ours).fit(Looped(layer) if looped else Regressor(layer), loader(), None if looped else loader())
    assert [told["updates"] for told in oracle.told] == [0, 4, 8]
    assert oracle.told[-1]["spectrum"] is ours.spectrum
    for told in oracle.told:
        assert (told["architecture"], told["hidden_size"], told["performance"]) == (architecture, hidden_size, None)


def test_kinds_that_are_mixed_are_none_that_the_scorer_knows() -> None:
    class Mixed(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.idle = nn.GRU(3, 9, batch_first=True), nn.RNN(3, 30)
            self.rnn = nn.LSTM(9, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(self.first(x)[0])[0][:, -1])

    oracle = Oracle()
    with pytest.warns(UserWarning, match="idle is not measured"):
        trainer(scored(oracle)).fit(Mixed(), loader(), loader())
    assert (oracle.told[-1]["architecture"], oracle.told[-1]["hidden_size"]) == ("GRU+LSTM", 9)  # of what is measured
    assert oracle.told[-1]["spectrum"].dimension == 9 + 12


class Reports(Regressor):
    """Logs the number of updates as a metric, where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.mean = MeanMetric()

    def report(self, where: str, **options: Any) -> None:
        if where == self.where:
            self.log("updates", float(self.global_step), **options)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.report("validation_step")
        if self.where == "torchmetrics":
            self.mean(float(self.global_step))
            self.log("updates", self.mean)

    def on_validation_epoch_end(self) -> None:
        self.report("on_validation_epoch_end")

    def on_train_epoch_end(self) -> None:
        self.report("on_train_epoch_end")

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.is_last_batch:
            self.report("on_train_batch_end", on_step=False, on_epoch=True)


SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "mid-epoch": {"val_check_interval": 0.5},
    "step-based": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "sparse": {"check_val_every_n_epoch": 2},
    "absent": {"limit_val_batches": 0},
    "within": {"every_n_train_steps": 1},
}
# Updates of the measurements, and of the metric that the scorer was told with each. Four updates an epoch.
TOLD: dict[tuple[str, str], list[tuple[int, int | None]]] = {
    ("default", "validation_step"): [(0, None), (4, 4), (8, 8), (12, 12)],
    ("default", "torchmetrics"): [(0, None), (4, 4), (8, 8), (12, 12)],
    ("mid-epoch", "validation_step"): [(0, None), *((n, n) for n in (2, 4, 6, 8, 10, 12))],
    ("step-based", "validation_step"): [(0, None), (3, 3), (6, 6), (9, 9), (12, 12)],
    # No validation at the end of the last epoch: what is known at the end is what the one before said.
    ("sparse", "validation_step"): [(0, None), (8, 8), (12, 8)],
    ("within", "validation_step"): [
        (0, None), (1, None), (2, None), (3, None), (4, None), (5, 4), (6, 4), (7, 4), (8, 4), (9, 8), (10, 8),
        (11, 8), (12, 8),
    ],
    # Lightning calls this hook of the module after those of the callbacks: one validation old.
    ("default", "on_validation_epoch_end"): [(0, None), (4, None), (8, 4), (12, 8)],
    ("mid-epoch", "on_validation_epoch_end"): [(0, None), (2, None), *((n, n - 2) for n in (4, 6, 8, 10, 12))],
    # Lightning reduces a training metric when the epoch ends, after validation: one epoch old, unless there is none.
    ("default", "on_train_batch_end"): [(0, None), (4, None), (8, 4), (12, 8)],
    ("absent", "on_train_batch_end"): [(0, None), (4, 4), (8, 8), (12, 12)],
    ("absent", "on_train_epoch_end"): [(0, None), (4, None), (8, 4), (12, 8)],
}  # fmt: skip


@pytest.mark.parametrize(("schedule", "where"), TOLD, ids=" ".join)
def test_how_old_the_performance_is_that_the_scorer_is_told(schedule: str, where: str) -> None:
    """Oracle: the metric is the number of updates made when it was taken."""
    oracle, options = Oracle(), dict(SCHEDULES[schedule])
    thinning = {"every_n_train_steps": options.pop("every_n_train_steps", None)}
    ours = scored(oracle, performance="updates", performance_range=None, **thinning)
    trainer(ours, max_epochs=3, **options).fit(Reports(where), loader(), loader())
    assert [(told["updates"], told["performance"]) for told in oracle.told] == TOLD[schedule, where]
    # It says so once where the value is that of an earlier validation.
    old = where == "on_validation_epoch_end" or any(then for now, then in TOLD[schedule, where] if (then or now) < now)
    assert ("old performance" in ours._notices._told) == (old and "train" not in where)


@pytest.mark.parametrize(
    ("bounds", "value", "skill"),
    [
        ((0.1, 1.0), 0.55, 0.5),
        ((0.1, 1.0), 0.02, 0.0),
        ((2.0, 0.0), 0.5, 0.75),
        ((2.0, 0.0), 3.0, 0.0),
        ((2.0, 0.5), 0.25, 1.0),
        ((2.0, 0.0), math.nan, None),
        ((2.0, 0.0), math.inf, None),
        (None, 7.0, 7.0),
    ],
)
def test_skill_is_the_share_of_the_way_from_worst_to_best(bounds: Any, value: float, skill: float | None) -> None:
    class Constant(Regressor):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("metric", value)

    oracle = Oracle()
    ours = scored(oracle, performance="metric", performance_range=bounds)
    trainer(ours).fit(Constant(), loader(), loader())
    assert [told["performance"] for told in oracle.told] == [
        None,
        *[skill if skill is None else pytest.approx(skill)] * 2,
    ]


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}], ids=str)
def test_a_metric_that_nobody_logs_is_told_once(options: dict[str, Any]) -> None:
    oracle = Oracle()
    ours = scored(oracle, performance="val_acc")
    with pytest.warns(UserWarning) as told:
        trainer(ours, max_epochs=4, **options).fit(Regressor(), loader(), loader())
    (text,) = ours_told(told)
    assert "no metric 'val_acc' was logged so far" in text and "'train_loss'" in text
    assert [told["performance"] for told in oracle.told] == [None] * 5


def test_a_second_fit_starts_from_what_it_knows() -> None:
    oracle = Oracle()
    ours = scored(oracle, performance="updates")
    for _ in range(2):
        trainer(ours, max_epochs=1).fit(Reports("validation_step"), loader(), loader())
    assert [(told["updates"], told["performance"]) for told in oracle.told] == [(0, None), (4, 4)] * 2


# ------------------------------------------------------------------ never in the way


@pytest.mark.parametrize("scorer", [Oracle(), Broken(), "/no/such/file"], ids=["scoring", "raising", "missing"])
@pytest.mark.filterwarnings("ignore:LyapunovSpectrumCallback:UserWarning")
def test_weights_and_random_state_are_those_without_a_scorer(scorer: Any) -> None:
    def run(scorer: Any) -> tuple[dict[str, Tensor], Tensor]:
        pl.seed_everything(1)
        model = Regressor(dropout=0.2)
        ours = scored(scorer, performance="val_loss", performance_range=(1.0, 0.0))
        trainer(ours).fit(model, loader(shuffle=True), loader())
        assert len(ours.history) == 3
        return model.state_dict(), torch.get_rng_state()

    (without, state), (with_it, state_with) = run(None), run(scorer)
    assert without.keys() == with_it.keys()
    assert all(torch.equal(without[name], with_it[name]) for name in without)
    assert torch.equal(state, state_with)


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (Broken(), "the scorer failed, the spectrum is logged without scores: RuntimeError: no idea"),
        ("/no/such/file", "the scorer '/no/such/file' could not be loaded"),
    ],
    ids=["raising", "missing"],
)
def test_a_scorer_that_fails_warns_once_and_the_spectrum_is_logged(scorer: Any, told: str) -> None:
    ours = scored(scorer)
    with pytest.warns(UserWarning) as warned:
        for _ in range(2):
            fit = trainer(ours, EarlyStopping("aelle/performance", strict=False))
            fit.fit(Regressor(), loader(), loader())
    texts = ours_told(warned)
    assert len(texts) == 2  # once in each fit
    assert all(told in text and "strict=False" in text for text in texts)
    assert [m.step for m in ours.history] == [0, 4, 8] and ours.score is None
    assert "lyapunov/max" in fit.callback_metrics
    assert not any(key.startswith("aelle/") for m in ours.history for key in m.metrics)


def test_low_familiarity_warns_once() -> None:
    with pytest.warns(UserWarning) as told:
        trainer(scored(Oracle(familiarity=0.12))).fit(Regressor(), loader(), loader())
    (text,) = ours_told(told)
    assert "familiarity is 0.12" in text and "what aelle/ says is little more than a guess" in text


def test_the_scorer_goes_into_no_checkpoint(tmp_path: Path) -> None:
    model, ours = Regressor(), scored(Oracle())
    names = model.state_dict().keys()
    fit = trainer(ours)
    fit.fit(model, loader(), loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == names
    ((_, state),) = saved["callbacks"].items()
    assert state.keys() == {"history", "training_seconds", "budget"}
    assert state["history"]["measurements"][-1]["metrics"]["aelle/familiarity"] == 0.9


def test_it_pickles_before_the_fit() -> None:
    assert pickle.loads(pickle.dumps(scored("general"))).scorer == "general"
    assert isinstance(pickle.loads(pickle.dumps(scored(Oracle()))).scorer, Oracle)


# ------------------------------------------------------------------ how it is chosen


@pytest.mark.parametrize("general", [True, False], ids=["general", "path"])
def test_a_string_is_the_general_one_or_a_path(general: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, asked = Oracle(), []

    def loaded(name: str) -> Oracle:
        asked.append(name)
        torch.randn(3)  # as where weights are drawn before they are loaded
        return oracle

    monkeypatch.setattr(AeLLEScorer, "from_pretrained", lambda: loaded("the wheel"))
    monkeypatch.setattr(AeLLEScorer, "load", loaded)
    ours = LyapunovSpectrumCallback(max_overhead=None, **({} if general else {"scorer": "mine.safetensors"}))
    fit, model = trainer(ours), Regressor()
    ours.setup(fit, model, "fit")
    assert asked == []  # not before it is needed
    state = torch.get_rng_state()
    ours.on_fit_start(fit, model)
    assert asked == ["the wheel" if general else "mine.safetensors"]
    assert torch.equal(state, torch.get_rng_state())
    fit.fit(model, loader(), loader())
    assert len(oracle.said) == 3


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"scorer": object()}, "scorer must be 'general', a path, an AeLLEScorer or None; got an object of object"),
        ({"performance": "val_acc"}, r"performance needs performance_range.*'val_acc'"),
        ({"performance_range": (0.0, 1.0)}, "performance_range is that of performance, which is None"),
        ({"performance": "a", "performance_range": (1.0, 1.0)}, r"two different numbers; got \(1.0, 1.0\)"),
        ({"performance": "a", "performance_range": (math.inf, 0.0)}, "two different numbers; got"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_options_are_refused(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LyapunovSpectrumCallback(**option)


@pytest.mark.parametrize(
    ("given", "scorer"), [("null", None), ("general", "general"), ("runs/mine.safetensors", "runs/mine.safetensors")]
)
def test_lightning_cli_takes_a_scorer_by_name(
    given: str, scorer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    arguments = [
        "--trainer.callbacks+=lightning_lyapunov.LyapunovSpectrumCallback",
        f"--trainer.callbacks.scorer={given}",
        "--trainer.callbacks.performance=val_acc",
        "--trainer.callbacks.performance_range=[0.1, 1.0]",
    ]
    cli = LightningCLI(Regressor, run=False, args=arguments)
    (ours,) = (c for c in cli.trainer.callbacks if isinstance(c, LyapunovSpectrumCallback))
    assert ours.scorer == scorer
    assert (ours.performance, ours.performance_range) == ("val_acc", (0.1, 1.0))
    with pytest.raises(SystemExit):
        LightningCLI(Regressor, run=False, args=[arguments[0], "--trainer.callbacks.performance_range=[0.1]"])


@pytest.mark.skipif(
    not files("lightning_lyapunov").joinpath("aelle/weights/general.safetensors").is_file(),
    reason="the weights of the general scorer are not in this checkout",
)
def test_the_general_scorer_scores_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the scorer called by hand with what is known of the run."""
    score, heard = AeLLEScorer.score, []

    def listening(self: AeLLEScorer, spectrum: LyapunovSpectrum, **told: Any) -> AeLLEScore:
        heard.append(told)
        return score(self, spectrum, **told)

    monkeypatch.setattr(AeLLEScorer, "score", listening)
    pl.seed_everything(0)
    rnn = nn.LSTM(3, 32, batch_first=True)
    ours = LyapunovSpectrumCallback(max_overhead=None, performance="val_loss", performance_range=(1.0, 0.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*familiarity is")
        fit = trainer(ours)
        fit.fit(Regressor(rnn, lr=2e-3), loader(steps=12), loader())
    skill = min(max(1 - float(fit.callback_metrics["val_loss"]), 0.0), 1.0)
    known: dict[str, Any] = {
        "architecture": "lstm", "hidden_size": 32, "updates": 8, "performance": pytest.approx(skill),
        "learning_rate": pytest.approx(2e-3), "adaptive": True, "state_mean": ours.spectrum.state_mean,
        "state_spread": ours.spectrum.state_spread, "steps": 12,
    }  # fmt: skip
    gradient = heard[-1].pop("gradient_norm")
    assert heard[-1] == known and gradient > 0
    by_hand = score(AeLLEScorer.from_pretrained(), ours.spectrum, **heard[-1], gradient_norm=gradient)
    metrics = ours.history[-1].metrics
    for key, field in KEYS.items():
        assert 0 <= metrics[f"aelle/{key}"] <= 1
        assert metrics[f"aelle/{key}"] == pytest.approx(getattr(by_hand, field), abs=1e-5)
    assert all(f"aelle/{key}" in ours.history[0].metrics for key in KEYS)
