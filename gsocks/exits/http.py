"""Exits through HTTP proxies, by CONNECT (RFC 9110 section 9.3.6), over TLS for https://.

What a proxy says when it does not connect, gsocks/exits/http_refusal.py reads.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache

import h11

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import BadResponse, ConnectFailed, ExitFailed, GsocksError, Truncated
from gsocks.exits.base import Connected
from gsocks.exits.credentials import Filled
from gsocks.exits.handshake import resumed
from gsocks.exits.http_refusal import refusal
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import ProxyAttempt
from gsocks.http import message
from gsocks.http.message import field, parse_response
from gsocks.http.response import ResponseReader, take_head
from gsocks.request import Request
from gsocks.stream import Stream
from gsocks.turns import give_way

#: a response is read in the same way, whatever the destination
_ANY = message.request(b"CONNECT", b"-:0", [field(b"Host", b"-:0")])

#: bytes of an answer's heads, interim answers included
MAX_HEAD = 64 * 1024


class HttpExit(ProxyExit):
    """An HTTP proxy, with ``tls`` over TLS."""

    __slots__ = ()

    def _attempt(
        self, request: Request, done: Callable[[Connected | GsocksError], None]
    ) -> HttpAttempt:
        login = self._login(request)
        return HttpAttempt(self, request.dest, login, done, self._timeout, self._reach_timeout)

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        answer, behind = _connect(stream, dest, None if login is None else basic(login))
        if 200 <= answer.status_code < 300:
            # HTTP proxies don't report their outbound address
            return Connected(resumed(stream, behind), UNSPECIFIED)
        raise self._refused(answer, dest, login)

    def _refused(self, answer: h11.Response, dest: Address, login: Filled | None) -> ConnectFailed:
        """What an answer to CONNECT says of why the proxy does not connect."""
        return refusal(answer, dest, had_credentials=login is not None)


def basic(login: Filled) -> str:
    """Credentials as RFC 7617 has them, in UTF-8."""
    return "Basic " + b64encode(":".join(login).encode()).decode("ascii")


def _request(dest: Address, credentials: str | None) -> bytes:
    target = str(dest).encode("ascii")
    login = b"" if credentials is None else b"Proxy-Authorization: %s\r\n" % credentials.encode()
    return b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (target, target, login)


class HttpAttempt(ProxyAttempt):
    """See :class:`gsocks.exits.proxy_attempt.ProxyAttempt`."""

    __slots__ = ()

    def speak(self) -> None:
        """See :class:`gsocks.exits.proxy_attempt.ProxyAttempt`, as for the method below."""
        login = self.login
        self.ask(_request(self.target, None if login is None else basic(login)))

    def understand(self, received: bytes) -> None:
        end = received.find(b"\r\n\r\n") + 4
        head = received[:end]
        answer = _plain_answer(head) if len(head) > 4 else None
        if answer is None:  # it has more to come, or is odd
            self.go_on()
        elif 200 <= answer.status_code < 300:
            self.succeeded(UNSPECIFIED, received[end:])
        else:
            self.refused(refusal(answer, self.target, had_credentials=self.login is not None))


#: most answers of a proxy are the same
_plain_answer = lru_cache(64)(parse_response)


def _connect(stream: Stream, dest: Address, credentials: str | None) -> tuple[h11.Response, bytes]:
    """Send CONNECT for ``dest``; returns the response, and the bytes received behind its head."""
    stream.write(_request(dest, credentials))
    reader = ResponseReader(_ANY)
    buffer = bytearray()
    received = 0
    while True:
        data = stream.read()
        if not data:
            raise Truncated("hung up before its answer was whole")
        buffer += data
        received += len(data)
        new = len(data)
        try:
            while head := take_head(buffer, new):
                answer = reader.parse(head)
                if isinstance(answer, h11.Response):
                    return answer, bytes(buffer)
                give_way()
                new = len(buffer)
        except BadResponse:
            raise ExitFailed("the answer is not HTTP, or its head is too long") from None
        if received > MAX_HEAD:  # of interim answers, too
            raise ExitFailed("the answer has no end")
