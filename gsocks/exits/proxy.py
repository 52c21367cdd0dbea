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
from gsocks.exits.credentials import Credentials, Filled
from gsocks.request import Command, Request
from gsocks.stream import Stream


class ProxyExit:
    """What all proxies have in common; a subclass says how its kind is asked.

    ``through``: the exit by which the proxy is reached; to start and to close it is its owner's.
    ``credentials``: for the proxy; None: it asks for none.  ``timeout``: seconds from the
    connection to the proxy until the destination is connected.
    """

    __slots__ = ("_credentials", "_proxy", "_through", "_timeout", "label")

    def __init__(
        self,
        proxy: Address,
        through: Exit,
        *,
        label: str,
        credentials: Credentials | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._proxy = proxy
        self._credentials = credentials
        self._through = through
        self._timeout = timeout
        self.label = label

    def start(self) -> None:
        """Nothing to prepare."""

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        connected = gevent.with_timeout(self._timeout, self._connect, request, timeout_value=None)
        if connected is None:
            raise ExitDoubtful(f"{self.label}: no answer within {self._timeout:g} s")
        return connected

    def close(self) -> None:
        """Nothing is kept."""

    def _greet(self, stream: Stream, login: Filled | None) -> Stream:  # noqa: ARG002
        """What comes before the request, and can fail by no fault of the destination's.

        ``stream`` is the connection to the proxy, which is the caller's to abort; ``login``: the
        credentials for this request.  Returns the stream for the request.  Raises ConnectFailed
        or StreamError.
        """
        return stream

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        """Have the proxy connect to ``dest``.  Raises ConnectFailed or StreamError."""
        raise NotImplementedError

    def _connect(self, request: Request) -> Connected:
        login = None if self._credentials is None else self._credentials.filled(request)
        stream = self._reach(request)
        # Many proxies just hang up when they can't reach a destination.
        broken = ExitFailed
        try:
            greeted = self._greet(stream, login)
            broken = ExitDoubtful
            return self._ask(greeted, request.dest, login)
        except StreamError as error:
            stream.abort()
            raise broken(f"{self.label}: {error}") from None
        except ConnectFailed as error:
            stream.abort()
            raise type(error)(f"{self.label}: {error}") from None
        except BaseException:  # out of time, or killed
            stream.abort()
            raise

    def _reach(self, request: Request) -> Stream:
        # with the same wish, if that is a proxy, too
        nearer = Request(Command.CONNECT, self._proxy, request.user, wish=request.wish)
        try:
            return self._through.connect(nearer).stream
        except (LimitReached, OutOfResources):  # in most cases of this machine
            raise
        except GsocksError as error:
            # whatever else it is, it is no fault of the destination's
            raise ExitFailed(f"{self.label}: {error}") from None
