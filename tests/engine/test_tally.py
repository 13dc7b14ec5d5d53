"""Raw sums: any split of the sequences, merged again, is one measurement of all of them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from systems import linear, network, noise, products_of, tally_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.measure import SystemTally
from lightning_lyapunov.engine.spectrum import LocalExponents, SequenceGrowth
from lightning_lyapunov.engine.tally import Along, Tally

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-11, "equal_nan": True}
CAREFUL: dict[str, Any] = {"interval": 1, "dtype": torch.float64}
SPLITS = [[1, 4], [3, 2], [1, 1, 1, 1, 1], [2, 2, 1]]

SYSTEMS: dict[str, Any] = {
    "tanh": lambda: network("tanh", 3, 8, gain=1.0),
    "lstm stack": lambda: network("lstm", 3, 4, num_layers=2),
    "both ways": lambda: network("gru", 3, 4, bidirectional=True),
    "dead": lambda: network("relu", 3, 6, gain=1.0),
    "gru without a cheap volume": lambda: network("gru", 3, 34),
}


def is_the_same(merged: SystemTally, whole: SystemTally, k: int | None) -> None:
    """Everything that follows from them, of every layer."""
    ours, theirs = merged.spectra(k), whole.spectra(k)
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        other = theirs[name]
        for of_exponent in ("exponents", "stderr", "error", "per_sequence"):
            torch.testing.assert_close(getattr(one, of_exponent), getattr(other, of_exponent), **EXACT)
        assert one.trusted.tolist() == other.trusted.tolist() and one.settled.tolist() == other.settled.tolist()
        for number in ("volume_rate", "sum_rule_error", "gain"):
            assert getattr(one, number) == pytest.approx(getattr(other, number), abs=1e-9, nan_ok=True), number
        same = ("dimension", "steps", "sequences", "transient", "interval", "dtype", "driven", "complete")
        assert [getattr(one, field) for field in same] == [getattr(other, field) for field in same]
        is_same_growth(one.growth, other.growth)
        assert one.local is not None and other.local is not None
        covers_the_same(one, other)
    is_same_growth(merged.growth, whole.growth)


def is_same_growth(one: SequenceGrowth | None, other: SequenceGrowth | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        torch.testing.assert_close(one.per_sequence, other.per_sequence, **EXACT)
        torch.testing.assert_close(one.gain_per_sequence, other.gain_per_sequence, **EXACT)
        assert one.lengths.tolist() == other.lengths.tolist()


def covers_the_same(one: LyapunovSpectrum, other: LyapunovSpectrum) -> None:
    """The blocks of the one are some of the other's, joined."""
    assert one.local is not None and other.local is not None
    assert one.local.starts[0] == other.local.starts[0] and one.local.ends[-1] == other.local.ends[-1]
    assert torch.equal(one.local.starts[1:], one.local.ends[:-1])
    ours, theirs = (
        (local.pushes * (local.ends - local.starts).unsqueeze(1)).nan_to_num().sum(0)
        for local in (one.local, other.local)
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_any_split_of_equal_sequences_is_one_measurement(name: str, k: int | None, split: list[int]) -> None:
    system, inputs = SYSTEMS[name](), noise(40, 5, 3)
    whole, parts, place = tally_of(system, inputs, k=k, **CAREFUL), [], 0
    for rows in split:
        parts.append(tally_of(system, inputs[:, place : place + rows], place=place, k=k, **CAREFUL))
        place += rows
    merged = SystemTally.merge(parts)
    if max(split) > 1 and min(split) > 1:
        is_the_same(merged, whole, k)
    else:  # a single sequence is cut at every block, so that there may be more intervals
        ours, theirs = merged.spectra(k), whole.spectra(k)
        for one, other in zip(ours.values(), theirs.values(), strict=True):
            torch.testing.assert_close(one.exponents, other.exponents, **EXACT)
            torch.testing.assert_close(one.error, other.error, **EXACT)
            assert one.settled.tolist() == other.settled.tolist() and one.interval == 1.0
            is_same_growth(one.growth, other.growth)


@pytest.mark.parametrize("transient", [None, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_sequences_of_other_lengths_merge_as_they_are_packed(name: str, transient: int | None) -> None:
    """Ranks with other lengths, one sequence within the transient of 3; each weighs by its steps."""
    system, lengths = SYSTEMS[name](), torch.tensor([9, 40, 2, 31, 17])
    inputs = noise(40, 5, 3)

    def measured(rows: slice) -> SystemTally:
        packed = pack_padded_sequence(inputs[:, rows], lengths[rows], enforce_sorted=False)
        return tally_of(system, packed, place=rows.start, transient=transient, k=4, **CAREFUL)

    whole = measured(slice(0, 5))
    merged = SystemTally.merge([measured(slice(0, 2)), measured(slice(2, 5))])
    for one, other in zip(merged.spectra(4).values(), whole.spectra(4).values(), strict=True):
        for name_of in ("exponents", "stderr", "error", "per_sequence"):
            torch.testing.assert_close(getattr(one, name_of), getattr(other, name_of), **EXACT)
        assert one.settled.tolist() == other.settled.tolist()
        assert (one.steps, one.transient, one.sequences) == (other.steps, other.transient, other.sequences)
        if one.growth is not None and other.growth is not None:
            # A batch with short sequences takes a pass more, where a part of the space is carried.
            near = {"rtol": 0.0, "atol": 0.05 if "without" in name else 1e-9, "equal_nan": True}
            torch.testing.assert_close(one.growth.per_sequence, other.growth.per_sequence, **near)
            assert one.growth.lengths.tolist() == lengths.tolist()


def test_tallies_of_fewer_directions_keep_those_that_all_have() -> None:
    module, inputs = network("gru", 3, 30), noise(40, 4, 3)
    few = tally_of(module, inputs[:, :2], k=3, growth=0, **CAREFUL)
    many = tally_of(module, inputs[:, 2:], place=2, k=9, growth=0, **CAREFUL)
    both = SystemTally.merge([few, many]).parts["l0"]
    whole = tally_of(module, inputs, k=3, growth=0, **CAREFUL).parts["l0"]
    assert both.log.shape == whole.log.shape == (2, 4, 5)
    torch.testing.assert_close(both.log, whole.log, **EXACT)


def test_one_tally_merges_to_itself_and_none_is_refused() -> None:
    module = network("gru", 3, 4)
    tally = tally_of(module, noise(20, 2, 3)).parts["l0"]
    assert Tally.merge([tally]) is tally
    with pytest.raises(ValueError, match=r"tallies must be of one map; got 0 of states of dimension \[\]"):
        Tally.merge([])
    other = tally_of(network("gru", 3, 5), noise(20, 2, 3)).parts["l0"]
    with pytest.raises(ValueError, match=r"got 2 of states of dimension \[4, 5\]"):
        Tally.merge([tally, other])


def test_what_only_some_know_is_not_known_of_all() -> None:
    """Growth, the volume, a second start; one warm start makes all of it one."""
    module, inputs = network("tanh", 3, 4), noise(40, 4, 3)
    first = tally_of(module, inputs[:, :2], **CAREFUL).parts["l0"]
    second = tally_of(module, inputs[:, 2:], place=2, **CAREFUL).parts["l0"]
    without = replace(second, growth=None, volume=None, may_settle=False)
    merged = Tally.merge([first, without])
    spectrum = merged.spectrum(4)
    assert merged.growth is None and math.isnan(spectrum.volume_rate) and not spectrum.settled.any()
    assert Tally.merge([first, second]).volume is not None


def test_a_tally_moves_to_another_device_whole() -> None:
    tally = tally_of(network("tanh", 3, 4), noise(40, 4, 3), second_start=True, **CAREFUL)
    moved = tally.to("meta").parts["l0"]
    tensors = [moved.log, moved.trusted, moved.volume, moved.again]
    assert moved.growth is not None and moved.along is not None
    tensors += [moved.along.log, moved.along.pushes]
    tensors += [moved.growth.per_sequence, moved.growth.gain_per_sequence]
    assert all(isinstance(tensor, Tensor) and tensor.device.type == "meta" for tensor in tensors)
    assert tally.is_complete and not tally_of(network("gru", 3, 40), noise(9, 2, 3), k=1).is_complete


def test_no_step_is_refused() -> None:
    eye = torch.eye(2).double()
    tally = tally_of(linear(eye), None, state=torch.ones(2, 2).double(), steps=5, transient=5).parts["cell"]
    with pytest.raises(ValueError, match=r"transient must leave at least one of the 5 steps to measure; got 5\."):
        tally.spectrum(2)


def test_blocks_of_time_merge_where_all_of_them_end() -> None:
    """Up to where each goes; the longest tells how far they go together."""
    one = Along(
        [0, 4, 8], [4, 8, 12], torch.tensor([[1.0], [2.0], [3.0]]), [8, 8, 4], torch.ones(3, 2).double().cumsum(0)
    )
    other = Along(
        [0, 4, 6], [4, 6, 9], torch.tensor([[10.0], [20.0], [30.0]]), [4, 2, 3], torch.full((3, 1), 7.0).double()
    )
    merged = Along.merge([one, other])
    assert merged.starts == [0, 4] and merged.ends == [4, 12]
    assert merged.log[:, 0].tolist() == [11.0, 55.0] and merged.weights == [12, 17]
    assert merged.pushes.tolist() == [[1.0, 1.0, 7.0], [5.0, 5.0, 14.0]]
    local = merged.exponents(torch.tensor([0]), [12, 8, 9])  # each over the steps that it made
    assert local.pushes.tolist() == [[1 / 4, 1 / 4, 7 / 4], [5 / 8, 5 / 4, 14 / 5]]


# ------------------------------------------------------------------ along the sequence


class Rates(nn.Module):
    """A state that grows by its input, a number for each of its entries: its exponents along the way are the inputs."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return state * x.exp()


@pytest.mark.parametrize("interval", [None, 1, 5])
@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("steps", [1, 7, 40, 300])
def test_local_exponents_are_those_of_each_block(steps: int, sequences: int, interval: int | None) -> None:
    """The mean of known rates between the ends stated, and together the whole: no step is left out or counted twice."""
    rates = noise(steps, sequences, 1)
    state = torch.ones(sequences, 1).double()
    (tally,) = tally_of(Rates(), rates, state=state, interval=interval, dtype=torch.float64).parts.values()
    spectrum = tally.spectrum(1)
    local = spectrum.local
    assert local is not None
    assert local.starts[0] == 0 and local.ends[-1] == steps and torch.equal(local.starts[1:], local.ends[:-1])
    assert int((local.ends - local.starts).max()) <= 32
    for start, end, found in zip(local.starts.tolist(), local.ends.tolist(), local.exponents, strict=True):
        torch.testing.assert_close(found, rates[start:end].mean((0, 1)), rtol=0.0, atol=1e-9)
    assert min(spectrum.transient, steps) in [0, *local.ends.tolist()]
    after = local.starts >= spectrum.transient
    weights = (local.ends - local.starts)[after].double()
    total = (local.exponents[after] * weights.unsqueeze(1)).sum(0)
    torch.testing.assert_close(total / weights.sum(), spectrum.exponents, rtol=0.0, atol=1e-9)


def test_local_exponents_of_packed_sequences_are_means_of_those_that_run() -> None:
    rates, lengths = noise(20, 3, 1), [20, 5, 12]
    packed = pack_padded_sequence(rates, torch.tensor(lengths), enforce_sorted=False)
    (tally,) = tally_of(Rates(), packed, state=torch.ones(3, 1).double(), transient=0, **CAREFUL).parts.values()
    local = tally.spectrum(1).local
    assert local is not None and {5, 12, 20} <= set(local.ends.tolist())
    for start, end, found in zip(local.starts.tolist(), local.ends.tolist(), local.exponents, strict=True):
        runs = [row for row, length in enumerate(lengths) if length >= end]
        torch.testing.assert_close(found, rates[start:end, runs].mean((0, 1)), rtol=0.0, atol=1e-12)


def test_local_exponents_stand_in_the_order_of_the_spectrum() -> None:
    module, inputs = network("lstm", 3, 6, gain=1.2), noise(60, 4, 3)
    spectrum = tally_of(module, inputs, **CAREFUL).spectra(None)["l0"]
    assert spectrum.local is not None
    after = spectrum.local.starts >= spectrum.transient
    weights = (spectrum.local.ends - spectrum.local.starts)[after].double()
    mean = (weights.unsqueeze(1) * spectrum.local.exponents[after]).sum(0) / weights.sum()
    torch.testing.assert_close(mean, spectrum.exponents, rtol=0.0, atol=1e-10)


# ------------------------------------------------------------------ a push along the sequence


@pytest.mark.parametrize("kind", ["tanh", "lstm"])
def test_pushes_are_what_the_product_of_all_jacobians_does_to_a_vector(kind: str) -> None:
    """Of each sequence, up to the end of each block: dense float64 products times the first vector of its frame."""
    module, inputs = network(kind, 3, 6, gain=1.2), noise(30, 4, 3)
    (tally,) = tally_of(module, inputs, k=2).parts.values()
    local = tally.spectrum(2).local
    assert local is not None and len(local.ends) > 8 and local.starts[0] == 0
    begin = random_frames(range(4), tally.dimension, 1, torch.device("cpu"))
    grown = [
        (products_of(module, inputs[:end], None)[0].dense @ begin).norm(dim=(1, 2)).log() for end in local.ends.tolist()
    ]
    changes = torch.stack(grown).diff(dim=0, prepend=torch.zeros(1, 4).double())
    expected = changes / (local.ends - local.starts).unsqueeze(1)
    torch.testing.assert_close(local.pushes, expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(local.push, expected.mean(1), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(local.push_spread, expected.std(1), rtol=0.0, atol=1e-5)


def test_pushes_of_packed_sequences_are_in_the_order_of_the_inputs_and_end_with_them() -> None:
    rates, lengths = noise(20, 3, 1), [5, 20, 12]
    packed = pack_padded_sequence(rates, torch.tensor(lengths), enforce_sorted=False)
    (tally,) = tally_of(Rates(), packed, state=torch.ones(3, 1).double(), transient=0, **CAREFUL).parts.values()
    local = tally.spectrum(1).local
    assert local is not None
    for start, end, found in zip(local.starts.tolist(), local.ends.tolist(), local.pushes, strict=True):
        runs = torch.tensor(lengths) >= end
        assert torch.equal(found.isnan(), ~runs)
        torch.testing.assert_close(found[runs], rates[start:end, runs].mean((0, 2)), rtol=0.0, atol=1e-12)
    assert math.isnan(local.push_spread[-1]) and local.push[-1] == local.pushes[-1, 1]


def test_pushes_of_time_cut_in_pieces_are_in_the_order_of_time() -> None:
    rates = noise(5000, 2, 1)
    (tally,) = tally_of(Rates(), rates, state=torch.ones(2, 1).double(), transient=8).parts.values()
    local = tally.spectrum(1).local
    assert local is not None and local.starts[0] == 0 and local.ends[-1] == 5000
    for start, end, found in zip(local.starts.tolist(), local.ends.tolist(), local.pushes, strict=True):
        torch.testing.assert_close(found, rates[start:end].mean((0, 2)), rtol=0.0, atol=1e-6)


def test_in_brief_blocks_are_joined_sequence_by_sequence() -> None:
    """So that the spread is that of the joined block; the last column is that of the whole."""
    rates = noise(300, 6, 1)
    (tally,) = tally_of(Rates(), rates, state=torch.ones(6, 1).double(), dtype=torch.float64).parts.values()
    local = tally.spectrum(1).local
    assert local is not None and len(local.ends) > 7
    starts, ends, means, spreads = local.brief(7)
    assert 4 <= len(ends) - 1 <= 7 and ends.dtype == torch.float32
    assert starts[0] == 0 and ends[-2] == 300 and torch.equal(starts[1:-1], ends[:-2])
    assert (starts[-1], ends[-1]) == (0, 300)
    for start, end, mean, spread in zip(starts.tolist(), ends.tolist(), means, spreads, strict=True):
        over = rates[int(start) : int(end)].mean((0, 2))
        assert float(mean) == pytest.approx(float(over.mean()), abs=1e-6)
        assert float(spread) == pytest.approx(float(over.std()), abs=1e-6)


def test_of_pushes_the_dead_are_left_out_where_most_live() -> None:
    few = torch.tensor([[-math.inf, 1.0, 3.0, 5.0], [-math.inf, -math.inf, 1.0, math.nan]])
    local = LocalExponents(torch.tensor([0, 1]), torch.tensor([1, 2]), few[:, :1], few)
    assert local.push.tolist() == [3.0, -math.inf] and local.push_spread[0] == 2.0
