"""Pictures, tables and the grouping of scalars, as loggers get them; oracles are what each call was given."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fits import Regressor, loader, trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.monitoring.loggers import trackers
from lightning_lyapunov.monitoring.loggers.panels import FIRST, Panels
from lightning_lyapunov.reading.history import History, Measurement

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")


class Gallery(Logger):
    """A logger of no known kind that takes pictures, as those of Lightning that have ``log_image``."""

    name, version = "gallery", 0

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.pictures: list[tuple[str, int, np.ndarray]] = []
        self.broken = broken

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
        if self.broken:
            raise ConnectionError("no route to the gallery")
        self.pictures += [(key, step, image) for image in images]


class WandbLogger(Gallery):
    """What the one for Weights & Biases is known by: its name."""

    def __init__(self) -> None:
        super().__init__()
        self.rules: dict[str, dict[str, Any]] = {}
        self.tables: list[tuple[str, list[str], list[list[Any]]]] = []
        self.experiment = self

    def define_metric(self, name: str, **rule: Any) -> None:
        self.rules[name] = rule

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((key, columns, data))


def fitted(logger: Any, model: Any = None, **options: Any) -> LyapunovSpectrumCallback:
    """Four epochs: five measurements, with the one before."""
    torch.manual_seed(0)
    ours = LyapunovSpectrumCallback(**{"k": None, "max_overhead": None, "scorer": None, **options})
    trainer(ours, logger=logger, max_epochs=4).fit(model or Regressor(), loader(), loader())
    return ours


def history(prefix: str = "lyapunov") -> History:
    made = History(prefix)
    for i in range(3):
        metrics = {"max": -0.1 * i, "max_error": 0.01}
        made.append(Measurement(i, i, torch.tensor([-0.1 * i, -1.0]), metrics, reached=0.5 * i if i else None))
    return made


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 3, 7, 11, 15]), (2, [3, 11, 15]), (10, [15]), (None, [])])
def test_pictures_come_at_their_own_interval_and_at_the_end(every: int | None, steps: list[int]) -> None:
    gallery = Gallery()
    fitted([gallery], figures=every)
    assert [step for key, step, _ in gallery.pictures if key == "lyapunov_figures/spectrum"] == steps
    assert {key for key, *_ in gallery.pictures} == (
        {"lyapunov_figures/spectrum", "lyapunov_figures/training"} if steps else set()
    )
    for _, _, picture in gallery.pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert len(np.unique(picture)) > 20  # it is not empty


def test_map_and_prediction_are_drawn_where_there_is_a_scorer_and_layers_where_there_are_several() -> None:
    gallery = Gallery()
    fitted([gallery], Regressor(nn.GRU(3, 6, 2, batch_first=True)), scorer="general")
    drawn = {key.removeprefix("lyapunov_figures/") for key, *_ in gallery.pictures}
    assert drawn == {"spectrum", "training", "prediction", "latent", "layers"}


def test_pictures_wait_for_room_in_the_budget() -> None:
    """The expected cost of the first ones alone is beyond the share; at the end they hold nothing up."""
    gallery = Gallery()
    ours = fitted([gallery], figures=1, max_overhead=1e-3)
    assert FIRST > 0.1 and len(ours.history) >= 1
    assert [step for key, step, _ in gallery.pictures if key.endswith("/spectrum")] == [ours._logged_at]


def test_pictures_and_measurements_together_stay_within_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock by which an epoch takes four seconds, a measurement a twentieth, and drawing one."""
    clock, measure = {"now": 0.0}, LyapunovSpectrumCallback._spectrum_now
    picture = np.zeros((1, 1, 3), dtype=np.uint8)

    class FourSeconds(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            clock["now"] += 4.0

    def takes(seconds: float, what: Any) -> Any:
        def taking(*args: Any) -> Any:
            clock["now"] += seconds
            return what(*args)

        return taking

    monkeypatch.setattr("lightning_lyapunov.training.callback.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr(Panels, "_pictures", takes(1.0, lambda *_: {"spectrum": picture}))
    monkeypatch.setattr(LyapunovSpectrumCallback, "_spectrum_now", takes(0.05, measure))
    gallery, ours = Gallery(), LyapunovSpectrumCallback(scorer=None, figures=1, max_overhead=0.1)
    trainer(ours, FourSeconds(), logger=[gallery], max_epochs=40).fit(Regressor(), loader(), loader())
    overheads = ours.history.values("overhead")[1:]
    drawn = len(gallery.pictures)
    assert max(overheads) <= 0.1 and overheads[-1] > 0.07  # kept, and not left unused
    assert len(ours.history) == 41 and 5 <= drawn <= 15  # measured each time, with pictures in what is left


def test_time_for_pictures_counts_as_spent() -> None:
    ours = fitted([Gallery()], figures=1)
    measuring = sum(seconds for seconds in ours.history.values("seconds"))
    assert ours._budget.spent > measuring


def test_no_pictures_are_made_for_loggers_that_take_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Panels, "_pictures", lambda *_: pytest.fail("drawn for nobody"))
    fitted([CSVLogger(tmp_path)], figures=1)


def test_a_logger_that_refuses_pictures_is_told_of_once_and_the_fit_goes_on() -> None:
    broken, good = Gallery(broken=True), Gallery()
    with pytest.warns(UserWarning, match="refused the measurement.*no route to the gallery") as record:
        ours = fitted([broken, good], figures=1)
    assert len([w for w in record if "no route" in str(w.message)]) == 1
    assert len(ours.history) == 5 and len({step for _, step, _ in good.pictures}) == 5


def test_without_matplotlib_there_are_no_pictures_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "lightning_lyapunov.figures"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    gallery = Gallery()
    with caplog.at_level("INFO"):
        ours = fitted([gallery], figures=1)
    assert not gallery.pictures and len(ours.history) == 5
    assert caplog.text.count("pip install 'lightning-lyapunov[plot]'") == 1


# ---------------------------------------------------------------- grouping and tables


@pytest.mark.parametrize(("prefix", "scores"), [("lyapunov", "aelle"), ("encoder", "encoder/aelle")])
def test_wandb_is_told_the_axis_of_each_group(prefix: str, scores: str) -> None:
    logger = WandbLogger()
    trackers.prepare(logger, prefix)
    assert set(logger.rules) == {f"{prefix}/*", f"{scores}/*"}
    assert all(rule["step_metric"] == "trainer/global_step" for rule in logger.rules.values())


def test_wandb_gets_one_table_of_all_measurements() -> None:
    logger = WandbLogger()
    panels = Panels(10, lambda *_: pytest.fail("refused"))
    panels.close([logger, Gallery()], history(), 2)
    ((key, columns, rows),) = logger.tables
    assert key == "lyapunov/measurements"
    assert columns == ["update", "epoch", "skill so far", "lyapunov/max", "lyapunov/max_error"]
    assert rows == [[0, 0, None, 0.0, 0.01], [1, 1, 0.5, -0.1, 0.01], [2, 2, 1.0, -0.2, 0.01]]


def test_unknown_values_are_empty_in_the_table() -> None:
    made = history()
    made.append(Measurement(3, 3, torch.tensor([math.nan]), {"max_error": 0.1}))
    logger = WandbLogger()
    Panels(10, lambda *_: None).close([logger], made, 3)
    assert logger.tables[0][2][-1] == [3, 3, None, None, 0.1]


# ---------------------------------------------------------------- the report and the words


def test_report_is_written_when_the_fit_ends(tmp_path: Path) -> None:
    ours = fitted(False, report=str(tmp_path / "reports"))
    page = (tmp_path / "reports" / "lyapunov.html").read_text(encoding="utf-8")
    assert "Regressor" in page and f"{ours.history[-1].metrics['max']:.3f}".lstrip("-") in page


def test_report_is_written_also_when_the_fit_breaks_off(tmp_path: Path) -> None:
    class Breaking(Regressor):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 2:
                raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fitted(False, Breaking(), report=str(tmp_path), prefix="mine")
    assert (tmp_path / "mine.html").is_file()


def test_a_report_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="report could not be written"):
        ours = fitted(False, report=str(tmp_path / "file"))
    assert len(ours.history) == 5


def test_growth_is_told_in_words_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: in a network whose recurrent weights have gain 3 gradients explode from the start: said once.

    Its sequences have 12 steps, in which nothing settles: nobody speaks of chaos.
    """
    model = Regressor(nn.RNN(3, 32, batch_first=True))
    nn.init.normal_(model.rnn.weight_hh_l0, std=3 / 32**0.5)
    ours = fitted(False, model)
    assert all(value > 0 for value in ours.history.values("max"))
    told = [record.getMessage() for record in caplog.records if record.name == "lightning_lyapunov.training.callback"]
    assert len(told) == 1 and told[0].startswith("0 updates: Over your 12 steps a gradient grows")
    assert "chao" not in told[0]
