"""xlstm: blocks of sLSTM and mLSTM, in a LightningModule of one's own."""

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
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from xlstm import sLSTMLayer, sLSTMLayerConfig

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    class Network(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.drive, self.out = nn.Linear(3, 16), nn.Linear(16, 1)
            self.layer = sLSTMLayer(sLSTMLayerConfig(embedding_dim=16, num_heads=4, backend="vanilla"))
            self.layer.reset_parameters()

        def training_step(self, batch, _):
            x, y = batch
            return (self.out(self.layer(self.drive(x))[:, -1]) - y).square().mean()

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


def _slstm() -> nn.Module:
    from xlstm import sLSTMLayer, sLSTMLayerConfig

    layer: Any = sLSTMLayer(sLSTMLayerConfig(embedding_dim=8, num_heads=2, conv1d_kernel_size=0, backend="vanilla"))
    layer.reset_parameters()
    return nn.Sequential(nn.Linear(INPUTS, 8), layer)


def _mlstm() -> nn.Module:
    from xlstm import mLSTMLayer, mLSTMLayerConfig

    layer: Any = mLSTMLayer(mLSTMLayerConfig(embedding_dim=8, num_heads=2, context_length=64))
    layer.reset_parameters()
    return nn.Sequential(nn.Linear(INPUTS, 8), layer)


def _read(cell: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    x = args[0].detach().transpose(0, 1).clone()
    return Call(x, [len(x)] * x.shape[1], None, tuple(output[1].detach()[:3]))


def _step(cell: nn.Module) -> Step:
    """Of y, c and n as they are, which the cell scales by a stabiliser."""
    exact: Any = copy.deepcopy(cell).double()

    def step(x: Tensor, state: Parts) -> Parts:
        y, c, n = state
        n = n + 1e-300  # where n is 0 the library takes a branch in which n has no influence
        y, c, n, stabiliser = exact(x.unsqueeze(1), torch.stack([y, c, n, torch.zeros_like(n)]))[1]
        return y, c * stabiliser.exp(), n * stabiliser.exp()

    return step


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "sLSTM": around(_slstm, lambda net, x: net(x)[:, -1], 8, Oracle("layer.1.slstm_cell", _step, _read)),
    "mLSTM": around(_mlstm, lambda net, x: net(x)[:, -1], 8),
}
