"""The benchmark suite: each part in a process of its own, and benchmarks/README.md from what they found.

    engine    against other ways to the same exponents, with one thread and with two     engine.py
    peers     against other packages                                                     peers.py
    overhead  the callback in a run of training                                          overhead.py
    growth    how the cost grows                                                         growth.py
    anatomy   where the time goes                                                        anatomy.py

Results are kept in runs/bench/*.json, each with the machine it came from; the page is written anew from all of them
after each part, so that parts can be renewed apart: ``--only`` some, or ``--only`` without a name just for the page.

Usage: python benchmarks [--quick] [--only [PART ...]]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import anatomy
import engine
import growth
import overhead
import peers
import torch

from lightning_lyapunov import __version__
from lightning_lyapunov.engine.segments import SHORTEST_SEGMENT

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE.parent / "runs" / "bench", HERE / "README.md"
Row = dict[str, Any]


# Runs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One script, one process: thread counts hold for the whole of it."""

    part: str
    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...] | None
    """Further arguments of a quick run; None leaves it out."""

    @property
    def path(self) -> Path:
        return KEPT / f"{self.name}.json"

    def start(self, quick: bool) -> None:
        """Measure; what was kept before is replaced only when all of it is there."""
        arguments = [*self.command, *(self.quick or ()) * quick]
        said = f"python benchmarks/{' '.join(arguments)}"
        print(f"\n--- {said}", flush=True)
        about, begun, fresh = {"machine": machine(), "peak": peak()}, time.monotonic(), self.path.with_suffix(".new")
        call = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--json", str(fresh)]
        subprocess.run(call, cwd=HERE.parent, check=True)
        about |= {"command": said, "quick": quick, "minutes": (time.monotonic() - begun) / 60}
        self.path.write_text(json.dumps({"about": about, "found": json.loads(fresh.read_text())}, indent=1))
        fresh.unlink()


ON_TWO = "--sizes 64 256 --rounds 3 --seconds 0.25"
PEERS_COMMAND = ("peers.py", "--rounds", "3", "--limit", "4")
SLOWER = ("clvlib-torch", "lyapynov", "pynamicalsys", "pynamicalsys-hh")
"""Peers that take hours at the steps of the others."""
RUNS = (
    Run("engine", "engine-1", ("engine.py", "--threads", "1"), ("--sizes", "64", "--rounds", "2")),
    Run("engine", "engine-2", ("engine.py", "--threads", "2", *ON_TWO.split()), None),
    Run(
        "peers", "peers", (*PEERS_COMMAND, "--peers", "lyapax", "chaotax", "chaotax-jit", "clvlib-numpy"), ("--quick",)
    ),
    Run("peers", "peers-short", (*PEERS_COMMAND, "--steps", "2048", "--peers", *SLOWER), None),
    Run(
        "overhead",
        "overhead",
        ("overhead.py", "--threads", "1"),
        ("--epochs", "2", "--pairs", "1", "--cases", "second"),
    ),
    Run("growth", "growth", ("growth.py", "--threads", "1"), ("--quick",)),
    Run("anatomy", "anatomy", ("anatomy.py",), ("--sizes", "64")),
)


def machine() -> dict[str, Any]:
    """What the numbers depend on, in words that name no computer."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "version": __version__,
    }


def cpu() -> str:
    """Its model, where the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak() -> float:
    """Floating operations per second of a large float32 product on one thread, the best of five."""
    torch.set_num_threads(1)
    return max(engine.peak() for _ in range(5))


# Targets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A value that every row it is about must reach."""

    what: str
    cell: str
    sizes: tuple[int, ...]
    least: float
    run: str
    value: Callable[[Row], float | None]
    """Of a row; None if the target is not about it, or if it failed."""
    form: str = ".2f"

    def line(self, kept: dict[str, Any]) -> str:
        """Row of the table: the lowest value, and whether it and the rows that are there suffice."""
        reached = [(value, row) for row in rows_of(kept, self.run) if (value := self.of(row)) is not None]
        missing = set(self.sizes) - {row["hidden"] for _, row in reached}
        fields = [self.what, self.cell, span(self.sizes), f"≥ {self.said(self.least)}"]
        if not reached:
            return joined([*fields, "not measured", ""])
        lowest, where = min(reached, key=lambda pair: pair[0])
        value = self.said(lowest)
        if len(reached) > 1:
            enough = sum(value >= self.least for value, _ in reached)
            value = f"{value}, the lowest ({described(where)}); {enough} of {len(reached)} rows suffice"
        verdict = "missed" if lowest < self.least else "reached"
        if missing:
            verdict += f", but H {', '.join(map(str, sorted(missing)))} not measured"
        return joined([*fields, value, verdict])

    def of(self, row: Row) -> float | None:
        about = row["hidden"] in self.sizes and self.cell in ("all", row["cell"].upper())
        return self.value(row) if about else None

    def said(self, value: float) -> str:
        return f"{value:{self.form}}" + ("" if self.form.endswith("%") else "×")


def whole(value: Callable[[Row], float]) -> Callable[[Row], float | None]:
    """Of the rows that measure all exponents with a QR at every step."""
    return lambda row: value(row) if row["interval"] == 1 else None


def leading(value: Callable[[Row], float]) -> Callable[[Row], float | None]:
    """Of the rows that measure the leading ones."""
    return lambda row: value(row) if row["k"] == engine.LEADING and row["interval"] > 1 else None


def to_published(row: Row) -> float:
    return row["ratios"]["published"]


def of_floor(row: Row) -> float:
    return row["floor"]


def lyapax(batches: range) -> Callable[[Row], float | None]:
    return lambda row: row.get("ratio") if row["name"] == "lyapax" and row["batch"] in batches else None


def lyapax_whole(row: Row) -> float | None:
    """Of the rows that measure all exponents of a single sequence with a QR at every step."""
    is_whole = row["interval"] == 1 and row["k"] not in (8, 32)
    return lyapax(range(1, 2))(row) if is_whole else None


def targets() -> Iterator[Target]:
    """All of one thread."""
    one, mid = "engine-1", (256,)
    for cell, least in {"RNN": 4, "GRU": 7}.items():
        yield Target("published / ours, whole spectrum", cell, mid, least, one, whole(to_published))
    for cell, least in {"RNN": 3.5, "GRU": 6}.items():
        by_default = whole(lambda row: row["published / default"])
        yield Target("published / ours by default, whole spectrum", cell, mid, least, one, by_default)
    for cell, least in {"RNN": 3.2, "GRU": 3.2, "LSTM": 3.5}.items():
        jacrev = whole(lambda row: row["ratios"]["jacrev"])
        yield Target("jacrev + QR / ours, whole spectrum", cell, (128, 256, 512), least, one, jacrev)
    for cell, least in {"RNN": 12, "GRU": 36, "LSTM": 25}.items():
        yield Target("published / ours, 32 leading", cell, mid, least, one, leading(to_published))
    # The floor of a GRU leaves out its states, a fifth of the work; without AVX-512 its many small products cost more.
    for cell, least in {"RNN": 0.5, "GRU": 0.3, "LSTM": 0.4}.items():
        yield Target("share of the floor, 32 leading", cell, mid, least, one, leading(of_floor), ".1%")
    # Making a frame orthonormal takes as many operations as the floor (LSTM: half), at half of its speed.
    for cell, least in {"RNN": 0.3, "GRU": 0.25, "LSTM": 0.2}.items():
        yield Target("share of the floor, whole spectrum", cell, mid, least, one, whole(of_floor), ".1%")
    # A step of a small map is one LAPACK call that torch makes dearer: parity at B = 1 cannot be had in its operators.
    yield Target("lyapax / ours, B = 1, whole", "all", (32, 64, 128, 256, 512), 0.45, "peers", lyapax_whole)
    yield Target("lyapax / ours, B ≥ 8", "all", (64, 128), 1, "peers", lyapax(range(8, 1025)))


def span(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def described(row: Row) -> str:
    named = [row["cell"].upper(), f"H {row['hidden']}", f"k {row['k'] or 'all'}", f"interval {row['interval']}"]
    return ", ".join(named + ([row["dtype"], f"{row['steps']} steps"] if "steps" in row else []))


# Page -----------------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Benchmarks

<!-- Written by `python benchmarks`: change that, for changes made here are lost. -->

`make bench` measures all of it and writes this page; `make bench ARGS="--only engine"` renews one part, of `engine`,
`peers`, `overhead`, `growth` and `anatomy`; `make bench ARGS=--quick` is a trial of some minutes. Times are CPU times
of the process unless something else is said, all its threads together, so that what else the machine does counts for
little; what is compared runs in turn, and a ratio is the median of the rounds' ratios."""

TARGETS = """## Targets

What the engine is meant to reach on one thread, and what it does: "missed" where a row of the tables below falls short.
"Published" is our own writing of the published formulas, diagonal matrices multiplied out; see the engine's section."""

ENGINE = """## Engine

The same network, inputs and number of exponents in every way of the table, float32, in turn in one process. "Ours, ms"
is the median time for one step of one sequence; the columns after the next are how many times as long the others took:
*published*, the formulas of the published method as they stand, in our own writing, with Jacobians from products with
diagonal matrices and a QR at each step; *dense*, the same with rows scaled instead; *jacrev*, Jacobians by
`torch.func.jacrev`; *jvp*, tangents by `torch.func.jvp`. These take a QR at each step, ours at the interval of the
table. "Of the floor" is the time of the bare products, Jacobian times tangents, at the speed of a large matrix product
measured in the same rounds, as a share of ours. The last column has the interval and float type that we choose unless
told otherwise. With two threads the ratios still compare CPU time, the work of both, and not the time until the end."""

PEERS = f"""## Peers

Other packages on PyPI take autonomous maps, so the map is a network with a constant input. Each peer, in a process and
environment of its own, and `lyapunov_spectrum` start from the same state, take the same steps, discard the same
transient and reorthonormalise as often, in turn, round after round, on one thread. Times are per step and sequence,
without compiling; of a peer that takes no batches one trajectory stands for each of ours. |ΔΣλ| compares the sums of
the exponents. For one or two sequences the length matters: from {2 * SHORTEST_SEGMENT:,} measured steps on ours cuts
the time into segments that run side by side, while peers go through it step by step; ratios hold for that length."""

ANATOMY = """## Where the time goes, and why targets are missed

The same measurements as in the engine's table, at its intervals, seen by torch's profiler on one thread. The products
of Jacobian and tangents run near the machine's peak from 256 units on, so what is missing elsewhere is not theirs:

- **Whole spectrum:** more than half is reorthonormalisation. K directions of K numbers need about 2 K³ operations for
  the projections alone, as many as the products themselves, and the triangular parts of it are slower than products.
  By default the law asks for float64 there, since a whole spectrum spreads by more than 6 nats a step.
- **32 leading exponents, gated cells:** the product with 32 directions is half of it or less. Forming the Jacobian from
  three or four gates, and the states and gates themselves, do not shrink with K.
- **One sequence, few units:** a step of ours is some ten calls of torch, each a few microseconds, where a compiled loop
  has none. Cutting time into segments hides that only where the run is long."""

OVERHEAD = """## Callback

One measurement as a share of one training epoch, 128 units on 1,500 sequences of 64 steps in batches of 128, one
thread: each measurement and each epoch take their turn in one run, in seconds by the clock, and a share is the median
of their ratios. The cost of a measurement stays the same as the data grow."""

GROWTH = """## Growth

Calls of `lyapunov_spectrum` in float32 at a fixed interval, on one thread, all cells and values of a sweep in turn; a
point is the median CPU time of its rounds. Slopes are exponents of the growth, by least squares over the upper half of
each range; a slope below the expected one shows costs that do not grow, those of starting an operation above all."""


def page(kept: dict[str, Any]) -> str:
    """The whole of it, from what is there."""
    sections = [
        INTRODUCTION,
        measured_on(kept),
        TARGETS,
        "\n".join([joined(["target", "cell", "H", "at least", "reached", ""]), "|---" * 6 + "|"])
        + "".join(f"\n{target.line(kept)}" for target in targets()),
        commands(kept, "engine-1", "peers"),
        ENGINE,
        *section(kept, "engine-1", engine.table, "One thread"),
        *section(kept, "engine-2", engine.table, "Two threads"),
        ANATOMY,
        *section(kept, "anatomy", anatomy.table),
        PEERS,
        *section(kept, "peers", tables_of_peers),
        *section(kept, "peers-short", tables_of_peers, "Those that take long: of at most 2,048 steps"),
        OVERHEAD,
        *section(kept, "overhead", overhead.table),
        *(
            [overhead.sentence(kept["overhead"]["found"]["run"])]
            if "run" in kept.get("overhead", {}).get("found", {})
            else []
        ),
        GROWTH,
        *section(kept, "growth", figure_and_slopes),
    ]
    return "\n\n".join(sections) + "\n"


def section(kept: dict[str, Any], name: str, table: Callable[[list[Row]], str], title: str = "") -> list[str]:
    """The command of a run and what it found."""
    head = [f"### {title}"] * bool(title)
    found = [table(rows_of(kept, name))] if name in kept else []
    return [*head, commands(kept, name), *found]


def commands(kept: dict[str, Any], *names: str) -> str:
    """What measured these runs, or would."""
    said = []
    for run in RUNS:
        if run.name in names and run.name in kept:
            about = kept[run.name]["about"]
            note = " A quick trial: fewer sizes and rounds, rough numbers." if about["quick"] else ""
            said.append(f"Measured by `{about['command']}` in {max(1, round(about['minutes']))} min.{note}")
        elif run.name in names:
            said.append(f"**Not measured**; `python benchmarks --only {run.part}` does.")
    return "\n".join(said)


def measured_on(kept: dict[str, Any]) -> str:
    """The machine, or machines, with what came from each."""
    abouts = sorted(((run["about"], name) for name, run in kept.items()), key=lambda pair: str(pair[0]["machine"]))
    lines = []
    for _, group in groupby(abouts, key=lambda pair: pair[0]["machine"]):
        same = list(group)
        on, peaks = same[0][0]["machine"], [about["peak"] / 1e9 for about, _ in same]
        lines.append(
            f"Measured on {on['cpu']}, {on['cores']} cores ({on['instructions']}), with torch {on['torch']} and version"
            f" {on['version']} of this package; a product of float32 matrices 1024 × 1024 ran at {min(peaks):.0f} to"
            f" {max(peaks):.0f} GFLOP/s on one thread before the runs: {', '.join(name for _, name in same)}."
        )
    return "\n\n".join(lines) or "Nothing has been measured yet."


def tables_of_peers(rows: list[Row]) -> str:
    """A line for each peer; all rows folded away below, for they are many."""
    lines = [joined(["peer", "rows measured", "steps", "peer/ours, B = 1", "peer/ours, B > 1"]), "|---" * 5 + "|"]
    folded = []
    for name, group in groupby(rows, key=lambda row: row["name"]):
        of_peer = list(group)
        ratios = [[r["ratio"] for r in of_peer if "ratio" in r and (r["batch"] > 1) == many] for many in (False, True)]
        note = f"{of_peer[0]['peer']} ({of_peer[0]['note']})"
        steps = sorted({r["steps"] for r in of_peer if "steps" in r})
        measured = f"{sum(map(len, ratios))} of {len(of_peer)}"
        lines.append(joined([note, measured, span(steps) if steps else "–", *map(spread, ratios)]))
        table = "\n".join([peers.HEADER, *map(peers.line, of_peer)])
        folded.append(f"<details><summary>{name}, all rows</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(["\n".join(lines), *folded])


def spread(ratios: list[float]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}×" if ratios else "–"
    return f"{min(ratios):.2f}× to {max(ratios):.2f}×, median {statistics.median(ratios):.2f}×"


def figure_and_slopes(rows: list[Row]) -> str:
    return (
        f"![CPU time against units, exponents, steps, sequences, layers]({growth.PICTURE.name})\n\n{growth.table(rows)}"
    )


def rows_of(kept: dict[str, Any], name: str) -> list[Row]:
    """Rows of a run; none if it was not made. Peers write them bare."""
    found = kept[name]["found"] if name in kept else []
    return found["rows"] if isinstance(found, dict) else found


def joined(fields: list[Any]) -> str:
    return f"| {' | '.join(map(str, fields))} |"


def write() -> None:
    """The page from all that is kept."""
    PAGE.write_text(page({run.name: json.loads(run.path.read_text()) for run in RUNS if run.path.exists()}))


def main() -> None:
    parts = list(dict.fromkeys(run.part for run in RUNS))
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a trial of some minutes: one thread, few sizes")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    write()
    failed = []
    for run in RUNS:
        if run.part in args.only and not (args.quick and run.quick is None):
            try:
                run.start(args.quick)
            except subprocess.CalledProcessError:  # its process has said why; the others go on
                failed.append(run.name)
            write()
    if failed:
        sys.exit(f"Failed, and kept as they were: {', '.join(failed)}")


if __name__ == "__main__":
    main()
