"""The guest in a Trainer that measures recurrent layers: what it is told, and what it tells a scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lightning_lyapunov.aelle import AeLLEScore, AeLLEScorer
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.budget import Budget
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.verdict import Verdict, verdict
from lightning_lyapunov.training.guest import Guest
from lightning_lyapunov.training.optimisation import Optimisation
from lightning_lyapunov.training.performance import Performance


class LyapunovSpectrumCallback(Guest):
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
        metrics: What the loggers get: "default", ten figures; "all"; or a list of names. Monitors can watch all of
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

    Keys, under the prefix ``lyapunov``: those of :data:`~lightning_lyapunov.names.QUANTITIES`, which says of each what
    it is, in what unit, and what to do about it; what the scorer says stands under ``aelle``, or ``<prefix>/aelle`` if
    you choose another prefix. Monitors see all of them, the loggers those that ``metrics`` asks for. A value that is
    unknown, because the spectrum is partial or growth is not measured, is not there.

    Example::

        stop = EarlyStopping("lyapunov/max", mode="min", patience=10, divergence_threshold=0.5)
        trainer = Trainer(callbacks=[LyapunovSpectrumCallback(), stop])
    """

    _session_type = LyapunovSession
    _shown = "max"
    _acts = "on_lyapunov_measurement"

    history: History
    spectrum: LyapunovSpectrum | None
    _session: LyapunovSession | None

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
        self.num_sequences, self.num_steps, self.histogram = num_sequences, num_steps, histogram
        self.transient, self.interval, self.growth, self.warm_start = transient, interval, growth, warm_start
        self.scorer, self.performance, self.performance_range = scorer, performance, performance_range
        self.closed_loop, self.reference = closed_loop, reference
        super().__init__(
            module,
            k=k,
            dtype=dtype,
            tolerance=tolerance,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            max_overhead=max_overhead,
            prefix=prefix,
            metrics=metrics,
            figures=figures,
            report=report,
            prog_bar=prog_bar,
        )

    def _begin(self, budget: Budget) -> None:
        super()._begin(budget)
        self._performance: Performance | None = None
        self._optimisation: Optimisation | None = None
        self.score: AeLLEScore | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the fit so far: ``healthy``, ``watch`` or ``act``, with a sentence; None before the first."""
        return verdict(self.history)

    # ---------------------------------------------------------------- what the scorer is told

    def _watching(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> LyapunovSession:
        session = super()._watching(trainer, pl_module)
        assert isinstance(session, LyapunovSession)
        self._performance = Performance(session.options, self._notices.tell)
        self._optimisation = Optimisation(trainer, session, self._notices.tell)
        return session

    def _release(self) -> None:
        super()._release()
        self._optimisation = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the rates that training begins with, and measure before the first update."""
        if self._optimisation is not None:
            self._optimisation.begin_training(trainer)
        super().on_train_start(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the norm of the gradient before it is clipped, if a measurement may come next."""
        if self._optimisation is not None:
            self._optimisation.note_gradient(trainer, optimizer, self._schedule)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the validation came to: read again at a later measurement, it is no news."""
        if self._performance is not None and not trainer.sanity_checking:
            self._performance.note_validation(trainer)

    def _known(self, trainer: pl.Trainer) -> dict[str, Any]:
        assert self._performance is not None and self._optimisation is not None
        # On every rank: a metric may be reduced over them as it is read.
        performance = self._performance.so_far(trainer, self._schedule.at)
        return {"facts": self._optimisation.facts(trainer, performance)}

    def _take(self, session: Any) -> None:
        super()._take(session)
        self.score = session.scoring.score


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([LyapunovSpectrumCallback])
