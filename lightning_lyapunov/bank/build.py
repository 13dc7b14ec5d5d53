"""The bank as a whole: which populations it has, and training them all, in parallel and with interruptions."""

from __future__ import annotations

import io
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS
from lightning_lyapunov.bank.population import Population, run
from lightning_lyapunov.bank.records import read_record, write_record
from lightning_lyapunov.bank.tasks import CURRENT, TASKS

COMMON = ("rnn", "gru", "lstm")
"""Kinds that users have most of."""
SIZES, NETWORKS = (16, 32), 4200
"""Hidden sizes of these, and how many networks, about: shared out over families, there over tasks, kinds, sizes."""
RELU = 18
"""Networks of 32 units with relu for every family, shared out over its tasks."""
LARGE_SIZES = {64: 4, 128: 1}
"""Sizes, and networks of each common kind, for the first task of each family: each costs as much as many small ones."""
DEEP = 4
"""Networks of two layers of 32 units of each common kind for the first task of each family."""
UNKNOWN = 150
"""Networks of 32 units of every unknown cell, shared out over the first tasks of all families."""
TWINS, TWIN_SEEDS = 4, (1, 2)
"""Draws of 32 units that are trained again from other seeds, in every third family: what no predictor can know."""


def plan() -> list[Population]:
    """Every population of the bank, in an order in which any beginning of it is a fair sample."""
    families: dict[str, list[str]] = {}
    for name, task in CURRENT.items():
        families.setdefault(task.family, []).append(name)
    populations, parts = [], len(families) * len(COMMON) * len(SIZES)
    for place, tasks in enumerate(families.values()):
        common = _numbers(NETWORKS, parts * len(tasks))
        populations += [Population(task, cell, size, common) for task in tasks for cell in COMMON for size in SIZES]
        populations += [Population(task, "rnn_relu", 32, _numbers(RELU, len(tasks))) for task in tasks]
        first, unknown = tasks[0], _numbers(UNKNOWN, len(families))
        populations += [Population(first, cell, 32, unknown) for cell in UNKNOWN_CELLS]
        for cell in COMMON:
            populations += [Population(first, cell, size, _numbers(count)) for size, count in LARGE_SIZES.items()]
            populations.append(Population(first, cell, 32, _numbers(DEEP), layers=2))
            if place % 3 == 1:
                populations += [Population(first, cell, 32, _numbers(TWINS), seed) for seed in TWIN_SEEDS]
    random.Random(0).shuffle(populations)
    return populations


def _numbers(total: int, parts: int = 1) -> tuple[int, ...]:
    """Numbers of the draws of one of so many populations that share out so many networks."""
    return tuple(range(math.ceil(total / parts)))


def smoke_plan() -> list[Population]:
    """Thirty small networks of two tasks, to see that everything works."""
    return [Population(task, cell, 8, tuple(range(5))) for task in ("recall-6", "adding-20") for cell in COMMON]


def build(populations: Sequence[Population], directory: Path, jobs: int = -1) -> None:
    """Train the populations that have no record in a directory yet.

    Interrupted at any moment, the next call goes on: a record is written whole or not at all. One that is not as it was
    written, or of other networks, is told in a warning and made again. Several builds may share a directory: each takes
    the populations in an order of its own and looks again before it begins one, so that few are trained twice.
    joblib's backend is the caller's choice (``with joblib.parallel_config("ray"): build(...)``).

    Args:
        populations: What to train.
        directory: Where the records are.
        jobs: Processes, one thread each; -1 for one on each core.
    """
    import joblib

    missing = []
    for population in populations:
        fault = _fault(population, directory)
        if fault is not None:
            missing.append(population)
        if fault:
            warnings.warn(f"{fault} {population.name} is trained again. (docs/warnings.md#trained-again)", stacklevel=2)
    random.Random().shuffle(missing)
    finished = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
        joblib.delayed(_run_and_write)(population, directory) for population in missing
    )
    _show_progress(populations, missing, finished)


def differing(populations: Sequence[Population], directory: Path, count: int) -> list[str]:
    """Train some populations again that have a record, and compare byte by byte.

    Args:
        populations: Those that were planned.
        directory: Where the records are.
        count: How many of them, the cheapest half of which are drawn from.

    Returns:
        Names of those that came out otherwise: none on the same torch and kind of processor.
    """
    there = sorted((one for one in populations if _record(directory, one).exists()), key=_cost)
    chosen = random.Random(0).sample(there[: max(count, len(there) // 2)], min(count, len(there)))
    with tempfile.TemporaryDirectory() as other:
        for population in chosen:
            write_record(run(population), _record(Path(other), population))
        return [
            population.name
            for population in chosen
            if _record(Path(other), population).read_bytes() != _record(directory, population).read_bytes()
        ]


def _record(directory: Path, population: Population) -> Path:
    return directory / f"{population.name}.safetensors"


def _fault(population: Population, directory: Path) -> str | None:
    """What is wrong with a population's record: nothing to tell if there is none yet, None if it is there and whole."""
    path = _record(directory, population)
    try:
        networks = read_record(path)["networks"]
    except FileNotFoundError:
        return ""
    except ValueError as error:
        return str(error)
    kind = (population.task, population.cell, population.hidden_size, population.layers, population.seed)
    expected = [(*kind, number) for number in population.draws]
    keys = ("task", "cell", "hidden_size", "layers", "seed", "number")
    found = [tuple(network[key] for key in keys) for network in networks]
    return None if found == expected else f"{path} is of {len(found)} networks that are not those of this population."


def _run_and_write(population: Population, directory: Path) -> str:
    if _fault(population, directory) is not None:  # unless another build has made it meanwhile
        write_record(run(population), _record(directory, population))
    return population.name


def _show_progress(populations: Sequence[Population], missing: Sequence[Population], finished: Iterable[str]) -> None:
    """Run through the names of finished populations: one bar in a terminal, one line for each in a log."""
    from tqdm import tqdm

    by_name = {population.name: population for population in missing}
    networks = sum(len(population.draws) for population in populations)
    done = networks - sum(len(population.draws) for population in missing)
    whole, left = (sum(map(_cost, some)) for some in (populations, missing))
    is_log = not sys.stderr.isatty()
    with tqdm(
        total=whole,
        initial=whole - left,
        smoothing=0,  # the whole run so far: few populations are finished at a time, and their costs differ tenfold
        bar_format="|{bar}| {percentage:.0f}%{postfix}, {elapsed} gone, {remaining} left",
        postfix=f"{done:,} of {networks:,} networks",
        file=io.StringIO() if is_log else None,
    ) as bar:
        for name in finished:
            done += len(by_name[name].draws)
            bar.set_postfix_str(f"{done:,} of {networks:,} networks", refresh=False)
            bar.update(_cost(by_name[name]))
            if is_log:
                print(bar, name, file=sys.stderr, flush=True)


def _cost(population: Population) -> float:
    """About the time a population takes, in no unit: a start for each step and gate, then the products."""
    gates, size = CELLS[population.cell].gates, population.hidden_size
    steps = TASKS[population.task].steps * population.checkpoints[-1] * population.layers
    return steps * gates * (1 + len(population.draws) * (size / 120) ** 2)
