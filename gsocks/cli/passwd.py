"""``gsocks passwd``: hash a password for ``local.users``."""

from __future__ import annotations

import getpass
import os
import sys

from gsocks.access.users import hash_password
from gsocks.errors import ConfigError


def passwd() -> int:
    """Read a password, twice from a terminal or one line from a pipe, and print its hash."""
    if sys.stdin.isatty():
        password = _prompt("password: ")
        if _prompt("once more: ") != password:
            raise ConfigError("the two passwords differ")
    else:
        password = sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
    if not password:
        raise ConfigError("the password is empty")
    print(hash_password(password))
    return 0


def _prompt(text: str) -> bytes:
    try:
        return os.fsencode(getpass.getpass(text))  # the bytes that a client sends
    except EOFError:
        print(file=sys.stderr)  # ends the line of the prompt
        raise ConfigError("no password was given") from None
