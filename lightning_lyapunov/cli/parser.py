"""The parser of commands: its help speaks of files and numbers rather than of types, its errors are sentences."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import jsonargparse
from jsonargparse import DefaultHelpFormatter

from lightning_lyapunov.cli.writing import one_line

HIDDEN = ("config", "print_config")
"""Options of every command, of which the page of the documentation tells and no help."""
TEXTS = {"help": "Print this and exit.", "version": "Print the version and exit."}
"""What options of argparse's are for."""
PLACEHOLDERS: dict[Any, str] = {int: "N", float: "X", Path: "FILE", dict: "JSON"}
_REFUSED = re.compile(
    r'Parser key "(.+?)": .*?(?:Subtypes: \[(.*?)\] .*Given value|Expected an? (.*)\. Got value): (.*)'
)
"""How jsonargparse says, on many lines, that a value is none of the types an option takes."""
_MISSING = re.compile(r'[Kk]ey "(?:\w+\.)*(\w+)" is required|arguments are required: (?:\w+\.)*(\w+)')
_BARE = re.compile(r"argument (--\w+): expected one argument")
_OTHERWISE = re.compile(r'Parser key "(.+?)"')
_NO_COMMAND = re.compile(r"argument \S*subcommand: invalid choice: '(.*?)'")
_TOO_MANY = re.compile(r"nrecognized arguments: ([^\s=]+)")
_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "Path": "a path", "PosixPath": "a path",
    "WindowsPath": "a path", "str": "a name", "dict": "a JSON object", "list": "a list", "NoneType": "null",
}  # fmt: skip
"""What a type is called in a sentence."""


class UsageError(Exception):
    """What was typed cannot be understood.

    Args:
        message: What the parser says of it.
        parser: The one that found it.
    """

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.message, self.parser = message, parser

    def told(self, words: Sequence[str]) -> str:
        """What is wrong with the words that were typed, with what was meant or where to read on."""
        parser = self.parser
        for word in words:
            parser = commands_of(parser).get(word, parser)
        command, text = spelt(parser.prog), self.message
        name = command.partition(" ")[2] or command
        advice = f"{command} --help tells what there is."
        if choice := _NO_COMMAND.search(text):
            there = list(commands_of(parser))
            meant = nearest(choice[1], there)
            return f"there is no command {choice[1]}; {meant or 'there are ' + ', '.join(there) + '.'}"
        if extra := _TOO_MANY.search(text):
            if not extra[1].startswith("-"):
                return f"{name}: {extra[1]} is one word too many. {advice}"
            option = with_hyphens(extra[1])
            return f"{name} has no option {option}; {nearest(option, list(options_of(parser))) or advice}"
        return f"{name}: {in_a_sentence(text)}. {advice}"


class Help(DefaultHelpFormatter):
    """Help that a person reads: what an option takes, what it does, and its default where it has one."""

    def add_usage(self, usage: str | None, actions: Any, *args: Any, **kwargs: Any) -> None:
        """One line: the command, its files, and that there are options."""
        shown = [action for action in actions if not action.option_strings]
        names = ["COMMAND" if isinstance(action, _SubParsersAction) else _counted(action) for action in shown]
        told = " ".join([spelt(self._prog), *names, "[options]"]).replace("%", "%%")
        super().add_usage(told, [], *args, **kwargs)

    def add_argument(self, action: Action) -> None:
        """Leave out what every command has."""
        if action.dest not in HIDDEN:
            super().add_argument(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _format_action(self, action: Action) -> str:
        if isinstance(action, _SubParsersAction):
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return action.dest if not isinstance(action.metavar, str) or is_list(action) else action.metavar
        names = [with_hyphens(name) for name in action.option_strings if not name.endswith("+")]
        return " ".join([", ".join(names), *filter(None, [placeholder(action)])])

    def _expand_help(self, action: Action) -> str:
        text = (action.help or "").strip()
        text = TEXTS.get(action.dest, text)
        if action.default is None or action.default is False or action.default == SUPPRESS or not action.option_strings:
            return text
        return f"{text} (default: {action.default})"


class Parser(jsonargparse.ArgumentParser):  # type: ignore[misc, unused-ignore]
    """One that says what is wrong in a sentence, and leaves it to its caller how that is told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **kwargs})

    def add_subcommands(self, required: bool = True, dest: str = "subcommand", **kwargs: Any) -> Any:
        """Commands under a plain heading."""
        telling = f"{spelt(self.prog)} COMMAND --help tells more."
        made = super().add_subcommands(required, dest, **{"title": "commands", "description": telling, **kwargs})
        groups: Any = self._action_groups
        groups.insert(0, groups.pop())  # they come before the options
        return made

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong."""
        raise UsageError(one_line(message), self)


def _counted(action: Action) -> str:
    """The name of what is not an option; of several of them with dots."""
    return f"{action.dest} ..." if is_list(action) else action.dest


def is_list(action: Action) -> bool:
    """Whether it takes several words."""
    return action.nargs in ("+", "*") or get_origin(getattr(action, "_typehint", None)) is list


def commands_of(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parsers of its commands, by name; none of one that has no commands."""
    groups = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    return dict(groups[0].choices or {}) if groups else {}


def options_of(parser: ArgumentParser) -> Iterator[str]:
    """Its options, spelt as in the help."""
    for action in parser._actions:
        if action.dest not in ("print_shtab", "print_completion"):
            yield from (with_hyphens(name) for name in action.option_strings if not name.endswith("+"))


def placeholder(action: Action) -> str:
    """What stands for the value of an option: ``N``, ``FILE``, ``{json,table}``; nothing for one that needs none."""
    kind = getattr(action, "_typehint", None)
    inner = [one for one in get_args(kind) if one is not NoneType] if get_origin(kind) is not Literal else []
    if NoneType in get_args(kind) and len(inner) == 1:
        kind = inner[0]
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if kind is bool or action.nargs == 0:
        return ""
    return PLACEHOLDERS.get(get_origin(kind) or kind, with_hyphens(action.dest).rpartition(".")[2].upper())


def spelt(prog: str) -> str:
    """A command as it is typed."""
    return prog.replace(" [options]", "")


def in_a_sentence(message: str) -> str:
    """What is wrong with a value, or missing, as a clause without a full stop."""
    if refused := _REFUSED.search(message):
        name, kinds, kind, value = refused.groups()
        plain = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", kinds or kind)
        found = re.findall(r"Literal\[[^\]]*\]|\w+", re.sub(r"(dict|list)\[[^\]]*\]", r"\1", plain))
        taken = list(dict.fromkeys(_in_words(one) for one in found if one not in ("typing", "NoneType")))
        got = value.rpartition("Got value: ")[2].rstrip(".")
        return f"--{with_hyphens(name)} takes {' or '.join(taken)}; got {got}"
    if missing := _MISSING.search(message):
        return f"{missing[1] or missing[2]} is missing"
    if bare := _BARE.search(message):
        return f"{with_hyphens(bare[1])} takes a value"
    if odd := _OTHERWISE.match(message):
        return f"--{with_hyphens(odd[1])} does not take such a value"
    return message.rstrip(".")


def _in_words(kind: str) -> str:
    if kind.startswith("Literal"):
        return " or ".join(re.findall(r"'([^']*)'", kind))
    return _KINDS.get(kind, kind)


def nearest(word: str, known: Sequence[str]) -> str:
    """As ``did you mean score?``, where something is spelt nearly so; else nothing."""
    names = {one.lstrip("-"): one for one in known}
    found = get_close_matches(word.lstrip("-"), list(names), n=1)
    return f"did you mean {names[found[0]]}?" if found else ""


def with_hyphens(name: str) -> str:
    """An option as it is typed."""
    return name.replace("_", "-")
