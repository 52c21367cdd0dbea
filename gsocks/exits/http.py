"""The ways out through HTTP proxies, by CONNECT (RFC 9110 section 9.3.6), over TLS for https://.

The status of an answer tells less than a SOCKS reply.  403 is the proxy's rules, which did their
work; 504 is a destination that was silent; any other 5xx may be the proxy's own fault as well as
the destination's; what is left (407, 429, or 405 from what is no proxy) is the proxy's.  Where a
Proxy-Status field (RFC 9209) says more, that counts.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from http.client import PROXY_AUTHENTICATION_REQUIRED, responses

import h11

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    ExitDoubtful,
    ExitFailed,
    Forbidden,
    HostUnreachable,
    NameNotFound,
    NetworkUnreachable,
    Truncated,
)
from gsocks.exits.base import Connected, Exit
from gsocks.exits.credentials import Credentials, Filled
from gsocks.exits.opening import resumed
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.tls import TlsStream
from gsocks.http.origin import CONTROL
from gsocks.stream import Stream

#: bytes of an answer's head, interim answers included; h11's own bound for each of them
MAX_HEAD = 16 * 1024

# RFC 9209 section 2.3: what is said of the destination.
_CAUSES: dict[str, type[ConnectFailed]] = {
    "dns_timeout": HostUnreachable,
    "dns_error": NameNotFound,
    "destination_ip_prohibited": Forbidden,
    "destination_ip_unroutable": NetworkUnreachable,
    "connection_refused": ConnectionRefused,
    "connection_timeout": ConnectTimeout,
    "http_request_denied": Forbidden,
}
_CAUSE = re.compile(r";\s*error\s*=\s*([a-z_]+)")

_STATUSES: dict[int, type[ConnectFailed]] = {403: Forbidden, 504: ConnectTimeout}


class HttpExit(ProxyExit):
    """An HTTP proxy; with ``tls`` one that is spoken to over TLS.

    ``tls`` says whom to trust; the certificate must be for the proxy's host.
    """

    __slots__ = ("_tls",)

    def __init__(
        self,
        proxy: Address,
        through: Exit,
        *,
        label: str,
        credentials: Credentials | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(proxy, through, label=label, credentials=credentials, timeout=timeout)
        self._tls = tls

    def _greet(self, stream: Stream, login: Filled | None) -> Stream:  # noqa: ARG002
        if self._tls is None:
            return stream
        secured = TlsStream(stream, self._tls, self._proxy.host)
        secured.handshake()
        return secured

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        answer, behind = _connect(stream, dest, None if login is None else _basic(login))
        if 200 <= answer.status_code < 300:
            # no HTTP proxy tells its outbound address
            return Connected(resumed(stream, behind), UNSPECIFIED)
        raise _failure(answer, dest, login is not None)


def _basic(login: Filled) -> str:
    """Credentials as RFC 7617 has them, in UTF-8."""
    return "Basic " + b64encode(":".join(login).encode()).decode("ascii")


def _connect(stream: Stream, dest: Address, credentials: str | None) -> tuple[h11.Response, bytes]:
    """Ask for ``dest``; returns the answer, and what came behind its head."""
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", str(dest))]
    if credentials is not None:
        headers.append(("Proxy-Authorization", credentials))
    stream.write(http.send(h11.Request(method="CONNECT", target=str(dest), headers=headers)) or b"")
    http.send(h11.EndOfMessage())
    received = 0
    while True:
        event = _next_event(http)
        if isinstance(event, h11.Response):
            return event, http.trailing_data[0]
        if event is h11.NEED_DATA:
            if received > MAX_HEAD:  # of interim answers, too
                raise ExitFailed("the answer has no end")
            data = stream.read()
            if not data:
                raise Truncated("hung up before its answer was whole")
            received += len(data)
            if CONTROL.search((http.trailing_data[0] + data).partition(b"\r\n\r\n")[0]):
                raise ExitFailed("the answer has a control byte in its head")
            http.receive_data(data)
            # h11 waits for a whole head before it looks at the first word of it
            if not b"HTTP/".startswith(http.trailing_data[0][:5]):
                raise ExitFailed("the answer is not HTTP")


def _next_event(http: h11.Connection) -> object:
    try:
        return http.next_event()
    except h11.RemoteProtocolError:  # its text may repeat what the proxy sent
        raise ExitFailed("the answer is not HTTP, or its head is too long") from None


def _failure(answer: h11.Response, dest: Address, had_credentials: bool) -> ConnectFailed:
    status = answer.status_code
    if status == PROXY_AUTHENTICATION_REQUIRED:
        wanted = "other credentials" if had_credentials else "a user and a password"
        return ExitFailed(f"the proxy wants {wanted}")
    cause = _cause(answer)
    if cause in _CAUSES:
        return _CAUSES[cause](f"{dest}: {cause.replace('_', ' ')}, says the proxy")
    kind = _STATUSES.get(status, ExitDoubtful if status >= 500 else ExitFailed)
    # not the proxy's own words, which may be anything
    return kind(f"{dest}: the proxy answers {status} {responses.get(status, '')}".rstrip())


def _cause(answer: h11.Response) -> str:
    """The error that the proxy nearest to the destination tells of; empty if none does."""
    for name, value in answer.headers:
        if name == b"proxy-status" and (found := _CAUSE.search(value.decode("latin-1"))):
            return found[1]
    return ""
