"""snntorch: spiking neurons called step by step, in a LightningModule of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clients.around import INPUTS, around
from clients.checks import Call, Client, Oracle
from clients.oracle import Parts, Step


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import lightning.pytorch as pl
    import snntorch
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    class Network(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.drive, self.neuron, self.out = nn.Linear(3, 16), snntorch.Leaky(beta=0.9), nn.Linear(16, 1)

        def training_step(self, batch, _):
            x, y = batch
            membrane = self.neuron.init_leaky()
            for t in range(x.shape[1]):
                _, membrane = self.neuron(self.drive(x[:, t]), membrane)
            return (self.out(membrane) - y).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    x = torch.randn(256, 20, 3)
    data = DataLoader(TensorDataset(x, x.mean((1, 2)).unsqueeze(1)), batch_size=32)
    lyapunov = LyapunovSpectrumCallback()
    trainer = pl.Trainer(max_epochs=3, callbacks=[lyapunov, LyapunovEarlyStopping("chaotic")])
    trainer.fit(Network(), data)
    print(lyapunov.spectrum)
    # --8<-- [end:page]
    assert lyapunov.spectrum is not None, "nothing was measured"


class Spiking(nn.Module):
    """Neurons driven by a linear layer, which are called once a step."""

    def __init__(self, neuron: nn.Module, inputs: int, parts: int) -> None:
        super().__init__()
        self.drive, self.neuron, self.parts = nn.Linear(INPUTS, inputs), neuron, parts

    def forward(self, x: Tensor) -> Tensor:
        """The membranes after the last step."""
        first = torch.zeros(len(x), 8)
        state = (first,) * self.parts
        for t in range(x.shape[1]):
            told = self.neuron(self.drive(x[:, t]), *state)
            state = told if self.parts == 2 and isinstance(self.neuron, _recurrent()) else told[1:]
        return state[-1]


def _recurrent() -> type:
    from snntorch import RLeaky

    kind: type = RLeaky
    return kind


def _read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    x, *before = (part.detach().clone() for part in args)
    after = output[-len(before) :]
    return Call(x.unsqueeze(0), [1] * len(x), tuple(before), tuple(part.detach().clone() for part in after))


def _step(layer: nn.Module) -> Step:
    neuron: Any = copy.deepcopy(layer).double()

    def step(x: Tensor, state: Parts) -> Parts:
        return tuple(neuron(x, *state)[-len(state) :])

    return step


def _client(name: str, options: dict[str, Any], parts: int) -> Client:
    def make() -> nn.Module:
        import snntorch

        return Spiking(getattr(snntorch, name)(**options), options.get("input_size", 8), parts)

    return around(make, lambda layer, x: layer(x), 8, Oracle("layer.neuron", _step, _read))


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "Leaky": _client("Leaky", {"beta": 0.9}, 1),
    "RLeaky": _client("RLeaky", {"beta": 0.9, "linear_features": 8}, 2),
    "SLSTM": _client("SLSTM", {"input_size": 8, "hidden_size": 8}, 2),
}
