"""The bank as a whole: which populations it has, and training them all, in parallel and with interruptions."""

from __future__ import annotations

import io
import random
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS
from lightning_lyapunov.bank.population import Population, run
from lightning_lyapunov.bank.records import read_record, write_record
from lightning_lyapunov.bank.tasks import TASKS

SIZES = {16: 9, 32: 10}
"""Hidden sizes, and networks of each, for every task and known cell."""
LARGE_SIZES = {64: 6, 128: 1}
"""The same for the first task of each family: each such network costs as much as many small ones."""
UNKNOWN = 6
"""Networks of 32 units for the first task of each family and every unknown cell."""
TWINS, TWIN_SEEDS = 5, (1, 2)
"""Draws of 32 units that are trained again from other seeds, in every second family: what no predictor can know."""


def plan() -> list[Population]:
    """Every population of the bank, in an order in which any beginning of it is a fair sample."""
    known = [name for name in CELLS if name not in UNKNOWN_CELLS]
    first = list({task.family: name for name, task in reversed(TASKS.items())}.values())[::-1]
    populations = [
        Population(task, cell, size, tuple(range(networks)))
        for tasks, sizes in ((TASKS, SIZES), (first, LARGE_SIZES))
        for task in tasks
        for cell in known
        for size, networks in sizes.items()
    ]
    populations += [Population(task, cell, 32, tuple(range(UNKNOWN))) for task in first for cell in UNKNOWN_CELLS]
    populations += [
        Population(task, cell, 32, tuple(range(TWINS)), seed)
        for task in first[1::2]
        for cell in known
        for seed in TWIN_SEEDS
    ]
    random.Random(0).shuffle(populations)
    return populations


def smoke_plan() -> list[Population]:
    """Thirty small networks of two tasks, to see that everything works."""
    return [
        Population(task, cell, 8, tuple(range(5)))
        for task in ("recall-6", "adding-20")
        for cell in CELLS
        if cell not in UNKNOWN_CELLS
    ]


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
            warnings.warn(f"{fault} {population.name} is trained again.", stacklevel=2)
    random.Random().shuffle(missing)
    finished = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
        joblib.delayed(_run_and_write)(population, directory) for population in missing
    )
    _show_progress(populations, missing, finished)


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
    expected = [
        (population.task, population.cell, population.hidden_size, population.seed, n) for n in population.draws
    ]
    found = [tuple(network[key] for key in ("task", "cell", "hidden_size", "seed", "number")) for network in networks]
    return None if found == expected else f"{path} is of {len(found)} networks that are not those of this population."


def _run_and_write(population: Population, directory: Path) -> str:
    if _fault(population, directory) is not None:  # unless another build has made it meanwhile
        torch.set_num_threads(1)
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
    return TASKS[population.task].steps * gates * (1 + len(population.draws) * (size / 120) ** 2)
