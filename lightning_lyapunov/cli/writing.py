"""How the command line tells what it found: a table for people, JSON for programs, a figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

from torch import Tensor, nn

from lightning_lyapunov.capture.finding import architecture_of
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.spectrum_json import plain
from lightning_lyapunov.files import write_whole
from lightning_lyapunov.names import QUANTITIES
from lightning_lyapunov.reading.features import spectrum_features
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import UNKNOWN, factor, in_words, over_a_sequence

HEAD, TAIL = 12, 4
"""Exponents at either end of a long spectrum that the table shows."""
WIDTH = 80
"""Columns of a terminal, which sentences are wrapped at."""
FEATURES = (
    *("max", "mean", "near_zero_fraction", "unstable_fraction", "kaplan_yorke_dimension", "kolmogorov_sinai_entropy"),
    *("gradient_horizon", "stability_margin", "trusted_fraction", "settled_fraction"),
)
"""Figures that the table shows."""


def facts_of(result: LyapunovSpectrum, layers: dict[str, nn.Module], updates: int | None) -> dict[str, Any]:
    """Everything there is to say of a spectrum and its network, in the units of its fields."""
    sizes = [size for layer in layers.values() if isinstance(size := getattr(layer, "hidden_size", None), int)]
    network = {
        "architecture": architecture_of(list(layers.values())),
        "hidden_size": max(sizes, default=None),
        "updates": updates,
    }
    return {**result.to_dict(), **network, "features": spectrum_features(result)}


def table_of(result: LyapunovSpectrum) -> Iterator[str]:
    """Lines for people: how it was measured, what it says, the exponents with the middle of a long list left out."""
    count = len(result.exponents)
    yield (
        f"{count} of {_counted(result.dimension, 'exponent')}, {_counted(result.sequences, 'sequence')}, "
        f"{_counted(result.steps, 'step')} after a transient of {result.transient}, {plain(result.dtype)}"
    )
    yield ""
    measurement = Measurement.of(result)
    if growth := over_a_sequence(measurement):
        yield from wrap(f"{growth[0].upper()}{growth[1:]}.", WIDTH, break_long_words=False, break_on_hyphens=False)
        yield ""
    width = max(len(QUANTITIES[name].title) for name in FEATURES)
    values = spectrum_features(result)
    for name in FEATURES:
        error = f" ± {values['max_error']:.4f}" if name == "max" and not math.isnan(values["max_error"]) else ""
        yield f"{QUANTITIES[name].title:<{width}}   {_figure(values[name], error, QUANTITIES[name].unit)}"
    if result.parts:
        yield ""
        width = max(map(len, result.parts))
        for name in result.parts:
            layer = measurement.layer(name)
            growth = "" if math.isnan(layer.gain) else f", a gradient × {factor(layer.gain).removesuffix('-fold')}"
            yield f"{name:<{width}}   largest {in_words(layer)}{growth}"
    yield ""
    yield "    i    exponent       error   trusted   settled"
    for i in range(count):
        if i == HEAD and count > HEAD + TAIL + 1:
            yield f"    …   ({count - HEAD - TAIL} more: --format json has all)"
        if i < HEAD or i >= count - TAIL or count <= HEAD + TAIL + 1:
            numbers = f"{_known(result.exponents[i], '+.4f'):>10}  {_known(result.error[i], '.4f'):>10}"
            marks = ["yes" if marked[i] else "no" for marked in (result.trusted, result.settled)]
            yield f"{i + 1:>5}  {numbers}   {marks[0]:<7}   {marks[1]}"


def _counted(count: int, thing: str) -> str:
    """As ``1 sequence`` or ``6 sequences``."""
    return f"{count} {thing}{'s' * (count != 1)}"


def _figure(value: float, error: str, unit: str) -> str:
    """A figure with its error and unit; a share in per cent."""
    if math.isnan(value):
        return UNKNOWN
    return f"{100 * value:.0f} %" if unit == "share" else f"{value:.4f}{error} {unit}".rstrip()


def _known(value: Tensor, form: str) -> str:
    return UNKNOWN if value.isnan() else f"{float(value):{form}}"


def write(text: str, output: Path | None) -> None:
    """To a file, or to standard output."""
    if output is None:
        print(text)
    else:
        write_whole(output, f"{text}\n".encode())
        tell(f"written to {output}.")


def write_figure(figure: Any, output: Path | None) -> None:
    """A figure of Matplotlib's, in the format of the file's name; PNG to standard output."""
    if output is None:
        figure.savefig(sys.stdout.buffer, format="png")
    else:
        figure.savefig(buffer := BytesIO(), format=output.suffix[1:] or "png")
        write_whole(output, buffer.getvalue())
        tell(f"written to {output}.")


def tell(text: str) -> None:
    """A sentence on standard error, on as many lines as a terminal needs."""
    line = f"lightning-lyapunov: {text}{'' if text.endswith(('.', '?', '!')) else '.'}"
    if sys.stderr.isatty():
        width = get_terminal_size().columns
        line = "\n".join(wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    print(line, file=sys.stderr)


def one_line(error: object) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
