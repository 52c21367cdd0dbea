"""Users in a file, which is reloaded when it has changed.

    # the operators
    alice:$argon2id$v=19$m=65536,t=2,p=1$...

A line is a user name, a colon and the output of ``gsocks passwd``; empty lines and lines that begin
with ``#`` are ignored.  A login checks whether the file has changed, at most once a second: so
there is nothing to start or to stop, and a user who was removed from the file can't log in.  Logins
wait while it is read again, which takes a second for 100,000 users, and everything else goes on.
"""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import gevent
from gevent.lock import BoundedSemaphore

from gsocks.access.users import Cost, Users, check_all, check_hash, go_on
from gsocks.errors import ConfigError
from gsocks.files import FileState, as_utf8, open_guarded, state_of
from gsocks.turns import give_way
from gsocks.units import format_size

log = logging.getLogger("gsocks.users")

#: bytes; some 100,000 users
MAX_FILE = 16 * 1024 * 1024

#: bytes of a user name, whose length is sent in one byte (RFC 1929)
_MAX_NAME = 255

# readings of a file that is being written, after which it is taken as it is
_MAX_READINGS = 3

_NO_USERS: Mapping[str, str] = {}

_NOT_RELOADED = "not reloaded, the previous users stay in effect: %s"


class _Unreadable(ConfigError):
    """The file is missing, or can't be read at present."""


class FileUsers(Users):
    """The users in the file ``path``, and those of ``others``.

    Raises ConfigError for an invalid file, with the line, and for a name that is in both.  If the
    file is invalid when it has changed, the previous users stay in effect and the log says so.
    ``give_way`` is called for each line when the file is read first.
    """

    #: seconds between two checks whether the file has changed
    check_interval = 1.0

    __slots__ = (
        "_checked",
        "_loading",
        "_missing_reported",
        "_others",
        "_path",
        "_reload",
        "_state",
    )

    def __init__(
        self,
        path: Path | str,
        others: Mapping[str, str] = _NO_USERS,
        clock: Callable[[], float] = time.monotonic,
        give_way: Callable[[], object] = go_on,
    ) -> None:
        super().__init__(_NO_USERS, clock)
        self._path = Path(path)
        self._missing_reported = False
        self._checked = clock()
        #: who reads the file holds it, so that no older content replaces a newer one
        self._loading = BoundedSemaphore()
        self._reload: gevent.Greenlet[[], None] | None = None
        self._load(others, give_way)

    def replace(self, hashes: Mapping[str, str]) -> None:
        """Replace the users of ``others`` and reload the file.

        Raises ConfigError as the constructor does; then the users are unchanged.
        """
        with self._loading:
            self._load(hashes, give_way)

    def _load(self, others: Mapping[str, str], give_way: Callable[[], object]) -> None:
        known, costs = check_all(others, give_way)
        for reading in range(1, _MAX_READINGS + 1):
            state, raw = _read(self._path)
            try:
                found, more_costs = _parse(self._path, raw, known, give_way)
            except ConfigError:
                if reading == _MAX_READINGS or state_of(self._path) == state:
                    raise
            else:
                if state_of(self._path) == state:
                    break
        found.update(known)
        self._take(found, costs | more_costs)
        self._others = known
        self._state = state

    def __contains__(self, name: object) -> bool:
        self._reload_if_changed()  # called first by every login, to find the user in the name
        return super().__contains__(name)

    def verify(self, name: str, password: bytes, client: str = "") -> bool:
        """See :meth:`gsocks.access.users.Users.verify`."""
        self._reload_if_changed()
        return super().verify(name, password, client)

    def _reload_if_changed(self) -> None:
        """Have the file read if it has changed, and wait until that is done."""
        now = self._clock()
        if self._reload is None and now - self._checked >= self.check_interval:
            self._checked = now
            if state_of(self._path) != self._state:
                # in its own greenlet: the client that waits may be gone before the end
                self._reload = gevent.spawn(self._load_again)
        if self._reload is not None:
            self._reload.join()

    def _load_again(self) -> None:
        try:
            with self._loading:
                state = state_of(self._path)
                if state == self._state:
                    return
                try:
                    self._load(self._others, give_way)
                except _Unreadable as error:  # retried at the next check, and logged once
                    if not self._missing_reported:
                        log.error(_NOT_RELOADED, error)
                    self._missing_reported = True
                    return
                except ConfigError as error:  # not read before it changes again
                    log.error(_NOT_RELOADED, error)
                    self._state = state
                else:
                    log.info("reloaded: %s", self._path)
                self._missing_reported = False
        finally:
            self._reload = None


def _read(path: Path) -> tuple[FileState, bytes]:
    """The file's state, taken before it was read, and its text in UTF-8.  Raises ConfigError."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # a pipe could make this process wait for ever
            raise _Unreadable(f"{path}: is not a file")
        with open_guarded(path) as file:
            state = state_of(file.fileno())
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _Unreadable(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_FILE:
        raise ConfigError(f"{path}: larger than {format_size(MAX_FILE)}")
    if not raw:
        # more likely a file that is just being written than one that is meant to have no users
        raise ConfigError(f"{path}: is empty (write a comment into it if it is meant to be)")
    try:
        return state, as_utf8(raw)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: begins as UTF-16 and is not") from None


def _parse(
    path: Path,
    raw: bytes,
    others: Mapping[str, str],
    give_way: Callable[[], object],
) -> tuple[dict[str, str], set[Cost]]:
    """Names and hashes, and what these cost.

    Raises ConfigError, which names the line and contains no hash.
    """
    found: dict[str, str] = {}
    costs: set[Cost] = set()
    for number, line in enumerate(BytesIO(raw), 1):
        give_way()
        try:
            user = _user(line)
            if user is None:
                continue
            name, stored = user
            costs.add(check_hash(name, stored))
            if name in found:
                raise ConfigError(f"duplicate user {name!r}")
            if name in others:
                raise ConfigError(f"user {name!r} is also in the config")
        except ConfigError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
        found[name] = stored
    return found, costs


def _user(line: bytes) -> tuple[str, str] | None:
    """Name and hash; None if the line is empty or a comment.  Raises ConfigError."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8") from None
    if not text or text.startswith("#"):
        return None
    name, colon, stored = text.partition(":")
    if not colon:
        raise ConfigError("expected name:hash, the hash as gsocks passwd prints it")
    if not name or not name.isprintable() or len(name.encode()) > _MAX_NAME:
        raise ConfigError(f"a name that is empty, not printable or longer than {_MAX_NAME} bytes")
    return name, stored
