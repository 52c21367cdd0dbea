"""What a Shadowsocks listener reads: of a peer without a key, of one who changes what a client has
sent, and of a client whose request is anything.

The first byte of the input selects the method and which of these; the rest is the bytes as they
are, what is put over a true beginning by XOR, or the chunks that a key seals.
"""

from __future__ import annotations

import base64
from contextlib import closing
from io import BytesIO
from typing import Any

from fuzz.model import Short, Taker, Wrong
from fuzz.wire import WAYS, Pieces, Wire, whole
from gsocks.address import Address
from gsocks.errors import BadAddress, BadRequest, HandshakeTimeout, Stranger, StreamError
from gsocks.shadowsocks import ciphers, keys, stream
from gsocks.shadowsocks.accept import Guards, ServerKeys, accept
from gsocks.shadowsocks.methods import METHODS, Method, keys_of
from gsocks.shadowsocks.packet import ServerPackets

_METHODS = (METHODS["chacha20-ietf-poly1305"], METHODS["2022-blake3-aes-128-gcm"])
_SALT = bytes(range(100, 132))


def _password(method: Method) -> str:
    return base64.b64encode(bytes(16)).decode() if method.is_2022 else "password"


_SERVERS = {method: ServerKeys(method, _password(method)) for method in _METHODS}


def _head(method: Method, asked: bytes) -> bytes:
    """The beginning of a client that asks so, always under the same salt."""
    salt = _SALT[: method.key_size]
    sealer = ciphers.sealer(
        method, keys.subkey(method, keys_of(method, _password(method))[0], salt)
    )
    length = len(asked).to_bytes(2, "big")
    if not method.is_2022:
        return salt + sealer.seal(length) + sealer.seal(asked)
    fixed = b"\0" + stream.now().to_bytes(8, "big") + length
    return salt + sealer.seal(fixed) + sealer.seal(asked)


_NAME = b"\x03\x0bexample.com\x01\xbb"
_IPV4 = b"\x01\x01\x02\x03\x04\x00\x50"
_IPV6 = b"\x04" + bytes(15) + b"\x01\x00\x50"

SEEDS = [
    *(bytes((kind,)) + b"GET / HTTP/1.1\r\n\r\n" for kind in (0, 1)),
    *(bytes((kind,)) + bytes(200) for kind in (0, 1, 2, 3)),
    *(b"\x02" + bytes(at) + b"\x01" for at in (0, 31, 33, 49, 60)),
    *(b"\x04" + dest + b"bytes" for dest in (_NAME, _IPV4, _IPV6)),
    *(b"\x05" + dest + b"\0\0bytes" for dest in (_NAME, _IPV4, _IPV6)),
    *(b"\x05" + dest + b"\0\3pad" for dest in (_NAME, _IPV4)),
    b"\x05" + _IPV4 + b"\0\0",
    b"\x05" + _IPV4 + b"\0\7short",
    b"\x05" + _IPV4 + b"\x03\x85" + bytes(901),
    b"\x04\x05\x00",
    b"\x04\x03",
    b"\x04\x03\x03a b\x00\x50",
]
WORDS = [_NAME, _IPV4, _IPV6, b"\x03", b"\x00\x50", b"\x00\x00", b"\x03\x84", bytes(16)]


def check(data: bytes) -> None:
    mode, said = (data[0] if data else 0), data[1:]
    method = _METHODS[mode % 2]
    kind = mode // 2 % 3
    if kind == 0:
        wire, right = said, None
    elif kind == 1:
        head = _head(method, _IPV4 + b"\0\0x")
        change = said[: len(head)].ljust(len(head), b"\0")
        wire = bytes(a ^ b for a, b in zip(head, change, strict=True))
        right = _request(method, _IPV4 + b"\0\0x") if not any(change) else None
    else:
        asked = said[: method.max_chunk]
        wire, right = _head(method, asked), _request(method, asked)
    # in 2022 salt and header come in one piece, so that the pieces are not tried
    for pieces in (whole,) if method.is_2022 else WAYS:
        found = _accepted(method, wire, pieces)
        assert found == right, (found, right)
    _drop(method, wire)


def _accepted(method: Method, said: bytes, pieces: Pieces) -> tuple[str, int, bytes] | None:
    """Destination and first bytes; None for a stranger's."""
    server = _SERVERS[method]
    with closing(Guards.of(server)) as guards:
        wire: Any = Wire(said, pieces, "silence")
        try:
            accepted = accept(wire, server, guards)
        except (Stranger, StreamError, BadRequest, HandshakeTimeout):
            assert not wire.told  # a stranger is told nothing
            return None
        assert not wire.told
        return (*accepted.dest, accepted.stream._payload)


def _request(method: Method, asked: bytes) -> tuple[str, int, bytes] | None:
    """The same by the model of the grammar."""
    take = Taker(asked)
    try:
        take.dest()
        if method.is_2022:
            padding = int.from_bytes(take(2), "big")
            take(padding)
            if padding > 900 or not (padding or take.rest):
                return None
    except (Short, Wrong):
        return None
    try:  # which names are accepted is what the target of SOCKS5 looks at
        return (*Address.read(BytesIO(asked).read), take.rest)
    except BadAddress:
        return None


def _drop(method: Method, packet: bytes) -> None:
    """A datagram of the same bytes never does more than being dropped."""
    server = _SERVERS[method]
    with closing(Guards.of(server)) as guards:
        ServerPackets(server, guards).open(packet, "here")
