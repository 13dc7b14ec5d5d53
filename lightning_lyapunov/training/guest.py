"""A guest in a Trainer: Lightning's hooks, told to the session that watches the network."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.checkpoint import restore, state_of
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.loggers.labels import plain
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.monitoring.session import Session
from lightning_lyapunov.monitoring.sharding import why_not
from lightning_lyapunov.monitoring.showing import course_of, defaults_of, described
from lightning_lyapunov.names import Table
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict
from lightning_lyapunov.training.logging import log_figures, log_hparams, logging_step
from lightning_lyapunov.training.pickling import added_to
from lightning_lyapunov.training.ranks import TrainerRanks, inform, warn
from lightning_lyapunov.training.schedule import Schedule, When, progress_of
from lightning_lyapunov.training.stock import warn_of_impatience, warn_of_skip

ADVICE = (
    " (EarlyStopping that monitors it needs strict=False to go on too; ModelCheckpoint that does cannot, before there "
    "is a first value.)"
)
"""What becomes of those who monitor what could not be measured."""


class Guest(pl.Callback):
    """Measures a network while a Trainer trains it, and logs what that says.

    What all guests do alike is here: when to measure, what that may cost, to whom figures, words and pictures go, what
    is kept, and that training is left as it was. A subclass says what is measured. It sets its own arguments, as
    attributes of their names, before it calls this constructor with the others.

    Args:
        module: What to measure, by name.
        every_n_epochs: Measure in one epoch out of so many.
        every_n_train_steps: Measure when so many updates were made since the last time. Takes the place of the epochs.
        report: Directory in which to write a page about the run when the fit ends.
        prog_bar: Whether to show a figure on the progress bar.
        k: How many leading growths to measure.
        dtype: Arithmetic of the measurement.
        tolerance: How exact it is to be.
        max_overhead: Share of the training time that all of it may take.
        prefix: First part of the keys.
        metrics: What the loggers get.
        figures: Whether to draw pictures for them.

    Raises:
        ValueError: For an argument out of range.
    """

    _session_type: ClassVar[type[Session]]
    """What measures."""
    _shown: ClassVar[str]
    """Name of the figure for the progress bar."""
    _acts: ClassVar[str]
    """Method of other callbacks that is called with the Trainer and this one after each measurement."""

    def __init__(
        self,
        module: Any,
        *,
        every_n_epochs: int,
        every_n_train_steps: int | None,
        report: str | None,
        prog_bar: bool,
        k: int | None,
        dtype: Any,
        tolerance: float | None,
        max_overhead: float | None,
        prefix: str,
        metrics: Any,
        figures: bool,
    ) -> None:
        for name, count in {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        given = isinstance(module, Sequence) and not isinstance(module, str)
        self.module = list(module) if given else module
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.report, self.prog_bar, self.k, self.dtype, self.tolerance = report, prog_bar, k, dtype, tolerance
        self.max_overhead, self.prefix, self.metrics, self.figures = max_overhead, prefix, metrics, figures
        self._options()  # which checks them
        self._history: History[Any] = History(prefix, self._session_type.kind)
        self._notices = Notices(type(self).__name__, inform, warn)
        self._schedule = Schedule(every_n_epochs, every_n_train_steps)
        self._begin(Budget(max_overhead))
        self._is_resumed = False
        self._model: weakref.ref[pl.LightningModule] | None = None

    def _begin(self, budget: Budget) -> None:
        """Begin a fit."""
        self._budget, self._clock = budget, Clock(lambda: budget.away)
        self._session: Session | None = None
        self.spectrum: Any = None
        self._batch_began = 0.0
        self._logged_at = 0  # place of the last measurement on the loggers' axis
        self._has_warned_of_skip = False

    def _options(self) -> CommonOptions:
        """What the session is told: the arguments as they are now."""
        kind = self._session_type.options_type
        return kind(**{name: getattr(self, name) for name in kind.names()})

    @property
    def table(self) -> Table:
        """Of the figures that are measured."""
        return self._session_type.options_type.table

    @property
    def history(self) -> History[Any]:
        """What was measured in the last fit; of those before it :attr:`History.earlier`."""
        return self._history

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the fit so far, in a word and a sentence; None if that is not known."""
        return None

    @property
    def overhead(self) -> float:
        """Share of the training time that all of it took so far, at the end the last pictures and the report too."""
        return self._budget.spent / trained if (trained := self._clock.trained) > 0 else 0.0

    # ---------------------------------------------------------------- being a guest

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has begun."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        guests = [c for c in callbacks if isinstance(c, Guest) and c.prefix == self.prefix and c is not self]
        if guests:
            kinds = sorted(guest._made_by().__name__ for guest in (self, guests[0]))
            two = f"Two {kinds[0]}s" if kinds[0] == kinds[1] else f"A {kinds[0]} and a {kinds[1]}"
            raise MisconfigurationException(f"{two} use the prefix {self.prefix!r}; give one of them another prefix=.")
        if (reason := why_not(trainer.strategy)) is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {reason}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what is measured, which ``configure_model`` may only just have made, and watch what reaches it."""
        self._release()
        self._notices.begin()
        is_same = self._model is not None and self._model() is pl_module  # a Trainer may fit another one afterwards
        self._model = weakref.ref(pl_module)
        goes_on = self._is_resumed or (trainer.global_step > 0 and len(self._history) > 0 and is_same)
        budget, clock = self._budget, self._clock
        self._begin(budget if goes_on else Budget(self.max_overhead))
        if goes_on:
            self._clock = clock
        else:
            self._history.begin()
        self._is_resumed = False
        self._schedule = Schedule(self.every_n_epochs, self.every_n_train_steps)
        if trainer.barebones:
            return  # a run without logging, made to time the training itself
        try:
            self._session = self._watching(trainer, pl_module)
        except Exception as error:
            self._session_type.warn_of_failure(self._notices, error, ADVICE)
            return
        if trainer.is_global_zero:
            self._session.begin_logging(trainer.loggers, self._arguments)
            with self._budget.spending("logging"):
                log_hparams(trainer, pl_module, self._session, self._changed)

    def _watching(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Session:
        """The session of a fit.

        Raises:
            ValueError: If the model has nothing that can be measured, or not what was named.
        """
        parts = self._history, self._budget, self._clock, self._notices, TrainerRanks(trainer)
        return self._session_type(pl_module, self._options(), *parts, ADVICE)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off again."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off also when the fit breaks off: Lightning calls nothing else then."""
        self._write_report(trainer)
        if isinstance(exception, KeyboardInterrupt):  # which is how a person ends a fit
            self._conclude(trainer)
        self._release()

    def _release(self) -> None:
        self._clock.stop()
        if self._session is not None:
            self._session.close()
        self._session = None

    # ---------------------------------------------------------------- what drives a measurement

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the inputs of an earlier epoch: the same rows come again, and the network has learnt since."""
        if self._session is not None and self._schedule.at is not None:
            self._session.watch.forget("training")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the inputs of an earlier validation: the network may have learnt since."""
        if self._session is not None:
            self._session.watch.forget("validation")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first validation batches."""
        if self._session is not None:
            self._session.watch.begin_batch("validation")
            self._batch_began = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop recording."""
        if self._session is not None:
            self._clock.note_forward(time.perf_counter() - self._batch_began)
            self._session.watch.end_batch("validation")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record a training batch if it may be needed."""
        if self._session is not None:
            self._batch_began = time.perf_counter()
            watch = self._session.watch
            has_validation = watch.have_recorded("validation")
            if self._schedule.is_worth_recording(
                trainer, batch_idx, has_validation=has_validation, needed=watch.batches_needed
            ):
                watch.begin_batch("training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure within the epoch, where ``every_n_train_steps`` asks for it."""
        if self._session is not None:
            self._session.watch.end_batch("training")
            if self.every_n_train_steps is not None and self._schedule.is_due(trainer, "training"):
                self._measure_and_log(self._session, trainer, pl_module, "step")

    # ---------------------------------------------------------------- when to measure

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure before the first update, on what the sanity check brought, if validation drives the series."""
        with suppress(Exception):  # advice about other callbacks, of whatever kind they are, must not end a run
            warn_of_impatience(trainer, self)
        self._clock.start()
        self._schedule.begin(trainer)
        session = self._session
        if session is not None and self._schedule.source == "training":
            session.watch.forget("validation")  # of the sanity check, which is not of this series
        is_first = trainer.global_step == 0 and self._schedule.source == "validation"
        if session is not None and is_first and session.has_recorded("validation"):
            self._measure_and_log(session, trainer, pl_module, "before training")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Measure before the first update, on the first training batch, if there was no sanity check."""
        session = self._session
        if session is None:
            return
        if trainer.global_step == 0 and self._schedule.at is None and session.has_recorded("training"):
            self._clock.note_forward(time.perf_counter() - self._batch_began)
            self._measure_and_log(session, trainer, pl_module, "before training")
        # A closure that is evaluated again passes over the same rows; by hand it may be other rows, or later steps.
        session.watch.end_turn("training", is_again=pl_module.automatic_optimization)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure in time for whatever monitors at the end of validation."""
        if self._session is not None and not trainer.sanity_checking and self._schedule.is_due(trainer, "validation"):
            self._measure_and_log(self._session, trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if training drives the series and the weights have moved since the last time."""
        if self._session is not None and self._schedule.is_due(trainer, "training"):
            self._measure_and_log(self._session, trainer, pl_module, "epoch")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the weights that training ends with, and draw the whole run once more."""
        session = self._session
        if session is None:
            return
        if self._schedule.has_moved(trainer) and session.has_recorded():
            self._measure_and_log(session, trainer, pl_module, "end")
        if trainer.is_global_zero and len(self._history):
            session.end_logging(trainer.loggers, self._logged_at)
        self._write_report(trainer)
        self._conclude(trainer)

    # ---------------------------------------------------------------- measuring

    def _measure_and_log(
        self, session: Session, trainer: pl.Trainer, pl_module: pl.LightningModule, when: When
    ) -> None:
        """Measure on all ranks together and log the same on each; rank zero decides how much, and keeps the history."""
        known = self._known(trainer)
        promised = when == "end" or self._schedule.is_promised()
        with trainer.profiler.profile(f"[{type(self).__name__}]measure"):  # type: ignore[attr-defined]
            figures = session.measure(
                trainer.global_step,
                max(trainer.current_epoch - (when == "end"), 0),  # by then the counter has moved on
                source=self._schedule.source,
                is_partial=when == "before training" and trainer.training and not pl_module.automatic_optimization,
                promised=promised,
                progress=progress_of(trainer),
                **known,
            )
        if figures is None and session.was_skipped:
            if not self._has_warned_of_skip:
                self._has_warned_of_skip = True
                with suppress(Exception):
                    warn_of_skip(trainer, self)
            return
        self._schedule.note(trainer)
        if figures is None:
            return
        self._take(session)
        self._log(session, trainer, pl_module, figures, when)
        if when != "end":
            for other in trainer.callbacks:  # type: ignore[attr-defined]  # who acts on it, wherever in the list
                if (act := getattr(other, self._acts, None)) is not None:
                    act(trainer, self)

    def _known(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What else the session is told at a measurement; to be called on all ranks at once."""
        return {}

    def _take(self, session: Session) -> None:
        """Keep what was measured, beyond the end of the fit."""
        self.spectrum = session.spectrum

    def _log(
        self,
        session: Session,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        figures: Mapping[str, float],
        when: When,
    ) -> None:
        self._logged_at = logging_step(trainer, when)
        with self._budget.spending("logging"):
            log_figures(trainer, figures, when, session, self._notices.tell)
            if self.prog_bar and when not in ("before training", "end"):
                is_step = when == "step"
                pl_module.log(
                    f"{self.prefix}_{self._shown}",
                    figures[self._shown],
                    prog_bar=True,
                    logger=False,
                    on_step=is_step,
                    on_epoch=not is_step,
                )
        if trainer.is_global_zero:
            session.tell_news()
            if when != "end":
                session.draw(trainer.loggers, self._logged_at)

    def _write_report(self, trainer: pl.Trainer) -> None:
        if self.report is not None and self._session is not None and trainer.is_global_zero:
            if len(self._history) and trainer.global_step > self._history[-1].step:
                why = self._history.missed[1] if self._history.missed else self._schedule.what_is_next()
                self._history.missed = trainer.global_step, why
            self._session.write_report(self.report, self._arguments, trainer.loggers)

    def _conclude(self, trainer: pl.Trainer) -> None:
        """Say the verdict: the last word of a fit."""
        if self._session is not None and trainer.is_global_zero:
            with suppress(Exception):  # what is said of it ends no run
                self._notices.conclude(self.verdict)

    # ---------------------------------------------------------------- state

    @property
    def _arguments(self) -> dict[str, Any]:
        """What the callback was told, by the names of its arguments."""
        own = ("every_n_epochs", "every_n_train_steps", "report", "prog_bar")
        return {name: getattr(self, name) for name in (*self._session_type.options_type.names(), *own)}

    @property
    def _changed(self) -> dict[str, Any]:
        """Those of the arguments that are not as they are by default."""
        defaults = defaults_of(self._made_by())
        return {name: value for name, value in self._arguments.items() if plain(value) != plain(defaults.get(name))}

    @classmethod
    def _made_by(cls) -> type[Guest]:
        """The class of this package that it is, or that a user's is derived from."""
        return next(kind for kind in cls.__mro__ if "_session_type" in vars(kind) and issubclass(kind, Guest))

    def __repr__(self) -> str:
        defaults = defaults_of(self._made_by())
        course = course_of(vars(self).get("_history", ()), lambda: self.verdict)
        return described(type(self).__name__, defaults, lambda name: getattr(self, name), course)

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and plain values: what Lightning hangs on a callback is not pickled, nor is the model."""
        own: Any = self._made_by()
        return {"arguments": self._arguments, "state": self.state_dict(), "added": added_to(self, vars(own()))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The callback that was pickled, its history with it; what it last measured is there as figures alone."""
        own: Any = self._made_by()
        own.__init__(self, **state["arguments"])
        self.load_state_dict(state["state"])
        self._is_resumed = False
        vars(self).update(state["added"])

    @property
    def state_key(self) -> str:
        """One per prefix and choice of what is measured."""
        module = list(self.module) if isinstance(self.module, Mapping) else self.module
        return self._generate_state_key(prefix=self.prefix, module=module)

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return state_of(self._history, self._clock, self._budget)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with as much of it as another version of this package wrote and this one knows."""
        self._is_resumed = True
        if amiss := restore(state_dict, self._history, self._clock, self._budget):
            self._notices.tell(amiss, warn="another-version", subject="state")
