"""Shares that learned by ln σ₁ before the first update, and which thresholds hold: laid down before any was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from features import Networks, seen
from judging import less, wilson
from looking import INFINITE

EDGES = (-math.inf, -5.0, 0.0, 3.0, 6.0, 10.0, INFINITE)
BANDS = ("below −5", "−5 to 0", "0 to 3", "3 to 6", "6 to 10", "above 10", "states not finite")
MIDDLE = "−5 to 6"
Counts = Mapping[str, tuple[int, int]]
"""How many learned in each band, and how many there are."""
THRESHOLDS = {"below −5": True, "6 to 10": False, "above 10": True}
"""Bands that a sentence may warn of, and whether it says that no training is to be expected."""
TASKS_NEEDED = 2
FEWEST = 5
"""Networks beyond a threshold below which it is not said to hold."""


def counts(networks: Networks) -> Counts:
    """By band, and of the middle."""
    bands = [band_of(seen(row, "total")) for row in networks.rows]

    def told(names: tuple[str, ...]) -> tuple[int, int]:
        mine = [bool(learned) for band, learned in zip(bands, networks.learned, strict=True) if band in names]
        return sum(mine), len(mine)

    return {**{band: told((band,)) for band in BANDS}, MIDDLE: told(BANDS[1:4])}


def band_of(total: float) -> str:
    return BANDS[sum(total >= edge for edge in EDGES) - 1]


@dataclass(frozen=True)
class Verdict:
    """Whether a threshold may be printed as a rule."""

    threshold: str
    by_task: tuple[str, ...]
    holds: bool


def verdicts(by_task: Mapping[str, Counts]) -> list[Verdict]:
    """Of every threshold, task by task."""
    found = []
    for band, is_no_training in THRESHOLDS.items():
        held = [holds(counts_[band], counts_[MIDDLE], is_no_training) for counts_ in by_task.values()]
        words = tuple("holds" if one else "does not" for one in held)
        found.append(Verdict(band, words, sum(held) >= TASKS_NEEDED))
    return found


def holds(beyond: tuple[int, int], middle: tuple[int, int], is_no_training: bool) -> bool:
    """Fewer learn beyond than in the middle, by more than the error; and, if none is to be expected, less than half."""
    if beyond[1] < FEWEST or not middle[1]:
        return False
    return less(beyond, middle).is_above_zero and (not is_no_training or wilson(*beyond).high < 0.5)
