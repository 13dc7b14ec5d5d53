"""The engine beside that of an earlier commit, in turn in one process: how much faster, and what the new numbers cost.

python benchmarks/before.py                      against the commit before the engine was rewritten, five rounds: 20 min
python benchmarks/before.py --only cells         one group; --rev REV against another commit; --rounds 3

The earlier package is taken out of git and imported under another name. Times are of the process, one thread; a ratio
is the median over the rounds, in each of which both are timed once.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum

BEFORE = "5e5d094"
"""The commit before the engine was rewritten."""
ROOT = Path(__file__).parent.parent
Measure = Callable[[], Any]


def earlier(rev: str, directory: Path) -> Any:
    """``lyapunov_spectrum`` of the package as it was at a commit."""
    archive = subprocess.run(["git", "archive", rev, "lightning_lyapunov"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    (directory / "lightning_lyapunov").rename(directory / "earlier_lyapunov")
    for file in (directory / "earlier_lyapunov").rglob("*.py"):
        file.write_text(file.read_text("utf-8").replace("lightning_lyapunov", "earlier_lyapunov"), "utf-8")
    sys.path.insert(0, str(directory))
    import earlier_lyapunov

    return earlier_lyapunov.lyapunov_spectrum


@dataclass(frozen=True)
class Case:
    """Two ways to measure."""

    group: str
    name: str
    reference: Measure
    ours: Measure
    target: str
    """What the ratio reference ÷ ours should reach, as ``>= 1.6``; or ours ÷ reference, as ``<= 2.5``; empty: none."""


# ------------------------------------------------------------------ systems


def ring(dt: float = 0.05) -> Callable[[Tensor | None, Tensor], Tensor]:
    """The flow of Lorenz (1996) on a ring of as many places as the state has, one Runge-Kutta step."""

    def velocity(x: Tensor) -> Tensor:
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8

    def step(_: Tensor | None, x: Tensor) -> Tensor:
        a = velocity(x)
        b = velocity(x + dt / 2 * a)
        c = velocity(x + dt / 2 * b)
        d = velocity(x + dt * c)
        return x + dt / 6 * (a + 2 * b + 2 * c + d)

    return step


class NormalisedLSTM(nn.Module):
    """An LSTM cell whose gates and memory are normalised over the layer."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + hidden, 4 * hidden)
        self.norm, self.memory = nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.norm(self.gates(torch.cat([x, h], -1))).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.memory(c)), c


def network(kind: str, hidden: int, gain: float = 1.3) -> nn.RNNBase:
    """A network with recurrent weights of standard deviation gain / √H, as in benchmarks/engine.py."""
    torch.manual_seed(0)
    module: nn.RNNBase = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}[kind](8, hidden)
    nn.init.normal_(module.weight_hh_l0, std=gain / math.sqrt(hidden))
    return module


def noise(steps: int, sequences: int, width: int = 8) -> Tensor:
    """White noise ``(T, B, I)``."""
    return torch.randn(steps, sequences, width, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ cases


def cases(before: Any) -> Iterator[Case]:
    """All of them; ``before`` is the earlier function."""
    now = lyapunov_spectrum
    alone: dict[str, Any] = {"transient": 16, "growth": 0}
    settle: dict[str, Any] = {"transient": 16}

    def own(name: str, system: Any, inputs: Tensor | None, target: str, **options: Any) -> Case:
        return Case(
            "cells",
            name,
            lambda: before(system, inputs, transient=16, **options),
            lambda: now(system, inputs, **alone, **options),
            target,
        )

    start = torch.randn(16, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    yield own("Runge-Kutta, D = 20, B = 1", ring(), None, ">= 15", state=start[:1, :20], steps=600)
    yield own("Runge-Kutta, D = 64, B = 16, whole", ring(), None, ">= 2", state=start, steps=100)
    for hidden, sequences, steps, target in ((10, 1, 600, ">= 15"), (32, 16, 100, ">= 2")):
        torch.manual_seed(0)
        cell, zeros = NormalisedLSTM(8, hidden), torch.zeros(sequences, hidden)
        name = f"normalised LSTM, D = {2 * hidden}, B = {sequences}, whole"
        yield own(name, cell, noise(steps, sequences), target, state=(zeros, zeros))
    big = NormalisedLSTM(8, 64)
    zeros = torch.zeros(16, 64)
    yield own("normalised LSTM, D = 128, B = 16, k = 8", big, noise(60, 16), ">= .95", state=(zeros, zeros), k=8)

    for kind, target in (("RNN", ">= 1.6"), ("GRU", ">= 1.9"), ("LSTM", ">= 1.3")):
        module, inputs = network(kind, 32), noise(1500, 1)
        yield Case(
            "single",
            f"{kind}, H = 32, B = 1, whole",
            lambda module=module, inputs=inputs: before(module, inputs, **settle),
            lambda module=module, inputs=inputs: now(module, inputs, **alone),
            target,
        )

    for kind in ("RNN", "GRU", "LSTM"):
        for hidden, sequences in ((64, 16), (128, 16), (256, 8)):
            module, inputs = network(kind, hidden), noise(64, sequences)
            yield Case(
                "exponents",
                f"{kind}, H = {hidden}, 32 leading, as many columns",
                lambda module=module, inputs=inputs: before(module, inputs, k=34, **settle),
                lambda module=module, inputs=inputs: now(module, inputs, k=32, **alone),
                ">= .98",
            )
            if kind != "LSTM" or hidden < 256:
                yield Case(
                    "exponents",
                    f"{kind}, H = {hidden}, whole",
                    lambda module=module, inputs=inputs: before(module, inputs, **settle),
                    lambda module=module, inputs=inputs: now(module, inputs, **alone),
                    ">= .98",
                )

    for kind, hidden, sequences in (
        ("RNN", 64, 4),
        ("RNN", 128, 1),
        ("GRU", 128, 1),
        ("LSTM", 64, 1),
        ("LSTM", 128, 1),
    ):
        module, inputs = network(kind, hidden), noise(200, sequences)
        yield Case(
            "few",
            f"{kind}, H = {hidden}, B = {sequences}, whole",
            lambda module=module, inputs=inputs: before(module, inputs, **settle),
            lambda module=module, inputs=inputs: now(module, inputs, **alone),
            ">= .95",
        )

    for kind in ("RNN", "GRU", "LSTM"):
        module = network(kind, 128)
        inputs = noise(64, 16)
        yield Case(
            "price",
            f"{kind}, H = 128: two spare columns",
            lambda module=module, inputs=inputs: before(module, inputs, k=32, **settle),
            lambda module=module, inputs=inputs: now(module, inputs, k=32, **alone),
            "",
        )
        yield Case(
            "price",
            f"{kind}, H = 128: a default measurement of the callback",
            lambda module=module, inputs=inputs: before(module, inputs, k=32, **settle),
            lambda module=module, inputs=inputs: now(module, inputs, k=32),
            "<= 1.8",
        )
        for steps, target in ((64, "<= 2.5"), (32, "<= 2.5"), (16, "<= 3.5")):
            inputs = noise(steps, 16)
            yield Case(
                "price",
                f"{kind}, H = 128, T = {steps}: growth of 32 beside 32 exponents alone",
                lambda module=module, inputs=inputs: now(module, inputs, k=32, growth=0),
                lambda module=module, inputs=inputs: now(module, inputs, k=32, growth=32),
                target,
            )
        small, inputs = network(kind, 64), noise(32, 16)
        size = 64 * (2 if kind == "LSTM" else 1)
        yield Case(
            "price",
            f"{kind}, H = 64, T = 32: growth of all beside all exponents alone",
            lambda module=small, inputs=inputs: now(module, inputs, growth=0),
            lambda module=small, inputs=inputs, size=size: now(module, inputs, growth=size),
            "<= 2.6",
        )


# ------------------------------------------------------------------ timing


def seconds(measure: Measure) -> float:
    """Of the process, for one call."""
    begin = time.process_time()
    measure()
    return time.process_time() - begin


def main() -> None:
    """Time and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rev", default=BEFORE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="one group: cells, single, exponents, few or price")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        before = earlier(args.rev, Path(directory))
        print(f"| case | {args.rev}, s | now, s | ratio | target | |\n|---|---|---|---|---|---|")
        for case in cases(before):
            if args.only in (None, case.group):
                print(row(case, args.rounds), flush=True)


def row(case: Case, rounds: int) -> str:
    """A line of the table: reference ÷ ours, or ours ÷ reference where the target is an upper bound."""
    case.reference(), case.ours()  # both load and allocate once
    pairs = [(seconds(case.reference), seconds(case.ours)) for _ in range(rounds)]
    is_price = case.group == "price"
    ratio = statistics.median(b / a if is_price else a / b for a, b in pairs)
    reference, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    sign, _, bound = case.target.partition(" ")
    reached = "" if not bound else "yes" if (ratio >= float(bound)) == (sign == ">=") else "**no**"
    return f"| {case.name} | {reference:.3f} | {ours:.3f} | {ratio:.2f} | {case.target} | {reached} |"


if __name__ == "__main__":
    main()
