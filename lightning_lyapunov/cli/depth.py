"""The command ``depth``: what each block of a trained network does to a gradient."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import torch

from lightning_lyapunov.capture.depth_by_hand import depth_spectrum
from lightning_lyapunov.cli.reading import array_of, network_of
from lightning_lyapunov.cli.writing import WIDTH, one_line, write, write_figure
from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.spectrum_json import dumps
from lightning_lyapunov.names_depth import QUANTITIES
from lightning_lyapunov.reading.depth_history import DepthMeasurement, depth_features
from lightning_lyapunov.reading.depth_rules import findings
from lightning_lyapunov.reading.depth_words import share
from lightning_lyapunov.reading.words import UNKNOWN

HEAD, TAIL = 16, 8
"""Blocks at either end of a deep network that the table shows."""
LONGEST = 34
"""Letters of a block's name; of a longer one only the end is written."""
FEATURES = ("total", "gain", "typical", "anisotropy", "state_growth", "trusted_fraction")
"""Figures that the table shows."""


def depth(
    file: Path,
    inputs: Path,
    *,
    model: str | None = None,
    init: dict[str, Any] | None = None,
    weights: str | None = None,
    module: str | list[str] | None = None,
    samples: int = 8,
    k: int = 4,
    dtype: Literal["float32", "float64"] | None = None,
    format: Literal["table", "json", "figure"] = "table",
    output: Path | None = None,
    trust_pickle: bool = False,
) -> None:
    """Measure what the blocks of a deep network do to a gradient, one by one and together.

    Args:
        file: A Lightning checkpoint or whatever holds a state_dict, with --model; or a module that torch.save wrote,
            with --trust-pickle.
        inputs: A batch that the model's forward takes, .npy or .pt, (B, ...).
        model: Import path of its class, as pkg.mod:Class; also of a plain module.
        init: Arguments of that class which the checkpoint does not know, as '{"width": 64}' or --init.width 64.
        weights: Which weights, where the file holds several, as model or ema.
        module: Name of the module that holds the blocks, or a list of the blocks in order; found if left out.
        samples: Rows of the batch to measure, the first ones.
        k: Number of leading singular values.
        dtype: Arithmetic of the measurement; that of the weights if left out.
        format: A table for people, JSON for programs, a figure (PNG).
        output: Where to write it; standard output if left out.
        trust_pickle: Let the file run code while it is read, as pickles do. Only for files whose origin you trust.
    """
    if format == "figure" and output is None and sys.stdout.isatty():
        raise ValueError("output: a figure is no text for a terminal; give --output FILE.png.")
    with contextlib.redirect_stdout(sys.stderr):  # whatever the user's own code has to say
        network, updates = network_of(file, model, init or {}, trust_pickle, weights)
        batch = array_of(inputs)
        own = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        batch = batch.to(own) if batch.is_floating_point() else batch
        wide = None if dtype is None else getattr(torch, dtype)
        try:
            found = depth_spectrum(network.eval(), batch, k, module=module, samples=samples, dtype=wide)
        except RuntimeError as error:
            raise ValueError(
                f"inputs {tuple(batch.shape)} could not go through {type(network).__name__}: {one_line(error)}"
            ) from error
    measurement = DepthMeasurement.of(found, step=updates or 0, seen=len(batch))
    if format == "figure":
        from lightning_lyapunov.figures.alone import depth_alone

        write_figure(depth_alone(found), output)
    elif format == "json":
        write(dumps({**found.to_dict(), "updates": updates, "features": depth_features(found)}), output)
    else:
        write("\n".join(table_of(found, measurement)), output)


def table_of(spectrum: DepthSpectrum, measurement: DepthMeasurement) -> Iterator[str]:
    """Lines for people: what it means, the figures of the whole, and each block, the middle of many left out."""
    for finding in findings([measurement]):
        yield from wrap(finding.text, WIDTH, break_long_words=False, break_on_hyphens=False)
    yield ""
    values = depth_features(spectrum)
    width = max(len(QUANTITIES[name].title) for name in FEATURES)
    for name in FEATURES:
        value, error = values[name], values.get(f"{name}_error", math.nan)
        bar = "" if math.isnan(error) else f" ± {error:.3f}"
        known = UNKNOWN if math.isnan(value) else f"{value:{'' if name == 'trusted_fraction' else '+'}.3f}{bar}"
        yield f"{QUANTITIES[name].title:<{width}}   {known} {QUANTITIES[name].unit}"
    yield ""
    longest = min(max(map(len, spectrum.names)), LONGEST)
    yield f"    i   {'block':<{longest}}   {'gain':>15}   {'change':>8}   {'of ln σ₁':>8}"
    shares = measurement.contributions
    for i, name in enumerate(spectrum.names):
        if i == HEAD and spectrum.depth > HEAD + TAIL + 1:
            yield f"    …   ({spectrum.depth - HEAD - TAIL} more: --format json has all)"
        if i < HEAD or i >= spectrum.depth - TAIL or spectrum.depth <= HEAD + TAIL + 1:
            label = name if len(name) <= longest else f"…{name[1 - longest :]}"
            gain = f"{float(spectrum.block_gain[i]):+.3f} ± {float(spectrum.block_gain_error[i]):.3f}"
            change = float(spectrum.block_change[i])
            told = UNKNOWN if math.isnan(change) else share(change)
            yield f"{i + 1:>5}   {label:<{longest}}   {gain:>15}   {told:>8}   {float(shares[i]):>+8.3f}"
