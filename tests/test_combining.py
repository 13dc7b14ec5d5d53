"""One prediction out of several: against scipy's constrained minimum, areas under ROC curves, and what was planted."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scored import everything, flat, mixed, uniform
from sklearn.metrics import roc_auc_score
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.combining import (
    FEWEST,
    HABIT,
    MARGIN,
    PENALTY,
    PREDICTORS,
    RANKING,
    SLOPE,
    SURE,
    Combination,
    Pairs,
)
from lightning_lyapunov.aelle.combining import predictors as made_of
from lightning_lyapunov.aelle.features import CONTEXT, Rows
from lightning_lyapunov.aelle.fitting import CLEAR
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, STATES, limited, place, state

NAN = math.nan
AUTOENCODER, RIDGE, SO_FAR = range(len(PREDICTORS))


# ------------------------------------------------------------------ pairs


def by_loops(wanted: Tensor, weights: Tensor, groups: Tensor, clear: float) -> dict[tuple[int, int], float]:
    """What each pair of rows is worth, found one by one."""
    worth: dict[tuple[int, int], float] = {}
    for group in set(groups.tolist()):
        rows = [i for i, g in enumerate(groups.tolist()) if g == group]
        apart = {
            (i, j): min(1.0, float(wanted[i] - wanted[j]) / clear) for i in rows for j in rows if wanted[i] > wanted[j]
        }
        share = sum(float(weights[i]) for i in rows) / (sum(apart.values()) or 1.0)
        worth |= {pair: value * share for pair, value in apart.items()}
    return worth


@pytest.mark.parametrize("clear", [0.25, 1.0])
def test_pairs_are_those_of_a_double_loop(clear: float) -> None:
    wanted, weights = (uniform(30) * 4).round() / 4, uniform(30, seed=1)
    groups = torch.arange(30) % 4
    groups[29] = 9  # alone
    pairs = Pairs.of(wanted, weights, groups, clear)
    found = dict(zip(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True), pairs.worth.tolist(), strict=True))
    assert found == pytest.approx(by_loops(wanted, weights, groups, clear))
    for group in range(4):
        inside = groups[pairs.better] == group
        assert float(pairs.worth[inside].sum()) == pytest.approx(float(weights[groups == group].sum()))


def test_rows_that_do_not_differ_make_no_pairs() -> None:
    pairs = Pairs.of(torch.ones(5), torch.ones(5), torch.zeros(5, dtype=torch.long), 1.0)
    assert len(pairs.better) == len(pairs.worse) == len(pairs.worth) == 0
    assert pairs.concordance(torch.rand(5, 2)).isnan().all()


def test_concordance_of_bits_is_the_area_under_the_curve() -> None:
    """Of one group, with scores that tie; of several, the mean by the weight of their rows."""
    bits, scores = (uniform(60) > 0.7).float(), (uniform(60, 3, seed=1) * 8).round()
    one = Pairs.of(bits, torch.ones(60), torch.zeros(60, dtype=torch.long), 1.0).concordance(scores)
    assert one.tolist() == pytest.approx([roc_auc_score(bits, score) for score in scores.T])
    groups = (torch.arange(60) >= 20).long()
    several = Pairs.of(bits, torch.ones(60), groups, 1.0).concordance(scores)
    areas = [[roc_auc_score(bits[groups == g], score[groups == g]) for g in (0, 1)] for score in scores.T]
    assert several.tolist() == pytest.approx([(20 * a + 40 * b) / 60 for a, b in areas])


def test_concordance_is_one_for_the_order_itself_and_none_for_its_reverse() -> None:
    wanted = uniform(20)
    pairs = Pairs.of(wanted, torch.ones(20), torch.zeros(20, dtype=torch.long), 0.25)
    scores = torch.stack([wanted, -wanted, torch.zeros(20)], 1)
    assert pairs.concordance(scores).tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_some_of_the_pairs_are_drawn_by_their_worth_and_always_the_same() -> None:
    wanted, weights, groups = uniform(60), torch.ones(60), torch.arange(60) // 30
    weights[groups == 1] = 3.0
    pairs = Pairs.of(wanted, weights, groups, 0.25)
    assert pairs.some(len(pairs.worth)) is pairs
    few, again = pairs.some(600), pairs.some(600)
    assert torch.equal(few.better, again.better) and torch.equal(few.worse, again.worse)
    assert len(few.worth) == 600 and (few.worth == few.worth[0]).all()
    assert (wanted[few.better] > wanted[few.worse]).all() and (groups[few.better] == groups[few.worse]).all()
    # Three pairs in four are of the group with three quarters of the weight.
    assert float((groups[few.better] == 1).float().mean()) == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 600))


# ------------------------------------------------------------------ predictors


def test_predictors_stand_side_by_side_with_the_skill_so_far() -> None:
    """Its logit, away from both ends; turned round for failure, and 0 where it is not known."""
    rows = Rows.joined([everything(skill=s) for s in (0.3, 0.0, 1.0)] + [flat()])
    ranks, ridge = (noise(4, len(HEADS), seed=seed).float() for seed in range(2))
    said = made_of(ranks, ridge, rows)
    assert torch.equal(said[..., AUTOENCODER], ranks) and torch.equal(said[..., RIDGE], ridge)
    logits = torch.tensor([math.log(3 / 7), math.log(SURE / (1 - SURE)), math.log((1 - SURE) / SURE), 0.0])
    turned = torch.tensor([1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(said[..., SO_FAR], logits.unsqueeze(1) * turned, rtol=1e-4, atol=1e-4)
    assert HEADS == ("skill", "failure", "takeoff", "stability")


# ------------------------------------------------------------------ combination


def minimum(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], count: int) -> np.ndarray:
    """Where scipy finds the least of a loss whose second and later arguments may not be below 0."""
    bounds = [(None, None), *[(0, None)] * (count - 1)]
    start = np.full(count, 0.1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 0, "gtol": 1e-10}).x


def penalised(beta: np.ndarray) -> tuple[float, np.ndarray]:
    penalty = np.append(1e-6, np.full(len(beta) - 1, PENALTY))
    return float(penalty @ beta**2 / 2), penalty * beta


def constrained(said: np.ndarray, y: np.ndarray, weights: np.ndarray, groups: Tensor, clear: float) -> np.ndarray:
    """What scipy finds from the objectives alone, the first of them written down with the pairs of a double loop: the
    weights that rank, and then the level and the slope that make probabilities of ranks.
    """
    spread = said.std(0, ddof=1)
    z = said / spread
    worth = by_loops(torch.from_numpy(y), torch.from_numpy(weights), groups, clear)
    apart = np.array([z[i] - z[j] for i, j in worth])
    share = np.array(list(worth.values())) / sum(worth.values())

    def level(beta: np.ndarray, z: np.ndarray) -> tuple[float, np.ndarray]:
        logits, counts = beta[0] + z @ beta[1:], weights / weights.sum()
        off = counts * (expit(logits) - y)
        value, slope = penalised(beta)
        return value + float(counts @ (np.logaddexp(0, logits) - y * logits)), slope + np.append(off.sum(), z.T @ off)

    def rank(beta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = level(beta, z)
        ordered = apart @ beta[1:]
        pulled = -RANKING * apart.T @ (share * expit(-ordered))
        return value + RANKING * float(share @ np.logaddexp(0, -ordered)), slope + np.append(0, pulled)

    direction = minimum(rank, 1 + z.shape[1])[1:]
    ranks = (z @ direction)[:, None]
    found = minimum(lambda beta: level(beta, ranks), 2)
    return np.append(found[0], max(found[1], SLOPE) * direction / spread)


def alike(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Predictors that say much the same, one of them at times turned round, and an end that follows from what they
    share.
    """
    common = noise(count, 1, seed=seed)
    said = share * common + (1 - share) * noise(count, len(PREDICTORS), seed=seed + 500)
    skill = torch.sigmoid(3 * (seed % 3) * common[:, 0] + noise(count, seed=seed + 900))
    said[:, 1] *= (-1) ** seed
    return said.float(), skill.float()


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 63, 75, 78, 87])
def test_weights_are_those_of_the_constrained_minimum(seed: int) -> None:
    """None of them below 0, of predictors that differ much or hardly at all; also where whole steps of Newton's method
    would go round in circles, as from 63 on. Of bits, so that several predictors are always weighed.
    """
    said, skill = alike(70, (0.1, 0.5, 0.9, 0.98)[seed % 4], seed)
    groups, weights, rows = torch.arange(70) % 3, 0.2 + uniform(70, seed=seed), everything(70)
    bits = (skill > 0.6).float()
    each, wanted = said.unsqueeze(1).expand(-1, len(HEADS), -1), torch.full((70, len(HEADS)), NAN)
    wanted[:, 1] = bits
    table = Combination.fit([(rows, each)], wanted, weights, groups).table[int(state(rows)[0])]
    expected = constrained(*(part.double().numpy() for part in (said, bits, weights)), groups, 1.0)
    # The minimum is flat where predictors are alike: where on it one stops is up to rounding, what is said is not.
    logits = expected[0] + said.double().numpy() @ expected[1:]
    for found in table[:, 1]:  # all knots have the same rows
        assert (found[1:] >= 0).all()
        assert (found[0] + said @ found[1:]).numpy() == pytest.approx(logits, rel=1e-2, abs=5e-3)


def test_pairs_of_skills_count_as_clear_as_they_are() -> None:
    """Several predictors of a skill that each know a part of it, against the same minimum."""
    said = noise(90, len(PREDICTORS), seed=1).float()
    skill = torch.sigmoid(said @ torch.tensor([1.0, 0.7, 0.5]) + 0.5 * noise(90, seed=2).float())
    groups, rows = torch.arange(90) % 3, everything(90)
    each, wanted = said.unsqueeze(1).expand(-1, len(HEADS), -1), skill.unsqueeze(1).expand(-1, len(HEADS))
    found = Combination.fit([(rows, each)], wanted, torch.ones(90), groups).table[int(state(rows)[0]), 2, 0]
    expected = constrained(said.double().numpy(), skill.double().numpy(), np.ones(90), groups, CLEAR)
    assert found.numpy() == pytest.approx(expected, rel=1e-2, abs=5e-3)


def planted(count: int, seed: int) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """Rows, what is said of them, what is wanted, and groups: the autoencoder knows most, the ridge some."""
    said = noise(count, len(HEADS), len(PREDICTORS), seed=seed + 50).float()
    order = said[..., AUTOENCODER] * 2 + said[..., RIDGE]
    skill = torch.sigmoid(order[:, 0])
    wanted = torch.stack([skill, *(torch.sigmoid(order[:, head]) > 0.5 for head in (1, 2, 3))], 1).float()
    return everything(count), said, wanted, torch.arange(count) % 20


def test_a_planted_order_is_recovered() -> None:
    rows, said, wanted, groups = planted(600, 0)
    fitted = Combination.fit([(rows, said)], wanted, torch.ones(600), groups)
    fresh, told, truth, where = planted(400, 7)
    found = fitted(told, fresh)
    assert ((found >= 0) & (found <= 1)).all()
    for head in range(len(HEADS)):
        order = Pairs.of(truth[:, head], torch.ones(400), where, 1.0).concordance(found[:, head : head + 1])
        assert float(order) > 0.97
    assert float((found[:, 0] - truth[:, 0]).abs().mean()) < 0.03
    for weights in fitted.table[int(state(rows)[0]), 2, :, 1:]:
        assert float(weights[AUTOENCODER] / weights[RIDGE]) == pytest.approx(2.0, rel=0.15)
        assert weights[SO_FAR] < 0.1 * weights[RIDGE]


def test_a_skill_is_ranked_by_one_alone_where_the_others_add_next_to_nothing() -> None:
    """Not so probabilities. What is added is counted in pairs that are put in the right order."""
    rows, said, wanted, groups = planted(600, 0)
    said[..., RIDGE] = said[..., AUTOENCODER] + 0.3 * noise(600, len(HEADS), seed=3).float()
    order = said[:, 0, AUTOENCODER]
    wanted[:, 0] = torch.sigmoid(order)
    wanted[:, 1:] = (said[:, 1:, AUTOENCODER] + 0.3 * said[:, 1:, SO_FAR] > 0).float()
    assert 0 < MARGIN < 0.01
    table = Combination.fit([(rows, said)], wanted, torch.ones(600), groups).table[int(state(rows)[0]), 2]
    assert (table[0, 1:] > 0).tolist() == [True, False, False]
    assert (table[1:, 1 + SO_FAR] > 0).all() and (table[1:, 1 + AUTOENCODER] > 0).all()


def test_a_predictor_that_says_the_opposite_has_no_weight() -> None:
    rows, said, wanted, groups = planted(300, 0)
    said[..., AUTOENCODER] *= -1
    table = Combination.fit([(rows, said)], wanted, torch.ones(300), groups).table[int(state(rows)[0])]
    assert (table[..., 1 + AUTOENCODER] == 0).all() and (table[..., 1:] >= 0).all()


def test_where_all_say_the_opposite_the_mean_is_said() -> None:
    """With hardly any slope; of what is wanted, the level is right."""
    rows, said, wanted, groups = planted(300, 0)
    fitted = Combination.fit(
        [(rows, -said.abs() * (2 * wanted - 1).sign().unsqueeze(2))], wanted, torch.ones(300), groups
    )
    found = fitted(said, rows)
    torch.testing.assert_close(found, wanted.mean(0).expand(300, -1), rtol=0, atol=0.02)


def test_a_predictor_that_never_varies_has_no_weight() -> None:
    rows, said, wanted, groups = planted(300, 0)
    said[..., SO_FAR] = 0.7
    table = Combination.fit([(rows, said)], wanted, torch.ones(300), groups).table[int(state(rows)[0])]
    assert (table[..., 1 + SO_FAR] == 0).all() and table.isfinite().all()


def test_states_that_were_not_shown_fall_back_to_autoencoder_and_ridge() -> None:
    rows, said, wanted, groups = planted(200, 0)
    shown = [limited(rows, rung=1), limited(rows, part="none")]
    table = Combination.fit([(one, said) for one in shown], wanted, torch.ones(200), groups).table
    fitted = {int(state(one)[0]) for one in shown}
    habit = torch.tensor([0.0, *HABIT])
    for number in range(STATES):
        assert (table[number] == habit).all() == (number not in fitted)
    assert torch.equal(Combination.unfitted().table, habit.expand(STATES, len(KNOTS), len(HEADS), -1))
    assert HABIT == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("few", ["rows", "answers"])
def test_what_is_too_little_to_learn_from_is_not_fitted(few: str) -> None:
    """Of a head with fewer answers than are enough; of all of them, with fewer rows."""
    count = FEWEST - 1 if few == "rows" else 200
    rows, said, wanted, groups = planted(count, 0)
    wanted[FEWEST - 1 :, 3] = NAN
    table = Combination.fit([(rows, said)], wanted, torch.ones(count), groups).table[int(state(rows)[0])]
    unfitted = (table == torch.tensor([0.0, *HABIT])).all(-1).all(0)
    assert unfitted.tolist() == ([True] * 4 if few == "rows" else [False, False, False, True])


def test_each_knot_has_weights_of_its_own_and_between_them_lies_the_mean() -> None:
    """Late in training, autoencoder and ridge have changed places."""
    rows, said, wanted, groups = planted(640, 0)
    late = torch.arange(640) // 20 % 2 == 0
    rows.context[:, CONTEXT.index("log_updates")] = torch.where(late, math.log1p(80), math.log1p(4))
    said[late] = said[late][..., [RIDGE, AUTOENCODER, SO_FAR]]
    fitted = Combination.fit([(rows, said)], wanted, torch.ones(640), groups)
    table = fitted.table[int(state(rows)[0])]
    early, later = table[KNOTS.index(40.0), 0, 1:], table[KNOTS.index(800.0), 0, 1:]
    assert early[AUTOENCODER] > 1.5 * early[RIDGE] and later[RIDGE] > 1.5 * later[AUTOENCODER]
    one, said = everything(), noise(1, len(HEADS), len(PREDICTORS)).float()
    for first, second in itertools.pairwise(range(len(KNOTS))):
        logs = [math.log1p(KNOTS[knot] / 10) for knot in (first, second)]
        one.context[:, CONTEXT.index("log_updates")] = sum(logs) / 2
        assert float(place(one)) == pytest.approx(first + 0.5, abs=1e-5)
        weights = (table[first] + table[second]) / 2
        expected = torch.sigmoid(weights[:, 0] + (weights[:, 1:] * said[0]).sum(-1))
        torch.testing.assert_close(fitted(said, one)[0], expected, rtol=1e-4, atol=1e-5)


def test_rows_are_combined_by_what_is_known_of_each() -> None:
    """Each state has a weight of its own on the first predictor."""
    table = torch.zeros(STATES, len(KNOTS), len(HEADS), 1 + len(PREDICTORS))
    table[..., 1] = torch.arange(STATES).view(-1, 1, 1) / 10
    rows = Rows.joined([limited(mixed(8), rung=r, skill=s) for r in range(len(RUNGS)) for s in (False, True)])
    said = torch.ones(len(rows), len(HEADS), len(PREDICTORS))
    expected = torch.sigmoid(state(rows) / 10).unsqueeze(1).expand(-1, len(HEADS))
    torch.testing.assert_close(Combination(table)(said, rows), expected)


def test_a_combination_is_written_and_read_under_its_name() -> None:
    table = uniform(STATES, len(KNOTS), len(HEADS), 1 + len(PREDICTORS))
    written = Combination(table).tensors("here")
    assert set(written) == {"here.table"}
    assert torch.equal(Combination.of("here", written).table, table)
