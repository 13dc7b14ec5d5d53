"""How much of what was seen was measured: each clause is worked by hand."""

from typing import Any

import pytest
import torch

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.reading.extent import extent

WHOLE: dict[str, Any] = {"sequences": 16, "steps": 64}


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({}, ""),
        ({"seen": 16, "length": 64, "num_sequences": 16, "num_steps": 64}, ""),
        ({"seen": 128, "num_sequences": 16}, "16 of 128 sequences (num_sequences=16)"),
        ({"seen": 128, "num_sequences": 32, "over_budget": True}, "16 of 128 sequences (max_overhead allows no more)"),
        ({"seen": 20, "num_sequences": 16, "over_budget": True}, "16 of 20 sequences (num_sequences=16)"),
        ({"seen": 20, "num_sequences": 32}, "16 of 20 sequences"),
        ({"length": 300, "num_steps": 64}, "the first 64 of 300 steps (num_steps=64)"),
        (
            {"length": 300, "num_steps": 100, "over_budget": True},
            "the first 64 of 300 steps (max_overhead allows no more)",
        ),
        ({"length": 300}, "the first 64 of 300 steps"),
        ({"pieces": 12.34}, "pieces of 12.3 steps on average (rows begin anew inside a batch)"),
        ({"counted": 32}, ""),
        ({"counted": 8}, ""),
        ({"counted": 7}, "no more than 7 steps after the transient, too few for a rate in the long run"),
        ({"counted": 1}, "no more than 1 step after the transient, too few for a rate in the long run"),
        ({"steps": 3}, "no more than 3 steps, too few for a rate in the long run"),
        (
            {"seen": 99, "num_sequences": 16, "length": 65, "num_steps": 64, "pieces": 20},
            "16 of 99 sequences (num_sequences=16), pieces of 20 steps on average (rows begin anew inside a batch) and "
            "the first 64 of 65 steps (num_steps=64)",
        ),
        (
            {"seen": 17, "steps": 2, "length": 2},
            "16 of 17 sequences and no more than 2 steps, too few for a rate in the long run",
        ),
    ],
)
def test_what_is_less_than_was_seen_is_told_with_its_reason(known: dict[str, Any], told: str) -> None:
    assert extent(**WHOLE | known) == told


def test_too_few_is_where_nothing_can_settle() -> None:
    """Oracle: a map that shrinks by a half at every step, measured over just so many after a long transient."""
    for count in (7, 8):
        state = torch.ones(4, 2, dtype=torch.float64)
        spectrum = lyapunov_spectrum(lambda _, h: h / 2, torch.zeros(32 + count, 4, 1), state=state, transient=32)
        told = extent(sequences=4, steps=32 + count, counted=spectrum.steps)
        assert bool(spectrum.settled.all()) == (told == "") == (count == 8)
