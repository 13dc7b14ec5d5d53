"""The scorer: fitted on networks whose end follows from their spectrum, asked within and beyond what it has seen.

Oracles: what was put into made-up networks, the parts that a score is made of, and what must hold whatever was fitted.
"""

import copy
import hashlib
import json
import math
import pickle
import socket
from collections.abc import Callable
from dataclasses import fields, replace
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
from lightning_lyapunov.aelle.atlas import known_networks
from lightning_lyapunov.aelle.autoencoder import RANKED
from lightning_lyapunov.aelle.calibration import Worth
from lightning_lyapunov.aelle.features import (
    ARCHITECTURES,
    CONTEXT,
    LEVELS,
    SCALE,
    Context,
    Rows,
    exponents_of,
    quantiles,
)
from lightning_lyapunov.aelle.heads import FAILURE, SKILL, STABILITY, TAKEOFF, Heads
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, limited
from lightning_lyapunov.aelle.scorer import FORMAT
from lightning_lyapunov.aelle.training import Examples, _by_unseen, fit_scorer

WEIGHTS = Path(aelle.__file__).parent / "weights" / "general.safetensors"
BANKS = Path(aelle.__file__).parents[2] / "bank"
SPREAD_OUT = (20.0, 90.0)
"""Accuracies in percent of the worst and the best made-up network."""
ALL: dict[str, Any] = {
    "architecture": "gru", "hidden_size": 32, "updates": 40, "performance": 0.2, "learning_rate": 3e-3,
    "adaptive": True, "gradient_norm": 0.5, "state_mean": 0.3, "state_spread": 0.4, "steps": 32,
}  # fmt: skip
"""Everything that may be told, of an ordinary network."""
ORDINARY = torch.linspace(-0.1, -1.9, 32)


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


def examples(count: int = 240, seed: int = 0) -> Examples:
    """The same as a bank of three families, at all knots, with a skill so far that nears the final one.

    What else is told has nothing to do with the skill.
    """
    networks, generator = made(count, seed), torch.Generator().manual_seed(seed + 1)
    rate, gradient, mean, spread = (0.5 * torch.randn(4, count, generator=generator)).exp().tolist()
    number = torch.arange(count)
    family, knot = number % 3, torch.div(number, 3, rounding_mode="floor") % len(KNOTS)
    contexts = []
    for i, (skill, size) in enumerate(zip(networks.skill.tolist(), networks.sizes, strict=True)):
        updates = int(KNOTS[int(knot[i])])
        so_far = skill * min(1.0, updates / 400)
        rest = (3e-3 * rate[i], i % 5 > 0, gradient[i], 0.3 * mean[i], 0.4 * spread[i], (16, 32)[i % 2])
        contexts.append(Context(ARCHITECTURES[i % 4], size, updates, so_far, *rest).values())
    rows = Rows(torch.stack([quantiles(s) for s in networks.spectra]), torch.stack(contexts))
    stable = (rows.spectrum[:, 0] <= 0).float()
    return Examples(rows, networks.skill, stable, torch.ones(count), 8 * family + knot, family)


def stand_in() -> AeLLEScorer:
    return fit_scorer(examples(), {"name": "stand-in"}, members=1, folds=2, steps=40)


@pytest.fixture(scope="module")
def fitted() -> AeLLEScorer:
    """Fitted on the made-up bank."""
    return stand_in()


@pytest.fixture(scope="module")
def general() -> AeLLEScorer:
    """The one that comes with the package."""
    return AeLLEScorer.load(WEIGHTS)


@pytest.fixture(scope="module")
def doomed(general: AeLLEScorer) -> Tensor:
    """The exponents of that network of the bank, none of the strange ones, that is likeliest to fail."""
    spectra, _ = known_networks()
    context = Context(**{**_context(ALL), "skill": 0.0}).values()
    said = general.predict(Rows(spectra[0], context.expand(spectra.shape[1], -1)))
    most = torch.where(said.familiarity == 1, said.failure, 0.0).argmax()
    return exponents_of(spectra[0, most, :-1])


def with_parts(scorer: AeLLEScorer, **changed: Any) -> AeLLEScorer:
    """The same scorer with some of its parts replaced."""
    names = ("heads", "intervals", "familiarity", "worth", "average", "card")
    return AeLLEScorer(**{name: getattr(scorer, name) for name in names} | changed)


def assert_consistent(score: AeLLEScore, worst: float = 0.0, best: float = 1.0, stability: bool = True) -> None:
    tiny = 1e-5 * (best - worst)
    assert worst - tiny <= score.low <= score.performance + tiny
    assert score.performance - tiny <= score.high <= best + tiny
    assert worst - tiny <= score.baseline <= best + tiny
    assert 0 <= score.familiarity <= 1
    for failure, takeoff in (
        (score.failure_probability, score.takeoff_probability),
        (score.baseline_failure_probability, score.baseline_takeoff_probability),
    ):
        assert 0 <= failure <= 1 and 0 <= takeoff <= 1
    assert score.failure_probability + score.takeoff_probability <= 1 + 1e-6
    assert (0 <= score.stability <= 1) if stability else math.isnan(score.stability)
    assert score.latent.dim() == 1 and score.latent.isfinite().all()
    assert set(score.speaks) <= {"rank", "failure", "takeoff"}
    assert bool(score.unfamiliar) == (score.familiarity < 1)


def everything(scorer: AeLLEScorer) -> dict[str, Tensor]:
    """All that a file would hold of a scorer, with no memory shared."""
    tensors = scorer.heads.tensors("heads") | {"average": scorer.average}
    for name, part in scorer._calibration().items():
        tensors |= part.tensors(name)
    return {key: value.clone() for key, value in tensors.items()}


def assert_same(ours: AeLLEScore, theirs: AeLLEScore, **tolerance: float) -> None:
    for field in fields(AeLLEScore):
        a, b = (getattr(score, field.name) for score in (ours, theirs))
        if isinstance(a, tuple):
            assert a == b
            continue
        a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
        torch.testing.assert_close(a, b, equal_nan=True, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


# ------------------------------------------------------------------ fitting on a bank


def test_fit_scorer_finds_what_was_planted(fitted: AeLLEScorer) -> None:
    """Of networks that it never saw; all that they are told beside the spectrum says nothing of them."""
    fresh = examples(160, seed=1)
    said = fitted.predict(limited(fresh.rows, rung=0, skill=False))
    assert spearmanr(said.performance, fresh.skill).statistic > 0.9
    assert spearmanr(said.failure, fresh.skill).statistic < -0.5
    assert spearmanr(said.takeoff, fresh.skill).statistic > 0.5
    assert spearmanr(said.stability, fresh.rows.spectrum[:, 0]).statistic < -0.5
    blind = fitted.predict(limited(fresh.rows, skill=False)).baseline[:, SKILL]
    assert abs(spearmanr(blind, fresh.skill).statistic) < 0.4
    assert 0.5 < float(((said.low <= fresh.skill) & (fresh.skill <= said.high)).float().mean()) < 0.99
    assert float(said.familiarity.mean()) > 0.8
    told = fitted.predict(fresh.rows)
    late = fresh.rows.context[:, CONTEXT.index("log_updates")] > math.log1p(39)  # 400 updates: skill so far is final
    assert spearmanr(told.performance[late], fresh.skill[late]).statistic > 0.97


def test_the_worth_of_the_spectrum_is_found_on_families_left_out(fitted: AeLLEScorer) -> None:
    """With nothing else known it ranks nearly all pairs, of which half come right by chance."""
    gain = fitted.worth.gain[0, 0, :, SKILL]
    assert gain.isfinite().all() and float(gain.mean()) > 0.3
    assert "rank" in fitted.score(made(1, 0).spectra[0], updates=0).speaks


def test_the_same_examples_give_the_same_scorer_and_the_random_state_is_left_alone(
    fitted: AeLLEScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; nor is a GPU seeded."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    again = stand_in()
    assert torch.equal(torch.get_rng_state(), before) and seeded == []
    ours, theirs = everything(fitted), everything(again)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert again.card == fitted.card


def test_the_card_says_what_scores_are_made_from(fitted: AeLLEScorer) -> None:
    known = {"performance_range": [0.0, 1.0], "scale": SCALE, "kinds": list(ARCHITECTURES)}
    assert fitted.card == {"name": "stand-in", **known}


def test_the_average_is_that_of_the_networks_fitted_on(fitted: AeLLEScorer) -> None:
    wanted = examples().wanted
    torch.testing.assert_close(fitted.average, wanted.mean(0))
    assert float(wanted[:, FAILURE].mean()) == float((examples().skill < 0.1).float().mean())


def test_autoencoders_differ_by_their_seed_alone() -> None:
    few = examples(24)
    one, two, again = (training.new_autoencoder(few, seed, steps=1, latent_size=2) for seed in (5, 6, 5))
    assert torch.equal(one.encoder.weight, again.encoder.weight)
    assert not torch.equal(one.encoder.weight, two.encoder.weight)


def test_what_is_calibrated_was_said_by_models_that_had_not_seen_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is asked for; none may know a family of its own fold."""

    class Asked(Exception):
        pass

    seen: list[set[int]] = []

    def autoencoder(known: Examples, seed: int, steps: int) -> None:
        seen.append(set(known.families.tolist()))

    def stop(unseen: dict[int, Heads], fold: Tensor, rows: Rows) -> None:
        raise Asked(list(unseen), fold)

    monkeypatch.setattr(training, "new_autoencoder", autoencoder)
    monkeypatch.setattr(training.Ridges, "fit", lambda *_: None)
    monkeypatch.setattr(training, "_by_unseen", stop)
    with pytest.raises(Asked) as asked:
        fit_scorer(examples(24), {}, folds=2)
    folds, fold = asked.value.args
    assert folds == [0, 1] and fold.tolist() == [0, 1, 0] * 8
    assert seen == [{1}, {0, 2}]


def test_each_row_is_spoken_of_by_the_heads_of_its_fold() -> None:
    class Says:
        def __init__(self, what: float) -> None:
            self.what = what

        def predictors(self, rows: Rows) -> Tensor:
            return torch.full((len(rows), 4, 4), self.what)

    fold = torch.tensor([0, 2, 2, 0])
    said = _by_unseen({0: Says(0.5), 2: Says(2.5)}, fold, examples(4).rows)
    assert said[:, 3, 3].tolist() == [0.5, 2.5, 2.5, 0.5]


def test_examples_are_chosen_together() -> None:
    some = examples(24)
    keep = some.families == 1
    chosen = some[keep]
    assert len(chosen) == 8 and chosen.skill.tolist() == some.skill[keep].tolist()
    torch.testing.assert_close(chosen.rows.spectrum, some.rows.spectrum[keep], rtol=0, atol=0)
    torch.testing.assert_close(chosen.wanted, some.wanted[keep], rtol=0, atol=0)


# ------------------------------------------------------------------ scores

KNOWN: list[dict[str, Any]] = [
    {},
    ALL,
    {"architecture": "lstm"},
    {"architecture": "GRU", "hidden_size": 32, "updates": 0, "performance": 0.0},
    {"hidden_size": 4000, "updates": 10**6, "performance": 1.0},
    {"architecture": "coupled oscillator", "updates": 40, "learning_rate": 10.0, "adaptive": False},
    {"gradient_norm": 0.0, "state_mean": 0.0, "state_spread": 1e9, "steps": 1},
]


@pytest.mark.parametrize("told", KNOWN, ids=lambda told: ", ".join(told) or "nothing")
def test_scores_are_consistent(general: AeLLEScorer, told: dict[str, Any]) -> None:
    spectra = [*made(3, 5).spectra, torch.tensor([0.3]), torch.tensor([-math.inf] * 4), torch.full((200,), 5.0)]
    for spectrum in spectra:
        assert_consistent(general.score(spectrum, **told))


@pytest.mark.parametrize("left_out", ALL)
def test_what_is_not_told_is_less_known_and_no_error(general: AeLLEScorer, left_out: str) -> None:
    told = {name: value for name, value in ALL.items() if name != left_out}
    score = general.score(ORDINARY, **told)
    assert_consistent(score)
    assert_same(score, general.score(ORDINARY, **told, **{left_out: None}))
    alone = {left_out: ALL[left_out]}
    assert_consistent(general.score(ORDINARY, **alone))


@pytest.mark.parametrize("name", ["architecture", "hidden_size", "updates", "performance", "learning_rate", "adaptive"])
def test_what_is_told_is_used(general: AeLLEScorer, name: str) -> None:
    other = {"architecture": "rnn", "hidden_size": 128, "updates": 320, "performance": 0.6, "learning_rate": 1e-2}
    changed = {**ALL, name: {**other, "adaptive": False}[name]}
    ours, theirs = general.score(ORDINARY, **changed), general.score(ORDINARY, **ALL)
    told_apart = abs(ours.performance - theirs.performance) + abs(ours.baseline - theirs.baseline)
    alike = float(general.heads.models[0].context_centre[CONTEXT.index("adaptive")]) == 1.0
    assert told_apart > 1e-4 or (name == "adaptive" and alike)  # where all networks of the bank were trained by Adam


def test_a_score_is_a_prediction_in_the_unit_of_the_card(general: AeLLEScorer) -> None:
    worst, best = SPREAD_OUT
    percent = with_parts(general, card={**general.card, "performance_range": [worst, best]})
    skill = (50.0 - worst) / (best - worst)
    row = Rows(quantiles(ORDINARY).unsqueeze(0), Context(**_context(ALL), skill=skill).values().unsqueeze(0))
    said = general.predict(row)
    score = percent.score(ORDINARY, **{**ALL, "performance": 50.0})
    for name in ("performance", "low", "high"):
        assert getattr(score, name) == pytest.approx(worst + (best - worst) * float(getattr(said, name)), abs=1e-3)
    assert score.baseline == pytest.approx(worst + (best - worst) * float(said.baseline[0, SKILL]), abs=1e-3)
    assert score.failure_probability == pytest.approx(float(said.failure), abs=1e-5)
    assert score.takeoff_probability == pytest.approx(float(said.takeoff), abs=1e-5)
    assert score.baseline_failure_probability == pytest.approx(float(said.baseline[0, FAILURE]), abs=1e-5)
    assert score.baseline_takeoff_probability == pytest.approx(float(said.baseline[0, TAKEOFF]), abs=1e-5)
    assert_same(percent.score(ORDINARY, performance=best + 20), percent.score(ORDINARY, performance=best))


def _context(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "performance"}


def test_scoring_draws_nothing_and_leaves_the_weights(general: AeLLEScorer) -> None:
    before, weights = torch.get_rng_state(), copy.deepcopy(general.heads.models[0].state_dict())
    first = general.score(ORDINARY, **ALL)
    assert_same(general.score(ORDINARY, **ALL), first)
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
        assert_consistent(general.score(spectrum, architecture="gru", hidden_size=16, updates=0))


def partly(exponents: list[float], dimension: int, rate: float) -> LyapunovSpectrum:
    measured = lyapunov_spectrum(nn.RNN(1, dimension), torch.zeros(10, 1, 1), k=len(exponents))
    return replace(measured, exponents=torch.tensor(exponents), volume_rate=rate)


def test_a_partial_spectrum_is_seen_with_the_mean_of_its_volume_rate(general: AeLLEScorer) -> None:
    seen = general._quantiles(partly([0.0, -0.1], 8, -4.0))
    known = LEVELS // 4  # two exponents of eight
    assert seen.isnan().tolist() == [False] * known + [True] * (LEVELS - known) + [False]
    assert float(seen[-1]) == pytest.approx(-math.log1p(0.5 / general.card["scale"]), rel=1e-5)


@pytest.mark.parametrize("rate", [math.nan, -math.inf])
def test_a_mean_that_is_not_known_or_hides_behind_a_dead_direction_is_left_out(
    general: AeLLEScorer, rate: float
) -> None:
    partial = partly([0.0, -0.1], 8, rate)
    assert general._quantiles(partial)[-1].isnan()
    assert_consistent(general.score(partial, architecture="rnn"))


def test_a_partial_spectrum_is_as_familiar_as_its_reconstruction(general: AeLLEScorer) -> None:
    rows = examples(40, seed=1).rows
    partial = rows.spectrum.clone()
    partial[:, 16:] = math.nan
    completed = general.heads.completed(Rows(partial, rows.context))
    assert torch.equal(completed.spectrum[:, :16], rows.spectrum[:, :16])
    assert not completed.spectrum.isnan().any()
    said = general.predict(Rows(partial, rows.context))
    seen = general.heads.completed(general.heads.ranges.clamped(Rows(partial, rows.context)))
    torch.testing.assert_close(said.ordinary, general.familiarity(seen, torch.zeros(40, dtype=torch.bool)))
    assert (said.familiarity <= said.ordinary).all()


def test_an_unknown_kind_of_cell_is_less_familiar_and_less_certain(general: AeLLEScorer) -> None:
    rows = Rows(known_networks()[0][0, :60], Rows.unknown(60).context)
    known, unknown = (general.predict(rows, torch.full((60,), is_unknown)) for is_unknown in (False, True))
    sure = known.familiarity == 1
    assert sure.sum() > 30
    assert (unknown.familiarity[sure] == 0.25).all()
    assert ((unknown.high - unknown.low)[sure] >= (known.high - known.low)[sure]).all()
    named = general.score(ORDINARY, architecture="antisymmetric", hidden_size=32)
    untold = general.score(ORDINARY, hidden_size=32)
    assert named.familiarity == untold.familiarity / 4
    assert named.baseline == untold.baseline
    assert named.high - named.low >= untold.high - untold.low
    (said,) = named.unfamiliar
    assert said == f"architecture: antisymmetric (known: {', '.join(general.card['kinds'])})"


def test_of_what_is_unlike_anything_no_more_is_said_than_of_an_average_network(general: AeLLEScorer) -> None:
    """Skill, failure and stability are the average; the interval is that of a network of which nothing is known."""
    nearest = replace(general.familiarity, distances=torch.zeros(1))  # so that all are farther from those known
    said = with_parts(general, familiarity=nearest).predict(examples(20, seed=1).rows)
    assert (said.ordinary == 0).all()
    average = general.average
    torch.testing.assert_close(said.failure, average[FAILURE].expand(20))
    torch.testing.assert_close(said.performance, average[SKILL].expand(20))
    torch.testing.assert_close(said.stability, average[STABILITY].expand(20))
    assert ((said.low <= general.intervals.spread[0] + 1e-6) & (said.high >= general.intervals.spread[1] - 1e-6)).all()


# ------------------------------------------------------------------ beyond what was seen

NUMBERS: dict[str, tuple[str, Callable[[float], float], str]] = {
    "hidden_size": ("log_size", lambda x: round(32 * math.exp(x)), "hidden size"),
    "updates": ("log_updates", lambda x: round(10 * math.expm1(x)), "updates"),
    "learning_rate": ("log_rate", lambda x: 3e-3 * math.exp(x), "learning rate"),
    "gradient_norm": ("log_gradient", math.exp, "gradient norm"),
    "state_mean": ("log_state_mean", math.exp, "mean state"),
    "state_spread": ("log_state_spread", math.exp, "spread of the state"),
    "steps": ("log_steps", lambda x: round(32 * math.exp(x)), "sequence length"),
}
"""Arguments, the entries of the context that they become, and back; and what they are called."""


def edges(general: AeLLEScorer, name: str, end: str) -> tuple[float, float]:
    """The last value of an argument that was seen, and one that lies two doublings beyond."""
    if name == "performance":
        return {"high": (1.0, 2.0), "low": (0.0, -2.0)}[end]
    entry, value_of, _ = NUMBERS[name]
    last = value_of(float(getattr(general.heads.ranges, end)[LEVELS + 1 + CONTEXT.index(entry)]))
    return last, type(last)(4 * last if end == "high" else last / 4)


@pytest.mark.parametrize("fails", [False, True], ids=["ordinary", "doomed"])
@pytest.mark.parametrize("end", ["high", "low"])
@pytest.mark.parametrize("name", [*NUMBERS, "performance"])
def test_what_lies_beyond_is_taken_for_the_last_seen_and_less_is_said(
    general: AeLLEScorer, doomed: Tensor, name: str, end: str, fails: bool
) -> None:
    last, beyond = edges(general, name, end)
    spectrum = doomed if fails else ORDINARY
    if last == beyond:  # no network has fewer than no updates
        assert (name, end) == ("updates", "low")
        return
    inside, outside = (general.score(spectrum, **{**ALL, name: value}) for value in (last, beyond))
    assert_consistent(outside)
    assert outside.performance == pytest.approx(inside.performance, abs=1e-4)
    assert outside.baseline == pytest.approx(inside.baseline, abs=1e-4)
    assert outside.familiarity < 0.6 * inside.familiarity
    assert outside.high - outside.low >= inside.high - inside.low - 1e-6
    assert outside.failure_probability <= inside.failure_probability + 1e-5
    title = "performance" if name == "performance" else NUMBERS[name][2]
    assert any(said.startswith(f"{title}: ") for said in outside.unfamiliar)


def test_nothing_fails_by_extrapolation(general: AeLLEScorer, doomed: Tensor) -> None:
    """Far beyond, a network is no likelier to fail than an average one, whatever is said of the last one seen."""
    likely = {**ALL, "updates": 800, "performance": 0.0}
    average = float(general.average[FAILURE])
    assert general.score(doomed, **likely).failure_probability > 0.9 > 2 * average
    for more in ({"updates": 10**9}, {"learning_rate": 1e6}, {"hidden_size": 10**6}, {"steps": 10**7}):
        far = general.score(doomed, **{**likely, **more})
        assert far.failure_probability <= average + 0.02
        ends = general.intervals.spread.tolist()
        assert far.low <= ends[0] + 0.02 and far.high >= ends[1] - 0.02


@pytest.mark.parametrize("factor", [2.0, 10.0])
def test_larger_exponents_than_any_are_taken_for_the_largest(general: AeLLEScorer, factor: float) -> None:
    top = math.expm1(float(general.heads.ranges.high[0])) * SCALE
    spectra = [torch.cat([torch.tensor([value]), ORDINARY[1:]]) for value in (top, factor * top)]
    inside, outside = (general.score(spectrum, **ALL) for spectrum in spectra)
    assert outside.familiarity < inside.familiarity or inside.familiarity == 0
    assert outside.high - outside.low >= inside.high - inside.low - 1e-6
    assert outside.failure_probability <= max(inside.failure_probability, float(general.average[FAILURE])) + 1e-3
    assert any(said.startswith("largest exponent: ") for said in outside.unfamiliar)


# ------------------------------------------------------------------ without the spectrum


@pytest.mark.parametrize("told", [{}, {"architecture": "gru", "hidden_size": 32, "updates": 40}, ALL], ids=len)
def test_the_baseline_is_what_the_heads_say_without_the_spectrum(general: AeLLEScorer, told: dict[str, Any]) -> None:
    scores = [general.score(s, **told) for s in (*made(3, 2).spectra, torch.tensor([0.3]))]
    context = Context(**_context(told), skill=told.get("performance")).values().unsqueeze(0)
    nothing = Rows(torch.full((1, LEVELS + 1), math.nan), context)
    expected = general.heads(nothing)[0, [SKILL, FAILURE, TAKEOFF]].tolist()
    for score in scores:
        found = score.baseline, score.baseline_failure_probability, score.baseline_takeoff_probability
        assert found == pytest.approx(expected, abs=1e-6)
    assert len({score.baseline for score in scores}) == 1  # to the bit


def test_what_the_spectrum_speaks_of_follows_from_what_it_was_worth(general: AeLLEScorer) -> None:
    """Beyond two standard errors, for what is known and when; where it was never compared it speaks of nothing."""
    shape = (2, len(RUNGS), len(KNOTS), RANKED)
    gain, error = torch.zeros(shape), torch.full(shape, 0.1)
    gain[0, 0, 0], gain[1, -1, 2] = torch.tensor([0.21, 0.19, 0.3]), torch.tensor([-0.5, 0.25, 0.0])
    scorer = with_parts(general, worth=Worth(gain, error))
    assert scorer.score(ORDINARY, updates=0).speaks == ("rank", "takeoff")
    assert scorer.score(ORDINARY, **ALL).speaks == ("failure",)
    assert scorer.score(ORDINARY, updates=800).speaks == ()
    assert scorer.score(ORDINARY, **{**ALL, "performance": None}).speaks == ()
    never = with_parts(general, worth=Worth.unknown())
    assert never.score(ORDINARY, **ALL).speaks == () == never.score(ORDINARY).speaks


def test_the_default_dtype_does_not_matter(general: AeLLEScorer) -> None:
    spectra = made(3, 0).spectra
    told = [{"architecture": "gru", "hidden_size": 32, "updates": 25, "performance": 0.2}, {"architecture": "new"}, ALL]
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
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"performance": math.nan}, "performance must be finite, or None where it is not known; got nan"),
        ({"performance": math.inf}, "performance must be finite, or None where it is not known; got inf"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0.*, or None where it is not known; got 0\.0"),
        ({"learning_rate": math.nan}, r"learning_rate must be above 0.*, or None where it is not known; got nan"),
        ({"learning_rate": math.inf}, r"learning_rate must be above 0.*, or None where it is not known; got inf"),
        *(
            ({name: value}, f"{name} must be at least 0 and finite, or None where it is not known; got {value}")
            for name in ("gradient_norm", "state_mean", "state_spread")
            for value in (-1.0, math.nan, math.inf)
        ),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(general: AeLLEScorer, told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        general.score(ORDINARY, **told)


@pytest.mark.parametrize("spectrum", [torch.full((4,), math.nan), torch.zeros(0), torch.zeros(2, 2)])
def test_a_spectrum_that_says_nothing_is_refused(general: AeLLEScorer, spectrum: Tensor) -> None:
    with pytest.raises(ValueError, match="exponents must"):
        general.score(spectrum)


# ------------------------------------------------------------------ one's own


def percent(skill: Tensor) -> Tensor:
    return SPREAD_OUT[0] + (SPREAD_OUT[1] - SPREAD_OUT[0]) * skill


def fit(networks: Made, unit: float = 1.0, **options: Any) -> AeLLEScorer:
    options = {"architecture": "gru", "hidden_size": networks.sizes, **options}
    return AeLLEScorer.fit([unit * s for s in networks.spectra], percent(networks.skill), **options)


@pytest.fixture(scope="module")
def own() -> dict[int, AeLLEScorer]:
    """Scorers of one's own, from few networks and from many."""
    return {count: fit(made(count, seed=3)) for count in (8, 60)}


def said_of(scorer: AeLLEScorer, networks: Made, unit: float = 1.0) -> Tensor:
    scores = [
        scorer.score(unit * s, architecture="gru", hidden_size=d)
        for s, d in zip(networks.spectra, networks.sizes, strict=True)
    ]
    return torch.tensor([score.performance for score in scores])


@pytest.mark.parametrize("count", [8, 60])
def test_scores_of_own_scorers_are_in_the_unit_of_what_they_were_fitted_on(
    own: dict[int, AeLLEScorer], count: int
) -> None:
    """Nothing was told of the stability, and none is invented; nor was the spectrum's worth ever found out."""
    worst, best = own[count].performance_range
    ends = percent(made(count, seed=3).skill)
    assert (worst, best) == pytest.approx((float(ends.min()), float(ends.max())))
    for spectrum in made(5, 6).spectra:
        for performance in (None, 10.0, 60.0):
            score = own[count].score(spectrum, performance=performance)
            assert_consistent(score, worst, best, stability=False)
            assert score.speaks == ()


def test_own_scorers_rank_networks_not_seen(own: dict[int, AeLLEScorer]) -> None:
    fresh = made(25, seed=9)
    assert spearmanr(said_of(own[60], fresh), fresh.skill).statistic > 0.85


def test_own_fits_are_not_random_and_leave_the_general_one_as_it_was(
    own: dict[int, AeLLEScorer], general: AeLLEScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AeLLEScorer, "from_pretrained", staticmethod(lambda name="general": general))
    before, untouched = torch.get_rng_state(), everything(general)
    again = fit(made(60, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    fresh = made(10, seed=9)
    assert torch.equal(said_of(again, fresh), said_of(own[60], fresh))
    assert again.card == own[60].card
    torch.testing.assert_close(everything(general), untouched, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("unit", [1 / math.log(2), 100.0], ids=["log2", "hundredfold"])
def test_the_unit_of_the_exponents_hardly_matters(own: dict[int, AeLLEScorer], unit: float) -> None:
    fresh = made(25, seed=9)
    scorer = fit(made(60, seed=3), unit)
    seen_through = scorer.card["scale"] / SCALE
    assert seen_through == 1.0 if unit < 8 else unit / 4 < seen_through < 4 * unit
    theirs, ours = said_of(scorer, fresh, unit), said_of(own[60], fresh)
    assert spearmanr(theirs, ours).statistic > 0.9
    assert float((theirs - ours).abs().mean()) < 6.0


def test_own_kinds_of_cell_are_known_to_an_own_scorer() -> None:
    sweep = made(12, seed=3)
    scorer = AeLLEScorer.fit(sweep.spectra, sweep.skill, architecture="MyCell")
    own, other = (scorer.score(sweep.spectra[0], architecture=kind) for kind in ("mycell", "other"))
    assert own.familiarity == 4 * other.familiarity > 0


def test_networks_of_one_group_count_once(own: dict[int, AeLLEScorer]) -> None:
    """Sixty spectra of fifteen networks are too few to say more than the pretrained one."""
    scorer = fit(made(60, seed=3), groups=[f"network {i // 4}" for i in range(60)])
    assert (scorer.card["networks"], own[60].card["networks"]) == (15, 60)
    assert scorer.card["stack"]["chosen"].startswith("the prior alone")
    assert own[60].card["stack"]["chosen"].startswith("a sum of")


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (7, {}, "spectra must be at least 8, or nothing can be learnt; got 7"),
        (8, {"performance": [0.0, 1.0]}, r"performance must hold one number for each of the 8 spectra; got \(2,\)"),
        (8, {"performance": [0.5] * 8}, "performance must be finite and not all the same"),
        (8, {"performance": [math.nan] + [0.5] * 7}, "performance must be finite and not all the same"),
        *(
            (8, {name: values}, f"{name} must hold one entry for each of the 8 spectra; got {len(values)}")
            for name, values in {
                "architecture": ["gru"], "hidden_size": [3, 4], "updates": [1] * 9, "metric": [1.0], "groups": [1],
                "learning_rate": [1e-3], "adaptive": [True], "gradient_norm": [1.0] * 2, "state_mean": [0.1],
                "state_spread": [0.1], "steps": [3] * 4,
            }.items()
        ),
        (8, {"groups": ["one"] * 8}, "groups must name at least 2 networks, or none can be left out; got 1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(count: int, options: dict[str, Any], message: str) -> None:
    networks = made(count, 3)
    with pytest.raises(ValueError, match=message):
        AeLLEScorer.fit(networks.spectra, **{"performance": percent(networks.skill), **options})


def test_own_scorers_fit_in_a_process_of_float64() -> None:
    networks = made(8, 3)
    torch.set_default_dtype(torch.float64)
    try:
        scorer = fit(networks)
        assert_consistent(scorer.score(networks.spectra[0]), *scorer.performance_range, stability=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in everything(scorer).values()} == {torch.float32}


# ------------------------------------------------------------------ files


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no pickle from here on."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("forbidden")

    monkeypatch.setattr(socket, "socket", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.parametrize("kind", ["fitted", "own"])
def test_a_saved_scorer_says_the_same_to_the_bit_without_pickle(
    kind: str, fitted: AeLLEScorer, own: dict[int, AeLLEScorer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = {"fitted": fitted, "own": own[60]}[kind]
    path = tmp_path / "new" / "scorer.safetensors"
    scorer.save(path)
    forbid(monkeypatch)
    before = torch.get_rng_state()
    loaded = AeLLEScorer.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (type(loaded), loaded.card) == (type(scorer), scorer.card)
    torch.testing.assert_close(everything(loaded), everything(scorer), rtol=0, atol=0, equal_nan=True)
    for spectrum in made(3, 9).spectra:
        for told in ({}, {**ALL, "performance": 0.3}):
            assert_same(loaded.score(spectrum, **told), scorer.score(spectrum, **told))


def test_files_are_reproducible_and_everybody_may_read_them(general: AeLLEScorer, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    general.save(one)
    AeLLEScorer.load(one).save(str(two))
    assert one.read_bytes() == two.read_bytes() == WEIGHTS.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o644
    with safe_open(one, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {FORMAT, "sha256"} and FORMAT == "lightning_lyapunov.aelle/2"
    assert json.loads(metadata[FORMAT])["scale"] == SCALE


def test_a_file_that_is_no_scorer_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"path must be a file of format lightning_lyapunov\.aelle/2; .* says pt"):
        AeLLEScorer.load(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be a file that AeLLEScorer.save wrote; there is no .*nope"):
        AeLLEScorer.load(tmp_path / "nope.safetensors")


@pytest.fixture
def folder(tmp_path: Path, fitted: AeLLEScorer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that come with the package, and their card, both somewhere else."""
    path = tmp_path / "weights" / "general.safetensors"
    fitted.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".md").write_text(f"A scorer, sha256 `{digest}`.", "utf-8")
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    return path.parent


def test_pretrained_scorers_are_found_by_name(folder: Path, fitted: AeLLEScorer) -> None:
    assert AeLLEScorer.from_pretrained().card == fitted.card
    with pytest.raises(ValueError, match=r"name must be one of general; got 'nope'\."):
        AeLLEScorer.from_pretrained("nope")
    (folder / "general.safetensors").unlink()
    with pytest.raises(ValueError, match="name must be one of ; got 'general'"):
        AeLLEScorer.from_pretrained()


def test_another_scorer_than_that_of_the_card_is_refused(folder: Path, general: AeLLEScorer) -> None:
    """Though it is whole, by its own digest."""
    general.save(folder / "general.safetensors")
    with pytest.raises(ValueError, match=r"path must be a file of format .*sha256 [0-9a-f]{64}, not [0-9a-f]{64}"):
        AeLLEScorer.from_pretrained()


# ------------------------------------------------------------------ the one that comes with the package


def test_the_pretrained_scorer_loads_without_network_pickle_or_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WEIGHTS.stat().st_size < 5e6
    forbid(monkeypatch)
    before = torch.get_rng_state()
    scorer = AeLLEScorer.from_pretrained()
    assert torch.equal(torch.get_rng_state(), before)
    assert scorer.performance_range == (0.0, 1.0) and scorer.card["scale"] == SCALE


def test_the_pretrained_scorer_is_sensible_about_an_ordinary_network(general: AeLLEScorer) -> None:
    """A GRU as torch makes it."""
    spectrum = lyapunov_spectrum(nn.GRU(4, 32), torch.randn(60, 4, 4), transient=10).exponents
    told: dict[str, Any] = {"architecture": "gru", "hidden_size": 32, "updates": 0}
    score = general.score(spectrum, **told)
    assert_consistent(score)
    assert 0.02 < score.performance < 0.98 and score.high - score.low > 0.1
    assert score.familiarity > 0.5
    saturated = torch.cat([torch.full((16,), 20.0), torch.full((16,), -60.0)])
    assert general.score(saturated, **told).familiarity < score.familiarity


@pytest.mark.slow
def test_the_shipped_weights_are_made_again_bit_for_bit(general: AeLLEScorer, tmp_path: Path) -> None:
    """On the same torch and processor: ``pytest -m slow tests/test_scorer.py -k bit_for_bit``, about 20 minutes."""
    from lightning_lyapunov.bank.records import Bank
    from lightning_lyapunov.bank.report.writing import fit_on

    banks = [Bank.load(path) for path in (BANKS / "bank-1.safetensors", BANKS / "records")]
    (bank,) = (one for one in banks if one.digest == general.card["bank"])
    torch.set_num_threads(1)
    fit_on(bank).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == WEIGHTS.read_bytes()
