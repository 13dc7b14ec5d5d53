"""What each tracker keeps of a run as a whole, read back from where it wrote it; oracles are what it was told."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from fits import Regressor, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn
from tracked import csv_rows, events, quiet_mlflow, quiet_wandb, texts, wandb_state

from lightning_lyapunov import LyapunovMonitor, LyapunovSpectrumCallback
from lightning_lyapunov.monitoring import lyapunov_session
from lightning_lyapunov.monitoring.loggers import labels
from lightning_lyapunov.monitoring.loggers.labels import Labels, plain
from lightning_lyapunov.monitoring.loggers.trackers import STEP
from lightning_lyapunov.names import key_of
from lightning_lyapunov.reading.verdict import Verdict

HEALTHY = Verdict("healthy", "Nothing was found.", "Train on.")
ACT = Verdict("act", "Gradients explode: 19 of 20 did not learn.", "Lower the gain.")

pytestmark = pytest.mark.filterwarnings("ignore")


class Named(Regressor):
    """With hyperparameters of the user's, one of which is called as ours are."""

    def __init__(self, width: int = 6, lyapunov: Any = None) -> None:
        super().__init__(nn.LSTM(3, width, batch_first=True))
        self.save_hyperparameters()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A fit of two epochs: healthy at first, then to be acted on; in the end one figure is not known any more."""
    path, script = tmp_path_factory.mktemp("ran"), [HEALTHY, ACT, ACT]
    measured = lyapunov_session.LyapunovSession._figures

    def figures(session: Any) -> dict[str, float]:
        found = measured(session)
        return {name: v for name, v in found.items() if name != "near_zero_fraction" or len(session.history) < 2}

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.setattr(lyapunov_session, "verdict", lambda history: script[len(history) - 1])
        patch.setattr(lyapunov_session.LyapunovSession, "_figures", figures)
        weights, flow = WandbLogger(**quiet_wandb(path, patch)), MLFlowLogger(**quiet_mlflow(path, patch))
        board, table = TensorBoardLogger(path / "board"), CSVLogger(path / "table")
        ours = LyapunovSpectrumCallback(k=4, max_overhead=None, scorer=None, figures=False, report=str(path / "report"))
        stop = EarlyStopping("lyapunov/near_zero_fraction", patience=9)
        fit = trainer(stop, ours, logger=[board, table, weights, flow], max_epochs=2)
        fit.fit(Named(lyapunov={"k": 99}), loader(), loader())
        wandb.finish()
        wandb.teardown()
    yield SimpleNamespace(
        path=path, board=board, table=table, flow=flow, fit=fit, ours=ours, told=[str(w.message) for w in told]
    )


def test_nobody_refused_anything_and_a_monitor_of_what_is_not_known_any_more_goes_on(ran: SimpleNamespace) -> None:
    assert not [text for text in ran.told if "refused" in text or "could not" in text]
    assert ran.fit.current_epoch == 2 and len(ran.ours.history) == 3


def test_tensorboard_has_the_verdict_when_it_changes_and_at_the_end(ran: SimpleNamespace) -> None:
    board = events(ran.board.log_dir)
    first, second, last = (point.step for point in board.Scalars("lyapunov/verdict"))
    assert [point.value for point in board.Scalars("lyapunov/verdict")] == [0, 2, 2]
    assert texts(board, "lyapunov/verdict") == {
        first: "✓ **healthy**: Nothing was found.\n\n**What to do:** Train on.",
        **dict.fromkeys(
            (second, last),
            "✖ **act**: Gradients explode: 19 of 20 did not learn.\n\n**What to do:** Lower the gain.",
        ),
    }


def test_tensorboard_shows_our_settings_beside_the_users_hyperparameters(ran: SimpleNamespace) -> None:
    """Oracle: of a run it shows what was written first, which here holds all of the user's."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = events(ran.board.log_dir)

    def shown(tag: str) -> plugin_data_pb2.HParamsPluginData:
        return plugin_data_pb2.HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content)

    params = shown("_hparams_/session_start_info").session_start_info.hparams
    assert params["width"].number_value == 6 and params["lyapunov/k"].number_value == 99  # the user's own
    assert "lyapunov/figures" in params and "lyapunov/num_steps" not in params  # that is as it is by default
    metrics = [info.name.tag for info in shown("_hparams_/experiment").experiment.metric_infos]
    assert metrics[:2] == ["hp_metric", "lyapunov/verdict"]
    assert ran.board.hparams == {"width": 6, "lyapunov": {"k": 99}}  # which hparams.yaml is made of


def test_wandb_has_settings_the_last_verdict_one_alert_and_the_page(ran: SimpleNamespace) -> None:
    state = wandb_state(ran.path)
    summary = state["summary"]
    assert summary["lyapunov/verdict"] == 2 and summary["lyapunov/verdict_word"] == "act"
    assert summary["lyapunov/verdict_text"] == f"{ACT.text} {ACT.advice}"
    assert state["alerts"] == [("✖ lyapunov: act", f"{ACT.text} {ACT.advice}", "WARN")]
    assert [kind for kind, _ in state["artifacts"]].count("report") == 1
    assert state["config"]["lyapunov"] == {"k": 99}  # the user's own, which has the name that ours would have
    assert summary["lyapunov/max"] == pytest.approx(ran.ours.history[-1].metrics["max"])


def test_mlflow_has_settings_the_last_verdict_and_the_page(ran: SimpleNamespace) -> None:
    run = ran.flow.experiment.get_run(ran.flow.run_id)
    assert run.data.tags["lyapunov/verdict"] == "act"
    assert run.data.tags["lyapunov/verdict_text"] == f"{ACT.text} {ACT.advice}"
    assert run.data.params["lyapunov/num_steps"] == "64" and run.data.params["width"] == "6"
    assert run.data.params["lyapunov/k"] == "99"  # the user's own: what stands there cannot be changed
    files = {file.path for file in ran.flow.experiment.list_artifacts(ran.flow.run_id, "lyapunov")}
    assert files == {"lyapunov/lyapunov.html", "lyapunov/measurements.csv"}


def test_csv_has_the_same_columns_for_every_measurement(ran: SimpleNamespace) -> None:
    rows = [row for row in csv_rows(ran.table) if row["lyapunov/max"]]
    assert len(rows) == 3 and all(
        row[f"lyapunov/{name}"] for row in rows for name in ("overhead", "near_zero_fraction")
    )
    assert [row["lyapunov/overhead"] == "nan" for row in rows] == [True, False, False]
    assert [row["lyapunov/near_zero_fraction"] == "nan" for row in rows] == [False, False, True]


def test_the_last_value_of_every_key_is_of_the_last_measurement_everywhere(ran: SimpleNamespace) -> None:
    """Also of one that is not known of it: no tracker shows an old value beside new ones."""
    last = ran.ours.history[-1].metrics
    board, summary = events(ran.board.log_dir), wandb_state(ran.path)["summary"]
    flow = ran.flow.experiment.get_run(ran.flow.run_id).data.metrics
    names = [name for name in ran.ours._options().logged if not name.startswith(("aelle/", "closed_loop", "distance"))]
    assert "near_zero_fraction" in names and "near_zero_fraction" not in last
    for name in names:
        expected, key = last.get(name, math.nan), key_of(name)
        found = board.Scalars(key)[-1].value, summary[key], flow[key]
        assert found == pytest.approx([expected] * 3, rel=1e-5, nan_ok=True), name
    assert not any(map(math.isnan, ran.fit.callback_metrics.values()))  # which would end a run that watches it


# ---------------------------------------------------------------- by stand-ins


class Run:
    """A run of Weights & Biases."""

    id = "abc"

    def __init__(self, **config: Any) -> None:
        self.config, self.summary, self.step = dict(config), {}, 0
        self.alerts: list[str] = []
        self.rules: dict[str, dict[str, Any]] = {}
        self.files: list[tuple[str, str, str]] = []

    def define_metric(self, name: str, **rule: Any) -> None:
        self.rules[name] = rule

    def log(self, row: dict[str, Any], commit: bool = True) -> None: ...

    def alert(self, title: str, text: str, level: str) -> None:
        self.alerts.append(title)

    def log_artifact(self, path: str, name: str, type: str) -> None:
        self.files.append((path, name, type))


class WandbLogger_:
    """What holds one."""

    kinds = frozenset({"WandbLogger"})

    def __init__(self, run: Run) -> None:
        self.experiment = run


def test_a_run_that_was_alerted_of_is_not_again_and_one_alert_is_enough() -> None:
    run = Run()
    told = Labels("lyapunov", lambda logger, error: pytest.fail(str(error)))
    told.begin({}, alerted=True)
    told.write([WandbLogger_(run)], ACT, 0)
    assert run.alerts == []
    told.begin({}, alerted=False)
    for step, verdict in enumerate([ACT, HEALTHY, ACT]):
        told.write([WandbLogger_(run)], verdict, step)
    assert run.alerts == ["✖ lyapunov: act"] and run.summary["lyapunov/verdict_word"] == "act"


def test_settings_go_where_nothing_is() -> None:
    mine, empty = Run(lyapunov="mine"), Run()
    for run in (mine, empty):
        labels.log_settings(WandbLogger_(run), "lyapunov", {"k": 4})
    assert mine.config == {"lyapunov": "mine"} and empty.config == {"lyapunov": {"k": 4}}


def test_names_of_artifacts_are_such_as_wandb_takes() -> None:
    run = Run()
    labels.log_page(WandbLogger_(run), "a/b", Path("page.html"))
    assert run.files == [("page.html", "run-abc-a-b", "report")]


def test_what_must_not_happen_even_once_is_summed_up_by_its_worst_and_the_rest_by_the_last() -> None:
    from lightning_lyapunov.monitoring.loggers.trackers import prepare

    run = Run()
    prepare(WandbLogger_(run), "lyapunov")
    told = {name.removeprefix("lyapunov/"): rule.get("summary") for name, rule in run.rules.items()}
    assert told == {"*": None, "aelle/*": None, "trusted_fraction": "min", "floored": "max", "seconds": "max"}
    assert all(rule["step_metric"] == STEP for rule in run.rules.values())


def test_a_tracker_that_refuses_is_told_of_and_the_next_is_served() -> None:
    broken, good, troubles = SimpleNamespace(kinds=()), Run(), []

    class Broken(WandbLogger_):
        experiment = property(lambda self: (_ for _ in ()).throw(OSError("down")), lambda self, value: None)

    told = Labels("lyapunov", lambda logger, error: troubles.append(str(error)))
    told.write([Broken(good), WandbLogger_(good)], ACT, 0)
    told.keep([broken], Path("page.html"))  # a logger of no known kind is left alone
    assert troubles == ["down"] and good.summary["lyapunov/verdict_word"] == "act"


def test_settings_are_plain_values() -> None:
    class Scorer: ...

    told = {"module": ["a", None], "step": {"rnn": plain}, "scorer": Scorer(), "path": Path("x"), "odd": [Scorer()]}
    assert plain(told) == {
        "module": ["a", None],
        "step": {"rnn": "plain"},
        "scorer": "Scorer",
        "path": "x",
        "odd": "list",
    }


def test_a_plain_loop_is_labelled_alike_and_a_function_gets_the_same_keys_each_time(tmp_path: Path) -> None:
    run, rows, model = Run(mine=1), [], nn.LSTM(3, 6)
    with LyapunovMonitor(
        model, k=3, scorer=None, figures=False, metrics="all", to=[run, lambda figures, step: rows.append(figures)]
    ) as monitor:
        for step in range(2):
            with monitor.record():
                model(torch.randn(20, 8, 3))
            monitor.measure(step)
        page = monitor.report(tmp_path)
    said = monitor.verdict
    assert said is not None and run.summary["lyapunov/verdict_word"] == said.word
    assert run.config["lyapunov"]["k"] == 3 and run.config["mine"] == 1
    assert run.files == [(str(page), "run-abc-lyapunov", "report")]
    assert list(rows[0]) == list(rows[1]) and {"lyapunov/overhead", "lyapunov/mean"} <= set(rows[0])
    assert not any(key.startswith(("aelle/", "lyapunov/closed_loop", "lyapunov/distance")) for key in rows[0])


def test_hyperparameters_of_a_user_who_writes_them_by_hand_are_the_first(tmp_path: Path) -> None:
    """Oracle: TensorBoard shows the first; with ``default_hp_metric=False`` Lightning leaves it to the user."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    class ByHand(Named):
        def on_train_start(self) -> None:
            self.logger.log_hyperparams({"by": "hand"}, {"mine": 0.0})

    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    ours = LyapunovSpectrumCallback(k=4, scorer=None, figures=False)
    pl.Trainer(
        max_steps=1, logger=logger, callbacks=[ours], enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, accelerator="cpu",
    ).fit(ByHand(), loader(), loader())  # fmt: skip
    content = events(logger.log_dir).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    params = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert dict(params).keys() == {"by"}
