"""The other end of a tunnel, written from docs/protocol.md and nothing else.

Nothing of gsocks is imported here: what this end and ours agree on is what the document says.
The names are the document's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import nacl.bindings
from nacl.secret import SecretBox

SECRETBOX, AEGIS256 = 0x01, 0x02
VERSION = 2
#: of the features
LOOK_UPS = 0x01
OPEN, OPENED, DATA, FIN, RESET, PING, PONG, DATAGRAM, PAD = range(1, 10)
NAMES = {
    OPEN: "OPEN",
    OPENED: "OPENED",
    DATA: "DATA",
    FIN: "FIN",
    RESET: "RESET",
    PING: "PING",
    PONG: "PONG",
    DATAGRAM: "DATAGRAM",
    PAD: "PAD",
}
#: types from here on are skipped
SKIPPED = 0x80


def blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    secret = hmac.digest(chaining_key, material, "blake2b")
    one = hmac.digest(secret, b"\x01", "blake2b")
    two = hmac.digest(secret, one + b"\x02", "blake2b")
    three = hmac.digest(secret, two + b"\x03", "blake2b")
    return one, two, three


class HelloShape(NamedTuple):
    """What key and salt make of a hello."""

    hint: bytes
    padding: int
    mask: bytes


def hello_shape(key: bytes, salt: bytes) -> HelloShape:
    made = hashlib.blake2b(salt, key=key, digest_size=37, person=b"gsocks/2 hello").digest()
    return HelloShape(made[:4], made[4], made[5:])


def reply_shape(key: bytes, salt: bytes) -> tuple[int, bytes]:
    """Padding and mask."""
    made = hashlib.blake2b(salt, key=key, digest_size=33, person=b"gsocks/2 reply").digest()
    return made[0], made[1:]


def xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def public_of(private: bytes) -> bytes:
    return nacl.bindings.crypto_scalarmult_base(private)


class Noise:
    """h, ck and k of the document's section 3; each method is a line of it."""

    def __init__(self, key: bytes, prologue: bytes = b"gsocks/2") -> None:
        self.h = self.ck = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b" + bytes(27)
        self.mix_hash(prologue)
        self.ck, h, k = hkdf(self.ck, key)  # psk
        self.mix_hash(h)
        self.k = k[:32]

    def mix_hash(self, data: bytes) -> None:
        self.h = blake2b(self.h + data)

    def mix_key(self, material: bytes) -> None:
        self.ck, k, _ = hkdf(self.ck, material)
        self.k = k[:32]

    def e(self, public: bytes) -> None:
        self.mix_hash(public)
        self.mix_key(public)

    def ee(self, private: bytes, public: bytes) -> None:
        self.mix_key(nacl.bindings.crypto_scalarmult(private, public))

    def seal(self, payload: bytes) -> bytes:
        # no key seals a second message, so the nonce is always 0
        sealed = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            payload, self.h, bytes(12), self.k
        )
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        payload = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
            sealed, self.h, bytes(12), self.k
        )
        self.mix_hash(sealed)
        return payload

    def split(self) -> tuple[bytes, bytes]:
        to_server, to_client, _ = hkdf(self.ck, b"")
        return to_server[:32], to_client[:32]


class Boxes:
    """One direction of a tunnel: boxes sealed, or opened, in their order."""

    def __init__(self, key: bytes, cipher: int) -> None:
        self.key = key
        self.cipher = cipher
        self.number = 0
        self.overhead = {SECRETBOX: 16, AEGIS256: 32}[cipher]

    def _nonce(self, size: int) -> bytes:
        nonce = self.number.to_bytes(size, "little")
        self.number += 1
        return nonce

    def seal(self, plain: bytes) -> bytes:
        if self.cipher == SECRETBOX:
            return SecretBox(self.key).encrypt(plain, self._nonce(24)).ciphertext
        return nacl.bindings.crypto_aead_aegis256_encrypt(plain, None, self._nonce(32), self.key)

    def open(self, sealed: bytes) -> bytes:
        if self.cipher == SECRETBOX:
            return SecretBox(self.key).decrypt(sealed, self._nonce(24))
        return nacl.bindings.crypto_aead_aegis256_decrypt(sealed, None, self._nonce(32), self.key)

    def frame(self, kind: int, body: bytes = b"") -> bytes:
        sealed = self.seal(bytes((kind,)) + len(body).to_bytes(3, "big"))
        return sealed + self.seal(body) if body else sealed

    def read_frame(self, exactly: Callable[[int], bytes]) -> tuple[int, bytes]:
        header = self.open(exactly(4 + self.overhead))
        length = int.from_bytes(header[1:], "big")
        if length > 65536:
            raise ValueError("a frame that is too long")
        return header[0], self.open(exactly(length + self.overhead)) if length else b""

    def frames(self, captured: bytes) -> Iterator[tuple[int, bytes]]:
        take = Taker(captured)
        while take.rest:
            yield self.read_frame(take)


class Taker:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def __call__(self, count: int) -> bytes:
        if count > len(self.rest):
            raise ValueError("truncated")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


# --- the client's part ------------------------------------------------------------------------


class Client:
    def __init__(self, key: bytes, private: bytes, salt: bytes | None = None) -> None:
        self.key = key
        self.private = private
        self.salt = salt or os.urandom(16)
        self.noise = Noise(key)

    def hello(self, time_ms: int, offered: int, version: int = VERSION, features: int = 0) -> bytes:
        public = public_of(self.private)
        hint, padding, mask = hello_shape(self.key, self.salt)
        self.noise.e(public)
        payload = time_ms.to_bytes(8, "big") + bytes((version, offered, features)) + bytes(padding)
        return self.salt + hint + xor(public, mask) + self.noise.seal(payload)

    def read_reply(self, exactly: Callable[[int], bytes]) -> Agreed:
        salt, masked = exactly(16), exactly(32)
        padding, mask = reply_shape(self.key, salt)
        public = xor(masked, mask)
        self.noise.e(public)
        self.noise.ee(self.private, public)
        payload = self.noise.open(exactly(3 + padding + 16))
        to_server, to_client = self.noise.split()
        version, cipher, features = payload[:3]
        return Agreed(Boxes(to_server, cipher), Boxes(to_client, cipher), version, features)


class Agreed(NamedTuple):
    """What seals an end's own frames, what opens the other's, and what the reply says."""

    sealing: Boxes
    opening: Boxes
    version: int
    features: int


# --- the server's part ------------------------------------------------------------------------


class Said(NamedTuple):
    time_ms: int
    version: int
    offered: int
    features: int
    padding: bytes


class Server:
    def __init__(self, key: bytes, private: bytes, salt: bytes | None = None) -> None:
        self.key = key
        self.private = private
        self.salt = salt or os.urandom(16)
        self.noise = Noise(key)
        self.client_public = b""

    def read_hello(self, exactly: Callable[[int], bytes]) -> Said:
        salt, hint, masked = exactly(16), exactly(4), exactly(32)
        expected, padding, mask = hello_shape(self.key, salt)
        if hint != expected:
            raise ValueError("the hello of another key")
        self.client_public = xor(masked, mask)
        self.noise.e(self.client_public)
        payload = self.noise.open(exactly(11 + padding + 16))
        version, offered, features = payload[8:11]
        return Said(int.from_bytes(payload[:8], "big"), version, offered, features, payload[11:])

    def reply(
        self, chosen: int, version: int = VERSION, features: int = 0
    ) -> tuple[bytes, Boxes, Boxes]:
        """Message 2, what seals our frames, and what opens the client's."""
        public = public_of(self.private)
        padding, mask = reply_shape(self.key, self.salt)
        self.noise.e(public)
        self.noise.ee(self.private, self.client_public)
        sealed = self.noise.seal(bytes((version, chosen, features)) + bytes(padding))
        to_server, to_client = self.noise.split()
        message = self.salt + xor(public, mask) + sealed
        return message, Boxes(to_client, chosen), Boxes(to_server, chosen)


# --- bodies -----------------------------------------------------------------------------------


def read_address(take: Taker) -> tuple[str, int]:
    kind = take(1)[0]
    if kind == 0x01:
        host = str(ipaddress.IPv4Address(take(4)))
    elif kind == 0x04:
        host = str(ipaddress.IPv6Address(take(16)))
    elif kind == 0x03:
        host = take(take(1)[0]).decode("ascii")
    else:
        raise ValueError(f"address type {kind}")
    return host, int.from_bytes(take(2), "big")


def read_request(body: bytes) -> tuple[int, str, int]:
    """Command, host, port; the padding is ignored."""
    take = Taker(body)
    return (take(1)[0], *read_address(take))


def read_answer(body: bytes) -> tuple[int, str, int]:
    """Code, host, port; the padding is ignored."""
    return read_request(body)


def read_datagram(body: bytes) -> tuple[str, int, bytes]:
    """Host, port, payload."""
    take = Taker(body)
    return (*read_address(take), take.rest)


def datagram_to(ip: str, port: int, payload: bytes) -> bytes:
    """The body of a DATAGRAM."""
    packed = ipaddress.ip_address(ip).packed
    kind = 0x01 if len(packed) == 4 else 0x04
    return bytes((kind,)) + packed + port.to_bytes(2, "big") + payload


def connect_to(name: str, port: int, padding: int = 0) -> bytes:
    """The body of an OPEN to a host name."""
    raw = name.encode("ascii")
    address = bytes((0x03, len(raw))) + raw + port.to_bytes(2, "big")
    return b"\x01" + address + bytes(padding)
