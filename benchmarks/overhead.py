"""What one measurement costs, as a share of one training epoch, and what the callback costs a whole run.

The run: a network with 128 units on 1,500 sequences of 64 steps, batch 128. Each measurement and each epoch is timed in
turn in one process; a share is the median of their ratios. Then the LSTM's run, as the callback measures it unless told
otherwise, within its budget: in how many epochs it measured, the share of the training time after the first and second
epoch and at the end as it logs them, and the time of the whole fit over that of one without it, in turn.

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


SEQUENCES = 1500
RUN_EPOCHS, RUNS = 12, 3


def fit(module: Reference, *callbacks: pl.Callback, epochs: int) -> None:
    x = torch.randn(SEQUENCES, 64, 8, generator=torch.Generator().manual_seed(0))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=128))


def share(cell: type[nn.RNNBase], k: int | None, *, hidden: int = 128, epochs: int = 5) -> float:
    clock, ours = Clock(), LyapunovSpectrumCallback(k=k, max_overhead=None)
    fit(Reference(cell, hidden), ours, clock, epochs=epochs)
    seconds = [m.metrics["seconds"] for m in list(ours.history)[1:]]
    return statistics.median(s / e for s, e in zip(seconds, clock.epochs, strict=True))


def rows(epochs: int) -> Iterator[dict[str, Any]]:
    """One for each cell."""
    for cell in (nn.RNN, nn.GRU, nn.LSTM):
        shares = {name: share(cell, k, epochs=epochs) for name, k in {"leading": 32, "whole": None}.items()}
        yield {"cell": cell.__name__, **shares}


def run(epochs: int = RUN_EPOCHS) -> dict[str, Any]:
    """The LSTM's run as it is by default."""
    ratios, logged, measured = [], [], []
    for _ in range(RUNS):
        ours, spent = LyapunovSpectrumCallback(), {}
        for name, callbacks in {"without": [], "with": [ours]}.items():
            torch.manual_seed(0)
            start = time.process_time()
            fit(Reference(nn.LSTM, 128), *callbacks, epochs=epochs)
            spent[name] = time.process_time() - start
        ratios.append(spent["with"] / spent["without"] - 1)
        history = [m for m in ours.history if m.step > 0]
        logged.append([m.metrics["overhead"] for m in history])
        measured.append(len(history))
    shares = [statistics.median(values) for values in zip(*(some[: min(measured)] for some in logged), strict=True)]
    return {"epochs": epochs, "measured": min(measured), "logged": shares, "fit": statistics.median(ratios)}


def sentence(found: dict[str, Any]) -> str:
    """What :func:`run` found."""
    first, second, last = found["logged"][0], found["logged"][min(1, len(found["logged"]) - 1)], found["logged"][-1]
    return (
        f"The LSTM's run as the callback measures it unless told otherwise, {found['epochs']} epochs: measured in "
        f"{found['measured']} of them, {first:.1%} of the training time after the first, {second:.1%} after the second "
        f"and {last:.1%} at the end as logged; the whole fit took {found['fit']:.0%} longer than without it, all that "
        "is loaded and built once included."
    )


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
    whole_run = run()
    print(f"\n{sentence(whole_run)}")
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found, "run": whole_run}, indent=1))
