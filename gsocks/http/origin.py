"""One request to an origin server, and its response."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import SWITCHING_PROTOCOLS

import h11

from gsocks.deadline import call_with_timeout
from gsocks.errors import BadRequest, BadResponse, StreamError, Truncated
from gsocks.http.body import Body
from gsocks.http.head import Event
from gsocks.http.persistence import authenticates_connection, is_persistent
from gsocks.http.response import ResponseReader, take_head
from gsocks.http.write import RequestWriter, end_of
from gsocks.stream import Stream
from gsocks.turns import give_way

#: seconds in which a server has to close the connection after its response
DRAIN_TIMEOUT = 2.0
# Reads of data behind the response, which has no meaning.
_DRAIN_READS = 4


class Origin:
    """``request`` and its response over ``stream``; a greenlet may send while another receives."""

    def __init__(self, stream: Stream, request: h11.Request) -> None:
        self._stream = stream
        self._method = request.method
        self._writer = RequestWriter(request)
        #: the encoded head; empty once it is sent
        self._head = self._writer.head
        self._reader = ResponseReader(request)
        #: bytes that are received and not yet parsed
        self._buffer = bytearray()
        self._body: Body | None = None
        self._persistent = False
        #: whether the response is about credentials of the connection (NTLM, Negotiate)
        self.authenticates = False
        #: whether the server has switched to another protocol (101)
        self.switched = False
        #: bytes, including heads and chunk sizes
        self.sent = 0
        self.received = 0

    def send(self, parts: Sequence[Event]) -> None:
        """Send parts of the body in one write, behind the head at first.  Raises StreamError."""
        data = self._head + b"".join([self._writer.encode(part) for part in parts])
        self._head = b""
        self._stream.write(data)
        self.sent += len(data)

    def receive(self) -> Sequence[Event]:
        """The next parts of the response, possibly none; the last one is EndOfMessage, or 101.

        Raises BadResponse, and StreamError: Truncated if the response is incomplete.
        """
        data = self._stream.read()
        self.received += len(data)
        self._buffer += data
        parts: list[Event] = []
        new = len(data)
        while self._body is None and not self.switched and (head := take_head(self._buffer, new)):
            parts.append(self._parse(head))
            give_way()  # one read has thousands of the shortest heads
            new = len(self._buffer)
        if self._body is not None:
            parts += self._take_body(self._body, ended=not data)
        elif not data:
            raise Truncated("the server closed the connection before its response was complete")
        return parts

    @property
    def reusable(self) -> bool:
        """Whether the response has ended, with nothing behind it, and another may follow.

        If it :attr:`authenticates`, to the same client alone.
        """
        body = self._body
        return (
            self._persistent
            and not self.repaired
            and body is not None
            and body.complete
            and not body.trailing_data
            and not self._buffer
        )

    def take_rest(self) -> bytes:
        """The bytes that the server has sent behind 101."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    @property
    def repaired(self) -> bool:
        """Whether the response was not valid as it came: the server may have meant another end."""
        return self._reader.repaired or (self._body is not None and self._body.repaired)

    def _parse(self, head: bytes) -> Event:
        event = self._reader.parse(head)
        if type(event) is h11.Response:  # isinstance() of an abstract class is slow
            self._body = self._reader.body(event)
            self._persistent = is_persistent(event, self._method)
            self.authenticates = authenticates_connection(event)
        self.switched = event.status_code == SWITCHING_PROTOCOLS
        return event

    def _take_body(self, body: Body, *, ended: bool) -> Sequence[Event]:
        """The parts of the body in the buffer."""
        try:
            content = body.feed(bytes(self._buffer))
        except BadRequest as error:
            raise BadResponse(f"the server's response is not HTTP/1.1: {error}") from None
        self._buffer.clear()
        parts: list[Event] = [h11.Data(content)] if content else []
        if ended:
            body.feed_eof()
        if body.complete:
            parts.append(end_of(body))
        elif ended:
            raise Truncated("the server closed the connection before its response was complete")
        return parts


def drain_and_close(stream: Stream) -> None:
    """Close the stream of an exchange that has ended, after the server's EOF if possible.

    A tunnel can carry another stream only after both directions of this one have ended.  So the
    server has :data:`DRAIN_TIMEOUT` seconds to close, as ``Connection: close`` requested.
    """
    try:
        call_with_timeout(DRAIN_TIMEOUT, _end, stream, on_timeout=None)
    finally:
        stream.close()


def _end(stream: Stream) -> None:
    try:
        stream.write_eof()
        for _ in range(_DRAIN_READS):
            if not stream.read():
                break
    except StreamError:
        pass  # the server has closed the connection before
