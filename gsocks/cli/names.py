"""Names for the completion of ``gsocks ctl``: a shell hands over the line, the gateway is asked.

A shell asks while a user types: the answer comes soon or not at all, and whatever fails, there
are no names and no words about it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TypeAlias

import gevent

from gsocks.admin_client import AdminClient, AdminError
from gsocks.cli.ctl import Ctl, place_of
from gsocks.errors import ConfigError

#: seconds in which the gateway has to answer
PATIENCE = 1.0

#: names that are shown at most
MAX_NAMES = 1000

#: of clients' sessions come names that a shell would run if they were put into its line
_HARMLESS = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.:@%+=,/-]*")

_OF_SESSIONS = ("rotate",)

#: options whose value is a name, too
_OF_OPTIONS = ("--user", "--tag")


#: the options of a command line, and what the parser has not taken
Parse: TypeAlias = Callable[[list[str]], tuple[Any, list[str]]]


def names_for(line: str, parse: Parse, takes_names: Sequence[str]) -> list[str]:
    """The names that may come next in ``line``, a shell's up to the cursor.

    ``parse``: that of ``gsocks``; ``takes_names``: the actions of ``ctl`` that do.
    """
    words, begun = _split(line)
    option = words.pop() if words and words[-1] in _OF_OPTIONS else ""
    options = _parse(words, parse)
    if options is None or begun.startswith("-"):
        return []
    if not option and options.action not in takes_names:
        return []
    try:
        with gevent.Timeout(PATIENCE):
            return _ask(options, option, begun)
    except (AdminError, ConfigError, OSError, gevent.Timeout):
        return []


def _split(line: str) -> tuple[list[str], str]:
    """The words behind ``gsocks``, if one of them is ``ctl``, and the one that is being typed."""
    try:
        words = shlex.split(line + "\0")
    except ValueError:  # in the middle of a quoted word
        return [], ""
    *whole, last = words
    if "ctl" not in whole:
        return [], ""
    at = whole.index("ctl")
    # other commands may stand before it in the line
    ours = [number for number, each in enumerate(whole[:at]) if each.endswith("gsocks")]
    return whole[ours[-1] + 1 if ours else at :], last.removesuffix("\0")


def _parse(words: list[str], parse: Parse) -> Any:
    """The options so far; None: they are none of ``ctl``."""
    said = io.StringIO()
    words = [os.path.expanduser(os.path.expandvars(each)) for each in words]
    if not words or "completion" in words[: words.index("ctl")]:
        return None
    try:
        with redirect_stdout(said), redirect_stderr(said):
            options, rest = parse(words)
    except (SystemExit, ConfigError):
        return None
    if not hasattr(options, "action"):
        return None
    options.names = [*options.names, *rest]
    return options


def _ask(options: Any, option: str, begun: str) -> list[str]:
    url, token = place_of(
        Ctl(
            action=options.action,
            config=options.config,
            admin=options.admin,
            token_file=options.token_file,
        )
    )
    found: dict[str, None] = {}
    with AdminClient(url, token, PATIENCE) as admin:
        for name in _told(admin, options, option, begun):
            if name.startswith(begun) and _HARMLESS.fullmatch(name):
                found[name] = None  # a tag comes with each exit that has it
            if len(found) >= MAX_NAMES:
                break
    return [name for name in found if option or name not in options.names]


def _told(admin: AdminClient, options: Any, option: str, begun: str) -> Iterator[str]:
    """What the gateway has of the wanted kind."""
    text = begun or None
    if option == "--user":
        return (each["name"] for each in admin.users(text=text))
    if option == "--tag":
        return (tag for each in admin.exits(section=options.section) for tag in each["tags"])
    if options.action in _OF_SESSIONS:
        return (each["session"] for each in admin.sessions(text=text, user=options.user))
    return (each["name"] for each in admin.exits(text=text, section=options.section))
