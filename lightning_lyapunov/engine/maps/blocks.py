r"""The blocks of a deep network as steps of a chain: any callables, whose states may change their width.

A block is linearised once, at the states that reached it: its output and, by differentiating that once more, its
product with cotangents are graphs of automatic differentiation. A pull walks the first back, :math:`J^\top U`; a push
walks the second back, :math:`J V`, since :math:`J^\top u` is linear in u. Neither runs the block again, so a pass costs
about one backward pass through it, whatever Python the block is made of. Where a block cannot be differentiated twice,
it is pushed through by dual numbers instead.

Several vectors are carried at once by copies of each sample, side by side as rows of one batch: a block acts on each
row alone, and small networks are as fast on four times the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

from lightning_lyapunov.engine.chain import Steps

COPIES = 4
"""Of each sample: as many vectors are carried at once."""
KEPT = 1 << 24
"""Numbers in all states, with their copies, up to which all blocks stay linearised; beyond, one at a time does."""


class Block(Protocol):
    """One link of a chain: it takes the states of samples to those after it, each row alone."""

    @property
    def name(self) -> str:
        """What it is called in messages and pictures."""

    def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
        """The states ``(B · copies, ...)`` after it.

        Args:
            state: ``(B · copies, ...)``; rows ``copies · i`` to ``copies · (i + 1) - 1`` are of sample i, which
                whatever else the block is given for that sample goes with.
            copies: Of each sample.
        """


class Function:
    """A callable ``f(state) -> state`` as a block.

    Args:
        function: Takes ``(R, ...)`` to ``(R, ...)`` of any width, whatever R is, each row alone.
        name: What it is called.
    """

    def __init__(self, function: object, name: str) -> None:
        if not callable(function):
            raise ValueError(f"blocks must be callables that take a state to the next; got {function!r} for {name}.")
        self._function, self._name = function, name

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, state: Tensor, copies: int = 1) -> Tensor:
        after = self._function(state)
        after = after[0] if isinstance(after, tuple) else after
        if not isinstance(after, Tensor):
            raise ValueError(f"{self._name} must return a tensor; it returned {type(after).__name__}.")
        return after


class BlockSteps(Steps):
    """The Jacobians of the blocks of a chain at the states of B samples.

    Args:
        blocks: The links, at least one.
        state: ``(B, ...)`` before the first.
        copies: Of each sample, which are carried at once.

    Attributes:
        states: Those before the first block and after each, ``(B, ...)`` each.
        passes: Vectors that were carried through the whole chain, or as many blocks, for each sample.

    Raises:
        ValueError: If a block changes the number of rows, returns no floating tensor, or cannot be differentiated; it
            is named.
    """

    def __init__(self, blocks: Sequence[Block], state: Tensor, copies: int = COPIES) -> None:
        self.blocks, self.copies = blocks, copies
        self.states = [state.detach()]
        self._through = 0
        self._linear: list[_Linear | None] = []
        for block in blocks:
            linear = _Linear(block, self.states[-1], copies)
            self.states.append(linear.after)
            self._linear.append(linear)
            if self._numbers > KEPT:
                self._linear = [None] * len(self._linear)

    @property
    def _numbers(self) -> int:
        return self.copies * sum(state.numel() for state in self.states)

    @property
    def passes(self) -> float:
        """Vectors carried for each sample, in units of the whole chain."""
        return self._through / len(self.blocks)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """(D + 1,) widths of the states."""
        return tuple(state[0].numel() for state in self.states)

    def __len__(self) -> int:
        return len(self.blocks)

    def push(self, t: int, tangents: Tensor) -> Tensor:
        return self._carried(t, tangents, back=False)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self._carried(t, cotangents, back=True)

    def _carried(self, t: int, vectors: Tensor, *, back: bool) -> Tensor:
        linear = self._linear[t]
        if linear is None:
            linear = _Linear(self.blocks[t], self.states[t], self.copies)
        self._through += vectors.shape[-1]
        parts = [linear.carry(part, back=back) for part in vectors.split(linear.copies, -1)]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class _Linear:
    """One block, linearised at the states of B samples."""

    def __init__(self, block: Block, state: Tensor, copies: int) -> None:
        self._block, self._state, self._can_push_back = block, state, True
        try:
            self.copies = copies
            self._linearise()
        except Exception:
            if copies == 1:
                raise
            self.copies = 1  # it was made for so many rows, as one that holds a mask is
            self._linearise()
        self.after = self._after[:: self.copies].detach().clone()

    @property
    def name(self) -> str:
        return self._block.name

    def _linearise(self) -> None:
        rows = self._state.repeat_interleave(self.copies, 0) if self.copies > 1 else self._state
        with torch.enable_grad():
            self._before = rows.detach().requires_grad_()
            # Of a copy, as a block may write to what it is given.
            self._after = self._block(self._before.clone(), self.copies)
        self._check()
        self._reaches = self._after.requires_grad
        if self._reaches:
            self._differentiate()

    def _check(self) -> None:
        after, rows = self._after, len(self._before)
        if not after.is_floating_point() or after.is_nested:
            raise ValueError(f"{self.name} must return a dense floating tensor; it returned {_kind(after)}.")
        if after.dim() == 0 or len(after) != rows:
            raise ValueError(
                f"{self.name} must return as many rows as it is given, one for each sample; of {rows} rows it made "
                f"{tuple(after.shape)}."
            )

    def _differentiate(self) -> None:
        with torch.enable_grad():
            self._weight = torch.zeros_like(self._after, requires_grad=True)
            try:
                (back,) = grad(self._after, self._before, self._weight, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise ValueError(f"{self.name} cannot be differentiated: {error}") from error
        self._back = back
        self._reaches = back is not None
        self._can_push_back = back is not None and back.requires_grad

    def carry(self, vectors: Tensor, *, back: bool) -> Tensor:
        """Vectors ``(B, D, K)``, K at most :attr:`copies`, through the block: tangents, or cotangents back."""
        start, end = (self._after, self._before) if back else (self._before, self._after)
        samples, _, k = vectors.shape
        size = end[0].numel()
        if not self._reaches:
            return vectors.new_zeros(samples, k, size).mT
        rows = vectors.mT
        if k < self.copies:
            rows = torch.cat([rows, rows.new_zeros(samples, self.copies - k, rows.shape[-1])], 1)
        rows = rows.reshape(start.shape).to(start.dtype)
        moved = self._pull(rows) if back else self._push(rows)
        return moved.reshape(samples, self.copies, size)[:, :k].mT

    def _pull(self, rows: Tensor) -> Tensor:
        (moved,) = grad(self._after, self._before, rows, retain_graph=True)
        return moved

    def _push(self, rows: Tensor) -> Tensor:
        if self._can_push_back:
            try:
                (moved,) = grad(self._back, self._weight, rows, retain_graph=True, allow_unused=True)
            except RuntimeError:  # something in it has no second derivative
                moved = None
            if moved is not None:
                return moved
            self._can_push_back = False
        return self._push_by_dual_numbers(rows)

    def _push_by_dual_numbers(self, rows: Tensor) -> Tensor:
        try:
            with torch.no_grad(), forward_ad.dual_level():
                dual = forward_ad.make_dual(self._before.detach().clone(), rows)
                moved = forward_ad.unpack_dual(self._block(dual, self.copies)).tangent
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"{self.name} can neither be differentiated twice nor by dual numbers: {error} (Checkpointing with "
                "use_reentrant=True is one reason: use_reentrant=False works. A torch.autograd.Function needs a jvp, "
                "or a backward that can be differentiated.)"
            ) from error
        return torch.zeros_like(self._after) if moved is None else moved


def _kind(tensor: Tensor) -> str:
    return "a nested tensor" if tensor.is_nested else f"one of {tensor.dtype}"
