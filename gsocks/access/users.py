"""Users and their passwords, stored as Argon2id hashes (RFC 9106).

Argon2id takes much time and memory on purpose (64 MiB and some 60 ms per password), and clients of
a proxy log in with every connection.  So it runs outside of the event loop, in few threads, and a
password that was right is remembered for some time, as a digest with a key that never leaves this
process.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

import gevent
from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from gsocks.access.verifications import Durations, verifications_of_this_hub
from gsocks.errors import ConfigError, LoginsBusy
from gsocks.lru import LruCache
from gsocks.turns import give_way

#: seconds for which a right password is remembered
REMEMBER_TIME = 600.0

#: users whose password is remembered; beyond, the earliest login is forgotten
MAX_REMEMBERED = 4096

#: KiB, passes and lanes that a hash may require for a verification; RFC 9106 section 4 recommends
#: 64 MiB, 3 and 4 where memory is short, and libsodium's "sensitive" is 1 GiB, 4 and 1
MAX_MEMORY = 1024 * 1024
MAX_PASSES = 16
MAX_LANES = 16

# The longest hash that libsodium accepts (crypto_pwhash_STRBYTES, less the NUL).
_MAX_HASH = 127

# Argon2's complete encoding.  libsodium reports "wrong password" for a hash that it can't parse, so
# such a hash has to be refused when it is loaded.
_HASH = re.compile(
    r"\$argon2id\$v=19"
    r"\$m=(?P<memory>[1-9][0-9]*),t=(?P<passes>[1-9][0-9]*),p=(?P<lanes>[1-9][0-9]*)"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<tag>[A-Za-z0-9+/]+)"
)
_MIN_SALT = 8  # bytes, RFC 9106 section 3.1 and libsodium
_MIN_TAG = 16


def hash_password(password: bytes) -> str:
    """An Argon2id hash of ``password`` with a random salt, for the configuration.

    With libsodium's limits for interactive use: 64 MiB, 2 passes.  Blocks the calling thread.
    """
    return argon2id.str(
        password, opslimit=argon2id.OPSLIMIT_INTERACTIVE, memlimit=argon2id.MEMLIMIT_INTERACTIVE
    ).decode("ascii")


#: a client, a name and the digest of a password
_Login: TypeAlias = tuple[str, str, bytes]


class _Remembered(NamedTuple):
    """A login that has succeeded."""

    digest: bytes
    #: monotonic seconds
    expires: float


class _Verification:
    """The verification of one name and password, which runs or waits for its turn."""

    __slots__ = ("started", "waiters", "worker")

    worker: gevent.Greenlet[..., bool | LoginsBusy]

    def __init__(self) -> None:
        #: logins that wait for the result
        self.waiters = 0
        self.started = False


class Users:
    """The users of a listener: a mapping of names to Argon2id hashes.

    ``clock`` returns monotonic seconds.  Raises ConfigError, which names the user, for an invalid
    hash and for one that requires too much memory or time.
    """

    __slots__ = (
        "_clock",
        "_decoy",
        "_durations",
        "_hashes",
        "_key",
        "_not_empty",
        "_pending",
        "_remembered",
    )

    def __init__(
        self, hashes: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._key = os.urandom(blake2b.MAX_KEY_SIZE)
        # Only one password is right for a name, so one digest is remembered for each.
        self._remembered: LruCache[str, _Remembered] = LruCache(MAX_REMEMBERED)
        self._hashes: dict[str, str] = {}
        # A client opens many connections at once: they wait for one verification.
        self._pending: dict[_Login, _Verification] = {}
        self._take(*check_all(hashes))

    def replace(self, hashes: Mapping[str, str]) -> None:
        """Replace all users while logins go on; the passwords of changed users are forgotten.

        Raises ConfigError as the constructor does; then the users are unchanged.  Gives way to
        other greenlets.
        """
        self._take(*check_all(hashes, give_way))

    def _take(self, hashes: dict[str, str], costs: set[Cost]) -> None:
        """Replace all users by those with ``hashes``, which have these costs."""
        self._decoy = _make_decoy(max(costs, key=_work, default=_DEFAULT_COST))
        #: users whose password has proved not to be empty: without one they are like unknown names,
        #: since that may be tried at any rate (gsocks/access/throttle.py)
        self._not_empty: set[str] = set()
        self._durations = Durations(self._clock)
        for name in list(self._remembered):
            if hashes.get(name) != self._hashes.get(name):
                self._remembered.discard(name)
        self._hashes = hashes

    def verify(self, name: str, password: bytes, client: str = "") -> bool:
        """Whether ``password`` is the password of the user ``name``.

        Blocks the calling greenlet only.  Logins of one ``client``, a prefix, take turns with those
        of others; a remembered one never waits.  An unknown name takes as long as a wrong password.
        Raises LoginsBusy if too many logins are waiting.
        """
        known = self.recall(name, password)
        if known:
            return True
        stored = self._hashes.get(name, self._decoy)
        if not password and name in self._not_empty:
            stored = self._decoy
        login = client, name, self._digest(stored, password)
        verification = self._pending.get(login)
        if verification is None:
            verification = self._pending[login] = _Verification()
            is_wrong = stored is self._decoy or (known is False and self._costs_most(stored))
            # In its own greenlet: the calling one may be killed, but Argon2's thread can't be, and
            # holds its turn until it has finished.
            verification.worker = gevent.spawn(
                self._run, verification, login, stored, password, is_wrong
            )
        verification.waiters += 1
        try:
            right = verification.worker.get()
        finally:
            verification.waiters -= 1
            if not verification.waiters and not verification.started:
                self._forget(login, verification)
                verification.worker.kill(block=False)  # which frees its place
        if isinstance(right, LoginsBusy):
            raise right
        return right

    def recall(self, name: str, password: bytes) -> bool | None:
        """Whether ``password`` is right, if the one of ``name`` is remembered; None if not."""
        remembered = self._remembered.peek(name)
        if remembered is None:
            return None
        if remembered.expires <= self._clock():
            del self._remembered[name]
            return None
        return hmac.compare_digest(remembered.digest, self._digest(self._hashes[name], password))

    @property
    def names(self) -> list[str]:
        """The names of all users, sorted."""
        return sorted(self._hashes)

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def __repr__(self) -> str:
        remembered, pending = sorted(self._remembered), len(self._pending)
        return f"<{type(self).__name__} {self.names} remembered={remembered} pending={pending}>"

    def _run(
        self,
        verification: _Verification,
        login: _Login,
        stored: str,
        password: bytes,
        is_wrong: bool,
    ) -> bool | LoginsBusy:
        client, name, _ = login
        seconds = self._durations.sample() if is_wrong else None
        queue = verifications_of_this_hub()
        try:
            with queue.turn(client, takes_thread=seconds is None):
                verification.started = True
                if seconds is not None:  # the answer is known, and its time must not show that
                    gevent.sleep(seconds)
                    return False
                if self.recall(name, password):  # proved by another login meanwhile
                    return True
                matches = queue.call(partial(self._measure, stored, password))
        except LoginsBusy as error:  # returned: gevent prints what a greenlet raises
            return error
        finally:
            self._forget(login, verification)
        # The decoy is no user's hash, and this one may have been replaced meanwhile.
        right = matches and self._hashes.get(name) == stored
        if right:
            self._remember(name, stored, password)
        elif not password and self._hashes.get(name) == stored:
            self._not_empty.add(name)
        return right

    def _forget(self, login: _Login, verification: _Verification) -> None:
        if self._pending.get(login) is verification:
            del self._pending[login]

    def _measure(self, stored: str, password: bytes) -> bool:
        """In a thread."""
        verify = partial(_matches, stored, password)
        return self._durations.measure(verify) if self._costs_most(stored) else verify()

    def _costs_most(self, stored: str) -> bool:
        """Whether it costs what the decoy does."""
        return stored.rsplit("$", 2)[0] == self._decoy.rsplit("$", 2)[0]

    def _remember(self, name: str, stored: str, password: bytes) -> None:
        expires = self._clock() + REMEMBER_TIME
        self._remembered[name] = _Remembered(self._digest(stored, password), expires)

    def _digest(self, stored: str, password: bytes) -> bytes:
        # A hash has no NUL, so the input is unambiguous; the name is the key of the entry.
        return blake2b(stored.encode("ascii") + b"\0" + password, key=self._key).digest()


def _matches(stored: str, password: bytes) -> bool:
    # Returned, not raised: gevent prints exceptions of its threads.
    try:
        return argon2id.verify(stored.encode("ascii"), password)
    except InvalidkeyError:
        return False


def go_on() -> None:
    """Give way to no other greenlet: for the start, before there is one."""


def check_all(
    hashes: Mapping[str, str], give_way: Callable[[], object] = go_on
) -> tuple[dict[str, str], set[Cost]]:
    """A copy of ``hashes`` and their costs.  Raises ConfigError."""
    checked, costs = dict(hashes), set()
    for name, stored in checked.items():
        costs.add(check_hash(name, stored))
        give_way()
    return checked, costs


class Cost(NamedTuple):
    """What a verification takes: KiB, passes and lanes."""

    memory: int
    passes: int
    lanes: int


_DEFAULT_COST = Cost(argon2id.MEMLIMIT_INTERACTIVE // 1024, argon2id.OPSLIMIT_INTERACTIVE, 1)


def _work(cost: Cost) -> int:
    return cost.memory * cost.passes


def check_hash(name: str, stored: str) -> Cost:
    """The cost of a verification against that hash.

    Raises ConfigError, which names the user, for a hash that :class:`Users` refuses.
    """
    match = _HASH.fullmatch(stored) if len(stored) <= _MAX_HASH else None
    if (
        match is None
        or len(_unpadded_b64decode(match["salt"])) < _MIN_SALT
        or len(_unpadded_b64decode(match["tag"])) < _MIN_TAG
    ):
        raise ConfigError(
            f"user {name!r}: expected an Argon2id hash ($argon2id$v=19$...), as gsocks passwd "
            f"makes them"
        )
    cost = Cost(int(match["memory"]), int(match["passes"]), int(match["lanes"]))
    if cost.memory > MAX_MEMORY or cost.passes > MAX_PASSES or cost.lanes > MAX_LANES:
        raise ConfigError(
            f"user {name!r}: the hash requires m={cost.memory} KiB, t={cost.passes}, "
            f"p={cost.lanes}; the limits are m={MAX_MEMORY}, t={MAX_PASSES}, p={MAX_LANES}"
        )
    if cost.memory < 8 * cost.lanes:  # RFC 9106 section 3.1
        raise ConfigError(
            f"user {name!r}: the hash has m={cost.memory} KiB, which is less than 8 for each "
            f"of its p={cost.lanes} lanes"
        )
    return cost


def _make_decoy(cost: Cost) -> str:
    """A hash of the same cost as a user's, for which no password is known."""
    salt, tag = (b64encode(os.urandom(size)).decode("ascii").rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={cost.memory},t={cost.passes},p={cost.lanes}${salt}${tag}"


def _unpadded_b64decode(text: str) -> bytes:
    """The bytes that ``text`` encodes, or b"" if it isn't their canonical encoding."""
    if len(text) % 4 == 1:
        return b""
    raw = b64decode(text + "=" * (-len(text) % 4))
    return raw if b64encode(raw).decode("ascii").rstrip("=") == text else b""
