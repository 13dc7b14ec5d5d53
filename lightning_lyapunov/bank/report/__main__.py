"""Command line of the report; see :mod:`lightning_lyapunov.bank.report`."""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning_lyapunov.bank.report as package
from lightning_lyapunov.bank.report.writing import write_report


def main() -> None:
    """Parse the arguments, and write."""
    parser = argparse.ArgumentParser(prog="python -m lightning_lyapunov.bank.report", description=package.__doc__)
    parser.add_argument("bank", type=Path, help="directory of the bank's records, or a file of the format before")
    parser.add_argument("--weights", type=Path, default=Path("runs/bank/general.safetensors"))
    parser.add_argument("--page", type=Path, default=Path("runs/bank/report.md"))
    parser.add_argument("--picture", type=Path, default=Path("runs/bank/report.png"))
    parser.add_argument("--kept", type=Path, default=Path("runs/bank/left-out"), help="where fits are kept")
    parser.add_argument("--set-aside", action="store_true", help="look at the families that nothing was based on")
    parser.add_argument("--gates", action="store_true", help="tell which demands on the first bank are met")
    parser.add_argument("--jobs", type=int, default=2, help="processes that fit at once (2)")
    args = parser.parse_args()
    write_report(
        args.bank,
        args.weights,
        args.page,
        args.picture,
        args.kept,
        with_gates=args.gates,
        look=args.set_aside,
        jobs=args.jobs,
    )


if __name__ == "__main__":
    main()
