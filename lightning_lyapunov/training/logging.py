"""Where the figures of a measurement go in a Trainer: to its loggers, and to whoever monitors them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.monitoring.writers import write_figures
from lightning_lyapunov.names import key_of, name_of, renaming, with_old_keys
from lightning_lyapunov.training.schedule import When


def log_figures(
    trainer: pl.Trainer,
    figures: Mapping[str, float],
    when: When,
    options: CommonOptions,
    spectrum: torch.Tensor | None,
    refused: Callable[[Any, Exception], None],
    tell: Callable[..., None],
) -> None:
    """Give all figures to monitors, and those that were asked for to the loggers.

    Monitors read ``trainer.callback_metrics``, which the figures are written to directly: so they are fresh at whatever
    moment one looks, and cost a tenth of what ``self.log`` would.

    Args:
        trainer: Whose loggers and monitors.
        figures: By name.
        when: The moment.
        options: What was asked for.
        spectrum: (K,) exponents for the histogram; None for none.
        refused: Told of a logger that refused something: the logger and its error.
        tell: Says something once, with ``warn``.
    """
    prefix = options.prefix
    watched = _watched(trainer)
    for key in watched:
        if (text := renaming(key, prefix)) is not None:
            tell(text, warn=True)
    values = {key_of(name, prefix): value for name, value in figures.items()}
    old = {key: value for key, value in with_old_keys(values, prefix).items() if key in watched}
    _tell_monitors(trainer, values | old, watched, prefix)
    step, epoch = logging_step(trainer, when), trainer.current_epoch
    write_figures(trainer.loggers, figures, step, options, spectrum, refused, epoch=epoch)


def _watched(trainer: pl.Trainer) -> set[str]:
    """The keys that callbacks and schedulers of the Trainer monitor."""
    watchers = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return {key for watcher in watchers if isinstance(key := getattr(watcher, "monitor", None), str)}


def _tell_monitors(trainer: pl.Trainer, figures: Mapping[str, float], watched: set[str], prefix: str) -> None:
    """Replace all our figures by the newest; an old one stays only where a monitor would end the run without it."""
    metrics = trainer.callback_metrics
    for key in [key for key in metrics if key not in figures and key not in watched]:
        name = name_of(key, prefix)
        if name is not None and (key.startswith(f"{prefix}/") or name.startswith("aelle/")):
            del metrics[key]
    metrics.update({key: torch.tensor(value) for key, value in figures.items()})


def logging_step(trainer: pl.Trainer, when: When) -> int:
    """Where Lightning puts ``self.log`` of the same moment on the loggers' axis, which counts batches, not updates."""
    try:
        step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    except AttributeError:
        step = trainer.global_step
    return max(0, step - 1) if when in ("epoch", "end") else step  # by then the counter has moved on
