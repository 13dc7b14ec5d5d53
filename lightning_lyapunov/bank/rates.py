"""Count how often each finding was right: ``python -m lightning_lyapunov.bank.rates BANK``.

Each network of the bank is read as a run (:mod:`~lightning_lyapunov.bank.histories`), and at every checkpoint before
its end the rules that users run say what they find. What is counted is how many were told it, and how these ended. The
families that are set aside do not count.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lyapunov.bank.bounds import lower_bound
from lightning_lyapunov.bank.histories import STEPS, Scores, runs
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.stops import KEPT, LOSS, WRONG, Stop, choose, markdown_of_stops
from lightning_lyapunov.bank.tasks import SET_ASIDE
from lightning_lyapunov.bank.unseen import unseen_scores
from lightning_lyapunov.files import write_whole
from lightning_lyapunov.reading import conditions
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.rates import (
    AT_CHANCE,
    FEWEST,
    FORMAT,
    GRADES,
    LEARNING,
    RIGHT,
    UNKNOWN,
    group_of,
    knowledge_of,
)
from lightning_lyapunov.reading.rules import told
from lightning_lyapunov.reading.stops import PATIENCE, rule_in_words

HALF, MOST = 0.5, 0.9
"""Final skills above which a network did well, and very well."""
SHIPPED = Path(conditions.__file__).with_name("rates.json")
"""The file that findings, verdict and stopper read."""
PAGE = Path("docs/rates.md")
EVERY = "any network"
"""What all networks are told: the rate that a finding must beat."""
CONDITIONS: dict[str, Callable[[Measurement], bool]] = {
    name: getattr(conditions, name)
    for name in (
        *("is_chaotic", "is_stable", "explodes", "may_explode", "grows_much", "grows", "fades", "is_dead"),
        *("is_collapsed", "is_forgetting", "is_remembering", "is_predicted_to_fail"),
    )
}
"""Conditions of one measurement."""
Told = Mapping[tuple[str, str, int], Sequence[int]]
"""The networks that were told something, by what, by group and by update."""


def development(bank: Bank) -> Bank:
    """The networks that count: those of families that are not set aside."""
    return bank.subset([n for n, family in enumerate(bank.column("family")) if family not in SET_ASIDE])


def tell(bank: Bank, scores: Mapping[bool, Scores] | None = None) -> Told:
    """Read every network as a run, with and without its skill so far, and note who was told what and when.

    Args:
        bank: N networks.
        scores: What a scorer that had not seen them said, by whether it was told the skill so far.
    """
    noted: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    first_end = int(bank.end.min())
    for knows_skill in (False, True):
        said = (scores or {}).get(knows_skill)
        for n, run in enumerate(runs(bank, said, knows_skill=knows_skill)):
            for i, measurement in enumerate(run):
                knowledge = knowledge_of(measurement)
                if measurement.step >= int(bank.end[n]) or (knows_skill and knowledge == UNKNOWN):
                    continue
                if not knows_skill and measurement.step >= first_end:  # those that had learnt by then did not go on
                    continue
                for what in {EVERY, *_all_that_holds(run[: i + 1])}:
                    for cell in ("", measurement.cell):
                        noted[what, group_of(cell, knowledge), measurement.step].append(n)
    return noted


def _all_that_holds(run: Sequence[Measurement]) -> Iterable[str]:
    """Concerns by their state, other findings with their level behind it, conditions by their name."""
    for finding in told(run):
        yield finding.state if finding.level == "warning" else f"{finding.state} ({finding.level})"
    yield from (name for name, holds in CONDITIONS.items() if holds(run[-1]))


def counted(bank: Bank, who: Sequence[int]) -> list[float]:
    """Of some networks: how many, how many failed, came above ½ and 0.9, and the bound of the share that failed."""
    ends, families = bank.skill(bank.final).numpy()[list(who)], np.array(bank.column("family"))[list(who)]
    failed = ends < RIGHT
    numbers = [len(ends), int(failed.sum()), int((ends > HALF).sum()), int((ends > MOST).sum())]
    return [*numbers, round(lower_bound(failed, families), 3)]


def rates(bank: Bank, noted: Told, stops: Iterable[Stop] = ()) -> dict[str, Any]:
    """What is shipped: the rates of concerns, of 50 networks or more, and the rules of the stopper."""
    concerns: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for (what, group, updates), who in sorted(noted.items()):
        if len(who) >= FEWEST and what not in CONDITIONS and what != EVERY and "(" not in what:
            concerns[what][group][str(updates)] = counted(bank, who)
    ends = {int(end) for end in bank.end}
    return {
        "format": FORMAT,
        "bank": {"networks": len(bank), "families": len(set(bank.column("family"))), "sha256": bank.digest},
        "until": max(ends),
        "ends": sorted(ends),
        "longest": max(STEPS[task] for task in bank.column("task")),
        "moments": [updates for updates in bank.checkpoints if updates < max(ends)],
        "told": concerns,
        "stops": [stop.written() for stop in stops if stop.rule is not None],
    }


def text_of(contents: Mapping[str, Any]) -> str:
    """The file's text: one line for each entry, so that changes can be read."""
    lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in contents.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    compact: Callable[[Any], str] = lambda one: json.dumps(one, separators=(",", ":"))  # noqa: E731
    if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {compact(part)}" for key, part in value.items()) + "\n }"
    return compact(value)


# ------------------------------------------------------------------ for people


def markdown(bank: Bank, noted: Told) -> str:
    """Every finding and every condition, by moment: who was told, the share right, and how many did well after all."""
    moments = sorted({updates for *_, updates in noted})
    parts = []
    for knowledge in (UNKNOWN, AT_CHANCE, LEARNING):
        title = {UNKNOWN: "The skill so far is not known", AT_CHANCE: "It is at chance, below 0.1"}
        rows = []
        for what in sorted({what for what, group, _ in noted if group == group_of("", knowledge)}, key=_order):
            cells = [_cell(bank, noted.get((what, group_of("", knowledge), updates), ())) for updates in moments]
            if any(cells):
                rows.append(f"| {what} | {' | '.join(cell or '–' for cell in cells)} |")
        parts.append(f"## {title.get(knowledge, 'It is 0.1 or more')}\n")
        parts.append(f"| told | {' | '.join(f'{updates:,}' for updates in moments)} |")
        parts.append(f"|---|{'---|' * len(moments)}")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _order(what: str) -> tuple[int, str]:
    """All networks, concerns, other findings, conditions."""
    return (0 if what == EVERY else 3 if what in CONDITIONS else 2 if "(" in what else 1, what)


def _cell(bank: Bank, who: Sequence[int]) -> str:
    if len(who) < FEWEST:
        return ""
    count, failed, half, most, least = counted(bank, who)
    grade = next((level for level, share in GRADES if failed / count >= share), "")
    right, well, best = (f"{100 * part / count:.0f}" for part in (failed, half, most))
    text = f"{count:,.0f}: {right} (≥ {100 * least:.0f}) / {well} / {best}"
    return f"**{text}** {grade}" if grade else text


def page(bank: Bank, noted: Told, stops: Sequence[Stop]) -> str:
    """The page of the docs."""
    families = len(set(bank.column("family")))
    return f"""# How often it was right

Sentences, verdict and stops were held against how {len(bank):,} networks of {families} task families ended, by
`python -m lightning_lyapunov.bank.rates`, which wrote this page. In each cell: how many networks were told it after so
many updates; of these, in %, **right** (final skill below {RIGHT}; in brackets the one-sided 95 % bound, which knows
that networks of a family are alike) / above {HALF} / above {MOST}. A concern is *act* where it was right in
{GRADES[0][1]:.0%} or more, a *warning* in {GRADES[1][1]:.0%} or more, else a note. Of fewer than {FEWEST} networks
nothing is told; nor, where the skill is not known, from {int(bank.end.min())} updates on, as only tasks not yet learnt
went on. The last rows are conditions, the others findings; in brackets those that are no concern.

{markdown(bank, noted)}
## Stops

Runs that `LyapunovEarlyStopping` would end, {PATIENCE} measurements in a row. The rules were chosen on one half of the
families, such that no more than {WRONG[0]:.0%} of the runs ended would have come above {HALF} and {WRONG[1]:.1%} above
{MOST}, or, to have converged, {KEPT:.0%} would have gained no more than {LOSS}; every figure is of the other half, in
brackets with its one-sided 95 % bound. Saved is the share of all epochs of all runs.

{markdown_of_stops(stops)}"""


def make(
    path: Path, scores: Path | None = None, out: Path = SHIPPED, write: Path | None = PAGE, *, score: bool = True
) -> tuple[dict[str, Any], list[Stop]]:
    """Count, choose the rules of the stopper, and write the file and the page.

    Args:
        path: The bank.
        scores: Where the scores are that scorers gave to families that they had not seen; made if there is no file.
        out: The file.
        write: The page; none if None.
        score: Whether to score at all.
    """
    bank = development(Bank.load(path))
    said = unseen_scores(bank, scores) if score else None
    noted, stops = tell(bank, said), choose(bank, said)
    contents = rates(bank, noted, stops)
    write_whole(out, text_of(contents).encode())
    if write is not None:
        write_whole(write, page(bank, noted, stops).encode())
    return contents, stops


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lightning_lyapunov.bank.rates", description=__doc__)
    parser.add_argument("bank", type=Path, help="the bank: a directory of records, or a file of the format before")
    parser.add_argument("--scores", type=Path, help="file of scores; made, and kept there, if it is not there")
    parser.add_argument("--no-scores", action="store_true", help="leave out what the scorer predicts")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the file (default: that of the package)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: docs/rates.md)")
    args = parser.parse_args()
    contents, stops = make(args.bank, args.scores, args.out, args.page, score=not args.no_scores)
    for rule in (stop.rule for stop in stops if stop.rule is not None):
        print(f"    - {rule_in_words(rule)}")  # for the docstring of the stopper
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {len(contents['told'])} concerns; {args.page}")


if __name__ == "__main__":
    main()
