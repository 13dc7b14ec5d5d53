"""Blocks and what a gradient does across depth, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.words import factor, listed

_ROWS = 4
"""Names, or rows of names, that are written out; of more only the first few are."""


def block_words(measurement: DepthMeasurement, blocks: Sequence[int]) -> str:
    """Blocks by number and name: ``block 7 of 12 (layers.6)``, ``blocks 9 to 12 of 12 (layers.8 to layers.11)``.

    Args:
        measurement: That they are of.
        blocks: Their places from 0 on, ascending; at least one.
    """
    rows = _rows(blocks)
    numbers = [_from_to(str(first + 1), str(last + 1), last - first) for first, last in rows]
    names = [_from_to(measurement.names[first], measurement.names[last], last - first) for first, last in rows]
    more = [f"{len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
    several = "s" * (len(blocks) > 1)
    numbered, named = (listed([*words[:_ROWS], *more]) for words in (numbers, names))
    return f"block{several} {numbered} of {measurement.depth} ({named})"


def _rows(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each row of neighbours; two are no row."""
    rows: list[tuple[int, int]] = []
    for block in blocks:
        if rows and rows[-1][1] == block - 1:
            rows[-1] = rows[-1][0], block
        else:
            rows.append((block, block))
    single = [[(first, last)] if last - first != 1 else [(first, first), (last, last)] for first, last in rows]
    return [row for one in single for row in one]


def _from_to(first: str, last: str, length: int) -> str:
    return f"{first} to {last}" if length else first


def across(measurement: DepthMeasurement) -> str:
    """What happens to a gradient from output to input, in a clause; empty where it is not known.

    As "from output to input one grows 160,000-fold (e^12.0 ± 0.4) at most and 8,100-fold in a typical direction".
    """
    value, error = measurement.total
    if math.isnan(value):
        return ""
    if value == -math.inf:
        return "from output to input one vanishes"
    usual, _ = measurement.gain
    most = f"{_changes(value)} ({exponential(value, error)}) at {'most' if value > 0 else 'best'}"
    if math.isnan(usual):
        return f"from output to input one {most}"
    alike = math.isfinite(usual) and (value > 0) == (usual > 0) and factor(usual) != "1.0-fold"
    then = f"{'to ' * (value < 0)}{factor(usual)}" if alike else _changes(usual)
    per_unit = " (per unit)" * (measurement.dimensions[0] != measurement.dimensions[-1])
    return f"from output to input one {most} and {then} in a typical direction{per_unit}"


def _changes(nats: float) -> str:
    """As ``grows 9.3-fold``, ``shrinks to 1/9.3`` or ``keeps its size``."""
    amount = factor(nats)
    if nats == -math.inf:
        return "vanishes"
    if amount == "1.0-fold":
        return "keeps its size"
    return f"grows {amount}" if nats > 0 else f"shrinks to {amount}"


def exponential(nats: float, error: float = math.nan) -> str:
    """A growth as a power of e, as ``e^12.0 ± 0.4``: the error is of the exponent.

    Example:
        >>> exponential(12.04, 0.41), exponential(-0.5)
        ('e^12.0 ± 0.4', 'e^-0.5')
    """
    digits = 2 if 0 < error < 0.05 else 1
    known = f" ± {error:.{digits}f}" if 0 < error < math.inf else ""
    return f"e^{nats:.{digits}f}{known}"


def chain_words(measurement: DepthMeasurement) -> str:
    """The chain by its ends and classes: ``12 blocks, layers.0 to layers.11 (Block)``."""
    names, depth = measurement.names, measurement.depth
    counts = Counter(measurement.kinds)
    kinds = ", ".join(f"{count} {kind}" if len(counts) > 1 else kind for kind, count in counts.most_common())
    of = f" ({kinds})" * bool(kinds)
    return f"{depth} blocks, {names[0]} to {names[-1]}{of}" if depth > 1 else f"1 block, {names[0]}{of}"


def share(nats: float) -> str:
    """What a block changes, a share from its logarithm to two digits: ``28 %``; ``nothing`` of −∞."""
    if nats == -math.inf:
        return "nothing"
    amount = 100 * math.exp(nats)
    return f"{amount:.2g} %" if 0.001 <= amount < 99.5 else f"{amount:,.0f} %" if amount >= 1 else "under 0.001 %"
