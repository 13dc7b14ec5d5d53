r"""What a scorer has seen, from where to where, and what becomes of a network that lies beyond.

A fitted model says nothing of what lies beyond the values it was fitted on, only what its formula comes to there. So
each number is taken for the last one that was seen, and the distance d from there, in doublings, is told:

.. math:: \text{familiarity} = 2^{-d}\,\text{familiarity of the spectrum}, \qquad
          \text{interval} = 2^{-d}\,\text{interval} + (1 - 2^{-d})\,\text{widest interval}

One doubling of the updates, of the size, of an exponent, or a tenth of the way from chance to the best, halves both.
That the rule is about right is measured by ``python benchmarks/scorer_beyond.py``: scorers fitted on a part of the bank
are asked about the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, Rows, Tensors

SKILLS = (-1.7, 1.4)
"""From where to where the skills so far of the bank lie, which are clipped to [0, 1]: noise and bad beginnings below
chance, luck above the best."""
SKILL_UNIT = 0.1
"""Of the skill, what counts as a doubling."""
ROUNDING = 1e-5
"""By so much a value may lie beyond without being beyond: as much as other processors round otherwise."""
_SEEN = LEVELS + 1
_COLUMNS = _SEEN + len(CONTEXT)
_SIZE, _TIME, _SKILL = (_SEEN + CONTEXT.index(name) for name in ("log_size", "log_updates", "skill"))


@dataclass(frozen=True, eq=False)
class Ranges(Tensors):
    """The smallest and the largest value seen of each number that a row holds, those of its spectrum first."""

    low: Tensor
    """(LEVELS + 1 + len(CONTEXT),); -inf where nothing is known of a range, as in files of older versions."""
    high: Tensor
    """The same; inf."""

    @staticmethod
    def unknown() -> Ranges:
        """Without any end, but for the skill."""
        high = torch.full((_COLUMNS,), math.inf, dtype=torch.float32)
        low = -high
        low[_SKILL], high[_SKILL] = SKILLS
        return Ranges(low, high)

    @staticmethod
    def fit(rows: Rows) -> Ranges:
        """Those of rows; without end where no row has a value. Kinds of cell have none."""
        values, ends = torch.cat([rows.spectrum, rows.context], 1), Ranges.unknown()
        low, high = values.nan_to_num(math.inf).amin(0), values.nan_to_num(-math.inf).amax(0)
        given = low <= high
        given[_SEEN : _SEEN + len(ARCHITECTURES)] = given[_SKILL] = False
        return Ranges(torch.where(given, low, ends.low.to(low)), torch.where(given, high, ends.high.to(high)))

    @staticmethod
    def of_file(name: str, tensors: Mapping[str, Tensor]) -> Ranges:
        """Those of a file, from under a name; unknown in files of older versions."""
        return Ranges.of(name, tensors) if f"{name}.low" in tensors else Ranges.unknown()

    @staticmethod
    def shapes(name: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be."""
        return {f"{name}.{end}": (_COLUMNS,) for end in ("low", "high")} if f"{name}.low" in tensors else {}

    def joined(self, other: Ranges) -> Ranges:
        """Whatever one of the two has seen."""
        return Ranges(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def narrowed(self, *, sizes: Tensor, updates: Sequence[float] | None) -> Ranges:
        """The same between two logarithms of the size, and between the least and the most updates where they are known.

        Args:
            sizes: (2,) as a row holds them.
            updates: All that there were.
        """
        low, high = self.low.clone(), self.high.clone()
        low[_SIZE], high[_SIZE] = sizes
        if updates:
            low[_TIME], high[_TIME] = (math.log1p(end / 10) for end in (min(updates), max(updates)))
        return Ranges(low, high)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.low - ROUNDING, self.high + ROUNDING

    @cached_property
    def _limits(self) -> tuple[Tensor, Tensor]:
        """What values are clamped to: the ends, and a skill in [0, 1]."""
        least, most = (end.clone() for end in self._ends)
        least[_SKILL].clamp_(min=0.0)
        most[_SKILL].clamp_(max=1.0)
        return least, most

    def clamped(self, rows: Rows) -> Rows:
        """The rows with each number that lies beyond what was seen taken for the last one seen; the skill in [0, 1]."""
        least, most = self._limits
        return Rows(rows.spectrum.clamp(least[:_SEEN], most[:_SEEN]), rows.context.clamp(least[_SEEN:], most[_SEEN:]))

    def doublings(self, rows: Rows) -> Tensor:
        """(R, columns) how far each number lies beyond what was seen; 0 within, and where it is not known."""
        values = torch.cat([rows.spectrum, rows.context], 1)
        least, most = self._ends
        beyond = torch.maximum(least - values, values - most).clamp(min=0.0).nan_to_num(0.0) / math.log(2)
        beyond[:, _SKILL] *= math.log(2) / SKILL_UNIT
        return beyond

    def share(self, rows: Rows) -> Tensor:
        """(R,) in [0, 1]: one half for every doubling beyond; of a spectrum its farthest number counts."""
        beyond = self.doublings(rows)
        return torch.exp2(-(beyond[:, :_SEEN].amax(1) + beyond[:, _SEEN:].sum(1)))

    def in_words(
        self, row: Rows, told: Mapping[str, float | None], scale: float, skill: tuple[float, float]
    ) -> dict[str, float]:
        """What of one row lies beyond what was seen, in words, and the share that is left for it.

        Args:
            row: One row.
            told: Its ``"hidden size"``, ``"updates"`` and ``"performance"``, as they were told.
            scale: Where exponents are squashed.
            skill: Performances that count as skill 0 and 1.
        """
        beyond = self.doublings(row)[0]
        farthest = int(beyond[:_SEEN].argmax())
        place = f"exponent {(farthest + 0.5) / LEVELS:.0%} down the spectrum"
        exponent, *exponents = (_unsquashed(float(x[farthest]), scale) for x in (row.spectrum[0], self.low, self.high))
        sizes = [_whole(32 * math.exp(end[_SIZE])) for end in (self.low, self.high)]
        updates = [_whole(10 * math.expm1(end[_TIME])) for end in (self.low, self.high)]
        parts: dict[int, tuple[str, float | None, Sequence[float]]] = {
            farthest: ({0: "largest exponent", LEVELS: "mean exponent"}.get(farthest, place), exponent, exponents),
            _SIZE: ("hidden size", told["hidden size"], sizes),
            _TIME: ("updates", told["updates"], updates),
            _SKILL: ("performance", told["performance"], list(skill)),
        }
        return {
            f"{name}: {_number(value)} (known: {' to '.join(map(_number, ends))})": float(torch.exp2(-beyond[column]))
            for column, (name, value, ends) in parts.items()
            if beyond[column] > 0
        }


def _whole(value: float) -> float:
    return round(value) if math.isfinite(value) else value


def _number(value: float | None) -> str:
    """Whole numbers in full, others to three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _unsquashed(value: float, scale: float) -> float:
    return math.copysign(math.expm1(abs(value)) * scale, value) if math.isfinite(value) else value
