"""A training loop of your own, watched: plain PyTorch, and no Trainer.

A symbol is shown at the first step, noise at the 12 after it, and then a GRU is asked which symbol it was. The loop is
the usual one; three lines are new: make a monitor, record a pass that is made anyway, here that of the validation, and
measure. At first a gradient shrinks to less than a hundredth on its way back to the symbol, and the network guesses. It
learns as soon as gradients arrive, and one sees them arrive before the accuracy rises.

python examples/plain_loop.py                      some seconds
python examples/plain_loop.py --logdir runs/plain  for TensorBoard too, and with a page about the run
"""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov import LyapunovMonitor
from lightning_lyapunov.reading.words import factor

SYMBOLS, LAG, HIDDEN, BATCH = 4, 12, 32, 64
"""Symbols to tell apart, so that a guess is right in a quarter of cases; steps to hold one; hidden units; sequences."""


class Recall(nn.Module):
    """A GRU that reads a sequence, and a linear layer that names the symbol at its start."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(SYMBOLS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits ``(B, SYMBOLS)`` of sequences ``(B, LAG + 1, SYMBOLS)``."""
        outputs, _ = self.gru(sequences)
        return self.head(outputs[:, -1])


def recall_data(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences whose first step shows a symbol, in noise of standard deviation 0.1, and the symbols."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(SYMBOLS, (size,), generator=generator)
    sequences = 0.1 * torch.randn(size, LAG + 1, SYMBOLS, generator=generator)
    sequences[:, 0] += nn.functional.one_hot(symbols, SYMBOLS)
    return sequences, symbols


def main() -> None:
    """Train, measure after each epoch, and say what it means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the training")
    parser.add_argument("--logdir", type=Path, help="where to write for TensorBoard, and the page about the run")
    args = parser.parse_args()
    epochs = 5 if args.quick else 8

    logging.getLogger("lightning_lyapunov").setLevel(logging.ERROR)  # what it would say as it happens is printed below
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    torch.manual_seed(0)
    train, val = recall_data(2048, seed=0), recall_data(512, seed=1)
    model = Recall()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    writer: Any = None
    if args.logdir is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(args.logdir))
    # The scorer is told the accuracy so far, which by chance is a quarter.
    monitor = LyapunovMonitor(model, to=writer, performance_range=(1 / SYMBOLS, 1.0))

    print("updates   accuracy    λ_max   gradient over the sequence      predicted skill")
    with monitor, writer or nullcontext():
        for epoch in range(epochs + 1):
            model.eval()
            with torch.no_grad(), monitor.record("validation"):
                accuracy = float((model(val[0]).argmax(-1) == val[1]).float().mean())
            step = epoch * len(train[0]) // BATCH
            reached = accuracy if epoch else None  # before the first update it tells nothing
            if monitor.measure(step, epoch=epoch, performance=reached, always=epoch == epochs):
                m = monitor.history[-1].metrics  # else the budget had no room for it
                gradient = f"{factor(m['gradient_gain'])}, at most {factor(m['gradient_growth'])}"
                skill = f"{m['aelle/performance']:.2f}"
                print(f"{step:>7}   {accuracy:>8.1%}   {m['max']:+6.2f}   {gradient:<30}  {skill:>15}")
            if epoch == epochs:
                break
            model.train()
            for rows in torch.randperm(len(train[0])).split(BATCH):
                loss = nn.functional.cross_entropy(model(train[0][rows]), train[1][rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        page = monitor.report(args.logdir) if args.logdir else None

    print()
    for finding in monitor.findings:
        print(f"  [{finding.state}] {finding.text}")
    if args.logdir is not None:
        print(f"\nThe page about the run: {page}\nIn TensorBoard: tensorboard --logdir {args.logdir}")


if __name__ == "__main__":
    main()
