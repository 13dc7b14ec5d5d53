"""What a scorer is told of a run."""

import inspect
import math
from dataclasses import asdict, fields

import pytest
import torch
from torch import nn

from lightning_lyapunov import AeLLEScorer, lyapunov_spectrum
from lightning_lyapunov.monitoring.facts import Facts

ALL = {
    "performance": 0.5,
    "learning_rate": 1e-3,
    "adaptive": True,
    "gradient_norm": 0.25,
    "state_mean": 0.3,
    "state_spread": 0.4,
    "steps": 12,
}


def test_every_fact_is_an_argument_of_the_scorer() -> None:
    """Under the same name: they are told as they are."""
    taken = inspect.signature(AeLLEScorer.score).parameters
    assert {field.name for field in fields(Facts)} == taken.keys() - {
        "self", "spectrum", "architecture", "hidden_size", "updates",
    }  # fmt: skip
    assert all(taken[name].default is None for name in asdict(Facts()))
    assert asdict(Facts(**ALL)) == ALL and asdict(Facts()) == dict.fromkeys(ALL)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["performance", "learning_rate", "gradient_norm", "state_mean", "state_spread"])
def test_what_is_not_finite_is_not_known(name: str, value: float) -> None:
    assert getattr(Facts(**{**ALL, name: value}), name) is None


def test_a_measurement_adds_what_it_tells() -> None:
    torch.manual_seed(0)
    spectrum = lyapunov_spectrum(nn.GRU(2, 4), torch.randn(20, 3, 2))
    facts = Facts(performance=0.5, learning_rate=1e-3).measured(spectrum, 33)
    assert facts == Facts(0.5, 1e-3, None, None, spectrum.state_mean, spectrum.state_spread, 33)
