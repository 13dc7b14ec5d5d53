"""What is told of Lightning's own callbacks that watch our keys: that they are read more often than measured."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from lightning_lyapunov.monitoring.notices import linked
from lightning_lyapunov.names import SPECTRA, Table, current_name, name_of
from lightning_lyapunov.training.ranks import warn

_FEWEST = 2
"""Measurements that stock EarlyStopping must see before it gives up: one that is no better may be so by chance."""


def warn_of_impatience(trainer: pl.Trainer, callback: Any) -> None:
    """Warn of stock EarlyStopping that watches a key of ``callback`` and checks it more often than it is measured.

    It takes an old value that it reads again for one that is no better. To be called when training starts, as only
    then all intervals are known. For a measurement that the budget leaves out there is :func:`warn_of_skip`.
    """
    for stopper in trainer.callbacks:  # type: ignore[attr-defined]
        if not is_a(stopper, "EarlyStopping") or not is_key(stopper.monitor, callback.prefix, _table_of(callback)):
            continue
        checks, patience = _checks_per_measurement(trainer, callback, stopper), stopper.patience
        if checks > 1 and patience < _FEWEST * checks:
            interval = "every_n_epochs" if callback.every_n_train_steps is None else "every_n_train_steps"
            text = (
                f"EarlyStopping(monitor={stopper.monitor!r}, patience={patience}) is checked about {checks:.2g} times "
                f"per measurement ({interval}={getattr(callback, interval)}) and takes each check in between for one "
                f"without improvement. A patience of {patience} measurements is "
                f"patience={math.ceil(patience * checks)}; or use {_ours_for(stopper, callback)}, which counts "
                "measurements."
            )
            warn(linked(text, "old-values"))


def warn_of_skip(trainer: pl.Trainer, callback: Any) -> bool:
    """Warn of stock EarlyStopping and ModelCheckpoint that will take an old value of our keys for a new one.

    To be called at the first measurement of a fit that ``max_overhead`` leaves out.

    Args:
        trainer: Whose callbacks they are.
        callback: The one that measures, with its ``prefix`` and ``max_overhead``.

    Returns:
        Whether there was one to warn of.
    """
    warned = False
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        is_stopper = is_a(other, "EarlyStopping")
        if not (is_stopper or is_a(other, "ModelCheckpoint")):
            continue
        if not is_key(other.monitor, callback.prefix, _table_of(callback)):
            continue
        if is_stopper:
            name = f"EarlyStopping(monitor={other.monitor!r}, patience={other.patience})"
            harm = "which takes a value that it reads again for one without improvement"
            instead = f"{_ours_for(other, callback)} in its place counts measurements; "
        else:
            name, instead = f"ModelCheckpoint(monitor={other.monitor!r})", ""
            harm = "which ranks weights by the last value known, that of older ones"
        warned = True
        text = (
            f"A measurement was left out to stay within max_overhead={callback.max_overhead}, and more may follow. "
            f"{name} watches what is measured, {harm}. {instead}max_overhead=None leaves no measurement out, a larger "
            "share fewer."
        )
        warn(linked(text, "old-values"))
    return warned


def _ours_for(stopper: Any, callback: Any) -> str:
    """What stands in for stock EarlyStopping, as it is written."""
    mode, prefix = getattr(stopper, "mode", "min"), callback.prefix
    options = f", mode={mode!r}" * (mode != "min") + f", prefix={prefix!r}" * (prefix != "lyapunov")
    return f"LyapunovEarlyStopping(monitor={stopper.monitor!r}, patience={stopper.patience}{options})"


def _checks_per_measurement(trainer: pl.Trainer, callback: Any, stopper: Any) -> float:
    """How often EarlyStopping checks from one measurement to the next; not above 1 where that is not known."""
    batches, interval, every = trainer.num_training_batches, trainer.val_check_batch, trainer.check_val_every_n_epoch
    if getattr(stopper, "_check_on_train_epoch_end", True):
        checks = 1.0  # an epoch
    elif not trainer.enable_validation or interval is None:
        return 1.0
    elif every is None:
        checks = batches / interval
    else:
        checks = (batches // interval if math.isfinite(batches) else 1) / every
    if callback.every_n_train_steps is not None:
        updates = batches / trainer.accumulate_grad_batches
        measurements = updates / callback.every_n_train_steps
        return checks / measurements
    return checks * callback.every_n_epochs if callback.every_n_epochs > 1 else 1.0  # else it measures at each check


def is_a(thing: object, name: str) -> bool:
    """Whether it is of a class of this name, from whichever of the two Lightning packages."""
    return any(kind.__name__ == name for kind in type(thing).__mro__)


def is_key(key: str | None, prefix: str, table: Table = SPECTRA) -> bool:
    """Whether a callback of this prefix, whose figures are those of the table, logs such a key."""
    name = None if key is None else name_of(key, prefix)
    return name is not None and current_name(name) in table


def _table_of(callback: Any) -> Table:
    """Of the figures that a callback logs."""
    return getattr(callback, "table", SPECTRA)
