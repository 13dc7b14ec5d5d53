"""How each network of the bank is made: drawn from its name alone, the same on every machine."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from lightning_lyapunov.bank.cell import Initial
from lightning_lyapunov.bank.cells import CELLS

SGD_FACTOR = 10.0
"""Learning rates of SGD with momentum are drawn so many times as large as Adam's."""
WARMUP = 40
"""Updates over which the learning rate rises from zero, linearly, where it does."""


@dataclass(frozen=True)
class Draw(Initial):
    """What was drawn for one network before training."""

    learning_rate: float
    """At the end of the warm-up."""
    optimizer: str = "adam"
    """``"adam"``, or ``"sgd"`` with momentum 0.9."""
    clip: bool = True
    """Whether gradients are clipped to norm 1."""
    warmup: int = 0
    """Updates over which the rate rises linearly."""

    @property
    def is_useful(self) -> bool:
        """Whether somebody might try these values: the range apart from the wide sweep."""
        rate = self.learning_rate / (SGD_FACTOR if self.optimizer == "sgd" else 1.0)
        return 0.3 <= self.gain <= 2.5 and 1e-3 <= rate <= 1e-2


def draw(name: str, cell: str) -> Draw:
    """A network's hyperparameters, from its name alone: seven in ten from the range in use, the others from afar."""
    source = generator("draw", name)

    def share() -> float:
        return float(torch.rand((), generator=source, dtype=torch.float64))

    def between(low: float, high: float) -> float:
        value = math.exp(math.log(low) + share() * (math.log(high) - math.log(low)))
        return min(max(float(f"{value:.4g}"), low), high)  # four digits take little room in a record

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=source))]

    wide = share() > 0.7
    optimizer = "sgd" if share() > 0.75 else "adam"
    factor = SGD_FACTOR if optimizer == "sgd" else 1.0
    return Draw(
        init=one_of("normal", "uniform", "orthogonal"),
        gain=between(0.05, 8.0) if wide else between(0.3, 2.5),
        input_gain=between(0.3, 3.0),
        memory_bias=float(one_of(0.0, 1.0, 2.0)) if CELLS[cell].memory_gate is not None else 0.0,
        learning_rate=between(1e-4 * factor, 3e-2 * factor) if wide else between(1e-3 * factor, 1e-2 * factor),
        optimizer=optimizer,
        clip=share() < 0.7,
        warmup=WARMUP if share() < 0.25 else 0,
    )


def generator(purpose: str, name: str) -> Generator:
    """A random source that belongs to a purpose and a name, the same on every machine."""
    digest = hashlib.sha256(f"{purpose} {name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:6], "big"))
