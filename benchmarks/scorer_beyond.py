"""Is what a scorer says beyond its bank right? Scorers fitted on a part of the bank are asked about the rest.

A bank is cut: of its updates, sizes, largest exponents or skills so far only those up to a limit are kept. A scorer is
fitted on what is kept of two thirds of the task families, and asked about the networks of the others, within the limit
and beyond it. Each row of the table tells how often the truth lay in the 80 % interval, by distance beyond the limit:
as the formula comes to there (*extrapolated*), and with each value taken for the last one seen and half of the interval
given to the widest for every doubling (*halved*, as scorers do: `lightning_lyapunov/aelle/ranges.py`). Beside it stand
the root mean square errors of the prediction itself, and of those called sure to fail (90 %) while the familiarity was
0.3 or more, how many failed.

A bank cut at some updates is one of shorter runs: final is what was reached there, as a share of the best that any
network of the task had reached by then. The networks asked about run on to the end, in the unit of the end.

Usage: python benchmarks/scorer_beyond.py [BANK] [--quick]   # bank/bank-1.safetensors if BANK is left out
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.knowledge import limited
from lightning_lyapunov.aelle.ranges import Ranges
from lightning_lyapunov.aelle.scorer import Predictions
from lightning_lyapunov.aelle.training import Examples, fit_scorer
from lightning_lyapunov.bank.evaluation import Table, development
from lightning_lyapunov.bank.records import Bank

BANK = Path(__file__).resolve().parents[1] / "bank" / "bank-1.safetensors"
SIZE, TIME, SKILL = (CONTEXT.index(name) for name in ("log_size", "log_updates", "skill"))
CUTS = {"updates": (80, 160, 320), "hidden size": (16, 32), "largest exponent": (0.8,), "skill so far": (0.5,)}
"""Limits; of the largest exponent the share of the bank below it."""
EDGES = (-math.inf, 0.0, 0.5, 1.1, 2.1, 3.1, math.inf)
"""Of the distances that are told together, in doublings."""
SURE, FAMILIAR, FAILED, EVER = 0.9, 0.3, 0.1, 0.2
"""Of failure; familiarity to act on it; final skill of a failure; skill that counts as a task learnt by somebody."""


@dataclass
class Cut:
    """A bank of which a part is kept."""

    column: int
    """Of what is cut, among spectrum and context."""
    limit: float
    keep: Tensor
    """(R,) bool."""
    fitted: Rows
    """As the rows are told to the fit."""
    final: Tensor
    """(R,) what is fitted; NaN where there is nothing to learn."""


def tasks_of(table: Table) -> Tensor:
    names = sorted(set(table.column("task")))
    return torch.tensor([names.index(task) for task in table.column("task")])


def cut(table: Table, what: str, limit: float) -> Cut:
    if what == "updates":
        so_far = {
            (int(n), int(u)): float(s)
            for n, u, s in zip(table.network, table.updates, table.rows.context[:, SKILL], strict=True)
        }
        ends = torch.tensor([so_far.get((n, int(limit)), math.nan) for n in table.network.tolist()])
        tasks = tasks_of(table)
        best = torch.stack([ends[tasks == t].nanquantile(0.98) for t in range(int(tasks.max()) + 1)])[tasks]
        context = table.rows.context.clone()
        context[:, SKILL] = (context[:, SKILL] / best).clamp(max=1.0)
        final = torch.where(best >= EVER, (ends / best).clamp(max=1.0), math.nan)
        edge = math.log1p(limit / 10)
        return Cut(LEVELS + 1 + TIME, edge, table.updates <= limit, Rows(table.rows.spectrum, context), final)
    column = {"hidden size": LEVELS + 1 + SIZE, "largest exponent": 0, "skill so far": LEVELS + 1 + SKILL}[what]
    values = torch.cat([table.rows.spectrum, table.rows.context], 1)[:, column]
    edge = {"hidden size": math.log(limit / 32), "largest exponent": float(values.quantile(min(limit, 1.0)))}.get(
        what, limit
    )
    return Cut(column, edge, values <= edge + 1e-6, table.rows, table.skill)


def asked(
    table: Table, part: Cut, folds: int, steps: int
) -> Iterator[tuple[Tensor, Tensor, bool, dict[str, Predictions]]]:
    """For each group of families left out: its rows, how far beyond they lie, what was known, and both predictions."""
    family = table.families
    for fold in range(folds):
        inside = part.keep & (family % folds != fold) & ~part.final.isnan()
        known = table[inside]
        unsaid = torch.full((len(known),), math.nan)
        examples = Examples(
            part.fitted[inside], part.final[inside], unsaid, known.weights, known.groups, family[inside] // folds
        )
        scorer = fit_scorer(examples, {}, members=1, folds=3, steps=steps)
        high = scorer.heads.ranges.high.clone()
        high[part.column] = part.limit
        ranges = Ranges(scorer.heads.ranges.low, high)
        rows = torch.nonzero(family % folds == fold)[:, 0]
        for known in (True, False):
            seen = limited(table.rows[rows], skill=known)
            said = {}
            for way, within in (("extrapolated", Ranges.unknown()), ("halved", ranges)):
                scorer.heads = replace(scorer.heads, ranges=within)
                said[way] = scorer.predict(seen)
            beyond = ranges.doublings(table.rows[rows])[:, part.column]
            yield rows, torch.where(part.keep[rows], -1.0, beyond), known, said


def lines(table: Table, folds: int, steps: int) -> Iterator[str]:
    yield (
        "| seen in the fit | skill so far | doublings beyond | rows | in the interval, extrapolated | halved "
        "| error, extrapolated | halved | sure to fail, extrapolated | halved |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for what, limits in CUTS.items():
        for limit in limits:
            part = cut(table, what, limit)
            answers = list(asked(table, part, folds, steps))
            for known in (True, False):
                if what == "skill so far" and not known:
                    continue
                here = [answer for answer in answers if answer[2] == known]
                rows, beyond = torch.cat([a[0] for a in here]), torch.cat([a[1] for a in here])
                weights, truth = table.weights[rows] * ~part.final[rows].isnan(), table.skill[rows]
                if what != "updates":
                    weights = table.weights[rows]
                for least, most in pairwise(EDGES):
                    there = (beyond > least) & (beyond <= most) & (weights > 0)
                    if int(there.sum()) < 50:
                        continue
                    far = f"{float(beyond[there].mean()):.1f}" if least >= 0 else "within"
                    cells: list[list[str]] = [[], [], []]
                    for way in ("extrapolated", "halved"):
                        said = {k: torch.cat([getattr(a[3][way], k) for a in here])[there] for k in
                                ("performance", "low", "high", "failure", "familiarity")}  # fmt: skip
                        w, true = weights[there] / weights[there].sum(), truth[there]
                        held = (said["low"] <= true + 1e-6) & (true <= said["high"] + 1e-6)
                        sure = (said["failure"] >= SURE) & (said["familiarity"] >= FAMILIAR)
                        cells[0].append(
                            f"{float((w * held).sum()):.0%}, {float((w * (said['high'] - said['low'])).sum()):.2f} wide"
                        )
                        cells[1].append(f"{float((w * (said['performance'] - true).square()).sum()) ** 0.5:.2f}")
                        cells[2].append(f"{int((sure & (true < FAILED)).sum())} of {int(sure.sum())}")
                    flat = " | ".join(cell for pair in cells for cell in pair)
                    yield f"| {what} ≤ {limit} | {'known' if known else 'not'} | {far} | {int(there.sum())} | {flat} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, nargs="?", default=BANK, help="the bank that is cut")
    parser.add_argument("--quick", action="store_true", help="one network in eight, briefly fitted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = development(Table.of(Bank.load(args.bank)))
    some = table[table.network % (8 if args.quick else 2) == 0]
    for line in lines(some, 3, 60 if args.quick else 300):
        print(line, flush=True)


if __name__ == "__main__":
    main()
