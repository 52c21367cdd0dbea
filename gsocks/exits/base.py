"""The contracts of exits: what every exit can do, and what some can do besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from gsocks.address import Address
from gsocks.errors import GsocksError
from gsocks.request import Request
from gsocks.sock import AnySocket
from gsocks.stream import Stream


class Connected(NamedTuple):
    """A connection to a destination."""

    stream: Stream
    #: the address from which the destination is reached
    bound: Address


class Exit(Protocol):
    """One exit: connects requests to their destinations, directly or through a proxy.

    An exit serves any number of greenlets at the same time.  It knows nothing of other exits, of
    sessions or of rotation: what it raises tells the exit group whether another exit may succeed.
    It holds nothing until its first request: a list may have 100,000 exits that are never asked.
    A caller that is killed or times out in a call leaves nothing open.
    """

    @property
    def label(self) -> str:
        """Its URL without secrets, for logs and replies."""

    def connect(self, request: Request) -> Connected:
        """Connect to ``request.dest``; blocks until it is really connected.

        The caller owns the returned stream.  Raises ConnectFailed or ClientError, whose ``fault``
        says whether another exit may succeed: ExitFailed if the exit itself failed, ExitDoubtful if
        either the exit or the destination did.
        """

    def close(self) -> None:
        """Close what is idle; connections in use are not affected.  Never blocks."""


class Attempt(Protocol):
    """A connection under way, which the hub carries."""

    def cancel(self) -> None:
        """Give it up: nothing is left open, and its end is not reported.  Never blocks."""


@runtime_checkable
class Begins(Protocol):
    """An exit that can connect without a greenlet (docs/adr/0023-the-straight-way.md)."""

    def begin(
        self, request: Request, done: Callable[[Connected | GsocksError | None], None]
    ) -> Attempt | None:
        """Begin to connect to ``request.dest``.  Never blocks.

        ``done`` is called with what :meth:`Exit.connect` would return or raise; in the hub, once,
        and never before this has returned.  The hub can carry the stream that it gets.  None: the
        request has to wait for something else first, such as a name or a new tunnel, so that
        :meth:`Exit.connect` has to serve it; ``done`` gets it where a tunnel has ended unanswered.
        Raises as that does what fails at once.
        """


@runtime_checkable
class Associates(Protocol):
    """An exit that also carries datagrams (UDP ASSOCIATE, RFC 1928 section 7)."""

    def associate(self, request: Request) -> Connected:
        """A stream of datagrams (gsocks/net/datagram.py) for one association.

        Its source address is unknown: the bound address is unspecified.  ``request.dest`` is
        ignored.  Raises as :meth:`Exit.connect` does, and CommandNotSupported if the far end does
        not support it.
        """


class PendingBind(Protocol):
    """A listening port that waits for one peer."""

    @property
    def bound(self) -> Address:
        """The address of the port."""

    def accept(self) -> Connected:
        """Wait for the peer: its connection, with the peer's address as the bound one.

        Has no timeout.  May succeed once, and then there is nothing to close.  Raises
        ConnectFailed, ClientError, or StreamClosed if the port is closed meanwhile.
        """

    def close(self) -> None:
        """Close the port.  Never raises, never blocks; does nothing the second time."""


@runtime_checkable
class Binds(Protocol):
    """An exit to which the destination can connect (BIND, RFC 1928 section 4)."""

    def bind(self, request: Request) -> PendingBind:
        """Listen for a connection from ``request.dest``, or if that is unspecified, from any peer.

        Raises as :meth:`Exit.connect` does, and CommandNotSupported if the far end does not support
        it.
        """


@runtime_checkable
class LooksUp(Protocol):
    """An exit that can also be asked what it knows of a name or an address."""

    def look_up(self, request: Request) -> Address:
        """With RESOLVE an address of the name ``request.dest``, with RESOLVE_PTR the name of that
        address, as the exit sees them; with port 0.

        The port of ``request.dest`` means nothing.  Raises as :meth:`Exit.connect` does, and
        CommandNotSupported if the far end looks nothing up.
        """


class Dials(Protocol):
    """Connects to a server: a Dialer, or a Detour through another exit."""

    def connect(self, dest: Address, /) -> AnySocket:
        """A connected socket.  Raises GsocksError."""
