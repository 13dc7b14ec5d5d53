"""Tasks against targets recomputed step by step in plain Python, and losses and metrics worked out by hand."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Generator, Tensor

from lightning_lyapunov.bank import tasks
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS, Batch, Task, loss, metric

NAN = math.nan


def draw(task: Task, batch: int = 64, seed: int = 0, *, held_out: bool = False) -> Batch:
    """A batch, or the test is skipped if the package that ships its data is missing."""
    try:
        return task.sample(batch, Generator().manual_seed(seed), held_out=held_out)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def asked(targets: Tensor) -> Tensor:
    return targets.isfinite() if targets.is_floating_point() else targets >= 0


def columns(batch: Batch) -> list[tuple[list[list[float]], list[list[float]]]]:
    """Each sequence as plain lists: inputs and targets by step."""
    targets = batch.targets if batch.targets.ndim == 3 else batch.targets[..., None]
    return [(batch.inputs[:, b].tolist(), targets[:, b].tolist()) for b in range(batch.inputs.shape[1])]


def agree(targets: list[list[float]], expected: list[list[float]]) -> bool:
    return torch.allclose(torch.tensor(targets), torch.tensor(expected), atol=1e-5, equal_nan=True)


every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def variants(family: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "task", [task for task in TASKS.values() if task.family == family], ids=lambda t: t.name
    )


def test_eighteen_families_of_at_least_two_variants():
    families = [task.family for task in TASKS.values()]
    assert len(set(families)) == 18
    assert all(families.count(family) >= 2 for family in families)
    assert set(SET_ASIDE) <= set(families)
    assert all(name == task.name and name.startswith(f"{task.family}-") for name, task in TASKS.items())


@every_task
def test_shapes_and_scale(task: Task):
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
def test_the_generator_decides_the_batch_and_nothing_else_is_drawn(task: Task):
    draw(task)  # what is made once and kept
    before = torch.get_rng_state()
    first, again, other = draw(task, seed=1), draw(task, seed=1), draw(task, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.inputs, again.inputs)
    assert first.targets.equal(again.targets) or torch.allclose(first.targets, again.targets, equal_nan=True)
    assert not torch.equal(first.inputs, other.inputs)


@every_task
def test_a_constant_answer_scores_chance(task: Task):
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
def test_gradients_are_finite_and_only_where_asked(task: Task):
    targets = draw(task, 8).targets
    outputs = torch.randn(2, task.steps, 8, task.output_size, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(task, outputs, targets).sum(), outputs)
    places = asked(targets) if task.kind != "classes" else asked(targets)[..., None].expand(-1, -1, task.output_size)
    assert gradient.isfinite().all()
    assert ((gradient != 0) == places).all()


@variants("recall")
def test_recall(task: Task):
    for inputs, targets in columns(draw(task)):
        cued = [step[-1] == 1 for step in inputs]
        shown = [step[:-1].index(1) for step in inputs if 1 in step[:-1]]
        length = len(shown)
        assert cued == [False] * (task.steps - length) + [True] * length
        assert targets == [[-1]] * (task.steps - length) + [[symbol] for symbol in shown]


@variants("capacity")
def test_capacity(task: Task):
    delays = task.sampler.keywords["delays"]  # type: ignore[attr-defined]
    for inputs, targets in columns(draw(task, 8)):
        expected = [[inputs[t - d][0] if t >= d else NAN for d in delays] for t in range(task.steps)]
        assert agree(targets, expected)


@variants("adding")
def test_adding(task: Task):
    for inputs, targets in columns(draw(task)):
        marked = [number for number, mark in inputs if mark]
        halves = [sum(mark for _, mark in half) for half in (inputs[: task.steps // 2], inputs[task.steps // 2 :])]
        assert halves == [1, 1]
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[(sum(marked) - 1) * math.sqrt(6)]])


@variants("xor")
def test_xor(task: Task):
    lags = task.sampler.keywords["lags"]  # type: ignore[attr-defined]
    for inputs, targets in columns(draw(task, 8)):
        expected = [[float(inputs[t] != inputs[t - d]) if t >= d else NAN for d in lags] for t in range(task.steps)]
        assert agree(targets, expected)


@variants("parity")
def test_parity(task: Task):
    widths = task.sampler.keywords["widths"]  # type: ignore[attr-defined]
    for inputs, targets in columns(draw(task, 8)):
        ones = [step[0] > 0 for step in inputs]
        expected = [
            [sum(ones[t + 1 - w : t + 1]) % 2 if t + 1 >= w else NAN for w in widths] for t in range(task.steps)
        ]
        assert agree(targets, expected)


@variants("flipflop")
def test_flipflop_holds_the_last_pulse(task: Task):
    quiet = Task(**{**vars(task), "sampler": tasks.partial(task.sampler, noise=0.0)})  # pulses can be read off
    for inputs, targets in columns(draw(quiet)):
        state = [NAN] * task.input_size
        for step, target in zip(inputs, targets, strict=True):
            state = [held if pulse == 0 else float(pulse > 0) for held, pulse in zip(state, step, strict=True)]
            assert agree([target], [state])


@variants("match")
def test_match(task: Task):
    quiet = Task(**{**vars(task), "sampler": tasks.partial(task.sampler, noise=0.0)})
    for inputs, targets in columns(draw(quiet)):
        shown = [step[:-1].index(1) for step in inputs if 1 in step[:-1] and not step[-1]]
        assert len(set(shown)) == 2
        assert agree(targets, [[float(step[:-1].index(1) in shown) if step[-1] else NAN] for step in inputs])


@variants("context")
def test_context_asks_for_the_relevant_channel(task: Task):
    quiet = Task(**{**vars(task), "sampler": tasks.partial(task.sampler, noise=0.0)})
    for inputs, targets in columns(draw(quiet)):
        relevant = inputs[0][2:].index(1)
        assert agree(targets, [[NAN]] * (task.steps - 4) + [[inputs[-1][relevant]]] * 4)


@variants("compare")
def test_compare(task: Task):
    quiet = Task(**{**vars(task), "sampler": tasks.partial(task.sampler, noise=0.0)})
    for inputs, targets in columns(draw(quiet)):
        assert [present for _, present in inputs] == [1, 1] + [0] * (task.steps - 4) + [1, 1]
        assert targets[-1][0] == pytest.approx((inputs[0][0] - inputs[-1][0]) * math.sqrt(1.5), abs=1e-5)


@variants("dyck")
def test_dyck_against_a_stack(task: Task):
    depths = set()
    for inputs, targets in columns(draw(task)):
        stack: list[int] = []
        for step, (target,) in zip(inputs, targets, strict=True):
            symbol, types = step.index(1), task.output_size
            if symbol < types:
                stack.append(symbol)
                assert target == -1
            else:
                assert stack.pop() == symbol - types
                assert target == (stack[-1] if stack else -1)
            depths.add(len(stack))
    assert depths == set(range(task.sampler.keywords["depth"] + 1))  # type: ignore[attr-defined]


@variants("narma")
def test_narma_obeys_its_equation(task: Task):
    order = int(task.name.removeprefix("narma-"))
    raw = tasks._narma_system(order)
    drive, after = raw[:60, 0].T.tolist()
    for t in range(order, 59):
        past = after[t - order : t]  # y(t - order + 1) ... y(t)
        expected = 0.3 * past[-1] + 0.05 * past[-1] * sum(past) + 1.5 * drive[t - order + 1] * drive[t] + 0.1
        assert after[t] == pytest.approx(min(expected, 1), rel=1e-9)
    assert (raw[..., 1] == 1).float().mean() < 1e-3  # the bound is all but never met


@pytest.mark.parametrize("name", ["mackey-17", "lorenz-3", "maps-henon", "recordings-laser-4"])
def test_forecasts_ask_for_the_noiseless_future(name: str):
    task = TASKS[name]
    options = task.sampler.keywords  # type: ignore[attr-defined]
    quiet = Task(**{**vars(task), "sampler": tasks.partial(task.sampler, noise=0.0)})
    inputs, targets = draw(quiet)
    horizon, warmup = options["horizon"], 4
    assert torch.equal(targets[warmup:-horizon], inputs[warmup + horizon :])
    assert targets[:warmup].isnan().all()


@pytest.mark.parametrize("name", ["mackey-17", "mackey-30", "lorenz-3", "maps-henon", "maps-logistic", "maps-ikeda"])
def test_a_chaotic_series_neither_settles_nor_cycles(name: str):
    series = TASKS[name].sampler.keywords["series"]()  # type: ignore[attr-defined]
    assert series.isfinite().all()
    for chain in series[-400:, :8, 0].T:
        assert len((chain * 1000).round().unique()) > 300  # a cycle would come back to the same few values


def test_henon_series_obeys_the_map():
    x, y = tasks._henon()[:, 0].T
    design = torch.stack((torch.ones(len(x) - 1), x[:-1], x[:-1] ** 2, y[:-1]), -1).double()
    fit = torch.linalg.lstsq(design, x[1:, None].double()).solution
    assert (design @ fit)[:, 0] == pytest.approx(
        x[1:].double(), abs=1e-4
    )  # a quadratic of x plus y, whatever the units


def test_held_out_windows_share_no_step_with_the_others():
    times = torch.arange(100.0).view(-1, 1, 1)
    seen = tasks._windows(times, 10, 5000, Generator().manual_seed(0), False)
    held_out = tasks._windows(times, 10, 5000, Generator().manual_seed(0), True)
    assert (seen.min(), seen.max(), held_out.min(), held_out.max()) == (0, 74, 75, 99)
    assert torch.equal(seen.diff(dim=0), torch.ones_like(seen[1:]))


def test_held_out_digits_are_never_trained_on():
    pytest.importorskip("sklearn")
    draws = [
        tasks._digits(4000, Generator().manual_seed(0), held_out, pixels=4, noise=0.0).inputs.transpose(0, 1).flatten(1)
        for held_out in (False, True)
    ]
    seen, held_out = ({tuple(image) for image in images.tolist()} for images in draws)
    assert len(seen) > 1000
    assert len(held_out) > 400
    assert not seen & held_out


def test_text_is_hashed_and_its_alphabet_is_the_one_asked():
    for source, letters in tasks.ALPHABETS.items():
        text = tasks.text(source)
        assert len(text) > 200_000
        assert set(text) == set(letters)
        assert len(tasks.text_sha256(source)) == 64
    inputs, targets = draw(TASKS["chars-prose"], 4)
    words = "".join(tasks.ALPHABETS["prose"][index] for index in inputs[:, 0].argmax(-1).tolist())
    assert words in tasks.text("prose")
    assert torch.equal(inputs[1:].argmax(-1), targets[:-1])


def test_loss_of_classes_worked_by_hand():
    task = TASKS["dyck-2x12"]
    targets = torch.tensor([[-1, 0], [1, -1]])
    outputs = torch.tensor([[[0.0, 9.0], [1.0, 0.0]], [[2.0, 0.0], [7.0, 7.0]]]).expand(3, -1, -1, -1)
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert loss(task, outputs, targets).tolist() == pytest.approx([by_hand] * 3)
    assert metric(task, outputs, targets).tolist() == [0.5] * 3


def test_loss_of_bits_worked_by_hand():
    task = TASKS["flipflop-2"]
    targets = torch.tensor([[[1.0, NAN]], [[0.0, 1.0]]])
    outputs = torch.tensor([[[3.0, 5.0]], [[1.0, -2.0]]])[None]
    by_hand = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1)) + math.log(1 + math.exp(2))) / 3
    assert loss(task, outputs, targets).tolist() == pytest.approx([by_hand])
    assert metric(task, outputs, targets).tolist() == pytest.approx([1 / 3])


def test_loss_of_values_worked_by_hand():
    task = TASKS["narma-5"]
    targets = torch.tensor([NAN, 1.0, 3.0]).view(3, 1, 1)  # mean 2, squares about it sum to 2
    outputs = torch.stack([torch.tensor([9.0, 1.0, 3.0]), torch.tensor([9.0, 2.0, 2.0]), torch.tensor([9.0, 1.5, 3.5])])
    outputs = outputs.view(3, 3, 1, 1)
    assert loss(task, outputs, targets).tolist() == pytest.approx([0, 1, 0.25])
    assert metric(task, outputs, targets).tolist() == pytest.approx([1, 0, 0.5])


@pytest.mark.parametrize("name", ["recall-6", "xor-16", "adding-20"])
def test_a_read_out_that_is_not_finite_has_no_metric(name: str):
    task = TASKS[name]
    outputs = torch.zeros(2, task.steps, 8, task.output_size)
    outputs[0, -1] = NAN
    values = metric(task, outputs, draw(task, 8).targets)
    assert values.isnan().tolist() == [True, False]


def test_a_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        tasks._shipped("no-such-package", "data")


def test_import_brings_no_optional_package():
    code = "import sys, lightning_lyapunov.bank.tasks; print({'sklearn', 'reservoirpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
