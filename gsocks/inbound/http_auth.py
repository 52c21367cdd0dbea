"""Basic credentials for a proxy (RFC 7617, RFC 9110 section 11.7)."""

from __future__ import annotations

import binascii
from base64 import b64decode

import h11

from gsocks.access.login import Authenticator, Identity
from gsocks.errors import AuthenticationFailed
from gsocks.handshake import printable
from gsocks.http.message import header

_REQUIRED = "this proxy requires a user name and a password"
_ASKED = "this proxy expects a user name, which may name a session (session-NAME), and any password"


def log_in(request: h11.Request, login: Authenticator) -> Identity:
    """The identity of the client.

    A listener without users ignores malformed credentials, unless it asks for some: Chromium, Java,
    .NET, ncat and ``curl --proxy-anyauth`` send theirs only after 407.

    Raises AuthenticationFailed, BadParameters, and what a Throttle raises.
    """
    given: list[bytes] = []
    if header(request, b"proxy-authorization") is not None:
        given = [value for name, value in request.headers if name == b"proxy-authorization"]
    if len(given) > 1:
        raise AuthenticationFailed("more than one Proxy-Authorization in one request")
    try:
        if not given:
            raise AuthenticationFailed(_REQUIRED if login.required else _ASKED)
        name, password = _basic(given[0])
    except AuthenticationFailed:
        if login.required or login.asks:
            raise
        return login.anonymous()
    return login.authenticate(name, password)


def _basic(value: bytes) -> tuple[str, bytes]:
    """The user name and the password in a field value of RFC 7617 section 2."""
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        raise AuthenticationFailed("credentials of another scheme than Basic")
    try:
        name, colon, password = b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        raise AuthenticationFailed("credentials that are not base64") from None
    if not colon:
        raise AuthenticationFailed("credentials without a colon between name and password")
    return printable(name), password
