"""What is said to a person in the course of a fit: each thing once, on a line of its own.

What was seen of the network, and other information, goes to Python's logger ``lightning_lyapunov``; what is amiss with
how it is used or measured is one of Python's warnings, at the line of the user's that led to it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from shutil import get_terminal_size
from typing import TextIO

from lightning_lyapunov.reading.verdict import SIGNS, Verdict

_log = logging.getLogger("lightning_lyapunov")
_BETWEEN = (
    *("lightning_lyapunov.", "lightning.", "pytorch_lightning.", "lightning_fabric.", "lightning_utilities."),
    *("torch.", "contextlib."),
)
"""Modules whose lines are not the user's."""
_COLOURS = {"healthy": 32, "watch": 33, "act": 31}
"""Green, yellow and red as the terminal has them, to be legible on whatever ground it has."""
_MARKED = re.compile("|".join(f"{sign} {word}" for word, sign in SIGNS.items()))


def say(text: str, level: int = logging.INFO) -> None:
    """Log. Where nobody has set up logging, as in a plain script, it is shown from INFO on, on stderr."""
    with above_bars(), _shown_if_nobody_listens():
        _log.log(level, "%s", text)


def caution(text: str) -> None:
    """Warn at the line of the user's that led here, through however many of ours and of Lightning's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    with above_bars():
        warnings.warn(text, UserWarning, stacklevel=level)


def linked(text: str, section: str) -> str:
    """A warning as a sentence, and where on the page of warnings it is explained."""
    stop = "" if text.endswith((".", ".)", "?", "!")) else "."
    return f"{text}{stop} (docs/warnings.md#{section})"


@contextmanager
def above_bars() -> Iterator[None]:
    """Take tqdm's progress bars off the terminal meanwhile; those of rich make way by themselves."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with ExitStack() as stack:
        if tqdm is not None and getattr(tqdm, "_instances", None):
            with suppress(Exception):  # a bar whose terminal is gone ends no training
                stack.enter_context(tqdm.external_write_mode(file=sys.stderr))
        yield


def fitted(text: str, stream: TextIO) -> str:
    """A text as a stream shows it best: a terminal wraps it at words, and colours sign and word of a verdict."""
    if not stream.isatty():
        return text
    width = get_terminal_size().columns - 1
    wrap = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    text = "\n".join(map(wrap, text.split("\n")))
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return _MARKED.sub(lambda found: f"\033[1;{_COLOURS[found[0].split()[1]]}m{found[0]}\033[0m", text)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # which takes no argument before Python 3.11
    def format(self, record: logging.LogRecord) -> str:
        return fitted(super().format(record), self.stream)


@contextmanager
def _shown_if_nobody_listens() -> Iterator[None]:
    """Show what is logged meanwhile, as far as the logger's own level allows; a logging set up by a user is left."""
    if _log.hasHandlers():
        yield
        return
    level, handler = _log.level, _Handler(sys.stderr)  # of this moment: rich puts its own in place
    _log.addHandler(handler)
    _log.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)


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
        self._speaker, self._inform, self._warn = speaker, inform or say, warn or caution
        self._told: set[str] = set()

    def begin(self) -> None:
        """Begin a fit: everything may be said again."""
        self._told.clear()

    def tell(self, text: str, *, warn: str = "", subject: str | None = None) -> None:
        """Say something, unless it, or something else on the same subject, was said in this fit.

        Args:
            text: What to say.
            warn: Of a warning, the section of docs/warnings.md that explains it; empty for information.
            subject: What it is about; the text itself if None.
        """
        if (subject or text) in self._told:
            return
        self._told.add(subject or text)
        said = f"{self._speaker}: {text}"
        if warn:
            self._warn(linked(said, warn))
        else:
            self._inform(said)

    def conclude(self, verdict: Verdict | None) -> None:
        """Say what to make of a fit when it ends, if anything was measured."""
        if verdict is not None:
            advice = "" if verdict.word == "healthy" else f" {verdict.advice}"
            self.tell(f"{verdict.sign} {verdict}{advice}".rstrip(), subject="verdict")
