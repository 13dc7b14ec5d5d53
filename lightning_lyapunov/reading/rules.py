"""What a history means: rules that turn what holds of it into sentences, each with what to do.

What a rule calls a warning is a *concern*. How much it matters is not for the rule to say: the share of the bank's
networks told the same that ended badly decides whether it is a note, a warning, or calls for action, and ends the
sentence (:mod:`~lightning_lyapunov.reading.rates`).

Every ± in a sentence is the half-width of a 95 % bar, and "beyond its error" means by more than that. What is said of
gradients is what was measured over the sequence, a factor in a typical one; of chaos only settled exponents speak.
Where the evidence is too thin, one sentence says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lightning_lyapunov.engine.tally import FEWEST_STEPS
from lightning_lyapunov.reading.conditions import (
    DEAD,
    FAMILIAR,
    LOST,
    MILD,
    UNMOVED_FOR,
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
    is_cut,
    is_dead,
    is_forgetting,
    is_predicted_to_fail,
    largest,
    may_explode,
    noise_between,
    score,
    state_of,
)
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rates import Rate, rate_of
from lightning_lyapunov.reading.state import STATES, Level, not_settled
from lightning_lyapunov.reading.words import (
    capital,
    factor,
    listed,
    percent,
    plus_minus,
    since,
    two_digits,
    when,
)

MOVES = 2.0
"""Times the noise between two measurements, beyond which the spectrum is said to move."""
DEAD_SHARE = 0.5
"""Share of the state's directions. Rectified units are off about half of the time, which alone kills up to half."""
SAME_PREDICTION = 0.05
"""Skill. A prediction that is this close to the one without the spectrum owes the spectrum nothing worth telling."""
TREND = (4, 8)
"""Measurements that a trend is fitted to, at least and at most: a line through three fits too easily, old ones lie."""
QUIET = 5
"""Measurements that a state must have been absent for before it is news again: a flickering one is told once."""

_LEVELS = ("act", "warning", "note", "good")
_NEWS_AT_FIRST = ("exploding", "may explode", "chaotic", "growing", "saturated", "layer_explodes", "predicted_to_fail")
"""What needs no measurement before, of the same source, to be news."""


@dataclass(frozen=True)
class Finding:
    """One thing that a history says."""

    state: str
    """What it is, in a word or two: ``chaotic``, ``forgetting``, ``converged``, ..."""
    level: Level
    """How much it matters."""
    text: str
    """Sentences: what, how much, since when, and what to do."""
    subject: str = ""
    """The layer that it concerns; empty if the whole network."""
    is_concern: bool = False
    """Whether something may be wrong, whatever its level."""
    rate: Rate | None = None
    """Of a concern, how often it was right; None where the bank cannot tell."""
    advice: str = ""
    """What to do about it, a part of the text; empty where that is not told apart."""


def findings(history: History) -> list[Finding]:
    """Everything that holds at the newest measurement, gravest first; what is missing where little can be said.

    Only measurements that the same data drove are compared, but for the story of growth that saturates.
    """
    if not len(history):
        return [Finding("evidence", "note", "Nothing has been measured yet: there is no spectrum to read.")]
    return _findings(list(history))


def _findings(run: Sequence[Measurement]) -> list[Finding]:
    every = [_graded(finding, run[-1]) for finding in told(run)]
    return sorted(every, key=lambda finding: _LEVELS.index(finding.level))


def told(run: Sequence[Measurement]) -> list[Finding]:
    """All that the rules say of a run, in their order; every concern is a warning, as its rate does not count yet."""
    return [finding for rule in RULES for finding in rule(run)]


def _graded(finding: Finding, newest: Measurement) -> Finding:
    """A finding with its level; of a concern by how often it was right, which its text then says at the end."""
    if finding.level != "warning":
        return finding
    rate = rate_of(finding.state, newest)
    if rate is None:
        return replace(finding, level="note", is_concern=True)
    return replace(finding, level=rate.level, text=f"{finding.text} {capital(str(rate))}.", is_concern=True, rate=rate)


def news(history: History) -> list[Finding]:
    """Those concerns that began at the newest measurement, or call for action since then, for the log, gravest first.

    Those that begin are: the network became chaotic, gradients grow much or explode, it lost its memory or collapsed,
    they explode in one layer or it died, the scorer says that the run will fail. Each is told where it did not hold at
    any of the :data:`QUIET` measurements before. Memory and layers are lost only if they were there before: an initial
    network without them is no news. It is once it calls for action. Measurements that other data drove are not looked
    at, so what the first of its kind finds is told again.
    """
    run = list(history)
    ends = [i + 1 for i, measurement in enumerate(run) if measurement.source == run[-1].source][-1 - QUIET : -1]
    before = [_grave_states(run[:end]) for end in ends]
    new = (_grave_states(run) if run else set()).difference(*before)
    if not before:
        new = {one for one in new if one[0] in _NEWS_AT_FIRST}
    concerns = [finding for finding in findings(history) if finding.is_concern]
    if any(finding.level == "act" for finding in concerns):
        called = {(f.state, f.subject) for end in ends for f in _findings(run[:end]) if f.level == "act"}
        new |= {(f.state, f.subject) for f in concerns if f.level == "act"} - called
    return [f for f in concerns if (f.state, f.subject) in new]


def _grave_states(run: Sequence[Measurement]) -> set[tuple[str, str]]:
    """States at the newest measurement, with their subjects, that :func:`news` may tell of."""
    newest = run[-1]
    holds = {
        "exploding": explodes(newest),
        "may explode": may_explode(newest),
        "chaotic": is_chaotic(newest) and grows_much(newest),
        "growing": grows_much(newest),
        "saturated": has_saturated(run),
        "collapsed": is_collapsed(newest),
        "forgetting": is_forgetting(newest),
        "predicted_to_fail": is_predicted_to_fail(newest),
    }
    layers = {(f"layer_{s}", name) for s in ("explodes", "died") for name in _odd_layers(newest, s)}
    return {(state, "") for state, held in holds.items() if held} | layers


# ---------------------------------------------------------------- rules


def _state(run: Sequence[Measurement]) -> Iterator[Finding]:
    """The state of the network, one at a time: see :func:`~.conditions.state_of`."""
    state = state_of(run)
    if state in STATES:
        level, what, advice = STATES[state](run if state == "saturated" else comparable(run))
        yield Finding(state, level, f"{what} {advice}".strip(), advice=advice)


def _evidence(run: Sequence[Measurement]) -> Iterator[Finding]:
    """What is too little: the steps measured of those seen; λ₁ or its error unknown, or not settled; one measurement.

    That nothing has settled is not told where the state says so; measurements that other data drove do not count.
    """
    newest, missing = run[-1], []
    if is_cut(newest):
        missing.append(f"Of what was seen only this was measured: {newest.fewer}.")
    value, error = largest(newest)
    if math.isnan(value):
        missing.append(f"The largest exponent is unknown ({when(newest)}). Look for states or weights that overflow.")
    elif math.isnan(error) and value > DEAD:
        missing.append(
            f"The largest exponent is {value:+.3f} nats/step ({when(newest)}), its error unknown, so nothing is made "
            "of it: measure two sequences or more (num_sequences)."
        )
    elif newest.settled is not None and not has_settled(newest) and value > DEAD and not _state_says_so(run):
        is_short = newest.growth_steps < (newest.length or 0) and not newest.growth_whole
        count = FEWEST_STEPS if newest.counted is None else newest.counted
        few = f", with no more than {count} step{'s' * (count != 1)} after the transient" * (count < FEWEST_STEPS)
        missing.append(
            f"{not_settled(newest)}{few}, so what is said here is what happened over these steps: longer sequences "
            f"{'(num_steps) ' * is_short}would show the rates in the long run."
        )
    if len(comparable(run)) == 1:
        driven = f" driven by {newest.source} data" * (len(run) > 1)
        missing.append(
            f"There is one measurement{driven} so far ({when(newest)}): what training changes shows from the next."
        )
    if missing:
        yield Finding("evidence", "note", " ".join(missing))


def _state_says_so(run: Sequence[Measurement]) -> bool:
    """Whether the sentence on the state itself says that nothing has settled: see :func:`~.state._undecided`."""
    return state_of(run) == "undecided" and math.isnan(gain(run[-1])[0])


def _dead_directions(run: Sequence[Measurement]) -> Iterator[Finding]:
    """More than half of the D directions at or below −100 nats per step, but not all.

    As exponents are sorted, all those that were not measured are dead if the last measured one is.
    """
    newest = run[-1]
    known = newest.exponents[~newest.exponents.isnan()]
    size = max(newest.dimension or 0, len(newest.exponents))
    alive = int((known > DEAD).sum())
    dead = size - alive if len(known) == len(newest.exponents) and alive < len(known) else len(known) - alive
    if alive and dead > DEAD_SHARE * size:
        yield Finding(
            "dead_directions",
            "note",
            f"{dead} of the state's {size} directions are dead: nothing that enters along them lasts. Fewer units "
            "would do as well; if they should live, look for units that are always off, and lower weight decay.",
        )


def _layers(run: Sequence[Measurement]) -> Iterator[Finding]:
    """A layer that explodes, died or forgets, where some other one does not."""
    newest = run[-1]
    for state, advice in (
        ("explodes", "Lower the recurrent gain of this layer, or clip gradients."),
        ("died", "Look for units that are always off or saturated; initialise this layer anew."),
        ("forgets", "If it is to carry something, raise its recurrent gain or the bias of its forget gate."),
    ):
        for name in _odd_layers(newest, state):
            others = ", ".join(f"{n} {_amount(newest.layer(n))}" for n in newest.layers if n != name)
            layer = newest.layer(name)
            what = (
                f"its largest exponent is {plus_minus(*largest(layer))} nats per step of its own"
                if math.isnan(layer.gain)
                else f"in a typical sequence it multiplies a gradient {_amount(layer)}"
            )
            yield Finding(
                f"layer_{state}",
                "note" if state == "forgets" else "warning",
                f"Layer {name} {state}: {what}, beside {others}. {advice}",
                subject=name,
                advice=advice,
            )


def _amount(layer: Measurement) -> str:
    """What a layer multiplies a gradient by, as ``by 20``; its largest exponent where that is not known."""
    return plus_minus(*largest(layer)) if math.isnan(layer.gain) else f"by {factor(layer.gain).removesuffix('-fold')}"


def _odd_layers(measurement: Measurement, state: str) -> list[str]:
    """Names of the layers that explode, died or forget, if others do not."""
    holds: dict[str, Callable[[Measurement], bool]] = {
        "explodes": explodes,
        "died": is_dead,
        "forgets": lambda layer: is_forgetting(layer) and not is_dead(layer),
    }
    odd = [name for name in measurement.layers if holds[state](measurement.layer(name))]
    return odd if len(odd) < len(measurement.layers) else []


def _prediction(run: Sequence[Measurement]) -> Iterator[Finding]:
    """What the scorer says.

    unfamiliar: familiarity < 0.3, and nothing else is told; predicted_to_fail: P(failure) ≥ 0.9;
    prediction_is_baseline: the spectrum speaks of nothing (where the scorer does not know of what it speaks:
    |performance − baseline| < 0.05); else prediction.
    """
    newest = run[-1]
    performance, baseline, familiarity = (score(newest, s) for s in ("performance", "baseline", "familiarity"))
    if familiarity < FAMILIAR:
        yield Finding(
            "unfamiliar",
            "note",
            f"The scorer knows no network like this one (familiarity {familiarity:.2f}): take no decision on what it "
            "predicts. A scorer fitted on runs of your own (AeLLEScorer.fit) would know them.",
        )
        return
    if is_predicted_to_fail(newest):
        advice = "Start again with another initialisation, gain or learning rate."
        yield Finding(
            "predicted_to_fail",
            "warning",
            f"The scorer expects that this network never learns its task: with a probability of "
            f"{percent(score(newest, 'failure_probability'))} (familiarity {familiarity:.2f}), "
            f"{since(comparable(run), is_predicted_to_fail)}. {advice}",
            advice=advice,
        )
    if math.isnan(performance):
        return
    interval = f"80 % interval {score(newest, 'performance_low'):.2f} to {score(newest, 'performance_high'):.2f}"
    reached = "" if newest.reached is None else f"; {newest.reached:.2f} is reached so far"
    says_nothing = abs(performance - baseline) < SAME_PREDICTION if newest.speaks is None else not newest.speaks
    if says_nothing:
        yield Finding(
            "prediction_is_baseline",
            "note",
            f"The scorer predicts a final skill of {performance:.2f} ({interval}){reached}, and would say "
            f"{baseline:.2f} without the spectrum: the spectrum tells nothing about the end of this run so far. "
            "Judge it by its validation metric.",
        )
    else:
        without = "" if math.isnan(baseline) else f" Without the spectrum it would say {baseline:.2f}."
        yield Finding(
            "prediction",
            "note",
            f"The scorer predicts a final skill of {performance:.2f} ({interval}){reached}.{without}"
            f"{_who_speaks(newest)} Prefer another run only where the intervals lie apart.",
        )


def _who_speaks(newest: Measurement) -> str:
    """Of what the spectrum says more than all else that is known, in words, and of what that says as much."""
    if newest.speaks is None:
        return ""
    named = {
        "rank": "its rank among networks of its task",
        "failure": "whether it fails",
        "takeoff": "whether it takes off",
    }
    adds = [words for name, words in named.items() if name in newest.speaks.split(", ")]
    rest = [words for words in named.values() if words not in adds]
    told = f" The spectrum adds to {listed(adds)}"
    return f"{told}; of {listed(rest)}, what else is known tells as much." if rest else f"{told}."


def _movement(run: Sequence[Measurement]) -> Iterator[Finding]:
    """converged: see :func:`~.conditions.has_converged`; moving: distance to the measurement before > 2 noise.

    Neither of a network that has collapsed.
    """
    run = comparable(run)
    if len(run) < 2 or is_collapsed(run[-1]):
        return
    moved, noise = distance(run[-2], run[-1]), noise_between(run[-2], run[-1])
    told = f"{moved:.2g} nats/step apart (rms), the noise is {noise:.2g}"
    if has_converged(run):
        yield Finding(
            "converged",
            "note",
            f"The spectrum has not moved beyond its noise over the last {UNMOVED_FOR + 1} measurements: the last two "
            f"are {told}. If the loss stands still as well, more of the same training will change little.",
        )
    elif moved > MOVES * noise:
        yield Finding(
            "moving",
            "note",
            f"The spectrum still moves: the last two measurements are {told}. Training is changing the dynamics, so "
            "wait before judging how it ends.",
        )


def _trend(run: Sequence[Measurement]) -> Iterator[Finding]:
    """A line over updates whose slope is beyond its error and that meets a limit within its own span ahead.

    rising: λ₁, where it has settled, to 0, else the gain to 2; falling: the gain to −10. Measurements of an older
    version, which knew no gain, do not count.
    """
    run = [m for m in comparable(run) if m.step > 0 and m.settled is not None]
    if run and has_settled(run[-1]):
        rise, then = _heading(run, largest, "largest exponent", "nats/step", 1, 0.0), "it crosses 0, where chaos begins"
    else:
        rise, then = _heading(run, gain, "gain over a sequence", "nats", 1, MILD), f"a gradient grows {factor(MILD)}"
    if rise:
        advice = "Lower the learning rate or clip gradients if it does not level off."
        yield Finding("rising", "note", f"{rise} {then}. {advice}")
    if fall := _heading(run, gain, "gain over a sequence", "nats", -1, -LOST):
        advice = "Lower weight decay or the learning rate if it does not level off."
        yield Finding("falling", "note", f"{fall} nothing will be carried any more over a sequence. {advice}")


def _heading(
    run: Sequence[Measurement],
    figure: Callable[[Measurement], tuple[float, float]],
    name: str,
    unit: str,
    sign: Literal[1, -1],
    limit: float,
) -> str:
    """How fast a figure heads for a limit and when it meets it, if it does soon; else nothing.

    Args:
        run: Measurements, oldest first.
        figure: What gives the figure and its error.
        name: Of the figure, in words.
        unit: Its unit.
        sign: 1 if it is to rise, -1 if it is to fall.
        limit: What it heads for, in its unit.
    """
    line = _line([(float(m.step), *figure(m)) for m in run])
    if line is None:
        return ""
    slope, error, span = line
    value, its_error = figure(run[-1])
    left = limit - value
    if sign * slope <= error or not 0 < left / slope <= span:
        return ""
    return (
        f"The {name} {'rises' if sign > 0 else 'falls'} by {two_digits(abs(slope) * 1000)} {unit} per 1,000 updates, "
        f"now {plus_minus(value, its_error)} {unit}; at this rate at about update {run[-1].step + left / slope:,.0f}"
    )


def _line(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, int] | None:
    """Slope of a figure over updates, half-width of its bar, and the updates it spans, if there are enough.

    Weighted least squares; the error grows with the scatter about the line where that exceeds the figures' own.

    Args:
        points: Updates, the figure, and the half-width of its bar.
    """
    points = [p for p in points[-TREND[1] :] if all(map(math.isfinite, p))]
    if len(points) < TREND[0] or points[0][0] == points[-1][0]:
        return None
    x, y, error = torch.tensor(points, dtype=torch.float64).T
    weight = (error / 2).clamp(min=1e-6) ** -2
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    spread = (weight * x**2).sum()
    slope = (weight * x * y).sum() / spread
    scatter = (weight * (y - slope * x) ** 2).sum() / (len(points) - 2)
    return float(slope), 2 * float((scatter.clamp(min=1.0) / spread).sqrt()), int(points[-1][0] - points[0][0])


def _health(run: Sequence[Measurement]) -> Iterator[Finding]:
    """Some living exponents outside the precision law: trusted fraction < 1; what is dead is as dead by any law."""
    newest = run[-1]
    fraction = newest.metrics.get("trusted_fraction", math.nan)
    if newest.trusted is not None and len(newest.trusted):
        alive = ~(newest.exponents <= DEAD)
        fraction = float(newest.trusted[alive].double().mean()) if alive.any() else 1.0
    if fraction < 1:
        yield Finding(
            "untrusted",
            "note",
            f"{percent(1 - fraction)} of the exponents measured lie outside the precision law: do not read them. "
            "dtype='float64' or a smaller interval brings them in; a smaller k leaves them out.",
        )


RULES: tuple[Callable[[Sequence[Measurement]], Iterator[Finding]], ...] = (
    _state,
    _layers,
    _prediction,
    _evidence,
    _dead_directions,
    _trend,
    _movement,
    _health,
)
"""In the order in which findings of one level are told."""
