"""A scorer of one's own: sweeps whose answer is known, whatever is known of them, a prior made by hand, and files."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import spectrum as measured
from scipy.stats import spearmanr
from torch import Tensor

from lightning_lyapunov import AeLLEScorer
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, SCALE, Context, Rows, quantiles, squash
from lightning_lyapunov.aelle.heads import SKILL
from lightning_lyapunov.aelle.own import LEAST, Own, OwnScorer, fit_own, scale_of
from lightning_lyapunov.aelle.stack import FEWEST, PRIOR, Groups
from lightning_lyapunov.aelle.views import COVERAGE, EDGE, FINE, Fit, OwnRows, resolved, within

NAN = math.nan
SIZES = (16, 24, 32, 48)


def sweep(count: int, seed: int = 0, unit: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Spectra, and skills that peak where the largest exponent is 0: no general scorer says so of these."""
    generator = torch.Generator().manual_seed(seed)
    largest = 0.8 * torch.rand(count, generator=generator) - 0.4
    depth = 1 + 3 * torch.rand(count, generator=generator)
    spectra = [
        unit * (top - down * torch.linspace(0, 1, SIZES[i % 4]))
        for i, (top, down) in enumerate(zip(largest, depth, strict=True))
    ]
    noise = 0.02 * torch.randn(count, generator=generator)
    return spectra, 1 - 2 * largest.abs() + noise


class ByHand:
    """A prior that says of every network what its fourth exponent level and what is known of its size say."""

    def logits(self, rows: Rows) -> Tensor:
        said = rows.spectrum[:, 3].nan_to_num().double() + rows.context[:, CONTEXT.index("log_size")].nan_to_num()
        return torch.stack([said, -said, said], 1)

    def codes(self, rows: Rows) -> Tensor:
        return rows.spectrum[:, :2].nan_to_num().double()


@pytest.fixture(scope="module")
def general() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


@pytest.fixture(scope="module")
def own(general: AeLLEScorer) -> OwnScorer:
    spectra, skill = sweep(60)
    return fit_own(spectra, 20 + 70 * skill, hidden_size=[SIZES[i % 4] for i in range(60)], general=general)


def rows_of(scorer: OwnScorer, spectra: list[Tensor], **told: Any) -> OwnRows:
    parts = [scorer._row(spectrum, Context(**told)) for spectrum in spectra]
    return OwnRows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("spectrum", "context", "fine")))


# ------------------------------------------------------------------ rows


def test_a_spectrum_is_read_from_its_largest_exponent_to_its_smallest() -> None:
    """As many as there are levels: themselves; another number: between neighbours of the squashed."""
    exponents = torch.linspace(1.0, -3.0, FINE)
    torch.testing.assert_close(resolved(exponents[torch.randperm(FINE)]), squash(exponents))
    few = resolved(torch.tensor([0.5, -math.inf, -1.0]))
    ends = squash(torch.tensor([0.5, -1.0, -math.inf]))
    torch.testing.assert_close(few[[0, -1]], ends[[0, -1]])
    step = (ends[1] - ends[0]) * 2 / (FINE - 1)
    torch.testing.assert_close(few.diff()[: FINE // 2 - 1], step.expand(FINE // 2 - 1))
    torch.testing.assert_close(resolved(torch.tensor([0.3])), squash(torch.tensor(0.3)).expand(FINE))


def test_what_a_leading_part_does_not_reach_is_unknown() -> None:
    whole = torch.linspace(0.2, -2.0, 2 * FINE - 1)
    part = resolved(whole[:FINE], dimension=2 * FINE - 1)
    assert part.isnan().tolist() == [False] * (FINE // 2) + [True] * (FINE - FINE // 2)
    torch.testing.assert_close(part[: FINE // 2], resolved(whole)[: FINE // 2])
    torch.testing.assert_close(resolved(torch.cat([whole[:FINE], torch.full((FINE - 1,), NAN)])), part, equal_nan=True)


def test_levels_stand_in_for_exponents_that_were_not_given() -> None:
    """Of a spectrum that is a line where it is squashed they are exact but for the half level at each end."""
    line = torch.linspace(2.0, -3.0, 128)
    exponents = line.sign() * line.abs().expm1() * SCALE
    row = Rows(quantiles(exponents).unsqueeze(0), Context().values().unsqueeze(0))
    coarse = OwnRows.of(row).fine[0]
    edge = FINE // LEVELS
    torch.testing.assert_close(coarse[edge:-edge], resolved(exponents)[edge:-edge], rtol=0, atol=0.02)
    assert OwnRows.of(OwnRows.of(row)).fine is not None
    partial = Rows(torch.where(torch.arange(LEVELS + 1) < 8, row.spectrum, NAN), row.context)
    assert 0 < int((~OwnRows.of(partial).fine.isnan()).sum()) < FINE / 4


def test_predictions_are_pressed_together_at_the_ends_and_never_tied() -> None:
    skill = torch.linspace(-0.4, 1.4, 100).double()
    pressed = within(skill)
    assert (pressed.diff() > 0).all() and (pressed > 0).all() and (pressed < 1).all()
    inside = (skill > EDGE) & (skill < 1 - EDGE)
    torch.testing.assert_close(pressed[inside], skill[inside])


# ------------------------------------------------------------------ fits


def filled(count: int, seed: int = 0) -> tuple[OwnRows, Tensor]:
    spectra, skill = sweep(count, seed)
    rows = [(quantiles(s), Context(hidden_size=len(s)).values(), resolved(s)) for s in spectra]
    return OwnRows(*map(torch.stack, zip(*rows, strict=True))), skill.double()


def test_a_fit_learns_what_its_prior_does_not_know() -> None:
    rows, skill = filled(60)
    fit = Fit(rows, skill, Groups.of(torch.arange(60)), ByHand())
    fresh, truth = filled(100, seed=1)
    assert abs(spearmanr(ByHand().logits(fresh)[:, 0], truth).statistic) < 0.5
    said = fit(fresh)
    assert spearmanr(said[:, 0], truth).statistic > 0.9
    assert ((said[:, 1] <= said[:, 0]) & (said[:, 0] <= said[:, 2])).all()
    parts = fit.parts(fresh)
    assert list(parts) == [*fit.stack.candidates, "stack"]
    torch.testing.assert_close(within(parts["stack"]), said[:, 0])


def test_intervals_hold_as_often_as_they_should() -> None:
    held = []
    for seed in range(8):
        rows, skill = filled(60, seed)
        fit = Fit(rows, skill, Groups.of(torch.arange(60)), ByHand())
        fresh, truth = filled(100, seed + 50)
        said = fit(fresh)
        inside = (skill.min() <= truth) & (truth <= skill.max())
        held += ((said[:, 1] <= truth) & (truth <= said[:, 2]))[inside].tolist()
    assert 0.75 < sum(held) / len(held) < 0.93


def test_a_fit_sees_no_more_than_what_is_known_of_the_network_asked_about() -> None:
    """Own networks that differ in what is not known of it make the same fit."""
    rows, skill = filled(60)
    known = torch.ones(rows.known.shape[1], dtype=torch.bool)
    known[8 : LEVELS + 1] = known[LEVELS + 1 + len(CONTEXT) + FINE // 4 :] = False
    known[LEVELS + 1 + CONTEXT.index("log_size")] = False
    deep = OwnRows(rows.spectrum - 0.5 * (torch.arange(LEVELS + 1) >= 8), rows.context + 1, rows.fine.clone())
    deep.fine[:, FINE // 4 :] -= 0.5
    one, two = (Fit(r.masked(known), skill, Groups.of(torch.arange(60)), ByHand()) for r in (rows, deep))
    fresh, truth = filled(30, seed=1)
    said = one(fresh.masked(known))
    torch.testing.assert_close(said, two(fresh.masked(known)), rtol=0, atol=1e-9)
    assert spearmanr(said[:, 0], truth).statistic > 0.8
    assert said.isfinite().all()


def test_without_a_spectrum_only_what_sees_the_rest_is_left() -> None:
    rows, skill = filled(60)
    blind = OwnRows(torch.full_like(rows.spectrum, NAN), rows.context, torch.full_like(rows.fine, NAN))
    fit = Fit(blind, skill, Groups.of(torch.arange(60)), ByHand())
    assert list(fit.stack.candidates) == [PRIOR, "prior's logits", "prior's logits and code"]
    nothing = OwnRows(blind.spectrum, torch.full_like(rows.context, NAN), blind.fine)
    fit = Fit(nothing, skill, Groups.of(torch.arange(60)), ByHand())
    assert list(fit.stack.candidates) == [PRIOR]
    torch.testing.assert_close(fit(nothing[:1])[0, 0], within(skill.mean()))


def test_what_is_not_told_of_a_few_of_ones_own_counts_as_average() -> None:
    rows, skill = filled(60)
    rows.context[::4, CONTEXT.index("log_size")] = NAN
    said = Fit(rows, skill, Groups.of(torch.arange(60)), ByHand())(rows)
    assert said.isfinite().all() and spearmanr(said[:, 0], skill).statistic > 0.9


def test_a_prior_that_overflows_says_nothing() -> None:
    class Overflowing(ByHand):
        def codes(self, rows: Rows) -> Tensor:
            return torch.full((len(rows), 2), math.inf).double()

    rows, skill = filled(40)
    fit = Fit(rows, skill, Groups.of(torch.arange(40)), Overflowing())
    assert fit(rows).isfinite().all()


# ------------------------------------------------------------------ scorers


def test_an_own_scorer_ranks_networks_it_has_not_seen(own: OwnScorer) -> None:
    spectra, skill = sweep(60, seed=1)
    said = own.predict(rows_of(own, spectra))
    assert spearmanr(said.performance, skill).statistic > 0.85
    assert (said.failure + said.takeoff <= 1 + 1e-6).all()
    assert spearmanr(said.failure, skill).statistic < -0.5 and spearmanr(said.takeoff, skill).statistic > 0.5
    assert said.stability.isnan().all() and not said.speaks.any()
    assert len(set(said.baseline[:, SKILL].tolist())) == 1
    assert float(said.familiarity.mean()) > 0.5


def test_what_is_said_of_one_network_is_what_is_said_of_many(own: OwnScorer) -> None:
    """Of which different things are known."""
    spectra, _ = sweep(4, seed=1)
    rows = rows_of(own, spectra)
    rows.spectrum[1, 8:] = rows.fine[1, FINE // 4 :] = NAN
    rows.context[2, CONTEXT.index("log_size")] = 0.2
    rows.spectrum[3], rows.fine[3] = NAN, NAN
    every = own.predict(rows)
    for i in range(4):
        alone = own.predict(rows[torch.tensor([i])])
        for name in ("performance", "low", "high", "failure", "takeoff", "familiarity", "baseline"):
            ours, theirs = getattr(alone, name)[0], getattr(every, name)[i]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, equal_nan=True)


def test_a_measured_spectrum_of_which_only_the_leading_part_is_known(own: OwnScorer) -> None:
    row = own._row(measured(0.1, -0.2, -0.5, dimension=12, volume_rate=NAN), Context())
    assert 0 < int(row.fine.isnan().sum()) < FINE and row.spectrum[0, -1].isnan()
    said = own.predict(row)
    assert 0 <= float(said.low) <= float(said.performance) <= float(said.high) <= 1


@pytest.mark.parametrize("unit", [1 / math.log(2), 100.0], ids=["log2", "hundredfold"])
def test_the_unit_of_the_exponents_hardly_matters(general: AeLLEScorer, own: OwnScorer, unit: float) -> None:
    spectra, skill = sweep(60, unit=unit)
    theirs = fit_own(spectra, 20 + 70 * skill, hidden_size=[SIZES[i % 4] for i in range(60)], general=general)
    assert (theirs.card["scale"] == SCALE) == (unit < 8)
    fresh, truth = sweep(40, seed=1)
    ours = own.predict(rows_of(own, fresh)).performance
    said = theirs.predict(rows_of(theirs, [unit * s for s in fresh])).performance
    assert spearmanr(said, truth).statistic > 0.85 and float((said - ours).abs().mean()) < 0.06


def test_the_scale_is_that_of_the_median_exponent_where_it_is_far_from_any_bank() -> None:
    assert scale_of([torch.tensor([0.7, -0.7, -math.inf])]) == SCALE == scale_of([torch.tensor([NAN])])
    assert scale_of([torch.full((3,), -70.0)]) == pytest.approx(100 * SCALE)


def test_far_from_everything_no_more_is_said_than_of_an_average_network(own: OwnScorer) -> None:
    """Skill, failure and take-off as of one's own on average, in the interval of nearly all of them."""
    far = copy.copy(own)
    far.familiarity = replace(own.familiarity, distances=torch.zeros(1))  # so that all are farther from those known
    said = far.predict(rows_of(own, [torch.linspace(90.0, 60.0, 16)]))
    skill = own.own.skill
    assert float(said.familiarity) == 0
    assert float(said.performance) == pytest.approx(float(skill.mean()), abs=1e-5)
    assert float(said.failure) == pytest.approx(float((skill < 0.1).float().mean()), abs=1e-5)
    assert float(said.low) <= float(skill.quantile(0.02)) + 1e-6
    assert float(said.high) >= float(skill.quantile(0.98)) - 1e-6


def test_of_few_networks_the_prior_ranks_and_the_card_says_so(general: AeLLEScorer) -> None:
    spectra, skill = sweep(LEAST)
    scorer = fit_own(spectra, skill, general=general)
    fresh = rows_of(scorer, sweep(30, seed=1)[0])
    said = scorer.predict(fresh)
    sure = said.ordinary == 1
    prior = scorer.prior.logits(fresh.masked(scorer._usable))[:, 0].clamp(*scorer_ends(scorer))
    assert int(sure.sum()) > 10
    assert spearmanr(said.performance[sure], prior[sure]).statistic > 0.999
    told = scorer.card["stack"]
    assert told["chosen"] == (
        f"the prior alone, since 8 networks are fewer than {FEWEST}: below, nothing fitted to them ranks as well"
    )
    assert list(told["candidates"]) == [PRIOR]


def scorer_ends(scorer: OwnScorer) -> tuple[float, float]:
    logits = scorer.prior.logits(scorer.own.rows.masked(scorer._usable))[:, 0]
    return float(logits.min()), float(logits.max())


def test_the_card_tells_what_was_chosen_and_why(own: OwnScorer) -> None:
    told = json.loads(json.dumps(own.card))["stack"]
    stack = own.fit_for(own._usable).stack
    assert list(told["candidates"]) == list(stack.candidates) and len(stack.candidates) == 8
    for (name, entry), weight in zip(told["candidates"].items(), stack.weights.tolist(), strict=True):
        error = (own.own.skill - stack.candidates[name].left_out).square().mean().sqrt()
        assert entry["weight"] == pytest.approx(weight, abs=1e-3)
        assert entry["error left out"] == pytest.approx(float(error), abs=1e-4)
    assert told["error left out"] < told["error of the mean"]
    assert told["chosen"].startswith("a sum of ") and "groups left out" in told["chosen"]


def test_the_skill_so_far_counts_where_it_was_told(general: AeLLEScorer) -> None:
    """Spectra that say nothing, and a metric half way to what will be."""
    _, skill = sweep(40)
    scorer = fit_own([torch.linspace(0.1, -1.0, 16)] * 40, skill, metric=(0.5 * skill).tolist(), general=general)
    middle = float(skill.min()) + 0.5 * float(skill.max() - skill.min())
    row = scorer._row(torch.linspace(0.1, -1.0, 16), Context(skill=scorer._to_skill(0.5 * middle)))
    expected = (middle - float(skill.min())) / float(skill.max() - skill.min())
    assert float(scorer.predict(row).performance) == pytest.approx(expected, abs=0.1)


def test_what_was_told_of_no_own_network_is_not_used(own: OwnScorer) -> None:
    spectra, _ = sweep(5, seed=1)
    plain, told = (own.predict(rows_of(own, spectra, **known)) for known in ({}, {"architecture": "lstm"}))
    torch.testing.assert_close(plain.performance, told.performance, rtol=0, atol=0)


def test_twins_are_left_out_together(general: AeLLEScorer) -> None:
    """Each network twice: told so, they vouch for each other no longer, and the error told is larger."""
    generator = torch.Generator().manual_seed(0)
    spectra = [torch.randn(16, generator=generator).sort(descending=True).values for _ in range(40)]
    skill = torch.rand(40, generator=generator).repeat_interleave(2)
    twice = [spectra[i // 2] + 0.001 * torch.randn(16, generator=generator) for i in range(80)]
    apart, together = (
        fit_own(twice, skill, groups=groups, general=general).card["stack"]["error left out"]
        for groups in (None, [f"network {i // 2}" for i in range(80)])
    )
    assert apart < 0.95 * together


def test_fits_are_remembered_but_not_without_end(own: OwnScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lyapunov.aelle.own.REMEMBERED", 2)
    own._fits.clear()
    columns = torch.arange(len(own._usable))
    first = own.fit_for(columns > -1)
    assert own.fit_for(columns > -1) is first
    for end in (200, 100):
        own.fit_for(columns < end)
    assert len(own._fits) == 1 and own.fit_for(columns > -1) is not first


def test_nothing_is_drawn_and_everything_is_float32(general: AeLLEScorer) -> None:
    before = torch.get_rng_state()
    spectra, skill = sweep(40)
    torch.set_default_dtype(torch.float64)
    try:
        scorer = fit_own(spectra, skill, general=general)
        said = scorer.predict(rows_of(scorer, spectra[:2]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.dtype for value in scorer.own.tensors("own").values()} == {torch.float32}
    again = fit_own(spectra, skill, general=general)
    torch.testing.assert_close(again.predict(rows_of(again, spectra[:2])).performance, said.performance.float())


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (7, {}, "spectra must be at least 8, or nothing can be learnt; got 7"),
        (8, {"performance": [0.0, 1.0]}, r"performance must hold one number for each of the 8 spectra; got \(2,\)"),
        (8, {"performance": [0.5] * 8}, "performance must be finite and not all the same"),
        (8, {"performance": [NAN] + [0.5] * 7}, "performance must be finite and not all the same"),
        (8, {"hidden_size": [3, 4]}, "hidden_size must hold one entry for each of the 8 spectra; got 2"),
        (8, {"architecture": ["gru"]}, "architecture must hold one entry for each of the 8 spectra; got 1"),
        (8, {"updates": [1] * 9}, "updates must hold one entry for each of the 8 spectra; got 9"),
        (8, {"metric": [1.0]}, "metric must hold one entry for each of the 8 spectra; got 1"),
        (8, {"groups": [1]}, "groups must hold one entry for each of the 8 spectra; got 1"),
        (8, {"groups": ["one"] * 8}, "groups must name at least 2 networks, or none can be left out; got 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    general: AeLLEScorer, count: int, options: dict[str, Any], message: str
) -> None:
    spectra, skill = sweep(count)
    with pytest.raises(ValueError, match=message):
        fit_own(spectra, **{"performance": skill, "general": general, **options})


# ------------------------------------------------------------------ files


def test_own_networks_travel_with_a_file(own: OwnScorer) -> None:
    tensors = own.own.tensors("own")
    assert {key: tuple(value.shape) for key, value in tensors.items()} == Own.shapes("own", tensors)
    scorer = OwnScorer.of(own.general, tensors, own.card)
    rows = rows_of(own, sweep(5, seed=1)[0])
    torch.testing.assert_close(scorer.predict(rows).performance, own.predict(rows).performance, rtol=0, atol=0)


def spoilt(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Own], Own]:
    return lambda own: replace(own, **{key: change(getattr(own, key).clone())})


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    def change(part: Tensor) -> Tensor:
        part.view(-1)[0] = value
        return part

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda own: Own(*(getattr(own, k)[:5] for k in vars(own))), "own must hold at least 8 networks, of 2 groups"),
        (spoilt("group", torch.zeros_like), "own must hold at least 8 networks, of 2 groups or more"),
        (spoilt("skill", lambda s: 2 * s), r"own.skill must be finite and go from 0 to 1; got 0 to 2"),
        (spoilt("skill", with_first(NAN)), "own.skill must be finite"),
        (spoilt("group", with_first(math.inf)), "own.group must hold finite numbers"),
        (spoilt("context", with_first(math.inf)), "own.context must hold finite numbers, or NaN where unknown"),
        (spoilt("spectrum", with_first(math.inf)), "own.spectrum and own.fine must lie between -100 and 100"),
        (spoilt("fine", with_first(-1e30)), "own.spectrum and own.fine must lie between -100 and 100, or be NaN"),
        (spoilt("fine", with_first(NAN)), "own.spectrum and own.fine must know the largest exponents"),
    ],
)
def test_own_networks_that_no_fit_leaves_are_refused(own: OwnScorer, spoil: Callable[[Own], Own], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OwnScorer.of(own.general, spoil(own.own).tensors("own"), own.card)


def test_a_saved_file_holds_the_general_scorer_and_ones_own_networks(own: OwnScorer, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    own.save(tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    own.general.save(tmp_path / "general.safetensors")
    assert tensors.keys() == load_file(tmp_path / "general.safetensors").keys() | own.own.tensors("own").keys()


def test_where_none_of_a_few_failed_the_next_still_may() -> None:
    """Once among two more than there are, for a network like the others; and once each where outcomes are even."""
    rows, skill = filled(LEAST)
    for ends, expected in ((skill.clamp(min=0.5), 1 / (LEAST + 2)), (skill.clamp(max=0.05), 1 - 1 / (LEAST + 2))):
        fit = Fit(rows, ends, Groups.of(torch.arange(LEAST)), ByHand())
        assert float(fit(rows)[:, 3].mean()) == pytest.approx(expected, abs=0.02)


def test_an_interval_of_few_reaches_to_their_extremes() -> None:
    """Of eight residuals a tenth of the next lies beyond the outermost on either side: 1 in 9."""
    rows, skill = filled(LEAST)
    fit = Fit(rows, skill, Groups.of(torch.arange(LEAST)), ByHand())
    assert COVERAGE == 0.8
    assert fit.offsets.tolist() == [float(fit.stack.residuals.min()), float(fit.stack.residuals.max())]
