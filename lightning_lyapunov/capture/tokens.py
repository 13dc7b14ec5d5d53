"""Tensors in structures, and what tells them apart in the course of a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_lyapunov.capture.structures import Path

Token: TypeAlias = "tuple[int, Hashable]"
"""A state: which tensor, and how often it had been written to."""
DEEPEST = 6
"""Levels of a structure that are looked through for tensors."""


def tensors_of(tree: Any) -> dict[Path, Tensor]:
    """The tensors in a structure of dicts, sequences and dataclasses, by where they are, in order."""
    return dict(_walk(tree, ()))


def _walk(tree: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif len(path) > DEEPEST:
        return
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, (*path, key))
    elif isinstance(tree, tuple | list):
        for index, value in enumerate(tree):
            yield from _walk(value, (*path, index))
    elif is_dataclass(tree) and not isinstance(tree, type):
        for one in fields(tree):
            yield from _walk(getattr(tree, one.name, None), (*path, one.name))


def size_of(tensor: Tensor) -> torch.Size:
    """Its shape; of a nested one that of :func:`dense`."""
    if not tensor.is_nested:
        return tensor.shape
    sizes = tensor._nested_tensor_size()
    return torch.Size([len(sizes), *sizes.amax(0).tolist()])


def dense(tensor: Tensor) -> Tensor:
    """A tensor, with zeros where a nested one has nothing."""
    return torch.nested.to_padded_tensor(tensor, 0.0) if tensor.is_nested else tensor


class Tokens:
    """Tells tensors apart, also where a new one has the address of another that is gone."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0

    def of(self, tensor: Tensor) -> Token:
        """What a tensor is now."""
        reference, number = self._seen.get(id(tensor), (None, 0))
        if reference is None or reference() is not tensor:
            self._count += 1
            number = self._count
            self._seen[id(tensor)] = weakref.ref(tensor), number
        return number, _fingerprint(tensor) if tensor.is_inference() else tensor._version


def _fingerprint(tensor: Tensor) -> Hashable:
    """What stands in for a version in inference mode, where none is kept."""
    values = dense(tensor.detach()).double()
    return tuple(value.hex() for value in torch.stack([values.sum(), values.abs().sum()]).tolist())
