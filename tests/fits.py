"""Small Lightning models and fits for the tests of the callback."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
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


class Leaky(nn.Module):
    """A cell written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.RNNCell(3, 6)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        state = x.new_zeros(len(x), 6) if state is None else state
        return 0.5 * state + 0.5 * self.inner(x, state)


class Emitting(nn.Module):
    """A cell by hand that returns an output beside its state, in two parts that it takes one by one."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.LSTMCell(inputs, hidden)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.inner(x, (h, c))
        return torch.tanh(h), h, c


class HandingOn(nn.LSTM):
    """A subclass with a forward pass of its own that hands on to torch's."""

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x, hx)


class Varied(pl.LightningModule):
    """A run as users have them: it can do by hand, and all at once, what the others do one by one.

    It draws from every random generator there is, so that one that was moved shows in the weights, and keeps the
    batches that it was trained on.

    Args:
        cell: "RNN", "GRU" or "LSTM", or "loop": LSTM cells called in a Python loop. As "resets" a layer is called step
            by step and some rows are set back, as "masked" some rows of a loop are held, as "own" a cell by hand is
            called past its hooks, as "subclass" a layer hands on to torch's, as "dropped" its weights are dropped out.
        front: What comes before the recurrence: "linear", "dropout" (then also in it) or "batch norm".
        frozen: Whether that part is in eval mode and does not learn.
        optimisation: "automatic", "manual", "several" optimisers, which is manual too, or "closures" that are evaluated
            several times, which is automatic.
        chunks: Into which a sequence is cut. The state is carried over from one to the next, detached; manual
            optimisation makes a step for each.
        accumulate: Batches for an update, where optimisation is manual.
        clip: Largest norm of the gradient, where optimisation is manual.
        hidden: Units of the recurrence.
    """

    def __init__(
        self,
        cell: str = "LSTM",
        front: str = "linear",
        *,
        frozen: bool = False,
        optimisation: str = "automatic",
        chunks: int = 1,
        accumulate: int = 1,
        clip: float | None = None,
        hidden: int = 6,
    ) -> None:
        super().__init__()
        parts: dict[str, list[nn.Module]] = {
            "linear": [],
            "dropout": [nn.Dropout(0.2)],
            "batch norm": [nn.BatchNorm1d(3)],
        }
        self.front = nn.Sequential(nn.Linear(3, 3), *parts[front])
        if frozen:
            self.front.eval().requires_grad_(False)
        within = {"num_layers": 2, "dropout": 0.3} if front == "dropout" and cell != "subclass" else {}
        size = 3, hidden
        kinds = {"loop": nn.LSTMCell, "resets": nn.GRU, "masked": nn.GRUCell, "own": Emitting}
        kinds |= {"subclass": HandingOn, "dropped": nn.RNN}
        kind: Any = kinds.get(cell) or getattr(nn, cell)
        self.rnn = kind(*size, batch_first=True, **within) if issubclass(kind, nn.RNNBase) else kind(*size)
        self.cell, self.hidden = cell, hidden
        if cell == "dropped":
            self.raw = nn.Parameter(self.rnn.weight_hh_l0.detach().clone())
            del self.rnn._parameters["weight_hh_l0"]
            self.rnn.weight_hh_l0 = self.raw.detach().clone()
        self.out = nn.Linear(hidden, 1)
        self.optimisation, self.chunks, self.accumulate, self.clip = optimisation, chunks, accumulate, clip
        self.automatic_optimization = optimisation in ("automatic", "closures")
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x = self.front(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.cell in ("resets", "masked", "own"):
            return self.step_by_step(x, state)
        if self.cell == "dropped":
            dropped = nn.functional.dropout(self.raw, 0.3, self.training)
            self.rnn.weight_hh_l0 = dropped if self.training else dropped.clone()
        if isinstance(self.rnn, nn.RNNBase):
            hidden, state = self.rnn(x, state)
            return self.out(hidden[:, -1]), state
        for step in x.unbind(1):
            state = self.rnn(step, state)
        return self.out(state[0]), state

    def step_by_step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Rows that live separate lives, and a cell called past its hooks."""
        rows = torch.arange(len(x)).unsqueeze(1)
        if state is None and self.cell != "resets":
            state = x.new_zeros(len(x), self.hidden)
            state = (state, state) if self.cell == "own" else state
        for t, now in enumerate(x.unbind(1)):
            if self.cell == "resets":
                outputs, state = self.rnn(now.unsqueeze(1), state)
                out, state = outputs[:, 0], state * (rows != t).to(x)
            elif self.cell == "masked":
                state = out = torch.where(rows >= t, self.rnn(now, state), state)
            else:
                out, *state = self.rnn.forward(now, *state)
        return self.out(out), tuple(state) if isinstance(state, list) else state

    def losses(self, batch: Any) -> Iterator[Tensor]:
        """Of each chunk."""
        x, y = batch
        state = None
        for chunk in x.chunk(self.chunks, 1):
            said, state = self(chunk, state)
            yield (said - y).square().mean()
            state = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.batches.append(batch[0].clone())
        noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
        losses = []
        for loss in self.losses((batch[0] + 0.1 * noise, batch[1])):
            losses.append(loss)
            if not self.automatic_optimization:
                self.manual_backward(loss / self.accumulate)
                if (batch_idx + 1) % self.accumulate == 0:
                    self.update()
        loss = torch.stack(losses).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss if self.automatic_optimization else None

    def update(self) -> None:
        """One step of each optimiser, by hand."""
        found = self.optimizers()
        for optimizer in found if isinstance(found, list) else [found]:
            if self.clip is not None:
                self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.stack([*self.losses(batch)]).mean())

    def on_train_epoch_end(self) -> None:
        self.log("weights", self.out.weight.norm())

    def configure_optimizers(self) -> Any:
        if self.optimisation == "closures":
            return torch.optim.LBFGS(self.parameters(), 1e-2, max_iter=2)
        if self.optimisation != "several":
            return torch.optim.Adam(self.parameters(), 1e-2)
        rest = [*self.front.parameters(), *self.out.parameters()]
        return [torch.optim.Adam(self.rnn.parameters(), 1e-2), torch.optim.SGD(rest, 1e-2, momentum=0.9)]


class Recorder(Logger):
    """Keeps what is logged, and takes pictures."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.pictures: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None) -> None:
        self.pictures.append(key)


class Resumable:
    """The batches of a loader, in its order; after a resume it goes on with the one that comes next."""

    def __init__(self, batches: DataLoader) -> None:
        self.batches, self.next = list(batches), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.next %= len(self)
        while self.next < len(self):
            self.next += 1
            yield self.batches[self.next - 1]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


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
