"""Making the general scorer from the rows of a whole bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import RANKED, AeLLE
from lightning_lyapunov.aelle.calibration import Familiarity, Intervals, Worth
from lightning_lyapunov.aelle.combining import Combination
from lightning_lyapunov.aelle.features import ARCHITECTURES, SCALE, Rows
from lightning_lyapunov.aelle.fitting import STEPS, fit_autoencoder, targets
from lightning_lyapunov.aelle.heads import SKILL, Heads
from lightning_lyapunov.aelle.knowledge import PARTS, RUNGS, cut, limited
from lightning_lyapunov.aelle.ranges import Ranges
from lightning_lyapunov.aelle.ridge import Ridges
from lightning_lyapunov.aelle.scorer import AeLLEScorer


@dataclass(frozen=True, eq=False)
class Examples:
    """R rows of trained networks, of which everything is known, and what became of them."""

    rows: Rows
    skill: Tensor
    """(R,) final, in [0, 1]."""
    stable: Tensor
    """(R,) 1 or 0, NaN where not known."""
    weights: Tensor
    """(R,) how much each counts."""
    groups: Tensor
    """(R,) long: a task at one number of updates, within which networks are ranked."""
    families: Tensor
    """(R,) long: of tasks; what is calibrated is calibrated on families left out."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, keep: Tensor) -> Examples:
        return Examples(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    @property
    def wanted(self) -> Tensor:
        """``(R, heads)`` what should be said of them."""
        return targets(self.skill, self.stable)


def fit_scorer(
    examples: Examples,
    card: Mapping[str, Any],
    *,
    members: int = 3,
    folds: int = 4,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = False,
) -> AeLLEScorer:
    """Fit a scorer, and calibrate it on families that the fitted models had not seen.

    Args:
        examples: What to fit on.
        card: What is to be remembered of the data.
        members: Autoencoders whose predictions are averaged.
        folds: Parts that families are left out in.
        steps: Updates of an autoencoder.
        seed: Of everything random.
        progress: Whether to show a bar, in a terminal: a step for each autoencoder.

    Raises:
        ValueError: If there are fewer than two families.
    """
    from tqdm import tqdm

    if len(examples.families.unique()) < 2:
        raise ValueError("examples must be of at least 2 families, or none can be left out; got 1.")
    bar = tqdm(total=folds + members, desc="autoencoders", disable=None if progress else True)  # None: in a terminal

    def heads(inside: Tensor, count: int, seed: int) -> Heads:
        known = examples[inside]
        models = []
        for member in range(seed, seed + count):
            models.append(new_autoencoder(known, member, steps=steps))
            bar.update()
        return Heads(models, Ridges.fit(known.rows, known.wanted, known.weights))

    fold = examples.families % folds
    unseen = {int(f): heads(fold != f, 1, seed + 100) for f in fold.unique()}
    shown = [one for part in PARTS for one in _states(examples.rows, part, seed)]
    said = [_by_unseen(unseen, fold, rows) for rows in shown]
    pairs = list(zip(shown, said, strict=True))
    combination = Combination.fit(pairs, examples.wanted, examples.weights, examples.groups)
    scores = [combination(predictors, rows) for rows, predictors in pairs]
    with_spectrum = len(shown) // len(PARTS)
    final = heads(torch.ones_like(fold, dtype=torch.bool), members, seed)
    bar.close()
    wanted, weights = examples.wanted, examples.weights
    told = ~wanted.isnan() * weights.unsqueeze(1)
    repeats = len(shown)
    return AeLLEScorer(
        replace(final, combination=combination, ranges=Ranges.fit(examples.rows)),
        Intervals.fit(
            torch.cat([one[:, SKILL] for one in scores]),
            Rows.joined(shown),
            examples.skill.repeat(repeats),
            weights.repeat(repeats),
        ),
        Familiarity.fit(examples.rows, torch.Generator().manual_seed(seed)),
        Worth.fit(
            torch.cat(scores[-with_spectrum:])[:, :RANKED],
            torch.cat(scores[:with_spectrum])[:, :RANKED],
            Rows.joined(shown[-with_spectrum:]),
            wanted[:, :RANKED].repeat(with_spectrum, 1),
            examples.groups.repeat(with_spectrum),
            examples.families.repeat(with_spectrum),
        ),
        (wanted.nan_to_num() * told).sum(0) / told.sum(0),
        {"performance_range": [0.0, 1.0], "scale": SCALE, "kinds": list(ARCHITECTURES), **card},
    )


def new_autoencoder(examples: Examples, seed: int, *, steps: int = STEPS, latent_size: int = 8) -> AeLLE:
    """An autoencoder fitted from weights of its own; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        model = AeLLE(latent_size).to(examples.rows.spectrum.dtype)
    model.normalise(examples.rows, examples.weights)
    return fit_autoencoder(
        model, examples.rows, examples.wanted, examples.weights, examples.groups, seed=seed, steps=steps
    )


def _states(rows: Rows, part: str, seed: int) -> list[Rows]:
    """The rows in every state of knowledge with so much of the spectrum."""
    if part == "part":
        rows = cut(rows, torch.Generator().manual_seed(seed))
    return [limited(rows, part=part, rung=rung, skill=skill) for skill in (False, True) for rung in range(len(RUNGS))]


def _by_unseen(unseen: Mapping[int, Heads], fold: Tensor, rows: Rows) -> Tensor:
    """``(R, heads, predictors)`` each row's by the heads that had not seen its family."""
    parts = {f: heads.predictors(rows[fold == f]) for f, heads in unseen.items()}
    said = rows.spectrum.new_empty(len(rows), *next(iter(parts.values())).shape[1:])
    for f, part in parts.items():
        said[fold == f] = part
    return said
