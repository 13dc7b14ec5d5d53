"""Where the figures of a measurement are written: Lightning's loggers, and what a plain training loop has instead."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from torch import Tensor

from lightning_lyapunov.monitoring.loggers.trackers import STEP, attempt, keeps_rows, log_measurement
from lightning_lyapunov.names import key_of

Target: TypeAlias = Any
"""A ``SummaryWriter``, a run of Weights & Biases, a function ``(figures, step)``, or a logger of Lightning's."""


def write_figures(
    loggers: Sequence[Any],
    figures: Mapping[str, float],
    step: int,
    prefix: str,
    exponents: Tensor | None,
    refused: Callable[[Any, Exception], None],
    *,
    known: Container[str] | None = None,
    epoch: int | None = None,
) -> None:
    """Write one measurement to each logger: the figures, and the spectrum as a histogram.

    What keeps rows gets all columns from the first row on. What draws charts gets nothing of a figure before it is
    first known, since there is nothing old that could be taken for it, and a chart without a point is none.

    Args:
        loggers: Lightning's, or what :func:`writers_of` made.
        figures: What was asked for, by name; NaN where it is not known.
        step: Place on the loggers' axis.
        prefix: That of the keys.
        exponents: (K,) nats, for a histogram; None for none.
        refused: Told of a logger that refused something: the logger and its error.
        known: Names of what is known of any measurement so far; all of them if None.
        epoch: Written beside the figures, if given.
    """
    row = {key_of(name, prefix): value for name, value in figures.items()}
    charted = {key_of(name, prefix): value for name, value in figures.items() if known is None or name in known}
    beside = {} if epoch is None else {"epoch": epoch}
    tag = f"{prefix}/spectrum"

    def write(logger: Any) -> None:
        told = row if keeps_rows(logger) else charted
        log_measurement(logger, told | beside, step, name=tag, exponents=exponents)

    attempt(loggers, refused, write)


def writers_of(to: Target | Sequence[Target] | None) -> list[Any]:
    """Each target as something with ``log_metrics``.

    Raises:
        ValueError: If one is none of those that can be written to.
    """
    targets = [] if to is None else list(to) if isinstance(to, list | tuple) else [to]
    return [_writer_of(target) for target in targets]


def _writer_of(target: Target) -> Any:
    if isinstance(target, ModuleType):
        target = getattr(target, "run", None)  # of wandb itself: the run that it began last
    if hasattr(target, "log_metrics"):
        return target
    if hasattr(target, "add_scalar"):
        return _TensorBoard(target)
    if hasattr(target, "define_metric"):
        return _WeightsAndBiases(target)
    if callable(target):
        return _Function(target)
    raise ValueError(
        "to must be a SummaryWriter, a run of wandb as wandb.init() returns it, a function (figures, step), a logger "
        f"of Lightning's, or a list of these; got {target!r}."
    )


class _Function:
    """A function ``(figures, step)`` that is called with each measurement, with the same keys each time."""

    kinds = frozenset({"Function"})

    def __init__(self, function: Callable[[dict[str, float], int | None], Any]) -> None:
        self._function = function

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures by key."""
        self._function(dict(metrics), step)


class _TensorBoard:
    """A ``SummaryWriter``, as Lightning's logger holds one."""

    kinds = frozenset({"TensorBoardLogger"})

    def __init__(self, writer: Any) -> None:
        self.experiment = writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures by key."""
        for key, value in metrics.items():
            self.experiment.add_scalar(key, value, step)


class _WeightsAndBiases:
    """A run of Weights & Biases, as Lightning's logger holds one.

    A run counts its rows, and drops what comes later for a row that has ended. So ours goes into the row that is open,
    which the user's next one ends; only where that still holds an earlier measurement is it ended here.
    """

    kinds = frozenset({"WandbLogger"})

    def __init__(self, run: Any) -> None:
        self.experiment = run
        self._last: tuple[int, int | None] | None = None  # row and step of the last measurement

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write figures by key."""
        if self._last is not None and self._last[0] == self.experiment.step and self._last[1] != step:
            self.experiment.log({}, commit=True)
        self.experiment.log({**metrics, STEP: step}, commit=False)
        self._last = self.experiment.step, step

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Write a table."""
        import wandb

        self.log_metrics({key: wandb.Table(columns=[*columns], data=data)}, step)
