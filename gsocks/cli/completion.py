"""``gsocks completion SHELL``: what a shell needs to complete a command line of gsocks."""

from __future__ import annotations

import argparse
import re
from typing import Any

from gsocks.errors import ConfigError

#: what names a file, by its metavar
_FILES = ("FILE", "[NAME=]FILE", "LIST")

# bash would take a word that has one of "'@><=;|&(: for several words
_BASH = """\
_gsocks_names() {
  local name
  while IFS= read -r name; do
    [[ $name == *[:=@]* ]] || echo "$name"
  done < <("${COMP_WORDS[0]}" completion --names "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
}"""

_ZSH = """\
_gsocks_names() {
  local -a names
  names=(${(f)"$(gsocks completion --names "$LBUFFER" 2>/dev/null)"})
  compadd -a names
}"""

_FISH = """\
function _gsocks_names
  set -l words (commandline -opc)
  command $words[1] completion --names (commandline -cp | string collect) 2>/dev/null
end"""

#: how a shell completes the names of exits and sessions: it asks gsocks, which asks the gateway
NAMES = {
    "bash": "_gsocks_names",
    "zsh": "_gsocks_names",
    "fish": "(_gsocks_names)",
    "preamble": {"bash": _BASH, "zsh": _ZSH, "fish": _FISH},
}

# of shtab's specs for zsh those of several words, of which zsh takes one as they are written
_SEVERAL = re.compile(r'(?<=^  )"\(\*\)::?', re.MULTILINE)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``: bash, zsh or fish.  Raises ConfigError."""
    try:
        import shtab
    except ImportError:
        raise ConfigError("completions need shtab (pip install 'gsocks[cli]')") from None
    _name_files(parser, shtab.FILE)
    text: str = shtab.complete(parser, shell)
    if shell == "zsh":
        text = _SEVERAL.sub('"*:', text)
    return text if text.endswith("\n") else text + "\n"


def _name_files(parser: argparse.ArgumentParser, complete: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _name_files(each, complete)
        elif action.metavar in _FILES:
            annotated: Any = action
            annotated.complete = complete
