"""SOCKS4 and SOCKS4a: one message.

The first byte of the input selects whether the listener has users, and how the client ends.
"""

from __future__ import annotations

from fuzz.greeting import THENS, hear
from fuzz.model import Dest, Short, Taker, Wrong

SEEDS = [
    b"\x00\x04\x01\x00\x50\x01\x02\x03\x04\x00",
    b"\x00\x04\x02\x00\x50\x01\x02\x03\x04me\x00behind",
    b"\x00\x04\x01\x01\xbb\x00\x00\x00\x01me\x00example.com\x00behind",
    b"\x00\x04\x01\x01\xbb\x00\x00\x00\x00me\x00",
    b"\x00\x04\x01\x01\xbb\x00\x00\x00\x01\x00127.0.0.1\x00",
    b"\x00\x04\x03\x01\xbb\x00\x00\x00\x01\x00\x00",
    b"\x00\x04\xf0\x00\x00\x00\x00\x00\x01\x00example.com\x00",
    b"\x00\x04\xf1\x00\x00\x01\x02\x03\x04\x00",
    b"\x01\x04\x01\x00\x50\x01\x02\x03\x04\x00",
    b"\x00\x04\x01\x00\x50\x01\x02\x03\x04x-session-y\x00",
    b"\x00\x04\x01\x00\x50\x01\x02\x03\x04x-session-\x00",
    b"\x02\x04\x01\x00\x50\x01\x02\x03\x04" + b"x" * 513,
    b"\x00\x04\x01\x00\x50\x01\x02\x03\x04" + b"x" * 513 + b"\x00",
]
WORDS = [b"\x04\x01", b"\x00\x00\x00\x01", b"\x00"]

_LONGEST = 512


def check(data: bytes) -> None:
    mode, said = data[:1], b"\x04" + data[2:]
    users = bool(mode) and mode[0] & 1 == 1
    heard = hear(said, users=users, then=THENS[mode[0] >> 1 & 3] if mode else "end")
    try:
        command, dest, behind = _model(said)
    except (Short, Wrong):
        assert heard.request is None, heard
        return
    if heard.request is None:
        assert users or command not in (1, 2, 0xF0) or not dest.is_plain, heard
        assert heard.told == b"\x00\x5b" + bytes(6), heard
    else:
        assert not users, heard
        assert not heard.told, heard
        assert (heard.request.command, heard.request.user) == (command, None), heard
        assert heard.behind == behind, heard
        assert dest.is_said_by(*heard.request.dest), (heard, dest)


def _model(said: bytes) -> tuple[int, Dest, bytes]:
    """The command, the destination and the rest; a user id is refused for nothing."""
    take = Taker(said[1:])
    command, port, ip = take(1)[0], int.from_bytes(take(2), "big"), take(4)
    take.until(b"\0", _LONGEST)
    dest = Dest(1, ip, port)
    if ip[:3] == bytes(3) and ip[3]:
        dest = Dest(3, take.until(b"\0", _LONGEST), port)
    return command, dest, take.rest
