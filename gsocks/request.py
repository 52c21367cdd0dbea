"""What a client asks for, whichever door it came through."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from gsocks.address import Address
from gsocks.wish import ANY, Wish


class Command(IntEnum):
    """CMD of RFC 1928 section 4."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class Request(NamedTuple):
    """One request, and who made it."""

    command: Command
    dest: Address
    #: who asks: the authenticated user, or at a tunnel's far end the name of the key
    user: str | None = None
    #: what the client sent right behind its request: the first bytes of the stream
    payload: bytes = b""
    #: what is asked of the exit that serves it
    wish: Wish = ANY
    #: an exit that can may take the request for served before it is: what then fails is told by
    #: the stream, as :class:`gsocks.errors.Withdrawn`
    fast_open: bool = False
