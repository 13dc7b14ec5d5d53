"""A scorer of one's own: plain predictors fitted to a laboratory's own networks, begun from a general scorer.

It keeps what it was told of these networks, and fits again, in milliseconds, to as much of it as is known of the
network that is asked about: of a leading part of a spectrum, to the same part of theirs; without the kind of cell,
without theirs. So no predictor is ever asked about what it does not see, and the interval is that of such knowledge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED
from lightning_lyapunov.aelle.calibration import Worth
from lightning_lyapunov.aelle.features import (
    ARCHITECTURES,
    CONTEXT,
    LEVELS,
    SCALE,
    Context,
    Rows,
    Tensors,
    quantiles,
)
from lightning_lyapunov.aelle.fitting import FAILED, TOOK_OFF
from lightning_lyapunov.aelle.heads import FAILURE, SKILL, TAKEOFF
from lightning_lyapunov.aelle.knowledge import limited
from lightning_lyapunov.aelle.scorer import FORMAT, STRANGE, AeLLEScorer, Predictions
from lightning_lyapunov.aelle.stack import FEWEST, Groups
from lightning_lyapunov.aelle.views import FINE, Fit, OwnRows, resolved
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.files import write_tensors

TYPICAL = 0.7
"""Nats per step: about the median absolute exponent of the bank."""
OTHER_UNIT = 8.0
"""Times as large or as small as that, and the exponents must be in another unit than nats per step."""
LEAST = 8
"""Networks of which something can be learnt."""
CERTAIN = 1e-4
"""Probabilities of the prior nearer to 0 or 1 count as this."""
WIDEST = 0.96
"""Share of one's own networks in the interval of a network of which nothing is known."""
LARGEST = 100.0
"""Squashed exponents beyond are no logarithms of anything that a float32 holds."""
REMEMBERED = 32
"""States of knowledge whose fits are kept."""


class General:
    """A general scorer as a prior.

    Args:
        scorer: Asked about rows within its own ranges.
    """

    def __init__(self, scorer: AeLLEScorer) -> None:
        self._heads = scorer.heads

    def logits(self, rows: Rows) -> Tensor:
        """(R, 3) of skill, failure, take-off."""
        said = self._heads(self._heads.ranges.clamped(rows))[:, :RANKED]
        return said.double().clamp(CERTAIN, 1 - CERTAIN).logit()

    def codes(self, rows: Rows) -> Tensor:
        """(R, L)."""
        return self._heads.codes(self._heads.ranges.clamped(rows)).double()


@dataclass(frozen=True, eq=False)
class Own(Tensors):
    """A laboratory's own networks, as a file holds them."""

    spectrum: Tensor
    """(n, LEVELS + 1)."""
    context: Tensor
    """(n, len(CONTEXT))."""
    fine: Tensor
    """(n, FINE)."""
    skill: Tensor
    """(n,) from 0, the worst of them, to 1."""
    group: Tensor
    """(n,) whole numbers: rows of one network have the same."""

    @property
    def rows(self) -> OwnRows:
        """What is known of them."""
        return OwnRows(self.spectrum, self.context, self.fine)

    @staticmethod
    def shapes(name: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be."""
        count = tensors[f"{name}.skill"].numel()
        sizes: dict[str, tuple[int, ...]] = {
            "spectrum": (count, LEVELS + 1), "context": (count, len(CONTEXT)), "fine": (count, FINE),
            "skill": (count,), "group": (count,),
        }  # fmt: skip
        return {f"{name}.{key}": size for key, size in sizes.items()}

    def require_possible(self) -> None:
        """Refuse numbers that no fit leaves.

        Raises:
            ValueError: Naming what is wrong.
        """
        if len(self.skill) < LEAST or len(self.group.unique()) < 2:
            raise ValueError(f"own must hold at least {LEAST} networks, of 2 groups or more")
        ends = float(self.skill.min()), float(self.skill.max())
        if not self.skill.isfinite().all() or ends != (0.0, 1.0):
            raise ValueError(f"own.skill must be finite and go from 0 to 1; got {ends[0]:g} to {ends[1]:g}")
        if not self.group.isfinite().all():
            raise ValueError("own.group must hold finite numbers")
        if self.context.isinf().any():
            raise ValueError("own.context must hold finite numbers, or NaN where unknown")
        if any((part.abs() > LARGEST).any() for part in (self.spectrum, self.fine)):
            raise ValueError(f"own.spectrum and own.fine must lie between -{LARGEST:g} and {LARGEST:g}, or be NaN")
        if self.spectrum[:, 0].isnan().any() or self.fine[:, 0].isnan().any():
            raise ValueError("own.spectrum and own.fine must know the largest exponents")


class OwnScorer(AeLLEScorer):
    """A scorer of one's own; see :meth:`AeLLEScorer.fit`.

    Args:
        general: What it begins from.
        own: One's own networks.
        card: What scores are made from: performance_range, scale, kinds.
    """

    def __init__(self, general: AeLLEScorer, own: Own, card: Mapping[str, Any]) -> None:
        ranges = type(general.heads.ranges).fit(own.rows).joined(general.heads.ranges)
        super().__init__(
            replace(general.heads, ranges=ranges), general.intervals, general.familiarity.joined_by(own.rows),
            Worth.unknown(), general.average, card,
        )  # fmt: skip
        self.general, self.own, self.prior = general, own, General(general)
        self._skill, self._groups = own.skill.double(), Groups.of(own.group)
        self._usable = 2 * own.rows.known.sum(0) >= len(own.skill)
        self._fits: dict[bytes, Fit] = {}

    def fit_for(self, known: Tensor) -> Fit:
        """The stack for networks of which only the columns known are known (LEVELS + 1 + C + FINE,)."""
        known = known & self._usable
        key = known.numpy().tobytes()
        if key not in self._fits:
            if len(self._fits) >= REMEMBERED:
                self._fits.clear()
            self._fits[key] = Fit(self.own.rows.masked(known), self._skill, self._groups, self.prior)
        return self._fits[key]

    def _said(self, rows: OwnRows) -> Tensor:
        """(R, 5) by the fits for what is known of each row."""
        patterns, which = (rows.known & self._usable).unique(dim=0, return_inverse=True)
        result = torch.empty(len(rows), 5, dtype=torch.float64)
        for number, known in enumerate(patterns):
            here = which == number
            result[here] = self.fit_for(known)(rows[here].masked(known))
        return result.to(rows.spectrum.dtype)

    def predict(self, rows: Rows, is_unknown_kind: Tensor | None = None) -> Predictions:
        """See :meth:`AeLLEScorer.predict`."""
        rows = OwnRows.of(rows)
        unknown = torch.zeros(len(rows), dtype=torch.bool) if is_unknown_kind is None else is_unknown_kind
        ordinary = self.familiarity(self.heads.completed(self.heads.ranges.clamped(rows)), unknown)
        share = self.heads.ranges.share(rows)
        said = self._said(rows)
        blind = self._said(OwnRows.of(limited(rows, part="none")))
        baseline = blind.new_full((len(rows), len(HEADS)), math.nan)
        baseline[:, [SKILL, FAILURE, TAKEOFF]] = blind[:, [0, 3, 4]]
        # Of a spectrum unlike any known, no more is said than of an average network.
        average = torch.stack([self.own.skill.mean(), *self.average_odds])
        belief = (ordinary / STRANGE).clamp(max=1.0).unsqueeze(1)
        said[:, [0, 3, 4]] = torch.lerp(average.expand(len(rows), 3), said[:, [0, 3, 4]], belief)
        performance, failure = said[:, 0], said[:, 3]
        sure = (ordinary / 0.5).clamp(max=1.0) * share
        low, high = (
            torch.lerp(torch.minimum(end, widest) if k == 0 else torch.maximum(end, widest), end, sure)
            for k, (end, widest) in enumerate(zip(said[:, 1:3].unbind(1), self._widest, strict=True))
        )
        return Predictions(
            performance=performance,
            low=torch.minimum(low, performance),
            high=torch.maximum(high, performance),
            failure=failure,
            takeoff=torch.minimum(said[:, 4], 1 - failure),
            stability=torch.full_like(performance, math.nan),
            familiarity=ordinary * share,
            ordinary=ordinary,
            latent=self.heads.codes(rows),
            baseline=baseline,
            speaks=self.worth.speaks(rows),
        )

    @property
    def average_odds(self) -> tuple[Tensor, Tensor]:
        """Shares of one's own networks that failed, and that took off."""
        return (self.own.skill < FAILED).float().mean(), (self.own.skill > TOOK_OFF).float().mean()

    @property
    def _widest(self) -> tuple[Tensor, Tensor]:
        return self.own.skill.quantile((1 - WIDEST) / 2), self.own.skill.quantile((1 + WIDEST) / 2)

    # ---------------------------------------------------------------- rows

    def _row(self, spectrum: LyapunovSpectrum | Tensor, context: Context) -> OwnRows:
        """One row of a spectrum, at full resolution too, and of what else is known."""
        row, scale = super()._row(spectrum, context), float(self.card["scale"])
        exponents, dimension = (
            (spectrum, None) if isinstance(spectrum, Tensor) else (spectrum.exponents, spectrum.dimension)
        )
        return OwnRows(row.spectrum, row.context, resolved(exponents, dimension, scale).unsqueeze(0))

    # ---------------------------------------------------------------- files

    @staticmethod
    def of(general: AeLLEScorer, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> OwnScorer:
        """The scorer of a file, given the general one in it and the tensors of :meth:`Own.shapes`.

        Raises:
            ValueError: If these are not as a fit leaves them.
        """
        own = Own.of("own", tensors)
        own.require_possible()
        return OwnScorer(general, own, card)

    def save(self, path: str | Path) -> None:
        """See :meth:`AeLLEScorer.save`."""
        general = self.general
        tensors = general.heads.tensors("heads") | {"average": general.average} | self.own.tensors("own")
        for name, part in general._calibration().items():
            tensors |= part.tensors(name)
        write_tensors(Path(path), tensors, {FORMAT: json.dumps(self.card)})


def fit_own(
    spectra: Sequence[Tensor],
    performance: Sequence[float] | Tensor,
    *,
    metric: Sequence[float | None] | None = None,
    groups: Sequence[object] | None = None,
    general: AeLLEScorer | None = None,
    **told: Any,
) -> OwnScorer:
    """See :meth:`AeLLEScorer.fit`.

    Args:
        spectra: Of each network.
        performance: In the end.
        metric: Performance so far.
        groups: The network that each spectrum is of.
        general: What to begin from; the pretrained one if None.
        told: What else :class:`Context` takes, of all or of each.
    """
    count = len(spectra)
    if count < LEAST:
        raise ValueError(f"spectra must be at least {LEAST}, or nothing can be learnt; got {count}.")
    ends = torch.as_tensor(performance, dtype=torch.float64)
    if ends.shape != (count,):
        raise ValueError(f"performance must hold one number for each of the {count} spectra; got {tuple(ends.shape)}.")
    if not ends.isfinite().all() or ends.min() == ends.max():
        raise ValueError("performance must be finite and not all the same.")
    worst, best = float(ends.min()), float(ends.max())

    def each(name: str, values: Any) -> list[Any]:
        if values is None or isinstance(values, str | int | float):
            return [values] * count
        if len(values) != count:
            raise ValueError(f"{name} must hold one entry for each of the {count} spectra; got {len(values)}.")
        return list(values)

    facts = {name: each(name, values) for name, values in told.items()}
    facts["skill"] = [None if m is None else (float(m) - worst) / (best - worst) for m in each("metric", metric)]
    facts["skill"] = [None if s is None else min(max(s, 0.0), 1.0) for s in facts["skill"]]
    names = list(range(count)) if groups is None else each("groups", list(groups))
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(numbers) < 2:
        raise ValueError(f"groups must name at least 2 networks, or none can be left out; got {len(numbers)}.")
    scale = scale_of(spectra)
    contexts = [Context(**dict(zip(facts, values, strict=True))) for values in zip(*facts.values(), strict=True)]
    own = Own(
        torch.stack([quantiles(spectrum, scale=scale) for spectrum in spectra]),
        torch.stack([context.values() for context in contexts]),
        torch.stack([resolved(spectrum, scale=scale) for spectrum in spectra]),
        ((ends - worst) / (best - worst)).float(),
        torch.tensor([numbers[name] for name in names], dtype=torch.float32),
    )
    kinds = {kind.lower() for kind in facts.get("architecture", []) if kind is not None}
    card = {
        "name": "own",
        "networks": len(numbers),
        "performance_range": [worst, best],
        "scale": scale,
        "kinds": sorted({*ARCHITECTURES, *kinds}),
    }
    general = general or AeLLEScorer.from_pretrained()
    scorer = OwnScorer(general, own, {**card, "prior": str(general.card.get("name", ""))})
    scorer.card["stack"] = report(scorer)
    return scorer


def scale_of(spectra: Sequence[Tensor]) -> float:
    """Where exponents are squashed: another unit than nats per step shows in sizes that no network of the bank has."""
    sizes = torch.cat([s.detach().double().cpu()[s.detach().cpu().isfinite()] for s in spectra]).abs()
    ratio = float(sizes.median()) / TYPICAL if len(sizes) else 1.0
    return SCALE if 1 / OTHER_UNIT <= ratio <= OTHER_UNIT else SCALE * ratio


def report(scorer: OwnScorer) -> dict[str, Any]:
    """What was chosen and why, for networks of which as much is known as of one's own: plain values."""
    stack, skill = scorer.fit_for(scorer._usable).stack, scorer.own.skill.double()
    count = scorer.card["networks"]
    told = {
        name: {
            "weight": round(float(weight), 3),
            "penalty": float(f"{candidate.penalty:.3g}"),
            "error left out": round(_root(skill - candidate.left_out), 4),
        }
        for (name, candidate), weight in zip(stack.candidates.items(), stack.weights, strict=True)
    }
    alone = (
        f"the prior alone, since {count} networks are fewer than {FEWEST}: below, nothing fitted to them ranks as well"
    )
    weighed = (
        f"a sum of {int((stack.weights > 0.005).sum())} candidates: weights by least squares on groups left out, "
        "shrunk towards the prior alone; the error is a root mean square, of skills from 0 to 1"
    )
    return {
        "chosen": alone if len(told) == 1 else weighed,
        "candidates": told,
        "error left out": round(_root(stack.residuals), 4),
        "error of the mean": round(float(skill.std()), 4),
    }


def _root(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())
