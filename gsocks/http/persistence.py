"""When a connection may carry another request after a response (RFC 9112 section 9.3).

A response whose end two programs could see at different bytes would let its rest be taken for the
answer to the next request (response splitting, desynchronisation).  So the rules are stricter here
than those by which a response is read.
"""

from __future__ import annotations

from http.client import NO_CONTENT, NOT_MODIFIED

import h11

from gsocks.http.head import options
from gsocks.http.message import Message, has_any, header

#: schemes that authenticate a connection instead of a request (RFC 4559, MS-NTHT)
_OF_CONNECTIONS = (b"ntlm", b"negotiate")
_AUTHENTICATION = frozenset(
    {b"authorization", b"www-authenticate", b"proxy-authenticate", b"persistent-auth"}
)


def is_persistent(response: h11.Response, method: bytes) -> bool:
    """Whether the connection may be used again after ``response`` to a request of that method.

    Its body, if it has one, must also have been read to its end; and it is for the same client
    alone if one of the messages :func:`authenticates_connection`.
    """
    if response.http_version != b"1.1":
        return False
    of_connection = options(response, b"connection") + options(response, b"proxy-connection")
    if any(option.lower() == b"close" for option in of_connection):
        return False
    # several are one by now, or were refused
    length = header(response, b"content-length")
    chunked = header(response, b"transfer-encoding") is not None
    if response.status_code == NO_CONTENT:
        return not chunked and length in (None, b"0")
    if chunked:
        return length is None
    has_no_body = method == b"HEAD" or response.status_code == NOT_MODIFIED
    return has_no_body or length is not None


def authenticates_connection(message: Message) -> bool:
    """Whether ``message`` is about credentials that hold for all requests that follow it."""
    # no loop over all fields, which nearly always have none of these
    if not has_any(message, _AUTHENTICATION):
        return False
    return any(
        name == b"persistent-auth"
        or (name in _AUTHENTICATION and value.lower().startswith(_OF_CONNECTIONS))
        for name, value in message.headers
    )
