"""Where a tunnel stands at each end, and what moves it (docs/protocol.md, 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias


class TunnelState(str, Enum):
    """Where a tunnel stands at one end, docs/protocol.md section 5.2."""

    IDLE = "idle"
    OPENING = "opening"
    PINGING = "pinging"
    STREAM = "stream"
    REFUSED = "refused"
    CLOSED = "closed"


class TunnelEvent(str, Enum):
    """What moves a tunnel from one state to the next.  CLOSED is reached from every state."""

    OPEN = "OPEN"
    PING = "PING"
    PONG = "PONG"
    #: the last OPENED of a request; a BIND has two
    OPENED = "OPENED with code 0x00"
    REFUSED = "OPENED with another code"
    LOOKED_UP = "OPENED of a look-up"
    #: the direction ends of a client that has no stream: it was refused, or has looked something up
    FIN = "FIN"
    BOTH_FINS = "FIN received and FIN sent"


Transitions: TypeAlias = Mapping[tuple[TunnelState, TunnelEvent], TunnelState]

_S, _E = TunnelState, TunnelEvent

CLIENT_TRANSITIONS: Transitions = {
    (_S.IDLE, _E.OPEN): _S.OPENING,
    (_S.IDLE, _E.PING): _S.PINGING,
    (_S.OPENING, _E.OPENED): _S.STREAM,
    (_S.OPENING, _E.REFUSED): _S.IDLE,
    (_S.OPENING, _E.LOOKED_UP): _S.IDLE,
    (_S.PINGING, _E.PONG): _S.IDLE,
    (_S.STREAM, _E.BOTH_FINS): _S.IDLE,
}

SERVER_TRANSITIONS: Transitions = {
    (_S.IDLE, _E.OPENED): _S.STREAM,
    (_S.IDLE, _E.REFUSED): _S.REFUSED,
    (_S.IDLE, _E.LOOKED_UP): _S.REFUSED,
    (_S.IDLE, _E.PING): _S.IDLE,
    (_S.REFUSED, _E.FIN): _S.IDLE,
    (_S.STREAM, _E.BOTH_FINS): _S.IDLE,
}
