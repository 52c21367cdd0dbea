"""Look-ups of names that are under way, and what one client may have of them.

A name server may leave a name unanswered, and a client may ask for any number of such names.  So a
client begins no more than its share of look-ups in a second; those beyond it wait.  When there are
too many in all, the oldest one makes room of the client that has most.  A look-up that no request
waits for ends, but not in its first second: else a client that asks and leaves could have name
servers asked at any rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import Event

from gsocks.access.per_client import PerClient
from gsocks.errors import ConnectFailed, LimitReached

T = TypeVar("T")


class _LookUp(Generic[T]):
    """One name's look-up, which any number of greenlets wait for."""

    __slots__ = (
        "done",
        "evicted",
        "failure",
        "greenlet",
        "kept",
        "name",
        "old",
        "owner",
        "result",
        "timer",
        "waiting",
    )

    def __init__(self, name: str, owner: Hashable) -> None:
        self.name = name
        #: the client that asked first
        self.owner = owner
        #: the greenlets that wait for it
        self.waiting = 0
        #: whether it goes on though none waits
        self.kept = False
        #: None while it waits for its turn
        self.greenlet: gevent.Greenlet[[_LookUp[T]], None] | None = None
        #: whether it has lasted so long that it counts no more for its client's share, and when
        #: that is
        self.old = False
        self.timer: Any = None
        self.done = Event()
        self.result: T | None = None
        self.failure: BaseException | None = None
        self.evicted = False


class LookUps(Generic[T]):
    """Runs look-ups, one at a time for each name.

    ``run`` looks a name up, for a client, in a greenlet of its own, and is killed if no request
    waits any more.
    """

    #: names of one client that wait for its other ones; further ones are refused
    max_waiting = 1024

    __slots__ = (
        "_by_name",
        "_most",
        "_per_client",
        "_run",
        "_running",
        "_waiting",
        "_young",
        "young",
    )

    def __init__(self, run: Callable[[str, Hashable], T], most: int, per_client: int) -> None:
        """``most``: look-ups at a time; ``per_client``: those of one client that are young."""
        self._run = run
        self._most = most
        self._per_client = per_client
        #: seconds for which a look-up counts for its client's share, and goes on though no request
        #: waits for it
        self.young = 1.0
        self._by_name: dict[str, _LookUp[T]] = {}
        self._running: PerClient[Hashable, _LookUp[T]] = PerClient()
        #: how many of them are young, by client
        self._young: Counter[Hashable] = Counter()
        #: those that wait for their turn
        self._waiting: PerClient[Hashable, _LookUp[T]] = PerClient()

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"<LookUps: {len(self._running)} running, {len(self._waiting)} waiting>"

    def get(self, name: str, owner: Hashable) -> T:
        """What ``run(name, owner)`` returns, for the client ``owner``.

        Raises LimitReached, and what ``run`` raises.
        """
        look_up = self._wait(name, owner, None)
        return look_up.result  # type: ignore[return-value] # it has ended

    def get_within(self, seconds: float, name: str, owner: Hashable) -> T | None:
        """The same; None once that takes longer.  It goes on then, though no request waits."""
        return self._wait(name, owner, seconds).result

    def _wait(self, name: str, owner: Hashable, seconds: float | None) -> _LookUp[T]:
        while True:
            look_up = self._by_name.get(name)
            if look_up is None:
                look_up = self._begin(name, owner)
            self._wait_for(look_up, seconds)
            if not look_up.evicted:
                return look_up
            if look_up.owner == owner:
                raise LimitReached(f"{name}: too many other names are being looked up")
            # another client's, which had to make room: it is looked up for this one now

    def _wait_for(self, look_up: _LookUp[T], seconds: float | None) -> None:
        look_up.waiting += 1
        try:
            look_up.done.wait(seconds)
        finally:
            look_up.waiting -= 1
            look_up.kept |= seconds is not None
            if look_up.old or look_up.greenlet is None:
                self._end_unless_wanted(look_up)
        failure = look_up.failure
        if failure is not None:
            # a new error for each request: a shared one would collect the tracebacks of all
            raise type(failure)(*failure.args)

    # --- beginning ------------------------------------------------------------------------------

    def _begin(self, name: str, owner: Hashable) -> _LookUp[T]:
        look_up: _LookUp[T] = _LookUp(name, owner)
        if self._has_share(owner) and (len(self._running) < self._most or self._make_room(owner)):
            self._start(look_up)
        elif self._waiting.count(owner) < self.max_waiting:
            self._waiting.add(owner, look_up)
        else:
            raise LimitReached(f"{name}: too many other names are being looked up")
        self._by_name[name] = look_up
        return look_up

    def _start(self, look_up: _LookUp[T]) -> None:
        self._running.add(look_up.owner, look_up)
        self._young[look_up.owner] += 1
        look_up.timer = gevent.get_hub().loop.timer(self.young)
        look_up.timer.start(self._grow_old, look_up)
        look_up.greenlet = gevent.spawn(self._run_one, look_up)

    def _make_room(self, owner: Hashable) -> bool:
        """End the oldest look-up of the client that has most; False if that is ``owner`` itself."""
        oldest = next(self._running.held_by_most(owner))
        if oldest.owner == owner:
            return False
        oldest.evicted = True
        self._forget(oldest)
        oldest.done.set()
        return True

    def _run_one(self, look_up: _LookUp[T]) -> None:
        try:
            look_up.result = self._run(look_up.name, look_up.owner)
        except gevent.GreenletExit:
            raise  # nothing waits for it any more, or it made room
        except BaseException as error:
            look_up.failure = error
            if not isinstance(error, ConnectFailed):
                raise
        finally:
            self._end(look_up)
            look_up.done.set()

    # --- ending ---------------------------------------------------------------------------------

    def _grow_old(self, look_up: _LookUp[T]) -> None:
        look_up.old = True
        self._discount(look_up)
        self._end_unless_wanted(look_up)
        self._start_waiting()

    def _end_unless_wanted(self, look_up: _LookUp[T]) -> None:
        if not (look_up.waiting or look_up.kept):
            self._end(look_up)

    def _end(self, look_up: _LookUp[T]) -> None:
        self._forget(look_up)
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Give free places to those that wait for one: to the client first that has least."""
        while len(self._running) < self._most:
            owners = [owner for owner in self._waiting.clients() if self._has_share(owner)]
            if not owners:
                return
            owner = min(owners, key=self._running.count)
            following = next(self._waiting.held_by(owner))
            self._waiting.remove(owner, following)
            self._start(following)

    def _has_share(self, owner: Hashable) -> bool:
        return self._young[owner] < self._per_client

    def _forget(self, look_up: _LookUp[T]) -> None:
        """It runs no more and waits no more.  Does nothing the second time."""
        if self._by_name.get(look_up.name) is not look_up:
            return
        del self._by_name[look_up.name]
        greenlet = look_up.greenlet
        if greenlet is None:
            self._waiting.remove(look_up.owner, look_up)
            return
        self._running.remove(look_up.owner, look_up)
        look_up.timer.close()
        if not look_up.old:
            self._discount(look_up)
        if greenlet is not gevent.getcurrent():
            greenlet.kill(block=False)

    def _discount(self, look_up: _LookUp[T]) -> None:
        """It is young no more."""
        self._young[look_up.owner] -= 1
        if not self._young[look_up.owner]:
            del self._young[look_up.owner]
