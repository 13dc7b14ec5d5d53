"""What each target of a plain loop is given, against stand-ins that keep it."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.writers import write_figures, writers_of
from lightning_lyapunov.names import selected

FIGURES = {"max": 0.5, "mean": -1.0, "seconds": 2.0, "aelle/performance": 0.75}
EXPONENTS = torch.tensor([0.5, -0.5, -1.0])


class Board:
    """A ``SummaryWriter``."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.histograms: list[tuple[str, list[float], int]] = []

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.scalars.append((key, value, step))

    def add_histogram(self, key: str, values: Any, step: int, bins: int) -> None:
        self.histograms.append((key, values.tolist(), step))


class Run:
    """A run of Weights & Biases: rows that calls add to, until one of them ends the row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._open: dict[str, Any] = {}

    @property
    def step(self) -> int:
        return len(self.rows)

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, row: dict[str, Any], commit: bool = True) -> None:
        self._open |= row
        if commit:
            self.rows.append(self._open)
            self._open = {}


def write(*targets: Any, step: int = 3, refused: Any = None, epoch: int | None = None, **options: Any) -> None:
    told = Options(**{"metrics": ["mean", "max"], "scorer": None, **options})
    figures, drawn = selected(FIGURES, told.logged), EXPONENTS if told.with_histogram else None
    write_figures(writers_of(targets), figures, step, told.prefix, drawn, refused or pytest.fail, epoch=epoch)


def test_a_board_gets_the_figures_that_were_asked_for_and_a_histogram() -> None:
    board = Board()
    write(board)
    assert board.scalars == [("lyapunov/mean", -1.0, 3), ("lyapunov/max", 0.5, 3)]
    assert board.histograms == [("lyapunov/spectrum", [0.5, -0.5, -1.0], 3)]


def test_keys_have_the_prefix_and_the_epoch_is_there_if_told() -> None:
    board = Board()
    write(board, prefix="encoder", metrics=["aelle/performance"], histogram=False, epoch=2)
    assert board.scalars == [("encoder/aelle/performance", 0.75, 3), ("epoch", 2, 3)] and board.histograms == []


def test_a_function_gets_a_dictionary_of_its_own() -> None:
    calls: list[Any] = []
    write(lambda figures, step: calls.append((figures, step)), lambda figures, step: figures.clear(), step=7)
    assert calls == [({"lyapunov/mean": -1.0, "lyapunov/max": 0.5}, 7)]


def test_a_logger_of_lightnings_is_taken_as_it_is() -> None:
    logger = SimpleNamespace(log_metrics=print)
    assert writers_of(logger) == [logger] and writers_of([logger, logger]) == [logger, logger]
    assert writers_of(None) == writers_of([]) == []


def test_rows_of_a_run_are_ended_by_the_user_or_by_the_next_measurement() -> None:
    run = Run()
    (writer,) = writers_of(run)
    writer.log_metrics({"a": 1}, 0)
    run.log({"loss": 0.1})
    writer.log_metrics({"a": 2}, 1)
    writer.log_metrics({"picture": 2}, 1)  # of the same measurement
    writer.log_metrics({"a": 3}, 2)
    run.log({"loss": 0.2})
    step = "trainer/global_step"
    assert run.rows == [{"a": 1, step: 0, "loss": 0.1}, {"a": 2, "picture": 2, step: 1}, {"a": 3, step: 2, "loss": 0.2}]


def test_the_module_of_wandb_stands_for_its_run() -> None:
    module: Any = ModuleType("wandb")
    module.run = Run()
    assert writers_of(module)[0].experiment is module.run
    module.run = None
    with pytest.raises(ValueError, match=r"as wandb\.init\(\) returns it, .*got None"):
        writers_of(module)


def test_one_that_refuses_is_told_of_and_the_next_is_served() -> None:
    troubles: list[Any] = []
    calls: list[int] = []

    def down(*_: Any) -> None:
        raise OSError("disk full")

    write(down, lambda _, step: calls.append(step), refused=lambda logger, error: troubles.append(str(error)))
    assert troubles == ["disk full"] and calls == [3]


def test_what_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to must be a SummaryWriter, a run of wandb.*got 'runs'"):
        writers_of(["runs"])
