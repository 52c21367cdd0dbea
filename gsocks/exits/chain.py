"""An exit that is reached through another exit."""

from __future__ import annotations

from collections.abc import Hashable

import gevent
from gevent.socket import socketpair

from gsocks.address import Address
from gsocks.errors import CommandNotSupported
from gsocks.exits.base import Associates, Binds, Connected, Exit, LooksUp, PendingBind
from gsocks.exits.forward import HttpConnection, identity, key_for, open_connection
from gsocks.relay import Relay
from gsocks.request import Command, Request
from gsocks.settings import Timeouts
from gsocks.sock import AnySocket
from gsocks.stream import SocketStream, Stream


class Chain:
    """Two exits as one: ``last`` serves the requests, and is reached ``through`` the other."""

    __slots__ = ("_last", "_through", "label")

    def __init__(self, last: Exit, through: Exit, label: str) -> None:
        self._last = last
        self._through = through
        self.label = label

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        return self._last.connect(request)

    def forward(
        self, request: Request, *, tunnel: bool = False, once: bool = False, alone: bool = False
    ) -> HttpConnection:
        """See :meth:`gsocks.exits.forward.Forwards.forward`."""
        return open_connection(self._last, request, tunnel=tunnel, once=once, alone=alone)

    def forward_key(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Forwards.forward_key`."""
        return key_for(self._last, request)

    def identity(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Identifies.identity`; a proxy knows the way to it."""
        return identity(self._last, request)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        if not isinstance(self._last, Associates):
            raise CommandNotSupported(f"{self.label} carries no datagrams")
        return self._last.associate(request)

    def bind(self, request: Request) -> PendingBind:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        if not isinstance(self._last, Binds):
            raise CommandNotSupported(f"{self.label} waits for no connections")
        return self._last.bind(request)

    def look_up(self, request: Request) -> Address:
        """See :meth:`gsocks.exits.base.LooksUp.look_up`."""
        if not isinstance(self._last, LooksUp):
            raise CommandNotSupported(f"{self.label} looks nothing up")
        return self._last.look_up(request)

    def close(self) -> None:
        """Close what is idle in both."""
        self._last.close()
        self._through.close()


class Detour:
    """Connects like a :class:`gsocks.net.dial.Dialer`, but through an exit.

    For a gsocks tunnel, which needs a kernel socket: its pool watches the descriptor while idle.
    """

    __slots__ = ("_exit", "_timeouts")

    def __init__(self, exit_: Exit, timeouts: Timeouts) -> None:
        self._exit = exit_
        self._timeouts = timeouts

    def connect(self, dest: Address) -> AnySocket:
        """A connected socket.  Raises what the exit raises."""
        stream = self._exit.connect(Request(Command.CONNECT, dest)).stream
        if isinstance(stream, SocketStream):
            return stream.detach()
        return self._bridge(stream)

    def _bridge(self, stream: Stream) -> AnySocket:
        """One end of a socket pair, whose other end is relayed to ``stream``.

        A pair can't carry a reset, only an EOF; a tunnel never mistakes that for a clean end.
        """
        near, far = socketpair()
        relay = Relay(
            SocketStream(far),
            stream,
            # The user of the socket has the same timeouts, and should be the one to report them;
            # these only ensure that the relay ends.
            idle=2 * self._timeouts.idle,
            half_closed=self._timeouts.half_closed,
            ended=lambda _: None,
        )
        gevent.spawn(relay.run)
        return near
