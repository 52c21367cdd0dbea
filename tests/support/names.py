"""A DNS without a network: name look-ups from a table, and a clock for the resolver's cache."""

from __future__ import annotations

import gc
import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import greenlet
from gevent.event import Event

from gsocks.address import IPAddress
from gsocks.dns.query import Found
from gsocks.errors import ConnectFailed

#: what a table has for a name that does not exist
NO_SUCH_NAME: Sequence[str] = ()


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


class Names:
    """A source of names that answers from a table, records the names, and can be held back.

    The table's names are given as arguments, with ``_`` for each dot.  Answers have a TTL of
    ``ttl`` seconds, and are found for complete names only, with ``search`` as search domains.
    """

    def __init__(self, **answers: Sequence[str] | ConnectFailed) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.ttl: float | None = 60.0
        self.search: tuple[str, ...] = ()
        #: how often the system's files have changed
        self.changes = 0
        #: the names that were looked up
        self.queried: list[str] = []
        #: set when a look-up has begun
        self.querying = Event()
        #: no look-up returns while it is not set
        self.go_on = Event()
        self.go_on.set()

    def refresh(self) -> int:
        return self.changes

    def close(self) -> None:
        pass

    def names_of(self, host: str) -> tuple[str, ...]:
        return (*(f"{host}.{domain}" for domain in self.search), host)

    def look_up(self, name: str) -> Found:
        self.queried.append(name)
        self.querying.set()
        self.go_on.wait()
        return Found(tuple(dict.fromkeys(ips(*self._answer(name)))), self.ttl)

    def reverse(self, ip: IPAddress) -> Found:
        self.queried.append(str(ip))
        return Found((), self.ttl, tuple(self._answer(str(ip))))

    def _answer(self, name: str) -> Sequence[str]:
        answer = self.answers[name]
        if isinstance(answer, ConnectFailed):
            raise answer
        return answer


class NamesBy:
    """A source of names that has their addresses from ``function``, which may raise ConnectFailed.

    No addresses are no such name.
    """

    def __init__(self, function: Callable[[str], Sequence[str]]) -> None:
        self._function = function

    def refresh(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def names_of(self, host: str) -> tuple[str, ...]:
        return (host,)

    def look_up(self, name: str) -> Found:
        return Found(ips(*self._function(name)), 60.0)

    def reverse(self, ip: IPAddress) -> Found:
        return Found((), 60.0, tuple(self._function(str(ip))))


class Clock:
    """Monotonic seconds that stand still until a test adds to them."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def nothing_left() -> Iterator[None]:
    """The block leaves no descriptor and no greenlet behind."""

    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    def greenlets() -> set[int]:
        gc.collect()
        return {
            id(thing)
            for thing in gc.get_objects()
            if isinstance(thing, greenlet.greenlet) and not thing.dead
        }

    before = descriptors(), greenlets()
    yield
    # fewer than before if an earlier test was still closing some
    assert set(descriptors()) <= set(before[0])
    assert greenlets() <= before[1]
