"""Install other libraries, run their models with our callbacks, and write the tables of docs/libraries.md.

``make clients`` runs all of them, ``make clients ARGS=darts`` one, ``ARGS="darts --resume"`` what it has not yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = {
    "forecasting": ["darts", "gluonts", "neuralforecast", "pytorch_forecasting"],
    "cells": ["ncps", "snntorch", "xlstm", "mambapy", "skorch", "pyro", "torchrl", "sb3_contrib"],
    "depth": ["transformers", "timm", "segmentation_models_pytorch", "monai", "torchvision", "torch"],
}
"""Libraries by the environment that they share, which installs ``clients/<environment>.txt``."""
PACKAGES = {
    "sb3_contrib": "sb3-contrib",
    "pytorch_forecasting": "pytorch-forecasting",
    "pyro": "pyro-ppl",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
}
"""Names of packages that are not those of their modules."""
RESULTS = ROOT / "runs" / "clients"
PAGE = ROOT / "docs" / "libraries.md"
MINUTES = 90
"""For everything together."""
GIGABYTES = 12
"""For all environments together."""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    name: str
    """Between the marks of its begin and its end."""
    checks: str
    """The package that fills its rows."""
    columns: dict[str, str]
    """Titles, by what they are called in a row."""


STEPS = Table(
    "table",
    "clients",
    {
        "model": "model",
        "found": "found without arguments",
        "measured": "λ₁, nats per step, at the last of so many measurements",
        "weights": "weights with and without",
        "saved": "model saved and loaded",
        "copied": "callback copied",
        "stopped": "stopped",
        "exact": "off brute force by",
        "seconds": "s",
    },
)
DEPTH = Table(
    "table across depth",
    "clients.depth",
    {
        "model": "model",
        "chain": "links of the chain",
        "value": "ln σ₁, nats",
        "off": "σ₁ off by",
        "others": "σ₂ to σ₄ off by",
        "untouched": "left as it was",
        "trained": "same in training, weights with and without identical",
        "seconds": "s",
    },
)
TABLES = {"forecasting": STEPS, "cells": STEPS, "depth": DEPTH}
"""By environment."""


def main() -> None:
    """Run what is asked for; exits with 1 if a library could not be run at all."""
    known = [library for libraries in ENVIRONMENTS.values() for library in libraries]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", metavar="library", help=f"of {', '.join(known)}; all if none is named")
    parser.add_argument("--resume", action="store_true", help="leave out models that have a result")
    chosen = parser.parse_args()
    if unknown := sorted({*chosen.libraries} - {*known}):
        parser.error(f"no library is called {', '.join(unknown)}; there are {', '.join(known)}")
    wanted, end = chosen.libraries or known, time.monotonic() + 60 * MINUTES
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = []
    for environment, libraries in ENVIRONMENTS.items():
        for library in (library for library in libraries if library in wanted):
            try:
                python = _installed(environment, end)
                _run(library, TABLES[environment], python, chosen.resume, end)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"{library}: {error}", file=sys.stderr)
                failed.append(library)
            _write_tables()
    print(f"Wrote {PAGE.relative_to(ROOT)}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


def _installed(environment: str, end: float) -> str:
    """The environment's Python, once all is installed; again when the lists have changed."""
    folder = ROOT / f".venv-clients-{environment}"
    python, stamp = str(folder / "bin" / "python"), folder / "installed.stamp"
    lists = [ROOT / "clients" / f"{environment}.txt", ROOT / "clients" / "constraints.txt"]
    if stamp.exists() and all(stamp.stat().st_mtime > path.stat().st_mtime for path in lists):
        return python
    if (free := shutil.disk_usage(ROOT).free) < 5e9:
        raise OSError(f"an environment needs about 3 GB; {free / 1e9:.1f} GB are free.")
    print(f"Installing {environment} into {folder.name}; this takes minutes.", flush=True)
    left, held = max(1, end - time.monotonic()), {**os.environ, "PIP_CONSTRAINT": str(lists[1])}
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=left)
    subprocess.run([*pip, "torch"], check=True, timeout=left, env=held)  # first: nothing then brings another
    subprocess.run([*pip, "-r", str(lists[0]), "-e", f"{ROOT}[plot]"], check=True, timeout=left, env=held)
    everything = sum(f.stat().st_size for v in ROOT.glob(".venv-clients-*") for f in v.rglob("*") if f.is_file())
    if everything > GIGABYTES * 1e9:
        raise OSError(f"the environments take {everything / 1e9:.1f} GB, more than {GIGABYTES}.")
    stamp.touch()
    return python


def _run(library: str, table: Table, python: str, resume: bool, end: float) -> None:
    """Check a library's models in its environment, where what it writes lies in the way of nobody."""
    rows, log = RESULTS / f"{library}.jsonl", RESULTS / f"{library}.log"
    if not resume:
        rows.unlink(missing_ok=True)
    done = [str(row["model"]) for row in _rows(library)]
    scratch = RESULTS / library
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [python, "-m", table.checks, library, str(rows), *done]
    held = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    print(f"{library} ...", flush=True)
    with log.open("w") as file:
        subprocess.run(
            command, cwd=scratch, env=held, stdout=file, stderr=file, check=True, timeout=max(1, end - time.monotonic())
        )
    package = PACKAGES.get(library, library)
    shown = subprocess.run([python, "-m", "pip", "show", package], capture_output=True, text=True, check=True).stdout
    version = next(line[9:] for line in shown.splitlines() if line.startswith("Version: "))
    (RESULTS / f"{library}.version").write_text(version.partition("+")[0])
    for row in _rows(library):
        print("  " + " | ".join(_cell(row[name]) for name in table.columns), flush=True)


def _rows(library: str) -> list[dict[str, object]]:
    path = RESULTS / f"{library}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_tables() -> None:
    for table in (STEPS, DEPTH):
        mine = [environment for environment in ENVIRONMENTS if TABLES[environment] is table]
        _write_table(table, [library for environment in mine for library in ENVIRONMENTS[environment]])


def _write_table(table: Table, libraries: list[str]) -> None:
    """Put what has been found between the marks of the page; rows of libraries that were not run stay."""
    marks = f"<!-- begin of the {table.name} -->", f"<!-- end of the {table.name} -->"
    before, rest = PAGE.read_text().split(marks[0])
    written, after = rest.split(marks[1])
    old = [line for line in written.splitlines() if line.startswith("| ")]
    held = [
        line.split("==") for line in (ROOT / "clients" / "constraints.txt").read_text().splitlines() if "==" in line
    ]
    lines = [f"With {' and '.join(f'{name} {version}' for name, version in held[:2])}.", ""]
    lines += ["| library | " + " | ".join(table.columns.values()) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for library in libraries:
        package, version = PACKAGES.get(library, library), RESULTS / f"{library}.version"
        if version.exists():
            cells = [" | ".join(_cell(row[name]) for name in table.columns) for row in _rows(library)]
            lines += [f"| {package} {version.read_text()} | {row} |" for row in cells]
        else:
            lines += [line for line in old if line.startswith(f"| {package} ")]
    PAGE.write_text(f"{before}{marks[0]}\n" + "\n".join(lines) + f"\n{marks[1]}{after}")


def _cell(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
