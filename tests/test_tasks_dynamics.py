"""Tasks of dynamics against the equations of their systems and the future of their series."""

import pytest
import torch
from batches import changed, draw, options, variants

from lightning_lyapunov.bank.tasks import TASKS, Task
from lightning_lyapunov.bank.tasks.dynamics import _narma_system, _shipped, henon


@variants("narma")
def test_narma_obeys_its_equation(task: Task) -> None:
    order = options(task)["order"]
    raw = _narma_system(order)
    drive, after = raw[:60, 0].T.tolist()
    for t in range(order, 59):
        past = after[t - order : t]  # y(t - order + 1) ... y(t)
        expected = 0.3 * past[-1] + 0.05 * past[-1] * sum(past) + 1.5 * drive[t - order + 1] * drive[t] + 0.1
        assert after[t] == pytest.approx(min(expected, 1), rel=1e-9)
    assert (raw[..., 1] == 1).float().mean() < 1e-3  # the bound is all but never met


@pytest.mark.parametrize("name", ["mackey-17", "lorenz-3", "maps-henon", "recordings-laser-4"])
def test_forecasts_ask_for_the_noiseless_future(name: str) -> None:
    task = TASKS[name]
    inputs, targets = draw(changed(task, noise=0.0))
    horizon, warmup = options(task)["horizon"], 4
    assert torch.equal(targets[warmup:-horizon], inputs[warmup + horizon :])
    assert targets[:warmup].isnan().all()


@pytest.mark.parametrize("name", ["mackey-17", "mackey-30", "lorenz-3", "maps-henon", "maps-logistic", "maps-ikeda"])
def test_a_chaotic_series_neither_settles_nor_cycles(name: str) -> None:
    series = options(TASKS[name])["series"]()
    assert series.isfinite().all()
    for chain in series[-400:, :8, 0].T:
        assert len((chain * 1000).round().unique()) > 300  # a cycle would come back to the same few values


def test_a_late_answer_is_the_same_answer_so_many_steps_later() -> None:
    task = TASKS["narma-late"]
    late, (inputs, targets) = options(task)["late"], draw(changed(task, late=0))
    assert torch.equal(draw(task).inputs, inputs)
    assert torch.equal(draw(task).targets[late + 5 :], targets[5:-late])  # the first five are not asked
    assert draw(task).targets[: late + 5].isnan().all()


def test_henon_series_obeys_the_map() -> None:
    x, y = henon()[:, 0].T
    design = torch.stack((torch.ones(len(x) - 1), x[:-1], x[:-1] ** 2, y[:-1]), -1).double()
    fit = torch.linalg.lstsq(design, x[1:, None].double()).solution
    # a quadratic of x plus y, whatever the units
    assert (design @ fit)[:, 0] == pytest.approx(x[1:].double(), abs=1e-4)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        _shipped("no-such-package", "data")
