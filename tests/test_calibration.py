"""Intervals, familiarity and the worth of a spectrum: what was put in, coverage counted, and values worked by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scored import everything, flat, mixed, uniform
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import RANKED
from lightning_lyapunov.aelle.calibration import BINS, UNFAMILIAR, Familiarity, Intervals, Worth, weighted_quantile
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, STATES, limited, state

NAN = math.nan


# ------------------------------------------------------------------ quantiles that are weighted


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_quantiles_of_equal_weights_are_numpys(count: int) -> None:
    """Of values some of which are the same; each stands for the middle of its share."""
    values, levels = (6 * uniform(count)).round(), torch.tensor([0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
    found = weighted_quantile(values, torch.full((count,), 0.7), levels)
    expected = np.quantile(values.double().numpy(), levels.double().numpy(), method="hazen")
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_weight_is_worth_so_many_copies() -> None:
    """Of 400 values up to five times each: as near as one copy among all."""
    values, copies = uniform(400), (uniform(400, seed=1) * 5).long() + 1
    levels = torch.linspace(0.05, 0.95, 19)
    repeated = values.repeat_interleave(copies).double().numpy()
    expected = np.quantile(repeated, levels.double().numpy(), method="hazen")
    assert weighted_quantile(values, copies.float(), levels).tolist() == pytest.approx(expected.tolist(), abs=5e-3)


def test_weighted_quantiles_worked_by_hand() -> None:
    """Weights 1, 2, 1: middles at 1/8, 4/8 and 7/8, and lines between them."""
    values, weights = torch.tensor([30.0, 10.0, 20.0]), torch.tensor([1.0, 1.0, 2.0])
    levels = torch.tensor([0.0, 0.125, 0.3125, 0.5, 0.6875, 0.875, 1.0])
    assert weighted_quantile(values, weights, levels).tolist() == pytest.approx([10, 10, 15, 20, 25, 30, 30])


# ------------------------------------------------------------------ intervals


def at_all_knots(count: int) -> Rows:
    rows = everything(count)
    logs = torch.tensor([math.log1p(knot / 10) for knot in KNOTS])
    rows.context[:, CONTEXT.index("log_updates")] = logs.repeat(math.ceil(count / len(KNOTS)))[:count]
    return rows


def noisy(count: int, seed: int, *, top: float = 0.75) -> tuple[Tensor, Tensor]:
    """Predictions from 0.25, and truths that differ by noise that grows with the prediction, none above 1."""
    predicted = 0.25 + (top - 0.25) * uniform(count, seed=seed)
    return predicted, (predicted + (uniform(count, seed=seed + 100) - 0.5) * 0.6 * predicted).clamp(max=1.0)


@pytest.fixture(scope="module")
def intervals() -> Intervals:
    predicted, truth = noisy(4000, 0)
    return Intervals.fit(predicted, at_all_knots(4000), truth, torch.ones(4000))


def ends_of(
    intervals: Intervals, predicted: Tensor, familiarity: float = 1.0, share: float = 1.0
) -> tuple[Tensor, ...]:
    count = len(predicted)
    return intervals(predicted, at_all_knots(count), torch.full((count,), familiarity), torch.full((count,), share))


def test_intervals_cover_four_in_five_of_fresh_truths(intervals: Intervals) -> None:
    predicted, truth = noisy(4000, 1)
    low, high = ends_of(intervals, predicted)
    covered = (low <= truth) & (truth <= high)
    assert 0.77 < float(covered.float().mean()) < 0.83
    for some in (predicted < 0.4, predicted > 0.6):  # although their noise is twice as large
        assert 0.72 < float(covered[some].float().mean()) < 0.88
    width = high - low
    assert float(width[predicted > 0.65].mean()) > 1.4 * float(width[predicted < 0.35].mean())


def test_intervals_cover_four_in_five_where_many_reach_the_end() -> None:
    """A quarter of the networks learn all there is; a skill of 1 lies within what ends there."""
    predicted, truth = noisy(4000, 0, top=1.3)
    predicted = predicted.clamp(max=1.0)
    assert 0.2 < float((truth == 1).float().mean()) < 0.3
    fitted = Intervals.fit(predicted, at_all_knots(4000), truth, torch.ones(4000))
    predicted, truth = noisy(4000, 1, top=1.3)
    low, high = ends_of(fitted, predicted.clamp(max=1.0))
    covered = ((low <= truth) & (truth <= high)).float()
    assert 0.77 < float(covered.mean()) < 0.84


def test_rows_count_for_the_intervals_as_they_weigh() -> None:
    """Half of the rows are three times as far off as the others, and count for nothing, or alone."""
    wide = torch.arange(2000) % 2 == 0
    off = (uniform(2000) - 0.5) * torch.where(wide, 0.6, 0.2)
    predicted, rows = torch.full((2000,), 0.5), everything(2000)
    widths = []
    for weights in ((~wide).float(), wide.float()):
        fitted = Intervals.fit(predicted, rows, predicted + off, weights)
        low, high = fitted(predicted, rows, torch.ones(2000), torch.ones(2000))
        widths.append(float((high - low)[0]))
    assert widths == pytest.approx([0.8 * 0.2, 0.8 * 0.6], rel=0.06)


@pytest.mark.parametrize("familiarity", [0.0, 0.3, 1.0])
def test_intervals_contain_the_prediction_and_stay_in_range(intervals: Intervals, familiarity: float) -> None:
    predicted = torch.linspace(0, 1, 101)
    low, high = ends_of(intervals, predicted, familiarity)
    assert ((low >= 0) & (low <= predicted) & (predicted <= high) & (high <= 1)).all()


def test_intervals_widen_as_familiarity_falls(intervals: Intervals) -> None:
    """Down to the widest, from which one in 25 networks of the bank would be left out."""
    predicted = torch.linspace(0.2, 0.8, 61)
    ends = [ends_of(intervals, predicted, f) for f in (1.0, 0.5, 0.4, 0.1, 0.0)]
    for (low, high), (lower, higher) in itertools.pairwise(ends):
        assert ((lower <= low + 1e-6) & (high <= higher + 1e-6)).all()
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)  # wide enough from one half on
    assert (ends[-1][0] <= intervals.spread[0]).all() and (intervals.spread[1] <= ends[-1][1]).all()
    truth = noisy(4000, 0)[1]
    outside = (truth < intervals.spread[0]) | (truth > intervals.spread[1])
    assert float(outside.float().mean()) == pytest.approx(UNFAMILIAR, abs=1e-3)


def test_what_lies_beyond_gives_way_to_the_widest_by_its_share(intervals: Intervals) -> None:
    """Half of the share, half of the way; as familiarity does from one half down."""
    predicted = torch.linspace(0.2, 0.8, 61)
    near, half, far = (torch.stack(ends_of(intervals, predicted, share=s)) for s in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (near + far) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(ends_of(intervals, predicted, familiarity=0.25)), half, rtol=0, atol=1e-6)


def test_each_state_of_knowledge_has_intervals_of_its_own() -> None:
    """The more is known the nearer; what was never seen has the interval of ignorance."""
    predicted, off = torch.full((600,), 0.5), uniform(600) - 0.5
    known, less = everything(600), limited(everything(600), rung=1, skill=False)
    skill = torch.cat([predicted + 0.2 * off, predicted + 0.8 * off])
    fitted = Intervals.fit(predicted.repeat(2), Rows.joined([known, less]), skill, torch.ones(1200))
    one = torch.ones(1)

    def width(rows: Rows) -> float:
        low, high = fitted(torch.tensor([0.5]), rows, one, one)
        return float(high - low)

    assert width(everything()) == pytest.approx(0.8 * 0.2, rel=0.1)
    assert width(limited(everything(), rung=1, skill=False)) == pytest.approx(0.8 * 0.8, rel=0.1)
    never = limited(everything(), part="none")
    assert int(state(never)) not in state(Rows.joined([known, less])).tolist()
    assert width(never) == pytest.approx(float(fitted.spread.diff()), abs=1e-4)


def test_intervals_of_a_few_rows_are_finite() -> None:
    fitted = Intervals.fit(torch.tensor([0.1, 0.9]), everything(2), torch.tensor([0.0, 1.0]), torch.ones(2))
    assert fitted.quantiles.shape == (STATES, len(KNOTS), BINS, 2)
    assert fitted.quantiles.isfinite().all()


def test_predictions_that_are_always_right_need_no_interval() -> None:
    predicted = uniform(300)
    low, high = ends_of(Intervals.fit(predicted, at_all_knots(300), predicted, torch.ones(300)), predicted)
    torch.testing.assert_close(low, predicted, rtol=0, atol=1e-6)
    torch.testing.assert_close(high, predicted, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ what the spectrum is worth


TRUTH = torch.tensor([0.0, 0.3, 0.6, 0.9])
"""Skills of the networks of each group, all clear apart: six pairs."""
RIGHT = {"all": [1.0, 2.0, 3.0, 4.0], "half": [1.0, 1.0, 1.0, 1.0], "five": [2.0, 1.0, 3.0, 4.0], "none": [4, 3, 2, 1]}
"""Scores that put so many of the six pairs in the right order."""


def compared(with_it: list[str], without: list[str], rows: Rows | None = None) -> Worth:
    """Of a family for each, one group of four networks in it."""
    count = 4 * len(with_it)
    said, alone = (
        torch.tensor([RIGHT[name] for name in names], dtype=torch.float32).flatten().unsqueeze(1).repeat(1, RANKED)
        for names in (with_it, without)
    )
    wanted, family = TRUTH.repeat(len(with_it)).unsqueeze(1).repeat(1, RANKED), torch.arange(count) // 4
    wanted[:, 1:] = (wanted[:, 1:] > 0.5).float()
    return Worth.fit(said, alone, everything(count) if rows is None else rows, wanted, family, family)


def test_worth_worked_by_hand() -> None:
    """Skills: 6/6 - 3/6, 5/6 - 3/6 and 3/6 - 3/6; bits, whose four pairs "five" has all in order: 1/2, 1/2 and 0."""
    worth = compared(["all", "five", "half"], ["half"] * 3)
    place = (1, len(RUNGS) - 1, KNOTS.index(40.0))
    gains = [[1 / 2, 1 / 3, 0.0], [1 / 2, 1 / 2, 0.0], [1 / 2, 1 / 2, 0.0]]
    assert worth.gain[place].tolist() == pytest.approx([np.mean(gain) for gain in gains])
    assert worth.error[place].tolist() == pytest.approx([np.std(gain, ddof=1) / math.sqrt(3) for gain in gains])
    known = ~worth.gain.isnan()
    assert int(known.sum()) == RANKED and known[place].all()  # of no other state, at no other time


def test_the_spectrum_speaks_where_it_adds_more_than_twice_its_error() -> None:
    rows = everything(2)
    assert compared(["all"] * 4, ["half"] * 4).speaks(rows).all()  # no error at all
    assert not compared(["half"] * 4, ["half"] * 4).speaks(rows).any()
    assert not compared(["none"] * 4, ["half"] * 4).speaks(rows).any()
    mostly = compared(["all", "all", "half", "half"], ["half"] * 4)  # 1/4 ± 0.144
    assert not mostly.speaks(rows).any()
    some = compared(["all", "all", "all", "five"], ["half"] * 4).speaks(rows)  # 0.458 ± 0.042
    assert some.all()


def test_where_it_was_never_compared_it_does_not_speak() -> None:
    worth = compared(["all"] * 4, ["half"] * 4)
    others = [everything(updates=800), everything(skill=None), limited(everything(), rung=1)]
    assert not any(worth.speaks(rows).any() for rows in others)
    assert worth.speaks(everything(updates=50)).all()  # the nearest knot
    assert not Worth.unknown().speaks(mixed(9)).any()


@pytest.mark.parametrize("families", [1, 2])
def test_two_families_are_too_few_to_tell(families: int) -> None:
    assert compared(["all"] * families, ["half"] * families).gain.isnan().all()


def test_families_whose_networks_all_end_alike_do_not_count() -> None:
    said = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(4).unsqueeze(1).repeat(1, RANKED)
    wanted, family = TRUTH.repeat(4).unsqueeze(1).repeat(1, RANKED), torch.arange(16) // 4
    wanted[:4] = 0.5
    worth = Worth.fit(said, 0 * said, everything(16), wanted, family, family)
    assert worth.gain[1, -1, KNOTS.index(40.0)].tolist() == pytest.approx([0.5] * RANKED)
    wanted[4:8] = NAN
    assert Worth.fit(said, 0 * said, everything(16), wanted, family, family).gain.isnan().all()


# ------------------------------------------------------------------ familiarity


@pytest.fixture(scope="module")
def familiarity() -> Familiarity:
    return Familiarity.fit(mixed(600), torch.Generator().manual_seed(0))


def known(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


def test_most_of_the_like_are_familiar_and_none_of_the_far(familiarity: Familiarity) -> None:
    rows = mixed(200, seed=1)
    found = familiarity(rows, known(200))
    assert ((found >= 0) & (found <= 1)).all()
    assert float(found.mean()) > 0.9 and float((found == 1).float().mean()) > 0.8
    far = Rows(rows.spectrum + 40.0, rows.context)
    assert (familiarity(far, known(200)) == 0).all()


def test_familiarity_is_the_share_that_is_as_isolated(familiarity: Familiarity) -> None:
    """Of 600: the k-th most isolated has k / 600 at least as isolated, and a tenth of all is enough."""
    there = (mixed(300, seed=1).spectrum - familiarity.centre) @ familiarity.components
    distance = torch.cdist(there, familiarity.reference).sort(1).values[:, :5].mean(1)
    expected = ((familiarity.distances >= distance.unsqueeze(1)).float().mean(1) / 0.1).clamp(max=1.0)
    assert int((expected < 1).sum()) > 5
    torch.testing.assert_close(familiarity(mixed(300, seed=1), known(300)), expected, rtol=0, atol=0.02)


def test_an_unknown_kind_of_cell_is_a_quarter_as_familiar(familiarity: Familiarity) -> None:
    rows = mixed(50, seed=1)
    torch.testing.assert_close(familiarity(rows, ~known(50)), familiarity(rows, known(50)) / 4)
    assert float(familiarity(rows, ~known(50)).max()) == 0.25


def test_what_a_partial_spectrum_does_not_say_is_taken_to_be_ordinary(familiarity: Familiarity) -> None:
    partial, filled = mixed(20, seed=1), mixed(20, seed=1)
    partial.spectrum[:, 10:] = NAN
    filled.spectrum[:, 10:] = familiarity.centre[10:]
    torch.testing.assert_close(familiarity(partial, known(20)), familiarity(filled, known(20)))


def test_without_any_spectrum_nothing_is_familiar(familiarity: Familiarity) -> None:
    assert familiarity(Rows.unknown(3), known(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_few_spectra_are_enough_to_be_known_again(count: int) -> None:
    rows = mixed(count)
    fitted = Familiarity.fit(rows, torch.Generator().manual_seed(0))
    assert (fitted(rows, known(count)) == 1).all()


def test_the_reference_is_no_larger_than_asked_and_whole() -> None:
    rows = mixed(50)
    rows.spectrum[:20, 30] = NAN
    fitted = Familiarity.fit(rows, torch.Generator().manual_seed(0), most=25)
    assert fitted.reference.shape[0] == 25 and fitted.reference.isfinite().all()
    assert (fitted.distances.diff() >= 0).all()


def test_familiarity_grows_with_rows_that_join() -> None:
    """Five networks far from the bank make a sixth like them ordinary; the others stay as familiar as they were."""
    generator = torch.Generator().manual_seed(0)
    bank, far = flat(300), flat(6)
    bank.spectrum[:] = torch.randn(300, LEVELS + 1, generator=generator)
    far.spectrum[:] = 30 + 0.1 * torch.randn(6, LEVELS + 1, generator=generator)
    alone = Familiarity.fit(bank, torch.Generator().manual_seed(0))
    joined = alone.joined_by(far[torch.arange(5)])
    assert (alone(far, known(6)) == 0).all()
    assert float(joined(far, known(6))[5]) == 1.0
    ordinary = bank[torch.arange(6)]
    assert torch.equal(joined(ordinary, known(6)), alone(ordinary, known(6)))


def test_parts_are_written_and_read_under_their_name(familiarity: Familiarity, intervals: Intervals) -> None:
    for part, names in (
        (familiarity, ("centre", "components", "reference", "distances")),
        (intervals, ("quantiles", "spread")),
        (compared(["all"] * 3, ["half"] * 3), ("gain", "error")),
    ):
        written = part.tensors("here")
        assert set(written) == {f"here.{key}" for key in names}
        for key, value in type(part).of("here", written).tensors("here").items():
            torch.testing.assert_close(value, written[key], rtol=0, atol=0, equal_nan=True)
