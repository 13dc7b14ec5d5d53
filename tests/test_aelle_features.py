"""What models see of a spectrum, against lines whose quantiles are known and features worked by hand."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from systems import noise
from torch import Tensor

from lightning_lyapunov.aelle.features import (
    ARCHITECTURES,
    CONTEXT,
    FLOOR,
    HAND,
    LEVELS,
    SCALE,
    SMALLEST,
    Context,
    Rows,
    exponents_of,
    hand_features,
    quantiles,
    squash,
)

SHARES = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS


@pytest.fixture
def double() -> Iterator[None]:
    """A user who works in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def unsquashed(values: Tensor) -> Tensor:
    return values.sign() * values.abs().double().expm1() * SCALE


def drawn(dimension: int, seed: int = 0) -> Tensor:
    return noise(dimension, seed=seed).sort(descending=True).values - 0.3


def by_name(features: Tensor) -> dict[str, float]:
    return dict(zip(HAND, features.tolist(), strict=True))


# ------------------------------------------------------------------ squash


def test_squash_is_the_formula_of_the_docstring() -> None:
    exponents = [-200.0, -math.inf, -1.0, 0.0, 0.05, 3.0]
    expected = [-math.log1p(2000), -math.log1p(2000), -math.log1p(20), 0.0, math.log(2), math.log1p(60)]
    assert squash(torch.tensor(exponents)).tolist() == pytest.approx(expected, rel=1e-6)
    assert squash(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("scale", [SCALE, 1.0])
def test_exponents_come_back_from_what_was_squashed(scale: float) -> None:
    exponents = torch.tensor([-90.0, -1.0, -1e-4, 0.0, 0.05, 3.0, math.nan], dtype=torch.float64)
    again = exponents_of(squash(exponents, scale), scale)
    torch.testing.assert_close(again, exponents, rtol=1e-10, atol=0, equal_nan=True)


# ------------------------------------------------------------------ quantiles


@pytest.mark.parametrize("dimension", [LEVELS, 2 * LEVELS, 640, 1000])
def test_quantiles_of_a_line_are_the_line(dimension: int) -> None:
    """λ = 3 − 2p at the middle p of each direction's share of the state, hence at every p in between.

    Positive, so that between two exponents the logarithm bends it little.
    """
    line = 3.0 - 2.0 * (torch.arange(dimension, dtype=torch.float64) + 0.5) / dimension
    seen = quantiles(line)
    torch.testing.assert_close(unsquashed(seen[:-1]), 3.0 - 2.0 * SHARES, rtol=2e-4, atol=0)
    assert seen.shape == (LEVELS + 1,) and seen.dtype == torch.float32
    assert float(unsquashed(seen[-1])) == pytest.approx(2.0, rel=1e-5)


def test_few_directions_are_interpolated_between_and_held_at_both_ends() -> None:
    """D = 2 stands at the shares 1/4 and 3/4: constant outside, a line of squashed values between."""
    top, bottom = squash(torch.tensor([1.0, -2.0], dtype=torch.float64)).tolist()
    expected = [top + (bottom - top) * min(max((p - 0.25) / 0.5, 0.0), 1.0) for p in SHARES.tolist()]
    assert quantiles(torch.tensor([1.0, -2.0]))[:-1].tolist() == pytest.approx(expected, rel=1e-5)
    one = quantiles(torch.tensor([0.5]))
    assert one.tolist() == pytest.approx([math.log(11)] * (LEVELS + 1), rel=1e-6)


@pytest.mark.parametrize(("dimension", "k"), [(64, 32), (64, 2), (16, 9), (96, 50), (128, 127), (40, 40)])
def test_a_partial_spectrum_equals_the_whole_one_as_far_as_it_reaches(dimension: int, k: int) -> None:
    """It reaches a level whose share of the directions it covers: (i + 1/2)/LEVELS <= K/D, worked in fractions."""
    whole = drawn(dimension)
    seen, expected = quantiles(whole[:k], dimension)[:-1], quantiles(whole)[:-1]
    reached = torch.tensor([Fraction(2 * i + 1, 2 * LEVELS) <= Fraction(k, dimension) for i in range(LEVELS)])
    assert seen.isnan().tolist() == (~reached).tolist()
    # From the middle of its last exponent on, that one has to stand for what lies between it and the unknown next.
    between = torch.tensor(
        [Fraction(2 * i + 1, 2 * LEVELS) <= Fraction(2 * k - 1, 2 * dimension) for i in range(LEVELS)]
    )
    torch.testing.assert_close(seen[between], expected[between], rtol=0, atol=0)
    held = seen[reached & ~between]
    torch.testing.assert_close(held, squash(whole[k - 1]).float().expand(len(held)), rtol=1e-6, atol=0)


def test_dead_directions_are_seen_at_the_floor_and_count_so_in_the_mean() -> None:
    seen = quantiles(torch.tensor([0.0, -math.inf]))
    assert float(seen[LEVELS - 1]) == pytest.approx(-math.log1p(-FLOOR / SCALE))
    assert float(unsquashed(seen[-1])) == pytest.approx(FLOOR / 2, rel=1e-5)
    assert seen.isfinite().all()


def test_unknown_exponents_are_left_out_and_leave_the_rest_partial() -> None:
    whole = drawn(64)
    holes = torch.cat([whole[:32], torch.full((32,), math.nan)])
    torch.testing.assert_close(quantiles(holes), quantiles(whole[:32], 64), rtol=0, atol=0, equal_nan=True)
    assert quantiles(holes).isnan()[-1]


@pytest.mark.parametrize("dimension", [5, 64])
def test_order_does_not_matter(dimension: int) -> None:
    whole = drawn(dimension)
    mixed = whole[torch.randperm(dimension, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(quantiles(mixed), quantiles(whole))


def test_the_mean_is_the_one_given_else_computed_else_unknown() -> None:
    whole = drawn(40)
    assert float(quantiles(whole, mean=-1.0)[-1]) == pytest.approx(-math.log1p(20), rel=1e-6)
    assert float(unsquashed(quantiles(whole)[-1])) == pytest.approx(float(whole.mean()), rel=1e-5)
    assert float(quantiles(whole[:3], 40, mean=-1.0)[-1]) == pytest.approx(-math.log1p(20), rel=1e-6)
    assert quantiles(whole[:3], 40)[-1].isnan()


@pytest.mark.parametrize("unit", [1 / math.log(2), 100.0, 1e-3])
def test_a_change_of_unit_changes_nothing_if_the_scale_follows(unit: float) -> None:
    exponents = torch.cat([drawn(30), torch.tensor([-math.inf])])
    torch.testing.assert_close(quantiles(unit * exponents, scale=unit * SCALE), quantiles(exponents))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_input_is_left_as_it_was(dtype: torch.dtype) -> None:
    exponents = torch.tensor([-1.0, 0.5, -math.inf], dtype=dtype, requires_grad=True)
    before = exponents.detach().clone()
    seen = quantiles(exponents)
    assert torch.equal(exponents, before) and not seen.requires_grad and seen.dtype == torch.float32


@pytest.mark.parametrize(
    ("exponents", "dimension"), [(torch.zeros(0), None), (torch.zeros(4), 3), (torch.zeros(2, 3), 8)]
)
def test_a_wrong_shape_is_refused(exponents: Tensor, dimension: int | None) -> None:
    with pytest.raises(ValueError, match=r"exponents must have shape \(K,\), 1 <= K <= \d \(the dimension\); got \("):
        quantiles(exponents, dimension)


def test_exponents_of_which_none_is_known_are_refused() -> None:
    with pytest.raises(ValueError, match="exponents must hold a number; all of them are NaN"):
        quantiles(torch.full((3,), math.nan))


# ------------------------------------------------------------------ context and rows


BY_NAME = {
    "rnn": 0.0, "rnn_relu": 0.0, "gru": 1.0, "lstm": 0.0, "log_size": math.log(4), "log_updates": math.log(10),
    "skill": 0.25, "log_rate": math.log(2), "adaptive": 0.0, "log_gradient": math.log(3),
    "log_state_mean": math.log(0.5), "log_state_spread": math.log(0.25), "log_steps": -math.log(2),
}  # fmt: skip


def test_context_worked_by_hand() -> None:
    known = Context("GRU", 128, 90, 0.25, 6e-3, False, 3.0, 0.5, 0.25, 16).values()
    assert dict(zip(CONTEXT, known.tolist(), strict=True)) == pytest.approx(BY_NAME)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"hidden_size": 32}, {"log_size"}),
        ({"updates": 0}, {"log_updates"}),
        ({"skill": 0.0}, {"skill"}),
        ({"learning_rate": 3e-3}, {"log_rate"}),
        ({"adaptive": False}, {"adaptive"}),
        ({"gradient_norm": 1.0}, {"log_gradient"}),
        ({"state_mean": 1.0}, {"log_state_mean"}),
        ({"state_spread": 1.0}, {"log_state_spread"}),
        ({"steps": 32}, {"log_steps"}),
        ({"architecture": "lstm"}, set(ARCHITECTURES)),
        *(({"architecture": name}, set()) for name in (None, "", "antisymmetric", "gru2")),
    ],
)
def test_what_is_not_told_or_not_known_is_nan(told: dict[str, Any], names: set[str]) -> None:
    """And what is told here counts as 0: each number is seen relative to what is usual."""
    made = dict(zip(CONTEXT, Context(**told).values().tolist(), strict=True))
    assert {name for name, value in made.items() if not math.isnan(value)} == names
    assert all(made[name] == float(name == told.get("architecture")) for name in names)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_kind_of_cell_is_one_of_those_known(kind: str) -> None:
    made = Context(kind).values()[: len(ARCHITECTURES)]
    assert made.tolist() == [float(kind == other) for other in ARCHITECTURES]


@pytest.mark.parametrize(
    ("name", "entry"),
    [("gradient_norm", "log_gradient"), ("state_mean", "log_state_mean"), ("state_spread", "log_state_spread")],
)
def test_dead_numbers_are_the_smallest_and_wild_ones_unknown(name: str, entry: str) -> None:
    column = CONTEXT.index(entry)
    for value in (0.0, SMALLEST / 10):
        assert float(Context(**{name: value}).values()[column]) == pytest.approx(math.log(SMALLEST))
    assert math.isnan(float(Context(**{name: math.inf}).values()[column]))
    assert math.isnan(float(Context(**{name: math.nan}).values()[column]))


def test_what_was_told_is_found_under_the_name_that_models_see() -> None:
    told = Context("gru", 128, 90, 0.25, 6e-3, False, 3.0, 0.5, 0.2, 16)
    names = ("log_size", "log_updates", "log_rate", "log_gradient", "log_state_mean", "log_state_spread", "log_steps")
    assert [told.told(name) for name in names] == [128, 90, 6e-3, 3.0, 0.5, 0.2, 16]
    assert {Context().told(name) for name in names} == {None}


def test_rows_are_selected_and_joined_in_both_their_parts() -> None:
    made = Rows(noise(4, LEVELS + 1).float(), noise(4, len(CONTEXT), seed=1).float())
    few = made[torch.tensor([2, 0])]
    assert (len(made), len(few)) == (4, 2)
    assert torch.equal(few.spectrum, made.spectrum[[2, 0]]) and torch.equal(few.context, made.context[[2, 0]])
    both = Rows.joined([few, made])
    assert torch.equal(both.spectrum, made.spectrum[[2, 0, 0, 1, 2, 3]])
    assert torch.equal(both.context, made.context[[2, 0, 0, 1, 2, 3]])


def test_of_rows_that_are_unknown_nothing_is_known() -> None:
    made = Rows.unknown(3)
    assert made.spectrum.shape == (3, LEVELS + 1) and made.context.shape == (3, len(CONTEXT))
    assert made.spectrum.isnan().all() and made.context.isnan().all()


@pytest.mark.usefixtures("double")
def test_rows_are_float32_whatever_the_default_is() -> None:
    made = Rows(quantiles(drawn(8)).unsqueeze(0), Context("rnn", 8, 1, 0.5).values().unsqueeze(0))
    assert (made.spectrum.dtype, made.context.dtype) == (torch.float32, torch.float32)
    assert hand_features(made.spectrum).dtype == torch.float32


# ------------------------------------------------------------------ features made by hand


def steps(*multiples: float) -> Tensor:
    """A spectrum that takes each of four values, in multiples of the scale, over a quarter of its levels."""
    raw = torch.tensor(multiples, dtype=torch.float64).repeat_interleave(LEVELS // 4)
    return torch.cat([raw.sign() * raw.abs().log1p(), torch.tensor([0.125])]).float()


STEPS = steps(3.0, 0.5, -2.0, -50.0)
BY_HAND = {
    "max": math.log(4), "abs_max": math.log(4), "max_square": math.log(4) ** 2, "mean": 0.125,
    "q05": math.log(4), "q25": math.log(1.5), "q50": -math.log(3), "q75": -math.log(51), "q95": -math.log(51),
    "range": math.log(4) + math.log(51),
    "share_at_zero": 0.25, "share_near_zero": 0.75, "share_unstable": 0.5, "share_slow": 0.75, "share_fast": 0.25,
    "share_dead": 0.0,
    "kaplan_yorke": 0.75,  # 16 · (3 + 0.5 − 2) = 24 is less than the first 50
    "entropy": math.log1p((3.0 + 0.5) / 4),
}  # fmt: skip


def test_hand_features_worked_by_hand() -> None:
    found = by_name(hand_features(STEPS.unsqueeze(0))[0])
    mean = (math.log(4) + math.log(1.5) - math.log(3) - math.log(51)) / 4
    squares = [(v - mean) ** 2 for v in (math.log(4), math.log(1.5), -math.log(3), -math.log(51))]
    spread = math.sqrt(LEVELS / 4 * sum(squares) / (LEVELS - 1))
    assert found == pytest.approx({**BY_HAND, "spread": spread}, rel=1e-5)


@pytest.mark.parametrize(
    ("spectrum", "dimension", "entropy", "dead"),
    [
        (steps(-1.0, -2.0, -3.0, -4.0), 0.0, 0.0, 0.0),
        (steps(4.0, 1.0, -1.0, -2.0), 1.0, math.log1p(1.25), 0.0),
        (steps(2.0, 0.5, -1.0, FLOOR / SCALE), 0.75, math.log1p(0.625), 0.25),
    ],
    ids=["all stable", "never crossing zero", "dead"],
)
def test_dimension_entropy_and_dead_share_of_extreme_spectra(
    spectrum: Tensor, dimension: float, entropy: float, dead: float
) -> None:
    found = by_name(hand_features(spectrum.unsqueeze(0))[0])
    assert (found["kaplan_yorke"], found["share_dead"]) == (dimension, dead)
    assert found["entropy"] == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (0, {"mean"}),
        (32, {"q05", "q25"}),
        (48, {"q05", "q25", "q50", "share_at_zero", "share_unstable", "entropy"}),
        (
            56,
            {"q05", "q25", "q50", "q75", "share_at_zero", "share_near_zero", "share_unstable", "share_slow"}
            | {"share_fast", "kaplan_yorke", "entropy"},
        ),
    ],
)
def test_partial_spectra_tell_what_the_unmeasured_cannot_change(known: int, told: set[str]) -> None:
    """What is not measured lies below the lowest that is: 0.5, −2 and −50 times the scale after 32, 48 and 56."""
    told = told | ({"max", "abs_max", "max_square", "mean"} if known else {"mean"})
    partial = STEPS.clone()
    partial[known:LEVELS] = math.nan
    found = by_name(hand_features(partial.unsqueeze(0))[0])
    assert {name for name, value in found.items() if not math.isnan(value)} == told
    assert {name: found[name] for name in told} == pytest.approx({name: BY_HAND[name] for name in told}, rel=1e-5)
