"""An exit that is reached through another exit."""

from __future__ import annotations

import gevent
from gevent.socket import socket, socketpair

from gsocks.address import Address
from gsocks.errors import CommandNotSupported
from gsocks.exits.base import Associates, Binds, Connected, Exit, Listening
from gsocks.limits import Timeouts
from gsocks.relay import Relay
from gsocks.request import Command, Request
from gsocks.stream import SocketStream, Stream


class Chain:
    """Two exits as one: ``last`` serves, and goes ``through`` the other to where it begins."""

    __slots__ = ("_last", "_through", "label")

    def __init__(self, last: Exit, through: Exit, label: str) -> None:
        self._last = last
        self._through = through
        self.label = label

    def start(self) -> None:
        """The nearer exit first: the other one is reached by it."""
        self._through.start()
        self._last.start()

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        return self._last.connect(request)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        if not isinstance(self._last, Associates):
            raise CommandNotSupported(f"{self.label} carries no datagrams")
        return self._last.associate(request)

    def bind(self, request: Request) -> Listening:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        if not isinstance(self._last, Binds):
            raise CommandNotSupported(f"{self.label} waits for no connections")
        return self._last.bind(request)

    def close(self) -> None:
        """Let go what is idle in both."""
        self._last.close()
        self._through.close()


class Detour:
    """Connects like a :class:`gsocks.dial.Dialer`, but through an exit.

    For what needs a socket of the kernel: a gsocks tunnel, which its pool watches while idle.
    """

    __slots__ = ("_exit", "_timeouts")

    def __init__(self, way: Exit, timeouts: Timeouts) -> None:
        self._exit = way
        self._timeouts = timeouts

    def connect(self, dest: Address) -> socket:
        """A connected socket.  Raises what the exit raises."""
        stream = self._exit.connect(Request(Command.CONNECT, dest)).stream
        if isinstance(stream, SocketStream):
            return stream.detach()
        return self._bridge(stream)

    def _bridge(self, stream: Stream) -> socket:
        """One end of a pair of sockets, whose other end is relayed to ``stream``.

        A pair can't carry a reset, only an end.  A tunnel takes no such end for one of its own.
        """
        near, far = socketpair()
        relay = Relay(
            SocketStream(far),
            stream,
            # Whoever uses the socket has these bounds too, and is to tell that it ran into one;
            # here they only see to it that nothing stays behind.
            idle=2 * self._timeouts.idle,
            half_closed=self._timeouts.half_closed,
            ended=lambda _: None,
        )
        gevent.spawn(relay.run)
        return near
