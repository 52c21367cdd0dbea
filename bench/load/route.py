"""The way from a client to the target: through a SOCKS5 proxy, or straight."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

#: seconds after which a contender that does not answer has failed
PATIENCE = 30.0


class Place(NamedTuple):
    """An IPv4 address and a port."""

    host: str
    port: int


class Route(NamedTuple):
    """Where to connect, and what to ask for there."""

    #: None: no proxy
    proxy: Place | None
    target: Place

    def connect(self) -> socket.socket:
        """A socket connected to the first hop.  Says nothing yet."""
        sock = socket.create_connection(self.proxy or self.target, timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def request(self) -> bytes:
        """SOCKS5 CONNECT to the target, by address: no contender has to look up a name."""
        host, port = self.target
        return b"\x05\x01\x00\x01" + socket.inet_aton(host) + struct.pack(">H", port)
