"""Sockets that were opened for the program by what has started it, as systemd does.

The protocol is that of sd_listen_fds(3): LISTEN_FDS descriptors from the third on, which are meant
for the process LISTEN_PID, and whose names are LISTEN_FDNAMES.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, MutableMapping

from gsocks.errors import ConfigError
from gsocks.messages import shown

#: SD_LISTEN_FDS_START
FIRST = 3

#: sockets that may be passed
MAX_SOCKETS = 1024

#: the name of a socket that has none
_UNNAMED = "unknown"

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Inherited:
    """The passed sockets, by their names."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}
        self._taken: set[str] = set()

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Inherited:
        """Those that were passed to this process, which passes them on to none that it starts.

        There are none if they were meant for another process.  Raises ConfigError.
        """
        inherited = cls()
        pid, count, names = (environ.get(name, "") for name in _VARIABLES)
        if pid != str(os.getpid()):
            return inherited
        for name in _VARIABLES:
            environ.pop(name, None)
        if not (count.isascii() and count.isdigit() and int(count[:9]) <= MAX_SOCKETS):
            raise ConfigError(f"LISTEN_FDS: {shown(count)} is not a number of sockets")
        named = names.split(":") if names else []
        for number in range(int(count)):
            name = named[number] if number < len(named) else _UNNAMED
            inherited._sockets.setdefault(name, []).append(_passed(FIRST + number, name))
        return inherited

    def __repr__(self) -> str:
        return f"<Inherited {self.names}>"

    @property
    def names(self) -> list[str]:
        """The names of the sockets, which need not be different ones."""
        return list(self._sockets)

    def named(self, name: str) -> list[socket.socket]:
        """The sockets of that name; of an empty one, those of the only name that there is.

        Raises ConfigError.
        """
        known = ", ".join(self._sockets) or "none"
        if not name:
            if len(self._sockets) != 1:
                raise ConfigError(f"systemd: needs a name (sockets were passed: {known})")
            name = next(iter(self._sockets))
        if name not in self._sockets:
            raise ConfigError(f"systemd:{name}: no such socket was passed (passed: {known})")
        if name in self._taken:
            raise ConfigError(f"systemd:{name}: another listener has it already")
        self._taken.add(name)
        return self._sockets[name]

    def unused(self) -> Iterator[str]:
        """The names of sockets that no listener has taken; they are closed."""
        for name, sockets in self._sockets.items():
            if name not in self._taken:
                for sock in sockets:
                    sock.close()
                yield name


def _passed(descriptor: int, name: str) -> socket.socket:
    """The socket with that descriptor.  Raises ConfigError."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ConfigError(f"systemd:{name}: what was passed is no socket")
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"systemd:{name}: descriptor {descriptor}: {error.strerror}") from None
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def check_kind(sock: socket.socket, name: str, *, udp: bool) -> None:
    """Raise ConfigError if a passed socket can't be listened at, as TCP or Unix or as ``udp``."""
    families = {socket.AF_INET, socket.AF_INET6} | (set() if udp else {socket.AF_UNIX})
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    if sock.type != kind or sock.family not in families:
        expected = "UDP (ListenDatagram=)" if udp else "TCP or of Unix (ListenStream=)"
        raise ConfigError(f"systemd:{name}: a socket of another kind (expected one of {expected})")
    if not udp and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"systemd:{name}: a socket that does not listen (expected Accept=no)")
