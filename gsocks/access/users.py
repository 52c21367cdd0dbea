"""Who may come in: user names and their passwords, kept as Argon2id hashes (RFC 9106).

Argon2id is slow and large on purpose (64 MiB and some 60 ms for each password), and a proxy logs
in at every connection.  So it runs beside the event loop, in few threads, and a password that was
right is remembered for a while, as a digest whose key this process never tells.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import gevent
from gevent.lock import Semaphore
from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from gsocks.errors import ConfigError, LoginsBusy

#: verifications at a time, in each process; more wait.  Two cost 128 MiB and leave the other
#: eight threads of gevent's pool to name resolution.
AT_ONCE = 2

#: different logins that are verified or wait for it, in each process; one more is refused at once.
#: At 60 ms for each, two at a time, the last of them waits for three seconds.
MAX_WAITING = 100

#: seconds for which a right password is remembered
REMEMBERED_FOR = 600.0

#: users whose password is remembered; beyond, the one who logged in first is forgotten
MAX_REMEMBERED = 4096

#: KiB, passes and lanes that a hash may demand of this machine at a login; RFC 9106 section 4
#: recommends 64 MiB, 3 and 4 where memory is short, and libsodium's "sensitive" is 1 GiB, 4 and 1
MAX_MEMORY = 1024 * 1024
MAX_PASSES = 16
MAX_LANES = 16

# The longest hash that libsodium takes (crypto_pwhash_STRBYTES, less the NUL).
_MAX_HASH = 127

# Argon2's encoding in full.  libsodium answers "wrong password" to a hash that it can't read, so
# one that it wouldn't read has to be found when it is loaded.
_HASH = re.compile(
    r"\$argon2id\$v=19"
    r"\$m=(?P<memory>[1-9][0-9]*),t=(?P<passes>[1-9][0-9]*),p=(?P<lanes>[1-9][0-9]*)"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<tag>[A-Za-z0-9+/]+)"
)
_MIN_SALT = 8  # bytes, RFC 9106 section 3.1 and libsodium
_MIN_TAG = 16


def hash_password(password: bytes) -> str:
    """An Argon2id hash of ``password`` with a salt of its own, to be kept in the configuration.

    With libsodium's limits for interactive use: 64 MiB, 2 passes.  Blocks this thread meanwhile.
    """
    return argon2id.str(
        password, opslimit=argon2id.OPSLIMIT_INTERACTIVE, memlimit=argon2id.MEMLIMIT_INTERACTIVE
    ).decode("ascii")


class _Login(NamedTuple):
    digest: bytes
    until: float


class _Verification:
    """One name and password that are being worked out, or wait for it."""

    __slots__ = ("askers", "begun", "worker")

    worker: gevent.Greenlet[..., bool]

    def __init__(self) -> None:
        #: logins that want to know
        self.askers = 0
        #: whether it has its turn
        self.begun = False


class Users:
    """The users of a door: a mapping of names to Argon2id hashes.

    ``clock`` tells monotonic seconds.  Raises ConfigError, naming the user, for a hash that can't
    be one or that demands too much of this machine.
    """

    __slots__ = ("_clock", "_decoy", "_hashes", "_key", "_remembered", "_turns", "_under_way")

    def __init__(
        self, hashes: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._key = os.urandom(blake2b.MAX_KEY_SIZE)
        self._turns = Semaphore(AT_ONCE)
        # One password is right for a name, so one digest is remembered for it.
        self._remembered: dict[str, _Login] = {}
        self._hashes: dict[str, str] = {}
        # A client opens many connections at once: they wait for one answer.
        self._under_way: dict[tuple[str, bytes], _Verification] = {}
        self.replace(hashes)

    def replace(self, hashes: Mapping[str, str]) -> None:
        """Take other users, at once and while logins go on; who has changed is forgotten.

        Raises ConfigError as the constructor does; then the users are those of before.
        """
        costs = {name: _cost(name, stored) for name, stored in hashes.items()}
        self._decoy = _make_decoy(max(costs.values(), key=_work, default=_DEFAULT_COST))
        for name, stored in self._hashes.items():
            if hashes.get(name) != stored:
                self._remembered.pop(name, None)
        self._hashes = dict(hashes)

    def verify(self, name: str, password: bytes) -> bool:
        """Whether that is the password of that user.

        Blocks this greenlet only.  An unknown name takes as long as a wrong password.  Raises
        LoginsBusy if too many wait already; who is remembered never waits.
        """
        if self._remembers(name, password):
            return True
        stored = self._hashes.get(name, self._decoy)
        question = name, self._digest(stored, password)
        asked = self._under_way.get(question)
        if asked is None:
            if len(self._under_way) >= MAX_WAITING:
                raise LoginsBusy("too many other logins wait to be verified")
            asked = self._under_way[question] = _Verification()
            # In a greenlet of its own: who asks may give up, but Argon2's thread can't, and holds
            # its turn until it is done.
            asked.worker = gevent.spawn(self._work_out, asked, question, stored, password)
        asked.askers += 1
        try:
            right: bool = asked.worker.get()
            return right
        finally:
            asked.askers -= 1
            if not asked.askers and not asked.begun:
                del self._under_way[question]

    @property
    def names(self) -> list[str]:
        """Who they are."""
        return sorted(self._hashes)

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.names}>"

    def _work_out(
        self, asked: _Verification, question: tuple[str, bytes], stored: str, password: bytes
    ) -> bool:
        name = question[0]
        with self._turns:
            if not asked.askers:  # all have given up
                return False
            asked.begun = True
            try:
                fits = gevent.get_hub().threadpool.apply(_fits, (stored, password))
            finally:
                del self._under_way[question]
            # A decoy lets nobody in, and neither does a hash that was replaced meanwhile.
            right = fits and self._hashes.get(name) == stored
            if right:
                self._remember(name, stored, password)
            return right

    def _remembers(self, name: str, password: bytes) -> bool:
        login = self._remembered.get(name)
        if login is None:
            return False
        if login.until <= self._clock():
            del self._remembered[name]
            return False
        return hmac.compare_digest(login.digest, self._digest(self._hashes[name], password))

    def _remember(self, name: str, stored: str, password: bytes) -> None:
        self._remembered.pop(name, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        until = self._clock() + REMEMBERED_FOR
        self._remembered[name] = _Login(self._digest(stored, password), until)

    def _digest(self, stored: str, password: bytes) -> bytes:
        # A hash has no NUL, so the two can't be parted otherwise; the name is the entry's.
        return blake2b(stored.encode("ascii") + b"\0" + password, key=self._key).digest()


def _fits(stored: str, password: bytes) -> bool:
    # Answered, not raised: gevent prints what is raised in its threads.
    try:
        return argon2id.verify(stored.encode("ascii"), password)
    except InvalidkeyError:
        return False


class _Cost(NamedTuple):
    memory: int
    passes: int
    lanes: int


_DEFAULT_COST = _Cost(argon2id.MEMLIMIT_INTERACTIVE // 1024, argon2id.OPSLIMIT_INTERACTIVE, 1)


def _work(cost: _Cost) -> int:
    return cost.memory * cost.passes


def _cost(name: str, stored: str) -> _Cost:
    """What a verification against that hash takes.  Raises ConfigError."""
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
    cost = _Cost(int(match["memory"]), int(match["passes"]), int(match["lanes"]))
    if cost.memory > MAX_MEMORY or cost.passes > MAX_PASSES or cost.lanes > MAX_LANES:
        raise ConfigError(
            f"user {name!r}: the hash demands m={cost.memory} KiB, t={cost.passes}, "
            f"p={cost.lanes}; allowed are m={MAX_MEMORY}, t={MAX_PASSES}, p={MAX_LANES}"
        )
    if cost.memory < 8 * cost.lanes:  # RFC 9106 section 3.1
        raise ConfigError(
            f"user {name!r}: the hash says m={cost.memory} KiB, which is less than 8 for each "
            f"of its p={cost.lanes} lanes"
        )
    return cost


def check_hash(name: str, stored: str) -> None:
    """Raises ConfigError, naming the user, for what :class:`Users` would not take."""
    _cost(name, stored)


def _make_decoy(cost: _Cost) -> str:
    """A hash that costs as much as a user's and that fits no password anybody knows."""
    salt, tag = (b64encode(os.urandom(size)).decode("ascii").rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={cost.memory},t={cost.passes},p={cost.lanes}${salt}${tag}"


def _unpadded_b64decode(text: str) -> bytes:
    """The bytes behind ``text``, or none if it isn't their one encoding."""
    if len(text) % 4 == 1:
        return b""
    raw = b64decode(text + "=" * (-len(text) % 4))
    return raw if b64encode(raw).decode("ascii").rstrip("=") == text else b""
