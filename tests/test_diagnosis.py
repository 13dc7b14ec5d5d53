"""Sentences are judged by constructed histories: each rule holds where its formula does, and not a step beside."""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_lyapunov import diagnosis
from lightning_lyapunov.diagnosis import Finding, findings, has_converged, news
from lightning_lyapunov.history import History, Measurement, key_of


def measured(
    top: float,
    error: float = 0.01,
    *,
    step: int = 40,
    epoch: int = 3,
    rest: Sequence[float] = (-0.5, -1.0),
    length: int | None = 64,
    layers: dict[str, list[float]] | None = None,
    scores: dict[str, float] | None = None,
    prefix: str = "lyapunov",
    **more: Any,
) -> Measurement:
    exponents = torch.tensor([top, *rest])
    metrics = {key_of(f"aelle/{name}", prefix): value for name, value in (scores or {}).items()}
    return Measurement(
        step, epoch, exponents, metrics, stderr=torch.full_like(exponents, error), dimension=len(exponents),
        length=length, layers=layers or {}, **more,
    )  # fmt: skip


def history(*measurements: Measurement, prefix: str = "lyapunov") -> History:
    made = History(prefix)
    for measurement in measurements:
        made.append(measurement)
    return made


def course(*tops: float, error: float = 0.01, **options: Any) -> History:
    """A run whose largest exponent went so: one measurement before the first update, then one an epoch of ten."""
    return history(*(measured(t, error, step=10 * i, epoch=max(0, i - 1), **options) for i, t in enumerate(tops)))


def states(found: Sequence[Finding]) -> set[str]:
    return {finding.state for finding in found}


def of(found: Sequence[Finding], state: str) -> Finding:
    (finding,) = (f for f in found if f.state == state)
    return finding


def now(*args: Any, **options: Any) -> list[Finding]:
    """What is found at one measurement."""
    return findings(history(measured(*args, **options)))


TOP = {"chaotic", "undecided", "collapsed", "forgetting", "remembering", "stable"}


# ------------------------------------------------------------------ the largest exponent


@pytest.mark.parametrize(
    ("top", "error", "state", "level"),
    [
        (0.13, 0.01, "chaotic", "warning"),
        (0.13, 0.064, "chaotic", "warning"),  # beyond two standard errors, just
        (0.13, 0.066, "undecided", "note"),
        (0.03, 0.001, "chaotic", "note"),  # over 64 steps e^1.9 = 7-fold
        (0.01, 0.006, "remembering", "good"),  # within (|0.01| + 0.012) 64 < 2 whatever its sign
        (0.0, 0.2, "undecided", "note"),
        (-0.02, 0.005, "remembering", "good"),
        (-0.02, 0.006, "stable", "good"),  # (0.02 + 0.012) 64 > 2
        (-0.15, 0.01, "stable", "good"),  # 9.6 nats over the sequence
        (-0.16, 0.01, "forgetting", "warning"),  # 10.2
        (-1.03, 0.02, "forgetting", "warning"),
        (-1.05, 0.02, "collapsed", "warning"),
        (-math.inf, math.nan, "collapsed", "warning"),
    ],
)
def test_exactly_one_thing_is_said_of_the_largest_exponent(top: float, error: float, state: str, level: str) -> None:
    found = now(top, error, rest=())
    assert states(found) & TOP == {state}
    assert of(found, state).level == level


def test_chaos_is_told_in_figures_with_since_when_and_what_to_do() -> None:
    """Oracle: exp(0.13 · 64) = 4,105; the run of chaos began at the fourth measurement, that of epoch 2."""
    text = of(findings(course(-0.1, 0.2, -0.1, 0.1, 0.13)), "chaotic").text
    assert text == (
        "The largest exponent is +0.13 ± 0.02 nats/step and has been above 0 beyond its error since epoch 2: over your "
        "64-step sequences a gradient grows about 4,000-fold. Lower the recurrent gain or the learning rate, or clip "
        "gradients."
    )
    assert "since before the first update" in of(findings(course(0.1, 0.2)), "chaotic").text


@pytest.mark.parametrize(
    ("top", "fold"),
    [
        (0.01, "about 1.9-fold"),
        (0.05, "about 20-fold"),  # exp(3.2) = 24.5, to one digit
        (0.3, "about 10^8-fold"),
        (9.0, "beyond 10^12-fold"),
    ],
)
def test_growth_is_told_as_people_say_it(top: float, fold: str) -> None:
    assert f"over your 64-step sequences a gradient grows {fold}." in of(now(top, 0.001), "chaotic").text


def test_without_a_known_length_growth_is_told_for_a_hundred_steps_and_forgetting_not_at_all() -> None:
    chaotic = of(now(0.13, length=None), "chaotic")
    assert chaotic.level == "warning" and "over 100-step sequences" in chaotic.text
    assert states(now(-0.5, length=None)) & TOP == {"stable"}


@pytest.mark.parametrize(("top", "error", "told"), [(0.1, 0.1, "About 4 times"), (0.05, 0.1, "About 16 times")])
def test_undecided_tells_how_many_sequences_would_decide(top: float, error: float, told: str) -> None:
    """Oracle: errors fall with √n, so that n (2σ/λ)² sequences bring two of them down to λ."""
    assert told in of(now(top, error), "undecided").text


@pytest.mark.parametrize("top", [0.0, 0.001])
def test_what_no_number_of_sequences_would_decide_is_told_to_be_zero(top: float) -> None:
    assert "take it for 0" in of(now(top, 0.1), "undecided").text


def test_memory_is_told_by_the_steps_until_one_percent() -> None:
    """Oracle: exp(-0.5 · 9.2) = 1 %."""
    text = of(now(-0.5), "forgetting").text
    assert "down to 1 % after 10 steps" in text and "64-step" in text and "forget gate" in text
    assert of(now(-0.5, step=0, epoch=0), "forgetting").level == "note"


def test_all_dead_is_collapsed_and_no_share_of_directions() -> None:
    found = now(-math.inf, math.nan, rest=[-math.inf] * 3)
    assert of(found, "collapsed").text.startswith("Every direction of the state is dead")
    assert not {"dead_directions", "forgetting"} & states(found)


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
        ({"a": [0.2, 0.01], "b": [-0.1, 0.01]}, {("layer_explodes", "a")}),
        ({"a": [0.2, 0.15], "b": [-0.1, 0.01]}, set()),  # not beyond its error
        ({"a": [0.03, 0.001], "b": [-0.1, 0.01]}, set()),  # 7-fold
        ({"a": [0.2, 0.01], "b": [0.3, 0.01]}, set()),  # all of them: the network is chaotic, no layer stands out
        ({"a": [-0.1, 0.01], "b": [-0.4, 0.01]}, {("layer_forgets", "b")}),
        ({"a": [-0.1, 0.01], "b": [-math.inf, math.nan]}, {("layer_died", "b")}),
        ({"a": [-0.3, 0.01], "b": [-0.4, 0.01]}, set()),
        ({"a": [0.2, 0.01], "b": [-0.4, 0.01], "c": [-0.1, 0.01]}, {("layer_explodes", "a"), ("layer_forgets", "b")}),
    ],
)
def test_the_layer_that_differs_is_named(layers: dict[str, list[float]], expected: set[tuple[str, str]]) -> None:
    found = [f for f in now(-0.05, layers=layers) if f.state.startswith("layer_")]
    assert {(f.state, f.subject) for f in found} == expected
    for finding in found:
        assert f"Layer {finding.subject} " in finding.text
        assert all(other in finding.text for other in layers)


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


def test_keys_of_another_prefix_are_read() -> None:
    made = history(measured(-0.05, scores=SCORES | {"failure_probability": 0.95}, prefix="encoder"), prefix="encoder")
    assert of(findings(made), "predicted_to_fail").level == "warning"
    made = history(measured(-0.05, scores={"familiarity": 0.1}, prefix="encoder"), prefix="encoder")
    assert "what encoder/aelle/ says" in of(findings(made), "unfamiliar").text


# ------------------------------------------------------------------ movement


def test_a_spectrum_that_agrees_with_its_last_three_has_converged() -> None:
    assert not has_converged(course(-0.1, -0.1, -0.1, -0.1))  # the one before the first update does not count
    made = course(-0.1, -0.1, -0.1, -0.1, -0.101)
    assert has_converged(made)
    assert "last 4 measurements" in of(findings(made), "converged").text


def test_a_slow_drift_has_not_converged() -> None:
    """Each is within the noise √2 · 0.01 of the next, all three exponents alike, but not of the one three before."""
    drift = [measured(-0.1 - d, step=10 * i + 10, rest=(-0.5 - d,)) for i, d in enumerate((0.0, 0.01, 0.02, 0.03))]
    assert not has_converged(history(*drift))
    assert has_converged(history(*drift), patience=1)


def test_nothing_is_said_to_stand_still_in_coarse_noise() -> None:
    """Oracle: an error of 0.08 is a noise of 0.11, above 0.05 and above a tenth of exponents of 0.3 on average."""
    small = {"rest": (-0.3, -0.4)}
    assert not has_converged(course(*[-0.1] * 5, error=0.08, **small))
    assert has_converged(course(*[-0.1] * 5, error=0.03, **small))
    assert has_converged(course(*[-3.0] * 5, error=0.08, rest=(-4.0, -5.0)))


def test_a_spectrum_that_moves_is_told_with_the_noise() -> None:
    """Oracle: one exponent of three moved by 0.3, 0.3/√3 = 0.17; the noise is √2 · 0.01."""
    assert "0.17 nats/step apart (rms), the noise is 0.014" in of(findings(course(-0.1, -0.4)), "moving").text
    assert not {"moving", "converged"} & states(findings(course(-0.1, -0.12)))


def test_spectra_of_different_length_are_compared_where_both_are_finite() -> None:
    a = measured(-0.1, rest=(-1.0, -math.inf, -math.inf))
    b = measured(-0.3, step=50, rest=(-1.0, -5.0))
    assert diagnosis.distance(a, b) == pytest.approx(math.sqrt(0.2**2 / 2), rel=1e-5)
    assert diagnosis.noise_between(a, b) == pytest.approx(math.sqrt(2) * 0.01, rel=1e-5)
    assert math.isnan(diagnosis.distance(measured(-math.inf, rest=()), b))


def test_a_rise_towards_zero_is_told_with_where_it_crosses() -> None:
    """Oracle: from -0.35 at update 10 to -0.15 at update 50, 0.05 an epoch of ten: 0 at update 80."""
    found = findings(course(-0.5, -0.35, -0.3, -0.25, -0.2, -0.15))
    assert "rises by 5 nats/step per 1,000 updates" in of(found, "rising").text
    assert "about update 80 it crosses 0" in of(found, "rising").text
    assert "rising" not in states(findings(course(-0.5, -0.9, -0.85, -0.8, -0.75, -0.7)))  # too far to tell


def test_a_fall_towards_forgetting_is_told() -> None:
    """Oracle: forgotten below -10/64 = -0.156; from -0.02 at update 10 to -0.1 at 50, there at 78."""
    text = of(findings(course(0.0, -0.02, -0.04, -0.06, -0.08, -0.1, error=0.001)), "falling").text
    assert "about update 78 nothing will be carried" in text


def test_a_trend_within_its_error_or_of_few_points_is_not_told() -> None:
    rise = (-0.4, -0.35, -0.3, -0.25, -0.2)
    assert "rising" not in states(findings(course(-0.5, *rise, error=0.1)))  # 0.2 ± 0.25 over the span
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
    (finding,) = findings(course(*[0.5] * 6, error=math.nan))
    assert finding.state == "evidence" and "two sequences or more" in finding.text


def test_one_measurement_says_what_is_missing() -> None:
    found = now(-0.05)
    assert states(found) == {"stable", "evidence"}
    assert "one measurement so far (epoch 3)" in of(found, "evidence").text


@pytest.mark.parametrize(
    "odd",
    [
        Measurement(3, 0, torch.tensor([]), {}),
        Measurement(3, 0, torch.tensor([math.nan, math.nan]), {}, stderr=torch.tensor([math.nan, math.nan])),
        Measurement(3, 0, torch.tensor([math.inf]), {}, stderr=torch.tensor([math.inf]), length=0),
        Measurement(3, 0, torch.tensor([0.0]), {}, stderr=torch.tensor([0.0])),
        Measurement(3, 0, torch.tensor([0.3, -math.inf]), {"lyapunov/max_stderr": 0.01}),  # of an older checkpoint
        Measurement(3, 0, torch.tensor([-0.1]), {}, layers={"a": [], "b": [math.nan, math.nan]}),
        Measurement(3, 0, torch.tensor([-0.1]), {"aelle/familiarity": math.nan, "aelle/performance": math.nan}),
    ],
    ids=["empty", "unknown", "infinite", "zero", "old", "layers", "scores"],
)
def test_odd_data_never_raises_and_is_never_nan_in_a_sentence(odd: Measurement) -> None:
    for made in (history(odd), history(odd, odd), history(measured(-0.1, step=1), odd, *[odd] * 5)):
        for finding in [*findings(made), *news(made)]:
            assert "nan" not in finding.text.lower().split()


def test_the_error_of_an_older_checkpoint_is_found_among_its_metrics() -> None:
    old = Measurement(3, 0, torch.tensor([0.3]), {"lyapunov/max_stderr": 0.01})
    assert "chaotic" in states(findings(history(old)))


def test_a_second_fit_of_the_same_callback_is_told_alone() -> None:
    made = history(measured(0.3, step=0), measured(0.3, step=40), measured(0.3, step=0, epoch=0), measured(0.3, step=9))
    assert "since before the first update" in of(findings(made), "chaotic").text
    again = history(*(measured(-0.1, step=s) for s in (10, 20, 30, 40)), measured(-0.1, step=5))
    assert not has_converged(again)


def test_gravest_first_and_each_ends_as_a_sentence() -> None:
    found = findings(
        course(
            -0.1, 0.1, 0.3, layers={"a": [0.3, 0.01], "b": [-0.4, 0.01]}, scores=SCORES | {"failure_probability": 0.95}
        )
    )  # fmt: skip
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=["warning", "note", "good"].index) and levels[0] == "warning"
    assert found[0].state == "chaotic"
    assert all(re.fullmatch(r"[A-Z0-9].*\.", finding.text) for finding in found)


# ------------------------------------------------------------------ news


def told(*tops: float, **options: Any) -> list[set[str]]:
    """States told at each measurement of a run."""
    return [states(news(course(*tops[: i + 1], **options))) for i in range(len(tops))]


def test_a_state_is_news_when_it_begins_and_not_while_it_lasts() -> None:
    assert told(-0.05, -0.05, 0.2, 0.2, 0.2) == [set(), set(), {"chaotic"}, set(), set()]
    assert told(-0.05, -0.4, -0.4, -1.5) == [set(), {"forgetting"}, set(), {"collapsed"}]


def test_a_flickering_state_is_told_once_in_five_measurements() -> None:
    flicker = told(
        -0.05, 0.2, -0.05, 0.2, -0.05, 0.2, -0.05, -0.05, -0.05, -0.05, 0.2, -0.05, -0.05, -0.05, -0.05, -0.05, 0.2
    )
    assert [i for i, found in enumerate(flicker) if found] == [1, 16]  # index 10 came five after 5, 16 six after 10


def test_an_initial_network_can_be_chaotic_but_has_nothing_to_lose() -> None:
    assert told(0.2, 0.2) == [{"chaotic"}, set()]
    assert told(-0.5, -0.5) == [set(), set()]
    assert told(-1.5, -1.5) == [set(), set()]


def test_mild_chaos_is_no_news() -> None:
    assert told(-0.01, 0.03, error=0.001) == [set(), set()]


def test_news_of_layers_and_of_the_prediction() -> None:
    well = {"a": [-0.1, 0.01], "b": [-0.1, 0.01]}
    before = measured(-0.1, step=0, epoch=0, layers=well, scores=SCORES)
    for top, changed in (([0.2, 0.01], "layer_explodes"), ([-math.inf, math.nan], "layer_died")):
        (finding,) = news(history(before, measured(-0.1, layers=well | {"b": top}, scores=SCORES)))
        assert (finding.state, finding.subject) == (changed, "b")
    failing = measured(-0.1, scores=SCORES | {"failure_probability": 0.95})
    assert states(news(history(before, failing))) == {"predicted_to_fail"} == states(news(history(failing)))
    assert news(history(before, failing, failing)) == []


def test_another_layer_that_explodes_is_news_of_its_own() -> None:
    layers = {"a": [0.2, 0.01], "b": [-0.1, 0.01], "c": [-0.1, 0.01]}
    made = history(measured(-0.05, layers=layers), measured(-0.05, step=50, layers=layers | {"b": [0.2, 0.01]}))
    assert [f.subject for f in news(made)] == ["b"]


def test_no_lightning_is_needed() -> None:
    code = "import sys, lightning_lyapunov.diagnosis; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
