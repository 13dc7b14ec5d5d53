"""Where the figures of a measurement go in a Trainer: to its loggers, and to whoever monitors them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_lyapunov.monitoring.loggers.labels import plain
from lightning_lyapunov.monitoring.loggers.trackers import attempt, kinds_of
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.names import key_of, name_of, renaming, with_old_keys
from lightning_lyapunov.training.schedule import When


def log_figures(
    trainer: pl.Trainer,
    figures: Mapping[str, float],
    when: When,
    session: Session,
    tell: Callable[..., None],
) -> None:
    """Give all figures to monitors, and those that were asked for to the loggers.

    Monitors read ``trainer.callback_metrics``, which the figures are written to directly: so they are fresh at whatever
    moment one looks, and cost a tenth of what ``self.log`` would.

    Args:
        trainer: Whose loggers and monitors.
        figures: By name.
        when: The moment.
        session: What measured them, and writes them.
        tell: Says something once, with ``warn``.
    """
    prefix = session.options.prefix
    watched = _watched(trainer)
    for key in watched:
        if (text := renaming(key, prefix)) is not None:
            tell(text, warn="renamed-key")
    values = {key_of(name, prefix): value for name, value in figures.items()}
    old = {key: value for key, value in with_old_keys(values, prefix).items() if key in watched}
    _tell_monitors(trainer, values | old, watched, prefix)
    session.write(trainer.loggers, figures, logging_step(trainer, when), epoch=trainer.current_epoch)


def log_hparams(
    trainer: pl.Trainer, pl_module: pl.LightningModule, session: Session, settings: Mapping[str, Any]
) -> None:
    """Add settings and figures to the table that TensorBoard shows of runs under HParams.

    Of one run it shows what was written first, and Lightning is about to write the user's hyperparameters. So these
    are written here, as it would, with ours beside them. Where it will write none we do not either: the user's own, if
    any come, must be the first.

    Args:
        trainer: Whose loggers.
        pl_module: That is about to be trained; its hyperparameters are not logged yet.
        session: What measures.
        settings: Those that are to be compared among runs, by name.
    """
    theirs: dict[str, Any] = {}
    for part in (pl_module, getattr(trainer, "datamodule", None)):
        if getattr(part, "_log_hyperparams", False):
            theirs |= part.hparams_initial  # type: ignore[union-attr]
    if theirs:
        prefix, logged = session.options.prefix, session.options.logged
        ours = {key_of(name, prefix): plain(value) for name, value in settings.items()}
        keys = [key_of(name, prefix) for name in logged if name != session.options.table.of_a_part]
        attempt(trainer.loggers, session.warn_of_logger, _log_hparams, theirs, ours, keys)


def _log_hparams(logger: Any, theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Sequence[str]) -> None:
    if "TensorBoardLogger" not in kinds_of(logger) or not getattr(logger, "_default_hp_metric", False):
        return
    if logger.hparams:  # some were written before the fit
        return
    try:
        from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
        from torch.utils.tensorboard.summary import hparams
    except ImportError:  # of another version, or with tensorboardX in its place
        return
    flat = _flatten_dict(_convert_params(dict(theirs)))
    flat = logger._sanitize_params(flat | {key: value for key, value in ours.items() if key not in flat})
    writer = logger.experiment._get_file_writer()
    for summary in hparams(flat, dict.fromkeys(("hp_metric", *keys), 0.0)):
        writer.add_summary(summary)


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
