"""Tasks, the batches they hand to the networks, and how well the answers fit.

A sampler marks what is not asked, with -1 for a class and NaN otherwise; neither loss nor metric looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


class Batch(NamedTuple):
    """What the networks see, and what should be read out of them."""

    inputs: Tensor
    """``(T, B, input_size)``, float32."""

    targets: Tensor
    """Classes: ``(T, B)``, long, -1 where nothing is asked. Bits, values: ``(T, B, output_size)``, NaN there."""


@dataclass(frozen=True)
class Task:
    """One variant of a task family.

    Example:
        >>> from lightning_lyapunov.bank.tasks import TASKS
        >>> task = TASKS["recall-6"]
        >>> batch = task.sample(32, torch.Generator().manual_seed(0))
        >>> batch.inputs.shape == (task.steps, 32, task.input_size)
        True
    """

    name: str
    """Unique, such as ``recall-6``."""

    family: str
    """What its variants have in common, such as ``recall``."""

    input_size: int
    output_size: int
    """Width of the read-out: logits, or values."""

    steps: int
    """Length T of every sequence."""

    kind: Literal["classes", "bits", "values"]
    """Read-out: one of several classes, independent bits, or real values of about unit variance."""

    chance: float
    """The :func:`metric` of the best constant answer, one that ignores the input."""

    sampler: Callable[[int, Generator, bool], Batch] = field(repr=False, compare=False)

    updates: int = 800
    """How long networks are trained on it in the bank."""

    def sample(self, batch: int, generator: Generator, *, held_out: bool = False) -> Batch:
        """Draw sequences.

        Args:
            batch: Number B of sequences.
            generator: Random numbers, on the CPU; its state decides the batch.
            held_out: Draw from the part that training never draws from. Tasks that are made up afresh every time have
                no such part and just draw.
        """
        return self.sampler(batch, generator, held_out)


def loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each of N networks over all that is asked: cross-entropy in nats, or squared error.

    Args:
        task: The task.
        outputs: Read-outs of the networks, ``(N, T, B, output_size)``.
        targets: The targets of a :class:`Batch`, the same for all networks.

    Returns:
        ``(N,)``. What is not asked gives no gradient.
    """
    if task.kind == "classes":
        outputs, answers = _asked_classes(outputs, targets)
        chosen = outputs.gather(-1, answers.expand(len(outputs), -1)[..., None])[..., 0]
        return (outputs.logsumexp(-1) - chosen).mean(-1)
    asked = targets.isfinite()
    targets = targets.where(asked, 0.0).expand_as(outputs)  # a NaN times 0 would still be NaN
    if task.kind == "bits":
        errors = binary_cross_entropy_with_logits(outputs, targets, weight=asked.to(outputs.dtype), reduction="none")
    else:
        errors = (outputs - targets).square() * asked
    return errors.flatten(1).sum(-1) / asked.sum()


@torch.no_grad()
def metric(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    r"""How well each of N networks does; larger is better.

    Accuracy in [0, 1] for classes and bits. For values

    .. math:: 1 - \sqrt{\textstyle\sum (y - \hat{y})^2 \,/\, \sum (y - \bar{y})^2},

    with the mean of each output taken over all that is asked of it: 1 is perfect, 0 the best constant, less is worse.

    Args:
        task: The task.
        outputs: Read-outs of the networks, ``(N, T, B, output_size)``.
        targets: The targets of a :class:`Batch`, the same for all networks.

    Returns:
        ``(N,)``; NaN for a network whose read-out is not finite.
    """
    finite = outputs.isfinite().flatten(1).all(-1)
    if task.kind == "classes":
        outputs, answers = _asked_classes(outputs, targets)
        values = (outputs.argmax(-1) == answers).float().mean(-1)
    elif task.kind == "bits":
        asked = targets.isfinite()
        values = ((outputs > 0) == (targets > 0.5)).logical_and(asked).flatten(1).sum(-1) / asked.sum()
    else:
        spread = (targets - targets.nanmean((0, 1))).square().nansum()
        values = 1 - ((outputs - targets).square().flatten(1).nansum(-1) / spread).sqrt()
    return values.where(finite, torch.nan)


def _asked_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The M places where a class is asked: read-outs ``(N, M, O)`` and answers ``(M,)``."""
    asked = (targets.flatten() >= 0).nonzero()[:, 0]
    return outputs.flatten(1, 2).index_select(1, asked), targets.flatten()[asked]
