"""The bounds of a door: how long anything may take, and how many there may be."""

from __future__ import annotations

from typing import NamedTuple


class Timeouts(NamedTuple):
    """Seconds."""

    #: for a client to say what it wants, or to prove that it knows a key
    handshake: float = 10.0
    #: for a request to be connected, whatever is tried for it
    connect: float = 10.0
    #: for an HTTP client that has been served to ask again
    keep_alive: float = 60.0
    #: without a byte in either direction
    idle: float = 600.0
    #: the same once one direction has ended
    half_closed: float = 60.0
    #: for the peer of a BIND to connect
    bind: float = 60.0
    #: for open connections to come to their end when the door is stopped by SIGTERM
    drain: float = 30.0


class Limits(NamedTuple):
    """Counts, and bytes a second; None is no limit."""

    #: connections through one door
    connections: int = 10_000
    #: connections from one address
    per_client: int = 256
    #: connections of which it is not known yet what they want
    handshakes: int = 1000
    #: connections at a time of one user (at a server: of one key)
    per_user: int | None = None
    #: bytes of the body of one HTTP request
    request_body: int | None = None
    #: bytes a second of one connection, in each direction
    bandwidth_per_connection: float | None = None
    #: the same of all connections of one user together
    bandwidth_per_user: float | None = None


class Udp(NamedTuple):
    """UDP associations of a door that clients come to."""

    #: the IP address that clients are told, where it is not the one that they have reached
    advertise: str | None = None
    #: the first and the last port that may be used; None: any
    ports: tuple[int, int] | None = None
    #: how many at a time; 0: none are served
    associations: int = 1000
    #: the same for one client's address
    per_client: int = 64
    #: seconds without a datagram in either direction
    idle: float = 60.0
