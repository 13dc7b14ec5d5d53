"""Peak memory of long measurements of large networks: it does not grow with the steps, but for the inputs themselves.

Each is made in a process of its own, after a short one that loads what is loaded once; printed is by how much the peak
of the process's memory grew, beside the bound of docs/speed.md. Linux's allocator (glibc) keeps gaps between pieces of
memory that were given back; so each is made a second time with MALLOC_MMAP_THRESHOLD_=65536, under which it keeps
hardly any. Linux and macOS say what the peak was; Windows does not to Python alone. Usage: python benchmarks/memory.py
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import torch
from torch import nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.growth import KEPT_WHOLE, ON_REQUEST, PROBES, columns
from lightning_lyapunov.engine.trajectory import STRETCH

CASES = (
    ("lstm", 512, 10_000, 4, 32),
    ("gru", 512, 10_000, 16, 8),
    ("lstm", 512, 4_000, 4, 32),
    ("lstm", 512, 300, 2, 32),
    ("lstm", 512, 300, 2, None),
    ("rnn", 512, 10_000, 1, 64),
)
"""Cell, units, steps, sequences, leading exponents (None for all)."""
INPUT = 8


def bound(cell: str, hidden: int, steps: int, sequences: int, k: int | None) -> float:
    """Bytes, by the formula of docs/speed.md."""
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    size = hidden * (2 if cell == "lstm" else 1)
    inputs = steps * sequences * INPUT
    weights = 4 * gates * hidden**2
    stretch = 8 * STRETCH * sequences * (gates + 2) * hidden
    pushed = min(size, (k or size) + 2)  # two spare columns
    grown = 0
    if steps <= ON_REQUEST:  # growth is measured too
        pushed = max(pushed, columns(min(k or size, 8), size) + PROBES)
        grown = sequences * (steps * (gates + 2) * hidden if steps <= KEPT_WHOLE else steps // STRETCH * size)
    frames = 5 * sequences * size * min(pushed, size) + 2 * sequences * hidden**2
    return 8.0 * (inputs + weights + stretch + grown + frames)


def peak() -> int:
    """Most bytes of memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(case: tuple[str, int, int, int, int | None]) -> None:
    """Print by how many bytes the peak grew."""
    cell, hidden, steps, sequences, k = case
    torch.set_num_threads(1)
    layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
    inputs = torch.randn(steps, sequences, INPUT)
    lyapunov_spectrum(layer(INPUT, 16), inputs[:64], k=4)
    module, before = layer(INPUT, hidden), peak()
    lyapunov_spectrum(module, inputs, k=k)
    print(peak() - before)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(CASES[int(sys.argv[1])])
        sys.exit()
    print("| MB | steps | sequences | k | peak | gaps given back | bound |\n|---|---|---|---|---|---|---|")
    for number, case in enumerate(CASES):
        command, grown = [sys.executable, __file__, str(number)], []
        for more in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | more)
            grown.append(f"{float(done.stdout) / 1e6:.0f}")
        cell, hidden, *numbers, k = case
        row = [f"{cell.upper()} of {hidden}", *map(str, numbers), str(k or "all"), *grown, f"{bound(*case) / 1e6:.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)
