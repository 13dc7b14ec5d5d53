"""Which networks are trained: drawn at random, one after the other, the tasks in turn."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

NETWORKS = 420
TASKS = ("images", "text", "tabular")
KINDS = {
    "images": ("dense", "dense", "residual dense", "conv", "residual conv", "attention", "attention"),
    "text": ("dense", "dense", "residual dense", "conv", "residual conv", "attention", "attention"),
    "tabular": ("dense", "residual dense"),
}
"""Kinds of blocks; each as often as it stands there."""
NORMS = {"plain": ("layer", "batch"), "residual": ("pre", "post", "batch")}
"""Each as often, in half of the networks; the others have none."""
DEPTHS, GAINS, BRANCHES = (2, 50), (0.3, 3.0), (0.1, 2.0)
"""From, to. Of gains and branches all logarithms are as likely, of depths all roots: deep ones take long."""


@dataclass(frozen=True)
class Draw:
    """One network and how it is trained."""

    number: int
    """Also its seed."""
    task: str
    kind: str
    depth: int
    """Blocks."""
    norm: str
    """``layer`` and ``batch`` between weights and activation of a plain block; ``pre`` and ``post``, LayerNorm before
    the branch and after the sum, or ``batch``, BatchNorm before the branch of a residual one; ``none``."""
    activation: str
    gain: float
    """Of all weights in the blocks, 1 being that of Glorot for tanh and of He for relu and gelu."""
    branch: float
    """What branches are multiplied by; 1 for plain blocks."""
    optimiser: str
    """``adam`` at 1e-3 or ``sgd`` at .03 with momentum .9."""

    @property
    def key(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_residual(self) -> bool:
        return self.kind.startswith("residual") or self.kind == "attention"


def draws(count: int = NETWORKS) -> Iterator[Draw]:
    yield from map(draw, range(count))


def draw(number: int) -> Draw:
    """The network of that number, whatever others there are."""
    chance = random.Random(number)
    task = TASKS[number % len(TASKS)]
    kind = chance.choice(KINDS[task])
    is_residual = kind.startswith("residual") or kind == "attention"
    norms = NORMS["residual" if is_residual else "plain"][: 2 if kind == "attention" else None]
    return Draw(
        number,
        task,
        kind,
        depth=round(chance.uniform(*map(math.sqrt, DEPTHS)) ** 2),
        norm=chance.choice(norms) if chance.random() < 0.5 else "none",
        activation=chance.choice(("tanh", "relu", "gelu")),
        gain=round(_between(chance, *GAINS), 3),
        branch=round(_between(chance, *BRANCHES), 3) if is_residual else 1.0,
        optimiser=chance.choice(("adam", "sgd")),
    )


def _between(chance: random.Random, low: float, high: float) -> float:
    return math.exp(chance.uniform(math.log(low), math.log(high)))
