"""Datagrams: one message each, in wire form (gsocks/net/datagram.py) on this side of the cipher::

    AEAD                  salt, [destination or source, bytes] under a key of its own
    2022, AES             {session, number} in one block of AES, identity headers,
                          [type, time, (the client's session,) padding, address, bytes]
    2022, ChaCha20        nonce, [session, number, and the same]

What is not sealed by a known key, was made at another time, or comes again, is dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from itertools import pairwise
from typing import NamedTuple

from gsocks.errors import BadRequest
from gsocks.lru import LruCache
from gsocks.net.datagram import in_canonical_form, split, with_source
from gsocks.shadowsocks import keys
from gsocks.shadowsocks.accept import Guards, ServerKeys, User
from gsocks.shadowsocks.ciphers import (
    LONG_NONCE_SIZE,
    NONCE_SIZE,
    LongNonceCipher,
    PacketCipher,
)
from gsocks.shadowsocks.methods import Method
from gsocks.shadowsocks.stream import FROM_CLIENT, FROM_SERVER, is_now, now

_SESSION = 8
#: session and number
_HEADER = 16
_TYPE_AND_TIME = 1 + 8

#: seconds for which a server's last session is taken beside its present one (SIP022, 3.2.4)
OLD_SESSION = 60.0

#: sessions whose numbers are remembered
MAX_SESSIONS = 4096

_NO_NONCE = bytes(NONCE_SIZE)


class Window:
    """Which numbers have come; those that are too far behind the highest count as come."""

    __slots__ = ("_seen", "_top")

    #: numbers that may come after a higher one
    size = 1024

    def __init__(self) -> None:
        self._top = -1
        #: bit n: the number n below the highest
        self._seen = 0

    def admit(self, number: int) -> bool:
        """Note a number; False if it has come before."""
        ahead = number - self._top
        if ahead > 0:
            kept = self._seen << ahead if ahead < self.size else 0
            self._seen = (kept | 1) & ((1 << self.size) - 1)
            self._top = number
            return True
        bit = 1 << -ahead if -ahead < self.size else 0
        if not bit or self._seen & bit:
            return False
        self._seen |= bit
        return True


# --- the client's end -----------------------------------------------------------------------


class ClientPackets:
    """Seals what a client sends, and opens what comes back, for one association."""

    __slots__ = ("_aead", "_of_2022")

    def __init__(self, method: Method, psks: tuple[bytes, ...]) -> None:
        self._of_2022 = _ClientSession(method, psks) if method.is_2022 else None
        self._aead = method, psks[-1]

    def seal(self, datagram: bytes) -> bytes:
        """What is sent to the server, for a datagram in wire form."""
        if self._of_2022 is not None:
            return self._of_2022.seal(datagram)
        return _seal_aead(*self._aead, datagram)

    def open(self, packet: bytes) -> bytes | None:
        """A datagram in wire form, of what the server has sent; None: it is to be dropped."""
        if self._of_2022 is not None:
            opened = self._of_2022.open(packet)
        else:
            opened = _open_aead(*self._aead, packet)
        return None if opened is None else with_source(opened)


class _ClientSession:
    """The client's session of an association, and those of the server beside it."""

    def __init__(self, method: Method, psks: tuple[bytes, ...]) -> None:
        self._method = method
        self._psks = psks
        self._id = os.urandom(_SESSION)
        self._next = 0
        self._long = LongNonceCipher(psks[-1]) if method.cipher != "aes-gcm" else None
        if self._long is None:
            self._cipher = PacketCipher(method, keys.subkey(method, psks[-1], self._id))
            self._encrypt = keys.block_cipher(psks[0])[0]
            #: that of the response, which the client's own key has made
            self._decrypt = keys.block_cipher(psks[-1])[1]
            self._identities = [
                (keys.block_cipher(own)[0], keys.identity_of(following))
                for own, following in pairwise(psks)
            ]
        #: the server's sessions, the present one last
        self._server: dict[bytes, _ServerSide] = {}

    def seal(self, datagram: bytes) -> bytes:
        header = self._id + self._next.to_bytes(8, "big")
        self._next += 1
        body = bytes((FROM_CLIENT,)) + now().to_bytes(8, "big") + _padding(datagram) + datagram
        if self._long is not None:
            return _seal_long(self._long, header + body)
        sealed = self._encrypt(header)
        for encrypt, identity in self._identities:
            sealed += encrypt(_xor(identity, header))
        return sealed + self._cipher.seal(header[-NONCE_SIZE:], body)

    def open(self, packet: bytes) -> bytes | None:
        if self._long is not None:
            opened = _open_long(self._long, packet)
            if opened is None:
                return None
            header, body = opened[:_HEADER], opened[_HEADER:]
            side = self._server.get(header[:_SESSION]) or _ServerSide(None)
        else:
            if len(packet) < _HEADER:
                return None
            header = self._decrypt(packet[:_HEADER])
            known = self._server.get(header[:_SESSION])
            side = known or _ServerSide(self._cipher_of(header[:_SESSION]))
            found = None
            if side.cipher is not None:
                found = side.cipher.open(header[-NONCE_SIZE:], packet[_HEADER:])
            if found is None:
                return None
            body = found
        datagram = _read_body(body, FROM_SERVER, self._id)
        if datagram is None or not self._may_come(header[:_SESSION], side):
            return None
        if not side.window.admit(int.from_bytes(header[_SESSION:], "big")):
            return None
        side.last_heard = time.monotonic()
        return datagram

    def _cipher_of(self, session: bytes) -> PacketCipher:
        return PacketCipher(self._method, keys.subkey(self._method, self._psks[-1], session))

    def _may_come(self, session: bytes, side: _ServerSide) -> bool:
        """Whether a session of the server counts; a new one takes the place of the oldest."""
        if session in self._server:
            return True
        if len(self._server) > 1:
            oldest, old = next(iter(self._server.items()))
            if time.monotonic() - old.last_heard < OLD_SESSION:
                return False
            del self._server[oldest]
        self._server[session] = side
        return True


class _ServerSide:
    """A session of the server, as the client knows it."""

    __slots__ = ("cipher", "last_heard", "window")

    def __init__(self, cipher: PacketCipher | None) -> None:
        self.cipher = cipher
        self.window = Window()
        self.last_heard = 0.0


# --- the server's end -----------------------------------------------------------------------


class ClientOf(NamedTuple):
    """Whose a datagram is."""

    user: User
    #: what all datagrams of its association have in common, and no others
    session: Hashable
    #: makes what is sent back of a datagram in wire form
    seal: Callable[[bytes], bytes]


class ServerPackets:
    """Opens what clients send to a listener."""

    __slots__ = ("_guards", "_identity_cipher", "_known", "_server")

    def __init__(self, server: ServerKeys, guards: Guards) -> None:
        self._guards = guards
        #: the sessions of the edition of 2022 by user and id
        self._known: LruCache[tuple[User, bytes], _ServedSession] = LruCache(MAX_SESSIONS)
        self.replace(server)

    def replace(self, server: ServerKeys) -> None:
        """Replace the keys."""
        self._server = server
        aes = server.method.has_users
        self._identity_cipher = keys.block_cipher(server.key)[1] if aes else None

    def open(self, packet: bytes, source: Hashable) -> tuple[ClientOf, bytes] | None:
        """Whose a packet is, and the datagram in it; None: it is to be dropped.

        ``source``: where it comes from.
        """
        server = self._server
        if not server.method.is_2022:
            return self._open_aead(packet, source)
        if self._identity_cipher is None:
            return self._open_long(packet)
        return self._open_session(packet, self._identity_cipher)

    def _open_aead(self, packet: bytes, source: Hashable) -> tuple[ClientOf, bytes] | None:
        method = self._server.method
        for user in self._server.users:
            opened = _open_aead(method, user.key, packet)
            if opened is not None:
                break
        else:
            return None
        datagram = in_canonical_form(opened)
        # of datagrams there are many more, which must not push the salts of connections out
        own = user.key + b" datagrams"
        if datagram is None or not self._guards.salts.admit_salt(packet[: method.key_size], own):
            return None
        return ClientOf(user, (user, source), lambda back: self._seal_aead(user, back)), datagram

    def _seal_aead(self, user: User, datagram: bytes) -> bytes:
        method = self._server.method
        salt = os.urandom(method.key_size)
        # what this end has sent may come back as another client's
        self._guards.salts.admit_salt(salt, user.key + b" datagrams")
        return _seal_aead(method, user.key, datagram, salt)

    def _open_long(self, packet: bytes) -> tuple[ClientOf, bytes] | None:
        user = self._server.users[0]
        cipher = LongNonceCipher(user.key)
        opened = _open_long(cipher, packet)
        if opened is None:
            return None
        header, body = opened[:_HEADER], opened[_HEADER:]
        session = self._known.get((user, header[:_SESSION]))
        if session is None:
            session = _ServedSession(self._server.method, user, header[:_SESSION])
        return self._admit(session, header, body)

    def _open_session(
        self, packet: bytes, decrypt: Callable[[bytes], bytes]
    ) -> tuple[ClientOf, bytes] | None:
        server, at = self._server, _HEADER
        if len(packet) < _HEADER + keys.BLOCK:
            return None
        header = decrypt(packet[:_HEADER])
        user: User | None = server.users[0]
        if server.has_identities:
            identity = _xor(decrypt(packet[at : at + keys.BLOCK]), header)
            user, at = server.user_of(identity), at + keys.BLOCK
        if user is None:
            return None
        session = self._known.get((user, header[:_SESSION]))
        if session is None:
            session = _ServedSession(server.method, user, header[:_SESSION])
        if session.cipher is None:
            return None
        body = session.cipher.open(header[-NONCE_SIZE:], packet[at:])
        return None if body is None else self._admit(session, header, body)

    def _admit(
        self, session: _ServedSession, header: bytes, body: bytes
    ) -> tuple[ClientOf, bytes] | None:
        opened = _read_body(body, FROM_CLIENT)
        datagram = None if opened is None else in_canonical_form(opened)
        if datagram is None or not session.window.admit(int.from_bytes(header[_SESSION:], "big")):
            return None
        key = session.user, session.id
        self._known[key] = session
        return ClientOf(session.user, key, session.seal), datagram


class _ServedSession:
    """A client's session, and this end's for what goes back."""

    __slots__ = (
        "_encrypt",
        "_long",
        "_method",
        "_next",
        "_own",
        "_sealer",
        "cipher",
        "id",
        "user",
        "window",
    )

    def __init__(self, method: Method, user: User, session: bytes) -> None:
        self.user = user
        self.id = session
        self.window = Window()
        self._own = os.urandom(_SESSION)
        self._next = 0
        self._method = method
        #: opens what the client sends, where a session has a cipher
        self.cipher: PacketCipher | None = None
        self._long: LongNonceCipher | None = None
        #: made with the first datagram that goes back
        self._sealer: PacketCipher | None = None
        self._encrypt: Callable[[bytes], bytes] | None = None
        if method.cipher == "aes-gcm":
            self.cipher = PacketCipher(method, keys.subkey(method, user.key, session))
        else:
            self._long = LongNonceCipher(user.key)

    def seal(self, datagram: bytes) -> bytes:
        """What is sent to the client."""
        header = self._own + self._next.to_bytes(8, "big")
        self._next += 1
        kind = bytes((FROM_SERVER,)) + now().to_bytes(8, "big")
        body = kind + self.id + _padding(datagram) + datagram
        if self._long is not None:
            return _seal_long(self._long, header + body)
        if self._sealer is None or self._encrypt is None:
            key = self.user.key
            self._sealer = PacketCipher(self._method, keys.subkey(self._method, key, self._own))
            self._encrypt = keys.block_cipher(key)[0]
        return self._encrypt(header) + self._sealer.seal(header[-NONCE_SIZE:], body)


# --- both -------------------------------------------------------------------------------------


def _seal_aead(method: Method, key: bytes, datagram: bytes, salt: bytes = b"") -> bytes:
    salt = salt or os.urandom(method.key_size)
    cipher = PacketCipher(method, keys.subkey(method, key, salt))
    return salt + cipher.seal(_NO_NONCE, datagram)


def _open_aead(method: Method, key: bytes, packet: bytes) -> bytes | None:
    salt, sealed = packet[: method.key_size], packet[method.key_size :]
    if not sealed:
        return None
    return PacketCipher(method, keys.subkey(method, key, salt)).open(_NO_NONCE, sealed)


def _seal_long(cipher: LongNonceCipher, plaintext: bytes) -> bytes:
    nonce = os.urandom(LONG_NONCE_SIZE)
    return nonce + cipher.seal(nonce, plaintext)


def _open_long(cipher: LongNonceCipher, packet: bytes) -> bytes | None:
    opened = cipher.open(packet[:LONG_NONCE_SIZE], packet[LONG_NONCE_SIZE:])
    return opened if opened is not None and len(opened) >= _HEADER else None


def _read_body(body: bytes, kind: int, session: bytes = b"") -> bytes | None:
    """The datagram in the body of a packet; ``session``: what it has to name."""
    at = _TYPE_AND_TIME + len(session) + 2
    if len(body) < at or body[0] != kind or not is_now(int.from_bytes(body[1:9], "big")):
        return None
    if body[_TYPE_AND_TIME : at - 2] != session:
        return None
    padding = int.from_bytes(body[at - 2 : at], "big")
    return body[at + padding :]


def _padding(datagram: bytes) -> bytes:
    """Padding, and its length in front: of what asks for names, which so differ in length less."""
    try:
        head, payload = split(datagram)
    except BadRequest:
        return bytes(2)
    if head[-2:] != _DNS_PORT or len(payload) > _MAX_PADDED:
        return bytes(2)
    length = os.urandom(1)[0]
    return length.to_bytes(2, "big") + bytes(length)


_DNS_PORT = (53).to_bytes(2, "big")
#: bytes of a datagram that is padded, so that it is not divided on its way
_MAX_PADDED = 768


def _xor(one: bytes, other: bytes) -> bytes:
    made = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return made.to_bytes(len(other), "big")
