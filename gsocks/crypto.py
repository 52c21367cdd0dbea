"""Key agreement and sealing: bytes in, bytes out; no socket, no clock, no gevent.

The agreement is ``Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b`` (Noise Protocol Framework, revision
34) with the prologue ``gsocks/2``: both ends prove that they know one shared 32-byte key, and
the keys that seal the traffic die with the connection (forward secrecy).  docs/protocol.md lays
out every byte.

    client                                                            server
    Initiator.hello()        salt, hint, e, sealed(time, offer)  ->   KeyRing.candidates()
    Initiator.finish()   <-  salt, e, sealed(choice)                  Responder.reply()
    Session                  one sealer and one opener each           Session
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from enum import IntFlag
from typing import NamedTuple

from nacl import bindings as sodium
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
from nacl.exceptions import CryptoError

from gsocks.errors import ConfigError, ProtocolViolation, Tampered

_PROTOCOL = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b"
#: names the agreement; of an end with another one no message opens
PROLOGUE = b"gsocks/2"
#: of all that follows the agreement, which names it: the highest that this end speaks, the lowest
VERSION = 2
LOWEST_VERSION = 2

KEY_SIZE = 32
TAG_SIZE = 16
#: random bytes, from which the key makes all else that is not sealed
SALT_SIZE = 16
HINT_SIZE = 4
#: a public X25519 key
EPHEMERAL_SIZE = 32
#: what a server must read to find the key of a hello, and its length
HELLO_HEAD_SIZE = SALT_SIZE + HINT_SIZE + EPHEMERAL_SIZE
#: the same for the client and the reply
REPLY_HEAD_SIZE = SALT_SIZE + EPHEMERAL_SIZE

_HELLO_FIXED = 8 + 1 + 1 + 1  # time in ms, version, offered ciphers, offered features
_REPLY_FIXED = 1 + 1 + 1  # version, cipher, features


class Cipher(IntFlag):
    """The ciphers that can seal frames, as bits of the offer in the hello."""

    SECRETBOX = 0x01
    AEGIS256 = 0x02


class Feature(IntFlag):
    """What both ends of a tunnel can do without, as bits of the offer in the hello."""

    NONE = 0x00
    #: the server looks up names and addresses
    LOOK_UPS = 0x01


#: those that this end has
FEATURES = Feature.LOOK_UPS


def cipher_named(name: str) -> Cipher:
    """The cipher with the name that the config uses.  Raises ConfigError."""
    try:
        return Cipher[name.upper()]
    except KeyError:
        known = ", ".join(cipher.name.lower() for cipher in Cipher if cipher.name)
        raise ConfigError(f"cipher {name!r} is not known (expected one of: {known})") from None


def preferred(offer: Cipher) -> Cipher | None:
    """The fastest of the ciphers in ``offer``; None if there is none."""
    for cipher in (Cipher.AEGIS256, Cipher.SECRETBOX):
        if cipher & offer:
            return cipher
    return None


def fast_ciphers() -> Cipher:
    """The ciphers that this machine runs at full speed: AEGIS-256 needs AES instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            words = file.read().split()
    except OSError:
        words = []
    has_aes = "aes" in words
    return Cipher.SECRETBOX | Cipher.AEGIS256 if has_aes else Cipher.SECRETBOX


class Key:
    """The 32 bytes that both ends share.  Only :meth:`text` and :meth:`raw` show them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_SIZE:
            raise ConfigError(f"a key has {KEY_SIZE} bytes, this one has {len(raw)}")
        self._raw = raw

    @classmethod
    def generate(cls) -> Key:
        """A new key from the operating system's random source."""
        return cls(os.urandom(KEY_SIZE))

    @classmethod
    def parse(cls, text: str) -> Key:
        """A key from base64, in either alphabet, with or without padding.  Raises ConfigError."""
        bare = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            raw = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError("the key is not base64 (gsocks keygen makes one)") from None
        return cls(raw)

    def text(self) -> str:
        """The key in URL-safe base64, for a file or a URL that only its owner may read."""
        return base64.urlsafe_b64encode(self._raw).rstrip(b"=").decode()

    def raw(self) -> bytes:
        """The 32 bytes."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(hashlib.blake2b(self._raw, digest_size=8, person=b"gsocks key hash").digest())

    def __repr__(self) -> str:
        return "<Key: hidden>"


class RecordBox:
    """Seals what is kept where others can read it, by keys that are made of ``key`` and a name.

    XSalsa20-Poly1305 (libsodium's secretbox) with a random nonce.  What was sealed under one name
    does not open under another one.
    """

    def __init__(self, key: Key) -> None:
        self._raw = key.raw()

    def __repr__(self) -> str:
        return "<RecordBox: hidden>"

    def name(self, of: bytes) -> str:
        """What can be told of a secret thing, so that others with the key find it."""
        named = hashlib.blake2b(of, key=self._raw, digest_size=16, person=b"gsocks name")
        return named.hexdigest()

    def seal(self, plaintext: bytes, name: str) -> bytes:
        """The nonce, and the sealed text."""
        nonce = os.urandom(sodium.crypto_secretbox_NONCEBYTES)
        return nonce + sodium.crypto_secretbox(plaintext, nonce, self._key(name))

    def open(self, sealed: bytes, name: str) -> bytes:
        """What was sealed under that name.  Raises Tampered."""
        size = sodium.crypto_secretbox_NONCEBYTES
        try:
            return sodium.crypto_secretbox_open(sealed[size:], sealed[:size], self._key(name))
        except (CryptoError, ValueError):
            raise Tampered("a record does not open by this key") from None

    def _key(self, name: str) -> bytes:
        of = name.encode()
        return hashlib.blake2b(of, key=self._raw, digest_size=32, person=b"gsocks record").digest()


# --- Noise ----------------------------------------------------------------------------------


class _SymmetricState:
    """SymmetricState and CipherState of the Noise specification, sections 5.1 and 5.2."""

    __slots__ = ("_chaining_key", "_hash", "_key", "_nonce")

    def __init__(self, prologue: bytes) -> None:
        self._hash = _PROTOCOL.ljust(64, b"\0")  # HASHLEN of BLAKE2b is 64
        self._chaining_key = self._hash
        self._key = b""
        self._nonce = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.blake2b(self._hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, material, 2)
        self._key, self._nonce = key[:KEY_SIZE], 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self._chaining_key, extra, key = _hkdf(self._chaining_key, material, 3)
        self.mix_hash(extra)
        self._key, self._nonce = key[:KEY_SIZE], 0

    def mix_ephemeral(self, public: bytes) -> None:
        """The token ``e``; with a pre-shared key it is mixed into the key too (section 9.2)."""
        self.mix_hash(public)
        self.mix_key(public)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, self._hash, self._next_nonce(), self._key
        )
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        try:
            plaintext = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(
                sealed, self._hash, self._next_nonce(), self._key
            )
        except (CryptoError, ValueError):  # ValueError: shorter than a tag
            raise Tampered("the key agreement failed: another key, or changed bytes") from None
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The keys of the traffic from the initiator, and of that to it."""
        first, second = _hkdf(self._chaining_key, b"", 2)
        return first[:KEY_SIZE], second[:KEY_SIZE]

    def _next_nonce(self) -> bytes:
        nonce = bytes(4) + self._nonce.to_bytes(8, "little")
        self._nonce += 1
        return nonce


def _hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """HKDF of the Noise specification, section 4.3."""
    secret = hmac.new(chaining_key, material, hashlib.blake2b).digest()
    made: list[bytes] = []
    block = b""
    for number in range(1, outputs + 1):
        block = hmac.new(secret, block + bytes((number,)), hashlib.blake2b).digest()
        made.append(block)
    return made


def _diffie_hellman(private: bytes, public: bytes) -> bytes:
    try:
        return sodium.crypto_scalarmult(private, public)
    except CryptoError:  # a point of small order
        raise Tampered("the key agreement failed: not a usable public key") from None


# --- the two messages -----------------------------------------------------------------------
#
# Each begins with a salt, from which the key makes the rest that is not sealed: the length of the
# padding, so that no message contains its own length, and what the public key is masked by, since
# a point of the curve can be told from random bytes (and the reply's from the hello's).


def _shape(key: Key, digest_size: int, purpose: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(key=key.raw(), digest_size=digest_size, person=purpose)


def _hello_shape(key: Key, prologue: bytes) -> hashlib.blake2b:
    """Of a salt: hint, the length of the padding in one byte, mask."""
    return _shape(key, HINT_SIZE + 1 + EPHEMERAL_SIZE, prologue + b" hello")


def _reply_shape(key: Key, prologue: bytes, salt: bytes) -> tuple[int, bytes]:
    """The length of the padding, and the mask."""
    hasher = _shape(key, 1 + EPHEMERAL_SIZE, prologue + b" reply")
    hasher.update(salt)
    digest = hasher.digest()
    return digest[0], digest[1:]


def _masked(public: bytes, mask: bytes) -> bytes:
    """A public key as it travels; of that, the public key."""
    made = int.from_bytes(public, "big") ^ int.from_bytes(mask, "big")
    return made.to_bytes(EPHEMERAL_SIZE, "big")


class Session(NamedTuple):
    """The result of the key agreement."""

    cipher: Cipher
    sealer: Sealer
    opener: Opener
    #: those that were offered and chosen
    features: Feature = Feature.NONE

    def seal(self, plaintext: bytes) -> bytes:
        """The next message to the other end."""
        return self.sealer.seal(plaintext)

    def open(self, sealed: bytes) -> bytes:
        """The next message from the other end.  Raises Tampered."""
        return self.opener.open(sealed)

    @property
    def overhead(self) -> int:
        """The number of bytes that sealing adds to a message."""
        return self.sealer.overhead


class Initiator:
    """The client's part in one key agreement.

    ``private`` and ``salt``: given by tests of the published vectors; otherwise new for each
    connection.
    """

    __slots__ = ("_key", "_offered", "_private", "_prologue", "_public", "_salt", "_state")

    def __init__(
        self,
        key: Key,
        offered: Cipher,
        private: bytes | None = None,
        salt: bytes | None = None,
        prologue: bytes = PROLOGUE,
    ) -> None:
        self._key = key
        self._offered = offered
        self._private = private or os.urandom(KEY_SIZE)
        self._public = sodium.crypto_scalarmult_base(self._private)
        self._salt = salt or os.urandom(SALT_SIZE)
        self._prologue = prologue
        self._state = _SymmetricState(prologue)

    def hello(self, time_ms: int) -> bytes:
        """Message 1.  ``time_ms``: milliseconds since 1970, by this machine's clock."""
        hasher = _hello_shape(self._key, self._prologue)
        hasher.update(self._salt)
        digest = hasher.digest()
        hint, padding, mask = digest[:HINT_SIZE], digest[HINT_SIZE], digest[HINT_SIZE + 1 :]
        offer = bytes((VERSION, self._offered, FEATURES))
        self._state.mix_key_and_hash(self._key.raw())
        self._state.mix_ephemeral(self._public)
        sealed = self._state.encrypt_and_hash(time_ms.to_bytes(8, "big") + offer + bytes(padding))
        return self._salt + hint + _masked(self._public, mask) + sealed

    def reply_rest(self, head: bytes) -> int:
        """The number of bytes of message 2 behind its first REPLY_HEAD_SIZE."""
        padding, _ = _reply_shape(self._key, self._prologue, head[:SALT_SIZE])
        return _REPLY_FIXED + padding + TAG_SIZE

    def finish(self, head: bytes, rest: bytes) -> Session:
        """Read message 2; returns the session.

        Raises Tampered, ProtocolViolation if the server speaks another version.
        """
        _, mask = _reply_shape(self._key, self._prologue, head[:SALT_SIZE])
        ephemeral = _masked(head[SALT_SIZE:], mask)
        self._state.mix_ephemeral(ephemeral)
        self._state.mix_key(_diffie_hellman(self._private, ephemeral))
        version, chosen, features = self._state.decrypt_and_hash(rest)[:_REPLY_FIXED]
        if not LOWEST_VERSION <= version <= VERSION:
            raise ProtocolViolation(
                f"the server speaks version {version} of the protocol, and this end"
                f" {_versions()}: the older of the two is to be updated"
            )
        unoffered = features & ~int(FEATURES)
        if chosen not in tuple(Cipher) or not chosen & self._offered or unoffered:
            raise Tampered(
                f"the server chose cipher {chosen:#04x} and features {features:#04x},"
                " which were not offered"
            )
        to_server, to_client = self._state.split()
        return _session(Cipher(chosen), Feature(features), send=to_server, receive=to_client)


def _versions() -> str:
    """The versions that this end speaks, for a message."""
    return f"{VERSION}" if LOWEST_VERSION == VERSION else f"{LOWEST_VERSION} to {VERSION}"


class Hello(NamedTuple):
    """The content of an authentic message 1."""

    time_ms: int
    #: the highest version that the client speaks
    version: int
    offered: Cipher
    #: those that it offers, as far as they are known
    features: Feature
    #: unique to this hello: a second one with the same token is a replay
    token: bytes


class Responder:
    """The server's part in one key agreement, with one key that matches the hint.

    ``ephemeral``: the client's public key, unmasked.  ``padding``: the length of its message's.
    ``private`` and ``salt``: as of the initiator.
    """

    __slots__ = ("_ephemeral", "_private", "_prologue", "_salt", "_state", "key", "name", "rest")

    def __init__(
        self,
        name: str,
        key: Key,
        ephemeral: bytes,
        padding: int,
        private: bytes | None = None,
        salt: bytes | None = None,
        prologue: bytes = PROLOGUE,
    ) -> None:
        self.name = name
        #: the number of bytes of message 1 behind HELLO_HEAD_SIZE
        self.rest = _HELLO_FIXED + padding + TAG_SIZE
        self.key = key
        self._ephemeral = ephemeral
        self._private = private or os.urandom(KEY_SIZE)
        self._salt = salt or os.urandom(SALT_SIZE)
        self._prologue = prologue
        self._state = _SymmetricState(prologue)

    def read(self, rest: bytes) -> Hello:
        """Read message 1.  Raises Tampered."""
        self._state.mix_key_and_hash(self.key.raw())
        self._state.mix_ephemeral(self._ephemeral)
        payload = self._state.decrypt_and_hash(rest)
        offered = Cipher(payload[9] & (Cipher.SECRETBOX | Cipher.AEGIS256))
        features = Feature(payload[10] & FEATURES)
        time_ms = int.from_bytes(payload[:8], "big")
        return Hello(time_ms, payload[8], offered, features, self._ephemeral)

    def reply(
        self, chosen: Cipher, version: int = VERSION, features: Feature = Feature.NONE
    ) -> tuple[bytes, Session]:
        """Message 2, and the session after it.  Raises Tampered.

        ``version``: what :func:`agreed_version` made of the hello's; ``features``: those of the
        hello's that apply.
        """
        public = sodium.crypto_scalarmult_base(self._private)
        self._state.mix_ephemeral(public)
        self._state.mix_key(_diffie_hellman(self._private, self._ephemeral))
        padding, mask = _reply_shape(self.key, self._prologue, self._salt)
        payload = bytes((version, chosen, features)) + bytes(padding)
        message = self._salt + _masked(public, mask) + self._state.encrypt_and_hash(payload)
        from_client, to_client = self._state.split()
        return message, _session(chosen, features, send=to_client, receive=from_client)


def agreed_version(offered: int) -> int:
    """The version that is spoken with a client whose highest is ``offered``.

    The highest of both; if that is too low for this end, its own lowest, by which a client learns
    in one round trip that it is too old.
    """
    return max(LOWEST_VERSION, min(offered, VERSION))


class KeyRing:
    """A server's keys by name.

    With 1,000 keys the right one is found in about half a millisecond: one keyed hash of 64
    bytes each, and key agreement only where it matches.  ``prologues``: of the agreements that the
    server serves; for each one more hash a key.
    """

    __slots__ = ("_hashers", "_keys")

    def __init__(self, keys: Mapping[str, Key], prologues: Sequence[bytes] = (PROLOGUE,)) -> None:
        self._keys = dict(keys)
        self._hashers = [
            (name, key, prologue, _hello_shape(key, prologue))
            for prologue in prologues
            for name, key in self._keys.items()
        ]

    def candidates(self, head: bytes) -> list[Responder]:
        """The keys that may have made this hello, found by its first HELLO_HEAD_SIZE bytes.

        None for a peer without a key; two by a chance of one in 2^32 for each key.  The one with
        the shortest message comes first, so that trying it never waits for bytes that only the
        other's client would send.
        """
        salt, hint = head[:SALT_SIZE], head[SALT_SIZE : SALT_SIZE + HINT_SIZE]
        found = []
        for name, key, prologue, prepared in self._hashers:
            hasher = prepared.copy()
            hasher.update(salt)
            digest = hasher.digest()
            if hmac.compare_digest(digest[:HINT_SIZE], hint):
                ephemeral = _masked(head[SALT_SIZE + HINT_SIZE :], digest[HINT_SIZE + 1 :])
                padding = digest[HINT_SIZE]
                found.append(Responder(name, key, ephemeral, padding, prologue=prologue))
        return sorted(found, key=lambda responder: responder.rest)

    def key(self, name: str) -> Key | None:
        """The key of that name; None if there is none."""
        return self._keys.get(name)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<KeyRing: {', '.join(self._keys) or 'empty'}>"


# --- sealing --------------------------------------------------------------------------------

# From one buffer into another, for which PyNaCl's bindings have no call: theirs make new bytes,
# twice, which for 64 KiB is a quarter of SecretBox's time and half of AEGIS-256's
# (docs/benchmarks.md).

#: types of buffers that are read in place, and that are written in place
Readable = bytes | bytearray | memoryview
Writable = bytearray | memoryview


def _session(cipher: Cipher, features: Feature, *, send: bytes, receive: bytes) -> Session:
    if cipher is Cipher.AEGIS256:
        return Session(cipher, _AegisSealer(send), _AegisOpener(receive), features)
    return Session(cipher, _SecretBoxSealer(send), _SecretBoxOpener(receive), features)


class _Counter:
    """A key, and the number of the next message, which is its nonce and is never sent."""

    __slots__ = ("_key", "_number")

    #: bytes of a nonce, and bytes that sealing adds to a message
    nonce_size: int
    overhead: int

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    @property
    def count(self) -> int:
        """How many messages there have been."""
        return self._number


class Area:
    """A buffer, and where its bytes lie, which libsodium is told.

    To ask a buffer for that takes as long as to seal the header of a frame.
    """

    __slots__ = ("at", "size", "view")

    def __init__(self, buffer: bytearray) -> None:
        self.view = memoryview(buffer)
        self.size = len(buffer)
        #: of ``unsigned char *``; keeps the buffer, but what is derived from it does not.  Not of
        #: the view: CPython's collector crashes where something looks into a memoryview
        self.at = _at(_BYTES, buffer)


def _check(area: Area, start: int, length: int) -> None:
    """Raise ValueError if a message has no place there."""
    if length < 0 or not 0 <= start <= area.size - length:
        raise ValueError(f"{area.size} bytes for {length} at {start}")


class Sealer(_Counter):
    """Seals one message after the other."""

    __slots__ = ()

    def seal(self, plaintext: bytes) -> bytes:
        """The next message."""
        sealed = bytearray(len(plaintext) + self.overhead)
        self.seal_into(sealed, plaintext)
        return bytes(sealed)

    def seal_into(self, sealed: Writable, plaintext: Readable) -> None:
        """The next message, at the front of ``sealed``, which has room for it."""
        raise NotImplementedError

    def seal_at(self, area: Area, start: int, plaintext: Readable) -> int:
        """The next message, in ``area`` from ``start`` on; where it ends."""
        end = start + len(plaintext) + self.overhead
        _check(area, start, end - start)
        self.seal_into(area.view[start:end], plaintext)
        return end


class Opener(_Counter):
    """Opens one message after the other, in the order in which they were sealed."""

    __slots__ = ()

    def open(self, sealed: bytes) -> bytes:
        """The next message.  Raises Tampered."""
        if len(sealed) < self.overhead:
            raise Tampered("a frame that is shorter than its tag")
        plaintext = bytearray(len(sealed) - self.overhead)
        self.open_into(plaintext, sealed)
        return bytes(plaintext)

    def open_into(self, plaintext: Writable, sealed: Readable) -> None:
        """The next message, at the front of ``plaintext``, which has room for it.

        ``sealed`` is longer than the overhead.  Raises Tampered.
        """
        raise NotImplementedError

    def open_at(self, area: Area, to: int, sealed: Area, start: int, length: int) -> None:
        """The next message, in ``area`` from ``to`` on; its ``length`` bytes begin at ``start``.

        Raises as :meth:`open_into` does.
        """
        _check(area, to, length - self.overhead)
        _check(sealed, start, length)
        self.open_into(area.view[to:], sealed.view[start : start + length])


# A frame's header is a box of 4 bytes, where each call and each look-up is measurable: so these two
# are bound once, and sealing or opening is one function.
_box = lib.crypto_secretbox_easy
_unbox = lib.crypto_secretbox_open_easy
_NONCE = sodium.crypto_secretbox_NONCEBYTES
_TAG = sodium.crypto_secretbox_MACBYTES
_NULL = ffi.NULL

# The address of a buffer's bytes, for libsodium, which does not check their number: each call below
# is behind a check of its own.
_at = ffi.from_buffer
_BYTES = ffi.typeof("unsigned char[]")
#: bytes up to which to copy a message is cheaper than to ask where it lies
_SMALL = 2048


class _SecretBoxSealer(Sealer):
    __slots__ = ()
    nonce_size = _NONCE
    overhead = _TAG

    def seal_into(self, sealed: Writable, plaintext: Readable) -> None:
        length, number = len(plaintext), self._number
        if len(sealed) < length + _TAG:
            raise ValueError(f"{len(sealed)} bytes for a box of {length + _TAG}")
        self._number = number + 1
        _box(
            _at(_BYTES, sealed), _at(_BYTES, plaintext), length,
            number.to_bytes(_NONCE, "little"), self._key,
        )  # fmt: skip

    def seal_at(self, area: Area, start: int, plaintext: Readable) -> int:
        length, number = len(plaintext), self._number
        end = start + length + _TAG
        if start < 0 or end > area.size:
            _check(area, start, end - start)
        self._number = number + 1
        _box(
            area.at + start,
            bytes(plaintext) if length <= _SMALL else _at(_BYTES, plaintext),
            length, number.to_bytes(_NONCE, "little"), self._key,
        )  # fmt: skip
        return end


class _SecretBoxOpener(Opener):
    __slots__ = ()
    nonce_size = _NONCE
    overhead = _TAG

    def open_into(self, plaintext: Writable, sealed: Readable) -> None:
        length, number = len(sealed), self._number
        if not 0 <= length - _TAG <= len(plaintext):
            raise ValueError(f"{len(plaintext)} bytes for the content of a box of {length}")
        self._number = number + 1
        if _unbox(
            _at(_BYTES, plaintext), _at(_BYTES, sealed), length,
            number.to_bytes(_NONCE, "little"), self._key,
        ):  # fmt: skip
            raise Tampered("a frame that the other end did not seal")

    def open_at(self, area: Area, to: int, sealed: Area, start: int, length: int) -> None:
        number, end = self._number, start + length
        if to < 0 or start < 0 or end > sealed.size or not _TAG <= length <= area.size - to + _TAG:
            _check(area, to, length - _TAG)
            _check(sealed, start, length)
        self._number = number + 1
        if _unbox(
            area.at + to, sealed.at + start, length, number.to_bytes(_NONCE, "little"), self._key
        ):
            raise Tampered("a frame that the other end did not seal")


class _AegisSealer(Sealer):
    __slots__ = ()
    nonce_size = sodium.crypto_aead_aegis256_NPUBBYTES
    overhead = sodium.crypto_aead_aegis256_ABYTES

    def seal_into(self, sealed: Writable, plaintext: Readable) -> None:
        length, number = len(plaintext), self._number
        if len(sealed) < length + self.overhead:
            raise ValueError(f"{len(sealed)} bytes for a box of {length + self.overhead}")
        self._number = number + 1
        lib.crypto_aead_aegis256_encrypt(
            _at(_BYTES, sealed), _NULL, _at(_BYTES, plaintext), length, _NULL, 0, _NULL,
            number.to_bytes(self.nonce_size, "little"), self._key,
        )  # fmt: skip


class _AegisOpener(Opener):
    __slots__ = ()
    nonce_size = sodium.crypto_aead_aegis256_NPUBBYTES
    overhead = sodium.crypto_aead_aegis256_ABYTES

    def open_into(self, plaintext: Writable, sealed: Readable) -> None:
        length, number = len(sealed), self._number
        if not 0 <= length - self.overhead <= len(plaintext):
            raise ValueError(f"{len(plaintext)} bytes for the content of a box of {length}")
        self._number = number + 1
        if lib.crypto_aead_aegis256_decrypt(
            _at(_BYTES, plaintext), _NULL, _NULL, _at(_BYTES, sealed), length, _NULL, 0,
            number.to_bytes(self.nonce_size, "little"), self._key,
        ):  # fmt: skip
            raise Tampered("a frame that the other end did not seal")
