"""skorch: a network with the manners of scikit-learn, and a callback of its own kind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clients.checks import Client, Fit, Oracle, begin, measure, record


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    from contextlib import ExitStack

    import skorch
    import torch
    from torch import nn

    from lightning_lyapunov import LyapunovMonitor

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    class Watch(skorch.callbacks.Callback):
        """Records the batches of skorch's validation, and measures at the end of each epoch."""

        def on_train_begin(self, net, **_):
            self.monitor, self.batch = LyapunovMonitor(net.module_), ExitStack()

        def on_batch_begin(self, net, training, **_):
            if not training:
                self.batch.enter_context(self.monitor.record())

        def on_batch_end(self, net, **_):
            self.batch.close()

        def on_epoch_end(self, net, **_):
            self.monitor.measure(step=len(net.history))

    x = torch.randn(256, 20, 3)
    net = skorch.NeuralNetRegressor(Network, optimizer=torch.optim.Adam, max_epochs=3, callbacks=[("watch", Watch())])
    net.fit(x, x.mean((1, 2)).unsqueeze(1))
    print(dict(net.callbacks_)["watch"].monitor.spectrum)
    net.save_params(f_params="network.pt")
    # --8<-- [end:page]


class Network(nn.Module):
    """Reads the mean of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 8, batch_first=True), nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) of ``(B, T, 3)``."""
        return self.out(self.rnn(x)[0][:, -1])


def _fit(callbacks: list[Any]) -> Fit:
    import skorch

    class Watch(skorch.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, net: Any, **_: Any) -> None:
            self.batch = ExitStack()
            begin(callbacks, net.module_)

        def on_batch_begin(self, net: Any, training: bool = True, **_: Any) -> None:
            if not training:
                self.batch.enter_context(record(callbacks))

        def on_batch_end(self, net: Any, **_: Any) -> None:
            self.batch.close()

        def on_epoch_end(self, net: Any, **_: Any) -> None:
            measure(callbacks, net.module_, len(net.history))

    x = torch.randn(256, 20, 3, generator=torch.Generator().manual_seed(0))
    watch = [("watch", Watch())] if callbacks else []
    net = skorch.NeuralNetRegressor(Network, optimizer=torch.optim.Adam, max_epochs=3, verbose=0, callbacks=watch)
    net.fit(x, x.mean((1, 2)).unsqueeze(1))

    def reload(folder: Path) -> nn.Module:
        net.set_params(callbacks=[]).initialize_callbacks()
        (folder / "net.pickle").write_bytes(pickle.dumps(net))
        network: nn.Module = pickle.loads((folder / "net.pickle").read_bytes()).module_
        return network

    return Fit(net.module_, callbacks, reload)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "NeuralNetRegressor": Client(_fit, by_hand=True, oracle=Oracle("rnn")),
}
