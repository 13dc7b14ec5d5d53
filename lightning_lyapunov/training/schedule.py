"""When to measure in a Trainer's fit."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning_lyapunov.monitoring.watch import Source

When = Literal["before training", "step", "validation", "epoch", "end"]
"""Moments at which a measurement is made."""
RECENT = 4
"""Training batches before the end of an epoch that are recorded where they will drive a measurement."""


class Schedule:
    """Says which moments of a fit are measured, and what drives the series.

    A series has one source of inputs: validation if the fit has any, else training; with ``every_n_train_steps``
    training, since validation does not come as often. Epochs without validation are then not measured.

    Args:
        every_n_epochs: One epoch out of so many.
        every_n_train_steps: Updates from one measurement to the next; None: by epochs.
    """

    def __init__(self, every_n_epochs: int, every_n_train_steps: int | None) -> None:
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.source: Source = "training"
        self.at: tuple[int, int] | None = None
        """Global step and epoch of the last measurement of this fit."""

    def begin(self, trainer: Any) -> None:
        """Begin a fit."""
        self.at = None
        self.source = "validation" if self.every_n_train_steps is None and _will_validate(trainer) else "training"

    def note(self, trainer: Any) -> None:
        """A measurement was made, or tried, of the weights as they are."""
        self.at = trainer.global_step, trainer.current_epoch

    def is_due(self, trainer: Any, source: Source) -> bool:
        """Whether inputs of a source have come, the weights have moved, and often enough; the same on all ranks."""
        if source != self.source:
            return False
        if self.at is None:
            return True
        step, epoch = self.at
        if trainer.global_step == step:
            return False
        if self.every_n_train_steps is not None:
            return bool(trainer.global_step - step >= self.every_n_train_steps)
        return step == 0 or self.every_n_epochs == 1 or bool(trainer.current_epoch - epoch >= self.every_n_epochs)

    def is_promised(self) -> bool:
        """Whether the next measurement is the first of the fit, or the first after the one before training."""
        return self.at is None or self.at[0] == 0

    def has_moved(self, trainer: Any) -> bool:
        """Whether the weights have moved since the last measurement."""
        return self.at is None or trainer.global_step != self.at[0]

    def what_is_next(self) -> str:
        """Why nothing was measured since the last time, where nothing went wrong, in a clause."""
        step, epoch = self.at or (0, 0)
        if self.every_n_train_steps is not None:
            due = f"at update {step + self.every_n_train_steps:,} (every_n_train_steps={self.every_n_train_steps})"
        else:
            due = "after the next validation" if self.source == "validation" else "at the end of the epoch"
            if self.every_n_epochs > 1 and step:
                due += f", from epoch {epoch + self.every_n_epochs + 1} on (every_n_epochs={self.every_n_epochs})"
        return f"the next measurement was due {due}, and the fit ended before"

    def may_follow(self, trainer: Any) -> bool:
        """Whether a measurement may follow the update that is about to be made, before there is another.

        Not known where validation comes by the clock; and an early end is not foreseen.
        """
        if trainer.is_last_batch or trainer.global_step + 1 == trainer.max_steps:
            return True
        if self.every_n_train_steps is not None:
            return self.at is None or bool(trainer.global_step + 1 - self.at[0] >= self.every_n_train_steps)
        every = trainer.val_check_batch
        if self.source != "validation" or not every or math.isinf(every):
            return False
        loop = trainer.fit_loop
        batch = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
        return any((batch + ahead) % every == 0 for ahead in range(1, trainer.accumulate_grad_batches + 1))

    def is_worth_recording(self, trainer: Any, batch_idx: int, *, has_validation: bool, needed: int = 1) -> bool:
        """Whether a training batch may drive a measurement.

        Args:
            trainer: Whose batch it is.
            batch_idx: Its place in the epoch.
            has_validation: Whether validation inputs have reached the layers.
            needed: Batches that bring as many sequences as are wanted.
        """
        if self.at is None and (trainer.global_step == 0 or self.every_n_train_steps is not None):
            return True  # it drives the first measurement, if no sanity check did
        recent = max(needed, RECENT)
        if self.every_n_train_steps is not None:
            assert self.at is not None
            return bool(trainer.global_step + recent - self.at[0] >= self.every_n_train_steps)
        if self.source == "validation" and has_validation:
            return False
        batches = trainer.num_training_batches
        return batch_idx == 0 or math.isinf(batches) or bool(batch_idx >= batches - recent)


def progress_of(trainer: Any) -> float:
    """Share of the fit that is done; 1 where it has no end that is known."""
    epochs, steps = trainer.max_epochs or 0, trainer.max_steps or 0
    shares = [trainer.current_epoch / epochs] if epochs > 0 else []
    shares += [trainer.global_step / steps] if steps > 0 else []
    return min(max(shares, default=1.0), 1.0)


def _will_validate(trainer: Any) -> bool:
    """Whether validation will run in this fit, as far as can be known when it begins."""
    if not trainer.enable_validation:
        return False
    every, last, batches = trainer.check_val_every_n_epoch, trainer.max_epochs, trainer.num_training_batches
    if every is None:
        return True
    ends = [last] if last is not None and last >= 0 else []
    if trainer.max_steps >= 0 and 0 < batches < math.inf:
        updates = -(-batches // trainer.accumulate_grad_batches)
        ends.append(trainer.current_epoch + (trainer.max_steps - trainer.global_step) // updates)
    return not ends or bool(min(ends) // every > trainer.current_epoch // every)
