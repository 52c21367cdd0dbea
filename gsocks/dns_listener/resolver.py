"""Who waits for which answer: questions of clients, and what is asked for them.

Clients that ask the same wait for one answer.  How many questions may wait is bounded, of one
client and of all; when there are more, the client that has most loses its oldest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import gevent
from gevent.event import Event
from greenlet import GreenletExit, greenlet

from gsocks.access.per_client import PerClient
from gsocks.dns_listener.cache import Cache
from gsocks.dns_listener.upstream import Upstream
from gsocks.dns_listener.wire import (
    SERVER_FAILURE,
    Answer,
    BadAnswer,
    Key,
    Query,
    failure,
    make_question,
    read_answer,
    reply,
)
from gsocks.errors import GsocksError
from gsocks.net.greenlets import GreenletPool

# at debug level alone: whom a client talks to stands in no other line
log = logging.getLogger("gsocks.dns")

#: how often each name server is asked, while there is time
ROUNDS = 2

#: gets a whole message.  Must not block.
Deliver = Callable[[bytes], None]


class Waiter:
    """A client's question that waits for its answer."""

    __slots__ = ("client", "deliver", "lookup", "query", "size")

    def __init__(
        self, query: Query, size: int, client: str, deliver: Deliver, lookup: LookUp
    ) -> None:
        self.query = query
        self.size = size
        self.client = client
        self.deliver = deliver
        self.lookup = lookup


class LookUp:
    """What is asked for all that want the same."""

    __slots__ = ("greenlet", "question", "waiters")

    def __init__(self, question: bytes) -> None:
        #: as the first of them has written it
        self.question = question
        self.waiters: dict[Waiter, None] = {}
        #: that which asks; None before it begins, and at its end
        self.greenlet: greenlet | None = None


class Resolver:
    """Answers questions from the cache and through ``upstream``.

    ``timeout``: seconds for an answer, whatever is tried for it; ``waiting``, ``per_client``:
    questions that wait at a time.
    """

    #: seconds until another name server is asked, or the same one by another connection
    try_timeout = 2.0

    def __init__(
        self, upstream: Upstream, cache: Cache, *, timeout: float, waiting: int, per_client: int
    ) -> None:
        self.upstream = upstream
        self._cache = cache
        self._timeout = timeout
        self._most = waiting
        self._most_per_client = per_client
        self._open: dict[Key, LookUp] = {}
        self._held: PerClient[str, Waiter] = PerClient()
        self._greenlets = GreenletPool()
        #: look-ups whose greenlet has yet to begin
        self.unbegun = 0
        #: set while no question waits
        self.none_waits = Event()
        self.none_waits.set()

    def __repr__(self) -> str:
        return f"<Resolver {self.waiting} waiting for {len(self._open)} answers, {self.upstream}>"

    @property
    def waiting(self) -> int:
        """How many questions of clients wait."""
        return len(self._held)

    def ask(self, query: Query, size: int, client: str, deliver: Deliver) -> Waiter | None:
        """Have ``deliver`` called with the answer to ``query``, once: now, or later.

        ``size``: bytes of the answer at most; ``client``: for whom it counts.  None if it was
        answered now; else what :meth:`forget` takes.
        """
        known = self._cache.get(query.key)
        if known is not None:
            self._deliver(deliver, query, size, *known, "kept")
            return None
        if self._held.count(client) >= self._most_per_client:
            self._refuse(query, deliver, "too many questions of its client wait")
            return None
        if len(self._held) >= self._most:
            self._end(next(self._held.held_by_most(client)), "its place was needed")
        lookup = self._open.get(query.key)
        if lookup is None:
            lookup = self._open[query.key] = LookUp(query.question)
            self.unbegun += 1
            self._greenlets.spawn(self._look_up, query.key, lookup)
        waiter = Waiter(query, size, client, deliver, lookup)
        lookup.waiters[waiter] = None
        self._held.add(client, waiter)
        self.none_waits.clear()
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """No answer is wanted any more.  Does nothing if it has come."""
        if not self._let_go(waiter):
            return
        lookup = waiter.lookup
        del lookup.waiters[waiter]
        if not lookup.waiters:
            self._forget_lookup(waiter.query.key, lookup)
            if lookup.greenlet is not None:
                gevent.get_hub().loop.run_callback(self._interrupt, lookup)

    def close(self) -> None:
        """Answer all that wait, with a failure, and end the connections.  Never blocks."""
        for lookup in list(self._open.values()):
            for waiter in list(lookup.waiters):
                self._end(waiter, "stopped")
        self.upstream.close()

    def end(self) -> None:
        """End the greenlets, behind :meth:`close`."""
        self._greenlets.kill()
        self._greenlets.close()
        self.upstream.end()

    # --- answers ----------------------------------------------------------------------------

    def _deliver(
        self, deliver: Deliver, query: Query, size: int, answer: Answer, age: int, how: str
    ) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s, rcode %d", query, how, answer.rcode)
        deliver(reply(answer, query, age, largest=size))

    def _refuse(self, query: Query, deliver: Deliver, why: str) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: rcode %d, %s", query, SERVER_FAILURE, why)
        deliver(failure(query))

    def _end(self, waiter: Waiter, why: str) -> None:
        """Answer it with a failure."""
        self.forget(waiter)
        self._refuse(waiter.query, waiter.deliver, why)

    def _let_go(self, waiter: Waiter) -> bool:
        """It waits no more; False if it did not."""
        waited = self._held.discard(waiter.client, waiter)
        if not self._held:
            self.none_waits.set()
        return waited

    @staticmethod
    def _interrupt(lookup: LookUp) -> None:
        if lookup.greenlet is not None:
            lookup.greenlet.throw(GreenletExit())

    def _forget_lookup(self, key: Key, lookup: LookUp) -> None:
        if self._open.get(key) is lookup:
            del self._open[key]

    # --- looking up, in a greenlet of its own ---------------------------------------------------

    def _look_up(self, key: Key, lookup: LookUp) -> None:
        self.unbegun -= 1
        if not lookup.waiters:
            return
        lookup.greenlet = gevent.getcurrent()
        answer, why = None, "stopped"
        try:
            answer, why = self._answer(key, lookup.question)
        finally:
            lookup.greenlet = None
            self._forget_lookup(key, lookup)
            if answer is not None:
                self._cache.put(key, answer)
            for waiter in list(lookup.waiters):
                if not self._let_go(waiter):
                    continue
                if answer is None:
                    self._refuse(waiter.query, waiter.deliver, why)
                else:
                    self._deliver(waiter.deliver, waiter.query, waiter.size, answer, 0, "answered")
            lookup.waiters.clear()

    def _answer(self, key: Key, question: bytes) -> tuple[Answer | None, str]:
        """The answer of the first name server that has one, or else what failed last."""
        end = time.monotonic() + self._timeout
        found: Answer | None = None
        why = ""
        for server in self.upstream.servers * ROUNDS:
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                make = partial(make_question, key, question)
                message = self.upstream.ask(server, make, min(left, self.try_timeout))
                found = read_answer(message, key)
            except (GsocksError, BadAnswer) as error:
                why = f"{server}: {error}"
                continue
            if found.is_final:
                break
        return found, why
