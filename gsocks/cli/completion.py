"""``gsocks completion SHELL``: what a shell needs to complete a command line of gsocks."""

from __future__ import annotations

import argparse
from typing import Any

from gsocks.errors import ConfigError

#: what names a file, by its metavar
_FILES = ("FILE", "[NAME=]FILE", "LIST")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``: bash, zsh or fish.  Raises ConfigError."""
    try:
        import shtab
    except ImportError:
        raise ConfigError("completions need shtab (pip install 'gsocks[cli]')") from None
    _name_files(parser, shtab.FILE)
    text: str = shtab.complete(parser, shell)
    return text if text.endswith("\n") else text + "\n"


def _name_files(parser: argparse.ArgumentParser, complete: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _name_files(each, complete)
        elif action.metavar in _FILES:
            annotated: Any = action
            annotated.complete = complete
