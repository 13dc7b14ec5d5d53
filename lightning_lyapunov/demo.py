"""A first look: a network that will not learn is told so within its first epoch; changed as advised, it learns.

It is the same network twice, from the same seed: as PyTorch makes it, and with the one line that the callback's advice
names. What is said in between is the callback's own voice, as any script of a user's hears it.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov.bank.tasks import Task, loss, metric
from lightning_lyapunov.bank.tasks.sequences import at_the_end
from lightning_lyapunov.bank.tasks.task import Batch
from lightning_lyapunov.monitoring.notices import above_bars, fitted
from lightning_lyapunov.reading.verdict import SIGNS, Verdict
from lightning_lyapunov.reading.words import factor
from lightning_lyapunov.training.callback import LyapunovSpectrumCallback
from lightning_lyapunov.training.conditioning import LyapunovConditioning

SYMBOLS, LAG = 4, 40
EPOCH, BATCH, LOOKS = 800, 32, 4
"""Updates of the epoch, sequences an update, validations an epoch."""
ADVISED = f"LyapunovConditioning(lag={LAG})"
"""The change, as it is written among the callbacks, and as the advice names it."""
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def hold(batch: int, generator: Generator, held_out: bool, *, symbols: int = SYMBOLS, lag: int = LAG) -> Batch:
    """A symbol at the first step, in noise that goes on for so many steps; it is asked at the last."""
    shown = torch.randint(symbols, (batch,), generator=generator)
    inputs = 0.1 * torch.randn(lag + 1, batch, symbols, generator=generator)
    inputs[0] += one_hot(shown, symbols)
    return Batch(inputs, at_the_end(shown, lag + 1))


TASK = Task("hold-40", "hold", SYMBOLS, SYMBOLS, LAG + 1, "classes", 1 / SYMBOLS, hold)


class Reader(pl.LightningModule):
    """A recurrent layer and a linear read-out at every step, trained on a task.

    Args:
        task: The task.
        cell: Kind of recurrent layer: lstm, gru or rnn.
        hidden: Hidden units, H.
    """

    def __init__(self, task: Task = TASK, cell: str = "gru", hidden: int = 32) -> None:
        super().__init__()
        self.task = task
        self.reader = CELLS[cell](task.input_size, hidden, batch_first=True)
        self.head = nn.Linear(hidden, task.output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Read-outs ``(B, T, output_size)`` of sequences ``(B, T, input_size)``."""
        return self.head(self.reader(inputs)[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        value = loss(self.task, *self._answers(batch))[0]
        self.log("train/loss", value)
        return value

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on sequences that training does not see."""
        answers = self._answers(batch)
        self.log("val/loss", loss(self.task, *answers)[0])
        self.log("val/accuracy", metric(self.task, *answers)[0], prog_bar=True)

    def _answers(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Read-outs and targets as the bank lays them out: ``(1, T, B, O)`` and ``(T, B, ...)``."""
        inputs, targets = batch
        return self(inputs).transpose(0, 1)[None], targets.transpose(0, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, at its own rate of 0.001."""
        return torch.optim.Adam(self.parameters())


def loaders(task: Task, seed: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Sequences to learn from, and others to be tried on; batch first."""
    generator = Generator().manual_seed(seed)
    sizes = ((EPOCH * BATCH, False), (256, True))
    train, val = (task.sample(size, generator, held_out=held_out) for size, held_out in sizes)
    first, second = (TensorDataset(*(part.transpose(0, 1).contiguous() for part in batch)) for batch in (train, val))
    return DataLoader(first, BATCH, shuffle=True, generator=generator), DataLoader(second, 256)


@dataclass(frozen=True)
class Look:
    """What one validation showed."""

    updates: int
    loss: float
    accuracy: float
    gain: float
    """Nats that a gradient grows by over a sequence."""
    verdict: Verdict


class Table(pl.Callback):
    """A row for each measurement, above the progress bar.

    Attributes:
        looks: What the rows say.
    """

    def __init__(self) -> None:
        self.looks: list[Look] = []

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: LyapunovSpectrumCallback) -> None:
        """What the callback has just measured."""
        newest, verdict, seen = callback.history[-1], callback.verdict, trainer.callback_metrics
        assert verdict is not None
        now, accuracy = (float(seen.get(f"val/{name}", math.nan)) for name in ("loss", "accuracy"))
        look = Look(newest.step, now, accuracy, newest.gain, verdict)
        known = f"{now:>8.3f}{accuracy:>11.0%}" if look.updates else f"{'':>19}"
        if not self.looks:
            _print(f"{'updates':>9}{'loss':>8}{'accuracy':>11}{'gradient':>13}   verdict")
        _print(f"{look.updates:>9}{known}{factor(look.gain):>13}   {verdict.sign} {verdict.word}")
        self.looks.append(look)


def _print(text: str) -> None:
    """Print above the progress bars."""
    with above_bars():
        print(fitted(text, sys.stdout), flush=True)


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


def train(make: Callable[[], Reader], *first: pl.Callback, seed: int = 0, logger: Any = False) -> list[Look]:
    """Train for an epoch, and print a table of it.

    Args:
        make: Makes the network.
        *first: Callbacks before that which measures.
        seed: Of weights and sequences.
        logger: Beside whose files a report goes; False for neither.

    Returns:
        What each validation showed.
    """
    torch.manual_seed(seed)
    model, table = make(), Table()
    lyapunov = LyapunovSpectrumCallback(
        performance="val/accuracy",
        performance_range=(model.task.chance, 1.0),
        max_overhead=None,  # so that the same is measured, however fast the machine
        report=logger.log_dir if logger else None,
    )
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",  # faster than a GPU for a network of this size
            val_check_interval=1 / LOOKS,
            logger=logger,
            callbacks=[*first, lyapunov, table],
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=sys.stdout.isatty(),
            enable_model_summary=False,
        )
        trainer.fit(model, *loaders(model.task, seed))
    return table.looks


def run(directory: Path, *, seed: int = 0) -> Path:
    """Tell the story, and say where the report of its beginning is.

    Args:
        directory: Where TensorBoard's files and the reports go.
        seed: Of weights and sequences.

    Returns:
        The path of the report on the network that did not learn.
    """
    signs = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items())
    _print(
        f"One of {SYMBOLS} symbols is shown, noise follows for {LAG} steps, and a GRU of 32 units is asked which it "
        f"was. A guess is right in {1 / SYMBOLS:.0%}.\n\n"
        f"updates   how often the weights were changed, for {BATCH} sequences each time\n"
        f"loss      on sequences not trained on; a guess costs ln {SYMBOLS} = {math.log(SYMBOLS):.3f}\n"
        "accuracy  share of these sequences that are answered rightly\n"
        "gradient  what reaches the first step, where the symbol was, of 1 at the last\n"
        f"verdict   {signs}: by how many networks told so failed\n\n"
        "1. As PyTorch makes it:\n\n     callbacks=[LyapunovSpectrumCallback(...)]\n"
    )
    made = train(Reader, seed=seed, logger=TensorBoardLogger(directory, name="demo/as-made"))
    _print(
        "\n2. As advised, which sets the weights before the first update, so that the first step still counts "
        f"{LAG} steps later. Exponents say how fast a memory grows or fades: at 0 it stays, at -0.7 half of it is gone "
        "with each step.\n\n"
        f"     callbacks=[{ADVISED}, LyapunovSpectrumCallback(...)]\n"
    )
    changed = TensorBoardLogger(directory, name="demo/as-advised")
    advised = train(Reader, LyapunovConditioning(lag=LAG), seed=seed, logger=changed)
    _print(f"\n{moral(made, advised)}\n")
    page = max((directory / "demo" / "as-made").rglob("lyapunov.html"), key=lambda path: path.stat().st_mtime)
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    # Not wrapped, so that they can be copied.
    print(f"Report       {page}\nTensorBoard  {python} -m tensorboard.main --logdir {directory}", flush=True)
    return page


def moral(made: list[Look], advised: list[Look]) -> str:
    """What came of it, in numbers that stand in the tables."""
    (early, learning), (late, learnt) = ((made[i], advised[i]) for i in (1, -1))
    said = next((f"after {look.updates}" for look in made if look.verdict.word == "act"), "not once")
    return (
        f"After {early.updates} updates both looked like a slow start: losses of {early.loss:.3f} and "
        f"{learning.loss:.3f}, where a guess costs {math.log(SYMBOLS):.3f}. Of the first network the callback said act "
        f"{said}. After {late.updates} the first answers {late.accuracy:.0%} rightly, the second, changed by the line "
        f"that was named, {learnt.accuracy:.0%}."
    )
