"""Numbers in words, read back: each is the figure that it was made of, to two digits."""

import math
import re
from typing import Any

import pytest
from made import measured, of_an_older_version

from lightning_lyapunov.reading.words import (
    factor,
    horizon,
    in_words,
    over_a_sequence,
    percent,
    plus_minus,
    since,
    steps_of,
    steps_to_a_percent,
    two_digits,
)

INF, NAN = math.inf, math.nan


def read(text: str) -> float:
    """The nats of a factor."""
    text = text.replace(",", "")
    sign = -1 if text.startswith("1/") else 1
    digits, _, tens = text.removeprefix("1/").removesuffix("-fold").partition("·10^")
    return sign * (math.log(float(digits)) + int(tens or 0) * math.log(10))


@pytest.mark.parametrize("nats", [*[i / 7 for i in range(-180, 181)], 300.0, -300.0])
def test_factors_are_read_back_to_two_digits(nats: float) -> None:
    """Oracle: the logarithm; two digits are right to half of the last, 5 %."""
    assert read(factor(nats)) == pytest.approx(nats, abs=0.0501)


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (math.log(2.6), "2.6-fold"),
        (-math.log(2.6), "1/2.6"),
        (8.32, "4,100-fold"),
        (-8.32, "1/4,100"),
        (20.0, "4.9·10^8-fold"),
        (-20.0, "2.1·10^-9"),
        (0.01, "1.0-fold"),
        (-0.01, "1.0-fold"),
        (-INF, "0"),
        (INF, "∞-fold"),
        (5000.0, "10^2171-fold"),
        (-5000.0, "10^-2171"),
    ],
)
def test_factors_as_people_say_them(nats: float, words: str) -> None:
    assert factor(nats) == words


def test_two_digits_and_shares() -> None:
    assert [two_digits(x) for x in (1.0, 9.94, 9.96, 99.4, 123456.0)] == ["1.0", "9.9", "10", "99", "120,000"]
    assert [percent(x) for x in (0.123, 0.9, 0.999)] == ["12 %", "90 %", "over 99 %"]
    assert steps_to_a_percent(-0.5) == 10  # exp(-0.5 · 9.2) = 1 %


def test_exponents_have_the_half_width_of_their_bar() -> None:
    assert in_words(measured(0.13, 0.02)) == "+0.13 ± 0.02 nats/step"
    assert in_words(of_an_older_version(0.13, 0.01)) == "+0.13 ± 0.02 nats/step"
    assert in_words(measured(NAN, NAN)) == "unknown"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0.1216, 0.1020, "+0.12 ± 0.10"),  # one digit, 0.1 ± 0.1, would not be above 0 beyond its error
        (0.1216, 0.196, "+0.1 ± 0.2"),
        (0.34, 0.26, "+0.34 ± 0.26"),  # not +0.3 ± 0.3
        (-0.26, 0.34, "-0.26 ± 0.34"),
        (0.1216, 0.0996, "+0.12 ± 0.10"),
        (0.1216, 0.0944, "+0.12 ± 0.09"),
        (0.1216, 0.21, "+0.1 ± 0.2"),
        (-0.4876, 0.001, "-0.4876 ± 0.0010"),
        (-0.4876, 0.002, "-0.488 ± 0.002"),
        (-0.4876, 1e-7, "-0.4876 ± 0.0000"),
        (8.32, 1.04, "+8.3 ± 1.0"),
        (83.2, 12.0, "+83.2 ± 12.0"),
        (0.5, NAN, "+0.500"),
        (0.5, INF, "+0.500"),
        (NAN, 0.1, "unknown"),
        (-INF, NAN, "-∞"),
        (INF, NAN, "+∞"),
    ],
)
def test_figures_have_the_digits_of_their_errors(value: float, error: float, words: str) -> None:
    assert plus_minus(value, error) == words


def test_what_older_measurements_cannot_vouch_for_is_told_as_at_least() -> None:
    old = [of_an_older_version(0.13, step=10 * i, epoch=i) for i in range(3)]
    new = [measured(0.13, step=10 * i, epoch=i) for i in (3, 4)]
    assert since([*old, *new], lambda m: True) == "since epoch 4 at least"
    assert since([*old, *new], lambda m: m.epoch > 3) == "since epoch 5"
    assert since(old, lambda m: m.epoch > 0) == "since epoch 2"
    assert since(new, lambda m: True) == "since epoch 4"


# ------------------------------------------------------------------ over a sequence


@pytest.mark.parametrize("value", [-30.0, -4.2, -0.7, 0.3, 1.7, 6.1, 22.0])
def test_what_happens_to_a_gradient_is_what_was_measured(value: float) -> None:
    """Oracle: gain, range and largest ln σ, read back out of the sentence."""
    told = over_a_sequence(measured(0.1, gain=value, gain_low=value - 1, gain_high=value + 1, most=value + 2))
    amount = r"(1/[\d,.]+|[\d,.]+(?:·10\^-?\d+)?(?:-fold)?)"
    match = re.fullmatch(
        rf"over your 64 steps a gradient (grows|shrinks to) {amount} in a typical sequence \(at most {amount}\), and "
        rf"between {amount} and {amount} in eight sequences of ten", told,
    )  # fmt: skip
    assert match is not None, told
    verb, *amounts = match.groups()
    assert verb == ("grows" if value > 0 else "shrinks to")
    for shown, expected in zip(amounts, (value, value + 2, value - 1, value + 1), strict=True):
        assert read(shown) == pytest.approx(expected, abs=0.0501)


def test_it_is_not_the_exponent_times_the_steps() -> None:
    """The digits' network: e^(0.16 · 8) would be 3.6-fold, where a gradient grows 1.9-fold and at most 9.3-fold."""
    told = over_a_sequence(measured(0.16, gain=math.log(1.9), most=math.log(9.3), length=8))
    assert told == "over your 8 steps a gradient grows 1.9-fold in a typical sequence (at most 9.3-fold)"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"length": 64}, "your 64 steps"),
        ({"length": 300}, "the first 64 of your 300 steps"),
        ({"length": 64, "growth_steps": 40.4, "growth_whole": True}, "your sequences of 40 steps on average"),
        ({"length": None}, "your 64 steps"),
    ],
)
def test_steps_that_were_measured_and_those_that_were_seen(known: dict[str, Any], told: str) -> None:
    assert steps_of(measured(0.1, **known)) == told
    assert f"over {told} a gradient" in over_a_sequence(measured(0.1, **known))


def test_odd_growth_in_words() -> None:
    assert over_a_sequence(of_an_older_version(0.1)) == ""
    assert over_a_sequence(measured(0.1, gain=-INF)).endswith("a gradient vanishes in a typical sequence")
    assert "a gradient keeps its size in a typical sequence" in over_a_sequence(measured(0.1, gain=0.01))
    assert "a gradient in rnn.l1 grows" in over_a_sequence(measured(0.1, growth_of="rnn.l1"))
    assert "a gradient grew" in over_a_sequence(measured(0.1), past=True)


@pytest.mark.parametrize(
    ("value", "error", "steps", "told"),
    [
        (2.0, 0.5, 32.0, "32.0 steps"),
        (0.1, 0.4, 160.0, "at least 160 steps"),
        (NAN, NAN, 7.7, "7.7 steps"),
    ],
)
def test_a_horizon_that_the_error_rules_is_told_as_at_least(
    value: float, error: float, steps: float, told: str
) -> None:
    assert horizon(measured(0.1, gain=value, gain_error=error, metrics={"gradient_horizon": steps})) == told
