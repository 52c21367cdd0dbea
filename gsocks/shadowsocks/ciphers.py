"""Sealing and opening: one message after the other, each under the next number.

AES-GCM and ChaCha20-Poly1305 of OpenSSL, by the package cryptography, write from one buffer into
the other.  In MB/s of CPU, chunks of 16 KiB on one core (Xeon, Python 3.11, cryptography 50,
PyNaCl 1.6): AES-256-GCM 9,800 beside 5,200 of libsodium, ChaCha20-Poly1305 2,960 beside 520.  For
the two bytes of a length libsodium's ChaCha20 takes half of OpenSSL's time (0.5 us), and without
the package it does all of it.
"""

from __future__ import annotations

from typing import Any

from nacl import bindings as sodium
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
from nacl.exceptions import CryptoError

from gsocks.crypto import TAG_SIZE, Area, Opener, Readable, Sealer, Writable
from gsocks.errors import Tampered
from gsocks.shadowsocks.methods import Method, missing

NONCE_SIZE = 12
#: of XChaCha20, which seals datagrams
LONG_NONCE_SIZE = 24

#: bytes up to which libsodium's ChaCha20 is the faster one
_SMALL = 256

_NULL = ffi.NULL
_chacha_seal = lib.crypto_aead_chacha20poly1305_ietf_encrypt
_chacha_open = lib.crypto_aead_chacha20poly1305_ietf_decrypt

_OTHERS = "a chunk that the other end did not seal"


def _engine(method: Method, key: bytes) -> Any:
    """The cipher of cryptography; None if that is not installed, and not needed."""
    try:
        # an optional package
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    except ImportError:
        if method.cipher == "aes-gcm" or method.is_2022:
            raise missing("cryptography", method) from None
        return None
    return AESGCM(key) if method.cipher == "aes-gcm" else ChaCha20Poly1305(key)


def sealer(method: Method, key: bytes) -> Sealer:
    """Seals the messages of one direction, whose ``key`` was derived from its salt.

    Raises ConfigError if a package is not installed, as :func:`opener` does.
    """
    engine = _engine(method, key)
    if method.cipher == "chacha20-poly1305":
        return _ChaChaSealer(key, engine)
    return _EngineSealer(key, engine)


def opener(method: Method, key: bytes) -> Opener:
    """The same for opening them."""
    engine = _engine(method, key)
    if method.cipher == "chacha20-poly1305":
        return _ChaChaOpener(key, engine)
    return _EngineOpener(key, engine)


class _EngineSealer(Sealer):
    """A cipher of cryptography."""

    __slots__ = ("_encrypt", "_encrypt_into")
    nonce_size = NONCE_SIZE
    overhead = TAG_SIZE

    def __init__(self, key: bytes, engine: Any) -> None:
        super().__init__(key)
        self._encrypt: Any = engine.encrypt if engine is not None else None
        #: since its version 47
        self._encrypt_into = getattr(engine, "encrypt_into", None)

    def seal_into(self, sealed: Writable, plaintext: Readable) -> None:
        number, end = self._number, len(plaintext) + TAG_SIZE
        self._number = number + 1
        nonce = number.to_bytes(NONCE_SIZE, "little")
        if self._encrypt_into is not None:
            self._encrypt_into(nonce, plaintext, None, memoryview(sealed)[:end])
        else:
            sealed[:end] = self._encrypt(nonce, plaintext, None)

    def seal_at(self, area: Area, start: int, plaintext: Readable) -> int:
        end = start + len(plaintext) + TAG_SIZE
        if self._encrypt_into is None or start < 0 or end > area.size:
            return super().seal_at(area, start, plaintext)
        number = self._number
        self._number = number + 1
        nonce = number.to_bytes(NONCE_SIZE, "little")
        self._encrypt_into(nonce, plaintext, None, area.view[start:end])
        return end


class _EngineOpener(Opener):
    """The same."""

    __slots__ = ("_decrypt", "_decrypt_into", "_invalid")
    nonce_size = NONCE_SIZE
    overhead = TAG_SIZE

    def __init__(self, key: bytes, engine: Any) -> None:
        super().__init__(key)
        if engine is not None:
            from cryptography.exceptions import InvalidTag  # an optional package

            self._invalid = InvalidTag
            self._decrypt = engine.decrypt
        self._decrypt_into = getattr(engine, "decrypt_into", None)

    def open_into(self, plaintext: Writable, sealed: Readable) -> None:
        number, end = self._number, len(sealed) - TAG_SIZE
        self._number = number + 1
        nonce = number.to_bytes(NONCE_SIZE, "little")
        try:
            if self._decrypt_into is not None:
                self._decrypt_into(nonce, sealed, None, memoryview(plaintext)[:end])
            else:
                plaintext[:end] = self._decrypt(nonce, sealed, None)
        except self._invalid:
            raise Tampered(_OTHERS) from None

    def open_at(self, area: Area, to: int, sealed: Area, start: int, length: int) -> None:
        end, filled = start + length, to + length - TAG_SIZE
        is_within = 0 <= to <= filled <= area.size and start >= 0 and end <= sealed.size
        if self._decrypt_into is None or not is_within:
            super().open_at(area, to, sealed, start, length)
            return
        number = self._number
        self._number = number + 1
        nonce = number.to_bytes(NONCE_SIZE, "little")
        try:
            self._decrypt_into(nonce, sealed.view[start:end], None, area.view[to:filled])
        except self._invalid:
            raise Tampered(_OTHERS) from None


class _ChaChaSealer(_EngineSealer):
    """ChaCha20-Poly1305: small messages by libsodium, large ones by OpenSSL if it is there."""

    __slots__ = ()

    def seal_into(self, sealed: Writable, plaintext: Readable) -> None:
        length = len(plaintext)
        if self._encrypt is not None and length > _SMALL:
            super().seal_into(sealed, plaintext)
            return
        if len(sealed) < length + TAG_SIZE:
            raise ValueError(f"{len(sealed)} bytes for a box of {length + TAG_SIZE}")
        number = self._number
        self._number = number + 1
        _chacha_seal(
            ffi.from_buffer(sealed), _NULL, bytes(plaintext) if length <= _SMALL else
            ffi.from_buffer(plaintext), length, _NULL, 0, _NULL,
            number.to_bytes(NONCE_SIZE, "little"), self._key,
        )  # fmt: skip

    def seal_at(self, area: Area, start: int, plaintext: Readable) -> int:
        length = len(plaintext)
        end = start + length + TAG_SIZE
        if length > _SMALL or start < 0 or end > area.size:
            return super().seal_at(area, start, plaintext)
        number = self._number
        self._number = number + 1
        _chacha_seal(
            area.at + start, _NULL, bytes(plaintext), length, _NULL, 0, _NULL,
            number.to_bytes(NONCE_SIZE, "little"), self._key,
        )  # fmt: skip
        return end


class _ChaChaOpener(_EngineOpener):
    """The same."""

    __slots__ = ()

    def open_into(self, plaintext: Writable, sealed: Readable) -> None:
        length = len(sealed)
        if self._decrypt_into is not None and length > _SMALL:
            super().open_into(plaintext, sealed)
            return
        if not 0 <= length - TAG_SIZE <= len(plaintext):
            raise ValueError(f"{len(plaintext)} bytes for the content of a box of {length}")
        number = self._number
        self._number = number + 1
        if _chacha_open(
            ffi.from_buffer(plaintext), _NULL, _NULL, bytes(sealed) if length <= _SMALL else
            ffi.from_buffer(sealed), length, _NULL, 0, number.to_bytes(NONCE_SIZE, "little"),
            self._key,
        ):  # fmt: skip
            raise Tampered(_OTHERS)

    def open_at(self, area: Area, to: int, sealed: Area, start: int, length: int) -> None:
        is_within = to >= 0 <= start and start + length <= sealed.size
        is_small = TAG_SIZE <= length <= _SMALL and length - TAG_SIZE <= area.size - to
        if not (is_small and is_within):
            super().open_at(area, to, sealed, start, length)
            return
        number = self._number
        self._number = number + 1
        if _chacha_open(
            area.at + to, _NULL, _NULL, sealed.at + start, length, _NULL, 0,
            number.to_bytes(NONCE_SIZE, "little"), self._key,
        ):  # fmt: skip
            raise Tampered(_OTHERS)


class PacketCipher:
    """Seals and opens single messages under a nonce that the caller has.  AES-GCM or ChaCha20."""

    __slots__ = ("_engine", "_invalid", "_key")

    def __init__(self, method: Method, key: bytes) -> None:
        self._key = key
        self._engine = _engine(method, key)
        self._invalid: type[Exception] = CryptoError
        if self._engine is not None:
            from cryptography.exceptions import InvalidTag  # an optional package

            self._invalid = InvalidTag

    def seal(self, nonce: bytes, plaintext: bytes) -> bytes:
        """``plaintext``, sealed."""
        if self._engine is not None:
            sealed: bytes = self._engine.encrypt(nonce, plaintext, None)
            return sealed
        return sodium.crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, None, nonce, self._key)

    def open(self, nonce: bytes, sealed: bytes) -> bytes | None:
        """What was sealed; None if that was not done with this key."""
        if len(sealed) < TAG_SIZE:
            return None
        try:
            if self._engine is None:
                return sodium.crypto_aead_chacha20poly1305_ietf_decrypt(
                    sealed, None, nonce, self._key
                )
            opened: bytes = self._engine.decrypt(nonce, sealed, None)
        except self._invalid:
            return None
        return opened


class LongNonceCipher:
    """The same by XChaCha20-Poly1305, SIP022 section 4.2."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, nonce: bytes, plaintext: bytes) -> bytes:
        """See :meth:`PacketCipher.seal`."""
        return sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, None, nonce, self._key)

    def open(self, nonce: bytes, sealed: bytes) -> bytes | None:
        """See :meth:`PacketCipher.open`."""
        if len(sealed) < TAG_SIZE:
            return None
        try:
            return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, None, nonce, self._key)
        except CryptoError:
            return None
