"""Unix sockets that listeners have: their files, and who is at the other end."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import NamedTuple

from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.net.endpoint import UNIX, UnixPath
from gsocks.sock import AnySocket

#: connections that wait for accept; the kernel caps it at net.core.somaxconn
BACKLOG = 1024

# struct ucred of unix(7): process, user, group
_CREDENTIALS = struct.Struct("=iII")


class UnixAddress(Address):
    """The address of a listener at a Unix socket, which has no port: ``unix:/run/gsocks.sock``."""

    __slots__ = ()

    @classmethod
    def of_listener(cls, path: str) -> UnixAddress:
        return cls(f"{UNIX}{path}", 0)

    @property
    def path(self) -> str:
        """That of the socket's file."""
        return self.host.removeprefix(UNIX)

    def __str__(self) -> str:
        return self.host


class UnixClient(Address):
    """The address of a client at a Unix socket, as the kernel tells: ``unix:1000:4711``.

    As its host, its user, by which it is counted; as its port, its process.
    """

    __slots__ = ()

    @classmethod
    def of_peer(cls, sock: AnySocket | socket.socket) -> UnixClient:
        """The client that has connected ``sock``."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(raw)
        return cls(f"{UNIX}{user}", process)

    @property
    def user(self) -> int:
        """The user's number."""
        return int(self.host.removeprefix(UNIX))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SocketFile(NamedTuple):
    """The file of a Unix socket, as long as no other one has taken its place."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile:
        """The file that is there now.  Raises OSError."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove it; does nothing if it is gone, or is another one."""
        try:
            if SocketFile.at(self.path) == self:
                os.unlink(self.path)
        except OSError:
            pass  # it is gone, or its folder is


def listen_at(where: UnixPath) -> socket.socket:
    """A non-blocking Unix socket that listens there, in the place of one without a listener.

    Raises ConfigError.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        try:
            _bind(sock, where)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(where)
            _bind(sock, where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{where}: {error.strerror}") from None
    except ConfigError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, where: UnixPath) -> None:
    """Raises OSError."""
    # and not by chmod: there might be another file by then
    before = os.umask(0o777 & ~where.mode)
    try:
        sock.bind(where.path)
    finally:
        os.umask(before)


def _remove_stale(where: UnixPath) -> None:
    """Remove the file of a process that is gone.  Raises ConfigError, OSError."""
    found = SocketFile.at(where.path)
    if not stat.S_ISSOCK(os.lstat(where.path).st_mode):
        raise ConfigError(f"{where}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(where.path)
        except ConnectionRefusedError:
            found.remove()
            return
        except BlockingIOError:
            pass  # so many wait already
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # of datagrams: another program is there
                raise
    raise ConfigError(f"{where}: another program listens there already")
