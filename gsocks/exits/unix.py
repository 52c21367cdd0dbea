"""The way to a proxy behind a Unix socket, such as ``/run/tor/socks``."""

from __future__ import annotations

import errno
from collections.abc import Hashable
from socket import AF_UNIX

import gevent

from gsocks.address import UNSPECIFIED
from gsocks.deadline import call_with_timeout
from gsocks.errors import ConnectFailed, OutOfResources, connect_failure
from gsocks.exits.base import Connected
from gsocks.request import Request
from gsocks.sock import Socket
from gsocks.stream import SocketStream

#: seconds after which a socket whose queue is full is tried again: nothing tells when it is not
RETRY_DELAY = 0.02


class UnixSocketExit:
    """Connects to the Unix socket at ``path``, whatever the destination.

    ``timeout``: seconds for a program that accepts slowly.
    """

    __slots__ = ("_path", "_timeout", "label")

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.label = f"unix:{path}"

    def connect(self, request: Request) -> Connected:  # noqa: ARG002
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        try:
            sock = Socket(AF_UNIX)
        except OSError as error:
            raise connect_failure(error) from None
        try:
            self._connect(sock)
        except BaseException:  # timed out or killed
            sock.close()
            raise
        return Connected(SocketStream(sock), UNSPECIFIED)

    def identity(self, request: Request) -> Hashable:  # noqa: ARG002
        """See :meth:`gsocks.exits.forward.Identifies.identity`: nothing makes a difference."""
        return ""

    def close(self) -> None:
        """Does nothing: no connection is kept idle."""

    def _connect(self, sock: Socket) -> None:
        if not call_with_timeout(self._timeout, self._try, sock, on_timeout=False):
            raise ConnectFailed(f"{self._path}: no program accepts there")

    def _try(self, sock: Socket) -> bool:
        while True:
            error = sock.connect_ex(self._path)
            if not error:
                return True
            if error != errno.EAGAIN:
                raise self._failure(error)
            gevent.sleep(RETRY_DELAY)

    def _failure(self, number: int) -> ConnectFailed:
        known = connect_failure(OSError(number, ""))
        if isinstance(known, OutOfResources):
            return known
        words = {
            errno.ENOENT: "there is no such socket",
            errno.ECONNREFUSED: "nothing listens there",
            errno.EACCES: "permission denied",
            errno.EPROTOTYPE: "it is a socket of another kind",
        }
        return ConnectFailed(f"{self._path}: {words.get(number, errno.errorcode.get(number))}")
