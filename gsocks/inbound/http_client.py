"""An HTTP client's connection, on which it asks again and again."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import gevent
import h11

from gsocks.address import Address
from gsocks.errors import (
    AuthenticationFailed,
    BadRequest,
    ClientError,
    ClientGone,
    GsocksError,
    Http2NotServed,
    StreamClosed,
    StreamError,
    TransferCodingNotSupported,
    stream_failure,
)
from gsocks.http.body import Body, Sized, body_of_request
from gsocks.http.head import (
    Event,
    ascii_target,
    check_framing,
    error_reason,
    find_end,
    normalized,
    with_crlf,
    with_host,
)
from gsocks.http.message import parse_request
from gsocks.http.status import answer_for, next_hop
from gsocks.http.write import END, AnswerWriter, end_of
from gsocks.net.tls_socket import stream_of
from gsocks.sock import AnySocket, receive_now
from gsocks.stream import CHUNK, READ, Blocking, reset, send_all
from gsocks.turns import give_way

#: answers 407 on one connection; the last of them closes it
MAX_REFUSED_LOGINS = 5

#: bytes of empty lines in front of a request, of which RFC 9112 section 2.2 has one
MAX_BLANK = 64

#: seconds in which a client has to take an answer of the proxy's own
WRITE_TIMEOUT = 10.0


def _http2_frame(kind: int, payload: bytes) -> bytes:
    """A frame of the whole connection (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + bytes(4) + payload


#: SETTINGS, with which a server begins, and GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 section 7)
HTTP2_REFUSAL = _http2_frame(0x04, b"") + _http2_frame(
    0x07, bytes(4) + (0x0D).to_bytes(4, "big") + b"this proxy speaks HTTP/1.1"
)


def connected_answer(via: str) -> bytes:
    """The answer to a CONNECT that is served by the exit ``via``."""
    return b"HTTP/1.1 200 Connection established\r\nProxy-Status: %s\r\n\r\n" % next_hop(via)


class Client:
    """What an HTTP client asks, request after request, and what it is answered.

    ``said`` is what has been read from ``sock`` already; ``most``: bytes of a request's body that
    comes in chunks.  As a :class:`gsocks.handshake.Answer`
    this answers the request that was read last.  One greenlet may read while another answers.
    """

    #: see :class:`gsocks.handshake.Answer`
    protocol = "HTTP"

    def __init__(self, sock: AnySocket, said: bytes = b"", most: int | None = None) -> None:
        self._sock = sock
        self._most = most
        #: read, and not yet understood
        self._ahead = bytearray(said)
        self._begin()
        self._refused_logins = 0
        #: whether a request has begun to come
        self.asking = False
        #: whether the client has ended its direction
        self.ended = False
        self._aborted = False

    def _begin(self) -> None:
        self._writer = AnswerWriter()
        self._method = b""
        self._body: Body = Sized(0)
        #: parts of the body that are understood, and not yet handed out
        self._parts: list[Event] = []
        #: whether the request has been read to its end
        self.heard_out = False

    # --- what it asks -----------------------------------------------------------------------

    @property
    def has_head(self) -> bool:
        """Whether the whole head of the next request has been read already."""
        return self._ahead.find(b"\r\n\r\n", 4) > 0 and not self._ahead.startswith(b"\r\n")

    def asks_again(self) -> bool:
        """Wait until the client begins another request, and whether it does or hangs up.

        Runs under the caller's timeout.
        """
        self.asking = False
        try:
            self.wait()
        except StreamError:
            return False
        return not self.ended

    def read_request(self) -> h11.Request | None:
        """The head of the next request; None if the client hangs up instead.

        Runs under the caller's timeout.  Raises BadRequest or one of its kind for what HTTP/1.1
        doesn't allow, and for what can be read in two ways; ClientGone.
        """
        self._begin()
        head = self._read_head()
        if head is None:
            return None
        request = self._parse(head)
        self._method = request.method
        self._writer = AnswerWriter(request)
        check_framing(request)
        self._body = body_of_request(request, self._most)
        self._understand()
        return request

    def read_body(self) -> Sequence[Event]:
        """The next parts of the request's body, the last of them EndOfMessage.

        Raises BadRequest, ClientGone if the client ends in the middle, StreamError.
        """
        while not self._parts:
            data = self._receive()
            if not data:
                raise ClientGone("hung up before its request was whole")
            self._ahead += data
            self._understand()
        return self.parts_at_hand()

    def parts_at_hand(self) -> Sequence[Event]:
        """The same, of what has been read already; a request without a body has ended."""
        parts, self._parts = self._parts, []
        return parts

    def wait(self) -> None:
        """Wait until the client says something behind its request, or ends its direction.

        What it says is kept.  Raises StreamError.
        """
        if not self._ahead:
            self._ahead += self._receive()

    def _read_head(self) -> bytes | None:
        said, seen, blank = self._ahead, 0, 0
        self.asking = False
        while True:
            while said.startswith(b"\r\n"):  # in front of it, RFC 9112 section 2.2
                del said[:2]
                seen, blank = 0, blank + 2
                if blank > MAX_BLANK:
                    raise BadRequest("empty lines instead of a request")
            self.asking = len(said) > 0 and said != b"\r"
            end = find_end(said, seen)
            if end:
                head = bytes(said[:end])
                del said[:end]
                return head
            seen = len(said)
            try:
                data = self._receive()
            except StreamError as error:
                data, reason = b"", str(error)
            else:
                reason = "the connection ended early"
            if not data:
                if self.asking:
                    raise ClientGone(f"hung up before its request was whole: {reason}")
                return None
            said += data

    def _parse(self, head: bytes) -> h11.Request:
        head = ascii_target(with_crlf(head))
        plain = parse_request(head)
        if plain is None:
            head = with_host(head)
            plain = parse_request(head)
        if plain is not None:
            return normalized(plain)
        http = h11.Connection(h11.SERVER)
        http.receive_data(head)
        try:
            # it is whole, so it can be no other
            return normalized(cast(h11.Request, http.next_event()))
        except h11.RemoteProtocolError as error:
            kind = TransferCodingNotSupported if error.error_status_hint == 501 else BadRequest
            raise kind(error_reason(error)) from None

    def _understand(self) -> None:
        """Take the parts of the body from what is ahead."""
        if self._body.complete:  # there is none
            self._parts.append(END)
            self.heard_out = True
            return
        content = self._body.feed(bytes(self._ahead))
        self._ahead.clear()
        if content:
            self._parts.append(h11.Data(content))
        if self._body.complete:
            self._ahead += self._body.trailing_data
            self._parts.append(end_of(self._body))
            self.heard_out = True

    def _receive(self) -> bytes:
        give_way()
        try:
            data = self._sock.recv(CHUNK)
        except OSError as error:
            raise stream_failure(error) from None
        self.ended = not data
        return data

    # --- what it is answered ----------------------------------------------------------------

    def send(self, parts: Sequence[Event], behind: bytes = b"") -> None:
        """Parts of an answer, in one write, and bytes ``behind`` it.  Raises StreamError."""
        data = b"".join([self._writer.encode(part) for part in parts]) + behind
        if data:
            send_all(self._sock, data)

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        """CONNECT is served (RFC 9110 section 9.3.6) by the exit ``via``.  Raises StreamError."""
        send_all(self._sock, connected_answer(via))

    def failed(self, error: GsocksError, *, last: bool = False) -> None:
        """The request is not served, because of ``error``.  Never raises.

        :attr:`reusable` tells whether the client may ask again; not if this is the ``last`` answer.
        """
        if isinstance(error, Http2NotServed):
            self._say(HTTP2_REFUSAL)
            return
        closing = last or not self._may_ask_again(error)
        self.answered(*answer_for(error, closing=closing))

    def answered(self, response: h11.Response, body: bytes) -> None:
        """The request is answered by the proxy itself.  Never raises."""
        parts: list[Event] = [response]
        if self._method != b"HEAD":
            parts.append(h11.Data(body))
        self._say(b"".join([self._writer.encode(part) for part in (*parts, END)]))

    def _say(self, data: bytes) -> None:
        """Send an answer of the proxy's own.  Never raises."""
        try:
            with gevent.Timeout(WRITE_TIMEOUT, StreamClosed("takes no answer")):
                send_all(self._sock, data)
        except StreamError:
            self.abort()  # the client is gone; the access log has the cause

    def _may_ask_again(self, error: GsocksError) -> bool:
        if not self.heard_out:
            return False
        if isinstance(error, AuthenticationFailed):
            self._refused_logins += 1
            # Bytes behind a CONNECT were meant for its destination.
            behind = self._method == b"CONNECT" and bool(self._ahead)
            return self._refused_logins < MAX_REFUSED_LOGINS and not behind
        return not isinstance(error, ClientError) and self._method != b"CONNECT"

    @property
    def reusable(self) -> bool:
        """Whether another request may follow the one that was answered."""
        return self._writer.complete and self.heard_out and not (self.ended or self._aborted)

    def watch(self, callback: Callable[[], object]) -> Any:
        """A started watcher that calls back when the client sends something, or is gone."""
        watcher = gevent.get_hub().loop.io(self._sock.fileno(), READ)
        watcher.start(callback)
        return watcher

    def has_hung_up(self) -> bool:
        """Whether the client has ended its direction; what it has sent stays to be read.

        Never blocks.  Raises StreamError where the connection is broken.
        """
        try:
            self.ended = not receive_now(self._sock, 1, std_socket.MSG_PEEK)
        except BlockingIOError:
            pass  # whatever it was, it has been read
        except OSError as error:
            raise stream_failure(error) from None
        return self.ended

    # --- how it ends ------------------------------------------------------------------------

    def stream(self) -> Blocking:
        """The connection behind CONNECT or 101, which is no longer HTTP."""
        return stream_of(self._sock, bytes(self._ahead))

    def hang_up(self) -> None:
        """Read no further request; a greenlet that waits for one gets None."""
        try:
            self._sock.shutdown(std_socket.SHUT_RD)
        except OSError:
            pass  # the client was faster

    def abort(self) -> None:
        """Reset the connection: what the client got of an answer is not all of it."""
        self._aborted = True
        reset(self._sock)
