"""Completion: a script, made once, by which a shell knows commands, options and which of them take a file."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser

from lightning_lyapunov.cli.parser import HIDDEN, commands_of, is_list, placeholder, with_hyphens


def script(parser: ArgumentParser, shell: str) -> str:
    """The script of a parser, which is no good for parsing afterwards.

    Raises:
        ModuleNotFoundError: Without shtab; the message says how to install it.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "completion needs shtab, which is not installed: pip install shtab brings it.", name=error.name
        ) from error
    _prepare(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _prepare(parser: ArgumentParser, file: object) -> None:
    """Spell options as the help does, and say which take a file, one of some words, or nothing."""
    for action in parser._actions:
        if action.dest in HIDDEN:
            action.help = SUPPRESS
        action.option_strings = [with_hyphens(name) for name in action.option_strings if not name.endswith("+")]
        taken = placeholder(action)
        if taken.startswith("{"):
            action.choices = taken[1:-1].split(",")
        elif taken == "FILE" or not (action.option_strings or action.choices):
            action.complete = file  # type: ignore[attr-defined]
            action.nargs = "+" if is_list(action) else action.nargs
        elif not taken and action.option_strings:
            action.nargs = 0
    for command in commands_of(parser).values():
        _prepare(command, file)
