"""What can be told of a measurement across depth, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_lyapunov.engine.depth import DepthSettings
from lightning_lyapunov.monitoring.options import CommonOptions
from lightning_lyapunov.names import Table
from lightning_lyapunov.names_depth import DEPTH

MOST, COLUMNS, PROBES = 8, 2, 2
"""Blocks of vectors that the iteration takes at most, vectors in each, and gradients that tell the gain of a block: a
measurement takes no more than a few training steps with these, and the spread between samples is larger than what they
leave open."""


@dataclass(frozen=True)
class DepthOptions(CommonOptions):
    """What to measure of a chain of blocks, and how much of it: plain values.

    The meaning of each is told by :class:`~lightning_lyapunov.DepthSpectrumCallback`.

    Raises:
        ValueError: For one that is out of range; the message names it.
    """

    k: int | None = 2
    tolerance: float | None = 0.05
    prefix: str = "depth"
    num_samples: int = 8

    table: ClassVar[Table] = DEPTH
    counts: ClassVar[tuple[str, ...]] = ("k", "num_samples")

    def __post_init__(self) -> None:
        for name in ("k", "tolerance"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be a number; got None.")
        super().__post_init__()
        if isinstance(self.module, Mapping):
            raise ValueError(
                f"module must be the name of a container, the names of blocks in order, or None; got {self.module!r}."
            )
        _ = self.settings  # which checks what is its own

    @property
    def blocks(self) -> str | Sequence[str] | None:
        """Where they are, by name; None where they are to be found."""
        assert not isinstance(self.module, Mapping)
        return self.module

    @property
    def settings(self) -> DepthSettings:
        """What the engine is told."""
        assert self.k is not None and self.tolerance is not None
        return DepthSettings(self.k, self.tolerance, MOST, COLUMNS, PROBES)
