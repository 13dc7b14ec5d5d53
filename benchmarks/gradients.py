"""Is what is said about gradients true of real gradients? Exactly, and for the losses of networks as they train.

Exactly: the sentence that a diagnosis tells says by how much a gradient grows from the last step to the first in a
typical sequence. Here torch's own autograd takes the gradients of every unit of the last state with respect to the
whole first state. Their root mean square over unit read-outs, and the mean of its logarithm over sequences, is what the
sentence must say, within 5 % and what rounding to two digits adds.

For real losses: networks are trained on five tasks that ask at the last step, with ten outputs down to one. The mean
over sequences of ln(‖∂L/∂state₀‖ / ‖∂L/∂h_T‖) is held against the gain of the same sequences: within a factor 2 in 95 %
of the networks. No sequence's own ratio may exceed its largest singular value, the "at most" of the sentence, by more
than the .05 nats that this is known to. Where gain and loss differ, two figures say why. The gain of the head's own
outputs in place of all units (by autograd) differs from the gain by the directions that are read. The gain as measured
differs from autograd's of all units by what is wrong with the engine.

What was measured of the trained ones is kept in runs/gradients; interrupted, it goes on where it was. Delete the folder
after a change of what is measured.

Usage: python benchmarks/gradients.py [--quick] [--only {exact,losses}]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.bank.tasks import TASKS, Batch, Task
from lightning_lyapunov.bank.tasks.sequences import at_the_end
from lightning_lyapunov.bank.tasks.shapes import digits
from lightning_lyapunov.reading.history import Measurement
from lightning_lyapunov.reading.words import over_a_sequence

KEPT = Path(__file__).resolve().parents[1] / "runs" / "gradients"
LENGTHS = (6, 12, 28, 64, 150, 300)
CELLS: Mapping[str, Any] = {"RNN": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu"), "GRU": nn.GRU, "LSTM": nn.LSTM}
INITS = ("torch's", "orthogonal", "gain 1.5")
WITHIN = math.log(2)
CLOSE = 0.05
"""Nats to which the largest singular value is known."""
NOISE = 0.3
"""Amplitude of the inputs of untrained networks: so little that some of them grow and some forget."""
FOLD = re.compile(r"gradient (?:grows|shrinks to) (1/)?([\d,.]+)(?:·10\^(-?\d+))?(?:-fold)? in a typical sequence")


# Networks -------------------------------------------------------------------------------------------------------------


def network(cell: str, inputs: int, hidden: int, init: str = "torch's", seed: int = 0, **options: Any) -> nn.RNNBase:
    """A recurrent module in float64.

    Args:
        cell: One of :data:`CELLS`.
        inputs: Width of the input.
        hidden: Units.
        init: ``torch's``, ``orthogonal`` for each gate, or ``gain g``: normal of standard deviation g/√H,
            without biases.
        seed: Of the weights.
        options: Of the module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = CELLS[cell](inputs, hidden, **options).double()
        for name, weight in module.named_parameters():
            if name.startswith("bias") and init.startswith("gain"):
                nn.init.zeros_(weight)
            for block in weight.detach().split(hidden) if name.startswith("weight_hh") else ():
                if init == "orthogonal":
                    nn.init.orthogonal_(block)
                elif init.startswith("gain"):
                    nn.init.normal_(block, std=float(init.removeprefix("gain ")) / math.sqrt(hidden))
    return module


def first_state(module: nn.RNNBase, rows: int) -> tuple[Tensor, ...]:
    """Zeros with gradients, as the module takes them: (h,) or (h, c)."""
    sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + isinstance(module, nn.LSTM)]
    return tuple(torch.zeros(module.num_layers, rows, size, dtype=torch.float64, requires_grad=True) for size in sizes)


def last_output(module: nn.RNNBase, inputs: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    """What is seen of the last state, ``(B, H)``."""
    return module(inputs, state if len(state) > 1 else state[0])[0][-1]


def log_norm(parts: Sequence[Tensor]) -> Tensor:
    """Logarithm of the length (B,) of vectors ``(L, B, D)`` in parts, where their squares may underflow."""
    vectors = torch.cat([part.movedim(0, 1).flatten(1) for part in parts], 1)
    largest = vectors.abs().amax(1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return torch.linalg.vector_norm(vectors / largest[:, None], dim=1).log() + largest.log()


# Exactly --------------------------------------------------------------------------------------------------------------


def exact_gain(module: nn.RNNBase, inputs: Tensor) -> Tensor:
    """Root mean square (B,), nats, of the gradients of all units of the last state, by autograd through the module."""
    size, batch = module.proj_size or module.hidden_size, inputs.shape[1]
    state = first_state(module, batch * size)
    seen = last_output(module, inputs.repeat_interleave(size, 1), state)
    gradients = torch.autograd.grad(seen, state, torch.eye(size, dtype=seen.dtype).repeat(batch, 1))
    logs = log_norm(gradients).view(batch, size)
    return ((2 * logs).logsumexp(1) - math.log(size)) / 2


def told(spectrum: LyapunovSpectrum) -> tuple[float, float]:
    """The gain that the sentence tells, in nats, and by how much rounding to its two digits may have changed it."""
    sentence = over_a_sequence(Measurement.of(spectrum))
    if "keeps its size" in sentence:
        return 0.0, math.log(1.05)
    found = FOLD.search(sentence)
    if "vanishes" in sentence:
        return -math.inf, 0.0
    if found is None:
        raise ValueError(f"no fold in {sentence!r}")
    over, digits_, tens = found.groups()
    amount = float(digits_.replace(",", ""))
    nats = math.log(amount) + int(tens or 0) * math.log(10)
    unit = 10.0 ** (math.floor(math.log10(amount)) - 1)  # of the second digit
    return -nats if over else nats, -math.log1p(-unit / 2 / amount)


@cache
def exact_networks(hidden: int) -> dict[str, nn.RNNBase]:
    """Ten of all families, initialised in several ways and trained; then a projected one and a stack of two layers."""
    drawn = (
        ("RNN", "torch's"),
        ("RNN", "orthogonal"),
        ("RNN", "gain 0.5"),
        ("RNN", "gain 2"),
        ("relu", "gain 1.2"),
        ("GRU", "torch's"),
        ("GRU", "gain 2"),
        ("LSTM", "gain 2"),
    )
    networks = {f"{cell}, {init}": network(cell, 4, hidden, init) for cell, init in drawn}
    for cell in ("GRU", "LSTM"):
        ((_, module, _),) = Training("echo", cell, "torch's", hidden=hidden).moments((150,))
        networks[f"{cell}, trained"] = module
    return {
        **networks,
        "LSTM, projected": network("LSTM", 4, hidden, proj_size=hidden // 2),
        "GRU, two layers": network("GRU", 4, hidden, "gain 2", num_layers=2),
    }


@dataclass(frozen=True)
class Exact:
    """What the sentence tells of one network at one length, in nats, and what it must tell."""

    network: str
    steps: int
    real: float
    told: float
    rounding: float

    @property
    def off(self) -> float:
        """Difference beyond that of rounding, nats."""
        return 0.0 if self.told == self.real else max(abs(self.told - self.real) - self.rounding, 0.0)  # or both -inf

    @property
    def holds(self) -> bool:
        return self.off <= math.log1p(0.05)


def of_living(gains: Tensor) -> float:
    """Mean over sequences, without those of which nothing is left where most live: as the package means it."""
    living = gains[~gains.isneginf()]
    return float(living.mean()) if 2 * len(living) > len(gains) else -math.inf


def exact_cases(lengths: Sequence[int] = LENGTHS, hidden: int = 24, sequences: int = 8) -> Iterator[Exact]:
    """Every network at every length, on noise."""
    for name, module in exact_networks(hidden).items():
        for steps in lengths:
            generator = Generator().manual_seed(steps)
            inputs = NOISE * torch.randn(steps, sequences, 4, generator=generator, dtype=torch.float64)
            real = of_living(exact_gain(module, inputs))
            yield Exact(name, steps, real, *told(lyapunov_spectrum(module, inputs, k=min(32, hidden))))


def report_exact(quick: bool) -> None:
    cases = list(exact_cases((6, 28, 64) if quick else LENGTHS))
    lengths = sorted({case.steps for case in cases})
    print("\nFold over the sequence: by autograd → in the sentence (nats it is off by, beyond rounding)\n")
    print(f"| network | {' | '.join(f'T = {steps}' for steps in lengths)} |\n|{'---|' * (len(lengths) + 1)}")
    for name, row in itertools.groupby(cases, lambda case: case.network):
        cells = [f"{case.real:+.3f} → {case.told:+.3f} ({case.off:.3f})" for case in row]
        print(f"| {name} | {' | '.join(cells)} |")
    right = sum(case.holds for case in cases)
    print(f"\nWithin 5 % and rounding: {right} of {len(cases)}; largest {max(case.off for case in cases):.4f} nats.")


# Real losses ----------------------------------------------------------------------------------------------------------


def echo(batch: int, generator: Generator, held_out: bool, *, steps: int, symbols: int) -> Batch:
    """A symbol is shown in the first step; after steps of noise it is asked for."""
    shown = torch.randint(symbols, (batch,), generator=generator)
    inputs = 0.3 * torch.randn(steps, batch, symbols, generator=generator)
    inputs[0] += one_hot(shown, symbols)
    return Batch(inputs, at_the_end(shown, steps))


LEARNT = {
    "digits": Task("digits", "digits", 8, 10, 8, "classes", 0.1, partial(digits, pixels=8, noise=0.0)),
    "curves": TASKS["templates-10"],
    "order": TASKS["order-3"],
    "echo": Task("echo", "echo", 4, 4, 24, "classes", 0.25, partial(echo, steps=24, symbols=4)),
    "adding": TASKS["adding-40"],
}
"""Tasks that ask at the last step alone, from the most outputs to one; of 8, 40, 40, 24 and 40 steps."""
MANY = 8
"""Outputs that read so many directions of the last state that they stand for all."""
LOOKED_AT = 8
"""Sequences on which the engine's gain is held against autograd's."""


@dataclass(frozen=True)
class Training:
    """A network that learns a task, and looks at itself on the way."""

    task: str
    cell: str
    init: str
    seed: int = 0
    hidden: int = 32

    def moments(self, updates: Sequence[int]) -> Iterator[tuple[int, nn.RNNBase, nn.Linear]]:
        """The network and its read-out after each of these numbers of updates."""
        task, batches = LEARNT[self.task], Generator().manual_seed(1 + self.seed)
        module = network(self.cell, task.input_size, self.hidden, self.init, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = nn.Linear(self.hidden, task.output_size).double()
        module.float(), head.float()
        parameters = [*module.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(parameters, 3e-3)
        for update in range(max(updates) + 1):
            if update in updates:
                yield update, module.double(), head.double()
                if update == max(updates):
                    return
                module.float(), head.float()
            batch = task.sample(64, batches)
            optimizer.zero_grad()
            losses(task, head(module(batch.inputs)[0][-1]), batch.targets[-1]).mean().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()


def losses(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each sequence, (B,)."""
    if task.kind == "classes":
        return cross_entropy(outputs, targets, reduction="none")
    return (outputs - targets.to(outputs)).square().sum(-1)


@dataclass(frozen=True)
class Case:
    """One network at one moment: real gradients of its loss and what is told of them, nats over the sequence."""

    task: str
    cell: str
    init: str
    seed: int
    updates: int
    loss: float
    real: float
    """Mean over sequences of ln(‖∂L/∂state₀‖ / ‖∂L/∂h_T‖)."""
    gain: float
    most: float
    """Mean over sequences of ln σ₁."""
    beyond: float
    """Most by which a sequence's ratio exceeds its own σ₁, nats; below 0 if none does."""
    by_head: float
    """What the gain would be of the head's own outputs in place of all units: by autograd, root mean square of them."""
    engine: float
    """Largest difference between the gain of a sequence and autograd's, nats: what is wrong with the engine."""

    @property
    def holds(self) -> bool:
        return abs(self.gain - self.real) < WITHIN


def case(training: Training, updates: int, module: nn.RNNBase, head: nn.Linear, sequences: int) -> Case:
    """Gradients and gain of the same held-out sequences."""
    task = LEARNT[training.task]
    inputs, targets = task.sample(sequences, Generator().manual_seed(1000 + training.seed), held_out=True)
    inputs, state = inputs.double(), first_state(module, sequences)
    seen = last_output(module, inputs, state)
    loss = losses(task, head(seen), targets[-1])
    at_end, *at_start = torch.autograd.grad(loss.sum(), (seen, *state), retain_graph=True)
    ratio = log_norm(at_start) - log_norm([at_end[None]])
    spectrum = lyapunov_spectrum(module, inputs, k=min(32, training.hidden))
    growth = spectrum.growth
    assert growth is not None
    return Case(
        training.task,
        training.cell,
        training.init,
        training.seed,
        updates,
        float(loss.detach().mean()),
        float(ratio.mean()),
        spectrum.gain,
        float(growth.log_singular_values[0]),
        float((ratio - growth.per_sequence[:, 0]).max()),
        float(gain_of_head(head, seen, state).mean()),
        float((exact_gain(module, inputs[:, :LOOKED_AT]) - growth.gain_per_sequence[:LOOKED_AT]).abs().max()),
    )


def gain_of_head(head: nn.Linear, seen: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    """Root mean square (B,), nats, of the gradients of what is read out, relative to those at the last state."""
    logs = [
        log_norm(torch.autograd.grad(head(seen)[:, row].sum(), state, retain_graph=True))
        for row in range(head.out_features)
    ]
    weights = head.weight.detach()
    return ((2 * torch.stack(logs)).logsumexp(0) - weights.square().sum().log()) / 2


def cases_of(training: Training, updates: Sequence[int], sequences: int = 128) -> Iterator[Case]:
    """One training, at each of its moments."""
    for update, module, head in training.moments(updates):
        yield case(training, update, module, head, sequences)


def kept(trainings: Sequence[Training], updates: Sequence[int]) -> Iterator[Case]:
    """The cases of all trainings, measured now or before."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / "losses.jsonl"
    found = (
        {tuple(key): cases for key, cases in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    )
    with path.open("a") as file:
        for training in trainings:
            key = (*asdict(training).values(), *updates)
            if key not in found:
                found[key] = [asdict(one) for one in cases_of(training, updates)]
                file.write(json.dumps([key, found[key]]) + "\n")
                file.flush()
            yield from (Case(**one) for one in found[key])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks."""
    ranks = torch.tensor([a, b], dtype=torch.float64).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def report_losses(quick: bool) -> None:
    seeds, updates = (1, (0, 30, 100)) if quick else (2, (0, 100, 400))
    cells = [cell for cell in CELLS if cell != "relu"]
    trainings = [Training(*one) for one in itertools.product(LEARNT, cells, INITS, range(seeds))]
    cases = list(kept(trainings, updates))
    print("\nMean over 128 sequences of ln(‖∂L/∂state₀‖ / ‖∂L/∂h_T‖), real and as told; nats over the sequence\n")
    heads = ("task", "cell", "updates", "networks", "loss", "real, from to", "gain − real: mean, worst")
    heads = (*heads, "ln σ₁ − real", "gain of the head's outputs − real: mean, worst", "within × 2: gain, head's")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")

    def line(names: Sequence[object], group: Sequence[Case]) -> str:
        real, off = [c.real for c in group], [c.gain - c.real for c in group]
        by_head = [c.by_head - c.real for c in group]
        most = sum(c.most - c.real for c in group) / len(group)
        fields = [
            *names,
            len(group),
            f"{sum(c.loss for c in group) / len(group):.2f}",
            f"{min(real):+.2f} {max(real):+.2f}",
            f"{sum(off) / len(off):+.2f}, {max(off, key=abs):+.2f}",
            f"{most:+.2f}",
            f"{sum(by_head) / len(by_head):+.2f}, {max(by_head, key=abs):+.2f}",
            f"{sum(c.holds for c in group)}, {sum(abs(off) < WITHIN for off in by_head)} of {len(group)}",
        ]
        return f"| {' | '.join(map(str, fields))} |"

    groups: dict[tuple[str, str, int], list[Case]] = {}
    for one in cases:
        groups.setdefault((one.task, one.cell, one.updates), []).append(one)
    for names, group in groups.items():
        print(line(names, group))
    for task, one in LEARNT.items():
        print(line((f"{task} ({one.output_size} outputs)", "all", "all"), [c for c in cases if c.task == task]))
    for update in updates:
        print(line(("all", "all", update), [c for c in cases if c.updates == update]))
    print(line(("all", "all", "all"), cases))
    rank = spearman([c.gain for c in cases], [c.real for c in cases])
    share = sum(c.holds for c in cases) / len(cases)
    signs = Counter((c.gain > 0) == (c.real > 0) for c in cases)[True] / len(cases)
    untrained = sum(c.updates == 0 for c in cases)
    print(f"\n{untrained} networks untrained, {len(cases) - untrained} trained (of {len(trainings)} trainings).")
    print(f"Within a factor 2: {share:.1%} (wanted: 95 %). Spearman {rank:.3f}, right sign {signs:.0%}.")
    between = sum(c.gain - WITHIN < c.real < c.most for c in cases) / len(cases)
    print(f"Neither below half of what is told, nor above σ₁: {between:.1%}.")
    many = [c for c in cases if LEARNT[c.task].output_size >= MANY]
    of_many = sum(c.holds for c in many)
    print(f"Within a factor 2, tasks of {MANY} outputs or more: {of_many} of {len(many)}, {of_many / len(many):.1%}.")
    print(f"The engine's gain is off from autograd's, all units, by {max(c.engine for c in cases):.4f} nats at worst.")
    print(f"σ₁ as the most: exceeded by {max(c.beyond for c in cases):+.4f} nats at worst (allowed: {CLOSE}).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer lengths, seeds and updates")
    parser.add_argument("--only", choices=("exact", "losses"), help="one part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only != "losses":
        report_exact(arguments.quick)
    if arguments.only != "exact":
        report_losses(arguments.quick)


if __name__ == "__main__":
    main()
