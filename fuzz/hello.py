"""The tunnel's hello, from a peer without the key, from an attacker who changes one, and from a
peer with the key.

The first byte of the input selects which: the bytes as they are; an authentic hello, changed by XOR
with them; or an authentic hello with them as its payload.
"""

from __future__ import annotations

from typing import Any

from fuzz.wire import WAYS, Wire
from gsocks.crypto import HELLO_HEAD_SIZE, LOWEST_VERSION, Cipher, Initiator, Key, KeyRing
from gsocks.errors import HandshakeTimeout, ProtocolViolation, Stranger, StreamError
from gsocks.tunnel.server import accept_tunnel

_KEY = Key(bytes(range(32)))
_RING = KeyRing({"known": _KEY, "other": Key(bytes(32))})
_HAS = Cipher.SECRETBOX | Cipher.AEGIS256
_TIME = (1).to_bytes(8, "big")
#: how a client behind its hello may end
_THENS = ("silence", "end", "reset")


def _hello(payload: bytes | None = None) -> bytes:
    """The hello of a known key, always the same; with another ``payload`` than its own."""
    initiator = Initiator(_KEY, _HAS, private=bytes(range(1, 33)), salt=bytes(range(16)))
    if payload is None:
        return initiator.hello(1)
    hello = initiator.hello(1)
    # the state behind the public key, as it was before the payload was sealed
    again = Initiator(_KEY, _HAS, private=bytes(range(1, 33)), salt=bytes(range(16)))
    again._state.mix_key_and_hash(_KEY.raw())
    again._state.mix_ephemeral(again._public)
    return hello[:HELLO_HEAD_SIZE] + again._state.encrypt_and_hash(payload)


_TRUE = _hello()
#: of its payload
_SIZE = len(_TRUE) - HELLO_HEAD_SIZE - 16

SEEDS = [
    b"\x00" + _TRUE,
    b"\x00" + _TRUE + b"behind",
    b"\x00" + _TRUE[:HELLO_HEAD_SIZE],
    b"\x03" + _TRUE[:-1],
    b"\x00GET / HTTP/1.1\r\n\r\n",
    b"\x01" + bytes(len(_TRUE)),
    b"\x01" + bytes(16 + 4) + b"\x01",
    b"\x02" + _TIME + b"\x02\x03" + bytes(_SIZE - 10),
    b"\x02" + _TIME + b"\x02\x00" + bytes(_SIZE - 10),
    b"\x02" + _TIME + b"\x01\x03" + bytes(_SIZE - 10),
    b"\x02" + bytes(8) + b"\xff\xff\xff" + bytes(_SIZE - 11),
    b"\x02" + _TIME + b"\x02\x03\x01" + bytes(_SIZE - 11),
]
WORDS = [
    _TRUE[:16],
    _TRUE[16:20],
    _TRUE[20:HELLO_HEAD_SIZE],
    _TRUE[:HELLO_HEAD_SIZE],
    _TRUE[HELLO_HEAD_SIZE:],
    bytes(32),
    _TIME,
]


class _Guard:
    """Admits a hello with the time 1."""

    def admit(self, token: bytes, time_ms: int, key: bytes) -> bool:
        return time_ms == 1

    def refusal(self, time_ms: int) -> str:
        return f"another time than 1: {time_ms}"


def check(data: bytes) -> None:
    mode = data[0] if data else 0
    said, behind = _said(mode % 3, data[1:])
    welcome = {_accepts(said, behind, pieces, _THENS[mode // 3 % 3]) for pieces in WAYS}
    assert len(welcome) == 1, welcome
    if mode % 3 < 2:
        right = said[: len(_TRUE)] == _TRUE
    else:
        payload = data[1 : _SIZE + 1].ljust(_SIZE, b"\0")
        right = payload[:8] == _TIME and payload[8] >= LOWEST_VERSION and bool(payload[9] & _HAS)
    assert welcome == {right}, (said, right)


def _said(kind: int, data: bytes) -> tuple[bytes, bytes]:
    """All bytes that are sent, and those of them behind the hello."""
    if kind == 0:
        return data, data[len(_TRUE) :]
    if kind == 1:
        change = data.ljust(len(_TRUE), b"\0")
        return bytes(a ^ b for a, b in zip(_TRUE, change, strict=False)), b""
    return _hello(data[:_SIZE].ljust(_SIZE, b"\0")), b""


def _accepts(said: bytes, behind: bytes, pieces: Any, then: str) -> bool:
    wire: Any = Wire(said, pieces, then)
    try:
        tunnel = accept_tunnel(wire, _RING, _Guard(), _HAS)  # type: ignore[arg-type]
    except ProtocolViolation:
        assert wire.told  # a client with the key is told that its version is too low
        return False
    except (Stranger, HandshakeTimeout, StreamError):
        assert not wire.told  # a stranger learns nothing
        return False
    assert tunnel.user == "known"
    assert wire.told
    assert tunnel.between_frames
    assert wire.rest == behind
    return True
