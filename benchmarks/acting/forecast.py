"""Forecasts of a sea's temperature by darts: a task of which nobody can say how long anything must be held.

Monthly temperatures of the El Niño region, 1950 to 2010, which come with statsmodels. A ``RNNModel`` learns from the
first 50 years and forecasts a year at every third month of the rest. Its error is the mean absolute one over that of
repeating the year before. The layer is set by :class:`~lightning_lyapunov.LyapunovConditioning` in darts' own Trainer.

    .venv-clients-forecasting/bin/python benchmarks/acting/forecast.py     after `make clients ARGS=darts`

Results go where those of `python benchmarks/acting` do, whose tables show them.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.models import RNNModel
from lightning.pytorch import Callback, LightningModule, Trainer
from starts import SIMPLE
from statsmodels.datasets import elnino

RESULTS = Path(__file__).resolve().parents[1] / "results" / "acting.jsonl"
YEAR, LENGTH, SEEDS = 12, 48, range(5)
"""Months of a forecast; of the sequences trained on, which is the lag that is told for want of a better one."""
TRAINED = 50 * YEAR


class Simple(Callback):
    """The simple rule, as the fit begins."""

    def __init__(self, net: str) -> None:
        self.net = net

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        SIMPLE[self.net](pl_module.rnn.float(), torch.empty(0), LENGTH)


def callbacks(start: str, net: str) -> list[Callback]:
    """What stands in the Trainer."""
    if start == "as made":
        return []
    if start == "simple":
        return [Simple(net)]
    from lightning_lyapunov.training.conditioning import LyapunovConditioning

    return [LyapunovConditioning(lag=LENGTH if start == "hold" else YEAR)]


def fitted(net: str, start: str, seed: int, epochs: int) -> dict[str, Any]:
    """Fit, forecast, compare."""
    values = elnino.load_pandas().data.iloc[:, 1:].to_numpy(np.float32).ravel()
    values = (values - values[:TRAINED].mean()) / values[:TRAINED].std()
    series = TimeSeries.from_values(values)
    guests = callbacks(start, net)
    options = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "callbacks": guests,
    }  # fmt: skip
    model = RNNModel(
        LENGTH - YEAR, model=net, hidden_dim=32, training_length=LENGTH, n_epochs=epochs, batch_size=32,
        random_state=seed, optimizer_kwargs={"lr": 3e-3}, pl_trainer_kwargs=options,
    )  # fmt: skip
    begun = time.process_time()
    model.fit(series[:TRAINED])
    seconds = time.process_time() - begun
    forecasts = model.historical_forecasts(
        series, start=TRAINED, forecast_horizon=YEAR, stride=3, retrain=False, last_points_only=False, verbose=False
    )
    errors, naive = [], []
    for forecast in forecasts:
        at = int(forecast.start_time())
        errors.append(np.abs(forecast.values()[:, 0] - values[at : at + YEAR]).mean())
        naive.append(np.abs(values[at - YEAR : at] - values[at : at + YEAR]).mean())
    report = getattr(guests[0], "report", None) if guests else None
    return {
        "task": "forecast", "net": net, "start": start, "seed": seed, "epochs": epochs, "forecasts": len(forecasts),
        "start_of": {"changed": report.changed, "applied": report.applied} if report else {},
        "seconds": round(seconds, 2), "result": round(float(np.mean(errors) / np.mean(naive)), 4),
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    kept = [row for row in map(json.loads, lines) if row["task"] == "forecast"]
    done = {(row["net"], row["start"], row["seed"]) for row in kept}
    for seed in SEEDS:
        for net in ("LSTM", "GRU", "RNN"):
            for start in ("as made", "hold", "hold, lag 12", "simple"):
                if (net, start, seed) in done:
                    continue
                row = fitted(net, start, seed, args.epochs)
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(net, start, seed, row["result"], row["seconds"], row["start_of"], flush=True)


if __name__ == "__main__":
    main()
