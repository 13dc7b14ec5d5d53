"""Times that follow from an exponent: published exponents of maps and flows, worked by hand."""

import math

import pytest
import torch
from made import spectrum

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.reading.times import predictability_time


@pytest.mark.parametrize(
    ("rate", "steps"),
    [
        (0.9056 * 0.05, 15.308),  # the Lorenz system, a sample every .05 units of time
        (0.9056 * 0.02, 38.270),
        (0.41922, 1.6534),  # the Hénon map
        (math.log(2), 1.0),  # the logistic map at 4: an error doubles at every step
    ],
)
def test_steps_in_which_an_error_doubles(rate: float, steps: float) -> None:
    assert predictability_time(rate) == pytest.approx(steps, rel=1e-4)
    assert predictability_time(spectrum(rate, -1.0)) == predictability_time(rate)  # the largest of a spectrum


@pytest.mark.parametrize("rate", [0.0, -0.3, -math.inf])
def test_nothing_grows_where_no_exponent_is_positive(rate: float) -> None:
    assert predictability_time(rate) == math.inf


def test_what_is_not_known_stays_so() -> None:
    assert math.isnan(predictability_time(math.nan))
    assert math.isnan(predictability_time(spectrum(math.nan, -1.0)))


def test_of_the_logistic_map_as_measured() -> None:
    start = torch.tensor([[0.3], [0.4123]], dtype=torch.float64)
    measured = lyapunov_spectrum(lambda _, x: 4 * x * (1 - x), None, state=start, steps=4000)
    assert predictability_time(measured) == pytest.approx(1.0, rel=0.02)
