"""The bounds of a door: how long anything may take, and how many there may be."""

from __future__ import annotations

from typing import NamedTuple


class Timeouts(NamedTuple):
    """Seconds."""

    #: for a client to say what it wants, or to prove that it knows a key
    handshake: float = 10.0
    #: for a request to be connected, whatever is tried for it
    connect: float = 10.0
    #: without a byte in either direction
    idle: float = 600.0
    #: the same once one direction has ended
    half_closed: float = 60.0
    #: for open connections to come to their end when the door is stopped by SIGTERM
    drain: float = 30.0


class Limits(NamedTuple):
    """Counts."""

    #: connections through one door
    connections: int = 10_000
    #: connections from one address
    per_client: int = 256
