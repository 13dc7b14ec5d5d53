"""The raw predictions for one network in NumPy against those of many in torch, both in float64."""

import math
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows, context, hand_features, quantiles, rows
from lightning_lyapunov.aelle.heads import Heads, without_skill, without_spectrum
from lightning_lyapunov.aelle.single import Single, _hand_features, ends, gated


def doubled(part: Any) -> Any:
    return replace(part, **{field.name: getattr(part, field.name).double() for field in fields(part)})


@pytest.fixture(scope="module")
def heads() -> Heads:
    """Those of the general scorer, in float64."""
    made = AeLLEScorer.from_pretrained().heads
    models = [deepcopy(model).double() for model in made.models]
    ridges = {name: doubled(ridge) for name, ridge in made.ridges.items()}
    return Heads(models, ridges, doubled(made.shares))


@pytest.fixture(scope="module")
def several() -> Rows:
    """Spectra that are whole, partial, of one exponent, dead in part, without a mean; contexts that are anything."""
    generator = torch.Generator().manual_seed(0)
    spectra = []
    for dimension, known in [(64, 64), (64, 32), (64, 1), (8, 8), (33, 20), (128, 127), (16, 16), (2, 2)]:
        exponents = torch.randn(dimension, generator=generator).sort(descending=True).values - 0.5
        exponents[-1] = -math.inf if dimension == 16 else exponents[-1]
        spectra.append(quantiles(exponents[:known], dimension, -0.4 if dimension == 33 else None))
    spectra += [spectra[0].abs(), torch.full((LEVELS + 1,), math.nan)]
    contexts = [
        context("lstm", 64, 100, 0.4), context("gru", 32, 0), context(None, None, None, 0.0), context(),
        context("rnn", 512, 800, 1.0), context("lstm", 8, 5000), context("other", 100, 40, 0.3),
        context("rnn", 3, 7, 0.9), context("gru", 64, 160, 0.2), context("lstm", 64, 3, 0.1),
    ]  # fmt: skip
    made = rows(spectra, contexts)
    return Rows(made.spectrum.double(), made.context.double())


def singly(of: Rows) -> list[Rows]:
    return [Rows(of.spectrum[i : i + 1], of.context[i : i + 1]) for i in range(len(of))]


@pytest.mark.parametrize(
    "known", [lambda r: r, without_skill, without_spectrum, lambda r: without_skill(without_spectrum(r))]
)
def test_one_row_is_what_it_is_among_others(heads: Heads, several: Rows, known: Any) -> None:
    of = known(several)
    together = heads(of)
    assert not together.isnan().any() and together.std(0).min() > 1e-3
    for one, expected in zip(singly(of), together, strict=True):
        torch.testing.assert_close(heads(one)[0], expected, rtol=1e-12, atol=1e-12)


def test_codes_and_what_is_made_of_them(heads: Heads, several: Rows) -> None:
    codes, completed = heads.codes(several), heads.completed(several)
    for i, one in enumerate(singly(several)):
        torch.testing.assert_close(heads.codes(one)[0], codes[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            heads.completed(one).spectrum[0], completed.spectrum[i], rtol=1e-12, atol=1e-12, equal_nan=True
        )


def test_gates_and_intervals_of_one_row(heads: Heads, several: Rows) -> None:
    """At predictions over all bins, more and less familiar."""
    scorer = AeLLEScorer.from_pretrained()
    gate, intervals = doubled(scorer.gate), doubled(scorer.intervals)
    prediction = torch.linspace(0.01, 0.99, len(several), dtype=torch.float64)
    familiarity, share = prediction.flip(0), (0.3 + prediction).clamp(max=1.0)
    gates = gate(prediction, several)
    both = torch.stack(intervals(prediction, several, familiarity, share), 1)
    assert both.diff().min() > 0.05
    for i, one in enumerate(singly(several)):
        said = prediction[i : i + 1]
        if not one.context[0, -1].isnan():
            torch.testing.assert_close(gated(gate, said, one), gates[i : i + 1], rtol=1e-12, atol=1e-12)
        found = torch.cat(ends(intervals, said, one, familiarity[i : i + 1], share[i : i + 1]))
        torch.testing.assert_close(found, both[i], rtol=1e-12, atol=1e-12)


def test_features_by_hand(several: Rows) -> None:
    expected = hand_features(several.spectrum)
    for values, features in zip(several.spectrum[:-1], expected, strict=False):
        found = torch.from_numpy(_hand_features(values.numpy()))
        torch.testing.assert_close(found, features, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_what_was_asked_before_makes_no_difference(heads: Heads, several: Rows) -> None:
    """The last spectrum is kept; the answers are those of whichever is asked about."""
    single = Single(heads.models, heads.ridges, heads.shares)
    first, second = singly(several)[:2]
    alone = single(first.spectrum, first.context)
    single(second.spectrum, first.context)
    assert (single(first.spectrum, first.context) == alone).all()
    other = single(first.spectrum, second.context)
    assert (other != alone).any()
    assert (single(without_spectrum(first).spectrum, first.context) != alone).any()


def test_the_skill_stands_last() -> None:
    """Which is how it is left out."""
    assert CONTEXT[-1] == "skill"


def test_models_of_several_sizes_are_left_to_torch(heads: Heads, several: Rows) -> None:
    from lightning_lyapunov.aelle.autoencoder import AeLLE

    torch.manual_seed(0)
    mixed = Heads([*heads.models, AeLLE(4, 16).double().eval()], heads.ridges, heads.shares)
    assert not Single.takes(mixed.models) and Single.takes(heads.models)
    torch.testing.assert_close(mixed(singly(several)[0])[0], mixed(several)[0], rtol=1e-12, atol=1e-12)
