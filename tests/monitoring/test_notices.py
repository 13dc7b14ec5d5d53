"""What is said, how often, and at whose line."""

import logging
import warnings
from contextlib import contextmanager
from typing import Any

import pytest

from lightning_lyapunov.monitoring.notices import Notices


def test_each_thing_is_said_once_a_fit() -> None:
    said: list[str] = []
    notices = Notices("Watcher", said.append, said.append)
    for _ in range(2):
        notices.tell("one")
        notices.tell("two", warn=True)
    assert said == ["Watcher: one", "Watcher: two"]
    notices.begin()
    notices.tell("one")
    assert said == ["Watcher: one", "Watcher: two", "Watcher: one"]


def test_of_one_subject_only_the_first_is_said() -> None:
    said: list[str] = []
    notices = Notices("Watcher", said.append)
    notices.tell("it takes 1 s", subject="cost")
    notices.tell("it takes 2 s", subject="cost")
    notices.tell("it takes 2 s", subject="another")
    assert said == ["Watcher: it takes 1 s", "Watcher: it takes 2 s"]


def test_warnings_and_information_go_their_ways(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices("Watcher")
    with caplog.at_level(logging.INFO, "lightning_lyapunov"), pytest.warns(UserWarning, match="Watcher: careful"):
        notices.tell("hello")
        notices.tell("careful", warn=True)
    assert caplog.messages == ["Watcher: hello"]


def through_ours(depth: int, notices: Notices) -> Any:
    """A function of a module of ours that warns, so many calls deep, and once within a context manager."""
    scope: dict[str, Any] = {"__name__": "lightning_lyapunov.made_up", "contextmanager": contextmanager}
    exec(
        "def tell(depth, notices):\n"
        "    if depth: return tell(depth - 1, notices)\n"
        "    notices.tell('careful', warn=True)\n"
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
    ours = through_ours(depth, notices)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        ours["tell"](depth, notices)
        notices.begin()
        with ours["managed"](notices):
            pass
        notices.begin()
        notices.tell("careful", warn=True)
    first = through_ours.__code__.co_firstlineno
    assert [warning.filename for warning in record] == [__file__] * 3
    assert all(warning.lineno > first for warning in record)
