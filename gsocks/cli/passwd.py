"""``gsocks passwd``: hash a password, for ``local.users`` or a users file."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from pathlib import Path

from gsocks import config
from gsocks.access.users import hash_password
from gsocks.cli.process import log_to_stderr
from gsocks.errors import ConfigError
from gsocks.files import read_secret, replace_secret

log = logging.getLogger("gsocks")

#: bytes of a users file; a million users have some 100 MB
_MAX_SIZE = 256 * 1024 * 1024

#: RFC 1929: a user name's length travels in one byte
_MAX_NAME_BYTES = 255


def passwd(file: Path | None = None, user: str | None = None, *, delete: bool = False) -> int:
    """Read a password, twice from a terminal or one line from a pipe, and print its hash.

    With ``file`` the line of ``user`` in that users file is replaced, or added, instead; the file
    is made with mode 0600 if it does not exist.  ``delete``: the line is removed.  Raises
    ConfigError.
    """
    if (file is None) != (user is None):
        raise ConfigError("--file FILE needs the NAME of the user, and NAME needs --file FILE")
    if file is None or user is None:
        if delete:
            raise ConfigError("--delete needs --file FILE and the NAME of the user")
        print(hash_password(_password()))
        return 0
    if not user or ":" in user or user.startswith("#") or not user.isprintable():
        raise ConfigError("a user name is printable, holds no colon and begins with no #")
    if user != user.strip() or len(os.fsencode(user)) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"a user name has no blanks around it and {_MAX_NAME_BYTES} bytes at most"
        )
    log_to_stderr(config.Log(level="warning"))
    lines = _lines(file)
    has = any(_is_of(line, user) for line in lines)
    if delete and not has:
        raise ConfigError(f"{file}: has no user {user}")
    new = [] if delete else [f"{user}:{hash_password(_password())}".encode()]
    kept: list[bytes] = []
    for line in lines:
        if not _is_of(line, user):
            kept.append(line)
        elif new:
            kept.append(new.pop())  # in its place; a second line of that user would be a mistake
    try:
        file = file.resolve()
        like = file.stat() if file.exists() else None  # a service of another user may read it
        replace_secret(file, b"".join(line + b"\n" for line in kept + new), like)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or type(error).__name__}") from None
    done = "removed" if delete else "changed" if has else "added"
    print(f"{file}: user {user} {done}", file=sys.stderr)
    return 0


def _lines(file: Path) -> list[bytes]:
    try:
        raw = read_secret(file, _MAX_SIZE + 1, log)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    if len(raw) > _MAX_SIZE:
        raise ConfigError(f"{file}: larger than any users file")
    return raw.splitlines()


def _is_of(line: bytes, user: str) -> bool:
    return line.strip().startswith(os.fsencode(user) + b":")


def _password() -> bytes:
    if sys.stdin.isatty():
        password = _prompt("password: ")
        if _prompt("once more: ") != password:
            raise ConfigError("the two passwords differ")
    else:
        password = sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
    if not password:
        raise ConfigError("the password is empty")
    return password


def _prompt(text: str) -> bytes:
    try:
        return os.fsencode(getpass.getpass(text))  # the bytes that a client sends
    except EOFError:
        print(file=sys.stderr)  # ends the line of the prompt
        raise ConfigError("no password was given") from None
