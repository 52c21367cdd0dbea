"""Where listeners listen: sockets that are opened before the workers, shared with them, and closed.

IP address, TCP   one process listens; of workers each listens by itself, at a reserved port
IP address, UDP   one process has it bound; of workers each has a socket of its own
Unix socket       one process listens; workers share it
passed socket     as it was passed; workers share it, and of UDP the first one has it
"""

from __future__ import annotations

import contextlib
import logging
import socket as std_socket
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from gsocks.address import Address
from gsocks.net.endpoint import Activated, Endpoint, UnixPath
from gsocks.net.listen import listen, listen_for_datagrams, reserve
from gsocks.net.unix import SocketFile, UnixAddress, listen_at
from gsocks.service.activation import Inherited, check_kind

log = logging.getLogger("gsocks")


class Opening(NamedTuple):
    """A place to listen, in the process that has opened it and in its workers."""

    bound: Address
    #: of each worker, as far as there is one for it
    sockets: tuple[std_socket.socket, ...]
    #: whether the first one only holds the port
    is_reserved: bool = False
    #: which no other one has had
    number: int = 0

    def of_worker(self, number: int) -> Opening | None:
        """The same with the socket of that worker alone; None: another one has it.

        Raises ConfigError.
        """
        if self.is_reserved:
            sock = listen(self.bound, reuse_port=True)
            for reserving in self.sockets:  # the parent holds the port, and may let go of it
                reserving.close()
            return self._replace(sockets=(sock,), is_reserved=False)
        own = self.sockets[number : number + 1]
        return self._replace(sockets=own) if own else None

    @property
    def socket(self) -> std_socket.socket:
        """Where this process listens."""
        return self.sockets[0]


class Openings:
    """All that was opened for ``workers`` processes; ``inherited``: sockets that were passed.

    ``beside``: whether another gsocks of this user may listen at the same ports of TCP.
    """

    def __init__(self, inherited: Inherited, workers: int, *, beside: bool = False) -> None:
        self._inherited = inherited
        self._beside = beside
        self._workers = workers
        self._files: list[SocketFile] = []
        self._sockets: list[std_socket.socket] = []
        self._numbers = count(1)

    def open(
        self, endpoint: Endpoint, *, udp: bool = False, instead: Iterable[Opening] = ()
    ) -> list[Opening]:
        """Open ``endpoint``, which may be several sockets if they are passed.

        ``instead``: what is closed afterwards, and so may have the address until then.  Raises
        ConfigError.
        """
        opened = self._open(endpoint, udp=udp, instead=instead)
        return [each._replace(number=next(self._numbers)) for each in opened]

    def _open(self, endpoint: Endpoint, *, udp: bool, instead: Iterable[Opening]) -> list[Opening]:
        if isinstance(endpoint, Activated):
            return [self._passed(sock, endpoint, udp=udp) for sock in self._named(endpoint)]
        if isinstance(endpoint, UnixPath):
            sock = self._kept(listen_at(endpoint))
            with contextlib.suppress(OSError):  # it was removed at once
                self._files.append(SocketFile.at(endpoint.path))
            return [Opening(UnixAddress.of_listener(endpoint.path), (sock,) * self._workers)]
        if udp:
            found = listen_for_datagrams(endpoint, self._workers)
            return [Opening(_bound(found[0]), tuple(map(self._kept, found)))]
        beside = self._beside or any(_overlap(each.bound, endpoint) for each in instead)
        if self._workers == 1:
            sock = self._kept(listen(endpoint, reuse_port=beside))
            return [Opening(_bound(sock), (sock,))]
        sock = self._kept(reserve(endpoint, beside=beside))
        return [Opening(_bound(sock), (sock,), is_reserved=True)]

    def _named(self, endpoint: Activated) -> list[std_socket.socket]:
        return self._inherited.named(endpoint.name)

    def _passed(self, sock: std_socket.socket, endpoint: Activated, *, udp: bool) -> Opening:
        check_kind(sock, endpoint.name, udp=udp)
        self._kept(sock)
        name = sock.getsockname()
        bound = _bound(sock) if isinstance(name, tuple) else UnixAddress.of_listener(_shown(name))
        # two readers would each get some of the datagrams of one sender
        return Opening(bound, (sock,) * (1 if udp else self._workers))

    def _kept(self, sock: std_socket.socket) -> std_socket.socket:
        self._sockets.append(sock)
        return sock

    def release(self, opening: Opening) -> None:
        """Close what was opened, in this process; the file of a Unix socket is removed."""
        if isinstance(opening.bound, UnixAddress):
            for file in [each for each in self._files if each.path == opening.bound.path]:
                file.remove()
                self._files.remove(file)
        for sock in opening.sockets:
            sock.close()
        self._sockets = [each for each in self._sockets if each.fileno() >= 0]

    def all_open(self) -> None:
        """Nothing more is opened: what was passed and is not used, is told of and closed."""
        for name in self._inherited.unused():
            log.warning("systemd:%s: a socket was passed that no listener uses", name)

    def remove_files(self) -> None:
        """Remove the files of the Unix sockets, to which no client can connect any more."""
        while self._files:
            self._files.pop().remove()

    def close(self) -> None:
        """Close all in this process, too.  May be called again."""
        self.remove_files()
        while self._sockets:
            self._sockets.pop().close()


def _overlap(one: Address, other: Address) -> bool:
    """Whether only one of two sockets could be bound there, if they did not share the port."""
    if not one.port or one.port != other.port or one.ip is None or other.ip is None:
        return False
    same_family = one.ip.version == other.ip.version
    return same_family and (one.ip == other.ip or one.ip.is_unspecified or other.ip.is_unspecified)


def _bound(sock: std_socket.socket) -> Address:
    return Address.from_sockaddr(sock.getsockname())


def _shown(name: str | bytes) -> str:
    """The path of a Unix socket; an abstract one, which has no file, begins with ``@``."""
    return name if isinstance(name, str) else "@" + name[1:].decode("utf-8", "replace")
