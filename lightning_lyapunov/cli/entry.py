"""From the words that were typed to a command, and from what came of it to an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO

import lightning_lyapunov
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
DESCRIPTION = (
    "Lyapunov spectra of recurrent and deep networks: what happens to a gradient on its way back, and what that says "
    "of training. --debug shows where an error comes from."
)


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
        return USAGE if isinstance(error, ValueError | OSError | ModuleNotFoundError) else FAILED


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that makes a shell complete commands, options and files with the Tab key.

    Args:
        shell: bash, for a file ~/.local/share/bash-completion/completions/lightning-lyapunov; or zsh, for a file
            _lightning-lyapunov in a directory of $fpath.
    """
    from jsonargparse import capture_parser

    from lightning_lyapunov.cli.completion import script

    print(script(capture_parser(lambda: _call([])), shell))


def _commands() -> dict[str, Any]:
    """All commands; those of a dictionary are one command deeper."""
    return {
        "spectrum": spectrum,
        "depth": depth,
        "score": score,
        "report": report,
        "bank": {
            "_help": "Train the bank of networks, fit a scorer on it, report.",
            "build": build_bank,
            "fit": bank_fit,
            "report": bank_report,
        },
        "demo": demo,
        "completion": completion,
    }


def _call(words: list[str]) -> None:
    """Parse and call."""
    from jsonargparse import auto_cli

    from lightning_lyapunov.cli.parser import Parser

    auto_cli(
        _commands(),
        args=words,
        parser_class=Parser,
        prog="lightning-lyapunov",
        description=DESCRIPTION,
        version=lightning_lyapunov.__version__,
    )


def _run(words: list[str]) -> int:
    """Call the command; the code that --help and the like exit with is returned."""
    try:
        import jsonargparse  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the command line needs jsonargparse, which is not installed: pip install 'lightning-lyapunov[cli]' brings "
            "it.",
            name=error.name,
        ) from error
    from lightning_lyapunov.cli.parser import UsageError

    try:
        _call([*words, "--help"] if words in ([], ["bank"]) else words)
    except UsageError as error:
        raise ValueError(error.told(words)) from error
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
    return _with_one_list(spelt) if spelt[:1] == ["report"] else spelt


def _with_one_list(words: list[str]) -> list[str]:
    """The files among the words of a command as one list, which is how the parser takes several."""
    follows = [False, *(word.startswith("--") and "=" not in word for word in words)]
    is_file = [not (value or word.startswith("-")) for word, value in zip(words, follows, strict=False)]
    is_file[0] = False  # the command
    files = [word for word, its in zip(words, is_file, strict=True) if its]
    others = [word for word, its in zip(words, is_file, strict=True) if not its]
    return [*others, json.dumps(files)] if files else words


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
        return f"{package} is needed and not installed: pip install 'lightning-lyapunov[{EXTRAS[package]}]' brings it."
    if isinstance(error, ValueError | OSError | ArithmeticError | ModuleNotFoundError):
        return text
    return f"{type(error).__name__}: {text.rstrip('.')}. --debug shows where."


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
