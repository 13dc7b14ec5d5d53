"""When a run may be ended for what it says, and how often that was right.

From which update on, and from which amount, a condition ends a run was chosen on one half of the bank's task families;
how often that would have been wrong was counted on the other half. Both stand in the file of rates
(``python -m lightning_lyapunov.bank.rates`` writes it). Where no choice was right often enough the condition ends no
run. One that learns, whose skill so far is known to be 0.1 or more, is ended only where it has converged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_lyapunov.reading import rates
from lightning_lyapunov.reading.conditions import (
    FAILS,
    MILD,
    UNMOVED_FOR,
    VANISHED,
    gain,
    has_converged,
    is_chaotic,
    is_collapsed,
    is_dead,
    is_predicted_to_fail,
)
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.rates import LEARNING, UNKNOWN, is_within, knowledge_of
from lightning_lyapunov.reading.words import percent

Condition = Literal["chaotic", "collapsed", "converged", "predicted_to_fail"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""What training can be ended for."""
KNOWN = "known"
"""Of the skill so far, for what does not ask whether it is at chance."""
AMOUNTS: dict[Condition, float] = {"chaotic": MILD, "collapsed": VANISHED, "converged": 0.0, "predicted_to_fail": FAILS}
"""The least that each asks for: nats over a sequence, a skill, a probability."""
PATIENCE = UNMOVED_FOR
"""Measurements in a row at which a condition holds before it ends a run."""


@dataclass(frozen=True)
class Outcome:
    """What a rule did to the runs of the bank on which it was not chosen."""

    ended: int
    failed: int
    """Of these, how many would have ended below a skill of 0.3."""
    half: int
    """Above 0.5."""
    most: int
    """Above 0.9."""
    kept: int
    """Lost no more than 0.02 of skill."""


@dataclass(frozen=True)
class Rule:
    """From when on, and from how much, a condition ends a run."""

    condition: Condition
    knowledge: str
    """What is known of the skill so far: nothing; that it is at chance; or, to have converged, anything."""
    start: float
    """Updates before which it does not count; infinite where it never does."""
    amount: float
    """Nats that a gradient changes by over a sequence, beyond the error; the skill so far; probability of failure."""
    outcome: Outcome | None = None
    """None where it could not be tried on as many as 20 runs."""

    def holds(self, run: Sequence[Measurement], patience: int = PATIENCE) -> bool:
        """Whether the newest measurement speaks for ending the run."""
        newest = run[-1]
        if newest.step < self.start:
            return False
        value, error = gain(newest)
        if self.condition == "chaotic":
            return is_chaotic(newest) and value - error > self.amount
        if self.condition == "collapsed":
            return is_collapsed(newest) and (is_dead(newest) or not value + error >= -self.amount)
        if self.condition == "converged":
            return not newest.skill < self.amount and has_converged(run, patience)
        return is_predicted_to_fail(newest, self.amount)

    def told(self, measurement: Measurement) -> str:
        """How often it was right, in a clause; nothing where the bank cannot tell."""
        if self.outcome is None or not is_within(measurement):
            return ""
        if self.condition == "converged":
            share = percent(self.outcome.kept / self.outcome.ended)
            what = f"{share} lost no more than 0.02 of skill"
        else:
            share = percent(self.outcome.half / self.outcome.ended) if self.outcome.half else "none"
            what = f"{share} would have come above a skill of 0.5"
        return f"of {self.outcome.ended:,} runs of the bank that were ended so, {what}"


def rule_in_words(rule: Rule) -> str:
    """What became of the runs that a rule ended, in a line: that of the stopper's docstring."""
    skill = {UNKNOWN: "skill not known", KNOWN: "skill known"}.get(rule.knowledge, f"skill {rule.knowledge}")
    what = f"{rule.condition}, {skill}"
    if math.isinf(rule.start):
        return f"{what}: never, as it was wrong too often."
    begins = f"{what}: from update {rule.start:g}" + f", by {rule.amount:g}" * (rule.amount != AMOUNTS[rule.condition])
    if rule.outcome is None:
        return f"{begins}; too few such runs to tell."
    out = rule.outcome
    if rule.condition == "converged":
        return f"{begins}; of {out.ended} runs {out.kept} lost no more than 0.02."
    return f"{begins}; of {out.ended} runs {out.failed} failed, {out.half} came above 0.5."


def needed(condition: Condition, patience: int) -> int:
    """Measurements in a row at which it holds; that of having converged looks at several by itself."""
    return 1 if condition == "converged" else patience


def rule_for(condition: Condition, measurement: Measurement, rules: Iterable[Rule] | None = None) -> Rule | None:
    """The rule that counts at a measurement, of some or of those shipped; None where none does, as the run learns."""
    knowledge = knowledge_of(measurement)
    if condition == "converged" and knowledge != UNKNOWN:
        knowledge = KNOWN
    if knowledge == LEARNING:
        return None
    rules = shipped_rules() if rules is None else rules
    return next((rule for rule in rules if (rule.condition, rule.knowledge) == (condition, knowledge)), None)


def from_update(condition: Condition, start: int) -> Rule:
    """A condition as it stands, from some update on; of how often it is right nothing is known."""
    return Rule(condition, UNKNOWN, start, AMOUNTS[condition])


def shipped_rules() -> tuple[Rule, ...]:
    """The rules in the file of rates."""
    found = []
    for condition, knowledge, start, amount, *outcome in rates.shipped()["stops"]:
        begins = math.inf if start is None else start
        found.append(Rule(condition, knowledge, begins, amount, Outcome(*outcome) if outcome else None))
    return tuple(found)
