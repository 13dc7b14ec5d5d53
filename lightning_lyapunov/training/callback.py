"""The guest in a Trainer: Lightning's hooks, told to the session that watches the network."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_lyapunov.aelle import AeLLEScore, AeLLEScorer
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.checkpoint import restore, state_of
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.options import Options
from lightning_lyapunov.monitoring.session import Session, warn_of_failure
from lightning_lyapunov.monitoring.sharding import why_not
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict, verdict
from lightning_lyapunov.training.logging import log_figures, logging_step
from lightning_lyapunov.training.optimisation import Optimisation
from lightning_lyapunov.training.performance import Performance
from lightning_lyapunov.training.pickling import added_to
from lightning_lyapunov.training.ranks import TrainerRanks
from lightning_lyapunov.training.schedule import Schedule, When
from lightning_lyapunov.training.stock import warn_of_impatience, warn_of_skip

ADVICE = (
    " (EarlyStopping that monitors it needs strict=False to go on too; ModelCheckpoint that does cannot, before there "
    "is a first value.)"
)
"""What becomes of those who monitor what could not be measured."""


class LyapunovSpectrumCallback(pl.Callback):
    r"""Measures the Lyapunov spectrum of a model's recurrent layers while it trains, and logs what it says.

    The layers are driven by the inputs that reach them in the model's own forward pass. A series of measurements has
    one source of inputs: the first batches of each validation, if the fit validates, and then epochs without validation
    are not measured; else the last training batches of each epoch. A measurement is made once per set of weights.
    Promised are one before the first update, one in the first epoch (also after a resume) and one at the end; the
    budget decides on the others. Without a sanity check the one before the first update is driven by a training batch;
    it says so, and is compared with no other.

    Rows of a batch live separate lives: where a state is set back, a row begins anew, and one that is finished, or held
    by a mask, ends; a row that is passed over several times counts once. A scorer reads each spectrum and predicts how
    well the network will do; beside it the scorer is told what is free to know: kind and base rate of the optimiser,
    the norm of the last gradient before clipping, mean and spread of the states, the length of the sequences. Training
    is not touched: the weights after a fit are bit for bit those without the callback. A measurement that fails warns
    once a fit and logs nothing.

    Args:
        module: Name of the recurrent layer to measure, or several; a cell of your own must be named, and how it passes
            its state on is recognised from its calls. Or names with what says how each is read and stepped: an
            :class:`~lightning_lyapunov.capture.Adapter`, or a function ``step(module, x, state) -> state``. If None all
            recurrent layers and cells of torch's, subclasses of them, and modules of libraries that are known.
        k: Number of leading exponents; None for the whole spectrum, whose cost grows with the cube of the state size.
        num_sequences: Sequences measured, on all devices together; their spread gives the error bars.
        num_steps: Steps of each sequence, the first ones.
        transient: Steps of each that settle state and frame and do not count for the exponents; if None half of each
            sequence, at most 64.
        interval: Steps between reorthonormalisations; chosen by the precision law if None.
        dtype: Arithmetic of the tangent vectors; chosen by the precision law if None. The run's own precision never
            reaches the measurement.
        tolerance: Stop a measurement early when every standard error is below it, nats per step.
        growth: Leading singular values of the product of all Jacobians of a sequence to measure beside the exponents:
            what happens to a gradient between its last step and its first. 8, or k if that is less, if None; 0: none.
        warm_start: Begin with the frames of the last measurement where the inputs are the same, three times out of
            four: it saves the transient, but the figures are no longer those of the weights and inputs alone.
        every_n_epochs: Measure in one epoch out of so many; the first one always, also after a resume.
        every_n_train_steps: Measure when so many updates were made since the last time, also within an epoch, driven by
            training batches throughout. Takes the place of ``every_n_epochs``.
        max_overhead: Share of the training time so far that everything together may take, recording, measuring,
            scoring, logging, pictures and report; or one second in all where that is more. Where a whole measurement
            would break it, fewer sequences are measured, then fewer steps, then fewer exponents, and where not even the
            least fits, none this time. Those that are promised are cut to one second, or to ten training steps' time
            where that is more. None: no bound.
        prefix: First part of the keys. Two instances in one Trainer need different ones.
        metrics: What the loggers get: "default", eight figures; "all"; or a list of names. Monitors can watch all of
            them in any case.
        histogram: Whether to log the spectrum as a histogram too, where the logger can (TensorBoard, W&B).
        figures: Whether to draw pictures for the loggers that take them (TensorBoard, W&B): at the first two
            measurements, then ever more rarely, as far as ``max_overhead`` allows, and when training ends. They need
            matplotlib.
        report: Directory in which to write a page about the run, with pictures and what they mean in words, when the
            fit ends. It needs matplotlib.
        prog_bar: Whether to show the largest exponent on the progress bar.
        scorer: What predicts from a spectrum how well the network will do: "general", the pretrained one; the path of
            one that was saved; or an :class:`~lightning_lyapunov.AeLLEScorer`. None: no scores.
        performance: Name of a metric you log, as "val_acc": what the network has reached so far, which the scorer is
            then told. It is the last value known when the spectrum is scored. Logged in ``validation_step`` it is
            that of the same validation; logged when validation ends (``on_validation_epoch_end``), or in training, it
            may be one validation or epoch old.
        performance_range: Its values by chance and at best, ``(worst, best)``, which make a skill from 0 to 1 of it;
            for a loss the worst is the larger. The general scorer needs it; others, if None, are told the metric as
            it is.
        closed_loop: What feeds a forecaster with its own forecasts: a function of the LightningModule, or the name of a
            method of its own, that returns ``(step, state)``: a map ``step(None, state) -> state``, and the states at
            which it begins, ``(B, ...)`` or a tuple of these, a row per sequence. Eight rows from the data are enough.
            Its largest exponent is then measured over 500 steps after each measurement, of fewer or not at all where
            ``max_overhead`` has no room, on rank zero alone. None: it is not measured.
        reference: Spectra that those of this run are compared with, as those of the dense network while a sparse one is
            trained: the path of a checkpoint of that run, or of what ``torch.save(callback.state_dict(), path)`` wrote;
            its :class:`~lightning_lyapunov.reading.History`; pairs ``(step, spectrum)`` or ``(step, exponents)``, of
            the whole state; or one :class:`~lightning_lyapunov.LyapunovSpectrum` for all updates. The measurement
            nearest in updates counts, if it is within a tenth of those made and was driven by inputs of the same
            source. For a fair comparison both runs see the same validation batches and measure as much of them, with
            ``max_overhead=None``. None: no comparison.

    Attributes:
        history: What was measured in the last fit, a :class:`~lightning_lyapunov.reading.History`; on rank zero. Those
            of earlier fits are kept apart, in ``history.earlier``.
        spectrum: The last spectrum of this fit, with its layers, the same on all ranks; None before the first.
        score: The last score of this fit, an :class:`~lightning_lyapunov.AeLLEScore`; None before the first; on rank
            zero.

    Raises:
        ValueError: For an argument out of range.
        MisconfigurationException: In ``setup``, if another instance uses the same prefix, or if the Trainer's strategy
            keeps parameters in flat pieces (FSDP1, the third stage of DeepSpeed).

    Keys, under the prefix ``lyapunov``, with their units. Monitors see all of them, the loggers those that ``metrics``
    asks for. A value that is unknown, because the spectrum is partial or growth is not measured, is not there.

    =============================  ===========  ========================================================================
    ``max``                        nats/step    largest exponent λ₁, a rate in the long run where it has settled: above
                                                0 the network is chaotic
    ``max_error``                  nats/step    half-width of the 95 % bar of λ₁, the ± of every sentence and picture
    ``max_stderr``                 nats/step    standard error of λ₁, from the spread between sequences alone
    ``settled_fraction``           share        exponents that may be read as rates in the long run
    ``gradient_gain``              nats         what a gradient grows by from the last step of a sequence to the first,
                                                in a typical one: e to this power is the factor
    ``gradient_growth``            nats         the most that a gradient can grow over a sequence, ln σ₁ of the product
                                                of its Jacobians
    ``gradient_horizon``           steps        steps in which a gradient changes e-fold, at its pace over a sequence;
                                                at least so many where the error of the gain is larger than the gain
    ``stability_margin``           nats/step    −λ₁ less its error: above 0 the network is stable, if λ₁ has settled
    ``near_zero_fraction``         share        directions with |λ| < 0.05, which keep what they saw
    ``unstable_fraction``          share        directions with λ > 0
    ``kaplan_yorke_dimension``     --           dimension of the attractor; 0 where all exponents are negative, whatever
                                                the network computes
    ``kolmogorov_sinai_entropy``   nats/step    sum of the positive exponents
    ``mean``                       nats/step    mean exponent, the rate of volume over the dimension
    ``trusted_fraction``           share        exponents that rounding cannot have moved
    ``floored``                    count        exponents below −100, which are logged as −100, dead directions (−∞)
                                                among them
    ``closed_loop_max``            nats/step    with ``closed_loop``, the largest exponent of the model fed with its
                                                own forecasts
    ``closed_loop_error``          nats/step    half-width of the 95 % bar of ``closed_loop_max``
    ``distance``                   --           with ``reference``, how far the spectrum is from that of the reference
                                                after as many updates: root mean square difference of e^λ, in order
    ``verdict``                    0 to 2       0 healthy, 1 watch, 2 act: what was right of 80 %, or 95 %, of the
                                                bank's networks that were told the same
    ``seconds``                    s            what the measurement took
    ``overhead``                   share        what recording, measuring, logging and pictures took, of the training
                                                time so far
    ``<layer>/max``                nats/step    with several layers, the largest exponent of each
    =============================  ===========  ========================================================================

    What the scorer says of it, under ``aelle``; under ``<prefix>/aelle`` if you choose another prefix. Skill is the
    share of the way from chance to the best, unless a scorer of your own was fitted on something else.

    =============================  ===========  ========================================================================
    ``performance``                skill        predicted skill at the end of training, from 0 (chance) to 1 (the best
                                                networks of a task)
    ``performance_low``            skill        lower end of its 80 % interval
    ``performance_high``           skill        upper end of its 80 % interval
    ``baseline``                   skill        the same prediction without the spectrum, which it must beat
    ``failure_probability``        probability  that the network never learns its task: final skill below 0.1
    ``takeoff_probability``        probability  that its final skill is above 0.3; of a network at chance, that it will
                                                still take off
    ``ends_stable_probability``    probability  that the trained network is not chaotic
    ``familiarity``                0 to 1       how like the networks that the scorer was fitted on this one is
    =============================  ===========  ========================================================================

    Example::

        stop = EarlyStopping("lyapunov/max", mode="min", patience=10, divergence_threshold=0.5)
        trainer = Trainer(callbacks=[LyapunovSpectrumCallback(), stop])
    """

    def __init__(
        self,
        module: str | Sequence[str] | Mapping[str, Any] | None = None,
        *,
        k: int | None = 32,
        num_sequences: int = 16,
        num_steps: int = 64,
        transient: int | None = None,
        interval: int | None = None,
        dtype: Literal["float32", "float64"] | None = None,
        tolerance: float | None = None,
        growth: int | None = None,
        warm_start: bool = False,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        max_overhead: float | None = 0.03,
        prefix: str = "lyapunov",
        metrics: Literal["default", "all"] | Sequence[str] = "default",
        histogram: bool = True,
        figures: bool = True,
        report: str | None = None,
        prog_bar: bool = False,
        scorer: str | AeLLEScorer | None = "general",
        performance: str | None = None,
        performance_range: tuple[float, float] | None = None,
        closed_loop: str | Callable[[Any], Any] | None = None,
        reference: str | Path | History | LyapunovSpectrum | Sequence[tuple[int, Any]] | None = None,
    ) -> None:
        for name, count in {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        given = isinstance(module, Sequence) and not isinstance(module, str)
        self.module = list(module) if given else module  # type: ignore[arg-type]
        self.k, self.num_sequences, self.num_steps = k, num_sequences, num_steps
        self.transient, self.interval, self.tolerance = transient, interval, tolerance
        self.growth, self.warm_start, self.dtype = growth, warm_start, dtype
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.max_overhead, self.prefix, self.metrics = max_overhead, prefix, metrics
        self.histogram, self.figures, self.report, self.prog_bar = histogram, figures, report, prog_bar
        self.scorer, self.performance, self.performance_range = scorer, performance, performance_range
        self.closed_loop, self.reference = closed_loop, reference
        self._options()  # which checks them
        self._history = History(prefix)
        self._notices = Notices(type(self).__name__, rank_zero_info, _warn)
        self._schedule = Schedule(every_n_epochs, every_n_train_steps)
        self._begin(Budget(max_overhead))
        self._is_resumed = False
        self._model: weakref.ref[pl.LightningModule] | None = None

    def _begin(self, budget: Budget) -> None:
        self._budget, self._clock = budget, Clock(lambda: budget.away)
        self._session: Session | None = None
        self._performance: Performance | None = None
        self._optimisation: Optimisation | None = None
        self.spectrum: LyapunovSpectrum | None = None
        self.score: AeLLEScore | None = None
        self._batch_began = 0.0
        self._logged_at = 0  # place of the last measurement on the loggers' axis
        self._has_warned_of_skip = False

    def _options(self) -> Options:
        """What the session is told: the arguments as they are now."""
        return Options(**{name: getattr(self, name) for name in Options.names()})

    @property
    def history(self) -> History:
        """What was measured in the last fit; of those before it :attr:`History.earlier`."""
        return self._history

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the fit so far: ``healthy``, ``watch`` or ``act``, with a sentence; None before the first."""
        return verdict(self._history)

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
        others = [c for c in callbacks if isinstance(c, LyapunovSpectrumCallback) and c is not self]
        if any(other.prefix == self.prefix for other in others):
            raise MisconfigurationException(
                f"Two LyapunovSpectrumCallbacks use the prefix {self.prefix!r}; give one of them another prefix=."
            )
        if (reason := why_not(trainer.strategy)) is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {reason}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers, which ``configure_model`` may only just have made, and watch what drives them."""
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
            options = self._options()
            self._session = Session(
                pl_module,
                options,
                self._history,
                self._budget,
                self._clock,
                self._notices,
                TrainerRanks(trainer),
                ADVICE,
            )
            self._performance = Performance(options, self._notices.tell)
            self._optimisation = Optimisation(trainer, self._session, self._notices.tell)
        except Exception as error:
            warn_of_failure(self._notices, error, ADVICE)
            return
        if trainer.is_global_zero:
            self._session.begin_logging(trainer.loggers)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off again."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off also when the fit breaks off: Lightning calls nothing else then."""
        self._write_report(trainer)
        self._release()

    def _release(self) -> None:
        self._clock.stop()
        if self._session is not None:
            self._session.close()
        self._session = self._optimisation = None

    # ---------------------------------------------------------------- what drives the layers

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the inputs of an earlier epoch: the same rows come again, and the layers below have learnt since."""
        if self._session is not None and self._schedule.at is not None:
            self._session.layers.forget("training")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the inputs of an earlier validation: the layers below may have learnt since."""
        if self._session is not None:
            self._session.layers.forget("validation")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first validation batches."""
        if self._session is not None:
            self._session.layers.begin_batch("validation")
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
            self._session.layers.end_batch("validation")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record a training batch if it may be needed."""
        if self._session is not None:
            self._batch_began = time.perf_counter()
            layers = self._session.layers
            has_validation = layers.have_recorded("validation")
            if self._schedule.is_worth_recording(
                trainer, batch_idx, has_validation=has_validation, needed=layers.batches_needed
            ):
                layers.begin_batch("training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure within the epoch, where ``every_n_train_steps`` asks for it."""
        if self._session is not None:
            self._session.layers.end_batch("training")
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
        if self._optimisation is not None:
            self._optimisation.begin_training(trainer)
        if session is not None and self._schedule.source == "training":
            session.layers.forget("validation")  # of the sanity check, which is not of this series
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
        session.layers.end_turn("training", is_again=pl_module.automatic_optimization)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the norm of the gradient before it is clipped, if a measurement may come next."""
        if self._optimisation is not None:
            self._optimisation.note_gradient(trainer, optimizer, self._schedule)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure in time for whatever monitors at the end of validation."""
        if self._session is not None and not trainer.sanity_checking and self._schedule.is_due(trainer, "validation"):
            self._measure_and_log(self._session, trainer, pl_module, "validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the validation came to: read again at a later measurement, it is no news."""
        if self._performance is not None and not trainer.sanity_checking:
            self._performance.note_validation(trainer)

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

    # ---------------------------------------------------------------- measuring

    def _measure_and_log(
        self, session: Session, trainer: pl.Trainer, pl_module: pl.LightningModule, when: When
    ) -> None:
        """Measure on all ranks together and log the same on each; rank zero decides how much, and keeps the history."""
        assert self._performance is not None and self._optimisation is not None
        # On every rank: a metric may be reduced over them as it is read.
        performance = self._performance.so_far(trainer, self._schedule.at)
        promised = when == "end" or self._schedule.is_promised()
        with trainer.profiler.profile(f"[{type(self).__name__}]measure"):  # type: ignore[attr-defined]
            figures = session.measure(
                trainer.global_step,
                trainer.current_epoch,
                source=self._schedule.source,
                is_partial=when == "before training" and trainer.training and not pl_module.automatic_optimization,
                promised=promised,
                progress=_progress(trainer),
                facts=self._optimisation.facts(trainer, performance),
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
        self.spectrum, self.score = session.spectrum, session.scoring.score
        self._log(session, trainer, pl_module, figures, when)
        if when != "end":
            for other in trainer.callbacks:  # type: ignore[attr-defined]  # who acts on it, wherever in the list
                if hasattr(other, "on_lyapunov_measurement"):
                    other.on_lyapunov_measurement(trainer, self)

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
            exponents = None if session.spectrum is None else session.spectrum.exponents
            log_figures(trainer, figures, when, self._options(), exponents, session.warn_of_logger, self._notices.tell)
            if self.prog_bar and when not in ("before training", "end"):
                is_step = when == "step"
                pl_module.log(
                    f"{self.prefix}_max",
                    figures["max"],
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
            self._session.write_report(self.report, self._arguments)

    # ---------------------------------------------------------------- state

    @property
    def _arguments(self) -> dict[str, Any]:
        """What the callback was told, by the names of its arguments."""
        own = ("every_n_epochs", "every_n_train_steps", "report", "prog_bar")
        return {name: getattr(self, name) for name in (*Options.names(), *own)}

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and plain values: what Lightning hangs on a callback is not pickled, nor is the model."""
        added = added_to(self, vars(LyapunovSpectrumCallback()))
        return {"arguments": self._arguments, "state": self.state_dict(), "added": added}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The callback that was pickled, its history with it; what it last measured is there as figures alone."""
        LyapunovSpectrumCallback.__init__(self, **state["arguments"])
        self.load_state_dict(state["state"])
        self._is_resumed = False
        vars(self).update(state["added"])

    @property
    def state_key(self) -> str:
        """One per prefix and choice of layers."""
        module = list(self.module) if isinstance(self.module, Mapping) else self.module
        return self._generate_state_key(prefix=self.prefix, module=module)

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return state_of(self._history, self._clock, self._budget)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with as much of it as another version of this package wrote and this one knows."""
        self._is_resumed = True
        if amiss := restore(state_dict, self._history, self._clock, self._budget):
            self._notices.tell(amiss, warn=True, subject="state")


def _progress(trainer: pl.Trainer) -> float:
    """Share of the fit that is done; 1 where it has no end that is known."""
    epochs, steps = trainer.max_epochs or 0, trainer.max_steps or 0
    shares = [trainer.current_epoch / epochs] if epochs > 0 else []
    shares += [trainer.global_step / steps] if steps > 0 else []
    return min(max(shares, default=1.0), 1.0)


def _warn(text: str) -> None:
    rank_zero_warn(text, stacklevel=6)


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([LyapunovSpectrumCallback])
