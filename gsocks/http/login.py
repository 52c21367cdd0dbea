"""Who asks: Basic credentials for a proxy (RFC 7617, RFC 9110 section 11.7)."""

from __future__ import annotations

import binascii
from base64 import b64decode

import h11

from gsocks.errors import AuthenticationFailed
from gsocks.handshake import Authenticate, printable

#: what a client is told that sent none, or the wrong ones
CHALLENGE = 'Basic realm="gsocks", charset="UTF-8"'


def log_in(request: h11.Request, authenticate: Authenticate | None) -> str | None:
    """The name of the user who asks; None if the door is open, whatever credentials there are.

    Raises AuthenticationFailed.
    """
    if authenticate is None:
        return None
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    if not given:
        raise AuthenticationFailed("this proxy asks for a user name and a password")
    if len(given) > 1:
        raise AuthenticationFailed("more than one Proxy-Authorization in one request")
    name, password = _basic(given[0])
    if not authenticate(name, password):
        raise AuthenticationFailed(f"no user {name!r} with that password")
    return name


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
