"""What holds of a measurement, or of several: the conditions that sentences, verdicts and the stopper rest on.

Two figures are judged, each with the half-width of its 95 % bar, which is what "beyond its error" means throughout.
The largest exponent λ₁ is a rate in the long run, and only where it has settled is anything called chaotic or stable.
The gain g is what happens to a gradient over the sequence itself: it says what explodes and what is forgotten, however
short the sequence. A measurement of an older version knows neither growth nor whether it has settled: its λ₁ times the
steps T of the sequence stands in for the gain there, and it is never called chaotic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from lightning_lyapunov.reading.history import Measurement

MILD = 2.0
"""Nats over a sequence. A change by less, e² = 7-fold either way, is one that training lives with: such a network
remembers if it shrinks, and is not in danger if it grows."""
EXPLODED = 7.0
"""Nats over a sequence. Of the bank's networks in which a gradient grew by more, 1,100-fold, after an epoch, 97 % never
learnt their task; of those in which it grew by 2 to 7 nats, 60 %."""
LOST = 10.0
"""Nats over a sequence. A perturbation that shrinks by more, to under e⁻¹⁰ = 0.005 %, drowns among later inputs and in
single precision's rounding of what they sum up to."""
COLLAPSED = -0.5
"""Nats per step. Below, half of what the state holds is gone after little more than a step."""
VANISHED = 40.0
"""Nats over a sequence. What shrinks by more is below the rounding of float64, e⁻³⁷, beside whatever it is added to. Of
the bank's networks that lost so much nearly none learnt its task; of those that lost less, if each step took as much,
about half did: their sequences were short."""
DEAD = -100.0
"""Nats per step. A direction below is dead: no float64 survives ten such steps. The callback logs dead ones as this."""
FAILED = 0.1
"""Skill below which a network is as good as by chance."""
FAILS = 0.9
"""Probability of failure from which it is told: one run in ten of those told would still have learnt."""
FAMILIAR = 0.3
"""Familiarity below which a score is little more than a guess, and not acted upon."""
UNMOVED_FOR = 3
"""Measurements that the newest must agree with before the spectrum is said to stand still: one may do so by chance."""
COARSE = (0.05, 0.1)
"""Noise above both 0.05 nats per step and 0.1 of the spectrum's own size (rms) hides moves that matter: nothing is said
to stand still in it."""

# ---------------------------------------------------------------- figures and their errors


def largest(measurement: Measurement) -> tuple[float, float]:
    """The largest exponent and its error, nats per step; NaN where not known, -inf if all is dead."""
    value = float(measurement.exponents[0]) if len(measurement.exponents) else math.nan
    if measurement.error is not None and len(measurement.error):
        return value, float(measurement.error[0])
    metrics = measurement.metrics
    return value, metrics.get("max_error", 2 * metrics.get("max_stderr", math.nan))


def is_old(measurement: Measurement) -> bool:
    """Whether it is of a version that knew no growth and did not ask whether exponents have settled."""
    return measurement.settled is None and math.isnan(measurement.gain)


def gain(measurement: Measurement) -> tuple[float, float]:
    """The gain over a sequence and its error, nats; of an older version λ₁T in its place; NaN where not known."""
    if not is_old(measurement):
        return measurement.gain, measurement.gain_error
    value, error = largest(measurement)
    steps = measurement.length or math.nan
    return value * steps, error * steps


def largest_growth(measurement: Measurement) -> tuple[float, float]:
    """The most that a gradient can grow over a sequence, the largest ln σ, and its error, nats; NaN if not known.

    Of an older version λ₁T stands in its place.
    """
    if is_old(measurement):
        return gain(measurement)
    if measurement.growth is None or not len(measurement.growth):
        return math.nan, math.nan
    error = measurement.growth_error
    return float(measurement.growth[0]), measurement.gain_error if error is None else float(error[0])


# ---------------------------------------------------------------- conditions, of one measurement


def has_settled(measurement: Measurement) -> bool:
    """λ₁ may be read as a rate in the long run: it has settled, and is not −∞ while gradients get through."""
    if measurement.settled is None or not len(measurement.settled) or not measurement.settled[0]:
        return False
    return largest(measurement)[0] > -math.inf or not measurement.gain > -math.inf


def is_chaotic(measurement: Measurement) -> bool:
    """λ₁ has settled, and λ₁ − error > 0."""
    value, error = largest(measurement)
    return has_settled(measurement) and value - error > 0


def is_stable(measurement: Measurement) -> bool:
    """λ₁ + error < 0, and λ₁ has settled, or is of an older version."""
    value, error = largest(measurement)
    return (has_settled(measurement) or is_old(measurement)) and value + error < 0


def explodes(measurement: Measurement) -> bool:
    """In a typical sequence a gradient grows more than 1,100-fold: g − error > 7."""
    value, error = gain(measurement)
    return value - error > EXPLODED


def may_explode(measurement: Measurement) -> bool:
    """In a typical sequence a gradient grows, perhaps more than 1,100-fold: g − error > 0 and g + error > 7."""
    value, error = gain(measurement)
    return value - error > 0 and value + error > EXPLODED


def grows_much(measurement: Measurement) -> bool:
    """In a typical sequence a gradient grows by more than 7-fold: g − error > 2."""
    value, error = gain(measurement)
    return value - error > MILD


def grows_gravely(measurement: Measurement) -> bool:
    """:func:`grows_much`, or :func:`may_explode`."""
    return grows_much(measurement) or may_explode(measurement)


def grows(measurement: Measurement) -> bool:
    """In a typical sequence a gradient grows: g − error > 0."""
    value, error = gain(measurement)
    return value - error > 0


def fades(measurement: Measurement) -> bool:
    """In a typical sequence a gradient shrinks: g + error < 0."""
    value, error = gain(measurement)
    return value + error < 0


def is_dead(measurement: Measurement) -> bool:
    """Nothing is left of a gradient over a sequence, g = −∞, in nine sequences of ten; or g not known and λ₁ ≤ −100.

    Where it is known the gain decides: a sequence that dies among many that live does not make a network dead.
    """
    if math.isnan(measurement.gain):
        return largest(measurement)[0] <= DEAD
    return measurement.gain == -math.inf and not measurement.gain_high > -math.inf


def is_collapsed(measurement: Measurement) -> bool:
    """λ₁ + error < −½ nats per step, and g + error < −40 over the sequence; or dead.

    Where λ₁ has not settled, the largest ln σ over the steps stands in its place; where the gain is not known, λ₁ times
    the steps.
    """
    value, error = rate = largest(measurement)
    if not has_settled(measurement) and not math.isnan(measurement.growth_steps):
        value, error = (figure / measurement.growth_steps for figure in largest_growth(measurement))
    over, its_error = gain(measurement)
    if math.isnan(over):
        over, its_error = (figure * (measurement.length or math.nan) for figure in rate)
    return is_dead(measurement) or (value + error < COLLAPSED and over + its_error < -VANISHED)


def is_forgetting(measurement: Measurement) -> bool:
    """In a typical sequence next to nothing is left of a gradient: g + error < −10, or g = −∞; or dead."""
    value, error = gain(measurement)
    return is_dead(measurement) or value == -math.inf or value + error < -LOST


def is_remembering(measurement: Measurement) -> bool:
    """Not chaotic, g + error < 2, and the largest ln σ − error > −2.

    No gradient grows much, and what lasts best of what enters at the first step changes less than 7-fold on the way.
    """
    (value, error), (best, its_error) = gain(measurement), largest_growth(measurement)
    return not is_chaotic(measurement) and value + error < MILD and best - its_error > -MILD


def is_predicted_to_fail(measurement: Measurement, probability: float = FAILS, familiarity: float = FAMILIAR) -> bool:
    """P(failure) ≥ probability and familiarity high enough to believe it."""
    return score(measurement, "failure_probability") >= probability and score(measurement, "familiarity") >= familiarity


def has_learnt(measurement: Measurement) -> bool:
    """The skill so far is known, and at least 0.1: this is no network that never learns its task."""
    return measurement.skill >= FAILED


def is_cut(measurement: Measurement) -> bool:
    """Of a typical sequence less than half as many steps were measured as the longest has."""
    if not measurement.fewer or measurement.steps is None or measurement.growth_whole:
        return False
    typical = measurement.steps if math.isnan(measurement.growth_steps) else measurement.growth_steps
    return 2 * typical < (measurement.length or 0)


def score(measurement: Measurement, name: str) -> float:
    """What the scorer says, as ``performance``; NaN where it says nothing."""
    return measurement.metrics.get(f"aelle/{name}", math.nan)


# ---------------------------------------------------------------- and of several


def comparable(history: Iterable[Measurement]) -> list[Measurement]:
    """Those measurements of a run that were driven by the same data as the newest: what else differs is no change.

    Sources that are not known are taken for the same.
    """
    run = list(history)
    return [measurement for measurement in run if measurement.source == run[-1].source]


def has_saturated(history: Iterable[Measurement]) -> bool:
    """λ₁ − error > 0, or g − error > 2, before the first update, and every direction dead now.

    Growth and death are each beyond doubt in a single measurement, so it does not matter what drove the first.
    """
    run = list(history)
    if not run or run[0].step > 0 or not is_dead(run[-1]):
        return False
    value, error = largest(run[0])
    return value - error > 0 or grows_much(run[0])


def state_of(history: Iterable[Measurement]) -> str:
    """The state of the network at the newest measurement of a run, in a word or two: the first that holds.

    ===============  =============================================================================================
    ``unknown``      neither λ₁ nor the gain is known with an error, or nothing was measured
    ``saturated``    :func:`has_saturated`
    ``collapsed``    :func:`is_collapsed`
    ``exploding``    :func:`explodes`, chaotic or not
    ``may explode``  :func:`may_explode`: whether it does lies within the error
    ``chaotic``      :func:`is_chaotic`: of exponents that have settled alone
    ``growing``      :func:`grows_much`
    ``forgetting``   :func:`is_forgetting`
    ``mild growth``  :func:`grows`
    ``remembering``  :func:`is_remembering`
    ``stable``       :func:`is_stable`: of exponents that have settled alone
    ``fading``       :func:`fades`
    ``undecided``    none of these
    ===============  =============================================================================================
    """
    run = list(history)
    if not run:
        return "unknown"
    newest = run[-1]
    states = {
        "saturated": has_saturated(run),
        "collapsed": is_collapsed(newest),
        "exploding": explodes(newest),
        "may explode": may_explode(newest),
        "chaotic": is_chaotic(newest),
        "growing": grows_much(newest),
        "forgetting": is_forgetting(newest),
        "mild growth": grows(newest),
        "remembering": is_remembering(newest),
        "stable": is_stable(newest),
        "fading": fades(newest),
        "undecided": any(math.isfinite(sum(figure(newest))) for figure in (largest, gain)),
    }
    return next((state for state, holds in states.items() if holds), "unknown")


def has_converged(history: Iterable[Measurement], patience: int = UNMOVED_FOR) -> bool:
    """Each of the ``patience`` measurements before the newest lies within noise of it, and the noise is not coarse.

    Compared with the newest, not each with the next, so that a slow drift is no standstill. The measurement before the
    first update does not count: a spectrum that did not yet move has not stopped moving.
    """
    run = [m for m in comparable(history) if m.step > 0]
    if len(run) <= patience:
        return False
    newest = run[-1]
    finite = newest.exponents[newest.exponents.isfinite()]
    fine = max(COARSE[0], COARSE[1] * _rms(finite))
    return all(distance(m, newest) <= noise_between(m, newest) <= fine for m in run[-1 - patience : -1])  # not if NaN


def distance(a: Measurement, b: Measurement) -> float:
    """Root mean square difference of the exponents that both have finite, nats per step; NaN if none."""
    count = min(len(a.exponents), len(b.exponents))
    difference = a.exponents[:count].double() - b.exponents[:count].double()
    return _rms(difference[difference.isfinite()])


def noise_between(a: Measurement, b: Measurement) -> float:
    """What their distance would be by chance, were the sequences of both drawn anew: rms of √(σ_a² + σ_b²).

    Of standard errors σ alone: what start and frame leave in a short measurement is common to both.
    """
    if a.stderr is None or b.stderr is None:
        return math.nan
    count = min(len(a.stderr), len(b.stderr))
    squares = a.stderr[:count].double().square() + b.stderr[:count].double().square()
    return _rms(squares[squares.isfinite()].sqrt())


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())  # NaN if there are none
