"""What the tests of tasks share: batches drawn, and read in plain Python."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lightning_lyapunov.bank.tasks import TASKS, Batch, Task

Steps = list[list[float]]
"""One sequence: a list of numbers for every step."""


def variants(family: str) -> pytest.MarkDecorator:
    """Parametrise by the ``task`` of a family."""
    chosen = [task for task in TASKS.values() if task.family == family]
    return pytest.mark.parametrize("task", chosen, ids=lambda task: task.name)


def draw(task: Task, batch: int = 64, seed: int = 0, *, held_out: bool = False) -> Batch:
    """A batch, or the test is skipped if the package that ships its data is missing."""
    try:
        return task.sample(batch, Generator().manual_seed(seed), held_out=held_out)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def asked(targets: Tensor) -> Tensor:
    """Where something is asked."""
    return targets.isfinite() if targets.is_floating_point() else targets >= 0


def columns(batch: Batch) -> Iterator[tuple[Steps, Steps]]:
    """Inputs and targets of each sequence."""
    targets = batch.targets if batch.targets.ndim == 3 else batch.targets[..., None]
    for b in range(batch.inputs.shape[1]):
        yield batch.inputs[:, b].tolist(), targets[:, b].tolist()


def agree(targets: Steps, expected: Steps) -> bool:
    """Whether they are equal but for rounding, and nothing else is asked."""
    return torch.allclose(torch.tensor(targets), torch.tensor(expected), atol=1e-5, equal_nan=True)


def options(task: Task) -> dict[str, Any]:
    """What the sampler was told for this variant."""
    assert isinstance(task.sampler, partial)
    return task.sampler.keywords


def changed(task: Task, **other: Any) -> Task:
    """The task with other options, such as ``noise=0.0``: the same sequences, so that they can be read off."""
    return replace(task, sampler=partial(task.sampler, **other))
