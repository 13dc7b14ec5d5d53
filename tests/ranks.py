"""Fits on several processes of this machine, each a rank; imported once, in the server that they are forked from."""

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fits import Regressor, trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovSpectrumCallback

PATIENCE = timedelta(seconds=20)
"""What a rank waits for another before it gives up; far below it the tests expect an end."""
LIMIT = 60
"""Seconds after which processes that still run are taken for hung."""


def on_ranks(world: int, what: Callable[..., Any], directory: Path, *args: Any) -> list[Any]:
    """What a function of this module or a test returns on each of ``world`` ranks; an exception's text where it raised.

    Raises:
        AssertionError: If a rank hangs.
    """
    directory.mkdir(exist_ok=True)
    context = get_context("forkserver")
    ends = [context.Pipe() for _ in range(world)]
    ranks = [
        context.Process(target=_rank, args=(what, rank, world, str(directory / "store"), ends[rank][1], args))
        for rank in range(world)
    ]
    try:
        for rank, (_, end) in zip(ranks, ends, strict=True):
            rank.start()
            end.close()  # this process's copy of it: so a rank that dies is heard
        said = []
        for end, _ in ends:
            assert end.poll(LIMIT), "a rank hangs"
            try:
                said.append(end.recv())
            except EOFError:
                said.append("died")
        return said
    finally:
        for rank in ranks:
            with suppress(ValueError):
                rank.kill()
                rank.join()


def _rank(what: Callable[..., Any], rank: int, world: int, store: str, end: Any, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning then takes the processes as it finds them
    os.environ["WORLD_SIZE"] = str(world)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=PATIENCE
    )
    try:
        said = what(rank, world, *args)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    end.send(said)
    end.close()
    os._exit(0)  # gloo's threads may abort an interpreter that is on its way out


def ddp(world: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A Trainer on this rank, whose loaders are its own."""
    strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())
    return trainer(*callbacks, **{"devices": world, "strategy": strategy, "use_distributed_sampler": False, **options})


def rows(count: int, seed: int, steps: int = 12) -> tuple[Tensor, Tensor]:
    """Sequences and targets of one rank."""
    x = torch.randn(count, steps, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.sum((1, 2)).unsqueeze(1) / steps


def batches(count: int, seed: int, batch: int = 8, steps: int = 12) -> DataLoader[Any]:
    """The same as a loader; of no sequences a batch without rows, since Lightning takes no empty loader."""
    if count == 0:
        return DataLoader([rows(0, seed, steps)], batch_size=None)
    return DataLoader(TensorDataset(*rows(count, seed, steps)), batch_size=batch)


def seeded(model: Callable[[], pl.LightningModule] = Regressor) -> pl.LightningModule:
    """The same model on every rank."""
    torch.manual_seed(0)
    return model()


def measuring(**options: Any) -> LyapunovSpectrumCallback:
    """A callback whose measurements depend on weights and inputs alone."""
    fixed = {"k": None, "dtype": "float64", "interval": 1, "max_overhead": None, "scorer": None, "figures": None}
    return LyapunovSpectrumCallback(**{**fixed, **options})
