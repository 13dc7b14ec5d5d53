"""Which sequences weights are set on and which are measured, each with its own state: told by numbers in them."""

from typing import Any

import pytest
import torch
from kinds import CELLS, LAYERS, noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_lyapunov.conditioning.rows import SEQUENCES, STEPS, Rows
from lightning_lyapunov.engine.maps.cell import as_parts


def numbered(rows: int, steps: int = 5) -> Tensor:
    """``(T, B, 3)``: of sequence b all values are b."""
    return torch.arange(float(rows)).expand(steps, rows).unsqueeze(-1).repeat(1, 1, 3)


def state_of(kind: str, rows: int) -> Any:
    """Zero but for the number of the sequence."""
    numbers = torch.arange(float(rows)).unsqueeze(-1).repeat(1, 4)
    part = numbers if "cell" in kind else numbers.expand(1, rows, 4)
    return (part, part.clone()) if "LSTM" in kind else part


def numbers_in(rows: Rows) -> list[float]:
    """Of the sequences in it; those of the states are the same."""
    numbers = rows.inputs.values[0, :, 0].tolist()
    for part in as_parts(rows.state) if rows.state is not None else ():
        assert part.movedim(rows.batch_axis, 0).flatten(1)[:, 0].tolist() == numbers
        assert part.dim() == rows.batch_axis + 2
    return numbers


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_every_other_sequence_is_set_on_and_the_rest_measured(kind: str) -> None:
    layer = (LAYERS | CELLS)[kind](3, 4)
    mine, others = Rows.of(layer, numbered(5), state_of(kind, 5)).halves()
    assert numbers_in(mine) == [0, 2, 4]
    assert numbers_in(others) == [1, 3]


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "LSTM cell"])
def test_packed_sequences_keep_their_states(kind: str) -> None:
    """They are sorted, the longest first, and their states with them."""
    lengths = [2, 7, 4, 6]
    packed = pack_sequence([torch.full((n, 3), float(b)) for b, n in enumerate(lengths)], enforce_sorted=False)
    mine, others = Rows.of((LAYERS | CELLS)[kind](3, 4), packed, state_of(kind, 4)).halves()
    assert numbers_in(mine) == [1, 2] and mine.inputs.lengths == [7, 4]
    assert numbers_in(others) == [3, 0] and others.inputs.lengths == [6, 2]
    assert len(others.inputs.values) == 6


def test_batch_first_is_read() -> None:
    mine, others = Rows.of(nn.GRU(3, 4, batch_first=True), numbered(4).movedim(1, 0), state_of("GRU", 4)).halves()
    assert numbers_in(mine) == [0, 2] and numbers_in(others) == [1, 3]
    assert mine.inputs.values.shape == (5, 2, 3)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_sequence_that_is_alone_is_both(kind: str) -> None:
    """Also where neither it nor its state has a batch axis; the state has one then, as it is passed on with one."""
    state = tuple(part.select(0 if "cell" in kind else 1, 3) for part in as_parts(state_of(kind, 5)))
    alone = Rows.of((LAYERS | CELLS)[kind](3, 4), numbered(5)[:, 3], state if "LSTM" in kind else state[0])
    for half in alone.halves():
        assert numbers_in(half) == [3]


def test_no_more_is_looked_at_than_is_needed() -> None:
    many = Rows.of(nn.RNN(3, 4), numbered(2 * SEQUENCES + 3, STEPS + 9), None)
    for half in many.halves():
        assert half.inputs.values.shape == (STEPS, SEQUENCES, 3)
        assert half.inputs.lengths == [STEPS] * SEQUENCES


def test_window_is_a_piece_of_one_sequence() -> None:
    """With its state where it is the beginning, and from rest elsewhere; all places occur, the same ones again."""
    counted = (10 * torch.arange(3.0) + torch.arange(8.0).unsqueeze(-1)).unsqueeze(-1).repeat(1, 1, 3)
    layer, state = nn.RNN(3, 4), (10 * torch.arange(3.0)).reshape(1, 3, 1).repeat(1, 1, 4)
    rows = Rows.of(layer, counted, state)

    def drawn(seed: int) -> list[int]:
        generator, places = torch.Generator().manual_seed(seed), []
        for _ in range(60):
            window = rows.window(6, generator)
            values = window.inputs.values[:, 0, 0].int().tolist()
            row, first = divmod(values[0], 10)
            assert values == list(range(values[0], values[0] + 6)) and window.inputs.lengths == [6]
            assert (window.state is None) == (first > 0)
            assert window.state is None or float(window.state[0, 0, 0]) == 10 * row
            places.append(values[0])
        return places

    assert set(drawn(0)) == {10 * row + first for row in range(3) for first in range(3)}
    assert drawn(0) == drawn(0) != drawn(1)


def test_window_of_a_short_sequence_is_all_of_it() -> None:
    window = Rows.of(nn.RNN(3, 4), noise(4, 1), None).window(55, torch.Generator().manual_seed(0))
    assert window.inputs.values.shape == (4, 1, 3)


def test_random_state_is_nobodys() -> None:
    rows, found = Rows.of(nn.RNN(3, 4), noise(), None), torch.get_rng_state()
    rows.window(5, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), found)


@pytest.mark.parametrize(
    ("inputs", "state", "sentence"),
    [
        (None, None, "inputs must be given"),
        ([noise()], None, "inputs must be a tensor"),
        (noise(width=2), None, "inputs must be 3 wide"),
        (noise().long(), None, "inputs must be of a floating type"),
        (noise() / 0, None, "inputs hold NaN or infinite"),
        (noise()[:0], None, "at least one step and one sequence"),
        (noise(), torch.zeros(1, 5, 4), r"state must have shape \(1, 6, 4\)"),
        (noise(), torch.full((1, 6, 4), torch.nan), "state holds NaN"),
        (noise(), (torch.zeros(1, 6, 4),) * 2, "state must be a floating tensor"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: Any, state: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Rows.of(nn.RNN(3, 4), inputs, state)
