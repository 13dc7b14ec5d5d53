"""What holds for every task, and losses and metrics worked out by hand."""

import math
import subprocess
import sys

import pytest
import torch
from batches import asked, changed, draw, options
from torch import Generator

from lightning_lyapunov.bank.tasks import CURRENT, SET_ASIDE, TASKS, Batch, Task, loss, metric
from lightning_lyapunov.bank.tasks.sequences import windows

NAN = math.nan

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def test_families_of_two_or_three_variants_besides_those_set_aside() -> None:
    families = [task.family for task in CURRENT.values()]
    assert len(set(families) - set(SET_ASIDE)) >= 28
    assert len(set(SET_ASIDE) & set(families)) == 2
    assert {families.count(family) for family in families} == {2, 3}
    assert all(name == task.name and name.startswith(f"{task.family}-") for name, task in TASKS.items())


def test_tasks_of_the_first_bank_are_known_but_not_trained_on_again() -> None:
    former = set(TASKS) - set(CURRENT)
    assert set(CURRENT) < set(TASKS)
    assert {"recall-12", "parity-8", "order-4"} <= former


def test_a_third_of_the_tasks_at_most_is_trained_for_longer() -> None:
    updates = [task.updates for task in CURRENT.values()]
    assert set(updates) == {800, 2000}
    assert updates.count(2000) <= len(updates) / 3
    assert all(CURRENT[name].updates == TASKS[name].updates for name in CURRENT)


@every_task
def test_shapes_and_scale(task: Task) -> None:
    inputs, targets = draw(task)
    assert inputs.shape == (task.steps, 64, task.input_size)
    assert inputs.dtype == torch.float32
    assert inputs.isfinite().all()
    assert inputs.abs().max() < 10
    assert task.steps <= 64
    if task.kind == "classes":
        assert targets.shape == (task.steps, 64)
        assert targets.dtype == torch.long
        assert targets.min() >= -1
        assert targets.max() < task.output_size
    else:
        assert targets.shape == (task.steps, 64, task.output_size)
        assert targets.dtype == torch.float32
    answers = targets[asked(targets)]
    assert len(answers) >= 64  # something is asked of every sequence, on average
    if task.kind == "bits":
        assert set(answers.tolist()) == {0.0, 1.0}


@every_task
def test_the_generator_decides_the_batch_and_nothing_else_is_drawn(task: Task) -> None:
    draw(task)  # what is made once and kept
    before = torch.get_rng_state()
    first, again, other = draw(task, seed=1), draw(task, seed=1), draw(task, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.inputs, again.inputs)
    assert first.targets.equal(again.targets) or torch.allclose(first.targets, again.targets, equal_nan=True)
    assert not torch.equal(first.inputs, other.inputs)


@every_task
def test_a_constant_answer_scores_chance(task: Task) -> None:
    targets = draw(task, 1024, held_out=True).targets
    answers = draw(task, 1024).targets
    if task.kind == "classes":
        best = torch.zeros(task.output_size)
        best[answers[asked(answers)].bincount().argmax()] = 1
    else:
        best = answers.nanmean((0, 1))
        if task.kind == "bits":
            best = best - 0.5
    score = metric(task, best.expand(1, *targets.shape[:2], -1), targets)
    wide = task.family == "recordings"  # held-out years are not those of training
    assert score.item() == pytest.approx(task.chance, abs=0.2 if wide else 0.04)


@every_task
def test_gradients_are_finite_and_only_where_asked(task: Task) -> None:
    targets = draw(task, 8).targets
    outputs = torch.randn(2, task.steps, 8, task.output_size, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(task, outputs, targets).sum(), outputs)
    places = asked(targets) if task.kind != "classes" else asked(targets)[..., None].expand(-1, -1, task.output_size)
    assert gradient.isfinite().all()
    assert ((gradient != 0) == places).all()


@pytest.mark.parametrize("task", [task for task in TASKS.values() if options(task).get("noise")], ids=lambda t: t.name)
def test_noise_hides_what_is_seen_and_changes_nothing_that_is_asked(task: Task) -> None:
    noisy, quiet = draw(task), draw(changed(task, noise=0.0))
    assert torch.allclose(noisy.targets, quiet.targets, rtol=0, atol=0, equal_nan=True)
    noise = (noisy.inputs - quiet.inputs).flatten(0, 1)
    lines = noise.std(0)[noise.any(0)]  # some lines, such as cues, are noiseless
    assert len(lines) >= 1
    assert lines.tolist() == pytest.approx([options(task)["noise"]] * len(lines), rel=0.1)


WAITING = [task for task in TASKS.values() if options(task).get("wait")]


@pytest.mark.parametrize("task", WAITING, ids=lambda task: task.name)
def test_after_a_wait_the_answer_is_that_of_the_same_sequence_asked_at_once(task: Task) -> None:
    wait = options(task)["wait"]
    quiet = changed(task, noise=0.0) if options(task).get("noise") else task
    late, prompt = draw(quiet), draw(changed(quiet, wait=0))
    answers = late.targets[-1]
    assert asked(answers).all()
    if task.family == "tally":  # its line is named at the end of the wait
        late, prompt = (Batch(batch.inputs[:-1], batch.targets) for batch in (late, prompt))
    if task.family != "order":  # in which other symbols go on
        assert torch.equal(late.inputs[:-wait], prompt.inputs)
        assert not late.inputs[-wait:].any()
        assert torch.equal(answers, prompt.targets[-1])
    if task.family != "context":  # which is asked four times
        assert not asked(late.targets[:-1]).any()


@pytest.mark.parametrize("task", [task for task in WAITING if options(task).get("noise")], ids=lambda task: task.name)
def test_only_noise_comes_in_during_a_wait(task: Task) -> None:
    waited = draw(task, 256).inputs[-options(task)["wait"] :]
    noise = waited[..., waited.flatten(0, 1).any(0)]
    assert noise.std().item() == pytest.approx(options(task)["noise"], rel=0.05)


def test_held_out_windows_share_no_step_with_the_others() -> None:
    times = torch.arange(100.0).view(-1, 1, 1)
    seen = windows(times, 10, 5000, Generator().manual_seed(0), False)
    held_out = windows(times, 10, 5000, Generator().manual_seed(0), True)
    assert [int(edge) for part in (seen, held_out) for edge in part.aminmax()] == [0, 74, 75, 99]
    assert torch.equal(seen.diff(dim=0), torch.ones_like(seen[1:]))


def test_loss_of_classes_worked_by_hand() -> None:
    task = TASKS["dyck-2x12"]
    targets = torch.tensor([[-1, 0], [1, -1]])
    outputs = torch.tensor([[[0.0, 9.0], [1.0, 0.0]], [[2.0, 0.0], [7.0, 7.0]]]).expand(3, -1, -1, -1)
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert loss(task, outputs, targets).tolist() == pytest.approx([by_hand] * 3)
    assert metric(task, outputs, targets).tolist() == [0.5] * 3


def test_loss_of_bits_worked_by_hand() -> None:
    task = TASKS["flipflop-2"]
    targets = torch.tensor([[[1.0, NAN]], [[0.0, 1.0]]])
    outputs = torch.tensor([[[3.0, 5.0]], [[1.0, -2.0]]])[None]
    by_hand = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1)) + math.log(1 + math.exp(2))) / 3
    assert loss(task, outputs, targets).tolist() == pytest.approx([by_hand])
    assert metric(task, outputs, targets).tolist() == pytest.approx([1 / 3])


def test_loss_of_values_worked_by_hand() -> None:
    task = TASKS["narma-5"]
    targets = torch.tensor([NAN, 1.0, 3.0]).view(3, 1, 1)  # mean 2, squares about it sum to 2
    outputs = torch.stack([torch.tensor([9.0, 1.0, 3.0]), torch.tensor([9.0, 2.0, 2.0]), torch.tensor([9.0, 1.5, 3.5])])
    outputs = outputs.view(3, 3, 1, 1)
    assert loss(task, outputs, targets).tolist() == pytest.approx([0, 1, 0.25])
    assert metric(task, outputs, targets).tolist() == pytest.approx([1, 0, 0.5])


@pytest.mark.parametrize("name", ["recall-6", "xor-16", "adding-20"])
def test_a_read_out_that_is_not_finite_has_no_metric(name: str) -> None:
    task = TASKS[name]
    outputs = torch.zeros(2, task.steps, 8, task.output_size)
    outputs[0, -1] = NAN
    values = metric(task, outputs, draw(task, 8).targets)
    assert values.isnan().tolist() == [True, False]


def test_import_brings_no_optional_package() -> None:
    code = "import sys, lightning_lyapunov.bank.tasks; print({'sklearn', 'reservoirpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
