"""What is kept of one measurement across depth: plain values that a checkpoint can carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.names_depth import MOST_BLOCKS
from lightning_lyapunov.reading.kept import Kept

FLOOR = -100.0
"""Nats. A growth below is counted as floored: logged as −100."""


@dataclass(frozen=True)
class DepthMeasurement(Kept):
    """One measurement of a chain of D blocks, made in the course of a run."""

    step: int
    """The Trainer's ``global_step``: updates made before it."""
    epoch: int
    """Epoch in which it was made; the one before the first update has epoch 0 as well, and step 0."""
    metrics: dict[str, float]
    """What was logged, by name, as in :data:`lightning_lyapunov.names_depth.QUANTITIES`: without the prefix."""
    names: list[str]
    """Of the D blocks, as in the model, from the first that the input meets."""
    dimensions: list[int]
    """Widths of the D + 1 states: before the first block and after each."""
    log_singular_values: Tensor
    """(k,) leading ln σ of the product of all Jacobians, nats, largest first; −∞ beyond the rank."""
    error: Tensor
    """(k,) half-widths of their 95 % bars, nats."""
    trusted: Tensor
    """(k,) bool: the iteration has settled them."""
    block_gain: Tensor
    """(D,) gain of each block by itself, nats; −∞ where it passes nothing on."""
    block_gain_error: Tensor
    """(D,) half-widths of their 95 % bars, nats."""
    block_change: Tensor
    """(D,) ln of the share by which each block changes what passes it, root mean square; −∞ where it passes everything
    on unchanged, NaN where it changes the width."""
    contributions: Tensor
    """(D,) what each block adds to the largest growth, nats; they sum to it."""
    kinds: list[str] = field(default_factory=list)
    """Class of each block, as ``BasicBlock``; empty where not known."""
    source: str = ""
    """Whose samples reached the chain: ``validation`` or ``training`` data; empty where that is not known."""
    samples: int | None = None
    """Samples measured."""
    seen: int | None = None
    """Samples in the batch that was recorded; None where that is not known."""
    fewer: str = ""
    """How much less was measured than seen, and why."""
    normalisation: str = ""
    """Of BatchNorm, if there is any: ``batch``, measured with the statistics of the recorded batch, or ``running``."""
    conditional: str = ""
    """Names of blocks that were given states of the chain as constants, as a decoder its skips; empty if none."""
    masked: float = 0.0
    """Share of the state's coordinates left out, as tokens behind a mask."""

    @classmethod
    def of(
        cls,
        spectrum: DepthSpectrum,
        *,
        step: int = 0,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
        kinds: Sequence[str] = (),
        source: str = "",
        seen: int | None = None,
        fewer: str = "",
        masked: float = 0.0,
    ) -> DepthMeasurement:
        """What is kept of a spectrum.

        Args:
            spectrum: As measured, on whatever device.
            step: Updates made before it.
            epoch: In which it was made.
            metrics: What else is logged of it beside :func:`depth_features`, as ``seconds``, by name without prefix.
            kinds: Class of each block.
            source: Whose samples they were.
            seen: Samples that were seen.
            fewer: How much less was measured than seen, and why.
            masked: Share of the state's coordinates left out.
        """
        return cls(
            step,
            epoch,
            metrics={**depth_features(spectrum), **(metrics or {})},
            names=list(spectrum.names),
            dimensions=list(spectrum.dimensions),
            log_singular_values=_kept(spectrum.log_singular_values),
            error=_kept(spectrum.error),
            trusted=spectrum.trusted.cpu(),
            block_gain=_kept(spectrum.block_gain),
            block_gain_error=_kept(spectrum.block_gain_error),
            block_change=_kept(spectrum.block_change),
            contributions=_kept(spectrum.contributions[:, 0]),
            kinds=list(kinds),
            source=source,
            samples=spectrum.samples,
            seen=seen,
            fewer=fewer,
            normalisation=spectrum.normalisation,
            conditional=", ".join(spectrum.conditional),
            masked=masked,
        )

    def __repr__(self) -> str:
        from lightning_lyapunov.reading.words import plus_minus  # which reads measurements

        total, gain = plus_minus(*self.total), plus_minus(*self.gain)
        return (
            f"DepthMeasurement(update {self.step:,}, epoch {self.epoch}: largest growth {total} nats over {self.depth} "
            f"blocks, gain {gain})"
        )

    @property
    def depth(self) -> int:
        """D, the number of blocks."""
        return len(self.names)

    @property
    def total(self) -> tuple[float, float]:
        """The largest growth ln σ₁ and its error, nats; NaN where not known."""
        if not len(self.log_singular_values):
            return math.nan, math.nan
        return float(self.log_singular_values[0]), float(self.error[0])

    @property
    def gain(self) -> tuple[float, float]:
        """The gain of the chain and its error, nats; NaN where not known."""
        return self.metrics.get("gain", math.nan), self.metrics.get("gain_error", math.nan)


def depth_features(spectrum: DepthSpectrum) -> dict[str, float]:
    """The numbers that a measurement across depth is summarised by, named as the callback logs them.

    Returns:
        ``total``, ``total_error``, ``total_stderr``, ``gain``, ``gain_error``, ``typical``, ``anisotropy``,
        ``state_growth``, ``block_gain_max``, ``block_gain_min`` (nats); ``max`` (nats per block);
        ``trusted_fraction`` (share of the growths measured), ``floored`` (their number); and ``<block>/gain`` (nats)
        of up to 64 blocks. Unknown values are NaN. What each means stands in
        :data:`lightning_lyapunov.names_depth.QUANTITIES`.
    """
    gains = [float(gain) for gain in spectrum.block_gain]
    known = [gain for gain in gains if not math.isnan(gain)]
    return {
        "total": float(spectrum.log_singular_values[0]),
        "total_error": float(spectrum.error[0]),
        "total_stderr": float(spectrum.stderr[0]),
        "max": float(spectrum.exponents[0]),
        "gain": spectrum.gain,
        "gain_error": spectrum.gain_error,
        "typical": spectrum.typical,
        "anisotropy": spectrum.anisotropy,
        "state_growth": spectrum.state_growth,
        "block_gain_max": max(known, default=math.nan),
        "block_gain_min": min(known, default=math.nan),
        "trusted_fraction": float(spectrum.trusted.double().mean()),
        "floored": float((spectrum.log_singular_values <= FLOOR).sum()),
        **{f"{spectrum.names[place]}/gain": gains[place] for place in evenly(len(gains), MOST_BLOCKS)},
    }


def evenly(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly, the first and the last among them.

    Example:
        >>> evenly(3, 5), evenly(9, 3)
        ([0, 1, 2], [0, 4, 8])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _kept(values: Tensor) -> Tensor:
    """As a checkpoint holds it: float32 on the CPU, and no view of more."""
    return values.detach().to("cpu", torch.float32, copy=True)
