"""What is read off the rows of networks: who learned, and the numbers that might have told so before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from data import task
from draws import TASKS
from fitting import EPOCH, UPDATES, WINDOW
from judging import Array
from looking import INFINITE

Row = dict[str, Any]
LEARNED = 0.5
"""Skill in validation beyond which a network has learned."""


@dataclass(frozen=True)
class Networks:
    """All networks of the results."""

    rows: list[Row]
    skills: Array
    """From 0, chance, to 1, the best of all networks of the task, at the end."""
    tasks: Array
    best: dict[str, float]
    """Accuracy of the best network of each task, at the end."""

    @property
    def learned(self) -> Array:
        return self.skills > LEARNED

    def skill_at(self, row: Row, update: int) -> float:
        """From chance to what is best at the end."""
        name = row["draw"]["task"]
        chance = task(name).chance
        return (accuracy(row, update) - chance) / max(self.best[name] - chance, 1e-9)

    def curve(self, row: Row, until: int) -> list[float]:
        """What everybody has at hand: loss and validation, where they are and how far they came.

        Losses are in units of that of guessing, and given as logarithms. More of the curve foretold less.
        """
        guessing = math.log(task(row["draw"]["task"]).classes)
        losses = [min(loss / guessing, 3.0) for loss in row["losses"][: until // WINDOW]]
        moments = [int(at) for at in row["validation"] if 0 < int(at) <= until]
        first, last = (self.skill_at(row, at) for at in (moments[0], moments[-1]))
        validation = min(row["validation"][str(moments[-1])][1] / guessing, 3.0)
        logs = [math.log(max(loss, 1e-3)) for loss in (losses[-1], validation)]
        return [*logs, losses[-1] - losses[0], last, last - first]

    def where(self, keep: Callable[[Row], bool]) -> Networks:
        """Only some, with the skills that they have among all."""
        mine = np.array([keep(row) for row in self.rows], dtype=bool)
        rows = [row for row, mine_ in zip(self.rows, mine, strict=True) if mine_]
        return Networks(rows, self.skills[mine], self.tasks[mine], self.best)

    def scores(self, feature: Callable[[Row], float]) -> Array:
        return np.array([feature(row) for row in self.rows], dtype=float)


def networks(rows: Sequence[Row]) -> Networks:
    """Those of the results, with their skills."""
    mine = [row for row in rows if row["part"] == "networks"]
    tasks = np.array([row["draw"]["task"] for row in mine])
    best = {name: max(accuracy(row, UPDATES) for row in mine if row["draw"]["task"] == name) for name in set(tasks)}
    found = Networks(mine, np.zeros(len(mine)), tasks, best)
    return replace(found, skills=np.array([found.skill_at(row, UPDATES) for row in mine]))


def accuracy(row: Row, update: int) -> float:
    return float(row["validation"][str(update)][0])


# Before the first update ----------------------------------------------------------------------------------------------


def seen(row: Row, name: str, update: int = 0) -> float:
    """A number of a look; ±999 where it is infinite, or not to be had as states are not finite."""
    value = row["looks"][str(update)].get(name)
    return INFINITE if value is None else float(value)


def near_zero(name: str, per_block: bool = False) -> Callable[[Row], float]:
    """Higher the closer to 0."""
    return lambda row: -abs(seen(row, name)) / (row["draw"]["depth"] if per_block else 1)


def anisotropy(row: Row) -> float:
    return seen(row, "total") - seen(row, "gain")


FEATURES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "\\|ln σ₁\\|, total": ("a measurement", near_zero("total")),
    "\\|gain\\|, total": ("a measurement", near_zero("gain")),
    "\\|ln σ₁\\| per block": ("a measurement", near_zero("total", per_block=True)),
    "\\|gain\\| per block": ("a measurement", near_zero("gain", per_block=True)),
    "anisotropy, low": ("a measurement", lambda row: -anisotropy(row)),
    "gradient ratio, \\|ln ‖∂L/∂x₀‖ / ‖∂L/∂x_D‖\\|": ("one backward pass", near_zero("gradient_ratio")),
    "gradient norm, \\|ln ‖∇L‖\\|": ("one backward pass", near_zero("gradient_norm")),
    "activation ratio, \\|ln ‖x_D‖ / ‖x₀‖\\|": ("one forward pass", near_zero("activation_ratio")),
    "\\|change of the cosine between samples\\|": ("one forward pass", near_zero("cosine")),
    "depth, low": ("nothing", lambda row: -float(row["draw"]["depth"])),
    "training loss after 1/20, low": ("5 % of training", lambda row: -loss_at(row, EPOCH)),
    "validation after 1/20 of training": ("5 % of training", lambda row: accuracy(row, EPOCH)),
    "validation after 3/20 of training": ("15 % of training", lambda row: accuracy(row, 3 * EPOCH)),
}
"""Each with what it costs and its score: the higher, the likelier that the network learns."""
TOTAL, GAIN, TOTAL_PER_BLOCK, _, _, RATIO, NORM, *_ = FEATURES


def loss_at(row: Row, update: int) -> float:
    """Mean training loss of the eight updates up to one."""
    return float(row["losses"][update // WINDOW - 1])


# On the way -----------------------------------------------------------------------------------------------------------


def training(row: Row, at: int = 0) -> list[float]:
    """The task and the optimiser."""
    draw = row["draw"]
    return [*(float(draw["task"] == name) for name in TASKS), float(draw["optimiser"] == "adam")]


def settings(row: Row, at: int = 0) -> list[float]:
    """The settings of the network, which are known before it is made."""
    draw = row["draw"]
    numbers = [math.log(draw[name]) for name in ("depth", "gain", "branch")]
    named = {
        "kind": ("dense", "residual dense", "conv", "residual conv", "attention"),
        "norm": ("none", "layer", "batch", "pre", "post"),
        "activation": ("tanh", "relu", "gelu"),
    }
    flags = [float(draw[name] == one) for name, some in named.items() for one in some]
    return [*numbers, abs(numbers[1]) * draw["depth"], *flags]


def totals(row: Row, at: int) -> list[float]:
    """Of the chain as a whole: growth, its size, anisotropy, growth of the state."""
    total, gain, state_growth = (bounded(seen(row, name, at)) for name in ("total", "gain", "state_growth"))
    return [total, gain, abs(total), abs(gain), total - gain, state_growth]


def block_gains(row: Row, at: int) -> list[float]:
    """Of the blocks: gains and changes, their extremes, spread, and how the late third differs from the first."""
    return [number for name in ("block_gain", "block_change") for number in shape(row, name, at)]


def passing(row: Row, at: int) -> list[float]:
    """What one backward pass tells at that moment, of the whole."""
    names = ("gradient_ratio", "gradient_norm", "activation_ratio", "cosine")
    whole = [bounded(seen(row, name, at)) for name in names]
    return [*whole, *map(abs, whole[:3])]


def passing_blocks(row: Row, at: int) -> list[float]:
    """The same block by block: by what gradients and states change their size."""
    return [number for name in ("block_gradient", "block_activation") for number in shape(row, name, at)]


def bounded(nats: float) -> float:
    """Within what a regression can be given: ±30 nats."""
    return max(-30.0, min(30.0, nats))


def shape(row: Row, name: str, at: int) -> list[float]:
    """A profile along the depth in five numbers: least, most, mean, spread, last third less first third."""
    values = row["looks"][str(at)].get(name) or [INFINITE]
    values = [bounded(INFINITE if value is None else value) for value in values]
    third = max(1, len(values) // 3)
    slope = statistics.fmean(values[-third:]) - statistics.fmean(values[:third])
    return [min(values), max(values), statistics.fmean(values), statistics.pstdev(values), slope]


def with_change(of: Callable[[Row, int], list[float]]) -> Callable[[Row, int], list[float]]:
    """Numbers at a moment, and what has become of them since before the first update."""

    def both(row: Row, at: int) -> list[float]:
        now, before = of(row, at), of(row, 0)
        return [*now, *(new - old for new, old in zip(now, before, strict=True))]

    return both
