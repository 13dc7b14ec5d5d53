"""Budgets against simulated runs whose costs are known, and plans worked out by hand."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from lightning_lyapunov.monitoring import budget as budget_module
from lightning_lyapunov.monitoring.budget import CARE, GRACE_SECONDS, TRAINING_STEPS, Budget, Plan

WHOLE = Plan(16, 64, 32)
LOGGING = 0.002


def true_cost(whole: float) -> Callable[[Plan], float]:
    """Seconds that a plan really takes in the simulation: with a power of its sequences, steps and exponents."""
    return lambda plan: whole * (plan.sequences * (plan.steps + 8) * (100 + plan.k) / (16 * 72 * 132)) ** 0.75


def simulate(
    budget: Budget, cost: Callable[[Plan], float], *, epoch: float, epochs: int, known_end: bool = True
) -> list[tuple[float, Plan | None]]:
    """Seconds spent and plan at each point of a run: before training, and after each epoch; the last one is promised.

    Args:
        budget: What chooses.
        cost: Seconds that a plan takes.
        epoch: Seconds of training in an epoch.
        epochs: How many.
        known_end: Whether the run knows how many epochs there will be.
    """
    taken = []
    for number in range(epochs + 1):
        trained, step = number * epoch, epoch / 20 if number else 0.0
        options: dict[str, Any] = {"promised": number in (0, 1, epochs), "training_step": step}
        options["progress"] = number / epochs if known_end else 1.0
        plan = budget.choose(WHOLE, trained, **options)
        if plan is not None and (pilot := budget.pilot(plan)) is not None:
            budget.note(pilot, cost(pilot))
            plan = budget.choose(WHOLE, trained, **options) or pilot
        if plan is not None:
            budget.note(plan, cost(plan))
            budget.charge(LOGGING, "logging")
        taken.append((budget.spent, plan))
    return taken


# ---------------------------------------------------------------- plans


def test_smaller_plans_have_fewer_sequences_first_then_fewer_steps_and_last_fewer_exponents() -> None:
    plans = [(plan.sequences, plan.steps, plan.k) for plan in Plan(16, 256, 128).smaller()]
    assert plans == [
        (16, 256, 128), (8, 256, 128), (4, 256, 128), (4, 128, 128), (4, 64, 128), (4, 64, 64), (4, 64, 32),
    ]  # fmt: skip
    assert plans_of(WHOLE)[-1] == Plan(4, 64, 32)  # of so few steps and exponents none are spared
    assert all(
        larger.work > smaller.work for larger, smaller in zip(plans_of(WHOLE), plans_of(WHOLE)[1:], strict=False)
    )
    assert list(Plan(2, 3, 5).smaller()) == [Plan(2, 3, 5)]
    assert [(p.sequences, p.steps, p.k) for p in Plan(9, 129, 65).smaller()] == [
        (9, 129, 65), (4, 129, 65), (4, 64, 65), (4, 64, 32),
    ]  # fmt: skip


def test_who_measures_says_what_is_fewest() -> None:
    """Across depth a single sample is better than fewer singular values, and there are no steps."""
    fewest = Plan(1, 1, 4)
    plans = [(plan.sequences, plan.steps, plan.k) for plan in Plan(8, 1, 16).smaller(fewest)]
    assert plans == [(8, 1, 16), (4, 1, 16), (2, 1, 16), (1, 1, 16), (1, 1, 8), (1, 1, 4)]
    budget = Budget(0.03)
    assert budget.pilot(Plan(8, 1, 16), fewest=fewest) == Plan(1, 1, 4)
    assert budget.pilot(Plan(1, 1, 2), fewest=fewest) is None  # it is small enough itself
    budget.note(Plan(1, 1, 4), 0.1)
    assert budget.choose(Plan(8, 1, 4), 1e6, fewest=fewest) == Plan(8, 1, 4)
    assert budget.choose(Plan(8, 1, 4), 10.0, fewest=fewest) == Plan(4, 1, 4)  # .9 s left, twice .36 needed
    budget.note(Plan(1, 1, 4), 20.0)
    assert budget.choose(Plan(8, 1, 4), 1.0, fewest=fewest) is None
    assert budget.choose(Plan(8, 1, 4), 1.0, promised=True, fewest=fewest) == Plan(1, 1, 4)


def plans_of(plan: Plan) -> list[Plan]:
    return list(plan.smaller())


def test_a_pilot_is_a_small_piece() -> None:
    assert WHOLE.pilot == Plan(4, 8, 32)
    assert Plan(16, 64, 4096).pilot == Plan(4, 8, 32)
    assert Plan(2, 5, 3).pilot == Plan(2, 5, 3)


@pytest.mark.parametrize(
    ("plan", "other", "ratio"),
    [
        (Plan(8, 64, 32), Plan(16, 64, 32), 0.5),
        (Plan(16, 16, 32), Plan(16, 40, 32), 0.5),  # 8 beside the steps
        (Plan(16, 64, 64), Plan(16, 64, 32), 192 / 112),  # 64 beside k, and k² / 64
    ],
)
def test_work_as_worked_by_hand(plan: Plan, other: Plan, ratio: float) -> None:
    assert plan.work / other.work == pytest.approx(ratio)


MEASURED = {  # ms of CPU time in the real engine: (16, 64, 32), (4, 64, 32), (16, 32, 32), (16, 64, 8), (4, 8, 32)
    "RNN 32": (42.6, 28.8, 28.3, 29.1, 9.3),
    "LSTM 64": (120.4, 50.7, 59.9, 73.7, 22.9),
    "GRU 256": (301.3, 92.9, 178.6, 242.9, 48.1),
    "two layers of LSTM 256": (3104.8, 905.4, 2071.3, 2720.9, 377.3),
}


@pytest.mark.parametrize("name", MEASURED)
def test_costs_of_real_measurements_are_predicted_to_within_a_factor(name: str) -> None:
    """Upward from the pilot never by much too little; downward from a whole one by no more than 2.5."""
    whole, *smaller, pilot = MEASURED[name]
    plans = [Plan(4, 64, 32), Plan(16, 32, 32), Plan(16, 64, 8)]
    budget = Budget(0.03)
    budget.note(Plan(4, 8, 32), pilot / 1e3)
    assert 1.0 <= 1e3 * budget.predicted(WHOLE) / whole <= 1.6
    for plan, seconds in zip(plans, smaller, strict=True):
        budget = Budget(0.03)
        budget.note(WHOLE, whole)
        assert 0.4 <= budget.predicted(plan) / seconds <= 2.0


# ---------------------------------------------------------------- what is spent


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(budget_module.time, "perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_nested_blocks_and_charges_count_each_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, budget = Time(monkeypatch), Budget(0.03)
    with budget.spending("report"):
        clock.passes(1.0)
        with budget.spending("pictures"):
            clock.passes(2.0)
            with budget.spending("imports"):
                clock.passes(4.0)
            clock.passes(0.25)
            budget.charge(0.25, "recording")  # a quarter of a second that has just passed
        clock.passes(8.0)
        with budget.spending("logging"):
            clock.passes(0.5)
    assert budget.by_kind == {"report": 9.0, "pictures": 2.0, "imports": 4.0, "recording": 0.25, "logging": 0.5}
    assert (budget.spent, budget.away) == (11.75, 15.75)  # imports are no part of what is spent
    with budget.spending("logging"):
        clock.passes(1.0)
    assert budget.by_kind["logging"] == 1.5


def test_exceptions_pass_and_their_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, budget = Time(monkeypatch), Budget(0.03)
    with pytest.raises(KeyError), budget.spending("scoring"), budget.measuring(WHOLE):
        clock.passes(2.0)
        raise KeyError
    assert budget.by_kind == {"measuring": 2.0, "scoring": 0.0}
    assert budget.costs == {} and budget.last_seconds == 2.0  # what broke off tells nothing of what the whole takes
    with budget.measuring(WHOLE):
        clock.passes(3.0)
    assert budget.costs == {WHOLE: 3.0} and budget.spent == 5.0 and budget.last_seconds == 3.0


def test_what_is_allowed_is_the_share_or_one_second() -> None:
    budget = Budget(0.03)
    assert budget.allowed(10.0) == GRACE_SECONDS == 1.0
    assert budget.allowed(100.0) == 3.0
    assert budget.allowed(10.0, progress=0.0) == 0.5 and budget.allowed(10.0, progress=0.5) == 0.75
    assert budget.allowed(100.0, progress=0.1) == 3.0
    assert Budget(None).allowed(0.0) == math.inf


def test_what_cannot_wait_leaves_half_of_all_to_the_last_pictures() -> None:
    """Oracle: before training one second is allowed in all; 1.25 times 0.32 and 0.1 spent leave half of it."""
    budget = Budget(0.25)
    budget.charge(0.1, "measuring")
    budget.ahead = 0.8
    assert budget.allows_now(0.32, trained=0.0) and not budget.allows_now(0.33, trained=0.0)
    assert not budget.allows(0.0, trained=0.0, progress=0.0)
    assert Budget(None).allows_now(1e9, trained=0.0)


def test_what_could_wait_leaves_room_for_what_comes_in_any_case() -> None:
    budget = Budget(0.25)
    budget.charge(0.5, "measuring")
    assert budget.allows(2.8, trained=16.0) and not budget.allows(2.81, trained=16.0)  # 0.5 + 1.25 * 2.8 = 0.25 * 16
    budget.ahead = 0.5
    assert budget.allows(2.4, trained=16.0) and not budget.allows(2.41, trained=16.0)
    assert Budget(None).allows(1e9, trained=0.0)


# ---------------------------------------------------------------- how much to measure


def test_without_a_bound_everything_is_measured_and_there_is_no_pilot() -> None:
    budget = Budget(None)
    assert budget.pilot(WHOLE) is None
    assert all(plan == WHOLE for _, plan in simulate(budget, true_cost(50.0), epoch=1.0, epochs=20))


def test_what_is_cheap_is_measured_whole_every_epoch() -> None:
    taken = simulate(Budget(0.03), true_cost(0.02), epoch=2.0, epochs=40)
    assert all(plan == WHOLE for _, plan in taken[1:])


def test_cost_follows_from_the_last_one_as_worked_by_hand() -> None:
    """Some of it is fixed where a plan is smaller; where it is larger, it grows with a power of the work."""
    budget = Budget(0.03)
    assert budget.predicted(WHOLE) == 0.0
    budget.note(Plan(8, 64, 32), 1.0)
    assert budget.predicted(WHOLE) == pytest.approx(2 ** (0.65 + 0.12 * 2))  # two decades above 10 ms
    assert budget.predicted(Plan(4, 64, 32)) == pytest.approx(0.1 + 0.9 / 2)
    budget.note(Plan(4, 64, 32), 100.0)  # on a machine that is busy now
    assert budget.predicted(Plan(8, 64, 32)) == 1.0  # what it took
    assert budget.predicted(WHOLE) == pytest.approx(400.0)  # and no more than in proportion
    budget.note(Plan(4, 64, 32), 0.001)
    assert budget.predicted(WHOLE) == pytest.approx(0.001 * 4**0.65)


def test_a_slow_first_time_does_not_forbid_whole_measurements_for_good() -> None:
    budget = Budget(0.03)
    budget.note(WHOLE, 10.0)
    budget.note(Plan(8, 64, 32), 0.5)
    assert budget.predicted(WHOLE) < 1.0


def test_logging_and_scoring_are_part_of_what_a_measurement_costs_and_one_slow_time_is_no_rule() -> None:
    budget = Budget(0.03)
    for logging in (9.0, 0.1, 0.1):
        budget.note(WHOLE, 0.5)
        budget.charge(0.1, "scoring")
        budget.charge(logging, "logging")
        budget.charge(7.0, "pictures")  # which are decided on apart
    budget.note(WHOLE, 0.5)
    assert budget.cost(WHOLE) == pytest.approx(0.5 + 0.2)


def test_an_ordinary_measurement_leaves_room_for_the_last() -> None:
    budget = Budget(0.25)
    budget.note(WHOLE, 1.0)
    assert budget.choose(WHOLE, 12.0) == WHOLE  # 1 + 2 * 1 = 0.25 * 12
    assert budget.choose(WHOLE, 11.9) == Plan(8, 64, 32)
    budget.ahead = 0.1
    assert budget.choose(WHOLE, 12.0) == Plan(8, 64, 32)
    assert budget.choose(WHOLE, 4.0) is None


def test_what_was_never_measured_has_a_quarter_in_reserve() -> None:
    budget = Budget(0.03)
    budget.note(WHOLE, 1.0)
    assert CARE == 1.25
    assert budget.cost(WHOLE) == 1.0 and budget.cost(Plan(8, 64, 32)) == pytest.approx(1.25 * (0.1 + 0.9 / 2))


def test_last_pictures_leave_half_of_a_short_run_to_its_data() -> None:
    budget = Budget(0.03)
    budget.note(WHOLE, 0.2)
    budget.ahead = 0.8
    assert budget.choose(WHOLE, 10.0) == Plan(8, 64, 32)  # 0.2 + 2 * 1.25 * 0.11 <= 1 / 2, though 0.8 are to come
    assert budget.choose(WHOLE, 10.0, progress=0.0) is None  # half of half a second


def test_a_promised_measurement_is_made_in_any_case_as_large_as_the_budget_and_patience_allow() -> None:
    budget = Budget(0.03)
    budget.note(WHOLE, 0.4)
    assert budget.choose(WHOLE, 1.0, promised=True) == WHOLE and budget.fits(WHOLE, 1.0)  # .4 + .4 of a second
    budget.charge(0.3, "logging")
    assert budget.choose(WHOLE, 1.0, promised=True) == Plan(8, 64, 32)  # .7 + .4 + .3 do not fit, half as many do not
    budget.charge(9.0, "pictures")
    smallest = budget.choose(WHOLE, 1.0, promised=True)
    assert smallest == Plan(4, 8, 32) and not budget.fits(smallest, 1.0)  # fewer exponents are the last to be cut
    assert budget.choose(WHOLE, 1.0) is None


@pytest.mark.parametrize(("training_step", "limit"), [(0.0, 1.0), (0.05, 1.0), (0.4, 4.0)])
def test_a_promised_measurement_takes_a_second_or_ten_training_steps_at_most(
    training_step: float, limit: float
) -> None:
    """However much the budget would allow."""
    assert TRAINING_STEPS == 10
    for whole in (0.5, 2.0, 8.0, 15.0):
        budget = Budget(0.03)
        budget.note(WHOLE.pilot, whole / 20)
        budget.note(WHOLE, whole)
        plan = budget.choose(WHOLE, 1e6, promised=True, training_step=training_step)
        assert plan is not None and plan.k == 32
        assert budget.predicted(plan) <= limit or plan == Plan(4, 8, 32)
        assert (plan == WHOLE) == (whole <= limit)


def test_exponents_are_cut_where_even_the_smallest_piece_with_all_of_them_takes_too_long() -> None:
    whole = Plan(16, 64, 512)
    budget = Budget(0.03)
    budget.note(Plan(4, 8, 512), 3.0)
    assert budget.choose(whole, 1.0, promised=True) == Plan(4, 8, 128)  # 3 * (0.1 + 0.9 * 448 / 4672) * 1.25
    budget.note(Plan(4, 8, 512), 50.0)
    assert budget.choose(whole, 1.0, promised=True) == Plan(4, 8, 32)
    budget = Budget(0.03)
    budget.note(Plan(4, 8, 32), 50.0)
    assert budget.choose(WHOLE, 1.0, promised=True) == Plan(4, 8, 32)  # of few exponents none are spared


@pytest.mark.parametrize("whole", [0.02, 0.1, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("epoch", [0.1, 0.5, 6.0])
def test_the_budget_holds_for_the_sum(whole: float, epoch: float) -> None:
    """What could wait never breaks it; what is promised takes a second or ten steps at most, or the pilot's time."""
    cost = true_cost(whole)
    taken = simulate(Budget(0.03), cost, epoch=epoch, epochs=100)
    before = 0.0
    for number, (spent, plan) in enumerate(taken):
        allowed = max(0.03 * number * epoch, 1.0)
        if number in (0, 1, 100):
            most = max(1.0, 10 * epoch / 20 if number else 0.0, cost(WHOLE.pilot))
            assert spent - before <= most + (cost(WHOLE.pilot) if number == 0 else 0.0) + LOGGING + 1e-9
        elif plan is not None:
            assert spent <= allowed
        before = spent
    if cost(WHOLE) <= 0.1:
        assert all(spent <= 1.02 * max(0.03 * n * epoch, 1.0) for n, (spent, _) in enumerate(taken))


def test_short_runs_get_their_data_from_beginning_to_end() -> None:
    """Ten epochs of half a second: the pilot of a measurement of 60 ms, and some of them in either half."""
    taken = simulate(Budget(0.03), true_cost(0.06), epoch=0.5, epochs=10)
    measured = [n for n, (_, plan) in enumerate(taken) if plan is not None]
    assert len(measured) >= 8 and taken[-1][0] <= 1.0
    fifteen = simulate(Budget(0.03), true_cost(0.15), epoch=0.5, epochs=15)
    measured = [n for n, (_, plan) in enumerate(fifteen) if plan is not None]
    assert len(measured) >= 6 and sum(n > 7 for n in measured) >= 2 and fifteen[-1][0] <= 1.0


def test_long_runs_keep_their_time_and_spend_what_they_may() -> None:
    taken = simulate(Budget(0.03), true_cost(0.5), epoch=6.0, epochs=100)
    assert 0.02 * 600 < taken[-1][0] <= 0.03 * 600


def test_a_first_measurement_is_cut_to_what_its_pilot_predicts() -> None:
    """Six seconds that a whole one would take, before a fit of five: a second at most, the pilot included or not."""
    cost = true_cost(6.3)
    (spent, plan), *_ = simulate(Budget(0.03), cost, epoch=0.5, epochs=10)
    assert plan is not None and plan.k == 32
    assert spent <= GRACE_SECONDS + cost(WHOLE.pilot)


# ---------------------------------------------------------------- state


def test_a_checkpoint_carries_it_in_plain_values() -> None:
    budget = Budget(0.03)
    budget.note(WHOLE, 0.5)
    budget.charge(0.25, "logging")
    budget.note(Plan(8, 64, 32), 0.3)
    state = budget.state_dict()
    assert all(type(x) in (int, float, str) for x in flat(state))
    other = Budget(0.03)
    assert other.load_state_dict(pickle.loads(pickle.dumps(state))) == []
    assert other.state_dict() == state and other.spent == budget.spent
    assert other.cost(WHOLE) == budget.cost(WHOLE) and other.pilot(WHOLE) is None


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *(x for part in value.values() for x in flat(part))]
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("state", [{}, {"seconds": 3.0, "costs": [[1, 2], [4, 8, 32, 1.0]], "beside": ["x"]}])
def test_a_checkpoint_of_another_version_is_used_as_far_as_it_goes(state: dict[str, Any]) -> None:
    budget = Budget(0.03)
    assert budget.load_state_dict(state)
    assert budget.spent == 0.0
    assert set(budget.costs) == ({Plan(4, 8, 32)} if state else set())


def test_pilots_that_fail_again_and_again_are_given_up() -> None:
    budget, tried = Budget(0.03), 0
    for _ in range(100):
        plan = budget.choose(WHOLE, 1.0, progress=0.5)
        if plan is None:
            break
        pilot = budget.pilot(plan)
        assert pilot is not None
        with pytest.raises(ValueError, match="states"), budget.measuring(pilot):
            raise ValueError("the states overflow")
        budget.charge(0.3, "measuring")  # which it took
        tried += 1
    assert 2 <= tried <= 5
