"""One direction of a relay, carried by the hub.

    source  --- readable ->  read_nowait  -> write_nowait ---  sink
                             flush_nowait <- writable ---      if it could not take all at once

No greenlet waits for anything: the event loop calls whenever there is something to read, and what
there is goes on at once.  While a sink has no room nothing is read, which is the backpressure.  An
idle direction is one watcher, so thousands of them cost little more than their sockets.

One call carries one chunk: then others have their turn.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakKeyDictionary

import gevent
from gevent.hub import Hub

from gsocks.errors import StreamClosed, StreamError
from gsocks.stream import Pollable, Workbench

_READ, _WRITE = 1, 2

#: of each thread's hub
_benches: WeakKeyDictionary[Hub, Workbench] = WeakKeyDictionary()


class Carrier(Protocol):
    """Whose bytes these are.  None of its calls may block."""

    def passed(self, source: int, count: int) -> None:
        """So many bytes from that side are on their way; 0: some, which are counted later."""

    def ended(self) -> None:
        """One direction has come to its end, which has been passed on."""

    def failed(self, error: StreamError, side: int | None) -> None:
        """That side has failed, or we.  Stops both directions."""


class Pump:
    """Carries bytes from the stream of one side to that of the other, until it ends.

    ``sides``: the two streams; ``source``: the index of the one that is read from.
    """

    __slots__ = ("_bench", "_carrier", "_readable", "_sides", "_source", "_taken", "_writable")

    def __init__(self, carrier: Carrier, sides: tuple[Pollable, Pollable], source: int) -> None:
        self._carrier = carrier
        self._sides = sides
        self._source = source
        self._bench = bench_of_this_hub()
        #: watches the source; None when the pump has stopped
        self._readable: Any = None
        #: watches the sink while it has taken more than it could send: so many bytes
        self._writable: Any = None
        self._taken = 0

    def start(self) -> None:
        """Begin with what has come together with something before the stream."""
        source = self._sides[self._source]
        try:
            fd = source.fileno()
        except StreamError as error:
            self._carrier.failed(error, self._source)
            return
        self._readable = gevent.get_hub().loop.io(fd, _READ)
        self._readable.start(self._carry)
        if source.read_ahead:  # else the event loop will tell
            self._carry()

    def stop(self) -> None:
        """Carry nothing any more.  Does nothing the second time."""
        for watcher in (self._readable, self._writable):
            if watcher is not None:
                watcher.close()
        self._readable = self._writable = None

    def _carry(self) -> None:
        """Pass on what there is.  Runs in the hub, when the source has something."""
        source, sink = self._sides[self._source], self._sides[1 - self._source]
        at_work = self._source
        try:
            data = source.read_nowait(self._bench)
            while data is not None:
                at_work = 1 - self._source
                self._taken = len(data)
                if data:
                    all_sent = sink.write_nowait(data, self._bench)
                else:
                    all_sent = sink.write_eof_nowait(self._bench)
                if not all_sent:
                    self._wait_for_room(sink)
                    return
                if not self._passed() or not source.at_hand:
                    return
                at_work = self._source
                data = source.read_nowait(self._bench)
        except StreamError as error:
            self._carrier.failed(error, at_work)
        except BaseException:  # a fault of ours: nobody may wait for us
            self._carrier.failed(StreamClosed("stopped"), None)
            raise

    def _wait_for_room(self, sink: Pollable) -> None:
        self._readable.stop()
        self._writable = gevent.get_hub().loop.io(sink.fileno(), _WRITE)
        self._writable.start(self._flush)

    def _flush(self) -> None:
        """Send more of what the sink has taken.  Runs in the hub, when it has room again."""
        try:
            if not self._sides[1 - self._source].flush_nowait():
                self._carrier.passed(self._source, 0)
                return
        except StreamError as error:
            self._carrier.failed(error, 1 - self._source)
            return
        self._read_on()
        if self._passed() and self._sides[self._source].at_hand:
            self._carry()

    def _read_on(self) -> None:
        """The sink has room again."""
        self._writable.close()
        self._writable = None
        self._readable.start(self._carry)

    def _passed(self) -> bool:
        """All that was taken is on its way; whether more may come."""
        if self._taken:
            self._carrier.passed(self._source, self._taken)
            return True
        self.stop()
        self._carrier.ended()
        return False


def bench_of_this_hub() -> Workbench:
    """Where everything lies that this thread's hub carries."""
    hub = gevent.get_hub()
    bench = _benches.get(hub)
    if bench is None:
        bench = _benches[hub] = Workbench()
    return bench
