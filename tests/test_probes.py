"""What is measured against the spectra it is taken from, and quantile functions against those of the scorer."""

import math

import pytest
import torch
from systems import noise
from torch import nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.aelle.features import LEVELS, quantiles, squash
from lightning_lyapunov.bank.draws import generator
from lightning_lyapunov.bank.probes import (
    MEASURED,
    Measurements,
    halved,
    long_probe,
    measure,
    probe,
    quantile_function,
)
from lightning_lyapunov.bank.tasks import TASKS

EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}


@pytest.mark.parametrize("task", ["adding-20", "recall-6", "order-4"])
def test_probes_are_sequences_of_the_task(task: str) -> None:
    steps, width = TASKS[task].steps, TASKS[task].input_size
    source = generator("validation", task)
    short, long = probe(TASKS[task], source), long_probe(TASKS[task], source)
    assert short.shape == (steps, 8, width)
    assert long.shape[1:] == (4, width)
    assert 256 <= len(long) < 256 + steps
    assert len(long) % steps == 0
    again = generator("validation", task)
    TASKS[task].sample(8, again, held_out=True)
    second = [TASKS[task].sample(4, again, held_out=True).inputs for _ in range(2)][1]
    assert torch.equal(long[steps : 2 * steps], second)


def test_what_a_spectrum_leaves_of_itself() -> None:
    torch.manual_seed(0)
    module, inputs = nn.GRU(2, 6), noise(40, 8, 2).float()
    spectrum = lyapunov_spectrum(module, inputs)
    filled = Measurements(3, 2, 1)
    filled.put(1, 1, measure(module, inputs))
    assert spectrum.growth is not None
    by_hand = {
        "max_error": spectrum.error[0],
        "median_error": spectrum.error.sort().values[2],
        "max_settled": spectrum.settled[0].double(),
        "settled_fraction": spectrum.settled.double().sum() / 6,
        "trusted_fraction": spectrum.trusted.double().sum() / 6,
        "mean": spectrum.exponents.sum() / 6,
        "gradient_growth": spectrum.growth.per_sequence[:, 0].mean(),
        "gradient_growth_error": spectrum.growth.error[0],
        "gradient_gain": spectrum.growth.gain_per_sequence.mean(),
        "gradient_gain_error": torch.tensor(spectrum.growth.gain_error),
    }
    expected = torch.stack([by_hand[name].double() for name in MEASURED]).float()
    torch.testing.assert_close(filled.measured[1, 1], expected)
    torch.testing.assert_close(filled.leading[1, 1, :6], spectrum.exponents.float(), **EXACT)
    torch.testing.assert_close(filled.quantiles[1, 1], quantile_function(spectrum.exponents), **EXACT)
    torch.testing.assert_close(filled.layers[1, 1, 0], torch.tensor([float(spectrum.exponents[0]), spectrum.gain]))
    assert filled.leading[1, 1, 6:].isnan().all()
    for values in (filled.quantiles, filled.leading, filled.measured, filled.layers):
        assert values[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]].isnan().all()


def test_two_layers_are_told_together_and_apart() -> None:
    torch.manual_seed(0)
    module, inputs = nn.LSTM(2, 6, num_layers=2), noise(40, 8, 2).float()
    filled = Measurements(1, 1, 2)
    filled.put(0, 0, measure(module, inputs))
    whole = lyapunov_spectrum(module, inputs)
    parts = list(whole.layers.values())
    assert len(parts) == 2
    union = torch.cat([part.exponents for part in parts]).sort(descending=True).values.float()
    torch.testing.assert_close(filled.leading[0, 0], union[:8], **EXACT)
    for layer, part in zip(filled.layers[0, 0], parts, strict=True):
        torch.testing.assert_close(layer, torch.tensor([float(part.exponents[0]), part.gain]), **EXACT)
    assert float(filled.measured[0, 0, MEASURED.index("gradient_gain")]) == pytest.approx(whole.gain)


def test_the_transient_is_handed_on() -> None:
    torch.manual_seed(0)
    module, inputs = nn.RNN(2, 4), noise(80, 4, 2).float()
    spectrum = measure(module, inputs, 64)
    assert spectrum is not None and (spectrum.transient, spectrum.steps) == (64, 16)


def test_a_module_that_cannot_be_measured_is_unknown() -> None:
    module = nn.RNN(2, 4)
    nn.init.constant_(module.weight_hh_l0, math.nan)
    assert measure(module, torch.zeros(8, 2, 2)) is None
    filled = Measurements(1, 1, 1)
    filled.put(0, 0, None)
    assert filled.measured.isnan().all() and filled.quantiles.isnan().all()


SPECTRA = {
    "whole": torch.linspace(0.3, -2.0, 12),
    "one": torch.tensor([-0.5]),
    "large": torch.linspace(0.1, -9.0, 200),
    "dead": torch.tensor([0.3, -0.1, -0.5, -math.inf, -math.inf]),
    "all dead": torch.full((4,), -math.inf),
    "partly unknown": torch.tensor([0.3, math.nan, -0.5, -math.inf, math.nan]),
    "beyond the floor": torch.tensor([0.3, -150.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_quantile_function_is_that_of_the_scorer_unsquashed(name: str) -> None:
    ours = quantile_function(SPECTRA[name], LEVELS)
    torch.testing.assert_close(squash(ours), quantiles(SPECTRA[name])[:-1], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_quantile_functions_worked_by_hand() -> None:
    ours = quantile_function(SPECTRA["dead"], 5)
    assert ours.tolist() == pytest.approx([0.3, -0.1, -0.5, -math.inf, -math.inf])
    # Halfway between places on the logarithmic scale: from .05 (e − 1) to .05 (e² − 1), the middle is .05 (e^1.5 − 1).
    ends = 0.05 * torch.tensor([2.0, 1.0]).expm1()
    assert quantile_function(ends, 1).tolist() == pytest.approx([0.05 * math.expm1(1.5)])
    assert quantile_function(torch.full((3,), math.nan), 4).isnan().all()


def test_quantile_functions_of_several_at_once() -> None:
    several = torch.stack([SPECTRA["dead"], SPECTRA["partly unknown"], torch.full((5,), math.nan), torch.ones(5)])
    together = quantile_function(several.view(2, 2, 5))
    assert together.shape == (2, 2, 64)
    for ours, one in zip(together.flatten(0, 1), several, strict=True):
        torch.testing.assert_close(ours, quantile_function(one), **EXACT)


def test_half_precision_keeps_what_is_finite_finite() -> None:
    values = torch.tensor([1e9, -1e9, math.inf, -math.inf, math.nan, 0.1])
    expected = torch.tensor([65504.0, -65504.0, math.inf, -math.inf, math.nan, 0.1]).half()
    torch.testing.assert_close(halved(values), expected, **EXACT)
