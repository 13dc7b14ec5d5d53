"""sb3-contrib: RecurrentPPO, whose policy is called step by step while an environment is reset now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from clients.checks import Client, Fit, Oracle, begin, measure, record


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    from contextlib import ExitStack

    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback

    from lightning_lyapunov import LyapunovMonitor

    class Watch(BaseCallback):
        """Records each rollout, and measures at its end."""

        def _on_training_start(self):
            self.monitor, self.rollout = LyapunovMonitor(self.model.policy), ExitStack()

        def _on_rollout_start(self):
            self.rollout.enter_context(self.monitor.record())

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.rollout.close()
            self.monitor.measure(self.num_timesteps)

    watch = Watch()
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, policy_kwargs={"lstm_hidden_size": 16})
    model.learn(192, callback=watch)
    print(watch.monitor.spectrum)
    model.save("agent")
    # --8<-- [end:page]


def _fit(callbacks: list[Any]) -> Fit:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback

    class Watch(BaseCallback):  # type: ignore[misc]
        def _on_training_start(self) -> None:
            self.rollout = ExitStack()
            begin(callbacks, self.model.policy)

        def _on_rollout_start(self) -> None:
            self.rollout.enter_context(record(callbacks))

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.rollout.close()
            measure(callbacks, self.model.policy, self.num_timesteps)

    options = {"lstm_hidden_size": 8, "enable_critic_lstm": True}
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=0, policy_kwargs=options)
    model.learn(192, callback=Watch() if callbacks else None)

    def reload(folder: Path) -> nn.Module:
        model.save(folder / "agent")
        policy: nn.Module = RecurrentPPO.load(folder / "agent").policy
        return policy

    return Fit(model.policy, callbacks, reload)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "RecurrentPPO": Client(_fit, by_hand=True, oracle=Oracle("lstm_actor")),
}
