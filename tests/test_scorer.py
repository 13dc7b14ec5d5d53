"""The scorer: on networks whose end follows from their spectrum, in any unit, from a file, and when it cannot know.

The pretrained one is used where it is there; until then a stand-in that was fitted on made-up networks.
"""

import copy
import json
import math
import pickle
import socket
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor, nn

import lightning_lyapunov.aelle as aelle
from lightning_lyapunov import AeLLEScore, AeLLEScorer, LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.aelle import scorer as module
from lightning_lyapunov.aelle import training
from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.calibration import KNOTS, PARTS, Shares, knowledge
from lightning_lyapunov.aelle.features import LEVELS, SCALE, Rows, context, quantiles
from lightning_lyapunov.aelle.fitting import fit_autoencoder
from lightning_lyapunov.aelle.heads import FAILURE, SKILL, STABILITY, Heads, without_skill
from lightning_lyapunov.aelle.scorer import FORMAT
from lightning_lyapunov.aelle.training import PENALTIES, _folds, fit_scorer, new_autoencoders, states_of_knowledge

FROM_PRETRAINED = AeLLEScorer.from_pretrained  # before it is replaced below
WEIGHTS = Path(aelle.__file__).parent / "weights" / "general.safetensors"
SPREAD_OUT = (20.0, 90.0)
"""Accuracies in percent of the worst and the best made-up network."""


class Made(NamedTuple):
    spectra: list[Tensor]
    skill: Tensor
    sizes: list[int]


def made(count: int, seed: int) -> Made:
    """Networks of mixed sizes that do the better the less steeply their spectra fall."""
    generator = torch.Generator().manual_seed(seed)
    skill = torch.rand(count, generator=generator)
    sizes = [(16, 24, 32, 48)[int(i)] for i in torch.randint(4, (count,), generator=generator)]
    spectra = [
        0.2 - 0.4 * (1 - s) - (0.3 + 2 * (1 - s)) * torch.linspace(0, 1, d) + 0.02 * torch.randn(d, generator=generator)
        for s, d in zip(skill, sizes, strict=True)
    ]
    return Made(spectra, skill, sizes)


def bank(count: int = 240, seed: int = 0) -> tuple[Rows, Tensor]:
    """The same as rows of a bank: at all knots, with a skill so far that nears the final one."""
    networks = made(count, seed)
    contexts = []
    for i, (skill, size) in enumerate(zip(networks.skill.tolist(), networks.sizes, strict=True)):
        updates = int(KNOTS[i % len(KNOTS)])
        contexts.append(context(("rnn", "gru", "lstm")[i % 3], size, updates, skill * min(1.0, updates / 400)))
    return Rows(torch.stack([quantiles(s) for s in networks.spectra]), torch.stack(contexts)), networks.skill


def stand_in() -> AeLLEScorer:
    rows, skill = bank()
    third = torch.arange(len(rows)) % 3
    stable = (rows.spectrum[:, 0] <= 0).float()
    return fit_scorer(
        rows, skill, stable, torch.ones(len(rows)), third, third, {"name": "stand-in"},
        members=2, new_models=partial(new_autoencoders, steps=40, latent_size=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> AeLLEScorer:
    """Fitted on the made-up bank, whatever else there is."""
    return stand_in()


@pytest.fixture(scope="module")
def general(fitted: AeLLEScorer) -> AeLLEScorer:
    """The one that comes with the package, or the stand-in."""
    return AeLLEScorer.load(WEIGHTS) if WEIGHTS.exists() else fitted


@pytest.fixture(scope="module")
def quick(general: AeLLEScorer) -> Iterator[None]:
    """Fits start from the general scorer, and train its autoencoders further by 12 updates instead of 200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AeLLEScorer, "from_pretrained", staticmethod(lambda name="general": general))
        patch.setattr(
            training, "fit_autoencoder", lambda *a, **k: fit_autoencoder(*a, **{**k, "steps": k["steps"] % 188})
        )
        yield


def percent(skill: Tensor) -> Tensor:
    return SPREAD_OUT[0] + (SPREAD_OUT[1] - SPREAD_OUT[0]) * skill


def fit(networks: Made, unit: float = 1.0, **options: Any) -> AeLLEScorer:
    options = {"architecture": "gru", "hidden_size": networks.sizes, **options}
    return AeLLEScorer.fit([unit * s for s in networks.spectra], percent(networks.skill), **options)


@pytest.fixture(scope="module")
def own(quick: None) -> dict[int, AeLLEScorer]:
    """Scorers of one's own, from few networks to many."""
    return {count: fit(made(count, seed=3)) for count in (8, 30, 100)}


def said_of(scorer: AeLLEScorer, networks: Made, unit: float = 1.0) -> Tensor:
    scores = [
        scorer.score(unit * s, architecture="gru", hidden_size=d)
        for s, d in zip(networks.spectra, networks.sizes, strict=True)
    ]
    return torch.tensor([score.performance for score in scores])


def assert_consistent(score: AeLLEScore, worst: float = 0.0, best: float = 1.0, stability: bool = True) -> None:
    tiny = 1e-5 * (best - worst)
    assert worst - tiny <= score.low <= score.performance + tiny
    assert score.performance - tiny <= score.high <= best + tiny
    assert worst - tiny <= score.baseline <= best + tiny
    assert 0 <= score.familiarity <= 1
    assert 0 <= score.failure_probability <= 1 and 0 <= score.takeoff_probability <= 1
    assert score.failure_probability + score.takeoff_probability <= 1 + 1e-6
    assert (0 <= score.stability <= 1) if stability else math.isnan(score.stability)
    assert score.latent.dim() == 1 and score.latent.isfinite().all()


def everything(scorer: AeLLEScorer) -> dict[str, Tensor]:
    """All that a file would hold of a scorer, with no memory shared."""
    tensors = scorer.heads.tensors("heads")
    for name, part in scorer._calibration().items():
        tensors |= part.tensors(name)
    return {key: value.clone() for key, value in tensors.items()}


def assert_same(ours: AeLLEScore, theirs: AeLLEScore, **tolerance: float) -> None:
    assert ours.unfamiliar == theirs.unfamiliar
    for field in fields(AeLLEScore):
        if field.name == "unfamiliar":
            continue
        a, b = (torch.as_tensor(getattr(score, field.name), dtype=torch.float64) for score in (ours, theirs))
        torch.testing.assert_close(a, b, equal_nan=True, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


KNOWN: list[dict[str, Any]] = [
    {},
    {"architecture": "lstm"},
    {"architecture": "GRU", "hidden_size": 32, "updates": 0, "performance": 0.0},
    {"hidden_size": 4000, "updates": 10**6, "performance": 1.0},
    {"architecture": "coupled oscillator", "updates": 40},
]


# ------------------------------------------------------------------ fitting on a bank


def test_fit_scorer_predicts_networks_not_seen(fitted: AeLLEScorer) -> None:
    rows, skill = bank(150, seed=1)
    said = fitted.predict(rows).performance
    for knot in range(len(KNOTS)):  # once they have begun to learn, the skill so far tells the final one exactly
        assert spearmanr(said[knot :: len(KNOTS)], skill[knot :: len(KNOTS)]).statistic > (0.8 if knot == 0 else 0.99)
    blind = fitted.predict(without_skill(rows))
    assert spearmanr(blind.performance, skill).statistic > 0.8
    assert spearmanr(blind.baseline, skill).statistic < 0.5  # what it is told of them says next to nothing
    covered = ((blind.low <= skill) & (skill <= blind.high)).float().mean()
    assert 0.55 < float(covered) < 0.95  # trained as briefly as here, models of more rows err in another way
    assert float(blind.familiarity.mean()) > 0.8


def test_probabilities_follow_the_skill(fitted: AeLLEScorer) -> None:
    rows, skill = bank(150, seed=1)
    said = fitted.predict(without_skill(rows))
    assert spearmanr(said.failure, skill).statistic < -0.5
    assert spearmanr(said.takeoff, skill).statistic > 0.5


def test_same_seed_same_scorer_and_the_random_state_is_left_alone(fitted: AeLLEScorer) -> None:
    before = torch.get_rng_state()
    again = stand_in()
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = everything(fitted), everything(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.card == fitted.card


def test_autoencoders_differ_by_their_seed_alone_and_no_gpu_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    rows, skill = bank(20)
    wanted = training.targets(skill)
    one, two = new_autoencoders(rows, wanted, torch.ones(20), 2, 5, steps=2, latent_size=2)
    (again,) = new_autoencoders(rows, wanted, torch.ones(20), 1, 6, steps=2, latent_size=2)
    assert torch.equal(two.encoder[0].weight, again.encoder[0].weight)
    assert not torch.equal(one.encoder[0].weight, two.encoder[0].weight)
    assert seeded == []


def untrained(rows: Rows, wanted: Tensor, weights: Tensor, count: int, seed: int) -> list[AeLLE]:
    """Autoencoders as they are made, all the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [AeLLE(2, 8).eval()] * count


@pytest.mark.parametrize("is_told", [True, False])
def test_penalty_and_shares_are_those_that_predict_best_what_was_left_out(is_told: bool) -> None:
    """Skills that follow from the spectrum want a small penalty, and of models that know nothing no share; skills that
    follow from nothing want all the penalty there is."""
    rows, skill = bank(120)
    skill = skill if is_told else skill[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    third = torch.arange(120) % 3
    nan = torch.full_like(skill, math.nan)
    scorer = fit_scorer(rows, skill, nan, torch.ones(120), third, third, {}, members=1, new_models=untrained)
    assert (scorer.card["penalty"] == PENALTIES[-1]) != is_told
    table = scorer.heads.shares.table
    assert set(table.unique().tolist()) <= set(PARTS)
    if is_told:
        assert (table[[2, 5], :, SKILL] == 0).all()


def test_heads_are_means_of_both_by_their_shares(fitted: AeLLEScorer) -> None:
    """Worked out from the two by hand, each head with a share of its own; one half where none was chosen."""
    rows, _ = bank(20, seed=1)
    share = torch.tensor([0.0, 1.0, 0.5, 0.25])
    heads = replace(fitted.heads, shares=Shares(share.expand(6, len(KNOTS), 4)))
    ours, theirs = heads.by_model(rows), heads.by_ridge(rows)
    torch.testing.assert_close(heads(rows), share * ours + (1 - share) * theirs)
    torch.testing.assert_close(Heads(heads.models, heads.ridges)(rows), (ours + theirs) / 2)


def test_states_of_knowledge_are_all_eight_and_hide_only() -> None:
    rows, _ = bank(40)
    states = states_of_knowledge(rows, torch.Generator().manual_seed(0))
    codes = [set(knowledge(state).tolist()) for state in states]
    assert all(len(code) == 1 for code in codes) and set.union(*codes) == set(range(8))
    for state in states:
        for hidden, whole in ((state.spectrum, rows.spectrum), (state.context, rows.context)):
            assert torch.equal(hidden[~hidden.isnan()], whole[~hidden.isnan()])


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("told", KNOWN, ids=str)
def test_scores_are_consistent(general: AeLLEScorer, told: dict[str, Any]) -> None:
    spectra = [*made(3, 5).spectra, torch.tensor([0.3]), torch.tensor([-math.inf] * 4), torch.full((200,), 5.0)]
    for spectrum in spectra:
        assert_consistent(general.score(spectrum, **told))


@pytest.mark.parametrize("count", [8, 30, 100])
def test_scores_of_own_scorers_are_in_the_unit_of_what_they_were_fitted_on(
    own: dict[int, AeLLEScorer], count: int
) -> None:
    """Nothing was told of the stability, and none is invented."""
    worst, best = own[count].performance_range
    ends = percent(made(count, seed=3).skill)
    assert (worst, best) == pytest.approx((float(ends.min()), float(ends.max())))
    for spectrum in made(5, 6).spectra:
        for performance in (None, 10.0, 60.0):
            score = own[count].score(spectrum, performance=performance)
            assert_consistent(score, worst, best, stability=False)


def test_a_score_is_a_prediction_in_another_unit(own: dict[int, AeLLEScorer]) -> None:
    scorer, networks = own[30], made(4, 7)
    worst, best = scorer.performance_range
    rows = Rows(
        torch.stack([quantiles(s) for s in networks.spectra]),
        torch.stack([context("rnn", d, 40, (50.0 - worst) / (best - worst)) for d in networks.sizes]),
    )
    said = scorer.predict(rows)
    for n, (spectrum, size) in enumerate(zip(networks.spectra, networks.sizes, strict=True)):
        score = scorer.score(spectrum, architecture="RNN", hidden_size=size, updates=40, performance=50.0)
        for name in ("performance", "low", "high", "baseline"):
            expected = worst + (best - worst) * float(getattr(said, name)[n])
            assert getattr(score, name) == pytest.approx(expected, abs=1e-3)
        assert score.failure_probability == pytest.approx(float(said.failure[n]), abs=1e-5)
        assert score.takeoff_probability == pytest.approx(float(said.takeoff[n]), abs=1e-5)


def test_skill_so_far_is_clipped_to_the_range(own: dict[int, AeLLEScorer]) -> None:
    """As those of the bank are, which lie as far below chance and above the best."""
    spectrum, (worst, best) = made(1, 7).spectra[0], own[30].performance_range
    assert_same(own[30].score(spectrum, performance=best + 20), own[30].score(spectrum, performance=best))
    assert_same(own[30].score(spectrum, performance=worst - 50), own[30].score(spectrum, performance=worst))


def test_scoring_draws_nothing_and_leaves_the_weights(general: AeLLEScorer) -> None:
    before, weights = torch.get_rng_state(), copy.deepcopy(general.heads.models[0].state_dict())
    spectrum = made(1, 0).spectra[0]
    first = general.score(spectrum, architecture="gru", performance=0.3)
    assert_same(general.score(spectrum, architecture="gru", performance=0.3), first)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in general.heads.models[0].state_dict().items():
        assert torch.equal(value, weights[key])
    assert not first.latent.requires_grad


def test_measured_spectra_score_whole_and_partial(general: AeLLEScorer) -> None:
    torch.manual_seed(1)
    gru, inputs = nn.GRU(3, 12), torch.randn(40, 4, 3)
    whole, part = (lyapunov_spectrum(gru, inputs, k=k, transient=5) for k in (None, 4))
    assert_same(general.score(whole), general.score(whole.exponents))
    for spectrum in (whole, part):
        assert isinstance(spectrum, LyapunovSpectrum)
        assert_consistent(general.score(spectrum, architecture="gru", hidden_size=12, updates=0))


def partly(exponents: list[float], dimension: int, rate: float) -> LyapunovSpectrum:
    measured = lyapunov_spectrum(nn.RNN(1, dimension), torch.zeros(10, 1, 1), k=len(exponents))
    return replace(measured, exponents=torch.tensor(exponents), volume_rate=rate)


def test_a_partial_spectrum_is_seen_with_the_mean_of_its_volume_rate(general: AeLLEScorer) -> None:
    seen = general._quantiles(partly([0.0, -0.1], 8, -4.0))
    scale = general.card["scale"]
    assert seen.isnan().tolist() == [False] * 8 + [True] * (LEVELS - 8) + [False]
    assert float(seen[-1]) == pytest.approx(-math.log1p(0.5 / scale), rel=1e-5)


@pytest.mark.parametrize("rate", [math.nan, -math.inf])
def test_a_mean_that_is_not_known_or_hides_behind_a_dead_direction_is_left_out(
    general: AeLLEScorer, rate: float
) -> None:
    partial_one = partly([0.0, -0.1], 8, rate)
    assert general._quantiles(partial_one)[-1].isnan()
    assert_consistent(general.score(partial_one, architecture="rnn"))


def test_an_unknown_kind_of_cell_is_less_familiar_and_less_certain(fitted: AeLLEScorer) -> None:
    rows, _ = bank(60, seed=1)
    known, unknown = (fitted.predict(rows, torch.full((60,), is_unknown)) for is_unknown in (False, True))
    sure = known.familiarity == 1
    assert sure.sum() > 30
    assert (unknown.familiarity[sure] == 0.25).all()
    assert ((unknown.high - unknown.low)[sure] >= (known.high - known.low)[sure]).all()
    named = fitted.score(made(1, 0).spectra[0], architecture="antisymmetric", hidden_size=32)
    untold = fitted.score(made(1, 0).spectra[0], hidden_size=32)
    assert named.familiarity == untold.familiarity / 4
    assert named.baseline == pytest.approx(untold.baseline)
    assert named.high - named.low >= untold.high - untold.low


def test_what_is_unlike_anything_is_taken_for_average(fitted: AeLLEScorer) -> None:
    """Skill, failure, take-off and stability are what they are of the networks fitted on, on average."""
    rows, _ = bank(20, seed=1)
    far = Rows(-rows.spectrum.flip(1) + 30, rows.context)
    said = fitted.predict(far)
    assert (said.familiarity == 0).all()
    average = fitted.average
    assert (said.failure == average[FAILURE]).all() and (said.stability == average[STABILITY]).all()
    gated = fitted.gate(average[:1].expand(20), far)
    torch.testing.assert_close(said.performance, gated, rtol=0, atol=0)
    assert ((said.low <= fitted.intervals.spread[0] + 1e-6) & (said.high >= fitted.intervals.spread[1] - 1e-6)).all()


def test_a_partial_spectrum_is_as_familiar_as_its_reconstruction(fitted: AeLLEScorer) -> None:
    rows, _ = bank(40, seed=1)
    partial = rows.spectrum.clone()
    partial[:, 8:] = math.nan
    completed = fitted.heads.completed(Rows(partial, rows.context))
    assert torch.equal(completed.spectrum[:, :8], rows.spectrum[:, :8])
    assert not completed.spectrum.isnan().any()
    unknown = torch.zeros(40, dtype=torch.bool)
    said = fitted.predict(Rows(partial, rows.context))
    assert torch.equal(said.ordinary, fitted.familiarity(completed, unknown))
    assert (said.familiarity <= said.ordinary).all()


def test_own_kinds_of_cell_are_known_to_an_own_scorer(quick: None) -> None:
    sweep = made(12, seed=3)
    scorer = AeLLEScorer.fit(sweep.spectra, sweep.skill, architecture="MyCell")
    own, other = (scorer.score(sweep.spectra[0], architecture=kind) for kind in ("mycell", "other"))
    assert own.familiarity == 4 * other.familiarity > 0


def test_the_baseline_does_not_see_the_spectrum(general: AeLLEScorer) -> None:
    told = {"architecture": "gru", "hidden_size": 32, "updates": 40, "performance": 0.2}
    baselines = {general.score(s, **told).baseline for s in made(4, 2).spectra}
    assert max(baselines) - min(baselines) < 1e-6


def test_the_default_dtype_does_not_matter(general: AeLLEScorer) -> None:
    spectra = made(3, 0).spectra
    told = [{"architecture": "gru", "hidden_size": 32, "updates": 25, "performance": 0.2}, {"architecture": "new"}]
    expected = [general.score(spectrum, **known) for spectrum in spectra for known in told]
    torch.set_default_dtype(torch.float64)
    try:
        found = [general.score(spectrum.double(), **known) for spectrum in spectra for known in told]
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.latent.dtype == torch.float32
        assert_same(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        ({"updates": -1}, "updates must not be negative; got -1"),
        ({"performance": math.nan}, "performance must be finite, or None where it is not known; got nan"),
        ({"performance": math.inf}, "performance must be finite, or None where it is not known; got inf"),
    ],
)
def test_arguments_out_of_range_are_refused(general: AeLLEScorer, told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        general.score(torch.zeros(4), **told)


@pytest.mark.parametrize("spectrum", [torch.full((4,), math.nan), torch.zeros(0), torch.zeros(2, 2)])
def test_a_spectrum_that_says_nothing_is_refused(general: AeLLEScorer, spectrum: Tensor) -> None:
    with pytest.raises(ValueError, match="exponents must"):
        general.score(spectrum)


# ------------------------------------------------------------------ one's own


@pytest.mark.parametrize(("count", "least"), [(8, 0.3), (30, 0.8), (100, 0.85)])
def test_own_scorers_rank_networks_not_seen(own: dict[int, AeLLEScorer], count: int, least: float) -> None:
    fresh = made(25, seed=9)
    assert spearmanr(said_of(own[count], fresh), fresh.skill).statistic > least


@pytest.mark.parametrize("count", [8, 100])
def test_the_same_seed_gives_the_same_own_scorer_and_the_general_one_is_left_as_it_was(
    own: dict[int, AeLLEScorer], general: AeLLEScorer, count: int
) -> None:
    before, untouched = torch.get_rng_state(), everything(general)
    again = fit(made(count, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    fresh = made(10, seed=9)
    assert torch.equal(said_of(again, fresh), said_of(own[count], fresh))
    assert again.card == own[count].card
    assert all(torch.equal(value, untouched[key]) for key, value in everything(general).items())


@pytest.mark.parametrize("unit", [1 / math.log(2), 100.0], ids=["log2", "hundredfold"])
def test_the_unit_of_the_exponents_hardly_matters(own: dict[int, AeLLEScorer], unit: float) -> None:
    fresh = made(25, seed=9)
    scorer = fit(made(30, seed=3), unit)
    seen_through = scorer.card["scale"] / SCALE
    assert seen_through == 1.0 if unit < 8 else unit / 4 < seen_through < 4 * unit
    theirs, ours = said_of(scorer, fresh, unit), said_of(own[30], fresh)
    assert spearmanr(theirs, ours).statistic > 0.9
    assert float((theirs - ours).abs().mean()) < 6.0


def test_own_scorers_know_the_skill_so_far(quick: None) -> None:
    """Spectra that say nothing, and a metric half way to what will be."""
    networks = made(40, seed=3)
    same = Made([torch.linspace(0.1, -1.0, 16)] * 40, networks.skill, [16] * 40)
    ends = percent(networks.skill)
    scorer = fit(same, metric=(0.5 * (ends - 20) + 20).tolist(), updates=40)
    said = [scorer.score(same.spectra[0], updates=40, performance=p).performance for p in (22.0, 35.0, 50.0)]
    assert said[0] + 8 < said[1] < said[2] - 8


def test_what_never_varied_does_not_throw_a_score_off(fitted: AeLLEScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All were told to be of one kind, one size and one age: of another, only what the general scorer says differs.

    So the logit of the ridge moves by its slopes on those three predictions, and by nothing else; and the score, in
    percent, by little, since the general one hardly moves.
    """
    monkeypatch.setattr(AeLLEScorer, "from_pretrained", staticmethod(lambda name="general": fitted))
    networks = made(30, seed=3)
    scorer = fit(networks, hidden_size=37, updates=160)
    ridge, few = scorer.heads.ridges["spectrum"], networks.spectra[:5]

    def rows(kind: str, size: int, updates: int) -> Rows:
        return Rows(torch.stack([quantiles(s) for s in few]), context(kind, size, updates).repeat(len(few), 1))

    def logits(of: Rows) -> Tensor:
        return scorer.heads.by_ridge(of)[:, SKILL].logit()

    same = rows("gru", 37, 160)
    for told in (("gru", 37, 161), ("gru", 37, 800), ("gru", 37, 0), ("gru", 64, 160), ("lstm", 37, 160)):
        other = rows(*told)
        general = [fitted.heads(fitted.heads.ranges.clamped(of)) for of in (other, same)]
        moved = (general[0] - general[1])[:, :STABILITY] / ridge.spread[-3:]
        expected = logits(same) + moved @ ridge.coefficients[-4:-1, SKILL]
        torch.testing.assert_close(logits(other), expected, rtol=0, atol=1e-3)
        for spectrum in few:
            before, after = (
                scorer.score(spectrum, architecture=k, hidden_size=d, updates=u).performance
                for k, d, u in (("gru", 37, 160), told)
            )
            assert after == pytest.approx(before, abs=5.0)


def test_folds_keep_groups_together_and_are_even() -> None:
    names = [f"network {i % 12}" for i in range(50)]
    folds = _folds(names, torch.Generator().manual_seed(0))
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    by_name = {name: {int(f) for f, n in zip(folds, names, strict=True) if n == name} for name in names}
    assert all(len(found) == 1 for found in by_name.values())
    sizes = [sum(fold in found for found in by_name.values()) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(folds, _folds(names, torch.Generator().manual_seed(0)))
    assert set(_folds(["a", "b", "a"], torch.Generator()).tolist()) == {0, 1}


def test_groups_reach_the_splits(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def ask(*arguments: Any, **options: Any) -> None:
        raise Asked(arguments[5])

    monkeypatch.setattr(training, "fit_scorer", ask)
    with pytest.raises(Asked) as caught:
        fit(made(12, 3), groups=[i // 3 for i in range(12)])
    folds = caught.value.args[0].view(4, 3)
    assert (folds == folds[:, :1]).all() and len(folds.unique()) == 4


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (7, {}, "spectra must be at least 8, or nothing can be learnt; got 7"),
        (8, {"performance": [0.0, 1.0]}, r"performance must hold one number for each of the 8 spectra; got \(2,\)"),
        (8, {"performance": [0.5] * 8}, "performance must be finite and not all the same"),
        (8, {"performance": [math.nan] + [0.5] * 7}, "performance must be finite and not all the same"),
        (8, {"hidden_size": [3, 4]}, "hidden_size must hold one entry for each of the 8 spectra; got 2"),
        (8, {"architecture": ["gru"]}, "architecture must hold one entry for each of the 8 spectra; got 1"),
        (8, {"updates": [1] * 9}, "updates must hold one entry for each of the 8 spectra; got 9"),
        (8, {"metric": [1.0]}, "metric must hold one entry for each of the 8 spectra; got 1"),
        (8, {"groups": [1]}, "groups must hold one entry for each of the 8 spectra; got 1"),
        (8, {"groups": ["one"] * 8}, "groups must name at least 2 networks, or none can be left out; got 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(quick: None, count: int, options: dict[str, Any], message: str) -> None:
    networks = made(count, 3)
    with pytest.raises(ValueError, match=message):
        AeLLEScorer.fit(networks.spectra, **{"performance": percent(networks.skill), **options})


def test_own_scorers_fit_in_a_process_of_float64(quick: None) -> None:
    networks = made(8, 3)
    torch.set_default_dtype(torch.float64)
    try:
        scorer = fit(networks)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in scorer.heads.tensors("heads").values()} == {torch.float32}
    assert_consistent(scorer.score(networks.spectra[0]), *scorer.performance_range, stability=False)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("count", [8, 30, 100])
def test_a_saved_scorer_says_the_same_without_pickle(
    own: dict[int, AeLLEScorer], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "own.safetensors"
    own[count].save(path)
    forbid(monkeypatch)
    before = torch.get_rng_state()
    loaded = AeLLEScorer.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.card == own[count].card
    ours, theirs = everything(loaded), everything(own[count])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    for spectrum in made(4, 9).spectra:
        for told in ({}, {"architecture": "gru", "hidden_size": 24, "updates": 7, "performance": 44.0}):
            assert_same(loaded.score(spectrum, **told), own[count].score(spectrum, **told), rtol=1e-5, atol=1e-4)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no pickle from here on."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("forbidden")

    monkeypatch.setattr(socket, "socket", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)


def test_files_are_reproducible_and_everybody_may_read_them(fitted: AeLLEScorer, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    fitted.save(one)
    AeLLEScorer.load(one).save(str(two))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o644
    with safe_open(one, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {FORMAT, "sha256"}
    assert json.loads(metadata[FORMAT])["scale"] == SCALE


def test_a_file_that_is_no_scorer_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"path must be a file of format lightning_lyapunov\.aelle/1; .* says pt"):
        AeLLEScorer.load(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be a file that AeLLEScorer.save wrote; there is no .*nope"):
        AeLLEScorer.load(tmp_path / "nope.safetensors")


def test_pretrained_scorers_are_found_by_name(
    fitted: AeLLEScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="name must be one of ; got 'general'"):
        FROM_PRETRAINED()
    fitted.save(tmp_path / "weights" / "general.safetensors")
    (tmp_path / "weights" / "general.md").touch()
    assert FROM_PRETRAINED().card == fitted.card
    with pytest.raises(ValueError, match=r"name must be one of general; got 'nope'\."):
        FROM_PRETRAINED("nope")


# ------------------------------------------------------------------ the one that comes with the package

shipped = pytest.mark.skipif(not WEIGHTS.exists(), reason="the pretrained scorer is not made yet")


@shipped
def test_the_pretrained_scorer_loads_without_network_pickle_or_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WEIGHTS.stat().st_size < 5e6
    forbid(monkeypatch)
    before = torch.get_rng_state()
    scorer = FROM_PRETRAINED()
    assert torch.equal(torch.get_rng_state(), before)
    assert scorer.performance_range == (0.0, 1.0) and scorer.card["scale"] == SCALE


@shipped
def test_the_pretrained_scorer_is_sensible_about_an_ordinary_network() -> None:
    scorer = AeLLEScorer.load(WEIGHTS)
    score = scorer.score(ordinary(), architecture="gru", hidden_size=32, updates=0)
    assert_consistent(score)
    assert 0.02 < score.performance < 0.98 and score.high - score.low > 0.1
    assert score.familiarity > 0.5


@shipped
def test_the_pretrained_scorer_takes_a_saturated_network_for_less_familiar() -> None:
    """Half of its exponents strongly positive, half strongly negative."""
    scorer = AeLLEScorer.load(WEIGHTS)
    saturated = torch.cat([torch.full((16,), 20.0), torch.full((16,), -60.0)])
    told: dict[str, Any] = {"architecture": "gru", "hidden_size": 32, "updates": 0}
    assert scorer.score(saturated, **told).familiarity < scorer.score(ordinary(), **told).familiarity


def ordinary() -> Tensor:
    """A GRU as torch makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lyapunov_spectrum(nn.GRU(4, 32), torch.randn(60, 4, 4), transient=10).exponents
