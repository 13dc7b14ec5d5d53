"""What scorers say of networks of families that they have not seen: five scorers, each without a fifth of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_lyapunov.aelle.heads import SKILL
from lightning_lyapunov.aelle.knowledge import limited
from lightning_lyapunov.bank.evaluation import Table
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.report.left_out import fit_general
from lightning_lyapunov.files import reading, write_tensors

FORMAT = "lightning_lyapunov.unseen_scores/1"
FOLDS = 5
SAID = {
    "failure_probability": "failure", "familiarity": "familiarity", "performance": "performance",
    "performance_low": "low", "performance_high": "high", "baseline": "baseline",
}  # fmt: skip
"""What is kept, by the names of what is logged, and what the scorer calls it."""


def unseen_scores(bank: Bank, path: Path | None = None) -> dict[bool, dict[str, Tensor]]:
    """Scores ``(N, C)`` by whether the scorer was told the skill so far, and by name; NaN where it said nothing.

    Args:
        bank: N networks at C checkpoints.
        path: Where they are kept: read if there is such a file of this bank, else made and written.
    """
    if path is not None and path.exists():
        with reading(path, FORMAT) as (tensors, metadata):
            if metadata["networks"] == str(len(bank)):
                return _by_knowledge(tensors)
    tensors = _made(bank)
    if path is not None:
        write_tensors(path, tensors, {"format": FORMAT, "networks": str(len(bank))})
    return _by_knowledge(tensors)


def _made(bank: Bank) -> dict[str, Tensor]:
    """Fit a scorer on each four fifths of the families, in alphabetical order, and score the others."""
    table = Table.of(bank)
    families = table.column("family")
    names = sorted(set(families))
    shape = (len(bank), len(bank.checkpoints))
    tensors = {f"{knows}/{name}": torch.full(shape, math.nan) for knows in (True, False) for name in SAID}
    place = torch.tensor([bank.checkpoints.index(int(updates)) for updates in table.updates])
    for fold in range(FOLDS):
        left_out = torch.from_numpy(np.isin(families, names[fold::FOLDS]))
        scorer = fit_general(table[~left_out], members=1, folds=3)
        at = table.network[left_out], place[left_out]
        for knows in (True, False):
            rows = table.rows[left_out]
            said = scorer.predict(rows if knows else limited(rows, skill=False))
            for name, of_scorer in SAID.items():
                value = getattr(said, of_scorer)
                tensors[f"{knows}/{name}"][at] = (value[:, SKILL] if value.dim() > 1 else value).float()
    return tensors


def _by_knowledge(tensors: dict[str, Tensor]) -> dict[bool, dict[str, Tensor]]:
    return {knows: {name: tensors[f"{knows}/{name}"] for name in SAID} for knows in (True, False)}
