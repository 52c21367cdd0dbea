"""The bytes that clients and balancers send to a guarded listener, and whether it lets them in."""

from __future__ import annotations

from typing import Protocol

from nacl.pwhash import argon2id


class Receives(Protocol):
    """A socket, gevent's or another."""

    def recv(self, size: int, /) -> bytes: ...


def is_turned_away(sock: Receives) -> bool:
    """Whether the connection ends without another byte."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def cheap(password: bytes) -> str:
    """A real hash at the least that libsodium does, some 20 us."""
    return argon2id.str(password, opslimit=1, memlimit=argon2id.MEMLIMIT_MIN).decode("ascii")


#: alice:secret and bob:hidden
USERS = {"alice": cheap(b"secret"), "bob": cheap(b"hidden")}


def login(name: bytes, password: bytes) -> bytes:
    """Greeting and credentials of SOCKS5, as one write."""
    return b"\x05\x01\x02\x01" + bytes((len(name),)) + name + bytes((len(password),)) + password


# A balancer's words for a client at 192.0.2.7, port 51000.
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 1080\r\n"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
    + bytes((192, 0, 2, 7, 198, 51, 100, 1))
    + (51000).to_bytes(2, "big")
    + (1080).to_bytes(2, "big")
)
#: for itself
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
