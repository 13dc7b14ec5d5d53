"""Exponents and growth in a loss: their values against the engine's, their gradients against what is known of them.

Oracles: ``lyapunov_spectrum`` and ``spectrum.gain``; central differences in float64; closed forms of a symmetric linear
map and of an LSTM without weights; the plain twin through torch's own autograd.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems import Embedded, Opaque, TwoParts, linear, network, noise, orthogonal
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.differentiable import lyapunov_exponents, lyapunov_growth
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.gradient import plain_growth, plain_product
from lightning_lyapunov.engine.system import trajectories

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward mode
INPUT, HIDDEN, STEPS, BATCH = 3, 6, 20, 3
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("tanh", {}),
    "relu": ("relu", {}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm projected": ("lstm", {"proj_size": 3}),
    "two layers": ("gru", {"num_layers": 2}),
    "three layers": ("lstm", {"num_layers": 3}),
    "two directions": ("gru", {"num_layers": 2, "bidirectional": True}),
    "batch first": ("tanh", {"batch_first": True}),
    "no bias": ("lstm", {"bias": False}),
}
of_every_layer = pytest.mark.parametrize("name", LAYERS)


def layer_of(name: str, gain: float = 1.2) -> Any:
    kind, options = LAYERS[name]
    return network(kind, INPUT, HIDDEN, gain=gain, **options)


def inputs_of(name: str, steps: int = STEPS) -> Tensor:
    inputs = noise(steps, BATCH, INPUT)
    return inputs.transpose(0, 1) if name == "batch first" else inputs


class Leaky(nn.Module):
    """A cell of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.3 * h + torch.sin(2 * self.inner(torch.cat([x, h], -1)))


def exponents_of(system: Any, inputs: Any, **options: Any) -> Tensor:
    return lyapunov_spectrum(system, inputs, dtype=torch.float64, growth=0, **options).exponents


def assert_equal(found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0.0, atol=atol)


# ------------------------------------------------------------------ the same numbers as a spectrum's


WAYS: list[dict[str, Any]] = [{}, {"k": 3}, {"transient": 0, "k": 2}, {"interval": 4, "k": 3}]
# What follows a direction of relu's that died in the transient is not unique.
CASES = [(name, way) for name in LAYERS for way in WAYS if name != "relu" or way.get("transient") == 0]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_exponents_are_those_of_the_spectrum(name: str, options: dict[str, Any]) -> None:
    layer, inputs = layer_of(name), inputs_of(name)
    assert_equal(lyapunov_exponents(layer, inputs, **options), exponents_of(layer, inputs, **options))


@pytest.mark.parametrize("name", ["tanh", "gru", "three layers", "two directions"])
def test_packed_sequences_of_any_length(name: str) -> None:
    layer = layer_of(name)
    packed = pack_padded_sequence(inputs_of(name), torch.tensor([7, 20, 1]), enforce_sorted=False)
    assert_equal(lyapunov_exponents(layer, packed), exponents_of(layer, packed))
    assert_equal(lyapunov_exponents(layer, packed, transient=0), exponents_of(layer, packed, transient=0))


@pytest.mark.parametrize("kind", ["tanh cell", "relu cell", "gru cell", "lstm cell"])
def test_cells_and_a_first_state(kind: str) -> None:
    cell, inputs = network(kind, INPUT, HIDDEN, gain=1.2), noise(STEPS, BATCH, INPUT)
    parts = (noise(BATCH, HIDDEN, seed=1), noise(BATCH, HIDDEN, seed=2))
    options: dict[str, Any] = {"state": parts if "lstm" in kind else parts[0], "transient": 0, "k": 2}
    assert_equal(lyapunov_exponents(cell, inputs, **options), exponents_of(cell, inputs, **options))


@pytest.mark.parametrize(
    "cell", [Leaky(), Opaque(INPUT, HIDDEN), TwoParts(INPUT)], ids=lambda cell: type(cell).__name__
)
def test_cells_of_ones_own(cell: nn.Module) -> None:
    cell, inputs = cell.double(), noise(STEPS, BATCH, INPUT)
    state: Any = noise(BATCH, HIDDEN)
    if isinstance(cell, TwoParts):
        state = (noise(BATCH, INPUT), noise(BATCH, 2, 3))
    expected = exponents_of(cell, inputs, state=state, k=3)
    assert_equal(lyapunov_exponents(cell, inputs, state=state, k=3), expected)


def test_unbatched_inputs_indices_and_a_seed() -> None:
    gru, cell = layer_of("gru"), Embedded(INPUT, HIDDEN).double()
    assert_equal(lyapunov_exponents(gru, inputs_of("gru")[:, 0]), exponents_of(gru, inputs_of("gru")[:, 0]))
    indices = torch.arange(STEPS * BATCH).view(STEPS, BATCH) % 10
    assert_equal(lyapunov_exponents(cell, indices), exponents_of(cell, indices))
    seeds = [torch.Generator().manual_seed(n) for n in (1, 1, 2)]
    first, again, other = [lyapunov_exponents(gru, inputs_of("gru"), k=2, generator=seed) for seed in seeds]
    assert torch.equal(first, again) and not torch.equal(first, other)


# ------------------------------------------------------------------ gradients


def moved(system: nn.Module, name: str, place: int, by: float) -> nn.Module:
    other = copy.deepcopy(system)
    with torch.no_grad():
        dict(other.named_parameters())[name].flatten()[place] += by
    return other


def assert_gradients_are_those_of_differences(
    system: nn.Module, objective: Callable[[nn.Module], Tensor], scale: float = 1e-6
) -> None:
    """Five entries of every parameter, two if they are many, to ``scale`` of the largest entry of the gradient."""
    system.zero_grad()
    objective(system).backward()
    largest = max(float(p.grad.abs().max()) for p in system.parameters() if p.grad is not None)
    step, entries = 1e-6, 5 if len(list(system.parameters())) <= 5 else 2
    for name, weight in system.named_parameters():
        places = torch.linspace(0, weight.numel() - 1, entries).long().unique().tolist()
        for place in places:
            ends = [float(objective(moved(system, name, place, sign * step)).detach()) for sign in (1, -1)]
            found = 0.0 if weight.grad is None else float(weight.grad.flatten()[place])
            assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=scale * largest), (name, place)


def weighed(values: Tensor) -> Tensor:
    return values @ torch.linspace(1.0, -0.5, len(values)).to(values)


@of_every_layer
def test_gradients_of_exponents_are_those_of_differences(name: str) -> None:
    layer, inputs = layer_of(name, gain=1.0), inputs_of(name, 6)
    assert_gradients_are_those_of_differences(
        layer, lambda m: weighed(lyapunov_exponents(m, inputs, k=2, transient=0, interval=2))
    )


@pytest.mark.parametrize("cell", [Leaky(), Opaque(INPUT, HIDDEN)], ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("k", [1, 6])
def test_gradients_through_cells_of_ones_own(cell: nn.Module, k: int) -> None:
    """By dense Jacobians, by vectors pushed, and where reverse mode is all there is."""
    inputs, state = noise(5, BATCH, INPUT), noise(BATCH, HIDDEN)
    cell = copy.deepcopy(cell).double()
    options: dict[str, Any] = {"k": k, "transient": 0, "state": state}
    assert_gradients_are_those_of_differences(cell, lambda m: weighed(lyapunov_exponents(m, inputs, **options)))
    assert_gradients_are_those_of_differences(cell, lambda m: lyapunov_growth(m, inputs, state=state))


@pytest.mark.parametrize("name", ["tanh", "lstm projected", "two layers"])
def test_gradients_of_growth_are_those_of_differences(name: str) -> None:
    layer, inputs = layer_of(name), inputs_of(name, 6)
    size = lyapunov_spectrum(layer, inputs, k=1).dimension
    vectors = noise(size, 2, seed=5)
    assert_gradients_are_those_of_differences(
        layer, lambda m: weighed(lyapunov_growth(m, inputs, vectors=vectors)) + lyapunov_growth(m, inputs)
    )


@pytest.mark.parametrize("name", ["tanh", "lstm", "three layers", "two directions"])
def test_gradients_reach_inputs_and_the_first_state(name: str) -> None:
    layer = layer_of(name)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    inputs = inputs_of(name, 6).clone().requires_grad_()
    parts = [noise(rows, BATCH, HIDDEN, seed=seed).requires_grad_() for seed in (1, 2)]
    given: Any = tuple(parts) if isinstance(layer, nn.LSTM) else parts[0]
    reached = [inputs, *(parts if isinstance(layer, nn.LSTM) else parts[:1])]

    def objective() -> Tensor:
        return weighed(lyapunov_exponents(layer, inputs, k=2, transient=0, state=given))

    grads = torch.autograd.grad(objective(), reached)
    for tensor, grad in zip(reached, grads, strict=True):
        direction, ends = noise(*tensor.shape, seed=9), []
        for sign in (1e-5, -2e-5):
            with torch.no_grad():
                tensor += sign * direction
                ends.append(float(objective()))
        with torch.no_grad():
            tensor += 1e-5 * direction
        assert float((grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_the_transient_is_not_recorded(name: str) -> None:
    """The gradient is that of the steps after it, from the state and frame that it ends in."""
    layer, inputs, cut = layer_of(name), inputs_of(name), 8
    (path,) = trajectories(layer, inputs, None, None, torch.float64, live=True).values()
    with torch.no_grad():
        path.skip(cut)
        frame = random_frames(range(BATCH), path.size, path.size, torch.device("cpu"))
        frame = plain_growth(path.recurrence, inputs[:cut], path.initial, frame)[1]
    logs, _ = plain_growth(path.recurrence, inputs[cut:], path.state, frame)
    weights = torch.linspace(1.0, 0.5, path.size).double()
    expected = logs.mean((0, 1)).sort(descending=True).values
    found = lyapunov_exponents(layer, inputs, transient=cut)
    assert_equal(found, expected, 1e-10)
    theirs, ours = (torch.autograd.grad(one @ weights, list(layer.parameters())) for one in (expected, found))
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other, 1e-6 * float(other.abs().max()))


def test_gradients_of_packed_sequences_are_those_of_each_alone() -> None:
    """With their own transients; the mean weighs them by the steps that count."""
    layer, inputs, lengths = network("lstm", INPUT, HIDDEN, gain=1.0, num_layers=2), inputs_of("lstm"), [7, 20, 12]
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    lyapunov_exponents(layer, packed).sum().backward()
    found = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    steps = [n - n // 2 for n in lengths]
    for row, n in enumerate(lengths):
        # All directions: their sum is that of any frame.
        (lyapunov_exponents(layer, inputs[:n, row]).sum() * steps[row] / sum(steps)).backward()
    for one, weight in zip(found, layer.parameters(), strict=True):
        assert_equal(one, weight.grad, 1e-5 * float(one.abs().max()))


def test_of_a_symmetric_linear_map() -> None:
    """dλ_i / dW = v_i v_iᵀ / μ_i."""
    values, vectors = torch.tensor([1.6, 1.1, -0.7, 0.3]).double(), orthogonal(4)
    matrix = (vectors @ values.diag() @ vectors.mT).requires_grad_()
    inputs, state = torch.zeros(240, 2, 0), torch.zeros(2, 4).double()
    exponents = lyapunov_exponents(linear(matrix), inputs, state=state, transient=200)
    assert_equal(exponents, values.abs().log(), 1e-12)
    for i, exponent in enumerate(exponents):
        (grad,) = torch.autograd.grad(exponent, matrix, retain_graph=True)
        assert_equal(grad, torch.outer(vectors[:, i], vectors[:, i]) / values[i], 1e-8)


def test_of_an_lstm_without_weights() -> None:
    """Its cells forget by σ(b_f) and nothing else: ∂λ / ∂b_f = 1 - σ(b_f); what its outputs hold is dead."""
    lstm, biases = network("lstm", INPUT, 4), torch.linspace(-1.0, 3.0, 4).double()
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.bias_hh_l0[4:8] = biases
    exponents = lyapunov_exponents(lstm, noise(60, 2, INPUT), transient=20)
    assert exponents[4:].isneginf().all() and len(exponents) == 8
    assert_equal(exponents[:4].sum(), torch.sigmoid(biases).log().sum(), 1e-10)
    exponents[exponents.isfinite()].sum().backward()
    assert_equal(lstm.bias_hh_l0.grad[4:8], 1 - torch.sigmoid(biases), 1e-10)
    assert_equal(lstm.bias_ih_l0.grad[4:8], 1 - torch.sigmoid(biases), 1e-10)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_float32_is_enough(kind: str) -> None:
    """Of torch's own initialisation, 64 units, the leading 64 exponents: gradients to 1e-4 of their length."""
    wide = network(kind, INPUT, 64)
    narrow = copy.deepcopy(wide).float()
    inputs = noise(40, 2, INPUT)
    for module, x in ((wide, inputs), (narrow, inputs.float())):
        exponents = lyapunov_exponents(module, x, k=64)
        assert exponents.dtype == x.dtype
        exponents.square().mean().backward()
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert float((other.grad - one.grad).norm()) < 1e-4 * float(one.grad.norm())


# ------------------------------------------------------------------ dead directions


def relu_with_dead_units(dead: int) -> Any:
    layer = network("relu", INPUT, HIDDEN, gain=1.0)
    with torch.no_grad():
        layer.weight_hh_l0.abs_()
        layer.weight_ih_l0.abs_()
        layer.bias_hh_l0.fill_(0.3)
        layer.bias_hh_l0[:dead] = -1.0
        for weight in (layer.weight_hh_l0, layer.weight_ih_l0, layer.bias_ih_l0):
            weight[:dead] = 0.0
    return layer


def without_units(layer: Any, dead: int) -> Any:
    smaller = network("relu", INPUT, HIDDEN - dead)
    with torch.no_grad():
        for name, weight in smaller.named_parameters():
            kept = getattr(layer, name)[dead:]
            weight.copy_(kept[:, dead:] if name == "weight_hh_l0" else kept)
    return smaller


@pytest.mark.parametrize("interval", [1, 3])
def test_a_dead_unit_leaves_the_gradients_of_the_others_alone(interval: int) -> None:
    """They are those of the network without it: volume of what lives, from the first step that killed the rest on."""
    dead, inputs = 2, noise(30, BATCH, INPUT).abs()
    layer = relu_with_dead_units(dead)
    smaller = without_units(layer, dead)
    found, expected = (lyapunov_exponents(m, inputs, interval=interval) for m in (layer, smaller))
    assert found[-dead:].isneginf().all() and expected.isfinite().all()
    assert_equal(found[:-dead].sum(), expected.sum(), 1e-9)
    found[found.isfinite()].sum().backward()
    expected.sum().backward()
    grad = layer.weight_hh_l0.grad
    assert grad.isfinite().all() and float(expected.detach().abs().sum()) > 0
    assert_equal(grad[dead:, dead:], smaller.weight_hh_l0.grad, 1e-9)
    assert not grad[:dead].any()


def test_dead_directions_in_a_loss_put_no_nan_anywhere() -> None:
    """A one-sided loss is finite; one that squares them is infinite, and its gradient is not."""
    for penalty, is_finite in ((lambda e: e.clamp(min=0).square().sum(), True), (lambda e: e.square().sum(), False)):
        layer = relu_with_dead_units(3)
        with torch.no_grad():
            layer.weight_hh_l0[3:] *= 3
        loss = penalty(lyapunov_exponents(layer, noise(30, BATCH, INPUT).abs()))
        assert math.isfinite(loss.detach()) == is_finite and not loss.detach().isnan()
        loss.backward()
        assert layer.weight_hh_l0.grad.isfinite().all() and layer.weight_hh_l0.grad.any()


def test_a_direction_that_is_dead_in_most_sequences_puts_no_nan_either() -> None:
    """Units of relu on inputs of either sign, which die sooner in some sequences than in others."""
    layer = network("relu", INPUT, HIDDEN)
    inputs = noise(30, BATCH, INPUT)
    alone = [lyapunov_exponents(layer, inputs[:, b : b + 1]) for b in range(BATCH)]
    exponents = lyapunov_exponents(layer, inputs)
    assert any((exponents.isneginf() & one.isfinite()).any() for one in alone)
    exponents.square().sum().backward()
    assert layer.weight_hh_l0.grad.isfinite().all()


def test_of_a_network_in_which_nothing_lives() -> None:
    layer, inputs = relu_with_dead_units(HIDDEN), noise(10, BATCH, INPUT)
    exponents, gain = lyapunov_exponents(layer, inputs), lyapunov_growth(layer, inputs)
    grown = lyapunov_growth(layer, inputs, vectors=torch.eye(HIDDEN))
    assert exponents.isneginf().all() and gain.isneginf() and grown.isneginf().all()
    (exponents.clamp(min=0).sum() + gain.clamp(min=0) + grown.clamp(min=0).sum()).backward()
    assert not layer.weight_hh_l0.grad.any()


def test_a_direction_lost_within_an_interval_is_not_called_dead() -> None:
    """e^-40 in four steps is below the rounding; the interval is made again step by step."""
    matrix = torch.tensor([1.0, math.exp(-10)]).double().diag()
    options: dict[str, Any] = {"state": torch.zeros(1, 2).double(), "transient": 0}
    exponents = lyapunov_exponents(linear(matrix), torch.zeros(40, 1, 0), interval=4, **options)
    assert_equal(exponents, torch.tensor([0.0, -10.0]).double(), 0.1)


# ------------------------------------------------------------------ whose weights


def test_the_gradient_reaches_what_weights_are_made_of() -> None:
    """Masked by pruning, through weight normalisation old and new, orthogonal and spectral parametrisations."""
    inputs = inputs_of("tanh")

    def grads(module: nn.Module) -> dict[str, Tensor]:
        lyapunov_exponents(module, inputs, k=3).sum().backward()
        return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}

    plain = layer_of("tanh")
    pruned = copy.deepcopy(plain)
    mask = (noise(HIDDEN, HIDDEN, seed=3) > -0.5).double()
    prune.custom_from_mask(pruned, "weight_hh_l0", mask)
    with torch.no_grad():
        plain.weight_hh_l0 *= mask
    expected = grads(plain)["weight_hh_l0"] * mask
    assert_equal(grads(pruned)["weight_hh_l0_orig"], expected, 1e-12)
    assert 0 < float(mask.sum()) < mask.numel()

    for make in (
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
        lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
        lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    ):
        module = make(layer_of("tanh"))
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        assert module.training
        found = grads(module)
        assert any("weight_hh" in name and bool(grad.any()) for name, grad in found.items()), found.keys()
        assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
        assert_equal(lyapunov_exponents(module, inputs, k=3), exponents_of(module, inputs, k=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    gru, inputs = layer_of("gru").to(dtype), inputs_of("gru").to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        exponents = lyapunov_exponents(gru, inputs, k=3)
    assert exponents.dtype == torch.float32
    exponents.sum().backward()
    same = copy.deepcopy(gru).float()
    again = lyapunov_exponents(same, inputs.float(), k=3)
    again.sum().backward()
    assert torch.equal(exponents, again)
    assert gru.weight_hh_l0.grad.dtype == dtype
    assert torch.equal(gru.weight_hh_l0.grad, same.weight_hh_l0.grad.to(dtype))


def test_nothing_of_the_user_is_touched() -> None:
    """Dropout is off; modes, random state and gradients are as they were; without a graph there is none."""

    class Dropping(Leaky):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return super().forward(x, nn.functional.dropout(h, 0.5, self.training))

    cell, inputs, state = Dropping().double().train(), inputs_of("tanh"), noise(BATCH, HIDDEN)
    stack = network("lstm", INPUT, HIDDEN, num_layers=2, dropout=0.5)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert not lyapunov_exponents(cell, inputs, state=state, k=2).requires_grad
        assert not lyapunov_growth(stack, inputs).requires_grad
    exponents = lyapunov_exponents(cell, inputs, state=state, k=2)
    assert exponents.requires_grad and torch.is_grad_enabled()
    assert_equal(exponents, exponents_of(cell.eval(), inputs, state=state, k=2))
    assert_equal(lyapunov_exponents(stack.train(), inputs, k=2), exponents_of(stack, inputs, k=2))
    assert stack.training and torch.equal(before, torch.get_rng_state())
    assert all(weight.grad is None for weight in (*cell.parameters(), *stack.parameters()))


def test_a_loss_that_holds_exponents_trains() -> None:
    """Thirty updates take a chaotic network below the edge; the task's own gradient is there as well."""
    net, readout = network("tanh", INPUT, 16).float(), nn.Linear(16, 1)
    with torch.no_grad():
        net.weight_hh_l0.copy_(0.9 * noise(16, 16))
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], lr=1e-2)
    inputs, targets, seen = noise(30, 8, INPUT).float() / 3, noise(8, 1, seed=2).float(), []
    for _ in range(30):
        optimizer.zero_grad()
        task = (readout(net(inputs)[0][-1]) - targets).square().mean()
        exponents = lyapunov_exponents(net, inputs, k=4)
        (task + 0.1 * exponents.clamp(min=0).square().sum() + exponents.clamp(min=0).sum()).backward()
        optimizer.step()
        seen.append(float(exponents[0].detach()))
    assert seen[0] > 0.1 > 0.05 > seen[-1]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


# ------------------------------------------------------------------ growth


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "two directions"])
def test_growth_is_that_of_the_dense_product(name: str) -> None:
    """Of a single layer by the plain twin; of a stack the gain is the spectrum's."""
    layer, inputs = layer_of(name), inputs_of(name)
    spectrum = lyapunov_spectrum(layer, inputs, dtype=torch.float64)
    assert float(lyapunov_growth(layer, inputs).detach()) == pytest.approx(spectrum.gain, abs=1e-9)
    if layer.num_layers > 1:
        return
    (path,) = trajectories(layer, inputs, None, None, torch.float64, live=True).values()
    product = plain_product(path.recurrence, path.inputs, path.initial)
    vectors = noise(BATCH, path.size, 2, seed=4)
    for given in (vectors, vectors[0], vectors[0, :, 0]):
        columns = given.unsqueeze(-1) if given.dim() == 1 else given
        expected = (product @ columns).norm(dim=-2).log().mean(0)
        found = lyapunov_growth(layer, inputs, vectors=given)
        assert found.shape == (() if given.dim() == 1 else (2,))
        assert_equal(found, expected.reshape(found.shape), 1e-10)
        (theirs,) = torch.autograd.grad(expected.sum(), layer.weight_hh_l0, retain_graph=True)
        (ours,) = torch.autograd.grad(found.sum(), layer.weight_hh_l0)
        assert_equal(ours, theirs, 1e-9 * float(theirs.abs().max()))


def test_vectors_of_a_stack_go_from_the_bottom_up() -> None:
    """What enters the first layer comes out on top: by torch's own gradient of the last state by the first."""
    layer, inputs = network("lstm", INPUT, HIDDEN, num_layers=2), noise(9, BATCH, INPUT)
    h, c = noise(2, BATCH, HIDDEN, seed=1), noise(2, BATCH, HIDDEN, seed=2)
    dh, dc = noise(2, BATCH, HIDDEN, seed=3), noise(2, BATCH, HIDDEN, seed=4)
    step = 1e-6
    ends = [layer(inputs, (h + s * dh, c + s * dc))[1] for s in (step, -step)]
    change = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
    expected = torch.cat(change, -1).square().sum((0, 2)).log().mean() / 2
    vectors = torch.cat([torch.cat([dh[i], dc[i]], -1) for i in range(2)], -1).unsqueeze(-1)
    found = lyapunov_growth(layer, inputs, vectors=vectors, state=(h, c))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_growth_of_packed_sequences_is_the_mean_of_each_alone() -> None:
    layer, inputs, lengths = layer_of("two layers"), inputs_of("two layers"), [7, 20, 12]
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    vectors = noise(BATCH, 2 * HIDDEN, 2, seed=4)
    alone = [lyapunov_growth(layer, inputs[:n, row], vectors=vectors[row]) for row, n in enumerate(lengths)]
    assert_equal(lyapunov_growth(layer, packed, vectors=vectors), torch.stack(alone).mean(0), 1e-12)
    gains = [lyapunov_growth(layer, inputs[:n, row]) for row, n in enumerate(lengths)]
    assert_equal(lyapunov_growth(layer, packed), torch.stack(gains).mean(), 1e-12)


def test_growth_of_long_sequences_and_of_large_states() -> None:
    """e^±750 over- and underflow both types; a gain of more than 128 entries is estimated."""
    for rate in (1.5, -1.5):
        matrix = (math.exp(rate) * orthogonal(3)).float().requires_grad_()
        found = lyapunov_growth(linear(matrix), torch.zeros(500, 1, 0), state=torch.zeros(1, 3))
        assert float(found.detach()) == pytest.approx(500 * rate, rel=1e-5)
        found.backward()
        assert matrix.grad is not None and matrix.grad.isfinite().all()
    wide, inputs = network("tanh", INPUT, 200), noise(6, 4, INPUT)
    exact = lyapunov_growth(wide, inputs, vectors=torch.eye(200).double())
    assert exact.shape == (200,)
    (path,) = trajectories(wide, inputs, None, None, torch.float64).values()
    product = plain_product(path.recurrence, path.inputs, path.initial)
    expected = (product.square().sum((1, 2)) / 200).log().mean() / 2
    assert float(lyapunov_growth(wide, inputs).detach()) == pytest.approx(float(expected.detach()), abs=0.045)


# ------------------------------------------------------------------ what does not fit


def noisy(_: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(h + torch.randn_like(h))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x: lyapunov_exponents(m, x, k=7), r"k must lie in \[1, 6\]"),
        (lambda m, x: lyapunov_exponents(m, x, k=0), "k must be at least 1"),
        (lambda m, x: lyapunov_exponents(m, x, transient=20), "transient must leave at least one of the 20 steps"),
        (lambda m, x: lyapunov_exponents(m, x, interval=0), "interval must be at least 1; got 0"),
        (lambda m, x: lyapunov_exponents(m, None), "inputs must be given"),
        (lambda m, x: lyapunov_exponents(m, x * math.nan), "inputs hold NaN"),
        (lambda m, x: lyapunov_exponents(3, x), "system must be"),
        (lambda m, x: lyapunov_exponents(noisy, x, state=torch.zeros(3, 2)), "system draws random numbers"),
        (lambda m, x: lyapunov_exponents(linear(torch.eye(2).half()), x, state=torch.zeros(3, 2).half()), "float16"),
        (lambda m, x: lyapunov_growth(m, x, vectors=torch.ones(5)), r"vectors must have shape \(6,\)"),
        (lambda m, x: lyapunov_growth(m, x, vectors=torch.ones(2, 6, 1)), r"or \(3, 6, K\)"),
        (lambda m, x: lyapunov_growth(m, x, vectors=torch.full((6,), math.nan)), "vectors must be a tensor of finite"),
        (lambda m, x: lyapunov_growth(nn.GRU(3, 6, bidirectional=True), x), "system must run in one direction"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(call: Callable[[Any, Tensor], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(layer_of("gru"), inputs_of("gru"))
