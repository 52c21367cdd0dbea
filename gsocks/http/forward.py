"""The changes that a proxy makes to the messages that it forwards.

Hop-by-hop fields are removed (RFC 9110 section 7.6.1), and so are the client's credentials for this
proxy.  All other fields are forwarded in their order and spelling.

No field reveals the proxy to the origin server, unless its owner wants Via.  RFC 9110 section 7.6.3
requires that; a user of a private proxy wants neither it nor X-Forwarded-For.

Trailers are passed on in both directions if the client has said that it takes some (TE: trailers),
which is passed on then.  Else they are dropped, as RFC 9110 section 6.5.1 allows: a recipient that
merges them into the head would let them bypass the checks of the head.  So those that may stand in
the head alone are always dropped (gsocks/http/write.py).
"""

from __future__ import annotations

from collections.abc import Collection
from http.client import NO_CONTENT, SWITCHING_PROTOCOLS, UNAUTHORIZED

import h11

from gsocks.address import Address
from gsocks.http import message
from gsocks.http.head import HTTP_PORT, RequestTarget, options, wants_trailers
from gsocks.http.message import Field, Message, field, full_items, header
from gsocks.http.persistence import authenticates_connection
from gsocks.http.status import foreign_members, next_hop

# Fields about one connection, or between this proxy and its client only.
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
_SUPPORT = b"proxy-support"
_STATUS = b"proxy-status"
_MAX_FORWARDS = b"max-forwards"
#: more proxies than any path has
_MAX_HOPS = 999_999_999


def to_origin(
    request: h11.Request,
    target: RequestTarget,
    *,
    absolute: bool = False,
    authorization: str | None = None,
    persistent: bool = False,
    via: str | None = None,
) -> h11.Request:
    """``request`` as it is sent to the origin server, or in ``absolute`` form to a proxy.

    ``authorization``: the Proxy-Authorization for that proxy.  ``persistent``: the connection is to
    stay open behind the response.  ``via``: the proxy's own name, for Via.

    Its Host is that of the URL (RFC 9112 section 3.2.2).  An Upgrade is forwarded where it can
    work: in a request without a body, and not to h2c, which RFC 9113 has deprecated.
    """
    dropped = {b"host"}
    if request.http_version < b"1.1":
        dropped.add(b"expect")  # HTTP/1.0 has no 100 (RFC 9110 section 10.1.1)
    left = forwards_left(request)
    if left is not None:
        dropped.add(_MAX_FORWARDS)
    host = _host(target.dest)
    fields = [(b"Host", b"host", host), *_kept(request, dropped)]
    if left is not None:
        fields.append(field(b"Max-Forwards", str(left - 1).encode("ascii")))
    if header(request, b"transfer-encoding") is not None:
        fields.append(field(b"Transfer-Encoding", b"chunked"))
    of_connection = b""
    if wants_trailers(request):
        _announce(request, fields)
        fields.append(field(b"TE", b"trailers"))
        of_connection = b"TE, "
    protocols = _upgrade(request)
    if protocols:
        fields.append(field(b"Connection", of_connection + b"Upgrade"))
        fields.append(field(b"Upgrade", protocols))
    elif not persistent:
        fields.append(field(b"Connection", of_connection + b"close"))
    elif of_connection:
        fields.append(field(b"Connection", b"TE"))
    if via is not None:
        fields.append(_via(request.http_version, via))
    if authorization is not None:
        fields.append(field(b"Proxy-Authorization", authorization.encode("ascii")))
    path = _absolute(target, host) if absolute else target.path
    return message.request(request.method, path, fields)


def is_upgrade(request: h11.Request) -> bool:
    """Whether ``request`` is forwarded with an Upgrade, after which no HTTP may follow."""
    return bool(_upgrade(request))


def forwards_left(request: h11.Request) -> int | None:
    """How often ``request`` may still be forwarded, from its Max-Forwards (RFC 9110 section 7.6.2).

    Only TRACE and OPTIONS have one; None for others.  With 0 this proxy has to answer itself.
    """
    if request.method not in (b"TRACE", b"OPTIONS"):
        return None
    value = header(request, _MAX_FORWARDS)
    if value is None or not value.isdigit():
        return None
    digits = value.lstrip(b"0")
    return int(digits or b"0") if len(digits) < len(str(_MAX_HOPS)) else _MAX_HOPS


def to_client(
    response: h11.Response,
    via: str,
    *,
    closing: bool,
    trailers: bool = False,
    own_name: str | None = None,
) -> h11.Response:
    """``response`` as it is sent to the client, with the exit ``via`` in Proxy-Status.

    ``closing``: the client's connection can't be reused.  ``trailers``: the client takes some.
    ``own_name``: the proxy's, for Via.  What writes it frames the body.
    """
    # Chunked overrides a length (RFC 9112 section 6.3), and 204 has neither.
    chunked = header(response, b"transfer-encoding") is not None
    dropped = {_LENGTH} if chunked or response.status_code == NO_CONTENT else set()
    fields = [*_returned(response, dropped), field(b"Proxy-Status", next_hop(via))]
    if trailers:
        _announce(response, fields)
    if own_name is not None:
        fields.append(_via(response.http_version, own_name))
    is_challenge = response.status_code == UNAUTHORIZED
    if is_challenge and authenticates_connection(response) and not header(response, _SUPPORT):
        # WinINet begins NTLM and Negotiate only at a proxy that says so (RFC 4559 section 6)
        fields.append(field(b"Proxy-Support", b"Session-Based-Authentication"))
    if closing:
        fields.append(field(b"Connection", b"close"))
    return message.response(response.status_code, response.reason, fields)


def informational(response: h11.InformationalResponse) -> h11.InformationalResponse:
    """An interim response as it is sent to the client; 101 keeps the new protocol."""
    fields = _returned(response, {_LENGTH})
    if response.status_code == SWITCHING_PROTOCOLS:
        protocols = b", ".join(options(response, b"upgrade"))
        fields += [field(b"Connection", b"Upgrade"), field(b"Upgrade", protocols)]
    return h11.InformationalResponse(
        status_code=response.status_code,
        headers=[(raw, value) for raw, _, value in fields],
        reason=response.reason,
    )


def _announce(received: Message, fields: list[Field]) -> None:
    """Pass on which trailers are to come."""
    if header(received, b"trailer") is not None:
        names = b", ".join(options(received, b"trailer"))
        if names:
            fields.append(field(b"Trailer", names))


def _via(version: bytes, name: str) -> Field:
    """This proxy's own Via (RFC 9110 section 7.6.3), behind those of the proxies before it."""
    return field(b"Via", version + b" " + name.encode("ascii"))


def _kept(received: Message, dropped: Collection[bytes]) -> list[Field]:
    """The fields of a message that are forwarded, without ``dropped``.

    Connection may name further hop-by-hop fields, but not the message's own Content-Length.
    """
    left_out = _HOP_BY_HOP
    named = options(received, b"connection")
    if named or dropped:
        names = {option.lower() for option in named} - {_LENGTH}
        left_out = _HOP_BY_HOP.union(names, dropped)
    return [each for each in full_items(received.headers) if each[1] not in left_out]


def _returned(response: Message, dropped: Collection[bytes]) -> list[Field]:
    """The fields of a response that are forwarded, none of which says it is this proxy's status."""
    kept = _kept(response, dropped)
    if header(response, _STATUS) is None:
        return kept
    fields = []
    for each in kept:
        raw, name, value = each
        if name != _STATUS:
            fields.append(each)
        elif members := foreign_members(value):
            fields.append((raw, name, members))
    return fields


def _upgrade(request: h11.Request) -> bytes:
    """The protocols of the client's Upgrade; empty without one, or where it can't work."""
    if (
        header(request, b"upgrade") is None
        or request.http_version < b"1.1"  # RFC 9110 section 7.8
        or b"upgrade" not in {option.lower() for option in options(request, b"connection")}
        or header(request, b"transfer-encoding") is not None
        or int(header(request, _LENGTH) or 0)
    ):
        return b""
    protocols = options(request, b"upgrade")
    return b", ".join(protocol for protocol in protocols if protocol.lower() != b"h2c")


def _absolute(target: RequestTarget, host: bytes) -> bytes:
    """The request target in absolute form (RFC 9112 section 3.2.2)."""
    # that of the whole server has no path there (section 3.2.4)
    path = b"" if target.path == b"*" else target.path
    return b"http://" + host + path


def _host(dest: Address) -> bytes:
    """The value of a Host field, without the default port of http://."""
    # only port 80 ends in ":80", since a port has no leading zeros
    return str(dest).removesuffix(f":{HTTP_PORT}").encode("ascii")
