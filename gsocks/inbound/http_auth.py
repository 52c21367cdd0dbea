"""Who asks: Basic credentials for a proxy (RFC 7617, RFC 9110 section 11.7)."""

from __future__ import annotations

import binascii
from base64 import b64decode

import h11

from gsocks.errors import AuthenticationFailed
from gsocks.handshake import printable
from gsocks.login import Caller, Login

#: what a client is told that sent none, or the wrong ones
CHALLENGE = 'Basic realm="gsocks", charset="UTF-8"'


def log_in(request: h11.Request, login: Login) -> Caller:
    """Who asks.  At an open door credentials that can't be read mean nothing.

    Raises AuthenticationFailed, BadParameters, and what a Throttle raises.
    """
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    if len(given) > 1:
        raise AuthenticationFailed("more than one Proxy-Authorization in one request")
    try:
        if not given:
            raise AuthenticationFailed("this proxy asks for a user name and a password")
        name, password = _basic(given[0])
    except AuthenticationFailed:
        if login.required:
            raise
        return login.unnamed()
    return login.enter(name, password)


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
