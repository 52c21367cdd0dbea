"""From a key and a salt to what seals: the derivations of SIP004, SIP022 and SIP023."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from gsocks.shadowsocks.methods import Method

_SUBKEY_INFO = b"ss-subkey"
_SESSION = "shadowsocks 2022 session subkey"
_IDENTITY = "shadowsocks 2022 identity subkey"

#: bytes of an identity header, and of the separate header of a datagram: a block of AES
BLOCK = 16

#: encrypts or decrypts one block of AES
Block = Callable[[bytes], bytes]


def subkey(method: Method, key: bytes, salt: bytes) -> bytes:
    """The key of a direction of a stream, or of a datagram, whose salt that is."""
    if method.is_2022:
        return _derived(_SESSION, key + salt, method.key_size)
    return hkdf_sha1(key, salt, _SUBKEY_INFO, method.key_size)


def hkdf_sha1(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """HKDF (RFC 5869) with SHA-1."""
    secret = hmac.digest(salt, key, "sha1")
    made = block = b""
    number = 0
    while len(made) < size:
        number += 1
        block = hmac.digest(secret, block + info + bytes((number,)), "sha1")
        made += block
    return made[:size]


def identity_subkey(key: bytes, salt: bytes) -> bytes:
    """The key of an identity header of a stream, SIP023."""
    return _derived(_IDENTITY, key + salt, len(key))


def identity_of(key: bytes) -> bytes:
    """What an identity header says of the next key, SIP023."""
    from blake3 import blake3  # an optional package

    return blake3(key).digest(BLOCK)


def _derived(context: str, material: bytes, size: int) -> bytes:
    from blake3 import blake3  # an optional package

    return blake3(material, derive_key_context=context).digest(size)


def block_cipher(key: bytes) -> tuple[Block, Block]:
    """Encryption and decryption of single blocks by AES, which SIP022 section 3.2.1 asks for."""
    # an optional package
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher: Any = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - of one random block
    return cipher.encryptor().update, cipher.decryptor().update


def fingerprint(key: bytes) -> bytes:
    """What tells one key from another, and tells nothing of it."""
    return hashlib.blake2b(key, digest_size=16, person=b"gsocks ss key").digest()
