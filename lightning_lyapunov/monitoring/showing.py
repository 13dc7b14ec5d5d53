"""One line about whoever measures: what it was told beyond its defaults, and how far the run has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from inspect import signature
from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def defaults_of(constructor: Any) -> dict[str, Any]:
    """Arguments of a constructor, or fields of a dataclass, by name; those without a default have None."""
    if hasattr(constructor, "__dataclass_fields__"):
        return {field.name: None if field.default is MISSING else field.default for field in fields(constructor)}
    parameters = signature(constructor).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def described(name: str, defaults: Mapping[str, Any], value_of: Callable[[str], Any], course: str = "") -> str:
    """As ``LyapunovSpectrumCallback(k=8, report='runs') [9 measurements, the last after update 376: ⚠ watch]``.

    Args:
        name: Of its class.
        defaults: Of all that it can be told, by name.
        value_of: What it was told, by name.
        course: How far the run has come; nothing if empty.
    """
    told = []
    for argument, default in defaults.items():
        with suppress(Exception):  # one that is only half made, as a debugger may see it
            if not _is_same(value := value_of(argument), default):
                told.append(f"{argument}={_shown(value)}")
    return f"{name}({', '.join(told)})" + (f" [{course}]" if course else "")


def course_of(history: Any, verdict: Callable[[], Any]) -> str:
    """How far a run has come, and the verdict on it; empty before the first measurement."""
    if not len(history):
        return ""
    told = f"{len(history)} measurement{'s' * (len(history) != 1)}, the last after update {history[-1].step:,}"
    with suppress(Exception):  # to be shown must never fail
        if (word := verdict()) is not None:
            told += f": {word.sign} {word.word}"
    return told


def _is_same(value: Any, default: Any) -> bool:
    """Whether it is the default, of which none at all may be spelt as an empty list too."""
    if value is default or (default is None and isinstance(value, list) and not value):
        return True
    return type(value) in (bool, int, float, str, tuple) and type(default) is type(value) and bool(value == default)


def _shown(value: Any) -> str:
    """A value on one line, whatever it is: never a whole tensor, nor an address in memory."""
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return " ".join(_SHORT.repr(value).split())
