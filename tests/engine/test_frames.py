"""Where frames begin: a place and a seed alone decide."""

import pytest
import torch
from systems import network, noise, tally_of

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.frames import random_frames, random_vectors, seed_of

CPU = torch.device("cpu")


def test_frames_are_orthonormal_and_the_same_every_time() -> None:
    before = torch.random.get_rng_state()
    frames = random_frames(range(4), 6, 6, CPU)
    torch.testing.assert_close(frames.mT @ frames, torch.eye(6).double().expand(4, -1, -1))
    assert torch.equal(random_frames(range(4), 6, 6, CPU), frames)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 3, 6, 40])
def test_first_columns_are_the_same_however_many_follow(size: int) -> None:
    whole = random_frames(range(3), size, size, CPU)
    for k in range(1, size + 1):
        torch.testing.assert_close(random_frames(range(3), size, k, CPU), whole[..., :k], rtol=0.0, atol=1e-12)
        assert torch.equal(random_vectors(range(3), size, k, 5), random_vectors(range(3), size, size, 5)[..., :k])


def test_a_frame_is_that_of_its_place_whoever_else_is_measured() -> None:
    whole = random_frames(range(8), 5, 3, CPU)
    for places in ([3], [7, 0], [2, 5, 6], range(4, 8)):
        assert torch.equal(random_frames(places, 5, 3, CPU), whole[list(places)])
    overlaps = (whole[0].mT @ whole[1]).abs()
    assert 0.0 < float(overlaps.max()) < 1.0


def test_another_seed_draws_other_frames() -> None:
    first, second = (random_frames([0], 5, 3, CPU, seed) for seed in (0, 1000))
    assert not torch.allclose(first, second)
    seeds = [seed_of(torch.Generator().manual_seed(n)) for n in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2] and seed_of(None) == 0


def test_vectors_are_normal_and_independent_between_places_and_columns() -> None:
    """Mean 0, variance 1, no correlation, to four standard errors of 60,000 numbers."""
    drawn = random_vectors(range(600), 20, 5, 0)
    assert drawn.shape == (600, 20, 5) and drawn.dtype == torch.float64
    limit = 4 / 60000**0.5
    assert abs(float(drawn.mean())) < limit and abs(float(drawn.square().mean()) - 1) < limit * 2**0.5
    assert abs(float((drawn[:-1] * drawn[1:]).mean())) < limit
    assert abs(float((drawn[..., :-1] * drawn[..., 1:]).mean())) < limit * (5 / 4) ** 0.5


def test_frames_are_made_where_they_are_wanted() -> None:
    assert random_frames([0], 6, 2, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_one_after_another_measure_what_one_process_measures(ranks: int) -> None:
    """Each its share of the rows, from the place of its first row on."""
    module, inputs = network("gru", 3, 6), noise(40, 6, 3)
    whole = lyapunov_spectrum(module, inputs, interval=1, dtype=torch.float64)
    share, rows = 6 // ranks, []
    for rank in range(ranks):
        own = inputs[:, rank * share : (rank + 1) * share]
        (spectrum,) = tally_of(module, own, place=rank * share, interval=1, dtype=torch.float64).spectra(None).values()
        rows.append(spectrum.per_sequence.sort(descending=True).values)
    torch.testing.assert_close(torch.cat(rows), whole.per_sequence.sort(descending=True).values, rtol=0.0, atol=1e-12)


def test_a_generator_moves_the_frames_and_nothing_else() -> None:
    """The volume knows no frame; exponents agree within their bars."""
    module, inputs = network("tanh", 3, 6, gain=1.2), noise(60, 16, 3)
    one, other = (
        lyapunov_spectrum(module, inputs, generator=torch.Generator().manual_seed(seed), interval=1) for seed in (1, 2)
    )
    assert not torch.equal(one.exponents, other.exponents)
    assert one.volume_rate == pytest.approx(other.volume_rate, abs=1e-12)
    assert ((one.exponents - other.exponents).abs() < torch.minimum(one.error, other.error)).all()
