"""What guests of all kinds have in common, shown by a small one of our own: it weighs the network's last layer.

Oracles: the norm of the weights, and the recurrent callback beside it, which sees nothing of it.
"""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from fits import Recorder, Regressor, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.monitoring.budget import Plan
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.loggers.charts import titled
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.watch import Source, Watch
from lightning_lyapunov.names import Quantity, Table
from lightning_lyapunov.reading.kept import Kept
from lightning_lyapunov.training.guest import Guest

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

NAMES = {
    "norm": Quantity("norm", "kg", "norm", "norm of the weights", "eat less"),
    "<part>/norm": Quantity("<part>/norm", "kg", "norm of a part", "norm of each parameter", "look at it"),
}


@dataclass(frozen=True)
class Weighed(Kept):
    step: int
    epoch: int
    metrics: dict[str, float]
    source: str = ""


@dataclass(frozen=True)
class WeighingOptions(CommonOptions):
    prefix: str = "scales"

    table: ClassVar[Table] = Table(NAMES, ("norm",), "<part>/norm")


class Batches:
    """Counts the batches that it is told of."""

    seconds, batches_needed = 0.0, 1

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.counts = layer, {"validation": 0, "training": 0}

    def begin_batch(self, source: Source) -> None:
        self.counts[source] += 1

    def end_turn(self, source: Source, *, is_again: bool) -> None: ...

    def end_batch(self, source: Source) -> None: ...

    def forget(self, source: Source) -> None:
        self.counts[source] = 0

    def have_recorded(self, source: Source | None = None) -> bool:
        return any(count for of, count in self.counts.items() if source in (None, of))

    @contextmanager
    def paused(self) -> Iterator[None]:
        yield

    def remove(self) -> None:
        self.counts.clear()


class WeighingSession(Session):
    options_type, kind = WeighingOptions, Weighed
    measures, saves, fewest = "the weight", "a smaller num_batches", Plan(1, 1, 1)
    plans: ClassVar[list[Plan]] = []

    def _watching(self, model: nn.Module) -> Watch:
        if not hasattr(model, "out"):
            raise ValueError("module: the model has no part called out.")
        return Batches(model.out)

    def _panels(self) -> Panels:
        def charts(prefix: str, names: Sequence[str]) -> dict[str, Any]:
            return {"Scales": {titled(NAMES, names, "norm"): ("norm", "<part>/norm")}}

        return Panels(self.options.figures, self.warn_of_logger, charts=charts, columns=("norm",), beside=())

    def _whole(self, source: Source) -> Plan:
        return Plan(8, 1, 4)

    def _spectrum(self, plan: Plan, source: Source) -> dict[str, float]:
        self.plans.append(plan)
        layer = self.watch.layer
        return {name: float(value.detach().norm()) for name, value in layer.named_parameters()}

    def _figures(self) -> dict[str, float]:
        parts = {f"{name}/norm": value for name, value in self.spectrum.items()}
        return {"norm": math.hypot(*self.spectrum.values()), **parts}

    def _keep(self, figures: dict[str, float], plan: Plan, whole: Plan) -> None:
        at = self._moment
        self.history.append(Weighed(at.step, at.epoch, dict(figures), at.source))

    def _news(self) -> list[Any]:
        return []

    def _drawn(self, history: Any) -> Mapping[str, Any]:
        return {}

    def _report(self) -> Any:
        def write(path: Path, settings: Mapping[str, Any]) -> Path:
            path.write_text(f"{len(self.history)} of {self._model_name}: {', '.join(settings)}", encoding="utf-8")
            return path

        return write


class Weighing(Guest):
    _session_type, _shown, _acts = WeighingSession, "norm", "on_weighing"

    def __init__(
        self, module: str | None = None, every_n_epochs: int = 1, prefix: str = "scales", **other: Any
    ) -> None:
        self.name = "scales"
        told = {"every_n_train_steps": None, "report": None, "prog_bar": False, "k": None, "dtype": None}
        told |= {"tolerance": None, "max_overhead": None, "metrics": "default", "figures": False}
        super().__init__(module, every_n_epochs=every_n_epochs, prefix=prefix, **(told | other))


def recurrent(**options: Any) -> LyapunovSpectrumCallback:
    return LyapunovSpectrumCallback(**{"max_overhead": None, "scorer": None, "figures": False, "k": 4, **options})


# ------------------------------------------------------------------ one of another kind


def test_it_measures_once_per_set_of_weights_and_before_the_first_update() -> None:
    model, ours = Regressor(), Weighing(metrics="all")
    before = math.hypot(float(model.out.weight.detach().norm()), float(model.out.bias.detach().norm()))
    fit = trainer(ours, logger=(logger := Recorder()))
    fit.fit(model, loader(), loader())
    assert [m.step for m in ours.history] == [0, 4, 8] and {m.source for m in ours.history} == {"validation"}
    assert ours.history[0].metrics["norm"] == pytest.approx(before)
    assert float(fit.callback_metrics["scales/norm"]) == pytest.approx(math.hypot(*ours.spectrum.values()))
    rows = [{key for key in row if key != "epoch"} for _, row in logger.rows if "scales/norm" in row]
    assert rows == [{"scales/norm", "scales/weight/norm", "scales/bias/norm"}] * 3


def test_two_kinds_stand_side_by_side_each_with_its_own(tmp_path: Path) -> None:
    """Oracle for the recurrent one: a fit without the other."""
    torch.manual_seed(0)
    weighing, measuring = Weighing(), recurrent()
    fit = trainer(weighing, measuring)
    fit.fit(Regressor(), loader(), loader())
    torch.manual_seed(0)
    trainer(alone := recurrent()).fit(Regressor(), loader(), loader())
    assert [m.exponents.tolist() for m in measuring.history] == [m.exponents.tolist() for m in alone.history]
    assert len(weighing.history) == 3 and weighing.state_key == "Weighing{'prefix': 'scales', 'module': None}"
    keys = {key.partition("/")[0] for key in fit.callback_metrics}
    assert {"scales", "lyapunov"} <= keys
    fit.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    assert {weighing.state_key, measuring.state_key} <= saved.keys()

    again = Weighing(), recurrent()
    trainer(*again, max_epochs=3).fit(Regressor(), loader(), loader(), ckpt_path=tmp_path / "c.ckpt")
    for guest, before in zip(again, (weighing, measuring), strict=True):
        assert [m.step for m in guest.history] == [0, 4, 8, 12]
        assert [m.metrics for m in guest.history][:3] == [m.metrics for m in before.history]
        assert type(guest.history[0]) is type(guest.history[-1]) is type(before.history[0])


def test_a_prefix_is_of_one_guest_whatever_its_kind() -> None:
    with pytest.raises(MisconfigurationException, match="A LyapunovSpectrumCallback and a Weighing use the prefix 'a'"):
        trainer(Weighing(prefix="a"), recurrent(prefix="a")).fit(Regressor(), loader())
    with pytest.raises(MisconfigurationException, match="Two Weighings use the prefix 'scales'; give one of them"):
        trainer(Weighing(), Weighing("out")).fit(Regressor(), loader())


def test_who_acts_on_one_kind_is_not_called_for_another() -> None:
    class Acts(pl.Callback):
        def __init__(self) -> None:
            self.called: list[str] = []

        def on_weighing(self, trainer: pl.Trainer, callback: Any) -> None:
            self.called.append(callback.prefix)

        def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
            self.called.append(callback.prefix)

    acts = Acts()
    trainer(Weighing(), acts, recurrent(), max_epochs=1).fit(Regressor(), loader(), loader())
    assert sorted(acts.called) == ["lyapunov", "lyapunov", "scales", "scales"]  # as yet, and after the epoch
    trainer(Weighing(), alone := Acts(), max_epochs=1).fit(Regressor(), loader(), loader())
    assert alone.called == ["scales", "scales"]


def test_stock_callbacks_watch_its_keys(tmp_path: Path) -> None:
    stopper = EarlyStopping("scales/norm", mode="max", patience=1, min_delta=100.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="scales/norm", save_top_k=-1)
    fit = trainer(ours := Weighing(), stopper, checkpoint, max_epochs=9, enable_checkpointing=True)
    fit.fit(Regressor(), loader(), loader())
    assert fit.current_epoch == 2 and stopper.stopped_epoch == 1
    measured = [m.metrics["norm"] for m in ours.history][1:]
    assert sorted(float(score) for score in checkpoint.best_k_models.values()) == pytest.approx(sorted(measured))


def test_stock_early_stopping_that_is_too_impatient_is_told_so() -> None:
    with pytest.warns(
        UserWarning, match=r"EarlyStopping\(monitor='scales/norm', patience=1\) is checked about 3 times"
    ):
        trainer(Weighing(every_n_epochs=3), EarlyStopping("scales/norm", patience=1)).fit(
            Regressor(), loader(), loader()
        )


def test_a_model_without_what_is_measured_is_told_of_once_and_trained() -> None:
    class Other(Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.read = self.out
            del self.out

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.read(self.rnn(x)[0][:, -1])

    with pytest.warns(UserWarning) as told:
        fit = trainer(Weighing())
        fit.fit(Other(), loader(), loader())
    (text,) = [str(w.message) for w in told if str(w.message).startswith("Weighing")]
    assert text.startswith("Weighing: the weight could not be measured, training goes on without it: module: the model")
    assert fit.current_epoch == 2


def test_the_budget_asks_for_no_more_than_its_own_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is known a pilot of a single batch; a promised one that is dear is cut down to that."""
    monkeypatch.setattr(WeighingSession, "plans", plans := [])
    ours = Weighing(max_overhead=1e-6)
    ours._budget.note(Plan(8, 1, 4), 60.0)
    ours.load_state_dict(ours.state_dict())  # so that the fit begins with it
    trainer(ours, max_epochs=1).fit(Regressor(), loader(), loader())
    assert plans[0] == Plan(1, 1, 1)
    plans.clear()
    trainer(Weighing(max_overhead=0.5), max_epochs=1).fit(Regressor(), loader(), loader())
    assert plans[:2] == [Plan(1, 1, 1), Plan(8, 1, 4)]


def test_it_is_pickled_with_its_history_and_what_a_user_added() -> None:
    ours = Weighing(prefix="mine")
    trainer(ours).fit(Regressor(), loader(), loader())
    ours.mood = "good"
    again = pickle.loads(pickle.dumps(ours))
    assert (again.prefix, again.mood, again.name) == ("mine", "good", "scales")
    assert [m.metrics for m in again.history] == [m.metrics for m in ours.history]
    assert type(again.history[0]) is Weighed and again.spectrum is None


def test_its_page_is_written_with_its_settings(tmp_path: Path) -> None:
    trainer(Weighing(report=str(tmp_path))).fit(Regressor(), loader(), loader())
    told = (tmp_path / "scales.html").read_text(encoding="utf-8")
    assert told.startswith("3 of Regressor: module, k,") and "every_n_epochs" in told


def test_the_charts_of_both_are_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several layouts TensorBoard shows the last alone, so the last has all."""
    laid: list[Any] = []
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger.experiment, "add_custom_scalars", laid.append)
    trainer(Weighing(metrics="all"), recurrent(), logger=logger, max_epochs=1).fit(Regressor(), loader(), loader())
    assert laid[-1].keys() == {"Scales", "Lyapunov", "Lyapunov: prediction"}
    assert laid[-1]["Scales"] == {"norm (kg)": ["Multiline", ["^scales/norm$", "^scales/.+/norm$"]]}


def test_what_watches_recurrent_layers_is_a_watch() -> None:
    """Oracle: the methods of the protocol."""
    needed = {name for name in vars(Watch) if not name.startswith("_")}
    assert len(needed) == 9 and all(hasattr(kind, name) for kind in (Layers, Batches) for name in needed)
