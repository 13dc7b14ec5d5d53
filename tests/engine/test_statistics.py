"""Student's factor and the tests of two halves against SciPy's."""

import math
from itertools import pairwise

import pytest
import torch
from systems import noise

from lightning_lyapunov.engine.statistics import agree, agree_in_pairs, mean_and_error, student

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 8, 12, 15, 31, 63, 1000, 1e9])
def test_students_factor_is_scipys(freedom: float) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-3)


@pytest.mark.parametrize("freedom", [1.2, 1.7, 2.5, 3.4, 4.3, 4.9, 5.5, 17.3])
def test_students_factor_is_scipys_between_whole_numbers(freedom: float) -> None:
    """As Welch's test has them; below 5, where it is interpolated, to 3 %."""
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.03 if freedom < 5 else 1e-3)


@pytest.mark.parametrize("freedom", [0, 0.5, -1, math.nan])
def test_without_freedom_there_is_no_factor(freedom: float) -> None:
    assert math.isnan(student(freedom))


def test_students_factor_falls() -> None:
    factors = [student(n / 10) for n in range(10, 400)]
    assert all(a > b for a, b in pairwise(factors)) and factors[-1] > 1.96


def test_mean_and_error_of_equal_steps_are_the_usual_ones() -> None:
    rates = noise(9, 4)
    mean, error, _ = mean_and_error(16 * rates, torch.full((9,), 16))
    torch.testing.assert_close(mean, rates.mean(0))
    torch.testing.assert_close(error, torch.tensor(stats.sem(rates.numpy(), axis=0)))


def test_samples_weigh_by_their_steps_and_those_without_do_not_count() -> None:
    rates, weights = noise(5, 2), torch.tensor([3, 0, 10, 7, 0])
    sums = rates * weights.unsqueeze(1)
    sums[1] = math.nan
    mean, error, _ = mean_and_error(sums, weights)
    share = torch.tensor([3.0, 10.0, 7.0]).double() / 20
    expected = share @ rates[[0, 2, 3]]
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(error, (3 / 2 * (share.square() @ (rates[[0, 2, 3]] - expected).square())).sqrt())


@pytest.mark.parametrize("rows", [0, 1])
def test_one_sample_has_no_error(rows: int) -> None:
    mean, error, _ = mean_and_error(noise(3, 2), torch.tensor([4, 0, 0]) if rows else torch.zeros(3))
    assert error.isnan().all() and mean.isnan().all() == (rows == 0)


SHIFTS = torch.linspace(0.0, 1.5, 60)
"""Differences of means, in the spread of a sample, that lie on both sides of 5 %."""


@pytest.mark.parametrize("samples", [2, 3, 8, 40])
def test_paired_samples_agree_as_by_scipy(samples: int) -> None:
    first = noise(samples, 60)
    second = first + SHIFTS + noise(samples, 60, seed=1)
    p = torch.tensor(stats.ttest_rel(first.numpy(), second.numpy()).pvalue)
    clear = (p - 0.05).abs() > 1e-3
    found = agree_in_pairs(first, second)
    assert torch.equal(found[clear], (p > 0.05)[clear])
    assert found.any() and (samples < 8 or not found.all())


@pytest.mark.parametrize(("one", "other"), [(2, 2), (3, 2), (5, 9), (30, 30)])
def test_unpaired_samples_agree_as_by_scipys_welch_test(one: int, other: int) -> None:
    """Of unequal spread; degrees of freedom are no whole numbers, below 5 interpolated."""
    first, second = noise(one, 60), SHIFTS + 3 * noise(other, 60, seed=1)
    p = torch.tensor(stats.ttest_ind(first.numpy(), second.numpy(), equal_var=False).pvalue)
    clear = (p - 0.05).abs() > 5e-3
    assert torch.equal(agree(first, second)[clear], (p > 0.05)[clear])


def test_a_sample_alone_agrees_with_nothing() -> None:
    assert not agree(noise(1, 3), noise(9, 3)).any() and not agree(noise(9, 3), noise(1, 3)).any()
    assert agree_in_pairs(noise(1, 3), noise(1, 3)).tolist() == [False] * 3
    assert agree_in_pairs(noise(0, 3), noise(0, 3)).tolist() == [False] * 3


def test_what_is_dead_in_both_halves_agrees_and_what_dies_between_them_does_not() -> None:
    dead, alive = torch.full((6, 1), -math.inf).double(), noise(6, 1)
    halves = torch.cat([dead, alive, dead, torch.full((6, 1), math.nan)], 1), torch.cat([dead, alive, alive, alive], 1)
    for test in (agree_in_pairs, agree):
        assert test(*halves).tolist() == [True, True, False, False]
    constant = torch.ones(6, 2).double()
    assert agree(constant, constant).tolist() == [True, True]
    assert not agree(constant, 2 * constant).any() and not agree_in_pairs(constant, 2 * constant).any()
