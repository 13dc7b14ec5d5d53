"""What else would a scorer gain from? Each candidate is added to the exponents, and what it adds is told in a line.

Everything is asked of networks whose initialisation is in use, of the families that choices may be based on. A ridge
and boosted trees are fitted after so many updates alone, families left out one by one, on the hand-made features of the
spectrum that the shipped ridge sees (`lightning_lyapunov/aelle/ridge.py`), kind and size of the cell, the learning rate
and, from 10 updates on, the skill so far. A row of the table tells what the same learner gains once it is told more:
mean difference over families ± standard error, in bold beyond two of them. A candidate is said to help, or to cost, if
more of its differences are beyond two than one in twenty, rounded up.

Two candidates are not in the bank. They are measured on its networks before training, which are made again from their
names, on the sequences that the bank's own spectra were taken on:

- *Sensitivity to the input over lags*: ½ ln of ‖∂h_T/∂x_{T−lag}‖²/H, mean over sequences: how far each unit ends up
  moved, root mean square, where every input was moved by one so many steps before.
- *Alignment of gradients*: the share of ‖∂L/∂h_t‖² that lies in the span of the leading 1, 4 or 16 directions of the
  Gram–Schmidt frame at that step, mean over steps and sequences, ln of its multiple of k/D, that of a random direction.
  The derivative is by the whole state, as the next step is handed it; the frame begins at random before the first.

They are kept in `runs/scorer-extras`, one file for each population, and not measured twice.

Usage: python benchmarks/scorer_extras.py [BANK] [--quick]   # the records in bank/records if BANK is left out
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CELL, CHEAP, CONTEXT, RATE, Rows, hand_features, squash
from lightning_lyapunov.aelle.knowledge import RUNGS
from lightning_lyapunov.aelle.ridge import features_for
from lightning_lyapunov.bank.cell import State
from lightning_lyapunov.bank.draws import generator
from lightning_lyapunov.bank.evaluation import Predictor, Table, boosted, development, leave_out, ridge, scores
from lightning_lyapunov.bank.population import VALIDATION, Population
from lightning_lyapunov.bank.probes import SEQUENCES, measure
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.report.tables import Scored, difference, gain, markdown
from lightning_lyapunov.bank.tasks import TASKS, Batch, Task, loss
from lightning_lyapunov.bank.training import Trainer
from lightning_lyapunov.files import reading, write_tensors

ROOT = Path(__file__).resolve().parents[1]
BANK, KEPT = ROOT / "bank" / "records", ROOT / "runs" / "scorer-extras"
FORMAT = "lightning_lyapunov.scorer-extras/1"
MOMENTS = (0, 40, 80)
"""Updates after which predictors are fitted."""
EARLIER = (0, 10)
"""Updates of the earlier checkpoints."""
KNOWS_SKILL = 10
"""Updates from which on the skill so far is known."""
SHOWN = ("rho", "rho in cell", "fail in cell", "take-off in cell")
LAGS = (0, 1, 2, 4, 8, 16, 32)
LEADING = (1, 4, 16)
"""Directions whose span a gradient may lie in."""
FORGOTTEN = -60.0
"""Nats: where sensitivities end, so that what is forgotten altogether is a number too."""
LEAST = 1e-6
"""Shares of a gradient below this look alike."""
ALIKE = 0.03
"""Nats per step that a largest exponent may differ by from the record of the same network made elsewhere."""
CHANCE = 0.05
"""Share of differences that pass two standard errors by chance, about."""
RATE_KNOWN = RUNGS.index((*CELL, *RATE))
QUICK_FAMILIES = 5
"""Those with the shortest sequences."""


# -------------------------------------------------------------------------------- networks before training


class Untrained:
    """Networks of a population before training, as one map of their whole states, float64.

    A state is a tuple of ``(N, B, H)``, the parts of one layer after another; flat it is ``(N, B, D)``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.cell, self.hidden = trainer.cell, trainer.hidden
        layers = [trainer.layer(number) for number in range(trainer.layers)]
        self.layers = [
            self.cell.prepared({key: weight.detach().double() for key, weight in one.items()}) for one in layers
        ]
        self.out, self.out_bias = (trainer.weights[key].detach().double() for key in ("out", "out_bias"))

    def __len__(self) -> int:
        return len(self.out)

    @property
    def size(self) -> int:
        """D."""
        return self.hidden * self.cell.parts * len(self.layers)

    def drive(self, inputs: Tensor) -> Tensor:
        """What the first layer is driven by, ``(N, B, gH)``, of inputs ``(B, I)``."""
        return _driven(self.layers[0], inputs.double().expand(len(self), -1, -1))

    def zeros(self, batch: int) -> State:
        """The state that every sequence begins with."""
        return (self.out.new_zeros(len(self), batch, self.hidden),) * (self.cell.parts * len(self.layers))

    def step(self, drive: Tensor, state: State) -> State:
        """The next state."""
        parts = self.cell.parts
        after: list[Tensor] = []
        for number, weights in enumerate(self.layers):
            if number:
                drive = _driven(weights, after[-parts])
            after += self.cell.step(weights, drive, state[number * parts : (number + 1) * parts])
        return tuple(after)

    def push(self, drive: Tensor, state: State, frame: Tensor) -> Tensor:
        """Tangent vectors ``(N, B, D, K)`` one step on."""
        tangents = frame.movedim(-1, 0).split(self.hidden, -1)

        def along(*tangent: Tensor) -> State:
            return torch.func.jvp(lambda *s: self.step(drive, s), state, tangent)[1]

        return torch.cat(torch.func.vmap(along)(*tangents), -1).movedim(0, -1)

    def read(self, states: Tensor) -> Tensor:
        """Read-outs ``(N, T, B, O)`` of last layers' ``(N, T, B, H)``."""
        return states @ self.out.mT.unsqueeze(1) + self.out_bias[:, None, None]


def _driven(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    return torch.baddbmm(weights["bias"].unsqueeze(1), inputs, weights["ih"].mT)


@dataclass(frozen=True)
class Unrolled:
    """A run along sequences with the graph that its derivatives are taken from."""

    drives: list[Tensor]
    """T of ``(N, B, gH)``."""
    states: list[State]
    """T, after each step. What is handed on and read is a copy: an LSTM makes its h of its c, and the derivative by c
    that the next step is handed is not by what h was made of."""


def unroll(networks: Untrained, inputs: Tensor) -> Unrolled:
    """Run along inputs ``(T, B, I)``."""
    drives, states = [], []
    state = networks.zeros(inputs.shape[1])
    for x in inputs:
        drives.append(networks.drive(x).requires_grad_())
        state = tuple(part.clone() for part in networks.step(drives[-1], state))
        states.append(state)
    return Unrolled(drives, states)


def sensitivity(networks: Untrained, run: Unrolled) -> Tensor:
    """``(N, len(LAGS))`` nats, as at the top; NaN at lags beyond the sequence."""
    last = run.states[-1][-networks.cell.parts]
    lags = [lag for lag in LAGS if lag < len(run.drives)]
    each = torch.eye(networks.hidden, dtype=last.dtype)[:, None, None].expand(-1, *last.shape)
    by_drive = torch.autograd.grad(
        last, [run.drives[-1 - lag] for lag in lags], each, is_grads_batched=True, retain_graph=True
    )
    result = last.new_full((len(networks), len(LAGS)), math.nan)
    for lag, gradient in zip(lags, by_drive, strict=True):
        by_input = gradient @ networks.layers[0]["ih"]  # (H, N, B, I)
        squares = by_input.square().sum((0, 3)).mean(1) / networks.hidden
        result[:, LAGS.index(lag)] = (squares.log() / 2).clamp(min=FORGOTTEN)
    return result


def adjoints(networks: Untrained, run: Unrolled, task: Task, targets: Tensor) -> list[Tensor]:
    """T of ``(N, B, D)``: derivatives of each network's loss by the state after each step."""
    seen = torch.stack([state[-networks.cell.parts] for state in run.states], 1)
    losses = loss(task, networks.read(seen), targets.double() if targets.is_floating_point() else targets)
    flat = [part for state in run.states for part in state]
    gradients = torch.autograd.grad(losses.sum(), flat, retain_graph=True, materialize_grads=True)
    width = len(run.states[0])
    return [torch.cat(gradients[i : i + width], -1) for i in range(0, len(gradients), width)]


def frames(networks: Untrained, run: Unrolled) -> Iterator[Tensor]:
    """The Gram–Schmidt frame ``(N, B, D, K)`` after each step: the leading directions, from a random start.

    Where fewer than K directions live, as with relu, any others that are orthogonal to them fill it up.
    """
    before = networks.zeros(run.drives[0].shape[1])
    frame = first_frame(networks.size).expand(*before[0].shape[:2], -1, -1)
    with torch.no_grad():
        for drive, state in zip(run.drives, run.states, strict=True):
            frame = torch.linalg.qr(networks.push(drive.detach(), before, frame).nan_to_num()).Q
            yield frame
            before = tuple(part.detach() for part in state)


def first_frame(size: int) -> Tensor:
    """``(D, K)``, the same for all networks of this size."""
    drawn = torch.randn(size, min(max(LEADING), size), generator=generator("directions", str(size)))
    return torch.linalg.qr(drawn.double()).Q


def alignment(networks: Untrained, run: Unrolled, task: Task, targets: Tensor) -> Tensor:
    """``(N, len(LEADING))`` nats, as at the top; steps on which no gradient arrives are left out."""
    counts = torch.tensor([min(k, networks.size) for k in LEADING])
    shares = []
    for gradient, frame in zip(adjoints(networks, run, task, targets), frames(networks, run), strict=True):
        direction = gradient / torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        inside = (frame.mT @ direction.unsqueeze(-1)).squeeze(-1).square().cumsum(-1)
        shares.append(inside[..., counts - 1])
    mean = torch.stack(shares, 1).flatten(1, 2).nanmean(1)
    return (mean * (networks.size / counts)).clamp(min=LEAST).log()


def probe_batch(task: Task) -> Batch:
    """The sequences that the bank's spectra were taken on, with their targets."""
    held_out = generator("validation", task.name)
    for _ in range(2):  # those that metrics and final performance were computed on
        task.sample(VALIDATION, held_out, held_out=True)
    return task.sample(SEQUENCES, held_out, held_out=True)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of N networks before training."""

    sensitivity: Tensor
    """``(N, len(LAGS))``."""
    alignment: Tensor
    """``(N, len(LEADING))``."""


def measure_untrained(trainer: Trainer) -> Measured:
    """Both, of networks that are not trained yet."""
    networks, batch = Untrained(trainer), probe_batch(trainer.task)
    run = unroll(networks, batch.inputs)
    return Measured(sensitivity(networks, run), alignment(networks, run, trainer.task, batch.targets))


def populations(table: Table) -> dict[Population, list[int]]:
    """The networks of a table as populations, to the places of the networks in the bank."""
    members: dict[Population, list[int]] = {}
    for n in sorted(set(table.network.tolist())):
        how = table.bank.networks[n]
        kind = Population(how["task"], how["cell"], how["hidden_size"], (), how["seed"], how["layers"])
        members.setdefault(kind, []).append(n)
    return {
        replace(kind, draws=tuple(table.bank.networks[n]["number"] for n in places)): places
        for kind, places in members.items()
    }


def require_same(trainer: Trainer, largest: float, name: str) -> None:
    """Refuse networks made again that are not those of the record, by the largest exponent of the first.

    Raises:
        ValueError: If they are not.
    """
    spectrum = measure(trainer.cell.module(*trainer.network(0)), probe_batch(trainer.task).inputs)
    found = math.nan if spectrum is None else float(spectrum.exponents[0])
    near = torch.isclose(torch.tensor(found), torch.tensor(largest), rtol=2e-3, atol=ALIKE, equal_nan=True)
    if not bool(near):
        raise ValueError(
            f"bank must hold networks that this version makes again from their names; the first of {name} had a "
            f"largest exponent of {largest:.3f} before training, and has {found:.3f}."
        )


def measured(table: Table, kept: Path) -> Measured:
    """Of every network of the bank that a table has rows of, NaN for the others; what was measured before is read."""
    count = len(table.bank)
    result = Measured(torch.full((count, len(LAGS)), math.nan), torch.full((count, len(LEADING)), math.nan))
    made = populations(table)
    for done, (population, places) in enumerate(made.items(), 1):
        path, numbers = kept / f"{population.name}.safetensors", torch.tensor(population.draws)
        one = _read(path, numbers)
        if one is None:
            trainer = population.trainer()
            require_same(trainer, float(table.bank.leading[places[0], 0, 0]), population.name)
            one = measure_untrained(trainer)
            tensors = {"sensitivity": one.sensitivity, "alignment": one.alignment, "numbers": numbers}
            write_tensors(path, tensors, {"format": FORMAT})
            print(f"{done} of {len(made)}: {population.name}", file=sys.stderr, flush=True)
        result.sensitivity[places], result.alignment[places] = one.sensitivity.float(), one.alignment.float()
    return result


def _read(path: Path, numbers: Tensor) -> Measured | None:
    """What is kept of just these networks."""
    if not path.is_file():
        return None
    with reading(path, FORMAT) as (tensors, _):
        if not torch.equal(tensors["numbers"], numbers):
            return None
        return Measured(tensors["sensitivity"], tensors["alignment"])


# -------------------------------------------------------------------------------- what predictors are told


@dataclass(frozen=True, eq=False)
class Told:
    """What a predictor is told of networks, beside kind, size and learning rate."""

    exponents: bool
    skill: bool
    more: Tensor | None = None
    """(N, F) of every network of the bank."""

    def of(self, table: Table, *, is_crossed: bool) -> Tensor:
        """(R, F') features; crossed, each kind of cell has slopes of its own, which trees find by themselves."""
        columns = [self._crossed(table.rows) if is_crossed else self._plain(table.rows)]
        if self.more is not None:
            more = self.more[table.network]
            cells = _context(table.rows, ARCHITECTURES)
            columns += [more, *(more * one for one in cells.split(1, 1) if is_crossed)]
        return torch.cat(columns, 1)

    def _crossed(self, rows: Rows) -> Tensor:
        return features_for((self.exponents, self.skill, RATE_KNOWN), rows)

    def _plain(self, rows: Rows) -> Tensor:
        hand = [hand_features(rows.spectrum)] if self.exponents else []
        return torch.cat([*hand, _context(rows, (*CELL, *RATE, *(["skill"] if self.skill else [])))], 1)


LEARNERS: dict[str, Callable[[Told], Predictor]] = {
    "ridge": lambda told: ridge(partial(told.of, is_crossed=True)),
    "trees": lambda told: boosted(partial(told.of, is_crossed=False)),
}


def _context(rows: Rows, names: Sequence[str]) -> Tensor:
    return rows.context[:, [CONTEXT.index(name) for name in names]]


def by_network(table: Table, values: Tensor) -> Tensor:
    """(N, F) of every network of the bank, from (R, F) of rows of one checkpoint; elsewhere the mean of the rows."""
    values = values.masked_fill(~values.isfinite(), math.nan)
    mean = values.nanmean(0).nan_to_num()
    result = mean.repeat(len(table.bank), 1)
    result[table.network] = torch.where(values.isnan(), mean, values)
    return result


def known(whole: Table, updates: int, untrained: Measured) -> dict[str, Told]:
    """What predictors may be told after so many updates, by name; ``whole`` has the rows of all checkpoints."""
    now, skill = whole[whole.updates == updates], updates >= KNOWS_SKILL

    def told(*more: Tensor, exponents: bool = True) -> Told:
        return Told(exponents, skill, torch.cat(more, 1) if more else None)

    growth = by_network(now, squash(now.growth, 1.0))
    found = {"exponents": told(), "growth": told(growth), "growth alone": told(growth, exponents=False)}
    if not updates:
        lagged, aligned = (by_network(now, v[now.network]) for v in (untrained.sensitivity, untrained.alignment))
        return found | {"sensitivity": told(lagged), "alignment": told(aligned)}
    cheap = by_network(now, _context(now.rows, CHEAP))
    before = [whole[whole.updates == u] for u in EARLIER]
    earlier = torch.cat([by_network(t, _context(t.rows, ("skill", *CHEAP))) for t in before], 1)
    spectra = torch.cat([by_network(t, hand_features(t.rows.spectrum)) for t in before], 1)
    return found | {
        "change": told(by_network(now, now.change)),
        "earlier": told(earlier),
        "cheap": told(cheap),
        "cheap and earlier": told(cheap, earlier),
        "earlier and spectra": told(earlier, spectra),
    }


TRIALS = {
    "change of the spectrum since update 0": ("change", "exponents"),
    "skill and cheap statistics at updates 0 and 10": ("earlier", "exponents"),
    "skill and cheap statistics at updates 0 and 10, where the cheap ones now are known": (
        "cheap and earlier",
        "cheap",
    ),
    "spectra at updates 0 and 10, on top of skill and cheap statistics there": ("earlier and spectra", "earlier"),
    "growth over the sequence, beside the exponents": ("growth", "exponents"),
    "growth over the sequence, instead of the exponents": ("growth alone", "exponents"),
    "sensitivity to the input over lags": ("sensitivity", "exponents"),
    "alignment of gradients with leading directions": ("alignment", "exponents"),
}
"""What is told, and what it is compared with."""


# -------------------------------------------------------------------------------- what it adds


@dataclass(frozen=True)
class Gain:
    """What a candidate adds to a score."""

    updates: int
    learner: str
    score: str
    mean: float
    error: float
    families: int

    @property
    def size(self) -> float:
        """In standard errors; 0 where there is nothing to tell."""
        return self.mean / self.error if self.error > 0 else 0.0

    def __str__(self) -> str:
        return f"{self.score} after {self.updates} updates by the {self.learner} {self.mean:+.3f} ± {self.error:.3f}"


def gains(whole: Table, untrained: Measured, moments: Sequence[int] = MOMENTS) -> dict[str, list[Gain]]:
    """What each of :data:`TRIALS` adds, to every score, at every moment at which it can be told, by every learner."""
    found: dict[str, list[Gain]] = {name: [] for name in TRIALS}
    for updates in moments:
        now, told = whole[whole.updates == updates], known(whole, updates, untrained)
        for learner, fits in LEARNERS.items():
            scored: dict[str, Scored] = {
                name: scores(now, leave_out(now, "family", fits(one))) for name, one in told.items()
            }
            for trial, (one, other) in TRIALS.items():
                if one in scored:
                    compared = {score: difference(scored[one], scored[other], score) for score in SHOWN}
                    found[trial] += [Gain(updates, learner, score, *values) for score, values in compared.items()]
            print(f"fitted the {learner} after {updates} updates", file=sys.stderr, flush=True)
    return found


def table_of(found: Mapping[str, Sequence[Gain]]) -> list[str]:
    """A row for each trial, moment and learner; in brackets the number of families that say anything."""
    rows = []
    for trial, every in found.items():
        for updates, learner in dict.fromkeys((one.updates, one.learner) for one in every):
            here = {one.score: one for one in every if (one.updates, one.learner) == (updates, learner)}
            told = [f"{gain(one.mean, one.error)} ({one.families})" for one in (here[score] for score in SHOWN)]
            rows.append([trial, str(updates), learner, *told])
    return markdown(["told as well", "updates", "learner", *SHOWN], rows)


def sentence(trial: str, every: Sequence[Gain]) -> str:
    """Whether a trial helps: whether more of its differences pass two standard errors than chance lets pass."""
    title = f"**{trial[0].upper()}{trial[1:]}**"
    clearest = sorted((one for one in every if math.isfinite(one.mean)), key=lambda one: -abs(one.size))
    if not clearest:
        return f"{title} cannot be told from so few families."
    ups, downs = ([one for one in clearest if sign * one.size > 2] for sign in (1, -1))
    verdicts = {"helps": ups, "costs": downs}
    clear = {verb: some for verb, some in verdicts.items() if len(some) > math.ceil(CHANCE * len(clearest))}
    told = [one for some in clear.values() for one in some[:3]] or clearest[:1]
    return (
        f"{title} {' and '.join(clear) or 'adds nothing beyond chance'}: "
        f"{', '.join(str(one) for one in told)}; of {len(clearest)} differences {len(ups)} are more than two standard "
        f"errors above 0, {len(downs)} below."
    )


def lines(whole: Table, untrained: Measured) -> Iterator[str]:
    found = gains(whole, untrained)
    networks, families = len(set(whole.network.tolist())), len(set(whole.column("family")))
    yield f"{networks:,} networks of {families} families."
    yield ""
    yield from table_of(found)
    yield ""
    for trial, every in found.items():
        yield f"- {sentence(trial, every)}"


def asked(bank: Bank, *, quick: bool) -> Table:
    """The networks in use, at all checkpoints; quick, those of a few families."""
    table = development(Table.of(bank))
    table = table[table.is_useful]
    if not quick:
        return table
    steps: dict[str, int] = {}
    for task, family in zip(table.column("task"), table.column("family"), strict=True):
        steps[family] = max(steps.get(family, 0), TASKS[task].steps)
    return table[table.where(family=sorted(steps, key=lambda family: steps[family])[:QUICK_FAMILIES])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, nargs="?", default=BANK, help="directory of records")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FAMILIES} families, too few to judge by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = asked(Bank.load(args.bank), quick=args.quick)
    untrained = measured(table[table.updates == 0], KEPT)
    for line in lines(table, untrained):
        print(line, flush=True)


if __name__ == "__main__":
    main()
