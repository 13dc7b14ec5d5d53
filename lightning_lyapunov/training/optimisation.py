"""What a Trainer's optimisers tell of a fit, for the scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.gradient import GradientNorm
from lightning_lyapunov.monitoring.learning import Learning
from lightning_lyapunov.monitoring.lyapunov_session import LyapunovSession
from lightning_lyapunov.training.schedule import Schedule


class Optimisation:
    """Reads rates and gradients of one fit, where there is a scorer to be told; what cannot be read is not known.

    Args:
        trainer: Whose optimisers; as they were made, before a checkpoint has told them where to go on.
        session: That measures, and scores.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(self, trainer: pl.Trainer, session: LyapunovSession, tell: Callable[..., None]) -> None:
        self._session, self._tell = session, tell
        self._learning, self._gradient = Learning(), GradientNorm()
        with self._reading():
            self._learning.look(trainer.optimizers)

    @property
    def _is_asked(self) -> bool:
        return self._session.scoring.ready is not None  # on rank zero alone

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Charge what it costs; an optimiser is the user's, and anything may come of looking at it."""
        try:
            with self._session.budget.spending("recording"):
                yield
        except Exception as error:
            self._tell(
                f"the scorer is not told all about the optimiser: {type(error).__name__}: {error}",
                warn="scorer-not-told",
                subject="optimiser",
            )

    def begin_training(self, trainer: pl.Trainer) -> None:
        """Training begins with the rates as they are: a search for them may have come before."""
        with self._reading():
            if trainer.global_step == 0:
                self._learning.forget()
            self._learning.look(trainer.optimizers)

    def note_gradient(self, trainer: pl.Trainer, optimizer: Any, schedule: Schedule) -> None:
        """Take the norm of the gradient that an update is about to be made with, if a measurement may follow it.

        Lightning calls this once gradients are accumulated and unscaled, and before it clips them.
        """
        if not self._is_asked or not schedule.may_follow(trainer) or _is_scaled(trainer, optimizer):
            return
        with self._reading():
            self._gradient.note(optimizer, trainer.global_step)

    def facts(self, trainer: pl.Trainer, performance: float | None) -> Facts:
        """What is known before a measurement.

        Args:
            trainer: Whose fit it is.
            performance: Skill reached so far.
        """
        rate = adaptive = norm = None
        if self._is_asked:
            with self._reading():
                optimizers, layers = trainer.optimizers, self._session.layers.measured
                rate, adaptive = self._learning.of(optimizers, layers)
                norm = self._gradient.of(optimizers, layers, trainer.global_step)
        return Facts(performance, rate, adaptive, norm)


def _is_scaled(trainer: pl.Trainer, optimizer: Any) -> bool:
    """Whether the loss is scaled, and the optimiser itself will unscale the gradients, as fused ones do."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
