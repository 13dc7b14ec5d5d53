"""What one measurement costs, as a share of one training epoch.

The run: an LSTM with 128 units on 1,500 sequences of 64 steps, batch 128. Each measurement and each epoch is timed in
turn in one process; printed are the medians of their ratios.

Usage: python benchmarks/overhead.py [--threads N] [--epochs N] [--json FILE]
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovSpectrumCallback


class Reference(pl.LightningModule):
    def __init__(self, cell: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn, self.out = cell(8, hidden, batch_first=True), nn.Linear(hidden, 8)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        return (self.out(self.rnn(x)[0][:, :-1]) - x[:, 1:]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


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
    x = torch.randn(1500, 64, 8, generator=torch.Generator().manual_seed(0))
    fit = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ours, clock],
    )  # fmt: skip
    fit.fit(Reference(cell, hidden), DataLoader(TensorDataset(x), batch_size=128))
    seconds = [m.metrics["lyapunov/seconds"] for m in list(ours.history)[1:]]
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # Lightning's advice on loaders has no place in a table
    print(table([]))
    found = []
    for r in rows(args.epochs):
        found.append(r)
        print(table(found[-1:]).splitlines()[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found}, indent=1))
