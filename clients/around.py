"""A LightningModule around a layer, for libraries that have layers alone, and the task that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from clients.checks import QUIET, Client, Fit, Oracle

INPUTS, STEPS = 3, 20


class Around(pl.LightningModule):
    """Reads the mean of a sequence from what a layer made of it.

    Args:
        layer: The layer.
        call: ``(layer, x) -> features`` of x ``(B, T, 3)``: ``(B, F)``.
        features: F.
    """

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.layer, self.out, self._call = layer, nn.Sequential(nn.Dropout(0.1), nn.Linear(features, 1)), call

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The mean squared error."""
        x, y = batch
        return mse_loss(self.out(self._call(self.layer, x)), y)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """The same of data held out."""
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-2)


def batches(rows: int, *, training: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Noise, and its mean; shuffled for training, so that a random number drawn by others would show in the weights."""
    x = torch.randn(rows, STEPS, INPUTS, generator=torch.Generator().manual_seed(int(training)))
    return DataLoader(TensorDataset(x, x.mean((1, 2)).unsqueeze(1)), batch_size=32, shuffle=training)


def around(
    make: Callable[[], nn.Module],
    call: Callable[[Any, Tensor], Tensor],
    features: int,
    oracle: Oracle | None = None,
) -> Client:
    """A client that fits a layer inside such a LightningModule."""

    def fit(callbacks: list[Any]) -> Fit:
        model = Around(make(), call, features)
        trainer = pl.Trainer(max_epochs=3, callbacks=callbacks, **QUIET)
        trainer.fit(model, batches(256, training=True), batches(32, training=False))

        def reload(folder: Path) -> nn.Module:
            trainer.save_checkpoint(folder / "model.ckpt")
            fresh = Around(make(), call, features)
            fresh.load_state_dict(torch.load(folder / "model.ckpt", weights_only=True)["state_dict"])
            return fresh

        return Fit(model, callbacks, reload)

    return Client(fit, oracle=oracle)
