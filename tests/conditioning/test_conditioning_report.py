"""The sentence about a conditioning, and what follows from its figures."""

import math
from typing import Any

import pytest
from made import spectrum

from lightning_lyapunov.conditioning import Conditioning


def report(**more: Any) -> Conditioning:
    figures: dict[str, Any] = {
        "before": spectrum(-0.6, -2.3),
        "after": spectrum(-0.04, -0.06),
        "changed": ("recurrent weights made orthogonal", "inputs × 0.14"),
        "target": -0.05,
        "rms_before": 1.5,
        "rms_after": 0.01,
        "reach_before": math.log(2e-11),
        "reach_after": math.log(0.4),
        "seconds": 0.31,
    }
    return Conditioning(**figures | more)


def test_sentence_tells_exponents_reach_and_changes() -> None:
    told = str(report())
    assert "exponents from -2.300 … -0.60 ± 0.03 to -0.060 … -0.04 ± 0.03 nats/step (target -0.05)" in told
    assert "the first input counts 0.4 times as much as the last (2·10^-11 times before)" in told
    assert told.endswith("recurrent weights made orthogonal, inputs × 0.14, 0.3 s")
    assert "\n" not in told and "nothing of it is held" not in told


def test_layer_that_was_left_says_so_first_and_why() -> None:
    told = report(reason="the exponents after it are not known")
    assert not told.applied and report().applied
    assert str(told).startswith("left as it was, as the exponents after it are not known: exponents from")
    assert "tried: recurrent weights made orthogonal" in str(told)


@pytest.mark.parametrize(
    ("reach", "is_blind"), [(math.log(9e-4), True), (-math.inf, True), (math.log(1.1e-3), False), (1.0, False)]
)
def test_blindness_is_a_thousandth(reach: float, is_blind: bool) -> None:
    told = report(reach_after=reach)
    assert told.is_blind == is_blind
    assert ("so nothing of it is held, whatever the exponents say" in str(told)) == is_blind


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (-math.inf, "0 times"),
        (math.inf, "∞ times"),
        (0.0, "1 times"),
        (math.log(31.0), "31 times"),
        (-50.0, "2·10^-22 times"),
        (-20.0, "2·10^-9 times"),
        (-3.0, "0.05 times"),
    ],
)
def test_ratios_of_any_size_are_told(nats: float, words: str) -> None:
    assert f"counts {words} as much as the last" in str(report(reach_after=nats))


def test_dead_directions_are_told() -> None:
    assert "exponents from -∞ … -∞ to" in str(report(before=spectrum(-math.inf, -math.inf)))
