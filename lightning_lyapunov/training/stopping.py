"""Early stopping on what the spectrum says, which counts measurements rather than epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_lyapunov.names import MEASURED, ON_REQUEST, SCORED, current_key, current_name, key_of, name_of, renaming
from lightning_lyapunov.reading.conditions import (
    FAILS,
    FAMILIAR,
    explodes,
    has_converged,
    is_chaotic,
    is_collapsed,
    is_predicted_to_fail,
    score,
)
from lightning_lyapunov.reading.history import History, Measurement, read_state
from lightning_lyapunov.reading.state import what_is_left
from lightning_lyapunov.reading.words import in_words, over_a_sequence
from lightning_lyapunov.training.pickling import added_to

Condition = Literal["chaotic", "collapsed", "converged", "predicted_to_fail"]
CONDITIONS: tuple[Condition, ...] = ("chaotic", "collapsed", "converged", "predicted_to_fail")
"""What training can be stopped for."""
_FEWEST = 2
"""Measurements that stock EarlyStopping must see before it gives up: one that is no better may be so by chance."""


class LyapunovEarlyStopping(pl.Callback):
    """Stops training for what a :class:`~lightning_lyapunov.LyapunovSpectrumCallback` of the same Trainer measures.

    Any of the conditions stops, and so does the monitored key where it no longer improves. Each is looked at once per
    measurement, wherever this callback stands in the list; what a measurement cannot tell, because a key is unknown,
    is not counted. ``min_epochs`` and ``min_steps`` of the Trainer hold.

    ========================  ==========================================================================================
    ``chaotic``               the largest exponent has settled and is above 0 by more than its error, and in a typical
                              sequence a gradient grows by more than 2 nats (7-fold), likewise beyond its error
    ``collapsed``             the largest exponent is below -1 nats per step by more than its error, or where it has not
                              settled, even what lasts longest over the sequence shrinks by more; or all is dead
    ``converged``             the last measurements, as many as ``patience``, lie within noise of the newest
    ``predicted_to_fail``     the scorer gives ``probability`` or more that the network never learns, and is familiar
                              with networks like it
    ========================  ==========================================================================================

    An error is the half-width of a 95 % bar. Only measurements that the same data drove are compared: where that of
    before the first update was driven by training data and the others are by validation data, all counts begin with
    those.

    Args:
        conditions: One condition or several; None if a key is monitored alone.
        monitor: Key to monitor, as "lyapunov/max" or "aelle/performance".
        mode: Whether the monitored key should fall ("min") or rise ("max").
        patience: Measurements in a row at which a condition must hold, or the key not improve, before training stops.
        min_delta: What counts as an improvement of the monitored key, in its unit.
        probability: Of failure, from which the scorer is believed.
        familiarity: Of the scorer with such networks, from which it is believed.
        before_training: Whether the measurement before the first update counts. An initial network may be chaotic, or
            forget, as training has not yet shaped it; a prediction means the same there and always counts.
        prefix: That of the LyapunovSpectrumCallback that measures.

    Attributes:
        reason: Why training was stopped, in words; None if it was not.

    Raises:
        ValueError: For an unknown condition or key, or an argument out of range.
        MisconfigurationException: In ``setup``, if nothing measures under the prefix, or a score is needed and there
            is no scorer.

    Example::

        stop = LyapunovEarlyStopping(["chaotic", "predicted_to_fail"], patience=3)
        Trainer(callbacks=[LyapunovSpectrumCallback(), stop]).fit(model)
        print(stop.reason)
    """

    def __init__(
        self,
        conditions: Condition | Sequence[Condition] | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        probability: float = FAILS,
        familiarity: float = FAMILIAR,
        before_training: bool = False,
        prefix: str = "lyapunov",
    ) -> None:
        chosen = [] if conditions is None else [conditions] if isinstance(conditions, str) else list(conditions)
        if not chosen and monitor is None:
            raise ValueError(f"conditions or monitor is needed; conditions are {_listed(CONDITIONS)}.")
        if unknown := [condition for condition in chosen if condition not in CONDITIONS]:
            raise ValueError(f"conditions must be among {_listed(CONDITIONS)}; got {_listed(unknown)}.")
        if monitor is not None and not _is_key(monitor, prefix):
            keys = [key_of(name, prefix) for name in (*MEASURED, *ON_REQUEST, *SCORED)]
            raise ValueError(
                f"monitor must be a key measured under the prefix {prefix!r}: {', '.join(keys)}, or of one layer "
                f"{prefix}/<layer>/max; got {monitor!r}. For other metrics there is Lightning's EarlyStopping."
            )
        if monitor is not None and (renamed := renaming(monitor, prefix)):
            rank_zero_warn(f"LyapunovEarlyStopping: {renamed}", stacklevel=3)
            monitor = current_key(monitor, prefix)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}.")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 measurement; got {patience}.")
        if min_delta < 0:
            raise ValueError(f"min_delta must be at least 0; got {min_delta}.")
        for name, share in {"probability": probability, "familiarity": familiarity}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {share}.")
        self.conditions, self.monitor, self.mode = chosen, monitor, mode
        self.patience, self.min_delta = patience, min_delta
        self.probability, self.familiarity = probability, familiarity
        self.before_training, self.prefix = before_training, prefix
        self._begin()

    def _begin(self) -> None:
        self.reason: str | None = None
        self._counts: dict[str, int] = {}  # measurements in a row that speak for stopping, by condition or key
        self._best: float | None = None
        self._source: str | None = None  # of the measurements that these are of; None where that is not known
        self._missed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find who measures, and begin to count."""
        if stage != "fit":
            return
        self._begin()
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        measuring = {c.prefix: c for c in callbacks if _is_a(c, "LyapunovSpectrumCallback")}
        if self.prefix not in measuring:
            there_are = f"those have {_listed(measuring)}" if measuring else "there is none"
            raise MisconfigurationException(
                "LyapunovEarlyStopping reads what a LyapunovSpectrumCallback of the same Trainer measures: add "
                f"LyapunovSpectrumCallback(prefix={self.prefix!r}) to its callbacks; {there_are}."
            )
        scored = {"predicted_to_fail", *(key_of(name, self.prefix) for name in SCORED)}
        needing = [str(what) for what in (*self.conditions, self.monitor) if what in scored]
        if needing and measuring[self.prefix].scorer is None:
            raise MisconfigurationException(
                f"LyapunovEarlyStopping({_listed(needing)}) needs scores, but the LyapunovSpectrumCallback has "
                "scorer=None; scorer='general' is the pretrained one."
            )

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
        """Decide on a new measurement: rank zero does, for all.

        Args:
            trainer: The Trainer, on every rank.
            callback: The LyapunovSpectrumCallback that has just measured and calls this, on every rank.
        """
        if callback.prefix != self.prefix or self.reason is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = self._decide(callback.history) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            self.reason = reason
            trainer.should_stop = True
            rank_zero_info(
                f"LyapunovEarlyStopping: training ends after {trainer.global_step} updates, in epoch "
                f"{trainer.current_epoch}: {reason}"
            )

    # ---------------------------------------------------------------- deciding

    def _decide(self, history: History) -> str | None:
        """Why to stop after the newest measurement, in words; None if not."""
        self._keep_to(history[-1].source)
        before_training = history[-1].step == 0 and not self.before_training
        reasons = []
        for condition in self.conditions:
            if before_training and condition != "predicted_to_fail":
                continue
            needed = 1 if condition == "converged" else self.patience  # which looks at several by itself
            if self._count(condition, self._holds(condition, history)) >= needed:
                reasons.append(f"{condition.replace('_', ' ')}: {self._told(condition, history)}")
        if self.monitor is not None and not before_training and self._stagnates(self.monitor, history):
            reasons.append(
                f"{self.monitor} has not improved on {self._best:.4g} at {self._counts[self.monitor]} measurements in "
                f"a row; now it is {self._value(self.monitor, history):.4g}"
            )
        return "; ".join(reasons) + "." if reasons else None

    def _keep_to(self, source: str) -> None:
        """Count anew where other data drives the measurements."""
        if self._source not in (None, source):
            self._counts, self._best = {}, None
        self._source = source

    def _holds(self, condition: Condition, history: History) -> bool:
        if condition == "converged":
            return has_converged(history, self.patience)
        if condition == "predicted_to_fail":
            return is_predicted_to_fail(history[-1], self.probability, self.familiarity)
        return {"chaotic": _is_chaotic_and_explodes, "collapsed": is_collapsed}[condition](history[-1])

    def _stagnates(self, monitor: str, history: History) -> bool:
        value = self._value(monitor, history)
        if math.isnan(value):
            self._tell_missing(monitor, history)
            return False
        gain = math.inf if self._best is None else self._best - value if self.mode == "min" else value - self._best
        if gain > self.min_delta:
            self._best = value
        return self._count(monitor, gain <= self.min_delta) >= self.patience

    def _value(self, monitor: str, history: History) -> float:
        """The newest value of a key; NaN where it was not measured."""
        return history[-1].metrics.get(name_of(monitor, self.prefix) or "", math.nan)

    def _count(self, what: str, speaks_for_stopping: bool) -> int:
        """Measurements in a row that spoke for stopping, this one included."""
        self._counts[what] = self._counts.get(what, 0) + 1 if speaks_for_stopping else 0
        return self._counts[what]

    def _told(self, condition: Condition, history: History) -> str:
        newest, times = history[-1], f"at {self._counts[condition]} measurements in a row"
        if condition == "chaotic":
            growth = over_a_sequence(newest)
            return f"the largest exponent is {in_words(newest)}, and {growth}: so it was beyond either error {times}"
        if condition == "collapsed":
            return f"{what_is_left(newest)}: so it was beyond its error {times}"
        if condition == "converged":
            return f"the spectrum has not moved beyond its noise over the last {self.patience + 1} measurements"
        probability, familiarity = (score(newest, name) for name in ("failure_probability", "familiarity"))
        return (
            f"the scorer gives a probability of {probability:.0%} that the network never learns (familiarity "
            f"{familiarity:.2f}), and gave {self.probability:.0%} or more {times}"
        )

    def _tell_missing(self, monitor: str, history: History) -> None:
        if not self._missed:
            self._missed = True
            rank_zero_warn(
                f"LyapunovEarlyStopping: monitor={monitor!r} was not measured and does not count; measured are "
                f"{', '.join(key_of(name, self.prefix) for name in history[-1].metrics)}.",
                stacklevel=4,
            )

    # ---------------------------------------------------------------- state

    @property
    def state_key(self) -> str:
        """One per choice of conditions, key and prefix."""
        return self._generate_state_key(
            conditions=self.conditions, monitor=self.monitor, mode=self.mode, prefix=self.prefix
        )

    def state_dict(self) -> dict[str, Any]:
        """How far patience has run out; the reason is not kept, so that a run resumed after a stop may go on."""
        state = {"counts": dict(self._counts), "best": self._best}
        return state if self._source is None else state | {"source": self._source}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with as much of it as another version of this package wrote and this one knows."""
        kinds = {"counts": dict, "best": float | None, "source": str}
        known, amiss = read_state(state_dict, kinds, "state", optional=("source",))
        self._counts, self._best = dict(known.get("counts", {})), known.get("best")
        self._source = known.get("source")
        if amiss:
            rank_zero_warn(
                f"LyapunovEarlyStopping: the checkpoint is of another version of this package ({'; '.join(amiss)}); "
                "what it lacks begins anew."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What it was made with, and how far it has come: plain values, with what a subclass or a user has added."""
        arguments = {name: getattr(self, name) for name in _ARGUMENTS}
        added = added_to(self, vars(LyapunovEarlyStopping("chaotic")))
        return {"arguments": arguments, "state": self.state_dict(), "reason": self.reason, "added": added}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make it anew, as it was."""
        LyapunovEarlyStopping.__init__(self, **state["arguments"])
        self.load_state_dict(state["state"])
        self.reason = state["reason"]
        vars(self).update(state["added"])


_ARGUMENTS = tuple(signature(LyapunovEarlyStopping).parameters)


def warn_of_impatience(trainer: pl.Trainer, callback: Any) -> None:
    """Warn of stock EarlyStopping that watches a key of ``callback`` and checks it more often than it is measured.

    It takes an old value that it reads again for one that is no better. To be called when training starts, as only
    then all intervals are known. For a measurement that the budget leaves out there is :func:`warn_of_skip`.
    """
    for stopper in trainer.callbacks:  # type: ignore[attr-defined]
        if not _is_a(stopper, "EarlyStopping") or not _is_key(stopper.monitor, callback.prefix):
            continue
        checks, patience = _checks_per_measurement(trainer, callback, stopper), stopper.patience
        if checks > 1 and patience < _FEWEST * checks:
            interval = "every_n_epochs" if callback.every_n_train_steps is None else "every_n_train_steps"
            rank_zero_warn(
                f"EarlyStopping(monitor={stopper.monitor!r}, patience={patience}) is checked about {checks:.2g} times "
                f"per measurement ({interval}={getattr(callback, interval)}) and takes each check in between for one "
                f"without improvement. A patience of {patience} measurements is "
                f"patience={math.ceil(patience * checks)}; or use {_ours_for(stopper, callback)}, which counts "
                "measurements.",
                stacklevel=3,
            )


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
        is_stopper = _is_a(other, "EarlyStopping")
        if not (is_stopper or _is_a(other, "ModelCheckpoint")) or not _is_key(other.monitor, callback.prefix):
            continue
        if is_stopper:
            name = f"EarlyStopping(monitor={other.monitor!r}, patience={other.patience})"
            harm = "which takes a value that it reads again for one without improvement"
            instead = f"{_ours_for(other, callback)} in its place counts measurements; "
        else:
            name, instead = f"ModelCheckpoint(monitor={other.monitor!r})", ""
            harm = "which ranks weights by the last value known, that of older ones"
        warned = True
        rank_zero_warn(
            f"A measurement was left out to stay within max_overhead={callback.max_overhead}, and more may follow. "
            f"{name} watches what is measured, {harm}. {instead}max_overhead=None leaves no measurement out, a larger "
            "share fewer.",
            stacklevel=3,
        )
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


def _is_chaotic_and_explodes(measurement: Measurement) -> bool:
    """Chaos that training does not live with: mild chaos is common in networks that do well."""
    return is_chaotic(measurement) and explodes(measurement)


def _is_a(thing: object, name: str) -> bool:
    """Whether it is of a class of this name, from whichever of the two Lightning packages."""
    return any(kind.__name__ == name for kind in type(thing).__mro__)


def _is_key(key: str | None, prefix: str) -> bool:
    """Whether a LyapunovSpectrumCallback of this prefix logs such a key."""
    name = None if key is None else name_of(key, prefix)
    if name is None:
        return False
    name = current_name(name)
    is_of_a_layer = name.endswith("/max") and not name.startswith("aelle/")
    return name in (*MEASURED, *ON_REQUEST, *SCORED) or is_of_a_layer


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([LyapunovEarlyStopping])
