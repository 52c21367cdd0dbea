"""A command line that is wrong, told in one line: what is wrong, and where help is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from gsocks.errors import ConfigError
from gsocks.messages import did_you_mean, shown

#: what stands for a command in the help
COMMAND = "COMMAND"

#: argparse's words for a value that is none of its choices; quoted by some versions of Python only
_CHOICE = re.compile(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", re.DOTALL)
_MISSING = re.compile(r"the following arguments are required: (.+)")
_NO_VALUE = re.compile(r"argument (?:\S+/)?(\S+): expected (?:one|at least one) argument")


#: how the names of config files end
_CONFIG = (".yaml", ".yml")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, with the command before what is wrong."""
        raise ConfigError(f"{self.prog}: {_reworded(message, self)} ({self.prog} --help)")

    def parse_all(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options of the command; what it does not know is its mistake.  Raises ConfigError."""
        options, unknown = self.parse_known_args(arguments)
        # before Python 3.12 argparse takes no names behind options if there are none before them
        if isinstance(getattr(options, "names", None), list):
            options.names += [each for each in unknown if not each.startswith("-")]
            unknown = [each for each in unknown if each.startswith("-")]
        if unknown:
            command = self._command(getattr(options, "command", None))
            command.error(_unknown(unknown[0], command.option_strings))
        return options

    @property
    def option_strings(self) -> list[str]:
        """All of its options, as they are written."""
        return list(self._option_string_actions)

    def metavar_of(self, option: str) -> str:
        """What stands for the value of an option in its help."""
        action: Any = self._option_string_actions.get(option)
        return str(action.metavar or "") if action is not None else ""

    def needed(self, names: Iterable[str]) -> Iterator[str]:
        """Of arguments, those that can't be left out, with the words that are known for each.

        argparse has those of which there may be none among the missing ones, too, before 3.12.
        """
        found = {str(each.metavar or each.dest): each for each in self._get_positional_actions()}
        for name in names:
            action = found.get(name)
            if action is None or action.nargs != "*":
                known = action.choices if action is not None else None
                yield f"{name} ({', '.join(map(str, known))})" if known else name

    def _command(self, name: str | None) -> Parser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                found = action.choices[name]
                if isinstance(found, Parser):
                    return found
        return self


def _reworded(message: str, parser: Parser) -> str:
    if found := _CHOICE.fullmatch(message):
        given, known = _unquoted(found[2]), [_unquoted(each) for each in found[3].split(", ")]
        if found[1] == COMMAND:
            return f"{shown(given)} is no command{did_you_mean(given, known)}"
        return f"{found[1]}: {shown(given)} is none of {', '.join(known)}"
    if found := _MISSING.fullmatch(message):
        return f"missing: {', '.join(parser.needed(found[1].split(', ')))}"
    if found := _NO_VALUE.fullmatch(message):
        return f"{found[1]} needs a value {parser.metavar_of(found[1])}".rstrip()
    return message.replace("\n", " ")


def _unknown(argument: str, known: Iterable[str]) -> str:
    if not argument.startswith("-"):
        hint = f" (did you mean -c {shown(argument)}?)" if argument.endswith(_CONFIG) else ""
        return f"{shown(argument)} is one argument too many{hint}"
    option = argument.partition("=")[0]
    return f"{option} is no option{did_you_mean(option, known)}"


def _unquoted(text: str) -> str:
    return text.strip("'\"")
