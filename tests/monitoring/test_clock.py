"""Seconds of training by a clock that is read, against sums worked out by hand."""

import pytest

from lightning_lyapunov.monitoring import clock as clock_module
from lightning_lyapunov.monitoring.clock import Clock


class Time:
    """What passes only as told."""

    def __init__(self) -> None:
        self.now, self.spent = 100.0, 7.0

    def train(self, seconds: float) -> None:
        self.now += seconds

    def measure(self, seconds: float) -> None:
        self.now += seconds
        self.spent += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: time.now)
    return time


def test_what_is_spent_is_no_training(time: Time) -> None:
    clock = Clock(lambda: time.spent)
    time.train(5)
    assert clock.trained == 0  # not yet begun
    clock.start()
    time.train(2)
    time.measure(3)
    time.train(4)
    assert clock.trained == 6


def test_several_fits_add_up_and_what_lies_between_does_not_count(time: Time) -> None:
    clock = Clock(lambda: time.spent)
    for _ in range(2):
        clock.start()
        time.train(2)
        clock.stop()
        time.train(50)
        clock.stop()
    assert clock.trained == 4


def test_it_goes_on_from_a_checkpoint_running_or_not(time: Time) -> None:
    clock = Clock(lambda: time.spent)
    clock.trained = 30.0
    time.train(1)
    assert clock.trained == 30
    clock.start()
    time.train(1)
    clock.trained = 60.0
    time.train(2)
    assert clock.trained == 62


def test_an_update_takes_what_those_seen_took_on_average(time: Time) -> None:
    clock = Clock(lambda: time.spent)
    clock.start()
    time.train(100)  # as for data that is loaded first
    assert clock.per_step(4) == 0  # nothing is known yet
    time.train(6)
    time.measure(9)
    assert clock.per_step(4) == 0
    assert clock.per_step(7) == 2
    time.train(2)
    assert clock.per_step(8) == 2


def test_what_is_known_of_updates_begins_anew_where_they_are_counted_anew(time: Time) -> None:
    clock = Clock(lambda: time.spent)
    clock.start()
    clock.per_step(10)
    time.train(5)
    assert clock.per_step(0) == 0
    time.train(3)
    assert clock.per_step(3) == 1
    clock.trained = 1.0  # of another run
    assert clock.per_step(4) == 0
    time.train(4)
    assert clock.per_step(6) == 2
