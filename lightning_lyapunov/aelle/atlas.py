"""The networks of the bank as an autoencoder sees them: what a run's path is drawn over, without loading the bank.

The file that ships holds those of the general scorer's first autoencoder. ``python -m lightning_lyapunov.bank.atlas``
makes it from bank and weights: again where either has changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.files import reading, require, write_tensors

FORMAT = "lightning_lyapunov.atlas/1"
NETWORKS = 800
"""Of the bank, evenly spaced over it; each makes two points."""
_MADE_BY = "made by"


@dataclass(frozen=True, eq=False)
class Atlas:
    """The codes of networks, seen along their two principal directions."""

    points: Tensor
    """(N, 2): networks before the first update, and after the last."""
    skill: Tensor
    """(N,) what each reached in the end, in [0, 1]."""
    projection: Tensor
    """(L, 2): the principal directions, orthonormal columns."""
    centre: Tensor
    """(L,) the mean code."""

    def place(self, latent: Tensor) -> Tensor:
        """(..., 2) of codes (..., L)."""
        return (latent.double() - self.centre) @ self.projection

    def save(self, path: Path, made_by: str) -> None:
        """Write one safetensors file.

        Args:
            path: Of the file.
            made_by: :func:`fingerprint` of what made the codes.
        """
        write_tensors(path, dict(vars(self)), {FORMAT: "", _MADE_BY: made_by})

    @staticmethod
    def shipped(made_by: str) -> Atlas | None:
        """The one that comes with the package; None if something else made its codes.

        Raises:
            ValueError: If the file is not as it was written.
        """
        shipped = files("lightning_lyapunov.aelle") / "atlas.safetensors"
        with as_file(shipped) as path, reading(path, FORMAT) as (tensors, metadata):
            if metadata.get(_MADE_BY) != made_by:
                return None
            count, size = len(tensors["points"]), len(tensors["centre"])
            shapes = {"points": (count, 2), "projection": (size, 2), "centre": (size,)}
            expected = {key: (torch.float64, shape) for key, shape in shapes.items()}
            require(tensors, {**expected, "skill": (torch.float32, (count,))})
            return Atlas(**tensors)


def fingerprint(model: AeLLE, scale: float) -> str:
    """Tells autoencoders apart, and where they squash exponents: the same if their codes of all spectra are."""
    digest = hashlib.sha256(repr(scale).encode())
    for key, value in sorted(model.state_dict().items()):
        if key.startswith(("encoder.", "centre", "spread")):
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
