"""When to measure: decisions of a schedule about stand-ins for a Trainer, against what its docstring says."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_lyapunov.training.schedule import RECENT, Schedule


def at(step: int = 0, epoch: int = 0, **others: Any) -> Any:
    """A Trainer of ten epochs of a hundred batches, with validation after each."""
    usual = {
        **{"enable_validation": True, "check_val_every_n_epoch": 1, "max_epochs": 10, "max_steps": -1},
        **{"num_training_batches": 100, "accumulate_grad_batches": 1},
    }
    return SimpleNamespace(**{"global_step": step, "current_epoch": epoch, **usual, **others})


def begun(every_n_epochs: int = 1, every_n_train_steps: int | None = None, **trainer: Any) -> Schedule:
    schedule = Schedule(every_n_epochs, every_n_train_steps)
    schedule.begin(at(**trainer))
    return schedule


# ---------------------------------------------------------------- what drives the series


@pytest.mark.parametrize(
    ("trainer", "source"),
    [
        ({}, "validation"),
        ({"enable_validation": False}, "training"),
        ({"check_val_every_n_epoch": 3}, "validation"),
        ({"check_val_every_n_epoch": 20}, "training"),  # it would come after the end
        ({"check_val_every_n_epoch": 10}, "validation"),  # it comes at the end
        ({"check_val_every_n_epoch": 4, "epoch": 8}, "training"),  # resumed after the last one
        ({"check_val_every_n_epoch": 4, "epoch": 7}, "validation"),
        ({"check_val_every_n_epoch": None}, "validation"),  # by batches
        ({"check_val_every_n_epoch": 20, "max_epochs": -1}, "validation"),  # no end
        ({"check_val_every_n_epoch": 20, "max_epochs": None}, "validation"),
        ({"check_val_every_n_epoch": 3, "max_steps": 250}, "training"),  # it ends in the third epoch
        ({"check_val_every_n_epoch": 3, "max_steps": 300}, "validation"),
        ({"check_val_every_n_epoch": 3, "max_steps": 250, "accumulate_grad_batches": 4}, "validation"),
        ({"check_val_every_n_epoch": 3, "max_steps": 250, "num_training_batches": math.inf}, "validation"),
        ({"check_val_every_n_epoch": 3, "max_steps": 250, "step": 200, "epoch": 2}, "training"),
    ],
)
def test_validation_drives_the_series_where_there_will_be_any(trainer: dict[str, Any], source: str) -> None:
    assert begun(**trainer).source == source


def test_by_updates_training_drives_it() -> None:
    assert begun(every_n_train_steps=50).source == "training"


def test_a_fit_begins_without_a_measurement() -> None:
    schedule = begun()
    schedule.note(at(5, 1))
    assert schedule.at == (5, 1)
    schedule.begin(at())
    assert schedule.at is None


# ---------------------------------------------------------------- what is due


def test_only_the_source_of_the_series_is_measured() -> None:
    schedule = begun()
    assert schedule.is_due(at(100), "validation") and not schedule.is_due(at(100), "training")
    schedule = begun(enable_validation=False)
    assert schedule.is_due(at(100), "training") and not schedule.is_due(at(100), "validation")


def test_weights_that_have_not_moved_are_not_measured_again() -> None:
    schedule = begun()
    assert schedule.has_moved(at())
    schedule.note(at(100))
    assert not schedule.is_due(at(100, 1), "validation") and not schedule.has_moved(at(100, 1))
    assert schedule.is_due(at(101, 1), "validation") and schedule.has_moved(at(101, 1))


@pytest.mark.parametrize(
    ("every", "measured"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (9, [0])]
)
def test_one_epoch_in_so_many_and_the_first_one(every: int, measured: list[int]) -> None:
    schedule, found = begun(every), []
    schedule.note(at(0, 0))  # before training
    for epoch in range(7):
        trainer = at(100 * (epoch + 1), epoch)
        if schedule.is_due(trainer, "validation"):
            schedule.note(trainer)
            found.append(epoch)
    assert found == measured


def test_within_an_epoch_each_validation_is_measured_only_if_every_epoch_is() -> None:
    for every, due in ((1, True), (2, False)):
        schedule = begun(every, check_val_every_n_epoch=None)
        schedule.note(at(30, 1))
        assert schedule.is_due(at(60, 1), "validation") == due


def test_after_a_resume_the_first_chance_is_taken() -> None:
    schedule = begun(5, step=700, epoch=7)
    assert schedule.is_due(at(800, 7), "validation")
    schedule.note(at(800, 7))
    assert not schedule.is_due(at(900, 8), "validation") and schedule.is_due(at(1300, 12), "validation")


def test_by_updates_one_is_due_so_many_after_the_last() -> None:
    schedule, found = begun(every_n_train_steps=30), []
    schedule.note(at(0))
    for step in range(1, 200, 7):  # an update of several batches at once, say
        if schedule.is_due(at(step), "training"):
            schedule.note(at(step))
            found.append(step)
    assert found == [36, 71, 106, 141, 176]


# ---------------------------------------------------------------- what is promised


def test_the_first_is_promised_and_the_first_after_the_one_before_training() -> None:
    schedule = begun()
    assert schedule.is_promised()
    schedule.note(at(0))
    assert schedule.is_promised()
    schedule.note(at(100))
    assert not schedule.is_promised()


# ---------------------------------------------------------------- what is worth recording


def recorded(
    schedule: Schedule, *, has_validation: bool, step: int = 100, batches: float = 100, **more: int
) -> list[int]:
    trainer = at(step, 1, num_training_batches=batches)
    return [i for i in range(100) if schedule.is_worth_recording(trainer, i, has_validation=has_validation, **more)]


def test_first_and_last_batches_of_an_epoch_are_recorded_where_training_drives() -> None:
    schedule = begun(enable_validation=False)
    schedule.note(at(0))
    assert recorded(schedule, has_validation=False) == [0, *range(100 - RECENT, 100)]
    assert recorded(schedule, has_validation=False, needed=8) == [0, *range(92, 100)]  # of small batches more
    assert recorded(schedule, has_validation=False, batches=math.inf) == list(range(100))  # the end is not known


def test_nothing_is_recorded_where_validation_drives_and_has_come() -> None:
    schedule = begun()
    schedule.note(at(0))
    assert recorded(schedule, has_validation=True) == []
    assert recorded(schedule, has_validation=False) == [0, *range(100 - RECENT, 100)]


def test_the_first_batch_of_a_fit_is_recorded_if_no_sanity_check_was_measured() -> None:
    schedule = begun()
    assert schedule.is_worth_recording(at(0), 50, has_validation=True)
    schedule.note(at(0))
    assert not schedule.is_worth_recording(at(0), 50, has_validation=True)


def test_by_updates_the_batches_are_recorded_before_one_is_due() -> None:
    """As many as it takes, and a few at least."""
    schedule = begun(every_n_train_steps=10)
    assert schedule.is_worth_recording(at(20), 50, has_validation=False)  # nothing has been measured yet
    schedule.note(at(20))
    due = next(step for step in range(20, 40) if schedule.is_due(at(step), "training"))
    for needed, first in ((1, due - RECENT), (7, due - 7)):
        steps = [s for s in range(20, 32) if schedule.is_worth_recording(at(s), 50, has_validation=True, needed=needed)]
        assert steps == list(range(first, 32))
