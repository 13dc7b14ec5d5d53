"""The evaluation of the bank, written down: ``python -m lightning_lyapunov.bank.report BANK OUT``.

Fits the general scorer too, since the report is about it, and ends with the two families set aside, which nothing here
is fitted on.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.calibration import KNOTS
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, Rows, quantiles
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF, ridge_features, targets
from lightning_lyapunov.aelle.heads import without_skill, without_spectrum
from lightning_lyapunov.aelle.scorer import STRANGE, AeLLEScorer
from lightning_lyapunov.aelle.training import fit_scorer, new_autoencoders
from lightning_lyapunov.bank.cells import UNKNOWN_CELLS
from lightning_lyapunov.bank.evaluation import (
    REPORTED,
    SCORES,
    Predictor,
    Table,
    area,
    boosted,
    correlation,
    development,
    leave_out,
    ridge,
    scores,
    summary,
)
from lightning_lyapunov.bank.population import CHECKPOINTS, SECOND_PROBE
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import SET_ASIDE
from lightning_lyapunov.files import write_whole

CELL = (*ARCHITECTURES, "log_size")


def _sees(*context: str, spectrum: bool = True) -> Callable[[Table], Tensor]:
    return lambda table: ridge_features(table.rows, spectrum=spectrum, context=context)


def _beside(*features: Callable[[Table], Tensor]) -> Callable[[Table], Tensor]:
    return lambda table: torch.cat([f(table) for f in features], 1)


def _skill_so_far(table: Table) -> Tensor:
    return table.rows.context[:, CONTEXT.index("skill"), None]


def _cheap(table: Table) -> Tensor:
    return table.cheap


PREDICTORS: dict[str, Predictor] = {
    "skill so far": lambda _, test: _skill_so_far(test)[:, 0],
    "cell + size": ridge(_sees(*CELL, spectrum=False)),
    "cheap statistics": ridge(_cheap),
    "hyperparameters": ridge(Table.hyperparameters),
    "hyperparameters, trees": boosted(Table.hyperparameters),
    "max and mean exponent": ridge(lambda t: _sees()(t)[:, :4]),
    "spectrum, ridge": ridge(_sees()),
    "cell + size + spectrum, ridge": ridge(_sees(*CELL)),
    "spectrum + cheap, ridge": ridge(_beside(_sees(*CELL), _cheap)),
    "spectrum + its spread + its change, ridge": ridge(_beside(_sees(*CELL), lambda t: t.spread, lambda t: t.change)),
    "skill + cell + size": ridge(_sees(*CELL, "skill", spectrum=False)),
    "skill + cheap": ridge(_beside(_skill_so_far, _cheap)),
    "skill + cell + size + spectrum, ridge": ridge(_sees(*CELL, "skill")),
    "skill + hyperparameters, trees": boosted(_beside(_skill_so_far, Table.hyperparameters)),
    "skill + cell + size + spectrum, trees": boosted(_beside(_sees(*CELL, "skill", spectrum=False), _sees())),
}
"""Fitted at each checkpoint alone."""
SCORER = {
    "spectrum, AeLLE": "spectrum",
    "cell + size + spectrum, AeLLE": "cell",
    "skill + cell + size + spectrum, AeLLE": "all",
    "the scorer, skill not known": "scorer",
    "the scorer's baseline": "baseline",
    "the scorer": "scorer+skill",
}
"""Fitted at all checkpoints together."""


@dataclass
class Said:
    """Predictions for every row of a table: performance, and where there are heads for it, failure and take-off."""

    performance: Tensor
    failure: Tensor | None = None
    takeoff: Tensor | None = None

    def extra(self, keep: Tensor) -> dict[str, Tensor]:
        """What ranks the rows kept by their own heads; larger is better."""
        extra = {}
        if self.failure is not None:
            extra["fail"] = 1 - self.failure[keep]
        if self.takeoff is not None:
            extra["take-off"] = self.takeoff[keep]
        return extra


@dataclass
class Evaluation:
    """Everything that the report says."""

    table: Table
    said: dict[str, Said] = field(default_factory=dict)
    low: dict[str, Tensor] = field(default_factory=dict)
    high: dict[str, Tensor] = field(default_factory=dict)
    familiarity: Tensor | None = None


def fit_general(table: Table, *, members: int = 3, folds: int = 4, seed: int = 0, **card: Any) -> AeLLEScorer:
    """The general scorer of a table's networks, calibrated on families left out."""
    families = table.column("family")
    names = sorted(set(families))
    tasks = sorted(set(table.column("task")))
    return fit_scorer(
        table.rows,
        table.skill,
        table.stable,
        table.weights,
        torch.tensor([tasks.index(task) for task in table.column("task")]),
        torch.tensor([names.index(family) % folds for family in families]),
        {"name": "general", "families": names, "tasks": tasks, "networks": len(set(table.network.tolist())), **card},
        members=members,
        seed=seed,
    )


def evaluate(table: Table, key: str, predictors: Iterable[str] = PREDICTORS) -> Evaluation:
    """Predictions for every row by models that saw no row with its value of ``key``."""
    result = Evaluation(table)
    for name in predictors:
        performance = torch.full((len(table),), math.nan)
        for updates in REPORTED:
            here = table.updates == updates
            performance[here] = leave_out(table[here], key, PREDICTORS[name])
        result.said[name] = Said(performance)
    parts = {name: torch.full((len(table), 3), math.nan) for name in SCORER}
    for name in ("the scorer", "the scorer, skill not known"):
        result.low[name], result.high[name] = (torch.full((len(table),), math.nan) for _ in range(2))
    result.familiarity = torch.full((len(table),), math.nan)
    for value in sorted(set(table.column(key))):
        inside = torch.from_numpy(table.column(key) == value)
        scorer = fit_general(table[~inside], members=1, folds=3)
        _say(result, parts, scorer, inside, is_unknown=key == "cell")
        print(f"left out {key} {value}", flush=True)
    result.said |= {name: Said(*values.T) for name, values in parts.items()}
    return result


def _say(
    result: Evaluation, parts: dict[str, Tensor], scorer: AeLLEScorer, inside: Tensor, *, is_unknown: bool
) -> None:
    """What a scorer says of the rows inside, from different amounts of knowledge."""
    rows = result.table.rows[inside]
    if is_unknown:  # of a cell it never saw, the scorer is not told a name that it knows
        rows = _nameless(rows)
    blind = without_skill(rows)
    alone = Rows(rows.spectrum, torch.full_like(rows.context, math.nan))
    for name, seen in (("spectrum", alone), ("cell", blind), ("all", rows)):
        title = next(t for t, n in SCORER.items() if n == name)
        parts[title][inside] = scorer.heads.by_model(seen)[:, :3]
    unknown = torch.full((len(rows),), is_unknown)
    for title, seen in (("the scorer, skill not known", blind), ("the scorer", rows)):
        said = scorer.predict(seen, unknown)
        parts[title][inside] = torch.stack([said.performance, said.failure, said.takeoff], 1)
        result.low[title][inside], result.high[title][inside] = said.low, said.high
        if title == "the scorer":
            nothing = without_spectrum(rows)
            base = scorer.heads(nothing)
            parts["the scorer's baseline"][inside] = torch.stack([said.baseline, base[:, 1], base[:, 2]], 1)
            assert result.familiarity is not None
            result.familiarity[inside] = said.familiarity


def _nameless(rows: Rows) -> Rows:
    known = rows.context.clone()
    known[:, : len(ARCHITECTURES)] = math.nan
    return Rows(rows.spectrum, known)


# ------------------------------------------------------------------ tables


def score_table(evaluation: Evaluation, updates: int, keep: Tensor) -> dict[str, dict[str, dict[str, float]]]:
    """Predictor to family to score to value, at one checkpoint."""
    here = (evaluation.table.updates == updates) & keep
    table = evaluation.table[here]
    return {name: scores(table, said.performance[here], said.extra(here)) for name, said in evaluation.said.items()}


def markdown(by_predictor: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row for each predictor: mean over families ± standard error."""
    any_one = next(iter(by_predictor.values()))
    counts = {score: summary(any_one, score)[2] for score in SCORES}
    lines = ["| predictor | " + " | ".join(f"{score} ({counts[score]})" for score in SCORES) + " |"]
    lines.append("|---" * (len(SCORES) + 1) + "|")
    for name, families in by_predictor.items():
        cells = [_pm(*summary(families, score)[:2]) for score in SCORES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pm(mean: float, error: float) -> str:
    return "–" if math.isnan(mean) else f"{mean:.2f} ± {error:.2f}"


def paired(
    one: dict[str, dict[str, float]], other: dict[str, dict[str, float]], score: str
) -> tuple[float, float, int]:
    """Mean over families of the difference between two predictors, its standard error, and the number of families."""
    return summary({f: {score: one[f][score] - other[f][score]} for f in one}, score)


# ------------------------------------------------------------------ single questions


def coverage(evaluation: Evaluation, name: str, keep: Tensor) -> float:
    """Share of the rows kept whose truth lies in the 80 % interval; every family counts the same."""
    table = evaluation.table
    inside = (evaluation.low[name] <= table.skill + 1e-6) & (table.skill <= evaluation.high[name] + 1e-6)
    families = table.column("family")
    return float(
        np.mean([inside[keep & torch.from_numpy(families == f)].float().mean() for f in sorted(set(families[keep]))])
    )


def noise_ceiling(bank: Bank) -> tuple[float, float, int]:
    """Rank correlation of final skill between networks that differ by their seeds alone, within a task.

    Returns:
        Mean over tasks, standard error, number of tasks.
    """
    final = bank.skill(bank.final).numpy()
    by_seed: dict[tuple[Any, ...], dict[int, float]] = {}
    for n, made in enumerate(bank.networks):
        key = (made["task"], made["cell"], made["hidden_size"], made["number"])
        by_seed.setdefault(key, {})[made["seed"]] = float(final[n])
    triples = {key: values for key, values in by_seed.items() if len(values) == 3}
    found = []
    for task in sorted({key[0] for key in triples}):
        values = np.array([[v[s] for s in (0, 1, 2)] for key, v in triples.items() if key[0] == task])
        pairs = [correlation(values[:, i], values[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        found.append(float(np.mean(pairs)))
    return summary({str(i): {"rho": value} for i, value in enumerate(found)}, "rho")


def per_task(table: Table, updates: int, predict: Predictor, folds: int = 5) -> tuple[float, float]:
    """One model for each task, networks left out in turn: mean over tasks of R² and of Spearman's ρ."""
    here = table[table.updates == updates]
    r2, rho = [], []
    for task in sorted(set(here.column("task"))):
        one = here[torch.from_numpy(here.column("task") == task)]
        # Twins are of one draw: they stay together.
        made = zip(*(one.column(key) for key in ("cell", "hidden_size", "number")), strict=True)
        fold = np.array([zlib.crc32(str(draw).encode()) % folds for draw in made])
        predicted = torch.full((len(one),), math.nan)
        for f in range(folds):
            inside = torch.from_numpy(fold == f)
            if inside.any() and (~inside).any():
                predicted[inside] = predict(one[~inside], one[inside])
        y = one.skill
        if float(y.std()) < 0.02:
            continue
        r2.append(1 - float((y - predicted).square().mean() / y.var(unbiased=False)))
        rho.append(correlation(predicted.numpy(), y.numpy()))
    return float(np.mean(r2)), float(np.nanmean(rho))


def latent_sizes(
    table: Table, sizes: Sequence[int] = (1, 2, 3, 4, 8, 16), folds: int = 4
) -> dict[int, tuple[float, float]]:
    """ρ within tasks at update 0, from the spectrum alone, by the size of the latent: mean over families and error."""
    families = table.column("family")
    names = sorted(set(families))
    fold = torch.tensor([names.index(f) % folds for f in families])
    wanted, weights = targets(table.skill, table.stable), table.weights
    result = {}
    for size in sizes:
        said = torch.full((len(table),), math.nan)
        for f in range(folds):
            inside = fold == f
            (model,) = new_autoencoders(
                table.rows[~inside], wanted[~inside], weights[~inside], 1, 0, steps=500, latent_size=size
            )
            alone = Rows(table.rows.spectrum[inside], torch.full_like(table.rows.context[inside], math.nan))
            with torch.no_grad():
                said[inside] = model(alone).logits[:, 0]
        start = table.updates == 0
        result[size] = summary(scores(table[start], said[start]), "rho")[:2]
    return result


def latents(scorer: AeLLEScorer, rows: Rows) -> Tensor:
    """(R, L) codes of spectra."""
    with torch.no_grad():
        return scorer.heads.models[0](rows).latent


def two_components(scorer: AeLLEScorer, table: Table, updates: int) -> tuple[float, float, int]:
    """AUC of a linear classifier, on the first two principal components of the latent, of the better half of a task.

    Components, classifier and the cut between good and bad come from the training rows alone.
    """
    from sklearn.linear_model import LogisticRegression

    here = table[table.updates == updates]
    by_family: dict[str, dict[str, float]] = {}
    for family in sorted(set(here.column("family"))):
        areas = []
        for task in sorted(set(here.column("task")[here.column("family") == family])):
            one = here[torch.from_numpy(here.column("task") == task)]
            code, skill = latents(scorer, one.rows).numpy(), one.skill.numpy()
            order = np.random.default_rng(0).permutation(len(skill))
            train, test = order[::2], order[1::2]
            cut = np.median(skill[train])
            good = skill > cut
            if min(good[train].sum(), (~good[train]).sum(), good[test].sum(), (~good[test]).sum()) < 3:
                continue
            centre = code[train].mean(0)
            axes = np.linalg.svd(code[train] - centre, full_matrices=False)[2][:2].T
            fitted = LogisticRegression().fit((code[train] - centre) @ axes, good[train])
            areas.append(area(fitted.decision_function((code[test] - centre) @ axes), good[test]))
        if areas:
            by_family[family] = {"auc": float(np.mean(areas))}
    return summary(by_family, "auc")


def new_inputs(scorer: AeLLEScorer, table: Table) -> dict[int, tuple[float, float, int]]:
    """Rank correlation, within tasks, of what the spectrum says on the usual inputs and on others of the same task."""
    result = {}
    for index, updates in enumerate(SECOND_PROBE):
        here = table[table.updates == updates]
        has = torch.tensor([not bool(table.bank.second[int(n)].isnan().all()) for n in here.network])
        here = here[has]
        second = torch.stack([quantiles(table.bank.second[int(n)][index]) for n in here.network])
        nothing = torch.full_like(here.rows.context, math.nan)
        one = scorer.heads.by_model(Rows(here.rows.spectrum, nothing))[:, 0].numpy()
        other = scorer.heads.by_model(Rows(second, nothing))[:, 0].numpy()
        result[updates] = _within_tasks(here, one, other)
    return result


def early(scorer: AeLLEScorer, table: Table) -> dict[int, tuple[float, float, int]]:
    """Rank correlation, within tasks, of what the spectrum says after some updates and at the end."""
    nothing = torch.full_like(table.rows.context, math.nan)
    said = scorer.heads.by_model(Rows(table.rows.spectrum, nothing))[:, 0]
    last = {
        int(n): float(s) for n, u, s in zip(table.network, table.updates, said, strict=True) if u == CHECKPOINTS[-1]
    }
    result = {}
    for updates in CHECKPOINTS[:-1]:
        here = table.updates == updates
        there = np.array([last.get(int(n), math.nan) for n in table.network[here]])
        known = torch.from_numpy(np.isfinite(there))
        result[updates] = _within_tasks(table[here][known], said[here][known].numpy(), there[known.numpy()])
    return result


def _within_tasks(table: Table, one: np.ndarray, other: np.ndarray) -> tuple[float, float, int]:
    by_family: dict[str, dict[str, float]] = {}
    families, tasks = table.column("family"), table.column("task")
    for family in sorted(set(families)):
        values = [correlation(one[tasks == t], other[tasks == t]) for t in sorted(set(tasks[families == family]))]
        values = [value for value in values if math.isfinite(value)]
        if values:
            by_family[family] = {"rho": float(np.mean(values))}
    return summary(by_family, "rho")


def set_aside(scorer: AeLLEScorer, table: Table) -> Evaluation:
    """What the final scorer says of the families that nothing was based on."""
    families = table[table.where(family=SET_ASIDE, cell=ARCHITECTURES)]
    return _judged(scorer, families, is_unknown=False)


def unknown_cells(scorer: AeLLEScorer, table: Table) -> Evaluation:
    """What the final scorer says of kinds of cell that it does not know."""
    cells = table[table.where(cell=UNKNOWN_CELLS)]
    keep = [f for f in sorted(set(cells.column("family"))) if f not in SET_ASIDE]
    return _judged(scorer, cells[cells.where(family=keep)], is_unknown=True)


def _judged(scorer: AeLLEScorer, table: Table, *, is_unknown: bool) -> Evaluation:
    result = Evaluation(table, familiarity=torch.full((len(table),), math.nan))
    result.said["skill so far"] = Said(_skill_so_far(table)[:, 0])
    parts = {name: torch.full((len(table), 3), math.nan) for name in SCORER}
    for name in ("the scorer", "the scorer, skill not known"):
        result.low[name], result.high[name] = (torch.full((len(table),), math.nan) for _ in range(2))
    _say(result, parts, scorer, torch.ones(len(table), dtype=torch.bool), is_unknown=is_unknown)
    result.said |= {name: Said(*values.T) for name, values in parts.items()}
    return result


# ------------------------------------------------------------------ the whole of it


def write_report(bank: Bank, weights: Path, page: Path, picture: Path) -> None:
    """Fit the general scorer, evaluate, and write weights, page and picture.

    Args:
        bank: All of it.
        weights: File for the scorer.
        page: File for the report, Markdown.
        picture: File for its figure, PNG.
    """
    torch.set_num_threads(1)
    every = Table.of(bank)
    table = development(every)
    useful, wide = table.is_useful, torch.ones(len(table), dtype=torch.bool)

    scorer = fit_general(table, checkpoints=list(CHECKPOINTS))
    scorer.save(weights)
    print(f"fitted on {len(table)} rows of {scorer.card['networks']} networks: {weights}", flush=True)
    by_family = evaluate(table, "family")
    tables = {
        (name, updates): score_table(by_family, updates, keep)
        for name, keep in (("useful", useful), ("wide", wide))
        for updates in REPORTED
    }
    by_cell = evaluate(table, "cell", ["skill so far", "spectrum, ridge", "cell + size + spectrum, ridge"])
    by_size = evaluate(table, "hidden_size", ["skill so far", "spectrum, ridge", "cell + size + spectrum, ridge"])
    in_short = verdict(tables)
    unknown = unknown_cells(scorer, every)
    wide_unknown = torch.ones(len(unknown.table), dtype=torch.bool)
    aside = set_aside(scorer, every)

    lines = [
        "# How well a network's end can be told from its spectrum",
        "",
        f"Written by `make bank-report` from a bank of {len(bank)} networks, {len(bank.best)} tasks of "
        f"{len(set(bank.column('family')))} families. Two families, {' and '.join(SET_ASIDE)}, were set aside before "
        "anything was fitted and are looked at in the last section alone. "
        "Figures are means over families left out of the fit ± standard error; in brackets the number of families "
        f"that have enough networks of either kind. *Fails*: final skill below {FAILED}. *Takes off*: among networks "
        f"below {FAILED} when scored, final skill above {TOOK_OFF}. *In cell*: within one kind of cell.",
        "",
        "## In short",
        "",
        *in_short,
        "",
    ]
    for name, title in (("useful", "Initialisations in use: gain 0.3 to 2.5, rate 1e-3 to 1e-2"), ("wide", "All")):
        for updates in REPORTED:
            lines += [f"## {title}; after {updates} updates", "", markdown(tables[name, updates]), ""]
    lines += ["## With the skill so far given, against the skill so far alone", "", *against_skill(by_family), ""]
    lines += ["## The autoencoder against the ridge", "", *against_ridge(tables), ""]
    lines += ["## Cells and sizes left out", ""]
    for title, left_out in (("cell", by_cell), ("size", by_size)):
        for updates in REPORTED:
            lines += [
                f"One {title} left out, {updates} updates:",
                "",
                markdown(score_table(left_out, updates, wide)),
                "",
            ]
    for updates in REPORTED:
        lines += [f"Cells that are not in the bank ({', '.join(UNKNOWN_CELLS)}), {updates} updates:", ""]
        lines += [markdown(score_table(unknown, updates, wide_unknown)), ""]
    lines += ["## Intervals and familiarity", "", *intervals_table(by_family, by_cell, unknown, aside), ""]
    lines += ["## One model for each task", "", *per_task_table(table), ""]
    ceiling = noise_ceiling(bank)
    lines += [
        "## The noise ceiling",
        "",
        f"Networks that differ by their seeds alone end alike with ρ = {_pm(*ceiling[:2])} within a task ({ceiling[2]} "
        "tasks): nothing that does not see the seed can rank better.",
        "",
        "## The method's own claims",
        "",
        *claims(scorer, table, tables),
        "",
        "## The families set aside",
        "",
    ]
    for updates in REPORTED:
        lines += [f"After {updates} updates, by the scorer that ships:", ""]
        lines += [one_by_one(score_table(aside, updates, torch.ones(len(aside.table), dtype=torch.bool))), ""]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, ("\n".join(lines).rstrip() + "\n").encode())
    draw(tables, by_family).savefig(buffer := BytesIO(), format=picture.suffix[1:] or "png")
    write_whole(picture, buffer.getvalue())
    write_whole(weights.with_suffix(".md"), card(scorer, weights, in_short, by_family, page.name).encode())


def card(scorer: AeLLEScorer, weights: Path, in_short: list[str], by_family: Evaluation, report: str) -> str:
    """What travels with the weights: origin, recipe, hash, units, the evaluation in short, limits."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    facts, heads = scorer.card, scorer.heads
    whole = heads.shares.table[[2, 5]].mean((0, 1)).tolist()
    shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(HEADS, whole, strict=True))
    trust = [f"{knot:g} updates {value:g}" for knot, value in zip(KNOTS, scorer.gate.trust.tolist(), strict=True)]
    lines = [
        f"# The scorer `{facts['name']}`",
        "",
        f"- File: `{weights.name}`, {weights.stat().st_size / 1024:.0f} kB, safetensors, sha256 `{digest}`.",
        f"- Fitted on {facts['networks']} networks ({', '.join(ARCHITECTURES)}) of {len(facts['families'])} task "
        f"families at updates {', '.join(map(str, facts['checkpoints']))}: {', '.join(facts['families'])}. "
        f"Not on {' and '.join(SET_ASIDE)}.",
        f"- Recipe: `make bank`, then `make bank-report`. {len(heads.models)} autoencoders of latent size "
        f"{heads.models[0].encoder[-1].out_features} beside a ridge on hand-made features (penalty "
        f"{facts['penalty']:g} rows). Each head is a mean of the two, with the share of the autoencoders that did best "
        f"on families left out, by what is known and how far training is. For whole spectra: {shares}.",
        f"- Weight of the spectrum beside the skill so far (0: none), after {', '.join(trust)}.",
        "- Units: exponents in nats per step of the whole state; skill = (metric - chance) / (best - chance).",
        "- Licence: that of the package. The bank was trained on tasks made up by the package, on text and source of "
        "Python's standard library, and on data that ships with scikit-learn and reservoirpy; it keeps none of them.",
        "",
        f"## Evaluation in short ({report} has all of it)",
        "",
        *in_short,
        "",
        *against_skill(by_family),
        "",
        "## Limits",
        "",
        "Small networks (16 to 128 units), short sequences (12 to 64 steps), Adam with clipping, 800 updates of 32 "
        "sequences. Other kinds of cell, sizes far outside and spectra unlike the bank's get a low familiarity and a "
        f"wide interval; below a familiarity of {STRANGE:g} predictions fade to those of an average network.",
        "",
        "The bank's spectra are whole, of 8 sequences of up to 64 steps, a quarter of them, at most 32, to settle.",
    ]
    return "\n".join(lines) + "\n"


def verdict(tables: Any) -> list[str]:
    """The first lines: whether the hypothesis of the plateau holds in each range, and by how much."""
    ours, bars = "cell + size + spectrum, AeLLE", ["cell + size", "hyperparameters", "hyperparameters, trees"]
    lines, holds = [], []
    for name, title in (("useful", "initialisations in use"), ("wide", "all initialisations")):
        start = tables[name, 0]
        for score in ("fail", "take-off", "fail in cell", "take-off in cell"):
            best = max(bars, key=lambda bar: np.nan_to_num(summary(start[bar], score)[0], nan=-1.0))
            mean, error, count = paired(start[ours], start[best], score)
            if count < 2:
                lines.append(f"- {title}, {score}: too few families have networks of both kinds ({count}).")
                holds.append(False)
                continue
            plain, plain_error, _ = paired(start[ours], start["cell + size"], score)
            holds.append(mean > 2 * error and count >= 12)
            lines.append(
                f"- {title}, {score}: AUC {_pm(*summary(start[ours], score)[:2])}, over {count} families. Against "
                f"cell and size alone {plain:+.2f} ± {plain_error:.2f}; against the best of what is known without a "
                f"spectrum ({best}, {_pm(*summary(start[best], score)[:2])}) {mean:+.2f} ± {error:.2f}."
            )
    hypothesis = (
        "That a spectrum tells, before training, who will never learn and who will take off, better than what is "
        "known without it (kind of cell, size, recorded hyperparameters), "
    )
    said = "**holds on this bank**." if all(holds) else "**is not shown on this bank**."
    return [hypothesis + said + " With cell and size, the spectrum before the first update gives:", "", *lines]


def against_skill(evaluation: Evaluation) -> list[str]:
    """Whether the scorer ever ranks below what it was told."""
    lines = ["| updates | skill alone, ρ | scorer, ρ | difference | families |", "|---|---|---|---|---|"]
    for updates in CHECKPOINTS:
        here = evaluation.table.updates == updates
        rows = evaluation.table[here]
        alone = scores(rows, _skill_so_far(rows)[:, 0])
        ours = scores(rows, evaluation.said["the scorer"].performance[here])
        mean, error, count = paired(ours, alone, "rho")
        one, other = summary(alone, "rho"), summary(ours, "rho")
        lines.append(f"| {updates} | {_pm(*one[:2])} | {_pm(*other[:2])} | {mean:+.3f} ± {error:.3f} | {count} |")
    return lines


def against_ridge(tables: Any) -> list[str]:
    """Differences of the autoencoder and the ridge on the same knowledge: above 0 the autoencoder is better."""
    shown = ("rho", "rho in cell", "fail", "take-off")
    lines = ["| what both see, initialisations, updates | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for seen in ("spectrum", "cell + size + spectrum", "skill + cell + size + spectrum"):
        for (name, updates), table in tables.items():
            gains = [paired(table[f"{seen}, AeLLE"], table[f"{seen}, ridge"], score) for score in shown]
            cells = " | ".join("–" if math.isnan(mean) else f"{mean:+.2f} ± {error:.2f}" for mean, error, _ in gains)
            lines.append(f"| {seen}, {name}, {updates} | {cells} |")
    return lines


def intervals_table(by_family: Evaluation, by_cell: Evaluation, unknown: Evaluation, aside: Evaluation) -> list[str]:
    """How often the truth lies in the 80 % interval, how wide that is, and how familiar the networks seemed."""
    lines = [
        "| networks | skill so far | coverage | mean width | familiarity | mean error |",
        "|---|---|---|---|---|---|",
    ]
    cases = {
        "a family left out": by_family,
        "a kind of cell left out": by_cell,
        "cells that are not in the bank": unknown,
        "families set aside": aside,
    }
    for title, evaluation in cases.items():
        every = torch.ones(len(evaluation.table), dtype=torch.bool)
        assert evaluation.familiarity is not None
        for name, known in (("the scorer, skill not known", "unknown"), ("the scorer", "known")):
            width = float((evaluation.high[name] - evaluation.low[name]).mean())
            error = float((evaluation.said[name].performance - evaluation.table.skill).abs().mean())
            lines.append(
                f"| {title} | {known} | {coverage(evaluation, name, every):.0%} | {width:.2f} | "
                f"{float(evaluation.familiarity.mean()):.2f} | {error:.2f} |"
            )
    return lines


def per_task_table(table: Table) -> list[str]:
    """R² and ρ of models fitted on one task each."""

    def autoencoder(train: Table, test: Table) -> Tensor:
        wanted = targets(train.skill, train.stable)
        (model,) = new_autoencoders(train.rows, wanted, torch.ones(len(train)), 1, 0, steps=150)
        with torch.no_grad():
            return model(without_skill(test.rows)).logits[:, 0].sigmoid()

    predictors = {
        "spectrum, ridge": ridge(_sees(), 3.0),
        "cell + size + spectrum, ridge": ridge(_sees(*CELL), 10.0),
        "cell + size + spectrum, AeLLE": autoencoder,
        "cell + size": ridge(_sees(*CELL, spectrum=False), 1.0),
        "hyperparameters, trees": boosted(Table.hyperparameters),
        "skill so far": ridge(_skill_so_far, 1.0),
        "skill + cell + size + spectrum, ridge": ridge(_sees(*CELL, "skill"), 10.0),
    }
    lines = ["Five folds of networks; R² / ρ, means over tasks.", ""]
    lines += [
        "| predictor | " + " | ".join(f"{u} updates" for u in REPORTED) + " |",
        "|---" * (len(REPORTED) + 1) + "|",
    ]
    for name, predict in predictors.items():
        cells = ["{:.2f} / {:.2f}".format(*per_task(table, updates, predict)) for updates in REPORTED]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def claims(scorer: AeLLEScorer, table: Table, tables: Any) -> list[str]:
    """The claims of the method's authors, tested as stated."""
    lines = ["**The latent is low-dimensional.** ρ within tasks at update 0 from the spectrum alone, by its size:", ""]
    sizes = latent_sizes(table)
    lines += ["| size | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
    lines += ["| ρ | " + " | ".join(_pm(*value) for value in sizes.values()) + " |", ""]
    lines += [
        "**A linear classifier on its first two principal components tells good networks from bad** (AUC, halves):"
    ]
    for updates in (*REPORTED, CHECKPOINTS[-1]):
        mean, error, count = two_components(scorer, table, updates)
        lines.append(f"- after {updates} updates {_pm(mean, error)} ({count} families)")
    lines += ["", "**It carries over to new inputs of the same task** (ρ of what is said on either set of inputs):"]
    lines += [
        f"- after {u} updates {_pm(*value[:2])} ({value[2]} families)" for u, value in new_inputs(scorer, table).items()
    ]
    lines += ["", "**It forms early** (ρ of what the spectrum says then and at the end):"]
    lines += [f"- after {u} updates {_pm(*value[:2])}" for u, value in early(scorer, table).items()]
    lines += ["", "**It does better than the maximum and the mean exponent** (difference of ρ, wide sweep):"]
    for updates in REPORTED:
        one, other = tables["wide", updates]["spectrum, AeLLE"], tables["wide", updates]["max and mean exponent"]
        mean, error, count = paired(one, other, "rho")
        lines.append(f"- after {updates} updates {mean:+.2f} ± {error:.2f} ({count} families)")
    return lines


def one_by_one(by_predictor: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row for each predictor and family, as there are too few for errors."""
    lines = ["| predictor | family | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 2) + "|"]
    for name, families in by_predictor.items():
        for family, values in families.items():
            cells = ["–" if math.isnan(values[score]) else f"{values[score]:.2f}" for score in SCORES]
            lines.append(f"| {name} | {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(tables: Any, evaluation: Evaluation) -> Any:
    """The figure: who tells what before training, and how the correlation grows with it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shown = ["cell + size", "hyperparameters, trees", "cheap statistics", "max and mean exponent",
             "spectrum, ridge", "spectrum, AeLLE", "cell + size + spectrum, AeLLE"]  # fmt: skip
    colours = {"fail": "#d95f02", "take-off": "#1b9e77"}
    for offset, (score, colour) in zip((-0.18, 0.18), colours.items(), strict=True):
        values = [summary(tables["wide", 0][name], score)[:2] for name in shown]
        place = np.arange(len(shown)) + offset
        left.errorbar([v[0] for v in values], place, xerr=[v[1] for v in values], fmt="o", color=colour, label=score)
    left.axvline(0.5, color="0.6", linewidth=1)
    left.set_yticks(range(len(shown)), shown)
    left.invert_yaxis()
    left.set_xlabel("area under the ROC curve, families left out")
    left.set_title("Before the first update: who fails, who takes off")
    left.legend()
    lines = {"skill so far": "0.2", "the scorer": "#2166ac", "the scorer, skill not known": "#1b9e77"}
    for name, colour in lines.items():
        points = []
        for updates in CHECKPOINTS:
            here = evaluation.table.updates == updates
            rows = evaluation.table[here]
            said = _skill_so_far(rows)[:, 0] if name == "skill so far" else evaluation.said[name].performance[here]
            points.append(summary(scores(rows, said), "rho")[:2])
        places = np.log1p(np.array(CHECKPOINTS) / 10)
        right.errorbar(places, [p[0] for p in points], [p[1] for p in points], color=colour, marker="o", label=name)
    right.set_xticks(np.log1p(np.array(CHECKPOINTS) / 10), [str(u) for u in CHECKPOINTS])
    right.set_xlabel("updates when scored")
    right.set_ylabel("Spearman ρ with the final skill, within tasks")
    right.set_title("Ranking the networks of a task never seen")
    right.legend()
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lightning_lyapunov.bank.report", description=__doc__)
    parser.add_argument("bank", type=Path, help="compact file of the bank")
    parser.add_argument("--weights", type=Path, default=Path("runs/bank/general.safetensors"))
    parser.add_argument("--page", type=Path, default=Path("runs/bank/report.md"))
    parser.add_argument("--picture", type=Path, default=Path("runs/bank/report.png"))
    args = parser.parse_args()
    write_report(Bank.load(args.bank), args.weights, args.page, args.picture)


if __name__ == "__main__":
    main()
