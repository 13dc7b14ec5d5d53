"""Which networks are trained on what, from which start; in the order in which they are run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SEEDS = range(8)
FEW = range(3)
"""Seeds of what is dear, or stays at chance whatever is done."""


@dataclass(frozen=True)
class Run:
    """One training; with its settings it is told apart from all others."""

    task: str
    net: str
    start: str
    seed: int
    updates: int | None = None
    """Fewer or more than the task's."""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.task, self.net, self.start, self.seed


ALL, GATED = ("RNN", "GRU", "LSTM"), ("GRU", "LSTM")
NETS = ("RNN", "RNN, gain 3", "GRU", "LSTM")
SMALL = "orthogonal, inputs × .1"
ON_XOR = ("hold", "as made", "simple", "chrono", "flossing, rate .003")
"""Starts of gated cells, which stay at chance on XOR."""


@dataclass(frozen=True)
class Part:
    """Every start of every net on one task."""

    task: str
    nets: Sequence[str]
    starts: Sequence[str]
    updates: int | None = None
    seeds: Sequence[int] = SEEDS


PARTS = (
    Part("recall", NETS, ["as made", "simple", "hold", "flossing"]),
    Part("recall", ["RNN, gain 3"], ["spectral radius"]),
    Part("xor-20", ["RNN"], ["hold", SMALL]),
    Part("xor-20", ["RNN"], ["as made", "orthogonal"], 700),
    Part("pixels", GATED, ["as made", "spread", "hold"]),
    Part("rows", ALL, ["as made", "spread", "hold", "simple"]),
    Part("cost", [*ALL, "RNN, gain 3"], ["flossed"], seeds=FEW),
    Part("cost", ALL, ["hold", "flossing"], seeds=[0]),
    Part("xor-20", ["RNN"], ["flossing, rate .003"]),
    Part("xor-10", ["RNN"], ["hold", "flossing, rate .003"]),
    Part("match", ALL, ["as made", "hold", "simple"]),
    Part("adding", ALL, ["as made", "hold", "simple"]),
    Part("characters", ALL, ["as made", "hold", "simple"]),
    Part("pixels", ["RNN"], ["as made", "hold", "simple", "hold, lag 16"]),
    Part("pixels", GATED, ["simple", "hold, lag 16"]),
    Part("regulariser", ["RNN, orthogonal", "RNN, gain 1", "LSTM, bias 5"], ["off", "guard", "one-sided"], seeds=FEW),
    Part("xor-20", ["RNN"], ["λ₁ = 0", "orthogonal, λ₁ = 0", "inputs × .1"], 700),
    Part("xor-10", ["RNN"], ["as made", SMALL], 700),
    Part("recall", NETS, ["spread"]),
    Part("xor-20", ["RNN"], ["flossing, rate .001"], seeds=FEW),
    Part("xor-20", ["LSTM", "GRU"], ON_XOR, 400, FEW),
    Part("xor-10", ["LSTM", "GRU"], ON_XOR, 400, FEW),
)
"""What the acceptance rests on first."""


def runs() -> Iterator[Run]:
    """A few seeds of everything, then the others; of a part seed by seed, so that all its starts are known soon."""
    for together in (FEW, SEEDS[len(FEW) :]):
        for part in PARTS:
            for seed in (seed for seed in part.seeds if seed in together):
                for net in part.nets:
                    for start in part.starts:
                        yield Run(part.task, net, start, seed, part.updates)
