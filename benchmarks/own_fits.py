"""How well does a scorer of one's own rank networks that it has not seen? Parts of the bank, each as if a sweep.

A *slice* is what a laboratory may have: a task's networks, 40 of them, one kind of cell of them, those of a whole
family of tasks, one kind of cell of those; all are of the first bank, on which versions before were measured. Each is
cut into five folds, twins together; `AeLLEScorer.fit` gets four and scores the fifth, before training or after one
epoch, told cell and size or not told. The general scorer that it begins from is fitted on the bank in use without the
slice's families, in five groups. A figure is Spearman's ρ of what is said of all folds with the final skill, averaged
over slices of a kind. *In folds* networks are only compared with those of their fold: where one fold happens to hold
better networks the four others are worse, so their level is lower, which counts against whatever is fitted and not
against a scorer as it is used; of few networks it is most of what is to be seen.

Beside the fit stand its candidates, each alone, their stack where the fit is the prior alone, the candidate with the
smallest error on groups left out, and the general scorer unfitted. Differences are paired: the fit less the candidate
that is best on average, and less the fits of other versions on the slices that these were measured on.

Priors are kept in runs/own_fits, answers in benchmarks/results/own_fits.jsonl; interrupted, a run goes on where it was.
After a change of the general scorer use another `--kept`, after one of the fit another `--name`.

Usage: python benchmarks/own_fits.py            # measure what is missing, then print the table
       PYTHONPATH=OTHER python benchmarks/own_fits.py --alone --name NAME --kept DIRECTORY
                                                # the fit of another version of the package, without its candidates
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from lightning_lyapunov import AeLLEScorer
from lightning_lyapunov.aelle.features import FLOOR
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF
from lightning_lyapunov.bank.evaluation import Table, area, correlation, development
from lightning_lyapunov.bank.records import Bank

try:
    from lightning_lyapunov.bank.report.left_out import fit_general
except ImportError:  # a version before
    from lightning_lyapunov.bank.report import fit_general

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = ROOT / "benchmarks" / "results" / "own_fits.jsonl"
UPDATES = (0, 40)
"""Before training and after one epoch: each slice is of one of the two, by turns."""
CELLS = ("rnn", "gru", "lstm")
FOLDS, GROUPS, FEW = 5, 5, 40
"""Folds of a slice; groups of families left out of a prior; networks of the small slices."""
FIT, PRIOR, UNFITTED, SMALLEST = "fit", "prior", "prior, unfitted", "smallest error left out"
FIGURES = ("rho", "in folds")
SAID = (FIT, "low", "high", "failure", "take-off")
LEAST_SPREAD = 0.05
"""Of the final skills of a slice: below, there is nothing to rank."""


@dataclass(frozen=True, eq=False)
class Slice:
    """A sweep."""

    kind: str
    name: str
    rows: np.ndarray
    """(n,) its rows of the table."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """All that a fit is told of a slice."""

    spectra: Sequence[Tensor]
    skill: Tensor
    cells: Sequence[str | None]
    sizes: Sequence[int | None]
    updates: int
    twins: Sequence[int]

    def part(self, keep: np.ndarray) -> Sweep:
        chosen = np.flatnonzero(keep)
        lists = ([values[i] for i in chosen] for values in (self.spectra, self.cells, self.sizes, self.twins))
        spectra, cells, sizes, twins = lists
        return Sweep(spectra, self.skill[torch.from_numpy(chosen)], cells, sizes, self.updates, twins)


def slices(table: Table) -> list[Slice]:
    families, tasks, cells = (table.column(key) for key in ("family", "task", "cell"))
    updates, spread = table.updates.numpy(), table.skill.numpy()
    found: list[Slice] = []

    def add(kind: str, name: str, inside: np.ndarray, when: int, most: int | None = None) -> None:
        rows = np.flatnonzero(inside & (updates == when))
        if most is not None:
            rows = np.sort(np.random.default_rng(len(found)).permutation(rows)[:most])
        if np.ptp(spread[rows]) >= LEAST_SPREAD:
            found.append(Slice(kind, f"{kind}: {name}, update {when}", rows))

    for i, task in enumerate(sorted(set(tasks))):
        when = UPDATES[i // 2 % 2]
        add("a task", task, tasks == task, UPDATES[i % 2])
        if i % 2 == 0:
            add("40 of a task", task, tasks == task, when, FEW)
        else:
            cell = CELLS[i // 2 % 3]
            add("one cell of a task", f"{task}, {cell}", (tasks == task) & (cells == cell), when)
    for i, family in enumerate(sorted(set(families))):
        cell = CELLS[i % 3]
        add("a family", family, families == family, UPDATES[i % 2])
        add("one cell of a family", f"{family}, {cell}", (families == family) & (cells == cell), UPDATES[1 - i % 2])
    return found


def exponents(bank: Bank, network: int, updates: int) -> Tensor:
    """(D,) whole; of a bank that keeps quantiles, as many as there were, read between them, the leading ones exact."""
    if hasattr(bank, "spectra"):  # a version before
        from lightning_lyapunov.bank.population import CHECKPOINTS

        return bank.spectra[network][CHECKPOINTS.index(updates)]
    place, size = bank.checkpoints.index(updates), bank.networks[network]["dimension"]
    levels, leading = bank.quantiles[network, place], bank.leading[network, place]
    wanted, known = ((np.arange(count) + 0.5) / count for count in (size, len(levels)))
    values = torch.from_numpy(np.interp(wanted, known, levels.clamp(min=FLOOR).numpy())).float()
    leading = leading[~leading.isnan()][:size]
    return torch.cat([leading, values[len(leading) :]])


def sweep(table: Table, rows: np.ndarray, is_told: bool) -> Sweep:
    bank, networks = table.bank, [int(n) for n in table.network[torch.from_numpy(rows)]]
    made = [bank.networks[n] for n in networks]
    twins = [tuple(network[key] for key in ("task", "cell", "hidden_size", "number")) for network in made]
    numbers = {twin: i for i, twin in enumerate(dict.fromkeys(twins))}
    when = int(table.updates[rows[0]])
    return Sweep(
        [exponents(bank, n, when) for n in networks],
        table.skill[torch.from_numpy(rows)],
        [network["cell"] if is_told else None for network in made],
        [network["hidden_size"] if is_told else None for network in made],
        when,
        [numbers[twin] for twin in twins],
    )


def priors(families: Sequence[str], table: Table, kept: Path) -> dict[str, AeLLEScorer]:
    """For each family a general scorer of a table's networks that has not seen it."""
    result = {}
    for group in range(GROUPS):
        path, left_out = kept / f"prior-{group}.safetensors", families[group::GROUPS]
        if not path.is_file():
            fit_general(table[~table.where(family=left_out)], members=1, folds=3).save(path)
            print(f"general scorer without {', '.join(left_out)}", flush=True)
        result |= dict.fromkeys(left_out, AeLLEScorer.load(path))
    return result


def measured(one: Sweep, prior: AeLLEScorer, alone: bool) -> dict[str, Any]:
    """ρ by what is compared, and the milliseconds of a fit."""
    fold = np.random.default_rng(0).permutation(max(one.twins) + 1)[one.twins] % FOLDS
    said: dict[str, np.ndarray] = {}
    took = 0.0
    for k in range(FOLDS):
        known, asked = one.part(fold != k), one.part(fold == k)
        began = time.process_time()
        with mock.patch.object(AeLLEScorer, "from_pretrained", staticmethod(lambda name="general": prior)):
            scorer = AeLLEScorer.fit(
                known.spectra, known.skill, architecture=known.cells, hidden_size=known.sizes, updates=known.updates,
                groups=known.twins,
            )  # fmt: skip
        took += time.process_time() - began
        worst, best = scorer.performance_range
        true = (asked.skill.numpy() - worst) / (best - worst)
        if alone:
            parts = by_score(scorer, asked)
        else:
            rows = rows_of(scorer, asked)
            said_of = scorer.predict(rows)
            columns = (said_of.performance, said_of.low, said_of.high, said_of.failure, said_of.takeoff)
            parts = dict(zip(SAID, (column.numpy() for column in columns), strict=True)) | candidates(scorer, rows)
        parts["inside"] = (parts.pop("low") - 1e-6 <= true) & (true <= parts.pop("high") + 1e-6)
        parts |= {"fails": true < FAILED, "takes off": true > TOOK_OFF}
        for name, values in parts.items():
            said.setdefault(name, np.full(len(fold), np.nan))[fold == k] = values
    told = {name: said.pop(name) for name in ("inside", "failure", "take-off", "fails", "takes off")}
    outcomes = (("failure", "fails"), ("take-off", "takes off"))
    return {
        "rho": {name: correlation(values, one.skill.numpy()) for name, values in said.items()},
        "in folds": {name: in_folds(values, one.skill.numpy(), fold) for name, values in said.items()},
        "covered": float(told["inside"].mean()),
        "brier": {name: float(np.square(told[name] - told[true]).mean()) for name, true in outcomes},
        "area": {name: area(told[name], told[true] > 0) for name, true in outcomes},
        "milliseconds": 1000 * took / FOLDS,
        "networks": len(set(one.twins)),
        "rows": len(fold),
    }


def in_folds(said: np.ndarray, skill: np.ndarray, fold: np.ndarray) -> float:
    """Correlation of ranks within folds, all folds together."""
    ranks = np.zeros((2, len(fold)))
    for k in range(FOLDS):
        for row, values in zip(ranks, (said, skill), strict=True):
            row[fold == k] = rankdata(values[fold == k]) - (np.sum(fold == k) + 1) / 2
    return float(np.corrcoef(ranks)[0, 1]) if ranks.any(1).all() else 0.0


def by_score(scorer: AeLLEScorer, asked: Sweep) -> dict[str, np.ndarray]:
    """What any version says, as skills from 0 to 1."""
    worst, best = scorer.performance_range
    scores = [
        scorer.score(spectrum, architecture=cell, hidden_size=size, updates=asked.updates)
        for spectrum, cell, size in zip(asked.spectra, asked.cells, asked.sizes, strict=True)
    ]
    skills = np.array([(score.performance, score.low, score.high) for score in scores])
    odds = np.array([(score.failure_probability, score.takeoff_probability) for score in scores])
    return dict(zip(SAID, np.concatenate([(skills - worst) / (best - worst), odds], 1).T, strict=True))


def rows_of(scorer: Any, asked: Sweep) -> Any:
    from lightning_lyapunov.aelle.features import Context
    from lightning_lyapunov.aelle.views import OwnRows

    parts = [
        scorer._row(spectrum, Context(architecture=cell, hidden_size=size, updates=asked.updates))
        for spectrum, cell, size in zip(asked.spectra, asked.cells, asked.sizes, strict=True)
    ]
    return OwnRows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("spectrum", "context", "fine")))


def candidates(scorer: Any, rows: Any) -> dict[str, np.ndarray]:
    """What each candidate says, also where there are too few networks for it to count."""
    from lightning_lyapunov.aelle import stack
    from lightning_lyapunov.aelle.views import Fit

    known = rows.known[0] & scorer._usable
    fit = scorer.fit_for(known)
    if len(fit.stack.candidates) == 1:
        with mock.patch.object(stack, "FEWEST", 0):
            fit = Fit(scorer.own.rows.masked(known), scorer._skill, scorer._groups, scorer.prior)
    said = fit.parts(rows.masked(known))
    errors = {n: float((scorer._skill - c.left_out).square().mean()) for n, c in fit.stack.candidates.items()}
    return {
        UNFITTED: scorer.prior.logits(rows.masked(known))[:, 0].numpy(),
        **{name: values.numpy() for name, values in said.items()},
        SMALLEST: said[min(errors, key=errors.__getitem__)].numpy(),
    }


def answers() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ANSWERS.read_text("utf-8").splitlines()] if ANSWERS.is_file() else []


def measure(bank: Path, general_bank: Path, name: str, kept: Path, alone: bool) -> None:
    table = development(Table.of(Bank.load(bank)))
    general = priors(
        sorted(set(table.column("family"))),
        table if general_bank == bank else development(Table.of(Bank.load(general_bank))),
        kept,
    )
    table = table[torch.isin(table.updates, torch.tensor(UPDATES))]
    families = table.column("family")
    done = {(a["name"], a["slice"], a["told"]) for a in answers()}
    for is_told in (True, False):
        for one in slices(table):
            if (name, one.name, is_told) in done:
                continue
            found = measured(sweep(table, one.rows, is_told), general[families[one.rows[0]]], alone)
            with ANSWERS.open("a", encoding="utf-8") as file:
                line = {"name": name, "kind": one.kind, "slice": one.name, "told": is_told, **found}
                file.write(json.dumps(line) + "\n")


# Tables ---------------------------------------------------------------------------------------------------------------


def lines(name: str) -> Iterator[str]:
    every = answers()
    mine = [answer for answer in every if answer["name"] == name]
    others = sorted({answer["name"] for answer in every} - {name})
    for is_told in (True, False):
        here = [answer for answer in mine if answer["told"] == is_told]
        if here:
            yield f"\n**Cell and size {'told' if is_told else 'not told'}**"
            for figure in FIGURES:
                yield from ranks(here, figure)
            theirs = [a for a in every if a["name"] in others and a["told"] == is_told]
            yield from against(here, theirs)
    yield from costs(every, (name, *others))


def costs(every: Sequence[dict[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Time, intervals and probabilities of each version, and of the first on the slices of the others."""
    yield "\n| fit | slices | ms, below 60 | 60 to 119 | 120 or more | in interval | Brier, failure | take-off |"
    yield "|---|---|---|---|---|---|---|---|"
    for who in names:
        shared = {(a["slice"], a["told"]) for a in every if a["name"] == who}
        for whose in dict.fromkeys((who, names[0])):  # of another version, and of this one on the same slices
            some = [a for a in every if a["name"] == whose and (a["slice"], a["told"]) in shared]
            took = " | ".join(
                f"{mean([a['milliseconds'] for a in some if least <= a['networks'] < most])[0]:.0f}"
                for least, most in ((0, 60), (60, 120), (120, math.inf))
            )
            briers = " | ".join(f"{mean([a['brier'][key] for a in some])[0]:.3f}" for key in ("failure", "take-off"))
            yield f"| {whose} | {len(some)} | {took} | {mean([a['covered'] for a in some])[0]:.0%} | {briers} |"


def ranks(here: Sequence[dict[str, Any]], figure: str) -> Iterator[str]:
    """Means by kind of slice, and the fit less the best of its candidates."""
    columns = [FIT, *(column for column in here[0][figure] if column not in (FIT, PRIOR))]
    kinds = {kind: [a for a in here if a["kind"] == kind] for kind in dict.fromkeys(a["kind"] for a in here)}
    large = [answer for answer in here if answer["networks"] >= FEW]
    kinds |= {f"all of {FEW} networks or more": large} if large else {}
    yield f"\nMean {'ρ' if figure == FIGURES[0] else 'correlation of ranks in folds'}:\n"
    yield f"| slices | number | networks | {' | '.join(columns)} |"
    yield "|---|---|---|" + "---|" * len(columns)
    for kind, some in kinds.items():
        sizes = [answer["networks"] for answer in some]
        cells = " | ".join(f"{mean([answer[figure][column] for answer in some])[0]:.3f}" for column in columns)
        yield f"| {kind} | {len(some)} | {min(sizes)} to {max(sizes)} | {cells} |"
    for kind, some in kinds.items():
        alone = [column for column in columns if column not in (FIT, "stack", SMALLEST)]
        best = max(alone, key=lambda column: mean([answer[figure][column] for answer in some])[0])
        yield f"\n{kind}: the fit less *{best}* {difference(some, figure, [a[figure][best] for a in some])}."


def against(here: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The fit less those of other versions, on the slices that these were measured on."""
    for other in sorted({answer["name"] for answer in theirs}):
        found = {answer["slice"]: answer for answer in theirs if answer["name"] == other}
        for figure in FIGURES:
            for what, least, most in ((f"below {FEW} networks", 0, FEW), (f"{FEW} or more", FEW, math.inf)):
                both = [a for a in here if figure in found.get(a["slice"], ()) and least <= a["networks"] < most]
                if both:
                    told = difference(both, figure, [found[a["slice"]][figure][FIT] for a in both])
                    yield f"\nThe fit less that of *{other}*, {what}, {figure}: {told}."


def difference(some: Sequence[dict[str, Any]], figure: str, others: Sequence[float]) -> str:
    value, error = mean([answer[figure][FIT] - other for answer, other in zip(some, others, strict=True)])
    return f"{value:+.3f} ± {error:.3f} over {len(some)} slices"


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Of numbers, with its standard error."""
    found = np.array(values)
    if len(found) == 0:
        return math.nan, math.nan
    return float(found.mean()), float(found.std() / math.sqrt(max(len(found) - 1, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, default=ROOT / "bank" / "bank-1.safetensors")
    parser.add_argument("--priors", type=Path, default=ROOT / "bank" / "records", help="bank of the general scorers")
    parser.add_argument("--name", default="stack", help="under which answers are kept")
    parser.add_argument("--kept", type=Path, default=ROOT / "runs" / "own_fits", help="where priors are kept")
    parser.add_argument("--alone", action="store_true", help="the fit without its candidates, as of another version")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(args.bank, args.priors, args.name, args.kept, args.alone)
    if not args.alone:
        print("\n".join(lines(args.name)))


if __name__ == "__main__":
    main()
