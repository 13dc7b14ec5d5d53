"""What is said to a person in the course of a fit: each thing once."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

_log = logging.getLogger("lightning_lyapunov")
_BETWEEN = ("lightning_lyapunov.", "contextlib")
"""Modules whose lines are not the user's."""


def _warn(text: str) -> None:
    """Warn at the line of the user's that led here, through however many of ours."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


class Notices:
    """Says things once a fit, on one channel.

    Args:
        speaker: Who says it; each text begins with this name.
        inform: Where information goes; the package's log if None.
        warn: Where warnings go; Python's warnings if None.
    """

    def __init__(
        self, speaker: str, inform: Callable[[str], None] | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self._speaker, self._inform, self._warn = speaker, inform or _log.info, warn or _warn
        self._told: set[str] = set()

    def begin(self) -> None:
        """Begin a fit: everything may be said again."""
        self._told.clear()

    def tell(self, text: str, *, warn: bool = False, subject: str | None = None) -> None:
        """Say something, unless it, or something else on the same subject, was said in this fit."""
        if (subject or text) in self._told:
            return
        self._told.add(subject or text)
        (self._warn if warn else self._inform)(f"{self._speaker}: {text}")
