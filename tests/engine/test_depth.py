"""Spectra across depth against dense products, published laws and exact cases (float64 throughout, but where said)."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from lightning_lyapunov.engine.depth import DepthSettings, _random, measure_depth
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.maps.blocks import BlockSteps, Function
from lightning_lyapunov.engine.maps.families import module_map
from lightning_lyapunov.engine.tangent import carry

Layer = Callable[[Tensor], Tensor]
KINDS = ("tanh", "relu", "residual", "pre-LN")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def square(n: int, seed: int, gain: float = 1.0) -> Tensor:
    return gaussian(n, n, seed=seed) * gain / math.sqrt(n)


def squares(n: int, depth: int, gain: float = 1.0) -> list[Tensor]:
    return [square(n, seed, gain) for seed in range(depth)]


def network(kind: str, n: int, depth: int, seed: int = 0, scale: float = 1.0) -> list[Layer]:
    def layer(place: int) -> Layer:
        w, v = square(n, 1000 * seed + place), square(n, 1000 * seed + place + 500)
        kinds: dict[str, Layer] = {
            "tanh": lambda x: torch.tanh(2 * scale * x @ w.T),
            "relu": lambda x: torch.relu(math.sqrt(2) * x @ w.T),
            "residual": lambda x: x + 0.5 * torch.relu(math.sqrt(2) * x @ w.T),
            "pre-LN": lambda x: x + torch.relu(math.sqrt(2) * nn.functional.layer_norm(x, (n,)) @ w.T) @ v.T,
            "near identity": lambda x: x + 0.05 * torch.tanh(x @ w.T) @ v.T,
        }
        return kinds[kind]

    return [layer(place) for place in range(depth)]


def named(layers: Sequence[Layer]) -> list[Function]:
    return [Function(layer, f"block {i}") for i, layer in enumerate(layers)]


def spectrum_of(layers: Sequence[Layer], state: Tensor, **settings: object) -> DepthSpectrum:
    return measure_depth(named(layers), state, DepthSettings(**settings))  # type: ignore[arg-type]


def jacobians(layers: Sequence[Layer], state: Tensor) -> list[Tensor]:
    """``(B, D', D)`` of each layer, by automatic differentiation of one row at a time."""
    made = []
    for layer in layers:
        made.append(vmap(jacrev(lambda row, layer=layer: layer(row.unsqueeze(0))[0]))(state))
        state = layer(state)
    return made


def product(layers: Sequence[Layer], state: Tensor) -> Tensor:
    dense = torch.eye(state.shape[1], dtype=state.dtype).expand(len(state), -1, -1)
    for jacobian in jacobians(layers, state):
        dense = jacobian @ dense
    return dense


# ------------------------------------------------------------------ against dense products


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [16, 64])
def test_leading_values_are_those_of_the_dense_product(kind: str, n: int) -> None:
    layers, state = network(kind, n, 12), gaussian(4, n, seed=9)
    true = torch.linalg.svdvals(product(layers, state)).log()[:, :4]
    found = spectrum_of(layers, state)
    below = true - found.per_sample
    assert below.min() > -1e-8
    assert below[:, 0].max() < 1e-4 and below.max() < 5e-3
    assert (below <= found.iteration_error + 1e-9).all()
    assert found.trusted.all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_seeds_agree_within_twice_what_they_say(kind: str) -> None:
    layers, state = network(kind, 64, 12), gaussian(4, 64, seed=9)
    one, other = (spectrum_of(layers, state, seed=seed) for seed in (1, 2))
    apart = (one.per_sample - other.per_sample).abs()
    assert (apart <= 2 * torch.maximum(one.iteration_error, other.iteration_error) + 1e-9).all()


def test_a_wide_chain_near_the_identity_is_right_in_sixty_passes() -> None:
    layers, state = network("near identity", 512, 12), gaussian(1, 512, seed=9)
    true = torch.linalg.svdvals(product(layers, state)).log()[:, 0]
    found = spectrum_of(layers, state, k=1, tolerance=1e-2, probes=1, columns=2)
    assert found.passes <= 60 and found.trusted[0]
    assert 0 <= float(true - found.per_sample[:, 0]) < 1e-2
    rough = spectrum_of(layers, state, k=4, tolerance=0.5)
    assert not rough.trusted.all()
    assert (rough.per_sample[0, 0] < true - 1e-2) <= (rough.iteration_error[0, 0] > 1e-2)


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_a_hundred_blocks_do_not_underflow(gain: float) -> None:
    n, layers = 32, network("tanh", 32, 100, scale=gain / 2)
    state = gaussian(2, n, seed=9)
    true = scaled_product(layers, BlockSteps(named(layers), state).states)
    assert (spectrum_of(layers, state).per_sample - true).abs().max() < 1e-6
    # In float32 a chaotic network goes another way; along it the values are right.
    stack = [nn.Sequential(nn.Linear(n, n, bias=False), nn.Tanh()) for _ in range(100)]
    for i, module in enumerate(stack):
        module[0].weight.data = square(n, i, gain).float()
    rough = [Function(module, "") for module in stack]
    found, visited = measure_depth(rough, state.float(), DepthSettings()), BlockSteps(rough, state.float()).states
    wide = [module.double() for module in stack]
    true = scaled_product(wide, [at.double() for at in visited]).detach()
    assert found.trusted[:2].all()
    assert (found.per_sample - true)[found.iteration_error < 0.05].abs().max() < 1e-3


def scaled_product(layers: Sequence[Layer], states: Sequence[Tensor], k: int = 4) -> Tensor:
    """Leading values of the dense product of the Jacobians at these very states, scaled at every one."""
    scale, dense = torch.zeros(len(states[0]), dtype=torch.float64), None
    for layer, before in zip(layers, states[:-1], strict=True):
        jacobian = jacobians([layer], before)[0]
        dense = jacobian if dense is None else jacobian @ dense
        length = torch.linalg.matrix_norm(dense)
        dense, scale = dense / length[:, None, None], scale + length.log()
    return torch.linalg.svdvals(dense)[:, :k].log() + scale[:, None]


def test_gain_and_block_gain_are_frobenius_norms() -> None:
    layers, state = network("pre-LN", 16, 6), gaussian(3, 16, seed=9)
    dense, each = product(layers, state), jacobians(layers, state)
    found = spectrum_of(layers, state)
    assert torch.allclose(found.gain_per_sample, (dense.square().sum((1, 2)) / 16).log() / 2, atol=1e-12)
    own = torch.stack([(j.square().sum((1, 2)) / 16).log() / 2 for j in each], 1)
    change, tangents = [], _random(3, 16, 16, state, DepthSettings(), 2)
    for j in each:
        moved = j @ tangents
        change.append(((moved - tangents).square().sum((1, 2)) / 16).log() / 2)
        tangents = moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    assert torch.allclose(found.block_gain_per_sample, own, atol=1e-12)
    assert torch.allclose(found.block_change_per_sample, torch.stack(change, 1), atol=1e-12)


def test_the_gain_of_a_wide_chain_comes_from_the_leading_directions_and_probes() -> None:
    layers, state = network("residual", 128, 12), gaussian(8, 128, seed=9)
    true = (product(layers, state).square().sum((1, 2)) / 128).log() / 2
    found = spectrum_of(layers, state)
    assert (found.gain_per_sample - true).abs().max() < 0.03
    assert (found.typical_per_sample <= found.gain_per_sample).all()


@pytest.mark.parametrize("last", [torch.relu, lambda x: x])
def test_a_dead_branch_changes_nothing(last: Layer) -> None:
    """Also where a ReLU behind the skip leaves half of all directions empty, and its Jacobian is not the identity."""

    def block(w: Tensor) -> Layer:
        return lambda x: last(x + torch.tanh(x @ w.T))

    weights = squares(40, 6, 0.5)
    weights[3] = 0 * weights[3]
    found = spectrum_of([block(w) for w in weights], gaussian(4, 40, seed=9))
    assert found.block_change_per_sample[:, 3].isneginf().all()
    assert (found.block_change[[0, 1, 2, 4, 5]] > -2).all()


def test_the_gain_of_a_block_is_that_of_a_chain_of_it_alone() -> None:
    layers, state = network("pre-LN", 16, 4), gaussian(3, 16, seed=9)
    whole = spectrum_of(layers, state)
    for i, layer in enumerate(layers):
        alone = spectrum_of([layer], state)
        assert math.isclose(alone.gain, float(whole.block_gain[i]), abs_tol=1e-12)
        state = layer(state)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_sum_to_the_values(kind: str) -> None:
    found = spectrum_of(network(kind, 64, 12), gaussian(3, 64, seed=9))
    assert torch.allclose(found.contributions_per_sample.sum(1), found.per_sample, atol=1e-6)
    assert torch.allclose(found.contributions.sum(0), found.log_singular_values, atol=1e-6)


# ------------------------------------------------------------------ exact cases and laws


def test_orthogonal_blocks() -> None:
    layers = [lambda x, q=torch.linalg.qr(w).Q: 1.1 * x @ q.T for w in squares(20, 12)]  # noqa: B008
    found = spectrum_of(layers, gaussian(2, 20, seed=9), k=20)
    assert torch.allclose(found.exponents, torch.full((20,), math.log(1.1), dtype=torch.float64), atol=1e-12)
    assert abs(found.anisotropy) < 1e-12 and abs(found.gain - 12 * math.log(1.1)) < 1e-12


def test_blocks_that_share_their_weights_are_a_recurrent_network() -> None:
    n, depth = 24, 12
    cell = nn.RNNCell(1, n, bias=False).double()
    cell.weight_hh.data, cell.weight_ih.data = square(n, 1, 2.0), torch.zeros(n, 1, dtype=torch.float64)
    state = gaussian(3, n, seed=9)
    steps = BlockSteps(named([lambda x: torch.tanh(x @ cell.weight_hh.T)] * depth), state)
    frame = torch.linalg.qr(gaussian(3, n, n, seed=4)).Q
    _, across = carry(steps, [3] * depth, frame, 1)
    map_of_cell = module_map(cell, torch.float64)
    _, factors = map_of_cell.follow(torch.zeros(depth, 3, 1, dtype=torch.float64), state)
    _, along = carry(map_of_cell.steps(factors, n, torch.float64), [3] * depth, frame, 1)
    assert torch.allclose(across.log, along.log, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_wide_gaussian_blocks(depth: int) -> None:
    """Largest value of a product of Ginibre matrices, N to infinity: (D+1)^(D+1) / D^D."""
    n = 600
    layers = [lambda x, w=w: x @ w.T for w in squares(n, depth)]
    law = ((depth + 1) * math.log(depth + 1) - depth * math.log(depth)) / 2
    assert abs(float(spectrum_of(layers, gaussian(1, n, seed=9), k=1).log_singular_values[0]) / law - 1) < 0.04


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_wide_relu_blocks(depth: int) -> None:
    """The same with He weights and a ReLU before each; Pennington et al., arXiv:1711.04735."""
    n = 600
    a = 1 - 1 / depth
    z = (-a + math.sqrt(a * a + 2 / depth)) / 2
    law = (math.log((1 + z) / z) + depth * math.log(1 + 2 * z)) / 2
    values = []
    for network in range(3):
        weights = [square(n, 100 * network + place, math.sqrt(2)) for place in range(depth)]
        layers = [lambda x, w=w: torch.relu(x) @ w.T for w in weights]
        values.append(spectrum_of(layers, gaussian(2, n, seed=9), k=1).log_singular_values[0])
    assert abs(float(torch.stack(values).mean()) / law - 1) < 0.04


@pytest.mark.parametrize(
    ("activation", "weight", "bias", "variance", "rate"),
    [
        (torch.tanh, 1.5, 0.1, 0.813322, 0.06069),
        (torch.tanh, 2.5, 0.3, 4.079124, 0.23036),
        (torch.tanh, 0.9, 0.2, 0.118879, -0.19958),
        (torch.erf, 1.5, 0.1, 1.093175, 0.10591),
        (torch.erf, 1.0, 0.2, 0.265465, -0.06012),
    ],
)
def test_mean_field_theory(activation: Layer, weight: float, bias: float, variance: float, rate: float) -> None:
    """½ ln χ₁ at the fixed point of the variance of a wide network; Schoenholz et al., arXiv:1611.01232."""
    n, depth = 800, 20
    offsets = bias * gaussian(depth, n, seed=900)
    layers = [
        lambda x, w=w, b=b: activation(x) @ w.T + b for w, b in zip(squares(n, depth, weight), offsets, strict=True)
    ]
    found = spectrum_of(layers, math.sqrt(variance) * gaussian(4, n, seed=9), k=1, tolerance=0.1)
    assert abs(found.gain / depth - rate) < 0.012


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_residual_blocks_that_are_linear(alpha: float) -> None:
    n, depth = 300, 10
    layers = [lambda x, w=w: x + alpha * x @ w.T for w in squares(n, depth)]
    found = spectrum_of(layers, gaussian(4, n, seed=9), k=1, tolerance=0.1)
    assert abs(found.gain / depth - math.log(1 + alpha**2) / 2) < 0.012


def test_pre_ln_blocks_grow_as_the_root_of_depth() -> None:
    n, depth = 400, 24
    layers = [lambda x, w=w: x + nn.functional.layer_norm(x, (n,)) @ w.T for w in squares(n, depth)]
    state = gaussian(2, n, seed=9)
    found = spectrum_of(layers, state / state.square().mean(1, keepdim=True).sqrt(), k=1, tolerance=0.1)
    assert abs(found.gain / (math.log(depth + 1) / 2) - 1) < 0.04
    assert abs(found.state_growth / (math.log(depth + 1) / 2) - 1) < 0.06


def test_relu_networks_of_any_width_and_a_dead_one_among_them() -> None:
    """E ln|Jv| / D = ½ Σ Bin(n; N, ½) (ln(4/N) + ψ(n/2)) for He weights; a network in thousands is dead."""
    n, depth, draws = 8, 8, 1000
    weights = gaussian(depth, draws, n, n, seed=5) * math.sqrt(2 / n)
    layers = [lambda x, w=w: torch.relu(torch.einsum("bij,bj->bi", w, x)) for w in weights]
    blocks = [_OneNetworkARow(layer, f"block {i}") for i, layer in enumerate(layers)]
    found = measure_depth(blocks, gaussian(draws, n, seed=6), DepthSettings(k=1))
    dead = found.per_sample[:, 0].isneginf()
    assert not found.per_sample.isnan().any() and not found.contributions_per_sample.isnan().any()
    assert not found.gain_per_sample.isnan().any() and 15 < int(dead.sum()) < 50
    frame = torch.linalg.qr(gaussian(draws, n, 1, seed=7)).Q
    growth = carry(BlockSteps(blocks, gaussian(draws, n, seed=6), 1), [draws] * depth, frame, 1)[1].log.sum(0)
    alive = growth[growth.isfinite()]
    binomial = torch.distributions.Binomial(n, torch.tensor(0.5, dtype=torch.float64))
    count = torch.arange(1, n + 1, dtype=torch.float64)
    weight = binomial.log_prob(count).exp()
    law = float((weight * (math.log(4 / n) + torch.digamma(count / 2))).sum() / weight.sum()) / 2
    error = float(alive.std()) / math.sqrt(len(alive)) / depth
    assert abs(float(alive.mean()) / depth - law) < 4 * error


class _OneNetworkARow:
    """A block that is another matrix for each sample."""

    def __init__(self, layer: Layer, name: str) -> None:
        self._layer, self.name = layer, name

    def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
        rows = [self._layer(state[i::copies]) for i in range(copies)]
        return torch.stack(rows, 1).flatten(0, 1)


def test_ginibre_products_of_one_fixed_frame_have_the_exponents_at_any_depth() -> None:
    """E of QR diagonals = ½ (ln 2 + ψ((N−i+1)/2) − ln N)."""
    n, depth, draws = 8, 6, 4000
    weights = gaussian(depth, draws, n, n, seed=5) / math.sqrt(n)
    blocks = [
        _OneNetworkARow(lambda x, w=w: torch.einsum("bij,bj->bi", w, x), f"block {i}") for i, w in enumerate(weights)
    ]
    frame = torch.eye(n, dtype=torch.float64).expand(draws, n, n).contiguous()
    steps = BlockSteps(blocks, gaussian(draws, n, seed=6))
    rates = carry(steps, [draws] * depth, frame, 1)[1].log.mean(0)
    law = (math.log(2) + torch.digamma((n - torch.arange(n, dtype=torch.float64)) / 2) - math.log(n)) / 2
    error = rates.std(0) / math.sqrt(draws)
    assert ((rates.mean(0) - law).abs() < 4 * error).all()


def test_steps_of_a_flow_are_blocks() -> None:
    """x' = A x by Euler: the singular values are those of exp(A) to O(1/D)."""
    a = square(6, 3)
    true = torch.linalg.svdvals(torch.matrix_exp(a)).log()
    off = []
    for depth in (8, 32, 128):
        found = spectrum_of([lambda x, d=depth: x + x @ a.T / d] * depth, gaussian(1, 6, seed=9), k=6)
        off.append(float((found.log_singular_values - true).abs().max()))
    assert off[0] > 3 * off[1] > 9 * off[2] and off[2] < 0.05


def test_pooling_halves_what_it_averages() -> None:
    state = gaussian(2, 3, 8, 8, seed=9)
    found = measure_depth([Function(nn.AvgPool2d(2), "pool")], state, DepthSettings(k=48))
    assert torch.allclose(found.log_singular_values, torch.full((48,), -math.log(2), dtype=torch.float64), atol=1e-12)
    assert abs(found.gain + math.log(2)) < 1e-12 and found.dimensions == (192, 48)


def test_a_bottleneck_has_as_many_values_as_it_is_wide() -> None:
    down, up = gaussian(5, 24, seed=1), gaussian(24, 5, seed=2)
    layers = [lambda x: torch.tanh(x @ down.T), lambda x: torch.tanh(x @ up.T)]
    state = gaussian(2, 24, seed=9) / 5
    found = spectrum_of(layers, state, k=6)
    true = torch.linalg.svdvals(product(layers, state)).log()
    assert torch.allclose(found.per_sample[:, :5], true[:, :5], atol=1e-9)
    assert found.per_sample[:, 5].isneginf().all() and found.trusted.all()
    assert found.block_change.isnan().all()
    narrow, back = gaussian(5, 100, seed=1), gaussian(100, 5, seed=2)
    wide = [lambda x: x @ narrow.T, lambda x: x @ back.T]
    found = spectrum_of(wide, gaussian(2, 100, seed=9), k=6)
    true = torch.linalg.svdvals(product(wide, gaussian(2, 100, seed=9))).log()
    assert torch.allclose(found.per_sample[:, :5], true[:, :5], atol=1e-8) and found.per_sample[:, 5].isneginf().all()


@pytest.mark.parametrize(
    ("depth", "within"), [(1000, 0.15), pytest.param(4000, 0.03, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_lorenz_as_a_chain_of_steps(depth: int, within: float) -> None:
    """.9056, 0 and −14.572 per unit of time, at 8 starts."""

    def field(s: Tensor) -> Tensor:
        x, y, z = s.unbind(1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)

    def step(s: Tensor, h: float = 0.01) -> Tensor:
        a = field(s)
        b = field(s + h / 2 * a)
        c = field(s + h / 2 * b)
        return s + h / 6 * (a + 2 * b + 2 * c + field(s + h * c))

    state = gaussian(8, 3, seed=9) + torch.tensor([0.0, 0.0, 25.0])
    for _ in range(1000):
        state = step(state)
    steps = BlockSteps(named([step] * depth), state, 3)
    frame = torch.eye(3, dtype=torch.float64).expand(8, 3, 3).contiguous()
    rates = carry(steps, [8] * depth, frame, 1)[1].log.sum(0) / (depth * 0.01)
    assert abs(float(rates[:, 0].mean()) - 0.9056) < within
    assert abs(float(rates.sum(1).mean()) + 41 / 3) < 1e-3


# ------------------------------------------------------------------ invariances


def test_samples_may_be_permuted_and_appended() -> None:
    layers, state = network("pre-LN", 40, 6), gaussian(5, 40, seed=9)
    whole = spectrum_of(layers, state).per_sample
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(spectrum_of(layers, state[order]).per_sample, whole[order], atol=1e-4)
    few = spectrum_of(layers, state[:2])
    assert torch.allclose(few.per_sample, whole[:2], atol=1e-4)
    later = spectrum_of(layers, state[2:], first_place=2)
    assert torch.allclose(DepthSpectrum.merge([few, later]).per_sample, whole, atol=1e-4)


def test_a_block_may_be_split_in_two() -> None:
    w, v, state = square(30, 1), square(30, 2), gaussian(3, 30, seed=9)
    one = spectrum_of([lambda x: torch.tanh(x @ w.T) @ v.T], state)
    two = spectrum_of([lambda x: torch.tanh(x @ w.T), lambda x: x @ v.T], state)
    assert torch.allclose(one.per_sample, two.per_sample, atol=1e-6)


def test_tokens_without_positions_may_be_permuted() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True).double().eval()
    state = gaussian(2, 5, 8, seed=9)
    one, other = (
        measure_depth([Function(layer, "layer")] * 2, s, DepthSettings(tolerance=1e-6))
        for s in (state, state[:, torch.tensor([4, 2, 0, 1, 3])])
    )
    assert torch.allclose(one.per_sample, other.per_sample, atol=1e-5)


def test_tokens_behind_a_mask_do_not_count() -> None:
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True).double().eval()
        for _ in range(3)
    ]
    short = gaussian(2, 4, 8, seed=9)
    long = torch.cat([short, gaussian(2, 3, 8, seed=10)], 1)
    behind = torch.tensor([False] * 4 + [True] * 3).expand(2, 7)

    def masked(layer: nn.Module) -> Layer:
        return lambda x: layer(x, src_key_padding_mask=behind.repeat_interleave(len(x) // 2, 0))

    true = measure_depth([Function(layer, "layer") for layer in layers], short, DepthSettings(k=8))
    blocks = [Function(masked(layer), "layer") for layer in layers]
    found = measure_depth(blocks, long, DepthSettings(k=8), alive=~behind)
    assert torch.allclose(found.per_sample, true.per_sample, atol=1e-3)
    assert torch.allclose(found.gain_per_sample, true.gain_per_sample, atol=0.02)
    blind = measure_depth(blocks, long, DepthSettings(k=8))
    assert (blind.per_sample - true.per_sample).abs().max() > 0.1  # their own skips would count


# ------------------------------------------------------------------ refusals


def test_what_cannot_be_measured_is_refused_by_name() -> None:
    state = gaussian(2, 4, seed=9)
    with pytest.raises(ValueError, match="blocks must hold at least one"):
        measure_depth([], state, DepthSettings())
    with pytest.raises(ValueError, match=r"inputs must be a floating tensor .* got torch.int64 \(2, 4\)"):
        measure_depth(named([torch.tanh]), torch.ones(2, 4, dtype=torch.long), DepthSettings())
    with pytest.raises(ValueError, match="block 1 makes states that are not finite"):
        spectrum_of([torch.tanh, torch.log], -state.abs())
    with pytest.raises(ValueError, match="block 0 must return as many rows"):
        spectrum_of([lambda x: x.sum()], state)
    with pytest.raises(ValueError, match="k must be at least 1"):
        DepthSettings(k=0)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        DepthSettings(tolerance=0.0)


class Wrong(torch.autograd.Function):
    """x³ with a backward that is right, but differentiated once more gives half of it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.5 * x**2 * grad + 1.5 * x**2 * grad.detach()


@pytest.mark.parametrize("n", [8, 40])
def test_derivatives_that_do_not_belong_together_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="derivatives forward and back differ"):
        spectrum_of([Wrong.apply], gaussian(2, n, seed=9))


@pytest.mark.parametrize("n", [8, 32])
def test_a_chain_that_lets_nothing_but_rounding_through_is_refused(n: int) -> None:
    torch.manual_seed(0)
    blocks = [Function(one, "block") for one in (nn.Linear(n, n), nn.GroupNorm(n, n), nn.Linear(n, n))]
    with pytest.raises(ValueError, match="no more than rounding leaves: one of them takes out all that it is given"):
        measure_depth(blocks, torch.randn(2, n, generator=generator(1)), DepthSettings())


def test_a_chain_in_which_nothing_is_left() -> None:
    found = spectrum_of([torch.tanh, lambda x: x * 0, torch.tanh], gaussian(2, 30, seed=9))
    assert found.per_sample.isneginf().all() and found.trusted.all() and found.gain == -math.inf
    assert found.block_gain[1] == -math.inf and abs(float(found.block_gain[2])) < 1e-12
    assert not found.contributions.isnan().any()
