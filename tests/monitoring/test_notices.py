"""What is said, how often, at whose line, and how it stands on a terminal."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from terminal import terminal
from tqdm import tqdm

from lightning_lyapunov.monitoring.notices import Notices, caution, fitted, linked, say
from lightning_lyapunov.reading.verdict import Verdict


def test_each_thing_is_said_once_a_fit() -> None:
    said: list[str] = []
    notices = Notices("Watcher", said.append, said.append)
    for _ in range(2):
        notices.tell("one")
        notices.tell("two", warn="two")
    assert said == ["Watcher: one", "Watcher: two. (docs/warnings.md#two)"]
    notices.begin()
    notices.tell("one")
    assert said[2:] == ["Watcher: one"]


def test_of_one_subject_only_the_first_is_said() -> None:
    said: list[str] = []
    notices = Notices("Watcher", said.append)
    notices.tell("it takes 1 s", subject="cost")
    notices.tell("it takes 2 s", subject="cost")
    notices.tell("it takes 2 s", subject="another")
    assert said == ["Watcher: it takes 1 s", "Watcher: it takes 2 s"]


@pytest.mark.parametrize(("text", "whole"), [("it is", "it is."), ("it is.", "it is."), ("it (as is.)", "it (as is.)")])
def test_a_warning_is_a_sentence_and_names_its_section(text: str, whole: str) -> None:
    assert linked(text, "care") == f"{whole} (docs/warnings.md#care)"


def test_warnings_and_information_go_their_ways(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices("Watcher")
    with caplog.at_level(logging.INFO, "lightning_lyapunov"), pytest.warns(UserWarning, match="Watcher: careful"):
        notices.tell("hello")
        notices.tell("careful", warn="care")
    assert caplog.messages == ["Watcher: hello"]


def through_ours(name: str = "lightning_lyapunov.made_up") -> Any:
    """A function of a module of ours that warns, so many calls deep, and once within a context manager."""
    scope: dict[str, Any] = {"__name__": name, "contextmanager": contextmanager}
    exec(
        "def tell(depth, notices):\n"
        "    if depth: return tell(depth - 1, notices)\n"
        "    notices.tell('careful', warn='care')\n"
        "@contextmanager\n"
        "def managed(notices):\n"
        "    yield\n"
        "    tell(1, notices)\n",
        scope,
    )
    return scope


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_a_warning_is_at_the_users_line_however_deep_it_comes_from(depth: int) -> None:
    notices = Notices("Watcher")
    ours = through_ours("lightning_lyapunov.made_up" if depth else "lightning.pytorch.trainer.call")
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        ours["tell"](depth, notices)
        notices.begin()
        with ours["managed"](notices):
            pass
        notices.begin()
        notices.tell("careful", warn="care")
    first = through_ours.__code__.co_firstlineno
    assert [warning.filename for warning in record] == [__file__] * 3
    assert all(warning.lineno > first for warning in record)


# ---------------------------------------------------------------- where it is shown


@contextmanager
def plain_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Nobody listens: what pytest has put on the loggers is off meanwhile."""
    log = logging.getLogger("lightning_lyapunov")
    with monkeypatch.context() as patch:
        for logger in (log, logging.getLogger()):
            patch.setattr(logger, "handlers", [])
        yield log
        assert log.handlers == [] and log.propagate  # nothing of ours is left behind


def test_in_a_plain_script_information_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with plain_script(monkeypatch) as log:
        say("hello")
        say("careful", logging.WARNING)
    assert capsys.readouterr() == ("", "hello\ncareful\n")
    assert log.level == logging.NOTSET


def test_the_loggers_own_level_silences_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with plain_script(monkeypatch) as log:
        log.setLevel(logging.ERROR)
        try:
            say("careful", logging.WARNING)
            say("disaster", logging.ERROR)
            assert log.level == logging.ERROR
        finally:
            log.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == "disaster\n"


@pytest.mark.parametrize(("level", "shown"), [("INFO", ["hello"]), ("WARNING", [])])
def test_a_logging_that_is_set_up_is_the_users(
    level: str, shown: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told there as its level allows, once, and nowhere else."""
    with caplog.at_level(level):
        say("hello")
    assert caplog.messages == shown
    assert capsys.readouterr() == ("", "")


def test_lines_stand_above_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    monkeypatch.setattr(warnings, "showwarning", show)  # as Python does it where pytest is not
    with terminal(60, monkeypatch) as screen, plain_script(monkeypatch):
        for _ in tqdm(range(3), "bar", file=sys.stdout):
            say("hello " * 12)
            caution("careful")
    assert screen.lines[:2] == [("hello " * n).rstrip() for n in (10, 2)]  # 59 columns hold ten
    above = "".join(screen.lines[2:-1])
    assert "test_notices.py" in above and "UserWarning: careful" in above
    assert "%" not in above and "100%" in screen.lines[-1]  # one bar, at the end


def test_a_verdict_is_coloured_where_there_are_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80, monkeypatch):
        assert fitted("x: ✖ act: why", sys.stderr) == "x: \033[1;31m✖ act\033[0m: why"
        assert fitted("act", sys.stderr) == "act"
        monkeypatch.setenv("NO_COLOR", "1")
        assert fitted("✖ act", sys.stderr) == "✖ act"
    with open("/dev/null", "w", encoding="utf-8") as file:
        assert fitted("✖ act " * 40, file) == "✖ act " * 40


def test_the_last_word_has_what_to_do_unless_all_is_well() -> None:
    said: list[str] = []
    for verdict in (Verdict("act", "Wrong.", "Mend it."), Verdict("healthy", "Fine.", "Train on."), None):
        Notices("Watcher", said.append).conclude(verdict)
    assert said == ["Watcher: ✖ act: Wrong. Mend it.", "Watcher: ✓ healthy: Fine."]
