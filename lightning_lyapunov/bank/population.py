"""Populations: small networks of one kind trained side by side on one task, with spectra and metrics on the way.

The networks of a population differ in how they were drawn (:class:`Draw`), see the same batches and never act on each
other: weights are stacked, gradients are clipped and Adam steps are taken network by network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.bank.cells import CELLS, Cell, Weights, initial_weights
from lightning_lyapunov.bank.tasks import TASKS, Batch, Task, loss, metric
from lightning_lyapunov.capture.by_hand import lyapunov_spectrum

CHECKPOINTS = (0, 10, 40, 80, 160, 320, 560, 800)
"""Updates after which spectrum and metrics are taken; 40 updates of 32 sequences are called an epoch."""
FINAL = (720, 760, 800)
"""Updates whose metrics, averaged, are a network's final performance."""
BATCH, VALIDATION = 32, 256
"""Sequences in a training batch; in each of the two sets that metrics are computed on."""
PROBE_SEQUENCES, PROBE_STEPS = 8, 64
"""Sequences, and at most so many steps of each, that a spectrum is measured on; a quarter of the steps settles."""
SECOND_PROBE = (0, 40, 800)
"""Checkpoints at which one network in four is measured on a second set of inputs too."""
METRICS = ("metric", "loss", "train_loss", "gradient_norm", "mean_abs_h", "std_h")
"""Per checkpoint, beside the spectrum."""


@dataclass(frozen=True)
class Draw:
    """What was drawn for one network before training."""

    init: str
    gain: float
    input_gain: float
    memory_bias: float
    learning_rate: float

    @property
    def is_useful(self) -> bool:
        """Whether somebody might try these values: the range apart from the wide sweep."""
        return 0.3 <= self.gain <= 2.5 and 1e-3 <= self.learning_rate <= 1e-2


@dataclass(frozen=True)
class Population:
    """Which networks to train.

    Attributes:
        task: Name of the task.
        cell: Kind of cell.
        hidden_size: H.
        draws: Numbers of the draws, one network each; a draw is the same in every population of the same task, cell
            and size, which is what makes twins.
        seed: Of weights and batches: populations that differ by it alone are twins.
    """

    task: str
    cell: str
    hidden_size: int
    draws: tuple[int, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique, and the name of the record."""
        return f"{self.task}_{self.cell}_{self.hidden_size}_{self.seed}"

    @property
    def networks(self) -> list[Draw]:
        """How each network is made."""
        return [draw(f"{self.task}_{self.cell}_{self.hidden_size}_{number}", self.cell) for number in self.draws]


def draw(name: str, cell: str) -> Draw:
    """A network's hyperparameters, from its name alone: seven in ten from the range in use, the others from afar."""
    generator = _generator("draw", name)

    def between(low: float, high: float) -> float:
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    wide = float(torch.rand((), generator=generator)) > 0.7
    return Draw(
        init=one_of("normal", "uniform", "orthogonal"),
        gain=between(0.05, 8.0) if wide else between(0.3, 2.5),
        input_gain=between(0.3, 3.0),
        memory_bias=float(one_of(0.0, 1.0, 2.0)) if CELLS[cell].memory_gate is not None else 0.0,
        learning_rate=between(3e-4, 3e-2) if wide else between(1e-3, 1e-2),
    )


def run(population: Population) -> dict[str, Any]:
    """Train a population and return its record.

    Returns:
        ``spectrum`` and ``stderr`` ``(N, C, D)``, nats per step, NaN where a network could not be measured;
        ``second`` ``(N, len(SECOND_PROBE), D)``, the spectrum on other inputs, NaN where it was not asked for;
        ``metrics`` ``(N, C, len(METRICS))``; ``final`` (N,), the metric at the end on sequences of its own;
        ``networks``, a dict for each, how it was made.
    """
    task, cell = TASKS[population.task], CELLS[population.cell]
    networks = population.networks
    trainer = _Trainer(task, cell, population.hidden_size, networks, population.name)
    held_out = _generator("validation", population.task)
    validation = task.sample(VALIDATION, held_out, held_out=True)
    last = task.sample(VALIDATION, held_out, held_out=True)
    probes = [task.sample(PROBE_SEQUENCES, held_out, held_out=True).inputs[:PROBE_STEPS] for _ in range(2)]
    batches = _generator("batches", f"{population.task}_{population.seed}")

    size = population.hidden_size * cell.parts
    spectrum = torch.full((len(networks), len(CHECKPOINTS), size), math.nan)
    stderr = spectrum.clone()
    second = torch.full((len(networks), len(SECOND_PROBE), size), math.nan)
    metrics = torch.full((len(networks), len(CHECKPOINTS), len(METRICS)), math.nan)
    final = []
    for update in range(CHECKPOINTS[-1] + 1):
        batch = task.sample(BATCH, batches)
        train_loss, norm = trainer.differentiate(batch)
        if update in CHECKPOINTS:
            index = CHECKPOINTS.index(update)
            with torch.no_grad():
                outputs, states = trainer.forward(validation.inputs)
                columns = [
                    metric(task, outputs, validation.targets),
                    loss(task, outputs, validation.targets),
                    train_loss,
                    norm,
                    states.abs().mean((1, 2, 3)),
                    states.std((1, 2, 3)),
                ]
            metrics[:, index] = torch.stack(columns, 1)
            for n in range(len(networks)):
                module = cell.module(trainer.network(n))
                spectrum[n, index], stderr[n, index] = measure(module, probes[0], size)
                if update in SECOND_PROBE and n % 4 == 0:
                    second[n, SECOND_PROBE.index(update)] = measure(module, probes[1], size)[0]
        if update in FINAL:
            with torch.no_grad():
                final.append(metric(task, trainer.forward(last.inputs)[0], last.targets))
        if update < CHECKPOINTS[-1]:
            trainer.step()
    return {
        "spectrum": spectrum,
        "stderr": stderr,
        "second": second,
        "metrics": metrics,
        "final": torch.stack(final).mean(0),
        "networks": [
            {
                "task": task.name,
                "family": task.family,
                "cell": population.cell,
                "hidden_size": population.hidden_size,
                "number": number,
                "seed": population.seed,
                **asdict(how),
            }
            for number, how in zip(population.draws, networks, strict=True)
        ],
    }


def measure(module: nn.Module, inputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A network's spectrum on ``inputs`` ``(T, B, I)`` and its standard errors, both ``(D,)``; NaN if it fails."""
    try:
        spectrum = lyapunov_spectrum(module, inputs, transient=min(32, len(inputs) // 4), growth=0)
    except ValueError:  # weights or states that are no longer finite
        return torch.full((size,), math.nan), torch.full((size,), math.nan)
    return spectrum.exponents.float(), spectrum.stderr.float()


class _Trainer:
    """The weights of N networks, views of one ``(N, P)`` tensor, and Adam's moments, tensors like it."""

    def __init__(self, task: Task, cell: Cell, hidden: int, networks: list[Draw], name: str) -> None:
        self.task, self.cell, self.hidden = task, cell, hidden
        weights = []
        for number, how in enumerate(networks):
            generator = _generator("weights", f"{name}_{number}")
            recurrent = initial_weights(
                cell,
                task.input_size,
                hidden,
                kind=how.init,
                gain=how.gain,
                input_gain=how.input_gain,
                memory_bias=how.memory_bias,
                generator=generator,
            )
            out = (2 * torch.rand(task.output_size, hidden, generator=generator) - 1) / math.sqrt(hidden)
            weights.append({**recurrent, "out": out, "out_bias": torch.zeros(task.output_size)})
        shapes = {key: weight.shape for key, weight in weights[0].items()}
        self.flat = torch.stack([torch.cat([w.flatten() for w in one.values()]) for one in weights])
        self.gradient = torch.zeros_like(self.flat)
        self.weights = {key: view.requires_grad_() for key, view in _views(self.flat, shapes)}
        self.rate = torch.tensor([how.learning_rate for how in networks]).unsqueeze(1)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.updates = 0
        # One stock LSTM after the other beats stacked products once its own kernel has enough to do.
        self.is_plain = cell is CELLS["lstm"] and hidden >= 64

    def network(self, n: int) -> Weights:
        """Recurrent weights of one network."""
        return {key: self.weights[key][n].detach() for key in ("ih", "hh", "bias")}

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Read-outs ``(N, T, B, O)`` and states ``(N, T, B, H)`` on ``inputs`` ``(T, B, I)``."""
        states = self._plain_states(inputs) if self.is_plain else self._stacked_states(inputs)
        read = torch.baddbmm(self.weights["out_bias"].unsqueeze(1), states.flatten(1, 2), self.weights["out"].mT)
        return read.unflatten(1, states.shape[1:3]), states

    def _stacked_states(self, inputs: Tensor) -> Tensor:
        steps, batch, _ = inputs.shape
        weights = self.cell.prepared(self.weights)
        flat_inputs = inputs.reshape(1, steps * batch, -1).expand(len(self.flat), -1, -1)
        drive = torch.baddbmm(weights["bias"].unsqueeze(1), flat_inputs, weights["ih"].mT)
        zeros = drive.new_zeros(len(self.flat), batch, self.hidden)
        state = (zeros,) * self.cell.parts
        visited = []
        for step_drive in drive.unflatten(1, (steps, batch)).unbind(1):
            state = self.cell.step(weights, step_drive, state)
            visited.append(state[0])
        return torch.stack(visited, 1)

    def _plain_states(self, inputs: Tensor) -> Tensor:
        """The same by torch's own LSTM, network by network."""
        zeros = inputs.new_zeros(1, inputs.shape[1], self.hidden)
        parts = zip(*(self.weights[key].unbind(0) for key in ("ih", "hh", "bias")), strict=True)
        no_bias = torch.zeros(4 * self.hidden)
        return torch.stack(
            [
                torch.lstm(inputs, (zeros, zeros), (ih, hh, bias, no_bias), True, 1, 0.0, True, False, False)[0]
                for ih, hh, bias in parts
            ]
        )

    def differentiate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of each network's loss on a batch; the losses and the norms of the gradients, both (N,)."""
        losses = loss(self.task, self.forward(batch.inputs)[0], batch.targets)
        gradients = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        self.gradient = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
        return losses.detach(), self.gradient.norm(dim=1)

    def step(self) -> None:
        """Adam, after clipping each network's gradient to norm 1; one that is not finite counts as none."""
        self.updates += 1
        norm = self.gradient.norm(dim=1, keepdim=True)
        scale = torch.where(norm.isfinite(), 1 / norm.clamp(min=1.0), 0.0)
        gradient = (self.gradient * scale).nan_to_num_(0.0, 0.0, 0.0)
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square_(), 0.001)
        first = self.first / (1 - 0.9**self.updates)
        second = self.second / (1 - 0.999**self.updates)
        self.flat.addcdiv_(self.rate * first, second.sqrt_().add_(1e-8), value=-1)


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> Iterable[tuple[str, Tensor]]:
    """The parts of a flat tensor ``(N, P)``, each ``(N, *shape)`` on the same memory."""
    start = 0
    for key, shape in shapes.items():
        stop = start + shape.numel()
        yield key, flat[:, start:stop].unflatten(1, shape)
        start = stop


def _generator(purpose: str, name: str) -> torch.Generator:
    """A random source that belongs to a purpose and a name, the same on every machine."""
    digest = hashlib.sha256(f"{purpose} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
