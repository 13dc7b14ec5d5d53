"""Torch's own families as maps: every form of their Jacobians against torch's own derivatives."""

import math
from typing import Any

import pytest
import torch
from systems import jacobian_by_autograd, network, noise
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_lyapunov.engine.chain import Steps
from lightning_lyapunov.engine.maps import forms
from lightning_lyapunov.engine.maps.base import LinearStretch, Recurrence
from lightning_lyapunov.engine.maps.families import FAMILIES, family_of, module_map
from lightning_lyapunov.engine.maps.forms import DenseSteps, FactoredSteps, Factors

INPUT, HIDDEN, STEPS, BATCH, K = 3, 5, 4, 3, 4
EXACT = {"rtol": 0.0, "atol": 1e-12}
TOLERANCE = {torch.float64: EXACT, torch.float32: {"rtol": 0.0, "atol": 2e-5}}

MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("tanh", {}),
    "relu": ("relu", {}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm projected": ("lstm", {"proj_size": 2}),
    "no bias": ("gru", {"bias": False}),
}
FORMS: dict[str, tuple[float, int]] = {"plain": (math.inf, 0), "condensed": (0, 0), "dense": (math.inf, 2**30)}
"""The crossover and the limit of the dense form that lead to each form."""
CASES = [
    (name, form) for name in MODULES for form in FORMS if form != "condensed" or name in ("gru", "lstm", "no bias")
]

every_module = pytest.mark.parametrize("name", MODULES)
every_form = pytest.mark.parametrize(("name", "form"), CASES)


def made(name: str, hidden: int = HIDDEN, gain: float = 1.5) -> Any:
    kind, options = MODULES[name]
    return network(kind, INPUT, hidden, gain=gain, **options)


class Followed:
    """A module's map along some inputs, and torch's own derivatives there."""

    def __init__(self, name: str, *, by_input: bool = False, hidden: int = HIDDEN, batch: int = BATCH) -> None:
        self.module = made(name, hidden)
        self.map = module_map(self.module, torch.float64, "_l0")
        self.inputs = noise(STEPS, batch, INPUT, seed=1)
        start = noise(batch, self.map.state_size, seed=2)
        self.states, self.factors = self.map.follow(self.inputs, start, by_input)

    def torchs_step(self, state: Tensor, x: Tensor) -> Tensor:
        """One step of torch's own module, as a map of flat states ``(B, D)``."""
        if not isinstance(self.module, nn.LSTM):
            return self.module(x[None], state[None])[1][0]
        width = self.map.output_size
        parts = state[None, :, :width].contiguous(), state[None, :, width:].contiguous()
        return torch.cat(self.module(x[None], parts)[1], -1)[0]

    def jacobian(self, t: int) -> Tensor:
        return jacobian_by_autograd(lambda s: self.torchs_step(s, self.inputs[t]), self.states[t])

    def jacobian_by_input(self, t: int) -> Tensor:
        """``(B, D, I)``."""
        return jacobian_by_autograd(lambda x: self.torchs_step(self.states[t], x), self.inputs[t])


def in_form(recurrence: Recurrence, factors: Factors, form: str, dtype: torch.dtype = torch.float64) -> Steps:
    narrow = recurrence.to(dtype)
    for one in (recurrence, narrow):
        one.crossover, one.dense_limit = FORMS[form]
    steps = recurrence.steps(factors, 1, dtype)
    assert isinstance(steps, DenseSteps if form == "dense" else FactoredSteps)
    return steps


# ------------------------------------------------------------------ the Jacobian by the state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [BATCH, 1])
@every_form
def test_push_and_pull_equal_torchs_jacobian(name: str, form: str, rows: int, dtype: torch.dtype) -> None:
    followed = Followed(name)
    steps = in_form(followed.map, followed.factors, form, dtype)
    assert len(steps) == STEPS
    vectors = noise(rows, followed.map.state_size, K, seed=3, dtype=dtype)
    for t in [*range(STEPS), *range(STEPS - 1, -1, -1)]:
        expected = followed.jacobian(t)[:rows]
        pushed, pulled = steps.push(t, vectors), steps.pull(t, vectors)
        assert pushed.dtype == pulled.dtype == dtype
        torch.testing.assert_close(pushed.double(), expected @ vectors.double(), **TOLERANCE[dtype])
        torch.testing.assert_close(pulled.double(), expected.mT @ vectors.double(), **TOLERANCE[dtype])


@every_form
def test_pull_is_the_transpose_of_push(name: str, form: str) -> None:
    followed = Followed(name)
    steps = in_form(followed.map, followed.factors, form)
    v, u = (noise(BATCH, followed.map.state_size, K, seed=seed) for seed in (3, 4))
    for t in range(STEPS):
        torch.testing.assert_close(steps.push(t, v).mT @ u, v.mT @ steps.pull(t, u), **EXACT)


@every_form
def test_vectors_are_left_as_they_were(name: str, form: str) -> None:
    followed = Followed(name)
    steps = in_form(followed.map, followed.factors, form)
    vectors = noise(BATCH, followed.map.state_size, K, seed=3)
    before = vectors.clone()
    first = [steps.push(0, vectors), steps.pull(0, vectors)]
    assert torch.equal(vectors, before)
    torch.testing.assert_close([steps.push(0, vectors), steps.pull(0, vectors)], first, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("name", "hidden", "batch", "k", "expected"),
    [
        ("tanh", 64, 1, 8, DenseSteps),
        ("tanh", 64, 2, 8, FactoredSteps),
        ("gru", 64, 4, 8, DenseSteps),
        ("gru", 64, 5, 8, FactoredSteps),
        ("lstm", 32, 1, 8, DenseSteps),
        ("lstm", 32, 2, 8, FactoredSteps),
    ],
)
def test_small_jacobians_are_dense(name: str, hidden: int, batch: int, k: int, expected: type[Steps]) -> None:
    followed = Followed(name, hidden=hidden, batch=batch)
    assert type(LinearStretch(followed.map, followed.factors).steps(k, torch.float32)) is expected


@pytest.mark.parametrize(("name", "few"), [("gru", 8), ("lstm", 16)])
def test_many_vectors_take_the_condensed_form(name: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(name)
    followed.map.dense_limit = 0
    condensed = []
    monkeypatch.setattr(type(followed.map), "condense", lambda _, factors: condensed.append(1) or factors)
    followed.map.steps(followed.factors, few, torch.float64)
    assert condensed == []
    followed.map.steps(followed.factors, few + 1, torch.float64)
    assert condensed == [1]


# ------------------------------------------------------------------ dense Jacobians in pieces


def counted(steps: int, step_bytes: int = 8) -> tuple[forms.Jacobians, list[tuple[int, int]]]:
    """Jacobians whose entry is their step, and which pieces of them were formed."""
    formed: list[tuple[int, int]] = []

    def form(first: int, stop: int) -> Tensor:
        formed.append((first, stop))
        return torch.arange(first, stop).double().view(-1, 1, 1, 1)

    return forms.Jacobians(form, steps, step_bytes), formed


def test_jacobians_are_formed_in_pieces_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "PIECE", 3 * 8)
    monkeypatch.setattr(forms, "HELD", 6 * 8)
    jacobians, formed = counted(8)
    steps = DenseSteps(jacobians, torch.float64)
    one = torch.ones(1, 1, 1).double()
    assert [float(steps.push(t, one)) for t in range(8)] == [*range(8)]
    assert formed == [(0, 3), (3, 6), (6, 8)]
    assert [float(steps.pull(t, one)) for t in reversed(range(8))] == [*reversed(range(8))]
    assert formed == [(0, 3), (3, 6), (6, 8), (0, 3)]  # two pieces are kept, the oldest is let go


def test_no_more_jacobians_are_held_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "HELD", 2**22)
    jacobians, _ = counted(100, step_bytes=2**19)
    for t in range(100):
        jacobians.piece(t)
        assert sum(len(piece) for piece in jacobians._pieces.values()) * 2**19 <= 2**22


def test_jacobians_larger_than_a_piece_are_formed_one_by_one() -> None:
    jacobians, formed = counted(3, step_bytes=2**26)
    assert jacobians.piece(1)[1].shape[0] == 1
    assert formed == [(1, 2)]


def test_volume_and_steps_share_their_jacobians(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed("gru")
    formed, form = [], followed.map.jacobians
    monkeypatch.setattr(followed.map, "jacobians", lambda factors: formed.append(1) or form(factors))
    stretch = LinearStretch(followed.map, followed.factors)
    for dtype in (torch.float32, torch.float64):
        stretch.steps(HIDDEN, dtype).push(0, noise(BATCH, HIDDEN, 1, dtype=dtype))
    stretch.log_volume(HIDDEN)
    assert formed == [1]


# ------------------------------------------------------------------ the volume


def torchs_volume(followed: Followed) -> Tensor:
    return torch.stack([torch.linalg.slogdet(followed.jacobian(t)).logabsdet for t in range(STEPS)])


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm projected"])
def test_log_volume_equals_that_of_torchs_jacobian(name: str) -> None:
    followed = Followed(name)
    expected = torchs_volume(followed)
    near = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(followed.map.log_volume(followed.factors, followed.map.state_size), expected, **near)
    torch.testing.assert_close(followed.map.dense(followed.factors).log_volume(), expected, **near)
    for last in (1, 3):
        ours = followed.map.log_volume_of_last(followed.factors, last)
        torch.testing.assert_close(ours, expected[-last:, 0].sum(), **near)


@pytest.mark.parametrize(
    ("name", "hidden", "k", "is_cheap"),
    [("tanh", 40, 1, True), ("lstm", 40, 1, True), ("gru", 40, 40, False), ("gru", 5, 3, True), ("gru", 5, 2, False)],
)
def test_volume_is_given_where_it_is_cheap(name: str, hidden: int, k: int, is_cheap: bool) -> None:
    followed = Followed(name, hidden=hidden)
    assert (LinearStretch(followed.map, followed.factors).log_volume(k) is not None) == is_cheap


# ------------------------------------------------------------------ the derivative by the input


@every_module
def test_derivative_by_the_input_equals_torchs(name: str) -> None:
    followed = Followed(name, by_input=True)
    ours, size = followed.map, followed.map.state_size
    for rows in (BATCH, 1):
        v, u = noise(rows, size, K, seed=3), noise(rows, size, K, seed=4)
        x = noise(rows, INPUT, K, seed=5)
        for t in range(STEPS):
            by_state, by_input = followed.jacobian(t)[:rows], followed.jacobian_by_input(t)[:rows]
            pushed = ours.push_driven(followed.factors, t, v, x)
            torch.testing.assert_close(pushed, by_state @ v + by_input @ x, **EXACT)
            states, inputs = ours.pull_driven(followed.factors, t, u)
            torch.testing.assert_close(states, by_state.mT @ u, **EXACT)
            torch.testing.assert_close(inputs, by_input.mT @ u, **EXACT)


@every_form
def test_factors_with_the_derivative_by_the_input_serve_the_usual_one(name: str, form: str) -> None:
    usual, both = Followed(name), Followed(name, by_input=True)
    vectors = noise(BATCH, usual.map.state_size, K, seed=3)
    for one, other in zip(usual.factors, both.factors, strict=False):
        assert torch.equal(one, other)
    expected, ours = (in_form(followed.map, followed.factors, form) for followed in (usual, both))
    torch.testing.assert_close(ours.push(1, vectors), expected.push(1, vectors), **EXACT)
    torch.testing.assert_close(ours.pull(1, vectors), expected.pull(1, vectors), **EXACT)


def test_the_usual_factors_hold_nothing_more() -> None:
    assert len(Followed("gru").factors) == 2
    assert len(Followed("gru", by_input=True).factors) == 3


# ------------------------------------------------------------------ the step, and its gradient


@every_module
def test_step_equals_torchs_own(name: str) -> None:
    followed = Followed(name)
    drive = followed.map.drive(followed.inputs)
    for t in range(STEPS):
        ours = followed.map.step(followed.states[t], drive[t])
        torch.testing.assert_close(ours, followed.torchs_step(followed.states[t], followed.inputs[t]), **EXACT)
        torch.testing.assert_close(ours, followed.states[t + 1], **EXACT)


@every_module
def test_gradient_of_a_step_equals_torchs_own(name: str) -> None:
    followed = Followed(name)
    twin = module_map(followed.module, torch.float64, "_l0", detach=False)
    state, x = followed.states[0].requires_grad_(), followed.inputs[0].requires_grad_()
    wanted = [*followed.module.parameters(), state, x]
    ours = torch.autograd.grad(twin.step(state, twin.drive(x)).sin().sum(), wanted)
    torch.testing.assert_close(ours, torch.autograd.grad(followed.torchs_step(state, x).sin().sum(), wanted), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_module
def test_a_map_is_cut_off_from_the_parameters_unless_asked(name: str, dtype: torch.dtype) -> None:
    module = made(name)
    for detach in (True, False):
        ours = module_map(module, dtype, "_l0", detach=detach)
        x, state = noise(BATCH, INPUT, dtype=dtype), noise(BATCH, ours.state_size, dtype=dtype)
        assert ours.step(state, ours.drive(x)).requires_grad != detach


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_gradient_reaches_what_a_weight_is_computed_from(name: str) -> None:
    module = parametrizations.weight_norm(made(name), "weight_hh_l0")
    twin = module_map(module.eval(), torch.float64, "_l0", detach=False)
    twin.step(noise(BATCH, twin.state_size), twin.drive(noise(BATCH, INPUT))).sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in module.parametrizations.parameters())


# ------------------------------------------------------------------ floating types


@every_module
def test_a_cast_map_is_kept(name: str) -> None:
    ours = module_map(made(name), torch.float64, "_l0")
    narrow = ours.to(torch.float32)
    assert narrow is ours.to(torch.float32) and ours.to(torch.float64) is ours
    assert ours.dtype == torch.float64 and narrow.dtype == torch.float32
    assert all(
        value.dtype == (torch.float64 if one is ours else torch.float32)
        for one in (ours, narrow)
        for value in vars(one).values()
        if isinstance(value, Tensor)
    )


# ------------------------------------------------------------------ the families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_knows_its_layers_and_cells(family: Any) -> None:
    for make in (family.layer, family.cell):
        module = make(INPUT, HIDDEN)
        assert family_of(module) is family
        state = module(noise(BATCH, INPUT, dtype=torch.float32))
        parts = state[1] if make is family.layer else state
        parts = parts if isinstance(parts, tuple) else (parts,)
        assert family.parts == len(parts)
        assert family.sizes(module) == tuple(part.shape[-1] for part in parts)
        ours = module_map(module, torch.float64, "_l0" if make is family.layer else "")
        assert ours.state_size == sum(family.sizes(module))


def test_sizes_of_a_projected_state() -> None:
    family = family_of(nn.LSTM(INPUT, HIDDEN, proj_size=2))
    assert family is not None and family.sizes(nn.LSTM(INPUT, HIDDEN, proj_size=2)) == (2, HIDDEN)


def test_what_is_of_no_family_has_no_map() -> None:
    assert family_of(nn.Linear(2, 2)) is None and family_of(lambda x, h: h) is None
    with pytest.raises(ValueError, match="Linear is of none of the known families"):
        module_map(nn.Linear(2, 2), torch.float64)
    with pytest.raises(ValueError, match="RNN has no recurrent weights weight_hh_l7"):
        module_map(nn.RNN(INPUT, HIDDEN), torch.float64, "_l7")
