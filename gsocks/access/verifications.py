"""Verifications of passwords in threads of their own, in which clients take turns.

Argon2 takes much time and memory on purpose.  So few verifications run at a time, and the others
wait: first those of clients that have few of them, so that a client with a thousand logins makes
no other one wait for more than its turn.  Threads that look names up or read lists are others.

A password that is known to be wrong, such as that of a user that does not exist, needs no
verification, but must take as long as one, or its time would tell which users exist: it takes a
client's turn, and no thread.
"""

from __future__ import annotations

import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from gsocks.errors import LoginsBusy
from gsocks.histograms import LOGINS
from gsocks.per_hub import PerHub

#: concurrent verifications in each process; further ones wait.  Two take 128 MiB.
MAX_CONCURRENT = 2

#: different logins that wait, in each process; for one more the last one goes of the client that
#: has most of them.  At 60 ms each, two at a time, the last of them waits for three seconds.
MAX_PENDING = 100

#: durations of past verifications that are kept, as those of verifications that are left out
_SAMPLES = 16

T = TypeVar("T")


class _Turn:
    """A client's turn to verify one password, which it has or waits for."""

    __slots__ = ("client", "given", "takes_thread")

    def __init__(self, client: str, takes_thread: bool) -> None:
        self.client = client
        self.takes_thread = takes_thread
        #: set when the turn comes; LoginsBusy if it never will
        self.given: AsyncResult[None] = AsyncResult()


class Verifications:
    """The verifications of one hub."""

    __slots__ = ("_busy", "_in_turn", "_threads", "_waiting")

    def __init__(self) -> None:
        self._threads = ThreadPool(MAX_CONCURRENT)
        #: threads that verify
        self._busy = 0
        #: turns that each client has, with a thread or without
        self._in_turn: Counter[str] = Counter()
        #: the clients whose logins wait, the one first whose turn comes next
        self._waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many logins wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @contextmanager
    def turn(self, client: str, *, takes_thread: bool = True) -> Iterator[None]:
        """Wait for a turn of ``client`` and have it; with a thread for :meth:`call`, or without.

        Raises LoginsBusy if too many logins wait, now or later.
        """
        turn = _Turn(client, takes_thread)
        self._wait(turn)
        try:
            yield
        finally:
            self._end(turn)

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, which runs in a thread, during a turn."""
        began = time.monotonic()
        result: T = self._threads.apply(function)
        LOGINS.add(time.monotonic() - began)
        return result

    # --- turns ------------------------------------------------------------------------------

    def _wait(self, turn: _Turn) -> None:
        if self.waiting >= MAX_PENDING:
            self._make_room(turn.client)
        self._waiting.setdefault(turn.client, deque()).append(turn)
        self._give_turns()
        try:
            turn.given.get()
        except BaseException:  # LoginsBusy, or its client is gone
            if turn.given.successful():
                self._end(turn)
            else:
                self._leave(turn)
            raise

    def _make_room(self, newcomer: str) -> None:
        """Turn the last login away of the client that has most that wait.  Raises LoginsBusy."""
        busy = LoginsBusy("too many other logins are waiting for verification")
        most = max(self._waiting, key=lambda client: len(self._waiting[client]))
        if len(self._waiting.get(newcomer, ())) + 1 >= len(self._waiting[most]):
            raise busy
        turned_away = self._waiting[most][-1]
        self._leave(turned_away)
        turned_away.given.set_exception(busy)

    def _leave(self, turn: _Turn) -> None:
        turns = self._waiting.get(turn.client)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[turn.client]

    def _give_turns(self) -> None:
        for client in list(self._waiting):
            if self._busy >= MAX_CONCURRENT:
                return
            while client in self._waiting and self._in_turn[client] < MAX_CONCURRENT:
                self._give_turn(client)
                if self._busy >= MAX_CONCURRENT:
                    return

    def _give_turn(self, client: str) -> None:
        turns = self._waiting[client]
        turn = turns.popleft()
        if turns:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]
        self._in_turn[client] += 1
        self._busy += turn.takes_thread
        turn.given.set(None)

    def _end(self, turn: _Turn) -> None:
        self._busy -= turn.takes_thread
        self._in_turn[turn.client] -= 1
        if not self._in_turn[turn.client]:
            del self._in_turn[turn.client]
        self._give_turns()


class Durations:
    """How long verifications of the same cost take, so that one can be left out.

    ``clock`` tells monotonic seconds.
    """

    #: seconds after which one has to be measured again
    good_for = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._measured = 0.0

    def measure(self, matches: Callable[[], bool]) -> bool:
        """What ``matches`` returns; for a thread."""
        began = time.perf_counter()
        right = matches()
        self._samples.append(time.perf_counter() - began)
        self._measured = self._clock()
        return right

    def sample(self) -> float | None:
        """The seconds of one of the last verifications; None if none is known any more."""
        if not self._samples or self._clock() - self._measured > self.good_for:
            return None
        return random.choice(self._samples)  # noqa: S311 - no secret


#: the verifications of this thread's hub: all listeners of a process share their threads
verifications_of_this_hub = PerHub("verifications", Verifications).get
