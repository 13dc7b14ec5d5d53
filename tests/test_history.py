"""The record of a run: bounded, evenly spread over it, and fit to travel in a checkpoint."""

import io
import math
from itertools import pairwise

import pytest
import torch

from lightning_lyapunov.history import LIMIT, History, Measurement, key_of


def measured(step: int, size: int = 4) -> Measurement:
    exponents = torch.linspace(0.0, -1.0, size) - step
    return Measurement(step, step // 10, exponents, {"lyapunov/max": float(-step), "lyapunov/seconds": 0.5})


def filled(count: int, size: int = 4) -> History:
    history = History()
    for step in range(count):
        history.append(measured(step, size))
    return history


def steps_of(history: History) -> list[int]:
    return [measurement.step for measurement in history]


def reloaded(history: History) -> tuple[History, int]:
    """Through a checkpoint, with its size in bytes."""
    buffer = io.BytesIO()
    torch.save({"history": history.state_dict()}, buffer)
    size = buffer.tell()
    buffer.seek(0)
    restored = History()
    restored.load_state_dict(torch.load(buffer, weights_only=True)["history"])
    return restored, size


def test_few_measurements_are_all_kept_in_order() -> None:
    history = filled(LIMIT)
    assert steps_of(history) == list(range(LIMIT))
    assert (len(history), history[0].step, history[-1].step) == (LIMIT, 0, LIMIT - 1)


@pytest.mark.parametrize("size", [4, 300, 500])  # limits 256, 218 and 131, an odd one
def test_thinning_keeps_the_newest_after_every_append(size: int) -> None:
    history, exponents = History(), torch.zeros(size)
    for step in range(1200):
        history.append(Measurement(step, 0, exponents, {}))
        steps = steps_of(history)
        assert (steps[0], steps[-1]) == (0, step)
        strides = {b - a for a, b in pairwise(steps[:-1])}
        assert len(strides) <= 1 and all(steps[-1] - steps[-2] <= stride for stride in strides)


def test_many_measurements_stay_bounded_and_even() -> None:
    count = 10**5
    history, exponents = History(), torch.zeros(3)
    for step in range(count):
        history.append(Measurement(step, 0, exponents, {}))
        assert len(history) <= LIMIT
    steps = steps_of(history)
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert len(steps) > LIMIT // 2
    assert len({b - a for a, b in pairwise(steps[:-1])}) == 1


@pytest.mark.parametrize("count", [0, 1, 300])
def test_checkpoint_round_trip_is_lossless(count: int) -> None:
    history = filled(count)
    restored, _ = reloaded(history)
    assert len(restored) == len(history)
    for ours, theirs in zip(history, restored, strict=True):
        assert (ours.step, ours.epoch, ours.metrics) == (theirs.step, theirs.epoch, theirs.metrics)
        assert torch.equal(ours.exponents, theirs.exponents)


def test_a_state_without_the_newer_fields_still_loads() -> None:
    state = filled(3).state_dict()
    for measurement in state["measurements"]:
        for name in ("stderr", "trusted", "dimension", "length", "layers", "latent", "reached"):
            del measurement[name]
    restored = History()
    restored.load_state_dict(state)
    assert steps_of(restored) == [0, 1, 2] and restored[0].stderr is None and restored[0].layers == {}


def test_values_are_found_by_name_under_any_prefix() -> None:
    for prefix, score in {"lyapunov": "aelle/performance", "encoder": "encoder/aelle/performance"}.items():
        history = History(prefix)
        history.append(Measurement(0, 0, torch.zeros(2), {f"{prefix}/max": -0.5, score: 0.7}))
        history.append(Measurement(4, 0, torch.zeros(2), {f"{prefix}/max": -0.4}))
        assert history.values("max") == [-0.5, -0.4]
        performance = history.values("aelle/performance")
        assert performance[0] == 0.7 and math.isnan(performance[1])


@pytest.mark.parametrize("break_at", [1, 100, 256, 257, 400, 999])
def test_goes_on_from_a_checkpoint_as_if_never_stopped(break_at: int) -> None:
    restored, _ = reloaded(filled(break_at))
    for step in range(break_at, 1000):
        restored.append(measured(step))
    assert steps_of(restored) == steps_of(filled(1000))


@pytest.mark.parametrize("size", [32, 1024])
def test_state_stays_under_a_megabyte(size: int) -> None:
    keys = ["max_stderr", "near_zero_fraction", "kaplan_yorke_dimension", "kolmogorov_sinai_entropy", *"abcdefghi"]
    history = History()
    for step in range(600):
        metrics = {f"lyapunov/{key}": step / 7 for key in keys}
        whole = {"stderr": torch.rand(size), "trusted": torch.ones(size) > 0, "latent": torch.rand(8)}
        history.append(Measurement(step, 0, torch.randn(size), metrics, **whole, layers={"rnn": [0.1, 0.01]}))
    assert reloaded(history)[1] < 1_000_000


def test_keys_have_the_default_prefix_but_for_scores() -> None:
    assert (key_of("max"), key_of("aelle/performance")) == ("lyapunov/max", "aelle/performance")
    assert filled(2).values("max") == [0.0, -1.0]
