"""Any cell as a map: its Jacobians, formed at once where that is safe, against one forward-mode derivative per step."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems import OpaqueTanh, Wrapped, flat, jacobian_by_autograd, linear, logistic, lorenz, noise
from torch import Tensor, nn
from torch.func import jvp, vmap

from lightning_lyapunov.engine.maps import forms
from lightning_lyapunov.engine.maps.base import LinearStretch
from lightning_lyapunov.engine.maps.cell import CellMap
from lightning_lyapunov.engine.maps.forms import DenseSteps, FactoredSteps

INPUT, HIDDEN, STEPS, BATCH, K = 3, 5, 6, 3, 4
EXACT = {"rtol": 0.0, "atol": 1e-12}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_graph() -> Any:
    """As a measurement runs; gradients are asked for where they are wanted."""
    with torch.no_grad():
        yield


class NormalisedLSTM(nn.Module):
    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUT, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.gates, self.memory = nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.gates(self.x(x) + self.h(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.memory(c)), c


class TwoParts(nn.Module):
    """State parts of two shapes, one with two trailing axes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(3, 3, seed=3))
        self.register_buffer("shift", noise(2, 3, seed=4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return torch.tanh(a @ self.weight + x), b * torch.sigmoid(a[:, :1, None]) + self.shift


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(10, INPUT), nn.GRUCell(INPUT, HIDDEN)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.cell(self.embedding(x), state)


class Opaque(nn.Module):
    """Only reverse mode, one row at a time, can differentiate it."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.x = nn.Linear(HIDDEN, HIDDEN), nn.Linear(INPUT, HIDDEN)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return OpaqueTanh.apply(self.h(state) + self.x(x))


class Counting(nn.Module):
    """Counts its steps in a buffer, which has no other effect."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.weight = nn.Parameter(noise(HIDDEN, HIDDEN))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return torch.tanh(state @ self.weight)


def branching(x: Any, state: Tensor) -> Tensor:
    return -torch.tanh(2 * state) if state[0, 0] > 0 else -1.5 * torch.sin(state)


def masked(rows: int) -> Callable[[Any, Tensor], Tensor]:
    """A mask with a row per sequence, which the cell holds by itself."""
    mask, weight = noise(rows, HIDDEN, seed=8), noise(HIDDEN, HIDDEN, seed=9)
    return lambda x, state: torch.tanh(state @ weight) * mask


def detached(x: Any, state: Tensor) -> Tensor:
    return torch.tanh(state.detach())


def overwriting(x: Any, state: Tensor) -> Tensor:
    return state.copy_(torch.tanh(2 * state.flip(-1)))


H = (noise(BATCH, HIDDEN),)
PAIR = (noise(BATCH, HIDDEN), noise(BATCH, HIDDEN, seed=1))
CELLS: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
    "lorenz": (lambda: lorenz(0.01), (noise(BATCH, 3),)),
    "normalised lstm": (NormalisedLSTM, PAIR),
    "torch's rnn cell": (lambda: Wrapped(nn.RNNCell(INPUT, HIDDEN)), H),
    "torch's gru cell": (lambda: Wrapped(nn.GRUCell(INPUT, HIDDEN)), H),
    "torch's lstm cell": (lambda: Wrapped(nn.LSTMCell(INPUT, HIDDEN)), PAIR),
    "axes": (TwoParts, (noise(BATCH, 3), noise(BATCH, 2, 3))),
    "no axis": (lambda: logistic, (noise(BATCH).sigmoid(),)),
    "indices": (Embedded, H),
    "a row for each sequence": (lambda: masked(BATCH), H),
    "overwriting": (lambda: overwriting, H),
    "detached": (lambda: detached, H),
    "the same everywhere": (lambda: linear(noise(HIDDEN, HIDDEN)), H),
}
FALLING_BACK: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
    "branching": (lambda: branching, H),
    "opaque": (Opaque, H),
    "counting": (Counting, H),
}
every_cell = pytest.mark.parametrize("name", CELLS | FALLING_BACK)


class Followed:
    """A cell's map along some inputs, and its Jacobians there, each step by itself."""

    def __init__(self, cell: Any, state: tuple[Tensor, ...], steps: int = STEPS, **options: Any) -> None:
        self.cell = cell.double().eval() if isinstance(cell, nn.Module) else cell
        template = state[0] if len(state) == 1 else state
        indices = isinstance(cell, Embedded)
        batch = len(state[0])
        inputs = torch.arange(steps * batch).view(steps, batch) % 10 if indices else noise(steps, batch, INPUT)
        self.map = CellMap(self.cell, template, driven=True, dtype=torch.float64, **options)
        self.states, self.factors = self.map.follow(inputs, self.map.flatten(template))
        self.stretch = LinearStretch(self.map, self.factors)

    @classmethod
    def of(cls, name: str) -> "Followed":
        torch.manual_seed(0)
        make, state = (CELLS | FALLING_BACK)[name]
        return cls(make(), state)

    def step(self, t: int) -> Callable[[Tensor], Tensor]:
        """The cell itself, as a map of flat states."""
        return lambda s: self.map.flatten(self.cell(self.factors[1][t], self.map.unflatten(s.clone())))

    def jacobian(self, t: int) -> Tensor:
        """By forward mode, or by one backward pass for each entry where the cell has none."""
        state = self.factors[0][t]
        with torch.enable_grad():
            if isinstance(self.cell, Opaque | Counting) or self.cell is detached:
                return jacobian_by_autograd(self.step(t), state)
            columns = torch.eye(state.shape[1]).double()
            return vmap(lambda v: jvp(self.step(t), (state,), (v.expand_as(state),))[1], out_dims=-1)(columns)


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("dense", [True, False])
@every_cell
def test_push_and_pull_equal_one_derivative_per_step(name: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed.of(name)
    size = followed.map.state_size
    if not dense:
        monkeypatch.setattr(followed.map, "prefers_dense", lambda factors, k: False)
    steps = followed.stretch.steps(size, torch.float64)
    assert isinstance(steps, DenseSteps if dense else FactoredSteps)
    vectors = noise(BATCH, size, K, seed=3)
    for rows in (BATCH, 1) if dense or name != "a row for each sequence" else (BATCH,):
        for t in [*range(STEPS), *reversed(range(STEPS))]:
            if name == "branching" and rows < BATCH and not dense:
                continue  # its first row decides for all
            expected = followed.jacobian(t)[:rows]
            torch.testing.assert_close(steps.push(t, vectors[:rows]), expected @ vectors[:rows], **EXACT)
            torch.testing.assert_close(steps.pull(t, vectors[:rows]), expected.mT @ vectors[:rows], **EXACT)


@every_cell
def test_jacobians_are_formed_at_once_where_that_is_safe(name: str) -> None:
    followed = Followed.of(name)
    followed.stretch.steps(1, torch.float64)
    assert followed.map.over_time is None or followed.map.over_time == (name in CELLS)
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time == (name in CELLS)


@every_cell
def test_volume_equals_the_log_determinant(name: str) -> None:
    followed = Followed.of(name)
    size = followed.map.state_size
    expected = torch.stack([torch.linalg.slogdet(followed.jacobian(t)).logabsdet for t in range(STEPS)])
    near = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(followed.stretch.log_volume(size), expected, **near)
    for last in (1, STEPS):
        torch.testing.assert_close(followed.stretch.log_volume_of_last(last), expected[-last:, 0].sum(), **near)


def test_states_are_those_of_the_cell() -> None:
    for name in CELLS:
        followed = Followed.of(name)
        for t in range(STEPS):
            torch.testing.assert_close(followed.states[t + 1], followed.step(t)(followed.states[t]), **EXACT)


@pytest.mark.parametrize("make", [NormalisedLSTM, lambda: lorenz(0.01)])
def test_jacobians_are_cast_to_a_narrow_type(make: Callable[[], Any]) -> None:
    """Those of a callable too, which itself runs in one type alone."""
    cell = make()
    followed = Followed(cell, PAIR if isinstance(cell, nn.Module) else (noise(BATCH, 3),))
    vectors = noise(BATCH, followed.map.state_size, K, seed=3)
    for k in (1, followed.map.state_size):
        for apply in ("push", "pull"):
            narrow = getattr(followed.stretch.steps(k, torch.float32), apply)(1, vectors.float())
            assert narrow.dtype == torch.float32
            expected = getattr(followed.stretch.steps(k, torch.float64), apply)(1, vectors)
            torch.testing.assert_close(narrow.double(), expected, rtol=0.0, atol=1e-4)


def test_a_callable_differentiated_step_by_step_takes_narrow_vectors() -> None:
    followed = Followed(branching, H)
    followed.map.dense_limit, followed.map.state_size = 0, HIDDEN
    steps = followed.map.steps(followed.factors, 1, torch.float32)
    assert isinstance(steps, FactoredSteps)
    assert steps.push(0, noise(BATCH, HIDDEN, K, dtype=torch.float32)).dtype == torch.float32
    assert steps.pull(0, noise(BATCH, HIDDEN, K, dtype=torch.float32)).dtype == torch.float32


# ------------------------------------------------------------------ what is not safe


def test_a_branch_on_the_state_is_taken_at_each_time() -> None:
    """States of both branches in one stretch: Jacobians of one branch for all would be wrong, and silently so."""
    followed = Followed(branching, H)
    taken = {bool(state[0, 0] > 0) for state in followed.states[:-1]}
    assert taken == {True, False}
    ours = followed.map.jacobians(followed.factors)
    torch.testing.assert_close(ours, torch.stack([followed.jacobian(t) for t in range(STEPS)]), **EXACT)


def test_a_branch_that_the_first_steps_do_not_reach() -> None:
    """What the first steps allowed is taken back once a later one refuses."""
    clock = {"late": False}

    def late(x: Any, state: Tensor) -> Tensor:
        return branching(x, state) if clock["late"] else torch.tanh(state)

    followed = Followed(late, H)
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time is True
    clock["late"] = True
    ours = followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False
    torch.testing.assert_close(ours, torch.stack([followed.jacobian(t) for t in range(STEPS)]), **EXACT)


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda h: h[0, 0].item() > 0,
    "list": lambda h: h[0].tolist()[0] > 0,
    "array": lambda h: h.detach().numpy()[0, 0] > 0,
    "any": lambda h: (h > 0.5).any(),
    "index": lambda h: int(h.argmax()) % 2,
    "nonzero": lambda h: len((h > 0).nonzero()) > 7,
    "equal": lambda h: torch.equal(h, h.abs()),
    "detached": lambda h: float(h.detach().sum()) > 0,
}


@pytest.mark.parametrize("look", LOOKS)
def test_no_look_at_the_state_is_made_for_many_times_at_once(look: str) -> None:
    decide = LOOKS[look]
    followed = Followed(lambda x, state: -torch.tanh(2 * state) if decide(state) else state + 0.1, H)
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False


def test_a_cell_in_training_mode_is_differentiated_step_by_step() -> None:
    cell = NormalisedLSTM().double()
    followed = Followed(cell, PAIR)
    cell.memory.train()
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False


def test_a_cell_that_writes_to_its_buffers_leaves_those_of_the_user_alone() -> None:
    followed = Followed.of("counting")
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False
    assert int(followed.cell.steps) == 0
    assert int(followed.map._tensors["cell.steps"]) == STEPS  # those of the trajectory, and none for its derivative


@pytest.mark.parametrize("draw", [lambda: torch.randn(()).double(), random.random], ids=["torch", "python"])
def test_a_noisy_cell_is_differentiated_step_by_step(draw: Callable[[], Any]) -> None:
    """Each step scales the state by a number of its own, the same for every direction."""
    followed = Followed(lambda x, state: draw() * state, H)
    ours = followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False
    scales = ours[:, :1, :1, :1]
    torch.testing.assert_close(ours, scales * torch.eye(HIDDEN).double().expand_as(ours), **EXACT)
    assert len(scales.unique()) == STEPS


class LyingTanh(torch.autograd.Function):
    """Its backward pass is not that of its forward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return torch.tanh(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return 2 * grad * (1 - out**2)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return tangent * (1 - out**2)


def test_two_ways_to_differentiate_must_agree() -> None:
    followed = Followed(lambda x, state: LyingTanh.apply(state), H)
    ours = followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False
    torch.testing.assert_close(ours, torch.stack([followed.jacobian(t) for t in range(STEPS)]), **EXACT)


def test_an_operator_that_torch_would_call_for_each_step_is_left_to_us() -> None:
    def slow(x: Any, state: Tensor) -> Tensor:
        warnings.warn("There is a performance drop because we have not yet implemented the batching rule", stacklevel=2)
        return torch.tanh(state)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        followed = Followed(slow, H)
        followed.map.jacobians(followed.factors)
    assert followed.map.over_time is False


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_where_the_state_has_overflown_nothing_is_known(form: str) -> None:
    """relu's derivative is a number even there; other sequences, and other times, are left alone."""
    matrix = torch.diag(torch.tensor([2.0, 0.5, 0.5, 0.5, 0.5])).double()
    start = torch.ones(BATCH, HIDDEN).double()
    start[1, 0] = torch.finfo(torch.float64).max
    followed = Followed(lambda x, state: torch.relu(state @ matrix), (start,))
    if form == "factored":
        followed.map.dense_limit = 0
    steps = followed.map.steps(followed.factors, 1, torch.float64)
    assert isinstance(steps, DenseSteps if form == "dense" else FactoredSteps)
    for t in (0, 2):
        for vectors in (steps.push(t, start.unsqueeze(-1)), steps.pull(t, start.unsqueeze(-1))):
            assert vectors[1].isnan().all() == (t > 0)
            assert vectors[[0, 2]].isfinite().all()


# ------------------------------------------------------------------ which form, and how much of it


@pytest.mark.parametrize(
    ("size", "batch", "k", "expected"),
    [
        (40, 20, 1, DenseSteps),  # B·D² within 32k
        (40, 21, 1, FactoredSteps),
        (64, 16, 31, FactoredSteps),
        (64, 16, 32, DenseSteps),  # half of them, within 128k
        (64, 33, 32, FactoredSteps),
        (64, 33, 48, DenseSteps),  # three quarters
        (32, 64, 15, FactoredSteps),
        (32, 64, 16, DenseSteps),  # the volume takes them
    ],
)
def test_form_that_is_the_fastest(size: int, batch: int, k: int, expected: type) -> None:
    followed = Followed(lambda x, state: torch.tanh(state), (noise(batch, size),), steps=2)
    assert type(followed.stretch.steps(k, torch.float64)) is expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jacobians_in_pieces_are_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed.of("normalised lstm")
    whole = followed.map.jacobians(followed.factors).to(dtype)
    step_bytes = BATCH * followed.map.state_size**2 * 8
    monkeypatch.setattr(forms, "PIECE", 4 * step_bytes)
    monkeypatch.setattr(forms, "HELD", 4 * step_bytes)
    steps = LinearStretch(followed.map, followed.factors).steps(2 * HIDDEN, dtype)
    vectors = noise(BATCH, 2 * HIDDEN, K, seed=3, dtype=dtype)
    near = EXACT if dtype == torch.float64 else {"rtol": 0.0, "atol": 1e-5}
    for t in [*range(STEPS), *reversed(range(STEPS))]:
        torch.testing.assert_close(steps.push(t, vectors), whole[t] @ vectors, **near)
        torch.testing.assert_close(steps.pull(t, vectors), whole[t].mT @ vectors, **near)


def test_volume_and_steps_share_their_jacobians(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed.of("normalised lstm")
    size, formed, form = followed.map.state_size, [], followed.map.jacobians
    monkeypatch.setattr(followed.map, "jacobians", lambda factors: formed.append(1) or form(factors))
    for dtype in (torch.float32, torch.float64):
        followed.stretch.steps(size, dtype).push(0, noise(BATCH, size, 1, dtype=dtype))
    followed.stretch.log_volume(size)
    followed.stretch.log_volume_of_last(2)
    assert formed == [1]


# ------------------------------------------------------------------ the step


def test_the_state_that_was_given_is_left_alone() -> None:
    state = noise(BATCH, HIDDEN)
    before = state.clone()
    ours = CellMap(overwriting, state, driven=False, dtype=torch.float64)
    states = ours.run(noise(STEPS, BATCH, 0), noise(STEPS, BATCH, 0), state)
    ours.step(state, noise(BATCH, 0))
    assert torch.equal(state, before) and torch.equal(states[0], before)
    assert not torch.equal(states[1], states[2])


def test_a_cell_that_returns_another_shape_is_refused_at_any_step() -> None:
    shapes = iter([HIDDEN, HIDDEN, 1])
    ours = CellMap(lambda x, state: state[:, : next(shapes)], noise(BATCH, HIDDEN), driven=False, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"parts of shape \[\(3, 5\)\]; it returned \[\(3, 1\)\]"):
        ours.run(noise(4, BATCH, 0), noise(4, BATCH, 0), noise(BATCH, HIDDEN))


@pytest.mark.parametrize("returned", [None, 1.0])
def test_a_cell_that_returns_no_state_is_refused(returned: Any) -> None:
    ours = CellMap(lambda x, state: returned, noise(BATCH, HIDDEN), driven=False, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"next state as it takes it.*{type(returned).__name__}"):
        ours.step(noise(BATCH, HIDDEN), noise(BATCH, 0))


def test_gradient_of_a_step_reaches_the_parameters_where_asked() -> None:
    cell = NormalisedLSTM().double().eval()
    state, x = noise(BATCH, 2 * HIDDEN), noise(BATCH, INPUT)
    with torch.enable_grad():
        assert not CellMap(cell, PAIR, driven=True, dtype=torch.float64).step(state, x).requires_grad
        twin = CellMap(cell, PAIR, driven=True, dtype=torch.float64, detach=False)
        ours = torch.autograd.grad(twin.step(state, x).sin().sum(), [*cell.parameters()])
        theirs = torch.autograd.grad(flat(cell(x, twin.unflatten(state))).sin().sum(), [*cell.parameters()])
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_module_runs_in_another_type_by_itself() -> None:
    cell = Embedded()
    ours = CellMap(cell, noise(BATCH, HIDDEN), driven=True, dtype=torch.float64)
    indices = torch.tensor([0, 1, 2])
    assert ours.step(noise(BATCH, HIDDEN), indices).dtype == torch.float64
    assert ours.to(torch.float32).step(noise(BATCH, HIDDEN).float(), indices).dtype == torch.float32
    assert ours.to(torch.float32) is ours.to(torch.float32)
    assert all(weight.dtype == torch.float32 for weight in cell.parameters())


def test_flatten_inverts_unflatten() -> None:
    state = (noise(BATCH, 4), noise(BATCH, 2, 3), noise(BATCH))
    ours = CellMap(lambda x, s: s, state, driven=False, dtype=torch.float64)
    assert ours.state_size == 4 + 6 + 1
    assert all(torch.equal(a, b) for a, b in zip(state, ours.unflatten(ours.flatten(state)), strict=True))


def test_a_cell_has_no_derivative_by_its_input() -> None:
    followed = Followed.of("lorenz")
    with pytest.raises(NotImplementedError, match="CellMap has no derivative by its input"):
        followed.map.push_driven(followed.factors, 0, noise(BATCH, 3, 1), noise(BATCH, INPUT, 1))
    with pytest.raises(NotImplementedError, match="CellMap has no derivative by its input"):
        followed.map.pull_driven(followed.factors, 0, noise(BATCH, 3, 1))
