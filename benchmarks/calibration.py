"""Whether error bars are true: measured on networks that were made after their rule was fixed.

Of each network hundreds of sequences are measured once for each length T; regrouped by B they are many measurements of
B sequences, as a user makes one. Beside them stands a long run, the truth.

    told ÷ true   the standard error told, over the spread of exponents between repeats (root mean squares).
    coverage      in how many measurements the bar, `error`, holds the long-run value.
    settled       in how many the spectrum says yes; coverage is then that of those.

Networks and the limits in the tables were fixed before anything was measured; a table's verdict is computed. Results
of each network are kept in runs/calibration, and a run that was interrupted goes on; delete the folder to measure anew.

Usage: python benchmarks/calibration.py [--quick] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lightning_lyapunov.engine import frames
from lightning_lyapunov.engine.exponents import Counting, Meter
from lightning_lyapunov.engine.frames import random_frames
from lightning_lyapunov.engine.isolation import measuring
from lightning_lyapunov.engine.measure import SystemTally, measure
from lightning_lyapunov.engine.precision import PrecisionLaw
from lightning_lyapunov.engine.settings import Settings, Start
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.statistics import mean_and_error, student
from lightning_lyapunov.engine.system import trajectories
from lightning_lyapunov.engine.tally import Along, Tally
from lightning_lyapunov.engine.trajectory import STRETCH

KEPT = Path(__file__).resolve().parents[1] / "runs" / "calibration"
CHUNK = 64
"""Sequences that are measured side by side: more do not fit the cache."""
MOST_GROUPS = 128
"""Measurements of B sequences at most that are made of those of a length."""
EXPONENTS = (1, 2, 4, 8)
"""Those that are looked at, counted from 1; the last one besides."""
LEADING_STEPS, LEADING_SEQUENCES, LEADING_BATCHES = (6, 8, 12, 16, 28, 64), 16, 3
ALONE = {64: 64, 128: 64, 256: 48, 1024: 24, 4096: 12}
"""Single sequences for each number of measured steps."""
LONG_TRANSIENT, TRUTH_SEED = 64, 10**6
Row = dict[str, Any]
System = nn.Module
Drive = Callable[[int, int, int], Tensor]
"""Inputs ``(T, B, I)`` of so many steps and sequences, by a seed."""


# Networks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, made from its description alone, and what drives it."""

    name: str
    group: str
    """random, trained, relu, own or slow."""
    size: int
    """D."""
    make: Callable[[], tuple[System, Drive]]
    whole: bool = True
    """Whether all its exponents are measured; else 32."""

    @property
    def k(self) -> int:
        return self.size if self.whole else 32

    @property
    def file(self) -> str:
        return "".join(c if c.isalnum() or c in ".+-" else "-" for c in self.name.lower()) + ".json"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    steps: tuple[int, ...] = (8, 16, 28, 64, 128, 256)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    sequences: int = 512
    truth: tuple[int, int, int] = (64, 4352, 512)
    """Sequences, steps, and the first of them that do not count."""
    alone: dict[int, int] = field(default_factory=lambda: dict(ALONE))
    spares: tuple[int, ...] = (0, 1, 2, 4, 8)

    def of(self, network: Network) -> Plan:
        """The same, less of it for a network that takes long, and a longer start of one that drifts."""
        if self.sequences < 512:
            return self
        sequences, steps, transient = self.truth if network.size <= 32 else (48, 2560, 512)
        if network.group == "slow":
            transient *= 3
        many = self.sequences if network.size <= 24 else 256
        return replace(self, sequences=many, truth=(sequences, steps, transient))

    def sequences_of(self, steps: int) -> int:
        return self.sequences if steps < 128 else min(self.sequences, 256)


QUICK = Plan((8, 16, 64), (2, 4, 16, 32), 128, (32, 1800, 300), {64: 32, 256: 16}, (0, 2))

CELLS: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
SIZES = {
    "RNN": (12, 16, 16, 24, 24, 32, 32, 32, 48, 48, 64, 64),
    "GRU": (12, 12, 16, 16, 24, 24, 32, 32, 32, 48, 48, 64),
    "LSTM": (12, 12, 12, 16, 16, 16, 24, 24, 32, 32, 48, 64),
}
GAINS = (0.3, 0.6, 0.8, 0.9, 1.2, 1.5, 1.8, 2.2, 2.6, 3.0, None, None)
"""Of the recurrent weights; None for torch's own initialisation."""
AMPLITUDES = (0.1, 0.3, 1.0, 3.0) * 3
INPUT = 8


def noise(amplitude: float) -> Drive:
    """White noise."""

    def drive(steps: int, batch: int, seed: int) -> Tensor:
        return amplitude * torch.randn(steps, batch, INPUT, generator=torch.Generator().manual_seed(seed))

    return drive


def random_network(cell: str, hidden: int, gain: float | None, amplitude: float, seed: int, group: str) -> Network:
    """A network with random weights, driven by white noise."""
    options = {"nonlinearity": "relu"} if group == "relu" else {}

    def make() -> tuple[System, Drive]:
        torch.manual_seed(seed)
        layer = CELLS[cell](INPUT, hidden, **options)
        if gain is not None:
            nn.init.normal_(layer.weight_hh_l0, std=gain / math.sqrt(hidden))
            nn.init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(INPUT))
        return layer.requires_grad_(False), noise(amplitude)

    size = 2 * hidden if cell == "LSTM" else hidden
    init = "torch's own" if gain is None else f"gain {gain:g}"
    kind = "relu " if group == "relu" else ""
    whole = size <= 48 or (size <= 64 and cell != "LSTM")
    return Network(f"{kind}{cell} {hidden}, {init}, amplitude {amplitude:g}, seed {seed}", group, size, make, whole)


class LayerNormLSTM(nn.Module):
    """An LSTM cell that normalises its gates and what it shows of its memory."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates, self.recurrent = nn.Linear(width, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm, self.shown = nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        zeros = x.new_zeros(len(x), self.hidden)
        h, c = (zeros, zeros) if state is None else state
        i, f, g, o = self.norm(self.gates(x) + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.shown(c)), c


class Leaky(nn.Module):
    """A tanh cell that takes only a share of a step at a time."""

    def __init__(self, width: int, hidden: int, share: float, gain: float) -> None:
        super().__init__()
        self.share, self.hidden = share, hidden
        self.drive, self.recurrent = nn.Linear(width, hidden), nn.Linear(hidden, hidden, bias=False)
        nn.init.normal_(self.recurrent.weight, std=gain / math.sqrt(hidden))

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        h = x.new_zeros(len(x), self.hidden) if state is None else state
        return h + self.share * (torch.tanh(self.drive(x) + self.recurrent(h)) - h)


def own_network(name: str, size: int, make: Callable[[], nn.Module], seed: int) -> Network:
    """A cell of one's own, with white noise of amplitude 1."""

    def made() -> tuple[System, Drive]:
        torch.manual_seed(seed)
        return make().requires_grad_(False), noise(1.0)

    return Network(f"{name}, seed {seed}", "own", size, made)


SYMBOLS = 4


def symbols(steps: int, batch: int, seed: int) -> Tensor:
    """Random symbols, one-hot."""
    drawn = torch.randint(SYMBOLS, (steps, batch), generator=torch.Generator().manual_seed(seed))
    return one_hot(drawn, SYMBOLS).float()


def digit_rows(steps: int, batch: int, seed: int) -> Tensor:
    """Images of digits row by row, one after another without end."""
    images = torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 8, 8) / 16
    chosen = torch.randint(len(images), (-(-steps // 8), batch), generator=torch.Generator().manual_seed(seed))
    return images[chosen].movedim(2, 1).flatten(0, 1)[:steps]


def trained_network(cell: str, hidden: int, task: str, seed: int, delay: int = 3, updates: int = 400) -> Network:
    """A network that has learnt to repeat symbols after a delay, or to name digits that it reads by rows."""

    def make() -> tuple[System, Drive]:
        torch.manual_seed(seed)
        echo = task == "echo"
        layer = CELLS[cell](SYMBOLS if echo else 8, hidden)
        head = nn.Linear(hidden, SYMBOLS if echo else 10)
        optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=3e-3)
        bunch = load_digits()
        images, labels = torch.tensor(bunch.data, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(bunch.target)
        for update in range(updates):
            if echo:
                inputs = symbols(32, 32, 10**7 * seed + update)
                predicted, wanted = head(layer(inputs)[0])[delay:], inputs.argmax(-1)[:-delay]
                loss = cross_entropy(predicted.flatten(0, 1), wanted.flatten())
            else:
                chosen = torch.randint(len(images), (32,))
                loss = cross_entropy(head(layer(images[chosen].movedim(1, 0))[0][-1]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return layer.requires_grad_(False), symbols if echo else digit_rows

    size = 2 * hidden if cell == "LSTM" else hidden
    task_name = f"echo after {delay} steps" if task == "echo" else "digits by rows"
    return Network(f"{cell} {hidden}, trained: {task_name}, seed {seed}", "trained", size, make, size <= 48)


def random_networks(seed: int = 2611) -> Iterator[Network]:
    """Twelve of each cell: sizes, gains and amplitudes dealt out at random."""
    dealer = random.Random(seed)
    for number, cell in enumerate(CELLS):
        dealt = [dealer.sample(values, len(values)) for values in (SIZES[cell], GAINS, AMPLITUDES)]
        for place, (hidden, gain, amplitude) in enumerate(zip(*dealt, strict=True)):
            yield random_network(cell, hidden, gain, amplitude, seed + 100 * number + place, "random")


def networks() -> list[Network]:
    """All of them."""
    return [
        *random_networks(),
        trained_network("RNN", 24, "echo", 5001),
        trained_network("GRU", 24, "echo", 5002, 5),
        trained_network("LSTM", 16, "echo", 5003, 5),
        trained_network("RNN", 32, "digits", 5004),
        trained_network("GRU", 24, "digits", 5005),
        trained_network("LSTM", 16, "digits", 5006),
        random_network("RNN", 32, 1.2, 0.3, 6002, "relu"),
        random_network("RNN", 24, 1.4, 1.0, 6003, "relu"),
        random_network("RNN", 32, 1.0, 1.0, 6004, "relu"),
        random_network("RNN", 48, 0.8, 1.0, 6005, "relu"),
        random_network("RNN", 48, 1.2, 1.0, 6006, "relu"),
        random_network("RNN", 64, 1.0, 0.3, 6007, "relu"),
        own_network("LayerNorm LSTM 12", 24, lambda: LayerNormLSTM(INPUT, 12), 7001),
        own_network("LayerNorm LSTM 16", 32, lambda: LayerNormLSTM(INPUT, 16), 7002),
        own_network("leaky tanh 16, share 0.2, gain 1", 16, lambda: Leaky(INPUT, 16, 0.2, 1.0), 7003),
        own_network("leaky tanh 24, share 0.5, gain 1.8", 24, lambda: Leaky(INPUT, 24, 0.5, 1.8), 7004),
        *(random_network(*slow, "slow") for slow in SLOW),
    ]


SLOW: tuple[tuple[str, int, float, float, int], ...] = (
    ("RNN", 32, 2.5, 0.1, 3005),
    ("RNN", 32, 2.5, 0.1, 3011),
    ("RNN", 32, 2.5, 0.1, 3012),
    ("LSTM", 64, 2.5, 0.1, 3006),
    ("LSTM", 64, 2.5, 0.1, 3007),
    ("LSTM", 64, 2.5, 0.03, 3013),
)
"""Cell, H, gain, amplitude, seed: found among 22 RNNs and 14 LSTMs by looking for those whose mean rates over 32 to 256
steps are off by a nat or more over these steps."""


def quick_networks() -> list[Network]:
    """Small ones, one of each kind."""
    return [
        random_network("RNN", 12, 1.2, 1.0, 1, "random"),
        random_network("GRU", 12, None, 0.3, 2, "random"),
        random_network("LSTM", 12, 1.8, 1.0, 3, "random"),
        trained_network("RNN", 16, "echo", 4, 2, 200),
        own_network("leaky tanh 12, share 0.3, gain 1.2", 12, lambda: Leaky(INPUT, 12, 0.3, 1.2), 5),
        random_network("RNN", 32, 2.5, 0.1, 3005, "slow"),
    ]


# Measuring ------------------------------------------------------------------------------------------------------------


def tally_of(system: System, inputs: Tensor, settings: Settings, seed: int) -> Tally:
    """Sums of all sequences, a frame for each by its place; measured a chunk at a time."""
    count = inputs.shape[1]
    chunks = [
        measure(system, inputs[:, first : first + CHUNK], settings, start=Start(seed, first))
        for first in range(0, count, CHUNK)
    ]
    return next(iter(SystemTally.merge(chunks).parts.values()))


def groups_of(tally: Tally, size: int) -> list[Tally]:
    """Measurements of ``size`` sequences each: rows of one large one."""
    bare = replace(tally, along=None, volume=None, audits=[], growth=None)
    groups = []
    for first in range(0, len(tally.lengths) - size + 1, size):
        rows = slice(first, first + size)
        groups.append(
            replace(
                bare,
                log=tally.log[:, rows],
                steps=tally.steps[:, rows],
                lengths=tally.lengths[rows],
                transients=tally.transients[rows],
                again=None if tally.again is None else tally.again[rows],
            )
        )
    return groups[:MOST_GROUPS]


def looked_at(k: int) -> list[tuple[int, bool]]:
    """Exponents that are looked at among k, counted from 0, and whether each is the last."""
    return [(i - 1, False) for i in EXPONENTS if i < k] + [(k - 1, True)]


@dataclass(frozen=True)
class Repeats:
    """Many measurements of the same thing, exponents ``(G, K)``."""

    exponents: Tensor
    stderr: Tensor
    error: Tensor
    settled: Tensor

    @staticmethod
    def of(spectra: Sequence[LyapunovSpectrum]) -> Repeats:
        names = ("exponents", "stderr", "error", "settled")
        return Repeats(*(torch.stack([getattr(s, name) for s in spectra]) for name in names))

    def rows(self, truth: Tensor, steps: float, scale: Tensor | None = None) -> Iterator[Row]:
        """A row for each exponent that is looked at; dead ones are left out.

        Args:
            truth: Long-run values, (K,) or more.
            steps: Measured steps.
            scale: (K,) what the squared standard error should be about: makes networks comparable.
        """
        k = self.exponents.shape[1]
        for i, is_last in looked_at(k):
            values, truly = self.exponents[:, i], float(truth[i])
            if not (math.isfinite(truly) and bool(values.isfinite().all())):
                continue
            told = float(self.stderr[:, i].square().mean())
            covered, yes = (values - truly).abs() <= self.error[:, i], self.settled[:, i]
            yield {
                "i": i + 1,
                "last": is_last,
                "repeats": len(values),
                "told": told,
                "true": float(values.var()),
                "scale": told if scale is None else float(scale[i]),
                "bias": (float(values.mean()) - truly) * steps,
                "bar": float(self.error[:, i].square().mean()),
                "off": float((values - truly).square().mean()),
                "covered": share(covered),
                "yes": share(yes),
                "both": share(covered & yes),
            }


def share(those: Tensor) -> float:
    return float(those.double().mean())


def spectra_of(groups: Sequence[Tally], k: int) -> Repeats:
    """Spectra of the leading k as a measurement with this k gives them, spare columns included."""
    return Repeats.of([group.leading(min(k + frames.SPARE, group.log.shape[-1])).spectrum(k) for group in groups])


def rows_of_groups(network: Network, plan: Plan, system: System, drive: Drive, truth: Tensor) -> Iterator[Row]:
    """T × B × k × i."""
    for steps in plan.steps:
        twice = network.group == "slow" or (steps in (16, 64) and network.size <= 32)
        inputs = drive(steps, plan.sequences_of(steps), 1000 * steps + 1)
        settings = Settings(k=network.k, growth=0, second_start=twice)
        tally = tally_of(system, inputs, settings, 0)
        measured = float(tally.steps.sum(0).double().mean())
        single = tally.log.sum(0) / measured
        order = single.mean(0).argsort(descending=True)
        single = single[:, order]
        for batch in plan.batches:
            groups = groups_of(tally, batch)
            scale = single.var(0) / batch
            means, errors = zip(*(mean_and_error(g.log.sum(0), g.steps.sum(0))[:2] for g in groups), strict=True)
            spread, error = torch.stack(means)[:, order].var(0), torch.stack(errors)[:, order].square().mean(0)
            once = [replace(group, again=None) for group in groups]
            for k in (network.k, *(k for k in EXPONENTS if k < network.k and batch in (4, 16, 64))):
                head = {"T": steps, "B": batch, "k": k, "all": k == network.k}
                rows = list(spectra_of(once, k).rows(truth, measured, scale))
                again = list(spectra_of(groups, k).rows(truth, measured, scale)) if twice else []
                for place, row in enumerate(rows):
                    i = row["i"] - 1
                    row |= {"told unsorted": float(error[i]), "true unsorted": float(spread[i])}
                    if again:
                        row |= {"yes again": again[place]["yes"], "both again": again[place]["both"]}
                    yield head | row


def alone(system: System, inputs: Tensor, k: int) -> list[LyapunovSpectrum]:
    """Spectra of each sequence as if it had been measured alone, all of them side by side."""
    steps, count, _ = inputs.shape
    with measuring(system, inputs.device):
        (path,) = trajectories(system, inputs, None, None, None).values()
        pushed = min(path.size, k + frames.SPARE)
        transient = min(steps // 2, LONG_TRANSIENT)
        law = PrecisionLaw(path.dtype, None, may_narrow=path.can_narrow, limit=STRETCH, steps=steps - transient)
        # Rows as pieces of one sequence: blocks of time are then kept for each of them.
        counting = replace(Counting.of([steps] * count, [transient] * count), pieces=count)
        frame = random_frames(range(count), path.size, pushed, inputs.device)
        meter = Meter(path, frame, law, counting)
        meter.advance(steps)
    log = torch.cat(meter._along)
    spectra = []
    for row in range(count):
        along = Along(meter._starts, meter._ends, log[:, row], [weights[row] for weights in meter._weights])
        tally = Tally(
            log=meter._log[:, row : row + 1],
            steps=meter._steps[:, row : row + 1],
            lengths=[steps],
            transients=[transient],
            trusted=meter.trusted.all(0),
            dimension=path.size,
            driven=True,
            along=along,
            intervals=meter.intervals,
            pushed=meter.pushed,
        )
        spectra.append(tally.spectrum(k))
    return spectra


def rows_alone(network: Network, plan: Plan, system: System, drive: Drive, truth: Tensor) -> Iterator[Row]:
    """Single sequences, by their measured steps."""
    k = min(8, network.k)
    for measured, count in plan.alone.items():
        steps = measured + LONG_TRANSIENT
        inputs = drive(steps, count, 7 + measured)
        spectra = alone(system, inputs, k)
        if measured == min(plan.alone):
            check_alone(system, inputs, k, spectra[0])
        pure = [replace(s, error=student(blocks_of(s) - 1) * s.stderr) for s in spectra]
        for row, bare in zip(
            Repeats.of(spectra).rows(truth, measured), Repeats.of(pure).rows(truth, measured), strict=True
        ):
            yield {"steps": measured} | row | {"covered by stderr": bare["covered"]}


def blocks_of(spectrum: LyapunovSpectrum) -> int:
    """Samples that the standard error of a single sequence comes from."""
    blocks = math.ceil(spectrum.steps / 16)
    return math.ceil(blocks / math.ceil(blocks / 32))


def check_alone(system: System, inputs: Tensor, k: int, ours: LyapunovSpectrum) -> None:
    """That the short cut of :func:`alone` is what the engine does."""
    tally = next(iter(measure(system, inputs[:, :1], Settings(k=k, growth=0)).parts.values()))
    real = tally.spectrum(k)
    for name in ("exponents", "stderr", "error"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(real, name), rtol=1e-3, atol=1e-3, equal_nan=True, check_dtype=False
        )


def rows_leading(plan: Plan, system: System, drive: Drive, size: int) -> Iterator[Row]:
    """The first k of a measurement of k against those of the whole spectrum, in standard errors of these."""
    usual = frames.SPARE, frames.SPARE_OF_SHORT
    for steps in LEADING_STEPS:
        for number in range(LEADING_BATCHES):
            inputs, start = drive(steps, LEADING_SEQUENCES, 31 * steps + number), Start(number * 1000)
            whole = spectrum_of(system, inputs, Settings(growth=0), start)
            for k in (k for k in EXPONENTS if k < size):
                for spare, growth in [*((spare, 0) for spare in plan.spares), (2, None)]:
                    frames.SPARE = frames.SPARE_OF_SHORT = spare
                    try:
                        led = spectrum_of(system, inputs, Settings(k=k, growth=growth), start)
                    finally:
                        frames.SPARE, frames.SPARE_OF_SHORT = usual
                    off = ((led.exponents - whole.exponents[:k]) / whole.stderr[:k]).abs()
                    off = off[whole.exponents[:k].isfinite()]
                    if len(off):
                        yield {
                            "T": steps, "k": k, "spare": spare, "growth": growth is None, "off": float(off.max()),
                        }  # fmt: skip


def spectrum_of(system: System, inputs: Tensor, settings: Settings, start: Start) -> LyapunovSpectrum:
    (tally,) = measure(system, inputs, settings, start=start).parts.values()
    return tally.spectrum(settings.k or tally.dimension)


def record(network: Network, plan: Plan) -> dict[str, Any]:
    """Everything that is measured of a network."""
    began = time.process_time()
    plan = plan.of(network)
    system, drive = network.make()
    sequences, steps, transient = plan.truth
    settings = Settings(k=network.k, transient=transient, growth=0, dtype=torch.float64)
    tally = tally_of(system, drive(steps, sequences, TRUTH_SEED), settings, TRUTH_SEED)
    truth = tally.spectrum(network.k)
    kept: dict[str, Any] = {
        "name": network.name,
        "group": network.group,
        "D": network.size,
        "k": network.k,
        "truth": truth.exponents.tolist(),
        "truth stderr": truth.stderr.tolist(),
        "cells": list(rows_of_groups(network, plan, system, drive, truth.exponents)),
        "alone": list(rows_alone(network, plan, system, drive, truth.exponents)),
        "leading": list(rows_leading(plan, system, drive, network.size)) if network.whole else [],
    }
    return kept | {"seconds": time.process_time() - began}


# Tables ---------------------------------------------------------------------------------------------------------------

ORDINARY = ("random", "trained")
GROUPS = {
    "random": "random weights: RNN, GRU, LSTM",
    "trained": "trained: echo of symbols, digits by rows",
    "relu": "relu RNN",
    "own": "own cells: LayerNorm LSTM, leaky tanh",
    "slow": "slow or drifting",
}


def ratio(rows: Iterable[Row]) -> float:
    """Told ÷ true, root mean squares over rows that are first made comparable."""
    known = [row for row in rows if row["scale"] > 1e-16]
    told, true = (sum(row[name] / row["scale"] for row in known) for name in ("told", "true"))
    return math.sqrt(told / true) if true else math.nan


def unsorted(rows: Iterable[Row]) -> float:
    """The same, direction by direction of the frame, before exponents are sorted."""
    return ratio(row | {"told": row["told unsorted"], "true": row["true unsorted"]} for row in rows)


def coverage(rows: Iterable[Row], settled: str = "") -> float:
    """Per cent of measurements whose bar holds the truth; of those that say yes if asked: "yes" or "yes again"."""
    rows = list(rows)
    asked = sum(row[settled] if settled else 1.0 for row in rows)
    held = sum(row[settled.replace("yes", "both")] if settled else row["covered"] for row in rows)
    return 100 * held / asked if asked else math.nan


def says_yes(rows: Iterable[Row], settled: str = "yes") -> float:
    """Per cent."""
    values = [row[settled] for row in rows]
    return 100 * sum(values) / len(values) if values else math.nan


def told(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"


def verdict(is_met: bool) -> str:
    return "reached" if is_met else "**missed**"


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *lines])


def grid(rows: Sequence[Row], value: Callable[[list[Row]], float], digits: int) -> str:
    """T × B."""
    steps, batches = (sorted({row[name] for row in rows}) for name in ("T", "B"))
    lines = [
        [t, *(told(value([r for r in rows if r["T"] == t and r["B"] == b]), digits) for b in batches),
         told(value([r for r in rows if r["T"] == t]), digits)]
        for t in steps
    ]  # fmt: skip
    last = ["all", *(told(value([r for r in rows if r["B"] == b]), digits) for b in batches), told(value(rows), digits)]
    return table(["T", *(f"B = {b}" for b in batches), "all"], [*lines, last])


def cells_of(rows: Sequence[Row], value: Callable[[list[Row]], float]) -> list[float]:
    """The values of a grid that are known."""
    keys = sorted({(row["T"], row["B"]) for row in rows})
    values = [value([row for row in rows if (row["T"], row["B"]) == key]) for key in keys]
    return [v for v in values if not math.isnan(v)]


def settled(rows: Iterable[Row]) -> float:
    return coverage(rows, "yes")


def whole(records: Iterable[Row]) -> list[Row]:
    """Rows with all exponents that were measured."""
    return [row for one in records for row in one["cells"] if row["all"]]


@dataclass(frozen=True)
class Target:
    """What is demanded, what was measured, and whether it is met."""

    what: str
    demand: str
    found: str
    is_met: bool


def lost(rows: Sequence[Row], steps: int | None = None) -> float:
    """Points of coverage lost from the fewest of B = 4 or more to the most, where settled."""
    rows = [row for row in rows if steps in (None, row["T"])]
    few, many = 4, max(row["B"] for row in rows)
    return settled(r for r in rows if r["B"] == few) - settled(r for r in rows if r["B"] == many)


def targets(records: Sequence[Row]) -> Iterator[Target]:
    """What is demanded of ordinary networks."""
    ordinary = [one for one in records if one["group"] in ORDINARY]
    rows = whole(ordinary)
    for way, of in (("direction by direction", unsorted), ("exponents sorted, as told", ratio)):
        value, cells = of(rows), cells_of(rows, of)
        yield Target(f"told ÷ true on average, {way}", "0.95–1.05", f"{value:.3f}", 0.95 <= value <= 1.05)
        met = min(cells) >= 0.8 and max(cells) <= 1.25
        yield Target(f"the same, each T × B, {way}", "0.8–1.25", f"{min(cells):.2f}–{max(cells):.2f}", met)
    value, cells = settled(rows), cells_of(rows, settled)
    yield Target("coverage where settled, %", "93–98", f"{value:.1f}", 93 <= value <= 98)
    yield Target("the same, each T × B, %", "≥ 90", f"{min(cells):.1f}–{max(cells):.1f}", min(cells) >= 90)
    for steps, least in ((16, 50), (64, 60)):
        value = says_yes(r for r in rows if r["T"] == steps)
        yield Target(f"says yes at T = {steps}, %", f"≥ {least}", f"{value:.1f}", value >= least)
    value = says_yes(r for r in rows if r["T"] == 8)
    yield Target("says yes with fewer than 8 measured steps (T = 8), %", "0", f"{value:.1f}", value == 0)
    points = {t: lost(rows, t) for t in sorted({row["T"] for row in rows}) if t > 8}
    worst = max(points, key=lambda t: points[t])
    most = max(row["B"] for row in rows)
    yield Target(f"points lost from B = 4 to {most} where settled, all T", "≤ 5", f"{lost(rows):.1f}", lost(rows) <= 5)
    found = f"{points[worst]:.1f} (T = {worst})"
    yield Target("the same, worst T", "≤ 5", found, points[worst] <= 5)
    single = [row for one in ordinary for row in one["alone"]]
    lengths = sorted({row["steps"] for row in single})
    shares = [coverage(r for r in single if r["steps"] == n) for n in lengths]
    found = f"{min(shares):.1f}–{max(shares):.1f}"
    met = min(shares) >= 92 and max(shares) <= 97
    yield Target("coverage of a single sequence, each length, %", "92–97", found, met)
    leading = [row | {"network": one["name"]} for one in ordinary for row in one["leading"]]
    for growth in (False, True):
        for least, below, limit in ((6, 16, 0.3), (16, 10**9, 0.1)):
            carried = frames.SPARE_OF_SHORT if below <= frames.SHORT and not growth else frames.SPARE
            here = leads(leading, carried, growth, least, below)
            until = "on" if below > 10**6 else f"below {below}"
            way = f"T from {least} {until}, growth {'on' if growth else 'off'}"
            many = len({(row["network"], row["T"]) for row in here})
            off = max(row["off"] for row in here)
            found = f"{off:.2f} at worst ({many} networks × T)"
            yield Target(f"leading k against the whole, standard errors, {way}", f"≤ {limit}", found, off <= limit)


def leads(rows: Sequence[Row], spare: int, growth: bool, least: int, below: int) -> list[Row]:
    return [r for r in rows if r["spare"] == spare and r["growth"] == growth and least <= r["T"] < below]


def table_of_targets(records: Sequence[Row]) -> str:
    lines = [[t.what, t.demand, t.found, verdict(t.is_met)] for t in targets(records)]
    return table(["target", "demanded", "measured", ""], lines)


def table_by_k(records: Sequence[Row]) -> str:
    """Coverage where settled, and how often that is, by the exponents measured, B = 4, 16 and 64."""
    rows = [r for one in records for r in one["cells"] if r["B"] in (4, 16, 64)]
    lines = []
    for k in (*EXPONENTS, "all"):
        here = [r for r in rows if (r["all"] if k == "all" else r["k"] == k and not r["all"])]
        yes = [told(says_yes(r for r in here if r["T"] == t)) for t in (16, 64, 256)]
        lines.append([k, told(ratio(here), 2), told(settled(here)), *yes])
    head = ["k", "told ÷ true", "coverage where settled, %", "says yes at T = 16, %", "at 64", "at 256"]
    by_i = []
    for i in (*EXPONENTS, "last"):
        here = [r for r in whole(records) if (r["last"] if i == "last" else r["i"] == i and not r["last"])]
        by_i.append([i, told(ratio(here), 2), told(settled(here)), told(coverage(here))])
    other = table(["exponent", "told ÷ true", "coverage where settled, %", "coverage without asking, %"], by_i)
    return f"{table(head, lines)}\n\n{other}"


def table_lost(records: Sequence[Row]) -> str:
    rows = whole(records)
    most = max(row["B"] for row in rows)
    lines = []
    for steps in [t for t in sorted({row["T"] for row in rows}) if t > 8]:
        few, many = ([r for r in rows if r["T"] == steps and r["B"] == b] for b in (4, most))
        points = lost(rows, steps)
        lines.append([steps, told(settled(few)), told(settled(many)), told(points), verdict(points <= 5)])
    return table(["T", "B = 4, %", f"B = {most}, %", "points lost", "at most 5"], lines)


def table_alone(records: Sequence[Row]) -> str:
    rows = [row for one in records for row in one["alone"]]
    lines = []
    for steps in sorted({row["steps"] for row in rows}):
        here = [r for r in rows if r["steps"] == steps]
        ratios = sorted(
            ratio(r for r in one["alone"] if r["steps"] == steps)
            for one in records
            if any(r["steps"] == steps for r in one["alone"])
        )
        span = f"{ratios[len(ratios) // 10]:.2f}–{ratios[-1 - len(ratios) // 10]:.2f}"
        held = coverage(here)
        told_ = [told(held), verdict(92 <= held <= 97), told(100 * mean(r["covered by stderr"] for r in here))]
        lines.append([steps, told(ratio(here), 2), span, *told_, told(says_yes(here)), told(settled(here))])
    head = ["measured steps", "told ÷ true", "10–90 % of networks", "coverage, %", "92–97", "by `stderr` alone, %"]
    return table([*head, "says yes, %", "coverage where settled, %"], lines)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def table_of_groups(records: Sequence[Row]) -> str:
    lines = []
    for group, words in GROUPS.items():
        some = [one for one in records if one["group"] == group]
        rows = whole(some)
        if rows:
            yes = [told(says_yes(r for r in rows if r["T"] == t)) for t in (16, 64, 256)]
            alone_ = [row for one in some for row in one["alone"]]
            cells = [told(min(cells_of(rows, settled), default=math.nan))]
            lines.append(
                [words, len(some), told(ratio(rows), 2), told(settled(rows)), *cells, *yes, told(coverage(rows)),
                 told(coverage(alone_))]
            )  # fmt: skip
    head = ["networks", "number", "told ÷ true", "coverage where settled, %", "worst T × B", "says yes at T = 16, %"]
    return table([*head, "at 64", "at 256", "coverage without asking, %", "single sequences, %"], lines)


def drift(one: Row, steps: int) -> float:
    """Nats by which the mean of all sequences of a length is off, over its measured steps: of the worst exponent."""
    rows = [row for row in one["cells"] if row["all"] and row["T"] == steps and row["B"] == 4]
    return max((row["bias"] for row in rows), key=abs, default=math.nan)


def table_of_networks(records: Sequence[Row]) -> str:
    lines = []
    for one in sorted(records, key=lambda one: settled(whole([one]))):
        rows = whole([one])
        yes = [told(says_yes(r for r in rows if r["T"] == t)) for t in (16, 64)]
        off = [signed(drift(one, t)) for t in (16, 64, 256)]
        first = [f"{one['truth'][0]:+.3f}", told(ratio(rows), 2)]
        lines.append([one["name"], one["k"], *first, told(settled(rows)), told(coverage(rows)), *yes, *off])
    head = ["network", "k", "λ₁", "told ÷ true", "coverage where settled, %", "without asking, %"]
    more = ["yes at T = 16, %", "at 64", "bias over the steps at T = 16, nats", "at 64", "at 256"]
    return table([*head, *more], lines)


def table_second_start(records: Sequence[Row]) -> str:
    """What a second start changes, of each slow network and of the ordinary ones that have one."""
    slow = [(one["name"], [one]) for one in records if one["group"] == "slow"]
    usual = [("ordinary, D ≤ 32", [one for one in records if one["group"] in ORDINARY])]
    rows = [r for _, some in slow for r in whole(some) if "yes again" in r and r["T"] > 8]
    lengths = sorted({r["T"] for r in rows})
    lines = []
    for name, some in [*slow, *usual]:
        for batch in (4, 16):
            line: list[Any] = [name, batch]
            for steps in lengths:
                here = [r for r in whole(some) if "yes again" in r and (r["T"], r["B"]) == (steps, batch)]
                yes = [told(says_yes(here, way), 0) for way in ("yes", "yes again")]
                held = [told(coverage(here, way), 0) for way in ("yes", "yes again")]
                line.append(f"{yes[0]} → {yes[1]} ({held[0]} → {held[1]})" if here else "–")
            lines.append(line)
    return table(["network", "B", *(f"T = {t}" for t in lengths)], lines)


def table_leading(records: Sequence[Row]) -> str:
    """Mean, worst network and share beyond the limit, by spare columns."""
    rows = [row for one in records for row in one["leading"]]
    lines = []
    ways = sorted({(row["growth"], row["spare"]) for row in rows})
    for growth, spare in ways:
        line: list[Any] = [f"{spare}, growth {'on' if growth else 'off'}"]
        for steps in LEADING_STEPS:
            values = [r["off"] for r in rows if (r["growth"], r["spare"], r["T"]) == (growth, spare, steps)]
            limit = 0.3 if steps < 16 else 0.1
            beyond = sum(v > limit for v in values)
            line.append(f"{mean(values):.3f} / {max(values):.2f} ({beyond} of {len(values)})")
        lines.append(line)
    return table(["spare columns", *(f"T = {t}" for t in LEADING_STEPS)], lines)


INTRODUCTION = """{count} networks made after the rule was fixed, {ordinary} of them ordinary: RNN, GRU and LSTM of 12
to 64 units, gains 0.3 to 3 and torch's own initialisation, white noise of amplitude 0.1 to 3, and trained ones. Each is
measured on {sequences} sequences for each length T, half of them where it is long or the network large, regrouped by B;
the truth is a run of {truth} sequences of {steps:,} steps, the first {transient:,} dropped, less of large networks.
Every exponent of every network counts alike."""


def page(records: Sequence[Row], plan: Plan) -> str:
    """Everything, as Markdown."""
    ordinary = [one for one in records if one["group"] in ORDINARY]
    rows = whole(ordinary)
    truth, steps, transient = plan.truth
    about = INTRODUCTION.format(
        count=len(records),
        ordinary=len(ordinary),
        sequences=plan.sequences,
        truth=truth,
        steps=steps,
        transient=transient,
    )
    parts = [
        ("", about),
        ("", table_of_targets(records)),
        (
            "Told ÷ true of `stderr`, direction by direction of the frame: 0.95–1.05 on average, 0.8–1.25 in each cell",
            grid(rows, unsorted, 2),
        ),
        (
            "The same of exponents as they are told, sorted: close ones change places from repeat to repeat, so that "
            "the largest, the second and so on spread less than the directions do",
            grid(rows, ratio, 2),
        ),
        ("Coverage of the long-run value where settled, %: 93–98, no cell below 90", grid(rows, settled, 1)),
        ("How often settled says yes, %: at least 50 at T = 16, 60 at T = 64", grid(rows, says_yes, 1)),
        ("Coverage without asking settled, %", grid(rows, coverage, 1)),
        ("More sequences, where settled", table_lost(ordinary)),
        ("By the number of exponents measured, and by exponent", table_by_k(ordinary)),
        ("Single sequences, blocks of 16 steps, first 8 exponents", table_alone(ordinary)),
        ("By kind of network", table_of_groups(records)),
        (
            "A second start: how often settled says yes, % (coverage then, %), without → with it",
            table_second_start(records),
        ),
        (
            "Leading k of a measurement of k against those of the whole, in its standard errors: mean / worst "
            "(how many beyond 0.3, from T = 16 beyond 0.1)",
            table_leading(ordinary),
        ),
        ("Every network, worst first", table_of_networks(records)),
    ]
    minutes = sum(one["seconds"] for one in records) / 60
    body = "\n\n".join(f"### {title}\n\n{text}" if title else text for title, text in parts)
    return f"{body}\n\n{minutes:.0f} minutes of one core.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six small networks, about a minute: a trial")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan, folder = (QUICK, KEPT / "quick") if args.quick else (Plan(), KEPT)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for network in quick_networks() if args.quick else networks():
        file = folder / network.file
        if not file.exists():
            text = json.dumps(record(network, plan))
            file.with_suffix(".part").write_text(text)
            file.with_suffix(".part").rename(file)
            print(f"{network.name}: {json.loads(text)['seconds']:.0f} s", flush=True)
        records.append(json.loads(file.read_text()))
    text = page(records, plan)
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
