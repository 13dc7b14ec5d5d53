"""Spectra against exact and published values."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems import (
    HENON,
    HENON_SUM,
    LORENZ,
    LORENZ_SUM,
    at_place,
    careful_exponents,
    flat,
    henon,
    jacobian_by_autograd,
    linear,
    logistic,
    lorenz,
    network,
    noise,
    orthogonal,
    worst_trusted_error,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum, spectrum_features
from lightning_lyapunov.engine import measure as measure_module
from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.engine.maps.gru import GRUMap
from lightning_lyapunov.engine.precision import TOLERANCE, gap_budget

MACHINE = {"rtol": 0.0, "atol": 1e-13}


def near(tolerance: float) -> dict[str, float]:
    return {"rtol": 0.0, "atol": tolerance}


# ------------------------------------------------------------------ oracle 3: linear maps


def linear_network(matrix: Tensor) -> nn.RNN:
    """A tanh network that rests at zero, where its slope is 1: its Jacobian is its matrix."""
    module = network("tanh", 1, len(matrix), bias=False)
    with torch.no_grad():
        module.weight_hh_l0.copy_(matrix)
    return module


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32])
@pytest.mark.parametrize("gain", [3.0, 0.9, 0.04])
def test_scaled_rotation_gives_its_scale_at_every_step(gain: float, dtype: torch.dtype | None) -> None:
    module = linear_network(gain * orthogonal(6))
    for steps in (1, 5, 200):
        spectrum = lyapunov_spectrum(module, None, steps=steps, dtype=dtype)
        expected = torch.full((6,), math.log(gain), dtype=torch.float64)
        torch.testing.assert_close(spectrum.exponents, expected, **near(1e-13 if dtype == torch.float64 else 1e-6))
        assert spectrum.trusted.all()
        assert spectrum.volume_rate == pytest.approx(6 * math.log(gain), abs=1e-5)


def test_expanding_rotation_does_not_overflow() -> None:
    """Growth by e^4 a step leaves float32 after 22 steps without reorthonormalisation."""
    rotation = math.exp(4) * orthogonal(5)
    for dtype in (torch.float32, torch.float64):
        state = 1e-30 * noise(1, 5, dtype=dtype)
        spectrum = lyapunov_spectrum(linear(rotation.to(dtype)), None, state=state, steps=36)
        torch.testing.assert_close(spectrum.exponents, torch.full((5,), 4.0, dtype=torch.float64), **near(1e-5))


def test_linear_network_has_the_logarithms_of_its_eigenvalues() -> None:
    matrix = noise(8, 8)
    matrix = matrix * (0.95 / torch.linalg.eigvals(matrix).abs().max())
    expected = torch.linalg.eigvals(matrix).abs().log().sort(descending=True).values
    spectrum = lyapunov_spectrum(linear_network(matrix), None, steps=2500, transient=500)
    torch.testing.assert_close(spectrum.exponents, expected, **near(5e-4))
    assert float(spectrum.exponents.sum()) == pytest.approx(float(matrix.slogdet().logabsdet), abs=1e-5)


# ------------------------------------------------------------------ oracle 4: the sum rule


def torchs_states(cell: Any, inputs: Tensor) -> list[Any]:
    """All states a torch cell runs through from zero, ``steps + 1`` of them."""
    zeros = torch.zeros(inputs.shape[1], cell.hidden_size).double()
    states: list[Any] = [(zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros]
    with torch.no_grad():
        for x in inputs:
            states.append(cell(x, states[-1]))
    return states


def logdet(matrix: Tensor) -> Tensor:
    return torch.linalg.slogdet(matrix).logabsdet


def tanh_volume(cell: nn.RNNCell, inputs: Tensor) -> Tensor:
    h = torch.stack(torchs_states(cell, inputs)[1:])
    return logdet(cell.weight_hh) + (1 - h**2).log().sum(-1).mean(0)


def gru_volume(cell: nn.GRUCell, inputs: Tensor) -> Tensor:
    states = torchs_states(cell, inputs)
    jacobians = [jacobian_by_autograd(lambda s, x=x: cell(x, s), h) for x, h in zip(inputs, states[:-1], strict=True)]
    return logdet(torch.stack(jacobians)).mean(0)


def lstm_volume(cell: nn.LSTMCell, inputs: Tensor) -> Tensor:
    states = torchs_states(cell, inputs)
    h = torch.stack([state[0] for state in states[:-1]])
    next_c = torch.stack([state[1] for state in states[1:]])
    gates = inputs @ cell.weight_ih.mT + cell.bias_ih + h @ cell.weight_hh.mT + cell.bias_hh
    _, f, _, o = torch.sigmoid(gates).chunk(4, -1)
    rates = f.log() + (next_c.tanh() * o * (1 - o)).abs().log()
    return rates.sum(-1).mean(0) + logdet(cell.weight_hh[-cell.hidden_size :])


@pytest.mark.parametrize("gain", [None, 1.3])
@pytest.mark.parametrize(
    ("kind", "volume"), [("tanh cell", tanh_volume), ("gru cell", gru_volume), ("lstm cell", lstm_volume)]
)
def test_sum_matches_log_determinant(
    kind: str, volume: Callable[[Any, Tensor], Tensor], gain: float | None, device: torch.device
) -> None:
    cell, inputs = network(kind, 3, 8, gain=gain), noise(60, 2, 3)
    expected = volume(cell, inputs).detach()
    for interval in (None, 1):
        options: dict[str, Any] = {"interval": interval, "dtype": torch.float64, "transient": 0}
        spectrum = lyapunov_spectrum(cell.to(device), inputs.to(device), **options)
        assert spectrum.complete
        limit = 1e-11 if interval == 1 else 1e-6  # what the law lets an interval lose
        torch.testing.assert_close(spectrum.per_sequence.sum(1).cpu(), expected, **near(limit))
        assert spectrum.volume_rate == pytest.approx(float(expected.mean()), abs=1e-10)
        assert abs(spectrum.sum_rule_error) < limit
    cell.to("cpu")


def test_sum_matches_log_determinant_with_projection() -> None:
    module, inputs = network("lstm", 3, 6, gain=1.3, proj_size=4), noise(30, 1, 3)
    state, total = torch.zeros(1, 10).double(), 0.0
    for x in inputs:

        def step(s: Tensor, x: Tensor = x) -> Tensor:
            return torch.cat(module(x[None], (s[None, :, :4].contiguous(), s[None, :, 4:].contiguous()))[1], -1)[0]

        total += float(logdet(jacobian_by_autograd(step, state)))
        state = step(state).detach()
    spectrum = lyapunov_spectrum(module, inputs, interval=1, transient=0)
    assert float(spectrum.exponents.sum()) == pytest.approx(total / 30, abs=1e-10)
    assert abs(spectrum.sum_rule_error) < 1e-10


def test_the_sum_rule_needs_a_whole_spectrum_and_shows_a_bad_one() -> None:
    module, inputs = network("lstm", 3, 32), noise(64, 2, 3)
    assert math.isnan(lyapunov_spectrum(module, inputs, k=3).sum_rule_error)
    assert not math.isnan(lyapunov_spectrum(module, inputs, k=3).volume_rate)
    gru = network("gru", 3, 32)  # two columns more than asked for are pushed, and 16 make the volume the cheaper
    assert math.isnan(lyapunov_spectrum(gru, inputs, k=13, growth=0).volume_rate)
    assert not math.isnan(lyapunov_spectrum(gru, inputs, k=14, growth=0).volume_rate)
    too_long = lyapunov_spectrum(module, inputs, interval=3, dtype=torch.float32).sum_rule_error
    assert not abs(too_long) < 1e-3


# ------------------------------------------------------------------ oracle 5: gates alone


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_gru_without_recurrence_forgets_at_the_rate_of_its_update_gate(bias: float) -> None:
    module = network("gru", 1, 4)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0[4:8], module.bias_hh_l0[4:8] = bias, bias
    spectrum = lyapunov_spectrum(module, torch.zeros(40, 2, 1).double())
    torch.testing.assert_close(
        spectrum.exponents, torch.full((4,), -math.log1p(math.exp(-2 * bias)), dtype=torch.float64), **near(1e-6)
    )
    exact = lyapunov_spectrum(module, torch.zeros(40, 2, 1).double(), dtype=torch.float64)
    torch.testing.assert_close(
        exact.exponents, torch.full((4,), -math.log1p(math.exp(-2 * bias)), dtype=torch.float64), **MACHINE
    )


@pytest.mark.parametrize(("bias", "expected"), [(0.0, -0.6931), (0.5, -0.3133)])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_lstm_without_recurrence_is_half_dead(bias: float, expected: float, dtype: torch.dtype | None) -> None:
    module = network("lstm", 1, 4)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0[4:8], module.bias_hh_l0[4:8] = bias, bias
    spectrum = lyapunov_spectrum(module, torch.zeros(40, 2, 1).double(), dtype=dtype, transient=4)
    assert spectrum.exponents[:4].tolist() == pytest.approx([expected] * 4, abs=5e-5)
    torch.testing.assert_close(
        spectrum.exponents[:4], torch.full((4,), -math.log1p(math.exp(-2 * bias)), dtype=torch.float64), **near(1e-6)
    )
    assert spectrum.exponents[4:].tolist() == [-math.inf] * 4
    assert spectrum.trusted.tolist() == [True] * 4 + [False] * 4
    assert spectrum.volume_rate == -math.inf


# ------------------------------------------------------------------ oracles 6 and 7: random networks

MEAN_FIELD = {1.5: (0.0652, -0.714), 2.0: (0.1547, -1.149), 3.0: (0.3103, -2.273)}


def random_network(size: int, gain: float, seed: int) -> nn.RNN:
    """h ← tanh(J h): the same cocycle as x ← J tanh(x), a step later."""
    module = network("tanh", 1, size)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.weight_hh_l0.copy_(gain / math.sqrt(size) * noise(size, size, seed=seed))
    return module


@pytest.mark.parametrize("gain", MEAN_FIELD)
def test_random_network_follows_mean_field_theory(gain: float) -> None:
    """Of the mean exponent, the sum rule's side: that the exponents sum to it is another test's."""
    largest, mean = MEAN_FIELD[gain]
    found = [
        lyapunov_spectrum(random_network(400, gain, seed), None, state=noise(1, 2, 400), steps=600, transient=200, k=1)
        for seed in range(3)
    ]
    assert sorted(float(s.exponents[0]) for s in found)[1] == pytest.approx(largest, abs=0.02)
    assert sorted(s.volume_rate / 400 for s in found)[1] == pytest.approx(mean, abs=0.02 if gain > 1.5 else 0.03)


@pytest.mark.slow
def test_random_network_has_the_published_spectrum() -> None:
    """g = 3, N = 4096, as davidclark1/rnn-lyapunov has it; here a tenth off, for N = 128."""
    found = []
    for seed in range(3):
        module = random_network(128, 3.0, seed)
        spectrum = lyapunov_spectrum(module, None, state=noise(1, 2, 128), steps=500, transient=100)
        features = spectrum_features(spectrum)
        found.append([
            features["max"], features["unstable_fraction"], features["kolmogorov_sinai_entropy"] / 128,
            features["kaplan_yorke_dimension"] / 128, features["mean"],
        ])  # fmt: skip
    mean = torch.tensor(found).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.3096, 0.1526, 0.0251, 0.2872, -2.274]), rtol=0.1, atol=0.0)


# ------------------------------------------------------------------ oracles 8 and 9: maps and a flow


def test_henon_map_has_its_published_exponents() -> None:
    state = 0.1 * torch.rand(200, 2, dtype=torch.float64)
    spectrum = lyapunov_spectrum(henon, None, state=state, steps=700, transient=50)
    torch.testing.assert_close(spectrum.exponents, torch.tensor(HENON, dtype=torch.float64), **near(1e-3))
    torch.testing.assert_close(
        spectrum.per_sequence.sum(1), torch.full((200,), HENON_SUM, dtype=torch.float64), **near(1e-6)
    )
    assert spectrum.volume_rate == pytest.approx(HENON_SUM, abs=1e-12)
    assert spectrum.trusted.all() and not spectrum.driven


def test_logistic_map_has_one_exponent_ln_2() -> None:
    """One dimension, and a state without an axis of its own. The law of the finite-time mean is known: 1/T off."""
    state = torch.rand(200, dtype=torch.float64)
    spectrum = lyapunov_spectrum(logistic, None, state=state, steps=200)
    assert spectrum.dimension == 1 and spectrum.complete and spectrum.exponents.shape == (1,)
    assert float(spectrum.exponents[0]) == pytest.approx(math.log(2), abs=2e-3)
    assert spectrum.volume_rate == pytest.approx(float(spectrum.exponents[0]), abs=1e-12)


@pytest.mark.slow
def test_lorenz_flow_has_its_published_exponents() -> None:
    dt = 0.01
    state = torch.tensor([1.0, 1.0, 20.0]) + noise(128, 3)
    spectrum = lyapunov_spectrum(lorenz(dt), None, state=state, steps=6000, transient=1000)
    torch.testing.assert_close(spectrum.exponents / dt, torch.tensor(LORENZ, dtype=torch.float64), **near(1e-2))
    assert float(spectrum.exponents.sum() / dt) == pytest.approx(LORENZ_SUM, abs=1e-2)
    assert spectrum_features(spectrum)["kaplan_yorke_dimension"] == pytest.approx(2.062, abs=2e-3)


# ------------------------------------------------------------------ oracle 10: the transient


@pytest.mark.parametrize("transient", [1, 7, 8, 32, 45])
@pytest.mark.parametrize("interval", [None, 1, 5, 40])
def test_only_the_rate_after_the_transient_counts(transient: int, interval: int | None) -> None:
    """A map that changes its rate there; the last step before it and the first one after are of different kinds."""
    factors = torch.full((transient + 50, 2, 1), 0.5, dtype=torch.float64)
    factors[:transient] = 3.0
    state = torch.ones(2, 1, dtype=torch.float64)
    spectrum = lyapunov_spectrum(lambda x, s: x * s, factors, state=state, transient=transient, interval=interval)
    torch.testing.assert_close(spectrum.exponents, torch.tensor([math.log(0.5)], dtype=torch.float64), **MACHINE)
    assert spectrum.volume_rate == pytest.approx(math.log(0.5), abs=1e-13)
    assert spectrum.steps == 50 and spectrum.transient == transient and spectrum.sequences == 2


@pytest.mark.parametrize(("steps", "transient"), [(1, 0), (5, 4), (40, 0), (100, 33)])
def test_steps_are_those_measured(steps: int, transient: int) -> None:
    module, inputs = network("tanh", 2, 3), noise(100, 2, 2)
    spectrum = lyapunov_spectrum(module, inputs, steps=steps, transient=transient)
    assert (spectrum.steps, spectrum.transient) == (steps - transient, transient)
    assert torch.equal(spectrum.exponents, lyapunov_spectrum(module, inputs[:steps], transient=transient).exponents)


def test_the_transient_aligns_the_frame() -> None:
    """Measured from any frame, a stretch grows alike once the transient is over."""
    module, inputs = network("tanh", 3, 6, gain=1.3), noise(300, 1, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    first, second = (
        lyapunov_spectrum(module, inputs, transient=250, k=1, interval=1, generator=g).exponents for g in generators
    )
    torch.testing.assert_close(first, second, **near(1e-9))
    with pytest.raises(AssertionError):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        first, second = (
            lyapunov_spectrum(module, inputs[:50], k=1, interval=1, transient=0, generator=g).exponents
            for g in generators
        )
        torch.testing.assert_close(first, second, **near(1e-9))


# ------------------------------------------------------------------ oracle 11: what must not matter

KINDS = ["tanh", "gru", "lstm"]


@pytest.mark.parametrize("kind", KINDS)
def test_interval_does_not_matter_while_the_law_allows_it(kind: str) -> None:
    module, inputs = network(kind, 3, 6, gain=1.5), noise(90, 2, 3)
    reference = lyapunov_spectrum(module, inputs, interval=1, dtype=torch.float64)
    for interval in (None, 2, 3, 7):
        spectrum = lyapunov_spectrum(module, inputs, interval=interval)
        assert spectrum.trusted.any()
        assert worst_trusted_error(spectrum, reference) < TOLERANCE
        if interval:  # 45 steps of transient, and two halves of what counts
            cuts = [math.ceil(n / interval) for n in (45, 22, 23)]
            assert spectrum.interval == pytest.approx(90 / sum(cuts), rel=0.2) and spectrum.interval <= interval


@pytest.mark.parametrize("kind", KINDS)
def test_other_sequences_of_the_batch_do_not_matter(kind: str) -> None:
    """Each in its place, since the frame that it starts from is that of its place."""
    module, inputs = network(kind, 3, 6, gain=1.3), noise(60, 4, 3)
    together = lyapunov_spectrum(module, inputs, interval=1).per_sequence
    with_loud_ones = torch.cat([inputs[:, :1], 5 * inputs[:, 1:]], 1)
    for row in range(4):
        alone = at_place(module, inputs[:, row : row + 1], row, interval=1)["l0"].per_sequence[0]
        torch.testing.assert_close(alone.sort().values, together[row].sort().values, **near(1e-9))
    disturbed = lyapunov_spectrum(module, with_loud_ones, interval=1).per_sequence[0]
    torch.testing.assert_close(disturbed.sort().values, together[0].sort().values, **near(1e-9))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_sequences_does_not_matter_beyond_the_error_bars(kind: str) -> None:
    """It permutes their frames, so that other exponents come out; of the volume, which knows no frame, the same."""
    module, inputs, order = network(kind, 3, 6), noise(60, 16, 3), torch.randperm(16)
    plain, permuted = (lyapunov_spectrum(module, x, interval=1) for x in (inputs, inputs[:, order]))
    assert ((permuted.exponents - plain.exponents).abs() < torch.minimum(plain.error, permuted.error)).all()
    assert not torch.equal(permuted.exponents, plain.exponents)
    sums = plain.per_sequence.sum(1)[order]
    torch.testing.assert_close(permuted.per_sequence.sum(1), sums, **near(1e-9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_leading_exponents_are_the_first_of_the_whole(kind: str, dtype: torch.dtype) -> None:
    """The first columns of a frame know nothing of the others: only the order may be another, after few steps."""
    module, inputs = network(kind, 3, 10), noise(200, 2, 3)
    whole = lyapunov_spectrum(module, inputs, interval=1, transient=20, dtype=dtype)
    for k in (1, 4, whole.dimension):
        part = lyapunov_spectrum(module, inputs, interval=1, transient=20, k=k, dtype=dtype)
        for per_exponent in (part.exponents, part.stderr, part.error, part.trusted, part.settled):
            assert per_exponent.shape == (k,)
        assert part.per_sequence.shape == (2, k) and part.dimension == whole.dimension
        assert part.complete == (k == whole.dimension)
        expected = whole.exponents[:k]
        torch.testing.assert_close(part.exponents, expected, **near(1e-9 if dtype == torch.float64 else 1e-3))


def is_leading(module: nn.Module, inputs: Tensor, **options: Any) -> None:
    """The first k are those of the whole spectrum within .3 of its standard errors, within .1 from 16 steps on."""
    limit = 0.3 if len(inputs) < 16 else 0.1
    whole = lyapunov_spectrum(module, inputs, growth=0, **options)
    for k in (1, 2, 4, 8):
        for growth in (0, None):
            leading = lyapunov_spectrum(module, inputs, k=k, growth=growth, **options).exponents
            assert ((leading - whole.exponents[:k]).abs() < limit * whole.stderr[:k]).all(), (len(inputs), k)


@pytest.mark.parametrize("size", [12, 48])
@pytest.mark.parametrize("gain", [None, 1.8])
@pytest.mark.parametrize("kind", KINDS)
def test_leading_exponents_of_short_sequences_lead(kind: str, gain: float | None, size: int) -> None:
    module = network(kind, 3, size, gain=gain, seed=size)
    for steps in (6, 8, 16, 64):
        is_leading(module, noise(steps, 16, 3, seed=steps))


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_leading_exponents_of_a_trained_reader_of_digits_lead(kind: str) -> None:
    """8 rows of 8 pixels, 16 images, 2 or 4 steps of transient: where, without spare columns and with one frame for
    all images, ``k=1`` gave the second exponent of an LSTM."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    rows = torch.tensor(images / 16).float().view(-1, 8, 8).transpose(0, 1)
    module, head = network(kind, 8, 32).float(), nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 5e-3)
    for batch in torch.randperm(1280).repeat(4).split(64):
        loss = nn.functional.cross_entropy(head(module(rows[:, batch])[0][-1]), torch.tensor(labels)[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0
    for transient in (None, 2):
        is_leading(module, rows[:, 1280:1296], transient=transient)


def test_a_measurement_repeats_itself_exactly() -> None:
    module, inputs = network("gru", 3, 6), noise(60, 2, 3)
    first, second = (lyapunov_spectrum(module, inputs) for _ in range(2))
    assert torch.equal(first.exponents, second.exponents) and torch.equal(first.stderr, second.stderr)


# ------------------------------------------------------------------ oracle 12: stacks


@pytest.mark.parametrize("kind", ["tanh cell", "lstm cell"])
def test_union_of_layers_equals_the_qr_of_the_stack(kind: str) -> None:
    cells = [network(kind, 3, 4, gain=1.3, seed=1), network(kind, 4, 4, gain=1.3, seed=2)]
    module = network(kind.split()[0], 3, 4, num_layers=2)
    with torch.no_grad():
        for layer, cell in enumerate(cells):
            for name, weight in cell.named_parameters():
                getattr(module, f"{name}_l{layer}").copy_(weight)
    parts = 2 if kind == "lstm cell" else 1

    def stack(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for layer, cell in enumerate(cells):
            own = state[parts * layer : parts * (layer + 1)]
            new = cell(x, own if parts == 2 else own[0])
            state = (*state[: parts * layer], *(new if parts == 2 else (new,)), *state[parts * (layer + 1) :])
            x = state[parts * layer]
        return state

    inputs, zeros = noise(1000, 1, 3), torch.zeros(1, 4).double()
    union = lyapunov_spectrum(module, inputs, dtype=torch.float64, transient=100)
    stacked = lyapunov_spectrum(stack, inputs, state=(zeros,) * (2 * parts), transient=100)
    torch.testing.assert_close(union.exponents, stacked.exponents, **near(0.04))  # .03 seen: neighbours mix
    torch.testing.assert_close(union.exponents.sum(), stacked.exponents.sum(), **near(1e-6))
    assert union.volume_rate == pytest.approx(stacked.volume_rate, abs=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_kept_and_their_union_is_sorted(kind: str) -> None:
    module, inputs = network(kind, 3, 4, gain=1.2, num_layers=2, bidirectional=True), noise(50, 3, 3)
    spectrum = lyapunov_spectrum(module, inputs, interval=1)
    assert list(spectrum.layers) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    layers = list(spectrum.layers.values())
    everything = torch.cat([layer.exponents for layer in layers])
    assert torch.equal(spectrum.exponents, everything.sort(descending=True).values)
    assert spectrum.dimension == sum(layer.dimension for layer in layers) and spectrum.complete
    torch.testing.assert_close(spectrum.per_sequence.mean(0), spectrum.exponents, **near(1e-12))
    assert abs(spectrum.sum_rule_error) < 1e-9
    for name, layer in spectrum.layers.items():
        assert layer.layers == {"l0": layer}, name
        for exponent, error in zip(layer.exponents, layer.stderr, strict=True):
            assert error in spectrum.stderr[spectrum.exponents == exponent]


def test_a_layer_is_measured_as_if_it_were_alone() -> None:
    module, inputs = network("gru", 3, 4, num_layers=2), noise(50, 3, 3)
    first = network("gru", 3, 4)
    with torch.no_grad():
        for name, weight in first.named_parameters():
            weight.copy_(getattr(module, name))
    both = lyapunov_spectrum(module, inputs, interval=1)
    alone = lyapunov_spectrum(first, inputs, interval=1)
    torch.testing.assert_close(both.layers["l0"].per_sequence, alone.per_sequence, **near(1e-12))
    second = nn.GRU(4, 4).double()
    with torch.no_grad():
        for name, weight in second.named_parameters():
            weight.copy_(getattr(module, name.replace("l0", "l1")))
        outputs = first(inputs)[0]
    alone = lyapunov_spectrum(second, outputs, interval=1)
    torch.testing.assert_close(both.layers["l1"].per_sequence, alone.per_sequence, **near(1e-10))


def test_leading_exponents_of_a_stack_are_those_of_the_union() -> None:
    module, inputs = network("tanh", 3, 4, gain=1.2, num_layers=3), noise(200, 2, 3)
    whole = lyapunov_spectrum(module, inputs, interval=1, transient=50)
    for k in (1, 3, 7, 12):
        part = lyapunov_spectrum(module, inputs, interval=1, transient=50, k=k)
        assert part.exponents.shape == (k,) and part.dimension == 12 and part.complete == (k == 12)
        assert all(len(layer.exponents) == min(k, 4) for layer in part.layers.values())
        torch.testing.assert_close(part.exponents, whole.exponents[:k], **near(1e-9))


def test_union_of_different_batch_sizes_has_unknown_rows() -> None:
    module = network("tanh", 3, 2)
    given = {"a": noise(40, 3, 3), "b": noise(30, 1, 3, seed=1)}
    parts = {name: lyapunov_spectrum(module, inputs, transient=0) for name, inputs in given.items()}
    union = LyapunovSpectrum.union(parts)
    assert union.sequences == 3 and union.steps == 30 and union.per_sequence.shape == (3, 4)
    assert int(union.per_sequence[0].isnan().sum()) == 0
    assert union.per_sequence[1:].isnan().sum(1).tolist() == [2, 2]
    assert union.volume_rate == pytest.approx(sum(part.volume_rate for part in parts.values()))
    for name in parts:
        assert union.layers[name] is parts[name]


def test_union_says_the_narrowest_type_of_its_parts() -> None:
    module, inputs = network("tanh", 3, 2), noise(40, 3, 3)
    wide, narrow = (lyapunov_spectrum(module, inputs, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert LyapunovSpectrum.union({"a": wide, "b": narrow}).dtype == torch.float32
    assert LyapunovSpectrum.union({"a": narrow, "b": wide}).dtype == torch.float32


def test_union_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="parts must hold at least one spectrum; got none"):
        LyapunovSpectrum.union({})


# ------------------------------------------------------------------ oracle 13: a perturbed copy


def growth_of_a_copy(step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, state: Tensor, transient: int) -> float:
    """Mean growth of a distance of 1e-7, brought back to it after each step."""
    distance, total = 1e-7, 0.0
    direction = noise(*state.shape, seed=3)
    copy = state + distance * direction / direction.norm()
    with torch.no_grad():
        for t, x in enumerate(inputs):
            state, copy = step(x, torch.cat([state, copy])).chunk(2)
            growth = float((copy - state).norm() / distance)
            copy = state + (copy - state) / growth
            total += math.log(growth) * (t >= transient)
    return total / (len(inputs) - transient)


@pytest.mark.parametrize("kind", ["tanh cell", "gru cell", "lstm cell"])
def test_largest_exponent_is_the_growth_of_a_perturbed_copy(kind: str) -> None:
    cell, inputs = network(kind, 3, 8, gain=1.2), noise(2500, 1, 3)
    lstm = kind == "lstm cell"

    def step(x: Tensor, s: Tensor) -> Tensor:
        return flat(cell(x.expand(2, -1), tuple(s.chunk(2, -1)) if lstm else s))

    size = 16 if lstm else 8
    spectrum = lyapunov_spectrum(cell, inputs, k=2, transient=500)
    expected = growth_of_a_copy(step, inputs, torch.zeros(1, size).double(), 500)
    assert float(spectrum.exponents[0]) == pytest.approx(expected, abs=1e-3)


def test_largest_exponent_of_a_chaotic_map_is_the_growth_of_a_perturbed_copy() -> None:
    spectrum = lyapunov_spectrum(henon, None, state=torch.zeros(1, 2).double(), steps=2100, transient=100, k=1)
    inputs = torch.zeros(2100, 1)
    expected = growth_of_a_copy(henon, inputs, torch.zeros(1, 2).double(), 100)
    assert float(spectrum.exponents[0]) == pytest.approx(expected, abs=1e-3)


# ------------------------------------------------------------------ what is to be trusted

NETS = [(kind, gain, size) for kind in KINDS for gain in (None, 1.3) for size in (10, 24, 48, 96)]
"""Three cells at torch's own initialisation and at a gain of 1.3, from a block's size to several of them."""


@pytest.mark.parametrize(("kind", "gain", "size"), NETS)
def test_trusted_exponents_are_within_tolerance_of_the_careful_ones(kind: str, gain: float | None, size: int) -> None:
    """Against float64 and Householder each step, for the whole spectrum and for its beginning, in either type."""
    module, inputs = network(kind, 3, size, gain=gain), noise(48, 6, 3)
    for k in (None, min(32, size)):
        reference = careful_exponents(module, inputs, k)
        for dtype in (None, torch.float32):
            spectrum = lyapunov_spectrum(module, inputs, dtype=dtype, k=k, transient=0, growth=0)
            assert worst_trusted_error(spectrum, reference) < TOLERANCE
            assert spectrum.trusted[:2].all() and spectrum.trusted.double().mean() > 0.65
            if dtype is None:
                assert spectrum.trusted.double().mean() > 0.95


def test_trusted_exponents_of_a_trained_network_are_within_tolerance() -> None:
    """An LSTM of 64 units that has learnt to say what it saw 4 steps ago."""
    module, out = network("lstm", 1, 64).float(), nn.Linear(64, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *out.parameters()], 5e-3)
    for _ in range(60):
        x = torch.randn(24, 32, 1)
        loss = (out(module(x)[0][4:]) - x[:-4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.9
    inputs = noise(48, 6, 1)
    spectrum = lyapunov_spectrum(module, inputs, transient=0)
    assert worst_trusted_error(spectrum, careful_exponents(module, inputs)) < TOLERANCE
    assert spectrum.trusted.double().mean() > 0.95


def test_an_interval_too_long_is_not_trusted_but_for_the_fastest() -> None:
    module, inputs = network("lstm", 3, 20), noise(64, 2, 3)
    reference = lyapunov_spectrum(module, inputs, interval=1, dtype=torch.float64)
    spectrum = lyapunov_spectrum(module, inputs, interval=16, dtype=torch.float32)
    assert spectrum.trusted[0] and not spectrum.trusted[20:].any()
    assert worst_trusted_error(spectrum, reference) < TOLERANCE
    assert not (spectrum.exponents - reference.exponents).abs()[-1] < 0.1
    assert (spectrum.dtype, spectrum.interval) == (torch.float32, 16.0)
    assert bool(reference.trusted.all()) and (reference.dtype, reference.interval) == (torch.float64, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trust_ends_where_the_gap_of_an_interval_exceeds_the_budget(dtype: torch.dtype) -> None:
    """Two directions a nat per step apart: the gap is the interval, and past the budget nothing is lost yet."""
    module = linear_network(torch.diag(torch.tensor([1.0, math.exp(-1)], dtype=torch.float64)))
    longest, rest = int(gap_budget(dtype)), torch.zeros(1, 2, 2).double()  # blocks of one sequence would cut it short
    for interval, trusted in ((longest, True), (longest + 1, False)):
        options: dict[str, Any] = {"steps": 32 * interval, "transient": 4 * interval, "interval": interval}
        spectrum = lyapunov_spectrum(module, None, state=rest, dtype=dtype, **options)
        torch.testing.assert_close(spectrum.exponents, torch.tensor([0.0, -1.0]).double(), **near(TOLERANCE))
        assert spectrum.trusted.tolist() == [True, trusted]


def test_a_direction_the_interval_lost_is_unknown_and_comes_last() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64))
    spectrum = lyapunov_spectrum(linear_network(matrix), None, steps=40, interval=8)
    assert spectrum.exponents[2].isnan() and spectrum.exponents[:2].isfinite().all()
    assert spectrum.trusted.tolist() == [True, True, False]
    chosen = lyapunov_spectrum(linear_network(matrix), None, steps=4000, transient=50)
    torch.testing.assert_close(chosen.exponents, matrix.diagonal().log(), **near(1e-3))


def test_known_exponents_stand_before_dead_ones_and_those_before_unknown_ones() -> None:
    parts = {}
    for name, value in (("a", math.nan), ("b", -math.inf), ("c", -1.0), ("d", 2.0)):
        measured = lyapunov_spectrum(linear(torch.eye(1).double()), None, state=torch.ones(1, 1).double(), steps=3)
        parts[name] = LyapunovSpectrum(**{**vars(measured), "exponents": torch.tensor([value])})
    exponents = LyapunovSpectrum.union(parts).exponents.tolist()
    assert exponents[:3] == [2.0, -1.0, -math.inf] and math.isnan(exponents[3])


def test_relu_units_that_are_off_are_dead() -> None:
    """All off: nothing is left. Some off for good: as many dead directions, and the living are those of the rest."""
    module = network("relu", 1, 6, gain=1.0)
    with torch.no_grad():
        module.bias_ih_l0.fill_(-100.0)
    spectrum = lyapunov_spectrum(module, None, steps=20)
    assert spectrum.exponents.tolist() == [-math.inf] * 6 and spectrum.volume_rate == -math.inf
    assert not spectrum.trusted.any()
    with torch.no_grad():
        module.bias_ih_l0[:4] = 100.0
        module.weight_hh_l0.copy_(0.2 * noise(6, 6))
    spectrum = lyapunov_spectrum(module, None, steps=1200, transient=200)
    living = torch.linalg.eigvals(module.weight_hh_l0[:4, :4].detach()).abs().log().sort(descending=True).values
    torch.testing.assert_close(spectrum.exponents[:4], living, **near(2e-3))
    assert spectrum.exponents[4:].tolist() == [-math.inf] * 2
    assert spectrum.trusted.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("kind", ["relu", "relu cell"])
def test_states_that_overflow_are_unknown_rather_than_dead(kind: str) -> None:
    module, inputs = network(kind, 3, 6, gain=1e30), noise(40, 4, 3)
    spectrum = lyapunov_spectrum(module, inputs)
    assert spectrum.exponents.isnan().all() and math.isnan(spectrum.volume_rate)
    assert not spectrum.trusted.any()
    assert lyapunov_spectrum(module, inputs, steps=3).exponents[0] > 50  # until then it is what it is


# ------------------------------------------------------------------ error bars and sequences


def test_standard_error_is_the_spread_between_sequences() -> None:
    spectrum = lyapunov_spectrum(network("gru", 3, 5), noise(50, 7, 3), interval=1)
    torch.testing.assert_close(spectrum.exponents, spectrum.per_sequence.mean(0), **near(1e-13))
    torch.testing.assert_close(spectrum.stderr, spectrum.per_sequence.std(0) / math.sqrt(7), **near(1e-13))


def test_packed_sequences_weigh_by_their_steps_and_keep_the_users_rows() -> None:
    """Against each sequence measured alone; the third ends within the transient."""
    module, lengths, transient = network("gru", 3, 4), [30, 50, 5, 41], 10
    inputs = noise(50, 4, 3)
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    spectrum = lyapunov_spectrum(module, packed, interval=1, transient=transient)
    rows, weights = [], []
    for row, length in enumerate(lengths):
        if length > transient:
            own = inputs[:length, row : row + 1]
            alone = at_place(module, own, row, interval=1, transient=transient)["l0"].exponents
            torch.testing.assert_close(spectrum.per_sequence[row].sort().values, alone.sort().values, **near(1e-9))
            rows.append(spectrum.per_sequence[row])
            weights.append(length - transient)
        else:
            assert spectrum.per_sequence[row].isnan().all()
    weight, rates = torch.tensor(weights).double() / sum(weights), torch.stack(rows)
    mean = weight @ rates
    torch.testing.assert_close(spectrum.exponents, mean, **near(1e-12))
    variance = 3 / 2 * (weight.square() @ (rates - mean).square())
    torch.testing.assert_close(spectrum.stderr, variance.sqrt(), **near(1e-12))
    assert (spectrum.steps, spectrum.sequences) == (40, 4)
    assert abs(spectrum.sum_rule_error) < 1e-10


def test_error_bar_of_a_single_sequence_is_the_spread_of_independent_runs() -> None:
    """Logistic map in the chaotic sea beside r = 4, where neighbouring steps are correlated."""

    def sea(_: Tensor | None, state: Tensor) -> Tensor:
        return 3.9 * state * (1 - state)

    starts = torch.rand(40, dtype=torch.float64)
    spread = float(lyapunov_spectrum(sea, None, state=starts, steps=450, transient=50).per_sequence.std())
    alone = [lyapunov_spectrum(sea, None, state=starts[i : i + 1], steps=450, transient=50) for i in range(3)]
    typical = sorted(float(spectrum.stderr[0]) for spectrum in alone)[1]
    assert spread / 2 < typical < 2 * spread


def test_error_bar_of_a_single_sequence_knows_of_slow_drives() -> None:
    """A GRU that forgets at the rate σ(x), under an x that stays alike for fifty steps: the sum of ln σ(x) is exact."""
    steps, memory = 12800, 0.98
    kicks = math.sqrt(1 - memory**2) * noise(steps, 100)
    drives = [noise(100, seed=1)]
    for kick in kicks[1:]:
        drives.append(memory * drives[-1] + kick)
    x = torch.stack(drives)
    module = network("gru", 1, 1, gain=0.0)
    with torch.no_grad():
        module.weight_ih_l0[1] = 1.0

    spectrum = lyapunov_spectrum(module, x[:, :1, None], dtype=torch.float64, transient=0)
    rates = torch.sigmoid(x).log().mean(0)
    torch.testing.assert_close(spectrum.exponents, rates[:1], **near(1e-9))
    assert float(rates.std()) / 1.5 < float(spectrum.stderr[0]) < 1.5 * float(rates.std())


@pytest.mark.parametrize("transient", [0, 9])
@pytest.mark.parametrize("steps", [1, 40, 63, 64, 70])
def test_a_single_sequence_has_an_error_bar_from_64_measured_steps_on(steps: int, transient: int) -> None:
    spectrum = lyapunov_spectrum(network("tanh", 3, 4), noise(steps + transient, 1, 3), transient=transient)
    assert spectrum.exponents.isfinite().all() and spectrum.steps == steps
    for bar in (spectrum.stderr, spectrum.error):
        assert (bar.isfinite() if steps >= 64 else bar.isnan()).all()


def test_error_bar_of_a_single_sequence_is_that_of_its_blocks_of_16_steps() -> None:
    """A scalar map whose growth is its input: the blocks are averages of known numbers, the last one shorter."""
    rates = noise(150, 1, 1)
    one = torch.ones(1, 1).double()
    spectrum = lyapunov_spectrum(lambda x, s: s * x.exp(), rates, state=one, transient=10, interval=3)
    blocks = rates[10:, 0, 0].split(16)
    weights = torch.tensor([len(block) for block in blocks]).double() / 140
    mean = rates[10:].mean()
    variance = (weights * (torch.stack([block.mean() for block in blocks]) - mean)).square().sum() * 9 / 8
    torch.testing.assert_close(spectrum.exponents, mean[None], **near(1e-12))
    torch.testing.assert_close(spectrum.stderr, variance.sqrt()[None], **near(1e-12))
    expected = math.hypot(2.306 * float(variance.sqrt()), 0.4 / 140)  # Student's factor for 8 degrees of freedom
    assert float(spectrum.error[0]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("sequences", [1, 8])
def test_tolerance_ends_early_with_every_error_below_it(sequences: int) -> None:
    module, inputs = network("gru", 3, 4), noise(1500, sequences, 3)
    careful: dict[str, Any] = {"transient": 10, "interval": 1, "dtype": torch.float64}
    spectrum = lyapunov_spectrum(module, inputs, tolerance=0.02, **careful)
    assert 32 <= spectrum.steps < 1490
    assert (spectrum.stderr < 0.02).all()
    same = lyapunov_spectrum(module, inputs[: 10 + spectrum.steps], **careful)
    # Near, not equal: a product with longer inputs may be rounded in another order.
    torch.testing.assert_close(spectrum.exponents, same.exponents, **near(1e-9))
    torch.testing.assert_close(spectrum.stderr, same.stderr, **near(1e-9))
    to_the_end = lyapunov_spectrum(module, inputs[:100], tolerance=1e-9, transient=0)
    assert to_the_end.steps == 100


def test_tolerance_leaves_dead_directions_out() -> None:
    module = network("relu", 3, 4)
    with torch.no_grad():
        module.bias_ih_l0.copy_(torch.tensor([50.0, 50.0, 50.0, -50.0]))
        module.weight_hh_l0.mul_(0.1)
    spectrum = lyapunov_spectrum(module, noise(300, 4, 3), tolerance=0.1)
    assert spectrum.steps < 300 and spectrum.exponents[3] == -math.inf


# ------------------------------------------------------------------ what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "k=0": ({"k": 0}, r"k must be at least 1, or None for the whole spectrum; got 0\."),
    "k=-2": ({"k": -2}, r"k must be at least 1, or None for the whole spectrum; got -2\."),
    "k=5": ({"k": 5}, r"k must lie in \[1, 4\], the dimension of the state; got 5\."),
    "transient=-1": ({"transient": -1}, r"transient must be at least 0, or None for .* at most 64 steps; got -1\."),
    "transient=10": ({"transient": 10}, r"transient must leave at least one of the 10 steps to measure; got 10\."),
    "transient of steps": (
        {"transient": 7, "steps": 6},
        r"transient must leave at least one of the 6 steps to measure; got 7\.",
    ),
    "interval=0": ({"interval": 0}, r"interval must be at least 1, or None for the precision law to choose; got 0\."),
    "half": ({"dtype": torch.float16}, r"dtype must be torch\.float32, torch\.float64 or None; got torch\.float16\."),
    "bfloat": ({"dtype": torch.bfloat16}, r"dtype must be .* got torch\.bfloat16\."),
    "tolerance=0": ({"tolerance": 0.0}, r"tolerance must be above 0 nats per step, or None; got 0\.0\."),
    "tolerance=-1": ({"tolerance": -1.0}, r"tolerance must be above 0 nats per step, or None; got -1\.0\."),
    "growth=-1": ({"growth": -1}, r"growth must be at least 0, the number of singular values, or None for 8; got -1\."),
    "growth=5": ({"growth": 5}, r"growth must lie in \[0, 4\], the dimension of the state; got 5\."),
    "tolerance=nan": ({"tolerance": math.nan}, r"tolerance must be above 0 nats per step, or None; got nan\."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name_and_value(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(network("tanh", 3, 4), noise(10, 2, 3), **options)


def test_k_of_a_stack_may_exceed_a_layer_but_not_the_network() -> None:
    module, inputs = network("tanh", 3, 4, num_layers=2), noise(10, 2, 3)
    assert lyapunov_spectrum(module, inputs, k=8).complete
    with pytest.raises(ValueError, match=r"k must lie in \[1, 8\], the dimension of the state; got 9\."):
        lyapunov_spectrum(module, inputs, k=9)


def test_a_spectrum_shows_what_matters() -> None:
    spectrum = lyapunov_spectrum(linear_network(2 * orthogonal(3)), None, steps=40, k=2)
    shown = (
        "LyapunovSpectrum(2 of 3 exponents, max +0.6931 ± nan nats/step, 2 trusted, 0 settled, 20 steps × 1 sequences)"
    )
    assert repr(spectrum) == shown


# ------------------------------------------------------------------ few sequences, many steps


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lyapunov.engine.segments.SHORTEST_SEGMENT", 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [1, 2])
def test_segments_of_time_give_the_exponents_of_the_whole(kind: str, sequences: int, short_segments: None) -> None:
    """Against float64 and Householder along the uncut path; what every start of a frame adds is below 1/200."""
    module, inputs = network(kind, 3, 8, gain=1.2), noise(1009, sequences, 3)
    cut = lyapunov_spectrum(module, inputs, transient=100)
    expected = careful_exponents(module, inputs, transient=100)
    torch.testing.assert_close(cut.exponents, expected, **near(0.01))
    assert (cut.steps, cut.sequences, cut.transient) == (909, sequences, 100)
    assert cut.per_sequence.shape == (sequences, len(cut.exponents)) and cut.stderr.isfinite().all()
    torch.testing.assert_close(cut.per_sequence.mean(0), cut.exponents)
    assert abs(cut.sum_rule_error) < 1e-5  # every step is counted once: the volume is that of the whole path


def test_time_is_cut_only_where_that_changes_nothing(short_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for cells of one's own, more than two sequences, or sequences that end early."""
    cuts = []
    original = measure_module.cut_in_time
    monkeypatch.setattr(measure_module, "cut_in_time", lambda *a: cuts.append(a[2]) or original(*a))
    module = network("gru", 3, 4)
    lyapunov_spectrum(module, noise(900, 1, 3))
    lyapunov_spectrum(module, noise(900, 2, 3))
    assert cuts == [4, 4]
    lyapunov_spectrum(module, noise(399, 1, 3))
    lyapunov_spectrum(module, noise(900, 3, 3))
    lyapunov_spectrum(module, pack_padded_sequence(noise(900, 2, 3), torch.tensor([900, 899])))
    lyapunov_spectrum(henon, None, state=torch.zeros(1, 2).double(), steps=900)
    assert cuts == [4, 4]


# ------------------------------------------------------------------ the sum rule where the volume has no closed form


def test_large_gru_is_audited_now_and_then() -> None:
    module, inputs = network("gru", 3, 70, gain=1.3), noise(80, 3, 3)
    spectrum = lyapunov_spectrum(module, inputs, transient=0)
    assert math.isnan(spectrum.volume_rate)
    assert abs(spectrum.sum_rule_error) < 1e-8 and spectrum.trusted.all()
    assert math.isnan(lyapunov_spectrum(module, inputs, k=10).sum_rule_error)
    coarse = lyapunov_spectrum(module, inputs, interval=6, dtype=torch.float32)
    assert abs(coarse.sum_rule_error) > 100 * abs(spectrum.sum_rule_error)  # it tells


def test_exponents_at_odds_with_the_volume_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Jacobian pushed twice as strongly as its volume says."""
    push = GRUMap.push_condensed
    monkeypatch.setattr(GRUMap, "push_condensed", lambda *a: 2 * push(*a))
    spectrum = lyapunov_spectrum(network("gru", 3, 70), noise(80, 4, 3))  # 4 · 70² is too large to be dense
    assert spectrum.sum_rule_error == pytest.approx(70 * math.log(2))
    assert not spectrum.trusted.any()


# ------------------------------------------------------------------ warm start


def test_frames_that_are_kept_start_the_same_measurement_where_it_left_off() -> None:
    """With the weights unchanged, the second measurement is the first one without its transient's tangents."""
    module, inputs, frames = network("lstm", 3, 8), noise(60, 4, 3), Frames()
    options: dict[str, Any] = {"transient": 20, "interval": 1, "dtype": torch.float64}  # else the law looks elsewhere
    first, second = (lyapunov_spectrum(module, inputs, frames=frames, **options) for _ in range(2))
    torch.testing.assert_close(first.exponents, second.exponents, **MACHINE)
    torch.testing.assert_close(first.exponents, lyapunov_spectrum(module, inputs, **options).exponents, **MACHINE)
    assert first.settled.any() and not second.settled.any()  # a rate that rests on old frames has not settled by itself


def test_frames_begin_anew_every_so_often_and_on_other_inputs() -> None:
    module, inputs, frames = network("gru", 3, 8), noise(60, 4, 3), Frames(refresh=3)
    kept = []
    for given in (inputs, inputs, inputs, inputs, noise(60, 4, 3, seed=9)):
        frames.begin(given, None)
        kept.append(frames.get("l0", torch.empty(4, 8, 8)) is not None)
        frames.keep("l0", torch.zeros(4, 8, 8))
    assert kept == [False, True, True, False, False]
    frames.begin(noise(60, 4, 3, seed=9), None)
    assert frames.get("l0", torch.empty(4, 8, 7)) is None  # another k
    lyapunov_spectrum(module, inputs, transient=20, frames=frames)
    packed = pack_padded_sequence(inputs, torch.full((4,), 60))
    lyapunov_spectrum(module, packed, transient=20, frames=frames)
    lyapunov_spectrum(module, packed, transient=20, k=3, frames=frames)


def test_frames_are_bounded() -> None:
    frames = Frames(most=100)
    frames.begin(noise(3, 1, 1), None)
    frames.keep("small", torch.zeros(1, 5, 10))
    frames.keep("large", torch.zeros(1, 8, 8))
    assert frames.get("small", torch.empty(1, 5, 10)) is not None and frames.get("large", torch.empty(1, 8, 8)) is None
