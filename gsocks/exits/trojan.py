"""The exit through a trojan server: in TLS the hash of a password, and a request behind it.

    hex(SHA224(password)) CRLF  command  destination  CRLF  bytes
    destination  length  CRLF  payload                              each datagram, both directions

The server has no answer to a request but the destination's own bytes.  So a connection counts as
made when the TLS handshake with the server is over, and what fails behind it is seen as an end
without a byte.  A password that it doesn't know is not refused: what was sent goes to the web
server behind it, whose answer can't be told from a destination's.
"""

from __future__ import annotations

import ssl
from hashlib import sha224

from gsocks.address import ATYP_IPV4, ATYP_IPV6, ATYP_NAME, UNSPECIFIED, Address
from gsocks.errors import ConnectFailed, ProtocolViolation, StreamError, Truncated
from gsocks.exits.base import Connected, Exit
from gsocks.exits.client_tls import ClientTls
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import Progress
from gsocks.net.datagram import split, with_source
from gsocks.net.tls import TlsStream, tls_failure
from gsocks.request import CONNECT, UDP_ASSOCIATE, Command, Request
from gsocks.stream import Bytes, ScratchBuffers, Stream
from gsocks.turns import give_way

_CRLF = b"\r\n"


class TrojanExit(ProxyExit):
    """The trojan server ``server``, which has that ``password``.

    ``through``, ``tls`` and the times: as of :class:`gsocks.exits.proxy.ProxyExit`.
    """

    __slots__ = ("_layer", "_login_line")

    def __init__(
        self,
        server: Address,
        through: Exit,
        password: str,
        tls: ClientTls,
        *,
        label: str,
        timeout: float = 10.0,
        reach_timeout: float = 3.0,
    ) -> None:
        super().__init__(
            server, through, label=label, tls=tls, timeout=timeout, reach_timeout=reach_timeout
        )
        self._layer = tls
        # as good as the password, so that nothing shows it
        self._login_line = sha224(password.encode()).hexdigest().encode() + _CRLF

    def _connect(self, request: Request, progress: Progress) -> Connected:
        at_once = not request.payload
        made = self._asking(request, progress, CONNECT, request.dest, at_once=at_once)
        return Connected(made, UNSPECIFIED)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`; the datagrams are in the TLS."""
        return self._within(self._associate, request)

    def _associate(self, request: Request, progress: Progress) -> Connected:
        made = self._asking(request, progress, UDP_ASSOCIATE, UNSPECIFIED, at_once=True)
        return Connected(TrojanDatagrams(made), UNSPECIFIED)

    def _asking(
        self,
        request: Request,
        progress: Progress,
        command: Command,
        dest: Address,
        *,
        at_once: bool,
    ) -> TrojanStream:
        """A stream whose first bytes are a request, which leaves ``at_once`` or with the next."""
        stream = self._reach(request)
        try:
            made = self._layer.secure_as(TrojanStream, stream)
            self._in_time(made.handshake)
            asked = self._login_line + bytes((command,)) + dest.encode() + _CRLF
            made.ask(asked, at_once=at_once)
        except (StreamError, ConnectFailed) as error:
            stream.abort()
            raise self.broken(error, progress) from None
        except BaseException:  # timed out or killed
            stream.abort()
            raise
        return made


class TrojanStream(TlsStream):
    """TLS whose first record begins with a request: a server takes what comes without a whole one
    in its first record for a browser's.
    """

    __slots__ = ("_asked",)

    def __init__(self, stream: Stream, context: ssl.SSLContext, host: str | None) -> None:
        super().__init__(stream, context, host)
        self._asked = b""

    def ask(self, request: bytes, *, at_once: bool) -> None:
        """Send ``request``: ``at_once``, or with the next write or the end of this direction.

        Raises StreamError.
        """
        if at_once:
            self.write(request)
        else:
            self._asked = request

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        if self._asked:
            asked, self._asked = self._asked, b""
            data = asked + bytes(data)
        return super().write_nowait(data, scratch)

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        if self._asked:
            asked, self._asked = self._asked, b""
            try:
                self._engine.write(asked)
            except ssl.SSLError as error:
                raise tls_failure(error) from None
        return super().write_eof_nowait(scratch)


class FrameReader:
    """What a server sends for an association, in pieces of any size, and its datagrams."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: Bytes) -> None:
        """The next bytes."""
        self._kept += data

    def next(self) -> bytes | None:
        """The next datagram in wire form; None if it has not come whole.

        Raises ProtocolViolation.
        """
        kept = self._kept
        if len(kept) < 2:
            return None
        if kept[0] == ATYP_NAME:
            end = 4 + kept[1]
        elif kept[0] in (ATYP_IPV4, ATYP_IPV6):
            end = 7 if kept[0] == ATYP_IPV4 else 19
        else:
            raise ProtocolViolation("a datagram without an address")
        if len(kept) < end + 4:
            return None
        if kept[end + 2 : end + 4] != _CRLF:
            raise ProtocolViolation("a datagram whose length has no end")
        size = int.from_bytes(kept[end : end + 2], "big")
        whole = end + 4 + size
        if len(kept) < whole:
            return None
        datagram = bytes(kept[:end]) + bytes(kept[end + 4 : whole])
        del kept[:whole]
        return datagram

    @property
    def is_between(self) -> bool:
        """Whether no part of a datagram is kept."""
        return not self._kept


class TrojanDatagrams:
    """The datagrams of an association, over ``stream``, which it owns, as a stream of them."""

    __slots__ = ("_frames", "_stream", "abort", "close", "write_eof")

    def __init__(self, stream: TlsStream) -> None:
        self._stream = stream
        self._frames = FrameReader()
        self.write_eof = stream.write_eof
        self.abort = stream.abort
        self.close = stream.close

    def read(self) -> bytes:
        frames = self._frames
        while True:
            while (frame := frames.next()) is not None:
                datagram = with_source(frame)
                if datagram is not None:
                    return datagram
                give_way()
            data = self._stream.read()
            if not data:
                if not frames.is_between:
                    raise Truncated("the connection ended within a datagram")
                return b""
            frames.feed(data)

    def write(self, datagram: bytes) -> None:
        head, payload = split(datagram)
        self._stream.write(head + len(payload).to_bytes(2, "big") + _CRLF + payload)
