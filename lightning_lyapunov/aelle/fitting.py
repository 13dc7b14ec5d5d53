"""Fitting: the autoencoder on rows in which anything may be missing, and the ridge it must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from lightning_lyapunov.aelle.autoencoder import HEADS, AeLLE
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, Rows, Tensors, hand_features

FAILED, TOOK_OFF = 0.1, 0.3
"""Final skill below which a network never learnt its task, and above which it took off."""
STEPS, BATCH = 1500, 512
NEWTON_STEPS = 25
"""Of the ridge: more change nothing that matters."""
RECONSTRUCTION = 0.2
"""Weight of the reconstruction beside the predictions."""


def targets(skill: Tensor, stable: Tensor | None = None) -> Tensor:
    """What the heads should say of networks that ended with ``skill`` (R,) in [0, 1]: ``(R, len(HEADS))``.

    Args:
        skill: Final skill.
        stable: (R,) 1 where the trained network is not chaotic, 0 where it is, NaN where not known.
    """
    stable = torch.full_like(skill, torch.nan) if stable is None else stable
    return torch.stack([skill, (skill < FAILED).float(), (skill > TOOK_OFF).float(), stable], 1)


def fit_autoencoder(
    model: AeLLE, rows: Rows, wanted: Tensor, weights: Tensor, *, seed: int = 0, steps: int = STEPS, rate: float = 2e-3
) -> AeLLE:
    """Train an autoencoder and its heads.

    At every step each row forgets at random some of what is known of it, so that the fitted model works with whatever
    a caller has; the reconstruction is of all that was known.

    Args:
        model: To be trained, in place.
        rows: R rows.
        wanted: ``(R, len(HEADS))`` from :func:`targets`; NaN where a head has nothing to learn.
        weights: (R,) how much each row counts.
        seed: Of the order of rows and of what is forgotten; the global random state is left alone.
        steps: Updates, of at most :data:`BATCH` rows.
        rate: Largest learning rate of AdamW.

    Returns:
        The model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    known = ~rows.spectrum.isnan()
    answered = ~wanted.isnan()
    # Rows come as often as they count.
    size = min(BATCH, 4 * len(rows))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # for dropout; torch.manual_seed would seed the GPUs too
        for _ in range(steps):
            chosen = torch.multinomial(weights, size, replacement=True, generator=generator)
            batch = rows[chosen]
            output = model(forget(batch, generator))
            asked = answered[chosen]
            losses = binary_cross_entropy_with_logits(output.logits, wanted[chosen].nan_to_num(), reduction="none")
            loss = (losses * asked).sum() / asked.sum()
            seen = known[chosen]
            true = ((batch.spectrum - model.centre) / model.spread).nan_to_num()
            made = (output.reconstruction - model.centre) / model.spread
            loss = loss + RECONSTRUCTION * (smooth_l1_loss(made, true, reduction="none") * seen).sum() / seen.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def forget(rows: Rows, generator: torch.Generator) -> Rows:
    """Rows of which some things are no longer known: the tail or all of the spectrum, entries of the context."""

    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(len(rows), *shape, generator=generator) < probability

    nan = torch.nan
    kept = 0.05 + 0.95 * torch.rand(len(rows), 1, generator=generator)
    beyond = (torch.arange(LEVELS) + 0.5) / LEVELS > kept
    partial = chance(0.25, 1) & torch.cat([beyond, chance(0.3, 1)], 1)
    spectrum = torch.where(partial | chance(0.15, 1), nan, rows.spectrum)
    kinds = chance(0.15, 1).expand(-1, len(ARCHITECTURES))
    others = torch.stack([chance(0.1), chance(0.1), chance(0.5)], 1)  # size, updates, skill so far
    return Rows(spectrum, torch.where(torch.cat([kinds, others], 1), nan, rows.context))


@dataclass(frozen=True)
class Ridge(Tensors):
    """Logistic ridge regression on hand-made features, standardised, each network kind with slopes of its own.

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
        """Predictions (R, outputs) in (0, 1)."""
        x = ((features - self.centre) / self.spread).nan_to_num()
        return torch.sigmoid(x @ self.coefficients[:-1] + self.coefficients[-1])


def _logistic_ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Coefficients (F,) for answers (R,); all but the last are penalised, that one hardly."""
    known = ~y.isnan()
    if not known.any():
        return torch.full_like(x[0], torch.nan)
    x, y, weights = x[known], y[known], weights[known]
    # The curvature of the cross-entropy is at most a quarter of that of the squared error.
    penalties = torch.full_like(x[0], penalty / 4)
    penalties[-1] = 1e-3
    beta = torch.zeros_like(x[0])
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(x @ beta)
        gradient = x.mT @ (weights * (p - y)) + penalties * beta
        hessian = (x * (weights * p * (1 - p)).unsqueeze(1)).mT @ x + torch.diag(penalties)
        step = torch.linalg.solve(hessian, gradient)
        beta = beta - step * (4 / (x @ step).abs().max().clamp(min=4))  # never by more than 4 logits at once
    return beta


def ridge_features(rows: Rows, *, spectrum: bool = True, context: tuple[str, ...] = CONTEXT) -> Tensor:
    """What a ridge sees: the context, hand-made features of the spectrum, and their products with the kinds.

    Args:
        rows: R rows.
        spectrum: Whether it sees the spectrum.
        context: Entries of :data:`CONTEXT` that it sees.
    """
    columns = [rows.context[:, [CONTEXT.index(name) for name in context]]]
    if spectrum:
        hand = hand_features(rows.spectrum)
        columns.append(hand)
        for name in context:
            if name in (*ARCHITECTURES, "log_updates"):
                columns.append(hand * rows.context[:, CONTEXT.index(name), None])
    return torch.cat(columns, 1)


__all__ = ["FAILED", "HEADS", "TOOK_OFF", "Ridge", "fit_autoencoder", "forget", "ridge_features", "targets"]
