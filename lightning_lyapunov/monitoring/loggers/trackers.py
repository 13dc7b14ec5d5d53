"""What each tracker takes beside scalars: histograms, pictures, a table, and how it groups and places them.

Loggers are known by the name of their class rather than by import: a Trainer of either Lightning package serves either
package's loggers, and none of the trackers is imported unless a run uses it. A logger that has no such thing is left
alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_lyapunov.names import OF_A_LAYER, QUANTITIES, key_of

Pictures = Mapping[str, Any]
"""By tag, arrays ``(height, width, 3)`` of bytes."""
STEP = "trainer/global_step"
"""What Lightning's logger for Weights & Biases names the axis of everything that it logs."""
BINS = 32
"""Of a histogram in TensorBoard, which shows 30; its own writer makes 1,500 first, in five times the time."""


def takes_pictures(logger: Any) -> bool:
    """Whether :func:`log_pictures` does anything."""
    kinds = _kinds(logger)
    return bool(kinds & {"TensorBoardLogger", "WandbLogger", "MLFlowLogger"}) or hasattr(logger, "log_image")


def prepare(logger: Any, prefix: str, names: Sequence[str] = tuple(QUANTITIES)) -> None:
    """Group the scalars: a layout of charts in TensorBoard, the step axis in Weights & Biases.

    Args:
        logger: What is written to.
        prefix: That of the keys.
        names: Of what will be logged, as :func:`~lightning_lyapunov.names.selection` tells them.
    """
    kinds = _kinds(logger)
    if "TensorBoardLogger" in kinds and (layout := _layout(prefix, names)):
        logger.experiment.add_custom_scalars(layout)
    elif "WandbLogger" in kinds:
        run = logger.experiment
        # Lightning's own rule for all metrics is missing where a run was open before.
        for group in {prefix, key_of("aelle/", prefix).rstrip("/")}:
            run.define_metric(f"{group}/*", step_metric=STEP)


def _layout(prefix: str, names: Sequence[str] = tuple(QUANTITIES)) -> dict[str, dict[str, list[Any]]]:
    """Charts of what is logged, by category.

    Tags are regular expressions, but for those of a margin: where one of its three is missing, it shows an error.
    """
    interval = ("aelle/performance", "aelle/performance_low", "aelle/performance_high")
    title = "Lyapunov" if prefix == "lyapunov" else f"Lyapunov: {prefix}"

    def titled(*about: str) -> str:
        told = [name for name in about if name in names] or list(about)
        unit = QUANTITIES[told[0]].unit
        return ", ".join(QUANTITIES[name].title for name in told) + (f" ({unit})" if unit else "")

    ends = [word for word, name in _ENDS.items() if f"aelle/{name}" in names]
    pages = {
        title: {
            f"{titled('max')}: above 0 chaos, where settled": ("max", OF_A_LAYER),
            f"{titled('gradient_gain')} over a sequence, and at most": ("gradient_gain", "gradient_growth"),
            titled("near_zero_fraction", "unstable_fraction"): ("near_zero_fraction", "unstable_fraction"),
            f"{titled('gradient_horizon')}: a gradient changes e-fold": ("gradient_horizon",),
            titled("kaplan_yorke_dimension"): ("kaplan_yorke_dimension",),
            titled("trusted_fraction", "settled_fraction", "overhead"): (
                *("trusted_fraction", "settled_fraction", "overhead"),
            ),
        },
        f"{title}: prediction": {
            "final skill and its 80 % interval": interval,
            "final skill" + " with and without the spectrum" * ("aelle/baseline" in names): (
                *("aelle/performance", "aelle/baseline"),
            ),
            ", ".join(ends): (
                *("aelle/failure_probability", "aelle/takeoff_probability", "aelle/ends_stable_probability"),
            ),
            "familiarity: below 0.3 the others are a guess": ("aelle/familiarity",),
        },
    }
    layout: dict[str, dict[str, list[Any]]] = {}
    for page, charts in pages.items():
        for text, about in charts.items():
            logged = [name for name in about if name in names]
            if logged == list(interval):
                layout.setdefault(page, {})[text] = ["Margin", [key_of(name, prefix) for name in interval]]
            elif logged and about is not interval:
                tags = [".+/max" if name == OF_A_LAYER else name for name in logged]
                layout.setdefault(page, {})[text] = ["Multiline", [f"^{key_of(tag, prefix)}$" for tag in tags]]
    return layout


_ENDS = {"fails": "failure_probability", "takes off": "takeoff_probability", "ends stable": "ends_stable_probability"}
"""How a run may end, in words, and the probability of it."""


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
    kinds = _kinds(logger)
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
    kinds = _kinds(logger)
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
    kinds = _kinds(logger)
    if "WandbLogger" in kinds:
        logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)
    elif "MLFlowLogger" in kinds:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        logger.experiment.log_text(logger.run_id, text.getvalue(), f"{name}.csv")


def _kinds(logger: Any) -> set[str]:
    """Names of its classes, and of those that it stands for."""
    return {cls.__name__ for cls in type(logger).__mro__} | getattr(type(logger), "kinds", frozenset())
