"""What a proxy changes in the messages that it forwards.

Fields about one connection are no business of the next one (RFC 9110 section 7.6.1), so they are
taken out, and so are the client's credentials for this proxy.  Everything else goes on as it is,
in its order and its spelling.

Nothing is added that would tell the origin server of the proxy.  RFC 9110 section 7.6.3 wants a
Via; who asks through a proxy of his own wants none, and no X-Forwarded-For either.

Trailers are dropped, as RFC 9110 section 6.5.1 allows: a program further on that merges them into
the head would let them bypass all that was checked there.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

import h11

from gsocks.address import Address
from gsocks.http.head import HTTP_PORT, Message, Target, header, options
from gsocks.http.status import next_hop

# About one connection, or about this proxy and its client only.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_LENGTH = b"content-length"
_MAX_FORWARDS = b"max-forwards"
#: more than any path has proxies
_MOST_FORWARDS = 999_999_999

_Fields = list[tuple[bytes, bytes]]


def to_origin(request: h11.Request, target: Target) -> h11.Request:
    """``request`` as the origin server gets it.

    Its Host is that of the URL (RFC 9112 section 3.2.2).  An Upgrade is passed on where it can
    work: in a request without a body, and not to h2c, which RFC 9113 has given up.
    """
    dropped = {b"host"}
    if request.http_version < b"1.1":
        dropped.add(b"expect")  # its client knows no 100 (RFC 9110 section 10.1.1)
    left = forwards_left(request)
    if left is not None:
        dropped.add(_MAX_FORWARDS)
    fields = [(b"Host", _host(target.dest)), *_kept(request, dropped)]
    if left is not None:
        fields.append((b"Max-Forwards", str(left - 1).encode("ascii")))
    if header(request, b"transfer-encoding") is not None:
        fields.append((b"Transfer-Encoding", b"chunked"))
    protocols = _upgrade(request)
    if protocols:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", protocols)]
    else:
        fields.append((b"Connection", b"close"))
    return h11.Request(method=request.method, target=target.path, headers=fields)


def forwards_left(request: h11.Request) -> int | None:
    """How many may still pass ``request`` on, where its client says so (RFC 9110 section 7.6.2).

    It may for TRACE and OPTIONS.  With 0 this proxy is who has to answer.
    """
    said = header(request, _MAX_FORWARDS)
    if request.method not in (b"TRACE", b"OPTIONS") or said is None or not said.isdigit():
        return None
    digits = said.lstrip(b"0")
    return int(digits or b"0") if len(digits) < len(str(_MOST_FORWARDS)) else _MOST_FORWARDS


def to_client(response: h11.Response, via: str, *, closing: bool) -> h11.Response:
    """``response`` as the client gets it, which is told the exit ``via``.

    ``closing``: the client's connection can't be used again.  How long the body is, h11 adds.
    """
    # Chunked overrides a length (RFC 9112 section 6.3), and 204 has neither.
    chunked = header(response, b"transfer-encoding") is not None
    dropped = {_LENGTH} if chunked or response.status_code == HTTPStatus.NO_CONTENT else set()
    fields = [*_kept(response, dropped), (b"Proxy-Status", next_hop(via))]
    if closing:
        fields.append((b"Connection", b"close"))
    return h11.Response(status_code=response.status_code, headers=fields, reason=response.reason)


def informational(response: h11.InformationalResponse) -> h11.InformationalResponse:
    """A response in front of the real one, as the client gets it; 101 tells the new protocol."""
    fields = _kept(response, {_LENGTH})
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        protocols = b", ".join(options(response, b"upgrade"))
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", protocols)]
    return h11.InformationalResponse(
        status_code=response.status_code, headers=fields, reason=response.reason
    )


def _kept(message: Message, dropped: Collection[bytes]) -> _Fields:
    """The fields of ``message`` that go on, less ``dropped``.

    A message may name further fields that are for the next hop only, but must not take its own
    length from itself by that.
    """
    named = {option.lower() for option in options(message, b"connection")} - {_LENGTH}
    return [
        field
        for field, (name, _) in zip(message.headers.raw_items(), message.headers, strict=True)
        if name not in _HOP_BY_HOP and name not in named and name not in dropped
    ]


def _upgrade(request: h11.Request) -> bytes:
    """The protocols that the client would rather speak; empty for none, or where it can't."""
    if (
        request.http_version < b"1.1"  # RFC 9110 section 7.8
        or b"upgrade" not in {option.lower() for option in options(request, b"connection")}
        or header(request, b"transfer-encoding") is not None
        or int(header(request, _LENGTH) or 0)
    ):
        return b""
    protocols = options(request, b"upgrade")
    return b", ".join(protocol for protocol in protocols if protocol.lower() != b"h2c")


def _host(dest: Address) -> bytes:
    """A Host field's value; the port of http:// goes without saying."""
    # no port but this one ends so, since a port has no zeros in front
    return str(dest).removesuffix(f":{HTTP_PORT}").encode("ascii")
