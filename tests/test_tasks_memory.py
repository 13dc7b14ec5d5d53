"""Tasks of memory against answers looked up in the inputs, in plain Python."""

import math
from statistics import mean, pstdev

from batches import agree, changed, columns, draw, options, variants

from lightning_lyapunov.bank.tasks import Task

NAN = math.nan


@variants("recall")
def test_recall(task: Task) -> None:
    for inputs, targets in columns(draw(task)):
        cued = [step[-1] == 1 for step in inputs]
        shown = [step[:-1].index(1) for step in inputs if 1 in step[:-1]]
        length = len(shown)
        assert cued == [False] * (task.steps - length) + [True] * length
        assert targets == [[-1]] * (task.steps - length) + [[symbol] for symbol in shown]


@variants("capacity")
def test_capacity(task: Task) -> None:
    delays = options(task)["delays"]
    for inputs, targets in columns(draw(task, 8)):
        expected = [[inputs[t - d][0] if t >= d else NAN for d in delays] for t in range(task.steps)]
        assert agree(targets, expected)


@variants("adding")
def test_adding(task: Task) -> None:
    for inputs, targets in columns(draw(task)):
        marked = [number for number, mark in inputs if mark]
        halves = [sum(mark for _, mark in half) for half in (inputs[: task.steps // 2], inputs[task.steps // 2 :])]
        assert halves == [1, 1]
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[(sum(marked) - 1) * math.sqrt(6)]])


@variants("compare")
def test_compare(task: Task) -> None:
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        delay, wait = options(task)["delay"], options(task).get("wait", 0)
        assert [present for _, present in inputs] == [1, 1] + [0] * delay + [1, 1] + [0] * wait
        difference = inputs[0][0] - inputs[2 + delay][0]
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[difference * math.sqrt(1.5)]])


@variants("match")
def test_match(task: Task) -> None:
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        shown = [step[:-1].index(1) for step in inputs if 1 in step[:-1] and not step[-1]]
        assert len(set(shown)) == 2
        assert agree(targets, [[float(step[:-1].index(1) in shown) if step[-1] else NAN] for step in inputs])


@variants("order")
def test_order(task: Task) -> None:
    """The marks, read in time, are the digits of a binary number, its lowest first."""
    marks, answers = options(task)["marks"], set()
    for inputs, targets in columns(draw(task, 256)):
        assert all(sorted(step) == [0] * 5 + [1] for step in inputs)
        kinds = [step.index(1) for step in inputs if step.index(1) < 2]  # what is not a mark distracts
        assert len(kinds) == marks
        assert all(step.index(1) >= 2 for step in inputs[options(task)["steps"] :])  # the wait has no marks
        answer = int("".join(map(str, reversed(kinds))), 2)
        assert targets == [[-1]] * (task.steps - 1) + [[answer]]
        answers.add(answer)
    assert answers == set(range(task.output_size))


@variants("timing")
def test_timing(task: Task) -> None:
    """The steps between two pulses are counted; all numbers from 2 to the longest are as likely."""
    longest, delay = options(task)["longest"], options(task)["delay"]
    likely, seen = range(2, longest + 1), set()
    for inputs, targets in columns(draw(changed(task, noise=0.0), 256)):
        first, second = (time for time, (pulse, _) in enumerate(inputs) if pulse)
        (cue,) = (time for time, (_, cue) in enumerate(inputs) if cue)
        assert cue == task.steps - 1 == second + delay + 1
        expected = (second - first - mean(likely)) / pstdev(likely)
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[expected]])
        seen.add(second - first)
    assert seen == set(likely)


@variants("winner")
def test_winner(task: Task) -> None:
    """The value that came with the highest bid."""
    for inputs, targets in columns(draw(task)):
        _, value = max(inputs, key=lambda step: step[0])
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[value]])


@variants("product")
def test_product(task: Task) -> None:
    for inputs, targets in columns(draw(task)):
        (one, place), (other, later) = [(number, time) for time, (number, mark) in enumerate(inputs) if mark]
        assert place < task.steps // 2 <= later
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[one * other]])


@variants("nback")
def test_nback(task: Task) -> None:
    back, answers = options(task)["back"], []
    for inputs, targets in columns(draw(task)):
        symbols = [step.index(1) for step in inputs]
        expected = [float(symbols[t] == symbols[t - back]) if t >= back else NAN for t in range(task.steps)]
        assert agree(targets, [[answer] for answer in expected])
        answers += expected[back:]
        assert set(symbols) <= set(range(task.input_size))
    assert abs(mean(answers) - 0.5) < 0.05
