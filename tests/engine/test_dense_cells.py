"""Any cell as a map: its Jacobians, formed at once where that is safe, against one forward-mode derivative per step."""

import math
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from systems import (
    Embedded,
    Opaque,
    OpaqueTanh,
    TwoParts,
    Wrapped,
    flat,
    jacobian_by_autograd,
    linear,
    logistic,
    lorenz,
    noise,
)
from torch import Tensor, nn
from torch.func import jvp, vmap

from lightning_lyapunov import lyapunov_spectrum
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
    "axes": (lambda: TwoParts(3), (noise(BATCH, 3), noise(BATCH, 2, 3))),
    "no axis": (lambda: logistic, (noise(BATCH).sigmoid(),)),
    "indices": (lambda: Embedded(INPUT, HIDDEN), H),
    "a row for each sequence": (lambda: masked(BATCH), H),
    "overwriting": (lambda: overwriting, H),
    "detached": (lambda: detached, H),
    "the same everywhere": (lambda: linear(noise(HIDDEN, HIDDEN)), H),
}
FALLING_BACK: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
    "branching": (lambda: branching, H),
    "opaque": (lambda: Opaque(INPUT, HIDDEN), H),
}
CHANGING: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {"counting": (Counting, H)}
every_cell = pytest.mark.parametrize("name", CELLS | FALLING_BACK | CHANGING)


class Followed:
    """A cell's map along some inputs, and its Jacobians there, each step by itself."""

    def __init__(self, cell: Any, state: tuple[Tensor, ...], steps: int = STEPS, **options: Any) -> None:
        self.cell = cell.double().eval() if isinstance(cell, nn.Module) else cell
        template = state[0] if len(state) == 1 else state
        indices = isinstance(cell, Embedded)
        batch = len(state[0])
        inputs = torch.arange(steps * batch).view(steps, batch) % 10 if indices else noise(steps, batch, INPUT)
        self.map = CellMap(self.cell, template, driven=True, dtype=torch.float64, **options)
        self.drive = inputs
        self.states, self.factors = self.map.follow(inputs, self.map.flatten(template))
        self.stretch = LinearStretch(self.map, self.factors)

    @classmethod
    def of(cls, name: str) -> "Followed":
        torch.manual_seed(0)
        make, state = (CELLS | FALLING_BACK | CHANGING)[name]
        return cls(make(), state)

    def step(self, t: int) -> Callable[[Tensor], Tensor]:
        """The cell itself, as a map of flat states."""
        return lambda s: self.map.flatten(self.cell(self.drive[t], self.map.unflatten(s.clone())))

    def jacobian(self, t: int) -> Tensor:
        """By forward mode, or by one backward pass for each entry where the cell has none."""
        state = self.states[t]
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
    assert followed.map.changes is (name in CHANGING)
    followed.stretch.steps(1, torch.float64)
    assert followed.map.over_time is None or followed.map.over_time == (name in CELLS)
    followed.map.jacobians(followed.factors)
    assert followed.map.over_time == (None if name in CHANGING else name in CELLS)


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


# ------------------------------------------------------------------ cells that draw, or change as they run


def gambling(x: Any, state: Tensor) -> Tensor:
    """Doubles one of its first two entries and halves the other; the third, a coin, says which, and where they go.

    The coin of a step decides what the next one does: Jacobians of other draws than those of the states shrink.
    """
    a, b, f = state.unbind(-1)
    coin = (torch.rand(len(state)) < 0.5).to(state)
    a, b = torch.where(f > 0.5, 2 * a, 0.5 * a), torch.where(f > 0.5, 0.5 * b, 2 * b)
    big, small = a + b, 0.01 * (a - b)
    return torch.stack([torch.where(coin > 0.5, big, small), torch.where(coin > 0.5, small, big), coin], -1)


class Ageing(nn.Module):
    """h' = h exp(-0.01 t), t counted in a buffer, in place or anew, or in a number."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.n = way, 0
        self.register_buffer("t", torch.zeros(()))

    def forward(self, x: Any, state: Tensor) -> Tensor:
        if self.way == "number":
            self.n += 1
            return state * math.exp(-0.01 * self.n)
        if self.way == "in place":
            self.t += 1
        else:
            self.t = self.t + 1
        return state * torch.exp(-0.01 * self.t)


def in_blocks(length: int, count: list[int]) -> Callable[[Any, Tensor], Tensor]:
    """Multiplies by 4 for some steps and by 1/4 for as many, by its own clock."""

    def step(x: Any, state: Tensor) -> Tensor:
        count[0] += 1
        return state * (4.0 if count[0] // length % 2 == 0 else 0.25)

    return step


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The Jacobians ``(T, B, D, D)`` of each stretch that is followed from here on."""
    stretches, follow = list[Tensor](), CellMap.follow

    def watched(self: CellMap, *args: Any) -> Any:
        states, factors = follow(self, *args)
        stretches.append(self.jacobians(factors))
        return states, factors

    monkeypatch.setattr(CellMap, "follow", watched)
    return stretches


@pytest.mark.parametrize("k", [1, 3])
def test_a_cell_that_draws_is_linearised_as_it_runs(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stretches = recorded(monkeypatch)
    spectrum = lyapunov_spectrum(gambling, None, state=torch.zeros(8, 3).double(), steps=200, k=k)
    assert float(spectrum.exponents[0]) == pytest.approx(math.log(2), abs=float(spectrum.error[0]))
    jacobians = torch.cat(stretches)
    assert len(jacobians) == 200  # no pass of the growth made its own
    product = torch.eye(3).double()
    for jacobian in jacobians:
        product = jacobian @ product
    norms = torch.linalg.matrix_norm(product)
    assert float(spectrum.gain) == pytest.approx(float((norms.square() / 3).log().mean() / 2), abs=1e-6)
    assert 137 < float(spectrum.gain) < 139
    assert float(spectrum.log_singular_values[0]) == pytest.approx(
        float(torch.linalg.svdvals(product)[:, 0].log().mean()), abs=1e-3
    )


@pytest.mark.parametrize("way", ["in place", "anew", "number"])
def test_a_module_that_counts_its_steps_is_linearised_as_it_runs(way: str) -> None:
    cell = Ageing(way)
    state = torch.ones(4, 2).double()
    spectrum = lyapunov_spectrum(cell, None, state=state, steps=200, transient=50)
    expected = -0.01 * sum(range(51, 201)) / 150
    assert spectrum.exponents.tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert float(spectrum.gain) == pytest.approx(-0.01 * sum(range(1, 201)), abs=1e-5)
    assert cell.n == 0 and float(cell.t) == 0


@pytest.mark.parametrize("length", [1, 10, 32, 50])
def test_a_closure_that_counts_its_steps_is_linearised_as_it_runs(length: int) -> None:
    """Also where it does the same twice in a row, so that what a step gives does not tell."""
    count = [0]
    spectrum = lyapunov_spectrum(
        in_blocks(length, count), None, state=torch.ones(4, 2).double(), steps=200, transient=50
    )
    assert count == [201]  # the check of what was passed is a step, the trial none
    gains = [math.log(4) * (1 if t // length % 2 == 0 else -1) for t in range(2, 202)]
    assert spectrum.exponents.tolist() == pytest.approx([sum(gains[50:]) / 150] * 2, abs=1e-9)
    assert float(spectrum.gain) == pytest.approx(sum(gains), abs=1e-9)


def noted() -> Callable[[Any, Tensor], Tensor]:
    """Keeps what it gave last, and does nothing by it."""

    def step(x: Any, state: Tensor) -> Tensor:
        step.last = torch.tanh(state)  # type: ignore[attr-defined]
        return step.last  # type: ignore[attr-defined, no-any-return]

    return step


GENERATOR, TORCHS, NUMPYS = random.Random(0), torch.Generator(), np.random.default_rng(0)
TICKS: dict[str, int] = {"made": 0}


def ticking(state: Tensor) -> Tensor:
    TICKS["made"] += 1
    return state


class Object:
    def __init__(self) -> None:
        self.made = 0

    def step(self, x: Any, state: Tensor) -> Tensor:
        self.made += 1
        return state

    __call__ = step


def drawing_on(values: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda x, state: state * next(values)


def remembering() -> Callable[[Any, Tensor], Tensor]:
    trace = torch.zeros(BATCH, HIDDEN).double()

    def step(x: Any, state: Tensor) -> Tensor:
        nonlocal trace
        trace = 0.5 * trace + state
        return torch.tanh(state)

    return step


SELF_WILLED: dict[str, Callable[[], Callable[[Any, Tensor], Tensor]]] = {
    "torch": lambda: lambda x, state: torch.rand(()).double() * state,
    "python": lambda: lambda x, state: random.random() * state,
    "numpy": lambda: lambda x, state: float(np.random.rand()) * state,
    "a generator of torch": lambda: lambda x, state: torch.rand((), generator=TORCHS).double() * state,
    "a generator of python": lambda: lambda x, state: GENERATOR.random() * state,
    "a generator of numpy": lambda: lambda x, state: float(NUMPYS.random()) * state,
    "out of sight": lambda: lambda x, state: random.SystemRandom().random() + state,
    "iterator": lambda: drawing_on(iter([2.0] * 100)),
    "function of another": lambda: lambda x, state: ticking(state),
    "method": lambda: Object().step,
    "object": Object,
    "partial": lambda: partial(Object().step),
    "tensor": remembering,
}


@pytest.mark.parametrize("name", SELF_WILLED)
def test_what_a_callable_may_change_by_is_seen(name: str) -> None:
    """At a state of zeros too, at which a factor does not tell."""
    followed = Followed(SELF_WILLED[name](), (torch.zeros(BATCH, HIDDEN).double(),))
    assert followed.map.changes is True
    assert [factor.shape for factor in followed.factors] == [(STEPS, BATCH, HIDDEN, HIDDEN)]


def test_what_a_callable_notes_is_no_change_once_it_gives_the_same() -> None:
    cell = noted()
    cell(None, H[0])
    assert Followed(cell, H).map.changes is False


class Noting(nn.Module):
    last: Any = None

    def forward(self, x: Any, state: Tensor) -> Tensor:
        self.last = torch.tanh(state)
        return self.last


class Wavering(nn.Module):
    def forward(self, x: Any, state: Tensor) -> Tensor:
        return nn.functional.dropout(state, 0.5)


@pytest.mark.parametrize(
    ("make", "changes"),
    [(Noting, False), (lambda: Ageing("number"), True), (lambda: Ageing("in place"), True), (Wavering, True)],
)
def test_the_trial_of_a_module_leaves_no_trace(make: Callable[[], nn.Module], changes: bool) -> None:
    cell = make().eval()
    ours = CellMap(cell, H[0], driven=False, dtype=torch.float64)
    random_state, attributes = torch.get_rng_state(), dict(vars(cell))
    tensors = {name: tensor.clone() for name, tensor in ours._tensors.items()}
    assert ours._module_changes(H[0], noise(BATCH, 0)) is changes
    assert torch.equal(torch.get_rng_state(), random_state) and vars(cell) == attributes
    ours.step(H[0], noise(BATCH, 0))
    assert vars(cell) == attributes
    assert all(torch.equal(ours._tensors[name], tensor) for name, tensor in tensors.items())


def test_a_cell_in_training_mode_is_linearised_as_it_runs() -> None:
    cell = NormalisedLSTM().double().eval()
    cell.memory.train()
    ours = CellMap(cell, PAIR, driven=True, dtype=torch.float64)
    ours.follow(noise(STEPS, BATCH, INPUT), ours.flatten(PAIR))
    assert ours.changes is True


def test_a_cell_that_writes_to_its_buffers_leaves_those_of_the_user_alone() -> None:
    followed = Followed.of("counting")
    followed.map.jacobians(followed.factors)
    assert int(followed.cell.steps) == 0
    assert int(followed.map._tensors["module.steps"]) == STEPS  # those of the trajectory, and none for its derivative


@pytest.mark.parametrize("draw", [lambda: torch.randn(()).double(), random.random], ids=["torch", "python"])
def test_a_noisy_cell_has_the_jacobians_of_its_own_draws(draw: Callable[[], Any]) -> None:
    """Each step scales the state by a number of its own, which the states tell."""
    followed = Followed(lambda x, state: draw() * state, H)
    ours = followed.map.jacobians(followed.factors)
    scales = (followed.states[1:] / followed.states[:-1])[..., :1, None]
    torch.testing.assert_close(ours, scales * torch.eye(HIDDEN).double(), **EXACT)
    assert len(scales[:, 0].unique()) == STEPS


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "at once": lambda h: torch.tanh(2 * h.flip(-1)),
    "one by one": OpaqueTanh.apply,
    "without the state": lambda h: torch.zeros_like(h),
    "overwriting": lambda h: h.copy_(torch.tanh(h.flip(-1))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DRAWN)
def test_what_was_linearised_as_it_ran_acts_in_every_form(name: str, dtype: torch.dtype) -> None:
    function, seen = DRAWN[name], list[Tensor]()

    def cell(x: Any, state: Tensor) -> Tensor:
        seen.append(torch.rand(BATCH, HIDDEN).double())
        return seen[-1] * function(state)

    followed = Followed(cell, H)
    drawn = seen[-STEPS:]
    near = EXACT if dtype == torch.float64 else {"rtol": 0.0, "atol": 1e-5}
    vectors = noise(BATCH, HIDDEN, K, seed=3, dtype=dtype)
    for k in (1, HIDDEN):
        steps = followed.stretch.steps(k, dtype)
        for t in range(STEPS):
            expected = jacobian_by_autograd(lambda h, t=t: drawn[t] * function(h.clone()), followed.states[t]).to(dtype)
            for rows in (BATCH, 1):
                ours = steps.push(t, vectors[:rows]), steps.pull(t, vectors[:rows])
                theirs = expected[:rows] @ vectors[:rows], expected[:rows].mT @ vectors[:rows]
                torch.testing.assert_close(ours, theirs, **near)
            alone = tuple(factor[t] for factor in followed.factors)
            torch.testing.assert_close(followed.map.push_forward(alone, vectors), expected @ vectors, **near)
            torch.testing.assert_close(followed.map.pull_back(alone, vectors), expected.mT @ vectors, **near)
    volume = torch.linalg.slogdet(followed.factors[0]).logabsdet
    torch.testing.assert_close(followed.stretch.log_volume(HIDDEN), volume, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(followed.stretch.log_volume_of_last(2), volume[-2:, 0].sum(), rtol=0.0, atol=1e-9)


def test_a_noisy_sequence_that_has_overflown_is_alone_in_it() -> None:
    start = torch.ones(BATCH, HIDDEN).double()
    start[1, 0] = torch.finfo(torch.float64).max
    followed = Followed(lambda x, state: torch.relu((2 + torch.rand(())) * state), (start,))
    (jacobians,) = followed.factors
    assert jacobians[1:, 1].isnan().all() and jacobians[0].isfinite().all()
    assert jacobians[:, [0, 2]].isfinite().all()


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
    cell = Embedded(INPUT, HIDDEN)
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
