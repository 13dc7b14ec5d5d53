r"""A recurrent network as a one-step map :math:`h_{t+1} = f(h_t, x_t)` on one flat state, and its derivative.

The state is the *whole* state: :math:`(h, c)` for an LSTM. A derivative is used in two halves.
:meth:`Recurrence.linearise` computes, for many steps at once, the factors that the Jacobians
:math:`J_t = \partial f / \partial h` are made of; :meth:`Recurrence.steps` makes of them what acts on vectors, in one
of three forms:

plain
    The factors are applied one after another, and no Jacobian is formed.
condensed
    The weights of several gates are scaled and added up first: cheaper where the vectors are many.
dense
    All Jacobians are formed at once: cheaper where they are small, since a step is then one product.

Vectors are ``(B, D, K)``, as columns, and fastest where a column is contiguous in memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_lyapunov.engine.chain import Steps, Stretch
from lightning_lyapunov.engine.maps.forms import DenseSteps, FactoredSteps, Factors, Jacobians

SMALL = 32
"""Dimension of the state up to which a volume without closed form comes from the dense Jacobian."""


class Recurrence(ABC):
    r"""A one-step map on a flat state, one row per sequence.

    Attributes:
        state_size: D, the dimension of the whole state.
        output_size: Leading entries of the state that the next layer sees (h, not c).
        dtype: Floating type of the arithmetic.
        is_pure: Whether a step depends on state and drive alone, however many sequences there are and whenever it is
            made: not known of a user's function.
        crossover: Vectors above which the condensed form is the faster; infinite where there is none.
        dense_limit: B·D² up to which the dense form is the faster.
    """

    state_size: int
    output_size: int
    dtype: torch.dtype
    is_pure: bool = False
    crossover: float = math.inf
    dense_limit: int = 0
    _dense: tuple[Factors, Jacobians] | None = None

    def drive(self, inputs: Tensor) -> Tensor:
        """The part of a step that depends on the inputs ``(T, B, ...)`` alone, for all steps in one product."""
        return inputs

    @abstractmethod
    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """The state ``(B, D)`` one step later, driven by ``drive`` ``(B, ...)``; it can be differentiated."""

    @abstractmethod
    def run(self, inputs: Tensor, drive: Tensor, state: Tensor) -> Tensor:
        """States ``(T + 1, B, D)`` from ``state`` ``(B, D)`` on, along ``inputs`` and their :meth:`drive`."""

    @abstractmethod
    def linearise(self, states: Tensor, drive: Tensor, by_input: bool = False) -> Factors:
        """Factors ``(T, B, ...)`` of the Jacobians at ``states`` ``(T, B, D)`` under ``drive`` ``(T, B, ...)``.

        Args:
            states: Before each step.
            drive: Of each step.
            by_input: Whether :meth:`push_driven` and :meth:`pull_driven` are to act by them as well.
        """

    def follow(self, inputs: Tensor, state: Tensor, by_input: bool = False) -> tuple[Tensor, Factors]:
        """States ``(T + 1, B, D)`` along ``inputs`` ``(T, B, ...)``, and the factors ``(T, B, ...)`` at the first T."""
        drive = self.drive(inputs)
        states = self.run(inputs, drive, state)
        return states, self.linearise(states[:-1], drive, by_input)

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Recurrence:
        """The same map in another floating type (itself where it cannot be cast)."""

    # ------------------------------------------------------------------ one step's Jacobian

    @abstractmethod
    def push_forward(self, factors: Factors, tangents: Tensor) -> Tensor:
        """One step's Jacobians times ``tangents`` ``(B, D, K)``; ``factors`` lead with (B,)."""

    @abstractmethod
    def pull_back(self, factors: Factors, cotangents: Tensor) -> Tensor:
        """One step's Jacobians, transposed, times ``cotangents`` ``(B, D, K)``; ``factors`` lead with (B,)."""

    def condense(self, factors: Factors) -> Factors:
        """What the condensed form needs of ``factors`` ``(T, B, ...)``."""
        raise NotImplementedError

    def push_condensed(self, factors: Factors, tangents: Tensor) -> Tensor:
        """The same as :meth:`push_forward`, by condensed ``factors``."""
        raise NotImplementedError

    def pull_condensed(self, factors: Factors, cotangents: Tensor) -> Tensor:
        """The same as :meth:`pull_back`, by condensed ``factors``."""
        raise NotImplementedError

    def push_driven(self, factors: Factors, t: int, tangents: Tensor, input_tangents: Tensor) -> Tensor:
        r""":math:`J_t V + (\partial f / \partial x_t) X`, ``(B, D, K)``.

        Args:
            factors: ``(T, B, ...)``, linearised ``by_input``, in the type of this map.
            t: Which of the steps.
            tangents: V ``(B, D, K)``.
            input_tangents: X ``(B, I, K)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no derivative by its input.")

    def pull_driven(self, factors: Factors, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`J_t^\top U` ``(B, D, K)`` and :math:`(\partial f / \partial x_t)^\top U` ``(B, I, K)``."""
        raise NotImplementedError(f"{type(self).__name__} has no derivative by its input.")

    # ------------------------------------------------------------------ many steps' Jacobians

    @abstractmethod
    def jacobians(self, factors: Factors) -> Tensor:
        """The Jacobians ``(T, B, D, D)`` in full."""

    def dense(self, factors: Factors) -> Jacobians:
        """The Jacobians in full, formed as they are wanted; those of the last factors asked for are kept."""
        if self._dense is None or not self._has_dense(factors):
            steps, sequences = factors[0].shape[:2]
            step_bytes = sequences * self.state_size**2 * self.dtype.itemsize
            formed = Jacobians(
                lambda first, stop: self.jacobians(tuple(factor[first:stop] for factor in factors)), steps, step_bytes
            )
            self._dense = factors, formed
        return self._dense[1]

    def _has_dense(self, factors: Factors) -> bool:
        return self._dense is not None and self._dense[0] is factors

    def prefers_dense(self, factors: Factors, k: int) -> bool:
        """Whether k vectors are pushed along ``factors`` ``(T, B, ...)`` faster by dense Jacobians."""
        return factors[0].shape[1] * self.state_size**2 <= self.dense_limit

    def steps(self, factors: Factors, k: int, dtype: torch.dtype) -> Steps:
        """The Jacobians of ``factors`` ``(T, B, ...)`` in the form that is the best for k vectors in ``dtype``."""
        cast = self.to(dtype)
        narrow = factors if cast is self else tuple(f.to(dtype) if f.is_floating_point() else f for f in factors)
        if self.prefers_dense(factors, k):
            return DenseSteps(self.dense(factors) if self._volume_is_cheap(k) else cast.dense(narrow), dtype)
        if k > cast.crossover:
            return FactoredSteps(cast.condense(narrow), cast.push_condensed, cast.pull_condensed)
        return FactoredSteps(narrow, cast.push_forward, cast.pull_back)

    def log_volume(self, factors: Factors, k: int) -> Tensor | None:
        r""":math:`\ln|\det J_t|` ``(T, B)``, if it costs little beside pushing k vectors; else None."""
        return self.dense(factors).log_volume() if self._volume_is_cheap(k) else None

    def _volume_is_cheap(self, k: int) -> bool:
        """Whether LU of dense Jacobians costs little beside pushing k vectors: they are then shared."""
        return self.state_size <= min(2 * k, SMALL)

    def log_volume_of_last(self, factors: Factors, steps: int) -> Tensor:
        r""":math:`\ln|\det J|` () of the last so many steps of the first sequence, by LU of the dense Jacobians."""
        return self.dense(tuple(factor[-steps:, :1] for factor in factors)).log_volume().sum()


class LinearStretch(Stretch):
    """A few steps of one map, linearised.

    Args:
        recurrence: The map.
        factors: Its Jacobians along the stretch, each ``(T, B, ...)``.
    """

    def __init__(self, recurrence: Recurrence, factors: Factors) -> None:
        self.recurrence, self.factors = recurrence, factors

    def steps(self, k: int, dtype: torch.dtype) -> Steps:
        return self.recurrence.steps(self.factors, k, dtype)

    def log_volume(self, k: int) -> Tensor | None:
        return self.recurrence.log_volume(self.factors, k)

    def log_volume_of_last(self, steps: int) -> Tensor:
        return self.recurrence.log_volume_of_last(self.factors, steps)
