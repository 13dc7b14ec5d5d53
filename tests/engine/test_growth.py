"""Growth over a sequence against the dense product of its Jacobians, closed forms, exact arithmetic and autograd."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from systems import Matrix, linear, network, noise, orthogonal, products_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.engine.growth import Product, columns
from lightning_lyapunov.engine.spectrum import SequenceGrowth

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward mode
SIZE, BATCH = 64, 16


class Leaky(nn.Module):
    """A cell of nobody's family with two parts of state, of which the second is not seen."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs + hidden, hidden).double()
        with torch.no_grad():
            self.inner.weight.copy_(noise(hidden, inputs + hidden) * 1.2 / math.sqrt(hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, slow = state
        return torch.tanh(self.inner(torch.cat([x, h], -1)) + slow), 0.8 * slow + 0.3 * h


def leaky(size: int) -> tuple[Any, Any]:
    return Leaky(3, size // 2), (torch.zeros(BATCH, size // 2).double(),) * 2


SYSTEMS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "tanh": lambda size: (network("tanh", 3, size, gain=1.2), None),
    "tanh, torch's weights": lambda size: (network("tanh", 3, size), None),
    "relu": lambda size: (network("relu", 3, size, gain=1.2), None),
    "gru": lambda size: (network("gru", 3, size, gain=1.5), None),
    "gru cell": lambda size: (network("gru cell", 3, size, gain=0.9), None),
    "lstm": lambda size: (network("lstm", 3, size // 2, gain=1.5), None),
    "lstm, torch's weights": lambda size: (network("lstm", 3, size // 2), None),
    "lstm projected": lambda size: (network("lstm", 3, size - size // 4, gain=1.5, proj_size=size // 4), None),
    "own cell": leaky,
}


def measured(system: Any, inputs: Any, state: Any, **options: Any) -> SequenceGrowth:
    growth = lyapunov_spectrum(system, inputs, state=state, **options).growth
    assert growth is not None
    return growth


def gains(products: Tensor, visible: int) -> Tensor:
    """(B,) by their definition."""
    return (products[:, :visible].square().sum((-2, -1)) / visible).log() / 2


# ------------------------------------------------------------------ the dense product


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("steps", [6, 8, 16, 32, 64])
def test_leading_singular_values_and_gain_are_those_of_the_dense_product(name: str, steps: int) -> None:
    """Of 64 dimensions, 16 columns: within .05 nats on average over sequences, the gain within .1, .02 from T = 16."""
    system, state = SYSTEMS[name](SIZE)
    inputs = noise(steps, BATCH, 3, seed=steps)
    growth = measured(system, inputs, state, k=8, dtype=torch.float64)
    products, visible = products_of(system, inputs, state)
    expected = products.log_singular_values()[:, :8]
    assert growth.per_sequence.shape == (BATCH, 8) and growth.lengths.tolist() == [steps] * BATCH
    alive = expected.isfinite()
    off = torch.where(alive, growth.per_sequence - expected, 0.0).mean(0).abs()
    assert float(off.max()) < 0.05
    found = growth.gain_per_sequence - gains(products.dense, visible)
    assert float(found.mean().abs()) < (0.02 if steps >= 16 else 0.1)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 20, 64])
def test_whole_spectra_come_from_the_triangles(name: str, steps: int, dtype: torch.dtype | None) -> None:
    """All 12 of them, to what the precision law leaves; those that a dense product in float64 can tell."""
    system, state = SYSTEMS[name](12)
    inputs = noise(steps, BATCH, 3, seed=steps)
    growth = measured(system, inputs, state, growth=12, dtype=dtype)
    products, visible = products_of(system, inputs, state)
    expected = products.log_singular_values()
    known = expected > expected[:, :1] - 16
    limit = 1e-6 if dtype == torch.float64 else 1e-3 * max(steps, 8)
    off = (growth.per_sequence - expected)[known].abs()
    assert float(off.max()) < limit
    torch.testing.assert_close(growth.gain_per_sequence, gains(products.dense, visible), rtol=0.0, atol=limit)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm projected"])
def test_packed_sequences_grow_from_their_own_first_step_to_their_own_last(name: str) -> None:
    """Against the dense product of each sequence; as a part of 64 dimensions, however long the longest one is."""
    lengths = [9, 40, 6, 31, 17, 40]
    inputs = noise(40, len(lengths), 3)
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    for size, k, limit in ((10, None, 1e-7), (SIZE, 4, 0.05)):
        system, _ = SYSTEMS[name](size)
        growth = measured(system, packed, None, k=k, dtype=torch.float64, interval=1)
        assert growth.lengths.tolist() == lengths
        for row, length in enumerate(lengths):
            products, visible = products_of(system, inputs[:length, row : row + 1], None)
            expected = products.log_singular_values()[0, : growth.per_sequence.shape[1]]
            known = expected > expected[0] - 16
            off = (growth.per_sequence[row] - expected)[known].abs()
            assert float(off.max()) < limit, length
            gain = gains(products.dense, visible)[0]
            assert float((growth.gain_per_sequence[row] - gain).abs()) < limit, length


def test_small_states_are_carried_whole() -> None:
    """Where a frame and its probes would not fit beside each other: no state is too small for any k."""
    assert [columns(8, size) for size in (1, 8, 16, 19, 20, 21, 64)] == [1, 8, 16, 19, 20, 16, 16]
    for size in range(1, 22):
        module, inputs = network("tanh", 2, size, gain=1.0), noise(10, 3, 2)
        growth = measured(module, inputs, None, k=1)
        products, _ = products_of(module, inputs, None)
        expected = products.log_singular_values()[:, :1]
        torch.testing.assert_close(growth.per_sequence, expected, rtol=0.0, atol=0.05)


# ------------------------------------------------------------------ maps with known singular values


def full(size: int, value: float) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)


def of_matrix(matrix: Tensor, steps: int, **options: Any) -> LyapunovSpectrum:
    state = 1e-3 * noise(2, len(matrix))
    return lyapunov_spectrum(linear(matrix), None, state=state, steps=steps, transient=0, **options)


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("steps", [6, 40])
def test_an_orthogonal_map_grows_as_its_scale(scale: float, steps: int) -> None:
    """All singular values are alike, so that no frame turns to leading ones: they are low by some tenths where only a
    part of them is carried; the gain, which probes complete, is right to the noise of 4 of them, 64 dimensions."""
    expected = steps * math.log(scale)
    whole = of_matrix(scale * orthogonal(10), steps)
    torch.testing.assert_close(whole.log_singular_values, full(8, expected), rtol=0.0, atol=1e-8)
    assert whole.gain == pytest.approx(expected, abs=1e-8)
    part = of_matrix(scale * orthogonal(SIZE), steps, k=4)
    assert part.gain == pytest.approx(expected, abs=0.1)
    assert ((part.log_singular_values - expected).abs() < 0.5).all()


@pytest.mark.parametrize("steps", [1, 7, 64, 200])
@pytest.mark.parametrize("k", [None, 2])
def test_a_diagonal_map_grows_as_its_entries(k: int | None, steps: int) -> None:
    """By up to 600 nats apart: beyond float64."""
    rates = torch.tensor([-3.0, 0.5, -1.0, 0.0, -2.0, 0.25]).double()
    found = of_matrix(rates.exp().diag(), steps, k=k).log_singular_values
    expected = (steps * rates).sort(descending=True).values[: len(found)]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-3 if k is None else 1e-2)


@pytest.mark.parametrize("steps", [1, 6, 50])
def test_a_normal_map_grows_as_its_eigenvalues_at_every_number_of_steps(steps: int) -> None:
    rates = torch.linspace(0.3, -1.2, 40).double()
    basis = orthogonal(40)
    spectrum = of_matrix(basis * rates.exp() @ basis.mT, steps, k=6, dtype=torch.float64)
    torch.testing.assert_close(spectrum.log_singular_values, steps * rates[:6], rtol=0.0, atol=0.05)
    exact = math.log(float((2 * steps * rates).exp().sum()) / 40) / 2
    assert spectrum.gain == pytest.approx(exact, abs=0.1 if steps < 16 else 0.02)


@pytest.mark.parametrize("steps", [1, 5, 100, 2000])
def test_a_shear_grows_linearly_while_its_exponents_are_zero(steps: int) -> None:
    """[[1, a], [0, 1]]^T: sinh(ln σ₁) = a T / 2, and ln σ₂ = -ln σ₁; the gain of both rows, ½ ln(1 + (a T)² / 2)."""
    shear = torch.tensor([[1.0, 0.7], [0.0, 1.0]], dtype=torch.float64)
    spectrum = of_matrix(shear, steps, dtype=torch.float64)
    largest = math.asinh(0.35 * steps)
    expected = torch.tensor([largest, -largest], dtype=torch.float64)
    torch.testing.assert_close(spectrum.log_singular_values, expected, rtol=0.0, atol=1e-9)
    assert spectrum.gain == pytest.approx(0.5 * math.log(1 + (0.7 * steps) ** 2 / 2), abs=1e-9)
    assert float(spectrum.exponents.abs().max()) < 1.1 * largest / steps


@pytest.mark.parametrize("order", [(2.0, 1 / 64), (1 / 64, 2.0)])
def test_a_triangular_map_beyond_float64_has_its_closed_form(order: tuple[float, float]) -> None:
    """[[a, 1], [0, d]]^T has a corner of (a^T - d^T) / (a - d); σ₁² + σ₂² is its square, σ₁ σ₂ its determinant."""
    (a, d), steps = order, 100
    spectrum = of_matrix(torch.tensor([[a, 1.0], [0.0, d]]).double(), steps)
    exact_a, exact_d = Fraction(a), Fraction(d)
    powers = exact_a**steps, exact_d**steps
    squares = powers[0] ** 2 + powers[1] ** 2 + ((powers[0] - powers[1]) / (exact_a - exact_d)) ** 2
    largest = log_of(squares) / 2
    expected = torch.tensor([largest, steps * math.log(a * d) - largest], dtype=torch.float64)
    torch.testing.assert_close(spectrum.log_singular_values, expected, rtol=0.0, atol=1e-3)
    assert spectrum.gain == pytest.approx(largest - math.log(2) / 2, abs=1e-3)


def log_of(number: Fraction) -> float:
    return math.log(number.numerator) - math.log(number.denominator)


@pytest.mark.parametrize("steps", [5, 40, 150])
def test_a_product_of_random_matrices_has_the_singular_values_of_exact_arithmetic(steps: int) -> None:
    """Whose directions differ by 2 and 5 nats a step and turn at each: the squares of the entries of M and of its
    minors are sums over σ_i² and over σ_i² σ_j², whose largest term all but makes them up."""
    spread = torch.tensor([1.0, 2.0**-3, 2.0**-10]).double()
    matrices = [torch.round(64 * noise(3, 3, seed=s)) / 64 * spread for s in range(steps)]
    exact = Matrix.of(torch.eye(3))
    for matrix in matrices:
        exact = Matrix.of(matrix) @ exact
    det = exact.minors(3).entries[0][0]
    largest, two = log_of(exact.squares()) / 2, log_of(exact.minors(2).squares()) / 2
    expected = torch.tensor([largest, two - largest, log_of(abs(det)) - two], dtype=torch.float64)
    drive = torch.stack(matrices).unsqueeze(1)
    state = torch.zeros(1, 3).double()
    spectrum = lyapunov_spectrum(
        lambda x, h: (x @ h.unsqueeze(-1)).squeeze(-1), drive, state=state, dtype=torch.float64
    )
    torch.testing.assert_close(spectrum.log_singular_values, expected, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "lstm projected", "own cell"])
@pytest.mark.parametrize("steps", [3, 64, 300])
def test_singular_values_multiply_to_the_determinant(name: str, steps: int) -> None:
    """Whatever the frame: Σ ln σ = Σ ln R = ln|det|, which other code knows, however far they spread."""
    system, state = SYSTEMS[name](16)
    spectrum = lyapunov_spectrum(
        system, noise(steps, BATCH, 3), state=state, growth=16, transient=0, interval=1, dtype=torch.float64
    )
    assert spectrum.growth is not None
    sums = spectrum.growth.per_sequence.sum(1)
    torch.testing.assert_close(sums, steps * spectrum.per_sequence.sum(1), rtol=1e-9, atol=1e-6)
    assert float(sums.mean()) == pytest.approx(steps * spectrum.volume_rate, rel=1e-9, abs=1e-6)


# ------------------------------------------------------------------ what is dead, and what is not known


@pytest.mark.parametrize("size", [6, 40])
def test_dead_directions_are_told_as_minus_infinity(size: int) -> None:
    """A relu network of which two units alone are on, for good: rank 2, and the product of a 2 x 2 matrix."""
    module = network("relu", 1, size)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0.fill_(-100.0)
        module.bias_ih_l0[:2] = 100.0
        module.weight_hh_l0[:2, :2] = torch.tensor([[0.6, 0.2], [0.0, 0.5]])
    steps = 30
    spectrum = lyapunov_spectrum(module, torch.zeros(steps, 3, 1).double(), k=4)
    living = torch.linalg.matrix_power(module.weight_hh_l0[:2, :2].detach(), steps)
    found = spectrum.log_singular_values
    torch.testing.assert_close(found[:2], torch.linalg.svdvals(living).log(), rtol=0.0, atol=1e-3)
    assert found[2:].tolist() == [-math.inf] * 2
    assert spectrum.gain == pytest.approx(math.log(float(living.square().sum()) / size) / 2, abs=1e-3)


def test_a_sequence_that_forgets_everything_has_a_gain_of_minus_infinity() -> None:
    spectrum = lyapunov_spectrum(lambda x, h: 0 * h + x, noise(8, 2, 3), state=noise(2, 3))
    assert spectrum.log_singular_values.tolist() == [-math.inf] * 3 and spectrum.gain == -math.inf


@pytest.mark.parametrize("size", [6, 40])
def test_states_that_overflow_leave_the_growth_unknown(size: int) -> None:
    """Of the sequences whose states do; the others are told."""
    module = network("relu", 3, size, gain=1e30)
    spectrum = lyapunov_spectrum(module, noise(40, 4, 3), k=4)
    assert spectrum.log_singular_values.isnan().all() and math.isnan(spectrum.gain)
    inputs = torch.tensor([0.0, 1e308], dtype=torch.float64).expand(12, 2).unsqueeze(-1)
    some = lyapunov_spectrum(lambda x, h: torch.relu(2 * h + 1e3 * x), inputs, state=torch.ones(2, size).double(), k=2)
    assert some.growth is not None
    torch.testing.assert_close(some.growth.per_sequence[0], full(2, 12 * math.log(2)), rtol=0, atol=0.3)
    assert some.growth.per_sequence[1].isnan().all()
    assert some.growth.gain_per_sequence.isnan().tolist() == [False, True]


# ------------------------------------------------------------------ what a gradient does


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "lstm projected"])
@pytest.mark.parametrize("steps", [1, 8, 40])
def test_gain_is_the_root_mean_square_gradient_of_unit_read_outs(kind: str, steps: int) -> None:
    """By autograd through torch's own module, of each entry of the last h back to the whole first state."""
    system = network(kind.split()[0], 3, 9, gain=1.4, **({"proj_size": 4} if "projected" in kind else {}))
    seen, inputs = 4 if "projected" in kind else 9, noise(steps, 2, 3)
    parts = [torch.zeros(1, 2, size).double().requires_grad_() for size in ([seen, 9] if "lstm" in kind else [9])]
    last = system(inputs, tuple(parts) if len(parts) == 2 else parts[0])[1]
    h = last[0] if len(parts) == 2 else last
    squares = torch.zeros(2).double()
    for i in range(seen):
        gradients = torch.autograd.grad(h[0, :, i].sum(), parts, retain_graph=True)
        squares += sum(gradient[0].square().sum(-1) for gradient in gradients)
    growth = measured(system, inputs, None, dtype=torch.float64)
    torch.testing.assert_close(growth.gain_per_sequence, (squares / seen).log() / 2, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_a_gradient_grows_between_the_extreme_singular_values(kind: str) -> None:
    """Of a linear read-out of the whole last state; over many of them its mean square is that of M."""
    system, inputs = network(kind, 3, 6, gain=1.4), noise(12, 1, 3)
    parts = [torch.zeros(1, 1, 6).double().requires_grad_() for _ in range(2 if kind == "lstm" else 1)]
    last = system(inputs, tuple(parts) if len(parts) == 2 else parts[0])[1]
    state = torch.cat(last if isinstance(last, tuple) else [last], -1)[0, 0]
    size = len(state)
    growth = measured(system, inputs, None, growth=size, dtype=torch.float64).per_sequence[0]
    squares = []
    for read_out in noise(400, size):
        gradients = torch.autograd.grad(state @ read_out, parts, retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm() / read_out.norm()
        assert growth[-1] - 1e-9 < norm.log() < growth[0] + 1e-9
        squares.append(float(norm.square()))
    expected = (2 * growth).exp().mean()
    assert sum(squares) / len(squares) == pytest.approx(float(expected), rel=0.25)


# ------------------------------------------------------------------ what is kept, and when it is measured


@pytest.mark.parametrize("name", ["tanh", "lstm"])
def test_states_kept_by_stretch_give_what_kept_jacobians_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 steps: above 512 the Jacobians are made again for each pass."""
    system, _ = SYSTEMS[name](SIZE)
    inputs = noise(600, 3, 3)
    stretched = measured(system, inputs, None, k=2)
    monkeypatch.setattr("lightning_lyapunov.engine.growth.KEPT_WHOLE", 10**6)
    whole = measured(system, inputs, None, k=2)
    torch.testing.assert_close(stretched.per_sequence, whole.per_sequence, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(stretched.gain_per_sequence, whole.gain_per_sequence, rtol=0.0, atol=1e-9)


def test_long_sequences_are_measured_when_asked_for() -> None:
    module, inputs = network("tanh", 1, 2), noise(4097, 1, 1)
    assert lyapunov_spectrum(module, inputs).growth is None
    assert lyapunov_spectrum(module, inputs[:4096]).growth is not None
    asked = lyapunov_spectrum(module, inputs, growth=1)
    assert asked.log_singular_values.shape == (1,) and asked.growth.lengths.tolist() == [4097]  # type: ignore[union-attr]


@pytest.mark.parametrize(("k", "growth", "told"), [(None, None, 8), (3, None, 3), (3, 5, 5), (3, 12, 12), (12, 1, 1)])
def test_as_many_as_asked_for_are_told(k: int | None, growth: int | None, told: int) -> None:
    spectrum = lyapunov_spectrum(network("gru", 3, 12), noise(20, 3, 3), k=k, growth=growth)
    assert spectrum.log_singular_values.shape == (told,) and len(spectrum.exponents) == (k or 12)
    assert (spectrum.log_singular_values.diff() <= 0).all()


def test_without_growth_there_is_none_and_no_gain() -> None:
    spectrum = lyapunov_spectrum(network("gru", 3, 5), noise(20, 3, 3), growth=0)
    assert spectrum.growth is None and spectrum.log_singular_values.shape == (0,) and math.isnan(spectrum.gain)


def test_growth_does_not_change_the_exponents() -> None:
    module, inputs = network("lstm", 3, 20, gain=1.2), noise(50, 4, 3)
    options: dict[str, Any] = {"k": 4, "interval": 1, "dtype": torch.float64}
    with_it, without = (lyapunov_spectrum(module, inputs, growth=growth, **options) for growth in (8, 0))
    torch.testing.assert_close(with_it.exponents, without.exponents, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("options", [{"tolerance": 1e-9}, {"second_start": True}, {"interval": 5}, {"transient": 7}])
def test_growth_is_over_the_whole_sequence_however_exponents_are_measured(options: dict[str, Any]) -> None:
    module, inputs = network("gru", 3, 30, gain=1.2), noise(50, 4, 3)
    expected = products_of(module, inputs, None)[0].log_singular_values()[:, :4]
    found = measured(module, inputs, None, k=4, dtype=torch.float64, **options).per_sequence
    torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0.0, atol=0.05)


def test_growth_in_float32_is_that_in_float64() -> None:
    """Whole spectra that spread by 30 nats too, though no float32 does: the triangles are multiplied in float64."""
    module, inputs = network("gru", 3, 8, gain=1.0), noise(60, 4, 3)
    wide, narrow = (
        measured(module, inputs, None, dtype=dtype, transient=0) for dtype in (torch.float64, torch.float32)
    )
    assert float(wide.log_singular_values[0] - wide.log_singular_values[-1]) > 20
    torch.testing.assert_close(narrow.per_sequence, wide.per_sequence, rtol=0.0, atol=0.02)
    torch.testing.assert_close(narrow.gain_per_sequence, wide.gain_per_sequence, rtol=0.0, atol=1e-3)


# ------------------------------------------------------------------ means and errors


def test_mean_and_error_are_those_of_independent_sequences() -> None:
    """There is no bias beside the spread: Student's factor times the standard error."""
    growth = SequenceGrowth(noise(12, 3), noise(12, seed=1), torch.full((12,), 7))
    torch.testing.assert_close(growth.log_singular_values, growth.per_sequence.mean(0))
    stderr = growth.per_sequence.std(0) / math.sqrt(12)
    torch.testing.assert_close(growth.stderr, stderr)
    torch.testing.assert_close(growth.error, 2.201 * stderr, rtol=1e-3, atol=0.0)
    assert growth.gain == pytest.approx(float(growth.gain_per_sequence.mean()))
    assert growth.gain_error == pytest.approx(2.201 * growth.gain_stderr, rel=1e-3)
    alone = SequenceGrowth(noise(1, 3), noise(1), torch.tensor([7]))
    assert alone.stderr.isnan().all() and math.isnan(alone.gain_error)
    merged = SequenceGrowth.merge([growth, alone])
    assert merged.per_sequence.shape == (13, 3) and merged.lengths.tolist() == [7] * 13


@pytest.mark.parametrize("count", [1, 3, 40])
def test_products_of_triangles_are_those_of_the_matrices(count: int) -> None:
    """Scaled rows against a plain product; sequences that end early keep what they have."""
    triangles = [noise(2 if i < 2 else 1, 5, 5, seed=i).triu() for i in range(count)]
    product = Product.one(2, 5, torch.zeros(1).double())
    product.times_all(triangles, [1] * count)
    for row in range(2):
        plain = torch.eye(5).double()
        for triangle in triangles:
            plain = triangle[row] @ plain if row < len(triangle) else plain
        found = product.scale[row].exp().unsqueeze(-1) * product.rows[row]
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9 * float(plain.abs().max()))
        expected = torch.linalg.svdvals(plain)
        values = product.log_singular_values()[row].exp()
        known = expected > 1e-9 * expected[0]
        torch.testing.assert_close(values[known], expected[known], rtol=1e-5, atol=0.0)


def test_one_dead_sequence_among_many_does_not_make_a_typical_one_dead() -> None:
    """Means by hand: of the living where most live, minus infinity where most are dead."""
    dead = -math.inf
    few = SequenceGrowth(
        torch.tensor([[1.0, dead], [2.0, dead], [3.0, 0.0], [dead, dead]]).double(),
        torch.tensor([1.0, dead, 2.0, 3.0]).double(),
        torch.tensor([3, 3, 3, 3]),
    )
    assert few.log_singular_values.tolist() == [2.0, dead]
    assert few.gain == 2.0 and few.gain_stderr == pytest.approx(1 / math.sqrt(3))
    half = SequenceGrowth(few.per_sequence[2:], torch.tensor([1.0, dead]).double(), torch.tensor([3, 3]))
    assert half.gain == dead


def test_what_rectified_units_cannot_carry_is_minus_infinity() -> None:
    """The rank of a product is at most the fewest units that were on at a step: beyond it nothing is left."""
    module, inputs = network("relu", 3, 16), noise(40, 4, 3)
    growth = lyapunov_spectrum(module, inputs, growth=16).growth
    assert growth is not None
    fewest = (module(inputs)[0] > 0).sum(-1).amin(0)
    for values, on in zip(growth.per_sequence, fewest.tolist(), strict=True):
        assert on < 16 and values[on:].isneginf().all() and values[0].isfinite()
