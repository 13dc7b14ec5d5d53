"""How much of what was seen was measured, and why no more."""

from __future__ import annotations

from lightning_lyapunov.engine.tally import FEWEST_STEPS


def extent(
    *,
    sequences: int,
    steps: int,
    counted: int | None = None,
    seen: int | None = None,
    length: int | None = None,
    num_sequences: int | None = None,
    num_steps: int | None = None,
    pieces: float | None = None,
    over_budget: bool = False,
) -> str:
    """How much less was measured than was seen, and why, in a clause; empty where nothing is to be said.

    Args:
        sequences: Measured.
        steps: Measured of the longest sequence, the transient among them.
        counted: Of these steps those after the transient, which count for the exponents; all of them if None.
        seen: Sequences in the batches that were recorded; None where not known.
        length: Steps of the longest sequence; None where not known.
        num_sequences: The most sequences that were to be measured; None for no limit.
        num_steps: The most steps of each.
        pieces: Mean steps of a sequence, where rows begin anew inside a batch; None where none does.
        over_budget: Whether the measurement was made smaller to stay within ``max_overhead``.

    Example:
        >>> extent(sequences=16, steps=64, seen=128, length=300, num_sequences=16, num_steps=64)
        '16 of 128 sequences (num_sequences=16) and the first 64 of 300 steps (num_steps=64)'
    """

    def why(name: str, limit: int | None, measured: int) -> str:
        if limit is not None and measured >= limit:
            return f" ({name}={limit})"
        return " (max_overhead allows no more)" if over_budget else ""

    told = []
    if seen is not None and sequences < seen:
        told.append(f"{sequences} of {seen} sequences{why('num_sequences', num_sequences, sequences)}")
    if pieces is not None:
        told.append(f"pieces of {pieces:.3g} steps on average (rows begin anew inside a batch)")
    if length is not None and steps < length:
        told.append(f"the first {steps} of {length} steps{why('num_steps', num_steps, steps)}")
    if (count := steps if counted is None else counted) < FEWEST_STEPS:
        after = " after the transient" * (count < steps)
        told.append(f"no more than {count} step{'s' * (count != 1)}{after}, too few for a rate in the long run")
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
