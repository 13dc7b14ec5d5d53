"""ncps: liquid layers, in a LightningModule of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from clients.around import INPUTS, around
from clients.checks import Call, Client, Oracle
from clients.oracle import Parts, Step


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import lightning.pytorch as pl
    import torch
    from ncps.torch import CfC
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    class Network(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.liquid, self.out = CfC(3, 16), nn.Linear(16, 1)

        def training_step(self, batch, _):
            x, y = batch
            features, _ = self.liquid(x)
            return (self.out(features[:, -1]) - y).square().mean()

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


def _step(layer: nn.Module) -> Step:
    cell: Any = copy.deepcopy(layer.rnn_cell).double()

    def step(x: Tensor, state: Parts) -> Parts:
        return (cell.forward(x, state[0], 1.0)[1],)

    return step


def _read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    x = args[0].transpose(0, 1).clone()
    return Call(x, [len(x)] * x.shape[1], None, (output[1].detach(),))


def _client(name: str, units: Callable[[], Any], features: int) -> Client:
    def make() -> nn.Module:
        import ncps.torch

        layer: nn.Module = getattr(ncps.torch, name)(INPUTS, units())
        return layer

    return around(make, lambda layer, x: layer(x)[0][:, -1], features, Oracle("layer", _step, _read))


def _wiring() -> Any:
    from ncps.wirings import AutoNCP

    return AutoNCP(16, 4, seed=1)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "CfC": _client("CfC", lambda: 8, 8),
    "LTC": _client("LTC", lambda: 8, 8),
    "CfC(AutoNCP)": _client("CfC", _wiring, 4),
}
