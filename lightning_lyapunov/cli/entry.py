"""From the words that were typed to a command, and from what came of it to an exit code."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from lightning_lyapunov.bank.__main__ import build_bank
from lightning_lyapunov.cli.commands import bank_fit, bank_report, demo, report, score, spectrum
from lightning_lyapunov.cli.depth import depth
from lightning_lyapunov.cli.writing import one_line, tell

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; the measurement failed; what was asked for cannot be; stopped by Ctrl-C."""
DEBUG = "LIGHTNING_LYAPUNOV_DEBUG"
"""Environment variable that, set to anything, shows tracebacks as ``--debug`` does."""
FLAGS = {"--smoke", "--trust_pickle", "--adaptive"}
"""Options that may stand without a value."""
EXTRAS = {"matplotlib": "plot", "jinja2": "plot", "joblib": "bank", "sklearn": "bank", "reservoirpy": "bank"}
"""Packages that come with an extra."""
_REFUSED = re.compile(
    r'Parser key "(.+?)": .*?(?:Subtypes: \[(.*?)\] .*Given value|Expected an? (.*)\. Got value): (.*)'
)
"""How jsonargparse says, on many lines, that a value is none of the types an option takes."""


class _UsageError(Exception):
    """What was typed cannot be understood."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its words; those of the process if None.

    Returns:
        0 if it was done, 1 if the measurement failed, 2 if what was asked for cannot be.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get(DEBUG))
    words = [word for word in words if word != "--debug"]
    try:
        with _plain_warnings(), _working_directory_importable():
            code = _run(_as_parsed(words))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has what it wanted
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        tell("stopped.")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        tell(_advice(error))
        return USAGE if isinstance(error, _UsageError | ValueError | OSError | ModuleNotFoundError) else FAILED


def _run(words: list[str]) -> int:
    """Parse and call; the code that --help and the like exit with is returned."""
    try:
        from jsonargparse import ArgumentParser, auto_cli
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the command line needs jsonargparse: pip install 'lightning-lyapunov[cli]'", name=error.name
        ) from error

    class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
        """One that leaves it to us how an error is told."""

        def error(self, message: str, ex: Exception | None = None) -> Any:
            command, text = self.prog.replace(" [options]", ""), one_line(message)
            if refused := _REFUSED.match(text):
                name, kinds, kind, value = refused.groups()
                kinds = re.sub(r"<class '(?:.+\.)?(\w+)'>|typing\.", r"\1", kinds or kind).replace("NoneType", "null")
                text = f"--{name} takes {kinds}; got {value}."
            raise _UsageError(f"{text} ({command} --help tells what there is.)")

    bank: dict[str, Any] = {
        "_help": "Train the bank of networks, fit a scorer on it, report.",
        "build": build_bank,
        "fit": bank_fit,
        "report": bank_report,
    }
    try:
        auto_cli(
            {"spectrum": spectrum, "depth": depth, "score": score, "report": report, "bank": bank, "demo": demo},
            args=words,
            parser_class=Parser,
            prog="lightning-lyapunov",
            description="Lyapunov spectra of recurrent and deep networks. --debug shows where an error comes from.",
        )
    except SystemExit as end:
        return int(end.code or OK)
    return OK


def _as_parsed(words: list[str]) -> list[str]:
    """Options as the parser spells them: ``--hidden-size`` is ``--hidden_size``, ``--smoke`` is ``--smoke=true``."""
    spelt = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = "--" + name[2:].replace("-", "_")
            bare = name in FLAGS and not equals and following not in ("true", "false")
            word = name + ("=true" if bare else equals + value)
        spelt.append(word)
    if spelt[:1] == ["spectrum"] and _has_no_inputs(spelt[1:]):
        spelt.append("none")
    return spelt


def _has_no_inputs(words: list[str]) -> bool:
    """Whether a map is to run by itself: there are steps, and one file alone."""
    follows = [False, *(word.startswith("--") and "=" not in word for word in words)]
    files = [word for word, is_value in zip(words, follows, strict=False) if not is_value and word[:2] != "--"]
    return len(files) == 1 and any(word.partition("=")[0] == "--steps" for word in words)


def _advice(error: Exception) -> str:
    """An error in one line, with what to do."""
    text = one_line(error) or type(error).__name__
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS and "pip install" not in text:
        return f"{package} is needed and not installed: pip install 'lightning-lyapunov[{EXTRAS[package]}]'"
    if isinstance(error, _UsageError | ValueError | OSError | ArithmeticError | ModuleNotFoundError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings in one line, without the place in the code that made them."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        tell(f"warning: {one_line(message)}")

    found = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = found


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Models are often modules of the working directory, which a command does not search by itself."""
    found = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = found
