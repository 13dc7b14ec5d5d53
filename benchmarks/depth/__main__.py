"""Does the spectrum across depth tell who will train, does it find a faulty block, and what does it cost?

Networks of three tasks are drawn at random and trained for a few seconds each; before the first update and on the way
their spectra across depth are measured, and beside them what one forward and one backward pass tell for free. Every
network is a line of the results as soon as it is over, so that an interrupted benchmark goes on where it was; delete
lines to have them run again. Times are CPU seconds of one thread.

    python benchmarks/depth                       all that is missing, about half an hour; and docs/depth-benchmark.md
    python benchmarks/depth --only networks       of networks, faults, cost
    python benchmarks/depth --networks 240        fewer, or more, than 420
    python benchmarks/depth --table               the page, from what is there
    python benchmarks/depth --quick               six networks, a tenth of the training, into runs/bench: a trial
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cost import COSTS, measured
from draws import NETWORKS, draws
from faults import FAULTS, located
from fitting import trained
from page import page

ROOT = Path(__file__).resolve().parents[2]
RESULTS, QUICK = ROOT / "benchmarks" / "results" / "depth.jsonl", ROOT / "runs" / "bench" / "depth-quick.jsonl"
PAGE = ROOT / "docs" / "depth-benchmark.md"
PARTS = ("networks", "faults", "cost")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/depth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help=f"by default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--networks", type=int, metavar="N", help=f"by default {NETWORKS}, in a trial 6")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--quick", action="store_true", help="a trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path: Path = args.results or (QUICK if args.quick else RESULTS)
    networks = args.networks or (6 if args.quick else NETWORKS)
    failed = 0 if args.table else go_on(path, args.only, networks, args.quick)
    written = page(kept(path))
    print(written)
    if path == RESULTS:
        PAGE.write_text(written, encoding="utf-8")
    sys.exit(f"{failed} runs ended with an error." if failed else 0)


def kept(path: Path) -> list[Row]:
    """Rows that are there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def go_on(path: Path, only: str | None, networks: int, quick: bool) -> int:
    """Run what is missing; returns how many runs failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failed, done = 0, {_name(row) for row in kept(path)}
    for row, run in _runs(networks, quick):
        if _name(row) in done or (only or row["part"]) != row["part"]:
            continue
        try:
            found = run()
        except Exception as error:  # the others go on
            print(f"{row}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, **found, "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}) + "\n")
        print(f"{time.process_time():.0f} s: {row}", flush=True)
    return failed


def _runs(networks: int, quick: bool) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What tells a run apart, and the run."""
    for draw in draws(networks):
        yield {"part": "networks", "draw": draw.key}, lambda draw=draw: trained(draw, 0.1 if quick else 1.0)
    for fault in FAULTS:
        for seed in range(2 if quick else 20):
            row = {"part": "faults", "fault": fault, "seed": seed}
            yield row, lambda fault=fault, seed=seed: located(fault, seed, 10 if quick else 100)
    for kind, depth in COSTS[:1] if quick else COSTS:
        yield {"part": "cost", "kind": kind, "depth": depth}, lambda kind=kind, depth=depth: measured(kind, depth)


def _name(row: Row) -> str:
    """What tells a row apart, as a string."""
    return json.dumps({name: row[name] for name in ("part", "draw", "fault", "seed", "kind", "depth") if name in row})


if __name__ == "__main__":
    main()
