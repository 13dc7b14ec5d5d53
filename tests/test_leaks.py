"""Measuring a thousand times leaves nothing behind: what is alive after some hundred measurements is all there ever is.

The oracle is the process itself, counted twice at moments when the history holds equally much.
"""

import gc
import os
import threading
from collections import Counter
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Regressor, loader, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.reading import History, Measurement, history

FEWER = 5
"""Objects of a type: a cache may still settle, nothing may grow. Between two counts are 6 sets of pictures or more."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice; ours are asserted where they belong

Counts = Counter[str]


def alive(module: nn.Module) -> Counts:
    """What there is of everything: objects by type, elements of tensors, hooks, threads, open files."""
    forget_texts()
    gc.collect()
    objects = gc.get_objects()
    found = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in objects)
    for name in [name for name in found if name.startswith("sympy.")]:
        del found[name]  # a fit makes none: they are of tests before that compiled something, and come and go
    found["elements of tensors"] = sum(thing.numel() for thing in objects if issubclass(type(thing), Tensor))
    found["hooks"] = hooks_of(module)
    found["threads"] = threading.active_count()
    if Path("/proc/self/fd").exists():
        found["open files"] = len(os.listdir("/proc/self/fd"))
    return found


def forget_texts() -> None:
    """Matplotlib remembers the extent of each of the last thousands of texts."""
    for thing in gc.get_objects():
        if type(thing) is _lru_cache_wrapper and str(thing.__module__).startswith("matplotlib"):
            thing.cache_clear()


def hooks_of(module: nn.Module) -> int:
    """Hooks of every kind, on every part."""
    kinds = [vars(part)[name] for part in module.modules() for name in vars(part) if name.endswith("_hooks")]
    return sum(map(len, kinds))


def grown(before: Counts, after: Counts) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] - before[name] > FEWER}


def resident() -> float:
    """Bytes of memory in use, of any kind; 0 on systems that do not say it in a file."""
    file = Path("/proc/self/statm")
    return int(file.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0.0


class Counted(pl.Callback):
    """Counts what is alive after so many measurements, from outside a measurement."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.measured, self.counts = at, 0, dict[int, Counts]()

    def on_lyapunov_measurement(self, *_: Any) -> None:
        self.measured += 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.measured in self.at and self.measured not in self.counts:
            if trainer.logger is not None:
                trainer.logger.experiment.flush()  # its events wait in a queue
            self.counts[self.measured] = alive(pl_module)


def held_after(measurements: int) -> int:
    """How many of them a history still holds."""
    history = History()
    for step in range(measurements):
        history.append(Measurement(step, 0, torch.zeros(8), {}))
    return len(history)


@pytest.mark.parametrize(
    ("measurements", "pictures"),
    [(100, 8), *(pytest.param(*many, marks=pytest.mark.slow) for many in ((400, None), (1_000, 30)))],
)
def test_a_fit_leaks_nothing(
    tmp_path: Path, measurements: int, pictures: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pictures now and then also all that a callback does by default: scores, a tracker; and a stopper beside."""
    if measurements < history.LIMIT:
        monkeypatch.setattr(history, "LIMIT", measurements - 10)  # so that it is thinned out in the time there is
    few = held_after(measurements)
    assert measurements / 4 < few < 0.6 * measurements
    model = Regressor(nn.GRU(3, 4, batch_first=True))
    before, count = hooks_of(model), Counted({few - 1, few, measurements})  # the first look fills caches of its own
    ours = LyapunovSpectrumCallback(
        k=None, num_sequences=2, num_steps=6, every_n_train_steps=1, max_overhead=None, figures=pictures,
        scorer="general" if pictures else None,
    )  # fmt: skip
    callbacks = [ours, *([LyapunovEarlyStopping("chaotic", patience=measurements)] if pictures else [])]
    logger = TensorBoardLogger(tmp_path) if pictures else False
    fit = trainer(*callbacks, count, logger=logger, max_epochs=-1, max_steps=measurements + 1)
    fit.fit(model, loader(sequences=128, batch=2, steps=6))
    assert count.counts.keys() == count.at
    assert grown(count.counts[few], count.counts[measurements]) == {}
    assert hooks_of(model) == before


def test_spectra_by_hand_leak_nothing() -> None:
    """Nor memory that Python does not count: one frame kept of each measurement would be 12 MB."""
    module, inputs = nn.LSTM(2, 16), torch.randn(10, 16, 2)
    counts, memory = {}, {}
    for measured in range(1, 401):
        spectrum = lyapunov_spectrum(module, inputs, k=4)
        if measured in (100, 150, 400):  # the first look fills caches of its own
            counts[measured], memory[measured] = alive(module), resident()
    assert spectrum.exponents.isfinite().all()
    assert grown(counts[150], counts[400]) == {}
    assert memory[400] - memory[150] < 4e6
