"""Tasks of looking up against books, lists and counts kept in plain Python."""

import math

from batches import agree, columns, draw, options, variants

from lightning_lyapunov.bank.tasks import Task

NAN = math.nan


@variants("associate")
def test_associate(task: Task) -> None:
    """Each key that comes without a value is looked up among those that came with one."""
    pairs, keys, delay = (options(task)[name] for name in ("pairs", "keys", "delay"))
    orders = set()
    for inputs, targets in columns(draw(task, 256)):
        book: dict[int, float] = {}
        looked_up = []
        for step, target in zip(inputs, targets, strict=True):
            key, value = step[:keys], step[keys:]
            if 1 in value:
                book[key.index(1)] = value.index(1)
                assert target == [-1]
            elif 1 in key:
                looked_up.append(key.index(1))
                assert target == [book[key.index(1)]]
            else:
                assert target == [-1]
        assert [any(step) for step in inputs] == [True] * pairs + [False] * delay + [True] * pairs
        assert len(book) == pairs
        assert sorted(looked_up) == sorted(book)
        orders.add(tuple(list(book).index(key) for key in looked_up))
    assert len(orders) == math.factorial(pairs)  # any, not just that of showing


@variants("position")
def test_position(task: Task) -> None:
    """Each place that is named is looked up in the list of what was shown, no place twice."""
    length, named = options(task)["length"], set()
    for inputs, targets in columns(draw(task)):
        shown = [step[:4].index(1) for step in inputs[:length]]
        places = [step[4:].index(1) if 1 in step[4:] else None for step in inputs]
        assert not any(any(step[:4]) for step in inputs[length:])
        assert targets == [[-1] if place is None else [shown[place]] for place in places]
        asked = [place for place in places if place is not None]
        assert len(asked) == len(set(asked)) == length // 2
        assert places[-len(asked) :] == asked
        named |= set(asked)
    assert named == set(range(length))


@variants("registers")
def test_registers(task: Task) -> None:
    """A book of what was written last, and when, is read where a slot comes without a value."""
    slots, gap, ages = options(task)["slots"], options(task)["gap"], set()
    for inputs, targets in columns(draw(task, 256)):
        book: dict[int, tuple[int, int]] = {}
        for time, (step, target) in enumerate(zip(inputs, targets, strict=True)):
            slot, value, reads = step[:slots], step[slots:-1], step[-1]
            assert (sum(slot), sum(value), reads) in ((0, 0, 0), (1, 1, 0), (1, 0, 1))
            if reads and slot.index(1) in book:
                held, since = book[slot.index(1)]
                assert target == [held if time - since >= gap else -1]
                ages |= {time - since} if target != [-1] else set()
            else:
                assert target == [-1]
            if 1 in value:
                book[slot.index(1)] = (value.index(1), time)
    assert min(ages) == max(gap, 1)
    assert max(ages) > min(ages) + 10


@variants("tally")
def test_tally(task: Task) -> None:
    """Pulses of the line that is named at the end, less what is likely, in units of their spread."""
    steps, lines, rate = (options(task)[name] for name in ("steps", "lines", "rate"))
    for inputs, targets in columns(draw(task)):
        named = inputs[-1][lines:].index(1)
        assert not any(any(step[lines:]) for step in inputs[:-1])
        assert not any(any(step[:lines]) for step in inputs[steps:])
        count = sum(step[named] for step in inputs)
        expected = (count - rate * steps) / math.sqrt(steps * rate * (1 - rate))
        assert agree(targets, [[NAN]] * (task.steps - 1) + [[expected]])
