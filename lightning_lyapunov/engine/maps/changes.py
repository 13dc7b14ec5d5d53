"""Whether a user's cell changes as it runs: what it keeps of its own, before a step and after it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

LOOKED_AT = 4096
"""Objects that a cell holds which are looked at for a change."""
_CLOSED = {"torch", "lightning", "pytorch_lightning", "_io"}
"""Packages whose objects are not looked into, modules and what they hold excepted: no cell changes by them."""


def kept(cell: object, device: torch.device) -> list[Any]:
    """What a cell could change by a step: random states, and what its attributes, closure and globals lead to.

    Tensors come with their version, which rises as they are written to.
    """
    found: list[Any] = [(torch.get_rng_state(), 0)]
    if device.type == "cuda":
        found.append((torch.cuda.get_rng_state(device), 0))
    seen, ahead = dict[int, Any](), deque[Any]([cell])
    while ahead and len(seen) + len(found) < LOOKED_AT:
        value = ahead.popleft()
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            found.append(value)
        elif isinstance(value, Tensor):
            found.append((value, _version(value)))
        elif id(value) not in seen:
            seen[id(value)] = value  # and held, so that its id stays its own
            with suppress(Exception):  # an object of the user's that does not let itself be looked at
                ahead.extend(islice(_inside(value), LOOKED_AT))
    return found


def _inside(value: Any) -> Iterable[Any]:
    """What a value is made of, as far as a step may change it."""
    if isinstance(value, type):
        return []
    if isinstance(value, type(torch)):  # a module of Python's: of all that is global, random states alone
        return _random_states(value) if value.__name__ in ("random", "numpy", "numpy.random") else []
    if type(value).__module__.partition(".")[0] in ("random", "numpy") or isinstance(value, torch.Generator):
        return _random_states(value)
    if hasattr(value, "__self__"):  # a method
        return [getattr(value, "__func__", None), value.__self__]
    home = (getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]
    if home in _CLOSED and not isinstance(value, nn.Module):
        return []
    if isinstance(value, Iterator):  # to be drawn from: a number that equals none
        return [float("nan")]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if hasattr(value, "__code__"):
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        return [*(value.__closure__ or ()), *named, value.__defaults__, value.__kwdefaults__, vars(value)]
    if hasattr(value, "cell_contents"):  # of a closure
        return [value.cell_contents]
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, Sequence | Set | deque) else vars(value).values()


def _random_states(value: Any) -> list[Any]:
    """Those of a generator of torch, Python or numpy, or of their modules; the entries of an array."""
    for name in ("getstate", "get_state"):
        if hasattr(value, name):
            state = getattr(value, name)()
            return [state if isinstance(state, Tensor) else repr(state)]
    if hasattr(value, "bit_generator"):
        return [repr(value.bit_generator.state)]
    return [value.tobytes()] if hasattr(value, "tobytes") else [getattr(value, "random", None)]


def are_same(some: list[Any], others: list[Any]) -> bool:
    """Whether nothing changed in what a cell keeps."""
    return len(some) == len(others) and all(_is_same(one, other) for one, other in zip(some, others, strict=True))


def _is_same(one: Any, other: Any) -> bool:
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return one is other or (type(one) is type(other) and bool(one == other))
    (before, version), (after, version_after) = one, other
    if before is after:
        return bool(version == version_after)
    if before.dtype != after.dtype or before.shape != after.shape or version != _version(before):
        return False
    return torch.equal(before, after) and bool(after.any())  # zeros do not tell: a trace begins with them


def are_as_given(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether none of some fresh tensors was written to, or another one put in its place."""
    return all(tensors[name] is tensor and _version(tensor) == 0 for name, tensor in given.items())


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def are_close(one: Tensor, other: Tensor) -> bool:
    """Whether two results of a step are the same but for rounding."""
    slack = math.sqrt(torch.finfo(one.dtype).eps)
    return torch.allclose(one, other.to(one.dtype), rtol=slack, atol=slack, equal_nan=True)
