"""The verdict on a run, in a word: whether it is healthy, to be watched, or calls for action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_lyapunov.reading.conditions import gain, largest, state_of
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rates import RIGHT, may_matter
from lightning_lyapunov.reading.rules import Finding, findings
from lightning_lyapunov.reading.words import capital

Word = Literal["healthy", "watch", "act"]
WORDS: tuple[Word, ...] = get_args(Word)
"""From best to worst; the place of each is what is logged of it."""
SIGNS: dict[Word, str] = {"healthy": "✓", "watch": "⚠", "act": "✖"}
"""How each is marked wherever it is shown, so that none is told by its colour alone."""
TROUBLES = {
    "saturated": "growth has driven every unit into saturation",
    "collapsed": "the recurrence carries nothing",
    "exploding": "gradients explode",
    "may explode": "gradients may explode",
    "chaotic": "the network is chaotic, and gradients grow",
    "growing": "gradients grow",
    "forgetting": "nothing is carried from the first step of a sequence to the last",
    "predicted_to_fail": "the scorer expects that the network never learns its task",
    "layer_explodes": "gradients explode in layer {subject}",
    "layer_died": "layer {subject} is dead",
}
"""What is wrong, in a clause, by the state of the finding."""


TELL = "Tell what it has reached (performance=): a run that learns raises no alarm."
"""What to do besides, where the skill so far is not known."""


@dataclass(frozen=True)
class Verdict:
    """A word on a run, a sentence that gives the reason, and what to do."""

    word: Word
    text: str
    advice: str = ""
    """What to do, in a sentence or two: that of the finding which the word rests on."""
    about: str = ""
    """The state of that finding; empty where there is none."""

    @property
    def number(self) -> int:
        """0 healthy, 1 watch, 2 act, as it is logged."""
        return WORDS.index(self.word)

    @property
    def sign(self) -> str:
        """``✓`` healthy, ``⚠`` watch, ``✖`` act: shown beside the word."""
        return SIGNS[self.word]

    def __str__(self) -> str:
        """Both, as ``act: The recurrence carries nothing: of 91 networks ...``."""
        return f"{self.word}: {self.text}"


def verdict(history: History) -> Verdict | None:
    """What to make of a run at its newest measurement; None before the first.

    ===========  ===============================================================================================
    ``act``      a concern that in the bank was right in 95 % of networks or more: they did not learn their task
    ``watch``    one that was right in 80 % or more; or one that the bank cannot tell of, as the run is longer than
                 its runs or the case too rare there, unless it was a note when it last could, or the skill is above
                 0.3; or a largest exponent that is not known
    ``healthy``  none of these; concerns that were right less often are notes, and told as such
    ===========  ===============================================================================================
    """
    if not len(history):
        return None
    concerns = [finding for finding in findings(history) if finding.is_concern]
    for concern in concerns:  # the gravest come first
        if concern.level != "note" or may_matter(concern.state, history[-1]):
            word: Word = "act" if concern.level == "act" else "watch"
            is_blind = history[-1].step > 0 and math.isnan(history[-1].skill)
            advice = f"{concern.advice} {TELL}" if is_blind else concern.advice
            return Verdict(word, _sentence(concern), advice, concern.state)
    if state_of(history) == "unknown":
        if any(math.isfinite(figure(history[-1])[0]) for figure in (largest, gain)):
            text = "How sure the largest exponent is, and what happens to a gradient over a sequence, is not known."
            return Verdict("watch", text, "Measure two sequences or more (num_sequences).")
        text = "The largest exponent is not known, nor what happens to a gradient over a sequence."
        return Verdict("watch", text, "Look for states or weights that overflow.")
    if concerns and concerns[0].rate is None and history[-1].skill >= RIGHT:
        trouble = TROUBLES[concerns[0].state].format(subject=concerns[0].subject)
        text = f"It learns, and has a skill of {history[-1].skill:.2f}. Beside it, {trouble}."
        return Verdict("healthy", text, train_on(concerns[0].advice), concerns[0].state)
    if concerns:
        text = f"No more than a note: {_sentence(concerns[0], begins=False)}"
        return Verdict("healthy", text, train_on(concerns[0].advice), concerns[0].state)
    return Verdict("healthy", "Nothing was found that goes with failure.", train_on())


def train_on(advice: str = "") -> str:
    """What to do of a healthy run, with what would help if it does not learn after all.

    Example:
        >>> train_on(), train_on("Lower the learning rate.")
        ('Train on.', 'Train on. Only if it does not learn: lower the learning rate.')
    """
    advice = advice.replace("Before training, scale", "Begin again and scale")  # whoever waits has trained by then
    return f"Train on. Only if it does not learn: {advice[:1].lower()}{advice[1:]}" if advice else "Train on."


def _sentence(concern: Finding, *, begins: bool = True) -> str:
    """What is wrong, and how often that was right."""
    trouble = TROUBLES[concern.state].format(subject=concern.subject)
    known = "how often that is right is not known here" if concern.rate is None else str(concern.rate)
    return f"{capital(trouble) if begins else trouble}: {known}."
