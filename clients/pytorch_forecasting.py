"""pytorch-forecasting: networks that are LightningModules, fitted by a Trainer of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clients.checks import QUIET, Client, Fit, Oracle, waves


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import lightning.pytorch as pl
    import numpy as np
    from pandas import DataFrame
    from pytorch_forecasting import DeepAR, TimeSeriesDataSet

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    values = np.sin(np.arange(400) / 5).astype(np.float32)
    frame = DataFrame({"value": values, "time": np.arange(400), "series": "a"})
    training = TimeSeriesDataSet(
        frame[:300], "time", "value", ["series"], max_encoder_length=24, max_prediction_length=8,
        time_varying_unknown_reals=["value"],
    )  # fmt: skip
    validation = TimeSeriesDataSet.from_dataset(training, frame, min_prediction_idx=300)
    model = DeepAR.from_dataset(training, hidden_size=8)
    lyapunov = LyapunovSpectrumCallback()
    trainer = pl.Trainer(max_epochs=3, callbacks=[lyapunov, LyapunovEarlyStopping("chaotic")])
    trainer.fit(model, training.to_dataloader(batch_size=32), validation.to_dataloader(train=False, batch_size=32))
    print(lyapunov.spectrum)

    trainer.save_checkpoint("model.ckpt")
    loaded = DeepAR.load_from_checkpoint("model.ckpt")
    print(loaded.predict(validation.to_dataloader(train=False), mode="prediction")[0])
    # --8<-- [end:page]


def _client(name: str, options: dict[str, Any], oracle: Oracle | None = None) -> Client:
    def fit(callbacks: list[Any]) -> Fit:
        import lightning.pytorch as pl
        import numpy as np
        import pytorch_forecasting
        from pandas import DataFrame

        frame = DataFrame({"value": waves(), "time": np.arange(400), "series": "a"})
        training = pytorch_forecasting.TimeSeriesDataSet(
            frame[:300],
            "time",
            "value",
            ["series"],
            max_encoder_length=20,
            max_prediction_length=5,
            time_varying_unknown_reals=["value"],
        )
        validation = training.from_dataset(training, frame, min_prediction_idx=300)
        kind = getattr(pytorch_forecasting, name)
        model = kind.from_dataset(training, hidden_size=8, **options)
        trainer = pl.Trainer(max_epochs=3, callbacks=callbacks, **QUIET)
        trainer.fit(model, training.to_dataloader(batch_size=32), validation.to_dataloader(train=False, batch_size=32))

        def reload(folder: Path) -> nn.Module:
            trainer.save_checkpoint(folder / "model.ckpt")
            return kind.load_from_checkpoint(folder / "model.ckpt")

        return Fit(model, callbacks, reload)

    return Client(fit, oracle=oracle)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "DeepAR LSTM": _client("DeepAR", {"rnn_layers": 1, "cell_type": "LSTM"}),
    "DeepAR GRU": _client("DeepAR", {"rnn_layers": 1, "cell_type": "GRU"}),
    "RecurrentNetwork LSTM": _client("RecurrentNetwork", {"rnn_layers": 1, "cell_type": "LSTM"}, Oracle("rnn")),
    "RecurrentNetwork GRU": _client("RecurrentNetwork", {"rnn_layers": 1, "cell_type": "GRU"}, Oracle("rnn")),
    "TemporalFusionTransformer": _client("TemporalFusionTransformer", {}, Oracle("lstm_encoder")),
}
