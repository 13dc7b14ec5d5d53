"""Acting on the spectrum before the first update: where it helps, where it harms, and what it costs.

Every run is a line of the results as soon as it is over, so that an interrupted benchmark goes on where it was. Delete
lines to have them run again. Times are CPU seconds of one thread.

    python benchmarks/acting                        all that is missing: hours
    python benchmarks/acting --only recall LSTM     of one task, net or start; several names must all fit
    python benchmarks/acting --share 0 2            every second run, beside --share 1 2 in another process
    python benchmarks/acting --table                the tables of docs/acting.md, from what is there
    python benchmarks/acting --quick                one seed and a tenth of the training, into runs/bench: a trial

What a client library trains needs the environment of that library: benchmarks/acting/forecast.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cost import measured
from plan import Run, runs
from regulariser import regularised
from tables import page
from tasks import TASKS
from training import trained

ROOT = Path(__file__).resolve().parents[2]
RESULTS, QUICK = ROOT / "benchmarks" / "results" / "acting.jsonl", ROOT / "runs" / "bench" / "acting-quick.jsonl"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/acting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help=f"by default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tasks, nets or starts; all must fit")
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the training")
    parser.add_argument(
        "--share", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="every N-th run, from the I-th on"
    )
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    path: Path = args.results or (QUICK if args.quick else RESULTS)
    torch.set_num_threads(1)
    failed = 0 if args.table else go_on(path, args.only, args.quick, *args.share)
    print(page(kept(path)))
    sys.exit(f"{failed} runs ended with an error." if failed else 0)


def kept(path: Path) -> list[Row]:
    """Rows that are there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def go_on(path: Path, only: list[str], quick: bool, first: int, stride: int) -> int:
    """Run what is missing; returns how many runs failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for run in islice(dict.fromkeys(runs()), first, None, stride):
        done = {(row["task"], row["net"], row["start"], row["seed"]) for row in kept(path)}
        if run.key in done or (quick and run.seed) or not {*only} <= {run.task, run.net, run.start}:
            continue
        try:
            row = found(run, quick)
        except Exception as error:  # the others go on
            print(f"{run.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return failed


def found(run: Run, quick: bool) -> Row:
    """What became of a run, with the settings that tell it apart."""
    row = {"task": run.task, "net": run.net, "start": run.start, "seed": run.seed}
    if run.task == "cost":
        row |= measured(run)
    elif run.task == "regulariser":
        row |= regularised(run, quick)
    else:
        row |= trained(TASKS[run.task].of(run.updates, quick), run.net, run.start, run.seed)
    return {**row, "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}


if __name__ == "__main__":
    main()
