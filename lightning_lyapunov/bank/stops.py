"""Choose from when on runs may be ended, on one half of the families, and count on the other how often that is wrong.

A run that is ended would have *come well* had its final skill been above 0.5. What is compared is what share of failing
runs (below 0.3) is caught, and how much training is saved, with stock early stopping on the validation metric at no
more false stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from lightning_lyapunov.bank.bounds import lower_bound, upper_bound
from lightning_lyapunov.bank.histories import Scores, runs
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.rates import AT_CHANCE, RIGHT, UNKNOWN
from lightning_lyapunov.reading.stops import (
    AMOUNTS,
    CONDITIONS,
    KNOWN,
    PATIENCE,
    Condition,
    Outcome,
    Rule,
    needed,
    rule_for,
)

STARTS = (40, 80, 160, 320, 560, 800, 1400)
"""Updates from which a condition may count: what is tried."""
MORE: dict[Condition, tuple[float, ...]] = {
    "chaotic": (5.0, 10.0), "collapsed": (60.0,), "converged": (0.5, 0.9, 0.98), "predicted_to_fail": (0.95,),
}  # fmt: skip
"""Amounts that are tried beside the least that is asked for."""
WRONG = (0.02, 0.005)
"""On the half it is chosen on, a rule may end so large a share of runs that would have come above 0.5, and 0.9."""
PROMISED = (0.08, 0.03)
"""Of the 95 % bounds of these shares on the other half, all rules together."""
LOSS, KEPT = 0.02, 0.9
"""Skill that is lost by ending a run, which counts as none; the share of runs that must lose none."""
FEWEST_ENDED = 20
"""Runs that a rule must have ended to be judged."""
Runs = Sequence[Sequence[Measurement]]


@dataclass(frozen=True)
class Ends:
    """How the networks of a half would have ended, and when rules end them."""

    families: np.ndarray
    skill: np.ndarray
    """(N,) final."""
    end: np.ndarray
    """(N,) updates."""
    stopped: np.ndarray
    """(N,) the update at which a run is ended; NaN if it is not."""
    reached: np.ndarray
    """(N,) skill when it is; NaN if it is not."""

    @property
    def is_stopped(self) -> np.ndarray:
        """(N,) bool."""
        return np.isfinite(self.stopped)

    def share(self, above: float) -> float:
        """Of those ended, the share that would have come above a skill."""
        return float((self.skill[self.is_stopped] > above).mean()) if self.is_stopped.any() else math.nan

    def bound(self, above: float) -> float:
        """Its 95 % bound from above."""
        return upper_bound(self.skill[self.is_stopped] > above, self.families[self.is_stopped])

    @property
    def caught(self) -> float:
        """Of those that fail, the share that is ended."""
        return float(self.is_stopped[self.skill < RIGHT].mean())

    @property
    def saved(self) -> float:
        """Of all epochs of all runs, the share that is saved."""
        return float(np.nansum(self.end - self.stopped) / self.end.sum())

    @property
    def lost_none(self) -> np.ndarray:
        """Of each that is ended, bool: whether it would have come no more than 0.02 further."""
        return (self.skill - self.reached)[self.is_stopped] <= LOSS

    @property
    def outcome(self) -> Outcome:
        """In numbers of runs."""
        skill = self.skill[self.is_stopped]
        shares = (skill < RIGHT, skill > 0.5, skill > 0.9, self.lost_none)
        return Outcome(len(skill), *(int(one.sum()) for one in shares))

    def is_right(self, condition: Condition) -> bool:
        """Whether a rule that ends these may be chosen."""
        if condition == "converged":
            return float(self.lost_none.mean()) >= KEPT
        return self.share(0.5) <= WRONG[0] and self.share(0.9) <= WRONG[1]


@dataclass(frozen=True)
class Stop:
    """A rule as it was chosen, and what it does on the other half; or what it is compared with."""

    name: str
    ends: Ends
    rule: Rule | None = None
    note: str = ""

    def written(self) -> list[Any]:
        """As the file holds it."""
        assert self.rule is not None
        rule = self.rule
        head = [rule.condition, rule.knowledge, None if math.isinf(rule.start) else rule.start, rule.amount]
        return head if rule.outcome is None else [*head, *astuple(rule.outcome)]


@dataclass(frozen=True)
class Half:
    """One half of the families, as runs."""

    bank: Bank
    known: Runs
    """With the skill so far."""
    blind: Runs
    """Without."""

    @staticmethod
    def of(bank: Bank, which: int, scores: Mapping[bool, Scores] | None) -> Half:
        """Of the families in alphabetical order every second one, from the first (0) or the second (1) on."""
        chosen = sorted(set(bank.column("family")))[which::2]
        keep = [n for n, family in enumerate(bank.column("family")) if family in chosen]
        some = bank.subset(keep)
        said = {knows: {k: v[keep] for k, v in part.items()} for knows, part in (scores or {}).items()}
        known, blind = (list(runs(some, said.get(knows), knows_skill=knows)) for knows in (True, False))
        return Half(some, known, blind)

    def ends(self, stops: Callable[[Sequence[Measurement]], float], *, knows_skill: bool) -> Ends:
        """How its networks end, and when something stops them, before their end."""
        end = self.bank.end.numpy().astype(float)
        stopped = np.array([stops(run) for run in (self.known if knows_skill else self.blind)])
        stopped[stopped >= end] = math.nan
        by_update = [{float(m.step): m.skill for m in run} for run in self.known]
        reached = np.array([skills.get(at, math.nan) for skills, at in zip(by_update, stopped, strict=True)])
        families = np.array(self.bank.column("family"))
        return Ends(families, self.bank.skill(self.bank.final).numpy(), end, stopped, reached)


def first(run: Sequence[Measurement], rules: Sequence[Rule], patience: int = PATIENCE) -> float:
    """The update at which one of some rules ends a run, as the stopper would; NaN if none does."""
    counts = dict.fromkeys((rule.condition for rule in rules), 0)
    for i, measurement in enumerate(run):
        for condition in counts:
            if measurement.step == 0 and condition != "predicted_to_fail":
                continue
            rule = rule_for(condition, measurement, rules)
            speaks = rule is not None and rule.holds(run[: i + 1], patience)
            counts[condition] = counts[condition] + 1 if speaks else 0
            if counts[condition] >= needed(condition, patience):
                return float(measurement.step)
    return math.nan


def first_stagnant(run: Sequence[Measurement], patience: int, min_delta: float) -> float:
    """The update at which stock early stopping on the skill so far ends a run, checked as often as it is measured."""
    best, count = -math.inf, 0
    for measurement in run:
        if math.isnan(measurement.skill):
            continue
        better = measurement.skill > best + min_delta
        best, count = (measurement.skill, 0) if better else (best, count + 1)
        if count >= patience:
            return float(measurement.step)
    return math.nan


def choose(bank: Bank, scores: Mapping[bool, Scores] | None = None) -> list[Stop]:
    """The rules of the stopper, and what they are compared with: see :func:`rule_of` and :func:`compared`."""
    one, other = (Half.of(bank, which, scores) for which in (0, 1))
    kinds = [
        (condition, knowledge)
        for condition in CONDITIONS
        for knowledge in (KNOWN if condition == "converged" else AT_CHANCE, UNKNOWN)
    ]
    stops = [rule_of(condition, knowledge, one, other) for condition, knowledge in kinds]
    return [*stops, *compared(stops, other)]


def rule_of(condition: Condition, knowledge: str, one: Half, other: Half) -> Stop:
    """The rule that catches most on one half, of those that are right often enough there; what it does on the other.

    To have converged is to catch much where it saves much. Where none is right often enough it never counts; where none
    ends as many runs as it takes to tell, it counts as it stands.
    """
    starts = [start for start in STARTS if start < int(one.bank.end.max())]
    candidates = [
        Rule(condition, knowledge, start, amount)
        for amount, start in product((AMOUNTS[condition], *MORE[condition]), starts)
    ]
    knows = knowledge != UNKNOWN
    if condition == "converged" and not knows:
        candidates = [rule for rule in candidates if rule.amount == AMOUNTS[condition]]
    tried = [(rule, _ended_by([rule], one, knows)) for rule in candidates]
    judged = [(rule, ends) for rule, ends in tried if ends.is_stopped.sum() >= FEWEST_ENDED]
    good = [(rule, ends) for rule, ends in judged if ends.is_right(condition)]
    if good:
        rule, note = max(good, key=lambda t: t[1].saved if condition == "converged" else t[1].caught)[0], ""
    elif judged:
        rule, note = replace(candidates[0], start=math.inf), "never: no rule was right often enough on the first half"
    else:
        rule, note = candidates[0], "could not be tried"
    ends = _ended_by([rule], other, knows)
    outcome = ends.outcome if ends.is_stopped.sum() >= FEWEST_ENDED else None
    return Stop(condition, ends, replace(rule, outcome=outcome), note)


def _ended_by(rules: Sequence[Rule], half: Half, knows_skill: bool) -> Ends:
    return half.ends(lambda run: first(run, rules), knows_skill=knows_skill)


def compared(stops: Sequence[Stop], half: Half) -> list[Stop]:
    """All rules that end what fails together, and beside them stock early stopping at no more false stops."""
    lines = []
    for knowledge in (AT_CHANCE, UNKNOWN):
        rules = [stop.rule for stop in stops if stop.rule and stop.rule.knowledge == knowledge]
        rules = [rule for rule in rules if rule.condition != "converged"]
        ends = _ended_by(rules, half, knowledge == AT_CHANCE)
        is_kept = all(ends.bound(skill) <= most for skill, most in zip((0.5, 0.9), PROMISED, strict=True))
        note = f"skill {knowledge or 'not known'}; at most {PROMISED[0]:.0%} and {PROMISED[1]:.0%}: "
        lines += [
            Stop("all that fails", ends, note=note + ("kept" if is_kept else "missed")),
            stock(half, ends.share(0.5)),
        ]
    return lines


def stock(half: Half, false: float) -> Stop:
    """Stock early stopping on the validation metric that catches most, at no larger a share of false stops."""
    tried = [
        (half.ends(lambda run: first_stagnant(run, p, d), knows_skill=True), f"patience {p}, min_delta {d:g}")  # noqa: B023
        for p, d in product((1, 2, 3, 4, 5), (0.0, 0.01, 0.03, 0.1))
    ]
    tried = [(ends, how) for ends, how in tried if ends.is_stopped.any()]
    good = [(ends, how) for ends, how in tried if ends.share(0.5) <= false]
    ends, how = max(good, key=lambda t: t[0].caught) if good else min(tried, key=lambda t: t[0].share(0.5))
    return Stop("EarlyStopping on the metric", ends, note=how + ("" if good else "; never so seldom false"))


# ------------------------------------------------------------------ for people


def markdown_of_stops(stops: Sequence[Stop]) -> str:
    """The table of the page."""
    heads = ("condition", "skill", "from update", "amount", "ended", "right", "above 0.5", "above 0.9", "no loss")
    lines = [f"| {' | '.join(heads)} | failing caught | saved | |", "|---" * 12 + "|"]
    for stop in stops:
        rule, ends = stop.rule, stop.ends
        out = ends.outcome
        how = [rule.knowledge or "not known", f"{rule.start:g}", f"{rule.amount:g}"] if rule else [""] * 3
        shares = ["–"] * 4
        of = ends.families[ends.is_stopped]
        if out.ended:
            kept = f"{100 * out.kept / out.ended:.0f} % (≥ {100 * lower_bound(ends.lost_none, of):.0f} %)"
            wrong = [f"{100 * ends.share(a):.1f} % (≤ {100 * ends.bound(a):.1f} %)" for a in (0.5, 0.9)]
            shares = [f"{100 * out.failed / out.ended:.0f} %", *wrong, kept]
        row = [stop.name, *how, str(out.ended), *shares, f"{100 * ends.caught:.0f} %", f"{100 * ends.saved:.1f} %"]
        lines.append(f"| {' | '.join(row)} | {stop.note} |")
    return "\n".join(lines) + "\n"
