"""What a look at untrained networks saves in a search, counted in trained epochs: measured, tabulated, drawn.

A study searches one task for a good network. All methods draw from the same candidates, which differ in the kind of
cell, the units, the recurrent gain and the learning rate:

    random                       the first ones, each trained in full
    median                       the same, pruned by Optuna's MedianPruner on the skill in validation
    hyperband, halving           the same, by its HyperbandPruner and by its SuccessiveHalvingPruner
    ... on the prediction        each of these on aelle/performance, which the scorer is told the skill for
    triage                       the best of four times as many by their untrained spectra, then as in median
    triage without spectrum      the same by the scorer's baseline, told cell, size and learning rate: to be beaten
    conditioned                  as in median, each candidate conditioned first, where the task has a lag

The tasks are of families that the scorer was not fitted on. It is told the cell, its size and the learning rate. Each
candidate that some method wants is trained once and in full, with what was seen after every epoch kept in
runs/bench/triage; the methods then run on what was kept, through Optuna's own pruners, which see exactly what they
would see live. Interrupted, it goes on where it was; delete the folder after a change of what is trained, or of the
scorer.

Usage: python benchmarks/triage.py [--quick] [--jobs N] [--json FILE] [--write]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from joblib import Parallel, delayed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from lightning_lyapunov import AeLLEScorer, condition, lyapunov_spectrum
from lightning_lyapunov.bank.tasks import TASKS, Batch, Task, loss, metric

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "runs" / "bench" / "triage"
PAGE, PICTURE = ROOT / "docs" / "choosing-runs.md", ROOT / "docs" / "triage.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
BATCH, VALIDATION, TEST = 32, 256, 1024
"""Sequences in a training batch; those that skills are computed on after each epoch, and on which results are told."""
SEQUENCES, LEADING = 8, 32
"""Sequences that spectra are measured on, and exponents of those in training: the callback's defaults."""
GOOD = 0.95
"""Share of what the search in full found that counts as equal quality."""
TIMES = ("seconds", "measuring", "conditioning")
"""CPU seconds of training, of measuring the spectrum and scoring it, and of conditioning before the first update."""
Record = dict[str, Any]
Curves = Mapping[int, Record]


@dataclass(frozen=True)
class Settings:
    """Size of the studies."""

    epochs: int = 10
    updates: int = 40
    """In an epoch."""
    trials: int = 24
    drawn: int = 96
    """Candidates that are looked at untrained."""
    seeds: int = 10

    @property
    def folder(self) -> Path:
        return KEPT / f"{self.epochs}x{self.updates}"


# Tasks and candidates -------------------------------------------------------------------------------------------------


def sums(batch: int, generator: Generator, held_out: bool, *, steps: int, delays: Sequence[int]) -> Batch:
    """Two binary numbers come in, lowest digits first; the digits of their sum are asked several delays later."""
    digits = torch.randint(2, (2, steps, batch), generator=generator)
    carried, total = torch.zeros(batch, dtype=torch.long), torch.zeros(steps, batch)
    for t, both in enumerate(digits.sum(0)):
        total[t], carried = (both + carried) % 2, (both + carried) // 2
    targets = torch.full((steps, batch, len(delays)), torch.nan)
    for i, delay in enumerate(delays):
        targets[delay:, :, i] = total[: steps - delay]
    return Batch(2 * digits.permute(1, 2, 0).float() - 1, targets)


def reverse(batch: int, generator: Generator, held_out: bool, *, symbols: int, length: int, delay: int) -> Batch:
    """Symbols are shown one by one, and asked in reverse order once a delay is over."""
    shown = torch.randint(symbols, (length, batch), generator=generator)
    inputs = torch.zeros(2 * length + delay, batch, symbols + 1)
    inputs[:length, :, :symbols] = one_hot(shown, symbols).float()
    inputs[length + delay :, :, symbols] = 1.0
    targets = torch.full((len(inputs), batch), -1)
    targets[length + delay :] = shown.flip(0)
    return Batch(inputs, targets)


def queue(batch: int, generator: Generator, held_out: bool, *, steps: int, symbols: int, longest: int) -> Batch:
    """Symbols join a queue or are called from its front: which one is called?"""
    joins = (torch.rand(steps, batch, generator=generator) < 0.5).tolist()
    symbol = torch.randint(symbols, (steps, batch), generator=generator).tolist()
    lines: list[list[int]] = [[] for _ in range(batch)]
    seen, asked = [], []
    for joining, coming in zip(joins, symbol, strict=True):
        called = [bool(line) and (len(line) == longest or not j) for line, j in zip(lines, joining, strict=True)]
        asked.append([line.pop(0) if is_called else -1 for line, is_called in zip(lines, called, strict=True)])
        for line, is_called, one in zip(lines, called, coming, strict=True):
            line.extend([] if is_called else [one])
        seen.append([symbols if is_called else one for is_called, one in zip(called, coming, strict=True)])
    return Batch(one_hot(torch.tensor(seen), symbols + 1).float(), torch.tensor(asked))


STUDIED = {
    "group": TASKS["group-16"],
    "rhythm": TASKS["rhythm-40"],
    "sums": Task("sums", "sums", 2, 3, 20, "bits", 0.5, partial(sums, steps=20, delays=(2, 7, 12))),
    "reverse": Task("reverse", "reverse", 6, 5, 20, "classes", 1 / 5, partial(reverse, symbols=5, length=4, delay=12)),
    "queue": Task("queue", "queue", 5, 4, 24, "classes", 1 / 4, partial(queue, steps=24, symbols=4, longest=3)),
}
"""Two that the bank set aside before any fit, and three that it does not have."""
LAGS = {"sums": 12, "reverse": 16, "queue": 8}
"""Steps that something is to be held for, of the tasks that tell: the longest, but of a queue about the longest."""


@dataclass(frozen=True)
class Candidate:
    """One point of the search space, with the weights that it begins with."""

    task: str
    seed: int
    number: int
    conditioned: bool = False

    @property
    def name(self) -> str:
        return f"{self.task} {self.seed} {self.number}"

    @property
    def values(self) -> Record:
        """The draw: it follows from the name alone."""
        draws = random.Random(self.name)

        def between(low: float, high: float) -> float:
            return math.exp(draws.uniform(math.log(low), math.log(high)))

        return {
            "cell": draws.choice(list(CELLS)),
            "hidden": round(between(16, 64)),
            "gain": between(0.5, 3.0),
            "rate": between(1e-4, 3e-2),
        }

    def network(self) -> tuple[nn.Module, nn.Module]:
        """Recurrent layer and read-out, untrained: PyTorch's initialisation but for the recurrent weights."""
        task, how = STUDIED[self.task], self.values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(self.name).getrandbits(32))
            layer = CELLS[how["cell"]](task.input_size, how["hidden"])
            nn.init.normal_(layer.weight_hh_l0, std=how["gain"] / math.sqrt(how["hidden"]))
            return layer, nn.Linear(how["hidden"], task.output_size)


def held_out(task: str, seed: int) -> tuple[Batch, Batch]:
    """Sequences to validate and to test on, the same for all candidates of a study."""
    generator = Generator().manual_seed(1000 + seed)
    return tuple(STUDIED[task].sample(size, generator, held_out=True) for size in (VALIDATION, TEST))


# What is kept of them -------------------------------------------------------------------------------------------------


def look(candidate: Candidate, settings: Settings, scorer: AeLLEScorer) -> Record:
    """What the scorer says of an untrained network, and the CPU seconds it took."""
    validation, _ = held_out(candidate.task, candidate.seed)
    layer, _ = candidate.network()
    start = time.process_time()
    said = predicted(candidate, layer, validation, scorer, updates=0)
    spent = time.process_time() - start
    if said is None:
        return {"performance": -math.inf, "baseline": -math.inf, "seconds": spent}
    return {"performance": said.performance, "baseline": said.baseline, "seconds": spent}


def train(candidate: Candidate, settings: Settings, scorer: AeLLEScorer) -> Record:
    """Skill in validation and predicted performance after each epoch, skill in the test at the end, CPU seconds."""
    task, how = STUDIED[candidate.task], candidate.values
    validation, test = held_out(candidate.task, candidate.seed)
    batches = Generator().manual_seed(candidate.number)
    layer, head = candidate.network()
    start = time.process_time()
    if candidate.conditioned:
        condition(layer, validation.inputs[:, :SEQUENCES], lag=LAGS[candidate.task])
    conditioning = time.process_time() - start
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, how["rate"])
    curve: Record = {"valid": [], "predicted": [], "seconds": 0.0, "measuring": 0.0, "conditioning": conditioning}
    for epoch in range(1, settings.epochs + 1):
        start = time.process_time()
        for _ in range(settings.updates):
            batch = task.sample(BATCH, batches)
            optimizer.zero_grad()
            loss(task, head(layer(batch.inputs)[0])[None], batch.targets).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        reached = skill(task, layer, head, validation)
        trained = time.process_time()
        said = predicted(candidate, layer, validation, scorer, epoch * settings.updates, reached, LEADING)
        curve["valid"].append(reached)
        curve["predicted"].append(None if said is None else said.performance)
        curve["seconds"] += trained - start
        curve["measuring"] += time.process_time() - trained
    return curve | {"test": skill(task, layer, head, test)}


def predicted(
    candidate: Candidate,
    layer: nn.Module,
    on: Batch,
    scorer: AeLLEScorer,
    updates: int,
    reached: float | None = None,
    k: int | None = None,
) -> Any:
    """The score of a network as it is; None where it cannot be measured."""
    how = candidate.values
    inputs = on.inputs[:, :SEQUENCES]
    try:
        k = None if k is None or k >= how["hidden"] * (2 if how["cell"] == "lstm" else 1) else k
        spectrum = lyapunov_spectrum(layer, inputs, k=k, transient=len(inputs) // 4)
        told = None if reached is None else min(max(reached, 0.0), 1.0)
        options = {"architecture": how["cell"], "hidden_size": how["hidden"], "updates": updates, "performance": told}
        return scorer.score(spectrum, **options, learning_rate=how["rate"], adaptive=True)
    except ValueError:  # weights or states that are no longer finite
        return None


@torch.no_grad()
def skill(task: Task, layer: nn.Module, head: nn.Module, on: Batch) -> float:
    """Share of the way from chance to perfect; a network that overflows is worth as much as chance."""
    value: Tensor = metric(task, head(layer(on.inputs)[0])[None], on.targets)[0]
    return max(float(value.nan_to_num(task.chance)) - task.chance, -1.0) / (1 - task.chance)


class Kept:
    """Records by candidate, in a file that grows line by line.

    Args:
        path: JSON lines.
        make: What is called for a candidate that is not there yet.
        jobs: Processes that do so.
    """

    def __init__(self, path: Path, make: Callable[[Candidate], Record], jobs: int) -> None:
        self.path, self.make, self.jobs = path, make, jobs
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = {Candidate(**line.pop("of")): line for line in map(json.loads, lines)}

    def of(self, candidates: Iterable[Candidate]) -> dict[Candidate, Record]:
        """The record of each; those that are not there yet are made and kept."""
        wanted = list(dict.fromkeys(candidates))
        missing = [candidate for candidate in wanted if candidate not in self.records]
        made = Parallel(self.jobs, return_as="generator")(delayed(self.make)(candidate) for candidate in missing)
        for candidate, record in zip(missing, made, strict=True):
            with self.path.open("a") as file:
                file.write(json.dumps({"of": asdict(candidate), **record}) + "\n")
            self.records[candidate] = record
        return {candidate: self.records[candidate] for candidate in wanted}


# Methods --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """Which candidates are trained, in which order, and what may end them early."""

    pruner: Callable[[int], BasePruner] = lambda epochs: NopPruner()
    """Given the epochs of a whole training."""
    watched: str = "valid"
    """What the pruner is told after each epoch."""
    ranked_by: str | None = None
    """What the score of the untrained network says; None takes candidates as they come."""
    conditioned: bool = False
    """Whether candidates are conditioned before their first update, where the task has a lag."""
    style: tuple[str, str] = ("#000000", "-")

    def order(self, looks: Sequence[Record], trials: int) -> list[int]:
        """Numbers of the candidates to train; of equal ones the first."""
        numbers = list(range(len(looks)))
        if self.ranked_by is not None:
            key = self.ranked_by
            numbers.sort(key=lambda n: -looks[n][key])
        return numbers[:trials]


def median(epochs: int) -> BasePruner:
    """As it comes."""
    return MedianPruner()


def hyperband(epochs: int) -> BasePruner:
    """As it comes, with the longest training told."""
    return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)


def halving(epochs: int) -> BasePruner:
    """As it comes, from the first epoch on."""
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


METHODS = {
    "random": Method(style=("#000000", "-")),
    "median": Method(median, style=("#E69F00", "-")),
    "median on the prediction": Method(median, watched="predicted", style=("#E69F00", "--")),
    "hyperband": Method(hyperband, style=("#56B4E9", "-")),
    "hyperband on the prediction": Method(hyperband, watched="predicted", style=("#56B4E9", "--")),
    "halving": Method(halving, style=("#CC79A7", "-")),
    "halving on the prediction": Method(halving, watched="predicted", style=("#CC79A7", "--")),
    "triage without spectrum": Method(median, ranked_by="baseline", style=("#0072B2", "--")),
    "triage": Method(median, ranked_by="performance", style=("#D55E00", "-")),
    "conditioned": Method(median, conditioned=True, style=("#009E73", "-")),
}
"""Colours that colour-blind readers tell apart (Okabe and Ito); dashes for those that share a hue with another."""


@dataclass(frozen=True)
class Run:
    """One trial as the replay went."""

    number: int
    epochs: int
    """Trained."""
    finished: bool
    """Trained in full and not pruned after the last epoch either."""


def replay(order: Sequence[int], curves: Curves, pruner: BasePruner, watched: str, name: str) -> list[Run]:
    """Trials one after the other, told what was seen in training: as by Optuna's callback for Lightning.

    Args:
        order: Numbers of the candidates.
        curves: Of each, what was seen; the entry under ``watched`` has one value per epoch, None where there was none.
        pruner: Optuna's.
        watched: What it is told.
        name: Of the study, from which Hyperband derives its brackets.
    """
    study = optuna.create_study(
        study_name=name, direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(0)
    )
    return [Run(number, *_trial(study, curves[number], watched)) for number in order]


def _trial(study: optuna.Study, curve: Record, watched: str) -> tuple[int, bool]:
    """Epochs trained, and whether it came to its end."""
    trial = study.ask()
    for epoch, value in enumerate(curve[watched]):
        if value is None:
            continue
        trial.report(value, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch + 1, False
    study.tell(trial, curve["valid"][-1])
    return len(curve["valid"]), True


def incumbents(runs: Sequence[Run], curves: Curves) -> list[tuple[int, float]]:
    """Epochs trained so far, and the skill in the test of the finished network that is best in validation."""
    epochs, best, found = 0, -math.inf, []
    for run in runs:
        epochs += run.epochs
        curve = curves[run.number]
        if run.finished and curve["valid"][-1] > best:
            best = curve["valid"][-1]
            found.append((epochs, curve["test"]))
    return found


def epochs_to(found: Sequence[tuple[int, float]], target: float) -> float:
    """Epochs until an incumbent reaches a skill; infinite if none does."""
    return next((epochs for epochs, reached in found if reached >= target), math.inf)


# Studies --------------------------------------------------------------------------------------------------------------


def studies(settings: Settings, jobs: int) -> Iterator[Record]:
    """Rows, one for each task, seed and method."""
    scorer = AeLLEScorer.from_pretrained()
    looked = Kept(settings.folder / "looks.jsonl", partial(look, settings=settings, scorer=scorer), jobs)
    trained = Kept(settings.folder / "curves.jsonl", partial(train, settings=settings, scorer=scorer), jobs)
    for seed in range(settings.seeds):
        for task in STUDIED:
            looks = list(looked.of(Candidate(task, seed, n) for n in range(settings.drawn)).values())
            orders = {name: method.order(looks, settings.trials) for name, method in METHODS.items()}
            conditions = {name: method.conditioned and task in LAGS for name, method in METHODS.items()}
            candidates = {
                (name, n): Candidate(task, seed, n, conditions[name]) for name, order in orders.items() for n in order
            }
            records = trained.of(candidates.values())
            curves = {name: {n: records[candidates[name, n]] for n in order} for name, order in orders.items()}
            yield from _study(task, seed, settings, looks, orders, curves)


def _study(
    task: str,
    seed: int,
    settings: Settings,
    looks: Sequence[Record],
    orders: Mapping[str, list[int]],
    by_method: Mapping[str, Curves],
) -> Iterator[Record]:
    found, spent = {}, {}
    for name, method in METHODS.items():
        curves = by_method[name]
        runs = replay(orders[name], curves, method.pruner(settings.epochs), method.watched, f"{task} {seed}")
        found[name], spent[name] = incumbents(runs, curves), sum(run.epochs for run in runs)
    target = GOOD * found["random"][-1][1]
    plain, curves = orders["random"], by_method["random"]  # a sample that nobody selected
    ends = torch.tensor([curves[n]["test"] for n in plain])
    agreement = {
        key: rank_correlation(torch.tensor([looks[n][key] for n in plain]), ends) for key in ("performance", "baseline")
    }
    epoch, measuring = (statistics.mean(curves[n][key] for n in plain) / settings.epochs for key in TIMES[:2])
    looking = sum(one["seconds"] for one in looks)
    for name, method in METHODS.items():
        epochs = epochs_to(found[name], target)
        more = measuring / epoch if method.watched == "predicted" else 0.0
        once = looking / epoch if method.ranked_by == "performance" else 0.0
        once += sum(by_method[name][n]["conditioning"] for n in orders[name]) / epoch
        yield {
            "task": task,
            "seed": seed,
            "method": name,
            "incumbents": found[name],
            "spent": spent[name],
            "target": target,
            "epochs": epochs,
            "cost": epochs * (1 + more) + once,  # measurements counted, in epochs
            "final": found[name][-1][1] if found[name] else math.nan,
            "chosen": statistics.mean(by_method[name][n]["test"] for n in orders[name]),
            "agreement": agreement,
            "looking": looking,
            "epoch": epoch,
            "measuring": measuring,
        }


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; ties in order of appearance, which here are networks at chance."""
    ranks = torch.stack([x.argsort(stable=True).argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


# What is said of it ---------------------------------------------------------------------------------------------------


def of(rows: Sequence[Record], **wanted: Any) -> list[Record]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def tables(rows: Sequence[Record]) -> str:
    """Markdown: epochs to equal quality, and what was found in the end."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [
        f"| method | {' | '.join(tasks)} | against median | of its epochs | of its time |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for name in METHODS:
        cells = [_spread([row["epochs"] for row in of(rows, method=name, task=task)]) for task in tasks]
        lines.append(f"| {name} | {' | '.join([*cells, *against(rows, name)])} |")
    lines += [
        "",
        f"| method | {' | '.join(f'{task}: chosen, final skill, epochs in all' for task in tasks)} |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in METHODS:
        cells = [_end(of(rows, method=name, task=task)) for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(rows: Sequence[Record], name: str, other: str = "median") -> tuple[str, str, str]:
    """In how many studies a method is faster than another; median ratios of epochs, and of epochs with measurements."""
    pairs = [(row, of(rows, method=other, task=row["task"], seed=row["seed"])[0]) for row in of(rows, method=name)]
    won = sum(mine["epochs"] < theirs["epochs"] for mine, theirs in pairs)
    lost = sum(mine["epochs"] > theirs["epochs"] for mine, theirs in pairs)
    epochs, cost = (_ratio([(mine[key], theirs[key]) for mine, theirs in pairs]) for key in ("epochs", "cost"))
    return f"faster in {won}, slower in {lost} of {len(pairs)}", epochs, cost


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """The median; two that never arrive are even."""
    ratio = statistics.median(1.0 if mine == theirs else mine / theirs for mine, theirs in pairs)
    return f"{ratio:.2f}×" if math.isfinite(ratio) else "—"


def _spread(epochs: Sequence[float]) -> str:
    """Median and range; never is the sign of infinity."""
    return f"{_epochs(statistics.median(epochs))} ({_epochs(min(epochs))} to {_epochs(max(epochs))})"


def _epochs(epochs: float) -> str:
    return f"{epochs:.0f}" if math.isfinite(epochs) else "never"


def _end(rows: Sequence[Record]) -> str:
    middle = {key: statistics.median(row[key] for row in rows) for key in ("chosen", "final", "spent")}
    return f"{middle['chosen']:.2f}, {middle['final']:.2f}, {middle['spent']:.0f}"


def differences(rows: Sequence[Record]) -> str:
    """Methods beside the one that they are to beat, study by study: means with standard errors, and how often."""

    def by(name: str, task: str | None = None) -> list[Record]:
        return [row for row in of(rows, method=name) if task in (None, row["task"])]

    def gained(name: str, other: str, task: str | None = None) -> str:
        pairs = zip(by(name, task), by(other, task), strict=True)
        return _mean([mine["chosen"] - theirs["chosen"] for mine, theirs in pairs])

    agreements = [row["agreement"]["performance"] - row["agreement"]["baseline"] for row in by("triage")]
    pruned = [name for name, method in METHODS.items() if method.watched == "predicted"]
    beside = (f"*{name}* beside *{other}* {against(rows, name, other)[0]}" for name in pruned
              for other in [name.removesuffix(" on the prediction")])  # fmt: skip
    conditioned = (f"{gained('conditioned', 'median', task)} on *{task}*" for task in LAGS)
    never = (f"{name} {sum(math.isinf(row['epochs']) for row in by(name))}" for name in METHODS)
    return (
        f"Means of the studies ± their standard errors: by *triage* the average candidate chosen ends "
        f"{gained('triage', 'triage without spectrum')} in skill above that by *triage without spectrum*, and the rank "
        f"correlation of the score before training with the final skill is {_mean(agreements)} above that without the "
        f"spectrum. Conditioning changes the skill of an average candidate by {', '.join(conditioned)}.\n\n"
        f"{'; '.join(beside)}. Equal quality was never reached in so many studies: {', '.join(never)}."
    )


def _mean(values: Sequence[float]) -> str:
    """As ``+0.020 ± 0.005``; without an error if there is one value."""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.3f}{error}"


def costs(rows: Sequence[Record], settings: Settings) -> str:
    """What looking cost and how well the looks agreed with the ends, in a sentence each."""
    looked = of(rows, method="triage")
    looking = statistics.median(row["looking"] for row in looked)
    epoch = statistics.median(row["epoch"] for row in looked)
    share = statistics.median(row["measuring"] / row["epoch"] for row in looked)
    rho = {key: statistics.median(row["agreement"][key] for row in looked) for key in ("performance", "baseline")}
    said, epochs, time_too = against(rows, "triage", "triage without spectrum")
    return (
        f"*Triage* against *triage without spectrum*: {said}; {epochs} of its epochs, {time_too} of its time.\n\n"
        f"Looking at {settings.drawn} untrained candidates took {looking:.1f} s of CPU time, as much as "
        f"{looking / epoch:.0f} epochs of training ({epoch:.2f} s each), and measuring after each epoch, as *median on "
        f"the prediction* needs, added {share:.0%} to it: the last column counts both, the others do not. Among the "
        f"{settings.trials} "
        f"candidates that nobody selected, the rank correlation of the score before training with the final skill is "
        f"{rho['performance']:.2f} with the spectrum and {rho['baseline']:.2f} without it (medians of "
        f"{len(looked)} studies)."
    )


def draw(rows: Sequence[Record], settings: Settings) -> Figure:
    """Above, the skill found against the epochs trained, medians over seeds; below, the epochs to equal quality."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(13, 8), dpi=80, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(tasks), squeeze=False, height_ratios=(1.15, 1))
    longest = settings.epochs * settings.trials
    grid = range(1, longest + 1)
    for axes, task in zip(panels[0], tasks, strict=True):
        for name, method in METHODS.items():
            curves = [[_at(row["incumbents"], x) for x in grid] for row in of(rows, method=name, task=task)]
            middle = [statistics.median(values) for values in zip(*curves, strict=True)]
            colour, dash = method.style
            axes.plot(grid, middle, dash, color=colour, lw=1.6, label=name)
        target = statistics.median(row["target"] for row in of(rows, task=task))
        axes.axhline(target, color="0.6", lw=1, ls=":", zorder=0, label=f"{GOOD:.0%} of random")
        axes.set(title=task, xlabel="epochs trained", xscale="log", xlim=(settings.epochs, longest))
        axes.set_xticks([t for t in (10, 20, 50, 100, 240) if t <= longest] or [longest])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    for axes, task in zip(panels[1], tasks, strict=True):
        for y, (name, method) in enumerate(reversed(METHODS.items())):
            reached = [min(row["epochs"], 1.25 * longest) for row in of(rows, method=name, task=task)]
            axes.plot(reached, [y] * len(reached), "o", color=method.style[0], ms=6, alpha=0.6, mec="white")
            axes.plot(statistics.median(reached), y, "|", color=method.style[0], ms=18, mew=2.5)
        axes.set(xlabel="epochs to equal quality", xlim=(0, 1.4 * longest))
        axes.set_yticks(range(len(METHODS)), labels=list(reversed(METHODS)) if axes is panels[1][0] else [])
        axes.axvline(1.13 * longest, color="0.85", lw=1)
        ticks = {0: "0", longest // 2: str(longest // 2), 1.25 * longest: "never"}
        axes.set_xticks(list(ticks), labels=list(ticks.values()))
    for axes in panels.flat:
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("skill in the test of the best so far")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _at(found: Sequence[tuple[int, float]], epochs: int) -> float:
    """Skill of the incumbent after so many epochs; chance before there is one."""
    return next((reached for spent, reached in reversed(found) if spent <= epochs), 0.0)


def write(text: str) -> None:
    """Put what was measured between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Train what is missing, replay, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tiny studies of each task, to see it work")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train (default: 1)")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    parser.add_argument("--write", action="store_true", help=f"renew {PAGE.name} and {PICTURE.name} under docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = Settings(epochs=2, updates=5, trials=3, drawn=6, seeds=2) if args.quick else Settings()
    rows: list[Record] = []
    start = time.monotonic()
    for row in studies(settings, args.jobs):
        rows.append(row)
        if len(of(rows, task=row["task"], seed=row["seed"])) == len(METHODS):
            print(f"{row['task']}, seed {row['seed']}: after {(time.monotonic() - start) / 60:.1f} min", flush=True)
    text = f"{tables(rows)}\n\n{costs(rows, settings)}\n\n{differences(rows)}"
    print(f"\n{text}")
    picture = PICTURE if args.write else settings.folder / PICTURE.name
    draw(rows, settings).savefig(picture)
    print(f"\n{picture}")
    if args.write:
        write(text)
    if args.json:
        args.json.write_text(json.dumps({"settings": asdict(settings), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
