"""The spectrum as a histogram, in the loggers that have one.

Loggers are known by the name of their class rather than by import: a Trainer of either Lightning package serves either
package's loggers, and none of the trackers is imported unless a run uses it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def log_histogram(logger: Any, name: str, values: Tensor, step: int) -> None:
    """Write one histogram, on the same step axis as the scalars; a logger that has none is left alone.

    Args:
        logger: One of the Trainer's loggers.
        name: Tag of the histogram.
        values: (K,) any numbers; only the finite ones are drawn, since both trackers show nothing at all otherwise.
        step: Place on the step axis.
    """
    values = values[values.isfinite()]
    if len(values) == 0:
        return
    kinds = {cls.__name__ for cls in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        logger.experiment.add_histogram(name, values, step)
    elif "WandbLogger" in kinds:
        import wandb

        logger.log_metrics({name: wandb.Histogram(values.tolist())}, step=step)
