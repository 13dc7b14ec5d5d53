"""The state of a network in a sentence or two, one function for each state that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from lightning_lyapunov.reading.conditions import (
    EXPLODED,
    MILD,
    comparable,
    gain,
    grows,
    grows_gravely,
    grows_much,
    has_settled,
    is_chaotic,
    is_collapsed,
    is_dead,
    is_forgetting,
    is_old,
    is_stable,
    largest,
    largest_growth,
)
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import (
    capital,
    factor,
    in_words,
    listed,
    over_a_sequence,
    percent,
    plus_minus,
    since,
    steps_of,
    steps_to_a_percent,
)

Level = Literal["good", "note", "warning", "act"]
"""How much something matters. What rules call a warning is a concern, whose level its rate decides on."""
Run = Sequence[Measurement]
Told = tuple[Level, str, str]
"""How much it matters, what it is, and what to do about it; the last is empty where there is nothing to do."""
TOO_MANY = 100.0
"""Times as many sequences as measured. Where more would be needed to tell an exponent from 0, it is 0 in practice."""


def _saturated(run: Run) -> Told:
    """Growth at first, death now, told as one story, the one in which measurements of two sources may meet."""
    first, run = run[0], comparable(run)
    growth = over_a_sequence(first, past=True)
    exponent = f"its largest exponent was {in_words(first)}"
    if is_chaotic(first):
        was = f"the network was chaotic: {exponent}{', and ' * bool(growth)}{growth}"
    else:
        was = growth or exponent
    driven = "" if first.source == run[-1].source else f", driven by {first.source or 'other'} data,"
    what = (
        f"Before the first update{driven} {was}. Such growth drives units into saturation, where they no longer "
        f"respond: every direction of the state is dead {since(run, is_dead)}."
    )
    advice = (
        "Saturated units learn no more, so begin again: lower the recurrent gain or initialise orthogonally, lower the "
        "learning rate, and clip gradients."
    )
    return "warning", what, advice


def _collapsed(run: Run) -> Told:
    what = f"{capital(what_is_left(run[-1]))}, {since(run, is_collapsed)}. The recurrence carries nothing."
    advice = (
        "Look for units that are always off or saturated; lower weight decay; raise the recurrent gain, or initialise "
        "it orthogonally."
    )
    return "warning", what, advice


def what_is_left(measurement: Measurement) -> str:
    """What a collapsed network leaves of a perturbation, in a clause."""
    if is_dead(measurement):
        return "every direction of the state is dead"
    if has_settled(measurement) or math.isnan(measurement.growth_steps):
        left = percent(math.exp(largest(measurement)[0]))
        return f"the largest exponent is {in_words(measurement)}, which leaves {left} of a perturbation after one step"
    left = percent(math.exp(largest_growth(measurement)[0] / measurement.growth_steps))
    return f"over {steps_of(measurement)} at most {left} of a perturbation is left after each step"


def _growing(run: Run) -> Told:
    """Exploding, chaotic, growing or growing mildly: a warning if by more than 2 nats over the sequence."""
    newest = run[-1]
    growth, is_much = over_a_sequence(newest), grows_much(newest)
    exponent = f"The largest exponent is {in_words(newest)} and has been above 0 beyond its error"
    if is_chaotic(newest):
        above = since(run, lambda m: largest(m)[0] - largest(m)[1] > 0)
        text = f"{exponent} {above}: the network is chaotic{', and ' * bool(growth)}{growth}."
    elif growth:
        past = f"by more than {factor(MILD)} " if is_much else ""
        past = f"; it has grown {past}at every measurement {since(run, grows_much if is_much else grows)}"
        text = f"{capital(growth)}{past * (len(run) > 1)}."
    else:
        text = f"{exponent} {since(run, grows)}: gradients grow."
    if grows_gravely(newest):
        if run[0].step == 0 and (grows_gravely(run[0]) or is_chaotic(run[0])):  # no learning rate has made it so
            return "warning", text, _softer(run)
        return "warning", text, "Lower the recurrent gain or the learning rate, or clip gradients."
    if not sum(gain(newest)) <= EXPLODED:  # nor if the error is not known
        return "note", text, "How much is not known: more sequences (num_sequences) would tell."
    return "note", text, "That is mild; keep an eye on it, above all with longer sequences."


def _softer(run: Run) -> str:
    """What to do about growth that was there from the start."""
    factors = {name: value for name, value in run[0].softening.items() if value < 1}
    if not factors:
        return "Lower the recurrent gain, or initialise it orthogonally."
    scaled = " and ".join(f"{_recurrent_weights(run[0], name)} by {value:.2g}" for name, value in factors.items())
    begin = "Before training, scale" if run[-1].step == 0 else "Begin again and scale"
    return f"{begin} {scaled}, to take the largest exponent below 0."


def _recurrent_weights(before: Measurement, module: str) -> str:
    """Which weights of a module are too strong: all recurrent ones, or, of a stack, those of some layers by name."""
    parts = {name.rpartition(".l")[2]: before.layer(name) for name in before.layers if name.startswith(f"{module}.l")}
    strong = [part for part, layer in parts.items() if largest(layer)[0] > 0 or layer.gain > 0]
    if not strong or len(strong) == len(parts):
        return f"the recurrent weights of {_in_model(module)}"
    return f"{listed([f'weight_hh_l{part}' for part in strong])} of {_in_model(module)}"


def _longer_memory(run: Run) -> str:
    """What to do about memory that is too short, if it is."""
    newest = run[-1]
    lag = round(newest.growth_steps) - 1 if not math.isnan(newest.growth_steps) else 0
    layers = list(run[0].softening)
    if lag < 1 or not layers:
        return (
            "If the task needs more memory, raise the recurrent gain or the bias of the forget gate, or initialise "
            "orthogonally."
        )
    call = f"`condition({_in_model(layers[0])}, x, lag={lag})` with what reaches it, or " if len(layers) == 1 else ""
    begin = "begin again and " * (newest.step > 0)
    return (
        f"If the task asks to hold something so long, {begin}set the spectrum before training: {call}"
        f"`LyapunovConditioning(lag={lag})` among the callbacks. If it does not, leave it: conditioning can harm then."
    )


def _in_model(name: str) -> str:
    return f"model.{name}" if name else "model"


def _forgetting(run: Run) -> Told:
    newest = run[-1]
    what = capital(over_a_sequence(newest)) or f"The largest exponent is {in_words(newest)}"
    rate = ""
    if is_stable(newest):
        rate = f"a perturbation is down to 1 % after {steps_to_a_percent(largest(newest)[0])} steps, so "
    what = (
        f"{what}, and the network has been forgetting {since(run, is_forgetting)}: {rate}nothing is carried from the "
        "first step of a sequence to the last."
    )
    return "warning", what, _longer_memory(run)


def _remembering(run: Run) -> Told:
    newest = run[-1]
    what = capital(over_a_sequence(newest)) or f"The largest exponent is {in_words(newest)}, close to 0"
    what = (
        f"{what}: what enters at the first of these steps still counts at the last, and gradients do not explode on "
        "the way."
    )
    return "good", what, "Leave it as it is."


def _fading(run: Run) -> Told:
    """Stable, or where exponents have not settled fading."""
    newest = run[-1]
    growth = over_a_sequence(newest)
    text = f"{capital(growth)}." if growth else ""
    if is_stable(newest):
        steps = f" of your {newest.length}" if newest.length and not newest.layers else ""
        text = (
            f"The largest exponent is {in_words(newest)}: the network is stable, and a perturbation is down to 1 % "
            f"after {steps_to_a_percent(largest(newest)[0])} steps{steps}. {text}"
        ).rstrip()
    return "good", text, "If the task needs more memory, raise the recurrent gain or the bias of the forget gate."


def _undecided(run: Run) -> Told:
    """Of λ₁ where it has settled, or is of an older version; else of growth."""
    newest = run[-1]
    if has_settled(newest) or is_old(newest):
        question = "the network is chaotic" if has_settled(newest) else "perturbations grow or fade"
        what = f"Whether {question} is undecided: the largest exponent is {in_words(newest)}."
        return "note", what, _to_decide(newest)
    value, error = gain(newest)
    if math.isnan(value):
        what = f"{not_settled(newest)}, and growth over a sequence is not known, so there is nothing to judge by:"
        return "note", what, "measure growth (growth=8), or longer sequences (num_steps)."
    if math.isnan(error):
        what = f"{capital(over_a_sequence(newest))}, but the error of that is not known, so nothing is made of it:"
        return "note", what, "measure two sequences or more (num_sequences)."
    what = (
        f"Whether gradients grow or shrink over {steps_of(newest)} is undecided: the gain is "
        f"{plus_minus(value, error)} nats."
    )
    return "note", what, "More sequences (num_sequences) would decide."


def not_settled(measurement: Measurement) -> str:
    """That the largest exponent has not settled, in a clause."""
    settled = measurement.settled
    some = settled is not None and bool(settled.any())
    return "The largest exponent has not settled" if some else "No exponent has settled"


def _to_decide(newest: Measurement) -> str:
    """How much more to measure: errors fall with the root of the number of sequences, to what start and frame leave."""
    value, error = largest(newest)
    sampling = error if newest.stderr is None else 2 * float(newest.stderr[0])
    floor = max(error**2 - sampling**2, 0.0)
    if value**2 * TOO_MANY < error**2:
        return "It is so close to 0 that no sensible number of sequences would decide: take it for 0."
    if value**2 <= floor or sampling**2 > TOO_MANY * (value**2 - floor):
        return "Longer sequences (num_steps) would decide."
    times = sampling**2 / (value**2 - floor)
    if times < 1.5:
        return "A few more sequences (num_sequences), or longer ones, would decide."
    return f"About {times:.2g} times as many sequences (num_sequences), or longer ones, would decide."


STATES: dict[str, Callable[[Run], Told]] = {
    "saturated": _saturated,
    "collapsed": _collapsed,
    "exploding": _growing,
    "may explode": _growing,
    "chaotic": _growing,
    "growing": _growing,
    "mild growth": _growing,
    "forgetting": _forgetting,
    "remembering": _remembering,
    "stable": _fading,
    "fading": _fading,
    "undecided": _undecided,
}
"""By :func:`~.conditions.state_of`."""
