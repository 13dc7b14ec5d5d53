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
from lightning_lyapunov.monitoring import budget
from lightning_lyapunov.monitoring import clock as monitoring_clock
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.loggers import panels as panels_module
from lightning_lyapunov.monitoring.loggers import trackers
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.names import LOGGED, key_of
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


def fitted(logger: Any, model: Any = None, max_epochs: int = 4, **options: Any) -> LyapunovSpectrumCallback:
    """Four epochs: five measurements, with the one before."""
    torch.manual_seed(0)
    ours = LyapunovSpectrumCallback(**{"k": None, "max_overhead": None, "scorer": None, **options})
    trainer(ours, logger=logger, max_epochs=max_epochs).fit(model or Regressor(), loader(), loader())
    return ours


def history(prefix: str = "lyapunov") -> History:
    made = History(prefix)
    for i in range(3):
        metrics = {"max": -0.1 * i, "max_error": 0.01}
        made.append(Measurement(i, i, torch.tensor([-0.1 * i, -1.0]), metrics, reached=0.5 * i if i else None))
    return made


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, [0, 3]), (2, [0, 3, 7]), (4, [0, 3, 11, 15]), (9, [0, 3, 11, 27, 35])]
)
def test_pictures_come_at_the_first_two_measurements_then_ever_more_rarely_and_at_the_end(
    epochs: int, steps: list[int]
) -> None:
    """Where they hold nothing up: at measurements 1, 2, 4, 8, and the last one."""
    gallery = Gallery()
    fitted([gallery], max_epochs=epochs)
    assert [step for key, step, _ in gallery.pictures if key == "lyapunov_figures/spectrum"] == steps
    drawn = {f"lyapunov_figures/{name}" for name in ("along", "spectrum", "training")}
    assert {key for key, *_ in gallery.pictures} == {"lyapunov/overview", *drawn}
    for _, _, picture in gallery.pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert len(np.unique(picture)) > 20  # it is not empty


def test_no_pictures_where_none_are_wanted() -> None:
    gallery = Gallery()
    fitted([gallery], figures=False)
    assert gallery.pictures == []


def test_map_and_prediction_are_drawn_where_there_is_a_scorer_and_layers_where_there_are_several() -> None:
    gallery = Gallery()
    fitted([gallery], Regressor(nn.GRU(3, 6, 2, batch_first=True)), scorer="general")
    drawn = {key.removeprefix("lyapunov_figures/") for key, *_ in gallery.pictures}
    assert drawn == {"lyapunov/overview", "along", "spectrum", "training", "prediction", "latent", "layers"}


def test_pictures_wait_for_room_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are expected to take longer than the second there is: at the end alone, when they hold nothing up."""
    monkeypatch.setattr(panels_module, "FIRST", 2.0)
    gallery = Gallery()
    ours = fitted([gallery], max_overhead=0.03)
    assert len(ours.history) >= 3
    assert [step for key, step, _ in gallery.pictures if key.endswith("/spectrum")] == [ours._logged_at]


def test_pictures_and_measurements_together_stay_within_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock by which an epoch takes forty seconds, a measurement a twentieth of one, and drawing one."""
    clock, spectrum = {"now": 0.0}, Layers.spectrum
    picture = np.zeros((1, 1, 3), dtype=np.uint8)

    class FortySeconds(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            clock["now"] += 40.0

    def takes(seconds: float, what: Any) -> Any:
        def taking(*args: Any, **options: Any) -> Any:
            clock["now"] += seconds
            return what(*args, **options)

        return taking

    for module in (budget, panels_module, monitoring_clock):
        monkeypatch.setattr(module.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(Panels, "_pictures", takes(1.0, lambda *_: {"spectrum": picture}))
    monkeypatch.setattr(Layers, "spectrum", takes(0.05, spectrum))
    gallery, ours = Gallery(), LyapunovSpectrumCallback(scorer=None, max_overhead=0.03)
    trainer(ours, FortySeconds(), logger=[gallery], max_epochs=16).fit(Regressor(), loader(), loader())
    overheads = ours.history.values("overhead")[1:]
    drawn = [step for key, step, _ in gallery.pictures]
    assert max(overheads) <= 0.03
    assert len(ours.history) == 17 and drawn == [11, 27, 59, 63]  # at first there was no room beside the last ones
    assert ours._budget.spent == pytest.approx(18 * 0.05 + 4 * 1.0)  # with the pilot


def test_time_for_pictures_counts_as_spent_and_that_for_imports_does_not() -> None:
    ours = fitted([Gallery()])
    spent = ours._budget.by_kind
    assert spent["pictures"] > 0.05 and ours._budget.spent == pytest.approx(
        ours._budget.away - spent.get("imports", 0.0)
    )


def test_no_pictures_are_made_for_loggers_that_take_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Panels, "_pictures", lambda *_: pytest.fail("drawn for nobody"))
    fitted([CSVLogger(tmp_path)])


def test_a_logger_that_refuses_pictures_is_told_of_once_and_the_fit_goes_on() -> None:
    broken, good = Gallery(broken=True), Gallery()
    with pytest.warns(UserWarning, match="refused the measurement.*no route to the gallery") as record:
        ours = fitted([broken, good])
    assert len([w for w in record if "no route" in str(w.message)]) == 1
    assert len(ours.history) == 5 and len({step for _, step, _ in good.pictures}) == 4


def test_without_matplotlib_there_are_no_pictures_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "lightning_lyapunov.figures"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    gallery = Gallery()
    with caplog.at_level("INFO"):
        ours = fitted([gallery])
    assert not gallery.pictures and len(ours.history) == 5
    assert caplog.text.count("pip install 'lightning-lyapunov[plot]'") == 1


# ---------------------------------------------------------------- grouping and tables


@pytest.mark.parametrize(("prefix", "scores"), [("lyapunov", "aelle"), ("encoder", "encoder/aelle")])
def test_wandb_is_told_the_axis_of_each_group(prefix: str, scores: str) -> None:
    logger = WandbLogger()
    trackers.prepare(logger, prefix)
    summed = {f"{prefix}/{name}" for name in ("seconds", "trusted_fraction", "floored")}  # otherwise than by the last
    assert set(logger.rules) == {f"{prefix}/*", f"{scores}/*", *summed}
    assert all(rule["step_metric"] == "trainer/global_step" for rule in logger.rules.values())


def test_charts_are_of_what_is_logged() -> None:
    """Oracle: TensorBoard shows an error where a margin lacks one of its tags, and an empty chart where all are."""
    all_of_it = trackers._layout("encoder")
    kinds = {kind for page in all_of_it.values() for kind, _ in page.values()}
    assert kinds == {"Margin", "Multiline"} and list(all_of_it) == [
        "Lyapunov: encoder",
        "Lyapunov: encoder: prediction",
    ]
    by_default = trackers._layout("lyapunov", LOGGED)
    tags = [tag for page in by_default.values() for kind, tags in page.values() for tag in tags if kind == "Multiline"]
    assert set(tags) == {f"^{key_of(name)}$" for name in LOGGED} - {"^lyapunov/max_error$"}
    assert all(kind == "Multiline" for page in by_default.values() for kind, _ in page.values())
    assert trackers._layout("lyapunov", ("mean",)) == {}
    (chart,) = trackers._layout("lyapunov", ("<layer>/max",))["Lyapunov"].values()
    assert chart == ["Multiline", ["^lyapunov/.+/max$"]]


def test_wandb_gets_one_table_of_all_measurements() -> None:
    logger = WandbLogger()
    panels = Panels(True, lambda *_: pytest.fail("refused"))
    panels.close([logger, Gallery()], history(), 2)
    ((key, columns, rows),) = logger.tables
    assert key == "lyapunov/measurements"
    assert columns == ["update", "epoch", "skill so far", "lyapunov/max", "lyapunov/max_error"]
    assert rows == [[0, 0, None, 0.0, 0.01], [1, 1, 0.5, -0.1, 0.01], [2, 2, 1.0, -0.2, 0.01]]


def test_unknown_values_are_empty_in_the_table() -> None:
    made = history()
    made.append(Measurement(3, 3, torch.tensor([math.nan]), {"max_error": 0.1}))
    logger = WandbLogger()
    Panels(True, lambda *_: None).close([logger], made, 3)
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
    with caplog.at_level("INFO", "lightning_lyapunov"):  # how grave it is its rate says
        ours = fitted(False, model)
    assert all(value > 0 for value in ours.history.values("max"))
    told = [message for message in caplog.messages if " updates: " in message]
    assert len(told) == 1 and told[0].startswith("0 updates: Over your 12 steps a gradient grows")
    assert "chao" not in told[0]
