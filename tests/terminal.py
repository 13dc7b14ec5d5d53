"""A terminal of so many columns: what a person sees on it and types into it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest


def _widen(terminal: int, columns: int) -> None:
    """Give a terminal so many columns."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")  # there are none on Windows
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


def _read(ours: int) -> bytes:
    """What was written since; nothing once nobody writes any more, which is an error on some systems."""
    with contextlib.suppress(OSError):
        return os.read(ours, 65536)
    return b""


class Screen:
    """What was written to a terminal, and the lines that it shows of it.

    Args:
        columns: Where lines wrap.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.written = columns, ""

    @property
    def lines(self) -> list[str]:
        """Lines from the top, as they stand in the end: carriage returns, cursor movements and wrapping done."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[^\x1b]", self.written):
            if part == "\n":
                row, column = row + 1, 0
            elif part == "\r":
                column = 0
            elif part.endswith("A") and len(part) > 1:
                row -= int(part[2:-1] or 1)
            elif len(part) == 1:
                if column == self.columns:
                    row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
                rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in rows]


@contextlib.contextmanager
def terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Standard output and error are a terminal meanwhile; read ``lines`` afterwards."""
    screen, (ours, theirs) = Screen(columns), os.openpty()
    _widen(theirs, columns)
    pieces: list[bytes] = []

    def read() -> None:
        while piece := _read(ours):
            pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, open(theirs, "w", encoding="utf-8") as stream:
        for name in ("NO_COLOR", "CI"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield screen
    reader.join(10)
    os.close(ours)
    screen.written = b"".join(pieces).decode().replace("\r\n", "\n")


class Command:
    """A command in a terminal of its own.

    Args:
        words: The command.
        columns: Width of its terminal.
        cwd: Where it runs.
        env: What is set beside the environment of the tests.

    Attributes:
        seen: All that it has written.
    """

    def __init__(
        self, words: Sequence[str], columns: int = 80, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._pid, self._ours = pytest.importorskip("pty").fork()
        if not self._pid:  # the child, whose standard streams are the terminal
            _widen(0, columns)
            os.chdir(cwd or os.getcwd())
            more = {"TERM": "dumb", "PYTHONUNBUFFERED": "1", **(env or {})}
            os.execvpe(words[0], list(words), {name: v for name, v in os.environ.items() if name != "COLUMNS"} | more)
        self.seen = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def read(self, until: str = "", seconds: float = 90.0) -> str:
        """What stands there once a pattern does, or the command has ended; since the last time."""
        end, found = time.monotonic() + seconds, ""
        while time.monotonic() < end and not (until and re.search(until, found)):
            if not select.select([self._ours], [], [], 0.5)[0]:
                continue
            piece = _read(self._ours)
            if not piece:
                break
            found += piece.decode(errors="replace").replace("\r\n", "\n")
        self.seen += found
        return found

    def close(self) -> int:
        """End it; its exit code."""
        os.close(self._ours)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)
