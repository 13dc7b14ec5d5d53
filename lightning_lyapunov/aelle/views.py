"""What a scorer of one's own sees of networks, at full resolution, and its fit for one state of knowledge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import LEVELS, SCALE, Rows, hand_features, squash
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF
from lightning_lyapunov.aelle.ridge import Ridge
from lightning_lyapunov.aelle.stack import PRIOR, WORTH, Groups, Stack

FINE = 256
"""Exponents that a spectrum is read at, from the largest to the smallest: enough that those of large networks differ
at the top, where :data:`~lightning_lyapunov.aelle.features.LEVELS` equal shares pass over the largest."""
DEEPEST = -10.0
"""Nats per step. Raw exponents below count as this: what dies within a step is dead, and would outweigh all others."""
COVERAGE = 0.8
EDGE = 0.05
"""Of the skill, from both ends: beyond, predictions are pressed together instead of cut off, so that none are tied."""
PRIOR_LOGITS = "prior's logits"


class Prior(Protocol):
    """What a stack begins from."""

    def logits(self, rows: Rows) -> Tensor:
        """(R, 3) of skill, failure, take-off."""

    def codes(self, rows: Rows) -> Tensor:
        """(R, L)."""


@dataclass(frozen=True)
class OwnRows(Rows):
    """Rows with their spectra at full resolution."""

    fine: Tensor
    """(R, FINE): squashed exponents from the largest to the smallest; NaN where unknown."""

    def __getitem__(self, keep: Tensor) -> OwnRows:
        return OwnRows(self.spectrum[keep], self.context[keep], self.fine[keep])

    @staticmethod
    def of(rows: Rows) -> OwnRows:
        """The same; of rows without, the exponents between the levels that they hold."""
        if isinstance(rows, OwnRows):
            return rows
        place = (torch.linspace(0, 1, FINE, dtype=rows.spectrum.dtype) * LEVELS - 0.5).clamp(0, LEVELS - 1)
        low = place.floor().long()
        q = rows.spectrum[:, :LEVELS]
        fine = torch.lerp(q[:, low], q[:, (low + 1).clamp(max=LEVELS - 1)], place - low)
        return OwnRows(rows.spectrum, rows.context, fine)

    def masked(self, known: Tensor) -> OwnRows:
        """Rows of which only the columns known are known (LEVELS + 1 + C + FINE,)."""
        parts = (self.spectrum, self.context, self.fine)
        kept = known.split([part.shape[1] for part in parts])
        return OwnRows(*(torch.where(keep, part, math.nan) for part, keep in zip(parts, kept, strict=True)))

    @property
    def known(self) -> Tensor:
        """(R, LEVELS + 1 + C + FINE) bool."""
        return ~torch.cat([self.spectrum, self.context, self.fine], 1).isnan()


def resolved(exponents: Tensor, dimension: int | None = None, scale: float = SCALE) -> Tensor:
    """A spectrum as (FINE,) squashed exponents, from the largest to the smallest of its dimension; NaN are unknown.

    Args:
        exponents: (K,) leading exponents of a state of ``dimension`` D, in any order; NaN are left out.
        dimension: D; K if None.
        scale: Where the logarithmic scale turns linear, in the unit of the exponents.
    """
    dimension = len(exponents) if dimension is None else dimension
    exponents = exponents.detach().cpu().double()
    known = squash(exponents[~exponents.isnan()].sort(descending=True).values, scale)
    wanted = torch.linspace(0, dimension - 1, FINE, dtype=torch.float64)
    low = wanted.floor().long().clamp(max=len(known) - 1)
    values = torch.lerp(known[low], known[(low + 1).clamp(max=len(known) - 1)], (wanted - low).clamp(0.0, 1.0))
    values[wanted > len(known) - 1] = math.nan
    return values.float()


def views_of(rows: OwnRows, prior: Prior) -> dict[str, Tensor]:
    """What each candidate sees of R networks (R, F), in float64; NaN where unknown."""
    logits, fine = prior.logits(rows), rows.fine.double()
    raw = (fine.sign() * fine.abs().expm1() * SCALE).clamp(min=DEEPEST)
    return {
        PRIOR: logits[:, :1].sigmoid(),
        PRIOR_LOGITS: logits,
        "prior's logits and code": torch.cat([logits, prior.codes(rows)], 1),
        "raw components": raw,
        "squashed components": fine,
        "squashed exponents": fine,
        "largest and mean": torch.stack([fine[:, 0], rows.spectrum[:, -1].double()], 1),
        "hand-made features": hand_features(rows.spectrum).double(),
    }


@dataclass(frozen=True, eq=False)
class _Filled:
    """Columns that are known of at least half of some networks, and what stands for those that are not: their mean."""

    columns: Tensor
    means: Tensor

    @staticmethod
    def of(values: Tensor) -> _Filled:
        known = values.isfinite()
        columns = (2 * known.sum(0) >= len(values)).nonzero()[:, 0]
        return _Filled(columns, torch.where(known, values, math.nan)[:, columns].nanmean(0))

    def __call__(self, values: Tensor) -> Tensor:
        values = values[:, self.columns]
        return torch.where(values.isfinite(), values, self.means)


class Fit:
    """A stack for one state of knowledge.

    Args:
        rows: One's own, of which no more is known than will be.
        skill: (n,) in [0, 1].
        groups: Of the rows.
        prior: What the stack begins from.
    """

    def __init__(self, rows: OwnRows, skill: Tensor, groups: Groups, prior: Prior) -> None:
        self._prior = prior
        views = views_of(rows, prior)
        self._filled = {name: _Filled.of(view) for name, view in views.items()}
        self._context = _Filled.of(rows.context.double())
        seen, beside = self._seen(rows, views)
        # Without a spectrum what is left of it, as the code of none, tells no two networks apart.
        self._filled = {name: filled for name, filled in self._filled.items() if _says(seen[name], name)}
        self.stack = Stack.fit({name: seen[name] for name in self._filled}, beside, skill, groups)
        self.offsets = _offsets(self.stack.residuals)
        self._odds = _odds(skill, skill - self.stack.residuals, views[PRIOR_LOGITS])

    def _seen(self, rows: OwnRows, views: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Tensor]:
        views = views_of(rows, self._prior) if views is None else views
        seen = {name: filled(views[name]) for name, filled in self._filled.items()}
        return seen, self._context(rows.context.double())

    def __call__(self, rows: OwnRows) -> Tensor:
        """(R, 5): predicted skill, both ends of its interval, probabilities of failure and take-off."""
        views = views_of(rows, self._prior)
        said = self.stack(*self._seen(rows, views))
        ends = (said.unsqueeze(1) + self.offsets).clamp(0.0, 1.0)
        skill = within(said)
        ends = torch.stack([torch.minimum(ends[:, 0], skill), torch.maximum(ends[:, 1], skill)], 1)
        return torch.cat([skill.unsqueeze(1), ends, self._odds(_beside(said, views[PRIOR_LOGITS])).sigmoid()], 1)

    def parts(self, rows: OwnRows) -> dict[str, Tensor]:
        """What each candidate says (R,), and the stack of them under ``"stack"``."""
        seen = self._seen(rows)
        return self.stack.parts(*seen) | {"stack": self.stack(*seen)}


def _says(view: Tensor, name: str) -> bool:
    return name == PRIOR or bool(view.shape[1] and (view.amax(0) > view.amin(0)).any())


def _offsets(residuals: Tensor) -> Tensor:
    """(2,) between which so many of the next residuals lie as an interval shall hold: split conformal, both tails."""
    ordered, count = residuals.sort().values, len(residuals)
    beyond = max(math.floor((1 - COVERAGE) / 2 * (count + 1)), 1)
    return torch.stack([ordered[beyond - 1], ordered[count - beyond]])


def _odds(skill: Tensor, said: Tensor, logits: Tensor) -> Ridge:
    """Logits of failure and take-off from what the stack says of networks left out and the prior's logits.

    Two networks are made up, in the middle of all others, of which one failed and one did not, and so with the
    take-off: where none of a few did, the next one still may (Laplace's rule of succession).
    """
    features = _beside(said, logits)
    wanted = torch.stack([skill < FAILED, skill > TOOK_OFF], 1).to(features)
    made_up = features.mean(0).expand(2, -1), torch.eye(2).to(features)
    features, wanted = (torch.cat([part, more]) for part, more in zip((features, wanted), made_up, strict=True))
    return Ridge.fit(features, wanted, torch.ones_like(features[:, 0]), WORTH)


def _beside(said: Tensor, logits: Tensor) -> Tensor:
    return torch.cat([said.unsqueeze(1), logits[:, 1:]], 1).float()


def within(skill: Tensor) -> Tensor:
    """Skills brought into (0, 1), in the same order; those not near an end stay as they are."""
    above, below = (skill - (1 - EDGE)).clamp(min=0.0), (EDGE - skill).clamp(min=0.0)
    middle = skill.clamp(EDGE, 1 - EDGE)
    return middle - EDGE * torch.expm1(-above / EDGE) + EDGE * torch.expm1(-below / EDGE)
