"""How often must a forecaster be shown the data while it learns, and does the exponent of its closed loop tell?

A GRU of 40 units sees one variable of the Lorenz system (a sample every .05 units of time, noise of .02 standard
deviations) and forecasts by how much the next sample differs. In training it is fed with the data at every so many
steps, the *forcing interval*, and with its own forecast in between: "never" is once, at the first step. The
predictability time of the data, ln 2 over the largest exponent, is 15.3 steps. As it learns, and in the end, the
network runs on its own forecasts, and is asked

valid time   in Lyapunov times, 1/λ of the data: until the forecast, begun after 50 samples, is .4 standard deviations
             off; mean over 64 starts
W1           distance between the long run and the data: mean over quantiles of the variable, in standard deviations
λ closed     largest exponent of the closed loop with its 95 % bar, per unit of time; that of the data is .906
one step     root mean square error of the forecast of the next sample, along the data

beside the norm of the gradient in training, before it is clipped. Then: which of these, known at once or after a short
look, ranks networks as their long run does? Rank correlations with W1, between runs and within them.

A run that is done is kept in the file of results, a line each; interrupted, it goes on with those that are missing.

Usage: python benchmarks/forecasting.py [--results FILE] [--seeds N] [--quick]   # about 12 minutes on one core
       python benchmarks/forecasting.py --table [--results FILE]                 # Markdown, from what is there
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.reading.times import predictability_time

KEPT = Path(__file__).parent / "results" / "forecasting.jsonl"
DT, NOISE, RATE = 0.05, 0.02, 0.9056
"""Units of time between samples; standard deviations; largest exponent of the Lorenz system, nats per unit of time."""
HIDDEN, WINDOW, BATCH, LEARNING_RATE, CLIP = 40, 70, 32, 4e-3, 1.0
WARM_UP, STARTS, LONG, WASHOUT, OFF = 50, 64, 1200, 200, 0.4
"""Samples seen before the network is left alone, and from how many starts; steps that it then runs, of which the first
do not count for the long run; the error at which a forecast is no longer valid."""
ROWS, STEPS = 8, 500
"""Sequences and steps of a measurement of the closed loop."""
NEVER = WINDOW
INTERVALS = (1, 2, 4, 8, 15, 30, NEVER)
SAFE = 8
"""Forcing intervals up to this are compared apart, for the interval itself tells much otherwise."""


@dataclass(frozen=True)
class Arm:
    """A run."""

    interval: int
    seed: int
    shown: int = 1
    """First samples of a window that the network is shown in any case."""
    updates: int = 500
    times: int = 10
    """That the network is asked, as it learns."""


# ------------------------------------------------------------------ the data


def lorenz(chains: int, samples: int, seed: int) -> Tensor:
    """The first variable ``(samples, chains)`` on the attractor, of unit variance, by the fourth-order Runge-Kutta."""

    def flow(state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    def step(state: Tensor, dt: float) -> Tensor:
        k1 = flow(state)
        k2 = flow(state + dt / 2 * k1)
        k3 = flow(state + dt / 2 * k2)
        k4 = flow(state + dt * k3)
        return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    state = torch.randn(chains, 3, dtype=torch.float64, generator=Generator().manual_seed(seed))
    state = state + torch.tensor([0.0, 0.0, 25.0])
    kept = []
    for time_ in range(400 + samples):
        for _ in range(5):
            state = step(state, DT / 5)
        if time_ >= 400:
            kept.append(state[:, 0] / 7.93)  # its standard deviation
    return torch.stack(kept).float()


@cache
def training_data() -> Tensor:
    """Four noisy series ``(1500, 4)``."""
    clean = lorenz(4, 1500, seed=1)
    return clean + NOISE * torch.randn(clean.shape, generator=Generator().manual_seed(2))


@cache
def test_data() -> tuple[Tensor, Tensor]:
    """Noisy and true ``(WARM_UP + LONG, STARTS)``."""
    clean = lorenz(STARTS, WARM_UP + LONG, seed=3)
    return clean + NOISE * torch.randn(clean.shape, generator=Generator().manual_seed(4)), clean


# ------------------------------------------------------------------ the network


class Forecaster(nn.Module):
    """A GRU cell that reads a sample, and a line that says by how much the next one differs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(1, HIDDEN), nn.Linear(HIDDEN, 1)

    def forced(self, samples: Tensor, interval: int, shown: int = 1) -> Tensor:
        """Forecasts ``(T, B, 1)``, fed with ``(T, B, 1)`` at every so many steps and the first ones."""
        state, forecast, said = samples.new_zeros(samples.shape[1], HIDDEN), samples[0], []
        for t, sample in enumerate(samples):
            fed = sample if t < shown or t % interval == 0 else forecast
            state, forecast = self.next(fed, state)
            said.append(forecast)
        return torch.stack(said)

    def next(self, sample: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state ``(B, H)`` after a sample ``(B, 1)``, and the forecast ``(B, 1)`` of the next."""
        state = self.cell(sample, state)
        return state, sample + self.head(state)

    def alone(self, _: None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The map that it is when fed with its own forecasts: of its state and the last forecast."""
        return self.next(state[1], state[0])


def train(arm: Arm) -> Iterator[tuple[int, Forecaster, list[float]]]:
    """Updates made, the network, and the norms of the gradients since the last time: so many times in a run."""
    torch.manual_seed(arm.seed)
    model, draws = Forecaster(), Generator().manual_seed(100 + arm.seed)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arm.updates)
    series, norms = training_data(), []
    for update in range(1, arm.updates + 1):
        begin = torch.randint(len(series) - WINDOW, (BATCH,), generator=draws)
        chain = torch.randint(series.shape[1], (BATCH,), generator=draws)
        window = series[begin + torch.arange(WINDOW + 1).unsqueeze(1), chain].unsqueeze(-1)
        loss = (model.forced(window[:-1], arm.interval, arm.shown) - window[1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        schedule.step()
        if update * arm.times % arm.updates == 0:
            yield update, model, norms
            norms = []


@torch.no_grad()
def asked(model: Forecaster) -> dict[str, float]:
    """What the network does left alone."""
    noisy, clean = test_data()
    state, errors = (noisy.new_zeros(STARTS, HIDDEN), noisy[0]), []
    for t in range(WARM_UP):
        state = model.next(noisy[t].unsqueeze(-1), state[0])
        errors.append((state[1][:, 0] - clean[t + 1]).square().mean())
    start, run = state, []
    for _ in range(LONG - 1):
        run.append(state[1][:, 0])
        state = model.alone(None, state)
    long = torch.stack(run)
    off = (long - clean[WARM_UP : WARM_UP + len(long)]).abs() > OFF  # the forecast of each sample itself
    first = torch.where(off.any(0), off.float().argmax(0), len(long)).double()
    quantiles = torch.linspace(0.005, 0.995, 100)
    kept = [torch.quantile(values.flatten(), quantiles) for values in (long[WASHOUT:], clean[WASHOUT:])]
    begin = start[0][:ROWS], start[1][:ROWS]
    closed = lyapunov_spectrum(model.alone, None, state=begin, steps=STEPS, k=1, growth=0)
    return {
        "valid": float(first.mean()) * DT * RATE,
        "w1": float((kept[0] - kept[1]).abs().mean()),
        "closed": float(closed.exponents[0]) / DT,
        "error": float(closed.error[0]) / DT,
        "one_step": float(torch.stack(errors[WARM_UP // 2 :]).mean().sqrt()),
    }


def run(arm: Arm) -> dict[str, Any]:
    began, looks, norms = time.process_time(), [], []
    for update, model, some in train(arm):
        looks.append({"update": update, **asked(model)})
        norms += some
    gradient = {"gradient": statistics.median(norms), "peak": max(norms)}
    return {**asdict(arm), "looks": looks, **gradient, "seconds": time.process_time() - began}


# ------------------------------------------------------------------ the tables


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each forcing interval; of several seeds the mean, and in brackets the range."""
    lines = [
        f"| forced every | valid time, 1/λ | W1 | λ closed, of {RATE:.3f} | gradient norm: median, largest | runs |",
        "|---|---|---|---|---|---|",
    ]
    for interval, shown in sorted({(row["interval"], row["shown"]) for row in rows}):
        some = [row for row in rows if (row["interval"], row["shown"]) == (interval, shown)]
        last = [row["looks"][-1] for row in some]
        name = "never" if interval == NEVER else f"{interval}"
        name += f", after {shown} samples" if shown > 1 else ""
        cells = [
            spread([look[key] for look in last], digits) for key, digits in (("valid", 2), ("w1", 3), ("closed", 2))
        ]
        gradient = f"{statistics.mean(row['gradient'] for row in some):.2g}, {max(row['peak'] for row in some):.2g}"
        lines.append(f"| {name} | {' | '.join(cells)} | {gradient} | {len(some)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


PREDICTORS: dict[str, Callable[[dict[str, Any], dict[str, Any]], float]] = {
    "distance of λ closed from the data's": lambda row, look: abs(look["closed"] - RATE),
    "one-step error": lambda row, look: look["one_step"],
    "valid time, negated": lambda row, look: -look["valid"],
    "forcing interval": lambda row, look: row["interval"],
    "updates made, negated": lambda row, look: -look["update"],
}
"""Each is to be small where the long run is good."""


def ranking(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: Spearman's ρ with W1, between runs at their end and within runs, and what picking by it costs."""
    lines = [
        f"| | between all {len(rows)} runs | between those forced every {SAFE} steps or more often "
        "| within runs, mean | W1 of the look it picks |",
        "|---|---|---|---|---|",
    ]
    close = [row for row in rows if row["interval"] <= SAFE]
    for name, of in PREDICTORS.items():
        cells = []
        for some in (rows, close):
            ends = [(of(row, row["looks"][-1]), row["looks"][-1]["w1"]) for row in some]
            cells.append(with_interval(ends))
        within, picked = [], []
        for row in close:
            pairs = [(of(row, look), look["w1"]) for look in row["looks"]]
            within.append(spearman(pairs))
            picked.append(min(pairs, key=lambda pair: pair[0])[1])
        known = [rho for rho in within if not math.isnan(rho)]
        cells.append(f"{statistics.mean(known):.2f}" if known else "")
        cells.append(f"{statistics.mean(picked):.3f}" if known else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best = statistics.mean(min(look["w1"] for look in row["looks"]) for row in close)
    lines.append(f"| the best look of each run | | | | {best:.3f} |")
    return "\n".join(lines)


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation; NaN where one of the two is constant."""
    try:
        return statistics.correlation(*(ranks(column) for column in zip(*pairs, strict=True)))
    except statistics.StatisticsError:
        return math.nan


def ranks(values: Sequence[float]) -> list[float]:
    """Places, those of equal values their mean."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def with_interval(pairs: Sequence[tuple[float, float]], draws: int = 500) -> str:
    """ρ, and the 95 % interval of a bootstrap over runs."""
    rho, generator = spearman(pairs), Generator().manual_seed(0)
    if math.isnan(rho):
        return ""
    picks = torch.randint(len(pairs), (draws, len(pairs)), generator=generator).tolist()
    drawn = sorted(r for pick in picks if not math.isnan(r := spearman([pairs[i] for i in pick])))
    return f"{rho:.2f} [{drawn[len(drawn) * 25 // 1000]:.2f}, {drawn[len(drawn) * 975 // 1000]:.2f}]"


def kept(path: Path) -> list[dict[str, Any]]:
    """The runs that are done; a line that was cut off does not count."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=KEPT)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a trial: one seed, 20 updates")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    more = {"updates": 20, "times": 2} if args.quick else {}
    arms = [Arm(*arm, **more) for arm in itertools.product(INTERVALS, range(1 if args.quick else args.seeds))]
    arms.sort(key=lambda arm: arm.seed)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.table:
        done = [{key: row[key] for key in asdict(arms[0])} for row in kept(args.results)]
        for arm in arms:
            if asdict(arm) in done:
                continue
            row = run(arm)
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"every {arm.interval}, seed {arm.seed}: {row['seconds']:.0f} s, {row['looks'][-1]}", flush=True)
    wanted = [asdict(arm) for arm in arms]
    rows = [row for row in kept(args.results) if {key: row[key] for key in asdict(arms[0])} in wanted]
    if rows:
        minutes = sum(row["seconds"] for row in rows) / 60
        print(f"\nln 2/λ of the data: {predictability_time(RATE * DT):.1f} steps; {minutes:.0f} minutes of one core\n")
        print(f"{table(rows)}\n\n{ranking(rows)}")


if __name__ == "__main__":
    main()
