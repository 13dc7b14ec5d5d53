r"""Fitting the autoencoder: by how it ranks the networks of one task at one moment.

A prediction is used to choose among networks of one task, so that is what is learnt: of two networks i and j of the
same task and the same number of updates, with skills :math:`y_i > y_j`,

.. math:: \ell_{ij} = \min\bigl(1, (y_i - y_j) / 0.25\bigr)\, \ln\bigl(1 + e^{-(z_i - z_j)}\bigr)

and likewise for failure and take-off (RankNet: Burges et al., ICML 2005). Cross-entropy over all networks, which
rewards a guess at the task that a spectrum is from, fits the levels alone, beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss, softplus

from lightning_lyapunov.aelle.autoencoder import RANKED, AeLLE, Output
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.knowledge import RUNGS, cut

FAILED, TOOK_OFF = 0.1, 0.3
"""Final skill below which a network never learnt its task, and above which it took off."""
STEPS, GROUPS, MEMBERS = 600, 32, 16
"""Updates; groups in a batch, and networks of each."""
CLEAR = 0.25
"""Difference of skill from which a pair counts in full."""
RANK, LEVEL, RECONSTRUCTION = (1.0, 0.5, 0.5), 2.0, 0.2
"""Weights of the losses: ranks of skill, failure and take-off; levels; the spectrum."""
ANCHOR = 0.3
"""Weight of the cross-entropy of ranks. It fixes their zero, which pairs leave open: without it autoencoders of two
seeds lie up to a standard deviation apart, and levels set for one are wrong for the other."""
BLIND, PARTIAL = 0.1, 0.25
"""Share of the groups that are shown no spectrum, and the leading part of it alone."""
_TIME = ("log_updates",)
SHOWN: tuple[tuple[str, ...], ...] = (
    (),
    _TIME,
    (*_TIME, "skill"),
    *((*_TIME, *rung, *skill) for rung in RUNGS[1:] for skill in ((), ("skill",))),
)
"""States of knowledge that groups are shown in, one as often as the other."""


def targets(skill: Tensor, stable: Tensor | None = None) -> Tensor:
    """What the heads should say of networks that ended with ``skill`` (R,) in [0, 1]: ``(R, len(HEADS))``.

    Args:
        skill: Final skill.
        stable: (R,) 1 where the trained network is not chaotic, 0 where it is, NaN where not known.
    """
    stable = torch.full_like(skill, torch.nan) if stable is None else stable
    return torch.stack([skill, (skill < FAILED).float(), (skill > TOOK_OFF).float(), stable], 1)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws groups of rows, and rows of each."""

    order: Tensor
    """(R,) rows, group after group."""
    start: Tensor
    """(G,) where each group begins there."""
    size: Tensor
    """(G,) rows of each."""
    weight: Tensor
    """(G,) how often each is drawn, relatively."""

    @staticmethod
    def of(groups: Tensor, weights: Tensor) -> Sampler:
        """Groups (R,) long, each drawn in proportion to the weights (R,) of its rows."""
        _, number, size = groups.unique(return_inverse=True, return_counts=True)
        weight = torch.zeros(len(size), dtype=weights.dtype).index_add(0, number, weights)
        return Sampler(number.argsort(stable=True), size.cumsum(0) - size, size, weight)

    def draw(self, generator: torch.Generator) -> Tensor:
        """(GROUPS, MEMBERS) rows."""
        group = torch.multinomial(self.weight, GROUPS, replacement=True, generator=generator).unsqueeze(1)
        share = torch.rand(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
        return self.order[self.start[group] + (share * self.size[group]).long()]


def fit_autoencoder(
    model: AeLLE, rows: Rows, wanted: Tensor, weights: Tensor, groups: Tensor, *, seed: int = 0, steps: int = STEPS
) -> AeLLE:
    """Train an autoencoder and its heads.

    Each group of networks is shown in one state of knowledge of :data:`SHOWN`, so that the fitted model works with
    whatever a caller has; the reconstruction is of all that was known.

    Args:
        model: To be trained, in place.
        rows: R rows of which everything is known.
        wanted: ``(R, len(HEADS))`` from :func:`targets`; NaN where a head has nothing to learn.
        weights: (R,) how much each row counts.
        groups: (R,) long: rows are ranked within a group, a task at one number of updates.
        seed: Of everything random; the global random state is left alone.
        steps: Updates.

    Returns:
        The model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler.of(groups, weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    shown = torch.tensor([[name in state for name in CONTEXT] for state in SHOWN])
    seen, context = model.standard(rows)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # for dropout; torch.manual_seed would seed the GPUs too
        for _ in range(steps):
            chosen = sampler.draw(generator).flatten()
            whole, known = seen[chosen], shown[_each(torch.randint(len(shown), (GROUPS,), generator=generator))]
            # The length is a property of the task, which says nothing within a group; shown in half of all groups.
            known[:, CONTEXT.index("log_steps")] = _chance(0.5, generator)
            part = _chance(PARTIAL, generator)
            left = whole.clone()
            left[part] = model.standard(cut(rows[chosen[part]], generator))[0]
            left[_chance(BLIND, generator)] = math.nan
            output = model.read((left, torch.where(known, context[chosen], math.nan)))
            loss = _loss(output, wanted[chosen], whole[:, : LEVELS + 1])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def _each(values: Tensor) -> Tensor:
    """What holds for groups (GROUPS, ...), for each of their rows."""
    return values.repeat_interleave(MEMBERS, 0)


def _chance(share: float, generator: torch.Generator) -> Tensor:
    """(R,) bool: so many of the groups, drawn at random."""
    return _each(torch.rand(GROUPS, generator=generator) < share)


def _loss(output: Output, wanted: Tensor, true: Tensor) -> Tensor:
    """The weighted sum of all losses of a batch of groups."""
    loss = wanted.new_zeros(())
    for head, weight in zip(range(RANKED), RANK, strict=True):
        loss = loss + weight * pairwise(output.ranks[:, head], wanted[:, head], CLEAR if head == 0 else 1.0)
    answered = ~wanted.isnan()
    levels = binary_cross_entropy_with_logits(output.logits, wanted.nan_to_num(), reduction="none")
    loss = loss + LEVEL * (levels * answered).sum() / answered.sum().clamp(min=1)
    asked = answered[:, :RANKED]
    anchor = binary_cross_entropy_with_logits(output.ranks, wanted[:, :RANKED].nan_to_num(), reduction="none")
    loss = loss + ANCHOR * (anchor * asked).sum() / asked.sum().clamp(min=1)
    known = ~true.isnan()
    made = smooth_l1_loss(output.reconstruction, true.nan_to_num(), reduction="none")
    return loss + RECONSTRUCTION * (made * known).sum() / known.sum().clamp(min=1)


def pairwise(score: Tensor, wanted: Tensor, clear: float) -> Tensor:
    """Mean loss of pairs within consecutive groups of :data:`MEMBERS` rows.

    Args:
        score: (R,).
        wanted: (R,) what it should rank by.
        clear: Difference from which a pair counts in full.
    """
    score, wanted = score.view(-1, MEMBERS), wanted.view(-1, MEMBERS)
    weight = ((wanted.unsqueeze(2) - wanted.unsqueeze(1)) / clear).clamp(0.0, 1.0)
    losses = softplus(score.unsqueeze(1) - score.unsqueeze(2))
    return (losses * weight).sum() / weight.sum().clamp(min=1.0)
