"""gluonts: estimators that take callbacks in ``trainer_kwargs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clients.checks import QUIET, Client, Fit, Oracle, waves


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    from pathlib import Path

    import numpy as np
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.model.predictor import Predictor
    from gluonts.torch import DeepAREstimator
    from pandas import DataFrame, date_range

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    hours = date_range("2020-01-01", periods=400, freq="h")
    frames = {f"series {i}": DataFrame({"target": np.sin(np.arange(400) / 5 + i)}, index=hours) for i in range(4)}
    training = PandasDataset({name: frame[:300] for name, frame in frames.items()}, target="target")
    validation = PandasDataset(frames, target="target")
    lyapunov = LyapunovSpectrumCallback()
    callbacks = [lyapunov, LyapunovEarlyStopping("chaotic")]
    estimator = DeepAREstimator(
        "h", prediction_length=12, num_batches_per_epoch=8, trainer_kwargs={"max_epochs": 3, "callbacks": callbacks}
    )
    predictor = estimator.train(training, validation)
    print(lyapunov.spectrum)

    Path("predictor").mkdir(exist_ok=True)
    predictor.serialize(Path("predictor"))
    loaded = Predictor.deserialize(Path("predictor"))
    print(next(iter(loaded.predict(validation))).mean)
    # --8<-- [end:page]


def _client(name: str, options: dict[str, Any], oracle: Oracle | None = None) -> Client:
    def fit(callbacks: list[Any]) -> Fit:
        import gluonts.torch
        from gluonts.dataset.pandas import PandasDataset
        from gluonts.model.predictor import Predictor
        from pandas import DataFrame, date_range

        hours = date_range("2020-01-01", periods=400, freq="h")
        frames = {f"series {i}": DataFrame({"target": waves(seed=i)}, index=hours) for i in range(6)}
        training = PandasDataset({name: frame[:300] for name, frame in frames.items()}, target="target")
        trainer = {**QUIET, "max_epochs": 3, "enable_checkpointing": True, "callbacks": callbacks}
        estimator = getattr(gluonts.torch, name)(
            prediction_length=8, freq="h", num_batches_per_epoch=8, batch_size=16, trainer_kwargs=trainer, **options
        )
        predictor = estimator.train(training, PandasDataset(frames, target="target"), cache_data=True)

        def reload(folder: Path) -> nn.Module:
            predictor.serialize(folder)
            return Predictor.deserialize(folder).prediction_net

        return Fit(predictor.prediction_net, callbacks, reload)

    return Client(fit, oracle=oracle)


MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "DeepAREstimator": _client("DeepAREstimator", {"num_layers": 1, "hidden_size": 8}, Oracle("model.rnn")),
    "TemporalFusionTransformerEstimator": _client("TemporalFusionTransformerEstimator", {"hidden_dim": 8}),
}
