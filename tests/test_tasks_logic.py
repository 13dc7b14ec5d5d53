"""Tasks of logic against their rules, followed step by step in plain Python."""

import math
from itertools import permutations

from batches import agree, columns, draw, options, variants

from lightning_lyapunov.bank.tasks import Task

NAN = math.nan


@variants("xor")
def test_xor(task: Task) -> None:
    lags = options(task)["lags"]
    for inputs, targets in columns(draw(task, 8)):
        expected = [[float(inputs[t] != inputs[t - d]) if t >= d else NAN for d in lags] for t in range(task.steps)]
        assert agree(targets, expected)


@variants("parity")
def test_parity(task: Task) -> None:
    widths = options(task)["widths"]
    for inputs, targets in columns(draw(task, 8)):
        ones = [step[0] > 0 for step in inputs]
        expected = [
            [sum(ones[t + 1 - w : t + 1]) % 2 if t + 1 >= w else NAN for w in widths] for t in range(task.steps)
        ]
        assert agree(targets, expected)


@variants("dyck")
def test_dyck_against_a_stack(task: Task) -> None:
    """After a closing bracket the top of the stack is asked, if it has lain there long enough."""
    types, gap = task.output_size, options(task).get("gap", 0)
    depths, ages = set(), set()
    for inputs, targets in columns(draw(task)):
        stack: list[tuple[int, int]] = []  # kind, and when it was opened
        for time, (step, (target,)) in enumerate(zip(inputs, targets, strict=True)):
            symbol = step.index(1)
            if symbol < types:
                stack.append((symbol, time))
                assert target == -1
            else:
                assert stack.pop()[0] == symbol - types
                kind, opened = stack[-1] if stack else (-1, time)
                assert target == (kind if time - opened >= gap else -1)
                if target >= 0:
                    ages.add(time - opened)
            depths.add(len(stack))
    assert depths == set(range(options(task)["depth"] + 1))
    assert min(ages) == max(gap, 2)  # one opened, another opened and closed: no sooner, whatever the gap


@variants("modular")
def test_modular(task: Task) -> None:
    """Ones are counted on the fingers, and over again after the last one."""
    modulus, after = options(task)["modulus"], options(task)["after"]
    for inputs, targets in columns(draw(task)):
        count = 0
        for time, (step, target) in enumerate(zip(inputs, targets, strict=True)):
            count += step == [0, 1]
            count = 0 if count == modulus else count
            assert step in ([1, 0], [0, 1])
            assert target == [count if time >= after else -1]


@variants("group")
def test_group(task: Task) -> None:
    """Three cards are moved by hand; their order is looked up among all orders, which are sorted."""
    orders, after = sorted(permutations("abc")), options(task)["after"]
    for inputs, targets in columns(draw(task)):
        cards = list("abc")
        for time, (step, target) in enumerate(zip(inputs, targets, strict=True)):
            move = step.index(1)
            if move == 1:
                cards[:2] = cards[1::-1]
            if move == 2:
                cards.append(cards.pop(0))
            assert target == [orders.index(tuple(cards)) if time >= after else -1]
