"""mambapy: selective scans, in a LightningModule of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from clients.around import INPUTS, around
from clients.checks import Call, Client, Oracle
from clients.oracle import Parts, Step


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import lightning.pytorch as pl
    import torch
    from mambapy.mamba import Mamba, MambaConfig
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    class Network(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.drive, self.out = nn.Linear(3, 16), nn.Linear(16, 1)
            self.mamba = Mamba(MambaConfig(d_model=16, n_layers=2, d_state=4))

        def training_step(self, batch, _):
            x, y = batch
            return (self.out(self.mamba(self.drive(x))[:, -1]) - y).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    x = torch.randn(256, 20, 3)
    data = DataLoader(TensorDataset(x, x.mean((1, 2)).unsqueeze(1)), batch_size=32)
    lyapunov = LyapunovSpectrumCallback()
    trainer = pl.Trainer(max_epochs=3, callbacks=[lyapunov, LyapunovEarlyStopping("collapsed")])
    trainer.fit(Network(), data)
    print(lyapunov.spectrum)
    # --8<-- [end:page]
    assert lyapunov.spectrum is not None, "nothing was measured"


def _make() -> nn.Module:
    from mambapy.mamba import Mamba, MambaConfig

    return nn.Sequential(nn.Linear(INPUTS, 8), Mamba(MambaConfig(d_model=8, n_layers=1, d_state=4)))


def _read(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    """What drives the scan: the input after the projection and the convolution, in float64."""
    exact = copy.deepcopy(block).double()
    projected = exact.in_proj(args[0].detach().double()).chunk(2, -1)[0].transpose(1, 2)
    x = silu(exact.conv1d(projected)[..., : projected.shape[-1]]).permute(2, 0, 1).detach()
    return Call(x, [len(x)] * x.shape[1], None, (x.new_zeros(*x.shape[1:], block.config.d_state),))


def _step(block: Any) -> Step:
    exact, config = copy.deepcopy(block).double(), block.config

    def step(x: Tensor, state: Parts) -> Parts:
        rate, drive, _ = exact.x_proj(x).split([config.dt_rank, config.d_state, config.d_state], -1)
        dt = softplus(exact.dt_proj(rate)).unsqueeze(-1)
        return (torch.exp(-dt * exact.A_log.exp()) * state[0] + dt * x.unsqueeze(-1) * drive.unsqueeze(-2),)

    return step


MAMBA = Oracle("layer.1.layers.0.mixer", _step, _read, identity=True)
MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "Mamba": around(_make, lambda net, x: net(x)[:, -1], 8, MAMBA),
}
