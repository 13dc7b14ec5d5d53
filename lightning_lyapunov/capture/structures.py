"""Structures of dicts, sequences and dataclasses, and the values in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Path: TypeAlias = "tuple[Any, ...]"
"""Where a value is among arguments or outputs: keys and indices."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A tensor that has a row for each sequence."""

    values: Tensor
    """As the module has it, its first rows."""
    axis: int
    """Of the rows."""


@dataclass(frozen=True)
class Other:
    """Stands for a value that is no tensor, no number and no structure of them; it might hold on to a graph."""

    kind: str


def mapped(tree: Any, function: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """A structure of dicts, sequences and dataclasses with a function of path and value in place of each value."""
    if isinstance(tree, dict):
        return {key: mapped(value, function, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        parts = [mapped(value, function, (*path, index)) for index, value in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type | Rows | Other):
        other = copy.copy(tree)  # not by its constructor, which may look at what it is given
        for field in fields(tree):
            value = mapped(getattr(tree, field.name), function, (*path, field.name))
            object.__setattr__(other, field.name, value)
        return other
    return function(path, tree)


def leaves_of(tree: Any) -> dict[Path, Any]:
    """The values in a structure, by where they are."""
    found: dict[Path, Any] = {}
    mapped(tree, found.__setitem__)
    return found


def at(tree: Any, path: Path) -> Any:
    """The value at a path; None if there is none."""
    for key in path:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, tuple | list):
            tree = tree[key] if key < len(tree) else None
        else:
            tree = getattr(tree, str(key), None)
    return tree


def said(path: Path) -> str:
    """A path as it is written in Python."""
    head, *rest = path or ("output",)
    return str(head) + "".join(f"[{key!r}]" for key in rest)
