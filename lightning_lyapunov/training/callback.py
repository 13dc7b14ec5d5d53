"""The callback: when to look at a training run's Lyapunov spectrum, and what to log of it."""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_lyapunov.aelle import AeLLEScore, AeLLEScorer
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget, Plan
from lightning_lyapunov.monitoring.layers import Layers
from lightning_lyapunov.monitoring.loggers.panels import Panels
from lightning_lyapunov.monitoring.loggers.trackers import log_histogram
from lightning_lyapunov.monitoring.ranks import from_rank_zero, gather
from lightning_lyapunov.monitoring.scoring import Scoring
from lightning_lyapunov.monitoring.sharding import why_not
from lightning_lyapunov.names import key_of
from lightning_lyapunov.reading.conditions import DEAD
from lightning_lyapunov.reading.features import spectrum_features
from lightning_lyapunov.reading.history import History, Measurement, read_state
from lightning_lyapunov.reading.rules import news
from lightning_lyapunov.training.stopping import warn_of_impatience

FLOOR = DEAD
"""Nats per step. Exponents below, dead directions among them, are logged as this, since a monitor stops on infinity."""
MOST = 1e6
"""Steps, or nats over a sequence. A gradient horizon beyond is logged as this, and a gain of -inf as minus this."""
_log = logging.getLogger(__name__)
_When = Literal["before training", "step", "validation", "epoch"]
_RECENT = 4
"""Training batches before the end of an epoch that are recorded when no validation will follow."""


class LyapunovSpectrumCallback(pl.Callback):
    r"""Measures the Lyapunov spectrum of a model's recurrent layers while it trains, and logs what it says.

    The layers are driven by the inputs that reach them in the model's own forward pass: those of the first validation
    batches, else of training batches. A measurement is made once per set of weights: when validation ends, else at the
    end of a training epoch, and once before the first update. A scorer reads each spectrum and predicts how well the
    network will do. Training is not touched: the weights after a fit are bit for bit those without the callback. A
    measurement that fails warns once and logs nothing.

    Args:
        module: Name of the recurrent layer to measure, or several; a cell of your own, ``(x, state) -> state``, must
            be named. All of torch's recurrent layers and cells if None.
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
        every_n_train_steps: Measure when so many updates were made since the last time, also within an epoch. Takes
            the place of ``every_n_epochs``.
        max_overhead: Share of the training time so far that measurements may take. Where a whole one would break it,
            fewer sequences are measured, then fewer exponents, and where not even the least fits, none this time; but
            always before the first update and in the first epoch. None: no bound.
        prefix: First part of the keys. Two instances in one Trainer need different ones.
        histogram: Whether to log the spectrum as a histogram too, where the logger can (TensorBoard, W&B).
        figures: Draw pictures for the loggers that take them (TensorBoard, W&B) at one measurement out of so many, as
            far as ``max_overhead`` allows, and when training ends; None: never. They need matplotlib.
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

    Attributes:
        history: What was measured, a :class:`~lightning_lyapunov.reading.History`; on rank zero.
        spectrum: The last spectrum, with its layers, the same on all ranks; None before the first.
        score: The last score, an :class:`~lightning_lyapunov.AeLLEScore`; None before the first; on rank zero.

    Raises:
        ValueError: For an argument out of range.
        MisconfigurationException: In ``setup``, if another instance uses the same prefix, or if the Trainer's strategy
            keeps parameters in flat pieces (FSDP1, the third stage of DeepSpeed).

    Keys, under the prefix ``lyapunov``, with their units. A value that is unknown, because the spectrum is partial or
    growth is not measured, is not logged.

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
    ``kaplan_yorke_dimension``     --           dimension of the attractor
    ``kolmogorov_sinai_entropy``   nats/step    sum of the positive exponents
    ``mean``                       nats/step    mean exponent, the rate of volume over the dimension
    ``trusted_fraction``           share        exponents that rounding cannot have moved
    ``floored``                    count        exponents below −100, which are logged as −100, dead directions (−∞)
                                                among them
    ``seconds``                    s            what the measurement took
    ``overhead``                   share        what all measurements took, of the training time so far
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
    ``stability``                  probability  that the trained network is not chaotic
    ``familiarity``                0 to 1       how like the networks that the scorer was fitted on this one is
    =============================  ===========  ========================================================================

    Example::

        stop = EarlyStopping("lyapunov/max", mode="min", patience=10, divergence_threshold=0.5)
        trainer = Trainer(callbacks=[LyapunovSpectrumCallback(), stop])
    """

    def __init__(
        self,
        module: str | Sequence[str] | None = None,
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
        max_overhead: float | None = 0.1,
        prefix: str = "lyapunov",
        histogram: bool = True,
        figures: int | None = 10,
        report: str | None = None,
        prog_bar: bool = False,
        scorer: str | AeLLEScorer | None = "general",
        performance: str | None = None,
        performance_range: tuple[float, float] | None = None,
    ) -> None:
        counts = {
            "k": k,
            "num_sequences": num_sequences,
            "num_steps": num_steps,
            "interval": interval,
            "every_n_epochs": every_n_epochs,
            "every_n_train_steps": every_n_train_steps,
            "figures": figures,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        if transient is not None and not 0 <= transient < num_steps:
            raise ValueError(f"transient must lie in [0, {num_steps - 1}], below num_steps; got {transient}.")
        if max_overhead is not None and not max_overhead > 0:
            raise ValueError(f"max_overhead must be above 0, or None; got {max_overhead}.")
        if dtype not in (None, "float32", "float64"):
            raise ValueError(f"dtype must be 'float32', 'float64' or None; got {dtype!r}.")
        self._settings = Settings(
            k, transient, interval, None if dtype is None else getattr(torch, dtype), tolerance, growth
        )
        if not prefix or prefix != prefix.strip("/"):
            raise ValueError(f"prefix must be a name without slashes at its ends; got {prefix!r}.")
        if scorer is not None and not isinstance(scorer, str | AeLLEScorer):
            raise ValueError(
                f"scorer must be 'general', a path, an AeLLEScorer or None; got an object of {type(scorer).__name__}."
            )
        if performance is not None and performance_range is None and scorer == "general":
            raise ValueError(
                "performance needs performance_range=(worst, best), the metric by chance and at best, as the general "
                f"scorer reads a skill from 0 to 1; got performance={performance!r} alone."
            )
        if performance_range is not None:
            if performance is None:
                raise ValueError(f"performance_range is that of performance, which is None; got {performance_range}.")
            if not all(map(math.isfinite, performance_range)) or performance_range[0] == performance_range[1]:
                raise ValueError(f"performance_range must be two different numbers; got {performance_range}.")
        self.module = module if module is None or isinstance(module, str) else list(module)
        self.k, self.num_sequences, self.num_steps = k, num_sequences, num_steps
        self.transient, self.interval, self.tolerance = transient, interval, tolerance
        self.growth, self.warm_start, self.dtype = growth, warm_start, dtype
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.max_overhead, self.prefix = max_overhead, prefix
        self.histogram, self.figures, self.report, self.prog_bar = histogram, figures, report, prog_bar
        self.scorer, self.performance, self.performance_range = scorer, performance, performance_range

        self.history = History(prefix)
        self.spectrum: LyapunovSpectrum | None = None
        self._scoring = Scoring(scorer, performance, performance_range, prefix, self._tell_once)
        self._layers: Layers | None = None
        self._told: set[str] = set()
        self._budget = Budget(max_overhead)
        self._panels = Panels(figures, self._warn_of_logger)
        self._seconds_at_start = 0.0  # spent measuring before this fit
        self._trained_before = 0.0  # seconds of training before this fit
        self._started: float | None = None
        self._measured_at: tuple[int, int] | None = None  # global step and epoch of the last measurement of this fit
        self._logged_at = 0  # place of the last measurement on the loggers' axis

    @property
    def score(self) -> AeLLEScore | None:
        """The last score; None before the first, and where there is none of the last spectrum."""
        return self._scoring.score

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
        self._measured_at = None
        self._scoring.begin()
        if trainer.barebones:
            return  # a run without logging, made to time the training itself
        try:
            self._layers = Layers(pl_module, self.module, self.num_sequences, self.num_steps, self._tell_once)
        except Exception as error:
            self._warn(error)
            return
        if trainer.is_global_zero:
            self._scoring.load()
            self._panels.begin(trainer.loggers, self.prefix)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off again."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off also when the fit breaks off: Lightning calls nothing else then."""
        self._write_report(trainer, pl_module)
        self._release()

    # ---------------------------------------------------------------- at the end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole run once more: it holds nothing up now."""
        if trainer.is_global_zero and len(self.history):
            self._draw(trainer)
            self._panels.close(trainer.loggers, self.history, self._logged_at)
        self._write_report(trainer, pl_module)

    def _write_report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The page about the run, as far as it came."""
        if self.report is None or not trainer.is_global_zero or not len(self.history):
            return
        try:
            from lightning_lyapunov.report import write_report

            name = type(pl_module).__name__
            path = Path(self.report) / ("lyapunov.html" if self.prefix == "lyapunov" else f"{self.prefix}.html")
            settings = {key: value for key, value in vars(self).items() if key in _arguments()}
            title, latent_map = f"Lyapunov spectrum of {name}", self._panels.map_for(self._scoring.ready)
            written = write_report(self.history, path, settings=settings, title=title, latent_map=latent_map)
            self._tell_once(f"wrote {written}", subject=f"report {written}")
        except Exception as error:
            self._tell_once(f"the report could not be written: {error}", warn=True, subject="report")

    def _release(self) -> None:
        self._trained_before, self._started = self._training_seconds(), None
        if self._layers is not None:
            self._layers.remove()
        self._layers = None
        self._scoring.release()

    # ---------------------------------------------------------------- what drives the layers

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the inputs of an earlier validation: the layers below may have learnt since."""
        if self._layers is not None:
            self._layers.forget_validation()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first validation batches."""
        if self._layers is not None:
            self._layers.begin_batch("validation")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record no more."""
        if self._layers is not None:
            self._layers.end_batch("validation")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record a training batch if it may be needed."""
        if self._layers is not None and self._is_worth_recording(self._layers, trainer, batch_idx):
            self._layers.begin_batch("training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure within the epoch, where ``every_n_train_steps`` asks for it."""
        if self._layers is not None:
            self._layers.end_batch("training")
        if self.every_n_train_steps is not None and self._is_due(trainer):
            self._measure_and_log(trainer, pl_module, "step")

    def _is_worth_recording(self, layers: Layers, trainer: pl.Trainer, batch_idx: int) -> bool:
        """The first batch always; the last ones if no validation follows; all of them near a measurement between."""
        if batch_idx == 0:
            return True
        if self.every_n_train_steps is not None:
            last = self._measured_at[0] if self._measured_at else trainer.global_step
            return trainer.global_step + 1 - last >= self.every_n_train_steps
        every = trainer.check_val_every_n_epoch
        validation_follows = (
            trainer.enable_validation and every is not None and (trainer.current_epoch + 1) % every == 0
        )
        if validation_follows and layers.have_recorded("validation"):
            return False
        return batch_idx >= trainer.num_training_batches - _RECENT or math.isinf(trainer.num_training_batches)

    # ---------------------------------------------------------------- when to measure

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure before the first update, on what the sanity check brought."""
        with suppress(Exception):  # advice about other callbacks, of whatever kind they are, must not end a run
            warn_of_impatience(trainer, self)
        self._started, self._seconds_at_start = time.perf_counter(), self._budget.spent
        if trainer.global_step == 0 and self._has_recorded(trainer):
            self._measure_and_log(trainer, pl_module, "before training")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Measure before the first update, on the first training batch, if there was no sanity check."""
        if trainer.global_step == 0 and self._measured_at is None and self._has_recorded(trainer):
            self._measure_and_log(trainer, pl_module, "before training")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure in time for whatever monitors at the end of validation."""
        if not trainer.sanity_checking and self._is_due(trainer):
            self._measure_and_log(trainer, pl_module, "validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the validation came to: read again at a later measurement, it is no news."""
        if not trainer.sanity_checking:
            self._scoring.note_validation(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if the weights have moved since the last time: no validation has run."""
        if self._is_due(trainer):
            self._measure_and_log(trainer, pl_module, "epoch")

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether the weights have moved, and often enough; the same on all ranks."""
        if self._measured_at is None:
            return True
        step, epoch = self._measured_at
        if trainer.global_step == step:
            return False
        if self.every_n_train_steps is not None:
            return trainer.global_step - step >= self.every_n_train_steps
        return step == 0 or self.every_n_epochs == 1 or trainer.current_epoch - epoch >= self.every_n_epochs

    def _has_recorded(self, trainer: pl.Trainer) -> bool:
        """Whether inputs have reached a layer, on any rank."""
        return self._layers is not None and any(gather(trainer, self._layers.have_recorded()))

    def _affordable(self, layers: Layers) -> Plan | None:
        """How much of a measurement keeps the time spent measuring within its share; None: nothing does."""
        must = self._measured_at is None or self._measured_at[0] == 0  # the first epoch, also after a resume
        whole = self._whole_plan(layers)
        plan = self._budget.choose(whole, self._training_seconds(), must=must)
        if plan != whole:
            self._tell_once(
                f"to stay under {self.max_overhead:.0%} of the training time, measurements are made smaller or spaced "
                f"out; a whole one takes {self._budget.predicted(whole):.2g} s. max_overhead=None always makes whole "
                "ones; a smaller k, num_sequences or num_steps costs less.",
                subject="budget",
            )
        return plan

    def _whole_plan(self, layers: Layers) -> Plan:
        """What is measured where there is no bound, in the terms of the largest layer."""
        return Plan(self.num_sequences, self.k if self.k is not None else layers.largest_state)

    def _training_seconds(self) -> float:
        """Seconds trained so far, those spent measuring not counted."""
        if self._started is None:
            return self._trained_before
        elapsed = time.perf_counter() - self._started
        return self._trained_before + elapsed - (self._budget.spent - self._seconds_at_start)

    # ---------------------------------------------------------------- measuring

    def _measure_and_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, when: _When) -> None:
        """Measure on all ranks together and log the same on each; rank zero decides how much, and keeps the history."""
        if self._layers is None:
            return
        performance = self._scoring.performance_so_far(trainer, self._measured_at)  # on every rank: it may be reduced
        plan = from_rank_zero(trainer, self._affordable(self._layers) if trainer.is_global_zero else None)
        if plan is None:
            return
        with trainer.profiler.profile(f"[{type(self).__name__}]measure"):  # type: ignore[attr-defined]
            metrics = self._measure(trainer, self._layers, when, performance, plan)
        self._measured_at = (trainer.global_step, trainer.current_epoch)
        if metrics is not None:
            self._log(trainer, pl_module, metrics, when)
            if trainer.is_global_zero:
                self._tell_news()
                self._draw_if_due(trainer, self._layers)
            for other in trainer.callbacks:  # type: ignore[attr-defined]  # who acts on it, wherever in the list
                if hasattr(other, "on_lyapunov_measurement"):
                    other.on_lyapunov_measurement(trainer, self)

    def _measure(
        self, trainer: pl.Trainer, layers: Layers, when: _When, performance: float | None, plan: Plan
    ) -> dict[str, float] | None:
        """The metrics of the weights as they are, the same on all ranks; None if it could not be done."""
        start = time.perf_counter()
        metrics = None
        try:
            self.spectrum = self._spectrum_now(trainer, layers, when, plan)
            if trainer.is_global_zero:
                found = self._metrics(self.spectrum)  # reads from the device, so that the time below is all it took
                scores = self._scoring.scores(self.spectrum, layers.measured, trainer.global_step, performance)
                metrics = found | scores
        except Exception as error:
            self._warn(error)
        finally:
            seconds = time.perf_counter() - start
            self._budget.note(plan, seconds)
        if metrics is not None:
            metrics["seconds"] = seconds
            if trainer.global_step > 0:
                metrics["overhead"] = self._budget.spent / self._training_seconds()
            self._keep(trainer, layers, metrics, performance)
        return from_rank_zero(trainer, metrics)

    def _keep(self, trainer: pl.Trainer, layers: Layers, metrics: dict[str, float], performance: float | None) -> None:
        """Add the measurement to the history."""
        spectrum = self.spectrum
        assert spectrum is not None
        self.history.append(
            Measurement.of(
                spectrum,
                step=trainer.global_step,
                epoch=trainer.current_epoch,
                metrics=metrics,
                length=layers.longest or None,
                latent=None if self.score is None else self.score.latent,
                reached=performance,
            )
        )

    def _spectrum_now(self, trainer: pl.Trainer, layers: Layers, when: _When, plan: Plan) -> LyapunovSpectrum:
        """Of the inputs of validation where one has just run, since it is the same data each time; else training's."""
        spectrum = layers.spectrum(
            trainer,
            "training" if when in ("step", "epoch") else "validation",
            plan,
            self._settings,
            warm_start=self.warm_start,
        )
        if any(part.exponents[0].isnan() for part in (spectrum, *spectrum.parts.values())):
            raise ValueError("the largest exponent is NaN: the states of the network overflow along its inputs.")
        return spectrum

    def _metrics(self, spectrum: LyapunovSpectrum) -> dict[str, float]:
        """What is logged, by name: finite numbers only; what is unknown is left out."""
        values = spectrum_features(spectrum)
        values["floored"] = float((spectrum.exponents <= FLOOR).sum())
        if spectrum.parts:
            values |= {f"{name}/max": float(part.exponents[0]) for name, part in spectrum.parts.items()}
        return {name: min(max(value, _lowest(name)), MOST) for name, value in values.items() if not math.isnan(value)}

    # ---------------------------------------------------------------- logging

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, named: dict[str, float], when: _When) -> None:
        metrics = {key_of(name, self.prefix): value for name, value in named.items()}
        if when in ("validation", "epoch"):
            pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
        elif when == "step":
            # Monitors see it through Lightning; the loggers get it directly, or log_every_n_steps would drop most.
            pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1, logger=False)
        if self.prog_bar and when != "before training":
            on_step = when == "step"
            pl_module.log(
                f"{self.prefix}_max", named["max"], on_step=on_step, on_epoch=not on_step, prog_bar=True, logger=False
            )
        step = self._logged_at = _logging_step(trainer, when)
        for logger in trainer.loggers:
            try:
                if when in ("before training", "step"):
                    logger.log_metrics({**metrics, "epoch": float(trainer.current_epoch)}, step=step)
                if self.histogram and self.spectrum is not None and trainer.is_global_zero:
                    log_histogram(logger, f"{self.prefix}/spectrum", self.spectrum.exponents, step)
            except Exception as error:  # a tracker that is down is no reason to end a run
                self._warn_of_logger(logger, error)

    def _tell_news(self) -> None:
        """Say it in words when a state begins."""
        try:
            for finding in news(self.history):
                level = logging.WARNING if finding.level == "warning" else logging.INFO
                _log.log(level, "%d updates: %s", self.history[-1].step, finding.text)
        except Exception as error:
            self._tell_once(f"what the measurement means could not be told: {error}", warn=True, subject="news")

    def _draw_if_due(self, trainer: pl.Trainer, layers: Layers) -> None:
        """Draw pictures if it is time, and if the budget leaves room for them beside the next measurement."""
        if not self._panels.is_due(trainer.loggers):
            return
        needed = self._panels.seconds + self._budget.predicted(self._whole_plan(layers))
        if self._budget.allows(needed, self._training_seconds()):
            self._budget.spent += self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> float:
        """Draw, and the seconds it took."""
        try:
            with trainer.profiler.profile(f"[{type(self).__name__}]draw"):  # type: ignore[attr-defined]
                return self._panels.draw(trainer.loggers, self.history, self._logged_at, self._scoring.ready)
        except Exception as error:
            self._panels.every = None
            self._tell_once(f"no pictures are drawn: {error}", warn=not isinstance(error, ImportError))
            return 0.0

    def _warn_of_logger(self, logger: Any, error: Exception) -> None:
        text = f"{type(logger).__name__} refused the measurement ({type(error).__name__}: {error})."
        self._tell_once(text, warn=True, subject=type(logger).__name__)

    def _warn(self, error: Exception) -> None:
        self._tell_once(
            f"the Lyapunov spectrum could not be measured, training goes on without it: {error} "
            "(EarlyStopping that monitors it needs strict=False to go on too; ModelCheckpoint that does cannot, before "
            "there is a first value.)",
            warn=True,
            subject="failure",
        )

    def _tell_once(self, text: str, *, warn: bool = False, subject: str | None = None) -> None:
        """Say something once in the life of this callback."""
        if (subject or text) in self._told:
            return
        self._told.add(subject or text)
        text = f"{type(self).__name__}: {text}"
        if warn:
            rank_zero_warn(text, stacklevel=4)
        else:
            rank_zero_info(text)

    # ---------------------------------------------------------------- state

    @property
    def state_key(self) -> str:
        """One per prefix and choice of layers."""
        return self._generate_state_key(prefix=self.prefix, module=self.module)

    def state_dict(self) -> dict[str, Any]:
        """History and clocks: tensors and plain values only."""
        return {
            "history": self.history.state_dict(),
            "measuring_seconds": self._budget.spent,
            "training_seconds": self._training_seconds(),
            "costs": [[plan.sequences, plan.k, seconds] for plan, seconds in self._budget.costs.items()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with as much of it as another version of this package wrote and this one knows."""
        kinds = {"history": object, "measuring_seconds": float, "training_seconds": float, "costs": list}
        known, amiss = read_state(state_dict, kinds, "state")
        amiss_in_history = self.history.load_state_dict(known.get("history", {}))
        amiss += amiss_in_history if "history" in known else []
        self._budget.spent = self._seconds_at_start = known.get("measuring_seconds", 0.0)
        self._trained_before = known.get("training_seconds", 0.0)
        costs = [c for c in known.get("costs", []) if isinstance(c, list) and [*map(type, c)] == [int, int, float]]
        self._budget.costs = {Plan(sequences, k): seconds for sequences, k, seconds in costs}
        if amiss:
            self._tell_once(
                f"the checkpoint is of another version of this package ({'; '.join(amiss)}); what it lacks begins "
                "anew.",
                warn=True,
                subject="state",
            )


def _lowest(name: str) -> float:
    """What a figure is logged as where it is lower: a rate at most so low, a change over a sequence as it is."""
    return -MOST if name.startswith("gradient_") else FLOOR


def _arguments() -> set[str]:
    """What the callback can be told."""
    return set(inspect.signature(LyapunovSpectrumCallback).parameters)


def _logging_step(trainer: pl.Trainer, when: _When) -> int:
    """Where Lightning puts ``self.log`` of the same moment on the loggers' axis, which counts batches, not updates."""
    try:
        step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    except AttributeError:
        step = trainer.global_step
    return max(0, step - 1) if when == "epoch" else step  # by then the counter has moved on
