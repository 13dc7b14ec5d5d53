"""What a measurement may cost: how much of it fits into a share of the training time.

A measurement costs about in proportion to its work, sequences times directions. The cost of the last one predicts that
of the next; where a whole one would break the budget it is made smaller, first of fewer sequences (wider error bars),
then of fewer directions (less is known), and where not even the smallest fits, not at all this time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

FEWEST_SEQUENCES, FEWEST_DIRECTIONS = 4, 8
"""Below these a measurement says too little to be made."""
FIXED = 0.25
"""Share of a measurement's cost that does not shrink with its work: running the states, reading the results."""
CARE = 1.25
"""By how much a measurement may turn out dearer than predicted without breaking the budget: machines are shared."""
GRACE = 1.2
"""How far the measurement of the first epoch, which is always made, may go beyond the share, as the first ones do."""


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    sequences: int
    k: int
    """Leading exponents."""

    @property
    def work(self) -> int:
        """In sequences times directions."""
        return self.sequences * self.k

    def smaller(self) -> Iterator[Plan]:
        """This plan and all smaller ones, the largest first."""
        plan = self
        yield plan
        while plan.sequences // 2 >= FEWEST_SEQUENCES:
            plan = Plan(plan.sequences // 2, plan.k)
            yield plan
        while plan.k // 2 >= FEWEST_DIRECTIONS:
            plan = Plan(plan.sequences, plan.k // 2)
            yield plan


class Budget:
    """Chooses plans so that the seconds spent stay within a share of the seconds trained.

    Args:
        share: Of the training time so far; None: no bound.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.spent = 0.0
        """Seconds spent measuring in all."""
        self.costs: dict[Plan, float] = {}
        """Seconds that each plan took when it was last measured, the last one last."""

    def note(self, plan: Plan, seconds: float) -> None:
        """Remember what a measurement cost."""
        self.spent += seconds
        self.costs.pop(plan, None)
        self.costs[plan] = seconds

    def predicted(self, plan: Plan) -> float:
        """Seconds that a plan will take: what it took, or what follows from the last one; 0 before there was any."""
        if not self.costs:
            return 0.0
        last, seconds = next(reversed(self.costs.items()))
        ratio = plan.work / last.work
        # What it took may have been the first time, which also pays for all that is loaded and allocated once.
        return min(seconds * (FIXED + (1 - FIXED) * ratio if ratio < 1 else ratio), self.costs.get(plan, math.inf))

    def allows(self, seconds: float, trained: float) -> bool:
        """Whether so many more seconds stay within the share of those trained so far."""
        return self.share is None or self.spent + CARE * seconds <= self.share * trained

    def choose(self, whole: Plan, trained: float, *, must: bool = False) -> Plan | None:
        """The largest plan that the budget allows now.

        Args:
            whole: What is measured where there is no bound.
            trained: Seconds trained so far.
            must: Whether something is measured in any case: then the smallest where nothing fits.

        Returns:
            A plan; None where nothing fits.
        """
        if self.share is None or not self.costs:
            return whole
        allowed = self.share * trained * (GRACE if must else 1.0) - self.spent
        for plan in whole.smaller():
            if self.predicted(plan) * (1.0 if must else CARE) <= allowed:
                return plan
        return plan if must else None
