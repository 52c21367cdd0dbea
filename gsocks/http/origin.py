"""An origin server, as it is asked one thing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

import gevent
import h11

from gsocks.errors import BadRequest, BadResponse, StreamError, Truncated
from gsocks.http.body import Body, body_of_response
from gsocks.http.client import Event
from gsocks.http.head import MAX_HEAD, words
from gsocks.stream import Stream

_BEGINNING = b"HTTP/"
# Servers are forgiven lines that end in LF only.
_END = re.compile(rb"\n\r?\n")
#: what stands in no head; h11 refuses it too, but may need a second for each KiB of spaces first
CONTROL = re.compile(rb"[\0\v\f]|\r[^\n]")

#: seconds that a server has to close behind its answer
PARTING = 2.0
# What it says behind its answer means nothing, and needn't be read for long.
_PARTING_READS = 4


class Origin:
    """``request`` and its answer over ``stream``; one greenlet may send while another receives."""

    def __init__(self, stream: Stream, request: h11.Request) -> None:
        self._stream = stream
        self._method = request.method
        self._http = h11.Connection(h11.CLIENT)
        #: encoded, and not yet sent
        self._head = self._http.send(request) or b""
        #: read, and not yet understood
        self._ahead = bytearray()
        self._body: Body | None = None
        #: whether the connection is no longer HTTP
        self.switched = False
        #: bytes, with all that is not body
        self.sent = 0
        self.received = 0

    def send(self, parts: Sequence[Event]) -> None:
        """The head at first, and parts of the body, in one write.  Raises StreamError."""
        data = self._head + b"".join([self._http.send(part) or b"" for part in parts])
        self._head = b""
        self._stream.write(data)
        self.sent += len(data)

    def receive(self) -> Sequence[Event]:
        """The next parts of the answer, maybe none; the last of them EndOfMessage, or 101.

        Raises BadResponse, and StreamError: Truncated if it ended in the middle.
        """
        data = self._stream.read()
        self.received += len(data)
        self._ahead += data
        parts: list[Event] = []
        while self._body is None and not self.switched and (head := self._next_head(len(data))):
            parts.append(self._parse(head))
        if self._body is not None:
            parts += self._understand(self._body, ended=not data)
        elif not data:
            raise Truncated("the server ended before its answer was whole")
        return parts

    def take_rest(self) -> bytes:
        """What it has said behind 101."""
        rest = bytes(self._ahead)
        self._ahead.clear()
        return rest

    def _next_head(self, new: int) -> bytes:
        """The next head in what is ahead, if there is all of one; ``new`` bytes are unseen yet."""
        ahead = self._ahead
        if not ahead.startswith(_BEGINNING) and not _BEGINNING.startswith(ahead):
            raise BadResponse("the server doesn't answer in HTTP")
        found = _END.search(ahead, max(0, len(ahead) - new - 2))
        end = found.end() if found else len(ahead)
        if end > MAX_HEAD:
            raise BadResponse(f"the server's answer has a head of more than {MAX_HEAD} bytes")
        if found is None:
            return b""
        head = bytes(ahead[:end])
        if CONTROL.search(head):
            raise BadResponse("the server's answer has a control byte in its head")
        del ahead[:end]
        return head

    def _parse(self, head: bytes) -> Event:
        self._http.receive_data(head)
        try:
            # it is whole, so it can be no other
            event = cast(h11.InformationalResponse | h11.Response, self._http.next_event())
        except h11.RemoteProtocolError as error:
            raise BadResponse(f"the server's answer is not HTTP/1.1: {words(error)}") from None
        if isinstance(event, h11.Response):
            self._body = body_of_response(event, self._method)
        self.switched = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        return event

    def _understand(self, body: Body, *, ended: bool) -> Sequence[Event]:
        """The parts of the body in what is ahead."""
        try:
            content = body.feed(bytes(self._ahead))
        except BadRequest as error:
            raise BadResponse(f"the server's answer is not HTTP/1.1: {error}") from None
        self._ahead.clear()
        parts: list[Event] = [h11.Data(content)] if content else []
        if ended:
            body.end()
        if body.over:
            parts.append(h11.EndOfMessage())
        elif ended:
            raise Truncated("the server ended before its answer was whole")
        return parts


def take_leave(stream: Stream) -> None:
    """Release the stream of an exchange that is over.

    A tunnel carries another stream once this one has ended in both directions.  So the server is
    left :data:`PARTING` seconds to close, as it was asked to.
    """
    try:
        gevent.with_timeout(PARTING, _end, stream, timeout_value=None)
    finally:
        stream.close()


def _end(stream: Stream) -> None:
    try:
        stream.write_eof()
        for _ in range(_PARTING_READS):
            if not stream.read():
                break
    except StreamError:
        pass  # the server was faster
