"""What one measurement costs, as a share of one training epoch, and what the callback costs a whole fit.

One measurement: a network with 128 units on 1,500 sequences of 64 steps, batch 128. Each measurement and each epoch is
timed in turn in one process; a share is the median of their ratios.

A whole fit: an LSTM of 64 units with TensorBoard, as it is by default, each fit in a process of its own; CPU time of
all threads, from the call of ``fit`` to its return, once everything is imported. With the callback and without it in
turn, ten pairs; the ratio is the mean over pairs, with its 95 % interval. Beside it the overhead that the callback
itself counted.

Usage: python benchmarks/overhead.py [--threads N] [--epochs N] [--pairs N] [--cases NAME ...] [--results FILE]
           [--json FILE]
With --results each pair is kept in a file of lines of JSON, and those that are there already are not run again.
"""

import argparse
import json
import logging
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovSpectrumCallback

SEQUENCES = 1500
PAIRS = 10


class Reference(pl.LightningModule):
    def __init__(self, cell: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn, self.out = cell(8, hidden, batch_first=True), nn.Linear(hidden, 8)

    def loss(self, batch: list[Tensor]) -> Tensor:
        (x,) = batch
        return (self.out(self.rnn(x)[0][:, :-1]) - x[:, 1:]).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def noise(sequences: int) -> TensorDataset:
    return TensorDataset(torch.randn(sequences, 64, 8, generator=torch.Generator().manual_seed(0)))


# ------------------------------------------------------------------ one measurement


class Clock(pl.Callback):
    """Seconds of each epoch, from its first batch to its last: no measurement lies between."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self._end = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs.append(self._end - self._start)


def share(cell: type[nn.RNNBase], k: int | None, *, hidden: int = 128, epochs: int = 5) -> float:
    clock, ours = Clock(), LyapunovSpectrumCallback(k=k, max_overhead=None)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ours, clock],
    )  # fmt: skip
    trainer.fit(Reference(cell, hidden), DataLoader(noise(SEQUENCES), batch_size=128))
    seconds = [m.metrics["seconds"] for m in list(ours.history)[1:]]
    return statistics.median(s / e for s, e in zip(seconds, clock.epochs, strict=True))


def rows(epochs: int) -> Iterator[dict[str, Any]]:
    """One for each cell."""
    for cell in (nn.RNN, nn.GRU, nn.LSTM):
        shares = {name: share(cell, k, epochs=epochs) for name, k in {"leading": 32, "whole": None}.items()}
        yield {"cell": cell.__name__, **shares}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| cell, 128 units | 32 leading exponents | whole spectrum |\n|---|---|---|"
    return "\n".join([head, *(f"| {r['cell']} | {r['leading']:.0%} | {r['whole']:.0%} |" for r in found)])


# ------------------------------------------------------------------ a whole fit


@dataclass(frozen=True)
class Case:
    """A fit: 15 epochs of so many batches of 64 sequences, and two of validation in each."""

    title: str
    batches: int
    most: float | None = None
    """What the upper end of the ratio's interval should not pass."""
    figures: bool = True


CASES = {
    "second": Case("a second", 2),
    "five-without": Case("five seconds, without pictures", 18, 1.25, figures=False),
    "five": Case("five seconds", 18),
    "seven": Case("seven seconds", 26),
    "minute": Case("a minute", 240, 1.08),
}
EPOCHS, BATCH, HIDDEN = 15, 64, 64


def fitted(case: Case, with_callback: bool) -> dict[str, Any]:
    """Fit in this process, and what it took: CPU seconds of the fit and of the process so far, and as counted."""
    import lightning_lyapunov.figures  # noqa: F401  (imports are apart, in both fits)

    torch.manual_seed(0)
    ours = LyapunovSpectrumCallback(figures=case.figures)
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=TensorBoardLogger(directory), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[ours] if with_callback else [],
        )  # fmt: skip
        train = DataLoader(noise(case.batches * BATCH), batch_size=BATCH)
        validation = DataLoader(noise(2 * BATCH), batch_size=BATCH)
        module = Reference(nn.LSTM, HIDDEN)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.fit(module, train, validation)
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    took["process"] = usage.ru_utime + usage.ru_stime
    if not with_callback:
        return took
    return took | {"measured": len(ours.history), **spent(ours)}


def spent(ours: LyapunovSpectrumCallback) -> dict[str, Any]:
    """What the callback counted, by kind, the last pictures included."""
    budget, clock = ours._budget, ours._clock
    return {"counted": budget.spent / clock.trained, "kinds": {k: round(s, 3) for k, s in budget.by_kind.items()}}


def pair(name: str, number: int, threads: int) -> dict[str, Any]:
    """One with and one without, each in a process of its own; which comes first alternates."""
    found: dict[str, Any] = {"case": name, "pair": number, "threads": threads}
    for arm in ("without", "with")[:: 1 if number % 2 else -1]:
        command = [sys.executable, __file__, "--threads", str(threads), "--fit", name, arm]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
        found[arm] = json.loads(answer.stdout.splitlines()[-1])
    return found


def pairs(names: Sequence[str], count: int, threads: int, results: Path | None) -> list[dict[str, Any]]:
    """All pairs of the cases, those in the file of results as they are there; the cases in turn."""
    kept = (
        [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results and results.exists() else []
    )
    done = {(p["case"], p["pair"], p["threads"]) for p in kept}
    for number in range(count):
        for name in names:
            if (name, number, threads) not in done:
                kept.append(pair(name, number, threads))
                print(f"{name} {number}: {kept[-1]['with']['cpu'] / kept[-1]['without']['cpu']:.3f}", flush=True)
                if results:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(kept[-1]) + "\n")
    return [p for p in kept if p["case"] in names and p["pair"] < count and p["threads"] == threads]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t (its quantile by Cornish and Fisher's expansion)."""
    mean, free = statistics.fmean(values), len(values) - 1
    if free < 1:
        return mean, math.nan, math.nan
    z = statistics.NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    margin = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - margin, mean + margin


def sentence(found: dict[str, Any]) -> str:
    """What :func:`pairs` found, as Markdown: a sentence and a table."""
    lines = [
        f"A whole fit as it is by default: an LSTM of {HIDDEN} units, {EPOCHS} epochs, TensorBoard; CPU time of the "
        "fit with the callback over that without it.",
        "",
        "| fit | pairs | without, s | ratio | 95 % interval | at most | | as counted | measurements |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        if some := [p for p in found["pairs"] if p["case"] == name]:
            ratio, low, high = interval([p["with"]["cpu"] / p["without"]["cpu"] for p in some])
            middle = {key: statistics.median(p["with"][key] for p in some) for key in ("counted", "measured")}
            seconds = statistics.median(p["without"]["cpu"] for p in some)
            target = f"{case.most:.2f} | {'yes' if high <= case.most else '**no**'}" if case.most else " |"
            lines.append(
                f"| {case.title} | {len(some)} | {seconds:.1f} | {ratio:.3f} | {low:.3f} to {high:.3f} | {target} | "
                f"{middle['counted']:.1%} | {middle['measured']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fit", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # Lightning's advice on loaders has no place in a table
    if args.fit:
        name, arm = args.fit
        print(json.dumps(fitted(CASES[name], arm == "with")))
        return
    found = []
    if args.epochs:
        print(table([]))
        for r in rows(args.epochs):
            found.append(r)
            print(table(found[-1:]).splitlines()[-1], flush=True)
    run = {"pairs": pairs(args.cases, args.pairs, args.threads, args.results)}
    print(f"\n{sentence(run)}")
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found, "run": run}, indent=1))


if __name__ == "__main__":
    main()
