"""The networks of the bank as an autoencoder sees them: what a run's path is drawn over, without loading the bank.

The file that ships holds spectra of networks of the bank, before training and at its end, and how well they did; which
``python -m lightning_lyapunov.bank.atlas`` writes. Any scorer's autoencoder makes its own map of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.features import LEVELS, SCALE, Rows, exponents_of, squash
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.atlas/2"
NETWORKS = 800
"""Of the bank, evenly spaced over it; each makes two points."""
SHIPPED = files("lightning_lyapunov.aelle") / "atlas.safetensors"


@dataclass(frozen=True, eq=False)
class Atlas:
    """The codes of networks, seen along their two principal directions."""

    points: Tensor
    """(2N, 2): networks before the first update, and after the last."""
    skill: Tensor
    """(2N,) what each reached in the end, in [0, 1]."""
    projection: Tensor
    """(L, 2): the principal directions, orthonormal columns."""
    centre: Tensor
    """(L,) the mean code."""

    def place(self, latent: Tensor) -> Tensor:
        """(..., 2) of codes (..., L)."""
        return (latent.double() - self.centre) @ self.projection

    @staticmethod
    def of(model: AeLLE, scale: float, networks: int = NETWORKS) -> Atlas:
        """The map that an autoencoder makes of the networks that ship, in some hundredths of a second.

        Args:
            model: The autoencoder.
            scale: Where its scorer squashes exponents, nats per step.
            networks: How many, evenly spaced over those that ship.

        Raises:
            ValueError: If ``networks`` is not positive, the codes have fewer than two values, or the file is not as it
                was written.
        """
        if networks < 1:
            raise ValueError(f"networks must be at least 1; got {networks}.")
        spectra, skill = known_networks()
        count = len(skill)
        chosen = torch.linspace(0, count - 1, min(networks, count)).round().long()
        exponents = exponents_of(spectra[:, chosen].flatten(0, 1))
        rows = Rows.unknown(len(exponents))
        with torch.no_grad():
            code = model(Rows(squash(exponents, scale), rows.context)).latent.double()
        if code.shape[1] < 2:
            raise ValueError(f"scorer must have codes of at least 2 values to make a map of; got {code.shape[1]}.")
        centre = code.mean(0)
        _, _, directions = torch.linalg.svd(code - centre, full_matrices=False)
        projection = directions[:2].T * directions[:2].sum(1).sign()  # which alone tells a map from its mirror image
        return Atlas((code - centre) @ projection, skill[chosen].repeat(2), projection, centre)


def known_networks() -> tuple[Tensor, Tensor]:
    """Squashed spectra ``(2, N, LEVELS + 1)`` of networks before training and at its end, and final skills (N,)."""
    with as_file(SHIPPED) as path, reading(path, FORMAT) as (tensors, _):
        count = len(tensors["skill"])
        shape = (2, count, LEVELS + 1)
        require(tensors, {"spectra": (torch.float16, shape), "skill": (torch.float32, (count,))})
        return tensors["spectra"].float(), tensors["skill"]


def write_networks(path: Path, spectra: Tensor, skill: Tensor) -> None:
    """Write what :func:`known_networks` reads."""
    write_tensors(path, {"spectra": spectra.half(), "skill": skill}, {FORMAT: f"squashed at {SCALE:g} nats per step"})
