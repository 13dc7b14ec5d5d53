"""What it costs to set a spectrum, in CPU seconds of one thread, and whether flossing reaches its target.

Of several times the lowest counts: what else the machine does makes each only longer.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from plan import Run
from starts import FLOSSED
from tasks import RECALL, network
from torch import nn

CELLS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def measured(run: Run) -> dict[str, Any]:
    """By the name of the start: ``hold`` at 64 units, ``flossing`` a step at 80 units, ``flossed`` as for recall."""
    return {"hold": scaling, "flossing": step, "flossed": flossed}[run.start](run)


def scaling(run: Run) -> dict[str, Any]:
    """Seconds of setting a layer of 64 units to a lag of 40, five times."""
    from lightning_lyapunov.conditioning import condition

    seconds = []
    for seed in range(5):
        torch.manual_seed(seed)
        begun = time.process_time()
        condition(CELLS[run.net](4, 64), torch.randn(100, 16, 4), lag=40)
        seconds.append(time.process_time() - begun)
    return {"seconds": sorted(round(second, 3) for second in seconds)}


def step(run: Run) -> dict[str, Any]:
    """Seconds of a step of flossing with 75 exponents (80 of an LSTM) of 80 units, without what is measured around."""
    from lightning_lyapunov.conditioning import condition

    def seconds(steps: int) -> float:
        torch.manual_seed(0)
        layer = CELLS[run.net](1, 80)
        begun = time.process_time()
        condition(
            layer, torch.randn(100, 16, 1), lag=40, method="flossing", steps=steps, tolerance=1e-9,
            k=80 if run.net == "LSTM" else 75, max_seconds=600.0,
        )  # fmt: skip
        return time.process_time() - begun

    return {"seconds": sorted(round((seconds(25) - seconds(5)) / 20, 4) for _ in range(3))}


def flossed(run: Run) -> dict[str, Any]:
    """Mean square of the exponents after 200 steps at most, of 32 units and the sequences of recall."""
    from lightning_lyapunov.conditioning import condition

    torch.manual_seed(run.seed)
    layer, _ = network(RECALL, run.net)
    inputs = next(RECALL.batches(20_000 + run.seed))[0]
    report = condition(layer, inputs, lag=RECALL.lag, steps=200, **FLOSSED)
    return {"steps": report.steps, "rms_after": report.rms_after, "applied": report.applied, "target": report.target}
