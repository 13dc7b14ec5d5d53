"""Numbers in words: with their errors, as factors and shares, and what happens to a gradient over a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lightning_lyapunov.reading.conditions import gain, is_old, largest, largest_growth
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.kept import Kept

UNKNOWN = "unknown"
_PRESENT, _PAST = ("keeps", "grows", "shrinks to", "vanishes"), ("kept", "grew", "shrank to", "vanished")


def in_words(measurement: Measurement) -> str:
    """The largest exponent with its error, as ``+0.13 ± 0.02 nats/step``.

    Of several layers it is that of one, whose steps need not be those of the others: a dilated one takes longer.
    """
    told = plus_minus(*largest(measurement))
    unit = "nats per step of its layer" if measurement.layers else "nats/step"
    return told if told == UNKNOWN else f"{told} {unit}"


def plus_minus(value: float, error: float) -> str:
    """A figure with its error, as ``+0.13 ± 0.02``; without one where that is not known.

    The error has one digit, and two where the first is a 1, which rounding to one would change by up to a half, or
    where rounding to one would hide which of the two is larger.

    Example:
        >>> plus_minus(0.1312, 0.0213), plus_minus(0.1312, 0.0113), plus_minus(-0.5, float("nan"))
        ('+0.13 ± 0.02', '+0.131 ± 0.011', '-0.500')
    """
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else f"{'+' if value > 0 else '-'}∞"
    if not 0 < error < math.inf:
        return f"{value:+.3f}"
    first, tens = f"{error:.1e}".split("e")  # of the error as it is shown, rounded
    digits = max((first[0] == "1") - int(tens), 1)
    digits = min(digits + (f"{abs(value):.{digits}f}" == f"{error:.{digits}f}"), 4)
    return f"{value:+.{digits}f} ± {error:.{digits}f}"


def two_digits(amount: float) -> str:
    """A positive number to two digits, by its power of ten where it is large or small.

    Example:
        >>> [two_digits(x) for x in (1.04, 9.96, 4105.2, 3.44e8, 0.00021)]
        ['1.0', '10', '4,100', '3.4·10^8', '2.1·10^-4']
    """
    digits, tens = f"{amount:.1e}".split("e")
    if 0 <= int(tens) < 6:
        return digits if int(tens) == 0 else f"{round(float(digits) * 10 ** int(tens)):,}"
    return f"{digits}·10^{int(tens)}"


def factor(nats: float) -> str:
    """What something is multiplied by as it grows by so many nats: ``9.3-fold``, or where it shrinks ``1/9.3``.

    Example:
        >>> factor(2.23), factor(-2.23), factor(-math.inf)
        ('9.3-fold', '1/9.3', '0')
    """
    if math.isinf(nats):
        return "∞-fold" if nats > 0 else "0"
    tens = abs(nats) / math.log(10)
    # Of what no float holds, by its logarithm.
    amount = two_digits(math.exp(abs(nats))) if tens < 300 else f"10^{round(tens)}"
    if amount == "1.0" or nats > 0:
        return f"{amount}-fold"
    return f"1/{amount}" if tens < 6 else two_digits(math.exp(nats)) if tens < 300 else f"10^-{round(tens)}"


def over_a_sequence(measurement: Measurement, *, past: bool = False) -> str:
    """What happens to a gradient over a sequence, in a clause.

    As "over your 8 steps a gradient grows 2.6-fold in a typical sequence (at most 9.3-fold), and between 1.5-fold and
    4.1-fold in eight sequences of ten". The most is that of a typical sequence too. Empty where growth is not known.
    """
    value, low, high = measurement.gain, measurement.gain_low, measurement.gain_high
    if math.isnan(value):
        return ""
    amount = factor(value)
    keeps, rises, shrinks, vanishes = _PAST if past else _PRESENT
    if value == -math.inf:
        changes = vanishes
    else:
        changes = f"{keeps} its size" if amount == "1.0-fold" else f"{rises if value > 0 else shrinks} {amount}"
    layer = f" in {measurement.growth_of}" if measurement.growth_of else ""
    told = f"over {steps_of(measurement)} a gradient{layer} {changes} in a typical sequence"
    if value > -math.inf and not math.isnan(best := largest_growth(measurement)[0]):
        told += f" (at most {factor(best)})"
    if value > -math.inf and not math.isnan(low) and factor(low) != factor(high):
        told += f", and between {factor(low)} and {factor(high)} in eight sequences of ten"
    return told


def steps_of(measurement: Measurement) -> str:
    """The steps that growth was measured over, beside those of a sequence: ``the first 64 of your 300 steps``."""
    steps, length = measurement.growth_steps, measurement.length
    if math.isnan(steps):
        return f"your {length} steps" if length else "a sequence"
    if length is None or round(steps) >= length:
        return f"your {steps:.0f} steps"
    if measurement.growth_whole:
        return f"your sequences of {steps:.0f} steps on average"
    return f"the first {steps:.0f} of your {length} steps"


def horizon(measurement: Measurement, unit: str = "steps") -> str:
    """Steps in which a gradient changes e-fold: ``12 steps``, or ``at least 40 steps`` where the error rules."""
    value = measurement.metrics.get("gradient_horizon", math.nan)
    if math.isnan(value):
        return ""
    gained, error = gain(measurement)
    least = "at least " if error > abs(gained) and not math.isnan(measurement.gain) else ""
    return f"{least}{value:,.0f} {unit}" if value >= 100 else f"{least}{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share to two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else "over 99 %"


def steps_to_a_percent(rate: float) -> int:
    """Steps until a perturbation is down to 1 %, at a rate below 0 in nats per step."""
    return math.ceil(math.log(100) / -rate)


def since(run: Sequence[Measurement], holds: Callable[[Measurement], bool]) -> str:
    """Since when it holds at every measurement up to the newest, as ``since epoch 3``.

    Measurements of an older version, which knew less, cannot vouch for what a newer one says: where it holds at all of
    those that can, and there are older ones, it is ``since epoch 3 at least``.
    """
    first, alike = run[-1], True
    for measurement in reversed(run):
        alike = is_old(measurement) == is_old(run[-1])
        if not alike or not holds(measurement):
            break
        first = measurement
    return f"since {when(first)}{'' if alike else ' at least'}"


def when(measurement: Kept) -> str:
    """When it was made."""
    return "before the first update" if measurement.step == 0 else f"epoch {epochs(measurement)}"


def epochs(measurement: Kept) -> int:
    """The epoch as people count: 3 in the third, and when three are done; 0 before the first update."""
    return measurement.epoch + 1 if measurement.step > 0 else 0


def capital(clause: str) -> str:
    """A clause as the beginning of a sentence."""
    return clause[:1].upper() + clause[1:]


def listed(words: Sequence[str]) -> str:
    """As ``one, two and three``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
