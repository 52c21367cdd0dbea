"""The command line of this process, as other users of the machine see it: without its secrets.

What ``ps`` shows is the memory in which the kernel has put the arguments, and that may be written.
It is visible as it was until then, which is some milliseconds, and stays in the shell's history: a
file (``--exit @FILE``) or the environment hides a secret from the start.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

#: what could be a secret: the part of a URL before its @, 43 digits of base64, a hash
_SECRET = re.compile(r"(?<=://)\S*(?=@)|[A-Za-z0-9+_-][A-Za-z0-9+/_-]{42,}=?|\$argon2[^\s\"'}\]]*")

#: options whose values are secrets as a whole, and keys of a config that are
_NAMED = re.compile(r"(?:password|passwd|secret|token|key|keys|users?)")

#: the fields of /proc/PID/stat that say where the arguments begin and end (proc(5)), counted from
#: the one behind the program's name
_ARG_START, _ARG_END = 45, 46


def masked(argument: str) -> str:
    """``argument`` with stars in place of what could be a secret; as long as before."""
    return _SECRET.sub(lambda found: _stars(found[0]), _without_named(argument))


def _without_named(argument: str) -> str:
    """``--set local.users.alice=x`` without its x, if the path ends in the name of a secret."""
    option, rest = ("--set=", argument[6:]) if argument.startswith("--set=") else ("", argument)
    path, mark, value = rest.partition("=")
    if not mark or path.startswith(("http", "{", "[")) or "://" in path:
        return argument
    words = re.split(r"[.\-]+", path)
    if any(_NAMED.fullmatch(word) for word in words) and "file" not in words:
        return option + path + mark + _stars(value)
    return argument


def _stars(secret: str) -> str:
    return "*" * len(os.fsencode(secret))


def has_secret(arguments: Sequence[str]) -> bool:
    """Whether one of ``arguments`` has what could be a secret."""
    return any(masked(each) != each for each in arguments)


def hide_secrets(arguments: Sequence[str] = ()) -> bool:
    """Replace the secrets in this process' command line; whether they can't be seen any more.

    ``arguments``: those of the program, ``sys.argv`` without its name by default.
    """
    given = list(arguments) or sys.argv[1:]
    if not has_secret(given):
        return True
    try:
        return _overwrite(given)
    except (OSError, ValueError, IndexError):
        return False


def _overwrite(given: Sequence[str]) -> bool:
    import ctypes  # as most processes have no use for it so early

    with open("/proc/self/cmdline", "rb") as file:
        line = file.read()
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not begin or end - begin < len(line):
        return False
    parts = line.split(b"\0")
    at = 0
    for part in parts:
        text = os.fsdecode(part)
        hidden = os.fsencode(masked(text))
        if text in given and hidden != part and len(hidden) == len(part):
            ctypes.memmove(begin + at, hidden, len(hidden))
        at += len(part) + 1
    with open("/proc/self/cmdline", "rb") as file:
        now = file.read()
    return not has_secret([os.fsdecode(each) for each in now.split(b"\0")])
