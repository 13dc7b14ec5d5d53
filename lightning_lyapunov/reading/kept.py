"""What a history keeps of a measurement, whatever was measured: plain fields that a checkpoint can carry."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, get_origin, get_type_hints

from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class Kept:
    """One measurement of a run. Each kind is a frozen dataclass, of plain values and tensors on the CPU.

    It has the three fields below, among others of its own. A history knows no more of it.
    """

    step: int
    """The Trainer's ``global_step``: updates made before it."""
    epoch: int
    """Epoch in which it was made; the one before the first update has epoch 0 as well, and step 0."""
    metrics: dict[str, float]
    """What was logged, by name: without the prefix of the keys."""

    NEWER: ClassVar[tuple[str, ...]] = ()
    """Fields that an older version did not know, and that are not missed in what it wrote."""

    @classmethod
    def restored(cls, written: Any, prefix: str) -> tuple[Self | None, list[str]]:
        """The measurement that :meth:`plain` was taken of, or as much of it as another version wrote.

        Args:
            written: What a checkpoint holds.
            prefix: First part of the keys that its metrics were logged under.

        Returns:
            It, or None where a field without a default is missing, and what was amiss, in words.
        """
        kinds = _kinds_of(cls)  # type: ignore[arg-type]  # mypy takes no class for something to be hashed
        known, amiss = read_state(written, kinds, "a measurement", optional=cls.NEWER)
        needed = {f.name for f in _fields_of(cls) if f.default is MISSING and f.default_factory is MISSING}
        if not known.keys() >= needed:
            return None, amiss
        return cls(**cls._repaired(known, written, prefix)), amiss

    @classmethod
    def _repaired(cls, known: dict[str, Any], written: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Fields as this version has them, out of those that an older one wrote.

        Args:
            known: The good ones.
            written: All that was written.
            prefix: As :meth:`restored` takes it.
        """
        return known

    def plain(self) -> dict[str, Any]:
        """The measurement as a checkpoint takes it, and no more than it holds."""
        state = {f.name: getattr(self, f.name) for f in _fields_of(type(self))}
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = value.clone()  # of a view, torch.save would write all that it is a view of
            elif isinstance(value, str):
                state[name] = sys.intern(value)
            elif isinstance(value, dict):
                state[name] = {sys.intern(key): item for key, item in value.items()}  # pickle writes one object once
            elif isinstance(value, list):
                state[name] = [sys.intern(item) if isinstance(item, str) else item for item in value]
        return state

    @property
    def size(self) -> int:
        """Bytes that it takes in a checkpoint, about: each tensor is a file of its own, and each number a few bytes."""
        return 440 + sum(_size_of(getattr(self, f.name)) for f in _fields_of(type(self)))


def _fields_of(kind: type[Kept]) -> tuple[Field[Any], ...]:
    return fields(kind)  # type: ignore[arg-type]  # each is a dataclass


@cache
def _kinds_of(kind: type[Kept]) -> dict[str, Any]:
    """What each field is."""
    hints = get_type_hints(kind)
    return {f.name: get_origin(hints[f.name]) if _is_bag(hints[f.name]) else hints[f.name] for f in _fields_of(kind)}


def _is_bag(hint: Any) -> bool:
    return get_origin(hint) in (dict, list)


def _size_of(value: Any) -> int:
    """About what a field takes beside its name."""
    if isinstance(value, Tensor):
        return 400 + value.numel() * value.element_size()
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(4 if isinstance(item, str) else 10 for item in value)
    return 16 * sum(map(_numbers_in, value.values())) if isinstance(value, dict) else 0


def _numbers_in(item: Any) -> int:
    """Of an entry under a name."""
    return 1 + len(item) if isinstance(item, list) else 1


def read_state(
    state: Any, kinds: Mapping[str, Any], of: str, optional: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Of a state that another version may have written: the fields that are known and of the right kind.

    Args:
        state: What the checkpoint holds.
        kinds: The fields that it should have, and the types of their values.
        of: What it is the state of.
        optional: Fields that it need not have.

    Returns:
        The good ones, and what was amiss with the others, in words.
    """
    if not isinstance(state, dict):
        return {}, [f"{of} is {type(state).__name__}, not a dictionary"]
    known = {name: state[name] for name, kind in kinds.items() if name in state and isinstance(state[name], kind)}
    missing = [f"{of} has no {name}" for name in kinds if name not in state and name not in optional]
    wrong = [f"{name} of {of} is {type(state[name]).__name__}" for name in kinds if name in state and name not in known]
    unknown = [f"{name} of {of} is not known" for name in state if name not in kinds]
    return known, missing + wrong + unknown
