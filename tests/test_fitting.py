"""Fitting the autoencoder: pairs by a double loop, draws counted, and what was planted in made-up networks."""

import math
from typing import NamedTuple

import pytest
import torch
from scipy.stats import spearmanr
from scored import everything, mixed, uniform
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED, AeLLE
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.fitting import GROUPS, MEMBERS, SHOWN, Sampler, fit_autoencoder, pairwise, targets
from lightning_lyapunov.aelle.knowledge import RUNGS, limited

NAN = math.nan


def one_parameter(t: Tensor) -> Rows:
    """Spectra that fall from 2t to t − 4: everything follows from t."""
    p = torch.linspace(0.0, 1.0, LEVELS + 1)
    return Rows(2 * t.unsqueeze(1) - (4 + t.unsqueeze(1)) * p, everything().context.repeat(len(t), 1))


class Fitted(NamedTuple):
    model: AeLLE
    fresh: Rows
    t: Tensor
    left_random_state: bool


TASKS = 4


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    """An autoencoder of spectra made of t, of four tasks: the better the larger t, from a level that no spectrum tells;
    and spectra not seen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, t = AeLLE(4, 32), torch.rand(320)
        rows, task = one_parameter(t), torch.arange(320) % TASKS
        skill = 0.15 * task + 0.5 * t
        model.normalise(rows, torch.ones(320))
        before = torch.get_rng_state()
        fit_autoencoder(model, rows, targets(skill), torch.ones(320), task, seed=0, steps=100)
        fresh = torch.linspace(0.02, 0.98, 60)
        return Fitted(model, one_parameter(fresh), fresh, torch.equal(torch.get_rng_state(), before))


# ------------------------------------------------------------------ parts


def test_targets_by_their_thresholds() -> None:
    made = targets(torch.tensor([0.0, 0.05, 0.2, 0.5, 1.0]), torch.tensor([1.0, 0.0, NAN, 1.0, 0.0]))
    assert made[:, 0].tolist() == pytest.approx([0.0, 0.05, 0.2, 0.5, 1.0])
    assert made[:, 1].tolist() == [1, 1, 0, 0, 0]
    assert made[:, 2].tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(made[:, 3], torch.tensor([1.0, 0.0, NAN, 1.0, 0.0]), equal_nan=True)
    assert targets(torch.tensor([0.1, 0.3]))[:, 1:3].tolist() == [[0, 0], [0, 0]]
    assert targets(torch.tensor([0.5]))[0, 3].isnan()


def test_groups_are_shown_in_every_rung_with_the_skill_and_without() -> None:
    """And nothing, the updates alone; never the length of the sequences, which is hidden by other means."""
    assert len(set(SHOWN)) == len(SHOWN) == 3 + 2 * (len(RUNGS) - 1)
    assert all(set(state) <= set(CONTEXT) - {"log_steps"} for state in SHOWN)
    for rung in RUNGS[1:]:
        assert (*("log_updates",), *rung) in SHOWN and ("log_updates", *rung, "skill") in SHOWN
    assert () in SHOWN and ("log_updates",) in SHOWN and ("log_updates", "skill") in SHOWN


@pytest.mark.parametrize("clear", [0.25, 1.0])
def test_pairwise_loss_is_that_of_a_double_loop(clear: float) -> None:
    """ln(1 + e^(z_j − z_i)) where y_i > y_j in the same group, counted in full from a clear difference on."""
    score, wanted = noise(3 * MEMBERS, seed=1), (uniform(3 * MEMBERS) * 8).round().double() / 8
    total, count = 0.0, 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if i // MEMBERS == j // MEMBERS and wanted[i] > wanted[j]:
                weight = min(1.0, float(wanted[i] - wanted[j]) / clear)
                total += weight * math.log1p(math.exp(float(score[j] - score[i])))
                count += weight
    assert float(pairwise(score, wanted, clear)) == pytest.approx(total / count, rel=1e-9)


def test_pairwise_loss_pulls_the_better_up_and_the_worse_down() -> None:
    """By autograd, of two rows that differ among others that do not; groups that do not differ have no loss."""
    score = torch.zeros(MEMBERS, requires_grad=True)
    wanted = torch.full((MEMBERS,), 0.5)
    assert float(pairwise(score.detach(), wanted, 0.25)) == 0
    wanted[2], wanted[7] = 1.0, 0.0
    pairwise(score, wanted, 0.25).backward()
    assert score.grad is not None
    assert float(score.grad[2]) < 0 < float(score.grad[7])
    assert (score.grad[[0, 1, 3]] == 0).all()  # as much better than one as worse than another


def test_the_sampler_draws_groups_by_their_weight_and_only_members() -> None:
    """Groups of 1, 2, 3 and 6 rows in no order, weighing 1 : 1 : 2 : 4 together; one of them nothing."""
    groups = torch.tensor([7, 3, 3, 9, 1, 9, 9, 1, 1, 1, 1, 1, 5])
    weight = {7: 1.0, 3: 0.5, 9: 2 / 3, 1: 4 / 6, 5: 0.0}
    sampler = Sampler.of(groups, torch.tensor([weight[g] for g in groups.tolist()]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sampler.draw(generator) for _ in range(200)])
    assert drawn.shape == (200 * GROUPS, MEMBERS)
    found = groups[drawn]
    assert (found == found[:, :1]).all()  # all of one group
    for group, share in {7: 1 / 8, 3: 1 / 8, 9: 2 / 8, 1: 4 / 8}.items():
        often = float((found[:, 0] == group).float().mean())
        assert often == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(found)))
        rows = (groups == group).nonzero()[:, 0]
        each = torch.bincount(drawn[found[:, 0] == group].flatten(), minlength=len(groups))
        assert each[groups != group].sum() == 0
        mean = float(each[rows].sum()) / len(rows)
        assert each[rows].tolist() == pytest.approx([mean] * len(rows), abs=5 * math.sqrt(mean))
    assert not (found == 5).any()


# ------------------------------------------------------------------ fitting


def test_a_planted_rank_is_learnt(fitted: Fitted) -> None:
    """Of spectra not seen: more skill, less failure and more take-off with t, which is all that tells a task's networks
    apart.
    """
    with torch.no_grad():
        ranks = fitted.model(fitted.fresh).ranks
    found = [spearmanr(rank, fitted.t).statistic for rank in ranks.T]
    assert found[0] > 0.95 and found[1] < -0.95 and found[2] > 0.95
    assert not fitted.model.training


def test_levels_are_right_on_average(fitted: Fitted) -> None:
    """The mean over the four tasks, of which the spectrum says nothing: 0.225 + 0.5 t."""
    with torch.no_grad():
        said = fitted.model(fitted.fresh).logits[:, HEADS.index("skill")].sigmoid()
    assert float((said - (0.225 + 0.5 * fitted.t)).abs().mean()) < 0.08


def test_spectra_made_of_one_number_are_reconstructed(fitted: Fitted) -> None:
    """In units of what they vary by: guessing their means would be off by 1."""
    with torch.no_grad():
        made, (seen, _) = fitted.model(fitted.fresh).reconstruction, fitted.model.standard(fitted.fresh)
    assert float((made - seen[:, : LEVELS + 1]).square().mean().sqrt()) < 0.5


def test_partial_spectra_rank_too(fitted: Fitted) -> None:
    partial = Rows(fitted.fresh.spectrum.clone(), fitted.fresh.context)
    partial.spectrum[:, 20:] = NAN
    with torch.no_grad():
        said = fitted.model(limited(partial, rung=0, skill=False)).ranks[:, 0]
    assert spearmanr(said, fitted.t).statistic > 0.9


def test_fitting_leaves_the_random_state_alone(fitted: Fitted) -> None:
    assert fitted.left_random_state


def briefly(rows: Rows, wanted: Tensor, *, weights: Tensor | None = None, seed: int = 0, steps: int = 3) -> AeLLE:
    """A small model after a few steps, always from the same weights."""
    torch.manual_seed(5)
    model, count = AeLLE(2, 8), len(rows)
    torch.manual_seed(seed + 17)  # must not matter
    weights = torch.ones(count) if weights is None else weights
    return fit_autoencoder(model, rows, wanted, weights, torch.arange(count) % 3, seed=seed, steps=steps)


def fresh() -> AeLLE:
    torch.manual_seed(5)
    return AeLLE(2, 8)


def test_same_seed_same_weights_and_another_seed_others() -> None:
    t = torch.linspace(0, 1, 12)
    same, again, other = (list(briefly(one_parameter(t), targets(t), seed=s).parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))


def test_no_random_state_of_a_gpu_is_touched_either(monkeypatch: pytest.MonkeyPatch) -> None:
    t, model, seeded = torch.linspace(0, 1, 12), fresh(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fit_autoencoder(model, one_parameter(t), targets(t), torch.ones(12), torch.arange(12) % 3, seed=3, steps=2)
    assert seeded == []


def test_heads_without_targets_are_not_moved() -> None:
    """The last layer has a bias for the level of each head; that of a head with NaN targets keeps its own."""
    t = torch.linspace(0, 1, 12)
    after = briefly(one_parameter(t), targets(t)).heads[3].bias
    moved = (after - fresh().heads[3].bias).abs() > 1e-4
    assert moved[RANKED:].tolist() == [True, True, True, False]


def test_what_is_not_known_need_not_be_reconstructed() -> None:
    """The decoder has a bias for each level; those of levels that no row knows keep theirs."""
    t = torch.linspace(0, 1, 12)
    rows = one_parameter(t)
    rows.spectrum[:, 20:LEVELS] = NAN
    moved = (briefly(rows, targets(t)).decoder[2].bias - fresh().decoder[2].bias).abs() > 1e-4
    assert moved.tolist() == [True] * 20 + [False] * (LEVELS - 20) + [True]


def test_groups_without_weight_are_not_seen() -> None:
    t = torch.linspace(0, 1, 12)
    weights = (torch.arange(12) % 3 != 1).float()
    results = []
    for rubbish in (1.0, 3.0):
        rows = one_parameter(t)
        rows.spectrum[weights == 0] = rubbish
        results.append(briefly(rows, targets(t), weights=weights).state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=0)


def test_nothing_that_was_given_is_changed() -> None:
    rows = mixed(12)
    before = Rows(rows.spectrum.clone(), rows.context.clone())
    briefly(rows, targets(uniform(12)))
    assert torch.equal(rows.spectrum, before.spectrum) and torch.equal(rows.context, before.context)
