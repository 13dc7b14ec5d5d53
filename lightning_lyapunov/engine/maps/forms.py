"""The forms in which the Jacobians of a stretch are kept, each of them a kind of :class:`Steps`.

Small Jacobians are formed in full, so that a step is a single product and nothing else. Large ones stay in factors, and
never exist. Which of the two is the faster is for the map to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Steps

Factors: TypeAlias = tuple[Tensor, ...]
Act: TypeAlias = Callable[[Factors, Tensor], Tensor]

PIECE, HELD = 2**20, 2**24
"""Bytes of Jacobians formed at once, about what a processor's cache holds; and bytes kept at most."""


class FactoredSteps(Steps):
    """Jacobians as factors, which a map knows how to apply.

    Args:
        factors: Each ``(T, B, ...)``.
        push: One step's Jacobian times vectors ``(B, D, K)``; its factors lead with (B,).
        pull: The same, transposed.
    """

    def __init__(self, factors: Factors, push: Act, pull: Act) -> None:
        self._sequences = factors[0].shape[1]
        self._factors: Sequence[Factors] = list(zip(*[factor.unbind() for factor in factors], strict=True))
        self._push, self._pull = push, pull

    def __len__(self) -> int:
        return len(self._factors)

    def push(self, t: int, tangents: Tensor) -> Tensor:
        return self._push(self._at(t, len(tangents)), tangents)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self._pull(self._at(t, len(cotangents)), cotangents)

    def _at(self, t: int, rows: int) -> Factors:
        factors = self._factors[t]
        return factors if rows == self._sequences else tuple(factor[:rows] for factor in factors)


class Jacobians:
    """Jacobians ``(T, B, D, D)`` formed in pieces, each when one of its steps is first wanted.

    Args:
        form: Gives the Jacobians ``(S, B, D, D)`` of the steps from one on up to another.
        steps: T.
        step_bytes: What the Jacobians of one step take.
    """

    def __init__(self, form: Callable[[int, int], Tensor], steps: int, step_bytes: int) -> None:
        self._form, self._steps = form, steps
        self._length = max(1, min(steps, PIECE // step_bytes))
        self._most = max(1, HELD // (self._length * step_bytes))
        self._pieces: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._steps

    def piece(self, t: int) -> tuple[int, Tensor]:
        """The piece ``(S, B, D, D)`` that holds step t, and the first of its steps."""
        first = t - t % self._length
        if first not in self._pieces:
            if len(self._pieces) == self._most:
                del self._pieces[next(iter(self._pieces))]  # the oldest
            self._pieces[first] = self._form(first, min(first + self._length, self._steps))
        return first, self._pieces[first]

    def log_volume(self, start: int = 0, rows: int | None = None) -> Tensor:
        r""":math:`\ln|\det J_t|` ``(T - start, B)`` from step ``start`` on, of the first so many rows."""
        volumes = []
        while start < self._steps:
            first, piece = self.piece(start)
            volumes.append(torch.linalg.slogdet(piece[start - first :, :rows]).logabsdet)
            start = first + len(piece)
        return torch.cat(volumes)


class DenseSteps(Steps):
    """Jacobians in full: each step is one product.

    Args:
        jacobians: Formed as the steps are made, forwards or backwards.
        dtype: Floating type of the products.
    """

    def __init__(self, jacobians: Jacobians, dtype: torch.dtype) -> None:
        self._jacobians, self._dtype = jacobians, dtype
        self._first, self._matrices, self._sequences = 0, tuple[Tensor, ...](), 0

    def __len__(self) -> int:
        return len(self._jacobians)

    def push(self, t: int, tangents: Tensor) -> Tensor:
        return torch.bmm(self._at(t, tangents.shape[0]), tangents)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return torch.bmm(self._at(t, cotangents.shape[0]).mT, cotangents)

    def _at(self, t: int, rows: int) -> Tensor:
        """Jacobians ``(B, D, D)`` of step t."""
        place = t - self._first
        if not 0 <= place < len(self._matrices):
            self._first, piece = self._jacobians.piece(t)
            self._matrices, self._sequences = piece.to(self._dtype).unbind(), piece.shape[1]
            place = t - self._first
        matrices = self._matrices[place]
        return matrices if rows == self._sequences else matrices[:rows]
