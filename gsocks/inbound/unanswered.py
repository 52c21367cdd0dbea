"""Requests of clients that are told nothing: those of a forward, and of Shadowsocks."""

from __future__ import annotations

from gsocks.address import Address
from gsocks.errors import GsocksError


class NoAnswer:
    """The :class:`gsocks.handshake.Answer` of a ``protocol`` that has none."""

    __slots__ = ("protocol",)

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    def succeeded(self, bound: Address, via: str) -> None:
        """Do nothing: what the destination sends is the answer."""

    def failed(self, error: GsocksError) -> None:
        """Do nothing: the end of the connection tells."""


NO_ANSWER = NoAnswer("forward")
