"""The user's own metric, as the scorer is told it: the skill that the network has reached so far."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
from torch import Tensor

from lightning_lyapunov.monitoring.options import Options


class Performance:
    """Reads the metric of one fit.

    Args:
        options: Which metric it is, and what its values mean.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(self, options: Options, tell: Callable[..., None]) -> None:
        self._options, self._tell = options, tell
        self._validated: tuple[int, Tensor | None] | None = None  # global step and metric of the last validation

    @property
    def _is_told(self) -> bool:
        return self._options.scorer is not None and self._options.performance is not None

    def note_validation(self, trainer: pl.Trainer) -> None:
        """Remember what a validation came to: read again at a later measurement, it is no news."""
        if self._is_told:
            self._validated = trainer.global_step, trainer.callback_metrics.get(str(self._options.performance))

    def so_far(self, trainer: pl.Trainer, measured_at: tuple[int, int] | None) -> float | None:
        """The last value of the metric, as the scorer takes it; None while there is none.

        Args:
            trainer: Whose metrics are read; on every rank, as that may reduce them over the ranks.
            measured_at: Global step and epoch of the last measurement.
        """
        if not self._is_told or trainer.global_step == 0:
            return None
        name = str(self._options.performance)
        value = trainer.callback_metrics.get(name)
        if value is None:
            self._tell_if_missing(trainer, name, *(measured_at or (0, 0)))
            return None
        # Lightning makes a new tensor of each new value.
        if self._validated is not None and value is self._validated[1] and self._validated[0] < trainer.global_step:
            self._tell(
                f"{name!r} has no new value at update {trainer.global_step}; the scorer is told its last one, of "
                f"update {self._validated[0]}. Where validation runs, a metric logged in validation_step is there in "
                "time.",
                subject="old performance",
            )
        if why := self._options.why_not_told(float(value)):
            self._tell(why, warn="scorer-not-told", subject="performance range")
        return self._options.skill_of(float(value))

    def _tell_if_missing(self, trainer: pl.Trainer, name: str, step: int, epoch: int) -> None:
        """Warn of a metric that should have been there by now, some time after a measurement."""
        an_epoch_ended = step > 0 and epoch < trainer.current_epoch
        if self._validated is not None or (an_epoch_ended and not trainer.enable_validation):
            names = ", ".join(map(repr, sorted(trainer.callback_metrics))) or "none"
            self._tell(
                f"performance: no metric {name!r} was logged so far, so the scorer is not told it; those logged are "
                f"{names}.",
                warn="scorer-not-told",
                subject="performance",
            )
