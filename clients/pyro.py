"""pyro: recurrent layers as PyroModules, fitted by stochastic variational inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clients.checks import Client, Fit, Oracle, begin, measure, record


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import pyro
    import torch
    from pyro.distributions import Normal
    from pyro.infer import SVI, Trace_ELBO
    from pyro.nn import PyroModule
    from torch import nn

    from lightning_lyapunov import LyapunovMonitor

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.rnn = PyroModule[nn.GRU](3, 16, batch_first=True)
            self.out = PyroModule[nn.Linear](16, 1)

        def forward(self, x, y=None):
            mean = self.out(self.rnn(x)[0][:, -1])
            with pyro.plate("sequences", len(x)):
                return pyro.sample("y", Normal(mean, 0.1).to_event(1), obs=y)

    x = torch.randn(256, 20, 3)
    model, y = Model(), x.mean((1, 2)).unsqueeze(1)
    inference = SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    monitor = LyapunovMonitor(model)
    for step in range(1, 31):
        inference.step(x, y)
        if step % 10 == 0:
            with monitor.record():
                model(x[:32])
            monitor.measure(step)
    print(monitor.spectrum)
    torch.save(model.state_dict(), "model.pt")
    # --8<-- [end:page]


def _fit(callbacks: list[Any]) -> Fit:
    import pyro
    from pyro.distributions import Normal
    from pyro.infer import SVI, Trace_ELBO
    from pyro.nn import PyroModule

    class Model(PyroModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = PyroModule[nn.GRU](3, 8, batch_first=True), PyroModule[nn.Linear](8, 1)

        def forward(self, x: Any, y: Any = None) -> Any:
            mean = self.out(self.rnn(x)[0][:, -1])
            with pyro.plate("sequences", len(x)):
                return pyro.sample("y", Normal(mean, 0.1).to_event(1), obs=y)

    pyro.clear_param_store()
    x = torch.randn(256, 20, 3, generator=torch.Generator().manual_seed(0))
    model = Model()
    inference = SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    begin(callbacks, model)
    for step in range(1, 31):
        batch = x[torch.randint(len(x), (64,))]
        inference.step(batch, batch.mean((1, 2)).unsqueeze(1))
        if step % 10 == 0 and callbacks:
            with record(callbacks), torch.random.fork_rng():
                model(x[:32])
            measure(callbacks, model, step)

    def reload(folder: Path) -> nn.Module:
        torch.save(model.state_dict(), folder / "model.pt")
        fresh: nn.Module = Model()
        fresh.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return fresh

    return Fit(model, callbacks, reload)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "PyroModule[nn.GRU]": Client(_fit, by_hand=True, oracle=Oracle("rnn")),
}
