"""What the last output feels of the first input, against dense Jacobians of torch's own forward pass."""

import math
from typing import Any

import pytest
import torch
from kinds import CELLS, LAYERS, noise, relu
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from lightning_lyapunov.conditioning import reach as module
from lightning_lyapunov.conditioning.reach import reach
from lightning_lyapunov.engine.maps.cell import as_parts
from lightning_lyapunov.engine.sequences import Sequences


def sequences(values: Tensor, lengths: list[int] | None = None) -> Sequences:
    return Sequences(values, lengths or [len(values)] * values.shape[1])


def state_of(layer: Any, state: Any, row: int) -> Any:
    """That of one sequence."""
    if state is None:
        return None
    parts = [part.narrow(1 if isinstance(layer, nn.RNNBase) else 0, row, 1) for part in as_parts(state)]
    return tuple(parts) if isinstance(state, tuple) else parts[0]


def last_output(layer: Any, values: Tensor, state: Any) -> Tensor:
    """Of one sequence ``(T, I)``, by torch."""
    if isinstance(layer, nn.RNNBase):
        inputs = values.unsqueeze(0 if layer.batch_first else 1)
        outputs = layer(inputs, state)[0]
        return outputs[0, -1] if layer.batch_first else outputs[-1, 0]
    for x in values:
        state = layer(x.unsqueeze(0), state)
    return as_parts(state)[0].flatten()


def by_hand(layer: Any, inputs: Sequences, state: Any = None, probes: int = 0) -> float:
    """The same by the whole Jacobian of each sequence: by its norm, or by what so many probes tell of its norm."""
    logs, drawn = [], []
    generator = torch.Generator().manual_seed(0)
    if probes:
        width = len(last_output(layer, inputs.values[:1, 0], state_of(layer, state, 0)))
        drawn = [torch.randn(len(inputs), width, generator=generator, device="cpu") for _ in range(probes)]
    for b, length in enumerate(inputs.lengths):
        own = state_of(layer, state, b)
        whole = jacobian(lambda x, own=own: last_output(layer, x, own), inputs.values[:length, b])  # (H, T, I)
        if probes:
            whole = torch.einsum("ph,hti->pti", torch.stack([probe[b] for probe in drawn]).to(whole), whole)
        logs.append(0.5 * (whole[:, 0].square().sum() / whole[:, -1].square().sum()).log())
    return float(torch.stack(logs).mean())


CASES: dict[str, Any] = {
    **{name: lambda make=make: make(3, 5) for name, make in (LAYERS | CELLS).items()},
    "two layers, batch first": lambda: nn.LSTM(3, 5, num_layers=2, batch_first=True),
    "both directions": lambda: nn.GRU(3, 5, num_layers=2, bidirectional=True),
    "projection": lambda: nn.LSTM(3, 5, proj_size=2),
}


@pytest.mark.parametrize("lengths", [None, [9, 6, 2]])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_ratio_of_jacobians(case: str, lengths: list[int] | None) -> None:
    """Oracle: torch.autograd.functional.jacobian, sequence by sequence, and the same probes.

    Of sequences of different lengths a direction that runs backwards begins at the end of each.
    """
    layer, inputs = CASES[case]().double().eval(), sequences(noise(9, 3).double(), lengths)
    if "relu" in case:  # all units are to be on
        inputs = sequences(inputs.values.abs(), inputs.lengths)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.abs_()
    assert reach(layer, inputs) == pytest.approx(by_hand(layer, inputs, probes=module.PROBES), abs=1e-6)


def test_probes_tell_the_norm_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the norms of the whole Jacobians; to what 600 probes leave, some 4 %."""
    monkeypatch.setattr(module, "PROBES", 600)
    layer, inputs = nn.RNN(3, 5).double(), sequences(noise(5, 3).double())
    assert reach(layer, inputs) == pytest.approx(by_hand(layer, inputs), abs=0.12)


@pytest.mark.parametrize("case", ["LSTM", "GRU cell"])
def test_it_begins_at_the_state(case: str) -> None:
    layer, inputs = CASES[case]().double(), sequences(noise(5, 3).double())
    part = 5 * torch.randn((1, 3, 5) if case == "LSTM" else (3, 5)).double()
    state = (part, part) if case == "LSTM" else part
    expected = by_hand(layer, inputs, state, module.PROBES)
    assert expected != pytest.approx(by_hand(layer, inputs, None, module.PROBES), abs=0.01)
    assert reach(layer, inputs, state) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_unit_that_is_on_fades_by_its_weight(steps: int) -> None:
    """Oracle: one unit of relu with recurrent weight w, all inputs positive: w to the power of the steps between."""
    layer = relu(1, 1, bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(0.7)
        layer.weight_ih_l0.fill_(3.0)
    inputs = sequences(noise(steps, 2, 1).abs())
    assert reach(layer, inputs) == pytest.approx((steps - 1) * math.log(0.7), abs=1e-5)


def test_what_outgrows_the_type_is_infinite() -> None:
    """A unit that grows tenfold a step: a float32 holds 38 of them."""
    layer = relu(1, 1, bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(10.0)
        layer.weight_ih_l0.fill_(1.0)
    inputs = noise(60, 2, 1).abs()
    assert reach(layer, sequences(inputs)) == math.inf
    assert reach(layer.double(), sequences(inputs.double())) == pytest.approx(59 * math.log(10.0), abs=1e-5)


def test_scale_of_the_inputs_is_not_in_it() -> None:
    """Oracle: a linear network, one of relu whose units are on."""
    layer = relu(3, 4)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.abs_()
    inputs = noise(8, 2).abs()
    assert reach(layer, sequences(100 * inputs)) == pytest.approx(reach(layer, sequences(inputs)), abs=1e-5)


def test_nothing_left_is_minus_infinity() -> None:
    """A unit that is off at the last step; a recurrent weight of 0; a cell that does not look at its inputs."""
    off = relu(1, 1, bias=False)
    with torch.no_grad():
        off.weight_ih_l0.fill_(-1.0)
    assert reach(off, sequences(noise(4, 2, 1).abs())) == -math.inf
    forgets = nn.RNN(3, 4)
    with torch.no_grad():
        forgets.weight_hh_l0.zero_()
    assert reach(forgets, sequences(noise(4, 2))) == -math.inf

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.linear(state).tanh()

    assert reach(Deaf(), sequences(torch.zeros(4, 2, 0)), torch.ones(2, 4)) == -math.inf


def test_it_leaves_no_gradient_and_draws_from_nobody() -> None:
    layer, found = nn.LSTM(3, 4), torch.get_rng_state()
    one, again, other = (reach(layer, sequences(noise()), seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert all(weight.grad is None for weight in layer.parameters())
    assert torch.equal(torch.get_rng_state(), found)
