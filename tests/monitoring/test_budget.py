"""Budgets against simulated runs whose costs are known."""

import pytest

from lightning_lyapunov.monitoring.budget import FEWEST_DIRECTIONS, FEWEST_SEQUENCES, GRACE, Budget, Plan

WHOLE = Plan(16, 32)


def simulate(budget: Budget, *, fixed: float, whole: float, epoch: float, epochs: int = 60) -> list[tuple[float, Plan]]:
    """Shares and plans of a run with a measurement before training and one after each epoch where one is chosen.

    Args:
        budget: What chooses.
        fixed: Seconds that every measurement takes.
        whole: Seconds that a whole one takes beside them, smaller ones in proportion.
        epoch: Seconds of training in an epoch.
        epochs: How many.
    """
    taken: list[tuple[float, Plan]] = []
    for number in range(epochs + 1):
        plan = budget.choose(WHOLE, number * epoch, must=number < 2)
        if plan is not None:
            budget.note(plan, fixed + whole * plan.work / WHOLE.work)
        if number > 0:
            taken.append((budget.spent / (number * epoch), plan or Plan(0, 0)))
    return taken


def test_smaller_plans_have_fewer_sequences_first_then_fewer_directions() -> None:
    plans = [(plan.sequences, plan.k) for plan in WHOLE.smaller()]
    assert plans == [(16, 32), (8, 32), (4, 32), (4, 16), (4, 8)]
    assert [(p.sequences, p.k) for p in Plan(2, 3).smaller()] == [(2, 3)]
    assert (FEWEST_SEQUENCES, FEWEST_DIRECTIONS) == (4, 8)


def test_without_a_bound_everything_is_measured() -> None:
    assert all(plan == WHOLE for _, plan in simulate(Budget(None), fixed=5.0, whole=50.0, epoch=1.0))


def test_what_is_cheap_is_measured_whole_every_epoch() -> None:
    taken = simulate(Budget(0.1), fixed=0.001, whole=0.02, epoch=1.0)
    assert all(plan == WHOLE for _, plan in taken)


@pytest.mark.parametrize("fixed", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("whole", [0.02, 0.08, 0.15, 0.4])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_share_is_kept_to_within_a_fifth_once_the_first_measurement_is_paid_for(
    share: float, whole: float, fixed: float
) -> None:
    taken = simulate(Budget(share), fixed=fixed, whole=whole, epoch=1.0)
    first = fixed + whole  # before training, when nothing is known of the epochs to come
    for number, (spent, _) in enumerate(taken, start=1):
        if share * number >= first + fixed + whole / 16:  # and the least in the first epoch
            assert spent <= 1.2 * share
    assert taken[-1][0] > 0.5 * min(share, first) or taken[-1][1] == WHOLE  # what may be spent is


def test_a_run_that_cannot_pay_for_the_least_is_measured_now_and_then() -> None:
    taken = simulate(Budget(0.1), fixed=0.5, whole=0.5, epoch=1.0)
    assert 3 <= sum(plan.sequences > 0 for _, plan in taken) <= 12
    assert taken[-1][0] <= 0.12


def test_first_epoch_is_measured_in_any_case_and_as_well_as_the_share_allows() -> None:
    budget = Budget(0.1)
    assert budget.choose(WHOLE, 0.0, must=True) == WHOLE
    budget.note(WHOLE, 0.05)
    assert budget.choose(WHOLE, 1.0, must=True) == WHOLE  # 0.05 + 0.05 <= 0.1 * 1.2
    budget.spent = 10.0
    assert budget.choose(WHOLE, 1.0, must=True) == Plan(4, 8)
    assert budget.choose(WHOLE, 1.0) is None
    assert GRACE == 1.2


def test_a_slow_first_time_does_not_forbid_whole_measurements_for_good() -> None:
    """The first one takes ten times as long as any later one of its size."""
    budget = Budget(0.1)
    budget.note(WHOLE, 1.0)
    budget.note(Plan(4, 8), 0.1 / 16)
    assert budget.predicted(WHOLE) == pytest.approx(0.1)
    assert budget.predicted(Plan(4, 8)) == pytest.approx(0.1 / 16)


def test_plans_of_odd_numbers_are_halved_to_whole_ones() -> None:
    assert [(plan.sequences, plan.k) for plan in Plan(9, 17).smaller()] == [(9, 17), (4, 17), (4, 8)]


def test_cost_follows_from_the_last_one_as_worked_by_hand() -> None:
    """A quarter of it is fixed where a plan is smaller; of one that is larger nothing is, to be on the safe side."""
    budget = Budget(0.1)
    assert budget.predicted(WHOLE) == 0.0
    budget.note(Plan(8, 16), 1.0)
    costs = {Plan(4, 16): 0.25 + 0.75 / 2, Plan(8, 16): 1.0, Plan(8, 24): 1.5, WHOLE: 4.0}
    assert {plan: budget.predicted(plan) for plan in costs} == costs
    budget.note(Plan(4, 16), 5.0)  # on a machine that is busy now
    assert budget.predicted(Plan(8, 16)) == 1.0  # what it took
    budget.note(Plan(8, 16), 2.0)
    assert budget.predicted(Plan(8, 24)) == 3.0  # of the last one, though another was the first to follow it


def test_seconds_are_allowed_up_to_the_share_with_a_quarter_in_reserve() -> None:
    budget = Budget(0.25)
    budget.spent = 0.5
    assert budget.allows(0.4, trained=4.0) and not budget.allows(0.41, trained=4.0)  # 0.5 + 1.25 * 0.4 = 0.25 * 4
    assert Budget(None).allows(1e9, trained=0.0)


def test_a_plan_has_a_quarter_in_reserve_and_the_first_epoch_a_fifth_more_to_spend() -> None:
    budget = Budget(0.25)
    budget.note(WHOLE, 0.575)
    assert budget.choose(WHOLE, 4.0, must=True) == WHOLE  # 0.575 + 0.575 <= 1.2 * 0.25 * 4
    assert budget.choose(WHOLE, 4.0) == Plan(4, 32)  # of 0.425 that is left, half as many sequences would need 0.449
    budget = Budget(0.25)
    budget.note(WHOLE, 1.0)
    assert budget.choose(WHOLE, 9.0) == WHOLE  # 1 + 1.25 * 1 = 0.25 * 9
