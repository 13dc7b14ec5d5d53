"""Make the atlas: ``python -m lightning_lyapunov.bank.atlas``, once bank or general scorer have changed."""

from __future__ import annotations

import math
from importlib.resources import as_file, files
from pathlib import Path

import torch

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.aelle.atlas import NETWORKS, Atlas, fingerprint
from lightning_lyapunov.aelle.features import CONTEXT, Rows, quantiles
from lightning_lyapunov.bank.records import Bank


def atlas_of_bank(scorer: AeLLEScorer, networks: int = NETWORKS) -> Atlas:
    """Encode networks of the bank that comes with the package by a scorer's first autoencoder, in about a second.

    The code depends on the spectrum alone, and the same scorer gives the same atlas.

    Args:
        scorer: Whose codes they are.
        networks: How many, evenly spaced over the bank; each makes two points.

    Raises:
        ValueError: If ``networks`` is not positive, or the scorer's codes have fewer than two values.
    """
    if networks < 1:
        raise ValueError(f"networks must be at least 1; got {networks}.")
    with as_file(files("lightning_lyapunov.bank").joinpath("bank.safetensors")) as path:
        bank = Bank.load(path)
    chosen = torch.linspace(0, len(bank) - 1, min(networks, len(bank))).round().long().tolist()
    scale = float(scorer.card["scale"])
    spectra = torch.stack([quantiles(bank.spectra[i][c], scale=scale) for c in (0, -1) for i in chosen])
    with torch.no_grad():
        code = scorer.heads.models[0](Rows(spectra, torch.full((len(spectra), len(CONTEXT)), math.nan))).latent
    if code.shape[1] < 2:
        raise ValueError(f"scorer must have codes of at least 2 values to make a map of; got {code.shape[1]}.")
    centre = code.double().mean(0)
    _, _, directions = torch.linalg.svd(code.double() - centre, full_matrices=False)
    projection = directions[:2].T * directions[:2].sum(1).sign()  # which alone tells a map from its mirror image
    skill = bank.skill(bank.final)[chosen].repeat(2)
    return Atlas((code - centre) @ projection, skill, projection, centre)


def write_atlas(path: Path) -> None:
    """Write the atlas of the general scorer."""
    scorer = AeLLEScorer.from_pretrained()
    atlas_of_bank(scorer).save(path, fingerprint(scorer.heads.models[0], float(scorer.card["scale"])))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    with as_file(files("lightning_lyapunov.aelle") / "atlas.safetensors") as path:
        write_atlas(path)
