"""UDP and BIND through a SOCKS5 proxy (RFC 1928 sections 4 and 7), at the client's end of both."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from gsocks.address import Address
from gsocks.errors import ConnectFailed, ExitFailed, StreamClosed, StreamError
from gsocks.exits.base import Connected
from gsocks.exits.handshake import Opening
from gsocks.net.datagram import address_of, split, with_header, with_source, without_header
from gsocks.stream import Stream
from gsocks.turns import give_way


class ProxiedDatagrams:
    """A stream of datagrams that a proxy relays.

    ``datagrams``: the stream that carries them to the proxy and back, each with a header in front;
    ``relay``: where the proxy wants them.  ``control``: the connection by which they were asked
    for: they end with it (section 7).
    """

    __slots__ = ("_control", "_datagrams", "_ended", "_relay", "_relay_ip", "_watching")

    def __init__(self, control: Stream, datagrams: Stream, relay: Address) -> None:
        self._control = control
        self._datagrams = datagrams
        self._relay = relay.encode()
        #: None: the relay has a name, and any source is taken, all of which were sent to
        self._relay_ip = relay.ip
        self._ended = False
        self._watching: gevent.Greenlet[[], None] | None = gevent.spawn(self._watch)

    def __repr__(self) -> str:
        return f"<ProxiedDatagrams: {self._datagrams!r}>"

    def read(self) -> bytes:
        while data := self._datagrams.read():
            datagram = self._opened(data)
            if datagram is not None:
                return datagram
            give_way()
        return b""

    def write(self, datagram: bytes) -> None:
        if self._ended:
            raise StreamClosed("the proxy has ended the association")
        self._datagrams.write(self._relay + with_header(datagram))

    def write_eof(self) -> None:
        """The client has ended the association."""
        self._ended = True
        self._datagrams.write_eof()
        self._stop()

    def abort(self) -> None:
        self._stop()
        self._datagrams.abort()

    def close(self) -> None:
        self._stop()
        self._datagrams.close()

    def _opened(self, data: bytes) -> bytes | None:
        """What the proxy has relayed, in wire form; None if it is to be dropped."""
        head, packet = split(data)
        source = address_of(head)
        if source is None or (self._relay_ip is not None and source.ip != self._relay_ip):
            return None
        datagram = without_header(packet)
        return None if datagram is None else with_source(datagram)

    def _watch(self) -> None:
        """Wait until the proxy ends the association, whatever it says before."""
        try:
            while self._control.read():
                give_way()
        except StreamError:
            pass
        self._watching = None
        self._control.abort()
        try:
            if not self._ended:
                self.write_eof()
        except StreamError:
            pass  # which its reader is told

    def _stop(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.kill(block=False)
            self._control.abort()


class ProxiedListener:
    """A port of the proxy that waits for one peer.

    ``stream``: the connection by which it was asked for, which becomes the peer's;
    ``next_reply`` reads the second reply from it: the peer's address.
    """

    __slots__ = ("_label", "_next_reply", "_opening", "_stream", "bound")

    def __init__(
        self,
        stream: Stream,
        opening: Opening,
        bound: Address,
        next_reply: Callable[[Opening], Address],
        label: str,
    ) -> None:
        self._stream: Stream | None = stream
        self._opening = opening
        self._next_reply = next_reply
        self._label = label
        #: the address of the port
        self.bound = bound

    def accept(self) -> Connected:
        """See :meth:`gsocks.exits.base.PendingBind.accept`."""
        if self._stream is None:
            raise StreamClosed("closed at this end")
        try:
            peer = self._next_reply(self._opening)
        except StreamClosed:
            raise
        except StreamError as error:
            raise ExitFailed(f"{self._label}: {error}") from None
        except ConnectFailed as error:
            raise error.of(self._label) from None
        self._stream = None
        return Connected(self._opening.rest(), peer)

    def close(self) -> None:
        """Close the port, and the connection with it."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()
