"""Is the shipped scorer right for spectra as they are measured now? It was fitted on spectra measured another way.

The bank's spectra had one random frame for all sequences and a transient of min(32, T/4) steps. Today each sequence has
a frame of its own, and half of it, at most 64 steps, settles. Networks of the bank are made again from their seeds, as
they were before the first update, and measured in four ways: transient and frames, each as then and as now. The first
way must give the spectrum that the bank's file holds. Every way is repeated on other inputs with other frames, the same
ones for all ways.

One *standard error* of a score is the standard deviation of that score when the network is measured again as then, on
other inputs with another frame, root mean square over networks. The scorer's *own spread* stands beside it: half its
80 % interval over 1.28, for the performance that it predicts; it is what the scorer says it does not know.

Two figures say by how much a score *moves*. The mean absolute change is that of one measurement against another on the
same inputs. The own change is what remains when repeats are averaged away: root mean square over networks of the mean
change, less what the repeats' noise adds to it; a few networks that move far make most of it. The scorer stays as it is
if each score moves by less than one standard error; else it must be fed spectra measured as it knows them.

What was measured is kept in runs/scorer_inputs; interrupted, it goes on where it was. Delete the folder after a change
of what is measured.

Usage: python benchmarks/scorer_inputs.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from lightning_lyapunov import AeLLEScorer, LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.aelle.features import Rows, context, quantiles
from lightning_lyapunov.aelle.scorer import Predictions
from lightning_lyapunov.bank.cells import CELLS, initial_weights
from lightning_lyapunov.bank.population import PROBE_SEQUENCES, PROBE_STEPS, VALIDATION, Population, _generator
from lightning_lyapunov.bank.records import SHIPPED, Bank
from lightning_lyapunov.bank.tasks import TASKS
from lightning_lyapunov.engine import measure
from lightning_lyapunov.engine.frames import random_frames

KEPT = Path(__file__).resolve().parents[1] / "runs" / "scorer_inputs"
NETWORKS = {16: 2, 32: 2, 64: 1}
"""Hidden sizes, and networks of each for every task and known cell, where the bank has them."""
REPEATS = 8
"""Inputs and frames that each network is measured with in each way; the first are the bank's own."""
WAYS = {
    "then": (True, True),
    "transient alone": (False, True),
    "frames alone": (True, False),
    "now": (False, False),
}
"""Whether the transient is as then, whether all sequences share a frame."""
BLOCKS = "now, from blocks"
"""What a measurement as now gives for nothing: its local exponents, of all steps after the transient as then."""
CHANGES = ("transient alone", "frames alone", "now", BLOCKS)
SCORES = ("performance", "low", "high", "failure", "takeoff", "stability", "familiarity")
LEADING = 32
"""Exponents that the callback measures."""
KNOWN = ("spectrum alone", "+ cell, size", "+ update 0", f"the same, leading {LEADING}")
"""What the scorer is told; the last is what the callback tells it."""
ROUNDING = 1e-3
"""Relative error of the bank's half precision, twice as much as it can be."""


# Measuring ------------------------------------------------------------------------------------------------------------


def chosen(bank: Bank, quick: bool) -> list[int]:
    """Places in the bank, evenly over tasks, cells and sizes; in an order in which any beginning is a fair sample."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, network in enumerate(bank.networks):
        if network["seed"] == 0 and network["cell"] in ("rnn", "gru", "lstm") and network["hidden_size"] in NETWORKS:
            kinds.setdefault((network["task"], network["cell"], network["hidden_size"]), []).append(place)
    draw = random.Random(0)
    picked = [place for kind, places in kinds.items() for place in draw.sample(places, NETWORKS[kind[2]])]
    draw.shuffle(picked)
    return picked[:60] if quick else picked


def remade(network: dict[str, Any]) -> nn.Module:
    """The recurrent part of a network of the bank before its first update."""
    population = Population(network["task"], network["cell"], network["hidden_size"], (network["number"],))
    (how,) = population.networks
    weights = initial_weights(
        CELLS[population.cell],
        TASKS[population.task].input_size,
        population.hidden_size,
        kind=how.init,
        gain=how.gain,
        input_gain=how.input_gain,
        memory_bias=how.memory_bias,
        generator=_generator("weights", f"{population.name}_{network['number']}"),
    )
    return CELLS[population.cell].module(weights)


def inputs_of(name: str) -> list[Tensor]:
    """Inputs ``(T, B, I)`` of a task for each repeat: the bank's two sets, and more drawn in the same way."""
    task, generator = TASKS[name], _generator("validation", name)
    for _ in range(2):  # validation and last sequences come before them in the bank
        task.sample(VALIDATION, generator, held_out=True)
    return [task.sample(PROBE_SEQUENCES, generator, held_out=True).inputs[:PROBE_STEPS] for _ in range(REPEATS)]


def exponents(module: nn.Module, inputs: Tensor, repeat: int, as_then: bool, shared: bool) -> Tensor:
    """The whole spectrum; repeat 0 as then is the bank's."""
    return spectrum_of(module, inputs, repeat, as_then, shared).exponents


def from_blocks(module: nn.Module, inputs: Tensor, repeat: int) -> Tensor:
    """The whole spectrum as now, but of all steps that counted then."""
    local = spectrum_of(module, inputs, repeat, False, False).local
    assert local is not None
    counts = local.starts >= min(32, len(inputs) // 4)
    steps = (local.ends - local.starts)[counts].to(local.exponents).unsqueeze(1)
    return ((local.exponents[counts] * steps).sum(0) / steps.sum()).sort(descending=True).values


def spectrum_of(module: nn.Module, inputs: Tensor, repeat: int, as_then: bool, shared: bool) -> LyapunovSpectrum:
    """A measurement; repeat 0 as then is the bank's."""

    def one_for_all(places: Sequence[int], *arguments: Any) -> Tensor:
        return random_frames([places[0]] * len(places), *arguments)

    transient = min(32, len(inputs) // 4) if as_then else None
    seed = None if repeat == 0 else torch.Generator().manual_seed(repeat)
    with mock.patch.object(measure, "random_frames", one_for_all if shared else random_frames):
        return lyapunov_spectrum(module, inputs, transient=transient, generator=seed, growth=0)


def measured(network: dict[str, Any], stored: Tensor, before: dict[str, Any] | None) -> dict[str, Any]:
    """The spectra of one network in every way that was not measured before, and whether the first is the bank's."""
    spectra = {} if before is None else before["of"]
    module, inputs = remade(network), inputs_of(network["task"])
    for way, how in WAYS.items():
        if way not in spectra:
            spectra[way] = [exponents(module, inputs[r], r, *how).tolist() for r in range(REPEATS)]
    spectra[BLOCKS] = [from_blocks(module, inputs[r], r).tolist() for r in range(REPEATS)]
    again = torch.tensor(spectra["then"][0])
    same = torch.isclose(again, stored, rtol=ROUNDING, atol=1e-5, equal_nan=True)
    return {"reproduced": bool(same.all()), "off": float((again - stored).abs().nan_to_num(0.0).max()), "of": spectra}


def kept(places: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What was measured of the networks at these places, now or before."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path, bank = KEPT / "spectra.jsonl", Bank.load(SHIPPED)
    found = dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}
    with path.open("a") as file:
        for count, place in enumerate(places):
            before = found.get(place)
            if before is None or BLOCKS not in before["of"]:
                found[place] = measured(bank.networks[place], bank.spectra[place][0], before)
                file.write(json.dumps([place, found[place]]) + "\n")
                file.flush()
                if count % 20 == 0:
                    print(f"{count} of {len(places)} networks", flush=True)
            yield place, found[place]


# Scoring --------------------------------------------------------------------------------------------------------------


def row_of(spectrum: Tensor, network: dict[str, Any], known: str) -> tuple[Tensor, Tensor]:
    """What the scorer sees of one spectrum in one state of knowledge."""
    kind, size = (None, None) if known == KNOWN[0] else (network["cell"], network["hidden_size"])
    told = context(kind, size, 0 if known in KNOWN[2:] else None)
    if known != KNOWN[3] or len(spectrum) <= LEADING:
        return quantiles(spectrum), told
    mean = float(spectrum.mean())
    return quantiles(spectrum[:LEADING], len(spectrum), mean if math.isfinite(mean) else None), told


def scores_of(
    scorer: AeLLEScorer, networks: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], known: str
) -> dict[str, dict[str, Tensor]]:
    """``(N, R)`` of each score, by way."""
    scores = {}
    for way in ("then", *CHANGES):
        rows = [
            row_of(torch.tensor(spectrum, dtype=torch.float64), network, known)
            for network, each in zip(networks, found, strict=True)
            for spectrum in each["of"][way]
        ]
        said: Predictions = scorer.predict(Rows(*map(torch.stack, zip(*rows, strict=True))))
        scores[way] = {s: getattr(said, s).double().view(-1, REPEATS) for s in SCORES}
    return scores


@dataclass(frozen=True)
class Move:
    """By how much one score changes between two ways of measuring."""

    mean: float
    """Mean change over networks."""
    mean_error: float
    """Its standard error over networks."""
    each: float
    """Mean absolute change of a network, one measurement against one on the same inputs."""
    own: float
    """Root mean square over networks of the change that repeats do not average away."""
    noise: float
    """One standard error: what the score changes by when the network is measured again as before."""
    noise_after: float
    """The same of the other way."""
    beyond: float
    """Share of the networks that moved by more than one standard error of their own."""

    @staticmethod
    def between(before: Tensor, after: Tensor) -> Move:
        """From scores ``(N, R)``."""
        change = after - before
        by_network = change.mean(1)
        own = by_network.square().mean() - (change.var(1) / change.shape[1]).mean()
        return Move(
            float(by_network.mean()),
            float(by_network.std()) / math.sqrt(len(change)),
            float(change.abs().mean()),
            math.sqrt(max(float(own), 0.0)),
            math.sqrt(float(before.var(1).mean())),
            math.sqrt(float(after.var(1).mean())),
            float((by_network.abs() > before.std(1)).double().mean()),
        )

    @property
    def each_ratio(self) -> float:
        """Mean absolute change in standard errors."""
        return self.each / self.noise if self.noise else math.inf * (self.each > 0)

    @property
    def ratio(self) -> float:
        """Own change in standard errors."""
        return self.own / self.noise if self.noise else math.inf * (self.own > 0)


# The table ------------------------------------------------------------------------------------------------------------


def report(scorer: AeLLEScorer, networks: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Print the table; every number of it by state of knowledge, score and way."""
    same = sum(each["reproduced"] for each in found)
    off = max(each["off"] for each in found if each["reproduced"])
    tasks, others = len({network["task"] for network in networks}), len(found) - same
    print(f"\n{len(found)} networks of {tasks} tasks, {REPEATS} repeats. Measured as then, {same} have the spectrum of")
    print(f"the bank's file, {others} have another (largest difference of the {same}: {off:.1e} nats/step).\n")
    heads = (
        *("told", "score", "mean change", "mean absolute change", "own change", "one standard error: then, now"),
        *("scorer's own spread", "networks beyond one of theirs", "mean absolute / standard error"),
        *("own / standard error", *(f"by {way}" for way in CHANGES if way != "now"), "verdict"),
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    numbers: dict[str, Any] = {}
    for known in KNOWN:
        scores = scores_of(scorer, networks, found, known)
        then = scores["then"]
        spread = float((then["high"] - then["low"]).mean()) / 2 / 1.28
        for score in SCORES:
            moves = {way: Move.between(then[score], scores[way][score]) for way in CHANGES}
            now = moves["now"]
            fields = [
                known,
                score,
                f"{now.mean:+.4f} ± {now.mean_error:.4f}",
                f"{now.each:.4f}",
                f"{now.own:.4f}",
                f"{now.noise:.4f}, {now.noise_after:.4f}",
                f"{spread:.3f}" if score in SCORES[:3] else "–",
                f"{now.beyond:.0%}",
                f"{now.each_ratio:.2f}",
                f"{now.ratio:.2f}",
                *(f"{moves[way].ratio:.2f}" for way in CHANGES if way != "now"),
                "less" if max(now.ratio, now.each_ratio) < 1 else "less on average" if now.each_ratio < 1 else "more",
            ]
            print(f"| {' | '.join(fields)} |")
            numbers.setdefault(known, {})[score] = {
                way: {**vars(m), "ratio": m.ratio, "each_ratio": m.each_ratio} for way, m in moves.items()
            }
    for what, key in (("mean absolute change", "each_ratio"), ("own change", "ratio")):
        for way in ("now", BLOCKS):
            worst = max(numbers[known][score][way][key] for known in KNOWN for score in SCORES)
            verdict = "the scorer stays as it is" if worst < 1 else "it must be fed spectra measured as it knows them"
            print(f"\nLargest {what}, {way}: {worst:.2f} standard errors: {verdict}.")
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 networks, a minute")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bank = Bank.load(SHIPPED)
    places, found = zip(*kept(chosen(bank, arguments.quick)), strict=True)
    numbers = report(AeLLEScorer.from_pretrained(), [bank.networks[place] for place in places], found)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
