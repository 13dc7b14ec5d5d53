"""What a history means, in words: each rule with its condition beside it.

A measurement knows the largest exponent λ₁ and its standard error σ, the number of steps T of the sequences that drive
the network, and with them how much a gradient grows or a perturbation shrinks on its way through one, by λ₁T nats.
The rules below turn such figures into sentences that end with what to do. "Beyond its error" is two standard errors
throughout, and so is every ± in a sentence. Where the evidence is too thin, one sentence says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_lyapunov.history import History, Measurement, key_of

SURE = 2.0
"""Standard errors: a figure is beyond its error where it is farther than this from what it is compared with."""
MILD = 2.0
"""Nats over a sequence. A change by less, e² = 7-fold either way, is one that training lives with: such a network
remembers if it shrinks, and is not in danger if it grows."""
LOST = 10.0
"""Nats over a sequence. A perturbation that shrinks by more, to under e⁻¹⁰ = 0.005 %, drowns among later inputs and in
single precision's rounding of what they sum up to: the horizon is less than a tenth of the sequence."""
COLLAPSED = -1.0
"""Nats per step. Below, the state forgets within a single step, and the recurrence does next to nothing."""
DEAD = -100.0
"""Nats per step. A direction below is dead: no float64 survives ten such steps. The callback logs dead ones as this."""
DEAD_SHARE = 0.5
"""Share of the state's directions. Rectified units are off about half of the time, which alone kills up to half."""
FAILS = 0.9
"""Probability of failure from which it is told: one run in ten of those told would still have learnt."""
FAMILIAR = 0.3
"""Familiarity below which a score is little more than a guess, and not acted upon."""
SAME_PREDICTION = 0.05
"""Skill. A prediction that is this close to the one without the spectrum owes the spectrum nothing worth telling."""
UNMOVED_FOR = 3
"""Measurements that the newest must agree with before the spectrum is said to stand still: one may do so by chance."""
COARSE = (0.05, 0.1)
"""Noise above both 0.05 nats per step and 0.1 of the spectrum's own size (rms) hides moves that matter: nothing is said
to stand still in it."""
TREND = (4, 8)
"""Measurements that a trend is fitted to, at least and at most: a line through three fits too easily, old ones lie."""
TOO_MANY = 100.0
"""Times as many sequences as measured. Where more would be needed to tell an exponent from 0, it is 0 in practice."""
QUIET = 5
"""Measurements that a state must have been absent for before it is news again: a flickering one is told once."""

_LEVELS = ("warning", "note", "good")


@dataclass(frozen=True)
class Finding:
    """One thing that a history says."""

    state: str
    """What was found, as a word: ``chaotic``, ``forgetting``, ``converged``, ..."""
    level: Literal["good", "note", "warning"]
    """How much it matters."""
    text: str
    """Sentences: what, how much, since when, and what to do."""
    subject: str = ""
    """The layer that it concerns; empty if the whole network."""


def findings(history: History) -> list[Finding]:
    """Everything that holds at the newest measurement, gravest first; what is missing where little can be said."""
    found = [finding for rule in RULES for finding in rule(history)]
    return sorted(found, key=lambda finding: _LEVELS.index(finding.level))


def news(history: History) -> list[Finding]:
    """Those grave findings that began at the newest measurement, for the log.

    These are: the network became chaotic, lost its memory or collapsed, a layer explodes or died, the scorer says that
    the run will fail. Each is told where it did not hold at any of the :data:`QUIET` measurements before. Memory and
    layers are lost only if they were there before: an initial network without them is no news.
    """
    run = _run_of(history)
    if not run:
        return []
    before = [_grave_states(m, history.prefix) for m in run[-1 - QUIET : -1]]
    new = _grave_states(run[-1], history.prefix).difference(*before)
    if not before:
        new = {
            (state, subject) for state, subject in new if state in ("chaotic", "layer_explodes", "predicted_to_fail")
        }
    return [f for f in findings(history) if f.level == "warning" and (f.state, f.subject) in new]


# ---------------------------------------------------------------- conditions, of one measurement


def is_chaotic(measurement: Measurement, prefix: str = "lyapunov") -> bool:
    """λ₁ − 2σ > 0."""
    value, error = largest(measurement, prefix)
    return value - SURE * error > 0


def is_collapsed(measurement: Measurement, prefix: str = "lyapunov") -> bool:
    """λ₁ + 2σ < −1 nats per step, or every direction dead."""
    value, error = largest(measurement, prefix)
    return value <= DEAD or value + SURE * error < COLLAPSED


def is_forgetting(measurement: Measurement, prefix: str = "lyapunov") -> bool:
    """λ₁ + 2σ < 0 and |λ₁|T > 10: the horizon 1/|λ₁| is shorter than a tenth of the sequence."""
    return _is_lost(*largest(measurement, prefix), measurement.length)


def is_remembering(measurement: Measurement, prefix: str = "lyapunov") -> bool:
    """Not chaotic and (|λ₁| + 2σ)T < 2: what enters at the first step changes less than 7-fold until the last."""
    value, error = largest(measurement, prefix)
    near_zero = (abs(value) + SURE * error) * (measurement.length or math.inf) < MILD
    return near_zero and not is_chaotic(measurement, prefix)


def is_predicted_to_fail(
    measurement: Measurement, prefix: str = "lyapunov", probability: float = FAILS, familiarity: float = FAMILIAR
) -> bool:
    """P(failure) ≥ probability and familiarity high enough to believe it."""
    score = _scores(measurement, prefix)
    return score("failure_probability") >= probability and score("familiarity") >= familiarity


def largest(measurement: Measurement, prefix: str = "lyapunov") -> tuple[float, float]:
    """The largest exponent and its standard error, nats per step; NaN where not known, -inf if all is dead."""
    value = float(measurement.exponents[0]) if len(measurement.exponents) else math.nan
    if measurement.stderr is not None and len(measurement.stderr):
        return value, float(measurement.stderr[0])
    return value, measurement.metrics.get(f"{prefix}/max_stderr", math.nan)


# ---------------------------------------------------------------- and of several


def has_converged(history: History, patience: int = UNMOVED_FOR) -> bool:
    """Each of the ``patience`` measurements before the newest lies within noise of it, and the noise is not coarse.

    Compared with the newest, not each with the next, so that a slow drift is no standstill. The measurement before the
    first update does not count: a spectrum that did not yet move has not stopped moving.
    """
    run = [m for m in _run_of(history) if m.step > 0]
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
    """What their distance would be by chance, were the sequences of both drawn anew: rms of √(σ_a² + σ_b²)."""
    if a.stderr is None or b.stderr is None:
        return math.nan
    count = min(len(a.stderr), len(b.stderr))
    squares = a.stderr[:count].double().square() + b.stderr[:count].double().square()
    return _rms(squares[squares.isfinite()].sqrt())


# ---------------------------------------------------------------- rules


def _evidence(history: History) -> Iterator[Finding]:
    """Nothing measured; λ₁ or σ unknown at the newest; or one measurement only."""
    run = _run_of(history)
    if not run:
        yield Finding("evidence", "note", "Nothing has been measured yet: there is no spectrum to read.")
        return
    value, error = largest(run[-1], history.prefix)
    missing = []
    if math.isnan(value):
        missing.append(f"The largest exponent is unknown ({_when(run[-1])}). Look for states or weights that overflow.")
    elif math.isnan(error) and value > DEAD:
        missing.append(
            f"The largest exponent is {value:+.3f} nats/step ({_when(run[-1])}), its error unknown, so nothing is made "
            "of it: measure two sequences or more (num_sequences)."
        )
    if len(run) == 1:
        missing.append(
            f"There is one measurement so far ({_when(run[-1])}): what training changes shows from the next ones."
        )
    if missing:
        yield Finding("evidence", "note", " ".join(missing))


def _chaos(history: History) -> Iterator[Finding]:
    """λ₁ − 2σ > 0, since the first of the unbroken run of such; a warning if it grows by more than λ₁T = 2 nats."""
    run, prefix = _run_of(history), history.prefix
    if not run or not is_chaotic(run[-1], prefix):
        return
    newest = run[-1]
    value, _ = largest(newest, prefix)
    yours, steps = ("your ", newest.length) if newest.length else ("", 100)
    text = (
        f"The largest exponent is {in_words(newest, prefix)} and has been above 0 beyond its error "
        f"{_since(run, lambda m: is_chaotic(m, prefix))}: over {yours}{steps}-step sequences a gradient grows "
        f"{_fold(value * steps)}."
    )
    if _explodes(value, 0.0, newest.length):
        yield Finding("chaotic", "warning", f"{text} Lower the recurrent gain or the learning rate, or clip gradients.")
    else:
        yield Finding("chaotic", "note", f"{text} That is mild; keep an eye on it, above all with longer sequences.")


def _undecided(history: History) -> Iterator[Finding]:
    """|λ₁| ≤ 2σ, and σ too large to tell that it remembers: n (2σ/|λ₁|)² sequences would decide instead of n."""
    for newest in _run_of(history)[-1:]:
        value, error = largest(newest, history.prefix)
        if abs(value) > SURE * error or math.isnan(value + error) or is_remembering(newest, history.prefix):
            continue
        times = (SURE * error / value) ** 2 if value else math.inf
        todo = (
            f"About {times:.2g} times as many sequences (num_sequences), or longer ones, would decide."
            if times <= TOO_MANY
            else "It is so close to 0 that no sensible number of sequences would decide: take it for 0."
        )
        text = (
            f"Whether the network is chaotic is undecided: the largest exponent is {in_words(newest, history.prefix)}"
        )
        yield Finding("undecided", "note", f"{text}. {todo}")


def _memory(history: History) -> Iterator[Finding]:
    """The largest exponent where it is not above 0, the first that holds.

    collapsed: λ₁ + 2σ < −1 or all dead; forgetting: λ₁ + 2σ < 0 and |λ₁|T > 10; remembering: (|λ₁| + 2σ)T < 2;
    stable: λ₁ + 2σ < 0. Forgetting is but a note before the first update, when gates are yet to open.
    """
    run, prefix = _run_of(history), history.prefix
    if not run:
        return
    newest = run[-1]
    value, error = largest(newest, prefix)
    told = f"The largest exponent is {in_words(newest, prefix)}"
    if is_collapsed(newest, prefix):
        since = _since(run, lambda m: is_collapsed(m, prefix))
        what = (
            "Every direction of the state is dead"
            if value <= DEAD
            else f"{told}: of a perturbation {_percent(math.exp(value))} is left after one step"
        )
        yield Finding(
            "collapsed",
            "warning",
            f"{what}, {since}. The recurrence carries nothing. Raise the recurrent gain, initialise it orthogonally, "
            "lower weight decay, or look for saturated units.",
        )
    elif is_forgetting(newest, prefix):
        since = _since(run, lambda m: is_forgetting(m, prefix))
        yield Finding(
            "forgetting",
            "warning" if newest.step > 0 else "note",
            f"{told}, and the network has been forgetting {since}: a perturbation is down to 1 % after "
            f"{_steps_to_a_percent(value)} steps, so nothing is carried over your {newest.length}-step sequences. If "
            "the task needs more memory, raise the recurrent gain or the bias of the forget gate, or initialise "
            "orthogonally.",
        )
    elif is_remembering(newest, prefix):
        yield Finding(
            "remembering",
            "good",
            f"{told}, close to 0: what enters at the first of your {newest.length} steps still counts at the last, and "
            "gradients neither explode nor vanish on the way. Leave it as it is.",
        )
    elif value + SURE * error < 0:
        over = f" of your {newest.length}" if newest.length else ""
        yield Finding(
            "stable",
            "good",
            f"{told}: the network is stable, and a perturbation is down to 1 % after {_steps_to_a_percent(value)} "
            f"steps{over}. If the task needs more memory, raise the recurrent gain or the bias of the forget gate.",
        )


def _dead_directions(history: History) -> Iterator[Finding]:
    """More than half of the D directions at or below −100 nats per step, but not all.

    As exponents are sorted, all those that were not measured are dead if the last measured one is.
    """
    for newest in _run_of(history)[-1:]:
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


def _layers(history: History) -> Iterator[Finding]:
    """A layer that differs from some other one.

    explodes: λ₁ − 2σ > 0 and λ₁T > 2; died: λ₁ ≤ −100; forgets: λ₁ + 2σ < 0 and |λ₁|T > 10, but alive.
    """
    for newest in _run_of(history)[-1:]:
        told = {name: _plus_minus(*values) for name, values in _layers_of(newest).items()}
        for state, advice in (
            ("explodes", "Lower the recurrent gain of this layer, or clip gradients."),
            ("died", "Look for units that are always off or saturated; initialise this layer anew."),
            ("forgets", "If it is to carry something, raise its recurrent gain or the bias of its forget gate."),
        ):
            for name in _odd_layers(newest, state):
                others = ", ".join(f"{other} {exponent}" for other, exponent in told.items() if other != name)
                yield Finding(
                    f"layer_{state}",
                    "note" if state == "forgets" else "warning",
                    f"Layer {name} {state}: its largest exponent is {told[name]} nats/step, beside {others}. {advice}",
                    subject=name,
                )


def _prediction(history: History) -> Iterator[Finding]:
    """What the scorer says.

    unfamiliar: familiarity < 0.3, and nothing else is told; predicted_to_fail: P(failure) ≥ 0.9;
    prediction_is_baseline: |performance − baseline| < 0.05; else prediction.
    """
    run, prefix = _run_of(history), history.prefix
    if not run:
        return
    score, keys = _scores(run[-1], prefix), key_of("aelle/", prefix)
    performance, baseline, familiarity = score("performance"), score("baseline"), score("familiarity")
    if familiarity < FAMILIAR:
        yield Finding(
            "unfamiliar",
            "note",
            f"The scorer knows no network like this one (familiarity {familiarity:.2f}): take no decision on what "
            f"{keys} says. A scorer fitted on runs of your own (AeLLEScorer.fit) would know them.",
        )
        return
    if is_predicted_to_fail(run[-1], prefix):
        since = _since(run, lambda m: is_predicted_to_fail(m, prefix))
        yield Finding(
            "predicted_to_fail",
            "warning",
            f"The scorer expects that this network never learns its task: with a probability of "
            f"{_percent(score('failure_probability'))} (familiarity {familiarity:.2f}), {since}. Start again with "
            "another initialisation, gain or learning rate.",
        )
    if math.isnan(performance):
        return
    interval = f"80 % interval {score('performance_low'):.2f} to {score('performance_high'):.2f}"
    reached = "" if run[-1].reached is None else f"; {run[-1].reached:.2f} is reached so far"
    if abs(performance - baseline) < SAME_PREDICTION:
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
            f"The scorer predicts a final skill of {performance:.2f} ({interval}){reached}.{without} Prefer another "
            "run only where the intervals lie apart.",
        )


def _movement(history: History) -> Iterator[Finding]:
    """converged: see :func:`has_converged`; moving: distance to the measurement before > 2 noise."""
    run = _run_of(history)
    if len(run) < 2:
        return
    moved, noise = distance(run[-2], run[-1]), noise_between(run[-2], run[-1])
    told = f"{moved:.2g} nats/step apart (rms), the noise is {noise:.2g}"
    if has_converged(history):
        yield Finding(
            "converged",
            "note",
            f"The spectrum has not moved beyond its noise over the last {UNMOVED_FOR + 1} measurements: the last two "
            f"are {told}. If the loss stands still as well, more of the same training will change little.",
        )
    elif moved > SURE * noise:
        yield Finding(
            "moving",
            "note",
            f"The spectrum still moves: the last two measurements are {told}. Training is changing the dynamics, so "
            "wait before judging how it ends.",
        )


def _trend(history: History) -> Iterator[Finding]:
    """A line through λ₁ over updates whose slope is beyond its error and that meets a limit within its own span ahead.

    rising: λ₁ < 0 now and 0 ahead; falling: not forgetting now and −10/T ahead.
    """
    run, prefix = _run_of(history), history.prefix
    line = _line([m for m in run if m.step > 0], prefix)
    if line is None:
        return
    slope, error, span = line
    newest = run[-1]
    value, _ = largest(newest, prefix)
    limit = 0.0 if slope > 0 else -LOST / (newest.length or 0 or math.nan)
    ahead = (limit - value) / slope if slope else math.nan
    if not (abs(slope) > SURE * error and 0 < ahead <= span):
        return
    told = (
        f"{abs(slope) * 1000:.2g} nats/step per 1,000 updates, now {in_words(newest, prefix)}; at this rate "
        f"at about update {newest.step + ahead:,.0f}"
    )
    if slope > 0:
        yield Finding(
            "rising",
            "note",
            f"The largest exponent rises by {told} it crosses 0, where chaos begins. Lower the learning rate or clip "
            "gradients if it does not level off.",
        )
    else:
        yield Finding(
            "falling",
            "note",
            f"The largest exponent falls by {told} nothing will be carried any more over your {newest.length}-step "
            "sequences. Lower weight decay or the learning rate if it does not level off.",
        )


def _health(history: History) -> Iterator[Finding]:
    """Some living exponents outside the precision law: trusted fraction < 1; what is dead is as dead by any law."""
    for newest in _run_of(history)[-1:]:
        fraction = newest.metrics.get(f"{history.prefix}/trusted_fraction", math.nan)
        if newest.trusted is not None and len(newest.trusted):
            alive = ~(newest.exponents <= DEAD)
            fraction = float(newest.trusted[alive].double().mean()) if alive.any() else 1.0
        if fraction < 1:
            yield Finding(
                "untrusted",
                "note",
                f"{_percent(1 - fraction)} of the exponents measured lie outside the precision law: do not read them. "
                "dtype='float64' or a smaller interval brings them in; a smaller k leaves them out.",
            )


RULES: tuple[Callable[[History], Iterator[Finding]], ...] = (
    _chaos,
    _memory,
    _layers,
    _prediction,
    _undecided,
    _evidence,
    _dead_directions,
    _trend,
    _movement,
    _health,
)
"""In the order in which findings of one level are told."""


# ---------------------------------------------------------------- what the rules share


def in_words(measurement: Measurement, prefix: str = "lyapunov") -> str:
    """The largest exponent with two standard errors, as ``+0.13 ± 0.02 nats/step``."""
    return f"{_plus_minus(*largest(measurement, prefix))} nats/step"


def _plus_minus(value: float, error: float) -> str:
    shown = SURE * error
    if not (math.isfinite(value) and shown > 0):
        return f"{value:+.3f}"
    digits = min(max(-math.floor(math.log10(shown)), 1), 4)
    return f"{value:+.{digits}f} ± {shown:.{digits}f}"


def _run_of(history: History) -> list[Measurement]:
    """The measurements of the newest fit: a callback used again counts updates from the start again."""
    run = list(history)
    starts = [i for i in range(1, len(run)) if run[i].step < run[i - 1].step]
    return run[starts[-1] :] if starts else run


def _grave_states(measurement: Measurement, prefix: str) -> set[tuple[str, str]]:
    """States and their subjects that :func:`news` may tell of."""
    value, _ = largest(measurement, prefix)
    holds = {
        "chaotic": is_chaotic(measurement, prefix) and _explodes(value, 0.0, measurement.length),
        "collapsed": is_collapsed(measurement, prefix),
        "forgetting": is_forgetting(measurement, prefix),
        "predicted_to_fail": is_predicted_to_fail(measurement, prefix),
    }
    layers = {(f"layer_{s}", name) for s in ("explodes", "died") for name in _odd_layers(measurement, s)}
    return {(state, "") for state, held in holds.items() if held} | layers


def _explodes(value: float, error: float, length: int | None) -> bool:
    return value - SURE * error > 0 and value * (length or math.inf) > MILD


def _is_lost(value: float, error: float, length: int | None) -> bool:
    return value <= DEAD or (value + SURE * error < 0 and -value * (length or 0) > LOST)


def _odd_layers(measurement: Measurement, state: str) -> list[str]:
    """Names of the layers that explode, died or forget, if others do not."""
    holds: dict[str, Callable[[float, float], bool]] = {
        "explodes": lambda value, error: _explodes(value, error, measurement.length),
        "died": lambda value, error: value <= DEAD,
        "forgets": lambda value, error: value > DEAD and _is_lost(value, error, measurement.length),
    }
    layers = _layers_of(measurement)
    odd = [name for name, (value, error) in layers.items() if holds[state](value, error)]
    return odd if len(odd) < len(layers) else []


def _layers_of(measurement: Measurement) -> dict[str, tuple[float, float]]:
    """Largest exponent and its standard error of each layer, nats per step."""
    return {name: (values[0], values[1]) for name, values in measurement.layers.items() if len(values) == 2}


def _scores(measurement: Measurement, prefix: str) -> Callable[[str], float]:
    """What the scorer said, by name; NaN where it said nothing."""
    return lambda name: measurement.metrics.get(key_of(f"aelle/{name}", prefix), math.nan)


def _line(measurements: Sequence[Measurement], prefix: str) -> tuple[float, float, int] | None:
    """Slope of λ₁ over updates, its standard error (nats per step and update) and the updates it spans, if enough.

    Weighted least squares; the error grows with the scatter about the line where that exceeds the standard errors.
    """
    points = [(float(m.step), *largest(m, prefix)) for m in measurements[-TREND[1] :]]
    points = [(x, y, error) for x, y, error in points if math.isfinite(y) and math.isfinite(error)]
    if len(points) < TREND[0] or points[0][0] == points[-1][0]:
        return None
    x, y, error = torch.tensor(points, dtype=torch.float64).T
    weight = error.clamp(min=1e-6) ** -2
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    spread = (weight * x**2).sum()
    slope = (weight * x * y).sum() / spread
    scatter = (weight * (y - slope * x) ** 2).sum() / (len(points) - 2)
    return float(slope), float((scatter.clamp(min=1.0) / spread).sqrt()), int(points[-1][0] - points[0][0])


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())  # NaN if there are none


def _since(run: Sequence[Measurement], holds: Callable[[Measurement], bool]) -> str:
    """When the unbroken run of measurements up to the newest began."""
    first = run[-1]
    for measurement in reversed(run):
        if not holds(measurement):
            break
        first = measurement
    return f"since {_when(first)}"


def _when(measurement: Measurement) -> str:
    return "before the first update" if measurement.step == 0 else f"epoch {measurement.epoch}"


def _fold(nats: float) -> str:
    """Growth by so many nats, as people say it: to one digit, by its power of ten where large."""
    tens = nats / math.log(10)
    if tens > 12:
        return "beyond 10^12-fold"
    if tens >= 6:
        return f"about 10^{round(tens)}-fold"
    fold = math.exp(nats)
    return f"about {fold:.2g}-fold" if tens < 1 else f"about {round(fold, -math.floor(tens)):,.0f}-fold"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "over 99 %"


def _steps_to_a_percent(value: float) -> int:
    """Steps until a perturbation is down to 1 %, at an exponent below 0."""
    return math.ceil(math.log(100) / -value)
