"""Diagonal recurrences. Oracles: autograd Jacobians of the recurrence with a QR at each step, their dense product, the
general engine, gates whose means are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.engine import diagonal
from lightning_lyapunov.engine.diagonal import DiagonalSpectrum, DiagonalSystem
from lightning_lyapunov.engine.measure import Driven, SystemTally, measure, measure_layers, union_of_layers
from lightning_lyapunov.engine.sequences import Sequences
from lightning_lyapunov.engine.settings import Settings, Start

LENGTHS = [12, 20, 7, 20]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gates(channels: int = 5, width: int = 3, seed: int = 1) -> Callable[[Tensor], Tensor]:
    weights = noise(width, channels, seed=seed)
    return lambda x: logsigmoid(x @ weights + 1)


def recurrence(log_gates: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A step with these gates, some of them negative, and something added."""
    return lambda x, h: h * log_gates(x).exp() * (-1.0) ** torch.arange(h.shape[-1]) + x.sum(-1, keepdim=True).tanh()


def jacobians(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """``(T, D, D)`` along one sequence ``(T, I)`` from zeros."""
    h, made = x.new_zeros(size), []
    for now in x:
        made.append(torch.autograd.functional.jacobian(lambda state, now=now: step(now, state), h))
        h = step(now, h)
    return torch.stack(made)


def rates_by_qr(chain: Tensor) -> Tensor:
    """ln|R_ii| ``(T, D)`` of a chain of Jacobians."""
    frame, rates = torch.eye(chain.shape[-1], dtype=chain.dtype), []
    for jacobian in chain:
        frame, triangle = torch.linalg.qr(jacobian @ frame)
        rates.append(triangle.diagonal().abs().log())
    return torch.stack(rates)


def test_matches_a_qr_at_each_step_of_autograd_jacobians() -> None:
    x = noise(20, 4, 3, seed=2)
    spectrum = lyapunov_spectrum(DiagonalSystem(gates()), Sequences(x, LENGTHS), transient=4, growth=5)
    sums, steps, grown = torch.zeros(5, dtype=torch.float64), 0, []
    for row, length in enumerate(LENGTHS):
        chain = jacobians(recurrence(gates()), x[:length, row], 5)
        rates = rates_by_qr(chain)
        order = spectrum.per_sequence[row].sort(descending=True).values
        assert torch.allclose(order, rates[4:].mean(0).sort(descending=True).values, rtol=0, atol=1e-12)
        sums, steps = sums + rates[4:].sum(0), steps + length - 4
        grown.append(torch.linalg.multi_dot(list(chain.flip(0))))
    expected = (sums / steps).sort(descending=True).values
    assert torch.allclose(spectrum.exponents, expected, rtol=0, atol=1e-12)
    assert spectrum.volume_rate == pytest.approx(float(sums.sum() / steps), abs=1e-12)
    assert abs(spectrum.sum_rule_error) < 1e-12
    growth = spectrum.growth
    assert growth is not None and growth.lengths.tolist() == LENGTHS
    for row, product in enumerate(grown):
        assert torch.allclose(growth.per_sequence[row], torch.linalg.svdvals(product).log(), rtol=0, atol=1e-9)
        gain = (product.square().sum() / 5).log() / 2
        assert float(growth.gain_per_sequence[row]) == pytest.approx(float(gain), abs=1e-12)


def test_agrees_with_the_general_engine_within_its_bars() -> None:
    x = noise(300, 8, 3, seed=3)
    step = recurrence(gates())
    general = lyapunov_spectrum(step, x, state=torch.zeros(8, 5, dtype=torch.float64))
    spectrum = lyapunov_spectrum(DiagonalSystem(gates()), x)
    assert ((spectrum.exponents - general.exponents).abs() < general.error).all()
    assert (spectrum.steps, spectrum.transient, spectrum.sequences) == (236, 64, 8)
    assert spectrum.trusted.all() and spectrum.complete
    assert spectrum.gain == pytest.approx(general.gain, abs=1e-9)
    assert spectrum.volume_rate == pytest.approx(general.volume_rate, abs=1e-9) or math.isnan(general.volume_rate)


def test_a_gate_counts_as_often_as_it_acts() -> None:
    x, log_gates = noise(40, 3, 3), gates()
    kept = lyapunov_spectrum(DiagonalSystem(log_gates, multiplicity=7), x, growth=9)
    listed = lyapunov_spectrum(DiagonalSystem(lambda x: log_gates(x).repeat_interleave(7, -1)), x, growth=9)
    assert kept.dimension == listed.dimension == 35 and kept.complete
    for name in ("exponents", "stderr", "error", "per_sequence", "settled", "trusted", "quantiles"):
        assert torch.equal(getattr(kept, name), getattr(listed, name)), name
    assert kept.volume_rate == pytest.approx(listed.volume_rate, rel=1e-12)
    assert torch.equal(kept.log_singular_values, listed.log_singular_values)
    assert kept.gain == pytest.approx(listed.gain, abs=1e-12)
    assert len(lyapunov_spectrum(DiagonalSystem(log_gates, multiplicity=7), x, k=10).exponents) == 10


def test_rows_stand_in_the_users_order() -> None:
    x = noise(20, 4, 3)
    system = DiagonalSystem(gates())
    spectrum = lyapunov_spectrum(system, Sequences(x, LENGTHS), transient=2)
    for row, length in enumerate(LENGTHS):
        alone = lyapunov_spectrum(system, x[:length, row : row + 1], transient=2)
        assert torch.allclose(spectrum.per_sequence[row].sort().values, alone.exponents.sort().values)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    again = lyapunov_spectrum(system, packed, transient=2)
    assert torch.equal(again.per_sequence, spectrum.per_sequence)
    turned = Sequences(x[:, [1, 3, 0, 2]], [LENGTHS[row] for row in (1, 3, 0, 2)], torch.tensor([1, 3, 0, 2]))
    turned_back = lyapunov_spectrum(system, turned, transient=2)
    assert torch.equal(turned_back.per_sequence, spectrum.per_sequence)
    assert turned_back.growth is not None and spectrum.growth is not None
    assert torch.equal(turned_back.growth.gain_per_sequence, spectrum.growth.gain_per_sequence)


@pytest.mark.parametrize("context", [None, 2])
def test_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, context: int | None) -> None:
    """Gates that look two steps back, a few rows or steps at a time."""
    calls = []

    def log_gates(x: Tensor) -> Tensor:
        calls.append(x.shape[:2].numel() * 3)
        earlier = nn.functional.pad(x, (0, 0, 0, 0, 2, 0))[: len(x)]
        return logsigmoid(x + 2 * earlier)

    x = noise(300, 4, 3)
    whole = lyapunov_spectrum(DiagonalSystem(log_gates, context=context), x)
    calls.clear()
    monkeypatch.setattr(diagonal, "AT_ONCE", 300 if context else 1000)
    pieces = lyapunov_spectrum(DiagonalSystem(log_gates, context=context), x)
    assert max(calls) <= (300 + 3 * 2 if context else 1000)
    assert torch.allclose(whole.exponents, pieces.exponents, rtol=0, atol=1e-14)
    assert torch.allclose(whole.stderr, pieces.stderr) and whole.gain == pytest.approx(pieces.gain)
    assert whole.local is not None and pieces.local is not None
    assert torch.allclose(whole.local.exponents, pieces.local.exponents)
    assert torch.allclose(whole.local.pushes, pieces.local.pushes)


def test_the_bar_of_normal_rates_holds_the_truth() -> None:
    """Rates drawn around known means: in about 95 of 100 channels the bar holds the mean, and its size is known."""
    means = torch.linspace(-500, -0.1, 2000, dtype=torch.float64)  # too far apart to change places
    drawn = noise(64, 16, 2000, seed=4) * 0.05
    spectrum = lyapunov_spectrum(DiagonalSystem(lambda x: means + x), drawn)
    held = ((spectrum.exponents - means.flip(0)).abs() < spectrum.error).double().mean()
    assert 0.93 < float(held) < 0.97
    assert float(spectrum.stderr.mean()) == pytest.approx(0.05 / math.sqrt(16 * 32), rel=0.05)
    assert float(spectrum.settled.double().mean()) > 0.9


def test_gates_that_no_input_moves_are_known_exactly() -> None:
    """A state-space layer: ln|a| is a constant, given once."""
    rates = torch.tensor([-0.5, -0.1, -2.0])
    spectrum = lyapunov_spectrum(DiagonalSystem(lambda x: rates, multiplicity=2), torch.zeros(64, 4, 1))
    assert spectrum.exponents.tolist() == pytest.approx([-0.1, -0.1, -0.5, -0.5, -2.0, -2.0], abs=1e-7)
    assert spectrum.error.abs().max() < 1e-15
    assert spectrum.settled.all()
    assert spectrum.gain == pytest.approx(
        math.log((math.exp(-12.8) + math.exp(-64) + math.exp(-256)) / 3) / 2, abs=1e-6
    )


def test_a_single_sequence_has_the_error_of_its_blocks() -> None:
    x = 0.05 * noise(1024, 1, 4, seed=5)
    spectrum = lyapunov_spectrum(DiagonalSystem(lambda x: x - torch.arange(4)), x)
    assert spectrum.stderr.tolist() == pytest.approx([0.05 / math.sqrt(960)] * 4, rel=0.4)
    assert spectrum.settled.all()
    drifting = x + torch.linspace(0, 1, 1024, dtype=x.dtype)[:, None, None]
    assert not lyapunov_spectrum(DiagonalSystem(lambda x: x - torch.arange(4)), drifting).settled.any()
    assert lyapunov_spectrum(DiagonalSystem(lambda x: x), x[:20]).stderr.isnan().all()


def test_gates_that_drift_have_not_settled() -> None:
    drifting = noise(64, 8, 3) + torch.linspace(0, 4, 64, dtype=torch.float64)[:, None, None]
    assert not lyapunov_spectrum(DiagonalSystem(lambda x: x), drifting).settled.any()


def test_a_closed_gate_is_a_dead_direction_and_an_unknown_one_unknown() -> None:
    def log_gates(x: Tensor) -> Tensor:
        x = x.clone()
        x[50:51, :, 1], x[50:51, :, 2] = -math.inf, math.nan
        return x

    spectrum = lyapunov_spectrum(DiagonalSystem(log_gates), noise(64, 4, 3) - 1)
    first, second, third = spectrum.exponents.tolist()
    assert math.isfinite(first) and second == -math.inf and math.isnan(third)
    assert spectrum.trusted.tolist() == [True, False, False]
    assert not spectrum.settled[2]


def test_of_a_large_state_the_leading_are_listed_and_quantiles_tell_of_the_rest() -> None:
    rates = -torch.linspace(0.01, 3, 100_000, dtype=torch.float64)
    given = []

    def log_gates(x: Tensor) -> Tensor:
        given.append(x.shape[:2].numel())
        return (rates + x).flip(-1)

    spectrum = lyapunov_spectrum(DiagonalSystem(log_gates), 1e-3 * noise(64, 3, 1))
    assert isinstance(spectrum, DiagonalSpectrum)
    assert max(given) * 100_000 <= max(diagonal.AT_ONCE, 64 * 100_000)
    assert spectrum.dimension == 100_000 and len(spectrum.exponents) == diagonal.LISTED
    assert torch.allclose(spectrum.exponents, rates[: diagonal.LISTED], rtol=0, atol=1e-3)
    levels = (torch.arange(256) + 0.5) / 256
    assert torch.allclose(spectrum.quantiles, rates.quantile(1 - levels.double()), rtol=0, atol=1e-3)
    assert spectrum.share_between(-1.0, 0.0) == pytest.approx(0.99 / 2.99, abs=1 / 256)
    assert spectrum.volume_rate == pytest.approx(float(rates.sum()), rel=1e-3)
    few = lyapunov_spectrum(DiagonalSystem(log_gates), 1e-3 * noise(64, 3, 1), k=10)
    assert torch.equal(few.exponents, spectrum.exponents[:10]) and few.log_singular_values.shape == (8,)
    assert repr(few).startswith("LyapunovSpectrum(10 of 100000 exponents")


def test_tallies_of_shares_merge_to_that_of_all() -> None:
    x, system = noise(40, 6, 3), DiagonalSystem(gates(), multiplicity=2)
    whole = measure(system, x, Settings())
    shares = [measure(system, x[:, :2], Settings()), measure(system, x[:, 2:], Settings(), start=Start(first_place=2))]
    merged = SystemTally.merge([share.to("cpu") for share in shares])
    one, two = merged.spectra(None)["cell"], whole.spectra(None)["cell"]
    assert isinstance(one, DiagonalSpectrum) and isinstance(two, DiagonalSpectrum)
    assert torch.allclose(one.exponents, two.exponents) and torch.allclose(one.stderr, two.stderr)
    assert torch.equal(one.per_sequence, two.per_sequence) and torch.equal(one.settled, two.settled)
    assert one.volume_rate == pytest.approx(two.volume_rate) and one.gain == pytest.approx(two.gain)
    assert torch.allclose(one.quantiles, two.quantiles)


def test_stands_beside_other_layers() -> None:
    torch.manual_seed(0)
    x, gru = noise(30, 4, 3), nn.GRU(3, 6).double()
    system = DiagonalSystem(gates(), multiplicity=3)
    layers = {"scan": Driven(system, x, dimension=system.dimension(x)), "gru": Driven(gru, x, dimension=6)}
    union = union_of_layers(measure_layers(layers, Settings(k=8)), 8)
    assert len(union.exponents) == 8 and union.dimension == 21
    assert torch.equal(union.layers["scan"].exponents, lyapunov_spectrum(system, x, k=8).exponents)
    assert isinstance(union.layers["scan"], DiagonalSpectrum)


def test_the_module_is_in_eval_mode_meanwhile_and_as_it_was_afterwards() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    seen = []

    def log_gates(x: Tensor) -> Tensor:
        seen.append((module.training, torch.is_grad_enabled()))
        return logsigmoid(module(x.float()))

    lyapunov_spectrum(DiagonalSystem(log_gates, module=module), noise(30, 4, 3))
    assert set(seen) == {(False, False)} and module.training and module[1].training


def test_the_spectrum_reads_like_any_other() -> None:
    spectrum: LyapunovSpectrum = lyapunov_spectrum(DiagonalSystem(gates()), noise(40, 4, 3))
    assert spectrum.complete and spectrum.interval == 1.0 and spectrum.dtype == torch.float64 and spectrum.driven
    assert spectrum.local is not None and spectrum.local.ends.tolist()[-1] == 40
    mean = (spectrum.local.exponents * (spectrum.local.ends - spectrum.local.starts).unsqueeze(1))[
        spectrum.local.starts >= 20
    ].sum(0)
    assert torch.allclose(mean / 20, spectrum.exponents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": None}, r"inputs of a diagonal system must be a tensor \(T, B, ...\) .* got NoneType"),
        ({"inputs": torch.zeros(5)}, r"at least a step and a sequence; got shape \(5,\)"),
        ({"inputs": torch.zeros(5, 0, 3)}, r"at least a step and a sequence; got \(5, 0, 3\)"),
        ({"inputs": torch.full((5, 2, 3), math.inf)}, "inputs hold NaN or infinite values"),
        ({"steps": 41}, r"steps must lie in \[1, 40\], the steps of inputs; got 41"),
        ({"k": 6}, r"k must lie in \[1, 5\], the dimension of the state; got 6"),
        ({"growth": 6}, r"growth must lie in \[0, 5\], the dimension of the state; got 6"),
        ({"transient": 40}, "transient must leave at least one of the 40 steps to measure; got 40"),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(DiagonalSystem(gates()), **({"inputs": noise(40, 2, 3)} | arguments))


@pytest.mark.parametrize("given", [torch.zeros(3, 2, 5), torch.zeros(40, 2, 5, dtype=torch.complex64), "x"])
def test_gates_that_are_none_are_told(given: object) -> None:
    with pytest.raises(
        ValueError, match=r"log_gates must give ln\|a\|, real numbers \(1, 1, C\) for inputs \(1, 1, 3\)"
    ):
        lyapunov_spectrum(DiagonalSystem(lambda x: given), noise(40, 2, 3))


def test_numbers_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="multiplicity must be at least 1"):
        DiagonalSystem(gates(), multiplicity=0)
    with pytest.raises(ValueError, match="context must be at least 0"):
        DiagonalSystem(gates(), context=-1)


def test_pushes_are_the_root_mean_square_growth_of_dense_products() -> None:
    """Up to the end of each block, of each sequence in the order of the inputs, and together the gain."""
    x = noise(20, 4, 3, seed=2)
    spectrum = lyapunov_spectrum(DiagonalSystem(gates()), Sequences(x, LENGTHS), transient=4, growth=5)
    assert spectrum.local is not None and spectrum.growth is not None
    local = spectrum.local
    steps = torch.minimum(local.ends.unsqueeze(1), torch.tensor(LENGTHS)) - local.starts.unsqueeze(1)
    made = steps * local.pushes
    assert torch.allclose(made.nansum(0), spectrum.growth.gain_per_sequence, rtol=0, atol=1e-12)
    for row, length in enumerate(LENGTHS):
        chain = jacobians(recurrence(gates()), x[:length, row], 5)
        for block, end in enumerate(local.ends.tolist()):
            if end <= length:
                product = torch.linalg.multi_dot([*chain[:end].flip(0), torch.eye(5, dtype=chain.dtype)])
                assert float(made[: block + 1, row].sum()) == pytest.approx(
                    float(product.norm().log() - math.log(5) / 2)
                )
    assert (made.isnan().sum(0) > 0).tolist() == [True, False, True, False]
