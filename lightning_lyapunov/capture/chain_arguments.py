"""What a block is given beside its state, kept so that it can be called again for a few of the samples.

Tensors with a row for each sample are cut to the samples that are kept, also inside tuples and dicts; other tensors and
plain values stay as they are. Everything else is left out, above all caches: they grow with each call.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.chain_paths import sample_axis
from lightning_lyapunov.capture.flow import ModuleCall
from lightning_lyapunov.capture.structures import Other, Path, leaves_of, mapped
from lightning_lyapunov.capture.tokens import Token, dense, size_of, tensors_of

MOST_KEPT = 1 << 28
"""Bytes of what is kept while it is not yet known which modules are the chain."""
IGNORED = -1e4
"""What is added to a logit, or less, is taken to mean that a token is not looked at."""
_OF_OTHERS = re.compile(r"memory|encoder|cross|context")
"""In the names of masks of other tokens than the state's."""
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, EllipsisType, enum.Enum),
    *(torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, nn.Module, type),
)
_CACHING = re.compile(r"use_cache|(return|output)_(cache|past\w*)|cache_\w*enabled")


class _State:
    """Stands where the state goes."""


STATE = _State()


class Rowwise:
    """A tensor with a row for each sample; no dataclass, as these are looked into.

    Attributes:
        values: Of the samples kept.
        axis: Of the samples.
        share: Entries along it for each sample: more than one where heads of attention lie on the same axis.
        whole: All of it, where it may just as well be a table that happens to have as many rows as there are samples.
    """

    def __init__(self, values: Tensor, axis: int = 0, share: int = 1, whole: Tensor | None = None) -> None:
        self.values, self.axis, self.share, self.whole = values, axis, share, whole

    def of(self, index: Tensor) -> Rowwise:
        """Of some of the samples."""
        if self.share > 1:
            index = (index[:, None] * self.share + torch.arange(self.share, device=index.device)).flatten()
        values = self.values.index_select(self.axis, index.to(self.values.device))
        return Rowwise(values, self.axis, self.share, self.whole)

    def repeated(self, copies: int) -> Tensor:
        """With copies of each sample side by side."""
        if copies == 1:
            return self.values
        if self.share == 1:
            return self.values.repeat_interleave(copies, self.axis)
        parts = self.values.unflatten(self.axis, (-1, self.share))
        return parts.repeat_interleave(copies, self.axis).flatten(self.axis, self.axis + 1)


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call of a block.

    Attributes:
        args: By place, with :data:`STATE` where the state goes.
        kwargs: By name.
        dtype: Of the state in that call.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype

    def given(self, state: Tensor, copies: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for another state, of the same samples, with copies of each side by side."""

        def fill(_: Path, value: Any) -> Any:
            if value is STATE:
                return state
            if isinstance(value, Rowwise):
                value = value.repeated(copies)
            if isinstance(value, Tensor) and value.is_floating_point() and state.dtype != self.dtype:
                value = value.to(state.dtype)
            return None if isinstance(value, Other) else value

        args, kwargs = mapped((self.args, self.kwargs), fill)
        if any(isinstance(value, Other) for value in self.leaves().values()):
            kwargs |= {name: False for name, value in kwargs.items() if value is True and _CACHING.search(name)}
        return args, kwargs

    def leaves(self) -> dict[Path, Any]:
        """The values, by where they are."""
        return leaves_of((self.args, self.kwargs))

    @property
    def is_doubtful(self) -> bool:
        """Whether a tensor may as well be a table as have a row for each sample."""
        return any(isinstance(value, Rowwise) and value.whole is not None for value in self.leaves().values())

    def settled(self, *, as_tables: bool) -> Arguments:
        """Without doubt."""

        def settle(value: Any) -> Any:
            if isinstance(value, Rowwise) and value.whole is not None:
                return value.whole if as_tables else Rowwise(value.values, value.axis, value.share)
            return value

        return self._with(settle)

    def of(self, index: Tensor) -> Arguments:
        """Of some of the samples."""
        return self._with(lambda value: value.of(index) if isinstance(value, Rowwise) else value)

    def _with(self, function: Callable[[Any], Any]) -> Arguments:
        args, kwargs = mapped((self.args, self.kwargs), lambda _, value: function(value))
        return Arguments(args, kwargs, self.dtype)

    def joined(self, others: Sequence[Arguments]) -> Arguments | None:
        """With the samples of others behind its own; None where they differ in more than their samples."""
        leaves = [other.leaves() for other in others]
        if any(other.keys() != self.leaves().keys() for other in leaves):
            return None
        try:
            args, kwargs = mapped(
                (self.args, self.kwargs),
                lambda path, value: _joined(value, [other[path] for other in leaves]),
            )
        except _DiffersError:
            return None
        return Arguments(args, kwargs, self.dtype)


class _DiffersError(Exception):
    """Two calls were given something else beside their samples."""


def _joined(value: Any, others: Sequence[Any]) -> Any:
    if isinstance(value, Rowwise):
        rows = [value, *others]
        if len({(type(one), getattr(one, "axis", 0), getattr(one, "share", 0)) for one in rows}) > 1:
            raise _DiffersError
        shapes = {(*one.values.shape[: one.axis], *one.values.shape[one.axis + 1 :]) for one in rows}
        if len(shapes) > 1:
            raise _DiffersError
        return Rowwise(torch.cat([one.values for one in rows], value.axis), value.axis, value.share, value.whole)
    if isinstance(value, Tensor):
        same = all(isinstance(one, Tensor) and one.shape == value.shape and torch.equal(one, value) for one in others)
    else:
        same = all(one is value or one == value for one in others)
    if not same:
        raise _DiffersError
    return value


class Copies:
    """Copies of what flows by, each tensor once, for the first samples of a batch.

    Args:
        samples: How many to keep.
        rows: The axis of the samples in states of tokens.
        most: Bytes to keep at most; without a bound if None.

    Attributes:
        is_full: Whether there was more than that: then nothing is kept.
    """

    def __init__(self, samples: int, rows: int = 0, most: int | None = None) -> None:
        self._samples, self._rows, self._most = samples, rows, most
        self.begin_anew()

    def begin_anew(self) -> None:
        """Let go of all copies: what is told apart by now may be taken for something else in the next pass."""
        self._kept: dict[Any, Tensor] = {}
        self._held: list[Tensor] = []
        self._bytes = 0
        self.is_full = False

    def state(self, tensor: Tensor, token: Token) -> Tensor | None:
        """A state of the samples; None if there is no room."""
        shape = size_of(tensor)
        axis = sample_axis(shape, self._rows)
        count = min(self._samples, shape[axis])
        return self._once((token, axis), lambda: dense(tensor).narrow(axis, 0, count))

    def arguments(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """What a call was given; None if there is no room."""
        state_shape = call.shapes[0]
        tensors = tensors_of((args, kwargs))

        def take(path: Path, value: Any) -> Any:
            if path == call.where or (path in call.given and call.given[path] == call.before):
                return STATE
            if isinstance(value, nn.Parameter):
                return value
            if isinstance(value, Tensor):
                return self._tensor(value, call.given.get(path), state_shape)
            is_plain = isinstance(value, _PLAIN) or inspect.isroutine(value)
            return value if is_plain else Other(type(value).__name__)

        found = mapped((tuple(args), dict(kwargs)), take)
        if (state := tensors[call.where]).is_nested:
            assert call.before is not None
            count = min(self._samples, state_shape[0])
            behind = self._once((call.before, "padding"), lambda: _padding(state, state_shape[1])[:count])
            found[1]["src_key_padding_mask"] = None if behind is None else Rowwise(behind)
        return None if self.is_full else Arguments(found[0], found[1], tensors[call.where].dtype)

    def _tensor(self, tensor: Tensor, token: Token | None, state: torch.Size) -> Any:
        if token is None:
            # No floating tensor: told by its address, which it keeps as long as it is held.
            self._held.append(tensor)
            token = -id(tensor), None if tensor.is_inference() else tensor._version
        rows = sample_axis(state, self._rows)
        batch = state[rows]
        axis, share = _rows_of(tensor, state, rows)
        if axis is None:
            return self._once((token, "whole"), lambda: tensor)
        count = min(self._samples, batch) * share
        values = self._once((token, axis), lambda: tensor.narrow(axis, 0, count))
        is_doubtful = batch > 1 and batch in (*state[:rows], *state[rows + 1 :])
        whole = self._once((token, "whole"), lambda: tensor) if is_doubtful else None
        return None if values is None else Rowwise(values, axis, share, whole)

    def _once(self, key: Any, part: Callable[[], Tensor]) -> Tensor | None:
        if key not in self._kept and not self.is_full:
            self._kept[key] = copy = part().detach().clone()
            self._bytes += copy.numel() * copy.element_size()
            if self._most is not None and self._bytes > self._most:
                self.is_full = True
                self._kept.clear()
        return self._kept.get(key)


def _padding(nested: Tensor, tokens: int) -> Tensor:
    """Which tokens ``(B, T)`` a nested tensor ``(B, T, C)`` has not."""
    lengths = nested._nested_tensor_size()[:, :1]
    return (torch.arange(tokens) >= lengths).to(nested.device)


def _rows_of(tensor: Tensor, state: torch.Size, rows: int) -> tuple[int | None, int]:
    """The axis of the samples in a tensor beside a state, None if it has none, and its entries for each sample."""
    batch = state[rows]
    axes = (rows, 0) if tensor.dim() > 2 else (0, rows)
    for axis in axes:
        if tensor.dim() > axis and tensor.shape[axis] == batch:
            return axis, 1
    others = {*state[:rows], *state[rows + 1 :]}
    is_by_head = tensor.dim() == 3 and batch > 1 and tensor.shape[0] % batch == 0 and tensor.shape[1] in others
    return (0, tensor.shape[0] // batch) if is_by_head and tensor.shape[0] else (None, 1)


# ---------------------------------------------------------------------- tokens behind a mask


def tokens_alive(module: nn.Module, arguments: Arguments, state: Tensor, rows: int = 0) -> Tensor | None:
    """Which tokens ``(B, T)`` of a state a block looks at, by the masks that it is given; None if none tells.

    Args:
        module: The block.
        arguments: Of its call.
        state: Before it, ``(B, T, C)``, or ``(T, B, C)`` where the samples are on axis 1.
        rows: That axis.
    """
    if state.dim() != 3:
        return None
    size = (state.shape[rows], state.shape[1 - rows])
    for name, mask in _masks(module, arguments):
        alive = _attended(mask, is_padding="padding" in name, size=size)
        if alive is not None:
            return alive
    return None


def _masks(module: nn.Module, arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    """Masks with a row for each sample, by name, those of padding first."""
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        names = []
    found = {}
    for (kind, where, *_), value in arguments.leaves().items():
        name = where if kind == 1 else names[where] if where < len(names) else ""
        if isinstance(value, Rowwise) and value.axis == 0 and value.share == 1 and _is_mask(str(name)):
            found[str(name)] = value.values
    yield from sorted(found.items(), key=lambda item: "padding" not in item[0])


def _is_mask(name: str) -> bool:
    return "mask" in name and _OF_OTHERS.search(name) is None


def _attended(mask: Tensor, *, is_padding: bool, size: tuple[int, int]) -> Tensor | None:
    """What a mask of tokens means: ``(B, T)`` true where a token is looked at."""
    batch, tokens = size
    if mask.dtype == torch.bool:
        allowed = ~mask if is_padding else mask
    elif mask.is_floating_point():
        is_zero_one = not is_padding and bool(((mask == 0) | (mask == 1)).all()) and bool((mask == 1).any())
        allowed = mask == 1 if is_zero_one else mask > IGNORED
    else:
        allowed = mask == 0 if is_padding else mask != 0
    if allowed.shape == (batch, tokens):
        return allowed
    if allowed.dim() == 4 and allowed.shape[0] == batch and allowed.shape[-1] == tokens:
        allowed = allowed.any(1)
        if allowed.shape[1] in (1, tokens):
            return _looked_at(allowed)
    return None


def _looked_at(allowed: Tensor) -> Tensor:
    """Tokens (B, T) that some query looks at, of ``(B, Q, T)`` who may look at whom.

    A query of padding that may look at nothing is often let look at everything, so that no row of attention is empty:
    such rows do not count beside others, but for the last, which may be that of a whole causal mask.
    """
    is_whole = allowed.all(-1)
    is_whole[:, -1] = False
    counts = ~is_whole | is_whole[:, :-1].all(-1, keepdim=True) if allowed.shape[1] > 1 else torch.ones_like(is_whole)
    return (allowed & counts.unsqueeze(-1)).any(1)
