"""An HTTP client's connection, on which it asks again and again."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Sequence
from typing import TypeAlias, cast

import gevent
import h11
from gevent.socket import socket

from gsocks.address import Address
from gsocks.errors import (
    AuthenticationFailed,
    BadRequest,
    ClientError,
    ClientGone,
    GsocksError,
    StreamClosed,
    StreamError,
    TransferCodingNotSupported,
    stream_failure,
)
from gsocks.http.body import Body, Sized, body_of_request
from gsocks.http.head import check_framing, find_end, words
from gsocks.http.status import answer_for, next_hop
from gsocks.stream import CHUNK, SocketStream, reset, send_all

#: answers 407 on one connection; the last of them closes it
MAX_REFUSED_LOGINS = 5

#: seconds in which a client has to take an answer of the proxy's own
ANSWER_WITHIN = 10.0

#: a part of a request or of its answer, in h11's words
Event: TypeAlias = (
    h11.Request | h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage
)


class Client:
    """What an HTTP client asks, request after request, and what it is answered.

    ``said`` is what has been read from ``sock`` already; ``most``: bytes of a request's body that
    comes in chunks.  As a :class:`gsocks.handshake.Answer`
    this answers the request that was read last.  One greenlet may read while another answers.
    """

    def __init__(self, sock: socket, said: bytes = b"", most: int | None = None) -> None:
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

    def _begin(self) -> None:
        self._http = h11.Connection(h11.SERVER)
        self._method = b""
        self._body: Body = Sized(0)
        #: parts of the body that are understood, and not yet handed out
        self._parts: list[Event] = []
        #: whether the request has been read to its end
        self.heard_out = False

    # --- what it asks -----------------------------------------------------------------------

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
        said, seen = self._ahead, 0
        self.asking = False
        while True:
            while said.startswith(b"\r\n"):  # in front of it, RFC 9112 section 2.2
                del said[:2]
                seen = 0
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
        self._http.receive_data(head)
        try:
            return cast(h11.Request, self._http.next_event())  # it is whole, so it can be no other
        except h11.RemoteProtocolError as error:
            kind = TransferCodingNotSupported if error.error_status_hint == 501 else BadRequest
            raise kind(words(error)) from None

    def _understand(self) -> None:
        """Take the parts of the body from what is ahead."""
        content = self._body.feed(bytes(self._ahead))
        self._ahead.clear()
        if content:
            self._parts.append(h11.Data(content))
        if self._body.over:
            self._ahead += self._body.rest
            self._parts.append(h11.EndOfMessage())
            self.heard_out = True

    def _receive(self) -> bytes:
        try:
            data = self._sock.recv(CHUNK)
        except OSError as error:
            raise stream_failure(error) from None
        self.ended = not data
        return data

    # --- what it is answered ----------------------------------------------------------------

    def send(self, parts: Sequence[Event], behind: bytes = b"") -> None:
        """Parts of an answer, in one write, and bytes ``behind`` it.  Raises StreamError."""
        data = b"".join([self._http.send(part) or b"" for part in parts]) + behind
        if data:
            send_all(self._sock, data)

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        """CONNECT is served (RFC 9110 section 9.3.6) by the exit ``via``.  Raises StreamError."""
        status = b"Proxy-Status: " + next_hop(via)
        send_all(self._sock, b"HTTP/1.1 200 Connection established\r\n" + status + b"\r\n\r\n")

    def failed(self, error: GsocksError, *, last: bool = False) -> None:
        """The request is not served, because of ``error``.  Never raises.

        :attr:`reusable` tells whether the client may ask again; not if this is the ``last`` answer.
        """
        closing = last or not self._may_ask_again(error)
        self.answered(*answer_for(error, closing=closing))

    def answered(self, response: h11.Response, body: bytes) -> None:
        """The request is answered by the proxy itself.  Never raises."""
        parts: list[Event] = [response]
        if self._method != b"HEAD":
            parts.append(h11.Data(body))
        try:
            with gevent.Timeout(ANSWER_WITHIN, StreamClosed("takes no answer")):
                self.send([*parts, h11.EndOfMessage()])
        except StreamError:
            self.abort()  # there is nobody left to tell, and the cause is told anyway

    def _may_ask_again(self, error: GsocksError) -> bool:
        if not self.heard_out:
            return False
        if isinstance(error, AuthenticationFailed):
            self._refused_logins += 1
            # What came behind a CONNECT was meant for somebody else.
            behind = self._method == b"CONNECT" and bool(self._ahead)
            return self._refused_logins < MAX_REFUSED_LOGINS and not behind
        return not isinstance(error, ClientError) and self._method != b"CONNECT"

    @property
    def reusable(self) -> bool:
        """Whether another request may follow the one that was answered."""
        return self._http.our_state is h11.DONE and self.heard_out and not self.ended

    # --- how it ends ------------------------------------------------------------------------

    def stream(self) -> SocketStream:
        """The connection behind CONNECT or 101, which is no longer HTTP."""
        return SocketStream(self._sock, bytes(self._ahead))

    def hang_up(self) -> None:
        """Read no further request; whoever waits for one is told that there is none."""
        try:
            self._sock.shutdown(std_socket.SHUT_RD)
        except OSError:
            pass  # the client was faster

    def abort(self) -> None:
        """Reset the connection: what the client got of an answer is not all of it."""
        reset(self._sock)
