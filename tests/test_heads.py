"""Raw predictions: of one network as of many, and of the same from a file."""

import math

import pytest
import torch
from scored import mixed, uniform
from torch import Tensor

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED, AeLLE
from lightning_lyapunov.aelle.combining import PREDICTORS, Combination
from lightning_lyapunov.aelle.features import LEVELS, Context, Rows, quantiles
from lightning_lyapunov.aelle.heads import Heads
from lightning_lyapunov.aelle.knowledge import RUNGS, limited
from lightning_lyapunov.aelle.ridge import Ridges

NAN = math.nan


def model(seed: int) -> AeLLE:
    torch.manual_seed(seed)
    made = AeLLE(3, 8).eval()
    made.normalise(mixed(20), torch.ones(20))
    return made


@pytest.fixture(scope="module")
def small() -> Heads:
    """Two autoencoders that were not trained, and ridges of some made-up networks."""
    with torch.random.fork_rng(devices=[]):
        rows = mixed(80)
        return Heads([model(0), model(1)], Ridges.fit(rows, uniform(80, len(HEADS)), torch.ones(80)))


@pytest.fixture(scope="module")
def several() -> Rows:
    """Spectra that are whole, partial, of one exponent, dead in part, without a mean; contexts that are anything."""
    generator = torch.Generator().manual_seed(0)
    spectra = []
    for dimension, known in [(64, 64), (64, 32), (64, 1), (8, 8), (33, 20), (128, 127), (16, 16), (2, 2)]:
        exponents = torch.randn(dimension, generator=generator).sort(descending=True).values - 0.5
        exponents[-1] = -math.inf if dimension == 16 else exponents[-1]
        spectra.append(quantiles(exponents[:known], dimension, -0.4 if dimension == 33 else None))
    spectra += [spectra[0].abs(), torch.full((LEVELS + 1,), NAN)]
    contexts = [
        Context("lstm", 64, 100, 0.4, 1e-3, True, 2.0, 0.3, 0.2, 24), Context("gru", 32, 0), Context(skill=0.0),
        Context(),
        Context("rnn", 512, 800, 1.0, 1e-2), Context("lstm", 8, 5000, None, 1e-3, False, None, 0.5),
        Context("other", 100, 40, 0.3, 3e-3, True), Context("rnn_relu", 3, 7, 0.9), Context("gru", 64, 160, 0.2),
        Context(None, 64, 3, 0.1, 1e-3, True, 5.0),
    ]  # fmt: skip
    return Rows(torch.stack(spectra), torch.stack([one.values() for one in contexts]))


def singly(of: Rows) -> list[Rows]:
    return [of[torch.tensor([i])] for i in range(len(of))]


def test_one_row_of_the_general_scorer_is_what_it_is_among_others(several: Rows) -> None:
    """In every state of knowledge."""
    heads = AeLLEScorer.from_pretrained().heads
    seen = heads.ranges.clamped(several)
    shown = [limited(seen, part=p, rung=r, skill=s) for p in ("all", "none") for r in (0, 3, 5) for s in (False, True)]
    rows = Rows.joined(shown)
    together = heads(rows)
    assert not together.isnan().any() and float(together.std(0).min()) > 1e-2
    for one, expected in zip(singly(rows), together, strict=True):
        torch.testing.assert_close(heads(one)[0], expected, rtol=0, atol=1e-5)


def test_codes_and_what_is_completed_of_one_row(small: Heads, several: Rows) -> None:
    codes, completed = small.codes(several), small.completed(several).spectrum
    for i, one in enumerate(singly(several)):
        torch.testing.assert_close(small.codes(one)[0], codes[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(small.completed(one).spectrum[0], completed[i], rtol=1e-5, atol=1e-5, equal_nan=True)


def test_predictors_are_means_of_the_autoencoders_and_the_ridges(small: Heads) -> None:
    """Stability has no rank: its level stands for it."""
    rows = mixed(6, seed=2)
    said = small.predictors(rows)
    assert said.shape == (6, len(HEADS), len(PREDICTORS)) and not said.requires_grad
    with torch.no_grad():
        first, second = (one(rows) for one in small.models)
    torch.testing.assert_close(said[:, :RANKED, 0], (first.ranks + second.ranks) / 2)
    torch.testing.assert_close(said[:, RANKED:, 0], ((first.logits + second.logits) / 2)[:, RANKED:])
    torch.testing.assert_close(said[..., 1], small.ridges(rows))


def test_unfitted_heads_are_the_sigmoid_of_half_of_rank_and_ridge(small: Heads) -> None:
    rows = limited(mixed(6, seed=2), rung=len(RUNGS) - 2)
    said: Tensor = small.predictors(rows)
    torch.testing.assert_close(small(rows), torch.sigmoid((said[..., 0] + said[..., 1]) / 2))


def test_whole_spectra_are_complete(small: Heads) -> None:
    rows = mixed(3)
    assert small.completed(rows) is rows


def test_heads_come_back_from_what_is_written(small: Heads) -> None:
    """Two autoencoders, and all the rest; of the shapes that a file must have."""
    fitted = Heads(small.models, small.ridges, Combination(uniform(*Combination.unfitted().table.shape)))
    written = fitted.tensors("here") | {"other": torch.zeros(1)}
    again = Heads.of("here", written)
    assert len(again.models) == 2
    rows = mixed(9, seed=3)
    assert torch.equal(again(rows), fitted(rows)) and not torch.equal(again(rows), small(rows))
    assert torch.equal(again.ranges.high, fitted.ranges.high)
    assert {name: tuple(value.shape) for name, value in written.items() if name != "other"} == Heads.shapes(
        "here", written
    )
