"""What each tracker takes beside scalars: histograms, pictures, a table, and how it groups and places them.

Loggers are known by the name of their class rather than by import: a Trainer of either Lightning package serves either
package's loggers, and none of the trackers is imported unless a run uses it. A logger that has no such thing is left
alone.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from lightning_lyapunov.monitoring.loggers.charts import ChartsOf, Interval, charts_of_spectra
from lightning_lyapunov.names import QUANTITIES, SPECTRA, Table, key_of

_LAID_OUT: WeakKeyDictionary[Any, dict[str, dict[str, list[Any]]]] = WeakKeyDictionary()
"""The charts of each writer so far: several callbacks may log to one."""
Pictures = Mapping[str, Any]
"""By tag, arrays ``(height, width, 3)`` of bytes."""
STEP = "trainer/global_step"
"""What Lightning's logger for Weights & Biases names the axis of everything that it logs."""
BINS = 32
"""Of a histogram in TensorBoard, which shows 30; its own writer makes 1,500 first, in five times the time."""


def takes_pictures(logger: Any) -> bool:
    """Whether :func:`log_pictures` does anything."""
    kinds = kinds_of(logger)
    return bool(kinds & {"TensorBoardLogger", "WandbLogger", "MLFlowLogger"}) or hasattr(logger, "log_image")


def keeps_rows(logger: Any) -> bool:
    """Whether it makes a row of each measurement, which is to have the same columns each time, rather than charts."""
    return bool(kinds_of(logger) & {"CSVLogger", "Function"})


def prepare(
    logger: Any,
    prefix: str,
    names: Sequence[str] = tuple(QUANTITIES),
    charts: ChartsOf = charts_of_spectra,
    table: Table = SPECTRA,
) -> None:
    """Group the scalars: a layout of charts in TensorBoard, the step axis and what sums up in Weights & Biases.

    Args:
        logger: What is written to.
        prefix: That of the keys.
        names: Of what will be logged, as :func:`~lightning_lyapunov.names.selection` tells them.
        charts: What makes the charts.
        table: Of what is measured.
    """
    kinds = kinds_of(logger)
    if "TensorBoardLogger" in kinds and (layout := _layout(prefix, names, charts)):
        writer = logger.experiment
        _LAID_OUT[writer] = _LAID_OUT.get(writer, {}) | layout
        writer.add_custom_scalars(_LAID_OUT[writer])  # of several the page shows the last alone
    elif "WandbLogger" in kinds:
        run = logger.experiment
        # Lightning's own rule for all metrics is missing where a run was open before.
        for group in {prefix, key_of("aelle/", prefix).rstrip("/")}:
            run.define_metric(f"{group}/*", step_metric=STEP)
        for name in names:
            # Wandb keeps the last value plainly unless told otherwise, and {"last": value} if told so. A rule for one
            # key takes the place of that for its group, so the axis is told again.
            if (told := table.quantities.get(name)) is not None and told.summary != "last":
                run.define_metric(key_of(name, prefix), step_metric=STEP, summary=told.summary)


def _layout(
    prefix: str, names: Sequence[str] = tuple(QUANTITIES), charts: ChartsOf = charts_of_spectra
) -> dict[str, dict[str, list[Any]]]:
    """Charts of what is logged, by category.

    Tags are regular expressions, but for those of a margin: where one of its three is missing, it shows an error.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for page, rows in charts(prefix, names).items():
        for text, about in rows.items():
            logged = [name for name in about if name in names]
            if not isinstance(about, Interval) and logged:
                tags = [re.sub("<.*>", ".+", name) for name in logged]
                layout.setdefault(page, {})[text] = ["Multiline", [f"^{key_of(tag, prefix)}$" for tag in tags]]
            elif logged and len(logged) == len(about):
                layout.setdefault(page, {})[text] = ["Margin", [key_of(name, prefix) for name in logged]]
    return layout


def log_measurement(
    logger: Any, scalars: Mapping[str, float], step: int, *, name: str = "", exponents: Tensor | None = None
) -> None:
    """Write one measurement: its scalars, and the spectrum as a histogram where the logger takes one.

    Args:
        logger: What is written to; for Weights & Biases it is all one row.
        scalars: By key.
        step: Place on the step axis.
        name: Tag of the histogram.
        exponents: (K,) any numbers; only the finite ones are drawn, since both trackers show nothing at all otherwise.
            None: no histogram.
    """
    kinds = kinds_of(logger)
    # Rounded, as NumPy makes no bins between numbers that differ by rounding alone.
    values = [] if exponents is None else [round(value, 6) for value in exponents[exponents.isfinite()].tolist()]
    row: dict[str, Any] = dict(scalars)
    if values and "WandbLogger" in kinds:
        import wandb

        row[name] = wandb.Histogram(values)
    if row:
        logger.log_metrics(row, step=step)
    if values and "TensorBoardLogger" in kinds:
        logger.experiment.add_histogram(name, np.array(values), step, bins=BINS)


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Write pictures, on the same step axis as the scalars."""
    kinds = kinds_of(logger)
    if "TensorBoardLogger" in kinds:
        for tag, picture in pictures.items():
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")
    elif "WandbLogger" in kinds:
        import wandb

        # All in one call, as each is a row of the run's history.
        logger.log_metrics({tag: wandb.Image(picture) for tag, picture in pictures.items()}, step=step)
    elif "MLFlowLogger" in kinds:
        for tag, picture in pictures.items():
            logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)
    elif hasattr(logger, "log_image"):
        for tag, picture in pictures.items():
            logger.log_image(key=tag, images=[picture], step=step)


def log_table(logger: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """Write one table; once a run, since Weights & Biases keeps a version of each.

    MLflow gets a CSV file, which its pages show as a table: its own kind needs pandas, and grows where a run goes on.
    """
    if not rows:
        return
    kinds = kinds_of(logger)
    if "WandbLogger" in kinds:
        logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)
    elif "MLFlowLogger" in kinds:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        logger.experiment.log_text(logger.run_id, text.getvalue(), f"{name}.csv")


def attempt(
    loggers: Sequence[Any], refused: Callable[[Any, Exception], None], write: Callable[..., None], *what: Any
) -> None:
    """Write something to each logger; one that is down is told of, and is no reason to end a run.

    Args:
        loggers: What is written to.
        refused: Told of a logger that refused: the logger and its error.
        write: What writes, given the logger first.
        *what: What else it is given.
    """
    for logger in loggers:
        try:
            write(logger, *what)
        except Exception as error:
            refused(logger, error)


def kinds_of(logger: Any) -> set[str]:
    """Names of its classes, and of those that it stands for."""
    return {cls.__name__ for cls in type(logger).__mro__} | getattr(type(logger), "kinds", frozenset())
