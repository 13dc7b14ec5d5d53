"""Scorers fitted without a part of the bank, and what they say of that part; each is kept once it has been fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import RANKED
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, Rows
from lightning_lyapunov.aelle.knowledge import PARTS, RUNGS, cut, limited
from lightning_lyapunov.aelle.scorer import AeLLEScorer
from lightning_lyapunov.aelle.training import fit_scorer
from lightning_lyapunov.bank.evaluation import Table
from lightning_lyapunov.files import reading, write_tensors

FORMAT = "lightning_lyapunov.left-out/1"
STATES = tuple(product(PARTS, (False, True), range(len(RUNGS))))
"""How much of the spectrum is known, whether the skill so far is, and the rung of the rest."""


@dataclass(frozen=True, eq=False)
class Said:
    """What was said of R rows in one state of knowledge."""

    heads: Tensor
    """``(R, RANKED)`` predicted skill, probabilities of failure and of take-off."""
    ridge: Tensor
    """``(R, RANKED)`` by the ridge alone, with heads of its own."""
    low: Tensor
    """(R,) lower end of the 80 % interval."""
    high: Tensor
    """(R,) upper end."""
    familiarity: Tensor
    """(R,)."""

    @staticmethod
    def by(scorer: AeLLEScorer, rows: Rows, is_unknown_kind: Tensor) -> Said:
        """What a scorer says; of rows without a spectrum, its baseline."""
        seen = scorer.heads.ranges.clamped(rows)
        ridge = scorer.heads.ridges(seen)[:, :RANKED].sigmoid()
        if rows.spectrum.isnan().all():
            heads, every = scorer.heads(seen)[:, :RANKED], torch.ones(len(rows))
            return Said(heads, ridge, *scorer.intervals(heads[:, 0], seen, every, every), every)
        said = scorer.predict(rows, is_unknown_kind)
        heads = torch.stack([said.performance, said.failure, said.takeoff], 1)
        return Said(heads, ridge, said.low, said.high, said.familiarity)


Sayings = dict[tuple[str, bool, int], Said]
"""By state of knowledge."""


def fit_general(table: Table, *, members: int = 3, folds: int = 4, seed: int = 0, **card: Any) -> AeLLEScorer:
    """The general scorer of a table's networks, calibrated on families left out."""
    families, tasks = sorted(set(table.column("family"))), sorted(set(table.column("task")))
    networks = len(set(table.network.tolist()))
    facts = {"name": "general", "families": families, "tasks": tasks, "networks": networks, **card}
    return fit_scorer(table.examples, facts, members=members, folds=folds, seed=seed)


def left_out(table: Table, key: str, kept: Path, made_by: str, *, jobs: int = 1) -> Sayings:
    """What is said of every row by scorers that saw no row with its value of ``key``.

    Args:
        table: All rows.
        key: Property of networks, as ``"family"``.
        kept: Directory of what has been said so far; what is there is not fitted again.
        made_by: Digest of the general scorer, which tells bank and recipe: what was made by others is made again.
        jobs: Processes that fit at once.
    """
    import joblib

    values = table.column(key)
    parts = {value: torch.from_numpy(values == value) for value in sorted(set(values))}
    fits = (
        joblib.delayed(_said_of)(table, inside, kept / f"{key}-{value}.safetensors", made_by, is_unknown=key == "cell")
        for value, inside in parts.items()
    )
    said = joblib.Parallel(n_jobs=jobs)(fits)
    return {
        state: _joined([(inside, one[state]) for inside, one in zip(parts.values(), said, strict=True)])
        for state in STATES
    }


def say(scorer: AeLLEScorer, rows: Rows, *, is_unknown: bool) -> Sayings:
    """What a scorer says of rows in every state of knowledge.

    Args:
        scorer: Who.
        rows: R rows, of which everything is known.
        is_unknown: Whether they are of a kind of cell that the scorer never saw, whose name it is not told.
    """
    if is_unknown:
        known = rows.context.clone()
        known[:, [CONTEXT.index(kind) for kind in ARCHITECTURES]] = math.nan
        rows = Rows(rows.spectrum, known)
    parts = {"none": rows, "part": cut(rows, torch.Generator().manual_seed(1)), "all": rows}
    unknown = torch.full((len(rows),), is_unknown)
    return {
        (part, skill, rung): Said.by(scorer, limited(parts[part], part=part, rung=rung, skill=skill), unknown)
        for part, skill, rung in STATES
    }


def _joined(parts: list[tuple[Tensor, Said]]) -> Said:
    """One for all rows, of parts (where they are, what was said of them)."""
    whole = {}
    for name in Said.__dataclass_fields__:
        first = getattr(parts[0][1], name)
        whole[name] = first.new_full((len(parts[0][0]), *first.shape[1:]), math.nan)
        for inside, said in parts:
            whole[name][inside] = getattr(said, name)
    return Said(**whole)


def _said_of(table: Table, inside: Tensor, path: Path, made_by: str, *, is_unknown: bool) -> Sayings:
    """What a scorer says of some rows that saw only the others: read from a file, or fitted and written there."""
    if path.is_file():
        with reading(path, FORMAT) as (tensors, metadata):
            if metadata[FORMAT] == made_by:
                return {
                    state: Said(**{name: tensors[f"{_title(state)}.{name}"] for name in Said.__dataclass_fields__})
                    for state in STATES
                }
    torch.set_num_threads(1)
    scorer = fit_general(table[~inside], members=1, folds=3)
    said = say(scorer, table[inside].rows, is_unknown=is_unknown)
    tensors = {f"{_title(state)}.{name}": value for state, one in said.items() for name, value in vars(one).items()}
    write_tensors(path, tensors, {FORMAT: made_by})
    print(f"fitted {path.stem}", flush=True)
    return said


def _title(state: tuple[str, bool, int]) -> str:
    part, skill, rung = state
    return f"{part}.{'skill' if skill else 'blind'}.{rung}"
