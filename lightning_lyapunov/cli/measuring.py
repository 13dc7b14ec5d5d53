"""A network's spectrum from inputs that are at hand: driven through the network, as in training, or straight away."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_lyapunov.cli.writing import one_line, tell
from lightning_lyapunov.probe import Probe
from lightning_lyapunov.spectrum import LyapunovSpectrum, lyapunov_spectrum

WHOLE = 2**31
"""Sequences, and steps of each, to record at most: all there are."""


def measured(
    network: nn.Module,
    layers: dict[str, nn.Module],
    inputs: Tensor,
    feed: Literal["model", "layer"],
    k: int | None,
    transient: int | None,
    interval: int | None,
    dtype: str | None,
) -> LyapunovSpectrum:
    """The union of the spectra of all layers that inputs reach."""
    parts: dict[str, LyapunovSpectrum] = {}
    for name, (layer, driving, state, steps) in _driven(network, layers, inputs, feed).items():
        spectrum = lyapunov_spectrum(
            layer,
            driving,
            state=state,
            k=k,
            transient=min(steps // 4, 32) if transient is None else transient,
            interval=interval,
            dtype=None if dtype is None else getattr(torch, dtype),
        )
        parts |= {f"{name}.{part}": value for part, value in spectrum.parts.items()} or {name: spectrum}
    return next(iter(parts.values())) if len(parts) == 1 else LyapunovSpectrum.union(parts, k)


def _driven(
    network: nn.Module, layers: dict[str, nn.Module], inputs: Tensor, feed: Literal["model", "layer"]
) -> dict[str, tuple[nn.Module, Any, Any, int]]:
    """Each layer with its inputs, its initial state and their number of steps."""
    weights = next(network.parameters(), torch.empty(0))
    inputs = inputs.to(weights.dtype) if inputs.is_floating_point() else inputs
    only = next(iter(layers.values()))
    if only is network or feed == "layer":
        if len(layers) > 1:
            raise ValueError(f"module must name the one layer that the inputs go to; there are {', '.join(layers)}.")
        steps = inputs.shape[1 if getattr(only, "batch_first", False) and inputs.dim() > 2 else 0]
        return {name or type(layer).__name__: (layer, inputs, None, steps) for name, layer in layers.items()}
    probes = {name: Probe(layer, WHOLE, WHOLE) for name, layer in layers.items()}
    for probe in probes.values():
        probe.begin_batch(keep_latest=False)
    try:
        with torch.no_grad():
            network(inputs)
    except Exception as error:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} could not go through {type(network).__name__}: {one_line(error)} "
            "--feed layer drives the recurrent layer itself."
        ) from error
    driven = {}
    for name, probe in probes.items():
        if not probe.has_recorded:
            tell(f"{name} is not measured: no inputs reached it in the forward pass.")
            continue
        packed, state, _ = probe.sequences()
        driven[name] = (probe.layer, packed, state, len(packed.batch_sizes))
        probe.remove()
    if not driven:
        raise ValueError("inputs: none reached a recurrent layer in the forward pass; --feed layer drives it itself.")
    return driven
