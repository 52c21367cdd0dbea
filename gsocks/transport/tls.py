"""TLS as a layer of a tunnel.

It adds no security that the tunnel lacks: it makes the connection one that firewalls let pass, and
hides that it is a tunnel.  So an end without close_notify is an end like any other, since the
frames above authenticate their own.
"""

from __future__ import annotations

import ssl
from typing import cast

from gsocks.errors import StreamError, TlsFailed, Truncated
from gsocks.net.tls import tls_failure
from gsocks.sock import READ, WRITE
from gsocks.stream import Bytes, scratch_of_this_hub
from gsocks.transport.layers import BARE, Below, Layer

#: bytes in a record, and of one as it travels (RFC 8446 section 5.2)
_IN_RECORD = 16384
_RECORD = 5 + _IN_RECORD + 256
#: bytes that are to be answered to what a far end sends that does not read
_MOST_UNSAID = 65536


class TlsLayer(Layer):
    """TLS over ``below``.

    ``host``: the name or address that the far end's certificate must be for; None at the end that
    has the certificate.
    """

    __slots__ = ("_arrived", "_engine", "_is_agreed", "_made")

    def __init__(self, context: ssl.SSLContext, host: str | None, below: Below = BARE) -> None:
        super().__init__(below)
        # A buffer of OpenSSL never shrinks, and a tunnel lives long: neither is to hold more than
        # a record.
        self._arrived = ssl.MemoryBIO()
        self._made = ssl.MemoryBIO()
        self._engine = context.wrap_bio(
            self._arrived, self._made, server_side=host is None, server_hostname=host
        )
        self._is_agreed = False

    def __repr__(self) -> str:
        return f"<TlsLayer: {self._engine.version() or 'no version yet'}>"

    @property
    def protocol(self) -> str | None:
        """What ALPN has selected."""
        return self._engine.selected_alpn_protocol()

    def begin(self, fd: int) -> int:
        """See :meth:`gsocks.transport.layers.Layer.begin`."""
        room = scratch_of_this_hub().plain[:_RECORD]
        while True:
            self._step(fd)
            if not self._answer(fd):
                return WRITE
            if self._is_agreed:
                self.has_backlog = True  # the first bytes may have come with the handshake
                return 0
            count = self._below.receive_some(fd, room)
            if count is None:
                return READ
            if not count:
                raise Truncated("the connection ended during the handshake of TLS")
            self._arrived.write(room[:count])

    def _step(self, fd: int) -> None:
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            try:
                self._answer(fd)
            except StreamError:
                pass  # the far end is gone, and needs no alert
            raise tls_failure(error) from None
        self._is_agreed = True

    def receive_some(self, fd: int, room: memoryview) -> int | None:
        """See :meth:`gsocks.transport.layers.Below.receive_some`."""
        filled = self._open(room) if self.has_backlog else 0
        stage = scratch_of_this_hub().plain[:_RECORD]
        while not (self.has_backlog or self._is_over or self._failure):
            if filled and len(room) - filled < _IN_RECORD:
                break
            count = self._below.receive_some(fd, stage)
            if count:
                self._arrived.write(stage[:count])
                filled += self._open(room[filled:])
            elif count == 0:
                self._is_over = True
            if not count or count < _RECORD:
                break
        if self._made.pending > _MOST_UNSAID:
            self._failure = TlsFailed("the far end has TLS answered, and reads no answer")
        return self._received(fd, filled)

    def _open(self, room: memoryview) -> int:
        """Decrypt what has arrived, as far as there is room."""
        filled, size = 0, len(room)
        self.has_backlog = False
        try:
            while filled < size:
                # typed as if it returned bytes, although it has a buffer
                count = cast(int, self._engine.read(size - filled, room[filled:]))
                if not count:
                    self._is_over = True
                    return filled
                filled += count
            self.has_backlog = True
        except ssl.SSLZeroReturnError:  # the same, once farewell was said
            self._is_over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._failure = tls_failure(error)
        return filled

    def _make(self, data: Bytes) -> memoryview:
        parts, rest = [], memoryview(data)
        try:
            while rest:
                rest = rest[self._engine.write(rest[:_IN_RECORD]) :]
                parts.append(self._made.read())
        except ssl.SSLError as error:
            raise tls_failure(error) from None
        return memoryview(b"".join(parts))

    def _make_answer(self) -> Bytes:
        return self._made.read()

    def _make_farewell(self) -> Bytes:
        if not self._is_agreed:
            return b""
        # close_notify made, the engine looks for the far end's
        try:
            self._engine.unwrap()
        except ssl.SSLError:
            pass  # it is not there, and what is there instead need not be read
        return self._made.read()
