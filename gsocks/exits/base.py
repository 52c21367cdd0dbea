"""What every way out can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from gevent.socket import socket

from gsocks.address import Address
from gsocks.request import Request
from gsocks.stream import Stream


class Connected(NamedTuple):
    """A request's far side."""

    stream: Stream
    #: the address from which the destination is reached
    bound: Address


class Exit(Protocol):
    """One way out."""

    @property
    def label(self) -> str:
        """How logs and replies name it: its URL without secrets."""

    def start(self) -> None:
        """Begin whatever makes it quick, such as opening tunnels ahead of need."""

    def connect(self, request: Request) -> Connected:
        """Reach ``request.dest``; blocks until it is really connected.

        Raises ConnectFailed or ClientError, whose ``fault`` says whether another exit may do
        better: ExitFailed if the way out itself failed, ExitDoubtful if it or the destination
        did.
        """

    def close(self) -> None:
        """Let go what is idle; connections in use are not touched."""


@runtime_checkable
class Associates(Protocol):
    """An exit that carries datagrams too."""

    def associate(self, request: Request) -> Connected:
        """A stream of datagrams (gsocks/datagram.py), for as long as an association lasts.

        Where it sends them from is not told: the bound address is unspecified.  What
        ``request.dest`` says has no meaning.  Raises as :meth:`Exit.connect` does, and
        CommandNotSupported if it turns out that it can't.
        """


class Listening(Protocol):
    """A port that waits for one peer."""

    @property
    def bound(self) -> Address:
        """Where it waits."""

    def accept(self) -> Connected:
        """Wait for the peer; its connection, and its address in place of the bound one.

        Without a bound in time; once, and after it there is nothing to close.  Raises
        ConnectFailed, ClientError, or StreamClosed if it is closed meanwhile.
        """

    def close(self) -> None:
        """Wait no longer.  Never raises, never blocks; does nothing the second time."""


@runtime_checkable
class Binds(Protocol):
    """An exit that lets the destination connect to it (BIND, RFC 1928 section 4)."""

    def bind(self, request: Request) -> Listening:
        """Wait for a connection from ``request.dest``, or if that is unspecified, from anybody.

        Raises as :meth:`Exit.connect` does, and CommandNotSupported if it turns out that it
        can't.
        """


class Dials(Protocol):
    """What connects to one server again and again: a Dialer, or a detour through an exit."""

    def connect(self, dest: Address, /) -> socket:
        """A connected socket.  Raises GsocksError."""
