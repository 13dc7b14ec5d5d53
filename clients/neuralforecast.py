"""neuralforecast: models that take callbacks as an argument of the Trainer's, and are copied before they are fitted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clients.checks import QUIET, Call, Client, Fit, Oracle, waves
from clients.oracle import Step


def example() -> None:
    """What the page shows."""
    # --8<-- [start:page]
    import numpy as np
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM
    from pandas import DataFrame, date_range

    from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

    values = np.sin(np.arange(400) / 5).astype(np.float32)
    frame = DataFrame({"unique_id": "a", "ds": date_range("2020-01-01", periods=400, freq="h"), "y": values})
    callbacks = [LyapunovSpectrumCallback(), LyapunovEarlyStopping("chaotic")]
    model = LSTM(h=12, input_size=24, max_steps=60, val_check_steps=20, callbacks=callbacks)
    forecast = NeuralForecast(models=[model], freq="h")
    forecast.fit(frame, val_size=60)
    lyapunov = forecast.models[0].trainer_kwargs["callbacks"][0]  # the copy that was at work
    print(lyapunov.spectrum)

    forecast.save("forecast", overwrite=True)  # leaves callbacks out
    loaded = NeuralForecast.load("forecast")
    print(loaded.predict(frame))
    # --8<-- [end:page]


def automatic(backend: str) -> Client:
    """AutoLSTM, which searches settings with Ray or Optuna and fits the best once more."""

    def fit(callbacks: list[Any]) -> Fit:
        from neuralforecast import NeuralForecast
        from neuralforecast.auto import AutoLSTM
        from neuralforecast.common._base_auto import RayOptions

        settings = {
            "input_size": 24,
            "encoder_hidden_size": 8,
            "max_steps": 40,
            "val_check_steps": 10,
            "random_seed": 0,
            "callbacks": callbacks,
            **QUIET,
        }
        if backend == "optuna":
            auto = AutoLSTM(h=8, config=lambda trial: settings, num_samples=1, backend="optuna")
        else:
            auto = AutoLSTM(h=8, config=settings, num_samples=1, backend="ray", ray_options=RayOptions(cpus=1))
        forecast = NeuralForecast(models=[auto], freq="h")
        forecast.fit(_frame(), val_size=60)
        return _fit_of(forecast, forecast.models[0].model)

    return Client(fit)


def _client(
    name: str, options: dict[str, Any], oracle: Oracle | None = None, named: dict[str, Any] | None = None
) -> Client:
    def fit(callbacks: list[Any]) -> Fit:
        import neuralforecast.models
        from neuralforecast import NeuralForecast

        model = getattr(neuralforecast.models, name)(
            h=8, input_size=24, max_steps=40, val_check_steps=10, random_seed=0, callbacks=callbacks, **QUIET, **options
        )
        forecast = NeuralForecast(models=[model], freq="h")
        forecast.fit(_frame(), val_size=60)
        return _fit_of(forecast, forecast.models[0])

    return Client(fit, options=named, oracle=oracle)


def _frame() -> Any:
    from pandas import DataFrame, date_range

    return DataFrame({"unique_id": "a", "ds": date_range("2020-01-01", periods=400, freq="h"), "y": waves()})


def _fit_of(forecast: Any, model: Any) -> Fit:
    from neuralforecast import NeuralForecast

    def reload(folder: Path) -> nn.Module:
        forecast.save(str(folder), overwrite=True)
        loaded = NeuralForecast.load(str(folder)).models[0]
        return getattr(loaded, "model", loaded)

    return Fit(model, model.trainer_kwargs.get("callbacks") or [], reload)


def _read(cell: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    x, after = args[0].detach().clone(), tuple(part.detach().clone() for part in output[1])
    before = tuple(part.detach().clone().view_as(after[0]) for part in args[1])  # at first (1, B, H)
    return Call(x.unsqueeze(0), [1] * len(x), before, after)


def _step(cell: nn.Module) -> Step:
    exact: Any = copy.deepcopy(cell).double()
    return lambda x, state: exact(x, state)[1]


CELL = "rnn_stack.0.cells.0.cell"
LAYERS = {"encoder_hidden_size": 8, "decoder_hidden_size": 8}
MODELS: dict[str, Client | Callable[[], None]] = {
    "the page's code": example,
    "LSTM": _client("LSTM", {**LAYERS, "encoder_n_layers": 1}, Oracle("hist_encoder")),
    "GRU": _client("GRU", LAYERS),
    "RNN": _client("RNN", LAYERS),
    "DeepAR": _client("DeepAR", {"lstm_hidden_size": 8}),
    "TFT": _client("TFT", {"hidden_size": 8}),
    "StemGNN": _client("StemGNN", {"n_series": 1}),
    "DilatedRNN LSTM": _client("DilatedRNN", {**LAYERS, "cell_type": "LSTM"}),
    "DilatedRNN ResLSTM": _client(
        "DilatedRNN", {**LAYERS, "cell_type": "ResLSTM"}, Oracle(CELL, _step, _read), {"module": CELL}
    ),
    "AutoLSTM Optuna": automatic("optuna"),
    "AutoLSTM Ray": automatic("ray"),
}
