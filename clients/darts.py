"""darts: forecasting models that take callbacks in ``pl_trainer_kwargs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clients.checks import QUIET, Client, Fit, Oracle, waves


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import numpy as np
    from darts import TimeSeries
    from darts.models import RNNModel
    from darts.utils.serialization import add_safe_globals

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    series = TimeSeries.from_values(np.sin(np.arange(400) / 5).astype(np.float32))
    lyapunov = LyapunovSpectrumCallback()
    callbacks = [lyapunov, LyapunovEarlyStopping("chaotic")]
    model = RNNModel(12, model="LSTM", training_length=24, n_epochs=3, pl_trainer_kwargs={"callbacks": callbacks})
    model.fit(series[:300], val_series=series[250:])
    print(lyapunov.spectrum)

    model.save("model.pt")
    add_safe_globals([LyapunovSpectrumCallback, LyapunovEarlyStopping])
    loaded = RNNModel.load("model.pt")
    print(loaded.predict(12, series=series[:300]))
    # --8<-- [end:page]


def _client(name: str, options: dict[str, Any], oracle: Oracle | None = None) -> Client:
    def fit(callbacks: list[Any]) -> Fit:
        import darts.models
        from darts import TimeSeries
        from darts.utils.serialization import safe_globals

        from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

        series = TimeSeries.from_values(waves())
        trainer = {**QUIET, "callbacks": callbacks}
        kind = getattr(darts.models, name)
        model = kind(12, **options, n_epochs=3, batch_size=32, random_state=0, pl_trainer_kwargs=trainer)
        model.fit(series[:300], val_series=series[250:])

        def reload(folder: Path) -> nn.Module:
            model.save(str(folder / "model.pt"))
            with safe_globals([LyapunovSpectrumCallback, LyapunovEarlyStopping]):
                return kind.load(str(folder / "model.pt")).model

        return Fit(model.model, model.trainer_params["callbacks"], reload)

    return Client(fit, oracle=oracle)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "RNNModel LSTM": _client("RNNModel", {"model": "LSTM", "training_length": 24, "hidden_dim": 8}, Oracle("rnn")),
    "RNNModel GRU": _client("RNNModel", {"model": "GRU", "training_length": 24, "hidden_dim": 8}),
    "RNNModel RNN": _client("RNNModel", {"model": "RNN", "training_length": 24, "hidden_dim": 8}),
    "BlockRNNModel LSTM": _client("BlockRNNModel", {"model": "LSTM", "output_chunk_length": 4, "n_rnn_layers": 2}),
    "TFTModel": _client("TFTModel", {"output_chunk_length": 4, "hidden_size": 8, "add_relative_index": True}),
}
