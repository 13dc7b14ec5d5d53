"""The ridge: against an optimiser of scipy, in float64, of the same objective, and rows whose answers follow."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scored import everything, mixed, uniform
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.features import ARCHITECTURES, CHEAP, CONTEXT, HAND, Rows, hand_features
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, cut, limited, place
from lightning_lyapunov.aelle.ridge import KINDS, Ridge, Ridges, features_for

NAN = math.nan
INTERCEPT = 1e-3
"""The penalty of the intercept: with no slopes, and weights of 1 on average, N (p - mean) + INTERCEPT logit(p) = 0."""


def answers(count: int, outputs: int = 1, seed: int = 0) -> Tensor:
    """Skills, between 0 and 1."""
    return torch.sigmoid(1.5 * noise(count, outputs, seed=seed)).float()


def gradient(beta: np.ndarray, x: np.ndarray, y: np.ndarray, counts: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    return x.T @ (counts * (expit(x @ beta) - y)) + penalties * beta


def design(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float) -> tuple[np.ndarray, ...]:
    """The standardised rows that have an answer, their answers, how they count, and penalties."""
    centre = np.average(x, axis=0, weights=weights)
    x = (x - centre) / np.sqrt(np.average((x - centre) ** 2, axis=0, weights=weights))
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    penalties, known = np.append(np.full(x.shape[1] - 1, penalty / 4), INTERCEPT), ~np.isnan(y)
    return x[known], y[known], weights[known] * len(x) / weights.sum(), penalties


def minimised(x: np.ndarray, y: np.ndarray, counts: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """What L-BFGS finds from the objective alone: cross-entropy of the answers known, and penalties."""

    def objective(beta: np.ndarray) -> float:
        z = x @ beta
        return float(counts @ (np.logaddexp(0, z) - y * z) + penalties @ beta**2 / 2)

    return minimize(
        objective, np.zeros(x.shape[1]), jac=lambda beta: gradient(beta, x, y, counts, penalties), method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-9, "maxiter": 5000},
    ).x  # fmt: skip


@pytest.mark.parametrize("penalty", [0.3, 1.0, 30.0])
def test_ridge_is_what_an_optimiser_finds(penalty: float) -> None:
    """Skills, rare bits, and skills of which every third is not known, from features some of which are skewed; and the
    gradient of the objective is zero there.
    """
    x, w = noise(80, 6, seed=3), noise(80, seed=4).abs() + 0.1
    x = torch.cat([3 * x[:, :4] + 1, x[:, 4:].exp()], 1)
    skills = torch.sigmoid(x[:, 0] - noise(80, seed=5))
    holes = torch.where(torch.arange(80) % 3 == 0, NAN, skills)
    y = torch.stack([skills, (x[:, 1] + noise(80, seed=6) > 5).double(), holes], 1)
    assert 0 < int(y[:, 1].sum()) < 12
    fitted = Ridge.fit(x.float(), y.float(), w.float(), penalty)
    for column, ours in zip(y.T, fitted.coefficients.double().T.numpy(), strict=True):
        parts = design(x.float().double().numpy(), column.float().double().numpy(), w.float().double().numpy(), penalty)
        assert ours == pytest.approx(minimised(*parts), abs=1e-4)
        assert np.abs(gradient(ours, *parts)).max() < 2e-3  # of counts that sum to 80


def test_ridge_says_logits_of_standardised_features() -> None:
    x, y = noise(40, 3, seed=1).float(), answers(40, 2, seed=2)
    fitted, new = Ridge.fit(x, y, torch.ones(40)), noise(5, 3, seed=3).float()
    standard = (new - x.mean(0)) / x.std(0, correction=0)
    expected = standard @ fitted.coefficients[:3] + fitted.coefficients[3]
    torch.testing.assert_close(fitted(new), expected, rtol=1e-4, atol=1e-5)


def test_ridge_penalty_is_that_of_least_squares_around_one_half() -> None:
    """There the logistic curve is straight: against torch.linalg.lstsq with a row for the penalty of each feature."""
    x, y = noise(60, 4, seed=3), 0.5 + 0.01 * noise(60, 1, seed=4)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    design = torch.cat([standard, torch.ones(60, 1, dtype=torch.float64)], 1)
    rows = torch.cat([design, math.sqrt(20.0) * torch.eye(5, dtype=torch.float64)[:4]])
    expected = design @ torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(4, 1, dtype=torch.float64)])).solution
    said = Ridge.fit(x.float(), y.float(), torch.ones(60), penalty=20.0)(x.float()).sigmoid()
    # The next term of the curve is z³ / 48, and logits are below 4 * 0.03; the intercept's penalty adds less.
    torch.testing.assert_close(said.double(), expected, rtol=0, atol=(4 * 0.03) ** 3 / 48)


def test_ridge_weight_of_two_is_the_row_twice() -> None:
    """And of none is no row; as many rows in both, so that penalties are worth the same."""
    x, y = noise(25, 3, seed=1).float(), answers(25, seed=2)
    x[20:], y[20:] = 3.0, 1.0
    twice = torch.cat([torch.arange(20), torch.arange(5)])
    w = torch.cat([torch.full((5,), 2.0), torch.ones(15), torch.zeros(5)])
    ours, theirs = Ridge.fit(x, y, w, 3.0), Ridge.fit(x[twice], y[twice], torch.ones(25), 3.0)
    torch.testing.assert_close(ours(x[:20]), theirs(x[:20]), rtol=1e-5, atol=1e-5)


def test_ridge_with_all_the_penalty_is_the_weighted_mean() -> None:
    """But for what the penalty of the intercept takes."""
    x, y, w = noise(30, 2).float(), answers(30, seed=1) ** 2, noise(30, seed=2).abs().float()
    mean = (w.unsqueeze(1) * y).sum() / w.sum()
    said = Ridge.fit(x, y, w, penalty=1e9)(x)
    torch.testing.assert_close(said.sigmoid(), mean - INTERCEPT * said / 30, rtol=0, atol=1e-6)
    torch.testing.assert_close(said.sigmoid(), mean.expand(30, 1), rtol=0, atol=1e-4)


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
    torch.testing.assert_close(said.sigmoid(), y.mean() - INTERCEPT * said / 5, rtol=0, atol=1e-6)


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
    assert said.isfinite().all()
    # A tenth more: Newton's method is not quite there.
    assert float((said.sigmoid() - answer).abs().max()) < 1.1 * 0.02 / 200


@pytest.mark.parametrize("features", [1, 100], ids=["one feature", "more than rows"])
def test_answers_that_can_be_separated_stay_finite(features: int) -> None:
    """Without a penalty the slopes would grow for ever: with a small one, all is told apart."""
    x = noise(60, features, seed=1).float()
    y = (x[:, :1] > 0.3).float()
    fitted = Ridge.fit(x, y, torch.ones(60), 0.3)
    assert fitted.coefficients.isfinite().all() and float(fitted(x).abs().max()) < 30
    assert float(((fitted(x) > 0) == (y > 0.5)).float().mean()) > 0.95


@pytest.mark.parametrize("value", [0.7, -4.3, 1e3])
def test_a_feature_that_never_varied_does_not_matter_when_it_does(value: float) -> None:
    """It says nothing of the rows that were fitted on, so nothing follows from it."""
    x, y = noise(30, 2, seed=5).float(), answers(30, seed=6)
    x[:, 1] = value
    fitted = Ridge.fit(x, y, torch.full((30,), 0.3))
    moved = x.clone()
    moved[:, 1] += 1.0
    torch.testing.assert_close(fitted(moved), fitted(x), rtol=0, atol=1e-3)


def test_a_multiple_of_another_feature_adds_nothing() -> None:
    x, y = noise(30, 2, seed=5).float(), answers(30, seed=6)
    twice = torch.cat([x, -3 * x[:, :1] + 1], 1)
    moved = twice.clone()
    moved[:, 2] += 5.0
    torch.testing.assert_close(Ridge.fit(twice, y, torch.ones(30))(moved), Ridge.fit(x, y, torch.ones(30))(x))


def test_what_never_varied_does_not_matter_in_products_either() -> None:
    """All were GRUs: times that, a feature says nothing but what it says itself, of a kind never seen too."""
    seen, moved = everything(40), everything(40, architecture="lstm")
    for rows in (seen, moved):
        rows.spectrum[:] = mixed(40).spectrum
    fitted = Ridge.fit(features_for((True, True, 5), seen), answers(40, seed=6), torch.ones(40))
    said = fitted(features_for((True, True, 5), seen))
    assert float(said.std()) > 0.05  # not all the same
    torch.testing.assert_close(fitted(features_for((True, True, 5), moved)), said, rtol=0, atol=1e-3)


# ------------------------------------------------------------------ one for each knot and kind of knowledge


def test_features_of_everything_counted_and_worked_by_hand() -> None:
    rows = mixed(5)
    found = features_for((True, True, 5), rows)

    def of(*names: str) -> Tensor:
        return rows.context[:, [CONTEXT.index(name) for name in names]]

    hand, cells, rate, adaptive = hand_features(rows.spectrum), of(*ARCHITECTURES), of("log_rate"), of("adaptive")
    slopes = [hand * cells[:, i : i + 1] for i in range(4)]
    rates = [rate, rate**2, rate * cells, rate**2 * cells, adaptive, adaptive * rate, adaptive * rate**2]
    expected = torch.cat([hand, *slopes, cells, of("log_size", *CHEAP), *rates, of("skill")], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.shape == (5, 5 * len(HAND) + 4 + 4 + 2 + 8 + 3 + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_knowledge_sees_nothing_else(kind: tuple[bool, bool, int]) -> None:
    """Nothing that it does not know changes what it sees, and all that it sees is then known."""
    spectrum, skill, height = kind
    rows = mixed(5)
    known = limited(rows, part="all" if spectrum else "none", rung=height, skill=skill)
    found = features_for(kind, known)
    assert torch.equal(found, features_for(kind, rows)) and not found.isnan().any()


@pytest.fixture(scope="module")
def lessons() -> tuple[Rows, Tensor]:
    """Networks that end well where their largest exponent is large, and the more so the later they are seen."""
    rows = mixed(700, seed=3)
    slope = place(rows) / 4
    skill = torch.sigmoid(slope * rows.spectrum[:, 0])
    stable = torch.where(torch.arange(700) % 7 == 0, NAN, (rows.spectrum[:, 0] < 0).float())
    return rows, torch.stack([skill, (skill < 0.4).float(), (skill > 0.6).float(), stable], 1)


@pytest.fixture(scope="module")
def ridges(lessons: tuple[Rows, Tensor]) -> Ridges:
    rows, wanted = lessons
    return Ridges.fit(rows, wanted, torch.ones(len(rows)))


def test_every_kind_of_knowledge_has_its_answer(ridges: Ridges) -> None:
    """That of the ridge of its kind and of the nearest knots, found one row at a time."""
    rows = mixed(4, seed=9)
    parts = [limited(rows, part=p, rung=r, skill=s) for p in ("all", "none") for r in range(len(RUNGS)) for s in (0, 1)]
    parts.append(cut(rows, torch.Generator().manual_seed(0)))
    together = Rows.joined(parts)
    said = ridges(together)
    assert said.shape == (len(together), len(HEADS)) and said.isfinite().all()
    for i, expected in enumerate(said):
        alone = together[torch.tensor([i])]
        torch.testing.assert_close(ridges(alone)[0], expected, rtol=1e-4, atol=1e-5)


def test_at_a_knot_the_ridge_is_the_one_fitted_on_the_rows_there(lessons: tuple[Rows, Tensor], ridges: Ridges) -> None:
    """Of a kind that has enough rows at every knot; half way between two lies the mean of their logits."""
    rows, wanted = lessons
    kind = (False, True, 1)
    shown = limited(rows, part="none", rung=1)
    features, knots = features_for(kind, shown), place(rows).round().long()
    for knot in range(len(KNOTS)):
        here = knots == knot
        alone = Ridge.fit(features[here], wanted[here], torch.ones(int(here.sum())), 30.0)
        torch.testing.assert_close(ridges(shown[here]), alone(features[here]), rtol=1e-3, atol=1e-3)
    middle = limited(everything(updates=40), part="none", rung=1)
    by_knot = []
    for updates in (80, 160):
        one = limited(everything(updates=updates), part="none", rung=1)
        by_knot.append(ridges(one))
    time = CONTEXT.index("log_updates")
    middle.context[:, time] = (math.log(9) + math.log(17)) / 2
    torch.testing.assert_close(ridges(middle), sum(by_knot) / 2, rtol=1e-4, atol=1e-4)


def test_what_was_planted_is_found(ridges: Ridges) -> None:
    """Of networks not seen, late in training, where the answer follows most from the largest exponent."""
    rows = mixed(200, seed=11)
    late = rows[place(rows) > 5]
    said = ridges(late)[:, HEADS.index("skill")]
    truth = late.spectrum[:, 0]
    ordered = ((said.unsqueeze(1) > said) == (truth.unsqueeze(1) > truth)).float().mean()
    assert float(ordered) > 0.85


def test_ridges_are_written_and_read_under_their_name(ridges: Ridges) -> None:
    written = ridges.tensors("here")
    assert {name: tuple(value.shape) for name, value in written.items()} == Ridges.shapes("here")
    rows = mixed(9, seed=5)
    assert torch.equal(Ridges.of("here", written)(rows), ridges(rows))


def test_ridges_of_few_rows_are_finite() -> None:
    rows = mixed(8)
    said = Ridges.fit(rows, uniform(8, len(HEADS)), torch.ones(8))(rows)
    assert said.isfinite().all()
