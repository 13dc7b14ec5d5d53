"""Each condition holds where its formula does, and not a step beside; the formulas are those of its docstring."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import course, history, layer, measured, of_an_older_version

from lightning_lyapunov.reading.conditions import (
    DEAD,
    comparable,
    distance,
    explodes,
    gain,
    grows_much,
    has_converged,
    has_saturated,
    has_settled,
    is_chaotic,
    is_collapsed,
    is_dead,
    is_forgetting,
    is_predicted_to_fail,
    is_remembering,
    is_stable,
    largest,
    largest_growth,
    noise_between,
    state_of,
)
from lightning_lyapunov.reading.history import History, Measurement

INF, NAN = math.inf, math.nan


# ------------------------------------------------------------------ figures


def test_the_error_is_that_of_the_bar_and_of_older_versions_two_standard_errors() -> None:
    bar = Measurement(0, 0, torch.tensor([0.5]), {}, stderr=torch.tensor([0.125]), error=torch.tensor([0.75]))
    assert largest(bar) == (0.5, 0.75)
    assert largest(Measurement(0, 0, torch.tensor([0.5]), {}, stderr=torch.tensor([0.125]))) == (0.5, 0.25)
    assert largest(Measurement(0, 0, torch.tensor([0.5]), {"max_stderr": 0.125})) == (0.5, 0.25)
    assert math.isnan(largest(Measurement(0, 0, torch.tensor([0.5]), {}))[1])


def test_the_exponent_times_the_steps_stands_in_for_the_gain_of_older_versions_alone() -> None:
    assert gain(of_an_older_version(0.5, 0.125)) == largest_growth(of_an_older_version(0.5, 0.125)) == (32.0, 16.0)
    assert gain(measured(0.5, 0.25, gain=1.0, gain_error=0.5)) == (1.0, 0.5)
    assert all(map(math.isnan, gain(measured(0.5, gain=NAN))))
    assert all(map(math.isnan, gain(of_an_older_version(0.5, length=None))))


# ------------------------------------------------------------------ of one measurement


@pytest.mark.parametrize(
    ("top", "error", "settled", "holds"),
    [
        (0.2, 0.19, True, True),
        (0.2, 0.21, True, False),
        (0.2, 0.01, False, False),  # however large
        (0.2, 0.01, None, False),  # not looked at
        (0.2, NAN, True, False),
        (INF, NAN, True, False),
    ],
)
def test_chaos_is_of_settled_exponents_above_zero_beyond_their_error(
    top: float, error: float, settled: bool | None, holds: bool
) -> None:
    made = measured(top, error, settled=settled)
    assert is_chaotic(made) == holds
    assert has_settled(made) == bool(settled)


@pytest.mark.parametrize(
    ("value", "error", "holds"),
    [
        (7.2, 0.1, {"grows_much", "explodes"}),
        (7.2, 0.3, {"grows_much"}),
        (2.2, 0.1, {"grows_much"}),
        (2.2, 0.3, set()),
        (2.2, NAN, set()),
        (-10.2, 0.1, {"is_forgetting"}),
        (-10.2, 0.3, set()),
        (NAN, NAN, set()),
    ],
)
def test_what_explodes_and_what_is_forgotten_is_judged_by_the_gain(value: float, error: float, holds: set[str]) -> None:
    """Whatever the largest exponent is: these have one that times the steps would say the opposite."""
    made = measured(-0.2 if value > 0 else 0.2, gain=value, gain_error=error)
    assert {judge.__name__ for judge in (grows_much, explodes, is_forgetting) if judge(made)} == holds


@pytest.mark.parametrize(
    ("top", "value", "most_", "holds"),
    [
        (-0.1, -1.0, 0.5, True),
        (-0.1, -4.0, -1.8, True),  # what lasts best still counts, though a typical direction does not
        (-0.1, -4.0, -2.0, False),
        (0.1, 1.0, 2.0, False),  # chaotic
        (0.0, 1.8, 3.0, True),
        (0.0, 2.0, 3.0, False),
    ],
)
def test_remembering_is_judged_by_what_lasts_best(top: float, value: float, most_: float, holds: bool) -> None:
    assert is_remembering(measured(top, gain=value, most=most_)) == holds


@pytest.mark.parametrize(
    ("top", "settled", "most_", "holds"),
    [
        (-0.53, True, 5.0, True),
        (-0.51, True, -99.0, False),
        (-0.53, False, -30.0, False),  # not settled: what grew most is down by less than half a nat a step
        (-0.1, False, -33.0, True),  # 64 steps
        (-0.53, False, NAN, False),
        (-INF, True, -33.0, True),  # gradients get through, so λ₁ is no rate in the long run
        (-INF, True, -30.0, False),
    ],
)
def test_collapse_is_judged_by_the_rate_where_it_has_settled_and_else_by_growth(
    top: float, settled: bool, most_: float, holds: bool
) -> None:
    assert is_collapsed(measured(top, settled=settled, gain=-70.0, most=most_)) == holds


def test_collapse_is_of_the_sequence_too() -> None:
    """Oracle: of sequences of 20 steps e^-20 is left, and of 64 e^-64; where no gain is known λ₁T stands for it."""
    assert not is_collapsed(measured(-1.0, gain=-20.0, length=20)) and is_collapsed(measured(-1.0))
    assert is_collapsed(measured(-1.0, gain=-40.2)) and not is_collapsed(measured(-1.0, gain=-40.0))
    assert is_collapsed(measured(-1.0, gain=NAN, length=64)) and not is_collapsed(measured(-1.0, gain=NAN, length=20))


def test_older_versions_are_judged_as_they_were() -> None:
    """Oracle: the limits of λ₁T ± 2σT, T = 64."""
    assert grows_much(of_an_older_version(0.06)) and not grows_much(of_an_older_version(0.05))  # 3.8, 3.2, less 1.3
    assert not is_chaotic(of_an_older_version(0.06))
    assert is_forgetting(of_an_older_version(-0.18)) and not is_forgetting(of_an_older_version(-0.17))
    assert is_remembering(of_an_older_version(-0.01)) and not is_remembering(of_an_older_version(-0.02))
    assert is_collapsed(of_an_older_version(-0.65)) and not is_collapsed(of_an_older_version(-0.64))  # 40.3 and 39.7
    assert is_stable(of_an_older_version(-0.03)) and not is_stable(of_an_older_version(-0.01))


def test_dead_is_what_has_no_living_direction_or_lets_nothing_through() -> None:
    assert is_dead(measured(-0.1, gain=-INF)) and not is_dead(measured(-0.1, gain=-999.0))
    assert not is_dead(measured(-0.1, gain=-INF, gain_low=-INF, gain_high=-3.0))  # one sequence in ten lives
    assert is_dead(measured(DEAD, gain=NAN)) and not is_dead(measured(DEAD + 1, gain=NAN))  # no growth was measured
    assert is_dead(of_an_older_version(DEAD)) and not is_dead(of_an_older_version(DEAD + 1))


@pytest.mark.parametrize(
    ("value", "word"), [(1.3, "mild growth"), (-0.5, "remembering"), (-5.0, "fading"), (-20.0, "forgetting")]
)
@pytest.mark.parametrize("settled", [True, False])
def test_a_sequence_that_dies_among_many_makes_no_dead_network(value: float, word: str, settled: bool) -> None:
    """λ₁ = −∞, but in a typical sequence gradients get through."""
    made = measured(-INF, gain=value, gain_low=-INF, gain_high=value + 1, settled=settled)
    assert not is_dead(made) and not is_collapsed(made) and not has_settled(made) and not is_stable(made)
    assert state_of([made]) == word and not has_saturated([measured(0.3, step=0), made])


def test_where_most_sequences_die_and_some_live_the_network_forgets() -> None:
    made = measured(-INF, gain=-INF, gain_error=NAN, gain_low=-INF, gain_high=-3.0, most=-3.0, settled=False)
    assert is_forgetting(made) and not is_collapsed(made) and state_of([made]) == "forgetting"


def test_what_is_predicted_to_fail_must_be_familiar() -> None:
    failing = {"failure_probability": 0.9, "familiarity": 0.3}
    assert is_predicted_to_fail(measured(0.0, scores=failing))
    assert not is_predicted_to_fail(measured(0.0, scores=failing | {"familiarity": 0.29}))
    assert not is_predicted_to_fail(measured(0.0, scores=failing | {"failure_probability": 0.89}))
    assert is_predicted_to_fail(measured(0.0, scores={"failure_probability": 0.5, "familiarity": 0.1}), 0.5, 0.1)
    assert not is_predicted_to_fail(measured(0.0))


def test_a_layer_is_judged_as_a_network() -> None:
    made = measured(0.0, layers={"a": layer(0.2, 3.0), "b": layer(-0.3, -20.0, settled=False), "c": layer(-INF)})
    assert grows_much(made.layer("a")) and is_chaotic(made.layer("a"))
    assert is_forgetting(made.layer("b")) and not has_settled(made.layer("b"))
    assert is_dead(made.layer("c"))


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (measured(0.13), "exploding"),
        (measured(0.13, settled=False), "exploding"),
        (measured(0.13, gain=7.0), "may explode"),
        (measured(0.13, gain=6.8), "chaotic"),
        (measured(0.03, 0.01, gain=1.0), "chaotic"),  # mildly
        (measured(0.13, settled=False, gain=7.0), "may explode"),
        (measured(0.13, settled=False, gain=13.0, gain_error=12.0), "may explode"),
        (measured(0.13, settled=False, gain=6.8), "growing"),
        (measured(0.03, 0.04, gain=2.5), "growing"),
        (measured(0.13, 0.02, settled=False, gain=0.8), "mild growth"),
        (measured(-0.15, gain=-11.0), "forgetting"),
        (measured(-0.02, gain=-1.0), "remembering"),
        (measured(-0.02, gain=0.05), "remembering"),  # whether it grows or shrinks is within the error
        (measured(-0.15), "stable"),
        (measured(-0.15, settled=False), "fading"),
        (measured(-1.05), "collapsed"),
        (measured(-INF), "collapsed"),
        (measured(0.01, 0.02, gain=-5.0, gain_error=6.0), "undecided"),
        (measured(-0.15, settled=False, gain=NAN), "undecided"),
        (measured(-0.15, NAN, settled=False, gain=NAN), "unknown"),
        (measured(NAN, NAN, gain=NAN), "unknown"),
        (of_an_older_version(0.13), "exploding"),
        (of_an_older_version(0.1), "may explode"),
        (of_an_older_version(0.08), "growing"),
        (of_an_older_version(-0.15), "stable"),
        (of_an_older_version(0.0, 0.1), "undecided"),
    ],
)
def test_verdict_in_a_word(made: Measurement, word: str) -> None:
    assert state_of([made]) == word
    assert state_of(history(measured(0.0, step=1, gain=0.0), made)) == word


def test_a_short_sequence_is_never_called_chaotic() -> None:
    """The digits: 8 steps, of which 4 count, never settle; λ₁ = +0.20 ± 0.03 over them is a gain of 0.8."""
    digits = measured(0.2, 0.03, settled=False, gain=0.8, most=2.3, length=8)
    assert state_of([digits]) == "mild growth"
    assert state_of([measured(0.3, 0.03, settled=False, gain=2.6, most=4.0, length=8)]) == "growing"


def test_saturation_is_growth_at_first_and_death_at_last() -> None:
    first, dead = measured(0.3, step=0, epoch=0), measured(-INF)
    assert has_saturated(history(first, dead)) and state_of(history(first, measured(0.4, step=9), dead)) == "saturated"
    assert has_saturated(history(measured(0.3, step=0, settled=False), measured(-0.5, gain=-INF)))
    assert not has_saturated(history(measured(-0.3, step=0), dead))
    assert not has_saturated(history(first, measured(-0.3)))
    assert not has_saturated(history(measured(0.3, step=10), dead))  # how it began is not known
    assert state_of([dead]) == "collapsed" and state_of([]) == "unknown"


# ------------------------------------------------------------------ of several


def test_what_other_data_drove_is_not_compared() -> None:
    """Oracle: worked by hand; what has no source is of an older version, all of it alike."""
    sources = ["training", "validation", "", "validation"]
    run = [measured(0.0, step=10 * i, source=source) for i, source in enumerate(sources)]
    assert [m.step for m in comparable(run)] == [10, 30] and comparable([]) == []
    assert [m.step for m in comparable([measured(0.0, step=s) for s in (0, 10)])] == [0, 10]


def test_points_of_two_sources_in_turn_converge_each_with_its_own() -> None:
    """As with check_val_every_n_epoch=2: weights that stand still, seen by validation and by training in turn."""
    run = [measured((-0.14, -0.2)[i % 2], step=10 * i, source=("validation", "training")[i % 2]) for i in range(1, 9)]
    assert not has_converged(run[:6]) and has_converged(run[:7]) and has_converged(run)
    assert not has_converged([replace(m, source="validation") for m in run])


def test_saturation_is_told_whatever_drove_the_first() -> None:
    first, dead = measured(0.3, step=0, epoch=0, source="training"), measured(-INF, source="validation")
    assert has_saturated([first, dead]) and state_of([first, dead]) == "saturated"


def test_a_spectrum_that_agrees_with_its_last_three_has_converged() -> None:
    assert not has_converged(course(-0.1, -0.1, -0.1, -0.1))  # the one before the first update does not count
    assert has_converged(course(-0.1, -0.1, -0.1, -0.1, -0.101))
    assert not has_converged(History())


def test_a_slow_drift_has_not_converged() -> None:
    """Each is within the noise √2 · 0.01 of the next, all three exponents alike, but not of the one three before."""
    drift = [measured(-0.1 - d, step=10 * i + 10, rest=(-0.5 - d,)) for i, d in enumerate((0.0, 0.01, 0.02, 0.03))]
    assert not has_converged(history(*drift))
    assert has_converged(history(*drift), patience=1)


def test_nothing_stands_still_in_coarse_noise() -> None:
    """Oracle: a standard error of 0.08 is a noise of 0.11, above 0.05 and a tenth of exponents of 0.3 on average."""
    small: dict[str, Any] = {"rest": (-0.3, -0.4)}
    assert not has_converged(course(*[-0.1] * 5, error=0.16, **small))
    assert has_converged(course(*[-0.1] * 5, error=0.06, **small))
    assert has_converged(course(*[-3.0] * 5, error=0.16, rest=(-4.0, -5.0)))


def test_spectra_of_different_length_are_compared_where_both_are_finite() -> None:
    a = measured(-0.1, rest=(-1.0, -INF, -INF))
    b = measured(-0.3, step=50, rest=(-1.0, -5.0))
    assert distance(a, b) == pytest.approx(math.sqrt(0.2**2 / 2), rel=1e-5)
    assert noise_between(a, b) == pytest.approx(math.sqrt(2) * 0.01, rel=1e-5)
    assert math.isnan(distance(measured(-INF, rest=()), b))


def test_noise_is_of_standard_errors_and_not_of_the_bar() -> None:
    wide = [measured(-0.1 - d, 0.02, step=10 * i + 10) for i, d in enumerate((0.0, 0.1))]
    for made in wide:
        object.__setattr__(made, "error", torch.full_like(made.exponents, 5.0))
    assert noise_between(*wide) == pytest.approx(math.sqrt(2) * 0.01, rel=1e-5)
