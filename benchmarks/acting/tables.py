"""The tables of docs/acting.md in Markdown, and whether what was demanded is met, both from the results alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lightning_lyapunov.engine.statistics import student

Row = dict[str, Any]
LABELS = {
    "simple": "simple rule",
    "hold": "`condition(lag=…)`",
    "hold, lag 16": "`condition(lag=16)`",
    "flossing": "flossing",
    "as made": "as torch makes it",
    "spectral radius": "recurrent weights to spectral radius .95",
    "spread": "spread of time constants",
}
DEMANDED = 0.99
"""Accuracy at which XOR counts as learnt, and its training ends."""


def page(rows: list[Row]) -> str:
    """Every table of which there are rows, and the verdicts."""
    parts = [
        summary(rows),
        *(xor(rows, delay) for delay in (20, 10)),
        recall(rows),
        *(accuracies(rows, task, title) for task, title in ACCURACIES.items()),
        forecast(rows),
        regulariser(rows),
        cost(rows),
        verdicts(rows),
    ]
    return "\n\n".join(part for part in parts if part) or "Nothing has been run yet."


# Rows -----------------------------------------------------------------------------------------------------------------


def of(rows: Iterable[Row], task: str, net: str | None = None, start: str | None = None) -> list[Row]:
    """Those of a task, net and start, by seed."""
    fit = (row for row in rows if row["task"] == task and net in (None, row["net"]) and start in (None, row["start"]))
    return sorted(fit, key=lambda row: row["seed"])


def names(rows: Iterable[Row], field: str) -> list[str]:
    """In the order in which they first appear."""
    return list(dict.fromkeys(row[field] for row in rows))


def results(rows: Iterable[Row]) -> list[float]:
    return [row["result"] for row in rows]


def learnt(row: Row) -> int | None:
    """Updates after which XOR is learnt."""
    return row["updates"] if row["readings"][-1] >= DEMANDED else None


def by(row: Row, update: int, every: int = 50) -> float:
    """The reading at an update; the last one where training was over before."""
    return row["readings"][min(update // every, len(row["readings"])) - 1]


# Words ----------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(fields)} |" for fields in (head, ["---"] * len(head), *lines))


def span(values: Sequence[float], form: str = ".3f") -> str:
    """Median, and the range if there are several: ``.98 (.71–1.00)``."""
    if not values:
        return "–"
    median, low, high = (shown(f(values), form) for f in (statistics.median, min, max))
    return median if len(values) == 1 else f"{median} ({low} to {high})"


def shown(value: float, form: str = ".3f") -> str:
    """Without the zero before the point, and with a true minus."""
    return re.sub(r"^(\D?)0\.", r"\1.", f"{value:{form}}".replace("-", "−")) if value else "0"


def seeds(rows: Sequence[Row]) -> str:
    """How many: ``8 seeds``."""
    number = len({row["seed"] for row in rows})
    return f"{number} seed{'s' * (number != 1)}"


def label(start: str) -> str:
    return LABELS.get(start, start)


# Tables ---------------------------------------------------------------------------------------------------------------


TASKS = {
    "recall": "recall over 40 steps: yes",
    "xor-20": "XOR of 20 and 40 steps ago: yes",
    "xor-10": "XOR of 10 and 20 steps ago: yes",
    "match": "delayed match, 40 steps: yes",
    "adding": "adding, 60 steps: yes",
    "pixels": "digits, 64 steps of a pixel: no",
    "rows": "digits, 8 steps of a row: no",
    "characters": "the next character, nats: no",
    "forecast": "forecasts with darts, error: no",
}
"""And whether the task asks to hold something for as long as its lag says."""


def summary(rows: list[Row]) -> str:
    """What setting the spectrum changes, in the same seeds."""
    lines = []
    for task, text in TASKS.items():
        nets = [effect(of(rows, task, net, "as made"), of(rows, task, net, "hold")) for net in ("RNN", "GRU", "LSTM")]
        if any(nets):
            lines.append([*text.rsplit(": ", 1), *(net or "–" for net in nets)])
    head = ["task", "asks to hold", "RNN", "GRU", "LSTM"]
    title = "Where it helps, where it harms: `condition(lag=…)` less torch's weights"
    rule = (
        "The mean difference of pairs of one seed with its 95 % bar, and their number; told where it is beyond the bar."
    )
    return f"### {title}\n\n{rule}\n\n{table(head, lines)}" if lines else ""


def effect(made: Sequence[Row], conditioned: Sequence[Row]) -> str:
    """``**helps** +.64 ± .05 (8)``: beyond its 95 % bar; an error counts as worse where it is larger."""
    before, after = ({row["seed"]: row["result"] for row in group} for group in (made, conditioned))
    sign = -1 if made and made[0]["task"] == "forecast" else 1
    gains = [after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())]
    if len(gains) < 2:
        return ""
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    error *= student(len(gains) - 1)
    is_beyond = abs(mean) > error
    said = f"{shown(mean, '+.3f')} ± {shown(error)} ({len(gains)})"
    return f"**{'helps' if sign * mean > 0 else 'harms'}** {said}" if is_beyond else said


def xor(rows: list[Row], delay: int) -> str:
    """Update of .99 seed by seed, or the last reading."""
    mine = of(rows, f"xor-{delay}")
    lines = [
        [
            net, label(start), exponents(runs), span([row["seen"] for row in runs], ".1f"),
            " / ".join(map(end, runs)), span([row["tuning"] for row in runs], ".2f"),
            span([row["tuning"] + row["training"] for row in runs], ".1f"),
        ]
        for net in names(mine, "net") for start in names(of(mine, f"xor-{delay}", net), "start")
        if (runs := of(mine, f"xor-{delay}", net, start))
    ]  # fmt: skip
    reached = f"updates until {shown(DEMANDED, 'g')}, or accuracy, seed by seed"
    head = ["net", "start", "λ₁, median, λ₇₅", "ln ‖∂h_T/∂x₀‖", reached, "s to set", "s in all"]
    return f"### Delayed XOR, delay {delay}\n\n{table(head, lines)}" if lines else ""


def end(row: Row) -> str:
    """``450``, or ``.497 at 1000``."""
    reached = learnt(row)
    return str(reached) if reached else f"{shown(row['readings'][-1])} at {row['updates']}"


def exponents(rows: Sequence[Row]) -> str:
    """Medians over seeds of the largest, the median and the last of those measured."""
    columns = zip(*(row["exponents"] for row in rows), strict=True)
    return ", ".join(shown(statistics.median(values), ".2f") for values in columns)


def recall(rows: list[Row]) -> str:
    mine = of(rows, "recall")
    lines = [
        [
            net, label(start), " / ".join(shown(result, ".2f") for result in results(runs)), exponents(runs),
            span([row["seen"] for row in runs], ".1f"), span([row["tuning"] for row in runs], ".2f"),
        ]
        for net in names(mine, "net")
        for start in ("as made", "simple", "spectral radius", "hold", "flossing", "spread")
        if (runs := of(mine, "recall", net, start))
    ]  # fmt: skip
    head = ["net", "start", "accuracy, seed by seed", "λ₁, median, λ₃₂", "ln ‖∂h_T/∂x₀‖", "s to set"]
    return f"### Recall over 40 steps\n\n{table(head, lines)}" if lines else ""


ACCURACIES = {
    "pixels": "Digits, 64 steps of a pixel: accuracy, mean of the last five epochs",
    "rows": "Digits, 8 steps of a row: accuracy, mean of the last five epochs",
    "adding": "Adding two numbers among 60: R²",
    "match": "Delayed match, delay 40: accuracy",
    "characters": "The next character: nats per character, below zero, so that more is better",
}


def accuracies(rows: list[Row], task: str, title: str) -> str:
    """Starts by nets: median, range, number of seeds."""
    mine = of(rows, task)
    nets = [net for net in ("RNN", "GRU", "LSTM") if of(mine, task, net)]
    order = ("as made", "hold", "hold, lag 16", "simple", "spread")
    lines = [
        [label(start), *(span(results(of(mine, task, net, start))) for net in nets), seeds(runs)]
        for start in order
        if (runs := of(mine, task, start=start))
    ]
    return f"### {title}\n\n{table(['start', *nets, ''], lines)}" if nets else ""


def forecast(rows: list[Row]) -> str:
    mine = of(rows, "forecast")
    lines = [
        [net, label(start), span(results(runs)), span([row["seconds"] for row in runs], ".1f"), seeds(runs)]
        for net in names(mine, "net") for start in names(of(mine, "forecast", net), "start")
        if (runs := of(mine, "forecast", net, start))
    ]  # fmt: skip
    head = ["model", "start", "error, of a naive forecast's", "s, fit in all", ""]
    return f"### Forecasts, with darts\n\n{table(head, lines)}" if lines else ""


def regulariser(rows: list[Row]) -> str:
    mine = of(rows, "regulariser")

    def times(row: Row) -> float:
        off = of(mine, "regulariser", row["net"], "off")
        return row["seconds"] / next(other["seconds"] for other in off if other["seed"] == row["seed"])

    lines = [
        [net, start, span(results(runs)), span([row["largest"] for row in runs]), span([*map(times, runs)], ".1f")]
        for net in names(mine, "net") for start in ("off", "guard", "one-sided")
        if (runs := of(mine, "regulariser", net, start))
    ]  # fmt: skip
    head = ["net", "λ₁ in training", "accuracy", "λ₁ afterwards", "time ×"]
    return f"### Exponents during training, recall over 40 steps\n\n{table(head, lines)}" if lines else ""


def cost(rows: list[Row]) -> str:
    mine = of(rows, "cost")
    words = {"hold": "`condition`, 64 units, s", "flossing": "a step of flossing, 80 units, s"}
    lines = [
        [words[row["start"]], row["net"], shown(min(row["seconds"]))]
        for start in words for row in of(mine, "cost", start=start)
    ]  # fmt: skip
    flossed = [
        [row["net"], str(row["seed"]), str(row["steps"]), f"{square(row):.4f}", "yes" if row["applied"] else "no"]
        for row in of(mine, "cost", start="flossed")
    ]
    parts = [f"### Cost\n\n{table(['what', 'net', 'CPU'], lines)}"] if lines else []
    head = ["net", "seed", "steps", "mean square of the exponents after, less target", "kept"]
    parts += [f"### Flossing in 200 steps, 32 units\n\n{table(head, flossed)}"] if flossed else []
    return "\n\n".join(parts)


def square(row: Row) -> float:
    return row["rms_after"] ** 2


# Verdicts -------------------------------------------------------------------------------------------------------------

Verdict = tuple[str, bool | None, str]
"""What was demanded; whether it is met, None where nothing was run; and the number."""


def verdicts(rows: list[Row]) -> str:
    """What was demanded before the runs, and whether it is met."""
    words = {True: "met", False: "**missed**", None: "not run"}
    lines = [[what, words[met], number] for check in CHECKS for what, met, number in check(rows)]
    return f"### What was demanded\n\n{table(['demanded', '', 'found'], lines)}"


def each(what: str, rows: Sequence[Row], value: Callable[[Row], float], fits: Callable[[float], bool]) -> Verdict:
    """That every run fits."""
    values = [value(row) for row in rows]
    number = f"{span(values)}; {sum(map(fits, values))} of {len(values)} runs" if values else ""
    return what, all(map(fits, values)) if values else None, number


def on_xor(rows: list[Row]) -> Iterator[Verdict]:
    def reading(update: int) -> Callable[[Row], float]:
        return lambda row: by(row, update)

    twenty, ten = (lambda start, task=task: of(rows, task, "RNN", start) for task in ("xor-20", "xor-10"))
    yield each("XOR 20: `condition(lag=40)` ≥ .99 by update 650", twenty("hold"), reading(650), lambda v: v >= 0.99)
    for start in ("as made", "orthogonal"):
        what = f"XOR 20: {label(start)} within .48 to .52 at update 600"
        yield each(what, twenty(start), reading(600), lambda v: 0.48 <= v <= 0.52)
    for start in ("flossing, rate .003", "flossing, rate .001"):
        yield each(f"XOR 20: {start}: ≥ .90 by update 500", twenty(start), reading(500), lambda v: v >= 0.90)
    yield each("XOR 10: `condition(lag=20)` ≥ .99 by update 300", ten("hold"), reading(300), lambda v: v >= 0.99)


def on_recall(rows: list[Row]) -> Iterator[Verdict]:
    for net in ("RNN", "RNN, gain 3", "GRU", "LSTM"):
        runs = of(rows, "recall", net, "hold")
        yield each(f"Recall, {net}: `condition(lag=40)` ≥ .95", runs, lambda row: row["result"], lambda v: v >= 0.95)
        made = of(rows, "recall", net, "as made")
        yield each(f"Recall, {net}: ≤ .5 without it", made, lambda row: row["result"], lambda v: v <= 0.5)
        yield each(f"Recall, {net}: ≤ .5 s to set", runs, lambda row: row["tuning"], lambda v: v <= 0.5)


def on_digits(rows: list[Row]) -> Iterator[Verdict]:
    """The gate for a spread of time constants."""
    for net in ("LSTM", "GRU"):
        made, spread = (results(of(rows, "pixels", net, start)) for start in ("as made", "spread"))
        what = f"Pixels, {net}: mean with the spread ≥ torch's"
        if made and spread:
            yield what, statistics.fmean(spread) >= statistics.fmean(made), gains(spread, made)
            half = statistics.median(spread) / 2
            number = f"lowest {shown(min(spread))}, half of the median {shown(half)}"
            yield f"Pixels, {net}: no run with the spread below half of its median", min(spread) >= half, number
        else:
            yield what, None, ""
    for net in ("LSTM", "GRU"):
        made, spread = (results(of(rows, "rows", net, start)) for start in ("as made", "spread"))
        what = f"Rows, {net}: mean with the spread ≥ torch's − .02"
        if made and spread:
            yield what, statistics.fmean(spread) >= statistics.fmean(made) - 0.02, gains(spread, made)
        else:
            yield what, None, ""


def gains(new: Sequence[float], old: Sequence[float]) -> str:
    """Two means, and the standard error of their difference over the seeds that both have."""
    differences = [a - b for a, b in zip(new, old, strict=False)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    said = f"{shown(statistics.fmean(new))} against {shown(statistics.fmean(old))}"
    return (
        f"{said}; difference {shown(statistics.fmean(differences), '+.3f')} ± {shown(error)} ({len(differences)} pairs)"
    )


def on_flossing(rows: list[Row]) -> Iterator[Verdict]:
    for net in ("RNN", "GRU", "LSTM", "RNN, gain 3"):
        runs = of(rows, "cost", net, "flossed")
        yield each(f"Flossing, {net}: mean λ² ≤ .002 in 200 steps", runs, square, lambda v: v <= 2e-3)


def on_cost(rows: list[Row]) -> Iterator[Verdict]:
    for net in ("RNN", "GRU", "LSTM"):
        for start, what, most in (
            ("hold", "`condition`, 64 units", 1.0),
            ("flossing", "flossing, 80 units, a step", 0.06),
        ):
            runs = of(rows, "cost", net, start)
            yield each(
                f"Cost, {net}: {what} ≤ {shown(most, 'g')} s", runs,
                lambda row: min(row["seconds"]), lambda v, most=most: v <= most,
            )  # fmt: skip


CHECKS = (on_xor, on_recall, on_digits, on_flossing, on_cost)
