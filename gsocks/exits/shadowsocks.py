"""The exit through a Shadowsocks server.

The server has no answer to a request but the destination's own bytes.  So a connection counts as
made when the server is reached, and what fails behind it is seen as an end without a byte.
"""

from __future__ import annotations

from collections.abc import Callable

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    BadRequest,
    CommandNotSupported,
    ConnectFailed,
    GsocksError,
    PeerVanished,
    StreamError,
)
from gsocks.exits.base import Associates, Connected, Exit
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import Progress, ProxyAttempt
from gsocks.net.datagram import split
from gsocks.request import UDP_ASSOCIATE, Request
from gsocks.shadowsocks.methods import check_packages, keys_of, method_named
from gsocks.shadowsocks.packet import ClientPackets
from gsocks.shadowsocks.stream import ClientStream
from gsocks.stream import SocketStream, Stream, scratch_of_this_hub
from gsocks.turns import give_way


class ShadowsocksExit(ProxyExit):
    """The Shadowsocks server ``server``, which has that ``method`` and ``password``.

    ``through`` and the times: as of :class:`gsocks.exits.proxy.ProxyExit`.  Raises ConfigError for
    a method or a password that can't be used.
    """

    __slots__ = ("_method", "_psks")

    def __init__(
        self,
        server: Address,
        through: Exit,
        method: str,
        password: str,
        *,
        label: str,
        timeout: float = 10.0,
        reach_timeout: float = 3.0,
    ) -> None:
        super().__init__(server, through, label=label, timeout=timeout, reach_timeout=reach_timeout)
        self._method = method_named(method)
        check_packages(self._method)
        self._psks = keys_of(self._method, password)

    def _connect(self, request: Request, progress: Progress) -> Connected:
        stream = self._reach(request)
        try:
            made = self.wrapped(stream, request.dest)
            if not request.payload:  # else the head leaves with it
                made.ask()
        except StreamError as error:
            stream.abort()
            raise self.broken(error, progress) from None
        except BaseException:  # timed out or killed
            stream.abort()
            raise
        return Connected(made, UNSPECIFIED)

    def wrapped(self, stream: Stream, dest: Address) -> ClientStream:
        """A stream to ``dest`` over one to the server."""
        return ClientStream(stream, self._method, self._psks, dest)

    def _attempt(
        self, request: Request, done: Callable[[Connected | GsocksError], None]
    ) -> ProxyAttempt:
        return _ShadowsocksAttempt(self, request, done, self._timeout, self._reach_timeout)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        through = self._through
        if not isinstance(through, Associates):
            raise CommandNotSupported(f"{self.label}: the exit before it carries no datagrams")
        nearer = Request(
            UDP_ASSOCIATE,
            UNSPECIFIED,
            request.user,
            selector=request.selector,
            client=request.client,
        )
        try:
            below = through.associate(nearer).stream
        except ConnectFailed as error:
            raise self.unreached(error) from None
        packets = ClientPackets(self._method, self._psks)
        return Connected(ShadowsocksDatagrams(below, self._proxy, packets), UNSPECIFIED)


class _ShadowsocksAttempt(ProxyAttempt):
    """A connection to the server by the hub, which has nothing to wait for behind it."""

    __slots__ = ("_shadowsocks", "_waits_for_payload")

    def __init__(
        self,
        exit_: ShadowsocksExit,
        request: Request,
        done: Callable[[Connected | GsocksError], None],
        timeout: float,
        reach_timeout: float,
    ) -> None:
        super().__init__(exit_, request.dest, None, done, timeout, reach_timeout)
        self._shadowsocks = exit_
        self._waits_for_payload = bool(request.payload)

    def speak(self) -> None:
        made = self._shadowsocks.wrapped(
            SocketStream(self._sock, watcher=self._watcher), self.target
        )
        try:
            if not self._waits_for_payload and not made.send_head(scratch_of_this_hub()):
                raise PeerVanished("no room for a request on a new connection")
        except StreamError as error:
            self._end(error)
            return
        self._of_all.discard(self)
        self._watcher.stop()
        self._done(Connected(made, UNSPECIFIED))


class ShadowsocksDatagrams:
    """The datagrams of an association by the server ``server``, as a stream of them.

    ``below``: one of datagrams, which it owns, by which the server is reached.
    """

    __slots__ = ("_below", "_head", "_packets", "abort", "close", "write_eof")

    def __init__(self, below: Stream, server: Address, packets: ClientPackets) -> None:
        self._below = below
        self._head = server.encode()
        self._packets = packets
        self.write_eof = below.write_eof
        self.abort = below.abort
        self.close = below.close

    def read(self) -> bytes:
        while received := self._below.read():
            try:
                _, packet = split(received)
            except BadRequest:
                continue
            datagram = self._packets.open(packet)
            if datagram is not None:
                return datagram
            give_way()  # what does not come from the server never makes its greenlet wait
        return b""

    def write(self, datagram: bytes) -> None:
        self._below.write(self._head + self._packets.seal(datagram))
