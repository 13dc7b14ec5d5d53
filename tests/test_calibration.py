"""Shares, gate, intervals and familiarity: what was put in, rankings that must hold, and values worked by hand."""

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.calibration import (
    BINS,
    KNOTS,
    PARTS,
    TRUSTS,
    Familiarity,
    Gate,
    Intervals,
    Shares,
    _logistic,
    _ranks,
    knowledge,
)
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows, context

NAN = math.nan
SURE = torch.ones(1)


def rows_of(
    count: int, *, skill: Tensor | None = None, updates: int | None = 40, kind: str | None = "gru", size: int = 32
) -> Rows:
    """Rows with flat spectra that know so much."""
    made = context(kind, size, updates).repeat(count, 1)
    if skill is not None:
        made[:, CONTEXT.index("skill")] = skill
    return Rows(torch.zeros(count, LEVELS + 1), made)


def uniform(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def gate_of(trust: float, offset: float = -1.0, slope: float = 3.0) -> Gate:
    return Gate(*(torch.full((len(KNOTS),), value) for value in (trust, offset, slope)))


# ------------------------------------------------------------------ shares

STATES = ("no spectrum", "a part of it", "all of it", "no spectrum, skill", "a part of it, skill", "all of it, skill")


def rows_in(state: int, count: int, updates: int = 40) -> Rows:
    """Rows of which so much is known."""
    rows = rows_of(count, updates=updates, skill=torch.full((count,), 0.3) if state >= 3 else None)
    rows.spectrum[:, (0, 5, LEVELS + 1)[state % 3] :] = NAN
    return rows


def together(*parts: Rows) -> Rows:
    return Rows(torch.cat([part.spectrum for part in parts]), torch.cat([part.context for part in parts]))


def everywhere(count: int) -> Rows:
    """So many rows in every state at every knot, in this order."""
    return together(*(rows_in(state, count, int(knot)) for state in range(6) for knot in KNOTS))


@pytest.mark.parametrize("state", range(6), ids=STATES)
def test_each_state_of_knowledge_has_a_share_of_its_own(state: int) -> None:
    assert Shares.state(rows_in(state, 2)).tolist() == [state] * 2
    table = torch.arange(6.0).view(6, 1, 1).expand(6, len(KNOTS), 2) / 10
    torch.testing.assert_close(Shares(table)(rows_in(state, 3)), torch.full((3, 2), state / 10))


def test_neither_the_mean_nor_the_kind_nor_the_size_is_needed_for_a_state() -> None:
    rows = rows_in(2, 1)
    rows.spectrum[:, LEVELS] = NAN
    rows.context[:] = NAN
    assert Shares.state(rows).tolist() == [2]


def test_shares_go_to_whoever_is_exact() -> None:
    """Of the first head the models say what is wanted and the ridge noise; of the second, the other way round."""
    rows = everywhere(6)
    wanted, wrong = (noise(len(rows), 2, seed=seed).float() for seed in (0, 1))
    models_are_right = torch.tensor([True, False])
    by_model, by_ridge = (torch.where(right, wanted, wrong) for right in (models_are_right, ~models_are_right))
    fitted = Shares.fit(by_model, by_ridge, rows, wanted, torch.ones(len(rows)))
    assert torch.equal(fitted.table, torch.tensor([1.0, 0.0]).expand(6, len(KNOTS), 2))
    assert torch.equal(fitted(rows), torch.tensor([1.0, 0.0]).expand(len(rows), 2))


def test_shares_are_found_for_each_head_state_and_knot_alone() -> None:
    """Models and ridge err to opposite sides, so that one share of those tried, drawn for each, leaves no error."""
    drawn = torch.randint(len(PARTS), (6, len(KNOTS), 4), generator=torch.Generator().manual_seed(0))
    put_in = torch.tensor(PARTS)[drawn]
    rows, each = everywhere(6), put_in.flatten(0, 1).repeat_interleave(6, 0)
    wanted = noise(len(rows), 4).float()
    fitted = Shares.fit(wanted + 0.3 * (1 - each), wanted - 0.3 * each, rows, wanted, torch.ones(len(rows)))
    assert torch.equal(fitted.table, put_in)
    torch.testing.assert_close(fitted(rows), each)


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75), (1 / 3, 0.25), (0.0, 0.0)])
def test_rows_count_for_the_shares_as_they_weigh(weight: float, share: float) -> None:
    """The models are right of one half, the ridge of the other: w (1 - p)² + p² is least at p = w / (w + 1)."""
    right = torch.arange(20).remainder(2).unsqueeze(1) == 0
    weights = torch.where(right[:, 0], weight, 1.0)
    wanted = torch.zeros(20, 1)
    by_model, by_ridge = (torch.where(where, 0.0, 0.5) for where in (right, ~right))
    fitted = Shares.fit(by_model, by_ridge, rows_in(2, 20), wanted, weights)
    assert fitted.table[2].flatten().tolist() == [share] * len(KNOTS)


def test_a_knot_of_fewer_than_five_rows_is_that_of_its_state() -> None:
    """Models right of 20 rows at one, the ridge of 4 at another: 20 (1 - p)² + 4 p² is least at 5/6, nearest 3/4."""
    rows = together(rows_in(2, 20, 40), rows_in(2, 4, 160))
    right = torch.arange(24).unsqueeze(1) < 20
    by_model, by_ridge = (torch.where(where, 0.0, 0.5) for where in (right, ~right))
    fitted = Shares.fit(by_model, by_ridge, rows, torch.zeros(24, 1), torch.ones(24))
    assert fitted.table[2].flatten().tolist() == [0.75, 0.75, 1.0, 0.75, 0.75]


def test_states_without_rows_are_shared_evenly() -> None:
    wanted = noise(20, 3).float()
    fitted = Shares.fit(wanted, wanted + 1, rows_in(4, 20), wanted, torch.ones(20))
    assert (fitted.table[4] == 1).all()
    assert (fitted.table[[0, 1, 2, 3, 5]] == 0.5).all()
    assert torch.equal(Shares.equal(3).table, torch.full((6, len(KNOTS), 3), 0.5))


def test_noise_does_not_decide_between_models_and_ridge() -> None:
    """Whose errors differ in the fifth decimal: the ridge alone, as the first of those tried."""
    wanted = uniform(30, 0).unsqueeze(1)
    by_model, by_ridge = wanted + 0.003, wanted + 0.004
    fitted = Shares.fit(by_model, by_ridge, rows_in(2, 30), wanted, torch.ones(30))
    assert (fitted.table[2] == 0).all()


@pytest.mark.parametrize("unanswered", ["a few", "nearly all", "a knot", "all"])
def test_answers_that_are_not_known_do_not_count_for_the_shares(unanswered: str) -> None:
    """Of one head, the other being told all: its shares are what they are without those rows."""
    count = 400
    rows = together(rows_in(2, count // 2, 40), rows_in(2, count // 2, 160))
    index = torch.arange(count)
    hidden = {
        "a few": index % 10 == 0, "nearly all": index % 40 != 0, "a knot": index >= count // 2, "all": index >= 0
    }[unanswered]  # fmt: skip
    wanted = uniform(count, 0).unsqueeze(1).repeat(1, 2)
    by_model = torch.where(hidden.unsqueeze(1), wanted - 0.4, wanted + 0.01)  # at its worst where nobody knows
    by_ridge = torch.where(hidden.unsqueeze(1), wanted, wanted + 0.05)
    told = torch.stack([wanted[:, 0], torch.where(hidden, NAN, wanted[:, 1])], 1)
    fitted = Shares.fit(by_model, by_ridge, rows, told, torch.ones(count))
    both = Shares.fit(by_model, by_ridge, rows, wanted, torch.ones(count))
    assert torch.equal(fitted.table[..., 0], both.table[..., 0])
    seen = ~hidden
    alone = Shares.fit(by_model[seen], by_ridge[seen], rows[seen], told[seen], torch.ones(int(seen.sum())))
    assert torch.equal(fitted.table[..., 1], alone.table[..., 1])


def test_shares_are_interpolated_between_knots_on_a_logarithmic_scale() -> None:
    """Half way between the logarithms of 1 + updates / 10 lies the mean of two knots; each head has its own."""
    by_knot = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.75])
    table = torch.zeros(6, len(KNOTS), 2)
    table[2] = torch.stack([by_knot, 1 - by_knot], 1)

    def at(updates: float | None) -> float:
        rows = rows_in(2, 1)
        rows.context[:, CONTEXT.index("log_updates")] = NAN if updates is None else math.log1p(updates / 10)
        first, second = Shares(table)(rows)[0].tolist()
        assert second == pytest.approx(1 - first)
        return first

    assert [at(knot) for knot in KNOTS] == pytest.approx(by_knot.tolist(), abs=1e-5)
    halves = [10 * (math.sqrt((1 + a / 10) * (1 + b / 10)) - 1) for a, b in itertools.pairwise(KNOTS)]
    assert [at(u) for u in halves] == pytest.approx([0.5, 0.75, 0.375, 0.5], abs=1e-5)
    assert at(100_000) == pytest.approx(0.75)  # the last knot
    assert at(None) == pytest.approx(0.5)  # one epoch


def test_shares_are_written_and_read_under_their_name() -> None:
    table = uniform(6 * len(KNOTS) * 4, 0).view(6, len(KNOTS), 4)
    written = Shares(table).tensors("here")
    assert set(written) == {"here.table"}
    assert torch.equal(Shares.of("here", written).table, table)


# ------------------------------------------------------------------ gate


@pytest.mark.parametrize("trust", [k for k in TRUSTS if k <= 0.25])
@pytest.mark.parametrize("predicted", [0.0, 0.5, 1.0])
def test_gate_grows_with_the_skill_so_far(trust: float, predicted: float) -> None:
    """While 4 κ p (1 − s)³ <= 1, which holds for every s and p where κ <= 1/4."""
    so_far = torch.linspace(0, 1, 101)
    said = gate_of(trust)(torch.full((101,), predicted), rows_of(101, skill=so_far))
    assert (said.diff() > 0).all()


@pytest.mark.parametrize("trust", TRUSTS)
def test_gate_never_falls_with_the_prediction(trust: float) -> None:
    for so_far in (0.0, 0.3, 0.9):
        said = gate_of(trust)(torch.linspace(0, 1, 51), rows_of(51, skill=torch.full((51,), so_far)))
        assert (said.diff() >= 0).all()
        assert (said[-1] > said[0]) == (trust > 0) or so_far == 0.9  # where it may be lost in rounding


def test_gate_without_trust_ranks_exactly_by_the_skill_so_far() -> None:
    so_far, predicted = uniform(200, 0), uniform(200, 1)
    said = gate_of(0.0)(predicted, rows_of(200, skill=so_far))
    assert torch.equal(said.argsort(), so_far.argsort())


def test_gate_is_the_formula_of_the_docstring() -> None:
    said = gate_of(0.4, offset=-1.0, slope=3.0)(torch.tensor([0.5]), rows_of(1, skill=torch.tensor([0.2])))
    assert float(said) == pytest.approx(1 / (1 + math.exp(1 - 3 * (0.2 + 0.4 * 0.8**2 * 0.5))))


def test_gate_that_was_not_fitted_returns_the_prediction() -> None:
    predicted, so_far = uniform(50, 0), uniform(50, 1)
    groups = torch.zeros(50, dtype=torch.long)
    for known in (rows_of(50), rows_of(50, skill=torch.cat([so_far[:4], torch.full((46,), NAN)]))):
        gate = Gate.fit(predicted, known, so_far, groups, torch.ones(50))
        assert torch.equal(gate(predicted, rows_of(50, skill=so_far)), predicted)


def test_gate_returns_the_prediction_where_the_skill_so_far_is_not_known() -> None:
    predicted = uniform(3, 0)
    so_far = torch.tensor([0.5, NAN, 0.0])
    said = gate_of(0.2)(predicted, rows_of(3, skill=so_far))
    assert (said == predicted).tolist() == [False, True, False]


def at_all_knots(predicted: Tensor, so_far: Tensor) -> Rows:
    parts = [rows_of(1, updates=int(knot)) for knot in KNOTS]
    made = torch.cat([part.context for part in parts]).repeat(math.ceil(len(predicted) / len(KNOTS)), 1)
    made = made[: len(predicted)].clone()
    made[:, CONTEXT.index("skill")] = so_far
    return Rows(torch.zeros(len(predicted), LEVELS + 1), made)


def test_fitted_gate_ignores_a_prediction_that_misleads() -> None:
    so_far = uniform(600, 0)
    rows = at_all_knots(1 - so_far, so_far)
    groups = torch.arange(600) // 5 % 3
    gate = Gate.fit(1 - so_far, rows, so_far**2, groups, torch.ones(600))
    assert gate.trust.tolist() == [0.0] * len(KNOTS)
    assert spearmanr(gate(1 - so_far, rows)[::5], so_far[::5]).statistic == pytest.approx(1.0)


def test_fitted_gate_trusts_the_prediction_where_nobody_has_learnt_yet() -> None:
    """All sit at zero: any weight of the prediction ranks them, and the least is taken."""
    predicted = uniform(600, 0)
    rows = at_all_knots(predicted, torch.zeros(600))
    gate = Gate.fit(predicted, rows, predicted, torch.arange(600) // 5 % 3, torch.ones(600))
    assert gate.trust.tolist() == pytest.approx([TRUSTS[1]] * len(KNOTS))
    assert spearmanr(gate(predicted, rows)[::5], predicted[::5]).statistic == pytest.approx(1.0)


def test_fitted_gate_finds_the_level_that_was_put_in() -> None:
    so_far = uniform(1500, 0)
    truth = torch.sigmoid(-2 + 5 * so_far)
    rows = at_all_knots(so_far, so_far)
    gate = Gate.fit(torch.zeros(1500), rows, truth, torch.zeros(1500, dtype=torch.long), torch.ones(1500))
    torch.testing.assert_close(gate(torch.zeros(1500), rows), truth, rtol=0, atol=0.02)
    assert (gate.slope > 0).all()


def test_networks_are_only_ranked_within_their_group() -> None:
    """Within a task the prediction says the opposite of the truth; between tasks it says it all."""
    group = torch.arange(600) // 5 % 2
    within = uniform(600, 0)
    predicted, skill = 0.5 * group + 0.1 * (1 - within), 0.5 * group + 0.1 * within
    gate = Gate.fit(predicted, at_all_knots(predicted, torch.zeros(600)), skill, group, torch.ones(600))
    assert gate.trust.tolist() == [0.0] * len(KNOTS)


def test_calibration_is_interpolated_between_knots_on_a_logarithmic_scale() -> None:
    offset = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    gate = Gate(torch.zeros(5), offset, torch.ones(5))

    def at(updates: float | None) -> float:
        rows = rows_of(1, skill=torch.zeros(1))
        rows.context[:, CONTEXT.index("log_updates")] = NAN if updates is None else math.log1p(updates / 10)
        return float(torch.logit(gate(torch.zeros(1), rows)))

    assert [at(knot) for knot in KNOTS] == pytest.approx(offset.tolist(), abs=1e-4)
    halves = [10 * (math.sqrt((1 + a / 10) * (1 + b / 10)) - 1) for a, b in itertools.pairwise(KNOTS)]
    assert [at(u) for u in halves] == pytest.approx([0.5, 0.0, 0.5, 1.25], abs=1e-4)
    assert at(100_000) == pytest.approx(0.5, abs=1e-4)  # the last knot
    assert at(None) == pytest.approx(-1.0, abs=1e-4)  # one epoch


def test_logistic_solves_its_equations_and_never_turns_the_order_round() -> None:
    x = uniform(400, 0)
    a, b = _logistic(x, torch.sigmoid(1 - 0 * x), torch.ones(400))
    assert (a, b) == (pytest.approx(1 - 0.1 * float(x.mean()), abs=0.1), pytest.approx(0.1))
    assert _logistic(x, 1 - x, torch.ones(400))[1] == pytest.approx(0.1)


def test_ranks_average_ties() -> None:
    assert _ranks(torch.tensor([3.0, 1.0, 3.0, 2.0, 1.0])).tolist() == [4.5, 1.5, 4.5, 3.0, 1.5]


# ------------------------------------------------------------------ intervals


def noisy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictions, and truths that differ from them by noise that grows with the prediction."""
    predicted = 0.25 + 0.5 * uniform(count, seed)
    return predicted, predicted + (uniform(count, seed + 100) - 0.5) * 0.6 * predicted


@pytest.fixture(scope="module")
def intervals() -> Intervals:
    predicted, truth = noisy(6000, 0)
    return Intervals.fit(predicted, at_all_knots(predicted, predicted), truth)


def test_intervals_cover_four_in_five_of_fresh_truths(intervals: Intervals) -> None:
    predicted, truth = noisy(6000, 1)
    low, high = intervals(predicted, at_all_knots(predicted, predicted), torch.ones(6000))
    covered = (low <= truth) & (truth <= high)
    assert 0.75 < float(covered.float().mean()) < 0.85
    for some in (predicted < 0.4, predicted > 0.6):  # although their noise is twice as large
        assert 0.72 < float(covered[some].float().mean()) < 0.88
    width = high - low
    assert float(width[predicted > 0.65].mean()) > 1.4 * float(width[predicted < 0.35].mean())


@pytest.mark.parametrize("familiarity", [0.0, 0.3, 1.0])
def test_intervals_contain_the_prediction_and_stay_in_range(intervals: Intervals, familiarity: float) -> None:
    predicted = torch.linspace(0, 1, 101)
    low, high = intervals(predicted, rows_of(101, skill=predicted), torch.full((101,), familiarity))
    assert ((low >= 0) & (low <= predicted) & (predicted <= high) & (high <= 1)).all()


def test_intervals_widen_as_familiarity_falls(intervals: Intervals) -> None:
    predicted = torch.linspace(0.2, 0.8, 61)
    ends = [intervals(predicted, rows_of(61, skill=predicted), torch.full((61,), f)) for f in (1.0, 0.5, 0.4, 0.1, 0.0)]
    for (low, high), (lower, higher) in itertools.pairwise(ends):
        assert ((lower <= low) & (high <= higher)).all()
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)  # wide enough from one half on
    assert float((ends[-1][1] - ends[-1][0]).mean()) > float((ends[0][1] - ends[0][0]).mean()) + 0.05
    assert (ends[-1][0] <= intervals.spread[0]).all() and (intervals.spread[1] <= ends[-1][1]).all()


def test_a_state_of_knowledge_never_seen_gets_the_interval_of_ignorance(intervals: Intervals) -> None:
    """Nothing was fitted on partial spectra: the spread of the truths, wherever the prediction lies among them."""
    rows = rows_of(1)
    rows.spectrum[:, 5:] = NAN
    assert int(knowledge(rows)) == 4
    low, high = intervals(torch.tensor([0.5]), rows, SURE)
    known_low, known_high = intervals(torch.tensor([0.5]), rows_of(1, skill=torch.tensor([0.5])), SURE)
    assert float(high - low) > float(known_high - known_low)
    assert float(high - low) == pytest.approx(float(intervals.spread.diff()), abs=1e-5)


def test_intervals_of_a_few_rows_are_finite() -> None:
    fitted = Intervals.fit(torch.tensor([0.1, 0.9]), rows_of(2), torch.tensor([0.0, 1.0]))
    assert fitted.quantiles.shape == (8, len(KNOTS), BINS, 2)
    assert fitted.quantiles.isfinite().all()


def test_knowledge_counts_skill_spectrum_and_kind_as_bits() -> None:
    rows = Rows(torch.zeros(9, LEVELS + 1), torch.zeros(9, len(CONTEXT)))
    for code in range(8):
        if not code & 1:
            rows.context[code, CONTEXT.index("skill")] = NAN
        if not code & 2:
            rows.spectrum[code, LEVELS - 1] = NAN
        if not code & 4:
            rows.context[code, :3] = NAN
    rows.spectrum[8, LEVELS] = NAN  # the mean is not needed
    assert knowledge(rows).tolist() == [*range(8), 7]


# ------------------------------------------------------------------ familiarity


def bank_like(count: int, seed: int) -> Rows:
    """Lines between random ends, of networks of 16 to 128 units."""
    ends = noise(count, 2, seed=seed).float()
    spectrum = ends[:, :1] + (ends[:, 1:] - 4) * torch.linspace(0, 1, LEVELS + 1)
    made = torch.stack([context("gru", (16, 32, 64, 128)[i % 4], 40) for i in range(count)])
    return Rows(spectrum, made)


@pytest.fixture(scope="module")
def familiarity() -> Familiarity:
    return Familiarity.fit(bank_like(600, 0), torch.Generator().manual_seed(0))


def known(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


def test_most_of_the_like_are_familiar_and_none_of_the_far(familiarity: Familiarity) -> None:
    rows = bank_like(200, 1)
    found = familiarity(rows, known(200))
    assert ((found >= 0) & (found <= 1)).all()
    assert float(found.mean()) > 0.9 and float((found == 1).float().mean()) > 0.8
    far = Rows(rows.spectrum + 40.0, rows.context)
    assert (familiarity(far, known(200)) == 0).all()


def test_an_unknown_kind_of_cell_is_a_quarter_as_familiar(familiarity: Familiarity) -> None:
    rows = bank_like(50, 1)
    torch.testing.assert_close(familiarity(rows, ~known(50)), familiarity(rows, known(50)) / 4)
    assert float(familiarity(rows, ~known(50)).max()) == 0.25


def test_what_a_partial_spectrum_does_not_say_is_taken_to_be_ordinary(familiarity: Familiarity) -> None:
    partial, filled = bank_like(20, 1), bank_like(20, 1)
    partial.spectrum[:, 10:] = NAN
    filled.spectrum[:, 10:] = familiarity.centre[10:]
    torch.testing.assert_close(familiarity(partial, known(20)), familiarity(filled, known(20)))


def test_without_any_spectrum_nothing_is_familiar(familiarity: Familiarity) -> None:
    rows = bank_like(3, 0)
    assert familiarity(Rows(torch.full_like(rows.spectrum, NAN), rows.context), known(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_few_spectra_are_enough_to_be_known_again(count: int) -> None:
    rows = bank_like(count, 0)
    rows.context[:, CONTEXT.index("log_size")] = NAN
    fitted = Familiarity.fit(rows, torch.Generator().manual_seed(0))
    assert (fitted(rows, known(count)) == 1).all()


def test_the_reference_is_no_larger_than_asked_and_whole() -> None:
    rows = bank_like(50, 0)
    rows.spectrum[:20, 30] = NAN
    fitted = Familiarity.fit(rows, torch.Generator().manual_seed(0), most=25)
    assert fitted.reference.shape[0] == 25 and fitted.reference.isfinite().all()
    assert (fitted.distances.diff() >= 0).all()


def test_parts_are_written_and_read_under_their_name(familiarity: Familiarity) -> None:
    written = familiarity.tensors("here")
    assert set(written) == {f"here.{key}" for key in ("centre", "components", "reference", "distances")}
    for key, value in Familiarity.of("here", written).tensors("here").items():
        assert torch.equal(value, written[key])


def test_familiarity_grows_with_rows_that_join() -> None:
    """Five networks far from the bank make a sixth like them ordinary; the others stay as familiar as they were."""
    generator = torch.Generator().manual_seed(0)
    spectra = torch.randn(300, LEVELS + 1, generator=generator)
    bank = Rows(spectra, torch.full((300, len(CONTEXT)), NAN))
    far = Rows(30 + 0.1 * torch.randn(6, LEVELS + 1, generator=generator), torch.full((6, len(CONTEXT)), NAN))
    alone = Familiarity.fit(bank, torch.Generator().manual_seed(0))
    joined = alone.joined_by(far[torch.arange(5)])
    unknown = torch.zeros(6, dtype=torch.bool)
    assert (alone(far, unknown) == 0).all()
    assert float(joined(far, unknown)[5]) == 1.0
    ordinary = bank[torch.arange(6)]
    assert torch.equal(joined(ordinary, unknown), alone(ordinary, unknown))
