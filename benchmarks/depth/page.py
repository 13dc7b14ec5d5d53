"""The page docs/depth-benchmark.md, from the results alone: tables, and what they say in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from adding import (
    BACKWARD,
    BLOCKS,
    BOTH,
    MOMENTS,
    SETTINGS,
    SPECTRUM,
    WITH_BACKWARD,
    WITH_SETTINGS,
    WITH_TOTALS,
    Comparison,
    compared,
)
from bands import BANDS, MIDDLE, Counts, counts, verdicts
from draws import TASKS
from features import FEATURES, NORM, RATIO, TOTAL, TOTAL_PER_BLOCK, Networks, networks, seen
from fitting import BATCH, UPDATES
from judging import Estimate, auc_gain, auc_of, correlation_of, wilson

Row = dict[str, Any]
STEPS = 5.0
"""Training steps that a measurement may cost."""
FOUND = 17
"""Dead branches of twenty that must be named."""


def page(rows: Sequence[Row]) -> str:
    """Everything of which there are rows."""
    all_ = networks(rows)
    parts = [
        HEAD,
        *([population(all_), foretelling(all_), bands(all_), adding(all_)] if len(all_.rows) > FEWEST else []),
        faults([row for row in rows if row["part"] == "faults"]),
        cost([row for row in rows if row["part"] == "cost"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


FEWEST = 60
"""Networks below which nothing is said of them."""
HEAD = """# Across depth: what the spectrum is worth

<!-- Written by `python benchmarks/depth --table`: change that, for changes made here are lost. -->

Does the spectrum across depth tell who will train, does it point at the block that is wrong, and what does it cost?
`python benchmarks/depth` draws the networks, trains them and writes this page from
`benchmarks/results/depth.jsonl`; `--table` writes it from what is there. Brackets hold 95 % intervals."""


# Words ----------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(fields)} |" for fields in (head, ["---"] * len(head), *lines))


def number(value: float, form: str = ".2f") -> str:
    """Without the zero before the point, and with a true minus."""
    if math.isnan(value):
        return "–"
    told = f"{value:{form}}".replace("-", "−")
    return told.replace("0.", ".", 1) if told.lstrip("+−").startswith("0.") else told


def told(estimate: Estimate | None, form: str = ".2f") -> str:
    """``.82 (.71 to .91)``."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return f"{number(estimate.value, form)} ({number(estimate.low, form)} to {number(estimate.high, form)})"


def share(hits: int, count: int) -> str:
    """``9 of 12 (.47 to .91)``."""
    if not count:
        return "–"
    found = wilson(hits, count)
    return f"{hits} of {count} ({number(found.low)} to {number(found.high)})"


def than(estimate: Estimate, better: str, worse: str, same: str) -> str:
    """One of three sentences, by where a difference lies."""
    return better if estimate.is_above_zero else worse if estimate.is_below_zero else same


# Who learns -----------------------------------------------------------------------------------------------------------


def population(all_: Networks) -> str:
    """What was trained, and how many learned."""
    lines = []
    for name in TASKS:
        mine = all_.where(lambda row, name=name: row["draw"]["task"] == name)
        kinds = sorted({row["draw"]["kind"] for row in mine.rows})
        of = [f"{kind} {sum(row['draw']['kind'] == kind for row in mine.rows)}" for kind in kinds]
        lines.append([name, str(len(mine.rows)), ", ".join(of), share(int(mine.learned.sum()), len(mine.rows))])
    seconds = sum(sum(row["seconds"].values()) for row in all_.rows)
    return f"""## The networks

{len(all_.rows)} networks, drawn at random: 2 to 50 blocks; weights of .3 to 3 times the size that keeps a signal;
branches of .1 to 2; no normalisation, LayerNorm before or after, or BatchNorm; tanh, relu or gelu; Adam at 1e-3 or SGD
at .03 with momentum .9. Images are scikit-learn's handwritten digits, text is the next character of English prose after
twelve, the table is made by scikit-learn. Each is trained for {UPDATES} updates of {BATCH} rows, and measured before
the first and on the way, at 8 samples ({seconds / 60:.0f} CPU minutes in all). *Learned* means that in the end it is
more than half of the way from chance to the best network of its task, in accuracy of validation.

{table(["task", "networks", "kinds of blocks", "learned"], lines)}"""


def foretelling(all_: Networks) -> str:
    """AUC of every number known before or early, by task and by optimiser."""
    scores = {name: all_.scores(feature) for name, (_, feature) in FEATURES.items()}
    by_task = [all_.tasks == name for name in TASKS]
    optimisers = [[row["draw"]["optimiser"] == name for row in all_.rows] for name in ("adam", "sgd")]
    lines = []
    for name, (cost_, _) in FEATURES.items():
        cells = [
            told(auc_of(scores[name][mine], all_.learned[mine], all_.tasks[mine]))
            for mine in ([True] * len(all_.rows), *by_task, *optimisers)
        ]
        lines.append([name, cost_, *cells])

    def over(first: str, second: str) -> Estimate:
        return auc_gain(scores[first], scores[second], all_.learned, all_.tasks)

    ratio, norm, block, *epochs = (over(TOTAL, other) for other in (RATIO, NORM, TOTAL_PER_BLOCK, EARLY, LATER))
    finite = all_.where(lambda row: row["looks"]["0"].get("gain") is not None)
    alike = correlation_of(
        finite.scores(lambda row: seen(row, "gain")), finite.scores(lambda row: seen(row, "gradient_ratio")),
        finite.tasks,
    )  # fmt: skip
    said = [
        f"The gain and the gradient ratio of one backward pass are nearly the same number: ρ = {told(alike, '.3f')}.",
        than(
            ratio,
            f"ln σ₁ is better than the gradient ratio, by {told(ratio)}.",
            f"The gradient ratio, which is free, is better than ln σ₁, by {told(_negative(ratio))}.",
            f"So a single backward pass is as good: ln σ₁ less gradient ratio {told(ratio)}.",
        ),
        than(
            norm,
            f"ln σ₁ is better than the norm of the whole gradient, by {told(norm)}.",
            f"The norm of the whole gradient, which is free, is better than ln σ₁, by {told(_negative(norm))}.",
            f"The norm of the whole gradient is neither better nor worse: {told(norm)}.",
        ),
        than(
            block,
            f"It is the growth in all that counts, not that per block: {told(block)}.",
            f"The growth per block is the better: {told(_negative(block))}.",
            f"Whether growth is taken in all or per block makes no difference here: {told(block)}.",
        ),
        *(
            than(
                epoch,
                f"ln σ₁ before the first update tells more than {name}: by {told(epoch)}.",
                f"{_capital(name)} tells more than ln σ₁ before the first update: by {told(_negative(epoch))}.",
                f"{_capital(name)} tells neither more nor less than ln σ₁ before the first update: {told(epoch)}.",
            )
            for name, epoch in zip((EARLY, LATER), epochs, strict=True)
        ),
    ]
    return f"""## Who will learn

AUC, the share of pairs of one network that learned and one that did not, of the same task, in which the number puts
them in order: .5 is chance. Numbers are of before the first update unless something else is said.

{_bullets(said)}

{table(["number", "cost", "all, within tasks", *TASKS, "Adam", "SGD"], lines)}"""


EARLY, LATER = "validation after 1/20 of training", "validation after 3/20 of training"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


# Thresholds -----------------------------------------------------------------------------------------------------------


def bands(all_: Networks) -> str:
    """Shares that learned by ln σ₁ before the first update, and which thresholds hold."""

    def where(keep: Callable[[Row], bool]) -> Counts:
        return counts(all_.where(keep))

    groups = {
        **{name: where(lambda row, name=name: row["draw"]["task"] == name) for name in TASKS},
        "all": counts(all_),
        "Adam": where(lambda row: row["draw"]["optimiser"] == "adam"),
        "SGD": where(lambda row: row["draw"]["optimiser"] == "sgd"),
        "without normalisation": where(lambda row: row["draw"]["norm"] == "none"),
        "with": where(lambda row: row["draw"]["norm"] != "none"),
    }
    lines = [[band, *(share(*found[band]) for found in groups.values())] for band in (*BANDS, MIDDLE)]
    said = verdicts({name: groups[name] for name in TASKS})
    return f"""## Thresholds

Share that learned, by ln σ₁ of the whole chain before the first update, in nats.

{table(["ln σ₁", *groups], lines)}

A threshold *holds* in a task where fewer learn beyond it than between −5 and 6, by more than the error of the
difference (Newcombe's interval), and, for −5 and 10, where the interval of the share beyond it ends below one half;
of at least five networks beyond it. It is printed as a rule if it holds in at least two of the three tasks.

{table(["threshold", *TASKS, "holds"], [[v.threshold, *v.by_task, "yes" if v.holds else "no"] for v in said])}"""


# On the way -----------------------------------------------------------------------------------------------------------


def adding(all_: Networks) -> str:
    """Whether the spectrum adds to what is known anyway: the settings, and the loss curve."""
    first = compared(all_, 0, is_grouped=True)
    flat = [one for moment in MOMENTS for one in compared(all_, moment, is_grouped=True)]
    mixed = [one for moment in MOMENTS for one in compared(all_, moment, is_grouped=False)]
    head = ["known", "at", "AUC, learns", "gain", "ρ, final skill", "gain", "AUC, not yet learned", "gain"]
    early = {name: next(one for one in first if one.name == name).auc_gain for name in (WITH_TOTALS, WITH_BACKWARD)}
    said = [
        f"Before the first update totals add {told(early[WITH_TOTALS], '+.3f')} to the AUC of the settings, "
        f"one backward pass {told(early[WITH_BACKWARD], '+.3f')}.",
        _added(flat + mixed, BLOCKS, "Block gains over training, and their change since the start", "the loss curve"),
        _added(flat + mixed, SPECTRUM, "Totals and block gains together", "the loss curve"),
        _added(flat + mixed, BACKWARD, "One backward pass, block by block", "the loss curve"),
        _added(flat + mixed, BOTH, "Totals and block gains", "the loss curve and that backward pass"),
        _added(flat + mixed, SETTINGS, "The settings of the network", "the loss curve"),
        _added(flat + mixed, WITH_SETTINGS, "Totals and block gains", "the loss curve and the settings"),
    ]
    return f"""## Does the spectrum add to the loss curve?

Who learns, by logistic regression, and how well, by ridge regression: foretold before the first update, and after an
eighth and a quarter of the training from the losses and the validation until then; and what is gained by the spectra of
that moment and of before the first update. Networks are foretold that were not fitted to: in the first table and the
second of kinds of blocks that were not fitted to at all, in the third with kinds mixed. *Gain* is the difference to the
loss curve and validation alone, or to the settings alone, in the same networks; sets with "that backward pass" and "the
settings" and more are compared with those without the spectrum. *Totals* are ln σ₁, gain, anisotropy and growth of the
state; *block gains* the extremes, mean, spread and slope along the depth of gain and change of the blocks; *one
backward pass* the ratio and the norm of gradients, the ratio of activations and the cosine.

{_bullets(said)}

### Before the first update

{table(head[:6], [_line(one)[:6] for one in first])}

### Kinds of blocks that were not fitted to

{table(head, map(_line, flat))}

### Kinds mixed

{table(head, map(_line, mixed))}"""


def _line(one: Comparison) -> list[str]:
    return [
        one.name, f"1/{UPDATES // one.moment}" if one.moment else "0",
        number(one.auc, ".3f"), told(one.auc_gain, "+.3f"),
        number(one.correlation, ".3f"), told(one.correlation_gain, "+.3f"), number(one.late, ".3f"),
        told(one.late_gain, "+.3f"),
    ]  # fmt: skip


def _added(all_: Sequence[Comparison], name: str, subject: str, to: str) -> str:
    """In how many of the comparisons a set is better, beyond its interval."""
    mine = [one for one in all_ if one.name == name]
    gains = [gain for one in mine for gain in (one.auc_gain, one.correlation_gain, one.late_gain) if gain]
    better, worse = sum(gain.is_above_zero for gain in gains), sum(gain.is_below_zero for gain in gains)
    largest = max(gains, key=lambda gain: gain.value)
    return (
        f"{subject}, added to {to}: better beyond the interval in {better} of {len(gains)} comparisons, worse in "
        f"{worse}; the most gained is {told(largest, '+.3f')}."
    )


# Faults and cost ------------------------------------------------------------------------------------------------------

WAYS = ("rule", "block gain", "block change", "leading direction", "gradient ratio", "activation ratio")


def faults(rows: Sequence[Row]) -> str:
    """How often each way names the faulty block, and it alone."""
    if not rows:
        return ""
    lines, dead = [], []
    for fault in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == fault]
        for moment, words in (("before", "before training"), ("after", "after 100 updates")):
            hits = {way: _hits(mine, moment, way) for way in WAYS}
            lines.append([f"{fault}, {words}", str(len(mine)), *(str(hits[way]) for way in WAYS)])
            if fault.startswith("dead") and moment == "before":
                dead.append((hits["rule"], len(mine)))
    met = all(20 * hits >= FOUND * count for hits, count in dead)
    return f"""## Which block is wrong

Twelve blocks, one of them at random made faulty; on images and on the table. The *rule* is that of the sentences
(`lightning_lyapunov.reading.depth_conditions`: blocks that are severed, unchanging or odd), and is right where it names
the faulty block and no other. The other ways always name one block, and are given the better of two ways to choose it,
fault by fault: the lowest, or for a gain the highest, and the one farthest from the median of its neighbours, two on
either side. The last two are free.

{table(["fault", "networks", *WAYS], lines)}

Output weights × .001 are dead before training only: in 100 updates they grow until their branch does something again,
and the rule is right not to call it dead. Where units are off, no gradient revives them.

A dead branch named by the rule before training: {", ".join(f"{hits} of {count}" for hits, count in dead)}; wanted are
{FOUND} of 20: {"met" if met else "missed"}."""


def _hits(rows: Sequence[Row], moment: str, way: str) -> int:
    """How often the faulty block is named, and no other; by the better choice where there are two."""
    if way == "rule":
        return sum(row[moment][way] == [row["place"]] for row in rows)
    return max(sum(row[moment][way][choice] == row["place"] for row in rows) for choice in (0, 1))


def cost(rows: Sequence[Row]) -> str:
    """Measurements in units of training steps."""
    if not rows:
        return ""
    lines = [
        [row["kind"], str(row["depth"]), *(number(row[name], ".1f") for name in ("step", "look", "steps"))]
        for row in rows
    ]
    steps = [row["steps"] for row in rows]
    within = sum(step <= STEPS for step in steps)
    return f"""## What it costs

A measurement as the callback makes it by default, of 8 samples, beside a training step with torch's Adam at batch
{BATCH}: forward, backward, update. CPU milliseconds of one thread, medians of rounds in which they take turns. Images.

{table(["blocks", "depth", "step, ms", "measurement, ms", "measurement / step"], lines)}

Median {number(statistics.median(steps), ".1f")} steps, at most {number(max(steps), ".1f")}; wanted: at most {STEPS:g},
reached in {within} of {len(steps)}."""
