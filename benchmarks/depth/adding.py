"""Whether the spectrum adds to a loss curve: who learns, and how well, foretold with it and without.

Ridge and logistic regression, on networks of kinds that they were not fitted to, and with kinds mixed; their numbers
are standardised on those that they were fitted to, and cut at three deviations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from features import (
    LEARNED,
    Networks,
    Row,
    block_gains,
    passing,
    passing_blocks,
    settings,
    totals,
    training,
    with_change,
)
from fitting import UPDATES
from judging import Array, Estimate, auc_gain, auc_of, correlation_gain, correlation_of
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import GroupKFold, KFold

MOMENTS = (UPDATES // 8, UPDATES // 4)
Part = Callable[[Row, int], list[float]]
BASE, SETTINGS = "loss curve and validation", "… and the settings of the network"
BLOCKS, SPECTRUM = "… and block gains", "… and totals and block gains"
BACKWARD, BOTH = "… and one backward pass, block by block", "… and that backward pass, totals and block gains"
WITH_SETTINGS = "… and the settings, totals and block gains"
ADDED: dict[str, tuple[str, tuple[Part, ...]]] = {
    BASE: ("", ()),
    SETTINGS: (BASE, (settings,)),
    "… and totals": (BASE, (with_change(totals),)),
    BLOCKS: (BASE, (with_change(block_gains),)),
    SPECTRUM: (BASE, (with_change(totals), with_change(block_gains))),
    "… and one backward pass": (BASE, (with_change(passing),)),
    BACKWARD: (BASE, (with_change(passing), with_change(passing_blocks))),
    BOTH: (BACKWARD, tuple(map(with_change, (passing, passing_blocks, totals, block_gains)))),
    WITH_SETTINGS: (SETTINGS, (settings, with_change(totals), with_change(block_gains))),
}
"""Beside the loss curve, at a moment of training: what each set is compared with, and what is in it."""
KNOWN, WITH_TOTALS, WITH_BACKWARD = "settings of the network", "settings and totals", "settings and one backward pass"
FIRST: dict[str, tuple[str, tuple[Part, ...]]] = {
    KNOWN: ("", (settings,)),
    "totals": ("", (totals,)),
    "one backward pass": ("", (passing,)),
    WITH_TOTALS: (KNOWN, (settings, totals)),
    "settings, totals and block gains": (KNOWN, (settings, totals, block_gains)),
    WITH_BACKWARD: (KNOWN, (settings, passing)),
    "settings, one backward pass and totals": (WITH_BACKWARD, (settings, passing, totals)),
}
"""The same before the first update. Every set has the task and the optimiser."""


@dataclass(frozen=True)
class Foretold:
    """Scores of networks that a regression was not fitted to."""

    learns: Array
    skill: Array


@dataclass(frozen=True)
class Comparison:
    """One set of numbers at one moment."""

    name: str
    moment: int
    auc: float
    correlation: float
    late: float
    """The AUC among those that have not learned by then."""
    auc_gain: Estimate | None
    correlation_gain: Estimate | None
    late_gain: Estimate | None
    """Over what it is compared with."""


def compared(all_: Networks, moment: int, is_grouped: bool, sets: Sequence[str] = ()) -> list[Comparison]:
    """Every set at a moment, or those named, beside what it is compared with.

    Args:
        all_: The networks.
        moment: Update; 0 for before the first, when there is no loss curve yet.
        is_grouped: Whether networks are foretold from those of other kinds alone.
        sets: Names.
    """
    known = {name: one for name, one in (ADDED if moment else FIRST).items() if name in sets or not sets}
    base: tuple[Part, ...] = (training, all_.curve) if moment else (training,)
    foretold = {name: _foretold(all_, moment, (*base, *parts), is_grouped) for name, (_, parts) in known.items()}
    late = np.array([all_.skill_at(row, moment) <= LEARNED for row in all_.rows])
    return [
        _comparison(name, moment, foretold[name], foretold.get(other), all_, late) for name, (other, _) in known.items()
    ]


def _comparison(
    name: str, moment: int, own: Foretold, other: Foretold | None, all_: Networks, late: Array
) -> Comparison:
    learned, tasks = all_.learned, all_.tasks
    few = learned[late], tasks[late]
    return Comparison(
        name,
        moment,
        auc_of(own.learns, learned, tasks).value,
        correlation_of(own.skill, all_.skills, tasks).value,
        auc_of(own.learns[late], *few).value,
        other and auc_gain(own.learns, other.learns, learned, tasks),
        other and correlation_gain(own.skill, other.skill, all_.skills, tasks),
        other and auc_gain(own.learns[late], other.learns[late], *few),
    )


def _foretold(all_: Networks, moment: int, parts: Sequence[Part], is_grouped: bool) -> Foretold:
    inputs = np.array([[number for part in parts for number in part(row, moment)] for row in all_.rows])
    kinds = np.array([f"{row['draw']['task']} {row['draw']['kind']}" for row in all_.rows])
    splitter = GroupKFold(10) if is_grouped else KFold(10, shuffle=True, random_state=0)
    folds = splitter.split(inputs, groups=kinds if is_grouped else None)
    found = Foretold(np.zeros(len(inputs)), np.zeros(len(inputs)))
    for fit, rest in folds:
        mean, deviation = inputs[fit].mean(0), inputs[fit].std(0) + 1e-9
        known, asked = (((inputs[rows] - mean) / deviation).clip(-3, 3) for rows in (fit, rest))
        ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(known, all_.skills[fit])
        logistic = LogisticRegressionCV(Cs=[0.003, 0.03, 0.3], cv=4, max_iter=300, scoring="neg_log_loss")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.learns[rest] = logistic.fit(known, all_.learned[fit]).decision_function(asked)
        found.skill[rest] = ridge.predict(asked)
    return found
