"""Greenlets for probes of exits, of which few ask the same host at a time.

A list may name one host thousands of times: a provider's gateway with a login for each exit, or a
host that its author wants to see flooded.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TypeAlias

from gevent.pool import Pool

from gsocks.exits.spec import ExitSpec
from gsocks.rotation.roster import Member

_Probe: TypeAlias = Callable[[Member], None]


class ProbePool:
    """At most ``size`` probes at a time, and ``per_host`` of exits at one host."""

    def __init__(self, size: int, per_host: int = 16) -> None:
        self._pool = Pool(size)
        self._per_host = per_host
        self._running: Counter[str] = Counter()
        #: probes that wait for others of their host
        self._waiting: dict[str, deque[tuple[_Probe, Member]]] = {}

    def spawn(self, probe: _Probe, member: Member) -> None:
        """Run ``probe`` in a greenlet, now or after others of its host.

        Blocks while the pool is full.
        """
        host = _host_of(member)
        if host is None:
            self._pool.spawn(probe, member)
        elif self._running[host] >= self._per_host:
            self._waiting.setdefault(host, deque()).append((probe, member))
        else:
            self._running[host] += 1
            self._pool.spawn(self._run, host, probe, member)

    def kill(self) -> None:
        """End those that run, and begin none of those that wait.  Never blocks."""
        self._waiting.clear()
        self._running.clear()  # one that has not begun yet will not tell of its end
        self._pool.kill(block=False)

    def _run(self, host: str, probe: _Probe, member: Member) -> None:
        try:
            probe(member)
            while waiting := self._waiting.get(host):
                following, member = waiting.popleft()
                if not waiting:
                    del self._waiting[host]
                following(member)
        finally:
            self._running[host] -= 1
            if self._running[host] <= 0:
                del self._running[host]


def _host_of(member: Member) -> str | None:
    """The host of an exit; None if it has none."""
    return member.key.host or None if isinstance(member.key, ExitSpec) else None
