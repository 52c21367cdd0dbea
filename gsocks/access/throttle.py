"""Protection of passwords from guessing: failed logins are delayed, then refused for some time.

Failed logins are counted by address: an IPv4 address, or an IPv6 /64
(:func:`gsocks.access.networks.client_prefix`).  Each failure is answered later than the one before.
After too many of them no login from that address is verified, neither with a wrong nor with the
right password, so that a refused client learns nothing and costs nothing.  Only other refused
addresses, each of which had to fail as often, take a refused one's place among those that are
remembered: a client that has an IPv6 /48 can fail once from each of 65,536 /64s in a moment.

An empty password is no guess, and does not count: programs without a login send it, with the name
of their machine's user (Java), again and again.  It costs no more than one verification for each
user, see gsocks/access/users.py.

Concurrent logins count like successive ones: at most as many are verified at a time as may still
fail, and the others wait for their outcome.  One that is being verified counts although its client
is gone before it is answered.  A login that is remembered needs no verification and
waits for none; as many may be compared with what is remembered as may still fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from functools import partial
from hashlib import blake2b

import gevent
from gevent.event import Event

from gsocks.access.login import VerifyPassword
from gsocks.access.networks import client_prefix
from gsocks.backoff import Backoff
from gsocks.errors import GsocksError, LoginRefused
from gsocks.lru import LruCache
from gsocks.units import format_duration

log = logging.getLogger("gsocks.throttle")


def _recall_nothing(name: str, password: bytes) -> bool | None:  # noqa: ARG001
    return None


class Throttle:
    """Calls ``authenticate`` for addresses with few failures; several listeners may share one.

    ``authenticate`` gets a name, a password and the client's prefix.  ``recall`` tells without a
    verification whether a password is right, or None if it can't.

    ``clock`` returns monotonic seconds; ``sleep`` delays an answer by seconds.  ``users``: the
    names that ``authenticate`` knows, see :class:`gsocks.access.login.Authenticator`.  Each process
    counts on its own.
    """

    #: failed logins from one address within ``window`` before it is refused
    max_failures = 10
    #: seconds after which a failure no longer counts
    window = 600.0
    #: seconds for which logins from an address are refused after ``max_failures``
    refusal_time = 600.0
    #: seconds before the answer to the first failure; doubled by each further one
    first_delay = 0.25
    #: seconds; the client still gets its answer within ``timeouts.handshake``
    max_delay = 4.0
    #: addresses that are remembered, and as many that are refused; beyond, the least recently seen
    #: one of these or of those is forgotten
    max_addresses = 10_000

    def __init__(
        self,
        authenticate: Callable[[str, bytes, str], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
        *,
        users: Container[str] = (),
        recall: Callable[[str, bytes], bool | None] = _recall_nothing,
    ) -> None:
        self.users = users
        self._authenticate = authenticate
        self._recall = recall
        self._clock = clock
        self._sleep = sleep
        self._sources: LruCache[str, _Source] = LruCache(self.max_addresses)
        #: called with the address of each failure, and with a hash of the name
        self.on_failure: Callable[[str, int], object] | None = None
        #: monotonic seconds until which the logins from an address are refused
        self._refused: LruCache[str, float] = LruCache(self.max_addresses)

    def __repr__(self) -> str:
        now = self._clock()
        refused = sum(until > now for until in self._refused.values())
        pending = sum(source.pending for source in self._sources.values())
        addresses = len({*self._sources, *self._refused})
        return f"<Throttle addresses={addresses} refused={refused} pending={pending}>"

    def for_client(self, host: str) -> VerifyPassword:
        """:meth:`verify` for a client at the IP address ``host``."""
        return partial(self.verify, host)

    def recalling(self, host: str) -> VerifyPassword:
        """:meth:`recall` for a client at the IP address ``host``."""
        return partial(self.recall, host)

    def recall(self, host: str, name: str, password: bytes) -> bool:
        """Whether the password is remembered, so that :meth:`verify` returns True at once.

        False, too, where :meth:`verify` has something to do for that address before.
        """
        key = client_prefix(host)
        if self._sources.peek(key) is not None or self._refused.peek(key) is not None:
            return False
        return self._recall(name, password) is True

    def verify(self, host: str, name: str, password: bytes) -> bool:
        """The result of ``authenticate``; False is returned later with each failure.

        A failure with an empty password is returned at once, and does not count.
        Raises LoginRefused without calling it after too many failures.  Its own errors are raised
        too and do not count as failures.  A success forgives the failures of the same name only:
        otherwise a client with an account could guess other users' passwords in between.
        """
        key = client_prefix(host)
        source = self._enter(key)
        known_wrong = False
        attempt: gevent.Greenlet[..., float | GsocksError | None] | None = None
        try:
            self._check(key, source)
            if len(source.failures) + source.known_wrong < self.max_failures:
                known = self._recall(name, password)
                if known:
                    source.forgive(name)
                    return True
                known_wrong = known is False
            source.known_wrong += known_wrong
            self._wait_for_turn(key, source)
            source.verifying += 1
            # In its own greenlet: a client that leaves, or has to, before it is answered would
            # have a guess that does not count.
            attempt = gevent.spawn(self._attempt, key, source, name, password, known_wrong)
        finally:
            if attempt is None:
                self._leave(key, source, known_wrong)
        outcome = attempt.get()
        if isinstance(outcome, GsocksError):
            raise outcome
        if outcome is None:
            return True
        self._sleep(outcome)
        return False

    def _attempt(
        self, key: str, source: _Source, name: str, password: bytes, known_wrong: bool
    ) -> float | GsocksError | None:
        """Verify and count; returns by how many seconds a failure is answered later, None for a
        right password."""
        try:
            try:
                right = self._authenticate(name, password, key)
            finally:
                source.verifying -= 1
                source.notify()
            if not right:
                return self._count_failure(key, source, name) if password else 0.0
            source.forgive(name)
            return None
        except GsocksError as error:  # returned: gevent prints what a greenlet raises
            return error
        finally:
            self._leave(key, source, known_wrong)

    def _enter(self, key: str) -> _Source:
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
        source.pending += 1
        return source

    def _leave(self, key: str, source: _Source, known_wrong: bool) -> None:
        source.pending -= 1
        source.known_wrong -= known_wrong
        # an address without failures takes no place from one with them
        if source.is_blank and self._sources.peek(key) is source:
            del self._sources[key]

    def _check(self, key: str, source: _Source) -> None:
        """Forget what is over.  Raises LoginRefused."""
        now = self._clock()
        until = self._refused.get(key)
        if until is not None and until > now:
            left = format_duration(round(until - now) or 1)
            raise LoginRefused(f"too many failed logins from {key}; retry in {left}")
        self._refused.discard(key)
        source.forget(now - self.window)

    def _wait_for_turn(self, key: str, source: _Source) -> None:
        while len(source.failures) + source.verifying >= self.max_failures:
            source.wait()
            self._check(key, source)

    def hear(self, key: str, name: int) -> None:
        """Count a failure that another gateway has seen, with the hash of its name."""
        now = self._clock()
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
        until = self._refused.peek(key)
        if until is None or until <= now:
            source.forget(now - self.window)
            self._note_failure(key, source, name, now)
        if source.is_blank and self._sources.peek(key) is source:
            del self._sources[key]

    def _count_failure(self, key: str, source: _Source, name: str) -> float:
        """Count one failure; returns the seconds by which its answer is delayed."""
        hashed = _hash(name)
        if self.on_failure is not None:
            self.on_failure(key, hashed)
        failed = self._note_failure(key, source, hashed, self._clock())
        return Backoff(self.first_delay, self.max_delay).bound(failed - 1)

    def _note_failure(self, key: str, source: _Source, name: int, now: float) -> int:
        """How many there are now."""
        source.failures.append((now, name))
        failed = len(source.failures)
        if failed >= self.max_failures:
            self._refused[key] = now + self.refusal_time
            source.failures.clear()
            log.warning(
                "%s: %d failed logins in %s, refusing its logins for %s",
                key,
                failed,
                format_duration(self.window),
                format_duration(self.refusal_time),
            )
        return failed


def _hash(name: str) -> int:
    """The same in each process, of all gateways."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # JSON has signed ones


class _Source:
    """The logins from one address: failed, being verified and waiting."""

    __slots__ = ("_outcome", "failures", "known_wrong", "pending", "verifying")

    def __init__(self) -> None:
        #: the time of each failure, and the hash of the user name, which may be long
        self.failures: list[tuple[float, int]] = []
        #: logins that are being verified
        self.verifying = 0
        #: logins without an outcome yet whose password is not the one that is remembered
        self.known_wrong = 0
        #: logins that are being verified, or wait for their turn
        self.pending = 0
        self._outcome: Event | None = None

    @property
    def is_blank(self) -> bool:
        return not (self.pending or self.failures)

    def forgive(self, name: str) -> None:
        if self.failures:
            forgiven = _hash(name)
            self.failures = [failure for failure in self.failures if failure[1] != forgiven]

    def forget(self, until: float) -> None:
        """Drop the failures until that time."""
        if self.failures:
            self.failures = [failure for failure in self.failures if failure[0] > until]

    def wait(self) -> None:
        """Wait for the outcome of a login that is being verified."""
        if self._outcome is None:
            self._outcome = Event()
        self._outcome.wait()

    def notify(self) -> None:
        """Wake the waiting logins, which run after the outcome has been counted."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.set()
