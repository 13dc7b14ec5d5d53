"""What watching a network may cost: a share of the time it is trained, or one second where that is more.

Everything that takes time is charged: recording, measuring, scoring, logging, pictures, the report. The cost of the
last measurement predicts that of the next; before anything is known, a pilot, a small piece of the measurement, is
timed. Where a whole measurement would break the budget it is made smaller: first of fewer sequences (wider error bars),
then of fewer steps (less settles), then of fewer exponents, each as far as who measures says that it is worth it.
Where not even the smallest fits, nothing is measured this time. A few measurements are promised and made in any case:
these are cut to what a person would not wait for.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from lightning_lyapunov.reading.kept import read_state

Kind = Literal["recording", "measuring", "scoring", "logging", "pictures", "report", "imports"]
"""What time is spent on. Imports are kept apart: a process pays for them once, whatever is done with them."""
GRACE_SECONDS = 1.0
"""What may be spent in all however short a run is, and what a promised measurement may take."""
LARGE = 2048
"""Dimension of a state from which on a pilot is of one sequence and a few steps: even these take half a second."""
TRAINING_STEPS = 10
"""Training steps whose time a promised measurement may take, where that is longer."""
PILOT_STEPS = 8
"""Of a pilot, and of a promised measurement, at least."""
CARE = 1.25
"""By how much what was never done before may turn out dearer than predicted without breaking the budget."""
FIXED = 0.1
"""Share of a measurement's cost that does not shrink with its work: preparing the weights, reading the results."""
STEPS_BESIDE, COLUMNS_BESIDE = 8, 64
"""What a sequence costs beside its steps, as so many steps; and a step beside its exponents (states, Jacobians, the
growth of gradients), as so many. Between those of an RNN of 32 units and two layers of an LSTM of 1,024, on a CPU."""
QUICK, CALLS, PER_DECADE = 0.01, 0.65, 0.12
"""Where most of the time goes into calling operators, four times the work takes much less than four times as long: the
cost grows with a power of the work, this one for what takes so many seconds, and so much more for ten times as many, up
to 1. Of the same networks, from 9 ms to 7 s, rounded up."""
_LAST = 3
"""Measurements of which it is remembered what they cost beside the measuring."""


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    sequences: int
    steps: int
    """Of each sequence."""
    k: int
    """Leading exponents."""

    @property
    def work(self) -> float:
        """To which the cost is about proportional; the square is what orthonormalising takes."""
        columns = COLUMNS_BESIDE + self.k + self.k**2 / COLUMNS_BESIDE
        return self.sequences * (self.steps + STEPS_BESIDE) * columns

    def smaller(self, fewest: Plan | None = None) -> Iterator[Plan]:
        """This plan and all smaller ones, the largest first.

        Args:
            fewest: Of each no fewer; :data:`FEWEST` if None.
        """
        plan, fewest = self, fewest or FEWEST
        yield plan
        for name in ("sequences", "steps", "k"):
            while (half := getattr(plan, name) // 2) >= getattr(fewest, name):
                plan = replace(plan, **{name: half})
                yield plan

    def within(self, other: Plan) -> Plan:
        """As much of it as another plan has."""
        return Plan(min(self.sequences, other.sequences), min(self.steps, other.steps), min(self.k, other.k))

    @property
    def pilot(self) -> Plan:
        """A small piece of it, whose cost tells that of the whole."""
        return self.within(replace(FEWEST, steps=PILOT_STEPS))


FEWEST = Plan(4, 64, 32)
"""To which a measurement that could wait is cut at most: below, it says too little, or hardly costs less. What is said
of growth is of all steps of a sequence, so that with fewer of them an explosion would be over where it goes on."""


class Budget:
    """Keeps what is spent, and chooses plans so that it stays within what is allowed.

    Args:
        share: Of the training time so far; None: no bound.

    Attributes:
        by_kind: Seconds spent so far on each kind.
        costs: Seconds that each plan took when it was last measured, the last one last.
        last_seconds: What the last measurement took, its pilot included.
        ahead: Seconds that will be spent in any case when the fit ends, as on the last pictures: what can wait leaves
            room for them.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.by_kind: dict[str, float] = {}
        self.costs: dict[Plan, float] = {}
        self.last_seconds = 0.0
        self.ahead = 0.0
        self._within = 0.0  # seconds charged while the innermost open block runs
        self._since = 0.0  # seconds spent on the last measurement beside the measuring
        self._beside: deque[float] = deque(maxlen=_LAST)

    # ---------------------------------------------------------------- what is spent

    @property
    def spent(self) -> float:
        """Seconds in all, those of imports apart."""
        return sum(seconds for kind, seconds in self.by_kind.items() if kind != "imports")

    @property
    def away(self) -> float:
        """Seconds that were no training: all that is spent, and the imports."""
        return sum(self.by_kind.values())

    def charge(self, seconds: float, kind: Kind) -> None:
        """Add seconds that passed just now, which an open :meth:`spending` block does not count again."""
        self.by_kind[kind] = self.by_kind.get(kind, 0.0) + seconds
        self._within += seconds
        if kind in ("scoring", "logging"):
            self._since += seconds

    @contextmanager
    def spending(self, kind: Kind) -> Iterator[None]:
        """Charge the time that a block takes, less what is charged within it; exceptions pass."""
        start, outside, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.charge(seconds - self._within, kind)
            self._within = outside + seconds

    @contextmanager
    def measuring(self, plan: Plan) -> Iterator[None]:
        """Charge a measurement, and remember what its plan cost if it could be made."""
        start = time.perf_counter()
        try:
            with self.spending("measuring"):
                yield
        except BaseException:
            self.last_seconds = time.perf_counter() - start
            raise
        self._remember(plan, time.perf_counter() - start)

    def note(self, plan: Plan, seconds: float) -> None:
        """Charge a measurement that was timed elsewhere, and remember what its plan cost."""
        self.charge(seconds, "measuring")
        self._remember(plan, seconds)

    def _remember(self, plan: Plan, seconds: float) -> None:
        if self._since:
            self._beside.append(self._since)
            self._since = 0.0
        self.last_seconds = seconds
        self.costs.pop(plan, None)
        self.costs[plan] = max(seconds, 1e-9)

    # ---------------------------------------------------------------- what may be spent

    def allowed(self, trained: float, progress: float = 1.0) -> float:
        """Seconds that may have been spent in all.

        Args:
            trained: Seconds trained so far.
            progress: Share of the fit that is done, 1 where not known. Half of the grace is kept for later at first,
                or a short run would be measured at its beginning alone.
        """
        if self.share is None:
            return math.inf
        return max(self.share * trained, GRACE_SECONDS * (1 + progress) / 2)

    def allows(self, seconds: float, trained: float, progress: float = 1.0) -> bool:
        """Whether so many more seconds that could wait stay within what is allowed so far."""
        return self.spent + CARE * seconds + self.ahead <= self.allowed(trained, progress)

    def allows_now(self, seconds: float, trained: float) -> bool:
        """Whether there is room for so many more seconds of what cannot wait: up to half of all is left to pictures."""
        allowed = self.allowed(trained)
        return self.spent + CARE * seconds + min(self.ahead, allowed / 2) <= allowed

    def fits(self, plan: Plan, trained: float) -> bool:
        """Whether a measurement, and what is done with it, is predicted to stay within the budget."""
        return self.spent + self.cost(plan) <= self.allowed(trained)

    def cost(self, plan: Plan) -> float:
        """Seconds that a plan will take in all: measuring it, and scoring and logging as they took before."""
        measuring = self.predicted(plan) * (1.0 if plan in self.costs else CARE)
        return measuring + (median(self._beside) if self._beside else 0.0)

    def predicted(self, plan: Plan) -> float:
        """Seconds that measuring a plan will take: what it took, or what follows from the last; 0 before any."""
        if not self.costs:
            return 0.0
        last, seconds = next(reversed(self.costs.items()))
        ratio = plan.work / last.work
        if ratio < 1:
            follows = seconds * (FIXED + (1 - FIXED) * ratio)
        else:
            follows = seconds * ratio ** min(CALLS + PER_DECADE * max(math.log10(seconds / QUICK), 0.0), 1.0)
        # What it took may have been the first time, which also pays for all that is loaded and allocated once.
        return min(follows, self.costs.get(plan, math.inf))

    # ---------------------------------------------------------------- how much to measure

    def pilot(self, plan: Plan, state_size: int = 0, fewest: Plan = FEWEST) -> Plan | None:
        """A small piece to measure first, as nothing is known of what a plan will take; None if it is needless.

        Where a larger plan is chosen afterwards, what the pilot measured is of no use but for its cost.
        """
        pilot = plan.within(fewest.pilot)
        if state_size >= LARGE:
            pilot = replace(pilot, sequences=1, steps=min(pilot.steps, 4))
        is_needless = self.share is None or self.costs or pilot.work >= plan.work
        return None if is_needless else pilot

    def choose(
        self,
        whole: Plan,
        trained: float,
        *,
        promised: bool = False,
        training_step: float = 0.0,
        progress: float = 1.0,
        fewest: Plan = FEWEST,
    ) -> Plan | None:
        """The largest plan that there is room for now.

        Args:
            whole: What is measured where there is no bound; and before the pilot, as nothing is known yet.
            trained: Seconds trained so far.
            promised: Whether something is measured in any case. It may use what is kept for the end, and takes at most
                one second or ten training steps' time, whichever is more. Where nothing fits into the budget it is the
                smallest piece, with all exponents if that is quick enough.
            training_step: Seconds that a training step takes; 0 if not known yet.
            progress: As :meth:`allowed` takes it.
            fewest: To which a measurement that could wait is cut at most.

        Returns:
            A plan; None where nothing fits, and nothing is promised.
        """
        if self.share is None:
            return whole
        if not self.costs:  # a pilot tells; one that fails again and again is not tried for ever
            return whole if promised or self.spent < self.allowed(trained, progress) else None
        if not promised:
            # Room for the promised last one, of the same size, is left, and for the last pictures: up to a half, or
            # those would leave nothing to draw in a short run.
            allowed = self.allowed(trained, progress)
            room = allowed - self.spent - min(self.ahead, allowed / 2)
            return next((plan for plan in whole.smaller(fewest) if 2 * self.cost(plan) <= room), None)
        plans = list(whole.smaller(fewest.pilot))
        limit = max(TRAINING_STEPS * training_step, GRACE_SECONDS)
        quick = [plan for plan in plans if self.cost(plan) <= limit] or plans[-1:]
        smallest = min((plan for plan in quick if plan.k == quick[0].k), key=lambda plan: plan.work)
        return next((plan for plan in quick if self.fits(plan, trained)), smallest)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What was spent, and on what: plain values."""
        costs = [[plan.sequences, plan.steps, plan.k, seconds] for plan, seconds in self.costs.items()]
        return {"seconds": dict(self.by_kind), "costs": costs, "beside": list(self._beside)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Go on from a checkpoint: what was amiss with it, in words, which begins anew."""
        known, amiss = read_state(state_dict, {"seconds": dict, "costs": list, "beside": list}, "budget")
        self.by_kind = {str(k): float(s) for k, s in known.get("seconds", {}).items() if isinstance(s, float | int)}
        costs = [c for c in known.get("costs", []) if isinstance(c, list) and [*map(type, c)] == [int, int, int, float]]
        self.costs = {Plan(sequences, steps, k): seconds for sequences, steps, k, seconds in costs}
        self._beside = deque((s for s in known.get("beside", []) if isinstance(s, float)), _LAST)
        return amiss
