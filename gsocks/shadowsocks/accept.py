"""The server's part at the beginning of a connection: which key, which destination.

Whatever is not the beginning of a client that knows a key is a Stranger's, of which the listener
reads on and says nothing, until the same moment for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gsocks.address import Address
from gsocks.crypto import TAG_SIZE, Opener
from gsocks.errors import ConfigError, Stranger, StreamError, Tampered, Truncated, stream_failure
from gsocks.replay import WINDOW_MS, ReplayGuard, now_ms
from gsocks.shadowsocks import ciphers, keys
from gsocks.shadowsocks.methods import Method, keys_of
from gsocks.shadowsocks.stream import (
    FIXED_BOX,
    FROM_CLIENT,
    LENGTH_BOX,
    MAX_PADDING,
    ServerStream,
    is_now,
)
from gsocks.sock import AnySocket
from gsocks.stream import CHUNK, Reader, SocketStream
from gsocks.turns import give_way

#: users of a method of 2017, whose keys are tried one after the other
MAX_TRIED = 64

#: milliseconds for which a salt without a time is remembered, and how many of one key
SALT_MEMORY_MS = 24 * 3600 * 1000

#: the user of a listener that has one password
DEFAULT_USER = "shadowsocks"

_ADDRESS_SIZES = {0x01: 1 + 4 + 2, 0x04: 1 + 16 + 2}


class User(NamedTuple):
    """Who knows a key; its repr does not show that."""

    name: str
    key: bytes

    def __repr__(self) -> str:
        return f"<User {self.name}>"


class ServerKeys:
    """The keys of a listener.

    ``password``: of one that has no ``users``; with a method of 2022 also of one that has, before
    the users' own keys.  ``users``: their names and passwords.  Raises ConfigError.
    """

    __slots__ = ("_by_identity", "key", "method", "users")

    def __init__(
        self, method: Method, password: str | None, users: Mapping[str, str] | None = None
    ) -> None:
        self.method = method
        #: that of the listener itself; where there are only users, none
        self.key = b"" if password is None else _only(method, password)
        self.users = [User(name, _only(method, own)) for name, own in (users or {}).items()]
        self._by_identity: dict[bytes, User] = {}
        self._check(password)
        if not self.users:
            self.users = [User(DEFAULT_USER, self.key)]
        elif method.is_2022:
            self._by_identity = {keys.identity_of(user.key): user for user in self.users}

    def _check(self, password: str | None) -> None:
        method, users = self.method, self.users
        if password is None and (method.is_2022 or not users):
            raise ConfigError("needs a password")
        if users and method.is_2022 and not method.has_users:
            raise ConfigError(f"{method.name} knows no users")
        if users and not method.is_2022:
            if password is not None:
                raise ConfigError(f"with users {method.name} has no password besides theirs")
            if len(users) > MAX_TRIED:
                raise ConfigError(
                    f"more than {MAX_TRIED} users, whose keys would be tried one after the other"
                    " (a method of 2022 with AES has no such bound)"
                )
        if len({user.key for user in users}) < len(users):
            raise ConfigError("two users have the same password")
        if any(user.key == self.key for user in users):
            raise ConfigError("a user has the password of the listener")

    def __repr__(self) -> str:
        return f"<ServerKeys of {', '.join(user.name for user in self.users)}>"

    @property
    def has_identities(self) -> bool:
        """Whether a client says by an identity header which user it is."""
        return bool(self._by_identity)

    def user_of(self, identity: bytes) -> User | None:
        """The user whom an identity header names."""
        return self._by_identity.get(identity)

    def knows(self, user: User) -> bool:
        """Whether ``user`` has that key still."""
        return user in self.users


def _only(method: Method, password: str) -> bytes:
    found = keys_of(method, password)
    if len(found) > 1:
        raise ConfigError("one key is needed, and not several behind one another")
    return found[0]


class SaltGuard(ReplayGuard):
    """The salts of messages that carry no time; of each key the last ones, for a day at most.

    Otherwise as :class:`gsocks.replay.ReplayGuard`, but that of too many the oldest are forgotten.
    """

    window_ms = SALT_MEMORY_MS
    forgets_oldest = True

    def admit_salt(self, salt: bytes, key: bytes) -> bool:
        """False if a message of that key has had the salt before."""
        at = now_ms()
        return self.admit(salt, at, key, at)


class Guards(NamedTuple):
    """What must not come twice.  Made before forking; every worker then sees the same."""

    #: of messages of 2022
    timed: ReplayGuard
    #: of all others
    salts: SaltGuard

    @classmethod
    def of(cls, keys: ServerKeys) -> Guards:
        """For the users of a listener; memory that nothing touches costs nothing."""
        count = len(keys.users)
        return cls(ReplayGuard(keys=count), SaltGuard(keys=2 * count))

    def close(self) -> None:
        """Release the memory."""
        self.timed.close()
        self.salts.close()


class Accepted(NamedTuple):
    """A client that has proved to know a key."""

    user: User
    dest: Address
    stream: ServerStream


def accept(sock: AnySocket, server: ServerKeys, guards: Guards) -> Accepted:
    """Read the head of the peer that connected.

    Runs under the caller's timeout.  Raises Stranger, StreamError, or BadRequest for a destination
    that can't be one; then nothing was sent.
    """
    if server.method.is_2022:
        return _accept_2022(sock, server, guards.timed)
    return _accept_aead(sock, server, guards.salts)


# --- the edition of 2022 ----------------------------------------------------------------------


def _accept_2022(sock: AnySocket, server: ServerKeys, guard: ReplayGuard) -> Accepted:
    method = server.method
    first = _read_once(sock)
    at = method.key_size
    salt, user = first[:at], server.users[0]
    size = at + FIXED_BOX + (keys.BLOCK if server.has_identities else 0)
    if len(first) < size:
        raise Stranger("less than a header at once")
    if server.has_identities:
        _, decrypt = keys.block_cipher(keys.identity_subkey(server.key, salt))
        found = server.user_of(decrypt(first[at : at + keys.BLOCK]))
        if found is None:
            raise Stranger("not the header of a known user")
        user, at = found, at + keys.BLOCK
    opener = ciphers.opener(method, keys.subkey(method, user.key, salt))
    fixed = _opened(opener, first[at:size])
    seconds = int.from_bytes(fixed[1:9], "big")
    if fixed[0] != FROM_CLIENT:
        raise Stranger(f"a header of type {fixed[0]}")
    if not is_now(seconds) or not guard.admit(salt, _end_of_second(seconds), user.key):
        raise Stranger("a salt seen before, or a header made at another time than this server's")
    reader = Reader(sock, first[size:])
    asked = _opened(opener, reader.exactly(int.from_bytes(fixed[-2:], "big") + TAG_SIZE, CHUNK))
    dest, payload = _read_request(asked)
    stream = ServerStream(
        SocketStream(sock),
        method,
        user.key,
        salt,
        opener,
        payload=payload,
        received=reader.take_rest(),
    )
    return Accepted(user, dest, stream)


def _read_once(sock: AnySocket) -> bytes:
    """What one read returns, as SIP022 asks for.  Raises StreamError."""
    try:
        first = sock.recv(CHUNK)
    except OSError as error:
        raise _routine(stream_failure(error)) from None
    if not first:
        raise _routine(Truncated("the connection ended early"))
    return first


def _routine(error: StreamError) -> StreamError:
    error.is_routine = True  # as of a balancer's health check
    return error


def _end_of_second(seconds: int) -> int:
    """The latest moment that a time in seconds means, in milliseconds."""
    return min(seconds * 1000 + 999, now_ms() + WINDOW_MS)


def _read_request(asked: bytes) -> tuple[Address, bytes]:
    """Destination and first bytes in a variable-length header.  Raises Stranger, BadRequest."""
    size = _address_size(asked)
    behind = size + 2
    if len(asked) < behind:
        raise Stranger("a request that ends early")
    padding = int.from_bytes(asked[size:behind], "big")
    payload = asked[behind + padding :]
    if padding > MAX_PADDING or len(asked) < behind + padding:
        raise Stranger("padding beyond its bound, or its header")
    if not padding and not payload:
        raise Stranger("a request with neither padding nor payload")
    return _address(asked[:size]), payload


# --- the edition of 2017 ----------------------------------------------------------------------


def _accept_aead(sock: AnySocket, server: ServerKeys, guard: SaltGuard) -> Accepted:
    method = server.method
    reader = Reader(sock)
    try:
        head = reader.exactly(method.key_size + LENGTH_BOX, CHUNK)
    except StreamError as error:
        error.is_routine = reader.at_boundary
        raise
    salt, box = head[: method.key_size], head[method.key_size :]
    user, opener, length = _find_user(server, salt, box)
    key = user.key
    if not guard.admit_salt(salt, key):
        raise Stranger("a salt seen before")
    read = b""
    while True:
        if not 0 < length <= method.max_chunk:
            raise Stranger(f"a chunk of {length} bytes")
        read += _opened(opener, reader.exactly(length + TAG_SIZE, CHUNK))
        size = _address_size(read)
        if len(read) >= size:
            break
        length = int.from_bytes(_opened(opener, reader.exactly(LENGTH_BOX, CHUNK)), "big")
    stream = ServerStream(
        SocketStream(sock),
        method,
        key,
        salt,
        opener,
        payload=read[size:],
        received=reader.take_rest(),
        # what this end has sent may come back as another client's
        note_salt=lambda own: guard.admit_salt(own, key),
    )
    return Accepted(user, _address(read[:size]), stream)


def _find_user(server: ServerKeys, salt: bytes, box: bytes) -> tuple[User, Opener, int]:
    """The user whose key has sealed the first length; what opens the rest; that length."""
    method = server.method
    for user in server.users:
        opener = ciphers.opener(method, keys.subkey(method, user.key, salt))
        try:
            length = int.from_bytes(opener.open(box), "big")
        except Tampered:
            give_way()  # a stranger has all of them tried
        else:
            return user, opener, length
    raise Stranger("not the beginning of a client with a known key")


# --- both -------------------------------------------------------------------------------------


def _opened(opener: Opener, sealed: bytes) -> bytes:
    try:
        return opener.open(sealed)
    except Tampered:
        raise Stranger("a chunk that no known key has sealed") from None


def _address_size(read: bytes) -> int:
    """The bytes of the address that begins there; one more than there are if that is not known."""
    if not read or (read[0] == 0x03 and len(read) < 2):
        return len(read) + 1
    if read[0] == 0x03:
        return 4 + read[1]
    size = _ADDRESS_SIZES.get(read[0])
    if size is None:
        raise Stranger(f"address type {read[0]:#04x}")
    return size


def _address(raw: bytes) -> Address:
    """Raises BadRequest."""
    at = 0

    def exactly(count: int) -> bytes:
        nonlocal at
        at += count
        return raw[at - count : at]

    return Address.read(exactly)
