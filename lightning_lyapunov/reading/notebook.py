"""Results as small tables for notebooks: HTML without scripts, in the colours of the page around it, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.reading.depth_history import DepthMeasurement, evenly
from lightning_lyapunov.reading.depth_rules import findings
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import capital, factor, in_words, over_a_sequence, plus_minus

MOST = 24
"""Layers or blocks that a table lists."""
_TABLE = "border-collapse:collapse;background:transparent;color:inherit"
_CELL = "text-align:left;padding:2px 12px 2px 0;border-bottom:1px solid rgba(128,128,128,.35);vertical-align:top"


def table_of_spectrum(spectrum: LyapunovSpectrum) -> str:
    """A spectrum: its largest exponent, what happens to a gradient, how it was measured, and its layers."""
    now = Measurement.of(spectrum)
    count, settled, trusted = len(spectrum.exponents), int(spectrum.settled.sum()), int(spectrum.trusted.sum())
    drive = "driven by inputs" if spectrum.driven else "without inputs"
    steps = f"{_counted(spectrum.steps, 'step')} after a transient of {spectrum.transient}"
    rows = [
        ("largest exponent", f"{in_words(now)}, {_whether_settled(spectrum)}"),
        ("exponents", f"{count} of {spectrum.dimension}, {settled} settled, {trusted} trusted"),
        ("a gradient", capital(over_a_sequence(now)) or "growth over a sequence was not measured"),
        ("measured", f"{_counted(spectrum.sequences, 'sequence')}, {steps}, {drive}"),
    ]
    names = list(spectrum.parts)
    for place in evenly(len(names), MOST):
        layer = now.layer(names[place])
        grows = "" if math.isnan(layer.gain) else f", a gradient × {factor(layer.gain).removesuffix('-fold')}"
        rows.append((f"layer {names[place]}", f"{in_words(layer)}{grows}"))
    return _table("Lyapunov spectrum", rows)


def table_of_depth(spectrum: DepthSpectrum) -> str:
    """A spectrum across depth: what was found, the figures of the whole chain, and each block."""
    now = DepthMeasurement.of(spectrum)
    gain = plus_minus(spectrum.gain, spectrum.gain_error)
    rows = [
        ("largest growth", f"{plus_minus(*now.total)} nats over {_counted(spectrum.depth, 'block')}"),
        ("a gradient of random direction", f"{gain} nats"),
        *(("found", finding.text) for finding in findings([now])[:1]),
    ]
    for i in evenly(spectrum.depth, MOST):
        grows = plus_minus(float(spectrum.block_gain[i]), float(spectrum.block_gain_error[i]))
        rows.append((f"block {i + 1}, {spectrum.names[i]}", f"{grows} nats"))
    return _table("Spectrum across depth", rows)


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;white-space:nowrap;opacity:.75">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(text)}</td></tr>'
        for name, text in rows
    )
    caption = f'<caption style="text-align:left;font-weight:bold;color:inherit">{escape(title)}</caption>'
    return f'<table style="{_TABLE}">{caption}<tbody>{body}</tbody></table>'


def _whether_settled(spectrum: LyapunovSpectrum) -> str:
    return "settled: a rate in the long run" if bool(spectrum.settled[0]) else "not settled: no rate in the long run"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
