"""Blocks as steps of a chain: products with Jacobians against automatic differentiation of one row at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.utils.checkpoint import checkpoint

from lightning_lyapunov.engine.isolation import plain_attention
from lightning_lyapunov.engine.maps import blocks as blocks_module
from lightning_lyapunov.engine.maps.blocks import Block, BlockSteps, Function


class Cube(torch.autograd.Function):
    """x³, whose backward can be differentiated; no forward derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class DualCube(Cube):
    """The same the other way round: a forward derivative, and a backward that is differentiable no more."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class Neither(Cube):
    """Neither of them."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def in_place(x: Tensor) -> Tensor:
    x += torch.tanh(x)
    return nn.functional.relu_(x)


torch.manual_seed(0)
WEIGHT = torch.randn(6, 6, dtype=torch.float64)
ATTENTION = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True).double().eval()
CONVOLUTION = nn.Sequential(nn.Conv1d(4, 3, 3), nn.GELU(), nn.MaxPool1d(2)).double()
CASES: dict[str, tuple[Block, tuple[int, ...]]] = {
    "linear": (Function(lambda x: torch.tanh(x @ WEIGHT.T), "linear"), (6,)),
    "tuple": (Function(lambda x: (torch.sin(x), None), "tuple"), (6,)),
    "in place": (Function(in_place, "in place"), (6,)),
    "attention": (Function(ATTENTION, "attention"), (5, 6)),
    "narrower": (Function(CONVOLUTION, "narrower"), (4, 12)),
    "twice differentiable": (Function(Cube.apply, "cube"), (6,)),
    "dual numbers": (Function(DualCube.apply, "dual cube"), (6,)),
    "checkpoint": (Function(lambda x: checkpoint(torch.sin, x, use_reentrant=False), "checkpoint"), (6,)),
    "does not depend": (Function(lambda x: torch.ones_like(x), "constant"), (6,)),
}


def dense(block: Block, state: Tensor) -> Tensor:
    """``(B, D', D)``, by central differences where automatic differentiation is what is asked."""
    columns = []
    for d in range(state[0].numel()):
        step = torch.zeros_like(state).flatten(1)
        step[:, d] = 1e-6
        step = step.view_as(state)
        up, down = block((state + step).clone()), block((state - step).clone())
        columns.append((up - down).flatten(1) / 2e-6)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("copies", [1, 4])
def test_push_and_pull_are_products_with_the_jacobian(name: str, copies: int) -> None:
    block, shape = CASES[name]
    state = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    with plain_attention(), torch.no_grad():
        jacobian, steps = dense(block, state), BlockSteps([block], state, copies)
        before, after = jacobian.shape[2], jacobian.shape[1]
        tangents, cotangents = (torch.randn(3, n, 6, dtype=torch.float64) for n in (before, after))
        assert torch.allclose(steps.push(0, tangents), jacobian @ tangents, atol=1e-7)
        assert torch.allclose(steps.pull(0, cotangents), jacobian.mT @ cotangents, atol=1e-7)
        assert steps.dimensions == (before, after) and steps.passes == 12


def test_states_are_not_written_to_and_need_no_gradient() -> None:
    block, state = CASES["in place"][0], torch.rand(2, 6, dtype=torch.float64) - 0.5
    before = state.clone()
    steps = BlockSteps([block, block], state)
    steps.push(1, torch.randn(2, 6, 3, dtype=torch.float64))
    assert torch.equal(state, before) and torch.equal(steps.states[1], in_place(before.clone()))
    assert not any(at.requires_grad for at in steps.states)


def test_no_gradient_reaches_parameters() -> None:
    layer = nn.Linear(6, 6)
    steps = BlockSteps([Function(layer, "layer")], torch.randn(2, 6))
    steps.push(0, torch.randn(2, 6, 2)), steps.pull(0, torch.randn(2, 6, 2))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_a_block_made_for_so_many_rows_is_carried_one_vector_at_a_time() -> None:
    mask = torch.rand(3, 6, dtype=torch.float64)
    block, state = Function(lambda x: torch.sin(x) * mask, "masked"), torch.rand(3, 6, dtype=torch.float64)
    tangents = torch.randn(3, 6, 5, dtype=torch.float64)
    pushed = BlockSteps([block], state).push(0, tangents)
    assert torch.allclose(pushed, (state.cos() * mask).unsqueeze(-1) * tangents)


def test_large_states_are_linearised_one_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    block, state = CASES["linear"][0], torch.rand(3, 6, dtype=torch.float64)
    tangents = torch.randn(3, 6, 5, dtype=torch.float64)
    kept = BlockSteps([block] * 3, state)
    monkeypatch.setattr(blocks_module, "KEPT", 10)
    made = BlockSteps([block] * 3, state)
    assert len(kept._linear) == 3 and made._linear == []
    for t in range(3):
        assert torch.equal(kept.push(t, tangents), made.push(t, tangents))


def test_a_block_with_companions_is_called_with_copies_of_each_sample_side_by_side() -> None:
    class Gated:
        name = "gated"

        def __init__(self, gate: Tensor) -> None:
            self.gate = gate

        def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
            return state * self.gate.repeat_interleave(copies, 0)

    gate, state = torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64)
    steps = BlockSteps([Gated(gate)], state)
    assert torch.equal(steps.states[1], state * gate)
    tangents = torch.randn(3, 6, 4, dtype=torch.float64)
    assert torch.allclose(steps.push(0, tangents), gate.unsqueeze(-1) * tangents)


def test_dense_jacobians_of_one_row_agree_with_jacrev() -> None:
    block, state = CASES["linear"][0], torch.rand(3, 6, dtype=torch.float64)
    true = vmap(jacrev(lambda row: block(row.unsqueeze(0))[0]))(state)
    assert torch.allclose(dense(block, state), true, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.long(), "must return a dense floating tensor; it returned one of torch.int64"),
        (lambda x: x[:1], "of 12 rows it made|of 3 rows it made"),
        (lambda x: "no", "must return a tensor; it returned str"),
    ],
)
def test_what_a_block_may_not_return(function: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"here.*{message}|here must.*{message}"):
        BlockSteps([Function(function, "here")], torch.rand(3, 6))


def test_a_block_that_has_no_derivative_forward_is_refused_with_what_would_help() -> None:
    steps = BlockSteps([Function(Neither.apply, "here")], torch.rand(3, 6))
    assert steps.pull(0, torch.rand(3, 6, 2)).shape == (3, 6, 2)
    with pytest.raises(
        ValueError, match=r"here can neither be differentiated twice nor by dual numbers.*use_reentrant"
    ):
        steps.push(0, torch.rand(3, 6, 2))
    with pytest.raises(ValueError, match="blocks must be callables"):
        Function(3, "here")
