"""What the loggers hold after a fit, read back from where they wrote it."""

import csv
import importlib
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tracked import csv_rows, events, wandb_run
from tracked import mlflow_offline as mlflow_offline
from tracked import wandb_offline as wandb_offline

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.monitoring.loggers.trackers import log_measurement
from lightning_lyapunov.names import LOGGED, MEASURED, SCORED, key_of

HIDDEN, BATCHES = 4, 4  # batches an epoch
KEYS = {*MEASURED} - {"overhead"}
LATER = KEYS | {"overhead"}  # once there has been training to compare with
EPOCH_ENDS = [3, 7]  # where Lightning puts self.log of an epoch's end

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and the like; ours are asserted


class Model(pl.LightningModule):
    """A recurrent layer, a head, and the user's own logging."""

    def __init__(self, rnn: nn.Module | None = None) -> None:
        super().__init__()
        self.rnn = rnn or nn.LSTM(3, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.head(self.rnn(x)[0][:, -1]) - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * BATCHES, 8, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum((1, 2)).unsqueeze(1)), batch_size=2)


def fitted(
    tmp_path: Path,
    logger: Any,
    *,
    callbacks: list[pl.Callback] | None = None,
    model: Any = None,
    validate: bool = True,
    callback: dict[str, Any] | None = None,
    package: Any = pl,
    **trainer: Any,
) -> tuple[pl.Trainer, LyapunovSpectrumCallback]:
    """Two epochs on the CPU, the whole spectrum measured each time, and all of it logged."""
    arguments = {"k": None, "max_overhead": None, "scorer": None, "metrics": "all", **(callback or {})}
    monitor = LyapunovSpectrumCallback(**arguments)
    options = {
        "max_epochs": 2,
        "logger": logger,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 2 if validate else 0,
    }
    run = package.Trainer(**(options | trainer), callbacks=[*(callbacks or []), monitor])
    run.fit(model or Model(), data(), data() if validate else None)
    return run, monitor


def told(record: pytest.WarningsRecorder | list[Any]) -> list[str]:
    """The warnings that are ours."""
    return [str(w.message) for w in record if str(w.message).startswith("LyapunovSpectrumCallback")]


# ---------------------------------------------------------------- TensorBoard


def scalars(accumulator: EventAccumulator) -> dict[str, dict[int, float]]:
    """Every tag: step -> value; a step is written once."""
    # Lightning writes the epoch beside each row, so that one alone is there more than once.
    tags = {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"] if tag != "epoch"}
    assert all(len({e.step for e in points}) == len(points) for points in tags.values())
    return {tag: {e.step: e.value for e in points} for tag, points in tags.items()}


def assert_histogram(accumulator: EventAccumulator, steps: list[int], count: int) -> None:
    points = accumulator.Histograms("lyapunov/spectrum")
    assert [point.step for point in points] == steps
    for point in points:
        value = point.histogram_value
        assert value.num == count == sum(value.bucket)
        assert all(map(math.isfinite, [value.min, value.max, value.sum, *value.bucket_limit]))


@pytest.mark.parametrize("validate", [True, False])
def test_tensorboard_has_every_key_at_the_steps_of_the_users_own(tmp_path: Path, validate: bool) -> None:
    logger = TensorBoardLogger(tmp_path)
    _, monitor = fitted(tmp_path, logger, validate=validate)
    accumulator = events(logger.log_dir)
    found = scalars(accumulator)
    assert list(found["val_loss" if validate else "train_loss"]) == EPOCH_ENDS
    ours = {tag.removeprefix("lyapunov/"): points for tag, points in found.items() if tag.startswith("lyapunov/")}
    assert set(ours) == LATER
    for key, points in ours.items():
        assert list(points) == ([*EPOCH_ENDS] if key == "overhead" else [0, *EPOCH_ENDS])
        measured = [m.metrics[key] for m in monitor.history if key in m.metrics]
        assert list(points.values()) == pytest.approx(measured, rel=1e-5, abs=1e-6)
    assert_histogram(accumulator, [0, *EPOCH_ENDS], 2 * HIDDEN)


def test_tensorboard_histogram_leaves_dead_directions_out(tmp_path: Path) -> None:
    rnn = nn.RNN(3, HIDDEN, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        rnn.bias_ih_l0[:2] = -100.0  # two units that never fire
        rnn.bias_ih_l0[2:] = 1.0  # and two that always do
        rnn.weight_ih_l0 *= 0.05
        rnn.weight_hh_l0[2:, 2:] = 0.5 * torch.eye(2)
    logger = TensorBoardLogger(tmp_path)
    _, monitor = fitted(tmp_path, logger, model=Model(rnn.requires_grad_(False)))
    assert monitor.spectrum is not None
    alive = int(monitor.spectrum.exponents.isfinite().sum())
    assert 1 <= alive <= 2
    accumulator = events(logger.log_dir)
    assert_histogram(accumulator, [0, *EPOCH_ENDS], alive)
    found = scalars(accumulator)
    assert all(math.isfinite(v) for tag, points in found.items() if "lyapunov" in tag for v in points.values())
    assert found["lyapunov/floored"][7] == HIDDEN - alive


def test_tensorboard_histogram_of_exponents_that_differ_by_rounding_alone(tmp_path: Path) -> None:
    """As those of a layer that was conditioned: NumPy refuses to cut so narrow a range into bins."""
    logger, value = TensorBoardLogger(tmp_path), math.log(0.5)
    exponents = torch.tensor([math.nextafter(value, 0.0), value], dtype=torch.float64)
    log_measurement(logger, {}, 0, name="lyapunov/spectrum", exponents=exponents)
    logger.finalize("success")
    assert_histogram(events(logger.log_dir), [0], 2)


def test_no_histogram_of_nothing_and_none_if_not_wanted(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_measurement(logger, {}, 0, name="dead", exponents=torch.full((3,), -math.inf))
    fitted(tmp_path, logger, callback={"histogram": False}, max_epochs=1)
    accumulator = events(logger.log_dir)
    assert accumulator.Tags()["histograms"] == []
    assert "lyapunov/max" in accumulator.Tags()["scalars"]


@pytest.mark.parametrize("validate", [True, False])
def test_steps_within_an_epoch_are_all_written(tmp_path: Path, validate: bool) -> None:
    """log_every_n_steps thins what users log on a step; a measurement is too rare to be thinned."""
    logger = TensorBoardLogger(tmp_path)
    fitted(tmp_path, logger, validate=validate, callback={"every_n_train_steps": 2}, log_every_n_steps=50)
    accumulator = events(logger.log_dir)
    found = scalars(accumulator)["lyapunov/max"]
    assert len(found) == 5  # at 0, 2, 4, 6 and 8 updates
    assert min(found) == 0 and max(found) <= 8
    assert_histogram(accumulator, list(found), 2 * HIDDEN)


def test_two_instances_have_keys_of_their_own(tmp_path: Path) -> None:
    class Two(Model):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.GRU(HIDDEN, 3, batch_first=True)

        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return (self.second(self.rnn(x)[0])[0][:, -1].sum(-1, keepdim=True) - y).square().mean()

    logger = TensorBoardLogger(tmp_path)
    other = LyapunovSpectrumCallback("second", k=None, max_overhead=None, prefix="gru", scorer=None, metrics="all")
    fitted(tmp_path, logger, model=Two(), callbacks=[other], callback={"module": "rnn"})
    accumulator = events(logger.log_dir)
    found = scalars(accumulator)
    for prefix in ("lyapunov", "gru"):
        assert {tag.split("/", 1)[1] for tag in found if tag.startswith(f"{prefix}/")} == LATER
        assert list(found[f"{prefix}/max"]) == [0, *EPOCH_ENDS]
    assert [int(h.histogram_value.num) for h in accumulator.Histograms("gru/spectrum")] == [3] * 3
    assert found["gru/max"] != found["lyapunov/max"]


def test_two_instances_of_one_prefix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="Two LyapunovSpectrumCallbacks use the prefix 'lyapunov'"):
        fitted(tmp_path, False, callbacks=[LyapunovSpectrumCallback("rnn")])


def test_several_layers_add_a_key_for_each(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    model = Model(nn.LSTM(3, HIDDEN, num_layers=2, batch_first=True))
    fitted(tmp_path, logger, model=model)
    found = scalars(events(logger.log_dir))
    tops = {tag: points for tag, points in found.items() if tag.endswith("/max") and tag != "lyapunov/max"}
    assert set(tops) == {"lyapunov/rnn.l0/max", "lyapunov/rnn.l1/max"}
    for step, top in found["lyapunov/max"].items():
        assert max(points[step] for points in tops.values()) == pytest.approx(top)


# ---------------------------------------------------------------- which figures


def tags_of(logger: TensorBoardLogger) -> set[str]:
    return {tag for tag in events(logger.log_dir).Tags()["scalars"] if tag.startswith(("lyapunov/", "aelle/"))}


def test_by_default_loggers_get_nine_scalars_and_monitors_all(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    run, _ = fitted(tmp_path, logger, callback={"metrics": "default", "scorer": "general"})
    assert tags_of(logger) == {key_of(name) for name in LOGGED} and len(LOGGED) == 10
    assert {key_of(name) for name in (*MEASURED, *SCORED)} <= set(run.callback_metrics)


def test_loggers_get_all_or_what_is_named(tmp_path: Path) -> None:
    stack = Model(nn.LSTM(3, HIDDEN, num_layers=2, batch_first=True))
    logger = TensorBoardLogger(tmp_path)
    fitted(tmp_path, logger, model=stack, callback={"metrics": ["lyapunov/mean", "rnn.l1/max"]})
    assert tags_of(logger) == {"lyapunov/mean", "lyapunov/rnn.l1/max"}
    logger = TensorBoardLogger(tmp_path)
    fitted(tmp_path, logger, model=stack, callback={"metrics": "all", "scorer": "general"})
    layers = {"lyapunov/rnn.l0/max", "lyapunov/rnn.l1/max"}
    assert tags_of(logger) == {key_of(name) for name in (*MEASURED, *SCORED)} | layers


def test_the_opening_tab_of_tensorboard_is_in_a_sensible_order(tmp_path: Path) -> None:
    """It sorts by tag: what is predicted, what happens to gradients, the largest exponent, and what it cost."""
    logger = TensorBoardLogger(tmp_path)
    fitted(tmp_path, logger, callback={"metrics": "default", "scorer": "general"})
    names = [tag.rpartition("/")[2] for tag in sorted(tags_of(logger))]
    assert names == [
        *("failure_probability", "familiarity", "performance", "gradient_gain", "gradient_growth"),
        *("max", "max_error", "near_zero_fraction", "overhead", "verdict"),
    ]
    assert sorted(events(logger.log_dir).Tags()["scalars"])[:2] == ["aelle/failure_probability", "aelle/familiarity"]


def test_the_last_values_of_all_keys_are_of_the_same_measurement(tmp_path: Path) -> None:
    """Also of one that only the end of the fit promises, and whatever was not known this time."""
    logger = TensorBoardLogger(tmp_path)
    run, monitor = fitted(tmp_path, logger, callback={"metrics": "all", "scorer": "general", "every_n_epochs": 5})
    last = monitor.history[-1]
    assert last.step == run.global_step
    for tag, points in scalars(events(logger.log_dir)).items():
        if tag.startswith(("lyapunov/", "aelle/")):
            name = tag if tag.startswith("aelle/") else tag.removeprefix("lyapunov/")
            assert points[max(points)] == pytest.approx(last.metrics[name], rel=1e-5, abs=1e-6), tag
            assert float(run.callback_metrics[tag]) == pytest.approx(last.metrics[name], rel=1e-5, abs=1e-6), tag


# ---------------------------------------------------------------- Weights & Biases


@pytest.fixture
def wandb_logger(wandb_offline: dict[str, Any]) -> WandbLogger:
    return WandbLogger(**wandb_offline)


@pytest.mark.parametrize("validate", [True, False])
def test_wandb_file_has_scalars_and_histogram_on_the_users_axis(
    tmp_path: Path, wandb_logger: WandbLogger, validate: bool
) -> None:
    _, monitor = fitted(tmp_path, wandb_logger, validate=validate)
    wandb.finish()
    wandb.teardown()
    rows, kinds = wandb_run(tmp_path)
    own = [row for row in rows if ("val_loss" if validate else "train_loss") in row]
    assert [row["trainer/global_step"] for row in own] == EPOCH_ENDS
    with_max = [row for row in rows if "lyapunov/max" in row]
    assert [row["trainer/global_step"] for row in with_max] == [0, *EPOCH_ENDS]
    for row, measurement in zip(with_max, monitor.history, strict=True):
        ours = {key: value for key, value in row.items() if key.startswith("lyapunov/") and key != "lyapunov/spectrum"}
        found = {key_of(name): pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in measurement.metrics.items()}
        assert ours == found
        assert set(measurement.metrics) == (LATER if measurement.step else KEYS)
    drawn = [row for row in rows if "lyapunov/spectrum" in row]
    assert [row["trainer/global_step"] for row in drawn] == [0, *EPOCH_ENDS]
    for row in drawn:
        assert row["lyapunov/spectrum"]["_type"] == "histogram"
        assert sum(row["lyapunov/spectrum"]["values"]) == 2 * HIDDEN
        assert all(map(math.isfinite, row["lyapunov/spectrum"]["bins"]))
    assert kinds.count("artifact") == 1  # the table of measurements, at the end


def test_wandb_histogram_of_dead_directions(tmp_path: Path, wandb_logger: WandbLogger) -> None:
    log_measurement(wandb_logger, {}, 0, name="dead", exponents=torch.tensor([-math.inf, math.nan]))
    some = torch.tensor([0.5, -0.5, -math.inf, math.nan, math.inf])
    log_measurement(wandb_logger, {"scalar": 1.0}, 3, name="some", exponents=some)
    wandb.finish()
    wandb.teardown()
    (row,) = wandb_run(tmp_path)[0]
    assert "dead" not in row
    assert sum(row["some"]["values"]) == 2 and row["scalar"] == 1.0 and row["trainer/global_step"] == 3


# ---------------------------------------------------------------- MLflow


def mlflow_points(logger: MLFlowLogger, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in logger.experiment.get_metric_history(logger.run_id, key)]


def mlflow_pictures(logger: MLFlowLogger) -> set[tuple[str, int]]:
    """Tag and step of each, as its file is named: ``images/<tag, ~ for />+step+<step>+...png``, % where ~ was %."""
    names = [Path(file.path).name for file in logger.experiment.list_artifacts(logger.run_id, "images")]
    parts = [name.replace("%", "+").split("+") for name in names if name.endswith(".png")]
    return {(tag.replace("~", "/").replace("#", "/"), int(step)) for tag, _, step, *_ in parts}


@pytest.mark.parametrize("validate", [True, False])
def test_mlflow_has_scalars_pictures_and_a_table_on_the_users_axis(
    tmp_path: Path, mlflow_offline: dict[str, Any], validate: bool
) -> None:
    logger = MLFlowLogger(**mlflow_offline)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        _, monitor = fitted(tmp_path, logger, validate=validate)
    assert told(record) == []
    assert not any("Replacing" in str(w.message) for w in record)  # each key is taken as it is
    assert [step for step, _ in mlflow_points(logger, "val_loss" if validate else "train_loss")] == EPOCH_ENDS
    for key in LATER:
        steps = EPOCH_ENDS if key == "overhead" else [0, *EPOCH_ENDS]
        expected = [m.metrics[key] for m in monitor.history if key in m.metrics]
        found = mlflow_points(logger, f"lyapunov/{key}")
        assert [step for step, _ in found] == steps
        assert [value for _, value in found] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert mlflow_pictures(logger) == {
        (name, step)
        for name in ("lyapunov/overview", *(f"lyapunov_figures/{one}" for one in ("along", "spectrum", "training")))
        for step in (0, *EPOCH_ENDS)
    }
    table = logger.experiment.download_artifacts(logger.run_id, "lyapunov/measurements.csv", str(tmp_path))
    header, *rows = csv.reader(Path(table).read_text(encoding="utf-8").splitlines())
    assert header[:4] == ["update", "epoch", "skill so far", "lyapunov/max"]
    assert [int(row[0]) for row in rows] == [m.step for m in monitor.history]
    assert [float(row[3]) for row in rows] == [m.metrics["max"] for m in monitor.history]


# ---------------------------------------------------------------- both packages of Lightning


def model_of(package: Any) -> Any:
    """A Trainer takes modules of its own package alone."""

    class Other(package.LightningModule):
        loss, training_step, validation_step = Model.loss, Model.training_step, Model.validation_step
        configure_optimizers = Model.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    return Other()


@pytest.mark.parametrize(
    ("of_trainer", "of_loggers"),
    [
        ("lightning.pytorch", "pytorch_lightning"),
        ("pytorch_lightning", "lightning.pytorch"),
        ("pytorch_lightning", "pytorch_lightning"),
    ],
)
def test_trainer_and_loggers_of_either_package(
    tmp_path: Path, wandb_offline: dict[str, Any], mlflow_offline: dict[str, Any], of_trainer: str, of_loggers: str
) -> None:
    """All four trackers hold scalars, and pictures where they take them, at the same steps."""
    package, loggers = importlib.import_module(of_trainer), importlib.import_module(f"{of_loggers}.loggers")
    board, table = loggers.TensorBoardLogger(tmp_path), loggers.CSVLogger(tmp_path)
    weights, flow = loggers.WandbLogger(**wandb_offline), loggers.MLFlowLogger(**mlflow_offline)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fitted(tmp_path, [board, table, weights, flow], model=model_of(package), package=package)
    wandb.finish()
    wandb.teardown()
    assert told(record) == []
    steps, picture = [0, *EPOCH_ENDS], "lyapunov_figures/spectrum"
    accumulator, (rows, _) = events(board.log_dir), wandb_run(tmp_path)
    assert list(scalars(accumulator)["lyapunov/max"]) == steps
    assert_histogram(accumulator, steps, 2 * HIDDEN)
    assert picture in accumulator.Tags()["images"]
    assert [int(row["step"]) for row in csv_rows(table) if row["lyapunov/max"]] == steps
    for key in ("lyapunov/max", "lyapunov/spectrum", picture):
        assert [row["trainer/global_step"] for row in rows if key in row] == steps
    assert [step for step, _ in mlflow_points(flow, "lyapunov/max")] == steps
    assert {step for tag, step in mlflow_pictures(flow) if tag == picture} == set(steps)


# ---------------------------------------------------------------- CSV, none, several, unknown


@pytest.mark.parametrize("validate", [True, False])
def test_csv_has_one_row_for_each_measurement(tmp_path: Path, validate: bool) -> None:
    logger = CSVLogger(tmp_path)
    _, monitor = fitted(tmp_path, logger, validate=validate)
    rows = csv_rows(logger)
    ours = [row for row in rows if row["lyapunov/max"]]
    assert [int(row["step"]) for row in ours] == [0, *EPOCH_ENDS]
    assert [int(float(row["epoch"])) for row in ours] == [0, 0, 1]
    assert {column for column in rows[0] if column.startswith("lyapunov/")} == {f"lyapunov/{key}" for key in LATER}
    assert [float(row["lyapunov/max"]) for row in ours] == pytest.approx(
        [m.metrics["max"] for m in monitor.history], rel=1e-5
    )
    assert len(rows) == len(ours) + len([row for row in rows if row.get("val_loss") or row.get("train_loss")])


class Minimal(Logger):
    """A logger that no one has heard of, and that allows only what all loggers share."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "minimal"

    @property
    def version(self) -> int:
        return 0

    @property
    def experiment(self) -> Any:
        return object()  # has nothing to call

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        assert all(isinstance(value, float | int) and math.isfinite(value) for value in metrics.values())
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def steps_with_max(logger: Minimal) -> list[int]:
    return [step for step, metrics in logger.rows if "lyapunov/max" in metrics]


def test_unknown_logger_gets_the_scalars_and_nothing_else(tmp_path: Path) -> None:
    logger = Minimal()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fitted(tmp_path, logger)
    assert told(record) == []
    assert steps_with_max(logger) == [0, *EPOCH_ENDS]
    first = next(metrics for _, metrics in logger.rows if "lyapunov/max" in metrics)
    assert set(first) == {f"lyapunov/{key}" for key in KEYS} | {"epoch"}


def test_every_logger_is_served(tmp_path: Path) -> None:
    board, table, minimal = TensorBoardLogger(tmp_path), CSVLogger(tmp_path), Minimal()
    fitted(tmp_path, [minimal, table, board])
    accumulator = events(board.log_dir)
    assert list(scalars(accumulator)["lyapunov/max"]) == [0, *EPOCH_ENDS]
    assert_histogram(accumulator, [0, *EPOCH_ENDS], 2 * HIDDEN)
    assert [int(row["step"]) for row in csv_rows(table) if row["lyapunov/max"]] == [0, *EPOCH_ENDS]
    assert steps_with_max(minimal) == [0, *EPOCH_ENDS]


@pytest.mark.parametrize("validate", [True, False])
def test_without_a_logger_monitors_are_still_fed(tmp_path: Path, validate: bool) -> None:
    run, monitor = fitted(tmp_path, False, validate=validate)
    assert [m.step for m in monitor.history] == [0, 4, 8]
    assert float(run.callback_metrics["lyapunov/max"]) == pytest.approx(monitor.history[-1].metrics["max"])
    assert {f"lyapunov/{key}" for key in LATER} <= set(run.callback_metrics)


# ---------------------------------------------------------------- loggers that fail


class Broken(Minimal):
    """Refuses what is written to it directly within training, as a tracker that is down."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "lyapunov/max" in metrics:
            raise ConnectionError("no route to the tracker")
        super().log_metrics(metrics, step)


class BrokenBoard(TensorBoardLogger):
    """Has no room for histograms."""

    @property
    def experiment(self) -> Any:
        class Writer:
            def __getattr__(_, name: str) -> Any:
                return getattr(super(BrokenBoard, self).experiment, name)

            def add_histogram(_, *args: Any, **options: Any) -> None:
                raise OSError("disk full")

        return Writer()


def test_logger_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        run, monitor = fitted(tmp_path, Broken(), callback={"every_n_train_steps": 2}, validate=False)
    assert run.global_step == 8
    assert len(monitor.history) == 5
    (text,) = told(record)
    assert "Broken refused the measurement (ConnectionError: no route to the tracker)" in text


def test_histogram_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    board = BrokenBoard(tmp_path)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        fitted(tmp_path, board)
    (text,) = told(record)
    assert "BrokenBoard refused the measurement (OSError: disk full)" in text
    assert list(scalars(events(board.log_dir))["lyapunov/max"]) == [0, *EPOCH_ENDS]


def test_logger_that_fails_does_not_starve_the_next(tmp_path: Path) -> None:
    minimal = Minimal()
    fitted(tmp_path, [Broken(), minimal], callback={"every_n_train_steps": 2}, validate=False)
    assert len(steps_with_max(minimal)) == 5


# ---------------------------------------------------------------- special runs


def test_fast_dev_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        run, monitor = fitted(tmp_path, TensorBoardLogger(tmp_path), fast_dev_run=True)
    assert told(record) == []
    assert run.global_step == 1 and monitor.spectrum is not None
    assert not list(tmp_path.rglob("*tfevents*"))


def test_barebones_measures_nothing_and_says_nothing(tmp_path: Path) -> None:
    barebones = {"barebones": True} | dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "limit_val_batches")
    )
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        run, monitor = fitted(tmp_path, None, **barebones)
    assert told(record) == []
    assert not any("lyapunov" in str(w.message).lower() for w in record)
    assert run.global_step == 8
    assert monitor.spectrum is None and len(monitor.history) == 0


def test_sanity_check_alone_writes_no_measurement(tmp_path: Path) -> None:
    logger = Minimal()
    _, monitor = fitted(tmp_path, logger, max_steps=0)
    assert steps_with_max(logger) in ([], [0])
    assert len(monitor.history) == len(steps_with_max(logger))
