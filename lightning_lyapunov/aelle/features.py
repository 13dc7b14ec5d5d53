r"""A spectrum of any length as a fixed number of values, and what else is known of a network.

A sorted spectrum is read as a quantile function: :math:`q(p)` is the exponent below which a share 1 − p of the
directions lies, at :data:`LEVELS` fixed p from the top down, so that networks of any size compare. What a partial
spectrum cannot tell is NaN, here and in everything made of it; the models mask it.

Exponents span five orders of magnitude around a zero that matters, so they are seen through
:math:`\operatorname{sign}(\lambda) \ln(1 + |\lambda| / s)`, with a scale s of 0.05 nats per step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

LEVELS = 64
"""Values a spectrum is read at: the middles of so many equal shares of its directions."""
SCALE = 0.05
"""Nats per step. Exponents much closer to zero than this look alike."""
SMALLEST = 1e-6
"""Below which rates, norms and sizes of a state look alike."""
FLOOR = -100.0
"""Nats per step. Dead directions are seen as this."""
ARCHITECTURES = ("rnn", "rnn_relu", "gru", "lstm")
"""Kinds of cell that a general scorer knows; any other is unknown."""
CELL = (*ARCHITECTURES, "log_size")
"""Of the context: what the network is made of."""
RATE = ("log_rate", "adaptive")
"""Of the context: how it is trained."""
CHEAP = ("log_gradient", "log_state_mean", "log_state_spread")
"""Of the context: what costs nothing to see beside the spectrum."""
CONTEXT = (*CELL, "log_updates", "skill", *RATE, *CHEAP, "log_steps")
"""What is known of a network beside its spectrum; NaN where it is not."""
CLIPPED = -10.0
"""Nats per step: where exponents on their own scale end for the autoencoder; what forgets faster, forgets at once."""
HAND = (
    "max", "abs_max", "max_square", "mean", "q05", "q25", "q50", "q75", "q95", "range", "spread",
    "share_at_zero", "share_near_zero", "share_unstable", "share_slow", "share_fast", "share_dead",
    "kaplan_yorke", "entropy",
)  # fmt: skip
"""Features made by hand, for the ridge that the autoencoder must beat."""


_T = TypeVar("_T", bound="Tensors")


class Tensors:
    """A dataclass of tensors that can be saved under a name."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Its tensors as they are written."""
        return {f"{name}.{field.name}": getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def of(cls: type[_T], name: str, tensors: Mapping[str, Tensor]) -> _T:
        """The inverse of :meth:`tensors`."""
        return cls(**{field.name: tensors[f"{name}.{field.name}"] for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rows:
    """What a model sees of R networks, and nothing else."""

    spectrum: Tensor
    """(R, LEVELS + 1): the quantile function, squashed, and the squashed mean exponent; NaN where unknown."""
    context: Tensor
    """(R, len(CONTEXT)); NaN where unknown."""

    def __len__(self) -> int:
        return len(self.spectrum)

    def __getitem__(self, keep: Tensor) -> Rows:
        return Rows(self.spectrum[keep], self.context[keep])

    @staticmethod
    def unknown(count: int) -> Rows:
        """So many networks of which nothing is known."""
        return Rows(*(torch.full((count, size), math.nan, dtype=torch.float32) for size in (LEVELS + 1, len(CONTEXT))))

    @staticmethod
    def joined(several: Sequence[Rows]) -> Rows:
        """All rows of several, one after another."""
        return Rows(torch.cat([one.spectrum for one in several]), torch.cat([one.context for one in several]))


def squash(exponents: Tensor, scale: float = SCALE) -> Tensor:
    """The logarithmic scale that exponents are seen on; dead directions at the floor, NaN stays."""
    exponents = exponents.clamp(min=FLOOR / SCALE * scale)
    return exponents.sign() * (exponents.abs() / scale).log1p()


def quantiles(
    exponents: Tensor, dimension: int | None = None, mean: float | None = None, scale: float = SCALE
) -> Tensor:
    """A spectrum as ``(LEVELS + 1,)`` squashed values.

    Args:
        exponents: (K,) leading exponents of a state of ``dimension`` D, in any order; NaN are left out.
        dimension: D; K if None.
        mean: Mean of all D exponents where it is known though not all of them are; computed if K = D.
        scale: Where the logarithmic scale turns linear, in the unit of the exponents.

    Returns:
        NaN at levels that a partial spectrum does not reach, and for a mean that is not known.

    Raises:
        ValueError: If ``exponents`` is not ``(K,)`` with 1 <= K <= D, or holds no number.
    """
    dimension = len(exponents) if dimension is None else dimension
    if exponents.dim() != 1 or not 1 <= len(exponents) <= dimension:
        raise ValueError(
            f"exponents must have shape (K,), 1 <= K <= {dimension} (the dimension); got {tuple(exponents.shape)}."
        )
    exponents = exponents.detach().cpu().double()
    known = exponents[~exponents.isnan()].sort(descending=True).values
    if len(known) == 0:
        raise ValueError("exponents must hold a number; all of them are NaN.")
    squashed = squash(known, scale)
    # The i-th largest of D stands for the shares from i/D to (i + 1)/D: its place is the middle of them.
    wanted = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS * dimension - 0.5
    low = wanted.floor().clamp(0, len(known) - 1).long()
    high = (low + 1).clamp(max=len(known) - 1)
    values = torch.lerp(squashed[low], squashed[high], (wanted - low).clamp(0.0, 1.0))
    values[wanted > len(known) - 0.5] = math.nan
    if mean is None:
        whole = len(known) == dimension
        mean = float(known.clamp(min=FLOOR / SCALE * scale).mean()) if whole else math.nan
    return torch.cat([values, squash(torch.tensor([mean], dtype=torch.float64), scale)]).float()


@dataclass(frozen=True)
class Context:
    """What is known of one network beside its spectrum; None: not known."""

    architecture: str | None = None
    """Kind of cell, one of :data:`ARCHITECTURES`; any other name is an unknown kind."""
    hidden_size: int | None = None
    """Units H."""
    updates: int | None = None
    """Made so far."""
    skill: float | None = None
    """So far, in [0, 1]."""
    learning_rate: float | None = None
    """Of the optimiser, where it stays the same."""
    adaptive: bool | None = None
    """Whether the optimiser divides by a running size of the gradient, as Adam does, and SGD does not."""
    gradient_norm: float | None = None
    """Of the whole network, before clipping."""
    state_mean: float | None = None
    """Mean absolute value of the units over the states visited."""
    state_spread: float | None = None
    """Their standard deviation."""
    steps: int | None = None
    """Length of the sequences."""

    def told(self, entry: str) -> float | None:
        """The value that a number of :data:`CONTEXT` was made of, in its own unit."""
        return {
            "log_size": self.hidden_size,
            "log_updates": self.updates,
            "log_rate": self.learning_rate,
            "log_gradient": self.gradient_norm,
            "log_state_mean": self.state_mean,
            "log_state_spread": self.state_spread,
            "log_steps": self.steps,
        }[entry]

    def values(self) -> Tensor:
        """The same as models see it, ``(len(CONTEXT),)``; NaN for what is not known."""
        name = (self.architecture or "").lower()
        known = name in ARCHITECTURES
        kinds = [float(name == kind) if known else math.nan for kind in ARCHITECTURES]

        def log(value: float | None, unit: float) -> float:
            if value is None or not math.isfinite(value):
                return math.nan
            return math.log(max(value, SMALLEST) / unit)

        return torch.tensor(
            [
                *kinds,
                log(self.hidden_size, 32),
                math.nan if self.updates is None else math.log1p(self.updates / 10),
                math.nan if self.skill is None else self.skill,
                log(self.learning_rate, 3e-3),
                math.nan if self.adaptive is None else float(self.adaptive),
                log(self.gradient_norm, 1.0),
                log(self.state_mean, 1.0),
                log(self.state_spread, 1.0),
                log(self.steps, 32),
            ],
            dtype=torch.float32,
        )


def exponents_of(squashed: Tensor, scale: float = SCALE) -> Tensor:
    """The inverse of :func:`squash`."""
    return squashed.sign() * squashed.abs().expm1() * scale


def hand_features(spectrum: Tensor) -> Tensor:
    """:data:`HAND` of squashed quantile functions ``(R, LEVELS + 1)``: ``(R, len(HAND))``, NaN where unknown."""
    q, mean = spectrum[:, :-1], spectrum[:, -1]

    def level(p: float) -> Tensor:
        return q[:, int(p * LEVELS)]

    def share(belongs: Tensor, beyond: float) -> Tensor:
        """Share of the levels that belong; known if what was not measured lies below ``beyond``."""
        lowest = q.nan_to_num(math.inf).amin(1)
        known = ~q.isnan().any(1) | (lowest <= beyond)
        return torch.where(known, (belongs & ~q.isnan()).float().mean(1), math.nan)

    def at(multiple: float) -> float:
        return math.copysign(math.log1p(abs(multiple)), multiple)  # multiple of the scale, squashed

    raw = q.sign() * q.abs().expm1()  # in units of the scale
    total = raw.cumsum(1)
    whole = ~q.isnan().any(1)
    crossing = (total >= 0).float().sum(1) / LEVELS
    crossed = (total < 0).any(1)
    entropy = raw.clamp(min=0).nan_to_num().mean(1).log1p()
    return torch.stack(
        [
            q[:, 0],
            q[:, 0].abs(),
            q[:, 0].square(),
            mean,
            *(level(p) for p in (0.05, 0.25, 0.5, 0.75, 0.95)),
            q[:, 0] - level(0.95),
            torch.where(whole, q.nan_to_num().std(1), math.nan),
            share(q.abs() < at(1.0), at(-1.0)),
            share(q.abs() < at(4.0), at(-4.0)),
            share(q > 0, 0.0),
            share(q > at(-10.0), at(-10.0)),
            1 - share(q > at(-40.0), at(-40.0)),
            1 - share(q > at(FLOOR / SCALE) + 1e-3, at(FLOOR / SCALE)),
            torch.where(whole | crossed, crossing, math.nan),
            torch.where(whole | (q.nan_to_num(math.inf).amin(1) <= 0), entropy, math.nan),
        ],
        1,
    )  # fmt: skip
