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

from torch import Tensor

from lightning_lyapunov.names import QUANTITIES, key_of

Pictures = Mapping[str, Any]
"""By tag, arrays ``(height, width, 3)`` of bytes."""
STEP = "trainer/global_step"
"""What Lightning's logger for Weights & Biases names the axis of everything that it logs."""


def takes_pictures(logger: Any) -> bool:
    """Whether :func:`log_pictures` does anything."""
    kinds = _kinds(logger)
    return bool(kinds & {"TensorBoardLogger", "WandbLogger", "MLFlowLogger"}) or hasattr(logger, "log_image")


def prepare(logger: Any, prefix: str) -> None:
    """Group the scalars: a layout of charts in TensorBoard, the step axis in Weights & Biases."""
    kinds = _kinds(logger)
    if "TensorBoardLogger" in kinds:
        logger.experiment.add_custom_scalars(_layout(prefix))
    elif "WandbLogger" in kinds:
        run = logger.experiment
        # Lightning's own rule for all metrics is missing where a run was open before.
        for group in {prefix, key_of("aelle/", prefix).rstrip("/")}:
            run.define_metric(f"{group}/*", step_metric=STEP)


def _layout(prefix: str) -> dict[str, dict[str, list[Any]]]:
    """Charts by category. Tags are regular expressions, but for those of a margin, whose three have equal steps."""

    def lines(*names: str) -> list[Any]:
        return ["Multiline", [f"^{key_of(name, prefix)}$" for name in names]]

    def about(*names: str) -> str:
        unit = QUANTITIES[names[0]].unit
        return ", ".join(QUANTITIES[name].title for name in names) + (f" ({unit})" if unit else "")

    shares, health = ("near_zero_fraction", "unstable_fraction"), ("trusted_fraction", "settled_fraction", "overhead")
    interval = [key_of(f"aelle/{name}", prefix) for name in ("performance", "performance_low", "performance_high")]
    title = "Lyapunov" if prefix == "lyapunov" else f"Lyapunov: {prefix}"
    return {
        title: {
            f"{about('max')}: above 0 chaos, where settled": lines("max", ".+/max"),
            f"{about('gradient_gain')} over a sequence, and at most": lines("gradient_gain", "gradient_growth"),
            about(*shares): lines(*shares),
            f"{about('gradient_horizon')}: a gradient changes e-fold": lines("gradient_horizon"),
            about("kaplan_yorke_dimension"): lines("kaplan_yorke_dimension"),
            about(*health): lines(*health),
        },
        f"{title}: prediction": {
            "final skill and its 80 % interval": ["Margin", interval],
            "final skill with and without the spectrum": lines("aelle/performance", "aelle/baseline"),
            "fails, takes off, ends stable": lines(
                "aelle/failure_probability", "aelle/takeoff_probability", "aelle/stability"
            ),
            "familiarity: below 0.3 the others are a guess": lines("aelle/familiarity"),
        },
    }


def log_histogram(logger: Any, name: str, values: Tensor, step: int) -> None:
    """Write one histogram, on the same step axis as the scalars.

    Args:
        logger: One of the Trainer's loggers.
        name: Tag of the histogram.
        values: (K,) any numbers; only the finite ones are drawn, since both trackers show nothing at all otherwise.
        step: Place on the step axis.
    """
    values = values[values.isfinite()]
    if len(values) == 0:
        return
    kinds = _kinds(logger)
    if "TensorBoardLogger" in kinds:
        logger.experiment.add_histogram(name, values, step)
    elif "WandbLogger" in kinds:
        import wandb

        logger.log_metrics({name: wandb.Histogram(values.tolist())}, step=step)


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
    return {cls.__name__ for cls in type(logger).__mro__}
