"""The fields of a frame's body, one after the other."""

from __future__ import annotations

from gsocks.errors import ProtocolViolation


class Taker:
    """``exactly`` for bytes that are all there."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def __call__(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._body):
            raise ProtocolViolation("a frame's body ends early")
        return self._body[start : self._at]
