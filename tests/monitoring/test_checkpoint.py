"""What a checkpoint brings back, and what is said of one that another version wrote."""

import io
from typing import Any

import pytest
import torch

from lightning_lyapunov.monitoring.budget import Budget, Plan
from lightning_lyapunov.monitoring.checkpoint import restore, state_of
from lightning_lyapunov.monitoring.clock import Clock
from lightning_lyapunov.reading.history import History, Measurement


def parts() -> tuple[History, Clock, Budget]:
    return History(), Clock(lambda: 0.0), Budget(0.03)


def full() -> tuple[History, Clock, Budget]:
    history, clock, budget = parts()
    history.append(Measurement(3, 1, torch.tensor([0.5, -1.0]), {"max": 0.5}))
    clock.trained = 12.5
    budget.note(Plan(4, 16, 2), 0.25)
    return history, clock, budget


def test_all_of_it_comes_back_through_a_safe_load() -> None:
    file = io.BytesIO()
    torch.save(state_of(*full()), file)
    file.seek(0)
    history, clock, budget = parts()
    assert restore(torch.load(file, weights_only=True), history, clock, budget) == ""
    assert [(m.step, m.epoch, m.exponents.tolist(), m.metrics) for m in history] == [(3, 1, [0.5, -1.0], {"max": 0.5})]
    assert clock.trained == 12.5
    assert budget.spent == 0.25 and budget.costs == {Plan(4, 16, 2): 0.25}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget": None}, "budget of state is NoneType"),
        ({"training_seconds": "long"}, "training_seconds of state is str"),
        ({"history": {"measurements": []}}, "history has no seen"),
        ({"budget": {"seconds": {}, "costs": []}}, "budget has no beside"),
        ({"mood": 1}, "mood of state is not known"),
    ],
)
def test_what_is_amiss_is_told_and_the_rest_comes_back(change: dict[str, Any], told: str) -> None:
    history, clock, budget = parts()
    text = restore({**state_of(*full()), **change}, history, clock, budget)
    assert told in text and text.startswith("the checkpoint is of another version") and text.endswith("begins anew.")
    assert len(history) == (0 if "history" in change else 1)
    assert clock.trained == (0.0 if "training_seconds" in change else 12.5)
    assert budget.spent == (0.0 if "budget" in change else 0.25)


def test_nothing_at_all_begins_anew() -> None:
    history, clock, budget = parts()
    assert "state has no history" in restore({}, history, clock, budget)
    assert len(history) == 0 and clock.trained == 0.0 and budget.spent == 0.0
