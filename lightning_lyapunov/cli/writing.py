"""How the command line tells what it found: a table for people, JSON for programs, a figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.features import spectrum_features
from lightning_lyapunov.files import write_whole
from lightning_lyapunov.history import History, Measurement
from lightning_lyapunov.probe import architecture_of
from lightning_lyapunov.spectrum import LyapunovSpectrum

FORMAT = "lightning_lyapunov.spectrum/1"
HEAD, TAIL = 12, 4
"""Exponents at either end of a long spectrum that the table shows."""
FEATURES = {
    "max": ("largest exponent", "nats/step"),
    "mean": ("mean exponent", "nats/step"),
    "near_zero_fraction": ("|λ| < 0.05: directions that remember", "share"),
    "unstable_fraction": ("λ > 0", "share"),
    "kaplan_yorke_dimension": ("Kaplan–Yorke dimension", ""),
    "kolmogorov_sinai_entropy": ("Kolmogorov–Sinai entropy", "nats/step"),
    "gradient_horizon": ("gradient horizon 1/|λ₁|", "steps"),
    "stability_margin": ("stability margin -λ₁ - 2 stderr", "nats/step"),
    "trusted_fraction": ("trusted", "share"),
}


def facts_of(result: LyapunovSpectrum, layers: dict[str, nn.Module], updates: int | None) -> dict[str, Any]:
    """Everything there is to say of a spectrum, in the units of its fields."""
    sizes = [size for layer in layers.values() if isinstance(size := getattr(layer, "hidden_size", None), int)]
    left_out = ("per_sequence", "parts", "audit")
    return {
        "format": FORMAT,
        "unit": "nats/step",
        "architecture": architecture_of(list(layers.values())),
        "hidden_size": max(sizes, default=None),
        "updates": updates,
        **{field.name: getattr(result, field.name) for field in fields(result) if field.name not in left_out},
        "complete": result.complete,
        "features": spectrum_features(result),
        "layers": {
            name: {"exponents": part.exponents, "stderr": part.stderr, "dimension": part.dimension}
            for name, part in result.layers.items()
        },
    }


def plain(value: Any) -> Any:
    """As JSON can say it: null for what is not known, "inf" and "-inf" for what is infinite."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def table_of(result: LyapunovSpectrum) -> Iterator[str]:
    """Lines for people: how it was measured, what it says, the exponents with the middle of a long list left out."""
    count = len(result.exponents)
    yield (
        f"{count} of {result.dimension} exponents, {result.sequences} sequences, {result.steps} steps after a "
        f"transient of {result.transient}, {plain(result.dtype)}"
    )
    yield ""
    width = max(len(text) for text, _ in FEATURES.values())
    values = spectrum_features(result)
    for name, (text, unit) in FEATURES.items():
        error = f" ± {values['max_stderr']:.4f}" if name == "max" and not math.isnan(values["max_stderr"]) else ""
        known = "unknown" if math.isnan(values[name]) else f"{values[name]:.4f}{error} {unit}".rstrip()
        yield f"{text:<{width}}   {known}"
    if result.parts:
        yield ""
        width = max(map(len, result.parts))
        for name, part in result.parts.items():
            yield f"{name:<{width}}   largest {float(part.exponents[0]):+.4f} ± {float(part.stderr[0]):.4f} nats/step"
    yield ""
    yield "    i    exponent      stderr   trusted"
    for i in range(count):
        if i == HEAD and count > HEAD + TAIL + 1:
            yield f"    …   ({count - HEAD - TAIL} more: --format json has all)"
        if i < HEAD or i >= count - TAIL or count <= HEAD + TAIL + 1:
            numbers = f"{float(result.exponents[i]):>+10.4f}  {float(result.stderr[i]):>10.4f}"
            yield f"{i + 1:>5}  {numbers}   {'yes' if result.trusted[i] else 'no'}"


def write(text: str, output: Path | None) -> None:
    """To a file, or to standard output."""
    if output is None:
        print(text)
    else:
        write_whole(output, f"{text}\n".encode())
        tell(f"written to {output}")


def write_figure(result: LyapunovSpectrum, updates: int | None, output: Path | None) -> None:
    """The spectrum as a curve, in the format of the file's name; PNG to standard output."""
    from lightning_lyapunov.figures import spectrum_now

    history = History()
    features = {f"lyapunov/{name}": value for name, value in spectrum_features(result).items()}
    history.append(
        Measurement(
            step=updates or 0,
            epoch=0,
            exponents=result.exponents.float(),
            metrics={name: value for name, value in features.items() if math.isfinite(value)},
            stderr=result.stderr.float(),
            trusted=result.trusted,
            dimension=result.dimension,
            length=result.steps + result.transient,
        )
    )
    figure = spectrum_now(history)
    for text in figure.legends[0].get_texts() if updates is None else []:
        text.set_text(text.get_text().partition(", update")[0])  # after how many is not known
    if output is None:
        figure.savefig(sys.stdout.buffer, format="png")
    else:
        figure.savefig(buffer := BytesIO(), format=output.suffix[1:] or "png")
        write_whole(output, buffer.getvalue())
        tell(f"written to {output}")


def tell(text: str) -> None:
    """A line on standard error."""
    print(f"lightning-lyapunov: {text}", file=sys.stderr)


def one_line(error: object) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
