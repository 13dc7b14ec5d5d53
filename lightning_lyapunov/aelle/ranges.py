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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, Context, Rows, Tensors

SKILLS = (-1.7, 1.4)
"""From where to where the skills so far of the bank lie, which are clipped to [0, 1]: noise and bad beginnings below
chance, luck above the best."""
SKILL_UNIT = 0.1
"""Of the skill, what counts as a doubling."""
ROUNDING = 1e-5
"""By so much a value may lie beyond without being beyond: as much as other processors round otherwise."""
_SEEN = LEVELS + 1
_COLUMNS = _SEEN + len(CONTEXT)
_SKILL = _SEEN + CONTEXT.index("skill")
_KINDS = [_SEEN + CONTEXT.index(name) for name in (*ARCHITECTURES, "adaptive")]
"""What is a kind and no number, and has no range."""
_TITLES: dict[str, tuple[str, Callable[[float], float]]] = {
    "log_size": ("hidden size", lambda x: _whole(32 * math.exp(x))),
    "log_updates": ("updates", lambda x: _whole(10 * math.expm1(x))),
    "log_rate": ("learning rate", lambda x: 3e-3 * math.exp(x)),
    "log_gradient": ("gradient norm", math.exp),
    "log_state_mean": ("mean state", math.exp),
    "log_state_spread": ("spread of the state", math.exp),
    "log_steps": ("sequence length", lambda x: _whole(32 * math.exp(x))),
}
"""Of numbers of the context: what they are called, and their value in words."""


@dataclass(frozen=True, eq=False)
class Ranges(Tensors):
    """The smallest and the largest value seen of each number that a row holds, those of its spectrum first."""

    low: Tensor
    """(LEVELS + 1 + len(CONTEXT),); -inf where nothing is known of a range."""
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
        given[list(_KINDS)] = given[_SKILL] = False
        return Ranges(torch.where(given, low, ends.low.to(low)), torch.where(given, high, ends.high.to(high)))

    @staticmethod
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        """What the shapes of those of a file must be."""
        return {f"{name}.{end}": (_COLUMNS,) for end in ("low", "high")}

    def joined(self, other: Ranges) -> Ranges:
        """Whatever one of the two has seen."""
        return Ranges(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

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
        self, row: Rows, context: Context, performance: float | None, scale: float, skill: tuple[float, float]
    ) -> dict[str, float]:
        """What of one row lies beyond what was seen, in words, and the share that is left for it.

        Args:
            row: One row.
            context: What it was made of.
            performance: So far, as it was told.
            scale: Where exponents are squashed.
            skill: Performances that count as skill 0 and 1.
        """
        beyond = self.doublings(row)[0]
        farthest = int(beyond[:_SEEN].argmax())
        place = f"exponent {(farthest + 0.5) / LEVELS:.0%} down the spectrum"
        exponent, *exponents = (_unsquashed(float(x[farthest]), scale) for x in (row.spectrum[0], self.low, self.high))
        parts: dict[int, tuple[str, float | None, Sequence[float]]] = {
            farthest: ({0: "largest exponent", LEVELS: "mean exponent"}.get(farthest, place), exponent, exponents),
            _SKILL: ("performance", performance, list(skill)),
        }
        for entry, (title, value_of) in _TITLES.items():
            column = _SEEN + CONTEXT.index(entry)
            ends = [value_of(float(end[column])) for end in (self.low, self.high)]
            parts[column] = (title, context.told(entry), ends)
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
