"""SOCKS5: greeting, login and request (RFC 1928, RFC 1929).

The first byte of the input selects whether the listener has users, and how the client ends.
"""

from __future__ import annotations

from fuzz.greeting import THENS, Heard, hear
from fuzz.model import Dest, Short, Taker, Wrong
from fuzz.username import model_split
from gsocks.handshake import printable

_TO_IPV4 = b"\x01\x01\x02\x03\x04\x00\x50"
_TO_IPV6 = b"\x04" + bytes(15) + b"\x01\x01\xbb"
_TO_MAPPED = b"\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\x01\xbb"
_LOGIN = b"\x05\x01\x02\x01\x05alice\x06secret"


def _to(name: bytes) -> bytes:
    return b"\x03" + bytes((len(name),)) + name + b"\x01\xbb"


SEEDS = [
    b"\x00\x05\x01\x00\x05\x01\x00" + _TO_IPV4,
    b"\x00\x05\x01\x00\x05\x01\x00" + _TO_IPV6 + b"behind",
    b"\x00\x05\x02\x00\x02\x01\x01x\x00\x05\x01\x00" + _TO_IPV4,
    b"\x01\x05\x01\x02\x01\x0falice-session-x\x06secret\x05\x01\x00" + _TO_IPV4,
    b"\x00\x05\x01\x00\x05\x02\x00" + _TO_MAPPED,
    b"\x00\x05\x01\x00\x05\x03\x00" + _to(b"0"),
    b"\x00\x05\x01\x00\x05\xf0\x00" + _to(b"example.com"),
    b"\x00\x05\x01\x00\x05\xf1\x00" + _TO_IPV4,
    b"\x00\x05\x01\x02\x01\x0bweb-session\x00\x05\x01\x00" + _TO_IPV4,
    b"\x00\x05\x01\x00\x05\x01\x00" + _to(b"example.com"),
    b"\x00\x05\x01\x00\x05\x01\x00" + _to(b"[::1]"),
    b"\x00\x05\x01\x00\x05\x01\x00" + _to("bücher.example".encode()),
    b"\x00\x05\x00",
    b"\x00" + _LOGIN + b"\x05\x01\x00" + _TO_IPV4,
    b"\x01" + _LOGIN + b"\x05\x01\x00" + _TO_IPV4,
    b"\x01\x05\x01\x02\x01\x05alice\x05wrong\x05\x01\x00" + _TO_IPV4,
    b"\x01\x05\x01\x02\x01\x00\x00",
    b"\x02\x05\x01\x00\x05\x01\x00\x03",
]
WORDS = [b"\x05\x01\x00", b"\x05\x01\x02", b"\x05\x01\x00\x03", b"alice", b"secret", b"127.0.0.1"]


def check(data: bytes) -> None:
    mode, said = data[:1], b"\x05" + data[2:]  # other versions are other targets'
    users = bool(mode) and mode[0] & 1 == 1
    heard = hear(said, users=users, then=THENS[mode[0] >> 1 & 3] if mode else "end")
    try:
        told, dest, command, behind, doubt = _model(said, users=users)
    except (Short, Wrong):
        assert heard.request is None, heard
        return
    if heard.request is not None or not doubt:
        _compare(heard, told, dest, command, behind, "alice" if users else None)


def _model(said: bytes, *, users: bool) -> tuple[bytes, Dest, int, bytes, bool]:
    """The expected answer, the destination, the command and the rest; and whether the listener may
    refuse the request for the exit selector in the user name.
    """
    take = Taker(said[1:])
    methods = take(take(1)[0])
    told, selector = b"\x05\x00", ""
    if 2 in methods and (users or 0 not in methods):
        told = b"\x05\x02\x01\x00"
        version, name, password = take(1), take(take(1)[0]), take(take(1)[0])
        user, selector = model_split(printable(name), {"alice"} if users else None)
        if version != b"\x01" or (users and (user, password) != ("alice", b"secret")):
            raise Wrong
        if not (users or password):  # it is no more than the name of the client's user
            selector = ""
    elif users or 0 not in methods:
        raise Wrong
    again, command, _ = take(3)
    dest = take.dest()
    if again != 5 or command not in (1, 2, 3, 0xF0, 0xF1):
        raise Wrong
    return told, dest, command, take.rest, bool(selector)


def _compare(
    heard: Heard, told: bytes, dest: Dest, command: int, behind: bytes, user: str | None
) -> None:
    if heard.request is None:
        # an address may be written as a name, and only addresses have names
        assert not dest.is_plain or (command == 0xF1 and dest.kind == 3), heard
        assert heard.error == "bad_address", heard
        # and the client is told so, by a reply of full length
        assert heard.told[len(told) :] == b"\x05\x01\x00\x01" + bytes(6), heard
    else:
        assert heard.told == told, heard
        assert (heard.request.command, heard.request.user) == (command, user), heard
        assert heard.behind == behind, heard
        assert command != 0xF1 or heard.request.dest.ip is not None, heard
        # the address from which datagrams will come is not binding
        anywhere = command == 3 and heard.request.dest == ("0.0.0.0", 0)
        assert anywhere or dest.is_said_by(*heard.request.dest), (heard, dest)
