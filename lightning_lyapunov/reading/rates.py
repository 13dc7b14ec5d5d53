"""How often what is said was right: of the bank's networks that were told it, how many learnt their task after all.

A concern is *right* where the network told of it ended below a skill of 0.3. Its rate is that of the bank's networks
after as many updates (the last moment at which they were measured), of those that are alike in what is known: whether
the skill so far is at chance, and the kind of cell. ``python -m lightning_lyapunov.bank.rates`` counts them into the
file that is read here. Beyond the updates and the sequences of the bank, and of fewer than 50 networks, there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lightning_lyapunov.reading.conditions import grows, has_learnt, is_cut
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.state import Level
from lightning_lyapunov.reading.words import percent

FORMAT = "lightning_lyapunov.rates/1"
FEWEST = 50
"""Networks that a rate must be of."""
RIGHT = 0.3
"""Final skill below which what worried was right to."""
GRADES: tuple[tuple[Level, float], ...] = (("act", 0.95), ("warning", 0.8))
"""Shares right from which a concern is of a level, the gravest first; all others are notes."""
UNKNOWN, AT_CHANCE, LEARNING = "", "at chance", "learning"
"""What is known of the skill so far: nothing, that it is below 0.1, or that it is not."""


@dataclass(frozen=True)
class Rate:
    """What became of the bank's networks that were told something at one moment."""

    updates: int
    """The moment."""
    knowledge: str
    """What was known of their skill by then."""
    cell: str
    """Their kind of cell; empty if of all kinds."""
    within: tuple[int, ...]
    """Updates after which they ended, ascending: tasks that take longer were given longer."""
    told: int
    failed: int
    """Ended below a skill of 0.3."""
    half: int
    """Ended above 0.5."""
    most: int
    """Ended above 0.9."""
    least: float
    """One-sided 95 % bound: the share right is at least this."""

    @property
    def right(self) -> float:
        """Share that ended below a skill of 0.3."""
        return self.failed / self.told

    @property
    def level(self) -> Level:
        """How much it matters, by the share right."""
        return next((level for level, share in GRADES if self.right >= share), "note")

    def __str__(self) -> str:
        """As ``of 380 networks told this after 160 updates 7 % learnt their task within 800 updates``."""
        kind = f" of their kind ({self.cell})" if self.cell else ""
        chance = {AT_CHANCE: " while at chance", LEARNING: " while learning"}.get(self.knowledge, "")
        when = f"after {self.updates:,} updates" if self.updates else "before the first update"
        learnt = "none" if self.failed == self.told else percent(1 - self.right)
        who = f"{self.told:,} networks{kind} told this {when}{chance}"
        within = " to ".join(f"{end:,}" for end in dict.fromkeys((self.within[0], self.within[-1])))
        return f"of {who}, {learnt} learnt their task within {within} updates"


def knowledge_of(measurement: Measurement) -> str:
    """What is known of its skill so far."""
    if math.isnan(measurement.skill):
        return UNKNOWN
    return LEARNING if has_learnt(measurement) else AT_CHANCE


def is_within(measurement: Measurement) -> bool:
    """Whether the bank's runs were as long, in updates and in steps of a sequence, and its sequences as whole."""
    written = shipped()
    is_long = measurement.step > written["until"] or (measurement.length or 0) > written["longest"]
    return not is_long and not is_cut(measurement)


def rate_of(state: str, measurement: Measurement) -> Rate | None:
    """How often a concern was right at such a measurement; None where the bank cannot tell."""
    if not is_within(measurement):
        return None
    moments = [moment for moment in shipped()["moments"] if moment <= measurement.step]
    return _rate_at(state, measurement, moments[-1], knowledge_of(measurement))


def level_of(state: str, measurement: Measurement) -> Level:
    """How much a concern matters at such a measurement: a note where the bank cannot tell."""
    rate = rate_of(state, measurement)
    return "note" if rate is None else rate.level


def may_matter(state: str, measurement: Measurement) -> bool:
    """Whether the bank cannot tell here, but a concern was more than a note when it last could, or it never could.

    It last could at an earlier moment, or of shorter sequences; of growth over a part of a sequence it never could, as
    there is more of it over the whole. A run that has come above a skill of 0.3 is fine; of one that is on its way,
    where too few were told this, what holds of all counts.
    """
    if measurement.skill >= RIGHT or rate_of(state, measurement) is not None:
        return False
    if is_cut(measurement) and grows(measurement):
        return True
    moments = [moment for moment in shipped()["moments"] if moment <= measurement.step]
    for knowledge in dict.fromkeys((knowledge_of(measurement), UNKNOWN)):
        for moment in reversed(moments):
            if last := _rate_at(state, measurement, moment, knowledge):
                return last.level != "note"
    return True


def _rate_at(state: str, measurement: Measurement, moment: int, knowledge: str) -> Rate | None:
    """The most particular rate at a moment: of its kind of cell, else of all kinds.

    Before the first update all are at chance, so what holds of all holds of these.
    """
    written, known = shipped(), UNKNOWN if knowledge == AT_CHANCE and not moment else knowledge
    for cell in dict.fromkeys((measurement.cell, "")):
        counts = written["told"].get(state, {}).get(group_of(cell, known), {}).get(str(moment))
        if counts:
            ends = tuple(end for end in written["ends"] if end > moment)
            return Rate(moment, known, cell, ends, *counts)
    return None


def group_of(cell: str, knowledge: str) -> str:
    """The name of a group of networks in the file."""
    return ", ".join(part for part in (cell, knowledge) if part) or "all"


@cache
def shipped() -> Mapping[str, Any]:
    """What the file of rates holds that comes with the package."""
    return json.loads(files("lightning_lyapunov.reading").joinpath("rates.json").read_text("utf-8"))
