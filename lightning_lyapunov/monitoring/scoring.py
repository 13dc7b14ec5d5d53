"""A scorer at work in a run: what it is told of the network, and what becomes of its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_lyapunov.aelle import AeLLEScore, AeLLEScorer
from lightning_lyapunov.capture.finding import architecture_of
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.names import key_of
from lightning_lyapunov.reading.conditions import FAMILIAR


class Scoring:
    """Scores the spectra of one run; a scorer that cannot be had, or fails, is told of and does no harm.

    Args:
        scorer: "general", a path, a scorer or None, as the callback takes it.
        performance: Name of the user's metric that the scorer is told.
        performance_range: Its values by chance and at best.
        prefix: First part of the keys, for what is told.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(
        self,
        scorer: str | AeLLEScorer | None,
        performance: str | None,
        performance_range: tuple[float, float] | None,
        prefix: str,
        tell: Callable[..., None],
    ) -> None:
        self._source, self._metric, self._range = scorer, performance, performance_range
        self._prefix, self._tell = prefix, tell
        self.ready: AeLLEScorer | None = None
        """The scorer, while a fit runs on rank zero."""
        self.score: AeLLEScore | None = None
        """Of the last spectrum, if it could be scored."""
        self._validated: tuple[int, Tensor | None] | None = None  # global step and metric of the last validation

    def begin(self) -> None:
        """Begin a fit."""
        self._validated = None

    def load(self) -> None:
        """Get the scorer ready, if it can be had."""
        try:
            with torch.random.fork_rng(devices=[]):
                if isinstance(self._source, str):
                    general = self._source == "general"
                    self.ready = AeLLEScorer.from_pretrained() if general else AeLLEScorer.load(self._source)
                else:
                    self.ready = self._source
        except Exception as error:
            self._warn(error, f"{self._source!r} could not be loaded")

    def release(self) -> None:
        """Let go of the scorer."""
        self.ready = None

    # ---------------------------------------------------------------- what it is told

    @property
    def _is_told(self) -> bool:
        return self._source is not None and self._metric is not None

    def note_validation(self, trainer: pl.Trainer) -> None:
        """Remember what a validation came to: read again at a later measurement, it is no news."""
        if self._is_told:
            self._validated = trainer.global_step, trainer.callback_metrics.get(str(self._metric))

    def performance_so_far(self, trainer: pl.Trainer, measured_at: tuple[int, int] | None) -> float | None:
        """The last value of the user's metric, as the scorer takes it; None while there is none.

        Args:
            trainer: Whose metrics are read; on every rank, as that may reduce them over the ranks.
            measured_at: Global step and epoch of the last measurement.
        """
        if not self._is_told or trainer.global_step == 0:
            return None
        value = trainer.callback_metrics.get(str(self._metric))
        if value is None:
            self._tell_if_missing(trainer, *(measured_at or (0, 0)))
            return None
        # Lightning makes a new tensor of each new value.
        if self._validated is not None and value is self._validated[1] and self._validated[0] < trainer.global_step:
            self._tell(
                f"{self._metric!r} has no new value at update {trainer.global_step}; the scorer is told its last "
                f"one, of update {self._validated[0]}. Where validation runs, a metric logged in validation_step is "
                "there in time.",
                subject="old performance",
            )
        reached = float(value)
        if self._range is not None:
            worst, best = self._range
            reached = min(max((reached - worst) / (best - worst), 0.0), 1.0) if math.isfinite(reached) else reached
        return reached if math.isfinite(reached) else None

    def _tell_if_missing(self, trainer: pl.Trainer, step: int, epoch: int) -> None:
        """Warn of a metric that should have been there by now, some time after a measurement."""
        an_epoch_ended = step > 0 and epoch < trainer.current_epoch
        if self._validated is not None or (an_epoch_ended and not trainer.enable_validation):
            names = ", ".join(map(repr, sorted(trainer.callback_metrics))) or "none"
            self._tell(
                f"performance: no metric {self._metric!r} was logged so far, so the scorer is not told it; those "
                f"logged are {names}.",
                warn=True,
                subject="performance",
            )

    # ---------------------------------------------------------------- what it says

    def scores(
        self, spectrum: LyapunovSpectrum, layers: Sequence[nn.Module], updates: int, performance: float | None
    ) -> dict[str, float]:
        """What the scorer says of a spectrum, by name; nothing if it cannot.

        Args:
            spectrum: Of the layers together.
            layers: Those that were measured.
            updates: Made so far.
            performance: Reached so far, if known.
        """
        self.score = None
        if self.ready is None:
            return {}
        sizes = [getattr(layer, "hidden_size", None) for layer in layers]
        try:
            with measuring(None, torch.device("cpu")), torch.device("cpu"):
                self.score = said = self.ready.score(
                    spectrum,
                    architecture=architecture_of(layers),
                    hidden_size=max((size for size in sizes if isinstance(size, int)), default=None),
                    updates=updates,
                    performance=performance,
                )
        except Exception as error:
            self._warn(error, "failed")
            return {}
        values = {
            "performance": said.performance,
            "performance_low": said.low,
            "performance_high": said.high,
            "baseline": said.baseline,
            "failure_probability": said.failure_probability,
            "takeoff_probability": said.takeoff_probability,
            "stability": said.stability,
            "familiarity": said.familiarity,
        }
        if said.familiarity < FAMILIAR:
            self._tell(
                f"familiarity is {said.familiarity:.2f}: the spectrum, the size or the kind of cell is unlike the "
                f"networks that the scorer was fitted on, so what {key_of('aelle/', self._prefix)} says is little more "
                "than a guess.",
                warn=True,
                subject="familiarity",
            )
        return {f"aelle/{name}": float(value) for name, value in values.items() if math.isfinite(value)}

    def _warn(self, error: Exception, what: str) -> None:
        self._tell(
            f"the scorer {what}, the spectrum is logged without scores: {type(error).__name__}: {error} (EarlyStopping "
            "that monitors them needs strict=False to go on.)",
            warn=True,
            subject="scorer",
        )
