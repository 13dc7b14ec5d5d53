"""A first look: a small LSTM of two layers learns to recall, and its Lyapunov spectrum is watched meanwhile."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.bank.tasks import TASKS, Task, loss, metric
from lightning_lyapunov.figures import LatentMap
from lightning_lyapunov.reading.conditions import has_settled
from lightning_lyapunov.reading.words import factor
from lightning_lyapunov.report import write_report
from lightning_lyapunov.training.callback import LyapunovSpectrumCallback

TASK = "recall-6"
"""A symbol is shown among others and asked for six steps later."""
SEQUENCES, BATCH = 9600, 32


class Reader(pl.LightningModule):
    """Two recurrent layers and a linear read-out at every step, trained on one of the bank's tasks.

    Args:
        task: Name of the task.
        hidden: Hidden units, H.
        gain: Draw the recurrent weights of the first layer from N(0, gain² / H); PyTorch's initialisation if None.
    """

    def __init__(self, task: str = TASK, hidden: int = 32, gain: float | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.task: Task = TASKS[task]
        self.reader = nn.LSTM(self.task.input_size, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, self.task.output_size)
        if gain is not None:
            nn.init.normal_(self.reader.get_parameter("weight_hh_l0"), std=gain / math.sqrt(hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        """Read-outs ``(B, T, output_size)`` of sequences ``(B, T, input_size)``."""
        return self.head(self.reader(inputs)[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        inputs, targets = batch
        value = loss(self.task, self(inputs).transpose(0, 1)[None], targets.transpose(0, 1))[0]
        self.log("train/loss", value)
        return value

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy on sequences that training does not see."""
        inputs, targets = batch
        value = metric(self.task, self(inputs).transpose(0, 1)[None], targets.transpose(0, 1))[0]
        self.log("val/accuracy", value, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class _PrintEpochs(pl.Callback):
    """One line for the network as it was made, and one for each epoch."""

    def __init__(self, lyapunov: LyapunovSpectrumCallback) -> None:
        self.lyapunov = lyapunov

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.print("epochs   accuracy   λ_max ± error   settled   gradient over a sequence   predicted skill")
        self.print_line(pl_module, 0, "")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.print_line(pl_module, trainer.current_epoch + 1, f"{accuracy:.1%}")

    def print_line(self, pl_module: pl.LightningModule, epochs: int, accuracy: str) -> None:
        if not len(self.lyapunov.history):  # the measurement failed, which the callback has told
            return
        newest = self.lyapunov.history[-1]
        now = newest.metrics
        missing = dict.fromkeys(("aelle/performance", "aelle/performance_low", "aelle/performance_high"), math.nan)
        skill, low, high = ((missing | now)[name] for name in missing)
        pl_module.print(
            f"{epochs:>6}   {accuracy:>8}   {now['max']:>+5.2f} ± {now['max_error']:.2f}   "
            f"{'yes' if has_settled(newest) else 'no':>7}   {factor(now['gradient_gain']):>24}   "
            f"{skill:.2f} ({low:.2f} to {high:.2f})"
        )


def loaders(task: Task, seed: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Sequences to learn from, and others to be tried on; batch first."""
    generator = torch.Generator().manual_seed(seed)
    train, val = (task.sample(n, generator, held_out=held_out) for n, held_out in ((SEQUENCES, False), (256, True)))
    first, second = (TensorDataset(*(part.transpose(0, 1).contiguous() for part in batch)) for batch in (train, val))
    return DataLoader(first, BATCH, shuffle=True, generator=generator), DataLoader(second, 256)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Lightning say only what matters, and leave its log as it was."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    with warnings.catch_warnings():
        for harmless in (".*does not have many workers", ".*treespec"):
            warnings.filterwarnings("ignore", harmless)
        log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            log.setLevel(level)


def run(directory: Path, *, hidden: int = 32, gain: float | None = None, epochs: int = 8, seed: int = 0) -> Path:
    """Train, print a line for each epoch, write the report, and say where to look.

    Args:
        directory: Where TensorBoard's files and the report go.
        hidden: Hidden units.
        gain: Scale of the initial recurrent weights; PyTorch's own initialisation if None.
        epochs: Epochs of 300 updates each.
        seed: Of weights and sequences.

    Returns:
        The path of the report.
    """
    torch.manual_seed(seed)
    model = Reader(hidden=hidden, gain=gain)
    lyapunov = LyapunovSpectrumCallback(
        k=None,
        max_overhead=None,
        performance="val/accuracy",
        performance_range=(model.task.chance, 1.0),
    )
    logger = TensorBoardLogger(directory, name="demo")
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",  # faster than a GPU for a network of this size
            logger=logger,
            callbacks=[lyapunov, _PrintEpochs(lyapunov)],
            log_every_n_steps=10,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(model, *loaders(model.task, seed))
    print(f"\nVerdict      {lyapunov.verdict}")
    print(f"\n{epochs} epochs in {time.perf_counter() - start:.0f} s. λ in nats per step.\n")
    settings = {"task": model.task.name, "hidden": hidden, "gain": gain, "epochs": epochs, "seed": seed}
    page = write_report(
        lyapunov.history,
        Path(logger.log_dir) / "report.html",
        settings=settings,
        title="An LSTM learns to recall",
        latent_map=LatentMap.of_bank(AeLLEScorer.from_pretrained()),
    )
    print(f"Report       {page}\nTensorBoard  {sys.executable} -m tensorboard.main --logdir {directory}")
    return page
