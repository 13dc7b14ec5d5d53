"""Raw predictions from what is known of networks: autoencoders and ridges, and the skill so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, AeLLE
from lightning_lyapunov.aelle.calibration import KNOTS, Gate, Shares
from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows
from lightning_lyapunov.aelle.fitting import Ridge, ridge_features
from lightning_lyapunov.aelle.ranges import Ranges
from lightning_lyapunov.aelle.single import Single, gated

SKILL, FAILURE, TAKEOFF, STABILITY = range(len(HEADS))
RIDGES = ("context", "context+skill", "spectrum", "spectrum+skill")
_KNOWN = tuple(name for name in CONTEXT if name != "skill")


@dataclass(frozen=True, eq=False)
class Heads:
    """Raw predictions: autoencoders and a ridge, each used as far as it proved better on networks it had not seen."""

    models: Sequence[AeLLE]
    ridges: Mapping[str, Ridge]
    shares: Shares = field(default_factory=lambda: Shares.equal(len(HEADS)))
    """Of the autoencoders in the mean of the two."""
    prior: Heads | None = None
    """Another scorer's heads, whose predictions the ridge sees as features."""
    ranges: Ranges = field(default_factory=Ranges.unknown)
    """What they were fitted on; rows must be brought within."""

    @cached_property
    def _single(self) -> Single | None:
        return Single(self.models, self.ridges, self.shares) if Single.takes(self.models) else None

    def __call__(self, rows: Rows) -> Tensor:
        """``(R, len(HEADS))`` in [0, 1], from whatever is known of the rows."""
        if len(rows) == 1 and self.prior is None and self._single is not None:
            return _like(rows, self._single(rows.spectrum, rows.context))
        said = torch.lerp(self.by_ridge(rows), self.by_model(rows), self.shares(rows))
        # Where a head had nothing to learn from, as the stability where nobody measured it, the prior knows.
        return (
            said if self.prior is None else torch.where(said.isnan(), self.prior(self.prior.ranges.clamped(rows)), said)
        )

    def by_model(self, rows: Rows) -> Tensor:
        """What the autoencoders say on average."""
        with torch.no_grad():
            return torch.stack([model(rows).logits.sigmoid() for model in self.models]).mean(0)

    def completed(self, rows: Rows) -> Rows:
        """The rows with what a partial spectrum does not say as an autoencoder reconstructs it."""
        unknown = rows.spectrum.isnan()
        if not unknown.any():
            return rows
        if len(rows) == 1 and self._single is not None:
            made = _like(rows, self._single.reconstruction(rows.spectrum))
        else:
            with torch.no_grad():
                made = self.models[0](rows).reconstruction
        return Rows(torch.where(unknown & ~unknown.all(1, keepdim=True), made, rows.spectrum), rows.context)

    def codes(self, rows: Rows) -> Tensor:
        """(R, L) the first autoencoder's codes."""
        if len(rows) == 1 and self._single is not None:
            return _like(rows, self._single.code(rows.spectrum))
        with torch.no_grad():
            return self.models[0](rows).latent

    def by_ridge(self, rows: Rows) -> Tensor:
        """What the ridge says: the one for what is known of a row."""
        has_spectrum = ~rows.spectrum[:, 0].isnan()
        has_skill = ~rows.context[:, CONTEXT.index("skill")].isnan()
        result = rows.spectrum.new_empty(len(rows), len(HEADS))
        for name, ridge in self.ridges.items():
            here = (has_spectrum == ("spectrum" in name)) & (has_skill == ("skill" in name))
            if here.any():
                result[here] = ridge(features_for(name, rows[here], self.prior))
        return result

    # ---------------------------------------------------------------- files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Everything, as a file of a scorer holds it under a name."""
        tensors = self.shares.tensors(f"{name}.shares") | self.ranges.tensors(f"{name}.ranges")
        tensors |= {} if self.prior is None else self.prior.tensors(f"{name}.prior")
        for i, model in enumerate(self.models):
            tensors |= {f"{name}.model.{i}.{key}": value for key, value in model.state_dict().items()}
        for kind, ridge in self.ridges.items():
            tensors |= ridge.tensors(f"{name}.ridge.{kind}")
        return tensors

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> Heads:
        """Those of a file, from under a name."""
        models: list[AeLLE] = []
        while _has_model(tensors, name, len(models)):
            prefix = f"{name}.model.{len(models)}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            models.append(AeLLE.from_state(state))
        return cls(
            models,
            {kind: Ridge.of(f"{name}.ridge.{kind}", tensors) for kind in RIDGES},
            Shares.of(f"{name}.shares", tensors),
            cls.of(f"{name}.prior", tensors) if _has_prior(tensors, name) else None,
            Ranges.of_file(f"{name}.ranges", tensors),
        )

    @classmethod
    def shapes(cls, name: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be, given those from which its own sizes are read."""
        shapes: dict[str, tuple[int, ...]] = {f"{name}.shares.table": (6, len(KNOTS), len(HEADS))}
        shapes |= Ranges.shapes(f"{name}.ranges", tensors)
        more = 0
        if _has_prior(tensors, name):
            shapes |= cls.shapes(f"{name}.prior", tensors)
            more = STABILITY  # the prior's predictions, as features
        nothing = Rows(torch.full((1, LEVELS + 1), math.nan), torch.full((1, len(CONTEXT)), math.nan))
        for kind in RIDGES:
            size = features_for(kind, nothing, None).shape[1] + more
            ridge = f"{name}.ridge.{kind}"
            shapes |= {f"{ridge}.centre": (size,), f"{ridge}.spread": (size,)}
            shapes[f"{ridge}.coefficients"] = (size + 1, len(HEADS))
        models = 0
        while models == 0 or _has_model(tensors, name, models):
            latent, width = tensors[f"{name}.model.{models}.encoder.2.weight"].shape
            with torch.device("meta"):
                weights = AeLLE(latent, width).state_dict()
            shapes |= {f"{name}.model.{models}.{key}": tuple(weight.shape) for key, weight in weights.items()}
            models += 1
        return shapes


def _like(rows: Rows, values: np.ndarray[Any, Any]) -> Tensor:
    """(1, n) what was said of a single row, as tensors hold it."""
    return torch.from_numpy(values).to(rows.spectrum.dtype).unsqueeze(0)


def _has_model(tensors: Mapping[str, Tensor], name: str, number: int) -> bool:
    return any(key.startswith(f"{name}.model.{number}.") for key in tensors)


def _has_prior(tensors: Mapping[str, Tensor], name: str) -> bool:
    return any(key.startswith(f"{name}.prior.") for key in tensors)


def features_for(name: str, rows: Rows, prior: Heads | None) -> Tensor:
    """What the ridge of a name sees of rows."""
    known = CONTEXT if "skill" in name else _KNOWN
    features = ridge_features(rows, spectrum="spectrum" in name, context=known)
    return features if prior is None else torch.cat([features, prior(prior.ranges.clamped(rows))[:, :STABILITY]], 1)


def predicted_performance(
    heads: Heads, gate: Gate, rows: Rows, average: Tensor | None = None, belief: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Predicted performance (R,), through the gate where the skill so far is known, and all heads ``(R, 4)``.

    Args:
        heads: Raw predictions.
        gate: What weighs them against the skill so far.
        rows: R rows.
        average: (4,) what is said of an average network.
        belief: (R,) how far the heads are believed rather than the average; entirely if None.
    """
    said = heads(rows)
    has_skill = ~rows.context[:, CONTEXT.index("skill")].isnan()
    is_told = bool(has_skill.any())
    without_it = heads(without_skill(rows)) if is_told else said
    if average is not None and belief is not None:
        said, without_it = (torch.lerp(average.expand_as(x), x, belief.unsqueeze(1)) for x in (said, without_it))
    without = without_it[:, SKILL]
    if not is_told:
        return without, said
    return gated(gate, without, rows) if len(rows) == 1 else torch.where(has_skill, gate(without, rows), without), said


def without_skill(rows: Rows) -> Rows:
    """The rows before anybody looked at how the networks do."""
    known = rows.context.clone()
    known[:, CONTEXT.index("skill")] = math.nan
    return Rows(rows.spectrum, known)


def without_spectrum(rows: Rows) -> Rows:
    """The rows before anybody measured a spectrum."""
    return Rows(torch.full_like(rows.spectrum, math.nan), rows.context)
