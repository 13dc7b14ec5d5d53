"""Pickles of callbacks: arguments and plain values, so that a file that holds one can be loaded safely."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

BOUND = ("log", "log_dict")
"""Methods of the model that Lightning hangs on every callback of a fit: with them the whole model would be pickled."""


def added_to(callback: object, own: Collection[str]) -> dict[str, Any]:
    """What a subclass, or its user, has set on a callback beside what its constructor does.

    Args:
        callback: Whose.
        own: Names that the constructor sets.
    """
    return {name: value for name, value in vars(callback).items() if name not in own and name not in BOUND}
