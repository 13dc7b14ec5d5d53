"""Small Lightning models and fits for the tests of the callback."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Regressor(pl.LightningModule):
    """Predicts the sum of a sequence from the last output of a recurrent layer."""

    def __init__(self, rnn: nn.Module | None = None, dropout: float = 0.0, lr: float = 1e-2) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.rnn = rnn if rnn is not None else nn.LSTM(3, 6, batch_first=True)
        self.out = nn.LazyLinear(1)
        self.out(torch.zeros(1, self.rnn.hidden_size * (2 if getattr(self.rnn, "bidirectional", False) else 1)))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.drop(x))[0][:, -1])

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class Manual(Regressor):
    """The same by manual optimisation, with two steps a batch."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class Looped(pl.LightningModule):
    """A cell called step by step in a Python loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        h = state[0] if isinstance(state, tuple) else state
        return (self.out(h) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


def loader(
    *, sequences: int = 32, batch: int = 8, steps: int = 12, shuffle: bool = False, workers: int = 0
) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sequences, steps, 3, generator=generator)
    data = TensorDataset(x, x.sum((1, 2)).unsqueeze(1) / steps)
    return DataLoader(data, batch_size=batch, shuffle=shuffle, num_workers=workers)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "devices": 1, **quiet, **options}, callbacks=list(callbacks)
    )
