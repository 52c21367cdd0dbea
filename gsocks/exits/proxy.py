"""A way out through somebody else's proxy: reach it, ask it, and have its connection.

The proxy is reached through another exit, which is ``direct`` unless a chain was asked for.  So
a handshake runs over any Stream, and knows of no socket.
"""

from __future__ import annotations

import gevent

from gsocks.address import Address
from gsocks.errors import (
    ConnectFailed,
    ExitDoubtful,
    ExitFailed,
    GsocksError,
    LimitReached,
    OutOfResources,
    StreamError,
)
from gsocks.exits.base import Connected, Exit
from gsocks.request import Command, Request
from gsocks.stream import Stream


class ProxyExit:
    """What all proxies have in common; a subclass says how its kind is asked.

    ``through``: the exit by which the proxy is reached; to start and to close it is its owner's.
    ``timeout``: seconds from the connection to the proxy until the destination is connected.
    """

    __slots__ = ("_proxy", "_through", "_timeout", "label")

    def __init__(self, proxy: Address, through: Exit, *, label: str, timeout: float = 10.0) -> None:
        self._proxy = proxy
        self._through = through
        self._timeout = timeout
        self.label = label

    def start(self) -> None:
        """Nothing to prepare."""

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        connected = gevent.with_timeout(
            self._timeout, self._connect, request.dest, timeout_value=None
        )
        if connected is None:
            raise ExitDoubtful(f"{self.label}: no answer within {self._timeout:g} s")
        return connected

    def close(self) -> None:
        """Nothing is kept."""

    def _greet(self, stream: Stream) -> Stream:
        """What comes before the request, and can fail by no fault of the destination's.

        ``stream`` is the connection to the proxy, which is the caller's to abort.  Returns the
        stream for the request.  Raises ConnectFailed or StreamError.
        """
        return stream

    def _ask(self, stream: Stream, dest: Address) -> Connected:
        """Have the proxy connect to ``dest``.  Raises ConnectFailed or StreamError."""
        raise NotImplementedError

    def _connect(self, dest: Address) -> Connected:
        stream = self._reach()
        # Many proxies just hang up when they can't reach a destination.
        broken = ExitFailed
        try:
            greeted = self._greet(stream)
            broken = ExitDoubtful
            return self._ask(greeted, dest)
        except StreamError as error:
            stream.abort()
            raise broken(f"{self.label}: {error}") from None
        except ConnectFailed as error:
            stream.abort()
            raise type(error)(f"{self.label}: {error}") from None
        except BaseException:  # out of time, or killed
            stream.abort()
            raise

    def _reach(self) -> Stream:
        try:
            return self._through.connect(Request(Command.CONNECT, self._proxy)).stream
        except (LimitReached, OutOfResources):  # in most cases of this machine
            raise
        except GsocksError as error:
            # whatever else it is, it is no fault of the destination's
            raise ExitFailed(f"{self.label}: {error}") from None
