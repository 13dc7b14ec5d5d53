"""What networks are asked to do: tasks whose lag is known, and one that has none.

Sequences are ``(T, B, I)``, as torch's layers take them. A task's lag is the number of steps for which something must
be held, as its user would state it; where nobody could, it is the length of the sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot

from lightning_lyapunov.bank.tasks.text import ALPHABETS, chars

Batch = tuple[Tensor, Tensor]
"""Sequences ``(T, B, I)`` and what is asked of them, ``(S, B)``, at the last S steps."""


@dataclass(frozen=True)
class Task:
    """Data, and how long a network is trained on it."""

    name: str
    inputs: int
    outputs: int
    lag: int
    batches: Callable[[int], Iterator[Batch]]
    """Endless, of a seed."""
    held_out: Callable[[int], Batch] | None
    """What a network is read on, of a seed; None for the last 20 batches that it was trained on."""
    judge: Judge
    updates: int
    every: int
    """Updates between readings."""
    hidden: int = 32
    rate: float = 3e-3
    clip: float = math.inf
    """Of Adam, which trains all: its learning rate, and the norm to which gradients are clipped."""
    stop: float = math.inf
    """Reading at which training is over."""
    tail: int = 1
    """Readings whose mean is the result."""

    def of(self, updates: int | None, quick: bool) -> Task:
        """Trained for so many updates, or, for a trial, for a tenth of them and one reading at least."""
        updates = updates or self.updates
        return replace(self, updates=max(self.every, updates // 10 // self.every * self.every) if quick else updates)


@dataclass(frozen=True)
class Judge:
    """The loss that a network is trained by, and the score that it is read by, both of outputs ``(S, B, O)``."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    unit: str


def _nats(outputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, 1), labels.flatten())


def _squares(outputs: Tensor, numbers: Tensor) -> Tensor:
    return mse_loss(outputs[..., 0], numbers)


LABELS = Judge(_nats, lambda outputs, labels: (outputs.argmax(-1) == labels).float().mean(), "accuracy")
BITS = Judge(
    lambda outputs, bits: binary_cross_entropy_with_logits(outputs[..., 0], bits),
    lambda outputs, bits: ((outputs[..., 0] > 0) == (bits > 0.5)).float().mean(),
    "accuracy",
)
NUMBERS = Judge(_squares, lambda outputs, numbers: 1 - _squares(outputs, numbers) / numbers.var(), "R²")
TEXT = Judge(_nats, lambda outputs, labels: -_nats(outputs, labels), "− nats per character")


def _stream(batch: Callable[[Generator, int], Batch], size: int) -> Callable[[int], Iterator[Batch]]:
    """Fresh batches without end."""

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield batch(generator, size)

    return batches


def _epochs(data: Callable[[int], Batch], size: int) -> Callable[[int], Iterator[Batch]]:
    """The same sequences again and again, in another order each time."""

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        x, y = data(seed)
        while True:
            for rows in torch.randperm(x.shape[1], generator=generator).split(size):
                yield x[:, rows], y[:, rows]

    return batches


def _fresh(batch: Callable[[Generator, int], Batch], size: int) -> Callable[[int], Batch]:
    """One large batch that no seed trains on."""
    return lambda seed: batch(torch.Generator().manual_seed(10_000 + seed), size)


# A known lag ----------------------------------------------------------------------------------------------------------


def xor(delay: int) -> Task:
    """Bits s come in as ±1; the distance from s(t − d) to s(t − 2d) is asked at every step t."""

    def batch(generator: Generator, size: int) -> Batch:
        bits = torch.randint(2, (300, size), generator=generator).float()
        return 2 * bits[..., None] - 1, (bits[delay:-delay] - bits[: -2 * delay]).abs()

    return Task(
        f"xor-{delay}", 1, 1, 2 * delay, _stream(batch, 16), None, BITS,
        updates=1000, every=50, hidden=80, rate=1e-3, clip=0.03, stop=0.99,
    )  # fmt: skip


def _recall(generator: Generator, size: int, lag: int = 40) -> Batch:
    """One of four symbols, then noise: the symbol is asked at the end. As in ``examples/rescue.py``."""
    symbols = torch.randint(4, (1, size), generator=generator)
    x = 0.1 * torch.randn(lag + 1, size, 4, generator=generator)
    x[0] += one_hot(symbols[0], 4)
    return x, symbols


def _match(generator: Generator, size: int, delay: int = 40) -> Batch:
    """One of two stimuli, noise, and a second stimulus: whether it is the same is asked at the end."""
    both = torch.randint(2, (2, size), generator=generator)
    x = 0.1 * torch.randn(delay + 1, size, 2, generator=generator)
    x[0] += one_hot(both[0], 2)
    x[-1] += one_hot(both[1], 2)
    return x, (both[0] == both[1]).long()[None]


ADDING = 60
"""Steps of the adding problem."""


def _adding(generator: Generator, size: int, steps: int = ADDING) -> Batch:
    """Two of many numbers are marked, one in each half: their sum, to mean 0 and variance 1, is asked at the end.

    Source: Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    """
    numbers, half = torch.rand(steps, size, generator=generator), steps // 2
    places = torch.randint(half, (2, size), generator=generator) + torch.tensor([[0], [half]])
    marks = torch.zeros(steps, size).scatter_(0, places, 1.0)
    return torch.stack((numbers, marks), -1), (((numbers * marks).sum(0) - 1) * math.sqrt(6))[None]


def _recall_data(seed: int) -> Batch:
    return _recall(torch.Generator().manual_seed(seed), 2048)


RECALL = Task(
    "recall", 4, 4, 40, _epochs(_recall_data, 64), _fresh(_recall, 512), LABELS, updates=6 * 32, every=32
)  # fmt: skip
MATCH = Task("match", 2, 2, 40, _stream(_match, 64), _fresh(_match, 512), LABELS, updates=800, every=100)
SUM = Task("adding", 2, 1, ADDING, _stream(_adding, 64), _fresh(_adding, 1024), NUMBERS, updates=1000, every=100)


# No hold is asked -----------------------------------------------------------------------------------------------------


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).float() / 16, torch.tensor(labels)


def digits(name: str, steps: int, epochs: int) -> Task:
    """Handwritten digits of 8 × 8 pixels, so many steps each: 1500 to learn from and 297 to be read on."""

    def split(seed: int) -> list[Batch]:
        images, labels = _digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        parts = order[:1500], order[1500:]
        return [(images[rows].view(len(rows), steps, -1).transpose(0, 1), labels[rows][None]) for rows in parts]

    def train(seed: int) -> Batch:
        return split(seed)[0]

    def test(seed: int) -> Batch:
        return split(seed)[1]

    return Task(
        name, 64 // steps, 10, steps, _epochs(train, 32), test, LABELS, updates=47 * epochs, every=47, tail=5
    )  # fmt: skip


LETTERS = len(ALPHABETS["prose"])


def _characters(generator: Generator, size: int, *, held_out: bool = False, steps: int = 50) -> Batch:
    batch = chars(size, generator, held_out, source="prose", steps=steps)
    return batch.inputs, batch.targets


def _characters_held_out(generator: Generator, size: int) -> Batch:
    return _characters(generator, size, held_out=True)


CHARACTERS = Task(
    "characters", LETTERS, LETTERS, 50, _stream(_characters, 32), _fresh(_characters_held_out, 256), TEXT,
    updates=500, every=100, hidden=64,
)  # fmt: skip

TASKS = {
    task.name: task
    for task in (
        xor(20), xor(10), RECALL, digits("pixels", 64, 20), digits("rows", 8, 12), SUM, MATCH, CHARACTERS,
    )
}  # fmt: skip


def network(task: Task, net: str) -> tuple[nn.RNNBase, nn.Linear]:
    """A recurrent layer as torch makes it, or with recurrent weights of a gain, and its read-out, untrained."""
    kinds = {"RNN": nn.RNN, "RNN, gain 3": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
    layer = kinds[net](task.inputs, task.hidden)
    if net == "RNN, gain 3":
        nn.init.normal_(layer.weight_hh_l0, std=3 / math.sqrt(task.hidden))
    elif net == "RNN" and task.name.startswith("xor"):  # as in the paper on flossing
        nn.init.normal_(layer.weight_hh_l0, std=1 / math.sqrt(task.hidden))
        nn.init.normal_(layer.weight_ih_l0)
        nn.init.uniform_(layer.bias_ih_l0, 0, 0.1)
        nn.init.zeros_(layer.bias_hh_l0)
    return layer, nn.Linear(task.hidden, task.outputs)
