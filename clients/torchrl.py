"""torchrl: recurrent modules that read and write tensordicts."""

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
    import torch
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch import nn
    from torchrl.modules import LSTMModule, set_recurrent_mode

    from lightning_lyapunov import LyapunovMonitor

    lstm = LSTMModule(input_size=3, hidden_size=16, in_key="observation", out_key="features")
    policy = TensorDictSequential(lstm, TensorDictModule(nn.Linear(16, 1), ["features"], ["action"]))
    begins = torch.zeros(64, 20, 1, dtype=torch.bool)
    begins[:, 0] = True
    data = TensorDict({"observation": torch.randn(64, 20, 3), "is_init": begins}, [64, 20])
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    monitor = LyapunovMonitor(policy)
    with set_recurrent_mode(True):
        for step in range(1, 31):
            loss = (policy(data.clone())["action"] - data["observation"].mean(-1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                with monitor.record(), torch.no_grad():
                    policy(data.clone())
                monitor.measure(step)
    print(monitor.spectrum)
    torch.save(policy.state_dict(), "policy.pt")
    # --8<-- [end:page]


def _client(kind: str, oracle: Oracle | None = None, **options: Any) -> Client:
    def make() -> Any:
        import torchrl.modules
        from tensordict.nn import TensorDictModule, TensorDictSequential

        layer = getattr(torchrl.modules, kind)(
            input_size=3, hidden_size=8, in_key="observation", out_key="features", **options
        )
        return TensorDictSequential(layer, TensorDictModule(nn.Linear(8, 1), ["features"], ["action"]))

    def fit(callbacks: list[Any]) -> Fit:
        from tensordict import TensorDict
        from torchrl.modules import set_recurrent_mode

        policy = make()
        begins = torch.zeros(64, 20, 1, dtype=torch.bool)
        begins[:, 0] = True
        x = torch.randn(64, 20, 3, generator=torch.Generator().manual_seed(0))
        data = TensorDict({"observation": x, "is_init": begins}, [64, 20])
        optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
        begin(callbacks, policy)
        with set_recurrent_mode(True):
            for step in range(1, 31):
                batch = data[torch.randint(64, (32,))]
                loss = (policy(batch)["action"] - batch["observation"].mean(-1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 10 == 0:
                    with record(callbacks), torch.no_grad():
                        policy(data.clone())
                    measure(callbacks, policy, step)

        def reload(folder: Path) -> nn.Module:
            torch.save(policy.state_dict(), folder / "policy.pt")
            fresh: nn.Module = make()
            fresh.load_state_dict(torch.load(folder / "policy.pt", weights_only=True))
            return fresh

        return Fit(policy, callbacks, reload)

    return Client(fit, by_hand=True, oracle=oracle)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "LSTMModule": _client("LSTMModule", Oracle("module.0.lstm")),
    "GRUModule": _client("GRUModule"),
    "LSTMModule(python_based=True)": _client("LSTMModule", python_based=True),
}
