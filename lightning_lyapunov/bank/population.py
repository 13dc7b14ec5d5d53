"""Populations: small networks of one kind trained side by side on one task, with spectra and metrics on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.bank.cells import CELLS
from lightning_lyapunov.bank.draws import Draw, draw, generator
from lightning_lyapunov.bank.probes import (
    LONG_TRANSIENT,
    Measurements,
    halved,
    long_probe,
    measure,
    moments_of_long_probe,
    probe,
)
from lightning_lyapunov.bank.tasks import TASKS, Batch, Task, loss, metric
from lightning_lyapunov.bank.training import Trainer

CHECKPOINTS = (0, 10, 40, 80, 160, 320, 560, 800, 1400, 2000)
"""Updates after which spectrum and metrics are taken, up to a task's end; 40 of 32 sequences are called an epoch."""
EPOCH = 40
"""The metrics at the end, an epoch before and two before, averaged, are a network's final performance."""
BATCH, VALIDATION = 32, 256
"""Sequences in a training batch; in each of the two sets that metrics are computed on."""
METRICS = ("metric", "loss", "train_loss", "gradient_norm", "mean_abs_h", "std_h")
"""Per checkpoint, beside the spectrum."""


@dataclass(frozen=True)
class Population:
    """Which networks to train.

    Attributes:
        task: Name of the task.
        cell: Kind of cell.
        hidden_size: H, units of each layer.
        draws: Numbers of the draws, one network each; a draw is the same in every population of the same task, cell,
            size and number of layers, which is what makes twins.
        seed: Of weights and batches: populations that differ by it alone are twins.
        layers: Layers on top of each other.
    """

    task: str
    cell: str
    hidden_size: int
    draws: tuple[int, ...]
    seed: int = 0
    layers: int = 1

    @property
    def _kind(self) -> str:
        return f"{self.task}_{self.cell}_{self.hidden_size}" + (f"x{self.layers}" if self.layers > 1 else "")

    @property
    def name(self) -> str:
        """Unique, and the name of the record."""
        return f"{self._kind}_{self.seed}"

    @property
    def networks(self) -> list[Draw]:
        """How each network is made."""
        return [draw(f"{self._kind}_{number}", self.cell) for number in self.draws]

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Updates after which its networks are looked at; the last is their end."""
        end = TASKS[self.task].updates
        return tuple(update for update in CHECKPOINTS if update <= end)

    def trainer(self) -> Trainer:
        """Its networks before training."""
        names = [f"{self.name}_{number}" for number in self.draws]
        task, cell = TASKS[self.task], CELLS[self.cell]
        return Trainer(task, cell, self.hidden_size, self.layers, self.networks, names)


def run(population: Population) -> dict[str, Any]:
    """Train a population and return its record, the same to the last bit on the same torch and processor.

    Returns:
        ``quantiles``, ``leading``, ``measured`` of every checkpoint and ``long_quantiles``, ``long_leading``,
        ``long_measured`` of three moments, as in :class:`~lightning_lyapunov.bank.probes.Measurements`; ``layers`` too
        where there are several; ``metrics`` ``(N, C, len(METRICS))``; ``final`` (N,), the metric at the end on
        sequences of its own; ``networks``, a dict for each, how it was made.
    """
    with _one_thread():
        return _Run(population).record()


class _Run:
    """One training: the networks, what they are looked at with, and what was seen."""

    def __init__(self, population: Population) -> None:
        self.population, self.task = population, TASKS[population.task]
        self.checkpoints = population.checkpoints
        self.end = self.checkpoints[-1]
        self.long_moments = moments_of_long_probe(self.end)
        self.trainer = population.trainer()
        held_out = generator("validation", population.task)
        self.validation = self.task.sample(VALIDATION, held_out, held_out=True)
        self.last = self.task.sample(VALIDATION, held_out, held_out=True)
        self.probe, self.long_probe = probe(self.task, held_out), long_probe(self.task, held_out)
        networks = len(population.draws)
        self.short = Measurements(networks, len(self.checkpoints), population.layers)
        self.long = Measurements(networks, len(self.long_moments), population.layers)

    def record(self) -> dict[str, Any]:
        batches = generator("batches", f"{self.population.task}_{self.population.seed}")
        metrics, finals = [], []
        for update in range(self.end + 1):
            batch = self.task.sample(BATCH, batches)
            losses, norms = self.trainer.differentiate(batch)
            if update in self.checkpoints:
                metrics.append(torch.stack([*_judged(self.trainer, self.task, self.validation, losses, norms)], 1))
                self._measure(update)
            if self.end - update in (0, EPOCH, 2 * EPOCH):
                with torch.no_grad():
                    finals.append(metric(self.task, self.trainer.forward(self.last.inputs)[0], self.last.targets))
            if update < self.end:
                self.trainer.step()
        tensors = {
            "quantiles": halved(self.short.quantiles),
            "leading": halved(self.short.leading),
            "measured": self.short.measured,
            "long_quantiles": halved(self.long.quantiles),
            "long_leading": halved(self.long.leading),
            "long_measured": self.long.measured,
            "metrics": torch.stack(metrics, 1),
            "final": torch.stack(finals).mean(0),
            **({"layers": self.short.layers} if self.population.layers > 1 else {}),
        }
        return {**tensors, "networks": _made(self.population, self.task)}

    def _measure(self, update: int) -> None:
        cell, moment = CELLS[self.population.cell], self.checkpoints.index(update)
        for n in range(len(self.population.draws)):
            module = cell.module(*self.trainer.network(n))
            self.short.put(n, moment, measure(module, self.probe))
            if update in self.long_moments:
                self.long.put(n, self.long_moments.index(update), measure(module, self.long_probe, LONG_TRANSIENT))


@torch.no_grad()
def _judged(trainer: Trainer, task: Task, validation: Batch, losses: Tensor, norms: Tensor) -> Iterator[Tensor]:
    """:data:`METRICS` of each network, (N,) each."""
    outputs, states = trainer.forward(validation.inputs)
    yield metric(task, outputs, validation.targets)
    yield loss(task, outputs, validation.targets)
    yield losses
    yield norms
    yield states.abs().mean((1, 2, 3))
    yield states.std((1, 2, 3))


def _made(population: Population, task: Task) -> list[dict[str, Any]]:
    cell = CELLS[population.cell]
    return [
        {
            "task": task.name,
            "family": task.family,
            "cell": population.cell,
            "layers": population.layers,
            "hidden_size": population.hidden_size,
            "dimension": population.hidden_size * cell.parts * population.layers,
            "number": number,
            "seed": population.seed,
            **asdict(how),
        }
        for number, how in zip(population.draws, population.networks, strict=True)
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are taken in an order that depends on the number of threads; and these are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
