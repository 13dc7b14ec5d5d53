"""The ridges that the autoencoder must beat, and is averaged with: one for each knot and each state of knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS
from lightning_lyapunov.aelle.features import ARCHITECTURES, CHEAP, CONTEXT, RATE, Rows, Tensors, hand_features
from lightning_lyapunov.aelle.knowledge import KNOTS, RUNGS, between, near_knots, place, rung

PENALTY = 30.0
"""In rows."""
NEWTON_STEPS, CLOSE = 25, 1e-3
"""At most so many; enough once no logit moves by more."""
FEWEST = 60
"""Rows that a ridge is fitted on, at least; twice its features if that is more."""
KINDS = [(s, k, r) for s in (False, True) for k in (False, True) for r in range(len(RUNGS))]
"""Whether the spectrum and the skill so far are known, and the rung of the rest."""


@dataclass(frozen=True)
class Ridge(Tensors):
    """Logistic ridge regression on hand-made features, standardised.

    Of skills and probabilities alike: fractional logit, Papke and Wooldridge (1996).
    """

    centre: Tensor
    spread: Tensor
    coefficients: Tensor
    """(F + 1, outputs); the intercept last."""

    @staticmethod
    def fit(features: Tensor, wanted: Tensor, weights: Tensor, penalty: float = 1.0) -> Ridge:
        """Fit by weighted cross-entropy, with Newton's method; features that are NaN count as average.

        Args:
            features: (R, F).
            wanted: (R, outputs) in [0, 1]; rows that are NaN count for nothing. With no others, so are predictions.
            weights: (R,).
            penalty: Of squared coefficients, relative to the number of rows that it is worth.
        """
        known = ~features.isnan()
        share = known * weights.unsqueeze(1)
        total = share.sum(0).clamp(min=1e-9)
        centre = (features.nan_to_num() * share).sum(0) / total
        spread = (((features - centre).nan_to_num().square() * share).sum(0) / total).sqrt()
        spread = spread.masked_fill(spread < 1e-4, torch.inf)  # what never varied says nothing, however it varies later
        standard = ((features - centre) / spread).nan_to_num().double()
        alike = (standard * weights.double().unsqueeze(1)).mT @ standard / weights.sum()
        # Nor does a multiple of another feature, as of one by a context that never varied, add anything.
        spread = spread.masked_fill((alike.abs() > 1 - 1e-6).triu(1).any(0), torch.inf)
        x = torch.cat([((features - centre) / spread).nan_to_num(), torch.ones(len(features), 1)], 1).double()
        counts = weights.double() * (len(x) / weights.sum())
        columns = [_logistic_ridge(x, y, counts, penalty) for y in wanted.double().unbind(1)]
        return Ridge(centre, spread, torch.stack(columns, 1).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (R, outputs)."""
        x = ((features - self.centre) / self.spread).nan_to_num()
        return x @ self.coefficients[:-1] + self.coefficients[-1]


@dataclass(frozen=True, eq=False)
class Ridges:
    """A ridge for each of :data:`KINDS` of knowledge and each knot."""

    kinds: Mapping[tuple[bool, bool, int], Ridge]
    """Each with tensors of one more dimension, the knots, in front."""

    @staticmethod
    def fit(rows: Rows, wanted: Tensor, weights: Tensor, penalty: float = PENALTY) -> Ridges:
        """Fit on rows of which everything is known.

        Args:
            rows: R rows.
            wanted: ``(R, len(HEADS))``; NaN where a head has nothing to learn.
            weights: (R,).
            penalty: See :meth:`Ridge.fit`.
        """
        there, kinds = place(rows), {}
        for kind in KINDS:
            features = features_for(kind, rows)
            made: list[Ridge | None] = [None] * len(KNOTS)
            for near, knots in near_knots(there, max(FEWEST, 2 * features.shape[1])):
                ridge = Ridge.fit(features[near], wanted[near], weights[near], penalty)
                for knot in knots:
                    made[knot] = ridge
            parts = zip(*(vars(one).values() for one in made), strict=True)
            kinds[kind] = Ridge(*(torch.stack(part) for part in parts))
        return Ridges(kinds)

    def __call__(self, rows: Rows) -> Tensor:
        """Logits ``(R, len(HEADS))`` from what is known of each row."""
        spectrum, skill = ~rows.spectrum[:, 0].isnan(), ~rows.context[:, CONTEXT.index("skill")].isnan()
        rungs, there = rung(rows), place(rows)
        result = rows.spectrum.new_empty(len(rows), len(HEADS))
        for kind, ridge in self.kinds.items():
            here = (spectrum == kind[0]) & (skill == kind[1]) & (rungs == kind[2])
            if not here.any():
                continue
            features = features_for(kind, rows[here])
            x = ((features.unsqueeze(1) - ridge.centre) / ridge.spread).nan_to_num()  # (r, knots, F)
            logits = torch.einsum("rkf,kfh->rkh", x, ridge.coefficients[:, :-1]) + ridge.coefficients[:, -1]
            result[here] = between(logits, there[here])
        return result

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As a file holds them under a name."""
        parts = [ridge.tensors(f"{name}.{_title(kind)}") for kind, ridge in self.kinds.items()]
        return {key: value for part in parts for key, value in part.items()}

    @staticmethod
    def of(name: str, tensors: Mapping[str, Tensor]) -> Ridges:
        """Those of a file, from under a name."""
        return Ridges({kind: Ridge.of(f"{name}.{_title(kind)}", tensors) for kind in KINDS})

    @staticmethod
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be."""
        shapes: dict[str, tuple[int, ...]] = {}
        for kind in KINDS:
            count, title = features_for(kind, Rows.unknown(1)).shape[1], f"{name}.{_title(kind)}"
            shapes[f"{title}.centre"] = shapes[f"{title}.spread"] = (len(KNOTS), count)
            shapes[f"{title}.coefficients"] = (len(KNOTS), count + 1, len(HEADS))
        return shapes


def features_for(kind: tuple[bool, bool, int], rows: Rows) -> Tensor:
    """(R, F) what the ridge of a kind of knowledge sees: each kind of cell has slopes of its own.

    Args:
        kind: One of :data:`KINDS`.
        rows: R rows.
    """
    has_spectrum, has_skill, height = kind
    known, columns = RUNGS[height], []
    cells = _context(rows, *(name for name in ARCHITECTURES if name in known))
    if has_spectrum:
        hand = hand_features(rows.spectrum)
        columns += [hand, *(hand * one for one in cells.split(1, 1) if cells.shape[1])]
    columns += [cells, _context(rows, *(name for name in ("log_size", *CHEAP) if name in known))]
    if RATE[0] in known:
        rate, adaptive = (_context(rows, name) for name in RATE)
        columns += [rate, rate.square(), rate * cells, rate.square() * cells]
        columns += [adaptive, adaptive * rate, adaptive * rate.square()]
    if has_skill:
        columns.append(_context(rows, "skill"))
    return torch.cat(columns, 1)


def _context(rows: Rows, *names: str) -> Tensor:
    return rows.context[:, [CONTEXT.index(name) for name in names]]


def _title(kind: tuple[bool, bool, int]) -> str:
    spectrum, skill, height = kind
    return f"{'spectrum' if spectrum else 'nothing'}{'+skill' if skill else ''}+{height}"


def _logistic_ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Coefficients (F,) for answers (R,); all but the last are penalised, that one hardly."""
    known = ~y.isnan()
    if not known.any():
        return torch.full_like(x[0], torch.nan)
    x, y, weights = x[known], y[known], weights[known]
    # The curvature of the cross-entropy is at most a quarter of that of the squared error.
    penalties = torch.full_like(x[0], penalty / 4)
    penalties[-1] = 1e-3
    beta, single = torch.zeros_like(x[0]), x.float()
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(x @ beta)
        gradient = x.mT @ (weights * (p - y)) + penalties * beta
        # Where the gradient is exact, single precision is enough for the way there.
        hessian = ((single * (weights * p * (1 - p)).float().unsqueeze(1)).mT @ single).double() + torch.diag(penalties)
        step = torch.linalg.solve(hessian, gradient)
        size = float((x @ step).abs().max())
        beta = beta - step * (4 / max(size, 4.0))  # never by more than 4 logits at once
        if size < CLOSE:
            break
    return beta
