"""Which run shows best what the package is for? Tasks and networks that were tried for `make demo`, and what each gave.

A network is trained for an epoch of 800 updates, and looked at after each quarter: loss and accuracy in validation,
what is left of a gradient over a sequence, the verdict. Then one change is made, which the finding names if there is
one: recurrent weights scaled down where gradients grow, else the spectrum set (`LyapunovConditioning`), and it is
trained again from the same seed. The pair that `make demo` shows is tried with more seeds.

A fit that is done is kept in the file of results, a line each; interrupted, it goes on with those that are missing.

Usage: python benchmarks/first_look.py [--seeds N]
       python benchmarks/first_look.py --table        # Markdown, from what is there
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_lyapunov import LyapunovConditioning
from lightning_lyapunov.bank.tasks import TASKS, Task
from lightning_lyapunov.demo import TASK, Reader, hold, train
from lightning_lyapunov.reading.verdict import SIGNS
from lightning_lyapunov.reading.words import factor

KEPT = Path(__file__).parent / "results" / "first_look.jsonl"
SHOWN = "hold-40, GRU"
"""The pair of `make demo`."""
LONGER = Task("hold-60", "hold", 4, 4, 61, "classes", 0.25, partial(hold, lag=60))


def strong(model: Reader) -> None:
    """Recurrent weights of gain 3."""
    weights = model.reader.get_parameter("weight_hh_l0")
    nn.init.normal_(weights, std=3 / math.sqrt(len(weights)))


def kaiming(model: Reader) -> None:
    """Recurrent weights as is usual for convolutions."""
    nn.init.kaiming_normal_(model.reader.get_parameter("weight_hh_l0"))


PAIRS: dict[str, tuple[Task, str, Callable[[Reader], None] | None]] = {
    SHOWN: (TASK, "gru", None),
    "hold-40, LSTM": (TASK, "lstm", None),
    "hold-40, RNN of gain 3": (TASK, "rnn", strong),
    "hold-60, RNN": (LONGER, "rnn", None),
    "recall-20, LSTM": (TASKS["recall-20"], "lstm", None),
    "parity-12, RNN, Kaiming's weights": (TASKS["parity-12"], "rnn", kaiming),
}


class Fit(NamedTuple):
    """One training."""

    pair: str
    seed: int
    change: str
    """What was changed, empty if nothing."""
    looks: list[tuple[int, float, float, float, str]]
    """Updates, loss, accuracy, gain in nats, the word of the verdict."""
    softening: dict[str, float]
    """Factors on recurrent weights that were advised at first, by layer."""


class _First(pl.Callback):
    """Keeps what was advised before the first update."""

    softening: dict[str, float]

    def on_lyapunov_measurement(self, trainer: pl.Trainer, callback: Any) -> None:
        self.softening = dict(callback.history[0].softening)


def fit(pair: str, seed: int, as_made: Fit | None) -> Fit:
    """Train a network as it is made, or changed as that was advised."""
    task, cell, make = PAIRS[pair]
    factor_of = {} if as_made is None else as_made.softening
    first, scale, change = _First(), factor_of.get("reader", 1.0), ""
    before: list[pl.Callback] = [first]
    if scale < 1:
        change = f"recurrent weights scaled by {scale:.2g}"
    elif as_made is not None:
        change = f"LyapunovConditioning(lag={task.steps - 1})"
        before.append(LyapunovConditioning(lag=task.steps - 1))

    def made() -> Reader:
        model = Reader(task, cell)
        if make is not None:
            make(model)
        with torch.no_grad():
            model.reader.get_parameter("weight_hh_l0").mul_(scale)
        return model

    looks = train(made, *before, seed=seed)
    rows = [(look.updates, look.loss, look.accuracy, look.gain, look.verdict.word) for look in looks]
    return Fit(pair, seed, change, rows, first.softening)


def kept(path: Path) -> list[Fit]:
    """The fits that are done."""
    return [Fit(**json.loads(line)) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def missing(path: Path, seeds: int) -> Iterator[tuple[str, int, Fit | None]]:
    """What is to be trained, and the fit that its advice is taken from."""
    for pair, seed in [*((pair, 0) for pair in PAIRS), *((SHOWN, seed) for seed in range(1, seeds))]:
        for changed in (False, True):
            done = [one for one in kept(path) if (one.pair, one.seed) == (pair, seed)]
            if not any(bool(one.change) == changed for one in done):
                yield pair, seed, next((one for one in done if not one.change), None)


def table(fits: list[Fit]) -> str:
    """Two tables: the pairs, and the one that is shown by seeds."""
    lines = ["| task, network | change | gradient at first | loss after 200 | accuracy after 800 | verdicts |", rule(6)]
    for one in (one for one in fits if one.seed == 0):
        gradient, slow = factor(one.looks[0][3]), one.looks[1][1]
        cells = [one.pair, one.change or "none", gradient, f"{slow:.2f}", f"{one.looks[-1][2]:.0%}", signs(one)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| seed | as made: loss after 200 | accuracy after 800 | verdicts | as advised: accuracy | verdicts |",
    ]
    lines.append(rule(6))
    shown = [one for one in fits if one.pair == SHOWN]
    for made in (one for one in shown if not one.change):
        changed = next((one for one in shown if one.change and one.seed == made.seed), None)
        if changed is not None:
            cells = [str(made.seed), f"{made.looks[1][1]:.3f}", f"{made.looks[-1][2]:.0%}", signs(made)]
            cells += [f"{changed.looks[-1][2]:.0%}", signs(changed)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rule(columns: int) -> str:
    return "|" + "---|" * columns


def signs(one: Fit) -> str:
    """The verdicts of a fit, from before the first update on."""
    return " ".join(SIGNS[word] for *_, word in one.looks)


def main() -> None:
    """Train what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the pair that is shown; the others have one")
    parser.add_argument("--results", type=Path, default=KEPT, help="file of fits that are done")
    parser.add_argument("--table", action="store_true", help="print the tables")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        logging.getLogger("lightning_lyapunov").setLevel(logging.ERROR)  # the tables say it
        for pair, seed, as_made in missing(args.results, args.seeds):
            print(f"{pair}, seed {seed}, {'as made' if as_made is None else 'as advised'}")
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fit(pair, seed, as_made)._asdict()) + "\n")
    print(table(kept(args.results)))


if __name__ == "__main__":
    main()
