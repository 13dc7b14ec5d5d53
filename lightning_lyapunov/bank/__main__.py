"""Build the bank: ``python -m lightning_lyapunov.bank DIRECTORY``, and the same again after an interruption."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_lyapunov.bank.build import build, plan, smoke_plan
from lightning_lyapunov.bank.records import collect


def main() -> None:
    """Train what is missing, then write one compact file."""
    parser = argparse.ArgumentParser(prog="python -m lightning_lyapunov.bank", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the records of populations are, and go")
    parser.add_argument("--compact", type=Path, help="file for the finished bank (default: DIRECTORY.safetensors)")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; as many as there are cores if left out")
    parser.add_argument("--smoke", action="store_true", help="thirty tiny networks only; give them their own DIRECTORY")
    args = parser.parse_args()

    build(smoke_plan() if args.smoke else plan(), args.directory, args.jobs)
    bank = collect(args.directory)
    compact = args.compact or args.directory.with_suffix(".safetensors")
    bank.save(compact)
    families = len(set(bank.column("family")))
    print(f"{len(bank)} networks, {len(bank.best)} tasks of {families} families: {compact}")


if __name__ == "__main__":
    main()
