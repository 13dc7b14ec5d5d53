"""Mean and spread of the states that a measurement came through: those of the outputs that torch's own layers give."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.diagonal import DiagonalSystem
from lightning_lyapunov.engine.measure import measure, union_of_layers
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.visited import Visited

STEPS, ROWS, HIDDEN = 40, 6, 5


def layer(kind: Any, *, width: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(width, HIDDEN, **options).double()


def inputs(steps: int = STEPS, rows: int = ROWS) -> Tensor:
    return torch.randn(steps, rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def said(outputs: Tensor) -> tuple[Any, Any]:
    outputs = outputs.detach()
    return pytest.approx(float(outputs.abs().mean()), rel=1e-9), pytest.approx(float(outputs.std()), rel=1e-9)


def heard(spectrum: Any) -> tuple[float, float]:
    return spectrum.state_mean, spectrum.state_spread


@pytest.mark.parametrize("growth", [None, 0])
@pytest.mark.parametrize("k", [None, 1])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.GRU, {}),
        (nn.LSTM, {}),
        (nn.LSTM, {"proj_size": 2}),
        (nn.GRU, {"bidirectional": True}),
    ],
)
def test_they_are_those_of_the_outputs(kind: Any, options: dict[str, Any], k: int | None, growth: int | None) -> None:
    """Of h alone, each step once, whatever passes growth takes; the first state is not among them."""
    module, x = layer(kind, **options), inputs()
    assert heard(lyapunov_spectrum(module, x, k=k, growth=growth)) == said(module(x)[0])


def test_sequences_count_as_far_as_they_go() -> None:
    module, lengths = layer(nn.LSTM), [40, 7, 23]
    packed = pack_sequence([inputs(n, 1)[:, 0] for n in lengths], enforce_sorted=False)
    outputs, _ = pad_packed_sequence(module(packed)[0])
    kept = torch.cat([outputs[:n, row] for row, n in enumerate(lengths)])
    assert heard(lyapunov_spectrum(module, packed)) == said(kept)


def test_layers_count_together_by_their_units() -> None:
    """Of a stack: the outputs of the lower layer, which the upper one is driven by, and its own."""
    stack, x = layer(nn.GRU, num_layers=2), inputs()
    lower, upper = layer(nn.GRU), layer(nn.GRU, width=HIDDEN)
    for single, of in ((lower, "_l0"), (upper, "_l1")):
        single.load_state_dict({n.replace(of, "_l0"): w for n, w in stack.state_dict().items() if n.endswith(of)})
    below = lower(x)[0]
    both = torch.cat([below, upper(below)[0]], -1)
    spectrum = lyapunov_spectrum(stack, x)
    assert heard(spectrum) == said(both)
    assert heard(spectrum.layers["l0"]) == said(below)


def test_of_a_cell_it_is_the_first_part_of_its_state() -> None:
    cell, x = layer(nn.LSTMCell), inputs()

    def by_hand(seen: Any, state: Any) -> Any:
        return cell(seen, state)

    h = (torch.zeros(ROWS, HIDDEN, dtype=torch.float64),) * 2
    states = []
    for now in x:
        h = cell(now, h)
        states.append(h[0])
    zeros = (torch.zeros(ROWS, HIDDEN, dtype=torch.float64),) * 2
    assert heard(lyapunov_spectrum(by_hand, x, state=zeros)) == said(torch.stack(states).detach())


def test_a_second_start_is_not_among_them() -> None:
    module, x = layer(nn.GRU), inputs()
    tally = measure(module, x, Settings(second_start=True))
    assert heard(union_of_layers({"": tally}, None)) == said(module(x)[0])


def test_time_cut_into_pieces_is_seen_but_for_its_end() -> None:
    """Of one long sequence all states are visited up to where the last piece settles."""
    module, x = layer(nn.RNN), inputs(3 * 2048 + 200, 1)
    outputs = module(x)[0].detach()
    mean, spread = heard(lyapunov_spectrum(module, x, k=1, growth=0))
    assert mean == pytest.approx(float(outputs.abs().mean()), rel=0.02)
    assert spread == pytest.approx(float(outputs.std()), rel=0.02)


def test_of_shares_it_is_that_of_all() -> None:
    """As ranks hand them on."""
    module, x = layer(nn.GRU), inputs()
    shares = [measure(module, x[:, :2], Settings()).parts["l0"], measure(module, x[:, 2:], Settings()).parts["l0"]]
    merged = type(shares[0]).merge([share.to("cpu") for share in shares]).spectrum(HIDDEN)
    assert heard(merged) == said(module(x)[0])
    unknown = replace(shares[1], visited=None)
    assert math.isnan(type(unknown).merge([shares[0], unknown]).spectrum(HIDDEN).state_mean)


def test_what_is_not_followed_or_overflows_is_not_known() -> None:
    leak = DiagonalSystem(lambda x: torch.tensor([0.9, 0.5]).log())
    assert all(map(math.isnan, heard(lyapunov_spectrum(leak, torch.zeros(100, 4, 1)))))
    wild = Visited.of(torch.tensor([[[math.inf, 1.0]]]), [1])
    assert math.isnan(wild.spread) and wild.mean_size == math.inf
    one = Visited.of(torch.ones(1, 1, 1), [1])
    assert one.mean_size == 1 and math.isnan(one.spread)
    assert Visited.merge([]) is None and math.isnan(Visited(0, torch.zeros(3)).mean_size)


def test_states_of_ended_rows_are_nothing_whatever_they_hold() -> None:
    states = torch.tensor([[[1.0], [-3.0]], [[2.0], [math.nan]]])
    visited = Visited.of(states, [2, 1])
    assert visited.count == 3 and visited.mean_size == 2.0
    assert visited.spread == pytest.approx(float(torch.tensor([1.0, -3.0, 2.0]).std()))
