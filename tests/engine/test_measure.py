"""What a measurement is told to do, its error bars, and when it says that exponents have settled."""

import math
import re
from typing import Any

import pytest
import torch
from systems import network, noise, tally_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.engine.frames import Frames
from lightning_lyapunov.engine.measure import Driven, measure, measure_layers, union_of_layers
from lightning_lyapunov.engine.sequences import Sequences
from lightning_lyapunov.engine.settings import Settings, Start
from lightning_lyapunov.engine.trajectory import Trajectory
from lightning_lyapunov.reading.features import known_growth

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
CAREFUL: dict[str, Any] = {"interval": 1, "dtype": torch.float64, "growth": 0}


class Rates(nn.Module):
    """A state each of whose entries grows by a number of its own, its input: exponents are means of known numbers."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return state * x.exp()


def rates_of(values: Tensor, **options: Any) -> LyapunovSpectrum:
    """Exponents of one entry that grows by ``values`` ``(T, B)``, nats."""
    state = torch.ones(values.shape[1], 1).double()
    return lyapunov_spectrum(Rates(), values.unsqueeze(-1), state=state, **{**CAREFUL, **options})


# ------------------------------------------------------------------ settings

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "k": ({"k": 0}, "k must be at least 1, or None for the whole spectrum; got 0."),
    "transient": (
        {"transient": -3},
        "transient must be at least 0, or None for half of each sequence, at most 64 steps; got -3.",
    ),
    "interval": ({"interval": 0}, "interval must be at least 1, or None for the precision law to choose; got 0."),
    "dtype": ({"dtype": torch.int32}, "dtype must be torch.float32, torch.float64 or None; got torch.int32."),
    "tolerance": ({"tolerance": -0.1}, "tolerance must be above 0 nats per step, or None; got -0.1."),
    "growth": ({"growth": -1}, "growth must be at least 0, the number of singular values, or None for 8; got -1."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_out_of_range_are_refused_by_name_and_value(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**options)


@pytest.mark.parametrize(("length", "transient"), [(1, 0), (2, 1), (8, 4), (9, 4), (127, 63), (128, 64), (5000, 64)])
def test_the_transient_is_half_of_a_sequence_and_at_most_64_steps(length: int, transient: int) -> None:
    assert Settings().transient_of(length) == transient
    assert Settings(transient=5).transient_of(length) == 5
    spectrum = lyapunov_spectrum(network("tanh", 2, 3), noise(length, 2, 2), growth=0)
    assert (spectrum.transient, spectrum.steps) == (transient, length - transient)


def test_each_row_of_a_packed_batch_has_a_transient_of_its_own() -> None:
    """Known rates: the mean of what is left of each, and the whole weighs by it."""
    lengths, values = [6, 200, 1, 31], noise(200, 4)
    packed = pack_padded_sequence(values.unsqueeze(-1), torch.tensor(lengths), enforce_sorted=False)
    spectrum = lyapunov_spectrum(Rates(), packed, state=torch.ones(4, 1).double(), **CAREFUL)
    starts = [3, 64, 0, 15]
    expected = [values[start:end, row].mean() for row, (start, end) in enumerate(zip(starts, lengths, strict=True))]
    torch.testing.assert_close(spectrum.per_sequence[:, 0], torch.stack(expected), **EXACT)
    steps = torch.tensor([end - start for start, end in zip(starts, lengths, strict=True)]).double()
    torch.testing.assert_close(spectrum.exponents[0], steps @ torch.stack(expected) / steps.sum(), **EXACT)
    assert (spectrum.steps, spectrum.transient) == (136, 64)
    given = lyapunov_spectrum(Rates(), packed, state=torch.ones(4, 1).double(), transient=2, **CAREFUL)
    assert given.per_sequence[2].isnan().all() and given.transient == 2


def test_sequences_are_measured_as_the_tensor_or_the_packed_batch_that_they_are() -> None:
    module, inputs, lengths = network("gru", 3, 5), noise(30, 3, 3), [12, 30, 7]
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    for ours, given in ((Sequences(inputs, lengths), packed), (Sequences(inputs, [30] * 3), inputs)):
        one, other = (lyapunov_spectrum(module, x) for x in (ours, given))
        torch.testing.assert_close(one.per_sequence, other.per_sequence, **EXACT)


# ------------------------------------------------------------------ the error bar


@pytest.mark.parametrize("sequences", [2, 4, 20])
@pytest.mark.parametrize("steps", [8, 40, 400])
def test_the_bar_is_students_and_what_a_short_measurement_leaves(steps: int, sequences: int) -> None:
    """hypot(t · stderr, 0.4 / N)."""
    stats = pytest.importorskip("scipy.stats")
    spectrum = rates_of(noise(steps, sequences))
    factor = stats.t.ppf(0.975, sequences - 1)
    measured = steps - min(steps // 2, 64)
    torch.testing.assert_close(spectrum.stderr, spectrum.per_sequence.std(0) / math.sqrt(sequences), **EXACT)
    expected = math.hypot(factor * float(spectrum.stderr[0]), 0.4 / measured)
    assert float(spectrum.error[0]) == pytest.approx(expected, rel=1e-3)


def test_the_bar_of_packed_sequences_goes_by_their_mean_steps() -> None:
    """Of those that were measured at all, which are the samples too."""
    stats = pytest.importorskip("scipy.stats")
    lengths, values = [30, 12, 3, 25], noise(30, 4)
    packed = pack_padded_sequence(values.unsqueeze(-1), torch.tensor(lengths), enforce_sorted=False)
    spectrum = lyapunov_spectrum(Rates(), packed, state=torch.ones(4, 1).double(), transient=4, **CAREFUL)
    factor = stats.t.ppf(0.975, 2)
    expected = math.hypot(factor * float(spectrum.stderr[0]), 0.4 / ((26 + 8 + 21) / 3))
    assert float(spectrum.error[0]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [2, 3, 8])
def test_bars_hold_the_mean_of_normal_rates_in_95_of_100_cases(sequences: int) -> None:
    """Independent steps: the standard error is exact, and Student's factor covers, however few sequences; what the bar
    holds beside it for frames and starts, which these rates do not have, is small in 200 steps."""
    spectra = [rates_of(noise(200, sequences, seed=seed), transient=0) for seed in range(400)]
    inside = [float(spectrum.exponents[0].abs()) < float(spectrum.error[0]) for spectrum in spectra]
    assert 0.92 < sum(inside) / 400 < 0.98


# ------------------------------------------------------------------ settled or not


def drifting(steps: int, sequences: int, drift: float, seed: int = 0) -> Tensor:
    """Rates whose mean moves by ``drift`` from the first half of the second half of the time to the second."""
    values = 0.1 * noise(steps, sequences, seed=seed)
    values[3 * steps // 4 :] += drift
    return values


def test_rates_whose_halves_agree_have_settled_and_those_that_drift_have_not() -> None:
    assert rates_of(drifting(64, 16, 0.0)).settled.tolist() == [True]
    assert rates_of(drifting(64, 16, 0.2)).settled.tolist() == [False]
    alone = {drift: rates_of(drifting(700, 1, drift)).settled.tolist() for drift in (0.0, 0.2)}
    assert alone == {0.0: [True], 0.2: [False]}


def test_halves_are_compared_as_scipys_paired_test_does() -> None:
    stats = pytest.importorskip("scipy.stats")
    agreeing = []
    for seed in range(40):
        values = drifting(40, 8, 0.02, seed)
        p = stats.ttest_rel(values[20:30].mean(0).numpy(), values[30:].mean(0).numpy()).pvalue
        assert bool(rates_of(values).settled[0]) == (p > 0.05)
        agreeing.append(p > 0.05)
    assert 5 < sum(agreeing) < 38


@pytest.mark.parametrize(("measured", "settled"), [(7, False), (8, True)])
def test_fewer_than_8_measured_steps_never_settle(measured: int, settled: bool) -> None:
    values = 1e-3 * noise(20 + measured, 16)
    assert rates_of(values, transient=20).settled.tolist() == [settled]


@pytest.mark.parametrize(
    ("steps", "transient", "settled"),
    [
        (40, 9, False),
        (40, 10, True),
        (41, 10, False),
        (41, 11, True),
        (200, 31, False),
        (200, 32, True),
        (200, 0, False),
    ],
)
def test_a_transient_below_a_quarter_or_32_steps_does_not_settle(steps: int, transient: int, settled: bool) -> None:
    assert rates_of(torch.full((steps, 16), 0.1).double(), transient=transient).settled.tolist() == [settled]


def test_a_warm_start_does_not_settle() -> None:
    module, inputs, frames = network("gru", 3, 4), noise(80, 16, 3), Frames()
    first, second = (lyapunov_spectrum(module, inputs, frames=frames, **CAREFUL) for _ in range(2))
    assert first.settled.any() and not second.settled.any()


@pytest.mark.parametrize("disagreeing", [0, 1, 2])
def test_at_most_15_percent_of_the_exponents_may_disagree(disagreeing: int) -> None:
    """One of ten may, and is itself not settled; two are too many for all of them."""
    rates = 1e-3 * noise(40, 8, 10) - torch.arange(10)
    rates[30:, :, :disagreeing] += 0.4
    spectrum = lyapunov_spectrum(Rates(), rates, state=torch.ones(8, 10).double(), **CAREFUL)
    agree = rates[20:30].mean(0), rates[30:].mean(0)
    by_chance = ((agree[0] - agree[1])[:, disagreeing:].abs().mean(0) > 0.1).sum()
    assert by_chance == 0
    settled = spectrum.settled[disagreeing:]
    if disagreeing < 2:
        assert not spectrum.settled[:disagreeing].any() and settled.sum() >= 9 - disagreeing
    else:
        assert not spectrum.settled.any()


@pytest.mark.parametrize(("short", "settled"), [(14, True), (16, False)])
def test_packed_rows_of_fewer_than_8_measured_steps_leave_the_test_of_halves(short: int, settled: bool) -> None:
    """Six of eight rows, half of which are measured, and which grow at another rate from the middle of that on."""
    values, lengths = torch.full((60, 8), 0.1).double(), [short] * 6 + [60] * 2
    values[short - short // 4 :, :6] = 5.0
    packed = pack_padded_sequence(values.unsqueeze(-1), torch.tensor(lengths), enforce_sorted=False)
    spectrum = lyapunov_spectrum(Rates(), packed, state=torch.ones(8, 1).double(), **CAREFUL)
    assert spectrum.settled.tolist() == [settled]


def test_dead_directions_settle_and_unknown_ones_do_not() -> None:
    module = network("relu", 1, 3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0.copy_(torch.tensor([9.0, -9.0, -9.0]))
        module.weight_hh_l0.copy_(0.5 * torch.eye(3))
    spectrum = lyapunov_spectrum(module, torch.zeros(40, 4, 1).double())
    assert spectrum.exponents[1:].tolist() == [-math.inf] * 2 and spectrum.settled.tolist() == [True] * 3
    overflown = lyapunov_spectrum(network("relu", 3, 6, gain=1e30), noise(40, 4, 3))
    assert not overflown.settled.any()


@pytest.mark.parametrize("steps", [63, 64, 200])
def test_a_single_sequence_settles_by_its_blocks_from_64_measured_steps_on(steps: int) -> None:
    spectrum = rates_of(0.1 * noise(steps + 40, 1), transient=40)
    assert spectrum.settled.tolist() == [steps >= 64]


def test_settled_of_leading_exponents_goes_by_those_asked_for() -> None:
    """Not by the columns that are carried beside them."""
    rates = 1e-3 * noise(40, 8, 10) - torch.arange(10)
    rates[30:, :, 3:] += 0.1  # all but the leading three
    whole, part = (
        lyapunov_spectrum(Rates(), rates, state=torch.ones(8, 10).double(), k=k, **CAREFUL) for k in (None, 2)
    )
    assert not whole.settled.any() and part.settled.tolist() == [True, True]


# ------------------------------------------------------------------ a second start


class Remembering(nn.Module):
    """Grows at a rate that its own second entry keeps: what a network is like depends on where it has got to."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        growing, kept = state[:, :1], state[:, 1:]
        return torch.cat([growing * (x + 0.3 * torch.tanh(kept)).exp(), 0.999 * kept + 0.01], 1)


def test_a_second_start_finds_what_depends_on_the_state_reached() -> None:
    inputs, state = 0.01 * noise(64, 16, 1), torch.zeros(16, 2).double()
    state[:, 0] = 1.0
    options: dict[str, Any] = {"k": 1, "interval": 1, "growth": 0, "state": state}
    once = lyapunov_spectrum(Remembering(), inputs, **options)
    twice = lyapunov_spectrum(Remembering(), inputs, second_start=True, **options)
    torch.testing.assert_close(once.exponents, twice.exponents, **EXACT)
    assert not twice.settled.any()


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_a_second_start_leaves_networks_that_forget_alone(kind: str) -> None:
    """Of eight measurements, the same settle but for one at most; and in none anything that had not."""
    settled = [0, 0]
    for seed in range(8):
        module, inputs = network(kind, 3, 6, seed=seed), noise(100, 16, 3, seed=seed)
        once, twice = (lyapunov_spectrum(module, inputs, k=4, second_start=second) for second in (False, True))
        torch.testing.assert_close(once.exponents, twice.exponents, rtol=0.0, atol=1e-6)
        assert not (twice.settled & ~once.settled).any()
        settled = [n + int(spectrum.settled[0]) for n, spectrum in zip(settled, (once, twice), strict=True)]
    assert settled[0] >= 5 and settled[1] >= settled[0] - 1


def test_a_second_start_begins_from_the_last_state_of_another_sequence() -> None:
    """The same inputs and frames; rates again as if that state had been given."""
    module, inputs = network("gru", 3, 6), noise(30, 4, 3)
    tally = tally_of(module, inputs, second_start=True, **CAREFUL).parts["l0"]
    last = module(inputs)[1].roll(1, 1).detach()
    again = tally_of(module, inputs, state=last, **CAREFUL).parts["l0"]
    assert tally.again is not None
    rates = again.log.sum(0) / again.steps.sum(0).unsqueeze(1)
    torch.testing.assert_close(tally.again, rates, rtol=0.0, atol=1e-9)


# ------------------------------------------------------------------ unions, and layers


def test_a_union_takes_bar_and_marks_of_each_exponent_from_its_layer() -> None:
    module, inputs = network("gru", 3, 4, gain=1.2, num_layers=2), noise(80, 6, 3)
    spectrum = lyapunov_spectrum(module, inputs, **CAREFUL)
    layers = list(spectrum.layers.values())
    everything = torch.cat([layer.exponents for layer in layers])
    order = everything.argsort(descending=True)
    for name in ("exponents", "stderr", "error", "trusted", "settled"):
        expected = torch.cat([getattr(layer, name) for layer in layers])[order]
        assert torch.equal(getattr(spectrum, name), expected), name
    assert spectrum.local is None


def test_measure_layers_measures_each_layer_as_by_hand() -> None:
    """As many exponents as a layer has, where more are asked for; the union has as many as asked for."""
    first, second = network("gru", 3, 4), network("lstm", 3, 5)
    inputs = {"a": noise(40, 4, 3), "b": noise(30, 6, 3, seed=1)}
    driven = {"a": Driven(first, inputs["a"], dimension=4), "b": Driven(second, inputs["b"], dimension=10)}
    settings = Settings(k=6, growth=7, interval=1, dtype=torch.float64)
    tallies = measure_layers(driven, settings)
    assert [list(tally.parts) for tally in tallies.values()] == [["l0"], ["l0"]]
    spectra = {name: tally.spectra(6)["l0"] for name, tally in tallies.items()}
    for name, (layer, k) in {"a": (first, 4), "b": (second, 6)}.items():
        growth = min(7, k) if name == "a" else 7
        alone = lyapunov_spectrum(layer, inputs[name], k=k, growth=growth, interval=1, dtype=torch.float64)
        torch.testing.assert_close(spectra[name].exponents, alone.exponents, **EXACT)
        torch.testing.assert_close(spectra[name].log_singular_values, alone.log_singular_values, **EXACT)
    union = union_of_layers(tallies, 6)
    assert list(union.layers) == ["a", "b"] and len(union.exponents) == 6 and union.growth is None
    assert union.sequences == 6 and union.per_sequence[4:].isnan().any()


def test_layers_inside_a_layer_keep_their_names() -> None:
    module, inputs = network("gru", 3, 4, num_layers=2), noise(20, 3, 3)
    tallies = measure_layers({"rnn": Driven(module, inputs), "cell": Driven(network("tanh", 3, 2), inputs)}, Settings())
    assert list(union_of_layers(tallies, None).layers) == ["rnn.l0", "rnn.l1", "cell"]
    alone = measure_layers({"rnn": Driven(module, inputs)}, Settings())
    union = union_of_layers(alone, None)
    assert list(union.layers) == ["rnn.l0", "rnn.l1"] and union.growth is not None  # a stack grows as a whole
    single = measure_layers({"cell": Driven(network("tanh", 3, 2), inputs)}, Settings())
    assert union_of_layers(single, None).layers.keys() == {"l0"}


def test_a_layer_that_cannot_be_measured_is_named() -> None:
    driven = {"good": Driven(network("gru", 3, 4), noise(9, 2, 3)), "bad": Driven(network("gru", 3, 4), noise(9, 2, 5))}
    with pytest.raises(ValueError, match=r"^bad: inputs must be 3 wide"):
        measure_layers(driven, Settings())


def test_a_layer_starts_where_its_start_says() -> None:
    module, inputs = network("gru", 3, 6), noise(20, 2, 3)
    moved = measure_layers({"l": Driven(module, inputs, start=Start(first_place=5))}, Settings(**CAREFUL))["l"]
    expected = measure(module, inputs, Settings(**CAREFUL), start=Start(first_place=5))
    assert torch.equal(moved.parts["l0"].log, expected.parts["l0"].log)
    other = measure(module, inputs, Settings(**CAREFUL))
    assert not torch.allclose(moved.parts["l0"].log, other.parts["l0"].log)


# ------------------------------------------------------------------ sequences that die, end, begin elsewhere


def test_one_dead_sequence_among_many_does_not_make_a_network_dead() -> None:
    """Oracle: the other sequences measured alone."""
    module, inputs = network("relu", 3, 8), torch.rand(40, 16, 3, dtype=torch.float64)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
        module.weight_hh_l0.abs_()
    inputs[:, 0] = -50.0
    among = lyapunov_spectrum(module, inputs, interval=1, dtype=torch.float64)
    (living,) = measure(
        module, inputs[:, 1:], Settings(interval=1, dtype=torch.float64), start=Start(first_place=1)
    ).parts.values()
    alone = living.spectrum(8)
    assert among.per_sequence[0].isneginf().all()
    torch.testing.assert_close(among.exponents, alone.exponents, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(among.error, alone.error, rtol=0.0, atol=1e-12)
    assert among.trusted.tolist() == alone.trusted.tolist() and among.trusted[0]
    assert among.gain == pytest.approx(alone.gain, abs=1e-9)
    most = lyapunov_spectrum(module, inputs[:, [0, 0, 1]], interval=1, dtype=torch.float64)
    assert most.exponents.isneginf().all() and most.gain == -math.inf


def test_a_second_start_begins_where_another_sequence_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packed sequences at their own last steps: torch's own last states, one row on."""
    module, lengths = network("gru", 3, 6), [60, 20, 16]
    packed = pack_padded_sequence(noise(60, 3, 3), torch.tensor(lengths))
    starts: list[Tensor] = []
    rewind = Trajectory.rewind

    def watched(self: Trajectory, time: int, state: Tensor) -> None:
        starts.append(state)
        rewind(self, time, state)

    monkeypatch.setattr(Trajectory, "rewind", watched)
    lyapunov_spectrum(module, packed, second_start=True, growth=0)
    torch.testing.assert_close(starts[-1], module(packed)[1][0].roll(1, 0).detach(), rtol=0.0, atol=1e-12)


def test_what_ends_early_has_not_settled() -> None:
    """The same to the end has: of half of the steps both halves would have to be known."""
    module, inputs = network("gru", 3, 6), noise(400, 8, 3)
    ended = lyapunov_spectrum(module, inputs, k=1, tolerance=0.01)
    assert ended.steps < 336 and not ended.settled.any()
    assert lyapunov_spectrum(module, inputs, k=1, tolerance=1e-9).settled.all()


def test_growth_of_a_stack_is_kept_beside_another_module() -> None:
    """Oracle: the stack measured by itself."""
    layers = {"enc": network("lstm", 3, 5, num_layers=2), "dec": network("gru", 3, 4)}
    inputs = noise(20, 4, 3)
    spectrum = union_of_layers(measure_layers({n: Driven(m, inputs) for n, m in layers.items()}, Settings()), None)
    alone = lyapunov_spectrum(layers["enc"], inputs)
    assert list(spectrum.parts) == ["enc.l0", "enc.l1", "dec"] and list(spectrum.stacks) == ["enc"]
    assert spectrum.growth is None and spectrum.stacks["enc"].gain == pytest.approx(alone.gain, abs=1e-12)
    name, growth = known_growth(spectrum)
    assert name in ("enc", "dec") and growth is not None
    assert growth.gain == max(alone.gain, lyapunov_spectrum(layers["dec"], inputs).gain)
