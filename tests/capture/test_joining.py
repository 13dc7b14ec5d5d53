"""Rows of calls joined to sequences, against loops whose rows are known."""

import itertools
from collections.abc import Callable

import pytest
import torch
from systems import noise
from torch import Tensor

from lightning_lyapunov.capture.joining import Kept, chosen, fingerprints, join, without_doubles

ROWS, WIDTH = 4, 3


def kept(x: Tensor, before: Tensor | None, after: Tensor, turn: int = 0) -> Kept:
    """A call that makes one step."""
    rows = len(x)
    ones = torch.ones(rows, dtype=torch.long)
    return Kept(x.unsqueeze(0), ones, None if before is None else (before,), (after,), [1] * rows, turn)


def step(x: Tensor, state: Tensor) -> Tensor:
    return torch.tanh(state * 1.5 + x)


def loop(x: Tensor, between: Callable[[int, Tensor, Tensor], Tensor], start: Tensor | None = None) -> list[Kept]:
    """Calls of a cell along ``x`` ``(T, B, F)``; ``between`` says what the next one is given of old and new state."""
    state, calls = start, []
    for t, now in enumerate(x):
        if state is not None:
            now = now[: len(state)]
        given = torch.zeros_like(now) if state is None else state
        after = step(now, given)
        calls.append(kept(now, state, after))
        state = between(t, given, after)
    return calls


def rows_of(calls: list[Kept], limit: int = 99) -> list[list[list[float]]]:
    return sorted(thread.inputs.tolist() for thread in join(calls, limit))


def expected(*rows: Tensor) -> list[list[list[float]]]:
    return sorted(row.tolist() for row in rows)


@pytest.fixture
def x() -> Tensor:
    return noise(9, ROWS, WIDTH)


def test_rows_that_go_on_are_one_sequence_each(x: Tensor) -> None:
    assert rows_of(loop(x, lambda t, old, new: new)) == expected(*x.unbind(1))


def test_a_row_that_is_reset_begins_anew_and_the_others_go_on(x: Tensor) -> None:
    def reset(t: int, old: Tensor, new: Tensor) -> Tensor:
        keeps = torch.ones(ROWS, 1).double()
        keeps[1] = t != 3
        return new * keeps  # which leaves zeros of either sign

    found = rows_of(loop(x, reset))
    assert found == expected(x[:, 0], x[:4, 1], x[4:, 1], x[:, 2], x[:, 3])


def test_rows_reset_one_after_the_other_do_not_take_each_others_place(x: Tensor) -> None:
    def reset(t: int, old: Tensor, new: Tensor) -> Tensor:
        keeps = torch.ones(ROWS, 1).double()
        keeps[t % ROWS] = 0
        return new * keeps

    pieces = []
    for row in range(ROWS):
        at = [0, *[t + 1 for t in range(9) if t % ROWS == row], 9]
        pieces += [x[a:b, row] for a, b in itertools.pairwise(at) if b > a]
    assert rows_of(loop(x, reset)) == expected(*pieces)


def test_rows_that_fall_off_end_by_themselves(x: Tensor) -> None:
    found = rows_of(loop(x, lambda t, old, new: new[: 2 if t >= 4 else ROWS]))
    assert found == expected(x[:, 0], x[:, 1], x[:5, 2], x[:5, 3])


def test_rows_that_change_places_are_followed() -> None:
    x, order = noise(6, ROWS, WIDTH), torch.tensor([2, 0, 3, 1])
    found = rows_of(loop(x, lambda t, old, new: new[order] if t == 2 else new))
    assert found == expected(*[torch.cat([x[:3, order[row]], x[3:, row]]) for row in range(ROWS)])


def test_rows_that_are_masked_end_where_they_are_held(x: Tensor) -> None:
    lengths = torch.tensor([9, 5, 7, 3])

    def masked(t: int, old: Tensor, new: Tensor) -> Tensor:
        return torch.where((t < lengths).unsqueeze(1), new, old)

    assert rows_of(loop(x, masked)) == expected(*[x[:n, row] for row, n in enumerate(lengths.tolist())])


def test_steps_that_are_passed_over_are_left_out(x: Tensor) -> None:
    """As where an observation is missing: the state is held for a while, and then goes on."""

    def held(t: int, old: Tensor, new: Tensor) -> Tensor:
        return torch.where(torch.tensor([t in (3, 4), False, False, False]).unsqueeze(1), old, new)

    assert rows_of(loop(x, held)) == expected(torch.cat([x[:3, 0], x[5:, 0]]), *x[:, 1:].unbind(1))


def test_two_sequences_of_explicit_zeros_are_two() -> None:
    x, y, zeros = noise(5, ROWS, WIDTH), noise(6, ROWS, WIDTH, seed=1), torch.zeros(ROWS, WIDTH).double()
    calls = [*loop(x, lambda t, old, new: new, zeros), *loop(y, lambda t, old, new: new, zeros)]
    assert rows_of(calls) == expected(*x.unbind(1), *y.unbind(1))


def test_state_that_is_always_changed_joins_nothing(x: Tensor) -> None:
    calls = loop(x, lambda t, old, new: 0.9 * new)
    assert [len(row) for row in rows_of(calls)] == [1] * (9 * ROWS)


def test_of_two_passes_the_later_counts() -> None:
    x, y = noise(5, ROWS, WIDTH), noise(5, ROWS, WIDTH, seed=1)  # the layers below have learnt in between
    loops = loop(x, lambda t, old, new: new), loop(y, lambda t, old, new: new)
    first, then = [
        [Kept(c.inputs, c.lengths, c.before, c.after, c.totals, turn, False, True) for c in calls]
        for turn, calls in enumerate(loops)
    ]
    assert rows_of([*first, *then]) == expected(*y.unbind(1))


@pytest.mark.parametrize(("noise_added", "rows"), [(0.1, ROWS), (2.0, 2 * ROWS)])
def test_where_it_is_not_certain_values_tell_whether_rows_come_again(noise_added: float, rows: int) -> None:
    """By hand an optimiser may pass over the same rows twice, or over one part of a batch after the other."""
    x = noise(20, ROWS, WIDTH)
    y = x + noise_added * noise(20, ROWS, WIDTH, seed=1)
    one, other = whole(x), whole(y)
    parts = [one, Kept(other.inputs, other.lengths, None, other.after, other.totals, 1)]
    assert len(join(parts, 99)) == rows


def test_a_chain_of_passes_is_one_sequence(x: Tensor) -> None:
    """Truncated backpropagation by hand: each chunk is a pass of its own, and goes on from the last."""
    calls = loop(x, lambda t, old, new: new)
    cut = [Kept(c.inputs, c.lengths, c.before, c.after, c.totals, turn) for turn, c in enumerate(calls)]
    assert rows_of(cut) == expected(*x.unbind(1))


def in_training(x: Tensor) -> Kept:
    steps, rows = x.shape[:2]
    return Kept(x, torch.full((rows,), steps), None, (x[-1],), [steps] * rows, is_training=True)


def test_dropped_out_twice_is_one_row() -> None:
    x = noise(20, ROWS, 8)
    one, other = ((noise(20, ROWS, 8, seed=seed) > -0.5) * x / 0.7 for seed in (1, 2))
    assert rows_of([in_training(one), in_training(other)]) == expected(*other.unbind(1))
    assert len(join([whole(one), whole(other)], 99)) == 2 * ROWS  # without dropout they are what they are
    y = noise(20, ROWS, 8, seed=3)
    assert rows_of([in_training(x), in_training(y)]) == expected(*x.unbind(1), *y.unbind(1))


@pytest.mark.parametrize("days", [0.02, 0.1, 0.3])
def test_series_with_a_calendar_in_common_are_different_series(days: float) -> None:
    """Intermittent demand: mostly zeros, beside covariates that all series share."""
    calendar, demand = noise(28, 1, 5).expand(-1, 16, -1), noise(28, 16, 1, seed=1)
    sold = torch.rand(28, 16, 1, generator=torch.Generator().manual_seed(2)) < days
    x = torch.cat([calendar, demand * sold], 2)
    different = len({tuple(row.flatten().tolist()) for row in x.unbind(1)})  # those that sold nothing are the same
    assert len(without_doubles(join([in_training(x)], 99))) == different > 8


def test_windows_that_are_padded_with_zeros_are_different_sequences() -> None:
    x = noise(40, 4, 3).repeat(1, 4, 1)
    for i, length in enumerate((15, 22, 30, 40)):
        x[: 40 - length, 4 * i : 4 * i + 4] = 0
    assert len(join([in_training(x)], 99)) == 16


def test_rows_that_are_held_at_first_do_not_begin_anew(x: Tensor) -> None:
    """Left padding: a mask holds the state at zero until a row begins."""
    starts = torch.tensor([0, 2, 4, 1])

    def masked(t: int, old: Tensor, new: Tensor) -> Tensor:
        return torch.where((t >= starts).unsqueeze(1), new, old)

    calls = loop(x, masked, torch.zeros(ROWS, WIDTH).double())
    assert rows_of(calls) == expected(*[x[n:, row] for row, n in enumerate(starts.tolist())])
    assert not any(thread.is_anew for thread in join(calls, 99))


def test_only_rows_that_begin_beside_others_that_go_on_begin_anew(x: Tensor) -> None:
    zeros = torch.zeros(ROWS, WIDTH).double()
    twice = [*loop(x, lambda t, old, new: new, zeros), *loop(0.5 * x, lambda t, old, new: new, zeros)]
    assert not any(thread.is_anew for thread in join(twice, 99))

    def reset(t: int, old: Tensor, new: Tensor) -> Tensor:
        return new * torch.tensor([t != 3, True, True, True]).unsqueeze(1)

    assert [thread.is_anew for thread in join(loop(x, reset), 99)] == [False] * ROWS + [True]


def test_two_levels_that_share_a_cell_and_begin_in_the_same_state_are_two(x: Tensor) -> None:
    h = g = torch.zeros(ROWS, WIDTH).double()
    calls = []
    for now in x:
        calls.append(kept(now, h, h := step(now, h)))
        calls.append(kept(h, g, g := step(h, g)))
    upper = torch.stack([call.inputs[0] for call in calls[1::2]])
    assert rows_of(calls) == expected(*x.unbind(1), *upper.unbind(1))


def test_rows_of_symbols_are_not_taken_for_each_other() -> None:
    one, other = (torch.nn.functional.one_hot(noise(20, ROWS, seed=s).gt(0).long(), 2).double() for s in (0, 1))
    assert len(join([whole(one), whole(other)], 99)) == 2 * ROWS


def whole(x: Tensor) -> Kept:
    """A call of a layer with whole sequences, without a state."""
    steps, rows = x.shape[:2]
    return Kept(x, torch.full((rows,), steps), None, (x[-1],), [steps] * rows)


def test_the_same_row_counts_once_across_batches() -> None:
    x = noise(7, ROWS, WIDTH)
    batches = [join([whole(x)], 99), join([whole(x[:, :2])], 99), join([whole(noise(7, 1, WIDTH, seed=1))], 99)]
    left = without_doubles([thread for batch in batches for thread in batch])
    assert len(left) == ROWS + 1
    assert left[2] is batches[1][0]  # the latest of its kind


def test_rows_that_begin_in_different_states_are_different() -> None:
    x = noise(1, 1, WIDTH).expand(7, 2, WIDTH)
    states = (noise(2, WIDTH),)
    call = Kept(x, torch.full((2,), 7), states, states, [7, 7])
    assert len(without_doubles(join([call], 99))) == 2


def test_a_sequence_is_as_long_as_all_its_calls() -> None:
    x = noise(9, ROWS, WIDTH)
    threads = join(loop(x, lambda t, old, new: new), 4)
    assert [len(thread.inputs) for thread in threads] == [4] * ROWS
    assert [thread.total for thread in threads] == [9] * ROWS


def test_nothing_follows_the_gap_in_a_call_that_was_cut() -> None:
    x = noise(5, 1, WIDTH)
    first = Kept(x, torch.tensor([5]), None, (x[-1],), [50])
    then = Kept(x, torch.tensor([5]), (x[-1],), (x[0],), [5])
    (thread,) = join([first, then], 99)
    assert (len(thread.inputs), thread.total) == (5, 55)


def test_short_pieces_give_way_to_longer_ones(x: Tensor) -> None:
    threads = join([whole(x[:2]), *loop(noise(9, ROWS, WIDTH, seed=1), lambda t, old, new: new)], 99)
    assert [len(t.inputs) for t in chosen(threads, ROWS + 1, short=8)] == [2, 9, 9, 9, 9]
    assert [len(t.inputs) for t in chosen(threads, 2 * ROWS, short=8)] == [2] * ROWS + [9] * ROWS


def test_fingerprints_tell_rows_apart() -> None:
    x = noise(2000, 5)
    near = x.clone()
    near[:, 3] = torch.nextafter(x[:, 3], torch.tensor(9.0).double())
    assert len(set(fingerprints(torch.cat([x, near, x.float()])).tolist())) == 6000
    zeros = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    assert len(set(fingerprints(zeros).tolist())) == 1
    assert torch.equal(fingerprints(x[:7]), fingerprints(x)[:7])
