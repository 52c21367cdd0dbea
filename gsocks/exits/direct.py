"""The way out without a way: straight to the destination."""

from __future__ import annotations

from gsocks.address import Address
from gsocks.dial import Dialer
from gsocks.exits.base import Connected
from gsocks.request import Request
from gsocks.stream import SocketStream


class DirectExit:
    """Connects from this machine; the rules are asked for every address that a name resolves to."""

    __slots__ = ("_dialer", "label")

    def __init__(self, dialer: Dialer, label: str = "direct") -> None:
        self._dialer = dialer
        self.label = label

    def start(self) -> None:
        """Nothing to prepare."""

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        sock = self._dialer.connect(request.dest, request.user)
        return Connected(SocketStream(sock), Address.from_sockaddr(sock.getsockname()))

    def close(self) -> None:
        """Nothing is kept."""
