"""Users in a file of their own, which is read again when it changes.

    # whoever runs this door
    alice:$argon2id$v=19$m=65536,t=2,p=1$...

A line is a name and what ``gsocks passwd`` prints, with a colon between; empty lines and those that
begin with ``#`` say nothing.  Whether the file has changed is looked at when somebody logs in, at
most once a second: so there is nothing to start and nothing to stop, and a user who was taken out
is out.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gsocks.errors import ConfigError
from gsocks.units import format_size
from gsocks.users import Users, check_hash

log = logging.getLogger("gsocks.users")

#: bytes; some 100,000 users
LARGEST_FILE = 16 * 1024 * 1024

#: RFC 1929: a user name's length travels in one byte
_LONGEST_NAME = 255

_NO_OTHERS: Mapping[str, str] = {}

_NOT_READ = "not read again, the users of before stay: %s"

#: what tells one state of a file from another; None is a file that can't be looked at
_State = tuple[int, ...] | None


class _Unreadable(ConfigError):
    """The file is not there, or can't be read at present."""


class FileUsers(Users):
    """The users in the file ``path``, beside those of ``others``.

    A mistake in the file names its line, and while the door runs the users of before stay.  Raises
    ConfigError for a file that can't be used, and for a name that is in both.
    """

    #: seconds between two looks at the file
    LOOK_EVERY = 1.0

    __slots__ = ("_looked", "_missed", "_others", "_path", "_state")

    def __init__(
        self,
        path: Path | str,
        others: Mapping[str, str] = _NO_OTHERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._state: _State = None
        self._missed = False
        self._looked = clock()
        super().__init__(others, clock)

    def replace(self, hashes: Mapping[str, str]) -> None:
        """Take other users beside those of the file, which is read again.

        Raises ConfigError as the constructor does; then the users are those of before.
        """
        state, lines = _read(self._path)
        super().replace({**hashes, **_parse(self._path, lines, hashes)})
        self._others = dict(hashes)
        self._state = state

    def __contains__(self, name: object) -> bool:
        self._look()  # this is asked first when somebody logs in
        return super().__contains__(name)

    def verify(self, name: str, password: bytes) -> bool:
        """See :meth:`gsocks.users.Users.verify`."""
        self._look()
        return super().verify(name, password)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < self.LOOK_EVERY:
            return
        self._looked = now
        state = _state_of(self._path)
        if state == self._state:
            return
        try:
            self.replace(self._others)
        except _Unreadable as error:  # tried again at the next look, and told once
            if not self._missed:
                log.error(_NOT_READ, error)
            self._missed = True
            return
        except ConfigError as error:  # until it changes again
            log.error(_NOT_READ, error)
            self._state = state
        else:
            log.info("read again: %s", self._path)
        self._missed = False


def _state_of(path: Path) -> _State:
    try:
        return _state(os.stat(path))
    except OSError:
        return None


def _state(found: os.stat_result) -> _State:
    # the inode and ctime too: a file moved into its place may be as old and as long
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _read(path: Path) -> tuple[_State, list[bytes]]:
    """The file's lines, and its state before these were read.  Raises ConfigError."""
    try:
        with path.open("rb") as file:
            state = _state(os.fstat(file.fileno()))
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise _Unreadable(f"{path}: {error.strerror}") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {format_size(LARGEST_FILE)}")
    if not raw:
        # rather a file that is just being written than a door that nobody may enter
        raise ConfigError(f"{path}: is empty (a comment in it says that this is meant)")
    return state, raw.splitlines()


def _parse(path: Path, lines: list[bytes], others: Mapping[str, str]) -> dict[str, str]:
    """Names and hashes.  Raises ConfigError, which tells the line and nothing of a hash."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        place = f"{path}: line {number}"
        user = _user(line, place)
        if user is None:
            continue
        name, stored = user
        if name in found:
            raise ConfigError(f"{place}: {name!r} stands here twice")
        if name in others:
            raise ConfigError(f"{place}: {name!r} is among the users of the config already")
        found[name] = stored
    return found


def _user(line: bytes, place: str) -> tuple[str, str] | None:
    """Name and hash; None if the line says nothing."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: not UTF-8") from None
    if not text or text.startswith("#"):
        return None
    name, colon, stored = text.partition(":")
    if not colon:
        raise ConfigError(f"{place}: expected name:hash, the hash as gsocks passwd prints it")
    if not name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"{place}: a name that is empty, not printable or longer than {_LONGEST_NAME} bytes"
        )
    try:
        check_hash(name, stored)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return name, stored
