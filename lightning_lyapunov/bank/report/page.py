"""The report: a first screen for those who use the scorer, and the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CELL, CONTEXT
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF
from lightning_lyapunov.aelle.knowledge import PARTS
from lightning_lyapunov.aelle.scorer import AeLLEScorer
from lightning_lyapunov.bank.evaluation import SCORES, Table, boosted, ridge, summary
from lightning_lyapunov.bank.report.tables import (
    FULL,
    NAMES,
    Comparison,
    Scored,
    difference,
    gains_table,
    markdown,
    scores_table,
    so_far,
)

REPORTED = (0, 10, 40, 80, 160)
"""Updates that figures are given for: before training, early in the first epoch of 40, after one, two and four."""
RATE = 3
"""The rung of cell, size and learning rate."""
LEFT_OUT = "A kind of cell left out"
IN_USE = "those with gain 0.3 to 2.5, rate 1e-3 to 1e-2 (SGD: ten times that)"


def _sees(*names: str) -> Tensor:
    return torch.tensor([CONTEXT.index(name) for name in names])


def features(*names: str) -> Callable[[Table], Tensor]:
    """What a plain predictor sees: entries of the context, the rate squared and by kind of cell."""

    def see(table: Table) -> Tensor:
        columns = [table.rows.context[:, _sees(*names)]]
        if "log_rate" in names:
            rate = table.rows.context[:, _sees("log_rate")]
            cells = table.rows.context[:, _sees(*ARCHITECTURES)]
            columns += [rate.square(), rate * cells, rate.square() * cells]
        return torch.cat(columns, 1)

    return see


BARS = {
    "skill + cell + size + rate, ridge": ridge(features(*CELL, "log_rate", "skill")),
    "skill + cell + size + rate, trees": boosted(features(*CELL, "log_rate", "skill")),
    "all hyperparameters, trees": boosted(Table.hyperparameters),
}
"""What knows no spectrum, fitted at each checkpoint alone."""


class Page:
    """Everything that the report says, computed once.

    Args:
        scorer: The general one, fitted on all rows that choices rest on.
        by_family: What was said of these rows, families left out.
        by_cell: The same, kinds of cell left out.
        more: Further parts of the bank that the general scorer was not fitted on, by title.
        picture: File of the picture, beside the page.
        command: That the page is written by.
    """

    def __init__(
        self,
        scorer: AeLLEScorer,
        by_family: Comparison,
        by_cell: Comparison,
        more: Mapping[str, Comparison],
        *,
        picture: str = "bank-report.png",
        command: str = "make bank-report",
    ) -> None:
        self.scorer, self.by_family, self.by_cell, self.more = scorer, by_family, by_cell, more
        self.picture, self.command = picture, command
        self.useful = by_family.table.is_useful
        moments = [u for u in REPORTED if bool((by_family.table.updates == u).any())]
        self.bars = {
            (name, u): by_family.by(predict, u, self.useful) for name, predict in BARS.items() for u in moments
        }
        self.moments = moments

    def lines(self) -> list[str]:
        """The page, without its title."""
        sections: list[tuple[str, list[str]]] = [
            ("What to trust", self.first_screen()),
            ("How the figures are made", self.method()),
            ("Initialisations in use", self.tables(self.useful)),
            ("All initialisations", self.tables(None)),
            ("Against the ridge with heads of its own", self.against_ridge()),
            ("Against what is known without a spectrum", self.against_bars()),
            ("Told the skill so far, against that skill alone", self.against_skill()),
            ("Squared errors", self.errors()),
            ("Intervals", self.intervals()),
            ("Kinds of cell that were left out", self.strangers()),
        ]
        return [line for title, section in sections for line in (f"## {title}", "", *section, "")]

    # ---------------------------------------------------------------- the first screen

    def first_screen(self) -> list[str]:
        """Three sentences, each from numbers by a rule."""
        moments = {0: ("Before training.", False), 40: ("After one epoch (40 updates), told the skill so far.", True)}
        told = [f"**{title}** {self._moment(u, skill)}" for u, (title, skill) in moments.items() if u in self.moments]
        return [
            *(f"{number}. {line}" for number, line in enumerate([*told, f"**How sure.** {self._sure()}"], 1)),
            "",
            f"![Who tells what before training, and how well networks of an unseen task are ranked]({self.picture})",
        ]

    def _moment(self, updates: int, skill: bool) -> str:
        scorer = self.by_family.scorer("all", skill, RATE, updates, self.useful)
        blind = self.by_family.scorer("none", skill, RATE, updates, self.useful)
        ranked = f"ρ {summary(scorer, 'rho')[0]:.2f} (without the spectrum {summary(blind, 'rho')[0]:.2f})"
        parts = []
        questions = {"fail in cell": "which networks of one kind will fail", "take-off in cell": "which will take off"}
        for score, words in questions.items():
            mean, error, _ = difference(scorer, blind, score)
            does = "the spectrum tells" if mean > 2 * error else "the spectrum adds nothing that is beyond chance on"
            one, other = summary(scorer, score)[0], summary(blind, score)[0]
            parts.append(f"{does} {words} (AUC {one:.2f}, without it {other:.2f})")
        mean, error, _ = difference(scorer, blind, "rho")
        rank = "the spectrum adds to the rank" if mean > 2 * error else "to the rank the spectrum adds nothing"
        return (
            "Told kind and size of the cell and the learning rate, the networks of a task that it never saw are ranked "
            f"with {ranked}: {rank}; {'; '.join(parts)}."
        )

    def _sure(self) -> str:
        table = self.by_family.table
        every = torch.ones(len(table), dtype=torch.bool)
        found = [self.by_family.coverage(said, every)[0] for said in self.by_family.said.values()]
        strange = [self.by_cell.coverage(said, every)[0] for said in self.by_cell.said.values()]
        return (
            f"The 80 % intervals hold {min(found):.0%} to {max(found):.0%} of the networks of families left out, by "
            f"what is known, and {min(strange):.0%} to {max(strange):.0%} of those of a kind of cell that was left out."
        )

    # ---------------------------------------------------------------- the tables

    def method(self) -> list[str]:
        """What the figures mean."""
        table = self.by_family.table
        bank = table.bank
        return [
            f"Written by `{self.command}` from a bank of {len(bank):,} networks, {len(set(bank.column('task')))} "
            f"tasks of {len(set(bank.column('family')))} families; the scorer is fitted on "
            f"{self.scorer.card['networks']:,} of them, of {len(self.scorer.card['families'])} families. Figures are "
            "means over families left out of the fit one by one ± standard error, in brackets the number of families "
            "that have enough networks of either kind; bold is beyond two standard errors. *Fails*: final skill below "
            f"{FAILED}. *Takes off*: among networks below {FAILED} when scored, final skill above {TOOK_OFF}. *In "
            "cell*: within one kind of cell. *Cheap*: gradient norm, mean and spread of the state. In use are "
            f"{IN_USE}.",
        ]

    def tables(self, keep: Tensor | None) -> list[str]:
        """Scores of the scorer, of the ridge and without the spectrum, by what is known."""
        lines = []
        for updates in self.moments:
            rows: dict[str, Scored] = {}
            if updates:
                rows["skill so far"] = self.by_family.scored(so_far(self.by_family.table), updates, keep)
            for skill in (False, True) if updates else (False,):
                for rung, name in enumerate(NAMES):
                    title = f"{name}{', skill' if skill else ''}"
                    rows[f"{title}: with the spectrum"] = self.by_family.scorer("all", skill, rung, updates, keep)
                    rows[f"{title}: part of the spectrum"] = self.by_family.scorer("part", skill, rung, updates, keep)
                    if rung or skill:
                        rows[f"{title}: without"] = self.by_family.scorer("none", skill, rung, updates, keep)
            if keep is self.useful:
                rows |= {name: self.bars[name, updates] for name in BARS}
            lines += [f"After {updates} updates:", "", *scores_table(rows), ""]
        return lines[:-1]

    def against_ridge(self) -> list[str]:
        """Differences to the ridge on the same knowledge: above 0 the scorer is better."""
        rows = {}
        for updates in self.moments:
            for skill in (False, True):
                for rung, name in enumerate(NAMES):
                    one = self.by_family.scorer("all", skill, rung, updates, self.useful)
                    other = self.by_family.ridge("all", skill, rung, updates, self.useful)
                    rows[f"{updates}, {name}{', skill' if skill else ''}"] = one, other
        return gains_table("updates, known beside the spectrum", rows, ("rho", "fail", "take-off"))

    def against_bars(self) -> list[str]:
        """Differences to predictors that know all but the spectrum."""
        rows = {}
        for updates in self.moments:
            one = self.by_family.scorer("all", True, FULL, updates, self.useful)
            for name in BARS:
                rows[f"{updates}, {name}"] = one, self.bars[name, updates]
            blind = self.by_family.scorer("none", True, FULL, updates, self.useful)
            rows[f"{updates}, the scorer without the spectrum"] = one, blind
        return gains_table("updates, less", rows, ("rho", "rho in cell", "fail in cell", "take-off in cell"))

    def against_skill(self) -> list[str]:
        """Whether the scorer ever ranks below what it was told."""
        rows = {}
        for updates in self.by_family.table.bank.checkpoints:
            if bool((self.by_family.table.updates == updates).any()):
                one = self.by_family.scorer("all", True, FULL, updates)
                rows[str(updates)] = one, self.by_family.scored(so_far(self.by_family.table), updates)
        return gains_table("updates", rows, ("rho", "rho in cell", "fail", "take-off"))

    def errors(self) -> list[str]:
        """Squared errors of the scorer, and what they are of the ridge's."""
        rows = []
        for updates in self.moments:
            here = self.by_family.at(updates)
            for skill in (False, True):
                for rung, name in enumerate(NAMES):
                    said, cells = self.by_family.said["all", skill, rung], []
                    for head in range(3):
                        one, other = (self.by_family.brier(x, head, here) for x in (said.heads, said.ridge))
                        cells.append(f"{one:.3f} ({one / other:.2f})")
                    rows.append([f"{updates}, {name}{', skill' if skill else ''}", *cells])
        return [
            "Mean squared error of the skill, Brier scores of failure and take-off; in brackets as multiples of the "
            "ridge's.",
            "",
            *markdown(["updates, known beside the spectrum", "skill", "failure", "take-off"], rows),
        ]

    def intervals(self) -> list[str]:
        """How often the truth lies in the 80 % interval."""
        header = ["spectrum, skill so far, known beside them", *(str(u) for u in self.moments), "all updates"]
        moments = [*(self.by_family.at(u) for u in self.moments), torch.ones_like(self.useful)]
        rows = []
        for part in PARTS:
            for skill in (False, True):
                for rung, name in enumerate(NAMES):
                    said = self.by_family.said[part, skill, rung]
                    cells = [_covered(*self.by_family.coverage(said, keep)) for keep in moments]
                    rows.append([f"{part}, {'known' if skill else 'unknown'}, {name}", *cells])
        return markdown(header, rows)

    def strangers(self) -> list[str]:
        """What is said of networks of a kind that the scorer never saw."""
        lines = []
        cases = {LEFT_OUT: self.by_cell, **self.more}
        for title, one in cases.items():
            # Each kind left out is spoken of by a scorer of its own: between kinds these do not compare.
            shown = [score for score in SCORES if "in cell" in score] if title == LEFT_OUT else SCORES
            rungs = (0, FULL if title.startswith("The families") else FULL - 1)
            rows: dict[str, Scored] = {}
            for updates in (0, 40):
                for skill in (False, True) if updates else (False,):
                    for rung in rungs:
                        name = f"{updates} updates, {NAMES[rung]}{', skill' if skill else ''}"
                        rows[name] = one.scorer("all", skill, rung, updates)
            rows["40 updates, the skill so far alone"] = one.scored(so_far(one.table), 40)
            every = torch.ones(len(one.table), dtype=torch.bool)
            covered = [one.coverage(said, every) for said in one.said.values()]
            low, high = min(covered), max(covered)
            familiar = float(one.said["all", False, 0].familiarity.mean())
            covers = f"{_covered(*low)} to {_covered(*high)}, by what is known"
            lines += [f"{title}: the 80 % intervals hold {covers}; mean familiarity {familiar:.2f}.", ""]
            lines += [*scores_table(rows, shown), ""]
        return lines[:-1]


def _covered(mean: float, error: float) -> str:
    """As ``80 % ± 2 %``; of a single family without an error."""
    return f"{mean:.0%}" if math.isnan(error) else f"{mean:.0%} ± {error:.0%}"


def card(page: Page, weights_name: str, kilobytes: float, digest: str, report: str) -> str:
    """What travels with the weights: origin, recipe, hash, units, the evaluation in short, limits."""
    facts, scorer = page.scorer.card, page.scorer
    models = scorer.heads.models
    lines: Sequence[str] = [
        f"# The scorer `{facts['name']}`",
        "",
        f"- File: `{weights_name}`, {kilobytes:.0f} kB, safetensors, sha256 `{digest}`.",
        f"- Fitted on {facts['networks']} networks ({', '.join(ARCHITECTURES)}) of {len(facts['families'])} task "
        f"families: {', '.join(facts['families'])}.",
        f"- Recipe: `make bank`, then `make bank-report`. {len(models)} autoencoders of latent size "
        f"{models[0].encoder.out_features} and a ridge on hand-made features for each state of knowledge, weighed "
        "together with the skill so far by how they rank, and how right they are, on families left out.",
        "- Units: exponents in nats per step of the whole state; skill = (metric - chance) / (best - chance).",
        "- Licence: that of the package. The bank was trained on tasks made up by the package, on text and source of "
        "Python's standard library, and on data that ships with scikit-learn and reservoirpy; it keeps none of them.",
        "",
        f"## Evaluation in short ({report} has all of it)",
        "",
        *page.first_screen()[:-2],
        "",
        "## Limits",
        "",
        f"Small networks, short sequences, at most {max(page.by_family.table.bank.checkpoints):,} updates of 32 "
        "sequences. Other kinds of cell, values beyond those seen and spectra unlike the bank's get a low familiarity "
        "and a wide interval.",
    ]
    return "\n".join(lines) + "\n"
