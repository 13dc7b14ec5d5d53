"""How the cost of a call grows with the units, the exponents, the steps, the sequences and the layers: measured, drawn.

Every call is `lyapunov_spectrum` in float32 at a fixed interval, with its trajectory; one quantity varies, the others
stay at the sweep's values. The calls of a sweep, all cells and values, run in turn, round after round; a point is the
median CPU time of its rounds. The slope is that of a line through the logarithms of the upper half of the range, where
the constant cost of an operation has faded; the expected one counts multiplications:

    H       two per entry of H², tangent and step: H² for a fixed number of exponents, H³ for all of them
    k       k for the products with the Jacobian, k² for the orthonormalisation: at k = H as many as for the products
    T, B    one each: so many steps and sequences
    layers  one: each layer's spectrum is measured apart

Usage: python benchmarks/growth.py [--threads N] [--quick] [--rounds N] [--json FILE] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from engine import GAIN, INPUT, LEADING, seconds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import nn

from lightning_lyapunov import lyapunov_spectrum

CELLS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
STYLES = {"RNN": ("#0072B2", "o"), "GRU": ("#D55E00", "s"), "LSTM": ("#009E73", "^")}
"""Colours that colour-blind readers tell apart (Okabe and Ito), and markers for those who see none."""
PICTURE = Path(__file__).resolve().with_name("growth.png")


@dataclass(frozen=True)
class Shape:
    """What a call measures."""

    hidden: int = 128
    k: int | None = LEADING
    steps: int = 64
    batch: int = 8
    layers: int = 1
    interval: int = 4

    def call(self, cell: str) -> Callable[[], object]:
        torch.manual_seed(0)
        layer = CELLS[cell](INPUT, self.hidden, self.layers).requires_grad_(False)
        for name, weight in layer.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.normal_(weight, std=GAIN / math.sqrt(self.hidden))
        inputs = torch.randn(self.steps, self.batch, INPUT)
        options = {"k": self.k, "interval": self.interval, "dtype": torch.float32, "transient": 0, "growth": 0}
        return lambda: lyapunov_spectrum(layer, inputs, **options)


@dataclass(frozen=True)
class Sweep:
    """One field of a shape takes several values; ``which`` exponents are measured meanwhile."""

    field: str
    values: tuple[int, ...]
    expected: int
    which: str = f"k = {LEADING}"
    fixed: Shape = field(default_factory=Shape)

    def row(self, cell: str, costs: dict[int, float]) -> dict[str, Any]:
        """Points and slopes."""
        said = {"field": self.field, "which": self.which, "cell": cell, "expected": self.expected}
        return said | {"values": list(costs), "seconds": list(costs.values()), "slope": slope(costs)}


def doubling(first: int, last: int) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range((last // first).bit_length()))


SWEEPS = (
    Sweep("hidden", doubling(32, 512), 2, fixed=Shape(steps=32, batch=4)),
    Sweep("hidden", doubling(32, 512), 3, "all", Shape(k=None, steps=32, batch=4, interval=1)),
    Sweep("k", doubling(1, 256), 1, "k", Shape(hidden=256, steps=32, batch=4, interval=1)),
    Sweep("steps", doubling(32, 2048), 1),
    Sweep("batch", doubling(1, 64), 1),
    Sweep("layers", (1, 2, 3, 4), 1),
)
LABELS = {"hidden": "units H", "k": "exponents k", "steps": "steps T", "batch": "sequences B", "layers": "layers"}


def measured(sweep: Sweep, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each cell."""
    calls = {(c, v): replace(sweep.fixed, **{sweep.field: v}).call(c) for c in CELLS for v in sweep.values}
    for call in calls.values():
        call()  # what only a first call pays
    found = [{point: cost(call) for point, call in calls.items()} for _ in range(rounds)]
    for cell in CELLS:
        yield sweep.row(cell, {v: statistics.median(costs[cell, v] for costs in found) for v in sweep.values})


def cost(call: Callable[[], object], least: float = 0.05) -> float:
    """CPU seconds of one call, from as many as fill ``least``."""
    once = seconds(call)
    more = int(least / max(once, 1e-6))
    return (once + seconds(lambda: [call() for _ in range(more)])) / (1 + more)


def slope(costs: dict[int, float]) -> float:
    """Exponent of the growth, by least squares over the upper half of the range of logarithms."""
    middle = math.sqrt(min(costs) * max(costs))
    upper = {value: spent for value, spent in costs.items() if value >= middle}
    return statistics.linear_regression(list(map(math.log, upper)), list(map(math.log, upper.values()))).slope


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each sweep."""
    lines = [f"| {' | '.join(['varied', 'exponents', 'from', 'to', 'expected', *CELLS])} |", "|---" * 8 + "|"]
    for sweep, of_cells in by_sweep(rows).items():
        first = next(iter(of_cells.values()))
        values = [LABELS[sweep[0]], sweep[1], first["values"][0], first["values"][-1], first["expected"]]
        values += [f"{row['slope']:.2f}" for row in of_cells.values()]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


def by_sweep(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """The rows as cells of sweeps."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["field"], row["which"]), {})[row["cell"]] = row
    return found


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each quantity: the points, measured slopes in the legend, and the expected slope in grey."""
    figure = Figure(figsize=(11, 6.6), dpi=90, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle("CPU time of one call, and the slope expected of it")
    *panels, corner = figure.subplots(2, 3).flat
    for axes, quantity in zip(panels, LABELS, strict=True):
        sweeps = {which: list(cells.values()) for (name, which), cells in by_sweep(rows).items() if name == quantity}
        for (which, of_cells), dash in zip(sweeps.items(), ("-", "--"), strict=False):
            if len(sweeps) > 1:
                axes.plot([], [], " ", label=which)  # heads a column of the legend
            for row in of_cells:
                draw_points(axes, row, dash)
            draw_expected(axes, of_cells)
        finish(axes, quantity, next(iter(sweeps.values()))[0]["values"], len(sweeps))
    corner.axis("off")
    corner.text(0, 0.95, CAPTION, va="top", linespacing=1.5, transform=corner.transAxes)
    return figure


CAPTION = """Numbers in the legends are measured slopes,
fitted over the upper half of each range;
grey lines have the expected slope, beside them.

H: 4 sequences of 32 steps
k: the same, 256 units; at k = H the QR, which
    grows as k², weighs as much as the products
T, B, layers: 128 units, 8 sequences of 64 steps
    where not varied, k = 32

float32; one layer where not varied; QR every
4 steps for H with k = 32 and T, B, layers,
at every step for H with all, and for k"""


def draw_points(axes: Any, row: dict[str, Any], dash: str) -> None:
    """One cell of a sweep, in milliseconds; hollow where a panel has a second sweep."""
    colour, marker = STYLES[row["cell"]]
    style = {"color": colour, "marker": marker, "markerfacecolor": colour if dash == "-" else "white"}
    label = f"{row['cell']} {row['slope']:.2f}"
    axes.plot(row["values"], [1e3 * s for s in row["seconds"]], dash, markersize=5, lw=1.3, label=label, **style)


def draw_expected(axes: Any, rows: list[dict[str, Any]]) -> None:
    """A line below the lowest of the cells, over the upper half of the range."""
    start, end = math.sqrt(rows[0]["values"][0] * rows[0]["values"][-1]), rows[0]["values"][-1]
    expected, level = rows[0]["expected"], 600 * min(row["seconds"][-1] for row in rows)
    axes.plot([start, end], [level * (start / end) ** expected, level], color="0.6", lw=1, zorder=0)
    name = {"xytext": (4, -4), "textcoords": "offset points", "va": "center", "color": "0.45", "fontsize": "small"}
    axes.annotate(f"{expected}", (end, level), **name)


def finish(axes: Any, quantity: str, values: list[int], columns: int) -> None:
    """Scales, names and legend of a panel, with room for the legend above the points."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = values[:: 2 if len(values) > 6 else 1]
    axes.set_xticks(shown, labels=map(str, shown))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.45 if columns > 1 else 0.1))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(LABELS[quantity])
    axes.set_ylabel("ms")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", ncols=columns, loc="upper left")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the lower end of each range only, to see it work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: list[dict[str, Any]] = []
    for sweep in SWEEPS:
        short = replace(sweep, values=sweep.values[:4]) if args.quick else sweep
        found += measured(short, args.rounds)
        print(table(found).splitlines()[-1], flush=True)
    print(f"\n{args.threads} thread{'s' * (args.threads > 1)}:\n\n{table(found)}")
    draw(found).savefig(args.picture)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found}, indent=1))
