"""The plain twin: the engine at an interval of 1 against it, and its gradient against finite differences."""

import copy
from typing import Any

import pytest
import torch
from systems import network, noise, tally_of
from torch import Tensor, nn

from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.gradient import plain_growth, plain_product
from lightning_lyapunov.engine.maps.base import Recurrence
from lightning_lyapunov.engine.maps.cell import CellMap
from lightning_lyapunov.engine.maps.families import module_map
from lightning_lyapunov.engine.measure import spare

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward mode
INPUT, HIDDEN, STEPS, BATCH, K = 3, 5, 9, 2, 3


class Own(nn.Module):
    """A cell of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUT + HIDDEN, HIDDEN).double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.3 * h + torch.sin(2 * self.inner(torch.cat([x, h], -1)))


def system(kind: str) -> Any:
    if kind == "own":
        return Own()
    return network(kind.split()[0], INPUT, HIDDEN, gain=1.3, **({"proj_size": 3} if "projected" in kind else {}))


def map_of(module: nn.Module) -> Recurrence:
    """With a gradient to the module's parameters."""
    if isinstance(module, Own):
        state = torch.zeros(BATCH, HIDDEN).double()
        return CellMap(module, state, driven=True, dtype=torch.float64, detach=False)
    return module_map(module, torch.float64, "_l0", detach=False)


KINDS = ["tanh", "relu", "gru", "lstm", "lstm projected", "own"]
of_every_kind = pytest.mark.parametrize("kind", KINDS)


@of_every_kind
def test_the_engine_at_an_interval_of_one_is_its_plain_twin(kind: str) -> None:
    """Column by column of the same frames, before they are sorted."""
    module, inputs = system(kind), noise(STEPS, BATCH, INPUT)
    recurrence = map_of(module)
    state = torch.zeros(BATCH, recurrence.state_size).double()
    options: dict[str, Any] = {"interval": 1, "transient": 0, "growth": 0, "k": K, "dtype": torch.float64}
    given = state if kind == "own" else None
    (tally,) = tally_of(module, inputs, state=given, **options).parts.values()
    pushed = tally.log.shape[-1]
    frame = random_frames(range(BATCH), recurrence.state_size, pushed, torch.device("cpu"))
    logs, after = plain_growth(recurrence, inputs, state, frame)
    assert logs.shape == (STEPS, BATCH, pushed) and pushed == min(K + spare(STEPS), recurrence.state_size)
    known = ~tally.log.sum(0).isneginf().cummax(-1).values  # behind a dead direction nothing is unique
    assert known.any() and (kind == "relu" or known.all())
    torch.testing.assert_close(tally.log.sum(0)[known], logs.sum(0).detach()[known], rtol=0.0, atol=1e-10)
    eye = torch.eye(pushed).double().expand(BATCH, -1, -1)
    torch.testing.assert_close((after.mT @ after).detach(), eye, rtol=0.0, atol=1e-12)


@of_every_kind
def test_the_dense_product_multiplies_to_the_growth_of_its_frame(kind: str) -> None:
    """|det| of what the product makes of the frame, against the sum of its growth."""
    module, inputs = system(kind), noise(STEPS, BATCH, INPUT)
    recurrence = map_of(module)
    state = torch.zeros(BATCH, recurrence.state_size).double()
    frame = random_frames(range(BATCH), recurrence.state_size, 2, torch.device("cpu"))
    image = plain_product(recurrence, inputs, state) @ frame
    logs, _ = plain_growth(recurrence, inputs, state, frame)
    torch.testing.assert_close((image.mT @ image).logdet() / 2, logs.sum((0, 2)), rtol=0.0, atol=1e-9)


def objective(module: nn.Module, inputs: Tensor) -> Tensor:
    """The leading exponents, weighed differently, and the singular values of the product."""
    recurrence = map_of(module)
    state = torch.zeros(BATCH, recurrence.state_size).double()
    frame = random_frames(range(BATCH), recurrence.state_size, K, torch.device("cpu"))
    logs, _ = plain_growth(recurrence, inputs, state, frame)
    product = plain_product(recurrence, inputs, state)
    return logs.sum((0, 1)) @ torch.tensor([1.0, 0.5, -0.3]).double() + product.square().sum((1, 2)).log().sum()


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "lstm projected", "own"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    """To every parameter, in a random direction."""
    module, inputs = system(kind), noise(STEPS, BATCH, INPUT)
    objective(module, inputs).backward()
    step = 1e-5
    for i, (name, weight) in enumerate(module.named_parameters()):
        assert weight.grad is not None, name
        direction = noise(*weight.shape, seed=i)
        moved = []
        for sign in (1, -1):
            other = copy.deepcopy(module)
            with torch.no_grad():
                dict(other.named_parameters())[name].add_(sign * step * direction)
            moved.append(float(objective(other, inputs).detach()))
        expected = (moved[0] - moved[1]) / (2 * step)
        assert float((weight.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6), name
