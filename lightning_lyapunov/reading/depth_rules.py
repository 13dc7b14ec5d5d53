"""What a history across depth means: rules that turn what holds of it into sentences that name the block.

Growth of the whole chain is judged by what became of the networks of a benchmark
(:data:`~lightning_lyapunov.reading.depth_conditions.THRESHOLDS`). Concerns about single blocks have no rate: they are
warnings, to be watched, and call for action where no gradient passes. Every ± is the half-width of a 95 % bar.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from lightning_lyapunov.reading.depth_conditions import (
    BENCHMARK,
    OTHERWISE,
    THRESHOLDS,
    TRAINED,
    all_unchanging,
    comparable_blocks,
    idle,
    makers,
    odd,
    severed,
    state_of_depth,
    unchanging,
)
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.depth_words import across, block_words, chain_words, exponential, share
from lightning_lyapunov.reading.rules import QUIET, Finding
from lightning_lyapunov.reading.state import Level
from lightning_lyapunov.reading.verdict import Verdict, Word, train_on
from lightning_lyapunov.reading.words import capital, factor, when

Run = Sequence[DepthMeasurement]


_LEVELS = ("act", "warning", "good", "note")
_NOTEWORTHY = ("doubtful", "undecided", "all_unchanged", "odd_block")
"""What the verdict on a healthy chain mentions."""


def findings(history: Iterable[DepthMeasurement]) -> list[Finding]:
    """Everything that holds at the newest measurement, gravest first, and what was measured.

    Only measurements of the same data, the same blocks and the same normalisation are compared.
    """
    run = comparable(history)
    if not run:
        return [Finding("measured", "note", "Nothing has been measured yet: there is nothing to read across depth.")]
    every = [finding for rule in RULES for finding in rule(run)]
    return sorted(every, key=lambda finding: _LEVELS.index(finding.level))


def news(history: Iterable[DepthMeasurement]) -> list[Finding]:
    """Those concerns that began at the newest measurement, for the log, gravest first.

    Each is told where it did not hold at any of the five measurements before it, at the first measurement as well: what
    is wrong before the first update is worth most then.
    """
    run = comparable(history)
    told = [f for f in findings(run) if f.is_concern] if run else []
    before = {
        (f.state, f.subject)
        for end in range(max(1, len(run) - QUIET), len(run))
        for f in findings(run[:end])
        if f.is_concern
    }
    return [f for f in told if (f.state, f.subject) not in before]


def verdict(history: Iterable[DepthMeasurement]) -> Verdict | None:
    """What to make of a run at its newest measurement; None before the first.

    ===========  ===============================================================================================
    ``act``      no gradient passes; or ln σ₁ is beyond a threshold beyond which 95 % of a benchmark's networks did not
                 learn
    ``watch``    any other concern: ln σ₁ beyond one beyond which 80 % did not, a dead branch, a block that stands out
                 before the first update, late blocks that stay idle; or ln σ₁ is not known
    ``healthy``  none of these
    ===========  ===============================================================================================
    """
    run = comparable(history)
    if not run:
        return None
    gravest = findings(run)[0]
    if gravest.is_concern:
        word: Word = "act" if gravest.level == "act" else "watch"
        return Verdict(word, _first_sentence(gravest.text), gravest.advice, gravest.state)
    for note in findings(run):
        if note.state in _NOTEWORTHY:
            text = f"No more than a note: {_first_sentence(note.text)}"
            return Verdict("healthy", text, train_on(note.advice), note.state)
    return Verdict("healthy", "Gradients pass, and no block stands out.", train_on())


def _first_sentence(text: str) -> str:
    return f"{text.removesuffix('.').partition('. ')[0]}."


def comparable(history: Iterable[DepthMeasurement]) -> list[DepthMeasurement]:
    """Those measurements of a run that are of the same data, blocks and normalisation as the newest."""
    run = list(history)
    return [m for m in run if _basis(m) == _basis(run[-1])]


def _basis(measurement: DepthMeasurement) -> tuple[object, ...]:
    return measurement.source, measurement.names, measurement.normalisation


# ---------------------------------------------------------------- rules


def _gradient(run: Run) -> Iterator[Finding]:
    """What happens to a gradient across the chain, one state at a time: see :func:`~.state_of_depth`."""
    newest, state = run[-1], state_of_depth(run[-1])
    if state == "unknown":
        text = f"What happens to a gradient across the blocks is not known ({when(newest)})."
        advice = "Look for states or weights that overflow."
        yield Finding(state, "warning", f"{text} {advice}", is_concern=True, advice=advice)
    elif state == "no_gradient":
        yield _no_gradient(newest)
    elif state == "undecided":
        advice = "To tell, measure more samples (num_samples)."
        many = newest.total[0] > 0
        text = f"Whether a gradient {'grows' if many else 'shrinks'} too much across {_blocks(newest)} is not decided: "
        text += f"{across(newest)}, and the threshold, e^{THRESHOLDS['doubtful' if many else 'vanishes'].nats:.0f}, "
        yield Finding(state, "note", f"{text}lies within its error.{_before(run)} {advice}", advice=advice)
    elif state == "passes":
        yield Finding(state, "good", f"Gradients pass {_blocks(newest)}: {across(newest)}.{_before(run)}")
    else:
        yield _too_much(run, state)


def _no_gradient(newest: DepthMeasurement) -> Finding:
    cut = severed(newest)
    if cut:
        rest = len(cut) > 1 and cut == list(range(cut[0], newest.depth))  # what is made of nothing passes nothing on
        subject = block_words(newest, cut[:1] if rest else cut)
        several = len(cut) > 1 and not rest
        text = (
            f"{capital(subject)} {'pass' if several else 'passes'} nothing on{', nor does any after it' * rest}: the "
            f"gradient ends {'at each of them' if several else 'there'}."
        )
    else:
        text = (
            f"Nothing gets through {_blocks(newest)}, though each of them lets something through: what some pass on "
            "others wipe out."
        )
        subject = "the chain"
    advice = "Look for units that are always off or saturated, or for weights of zero; initialise them anew."
    return Finding("no_gradient", "act", f"{text} {advice}", subject=subject, is_concern=True, advice=advice)


def _too_much(run: Run, state: str) -> Finding:
    """Growth or loss beyond a threshold; between 6 and 10 that is a note once training has begun."""
    newest, threshold = run[-1], THRESHOLDS[state]
    advice = (
        "Raise the gain of the weights, normalise between blocks, or give them skips."
        if state == "vanishes"
        else "Lower the gain of the weights, normalise between blocks, or scale the branches down."
    )
    evidence = ""
    if newest.step == 0:
        evidence = f" Of {BENCHMARK}, {threshold.evidence}, {OTHERWISE}."
    mild = state == "doubtful" and newest.step > 0
    level: Level = "note" if mild else threshold.level
    verb = {"vanishes": "vanish", "doubtful": "grow much", "explodes": "explode"}[state]
    told = f"Gradients {verb} across {_blocks(newest)}: {across(newest)}."
    text = f"{told}{_who_makes_it(newest)}{_before(run)}{evidence} {advice}"
    return Finding(state, level, text, is_concern=not mild, advice=advice)


def _who_makes_it(newest: DepthMeasurement) -> str:
    """The blocks that most of the growth comes from, or that all share in it."""
    value, _ = newest.total
    blocks = makers(newest)
    if blocks:
        part = float(newest.contributions[blocks].sum())
        return f" Most of it comes from {block_words(newest, blocks)}: {part:+.1f} of the {value:+.1f} nats."
    if newest.depth < 2 or not newest.contributions.isfinite().all():
        return ""
    return f" It is spread over the blocks: about {value / newest.depth:+.2f} nats each."


def _before(run: Run) -> str:
    """What ln σ₁ was at the first measurement, where it has moved since by a nat or more, beyond the errors."""
    (first, its), (value, error) = run[0].total, run[-1].total
    if len(run) < 2 or not (abs(value - first) > max(1.0, its + error)) or not math.isfinite(first):
        return ""
    return f" {capital(when(run[0]))} it was {exponential(first)} at most."


def _branches(run: Run) -> Iterator[Finding]:
    """dead_branch: see :func:`~.unchanging`; all_unchanged: of all blocks, a note before the first update."""
    newest = run[-1]
    if all_unchanging(newest):
        yield _all_unchanged(newest)
        return
    late = _idle_row(newest)
    dead = [block for block in unchanging(newest) if block not in late]
    if dead:
        where, several = block_words(newest, dead), len(dead) > 1
        passes, branch = ("pass", "their branches are") if several else ("passes", "its branch is")
        text = f"{capital(where)} {passes} everything on unchanged: {branch} dead.{_beside(newest, dead)}"
        advice = "Look for output weights or gates at zero and for units that are always off; initialise anew."
        yield Finding("dead_branch", "warning", f"{text} {advice}", subject=where, is_concern=True, advice=advice)


def _all_unchanged(newest: DepthMeasurement) -> Finding:
    count = len(unchanging(newest))
    every = f"{count} blocks" if count == newest.depth else f"{count} blocks that could change something"
    if newest.step > 0:
        text = f"All {every} still pass everything on unchanged ({when(newest)})."
        advice = "No branch has begun to do anything: look for gates or output weights that stay at zero."
        return Finding("all_unchanged", "warning", f"{text} {advice}", is_concern=True, advice=advice)
    text = (
        f"All {every} pass everything on unchanged. That is as it should be before the first update where branches "
        "begin at zero (ReZero, output weights of zero): look again after some."
    )
    return Finding("all_unchanged", "note", text)


def _beside(newest: DepthMeasurement, dead: Sequence[int]) -> str:
    """What dead blocks change, beside what the others do."""
    changes = newest.block_change.tolist()
    others = [changes[block] for group in comparable_blocks(newest) for block in group if block not in dead]
    if not others:
        return ""
    does = "The most that they change is" if len(dead) > 1 else "It changes"
    most = share(max(changes[block] for block in dead))
    return f" {does} {most} of what passes, others typically {share(statistics.median(others))}."


def _idle_row(newest: DepthMeasurement) -> list[int]:
    return idle(newest) if newest.step >= TRAINED else []


def _idle(run: Run) -> Iterator[Finding]:
    """idle_late: see :func:`~.idle`, from 100 updates on."""
    newest = run[-1]
    late = _idle_row(newest)
    if late:
        changes = newest.block_change.tolist()
        every = sorted(block for group in comparable_blocks(newest) for block in group)
        first = statistics.median(changes[block] for block in every[: len(every) // 3])
        text = (
            f"Late blocks are idle: {block_words(newest, late)} change what passes them by "
            f"{share(max(changes[block] for block in late))} or less, the first {len(every) // 3} typically by "
            f"{share(first)}."
        )
        advice = (
            "Fewer blocks may do as well; if these should work, normalise the state, or scale the branches so that it "
            "does not grow with depth."
        )
        yield Finding("idle_late", "warning", f"{text} {advice}", is_concern=True, advice=advice)


def _odd(run: Run) -> Iterator[Finding]:
    """odd_block: see :func:`~.odd`; a note once training has begun, which makes blocks differ."""
    newest = run[-1]
    found = odd(newest)
    if not found:
        return
    block, far = found[0]
    at_first = newest.step == 0
    where = block_words(newest, [block])
    text = (
        f"{capital(where)} stands out: it acts {factor(abs(far))} {'more' if far > 0 else 'less'} than its neighbours, "
        f"with a gain of {float(newest.block_gain[block]):+.2f} nats."
    )
    if others := sorted(other for other, _ in found[1:]):
        text += f" So {'do' if len(others) > 1 else 'does'} {block_words(newest, others)}."
    if not at_first:
        text = f"{text} Training makes blocks differ, so that need be no fault."
        yield Finding("odd_block", "note", text, subject=where)
        return
    advice = "Before training blocks are alike: look at how this one was initialised, or what it is given."
    yield Finding("odd_block", "warning", f"{text} {advice}", subject=where, is_concern=True, advice=advice)


def _evidence(run: Run) -> Iterator[Finding]:
    """untrusted: the iteration has not settled ln σ₁; and what was measured, on what conditions."""
    newest = run[-1]
    if len(newest.trusted) and not newest.trusted[0] and math.isfinite(newest.total[0]):
        text = "The largest growth has not settled: it may be larger than told. A smaller tolerance settles it."
        yield Finding("untrusted", "note", text)
    yield Finding("measured", "note", _measured(run))


def _measured(run: Run) -> str:
    newest = run[-1]
    data = f" of {newest.source} data" * bool(newest.source)
    count = "" if newest.samples is None else f", at {newest.samples} sample{'s' * (newest.samples != 1)}{data}"
    told = [f"Measured were {chain_words(newest)}{count}."]
    if newest.fewer:
        told.append(f"That is less than was seen: {newest.fewer}.")
    if newest.masked:
        told.append(f"{share(math.log(newest.masked))} of the state, behind a mask, was left out.")
    if newest.normalisation:
        whose = "of the recorded batch" if newest.normalisation == "batch" else "that it keeps"
        told.append(f"BatchNorm was taken with the statistics {whose}, held constant.")
    if newest.conditional:
        told.append(f"Held constant were the skips that {newest.conditional} is given: what passes them is not in it.")
    if math.isnan(newest.total[1]) and math.isfinite(newest.total[0]):
        told.append("Errors are not known: measure two samples or more (num_samples).")
    return " ".join(told)


def _blocks(measurement: DepthMeasurement) -> str:
    return f"the {measurement.depth} blocks" if measurement.depth > 1 else "the block"


RULES: tuple[Callable[[Run], Iterator[Finding]], ...] = (_gradient, _branches, _idle, _odd, _evidence)
"""In the order in which findings of one level are told."""
