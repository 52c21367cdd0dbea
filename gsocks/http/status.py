"""What the proxy says itself: its errors as answers that a person and a program can read.

A program reads the status and ``Proxy-Status`` (RFC 9209), which parts the proxy's own errors from
those of the origin server; a person reads the body.
"""

from __future__ import annotations

from http import HTTPStatus

import h11

from gsocks import errors
from gsocks.errors import AuthenticationFailed, GsocksError
from gsocks.http.login import CHALLENGE

# RFC 9209 section 2.3, for each error that has a type of its own there; any other error has that
# of the next class above it which does.
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

_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization"})


def next_hop(via: str) -> bytes:
    """The Proxy-Status of what the exit ``via`` serves."""
    # a string of RFC 8941 section 3.3.3 has printable ASCII, with a backslash before two of it
    printable = "".join(char if " " <= char <= "~" else "?" for char in via)
    quoted = printable.replace("\\", "\\\\").replace('"', '\\"')
    return f'gsocks; next-hop="{quoted}"'.encode("ascii")


def error_type(error: GsocksError) -> str:
    """The type that RFC 9209 has for ``error``."""
    return next(_TYPES[kind] for kind in type(error).__mro__ if kind in _TYPES)


def answer_to(request: h11.Request, *, closing: bool) -> tuple[h11.Response, bytes]:
    """Head and body of the answer to TRACE or OPTIONS that this proxy is to answer itself.

    TRACE is told what has come here, without what is secret (RFC 9110 section 9.3.8).
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


def answer_for(error: GsocksError, *, closing: bool) -> tuple[h11.Response, bytes]:
    """Head and body of the answer that tells ``error``.

    ``closing``: the client's connection can't be used again.
    """
    status = HTTPStatus(error.http_status)
    body = f"{status} {status.phrase}: {error}\n".encode("utf-8", "backslashreplace")
    fields = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Proxy-Status", f"gsocks; error={error_type(error)}"),
    ]
    if isinstance(error, AuthenticationFailed):
        fields.append(("Proxy-Authenticate", CHALLENGE))
    if closing:
        fields.append(("Connection", "close"))
    return h11.Response(status_code=status, headers=fields, reason=status.phrase), body
