"""Diagnose, condition, train: three networks that cannot hold a symbol for 40 steps, and what each needs.

A symbol is shown at the first step, noise at the 40 after it, and then the network is asked which symbol it was. All
three fail at it, for opposite reasons. Before the first update the diagnosis of each spectrum names its state and the
change that cures it, with its number; the change is made, nothing else, and the network is trained again from the same
seed.

python examples/rescue.py             three seeds: a minute
python examples/rescue.py --quick     one seed, half the training: some seconds
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovConditioning, LyapunovSpectrumCallback
from lightning_lyapunov.reading import Finding, History, findings

SYMBOLS, LAG, HIDDEN = 4, 40, 32
"""Symbols to tell apart, so that a guess is right in a quarter of cases; steps to hold one; hidden units H."""


class Recall(pl.LightningModule):
    """A recurrent layer that reads a sequence, and a linear layer that names the symbol at its start."""

    def __init__(self, layer: nn.RNNBase, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, SYMBOLS)
        self.weight_decay = weight_decay

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits ``(B, SYMBOLS)`` of sequences ``(B, LAG + 1, SYMBOLS)``."""
        outputs, _ = self.layer(sequences)
        return self.head(outputs[:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch of sequences and symbols."""
        sequences, symbols = batch
        return nn.functional.cross_entropy(self(sequences), symbols)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Share of the symbols named rightly."""
        sequences, symbols = batch
        self.log("val/accuracy", (self(sequences).argmax(-1) == symbols).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3, weight_decay=self.weight_decay)


def recall_data(size: int, seed: int, lag: int = LAG) -> TensorDataset:
    """Sequences whose first step shows a symbol, in noise of standard deviation 0.1, and the symbols."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(SYMBOLS, (size,), generator=generator)
    sequences = 0.1 * torch.randn(size, lag + 1, SYMBOLS, generator=generator)
    sequences[:, 0] += nn.functional.one_hot(symbols, SYMBOLS)
    return TensorDataset(sequences, symbols)


class Run(NamedTuple):
    """A training that is over."""

    history: History
    """What was measured meanwhile."""
    accuracy: float
    """Share of the symbols named rightly in the end."""
    layer: nn.RNNBase
    """The layer that was trained."""


def trained(
    make: Callable[[], nn.RNNBase], seed: int, *, epochs: int = 6, lag: int | None = None, weight_decay: float = 0.0
) -> Run:
    """Train a layer and watch its spectrum; condition it first if a lag is given."""
    pl.seed_everything(seed, verbose=False)
    lyapunov = LyapunovSpectrumCallback(k=None, scorer=None, max_overhead=None)
    first = [] if lag is None else [LyapunovConditioning(lag=lag)]
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*first, lyapunov],
    )  # fmt: skip
    train, val = DataLoader(recall_data(2048, seed), 64, shuffle=True), DataLoader(recall_data(512, -1), 512)
    model = Recall(make(), weight_decay)
    trainer.fit(model, train, val)
    return Run(lyapunov.history, float(trainer.callback_metrics["val/accuracy"]), model.layer)


def at_first(history: History) -> list[Finding]:
    """What was known before the first update."""
    beginning = History()
    beginning.append(history[0])
    return findings(beginning)


def plain_rnn() -> nn.RNN:
    """An Elman network with PyTorch's initial weights, which amount to a gain of 0.58."""
    return nn.RNN(SYMBOLS, HIDDEN, batch_first=True)


def strong_rnn(gain: float = 3.0) -> nn.RNN:
    """Recurrent weights from N(0, gain² / H), whose spectral radius is about the gain."""
    layer = plain_rnn()
    nn.init.normal_(layer.get_parameter("weight_hh_l0"), std=gain / math.sqrt(HIDDEN))
    return layer


def orthogonal_rnn() -> nn.RNN:
    """Recurrent weights that neither stretch nor shrink."""
    layer = plain_rnn()
    nn.init.orthogonal_(layer.get_parameter("weight_hh_l0"))
    return layer


def plain_lstm() -> nn.LSTM:
    """An LSTM with PyTorch's initial weights: its forget gates are half open."""
    return nn.LSTM(SYMBOLS, HIDDEN, batch_first=True)


def keeping_lstm(bias: float = 5.0) -> nn.LSTM:
    """Forget gates that begin open: σ(5) = 0.993."""
    layer = plain_lstm()
    with torch.no_grad():
        for name, value in (("bias_ih_l0", bias), ("bias_hh_l0", 0.0)):
            layer.get_parameter(name)[HIDDEN : 2 * HIDDEN] = value
    return layer


def scaled(make: Callable[[], nn.RNNBase], factor: float) -> Callable[[], nn.RNNBase]:
    """The same with its recurrent weights scaled."""

    def softer() -> nn.RNNBase:
        layer = make()
        with torch.no_grad():
            layer.get_parameter("weight_hh_l0").mul_(factor)
        return layer

    return softer


NETWORKS = {
    "RNN as PyTorch makes it": plain_rnn,
    "RNN, recurrent gain 3": strong_rnn,
    "LSTM as PyTorch makes it": plain_lstm,
}


def quiet() -> None:
    """Spare newcomers Lightning's advice for larger runs, and a deprecation between Lightning and torch."""
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".*treespec")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning_lyapunov").setLevel(logging.ERROR)  # what it would say as it happens is printed below


def row(what: str, seed: int, run: Run) -> str:
    """One line of the table."""
    before, after = (f"{run.history[i].gain:+.1f}" for i in (0, -1))
    return f"{what:<38} {seed:>4}   {before:>11}   {after:>10}   {run.accuracy:>8.1%}"


def main() -> None:
    """Fail, read, change, learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and half the training")
    args = parser.parse_args()
    seeds, epochs = (range(1), 3) if args.quick else (range(3), 6)

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    print(
        f"Name one of {SYMBOLS} symbols {LAG} steps after it was shown; a guess is right in {1 / SYMBOLS:.0%} of cases."
    )
    print(
        "The gain is what a gradient grows by from the last step to the first, in nats: +2.3 tenfold, -2.3 to a tenth."
    )
    for network, make in NETWORKS.items():
        as_it_was = [trained(make, seed, epochs=epochs) for seed in seeds]
        print(f"\n{network}\n")
        for finding in at_first(as_it_was[0].history):
            print(f"  [{finding.state}] {finding.text}")
        print(f"\n{'':<38} seed   gain before   gain after   accuracy")
        for seed, run in zip(seeds, as_it_was, strict=True):
            print(row("as it was", seed, run))
        for seed, run in zip(seeds, as_it_was, strict=True):
            if (factor := run.history[0].softening["layer"]) < 1:
                softer = trained(scaled(make, factor), seed, epochs=epochs)
                print(row(f"recurrent weights scaled by {factor:.2g}", seed, softer))
        for seed in seeds:
            print(row(f"LyapunovConditioning(lag={LAG})", seed, trained(make, seed, epochs=epochs, lag=LAG)))


if __name__ == "__main__":
    main()
