"""Tasks of a state against that state, kept in plain Python from the inputs without noise."""

import math
from statistics import mean, pstdev

from batches import agree, changed, columns, draw, options, variants

from lightning_lyapunov.bank.tasks import Task

NAN = math.nan


@variants("flipflop")
def test_flipflop_holds_the_last_pulse(task: Task) -> None:
    """Each line's sign is kept, and how long it has been: it is asked once that is long enough."""
    gap = options(task).get("gap", 0)
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        held, age = [NAN] * task.input_size, [0] * task.input_size
        for step, target in zip(inputs, targets, strict=True):
            for line, pulse in enumerate(step):
                held[line] = float(pulse > 0) if pulse else held[line]
                age[line] = 0 if pulse else age[line] + 1
            expected = [sign if since >= gap else NAN for sign, since in zip(held, age, strict=True)]
            assert agree([target], [expected])


@variants("context")
def test_context_asks_for_the_relevant_channel(task: Task) -> None:
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        relevant = inputs[0][2:].index(1)
        assert agree(targets, [[NAN]] * (task.steps - 4) + [[inputs[0][relevant]]] * 4)
        seen = task.steps - options(task).get("wait", 0)
        assert [step[:2] for step in inputs] == [inputs[0][:2]] * seen + [[0, 0]] * (task.steps - seen)


@variants("ring")
def test_ring(task: Task) -> None:
    """The heading that was shown, turned step by step; asked from the middle on."""
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        assert all(shown == [0, 0] for _, *shown in inputs[1:])
        assert inputs[0][0] == 0  # no turn yet
        cos, sin = inputs[0][1:]
        heading, expected = math.atan2(sin, cos), []
        for time, (turn, *_) in enumerate(inputs):
            heading += options(task)["speed"] * turn
            point = [math.sqrt(2) * math.cos(heading), math.sqrt(2) * math.sin(heading)]
            expected.append(point if time >= task.steps // 2 else [NAN, NAN])
        assert agree(targets, expected)


@variants("sine")
def test_sine(task: Task) -> None:
    """The level tells where between the slow and the fast frequency; the wave begins when it goes."""
    shown, (fast, slow) = options(task)["shown"], options(task)["periods"]
    for inputs, targets in columns(draw(task)):
        level = inputs[0][0]  # 0 for the slowest, 2 for the fastest
        assert 0 <= level <= 2
        assert inputs == [[level]] * shown + [[0]] * (task.steps - shown)
        turns = (1 - level / 2) / slow + level / 2 / fast  # a step
        wave = [[math.sqrt(2) * math.sin(2 * math.pi * turns * time)] for time in range(task.steps - shown)]
        after = max(shown + 1, options(task).get("after", 0))
        assert agree(targets, [[NAN]] * after + wave[after - shown :])


@variants("walk")
def test_walk(task: Task) -> None:
    """A walker on a board who stays where a wall stops him; places are those of a board of unit variance."""
    side, wait = options(task)["side"], options(task)["wait"]
    board = [(place - mean(range(side))) / pstdev(range(side)) for place in range(side)]
    for inputs, targets in columns(draw(task)):
        where = [min(range(side), key=lambda place, x=x: abs(board[place] - x)) for x in inputs[0][4:]]
        expected = []
        for step in inputs:
            if 1 in step[:4]:
                axis, way = divmod(step.index(1), 2)
                moved = where[1 - axis] + (1, -1)[way]
                where[1 - axis] = moved if 0 <= moved < side else where[1 - axis]
            expected.append([board[place] for place in where])
        unasked = task.steps - 1 if wait else task.steps // 2
        assert agree(targets, [[NAN, NAN]] * unasked + expected[unasked:])
        assert [any(step) for step in inputs[1:]] == [True] * (task.steps - wait - 1) + [False] * wait


@variants("rhythm")
def test_rhythm(task: Task) -> None:
    """The bar is read off the first beats, and goes on when they have stopped."""
    (shortest, longest), beats = options(task)["periods"], options(task)["beats"]
    periods = set()
    for inputs, targets in columns(draw(task, 256)):
        times = [time for time, (beat,) in enumerate(inputs) if beat]
        period = times[1] - times[0]
        assert times == [times[0] + k * period for k in range(beats)]
        turns = [2 * math.pi * (time - times[0]) / period for time in range(task.steps)]
        bar = [[math.sqrt(2) * math.cos(turn), math.sqrt(2) * math.sin(turn)] for turn in turns]
        asked = max(times[0] + beats * period, options(task)["after"])
        assert agree(targets, [[NAN, NAN]] * asked + bar[asked:])
        periods.add(period)
    assert periods == set(range(shortest, longest + 1))
