r"""A chain of maps and its derivative: what everything else in the engine is written against.

A chain takes a state through steps, :math:`h_{t+1} = f_t(h_t)`, for many sequences side by side. Its derivative is used
in two directions: tangents go forward, :math:`J_t V`, cotangents go back, :math:`J_t^\top U`. Nothing but
:class:`Steps` knows how a Jacobian is stored, and nothing but :class:`Chain` knows where it comes from. The steps of a
recurrent layer are of one map and follow time; those of a deep network are its blocks, and the state may change its
width from one to the next.

Vectors are ``(B, D, K)``, K of them as columns for each of B sequences, and products are fastest where a column is
contiguous in memory: all K of a sequence then meet the weights in one product of matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Steps(ABC):
    """The Jacobians of consecutive steps of a chain, in a form that suits a number of vectors and a floating type.

    A step may act on the first rows only: sequences are sorted by length, and those that have ended come last.
    """

    @abstractmethod
    def __len__(self) -> int:
        """How many steps there are."""

    @abstractmethod
    def push(self, t: int, tangents: Tensor) -> Tensor:
        """Tangents ``(B, D, K)`` before step t as they are after it: :math:`J_t V`, ``(B, D', K)``."""

    @abstractmethod
    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        r"""Cotangents ``(B, D', K)`` after step t as they are before it: :math:`J_t^\top U`, ``(B, D, K)``."""


class Stretch(ABC):
    """A few consecutive steps of a chain, linearised at the states that were visited."""

    @abstractmethod
    def steps(self, k: int, dtype: torch.dtype) -> Steps:
        """The Jacobians, ready to act on k vectors in a floating type."""

    def log_volume(self, k: int) -> Tensor | None:
        r""":math:`\ln|\det J_t|` ``(T, B)``, if it costs little beside pushing k vectors; else None."""
        return None

    def log_volume_of_last(self, steps: int) -> Tensor | None:
        r""":math:`\ln|\det J|` () of the last so many steps of the first sequence; None if it cannot be had."""
        return None


class Chain(ABC):
    """A chain of maps along which B sequences are followed, a stretch at a time.

    Attributes:
        running: (T,) how many sequences, counted from the first row, still run at each step; never rises.
        order: (B,) the user's row of each row here; None if it is the same.
        is_pure: Whether following a stretch again gives the same states and Jacobians.
    """

    running: list[int]
    order: Tensor | None
    is_pure: bool

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Widest floating type in which the chain can be followed."""

    @property
    @abstractmethod
    def can_narrow(self) -> bool:
        """Whether its Jacobians are to be had in float32 as well."""

    @property
    @abstractmethod
    def size(self) -> int:
        """D, the dimension of the first state."""

    @property
    @abstractmethod
    def visible(self) -> int:
        """Leading entries of the last state that the next layer sees: h, not c."""

    @property
    @abstractmethod
    def state(self) -> Tensor:
        """``(B, D)`` the state that the chain was followed to."""

    @property
    @abstractmethod
    def time(self) -> int:
        """The step that the chain was followed to."""

    @abstractmethod
    def follow(self, stop: int) -> Stretch:
        """Follow the chain from where it is up to step ``stop``."""

    @abstractmethod
    def skip(self, stop: int) -> None:
        """Follow the chain without linearising it."""

    @abstractmethod
    def rewind(self, time: int, state: Tensor) -> None:
        """Go back to where the chain was at an earlier step, in the state ``(B, D)`` that it had there."""
