"""Addresses in wire form, parsed independently of gsocks (RFC 1928 section 5)."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

#: names that must be taken: what RFC 1123 allows, but not what ends in a number
PLAIN_NAME = re.compile(rb"(?=.{1,255}\Z)[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]+)*", re.DOTALL)
#: what a name may be at most, once it is accepted
_ACCEPTED = re.compile(r"[a-z0-9_.-]{1,255}")


class Short(Exception):
    """There is more to come."""


class Wrong(Exception):
    """It can't be what it should be."""


class Dest(NamedTuple):
    """An address as its bytes have it."""

    kind: int
    raw: bytes
    port: int

    def is_said_by(self, host: str, port: int) -> bool:
        """Whether an accepted address means this one."""
        if port != self.port:
            return False
        if self.kind == 1:
            return host == socket.inet_ntoa(self.raw)
        if self.kind == 4:
            return _is_ipv6(host, self.raw)
        return self._is_name(host)

    def _is_name(self, host: str) -> bool:
        text = self.raw.decode("utf-8").strip("[]")
        for family, kind in ((socket.AF_INET, 1), (socket.AF_INET6, 4)):
            try:
                raw = socket.inet_pton(family, text)
            except (OSError, ValueError):
                continue
            return Dest(kind, raw, self.port).is_said_by(host, self.port)
        if text.isascii() and host != text.lower():
            return False
        # no control byte, quote, zone or blank; and nothing that the C library takes for an address
        last = host.rstrip(".").rpartition(".")[2]
        return bool(_ACCEPTED.fullmatch(host)) and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last)

    @property
    def is_plain(self) -> bool:
        """Whether there is no reason to refuse it."""
        return self.kind != 3 or bool(PLAIN_NAME.fullmatch(self.raw))


def _is_ipv6(host: str, raw: bytes) -> bool:
    if raw[:12] == bytes(10) + b"\xff\xff":  # an IPv4 address, and told as one
        return host == socket.inet_ntoa(raw[12:])
    return ":" in host and "%" not in host and socket.inet_pton(socket.AF_INET6, host) == raw


class Taker:
    """The next bytes of what was said.  Raises Short where there are not so many."""

    def __init__(self, said: bytes) -> None:
        self.rest = said

    def __call__(self, count: int) -> bytes:
        if len(self.rest) < count:
            raise Short
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def until(self, end: bytes, longest: int) -> bytes:
        """What stands before ``end``, which is taken too.  Raises Wrong if that is too much."""
        taken, found, rest = self.rest.partition(end)
        if len(taken) > longest:
            raise Wrong
        if not found:
            raise Short
        self.rest = rest
        return taken

    def dest(self) -> Dest:
        kind = self(1)[0]
        if kind not in (1, 3, 4):
            raise Wrong
        size = {1: 4, 4: 16}.get(kind) or self(1)[0]
        return Dest(kind, self(size), int.from_bytes(self(2), "big"))
