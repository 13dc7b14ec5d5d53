"""Where the time of a measurement goes: the profile behind the targets that are missed.

Each row is one measurement as the engine's table has it, of exponents alone, float32, on one thread, seen by torch's
profiler: products of Jacobian and tangents; forming the Jacobian of a gated cell from the weights of its gates; the
rest of the push, as scaling of rows; reorthonormalisation; states and gates; and what Python and torch's dispatcher
take between. "Of peak" is the speed of the products alone over that of a large one.

Usage: python benchmarks/anatomy.py [--sizes 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engine import BATCH, INPUT, LEADING, network, peak, seconds
from torch.profiler import ProfilerActivity, profile, record_function

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine import exponents, tangent
from lightning_lyapunov.engine.maps import gru, lstm

PRODUCTS = {"aten::mm", "aten::bmm", "aten::baddbmm", "aten::addmm"}
PARTS = (
    "products",
    "forming the Jacobian",
    "rest of the push",
    "reorthonormalising",
    "states and gates",
    "Python and dispatch",
)


def row(cell: str, hidden: int, leading: bool) -> dict[str, Any]:
    layer, batch = network(cell, hidden), BATCH.get(hidden, 8)
    k, interval = (LEADING, 4) if leading else (None, 1)
    steps = 128 if leading else 64
    inputs = torch.randn(steps, batch, INPUT, generator=torch.Generator().manual_seed(1))

    def measure() -> None:
        lyapunov_spectrum(layer, inputs, k=k, interval=interval, dtype=torch.float32, growth=0)

    measure()
    fastest, spent = peak(), min(seconds(measure) for _ in range(3))
    with (
        profile(activities=[ProfilerActivity.CPU]) as profiled,
        named(tangent, "by_blocks"),
        named(tangent, "by_householder"),
        named(exponents, "carry"),
        named(gru, "scaled_sum"),
        named(lstm, "scaled_sum"),
    ):
        measure()
    shares, products = by_part(profiled)
    size = hidden * (2 if cell == "lstm" else 1)
    flops = (4 if cell == "lstm" else 2) * hidden**2 * (k or size) * steps * batch
    return {
        "cell": cell,
        "hidden": hidden,
        "k": k or size,
        "ms": 1e3 * spent / steps / batch,
        "shares": shares,
        "of peak": flops / products / fastest if products else 0.0,
    }


def named(module: Any, name: str) -> Any:
    """Patch a function so that the profiler sees where it begins and ends."""
    inner = getattr(module, name)

    def outer(*args: Any, **options: Any) -> Any:
        with record_function(f"part::{name}"):
            return inner(*args, **options)

    return patch.object(module, name, outer)


def by_part(profiled: Any) -> tuple[dict[str, float], float]:
    """Share of each part in the time inside torch and around it, and seconds in the products of the push."""
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        parents, up = [], event
        while up is not None:
            parents.append(up.name)
            up = up.cpu_parent
        own = event.self_cpu_time_total / 1e6
        if event.name.startswith("part::") or event.name.startswith("ProfilerStep"):
            spent["Python and dispatch"] += own
        elif any(name in ("part::by_blocks", "part::by_householder") for name in parents):
            spent["reorthonormalising"] += own
        elif "part::scaled_sum" in parents:
            spent["forming the Jacobian"] += own
        elif "part::carry" in parents:
            spent["products" if event.name in PRODUCTS else "rest of the push"] += own
        else:
            spent["states and gates"] += own
    whole = sum(spent.values())
    return {part: spent[part] / whole for part in PARTS}, spent["products"]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["cell", "H", "k", "ms", *PARTS, "products, of peak"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in found:
        values = [r["cell"].upper(), r["hidden"], r["k"], f"{r['ms']:.3f}"]
        values += [f"{r['shares'][part]:.0%}" for part in PARTS] + [f"{r['of peak']:.0%}"]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [row(cell, size, lead) for size in args.sizes for cell in ("rnn", "gru", "lstm") for lead in (False, True)]
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps({"threads": 1, "rows": found}, indent=1))
