"""Sentences are judged by constructed histories: each rule holds where its formula does, and not a step beside."""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import course, history, layer, measured, of_an_older_version, rates_of

from lightning_lyapunov.reading import Finding, findings, news, rates, state_of
from lightning_lyapunov.reading.history import History, Measurement


@pytest.fixture(autouse=True)
def rated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every concern was right in nine of ten networks, so all are warnings, whatever the bank says today."""
    monkeypatch.setattr(rates, "shipped", rates_of)


def states(found: Sequence[Finding]) -> set[str]:
    return {finding.state for finding in found}


def of(found: Sequence[Finding], state: str) -> Finding:
    (finding,) = (f for f in found if f.state == state)
    return finding


def now(*args: Any, **options: Any) -> list[Finding]:
    """What is found at one measurement."""
    return findings(history(measured(*args, **options)))


TOP = {
    *("exploding", "may explode", "chaotic", "growing", "mild growth", "undecided", "collapsed", "saturated"),
    *("forgetting", "remembering", "stable", "fading"),
}


# ------------------------------------------------------------------ the state of the network


@pytest.mark.parametrize(
    ("made", "level"),
    [
        (measured(0.13), "warning"),
        (measured(0.03, 0.01, gain=1.9), "note"),
        (measured(0.13, settled=False), "warning"),
        (measured(0.13, settled=False, gain=0.8), "note"),
        (measured(-0.01), "good"),
        (measured(-0.15), "good"),
        (measured(-0.15, settled=False), "good"),
        (measured(-0.2), "warning"),
        (measured(-0.2, step=0, epoch=0), "warning"),
        (measured(-1.05), "warning"),
        (measured(-math.inf), "warning"),
        (measured(0.0, 0.1, gain=0.0, gain_error=5.0), "note"),
        (measured(0.0, settled=False, gain=0.0, gain_error=5.0), "note"),
        (measured(0.0, settled=False, gain=math.nan), "note"),
        (of_an_older_version(0.13), "warning"),
        (of_an_older_version(-0.2), "warning"),
        (of_an_older_version(0.0, 0.1), "note"),
    ],
)
def test_one_thing_is_said_of_the_state_and_it_is_that_of_the_verdict(made: Measurement, level: str) -> None:
    found = findings(history(made))
    state = state_of([made])
    assert states(found) & TOP == {state}
    assert of(found, state).level == level


@pytest.mark.parametrize(
    "made",
    [
        *(measured(top, settled=False) for top in (0.5, 0.13, 0.0, -0.2, -1.5)),
        *(measured(0.5, settled=False, gain=gain) for gain in (3.0, 1.0, 0.0, -4.0, -12.0, math.nan)),
        *(of_an_older_version(top) for top in (0.5, 0.13, 0.0, -0.2, -1.5)),
    ],
)
def test_of_exponents_that_have_not_settled_nobody_speaks_of_chaos(made: Measurement) -> None:
    for run in (history(made), history(measured(0.0, step=0), *[made] * 6)):
        assert not any(re.search("chao|stable", f.text) for f in findings(run) if made.settled is not None)
        assert not any("chao" in f.text for f in findings(run))


def test_chaos_is_told_in_figures_with_since_when_and_what_to_do() -> None:
    """Oracle: e^6.4 = 602, e^7.4 = 1,636; the run of chaos began at the fourth measurement, in the third epoch."""
    text = of(findings(course(-0.1, 0.2, -0.1, 0.05, 0.1)), "chaotic").text
    assert text == (
        "The largest exponent is +0.10 ± 0.02 nats/step and has been above 0 beyond its error since epoch 3: the "
        "network is chaotic, and over your 64 steps a gradient grows 600-fold in a typical sequence (at most "
        "1,600-fold). Lower the recurrent gain or the learning rate, or clip gradients. Of 100 networks told this "
        "before the first update, 10 % learnt their task within 1,000,000,000 updates."
    )
    assert "since before the first update" in of(findings(course(0.1, 0.1)), "chaotic").text


def test_growth_whose_error_is_large_is_not_called_mild() -> None:
    """13 ± 14 nats, and 13 with an error that is not known, of a network whose exponent has settled."""
    for error in (14.0, math.nan, math.inf):
        text = of(now(0.2, gain=13.0, gain_error=error), "chaotic").text
        assert "mild" not in text and text.endswith("How much is not known: more sequences (num_sequences) would tell.")
    assert "That is mild" in of(now(0.03, 0.01, gain=1.0), "chaotic").text
    text = of(now(0.2, gain=13.0, gain_error=12.0), "may explode").text
    assert "440,000-fold" in text and "Lower the recurrent gain" in text


def test_an_explosion_is_told_apart_and_says_whether_it_is_chaos() -> None:
    """Oracle: e^8.32 = 4,105."""
    text = of(now(0.13), "exploding").text
    assert "the network is chaotic, and over your 64 steps a gradient grows 4,100-fold in a typical sequence" in text
    text = of(now(0.13, settled=False), "exploding").text
    assert text.startswith("Over your 64 steps a gradient grows 4,100-fold") and "chaotic" not in text


def test_since_when_an_exponent_was_positive_does_not_ask_when_it_settled() -> None:
    run = [measured(0.1, step=10 * i, epoch=i, settled=i != 1) for i in range(4)]
    assert "above 0 beyond its error since before the first update" in of(findings(history(*run)), "chaotic").text


def test_growth_is_told_where_exponents_have_not_settled() -> None:
    """Oracle: e^0.8 = 2.2, e^2.3 = 10, e^0.5 = 1.6, e^1.1 = 3.0."""
    digits = measured(0.2, 0.03, settled=False, gain=0.8, gain_low=0.5, gain_high=1.1, most=2.3, length=8)
    text = of(findings(history(digits)), "mild growth").text
    assert text == (
        "Over your 8 steps a gradient grows 2.2-fold in a typical sequence (at most 10-fold), and between 1.6-fold and "
        "3.0-fold in eight sequences of ten. That is mild; keep an eye on it, above all with longer sequences."
    )
    text = of(findings(course(0.0, 0.0, 0.1, 0.1, settled=False)), "growing").text
    assert (
        "; it has grown by more than 7.4-fold at every measurement since epoch 2. Lower the recurrent gain or" in text
    )
    text = of(findings(course(0.1, 0.1, settled=False)), "growing").text  # before there was a learning rate
    assert "Lower the recurrent gain, or initialise it orthogonally." in text and "clip" not in text
    assert "No exponent has settled, so" in of(findings(history(digits)), "evidence").text


def test_the_largest_exponent_is_said_not_to_have_settled_while_others_have() -> None:
    some = torch.tensor([False, True, True])
    made = measured(0.2, 0.03, settled=None, gain=0.8)
    object.__setattr__(made, "settled", some)
    text = of(findings(history(made)), "evidence").text
    assert text.startswith("The largest exponent has not settled, so what is said here is what happened over these")


def test_that_nothing_has_settled_is_told_once() -> None:
    found = now(0.1, settled=False, gain=math.nan)
    assert sum("settled" in f.text for f in found) == 1
    assert of(found, "undecided").text == (
        "No exponent has settled, and growth over a sequence is not known, so there is nothing to judge by: measure "
        "growth (growth=8), or longer sequences (num_steps)."
    )
    assert of(found, "evidence").text.startswith("There is one measurement so far")


def test_growth_of_a_single_sequence_is_told_with_what_is_missing() -> None:
    text = of(now(0.1, settled=False, gain=3.0, gain_error=math.nan), "undecided").text
    assert "a gradient grows 20-fold" in text and "two sequences or more" in text


def test_growth_is_not_said_to_have_begun_before_it_was_measured() -> None:
    old = [of_an_older_version(0.1, step=10 * i, epoch=i) for i in range(3)]
    new = [measured(0.1, settled=False, step=10 * i, epoch=i) for i in (3, 4)]
    text = of(findings(history(*old, *new)), "growing").text
    assert "by more than 7.4-fold at every measurement since epoch 4 at least." in text


def test_what_was_measured_over_fewer_steps_is_told_so() -> None:
    assert "over the first 64 of your 300 steps a gradient grows" in of(now(0.1, length=300), "chaotic").text


def test_older_versions_tell_no_factor() -> None:
    text = of(findings(history(of_an_older_version(0.08))), "growing").text
    assert "+0.08 ± 0.02 nats/step" in text and "fold" not in text


@pytest.mark.parametrize(
    ("top", "stderr", "error", "told"),
    [
        (0.1, 0.1, 0.2, "About 4 times"),
        (0.05, 0.1, 0.2, "About 16 times"),
        (0.1, 0.04, 0.1, "A few more sequences"),
        (0.05, 0.04, 0.1, "Longer sequences"),
        (0.001, 0.1, 0.2, "take it for 0"),
        (0.0, 0.1, 0.2, "take it for 0"),
    ],
)
def test_undecided_tells_how_much_more_would_decide(top: float, stderr: float, error: float, told: str) -> None:
    """Oracle: 2σ falls with √n; what is left of the error, √(0.1² − 0.08²) = 0.06, does not."""
    made = measured(top, error, gain=0.0, gain_error=9.0)
    object.__setattr__(made, "stderr", torch.full_like(made.exponents, stderr))
    assert told in of(findings(history(made)), "undecided").text


def test_memory_is_told_by_the_steps_until_one_percent_and_by_what_is_left() -> None:
    """Oracle: exp(-0.5 · 9.2) = 1 %; e^-32 = 1.3·10^-14."""
    text = of(now(-0.5), "forgetting").text
    assert "down to 1 % after 10 steps" in text and "a gradient shrinks to 1.3·10^-14" in text and "forget gate" in text
    assert "1 %" not in of(now(-0.5, settled=False), "forgetting").text
    assert "down to 1 % after 31 steps of your 64" in of(now(-0.15), "stable").text


def test_all_dead_is_collapsed_and_no_share_of_directions() -> None:
    found = now(-math.inf, math.nan, rest=[-math.inf] * 3)
    assert of(found, "collapsed").text.startswith("Every direction of the state is dead")
    assert not {"dead_directions", "forgetting"} & states(found)


@pytest.mark.parametrize(("settled", "told"), [(True, "leaves 22 % of a"), (False, "at most 23 % of a perturbation")])
def test_collapse_is_told_by_what_is_left_after_a_step(settled: bool, told: str) -> None:
    """Oracle: e^-1.5 = 22 %; over the sequence a nat more, e^(-95/64) = 23 %."""
    assert told in of(now(-1.5, settled=settled), "collapsed").text


def test_chaos_that_saturates_is_one_story_with_its_cause() -> None:
    dead = {"rest": (-math.inf, -math.inf)}
    run = history(measured(0.3, step=0, epoch=0), measured(-math.inf, epoch=1, **dead), measured(-math.inf, **dead))
    (finding,) = (f for f in findings(run) if f.level == "warning")
    assert finding.state == "saturated"
    assert finding.text.startswith("Before the first update the network was chaotic: its largest exponent was +0.30 ±")
    assert "a gradient grew 2.2·10^8-fold" in finding.text and "dead since epoch 2" in finding.text
    assert "saturat" in finding.text and "begin again" in finding.text
    assert not {"collapsed", "chaotic", "dead_directions"} & states(findings(run))
    unsettled = history(measured(0.3, step=0, settled=False), measured(-math.inf, **dead))
    text = of(findings(unsettled), "saturated").text
    assert text.startswith("Before the first update over your 64 steps a gradient grew") and "chao" not in text


@pytest.mark.parametrize(
    ("dead", "dimension", "told"),
    [
        (2, 4, None),
        (3, 4, "3 of the state's 4"),
        (3, 100, "99 of the state's 100"),  # those not measured lie below the last that was
        (0, 100, None),
    ],
)
def test_dead_directions_are_counted_in_the_whole_state(dead: int, dimension: int, told: str | None) -> None:
    exponents = torch.tensor([-0.1] * (4 - dead) + [-math.inf] * dead)
    found = findings(history(Measurement(40, 3, exponents, {}, stderr=torch.full((4,), 0.01), dimension=dimension)))
    assert (told is None) == ("dead_directions" not in states(found))
    assert told is None or told in of(found, "dead_directions").text


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"a": layer(0.2, 12.0), "b": layer(-0.1, -6.0)}, {("layer_explodes", "a")}),
        ({"a": layer(0.2, 7.05), "b": layer(-0.1, -6.0)}, set()),  # not beyond its error
        ({"a": layer(0.2, 12.0), "b": layer(0.3, 18.0)}, set()),  # all of them: no layer stands out
        ({"a": layer(-0.1, -6.0), "b": layer(-0.4, -25.0)}, {("layer_forgets", "b")}),
        ({"a": layer(-0.1, -6.0), "b": layer(-math.inf, -math.inf, math.nan)}, {("layer_died", "b")}),
        ({"a": layer(-0.3, -18.0), "b": layer(-0.4, -25.0)}, set()),
        (
            {"a": layer(0.2, 12.0), "b": layer(-0.4, -25.0), "c": layer(-0.1, -6.0)},
            {("layer_explodes", "a"), ("layer_forgets", "b")},
        ),
        ({"a": layer(0.2, 12.0, settled=False), "b": layer(-0.1)}, {("layer_explodes", "a")}),
    ],
)
def test_the_layer_that_differs_is_named(layers: dict[str, list[float]], expected: set[tuple[str, str]]) -> None:
    found = [f for f in now(-0.05, layers=layers) if f.state.startswith("layer_")]
    assert {(f.state, f.subject) for f in found} == expected
    for finding in found:
        assert f"Layer {finding.subject} " in finding.text
        assert all(other in finding.text for other in layers)


def test_layers_are_told_by_what_they_multiply_a_gradient_by() -> None:
    """Oracle: e^3 = 20, e^-2 = 1/7.4; of an older version the exponents."""
    text = of(now(-0.05, layers={"a": layer(0.2, 8.0), "b": layer(-0.1, -2.0)}), "layer_explodes").text
    assert "in a typical sequence it multiplies a gradient by 3,000, beside b by 1/7.4." in text
    old = of_an_older_version(-0.05, layers={"a": layer(0.2), "b": layer(-0.1)})
    text = of(findings(history(old)), "layer_explodes").text
    assert "its largest exponent is +0.20 ± 0.02 nats per step of its own, beside b -0.10 ± 0.02." in text
    unknown = of_an_older_version(-0.05, layers={"a": layer(-math.inf), "b": layer(math.nan)})
    text = of(findings(history(unknown)), "layer_died").text
    assert "its largest exponent is -∞ nats per step of its own, beside b unknown." in text


def test_the_layer_that_speaks_for_all_is_named() -> None:
    assert "a gradient in decoder grows" in of(now(0.1, growth_of="decoder"), "chaotic").text


# ------------------------------------------------------------------ the prediction

SCORES = {
    "performance": 0.82, "performance_low": 0.7, "performance_high": 0.9, "baseline": 0.6, "failure_probability": 0.05,
    "familiarity": 0.7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"prediction"}),
        ({"baseline": 0.8}, {"prediction_is_baseline"}),
        ({"failure_probability": 0.9}, {"prediction", "predicted_to_fail"}),
        ({"failure_probability": 0.89}, {"prediction"}),
        ({"failure_probability": 0.99, "familiarity": 0.29}, {"unfamiliar"}),
        ({"familiarity": 0.3}, {"prediction"}),
    ],
)
def test_the_scorer_is_quoted_as_far_as_it_knows(change: dict[str, float], expected: set[str]) -> None:
    found = now(-0.05, scores=SCORES | change)
    assert states(found) & {"prediction", "prediction_is_baseline", "predicted_to_fail", "unfamiliar"} == expected


def test_prediction_tells_interval_baseline_and_what_is_reached() -> None:
    text = of(now(-0.05, scores=SCORES, reached=0.55), "prediction").text
    assert all(told in text for told in ("0.82", "0.70 to 0.90", "0.60", "0.55 is reached"))


@pytest.mark.parametrize(
    ("speaks", "state", "told", "silent"),
    [
        ("", "prediction_is_baseline", "tells nothing", "adds to"),
        ("failure", "prediction", "adds to whether it fails; of its rank", "tells nothing"),
        ("rank, failure, takeoff", "prediction", "whether it fails and whether it takes off.", "as much"),
    ],
)
def test_the_sentence_says_of_what_the_spectrum_speaks(speaks: str, state: str, told: str, silent: str) -> None:
    text = of(now(-0.05, scores=SCORES, speaks=speaks), state).text
    assert told in text
    assert silent not in text


# ------------------------------------------------------------------ movement


def test_a_spectrum_that_stands_still_is_told() -> None:
    assert "last 4 measurements" in of(findings(course(-0.1, -0.1, -0.1, -0.1, -0.101)), "converged").text


def test_a_spectrum_that_moves_is_told_with_the_noise() -> None:
    """Oracle: one exponent of three moved by 0.3, 0.3/√3 = 0.17; the noise is √2 · 0.01."""
    assert "0.17 nats/step apart (rms), the noise is 0.014" in of(findings(course(-0.1, -0.4)), "moving").text
    assert not {"moving", "converged"} & states(findings(course(-0.1, -0.12)))


def test_a_rise_towards_zero_is_told_with_where_it_crosses() -> None:
    """Oracle: from -0.35 at update 10 to -0.15 at update 50, 0.05 an epoch of ten: 0 at update 80."""
    rise = (-0.5, -0.35, -0.3, -0.25, -0.2, -0.15)
    text = of(findings(course(*rise)), "rising").text
    assert "The largest exponent rises by 5.0 nats/step per 1,000 updates" in text
    assert "about update 80 it crosses 0, where chaos begins" in text
    assert "rising" not in states(findings(course(-0.5, -0.9, -0.85, -0.8, -0.75, -0.7)))  # too far to tell
    assert "rising" not in states(findings(history(*(of_an_older_version(t, step=10 * i) for i, t in enumerate(rise)))))


def test_a_rise_of_the_gain_is_told_where_exponents_have_not_settled() -> None:
    """Oracle: from -2.56 at update 10 to 0 at update 50, 0.64 an epoch of ten: 2 at update 81."""
    found = findings(course(-0.05, -0.04, -0.03, -0.02, -0.01, 0.0, settled=False))
    assert "about update 81 a gradient grows 7.4-fold" in of(found, "rising").text


def test_a_fall_towards_forgetting_is_told() -> None:
    """Oracle: forgotten below -10/64 = -0.156; from -0.02 at update 10 to -0.1 at 50, there at 78."""
    text = of(findings(course(0.0, -0.02, -0.04, -0.06, -0.08, -0.1, error=0.002)), "falling").text
    assert "about update 78 nothing will be carried" in text


def test_a_trend_within_its_error_or_of_few_points_is_not_told() -> None:
    rise = (-0.4, -0.35, -0.3, -0.25, -0.2)
    assert "rising" not in states(findings(course(-0.5, *rise, error=0.2)))  # 0.2 ± 0.25 over the span
    assert "rising" not in states(findings(course(-0.5, *rise[-3:])))
    assert "rising" not in states(findings(course(-0.5, -0.4, -0.1, -0.6, -0.05, -0.3)))  # scattered far beyond 0.01


# ------------------------------------------------------------------ health and thin evidence


def test_untrusted_exponents_are_told() -> None:
    text = of(now(-0.1, trusted=torch.tensor([True, True, False])), "untrusted").text
    assert text.startswith("33 % of the exponents")
    assert "untrusted" not in states(now(-0.1, trusted=torch.ones(3, dtype=torch.bool)))


def test_an_empty_history_says_that_it_is_empty() -> None:
    assert [f.state for f in findings(History())] == ["evidence"] and news(History()) == []


def test_a_single_sequence_is_no_evidence() -> None:
    (finding,) = findings(course(*[0.5] * 6, error=math.nan, gain=math.nan))
    assert finding.state == "evidence" and "two sequences or more" in finding.text


def test_one_measurement_says_what_is_missing() -> None:
    found = now(-0.05)
    assert states(found) == {"stable", "evidence"}
    assert "one measurement so far (epoch 4)" in of(found, "evidence").text


ODD = {
    "empty": Measurement(3, 0, torch.tensor([]), {}),
    "unknown": Measurement(3, 0, torch.tensor([math.nan] * 2), {}, stderr=torch.tensor([math.nan] * 2)),
    "infinite": Measurement(3, 0, torch.tensor([math.inf]), {}, stderr=torch.tensor([math.inf]), length=0),
    "zero": Measurement(3, 0, torch.tensor([0.0]), {}, stderr=torch.tensor([0.0])),
    "old": Measurement(3, 0, torch.tensor([0.3, -math.inf]), {"max_stderr": 0.01}),
    "layers": Measurement(3, 0, torch.tensor([-0.1]), {}, layers={"a": [math.nan] * 6, "b": [math.nan] * 6}),
    "scores": Measurement(3, 0, torch.tensor([-0.1]), {"aelle/familiarity": math.nan, "aelle/performance": math.nan}),
    "no growth": measured(0.1, settled=False, gain=math.nan),
    "vanishing": measured(-0.1, gain=-math.inf, gain_error=math.nan, most=-math.inf),
    "vanishing in one sequence": measured(-0.1, gain=-math.inf, gain_error=math.nan, gain_low=-3.0, gain_high=-1.0),
    "no error": measured(0.1, math.nan, gain_error=math.nan),
    "no ln σ": measured(0.1, growth=torch.tensor([])),
    "gain alone": Measurement(3, 0, torch.tensor([0.1]), {}, gain=3.0, gain_error=0.1),
    "no steps": measured(-2.0, settled=False, growth_steps=math.nan),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_data_never_raises_and_is_never_nan_in_a_sentence(odd: Measurement) -> None:
    first = measured(0.1, step=0)
    for made in (
        history(odd),
        history(odd, odd),
        history(first, odd),
        history(measured(-0.1, step=1), odd, *[odd] * 5),
    ):
        for finding in [*findings(made), *news(made)]:
            assert not {"nan", "inf"} & set(re.split(r"\W+", finding.text.lower())), finding.text


def test_the_error_of_an_older_checkpoint_is_found_among_its_metrics() -> None:
    old = Measurement(3, 0, torch.tensor([0.3]), {"max_stderr": 0.01}, length=64)
    assert "exploding" in states(findings(history(old)))


def test_a_second_fit_of_the_same_callback_is_told_alone() -> None:
    made = history(measured(0.3, step=0), measured(0.3, step=40), measured(0.3, step=0, epoch=0), measured(0.3, step=9))
    assert "since before the first update" in of(findings(made), "exploding").text


def by(source: str, *tops: float, start: int = 0, **options: Any) -> list[Measurement]:
    """Measurements ten updates apart, driven by data of one source."""
    return [measured(t, step=start + 10 * i, source=source, **options) for i, t in enumerate(tops)]


def test_one_key_with_two_sources_in_turn_is_no_movement() -> None:
    """Validation every second epoch (check_val_every_n_epoch=2): weights that do not move, −.14 and −.20 in turn."""
    points = [measured((-0.14, -0.2)[i % 2], step=10 * i, source=("validation", "training")[i % 2]) for i in range(9)]
    assert "moving" not in states(findings(history(*points))) and "converged" in states(findings(history(*points)))
    mixed = findings(history(*(replace(point, source="") for point in points)))
    assert "moving" in states(mixed) and "converged" not in states(mixed)


def test_the_point_before_training_of_another_source_is_compared_with_nothing() -> None:
    """Oracle: the same run without it. A line through it would rise, and it would be the first of the chaotic ones."""
    first, later = by("training", -0.5), by("validation", *[-0.05] * 3, start=10)
    alone, both = findings(history(*later)), findings(history(*first, *later))
    assert alone == both
    chaotic = [*by("training", 0.1), *by("validation", 0.1, 0.1, start=10)]
    text = of(findings(history(*chaotic)), "chaotic").text
    assert "since epoch 4: the network is chaotic" in text and "or the learning rate" in text
    text = of(findings(history(*chaotic[:2])), "evidence").text
    assert text.startswith("There is one measurement driven by validation data so far (epoch 4): what training changes")


def test_the_story_of_saturation_may_use_both_sources_and_names_the_other() -> None:
    first, dead = by("training", 0.3), by("validation", -math.inf, -math.inf, start=10)
    text = of(findings(history(*first, *dead)), "saturated").text
    assert text.startswith("Before the first update, driven by training data, the network was chaotic: its largest")
    assert "every direction of the state is dead since epoch 4." in text
    text = of(findings(history(*by("validation", 0.3), *dead)), "saturated").text
    assert text.startswith("Before the first update the network was chaotic")
    assert states(news(history(*first, *dead[:1]))) == {"saturated"} and news(history(*first, *dead)) == []


def test_news_are_not_silenced_by_what_other_data_drove() -> None:
    first = by("training", 0.1)
    assert states(news(history(*first, *by("validation", 0.1, start=10)))) == {"chaotic"}
    assert news(history(*first, *by("validation", 0.1, 0.1, start=10))) == []


@pytest.mark.parametrize(
    ("known", "little"),
    [
        ({"steps": 64, "length": 300, "fewer": "the first 64 of 300 steps"}, True),
        ({"steps": 64, "length": 128, "fewer": "16 of 20 sequences"}, False),  # just half
        ({"steps": 64, "length": 128, "growth_steps": 5.0, "fewer": "a few"}, True),  # of a typical one
        ({"steps": 64, "length": 64, "growth_steps": 9.0, "growth_whole": True, "fewer": "16 of 20 sequences"}, False),
        ({"steps": 64, "length": 300}, False),  # nothing is known about why
        ({"length": 300, "fewer": "unknown"}, False),
    ],
)
def test_that_far_fewer_steps_were_measured_than_seen_is_told(known: dict[str, Any], little: bool) -> None:
    told = of(now(-0.1, **known), "evidence").text
    assert told.startswith(f"Of what was seen only this was measured: {known.get('fewer')}. ") == little


def test_that_too_few_steps_count_is_told_where_nothing_has_settled() -> None:
    """Oracle: of 8 steps on the digits 4 count; from 8 on it is not the number of steps."""
    for count, told in ((4, ", with no more than 4 steps after the transient"), (1, "1 step after"), (8, "")):
        text = of(now(-0.1, settled=False, counted=count), "evidence").text
        assert f"No exponent has settled{told}, so" in text if count != 1 else told in text


def test_layers_whose_steps_are_another_unit_of_time_are_not_taken_for_alike() -> None:
    """As in a stack whose upper layer is dilated by 8: its step takes eight of the lower one."""
    text = of(now(0.1, layers={"slow": layer(0.2), "fast": layer(-0.1)}), "chaotic").text
    assert text.startswith("The largest exponent is +0.10 ± 0.02 nats per step of its layer and has been")
    text = of(now(-0.1, layers={"slow": layer(-0.1), "fast": layer(-0.1)}), "stable").text
    assert "a perturbation is down to 1 % after 47 steps. Over" in text
    assert "nats/step" in of(now(0.1), "chaotic").text


def test_gravest_first_and_each_ends_as_a_sentence() -> None:
    layers = {"a": layer(0.3, 18.0), "b": layer(-0.4, -25.0)}
    found = findings(course(-0.1, 0.1, 0.3, layers=layers, scores=SCORES | {"failure_probability": 0.95}))
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=["warning", "note", "good"].index) and levels[0] == "warning"
    assert found[0].state == "exploding"
    assert all(re.fullmatch(r"[A-Z0-9].*\.", finding.text) for finding in found)


# ------------------------------------------------------------------ news


def told(*tops: float, **options: Any) -> list[set[str]]:
    """States told at each measurement of a run."""
    return [states(news(course(*tops[: i + 1], **options))) for i in range(len(tops))]


def test_a_state_is_news_when_it_begins_and_not_while_it_lasts() -> None:
    assert told(-0.05, -0.05, 0.1, 0.1, 0.1) == [set(), set(), {"chaotic"}, set(), set()]
    assert told(-0.05, -0.05, 0.1, 0.1, settled=False) == [set(), set(), {"growing"}, set()]
    assert told(-0.05, 0.1, 0.2, 0.1) == [set(), {"chaotic"}, {"exploding"}, set()]
    assert told(-0.05, -0.4, -0.4, -1.5) == [set(), {"forgetting"}, set(), {"collapsed"}]
    assert told(0.1, 0.1, -math.inf, -math.inf) == [{"chaotic"}, set(), {"saturated"}, set()]


def test_chaos_that_no_longer_settles_is_no_news() -> None:
    run = [measured(0.1, step=10 * i, settled=i < 3) for i in range(5)]
    assert [states(news(history(*run[: i + 1]))) for i in range(5)] == [{"chaotic"}, set(), set(), set(), set()]


def test_a_flickering_state_is_told_once_in_five_measurements() -> None:
    flicker = told(
        -0.05, 0.2, -0.05, 0.2, -0.05, 0.2, -0.05, -0.05, -0.05, -0.05, 0.2, -0.05, -0.05, -0.05, -0.05, -0.05, 0.2
    )
    assert [i for i, found in enumerate(flicker) if found] == [1, 16]  # index 10 came five after 5, 16 six after 10


def test_an_initial_network_can_be_chaotic_but_has_nothing_to_lose() -> None:
    assert told(0.1, 0.1) == [{"chaotic"}, set()]
    assert told(-0.5, -0.5) == [set(), set()]
    assert told(-1.5, -1.5) == [set(), set()]


def test_what_was_there_from_the_start_is_news_once_it_calls_for_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the networks that forgot 60 in 100 failed, and of those that still did after 30 updates, 97."""
    counts = {"0": [100, 60, 40, 0, 0.5], "30": [100, 97, 3, 0, 0.9]}
    more = rates_of(moments=[0, 30], told={"forgetting": {"all": counts}})
    monkeypatch.setattr(rates, "shipped", lambda: more)
    assert told(-0.4, -0.4, -0.4, -0.4, -0.4, -0.4) == [set(), set(), set(), {"forgetting"}, set(), set()]


def test_mild_chaos_is_no_news() -> None:
    assert told(-0.01, 0.03, error=0.002) == [set(), set()]


def test_news_of_layers_and_of_the_prediction() -> None:
    well = {"a": layer(-0.1, -6.0), "b": layer(-0.1, -6.0)}
    before = measured(-0.1, step=0, epoch=0, layers=well, scores=SCORES)
    for top, changed in ((layer(0.2, 12.0), "layer_explodes"), (layer(-math.inf), "layer_died")):
        (finding,) = news(history(before, measured(-0.1, layers=well | {"b": top}, scores=SCORES)))
        assert (finding.state, finding.subject) == (changed, "b")
    failing = measured(-0.1, scores=SCORES | {"failure_probability": 0.95})
    assert states(news(history(before, failing))) == {"predicted_to_fail"} == states(news(history(failing)))
    assert news(history(before, failing, failing)) == []


def test_another_layer_that_explodes_is_news_of_its_own() -> None:
    layers = {"a": layer(0.2, 12.0), "b": layer(-0.1, -6.0), "c": layer(-0.1, -6.0)}
    made = history(measured(-0.05, layers=layers), measured(-0.05, step=50, layers=layers | {"b": layer(0.2, 12.0)}))
    assert [f.subject for f in news(made)] == ["b"]


def test_no_lightning_is_needed() -> None:
    code = "import sys, lightning_lyapunov.reading; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
