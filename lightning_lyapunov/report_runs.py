"""Several runs on one page: a table and a picture that compare them, for sweeps, for twins and for folds."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from jinja2.filters import do_urlencode
from markupsafe import Markup

from lightning_lyapunov.engine.statistics import student
from lightning_lyapunov.page import (
    UNKNOWN,
    Card,
    Download,
    Page,
    Picture,
    Table,
    address,
    flat,
    missed,
    number,
    shortened,
    times,
)
from lightning_lyapunov.reading import depth_rules
from lightning_lyapunov.reading.conditions import gain, largest
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import SIGNS, WORDS, Verdict, Word, verdict
from lightning_lyapunov.reading.words import listed

__all__ = ["Run", "fits_of", "write_runs_report"]

SEEDS = ("seed", "fold", "split", "random_state")
"""Settings with one of these in their name make no difference between twins: they are another draw of the same."""
LEVEL_OF: dict[Word, Any] = {"act": "act", "watch": "warning", "healthy": "good"}
TITLE = "Runs compared"
DOCS = (
    ("how to read this page", "docs/report.md"),
    ("what a spectrum tells", "docs/reading-a-spectrum.md"),
    ("choosing among runs", "docs/choosing-runs.md"),
)


@dataclass(frozen=True)
class Run:
    """One of several runs that are compared."""

    name: str
    history: History[Any]
    settings: Mapping[str, object] = field(default_factory=dict)
    """What it was made with, by name; nested mappings are flattened."""
    page: Path | None = None
    """Its own report, if there is one."""


def fits_of(run: Run) -> list[Run]:
    """A run, after those that the same callback measured before it, as the folds of a cross-validation.

    Their history is there, but no report: :attr:`~lightning_lyapunov.reading.History.earlier` holds them.
    """
    before, count = run.history.earlier, run.history.runs_before + 1
    if count == 1:
        return [run]
    first = count - len(before)
    fits = [Run(f"{run.name}, fit {i} of {count}", one, run.settings) for i, one in enumerate(before, first)]
    return [*fits, Run(f"{run.name}, fit {count} of {count}", run.history, run.settings, run.page)]


def write_runs_report(
    runs: Sequence[Run], path: str | os.PathLike[str], *, title: str = "Lyapunov spectra of several runs"
) -> Path:
    """Write one self-contained HTML page that compares runs, the best first, with links to their own pages.

    They are sorted by the verdict, healthy first; among runs with the same word by the skill that they reached, where
    that is known of all of them, else by the skill predicted, where that is known of all, the highest first, else by
    how little a gradient changes. Runs whose settings are the same but for a seed or a fold are *twins*: they carry
    the same letter, and a table has their means.

    Args:
        runs: At least one, each with a measurement; all of recurrent layers, or all across depth.
        path: The file; its directory is made if need be. Links are relative to it.
        title: Heading of the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: If there is no run, one without a measurement, or if they are of two kinds.
    """
    path = Path(path)
    _check(runs)
    compared, rule = _sorted([_Compared.of(run) for run in runs])
    differing, alike = _settings(compared)
    letters = _twins(compared, differing)
    pictures = _pictures(compared, letters)
    tables = [_table(compared, differing, letters, path.parent)]
    if len(set(letters)) < len(letters):
        tables.insert(0, _twin_table(compared, differing, letters))
    worst = max((one.said.word for one in compared), key=WORDS.index)
    page = Page(
        title=title,
        counted=f"{len(runs)} run{'s' * (len(runs) != 1)}",
        verdict=None,
        findings=[_finding(one) for one in compared if one.said.word != "healthy"],
        cards=_cards(compared),
        summary=[],
        extent="",
        pictures=None if pictures is None else [],
        tables=tables,
        settings=alike,
        docs=DOCS,
        lead=pictures[0] if pictures else None,
    )
    headline = _headline(compared)
    return page.write("report_runs.html", path, headline=headline, worst=worst, sign=SIGNS[worst], rule=rule)


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("runs must hold at least one; got none.")
    for run in runs:
        if not len(run.history):
            raise ValueError(f"every run must hold at least one measurement; {run.name} holds none.")
    kinds = {run.history.kind: run.name for run in runs}
    if len(kinds) > 1:
        named = " and ".join(f"{kind.__name__} in {name}" for kind, name in kinds.items())
        raise ValueError(f"runs must all be of recurrent layers or all across depth; got {named}.")


# ------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class _Compared:
    """What is known of a run at its newest measurement."""

    run: Run
    said: Verdict
    settings: Mapping[str, str]
    growth: tuple[float, float]
    """Gain of a gradient over a sequence, across depth its largest growth, and the error: nats."""
    exponent: tuple[float, float]
    """The largest exponent and its error, nats per step; across depth not known."""
    predicted: tuple[float, float, float]
    """Final skill as the scorer predicts it, and its 80 % interval."""
    reached: float

    @classmethod
    def of(cls, run: Run) -> _Compared:
        newest = run.history[-1]
        settings = {name: shortened(value) for name, value in flat(run.settings)}
        unknown = (math.nan, math.nan)
        if isinstance(newest, DepthMeasurement):
            said = depth_rules.verdict(run.history)
            assert said is not None  # there is a measurement
            return cls(run, said, settings, newest.total, unknown, (*unknown, math.nan), math.nan)
        said = verdict(run.history)
        assert said is not None
        scores = [newest.metrics.get(f"aelle/performance{end}", math.nan) for end in ("", "_low", "_high")]
        reached = math.nan if newest.reached is None else newest.reached
        return cls(run, said, settings, gain(newest), largest(newest), (scores[0], scores[1], scores[2]), reached)


def _sorted(compared: Sequence[_Compared]) -> tuple[list[_Compared], str]:
    """Best first, and the rule in words."""
    among, key = "by how little a gradient changes", [abs(one.growth[0]) for one in compared]
    for name, values in (
        ("the skill reached", [one.reached for one in compared]),
        ("the skill predicted", [one.predicted[0] for one in compared]),
    ):
        if not any(map(math.isnan, values)):
            among, key = f"by {name}, the highest first", [-value for value in values]
            break
    ranks = [math.inf if math.isnan(value) else value for value in key]
    order = sorted(range(len(compared)), key=lambda i: (compared[i].said.number, ranks[i], compared[i].run.name))
    return [compared[i] for i in order], f"Sorted by the verdict, healthy first, and where that is the same {among}."


def _settings(compared: Sequence[_Compared]) -> tuple[list[str], dict[str, object]]:
    """Names of the settings in which runs differ, and those that all have in common."""
    names = dict.fromkeys(name for one in compared for name in one.settings)
    differing = [name for name in names if len({one.settings.get(name) for one in compared}) > 1]
    return differing, {name: compared[0].settings[name] for name in names if name not in differing}


def _is_draw(name: str) -> bool:
    """Whether a setting is a seed, a fold or the like."""
    last = name.rpartition(".")[2].lower()
    return any(seed in last for seed in SEEDS)


def _twins(compared: Sequence[_Compared], differing: Sequence[str]) -> list[str]:
    """A letter for each run, the same for those whose settings are the same but for seeds and folds."""
    seen: dict[tuple[str | None, ...], str] = {}
    letters = []
    for one in compared:
        key = tuple(one.settings.get(name) for name in differing if not _is_draw(name))
        letters.append(seen.setdefault(key, _letter(len(seen))))
    return letters


def _letter(count: int) -> str:
    """A to Z, then A1 and on."""
    turns, letter = divmod(count, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(turns) if turns else "")


# ------------------------------------------------------------------ words


def _counts(compared: Sequence[_Compared]) -> dict[Word, list[str]]:
    """Names of the runs that have each word."""
    return {word: [one.run.name for one in compared if one.said.word == word] for word in WORDS}


def _headline(compared: Sequence[_Compared]) -> str:
    """How many of the runs are what."""
    told = {"healthy": ("is healthy", "are healthy"), "watch": ("is", "are"), "act": ("calls", "call")}
    ends = {"healthy": "", "watch": " to be watched", "act": " for action"}
    counts = {word: len(names) for word, names in _counts(compared).items() if names}
    clauses = [f"{told[word][count != 1]}{ends[word]}" for word, count in counts.items()]
    if len(clauses) == 1:
        return f"{f'All {len(compared)} runs' if len(compared) > 1 else 'The run'} {clauses[0]}."
    parts = [f"{count} {clause}" for count, clause in zip(counts.values(), clauses, strict=True)]
    return f"Of {len(compared)} runs {listed(parts)}."


def _cards(compared: Sequence[_Compared]) -> list[Card]:
    """How many runs have each word, in its colour."""
    notes = {
        "healthy": "train on",
        "watch": "look at them again",
        "act": "do what the finding says",
    }
    return [
        Card(word.capitalize(), str(len(names)), f"run{'s' * (len(names) != 1)}: {notes[word]}", None, word)
        for word, names in _counts(compared).items()
        if names
    ]


def _finding(one: _Compared) -> Finding:
    """What is wrong with a run and what to do, as the list of findings shows it."""
    text = " ".join(filter(None, [f"{one.run.name}: {one.said.text}", one.said.advice, missed(one.run.history)]))
    return Finding(one.said.about, LEVEL_OF[one.said.word], text)


# ------------------------------------------------------------------ tables


def _table(compared: Sequence[_Compared], differing: Sequence[str], letters: Sequence[str], folder: Path) -> Table:
    rows = [_row(one, letter, differing, folder) for one, letter in zip(compared, letters, strict=True)]
    across = compared[0].run.history.kind is DepthMeasurement
    unknown = {name for name in rows[0] if all(row[name] == UNKNOWN for row in rows)} - {*differing}
    if len(set(letters)) == len(letters) or len(set(letters)) == 1:
        unknown.add("twins")
    names = [name for name in rows[0] if name not in unknown]
    what = (
        "what a gradient is multiplied by at most from output to input, and the logarithm of that in nats"
        if across
        else "what a gradient is multiplied by over a sequence, in a typical one, and the logarithm of that in nats; "
        "the largest exponent in nats per step; the skill predicted with its 80 % interval"
    )
    return Table(
        "runs",
        "Runs",
        f"Each at its newest measurement: {what}. Then the settings in which the runs differ. – is not known.",
        names,
        [("", [row[name] for name in names]) for row in rows],
        Download.of_csv("runs.csv", f"All {len(rows)} runs with all their figures (CSV)", _csv(compared, letters)),
    )


def _row(one: _Compared, letter: str, differing: Sequence[str], folder: Path) -> dict[str, str]:
    """One run, by the headings of the table."""
    newest, (value, error), (predicted, low, high) = one.run.history[-1], one.growth, one.predicted
    interval = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    last = f"{newest.step:,}"
    if one.run.history.missed is not None:
        last += f" of {one.run.history.missed[0]:,}"
    return {
        "run": _link(one.run, folder),
        "verdict": Markup('<span class="word {0}">{1} {0}</span>').format(one.said.word, one.said.sign),
        "twins": letter,
        "measured at update": last,
        "gradient": times(value),
        "ln ± error": _with_error(value, error, ".2f"),
        "λ max ± error": _with_error(*one.exponent, ".3f"),
        "predicted skill": number(predicted, ".2f") + interval,
        "reached": number(one.reached, ".2f"),
        **{name: one.settings.get(name, UNKNOWN) for name in differing},
    }


def _link(run: Run, folder: Path) -> str:
    """Its name, which leads to its own report if there is one."""
    if run.page is None:
        return run.name
    where = Path(os.path.relpath(run.page.resolve(), folder.resolve())).as_posix()
    return Markup('<a href="{}">{}</a>').format(do_urlencode(where), run.name)


def _with_error(value: float, error: float, form: str) -> str:
    return number(value, f"+{form}") + (f" ± {error:{form}}" if math.isfinite(value) and math.isfinite(error) else "")


def _twin_table(compared: Sequence[_Compared], differing: Sequence[str], letters: Sequence[str]) -> Table:
    """A row for each letter: how many runs, how they are, and what they come to on average."""
    names = [name for name in differing if not _is_draw(name)]
    rows = []
    for letter in dict.fromkeys(letters):
        own = [one for one, its in zip(compared, letters, strict=True) if its == letter]
        cells = {
            "twins": letter,
            "runs": str(len(own)),
            **{word: str(len(named)) for word, named in _counts(own).items()},
            "ln of the gradient": _mean([one.growth[0] for one in own]),
            "predicted skill": _mean([one.predicted[0] for one in own]),
            "reached": _mean([one.reached for one in own]),
            **{name: own[0].settings.get(name, UNKNOWN) for name in names},
        }
        rows.append(cells)
    kept = [name for name in rows[0] if name in names or any(row[name] != UNKNOWN for row in rows)]
    return Table(
        "twins",
        "Twins",
        "Runs with the same settings but for seeds and folds: how many there are of each word, and means over them ± "
        "the half-width of their 95 % bar, which a single run has none of.",
        kept,
        [("", [row[name] for name in kept]) for row in rows],
    )


def _mean(values: Sequence[float]) -> str:
    """Mean and half-width of its 95 % bar over those that are known; the value alone of one."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < len(values):
        return UNKNOWN
    mean = statistics.fmean(known)
    if len(known) < 2:
        return number(mean, ".2f")
    error = student(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return f"{number(mean, '.2f')} ± {error:.2f}"


def _csv(compared: Sequence[_Compared], letters: Sequence[str]) -> str:
    """Everything known of each run at its newest measurement, a row for each in the order of the page."""
    rows: list[dict[str, object]] = [
        {
            "run": one.run.name,
            "verdict": one.said.word,
            "reason": one.said.text,
            "twins": letter,
            "step": one.run.history[-1].step,
            "reached": "" if math.isnan(one.reached) else one.reached,
            **one.run.history[-1].metrics,
            **{f"settings.{name}": value for name, value in one.settings.items()},
        }
        for one, letter in zip(compared, letters, strict=True)
    ]
    text = StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), "", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ------------------------------------------------------------------ the picture


def _pictures(compared: Sequence[_Compared], letters: Sequence[str]) -> list[Picture] | None:
    """The one picture; None without matplotlib."""
    try:
        from lightning_lyapunov.figures.runs import runs_compared
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    across = compared[0].run.history.kind is DepthMeasurement
    with_twins = 1 < len(set(letters)) < len(letters)
    figure = runs_compared(
        [
            f"{letter}  {one.run.name}" if with_twins else one.run.name
            for one, letter in zip(compared, letters, strict=True)
        ],
        [one.said.word for one in compared],
        [one.growth for one in compared],
        [one.predicted for one in compared],
        [one.reached for one in compared],
        what="from output to input" if across else "over a sequence",
    )
    caption = (
        f"A row for each run, in the order of the table below, marked by its verdict: what a gradient "
        f"{'grows by at most from output to input' if across else 'grows by over a sequence'}, with its error"
    )
    if not across:
        caption += "; and the final skill predicted, with its 80 % interval, beside what was reached"
    told = "; ".join(f"{one.run.name} {one.said.word}, {_with_error(*one.growth, '.2f')} nats" for one in compared[:12])
    more = f", and {len(compared) - 12} more" if len(compared) > 12 else ""
    return [Picture(TITLE, f"{caption}.", f"{TITLE}. {told}{more}.", address(figure))]
