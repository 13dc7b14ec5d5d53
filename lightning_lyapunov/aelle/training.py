"""Making a scorer: from the rows of a whole bank, or from the few networks of one's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.calibration import Familiarity, Gate, Intervals, Shares
from lightning_lyapunov.aelle.features import ARCHITECTURES, LEVELS, SCALE, Rows, context, quantiles
from lightning_lyapunov.aelle.fitting import Ridge, fit_autoencoder, targets
from lightning_lyapunov.aelle.heads import (
    RIDGES,
    SKILL,
    Heads,
    features_for,
    predicted_performance,
    without_skill,
    without_spectrum,
)
from lightning_lyapunov.aelle.ranges import Ranges
from lightning_lyapunov.aelle.scorer import AeLLEScorer

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
"""Of the ridge, in rows: what is tried."""
TYPICAL = 0.7
"""Nats per step: about the median absolute exponent of the bank."""
FEW, MANY = 60, 1000
"""Spectra below which one's own scorer trains no autoencoder; above which it no longer begins from the pretrained."""

NewModels = Callable[[Rows, Tensor, Tensor, int, int], list[AeLLE]]
"""Autoencoders for rows, what their heads should say, weights; how many, and the first seed."""


def fit_scorer(
    rows: Rows,
    skill: Tensor,
    stable: Tensor,
    weights: Tensor,
    tasks: Tensor,
    folds: Tensor,
    card: Mapping[str, Any],
    *,
    members: int = 3,
    new_models: NewModels | None = None,
    prior: Heads | None = None,
    familiarity: Familiarity | None = None,
    seed: int = 0,
    progress: bool = False,
) -> AeLLEScorer:
    """Fit a scorer, and calibrate it on rows that the fitted models had not seen.

    Args:
        rows: R rows, with everything that is known of them.
        skill: (R,) final skill in [0, 1].
        stable: (R,) 1 or 0, NaN where not known.
        weights: (R,) how much each row counts.
        tasks: (R,) long: networks are ranked within a task.
        folds: (R,) long: what is fitted on the other folds is judged on this one.
        card: What is to be remembered of the data.
        members: Autoencoders whose predictions are averaged.
        new_models: Makes them; :func:`new_autoencoders` if None.
        prior: Another scorer's heads to begin from.
        familiarity: Another scorer's, where the rows are too few to tell what is ordinary.
        seed: Of everything random.
        progress: Whether to show a bar, in a terminal: a step for each autoencoder.
    """
    from tqdm import tqdm

    wanted = targets(skill, stable)
    make = new_models or new_autoencoders
    total = len(folds.unique()) + members
    bar = tqdm(total=total, desc="autoencoders", disable=None if progress else True)  # None: shown in a terminal

    def heads(inside: Tensor, count: int, seed: int, penalty: float) -> Heads:
        known, answers, w = rows[inside], wanted[inside], weights[inside]
        ridges = {name: Ridge.fit(features_for(name, known, prior), answers, w, penalty) for name in RIDGES}
        models = make(known, answers, w, count, seed)
        bar.update(count)
        return Heads(models, ridges, prior=prior)

    def ridge_error(penalty: float) -> float:
        said = skill.new_empty(len(rows))
        for fold in folds.unique():
            inside = folds != fold
            seen = features_for("spectrum", rows[inside], prior)
            ridge = Ridge.fit(seen, wanted[inside, :1], weights[inside], penalty)
            said[~inside] = ridge(features_for("spectrum", rows[~inside], prior))[:, SKILL]
        return _squared_error(said, skill, weights)

    blind_to_skill = without_skill(rows)
    penalty = min(PENALTIES, key=ridge_error)
    unseen = {int(fold): heads(folds != fold, 1, seed + 100, penalty) for fold in folds.unique()}
    states = states_of_knowledge(rows, torch.Generator().manual_seed(seed))

    def said_unseen(predict: Callable[[Heads, Rows], Tensor], of: Rows) -> Tensor:
        parts = {fold: predict(one, of[folds == fold]) for fold, one in unseen.items()}
        result = skill.new_empty(len(rows), *next(iter(parts.values())).shape[1:])
        for fold, part in parts.items():
            result[folds == fold] = part
        return result

    blind = [without_spectrum(rows), without_spectrum(blind_to_skill)]
    by_model, by_ridge = (
        torch.cat([said_unseen(kind, state) for state in states + blind]) for kind in (Heads.by_model, Heads.by_ridge)
    )
    repeats = len(states + blind)
    shares = Shares.fit(by_model, by_ridge, joined(states + blind), wanted.repeat(repeats, 1), weights.repeat(repeats))
    unseen = {fold: replace(one, shares=shares) for fold, one in unseen.items()}

    gate, baseline_gate = (
        Gate.fit(said_unseen(lambda one, r: one(r)[:, SKILL], seen), rows, skill, tasks, weights)
        for seen in (blind_to_skill, without_spectrum(blind_to_skill))
    )
    said = [said_unseen(lambda one, r: predicted_performance(one, gate, r)[0], state) for state in states]
    final = heads(torch.ones_like(folds, dtype=torch.bool), members, seed, penalty)
    told = ~wanted.isnan() * weights.unsqueeze(1)
    average = (wanted.nan_to_num() * told).sum(0) / told.sum(0)
    bar.close()
    ranges = Ranges.fit(rows) if prior is None else Ranges.fit(rows).joined(prior.ranges)
    return AeLLEScorer(
        replace(final, shares=shares, ranges=ranges),
        gate,
        baseline_gate,
        Intervals.fit(torch.cat(said), joined(states), skill.repeat(len(states))),
        familiarity or Familiarity.fit(rows, torch.Generator().manual_seed(seed)),
        average,
        {"performance_range": [0.0, 1.0], "scale": SCALE, "kinds": list(ARCHITECTURES), "penalty": penalty, **card},
    )


def new_autoencoders(
    rows: Rows, wanted: Tensor, weights: Tensor, count: int, seed: int, *, steps: int = 800, latent_size: int = 8
) -> list[AeLLE]:
    """Autoencoders fitted on rows from weights of their own; the global random state is left alone."""
    models = []
    for member in range(seed, seed + count):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(member)  # torch.manual_seed would seed the GPUs too
            model = AeLLE(latent_size).to(rows.spectrum.dtype)
        model.normalise(rows)
        models.append(fit_autoencoder(model, rows, wanted, weights, seed=member, steps=steps))
    return models


def fit_own(
    spectra: Sequence[Tensor],
    performance: Sequence[float] | Tensor,
    architecture: str | Sequence[str | None] | None,
    hidden_size: int | Sequence[int | None] | None,
    updates: int | Sequence[int | None] | None,
    metric: Sequence[float | None] | None,
    groups: Sequence[object] | None,
    seed: int,
) -> AeLLEScorer:
    """See :meth:`AeLLEScorer.fit`."""
    count = len(spectra)
    if count < 8:
        raise ValueError(f"spectra must be at least 8, or nothing can be learnt; got {count}.")
    ends = torch.as_tensor(performance, dtype=torch.float64)
    if ends.shape != (count,):
        raise ValueError(f"performance must hold one number for each of the {count} spectra; got {tuple(ends.shape)}.")
    if not ends.isfinite().all() or ends.min() == ends.max():
        raise ValueError("performance must be finite and not all the same.")
    worst, best = float(ends.min()), float(ends.max())

    def each(name: str, values: Any) -> list[Any]:
        if values is None or isinstance(values, str | int):
            return [values] * count
        if len(values) != count:
            raise ValueError(f"{name} must hold one entry for each of the {count} spectra; got {len(values)}.")
        return list(values)

    # Another unit than nats per step shows in sizes that no network of the bank has.
    sizes = torch.cat([s.detach().double().cpu()[s.detach().cpu().isfinite()] for s in spectra]).abs()
    ratio = float(sizes.median()) / TYPICAL if len(sizes) else 1.0
    scale = SCALE if 1 / 8 <= ratio <= 8 else SCALE * ratio
    skills = [None if m is None else min(max((m - worst) / (best - worst), 0.0), 1.0) for m in each("metric", metric)]
    known = zip(
        each("architecture", architecture), each("hidden_size", hidden_size), each("updates", updates), skills,
        strict=True,
    )  # fmt: skip
    rows = Rows(
        torch.stack([quantiles(spectrum, scale=scale) for spectrum in spectra]),
        torch.stack([context(*facts) for facts in known]),
    )
    names = list(range(count)) if groups is None else each("groups", list(groups))
    if len(set(names)) < 2:
        raise ValueError(f"groups must name at least 2 networks, or none can be left out; got {len(set(names))}.")
    skill = ((ends - worst) / (best - worst)).float()
    general = AeLLEScorer.from_pretrained()
    kinds = {kind.lower() for kind in each("architecture", architecture) if kind is not None}
    card = {
        "name": "own",
        "networks": len(set(names)),
        "performance_range": [worst, best],
        "scale": scale,
        "kinds": sorted({*ARCHITECTURES, *kinds}),
        "seed": seed,
    }
    return fit_scorer(
        rows,
        skill,
        torch.full_like(skill, math.nan),
        torch.ones_like(skill),
        torch.zeros(count, dtype=torch.long),
        _folds(names, torch.Generator().manual_seed(seed)),
        card,
        new_models=_models_for(count, general),
        prior=general.heads if count < MANY else None,
        familiarity=general.familiarity.joined_by(rows) if count < FEW else None,
        seed=seed,
        progress=count >= FEW,
    )


def _models_for(count: int, general: AeLLEScorer) -> NewModels:
    """Autoencoders for so many rows: the pretrained ones as they are, trained further, or new ones."""
    if count < FEW:
        return lambda rows, wanted, weights, members, seed: list(general.heads.models)[:members]
    if count >= MANY:
        return new_autoencoders

    def trained_further(rows: Rows, wanted: Tensor, weights: Tensor, members: int, seed: int) -> list[AeLLE]:
        models = []
        for i, model in enumerate(list(general.heads.models)[:members]):
            own = copy.deepcopy(model).requires_grad_()
            models.append(fit_autoencoder(own, rows, wanted, weights, seed=seed + i, steps=200, rate=1e-3))
        return models

    return trained_further


def _folds(names: Sequence[object], generator: torch.Generator) -> Tensor:
    """(R,) long: five folds, or as many as there are groups, each group in one."""
    groups = {name: i for i, name in enumerate(dict.fromkeys(names))}
    order = torch.randperm(len(groups), generator=generator)
    folds = order % min(5, len(groups))
    return folds[torch.tensor([groups[name] for name in names])]


def joined(states: Sequence[Rows]) -> Rows:
    """All rows of some lots, one after another."""
    return Rows(torch.cat([state.spectrum for state in states]), torch.cat([state.context for state in states]))


def states_of_knowledge(rows: Rows, generator: torch.Generator) -> list[Rows]:
    """The rows with every combination of skill so far, whole spectrum and kind of cell known or not."""
    kept = 0.1 + 0.8 * torch.rand(len(rows), 1, generator=generator)
    beyond = (torch.arange(LEVELS) + 0.5) / LEVELS > kept
    partial = torch.cat([torch.where(beyond, math.nan, rows.spectrum[:, :LEVELS]), rows.spectrum[:, LEVELS:]], 1)
    nameless = rows.context.clone()
    nameless[:, : len(ARCHITECTURES)] = math.nan
    states = [Rows(s, c) for s in (rows.spectrum, partial) for c in (rows.context, nameless)]
    return states + [without_skill(state) for state in states]


def _squared_error(said: Tensor, skill: Tensor, weights: Tensor) -> float:
    """Weighted mean, rounded so that noise does not decide between two of the same."""
    return round(float((weights * (said - skill).square()).sum() / weights.sum()), 4)
