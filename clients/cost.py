"""What the callback costs fits of two client libraries, of a minute each: CPU time with it over that without it.

Each fit runs in a process of its own, in turn; TensorBoard is on, everything else is by default.

.venv-clients-forecasting/bin/python -m clients.cost --pairs 10
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Quantile of 95 % by the number of pairs."""


def fitted_by_darts(callbacks: list[Any], options: dict[str, Any], length: int) -> None:
    """An LSTM of darts on a series."""
    from darts import TimeSeries
    from darts.models import RNNModel

    from clients.checks import waves

    series = TimeSeries.from_values(waves(4000))
    trainer = {**options, "callbacks": callbacks}
    model = RNNModel(24, model="LSTM", hidden_dim=64, training_length=48, n_epochs=length, pl_trainer_kwargs=trainer)
    model.fit(series[:3600], val_series=series[3500:])


def fitted_by_neuralforecast(callbacks: list[Any], options: dict[str, Any], length: int) -> None:
    """An LSTM of neuralforecast on a series."""
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM
    from pandas import DataFrame, date_range

    from clients.checks import waves

    frame = DataFrame({"unique_id": "a", "ds": date_range("2000-01-01", periods=4000, freq="h"), "y": waves(4000)})
    model = LSTM(h=24, input_size=96, max_steps=100 * length, val_check_steps=100, callbacks=callbacks, **options)
    NeuralForecast(models=[model], freq="h").fit(frame, val_size=300)


FITS: dict[str, tuple[Callable[..., None], int]] = {
    "darts RNNModel": (fitted_by_darts, 65),
    "neuralforecast LSTM": (fitted_by_neuralforecast, 7),
}
"""How each is fitted, and how long for about a minute."""


def seconds(name: str, with_callback: bool, length: int) -> float:
    """CPU seconds of one fit in this process, all imports apart."""
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    import lightning_lyapunov.figures  # noqa: F401
    from lightning_lyapunov import LyapunovSpectrumCallback

    torch.set_num_threads(1)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        fit = FITS[name][0]
        fit([], {**options, "logger": False}, 1)  # the libraries import as they go
        start = time.process_time()
        fit(
            [LyapunovSpectrumCallback()] if with_callback else [],
            {**options, "logger": TensorBoardLogger(folder)},
            length,
        )
        return time.process_time() - start


def main() -> None:
    """Run the pairs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--names", nargs="*", choices=list(FITS), default=list(FITS))
    parser.add_argument("--fit", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        name, arm = args.fit
        print(json.dumps(seconds(name, arm == "with", FITS[name][1])))
        return
    print("| fit | pairs | without, s | ratio | 95 % interval |\n|---|---|---|---|---|")
    for name in args.names:
        found = []
        for _ in range(args.pairs):
            pair = {}
            for arm in ("without", "with"):
                command = [sys.executable, "-m", "clients.cost", "--fit", name, arm]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                pair[arm] = float(run.stdout.splitlines()[-1])
            found.append(pair)
        ratios = [pair["with"] / pair["without"] for pair in found]
        mean = statistics.fmean(ratios)
        margin = (
            STUDENT.get(len(ratios), 2.0) * statistics.stdev(ratios) / math.sqrt(len(ratios)) if found[1:] else math.nan
        )
        without = statistics.median(pair["without"] for pair in found)
        bar = f"{mean - margin:.3f} to {mean + margin:.3f}"
        print(f"| {name} | {len(found)} | {without:.1f} | {mean:.3f} | {bar} |", flush=True)


if __name__ == "__main__":
    main()
