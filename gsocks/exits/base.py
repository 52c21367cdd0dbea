"""What every way out can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gsocks.address import Address
from gsocks.request import Request
from gsocks.stream import Stream


class Connected(NamedTuple):
    """A request's far side."""

    stream: Stream
    #: the address from which the destination is reached
    bound: Address


class Exit(Protocol):
    """One way out."""

    @property
    def label(self) -> str:
        """How logs and replies name it: its URL without secrets."""

    def start(self) -> None:
        """Begin whatever makes it quick, such as opening tunnels ahead of need."""

    def connect(self, request: Request) -> Connected:
        """Reach ``request.dest``; blocks until it is really connected.

        Raises ExitFailed if the way out itself failed, so that another one may be tried;
        any other ConnectFailed if the destination can't be reached this way.
        """

    def close(self) -> None:
        """Let go what is idle; connections in use are not touched."""
