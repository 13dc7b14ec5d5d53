"""The autoencoder and the ridge: against what must not matter, an optimiser of scipy, spectra made of one number."""

import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, AeLLE
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, HAND, LEVELS, Rows, context, hand_features
from lightning_lyapunov.aelle.fitting import Ridge, fit_autoencoder, forget, ridge_features, targets
from lightning_lyapunov.aelle.training import PENALTIES

NAN = math.nan


def drawn(count: int, seed: int = 0) -> Rows:
    """Rows of which everything is known."""
    values = noise(count, LEVELS + 1 + len(CONTEXT), seed=seed).float()
    return Rows(values[:, : LEVELS + 1].sort(1, descending=True).values, values[:, LEVELS + 1 :])


def one_parameter(t: Tensor) -> Rows:
    """Spectra that fall from 2t to t − 4: everything follows from t."""
    p = torch.linspace(0.0, 1.0, LEVELS + 1)
    return Rows(2 * t.unsqueeze(1) - (4 + t.unsqueeze(1)) * p, context("gru", 32, 40).repeat(len(t), 1))


class Fitted(NamedTuple):
    model: AeLLE
    fresh: Rows
    t: Tensor
    left_random_state: bool


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    """An autoencoder of spectra made of t, with a skill of 0.1 + 0.8 t that is told; and spectra not seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, t = AeLLE(4, 32), torch.rand(200)
        rows = one_parameter(t)
        model.normalise(rows)
        before = torch.get_rng_state()
        fit_autoencoder(model, rows, targets(0.1 + 0.8 * t), torch.ones(200), seed=0, steps=250, rate=5e-3)
        fresh = torch.linspace(0.02, 0.98, 60)
        return Fitted(model, one_parameter(fresh), fresh, torch.equal(torch.get_rng_state(), before))


# ------------------------------------------------------------------ the autoencoder


def test_shapes_are_those_of_the_docstring() -> None:
    output = AeLLE(5, 16)(drawn(7))
    assert [tuple(part.shape) for part in output] == [(7, 5), (7, LEVELS + 1), (7, len(HEADS))]


def test_weights_of_unknown_values_do_not_matter() -> None:
    """What multiplies them is scrambled, and nothing changes."""
    rows = drawn(6)
    rows.spectrum[:, 10:] = NAN
    rows.context[:, 1:4] = NAN
    model = AeLLE().eval()
    model.normalise(drawn(20, seed=1))
    scrambled = copy.deepcopy(model)
    with torch.no_grad():
        scrambled.encoder[0].weight[:, 10 : LEVELS + 1] = 1e3
        scrambled.heads[0].weight[:, model.decoder[0].in_features + 1 : model.decoder[0].in_features + 4] = 1e3
    for ours, theirs in zip(model(rows), scrambled(rows), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_unknown_is_not_the_same_as_average() -> None:
    model, rows = AeLLE().eval(), drawn(3)
    rows.spectrum[:, 4] = model.centre[4]
    hidden = rows.spectrum.clone()
    hidden[:, 4] = NAN
    latent = model(Rows(hidden, rows.context)).latent
    assert not torch.allclose(latent, model(rows).latent, atol=1e-4)


def test_rows_do_not_see_each_other() -> None:
    model, rows = AeLLE().eval(), drawn(6)
    rows.spectrum[2, 5:] = NAN
    for whole, alone in zip(model(rows), model(rows[torch.tensor([4])]), strict=True):
        torch.testing.assert_close(whole[4:5], alone)


def test_normalise_takes_mean_and_deviation_of_what_is_known() -> None:
    rows = drawn(3)
    rows.spectrum[:, 0] = torch.tensor([1.0, 3.0, NAN])
    rows.spectrum[:, 1] = 7.0
    rows.spectrum[:, 2] = NAN
    rows.spectrum[:, 5] *= 10
    model = AeLLE()
    model.normalise(rows)
    torch.testing.assert_close(model.centre[:3], torch.tensor([2.0, 7.0, 0.0]))
    torch.testing.assert_close(model.spread[:3], torch.tensor([1.0, 0.1, 0.1]))
    torch.testing.assert_close(model.spread[5], rows.spectrum[:, 5].std(correction=0))


def test_from_state_gives_the_same_model_and_draws_nothing() -> None:
    model = AeLLE(3, 16).eval()
    model.normalise(drawn(9))
    before = torch.get_rng_state()
    made = AeLLE.from_state(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert made.state_dict().keys() == model.state_dict().keys()
    for ours, theirs in zip(made(drawn(4)), model(drawn(4)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ------------------------------------------------------------------ fitting it


def test_spectra_made_of_one_number_are_reconstructed(fitted: Fitted) -> None:
    with torch.no_grad():
        made = fitted.model(fitted.fresh).reconstruction
    error = (made - fitted.fresh.spectrum) / fitted.model.spread
    assert float(error.square().mean().sqrt()) < 0.2


def test_a_skill_that_the_spectrum_decides_is_predicted(fitted: Fitted) -> None:
    with torch.no_grad():
        said = fitted.model(fitted.fresh).logits[:, HEADS.index("skill")].sigmoid()
    assert spearmanr(said, fitted.t).statistic > 0.95
    assert float((said - (0.1 + 0.8 * fitted.t)).abs().mean()) < 0.1
    assert not fitted.model.training


def test_fitting_leaves_the_random_state_alone(fitted: Fitted) -> None:
    assert fitted.left_random_state


def fit_briefly(seed: int) -> list[Tensor]:
    torch.manual_seed(5)
    model = AeLLE(2, 8)
    torch.manual_seed(seed + 17)  # must not matter
    t = torch.linspace(0, 1, 12)
    fit_autoencoder(model, one_parameter(t), targets(t), torch.ones(12), seed=seed, steps=4)
    return list(model.parameters())


def test_same_seed_same_weights_and_another_seed_others() -> None:
    same, again, other = fit_briefly(0), fit_briefly(0), fit_briefly(1)
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))


def test_no_random_state_of_a_gpu_is_touched_either(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    t = torch.linspace(0, 1, 12)
    model = AeLLE(2, 8)
    fit_autoencoder(model, one_parameter(t), targets(t), torch.ones(12), seed=3, steps=2)
    assert seeded == []


def test_heads_without_targets_are_not_moved() -> None:
    """The last layer has a bias for each head; that of a head with NaN targets keeps its own."""
    model, t = AeLLE(2, 8), torch.linspace(0, 1, 12)
    before = model.heads[3].bias.detach().clone()
    fit_autoencoder(model, one_parameter(t), targets(t), torch.ones(12), steps=4)
    moved = (model.heads[3].bias.detach() - before).abs() > 1e-4
    assert moved.tolist() == [True, True, True, False]


def test_what_is_not_known_need_not_be_reconstructed() -> None:
    """The decoder has a bias for each level; those of levels that no row knows keep theirs."""
    model, t = AeLLE(2, 8), torch.linspace(0, 1, 12)
    rows = one_parameter(t)
    rows.spectrum[:, 20:LEVELS] = NAN
    before = model.decoder[2].bias.detach().clone()
    fit_autoencoder(model, rows, targets(t), torch.ones(12), steps=4)
    moved = (model.decoder[2].bias.detach() - before).abs() > 1e-4
    assert moved.tolist() == [True] * 20 + [False] * (LEVELS - 20) + [True]


def test_rows_without_weight_are_not_seen() -> None:
    t = torch.linspace(0, 1, 12)
    weights = torch.cat([torch.ones(8), torch.zeros(4)])
    results = []
    for rubbish in (1.0, 50.0):
        rows = one_parameter(t)
        rows.spectrum[8:] = rubbish
        torch.manual_seed(5)
        model = AeLLE(2, 8)
        results.append(fit_autoencoder(model, rows, targets(t), weights, steps=3).state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=0)


def test_forget_hides_and_never_changes() -> None:
    rows = drawn(2000)
    rows.spectrum[:500, 20:LEVELS] = NAN
    rows.context[::7, 3] = NAN
    left = forget(rows, torch.Generator().manual_seed(0))
    for before, after in ((rows.spectrum, left.spectrum), (rows.context, left.context)):
        kept = ~after.isnan()
        assert torch.equal(after[kept], before[kept])
        assert not (kept & before.isnan()).any()


def test_forget_hides_tails_whole_spectra_and_kinds_together() -> None:
    rows = drawn(4000)
    left = forget(rows, torch.Generator().manual_seed(0))
    levels = left.spectrum[:, :LEVELS].isnan()
    assert (levels[:, 1:] >= levels[:, :-1]).all()  # once hidden, hidden to the end
    kinds = left.context[:, : len(ARCHITECTURES)].isnan()
    assert (kinds == kinds[:, :1]).all()
    everything = float(left.spectrum.isnan().all(1).float().mean())
    assert 0.13 < everything < 0.19  # 0.15, and the shortest tails
    assert 0.45 < float(left.context[:, CONTEXT.index("skill")].isnan().float().mean()) < 0.55
    assert not rows.spectrum.isnan().any() and not rows.context.isnan().any()


def test_targets_by_their_thresholds() -> None:
    made = targets(torch.tensor([0.0, 0.05, 0.2, 0.5, 1.0]), torch.tensor([1.0, 0.0, NAN, 1.0, 0.0]))
    assert made[:, 0].tolist() == pytest.approx([0.0, 0.05, 0.2, 0.5, 1.0])
    assert made[:, 1].tolist() == [1, 1, 0, 0, 0]
    assert made[:, 2].tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(made[:, 3], torch.tensor([1.0, 0.0, NAN, 1.0, 0.0]), equal_nan=True)
    assert targets(torch.tensor([0.1, 0.3]))[:, 1:3].tolist() == [[0, 0], [0, 0]]
    assert targets(torch.tensor([0.5]))[0, 3].isnan()


# ------------------------------------------------------------------ the ridge


INTERCEPT = 1e-3
"""The penalty of the intercept: with no slopes, and weights of 1 on average, N (p - mean) + INTERCEPT logit(p) = 0."""


def answers(count: int, outputs: int = 1, seed: int = 0) -> Tensor:
    """Skills, between 0 and 1."""
    return torch.sigmoid(1.5 * noise(count, outputs, seed=seed)).float()


def minimised(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """What L-BFGS predicts in float64 from the objective alone: cross-entropy of the answers known, and penalties."""
    centre = np.average(x, axis=0, weights=weights)
    x = (x - centre) / np.sqrt(np.average((x - centre) ** 2, axis=0, weights=weights))
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    penalties = np.append(np.full(x.shape[1] - 1, penalty / 4), INTERCEPT)
    known = ~np.isnan(y)
    counts = weights[known] * len(x) / weights.sum()

    def objective(beta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x[known] @ beta
        value = counts @ (np.logaddexp(0, z) - y[known] * z) + penalties @ beta**2 / 2
        return value, x[known].T @ (counts * (1 / (1 + np.exp(-z)) - y[known])) + penalties * beta

    beta = minimize(
        objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-9, "maxiter": 5000}
    ).x
    return 1 / (1 + np.exp(-x @ beta))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_is_what_an_optimiser_finds(penalty: float) -> None:
    """Skills, rare bits, and skills of which every third is not known, from features some of which are skewed."""
    x, w = noise(80, 6, seed=3), noise(80, seed=4).abs() + 0.1
    x = torch.cat([3 * x[:, :4] + 1, x[:, 4:].exp()], 1)
    skills = torch.sigmoid(x[:, 0] - noise(80, seed=5))
    holes = torch.where(torch.arange(80) % 3 == 0, NAN, skills)
    y = torch.stack([skills, (x[:, 1] + noise(80, seed=6) > 5).double(), holes], 1)
    assert 0 < int(y[:, 1].sum()) < 12
    said = Ridge.fit(x.float(), y.float(), w.float(), penalty)(x.float())
    for ours, column in zip(said.T, y.T, strict=True):
        expected = minimised(x.float().double().numpy(), column.float().double().numpy(), w.numpy(), penalty)
        assert ours.numpy() == pytest.approx(expected, abs=2e-5)


def test_ridge_penalty_is_that_of_least_squares_around_one_half() -> None:
    """There the logistic curve is straight: against torch.linalg.lstsq with a row for the penalty of each feature."""
    x, y = noise(60, 4, seed=3), 0.5 + 0.01 * noise(60, 1, seed=4)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    design = torch.cat([standard, torch.ones(60, 1, dtype=torch.float64)], 1)
    rows = torch.cat([design, math.sqrt(20.0) * torch.eye(5, dtype=torch.float64)[:4]])
    expected = design @ torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(4, 1, dtype=torch.float64)])).solution
    said = Ridge.fit(x.float(), y.float(), torch.ones(60), penalty=20.0)(x.float())
    # The next term of the curve is z³ / 48, and logits are below 4 * 0.03; the intercept's penalty adds less.
    torch.testing.assert_close(said.double(), expected, rtol=0, atol=(4 * 0.03) ** 3 / 48)


def test_ridge_weight_of_two_is_the_row_twice() -> None:
    """And of none is no row; as many rows in both, so that penalties are worth the same."""
    x, y = noise(25, 3, seed=1).float(), answers(25, seed=2)
    x[20:], y[20:] = 3.0, 1.0
    twice = torch.cat([torch.arange(20), torch.arange(5)])
    w = torch.cat([torch.full((5,), 2.0), torch.ones(15), torch.zeros(5)])
    ours, theirs = Ridge.fit(x, y, w, 3.0), Ridge.fit(x[twice], y[twice], torch.ones(25), 3.0)
    torch.testing.assert_close(ours(x[:20]), theirs(x[:20]), rtol=1e-5, atol=1e-6)


def test_ridge_with_all_the_penalty_is_the_weighted_mean() -> None:
    """But for what the penalty of the intercept takes."""
    x, y, w = noise(30, 2).float(), answers(30, seed=1) ** 2, noise(30, seed=2).abs().float()
    mean = (w.unsqueeze(1) * y).sum() / w.sum()
    said = Ridge.fit(x, y, w, penalty=1e9)(x)
    torch.testing.assert_close(said, mean - INTERCEPT * said.logit() / 30, rtol=0, atol=1e-6)
    torch.testing.assert_close(said, mean.expand(30, 1), rtol=0, atol=1e-4)


def test_features_that_are_not_known_count_as_average() -> None:
    x, y = noise(40, 3, seed=5).float(), answers(40, seed=6)
    holes = x.clone()
    holes[:10, 1] = NAN
    filled = holes.clone()
    filled[:10, 1] = holes[10:, 1].mean()
    fitted = Ridge.fit(holes, y, torch.ones(40), 1.0)
    torch.testing.assert_close(fitted(holes), fitted(filled))
    torch.testing.assert_close(fitted.centre[1], x[10:, 1].mean())
    torch.testing.assert_close(fitted.spread[1], x[10:, 1].std(correction=0))
    assert fitted(torch.full((1, 3), NAN)).isfinite().all()


def test_features_that_nobody_knows_leave_the_mean() -> None:
    """But for what the penalty of the intercept takes."""
    y = answers(5, seed=6)
    said = Ridge.fit(torch.full((5, 2), NAN), y, torch.ones(5))(torch.tensor([[3.0, -5.0]]))[0, 0]
    torch.testing.assert_close(said, y.mean() - INTERCEPT * said.logit() / 5, rtol=0, atol=1e-6)


def test_answers_that_are_not_known_are_left_out() -> None:
    """As if there were only the other rows: those left out repeat their features, so that averages are the same."""
    x, y = noise(30, 3, seed=5).float(), answers(30, 2, seed=6)
    double = torch.cat([x, x.flip(0)])
    whole = torch.cat([y, answers(30, 2, seed=7)])
    holes = torch.stack([whole[:, 0], torch.cat([y[:, 1], torch.full((30,), NAN)])], 1)
    said = Ridge.fit(double, holes, torch.ones(60), 3.0)(x)
    torch.testing.assert_close(said[:, 1], Ridge.fit(x, y, torch.ones(30), 3.0)(x)[:, 1])
    torch.testing.assert_close(said[:, 0], Ridge.fit(double, whole, torch.ones(60), 3.0)(x)[:, 0])


def test_a_column_without_answers_says_nothing() -> None:
    x, y = noise(20, 2).float(), answers(20, 3, seed=1)
    y[:, 1] = NAN
    said = Ridge.fit(x, y, torch.ones(20))(x)
    assert said.isnan().all(0).tolist() == [False, True, False]
    assert said[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_answers_that_are_all_the_same_are_nearly_said(answer: float) -> None:
    """No logit is infinite: with no slopes, N |p - answer| = INTERCEPT |logit(p)|, which is below 0.02."""
    x = noise(200, 3).float()
    fitted = Ridge.fit(x, torch.full((200, 1), answer), torch.ones(200))
    said = torch.cat([fitted(x), fitted(100 * x)])
    assert ((said > 0) & (said < 1)).all()
    assert float((said - answer).abs().max()) < 0.02 / 200 * 1.1  # a tenth: Newton's method is not quite there


@pytest.mark.parametrize("features", [1, 100], ids=["one feature", "more than rows"])
def test_answers_that_can_be_separated_stay_finite(features: int) -> None:
    """Without a penalty the slopes would grow for ever: with the least of those tried, all is told apart."""
    x = noise(60, features, seed=1).float()
    y = (x[:, :1] > 0.3).float()
    fitted = Ridge.fit(x, y, torch.ones(60), min(PENALTIES))
    said = fitted(x)
    assert fitted.coefficients.isfinite().all()
    assert ((said > 0) & (said < 1)).all()
    assert float(((said > 0.5) == (y > 0.5)).float().mean()) > 0.95


@pytest.mark.parametrize("value", [0.7, -4.3, 1e3])
def test_a_feature_that_never_varied_does_not_matter_when_it_does(value: float) -> None:
    """It says nothing of the rows that were fitted on, so nothing follows from it."""
    x, y = noise(30, 2, seed=5).float(), answers(30, seed=6)
    x[:, 1] = value
    fitted = Ridge.fit(x, y, torch.full((30,), 0.3))
    moved = x.clone()
    moved[:, 1] += 1.0
    torch.testing.assert_close(fitted(moved), fitted(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "updates"), [("gru", 0), ("gru", 800), ("lstm", 160), (None, None)], ids=["young", "old", "LSTM", "untold"]
)
def test_what_never_varied_does_not_matter_in_products_either(kind: str | None, updates: int | None) -> None:
    """All were GRUs after 160 updates: times one of these, a feature says nothing but what it says itself."""
    seen, moved = (
        ridge_features(Rows(drawn(40).spectrum, context(k, 32, u).repeat(40, 1)))
        for k, u in (("gru", 160), (kind, updates))
    )
    fitted = Ridge.fit(seen, answers(40, seed=6), torch.ones(40))
    assert float(fitted(seen).std()) > 0.05  # not all the same
    torch.testing.assert_close(fitted(moved), fitted(seen), rtol=0, atol=1e-3)


def test_ridge_features_are_context_hand_features_and_their_products() -> None:
    rows = Rows(drawn(3).spectrum, torch.stack([context("gru", 64, 90, 0.5), context("rnn", 16, 0), context()]))
    hand, size = hand_features(rows.spectrum), ridge_features(rows, spectrum=False, context=("log_size",))
    torch.testing.assert_close(size[:, 0], rows.context[:, 3], equal_nan=True)
    whole = ridge_features(rows)
    assert whole.shape == (3, len(CONTEXT) + 5 * len(HAND))
    parts = whole[:, len(CONTEXT) :].split(len(HAND), 1)
    expected = [hand, *(hand * rows.context[:, [CONTEXT.index(n)]] for n in (*ARCHITECTURES, "log_updates"))]
    torch.testing.assert_close(list(parts), expected, rtol=0, atol=0, equal_nan=True)
