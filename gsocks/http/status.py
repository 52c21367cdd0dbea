"""Responses of the proxy itself: its errors, for programs and for people.

A program reads the status and ``Proxy-Status`` (RFC 9209), which distinguishes the proxy's errors
from those of the origin server; a person reads the body.  Nothing that a server sends in that field
can be taken for this proxy's own.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from http import HTTPStatus

import h11

from gsocks import errors
from gsocks.errors import AuthenticationFailed, GsocksError

#: the challenge to a client without credentials, or with wrong ones (RFC 7617)
CHALLENGE = 'Basic realm="gsocks", charset="UTF-8"'

# The types of RFC 9209 section 2.3; an error that is missing here has the type of its nearest base
# class.
_TYPES: dict[type[GsocksError], str] = {
    GsocksError: "proxy_internal_error",
    errors.ConfigError: "proxy_configuration_error",
    errors.ClientError: "http_request_error",
    errors.LoginRefused: "http_request_denied",
    errors.LoginsBusy: "http_request_denied",
    errors.ConnectFailed: "destination_unavailable",
    errors.Forbidden: "destination_ip_prohibited",
    errors.NetworkUnreachable: "destination_ip_unroutable",
    errors.AddressFamilyNotSupported: "destination_ip_unroutable",
    errors.NameNotFound: "dns_error",
    errors.ConnectionRefused: "connection_refused",
    errors.ConnectTimeout: "connection_timeout",
    errors.LimitReached: "connection_limit_reached",
    errors.OutOfResources: "proxy_internal_error",
    errors.ShuttingDown: "proxy_internal_error",
    errors.StreamError: "connection_terminated",
    errors.Truncated: "http_response_incomplete",
    errors.BadResponse: "http_protocol_error",
    errors.IdleTimeout: "http_response_timeout",
    errors.HalfClosedTimeout: "http_response_timeout",
}

# Members of a list by RFC 8941: a token or a string, and parameters behind it.
_WORD = r"[A-Za-z*][!#$%&'*+.^_`|~:/0-9A-Za-z-]*"
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_BARE = rf"(?:{_WORD}|{_STRING}|-?[0-9]{{1,15}}(?:\.[0-9]{{1,3}})?|:[A-Za-z0-9+/=]*:|\?[01])"
_MEMBER = re.compile(
    rf"(({_WORD}|{_STRING})(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:={_BARE})?)*)"
    r"[ \t]*(?:,[ \t]*(?!\Z)|\Z)".encode()
)
#: what this proxy calls itself there, in either form
_OWN_NAMES = (b"gsocks", b'"gsocks"')

_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})


@lru_cache(maxsize=1024)  # the labels of exits, most of which come again and again
def next_hop(via: str) -> bytes:
    """The Proxy-Status of a response by the exit ``via``."""
    # a string of RFC 8941 section 3.3.3: printable ASCII, with " and \ escaped by a backslash
    printable = via
    if not (via.isascii() and via.isprintable()):
        printable = "".join(char if " " <= char <= "~" else "?" for char in via)
    quoted = printable.replace("\\", "\\\\").replace('"', '\\"')
    return f'gsocks; next-hop="{quoted}"'.encode("ascii")


def foreign_members(value: bytes) -> bytes:
    """The members of a Proxy-Status that were not made to look like this proxy's own.

    Empty if there are none, or if ``value`` is no list of RFC 8941: together with the member that
    this proxy adds it would be none either, which clients ignore as a whole.
    """
    members = []
    at = 0
    while at < len(value):
        found = _MEMBER.match(value, at)
        if found is None:
            return b""
        if found[2].lower() not in _OWN_NAMES:
            members.append(found[1])
        at = found.end()
    return b", ".join(members)


def error_type(error: GsocksError) -> str:
    """The type of ``error`` in RFC 9209."""
    return next(_TYPES[kind] for kind in type(error).__mro__ if kind in _TYPES)


def answer_to(request: h11.Request, *, closing: bool) -> tuple[h11.Response, bytes]:
    """Head and body of the response to TRACE or OPTIONS that this proxy has to answer itself.

    TRACE returns the request as received, without secret fields (RFC 9110 section 9.3.8).
    ``closing``: as in :func:`answer_for`.
    """
    fields, body = [], b""
    if request.method == b"TRACE":
        version = b" HTTP/" + request.http_version
        lines = [request.method + b" " + request.target + version]
        for field, (name, _) in zip(request.headers.raw_items(), request.headers, strict=True):
            if name not in _SECRET:
                lines.append(b": ".join(field))
        body = b"\r\n".join(lines) + b"\r\n\r\n"
        fields.append(("Content-Type", "message/http"))
    fields.append(("Content-Length", str(len(body))))
    if closing:
        fields.append(("Connection", "close"))
    return h11.Response(status_code=HTTPStatus.OK, headers=fields, reason=b"OK"), body


def reason_phrase(status: HTTPStatus) -> str:
    """The reason phrase of RFC 9110 section 15, which Python has from 3.13 on."""
    return "Content Too Large" if status.value == 413 else status.phrase


def answer_for(error: GsocksError, *, closing: bool) -> tuple[h11.Response, bytes]:
    """Head and body of the response that reports ``error``.

    ``closing``: the client's connection can't be reused.
    """
    status = HTTPStatus(error.http_status)
    reason = reason_phrase(status)
    body = f"{status.value} {reason}: {error}\n".encode("utf-8", "backslashreplace")
    fields = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Proxy-Status", f"gsocks; error={error_type(error)}"),
    ]
    if isinstance(error, AuthenticationFailed):
        fields.append(("Proxy-Authenticate", CHALLENGE))
    if error.retry_after is not None:  # in whole seconds (RFC 9110 section 10.2.3)
        fields.append(("Retry-After", str(math.ceil(error.retry_after))))
    if closing:
        fields.append(("Connection", "close"))
    return h11.Response(status_code=status, headers=fields, reason=reason), body
