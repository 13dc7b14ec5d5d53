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

COPIES = 2
"""Of each sample: as many vectors are carried at once."""
STRETCH = 8
"""Blocks that are passed in one go, without scaling the vectors in between: what eight of them do to a vector is far
from what overflows."""
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
        stretches: Where the chain is cut into stretches of blocks that are passed in one go: it makes no difference but
            in time.

    Raises:
        ValueError: If a block changes the number of rows, returns no floating tensor, or cannot be differentiated; it
            is named.
    """

    def __init__(self, blocks: Sequence[Block], state: Tensor, copies: int = COPIES) -> None:
        self.blocks, self.copies = blocks, copies
        self.states = [state.detach()]
        self._through = 0
        self._linear: list[_Linear] = []
        self._is_kept = True
        before: Tensor | None = None
        for block in blocks:
            linear = _Linear(block, self.states[-1], copies, before)
            self.states.append(linear.state_after)
            self._is_kept = self._is_kept and copies * sum(state.numel() for state in self.states) <= KEPT
            self._linear = [*self._linear, linear] if self._is_kept else []
            before = linear.after if self._is_kept else None
        self.stretches = self._cut()

    def _cut(self) -> list[range]:
        """Stretches of blocks whose graphs hang together."""
        places = list(range(len(self.blocks)))
        if not self._is_kept or not all(linear.follows for linear in self._linear[1:]) or not self._link():
            return [range(t, t + 1) for t in places]
        return [range(t, min(t + STRETCH, len(places))) for t in places[::STRETCH]]

    def _link(self) -> bool:
        """Make the products with cotangents one graph, from the last block to the first: whether that can be done."""
        weight: Tensor | None = None
        for linear in reversed(self._linear):
            weight = linear.differentiate(weight)
            if weight is None or not weight.requires_grad:
                return False
        return True

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
        return self.carry(range(t, t + 1), tangents, back=False)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self.carry(range(t, t + 1), cotangents, back=True)

    def carry(self, stretch: range, vectors: Tensor, *, back: bool) -> Tensor:
        """Carry vectors ``(B, D, K)`` through one of the stretches, or one block: tangents, or cotangents back."""
        first = self._linear_at(stretch[0])
        last = first if len(stretch) == 1 else self._linear_at(stretch[-1])
        try:
            parts = [_carried(first, last, part, back=back) for part in vectors.split(first.copies, -1)]
        except _NotTwiceError:
            self.stretches = [range(t, t + 1) for t in range(len(self))]
            for t in stretch:
                vectors = self.push(t, vectors)
            return vectors
        self._through += vectors.shape[-1] * len(stretch)
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _linear_at(self, t: int) -> _Linear:
        return self._linear[t] if self._is_kept else _Linear(self.blocks[t], self.states[t], self.copies)


class _Linear:
    """One block, linearised at the states of B samples.

    Attributes:
        copies: Of each sample that it took.
        before: ``(B · copies, ...)`` the states before it, in the graph of :attr:`after`.
        after: Those after it.
        follows: Whether its graph hangs on that of the block before it.
    """

    def __init__(self, block: Block, state: Tensor, copies: int, before: Tensor | None = None) -> None:
        self._block, self._state = block, state
        self.back: Tensor | None = None
        self.weight: Tensor | None = None
        self._is_differentiated, self.can_push_back = False, True
        self.copies, self.follows = copies, False
        try:
            self._linearise(before)
        except Exception:
            if copies == 1:
                raise
            self.copies = 1  # it was made for so many rows, as one that holds a mask is
            self._linearise(None)
        self.state_after = self.after[:: self.copies].detach().clone()

    @property
    def name(self) -> str:
        return self._block.name

    def _linearise(self, before: Tensor | None) -> None:
        rows = len(self._state) * self.copies
        self.follows = before is not None and before.requires_grad and len(before) == rows
        if before is None or not self.follows:
            before = self._state.repeat_interleave(self.copies, 0).detach().requires_grad_()
        self.before = before
        with torch.enable_grad():
            self.after = self._block(before.clone(), self.copies)  # of a copy, as it may write to what it is given
        self._check(rows)
        self.reaches = self.after.requires_grad

    def _check(self, rows: int) -> None:
        after = self.after
        if not after.is_floating_point() or after.is_nested:
            raise ValueError(f"{self.name} must return a dense floating tensor; it returned {_kind(after)}.")
        if after.dim() == 0 or len(after) != rows:
            raise ValueError(
                f"{self.name} must return as many rows as it is given, one for each sample; of {rows} rows it made "
                f"{tuple(after.shape)}."
            )

    def differentiate(self, weight: Tensor | None = None) -> Tensor | None:
        """Make the product of the transposed Jacobian with a weight, as a graph; None if it is not to be had.

        Args:
            weight: ``(B · copies, ...)`` after the block; one of its own if None.

        Raises:
            ValueError: If the block cannot be differentiated.
        """
        self._is_differentiated = True
        if not self.reaches:
            return None
        if weight is None:
            weight = torch.zeros_like(self.after, requires_grad=True)
        with torch.enable_grad():
            try:
                (back,) = grad(self.after, self.before, weight, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise ValueError(f"{self.name} cannot be differentiated: {error}") from error
        self.weight, self.back, self.reaches = weight, back, back is not None
        self.can_push_back = back is not None and bool(back.requires_grad)
        return back

    def ready(self) -> _Linear:
        """Itself, differentiated."""
        if not self._is_differentiated:
            self.differentiate()
        return self

    def push_by_dual_numbers(self, rows: Tensor) -> Tensor:
        """Tangents ``(B · copies, ...)`` through the block, which is run once more.

        Raises:
            ValueError: If something in it has no forward derivative.
        """
        try:
            with torch.no_grad(), forward_ad.dual_level():
                dual = forward_ad.make_dual(self.before.detach().clone(), rows)
                moved = forward_ad.unpack_dual(self._block(dual, self.copies)).tangent
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"{self.name} can neither be differentiated twice nor by dual numbers: {error} (Checkpointing with "
                "use_reentrant=True is one reason: use_reentrant=False works. A torch.autograd.Function needs a jvp, "
                "or a backward that can be differentiated.)"
            ) from error
        return torch.zeros_like(self.after) if moved is None else moved


def _carried(first: _Linear, last: _Linear, vectors: Tensor, *, back: bool) -> Tensor:
    """Vectors ``(B, D, K)``, K at most the copies, from before the first block to after the last, or back."""
    start, end = (last.after, first.before) if back else (first.before, last.after)
    copies, (samples, _, k) = first.copies, vectors.shape
    size = end[0].numel()
    rows = vectors.mT
    if k < copies:
        rows = torch.cat([rows, rows.new_zeros(samples, copies - k, rows.shape[-1])], 1)
    rows = rows.reshape(start.shape).to(start.dtype)
    moved = _pulled(first, last, rows) if back else _pushed(first, last, rows)
    if moved is None:
        return vectors.new_zeros(samples, k, size).mT
    return moved.reshape(samples, copies, size)[:, :k].mT


def _pulled(first: _Linear, last: _Linear, rows: Tensor) -> Tensor | None:
    if not last.reaches:
        return None
    try:
        (moved,) = grad(last.after, first.before, rows, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(f"{last.name} cannot be differentiated: {error}") from error
    return moved


def _pushed(first: _Linear, last: _Linear, rows: Tensor) -> Tensor | None:
    if not first.ready().reaches:
        return None
    if first.can_push_back and first.back is not None and last.weight is not None:
        try:
            (moved,) = grad(first.back, last.weight, rows, retain_graph=True, allow_unused=True)
        except RuntimeError:  # something in it has no second derivative
            moved = None
        if moved is not None:
            return moved
    if first is not last:
        raise _NotTwiceError
    first.can_push_back = False
    return first.push_by_dual_numbers(rows)


class _NotTwiceError(Exception):
    """A stretch of blocks cannot be pushed through in one go."""


def _kind(tensor: Tensor) -> str:
    return "a nested tensor" if tensor.is_nested else f"one of {tensor.dtype}"
