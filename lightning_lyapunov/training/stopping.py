"""Early stopping on what the spectrum says, which counts measurements rather than epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_lyapunov.monitoring.notices import linked
from lightning_lyapunov.monitoring.showing import defaults_of, described
from lightning_lyapunov.names import MEASURED, ON_REQUEST, SCORED, SPECTRA, current_key, key_of, name_of, renaming
from lightning_lyapunov.names_depth import DEPTH
from lightning_lyapunov.reading.conditions import FAILS, FAMILIAR, is_predicted_to_fail, score
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.kept import read_state
from lightning_lyapunov.reading.rates import AT_CHANCE
from lightning_lyapunov.reading.state import what_is_left
from lightning_lyapunov.reading.stops import (
    CONDITIONS,
    KNOWN,
    PATIENCE,
    Condition,
    Rule,
    from_update,
    needed,
    rule_for,
    shipped_rules,
)
from lightning_lyapunov.reading.words import in_words, over_a_sequence
from lightning_lyapunov.training.guest import Guest
from lightning_lyapunov.training.pickling import added_to
from lightning_lyapunov.training.ranks import inform, warn
from lightning_lyapunov.training.stock import is_key


class LyapunovEarlyStopping(pl.Callback):
    """Stops training for what a :class:`~lightning_lyapunov.LyapunovSpectrumCallback` of the same Trainer measures.

    Any of the conditions stops, and so does the monitored key where it no longer improves. Each is looked at once per
    measurement, wherever this callback stands in the list; what a measurement cannot tell, because a key is unknown,
    is not counted. ``min_epochs`` and ``min_steps`` of the Trainer hold.

    ========================  ==========================================================================================
    ``chaotic``               the largest exponent has settled and is above 0 by more than its error, and in a typical
                              sequence a gradient grows by more than 2 nats (7-fold), likewise beyond its error
    ``collapsed``             the largest exponent is below -1/2 nats per step by more than its error, or where it has
                              not settled, even what lasts longest over the sequence shrinks by more, and in a typical
                              sequence a gradient shrinks by more than 40 nats; or all is dead
    ``converged``             the last measurements, as many as ``patience``, lie within noise of the newest
    ``predicted_to_fail``     the scorer gives ``probability`` or more that the network never learns, and is familiar
                              with networks like it
    ========================  ==========================================================================================

    From which update on each counts, and where more is asked for than stands here, was chosen on one half of the bank's
    task families, such that hardly any run that would have come well is ended; how the other half fared is this:

    - chaotic, skill at chance: from update 80; of 70 runs 69 failed, 1 came above 0.5.
    - chaotic, skill not known: from update 80, by 5; of 47 runs 47 failed, 0 came above 0.5.
    - collapsed, skill at chance: from update 80; of 154 runs 154 failed, 0 came above 0.5.
    - collapsed, skill not known: from update 80; of 157 runs 156 failed, 1 came above 0.5.
    - converged, skill known: from update 40, by 0.98; too few such runs to tell.
    - converged, skill not known: never, as it was wrong too often.
    - predicted_to_fail, skill at chance: from update 40; of 486 runs 483 failed, 1 came above 0.5.
    - predicted_to_fail, skill not known: from update 40; of 105 runs 105 failed, 0 came above 0.5.

    What failed had ended below a skill of 0.3. A run that learns, whose skill so far is known (``performance`` of the
    callback, with its range) to be 0.1 or more, is ended only where it has converged. The rates are those of runs like
    the bank's, which :mod:`lightning_lyapunov.reading.rates` bounds; docs/rates.md has them with their errors, beside
    those of stopping on the metric.

    An error is the half-width of a 95 % bar. Only measurements that the same data drove are compared: where that of
    before the first update was driven by training data and the others are by validation data, all counts begin with
    those.

    Args:
        conditions: One condition or several; None if a key is monitored alone.
        monitor: Key to monitor, as "lyapunov/max" or "aelle/performance"; of a
            :class:`~lightning_lyapunov.DepthSpectrumCallback` as "depth/total", with its prefix.
        mode: Whether the monitored key should fall ("min") or rise ("max").
        patience: Measurements in a row at which a condition must hold, or the key not improve, before training stops.
        min_delta: What counts as an improvement of the monitored key, in its unit.
        probability: Of failure, from which the scorer is believed.
        familiarity: Of the scorer with such networks, from which it is believed.
        min_updates: Updates before which no condition counts; with it each counts as it stands in the table, for a run
            that learns too, and of how often that is right nothing is known. None: as chosen on the bank.
        before_training: Whether the measurement before the first update counts. An initial network may be chaotic, or
            forget, as training has not yet shaped it; a prediction means the same there and always counts.
        prefix: That of the callback that measures.

    Attributes:
        reason: Why training was stopped, in words; None if it was not.

    Raises:
        ValueError: For an unknown condition or key, or an argument out of range.
        MisconfigurationException: In ``setup``, if nothing measures under the prefix, or not what is asked for, or a
            score is needed and there is no scorer.

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
        patience: int = PATIENCE,
        min_delta: float = 0.0,
        probability: float = FAILS,
        familiarity: float = FAMILIAR,
        min_updates: int | None = None,
        before_training: bool = False,
        prefix: str = "lyapunov",
    ) -> None:
        chosen = [] if conditions is None else [conditions] if isinstance(conditions, str) else list(conditions)
        if not chosen and monitor is None:
            raise ValueError(f"conditions or monitor is needed; conditions are {_listed(CONDITIONS)}.")
        if unknown := [condition for condition in chosen if condition not in CONDITIONS]:
            raise ValueError(f"conditions must be among {_listed(CONDITIONS)}; got {_listed(unknown)}.")
        if monitor is not None and not (is_key(monitor, prefix) or is_key(monitor, prefix, DEPTH)):
            keys = [key_of(name, prefix) for name in (*MEASURED, *ON_REQUEST, *SCORED)]
            raise ValueError(
                f"monitor must be a key measured under the prefix {prefix!r}: {', '.join(keys)}, or of one layer "
                f"{prefix}/<layer>/max; got {monitor!r}. Across depth keys have a prefix of their own, prefix='depth'; "
                "for other metrics there is Lightning's EarlyStopping."
            )
        if monitor is not None and (renamed := renaming(monitor, prefix)):
            warn(linked(f"LyapunovEarlyStopping: {renamed}", "renamed-key"))
            monitor = current_key(monitor, prefix)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}.")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 measurement; got {patience}.")
        if min_updates is not None and min_updates < 0:
            raise ValueError(f"min_updates must be at least 0, or None; got {min_updates}.")
        if min_delta < 0:
            raise ValueError(f"min_delta must be at least 0; got {min_delta}.")
        for name, share in {"probability": probability, "familiarity": familiarity}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {share}.")
        self.conditions, self.monitor, self.mode = chosen, monitor, mode
        self.patience, self.min_delta = patience, min_delta
        self.probability, self.familiarity = probability, familiarity
        self.min_updates, self.before_training, self.prefix = min_updates, before_training, prefix
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
        measuring = {c.prefix: c for c in callbacks if isinstance(c, Guest)}
        if self.prefix not in measuring:
            there_are = f"those have {_listed(measuring)}" if measuring else "there is none"
            raise MisconfigurationException(
                "LyapunovEarlyStopping reads what a LyapunovSpectrumCallback of the same Trainer measures: add "
                f"LyapunovSpectrumCallback(prefix={self.prefix!r}) to its callbacks; {there_are}."
            )
        self._check_kind(measuring[self.prefix])
        scored = {"predicted_to_fail", *(key_of(name, self.prefix) for name in SCORED)}
        needing = [str(what) for what in (*self.conditions, self.monitor) if what in scored]
        if needing and getattr(measuring[self.prefix], "scorer", None) is None:
            raise MisconfigurationException(
                f"LyapunovEarlyStopping({_listed(needing)}) needs scores, but the LyapunovSpectrumCallback has "
                "scorer=None; scorer='general' is the pretrained one."
            )
        self._warn_of_never(knows_skill=getattr(measuring[self.prefix], "performance_range", None) is not None)

    def _check_kind(self, measuring: Any) -> None:
        """Refuse conditions and keys of another kind of measurement than is made under the prefix."""
        kind = type(measuring).__name__
        if self.conditions and measuring.table is not SPECTRA:
            raise MisconfigurationException(
                f"LyapunovEarlyStopping({_listed(self.conditions)}) judges what a LyapunovSpectrumCallback measures, "
                f"but under the prefix {self.prefix!r} a {kind} does; a key of its own can be monitored."
            )
        if self.monitor is not None and not is_key(self.monitor, self.prefix, measuring.table):
            raise MisconfigurationException(
                f"LyapunovEarlyStopping(monitor={self.monitor!r}): the {kind} under the prefix {self.prefix!r} does "
                "not measure that."
            )

    def _warn_of_never(self, *, knows_skill: bool) -> None:
        """Say which conditions will end nothing, as they were not right often enough on the bank."""
        for condition in self.conditions if self.min_updates is None else []:
            kinds = {"", KNOWN if condition == "converged" else AT_CHANCE} if knows_skill else {""}
            rules = [r for r in shipped_rules() if r.condition == condition and r.knowledge in kinds]
            if rules and all(math.isinf(rule.start) for rule in rules):
                text = (
                    f"LyapunovEarlyStopping: {condition!r} ends no run here: on the bank it was wrong too often"
                    f"{'' if knows_skill else ' where the skill so far is not known (performance, performance_range)'}."
                    " With min_updates it counts nevertheless, from that update on."
                )
                warn(linked(text, "never-stops"))

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
        """Decide on a new measurement: rank zero does, for all.

        Args:
            trainer: The Trainer, on every rank.
            callback: That which has just measured and calls this, on every rank.
        """
        if callback.prefix != self.prefix or self.reason is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = self._decide(callback.history) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            self.reason = reason
            trainer.should_stop = True
            inform(
                f"LyapunovEarlyStopping: training ends after {trainer.global_step} updates, in epoch "
                f"{trainer.current_epoch + 1}: {reason}"
            )

    def on_depth_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
        """The same, of a measurement across depth."""
        self.on_lyapunov_measurement(trainer, callback)

    # ---------------------------------------------------------------- deciding

    def _decide(self, history: History[Any]) -> str | None:
        """Why to stop after the newest measurement, in words; None if not."""
        self._keep_to(history[-1].source)
        before_training = history[-1].step == 0 and not self.before_training
        reasons = []
        for condition in self.conditions:
            if before_training and condition != "predicted_to_fail":
                continue
            rule = self._rule(condition, history)
            holds = rule is not None and self._holds(rule, history)
            if self._count(condition, holds) >= needed(condition, self.patience) and rule is not None:
                rate = rule.told(history[-1]) if self._is_as_tried else ""
                told = f"{self._told(condition, history)}{'; ' * bool(rate)}{rate}"
                reasons.append(f"{condition.replace('_', ' ')}: {told}")
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

    def _rule(self, condition: Condition, history: History) -> Rule | None:
        """What the bank says of a condition, or what the user does."""
        if self.min_updates is None:
            return rule_for(condition, history[-1])
        return from_update(condition, self.min_updates)

    @property
    def _is_as_tried(self) -> bool:
        """Whether the rates of the bank are those of this stopper: it is as patient, and believes the scorer alike."""
        return self.patience >= PATIENCE and (self.probability, self.familiarity) == (FAILS, FAMILIAR)

    def _holds(self, rule: Rule, history: History) -> bool:
        if rule.condition == "predicted_to_fail" and history[-1].step >= rule.start:
            probability = max(self.probability, rule.amount) if self.probability == FAILS else self.probability
            return is_predicted_to_fail(history[-1], probability, self.familiarity)
        return rule.holds(list(history), self.patience)

    def _stagnates(self, monitor: str, history: History[Any]) -> bool:
        value = self._value(monitor, history)
        if math.isnan(value):
            self._tell_missing(monitor, history)
            return False
        gain = math.inf if self._best is None else self._best - value if self.mode == "min" else value - self._best
        if gain > self.min_delta:
            self._best = value
        return self._count(monitor, gain <= self.min_delta) >= self.patience

    def _value(self, monitor: str, history: History[Any]) -> float:
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

    def _tell_missing(self, monitor: str, history: History[Any]) -> None:
        if not self._missed:
            self._missed = True
            text = (
                f"LyapunovEarlyStopping: monitor={monitor!r} was not measured and does not count; measured are "
                f"{', '.join(key_of(name, self.prefix) for name in history[-1].metrics)}."
            )
            warn(linked(text, "never-stops"))

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
            text = (
                f"LyapunovEarlyStopping: the checkpoint is of another version of this package ({'; '.join(amiss)}); "
                "what it lacks begins anew."
            )
            warn(linked(text, "another-version"))

    def __repr__(self) -> str:
        stopped = "" if vars(self).get("reason") is None else f"stopped: {self.reason}"
        defaults = defaults_of(LyapunovEarlyStopping)
        return described(type(self).__name__, defaults, lambda name: getattr(self, name), stopped)

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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([LyapunovEarlyStopping])
