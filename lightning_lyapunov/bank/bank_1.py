"""The bank as it was before: one file of whole spectra at eight checkpoints, Adam alone, gradients always clipped."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import FLOOR
from lightning_lyapunov.bank.population import METRICS
from lightning_lyapunov.bank.probes import LEADING, LEVELS, MEASURED, quantile_function
from lightning_lyapunov.bank.records import LONG, MADE, Bank
from lightning_lyapunov.files import reading, require

FORMAT = "lightning_lyapunov.bank/1"
SHA256 = "bde3820aa5e73de0e439818924fba9efa3853bb884ab6367e8ab05fd47eb6a65"
"""Of the only such bank that was shipped, whose file holds no digest of its own."""
CHECKPOINTS = (0, 10, 40, 80, 160, 320, 560, 800)
SET_ASIDE = ("associate", "ring")
"""Families that nothing was based on while this was the only bank."""
SECOND = 3
"""Rows of a second probe, which one network in four has and nobody reads any more."""
ALIKE: dict[str, Any] = {"layers": 1, "optimizer": "adam", "clip": True, "warmup": 0}
"""How all its networks were made."""


def load(path: Path) -> Bank:
    """Read such a file.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is of another format, or not as it was written.
    """
    with reading(path, FORMAT, SHA256) as (tensors, metadata):
        networks = _networks(metadata)
        sizes, count, rows = [network["dimension"] for network in networks], len(networks), len(CHECKPOINTS)
        has_second = tensors["has_second"].tolist()
        second = sum(size for size, has in zip(sizes, has_second, strict=True) if has)
        require(
            tensors,
            {
                "spectra": (torch.float16, (rows * sum(sizes),)),
                "stderr": (torch.float16, (rows * 3 * count,)),
                "second": (torch.float16, (SECOND * second,)),
                "has_second": (torch.bool, (count,)),
                "metrics": (torch.float32, (count, rows, len(METRICS))),
                "final": (torch.float32, (count,)),
            },
        )
        if (tensors["spectra"] == math.inf).any():
            raise ValueError("exponents must be below infinity")
        pieces = tensors["spectra"].float().split([rows * size for size in sizes])
        spectra = [piece.view(rows, size) for piece, size in zip(pieces, sizes, strict=True)]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stderr = tensors["stderr"].float().view(count, rows, 3)  # the largest, the median, that of the largest exponent
        return _bank(networks, spectra, stderr, (tensors["metrics"], tensors["final"]), digest)


def _bank(
    networks: list[dict[str, Any]], spectra: list[Tensor], stderr: Tensor, ends: tuple[Tensor, Tensor], digest: str
) -> Bank:
    metrics, final = ends
    count, rows = len(networks), len(CHECKPOINTS)
    quantiles = torch.full((count, rows, LEVELS), math.nan)
    leading = torch.full((count, rows, LEADING), math.nan)
    measured = torch.full((count, rows, len(MEASURED)), math.nan)
    sizes = [spectrum.shape[1] for spectrum in spectra]
    for size in set(sizes):
        alike = [n for n in range(count) if sizes[n] == size]
        some = torch.stack([spectra[n] for n in alike])
        quantiles[alike] = quantile_function(some)
        leading[alike, :, :size] = some[..., :LEADING]
        measured[alike, :, MEASURED.index("mean")] = some.clamp(min=FLOOR).mean(-1)
    # Two standard errors stand for the half-width of a bar, of which this bank knows nothing else.
    measured[..., MEASURED.index("max_error")] = 2 * stderr[..., 2]
    measured[..., MEASURED.index("median_error")] = 2 * stderr[..., 1]
    return Bank(
        networks=networks,
        checkpoints=CHECKPOINTS,
        end=torch.full((count,), CHECKPOINTS[-1]),
        quantiles=quantiles,
        leading=leading,
        measured=measured,
        long_quantiles=torch.full((count, LONG, LEVELS), math.nan),
        long_leading=torch.full((count, LONG, LEADING), math.nan),
        long_measured=torch.full((count, LONG, len(MEASURED)), math.nan),
        layers=torch.full((count, rows, 2, 2), math.nan),
        metrics=metrics,
        final=final,
        set_aside=SET_ASIDE,
        digest=digest,
    )


def _networks(metadata: dict[str, str]) -> list[dict[str, Any]]:
    if metadata.keys() != {"format", "networks"}:
        raise ValueError(f"its metadata must be format and networks; got {', '.join(metadata)}")
    kinds = {key: kind for key, kind in MADE.items() if key not in ALIKE}
    networks = json.loads(metadata["networks"])
    if not isinstance(networks, list) or not networks:
        raise ValueError("networks must be a list, and not empty")
    for i, network in enumerate(networks):
        if {key: type(value) for key, value in network.items()} != kinds:
            wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items())
            raise ValueError(f"networks must each have {wanted}; number {i} has another")
        if min(network["hidden_size"], network["dimension"]) < 1:
            raise ValueError(f"networks must have a size of at least 1; number {i} has none")
    return [{**network, **ALIKE} for network in networks]
