"""Raw predictions from what is known of networks: autoencoders and ridges, and the skill so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED, AeLLE
from lightning_lyapunov.aelle.combining import PREDICTORS, Combination, predictors
from lightning_lyapunov.aelle.features import Rows
from lightning_lyapunov.aelle.knowledge import KNOTS, STATES
from lightning_lyapunov.aelle.ranges import Ranges
from lightning_lyapunov.aelle.ridge import Ridges

SKILL, FAILURE, TAKEOFF, STABILITY = range(len(HEADS))


@dataclass(frozen=True, eq=False)
class Heads:
    """Predictions: autoencoders and ridges, each used as far as it proved better on networks it had not seen."""

    models: Sequence[AeLLE]
    ridges: Ridges
    combination: Combination = field(default_factory=Combination.unfitted)
    ranges: Ranges = field(default_factory=Ranges.unknown)
    """What they were fitted on; rows must be brought within."""

    def __call__(self, rows: Rows) -> Tensor:
        """``(R, len(HEADS))`` in [0, 1], from whatever is known of the rows."""
        return self.combination(self.predictors(rows), rows)

    def predictors(self, rows: Rows) -> Tensor:
        """``(R, len(HEADS), PREDICTORS)`` what the autoencoders, on average, the ridge and the skill so far say."""
        with torch.no_grad():
            said = [model(rows) for model in self.models]
        levels = torch.stack([one.logits for one in said]).mean(0)
        ranks = torch.cat([torch.stack([one.ranks for one in said]).mean(0), levels[:, RANKED:]], 1)
        return predictors(ranks, self.ridges(rows), rows)

    def completed(self, rows: Rows) -> Rows:
        """The rows with what a partial spectrum does not say as an autoencoder reconstructs it."""
        if not rows.spectrum.isnan().any():
            return rows
        with torch.no_grad():
            return Rows(self.models[0].completed(rows.spectrum), rows.context)

    def codes(self, rows: Rows) -> Tensor:
        """(R, L) the first autoencoder's codes."""
        with torch.no_grad():
            return self.models[0](rows).latent

    # ---------------------------------------------------------------- files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Everything, as a file of a scorer holds it under a name."""
        tensors = self.combination.tensors(f"{name}.combination") | self.ranges.tensors(f"{name}.ranges")
        for i, model in enumerate(self.models):
            tensors |= {f"{name}.model.{i}.{key}": value for key, value in model.state_dict().items()}
        return tensors | self.ridges.tensors(f"{name}.ridge")

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> Heads:
        """Load the heads stored under prefix ``name``."""
        models: list[AeLLE] = []
        while _has_model(tensors, name, len(models)):
            prefix = f"{name}.model.{len(models)}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            models.append(AeLLE.from_state(state))
        return cls(
            models,
            Ridges.of(f"{name}.ridge", tensors),
            Combination.of(f"{name}.combination", tensors),
            Ranges.of(f"{name}.ranges", tensors),
        )

    @classmethod
    def shapes(cls, name: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be, given those from which its own sizes are read."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.combination.table": (STATES, len(KNOTS), len(HEADS), 1 + len(PREDICTORS)),
            **Ranges.shapes(f"{name}.ranges"),
            **Ridges.shapes(f"{name}.ridge"),
        }
        models = 0
        while models == 0 or _has_model(tensors, name, models):
            prefix = f"{name}.model.{models}."
            sizes = AeLLE.sizes({key.removeprefix(prefix): value for key, value in tensors.items()})
            with torch.device("meta"):
                weights = AeLLE(*sizes).state_dict()
            shapes |= {f"{prefix}{key}": tuple(weight.shape) for key, weight in weights.items()}
            models += 1
        return shapes


def _has_model(tensors: Mapping[str, Tensor], name: str, number: int) -> bool:
    return any(key.startswith(f"{name}.model.{number}.") for key in tensors)
