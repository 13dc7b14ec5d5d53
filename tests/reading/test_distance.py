"""The distance between spectra. Oracles: worked by hand, brute force over all common levels, the axioms of a metric."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import numbers, spectrum
from torch import Tensor

from lightning_lyapunov.reading.distance import spectrum_distance
from lightning_lyapunov.reading.history import Measurement

INF, NAN = math.inf, math.nan
LN2 = math.log(2)

BY_HAND = {
    "the same": ([0.1, -0.4, -3.0], [0.1, -0.4, -3.0], 0.0),
    "the same, in another order": ([-0.4, 0.1, -3.0], [0.1, -3.0, -0.4], 0.0),
    "one direction": ([0.0], [-LN2], 0.5),  # 1 and 1/2
    "two directions": ([0.0, -LN2], [-LN2, -2 * LN2], math.sqrt((1 / 4 + 1 / 16) / 2)),
    "a dead direction counts 0": ([0.0, -INF], [0.0, -LN2], math.sqrt(1 / 8)),
    "both dead": ([-INF, -INF], [-INF, -INF], 0.0),
    "widths 1 and 2": ([0.0], [0.0, -INF], math.sqrt(1 / 2)),
    "widths 2 and 3": ([0.0, -INF], [0.0, -LN2, -INF], math.sqrt((1 / 6 + 1 / 6) / 4)),  # levels 1/3 to 1/2 to 2/3
    "the same distribution, twice as wide": ([0.0, -1.0], [0.0, 0.0, -1.0, -1.0], 0.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_worked_by_hand(name: str) -> None:
    a, b, expected = BY_HAND[name]
    assert spectrum_distance(numbers(*a), numbers(*b)) == pytest.approx(expected, abs=1e-15)
    assert spectrum_distance(spectrum(*sorted(b, reverse=True)), numbers(*a)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("wide", "narrow"), [(7, 3), (12, 8), (64, 65), (128, 50)])
def test_matches_a_sum_over_all_common_levels(wide: int, narrow: int) -> None:
    generator = torch.Generator().manual_seed(wide)
    a, b = (torch.randn(size, generator=generator, dtype=torch.float64) - 1 for size in (wide, narrow))
    levels = math.lcm(wide, narrow)
    repeated = [x.sort(descending=True).values.repeat_interleave(levels // len(x)).exp() for x in (a, b)]
    expected = float((repeated[0] - repeated[1]).square().mean().sqrt())
    assert spectrum_distance(a, b) == pytest.approx(expected, rel=1e-12)


spectra = st.lists(st.floats(-20, 1) | st.just(-INF), min_size=1, max_size=7).map(lambda values: numbers(*values))


@given(spectra, spectra, spectra)
def test_it_is_a_metric_and_bounded(a: Tensor, b: Tensor, c: Tensor) -> None:
    assert spectrum_distance(a, b) == spectrum_distance(b, a) >= 0
    assert spectrum_distance(a, a) == 0
    assert spectrum_distance(a, c) <= spectrum_distance(a, b) + spectrum_distance(b, c) + 1e-12
    assert spectrum_distance(a, b) <= float(torch.cat((a, b)).max().exp()) + 1e-12


def test_of_partial_spectra_the_leading_share_of_both_is_compared() -> None:
    whole = numbers(0.0, -LN2, -1.0, -2.0)
    half = spectrum(-LN2, -2 * LN2, dimension=4)
    expected = math.sqrt((1 / 4 + 1 / 16) / 2)
    assert spectrum_distance(whole, half) == spectrum_distance(half, whole) == pytest.approx(expected, abs=1e-15)
    quarter = spectrum(-LN2, dimension=4)
    assert spectrum_distance(whole, quarter) == pytest.approx(1 / 2, abs=1e-15)
    assert spectrum_distance(half, quarter) == 0
    third = spectrum(0.0, -INF, dimension=6)  # levels up to 1/3: 0 up to 1/6, where it dies; the other up to 1/4 and on
    expected = math.sqrt(((1 - 1 / 2) ** 2 / 6 + (1 / 2) ** 2 / 12 + (1 / 4) ** 2 / 12) * 3)
    assert spectrum_distance(half, third) == pytest.approx(expected, abs=1e-15)


def test_a_kept_measurement_is_as_good_as_its_spectrum() -> None:
    whole, half = spectrum(0.0, -0.5, -1.0, -2.0), spectrum(0.25, -0.25, dimension=4)
    kept = Measurement.of(half, step=3)
    assert spectrum_distance(whole, kept) == spectrum_distance(whole, half) > 0
    assert spectrum_distance(Measurement(3, 0, numbers(0.0, -INF), {}), numbers(0.0, -LN2)) == pytest.approx(8**-0.5)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (numbers(0.0, NAN), "that are known, finite or -inf; got nan"),
        (numbers(INF, 0.0), "finite or -inf; got inf"),
        (numbers(800.0), "finite or -inf; got 800"),
        (numbers(), r"vector of exponents, \(K,\) with K of at least 1; got \(0,\)"),
        (numbers(0.0, 1.0).unsqueeze(0), r"got \(1, 2\)"),
        (spectrum(0.1, NAN), "got nan"),
        ([0.0, -1.0], "got list"),
    ],
)
def test_what_is_no_known_spectrum_is_refused_by_name(bad: Any, told: str) -> None:
    good = numbers(0.0, -1.0)
    with pytest.raises(ValueError, match=f"^a must .*{told}"):
        spectrum_distance(bad, good)
    with pytest.raises(ValueError, match=f"^b must .*{told}"):
        spectrum_distance(good, bad)


def test_precision_device_and_gradients_of_the_exponents_do_not_matter() -> None:
    a, b = numbers(0.0, -0.5), numbers(-1.0, -2.0)
    grown = a.float().requires_grad_()
    assert spectrum_distance(grown, b) == spectrum_distance(a, b)  # both are exact in float32
    assert grown.grad is None and isinstance(spectrum_distance(grown, b), float)
