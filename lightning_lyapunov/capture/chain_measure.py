"""The spectrum of a chain that was recorded."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_lyapunov.capture.chain_blocks import measuring_blocks
from lightning_lyapunov.capture.chain_probe import ChainProbe
from lightning_lyapunov.engine.depth import DepthSettings, measure_depth
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum


def measure_recorded(
    probe: ChainProbe, samples: int | None, settings: DepthSettings, dtype: torch.dtype | None
) -> tuple[DepthSpectrum, float]:
    """Measure the blocks that a probe has found, at what reached them.

    Args:
        probe: That has recorded a batch.
        samples: Rows at most; all that were kept if None.
        settings: What to measure.
        dtype: In which; that of the states, float32 at least, if None.

    Returns:
        The spectrum; and the share of the states' tokens that do not count, behind a mask.

    Raises:
        ValueError: If there is no chain, nothing was recorded, or it cannot be measured.
    """
    blocks, state, alive = probe.states(samples)
    kind = dtype or state.dtype
    with measuring_blocks(blocks, kind, state.device):
        spectrum = measure_depth(blocks, state.to(kind), settings, alive=alive)
    how = {block.normalisation for block in blocks}
    normalisation = next((one for one in ("batch", "running") if one in how), "")
    masked = 0.0 if alive is None else 1.0 - float(alive.double().mean())
    return replace(spectrum, conditional=probe.plan.conditional, normalisation=normalisation), masked
