"""Watch the Lyapunov spectrum of a recurrent network while it learns to read handwritten digits, row by row.

python examples/digits.py                         an LSTM with PyTorch's initial weights: starts stable
python examples/digits.py --cell rnn --gain 3     recurrent weights of gain 3: gradients grow from the start
"""

import argparse
import logging
import math
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split
from torchmetrics.functional import accuracy

from lightning_lyapunov import LyapunovSpectrumCallback
from lightning_lyapunov.figures import spectrum_over_training
from lightning_lyapunov.reading.conditions import state_of
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import factor

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
Digits = Subset[tuple[Tensor, ...]]


class DigitReader(pl.LightningModule):
    """A recurrent layer that reads an image of 8 x 8 pixels as 8 steps of 8, and a linear layer that names the digit.

    Args:
        cell: Kind of recurrent layer: lstm, gru or rnn.
        hidden: Its hidden units, H.
        gain: Draw the recurrent weights from N(0, gain² / H), whose spectral radius is about the gain (for each
            gate of an LSTM or GRU). None for PyTorch's initialisation, which amounts to a gain of 0.58.
    """

    def __init__(self, cell: str = "lstm", hidden: int = 64, gain: float | None = None) -> None:
        super().__init__()
        self.reader = CELLS[cell](input_size=8, hidden_size=hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)
        if gain is not None:
            nn.init.normal_(self.reader.weight_hh_l0, std=gain / math.sqrt(hidden))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of images ``(B, 8, 8)``."""
        outputs, _ = self.reader(images)
        return self.head(outputs[:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch of images and labels."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Share of the digits named rightly."""
        images, labels = batch
        self.log("val/accuracy", accuracy(self(images), labels, task="multiclass", num_classes=10), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def read_digits() -> tuple[Digits, Digits]:
    """1500 digits to learn from and 297 to be tried on: images ``(8, 8)`` in [0, 1] and labels."""
    images, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(images).float().view(-1, 8, 8) / 16, torch.tensor(labels))
    train, val = random_split(digits, [1500, 297])
    return train, val


def quiet() -> None:
    """Spare newcomers Lightning's advice for larger runs, and a deprecation between Lightning and torch."""
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".*treespec")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


COLUMNS = "     λ ± error  gradient over 8 steps       predicted skill "


def figures(measurement: Measurement) -> str:
    """What one measurement says, under these columns."""
    m = measurement.metrics
    largest = f"{m['max']:+.2f} ± {m['max_error']:.2f}"
    typical, most = factor(m["gradient_gain"]), factor(m["gradient_growth"])
    predicted = f"{m['aelle/performance']:.2f} ({m['aelle/performance_low']:.2f}–{m['aelle/performance_high']:.2f})"
    return f"  {largest:>12}  {f'{typical}, at most {most}':<26}  {predicted}"


class PrintEpochs(pl.Callback):
    """One line for each measurement; ``pl_module.print`` keeps clear of the progress bar."""

    def __init__(self, lyapunov: LyapunovSpectrumCallback) -> None:
        self.lyapunov = lyapunov

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The network as it was made."""
        pl_module.print(f"epochs   accuracy{COLUMNS}")
        self.print_line(pl_module, 0, math.nan)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What the epoch made of it."""
        self.print_line(pl_module, trainer.current_epoch + 1, float(trainer.callback_metrics["val/accuracy"]))

    def print_line(self, pl_module: pl.LightningModule, epochs: int, accuracy: float) -> None:
        """The figures of the last measurement."""
        last = self.lyapunov.history[-1]
        known = "" if math.isnan(accuracy) else f"{accuracy:.1%}"
        pl_module.print(f"{epochs:>6}   {known:>8}{figures(last)}")


def main() -> None:
    """Train, measure, and show where to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--gain", type=float, help="scale of the initial recurrent weights; PyTorch's own if left out")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs"))
    args = parser.parse_args()
    for name in ("hidden", "epochs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}.")

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    pl.seed_everything(args.seed, verbose=False)
    train, val = read_digits()

    # All exponents, every epoch; the scorer is told the accuracy so far, which by chance is a tenth.
    lyapunov = LyapunovSpectrumCallback(
        k=None, max_overhead=None, num_sequences=32, performance="val/accuracy", performance_range=(0.1, 1.0)
    )
    name = args.cell if args.gain is None else f"{args.cell}-gain-{args.gain:g}"
    logger = TensorBoardLogger(args.logdir, name=name)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",  # faster than a GPU for a network of this size
        logger=logger,
        callbacks=[TQDMProgressBar(), lyapunov, PrintEpochs(lyapunov)],  # in this order: it prints above the bar
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(
        DigitReader(args.cell, args.hidden, args.gain), DataLoader(train, 32, shuffle=True), DataLoader(val, 297)
    )

    first, last = lyapunov.history[0], lyapunov.history[-1]
    print(f"\n{args.epochs} epochs in {time.perf_counter() - start:.0f} s. λ: largest exponent, in nats per step.\n")
    print(f"      {COLUMNS}")
    print(f"before{figures(first)}  {state_of([first])}")
    print(f"after {figures(last)}  {state_of(lyapunov.history)}\n")

    picture = Path(logger.log_dir) / "spectrum.png"
    spectrum_over_training(lyapunov.history).savefig(picture)
    print(f"Picture      {picture}\nTensorBoard  {sys.executable} -m tensorboard.main --logdir {args.logdir}")


if __name__ == "__main__":
    main()
