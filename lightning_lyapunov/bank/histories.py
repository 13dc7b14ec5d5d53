"""The bank's networks as runs: what a callback would have recorded of each, had it measured at the checkpoints.

Whatever reads a run, findings, conditions and the stopper, can so be tried on runs whose end is known. Where an older
bank lacks something, it is unknown here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.bank.probes import MEASURED, SEQUENCES
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import TASKS
from lightning_lyapunov.engine.statistics import student
from lightning_lyapunov.engine.tally import BIAS
from lightning_lyapunov.reading.history import Measurement

EPOCH = 40
"""Updates of an epoch."""
K = 32
"""Leading exponents that a callback measures unless it is told otherwise."""
SETTLING = 64
"""Steps at most that do not count for an exponent, if so many are half of them."""
Scores = Mapping[str, Tensor]
"""What a scorer said of each network at each checkpoint ``(N, C)``, by name as ``failure_probability``; NaN where it
said nothing. It must not have seen the family of the network."""
STEPS = {name: task.steps for name, task in TASKS.items()}
"""Of the sequences of each task."""


def runs(bank: Bank, scores: Scores | None = None, *, knows_skill: bool = True) -> Iterator[list[Measurement]]:
    """The measurements of each network, oldest first, as far as it could be measured.

    Args:
        bank: N networks at C checkpoints.
        scores: What a scorer said of them.
        knows_skill: Whether the callback was told how to read the skill so far off the validation metric.
    """
    steps = [STEPS[task] for task in bank.column("task")]
    so_far = torch.stack([bank.skill(bank.metric("metric", updates)) for updates in bank.checkpoints], 1)
    for n, made in enumerate(bank.networks):
        run = []
        for c, updates in enumerate(bank.checkpoints):
            if updates > int(bank.end[n]) or bank.leading[n, c].isnan().all():
                continue
            skill = float(so_far[n, c]) if knows_skill and updates else math.nan  # no metric before the first update
            said = {name: float(values[n, c]) for name, values in (scores or {}).items()}
            run.append(_measurement(bank, (n, c), updates, steps[n], made, skill, said))
        yield run


def _measurement(
    bank: Bank,
    at: tuple[int, int],
    updates: int,
    steps: int,
    made: Mapping[str, Any],
    skill: float,
    said: dict[str, float],
) -> Measurement:
    """One network at one checkpoint."""
    exponents = leading_exponents(bank.quantiles[at], bank.leading[at], int(made["dimension"]))
    known = dict(zip(MEASURED, bank.measured[at].tolist(), strict=True))
    error = torch.full_like(exponents, known["median_error"])
    error[0] = known["max_error"]
    bias = BIAS / (steps - min(steps // 2, SETTLING))
    settled = None if math.isnan(known["max_settled"]) else torch.full(exponents.shape, known["max_settled"] > 0.5)
    scores = {f"aelle/{name}": value for name, value in said.items() if not math.isnan(value)}
    growth = _one_or_none(known["gradient_growth"])
    return Measurement(
        step=updates,
        epoch=max(math.ceil(updates / EPOCH) - 1, 0),
        exponents=exponents,
        metrics={"trusted_fraction": known["trusted_fraction"], **scores},
        stderr=(error.square() - bias**2).clamp(min=0.0).sqrt() / student(SEQUENCES - 1),
        error=error,
        settled=settled,
        dimension=int(made["dimension"]),
        length=steps,
        source="validation",
        growth=growth,
        growth_error=None if growth is None else _one_or_none(known["gradient_growth_error"]),
        gain=known["gradient_gain"],
        gain_error=known["gradient_gain_error"],
        growth_steps=math.nan if growth is None else float(steps),
        growth_whole=growth is not None,
        layers=_layers(bank.layers[at].tolist(), known) if int(made.get("layers", 1)) > 1 else {},
        reached=None if math.isnan(skill) else skill,
        skill=skill,
        cell=str(made["cell"]),
    )


def _layers(kept: list[list[float]], known: Mapping[str, float]) -> dict[str, list[float]]:
    """Each layer of a stack as a measurement keeps it; the errors are those of the whole, as the bank has no others.

    Args:
        kept: Largest exponent and gain of each.
        known: Of the whole.
    """
    error, settled, gain_error = (known[name] for name in ("max_error", "max_settled", "gradient_gain_error"))
    return {
        f"l{number}": [exponent, error, settled, gain, gain_error, math.nan]
        for number, (exponent, gain) in enumerate(kept)
        if not math.isnan(exponent)
    }


def leading_exponents(quantiles: Tensor, leading: Tensor, dimension: int, count: int = K) -> Tensor:
    """The largest exponents (count,) of a state, from what the bank keeps.

    Args:
        quantiles: (L,) nats per step, at the middles of so many equal shares of the directions, from the top down.
        leading: The first ones as they were measured; NaN beyond the dimension.
        dimension: D of the state.
        count: How many, if there are so many.
    """
    levels = len(quantiles)
    place = (torch.arange(min(count, dimension), dtype=torch.float64) + 0.5) / dimension * levels - 0.5
    low = place.floor().clamp(0, levels - 1).long()
    high = (low + 1).clamp(max=levels - 1)
    share = (place - low).clamp(0.0, 1.0)
    values = torch.where(share > 0, quantiles[low] + share * (quantiles[high] - quantiles[low]), quantiles[low]).float()
    values = torch.where(quantiles[low].isneginf(), -math.inf, values)  # of a dead one and the next, also dead
    known = min(len(leading), len(values))
    values[:known] = leading[:known]
    return values


def _one_or_none(value: float) -> Tensor | None:
    return None if math.isnan(value) else torch.tensor([value])
