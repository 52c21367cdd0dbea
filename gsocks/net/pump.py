"""One direction of a relay, carried by the hub.

    source  --- read_wait is over ->  read_nowait  -> write_nowait ----------  sink
                                      flush_nowait <- write_wait is over ----  if not all was sent

No greenlet waits for anything: the event loop calls when the source is readable, and the bytes
that have arrived go on at once.  While a sink has no room nothing is read, which is the
backpressure.  An idle direction is one watcher, so thousands of them cost little more than their
sockets.

One call carries one chunk: then other connections have their turn.  Where more has been received
than one chunk, the call goes on until the turn is over (gsocks/turns.py), and another one in the
next turn.
"""

from __future__ import annotations

from typing import Any, Protocol

from gsocks.errors import StreamClosed, StreamError
from gsocks.stream import (
    CHUNK,
    NEXT_TURN,
    READABLE,
    NonblockingStream,
    Wait,
    scratch_of_this_hub,
    watch,
)
from gsocks.turns import turn_is_over


class Carrier(Protocol):
    """The owner of the bytes, to which a pump reports.  None of its calls may block."""

    def passed(self, source: int, count: int) -> None:
        """So many bytes from that side have been sent; 0: some, which are counted later."""

    def ended(self) -> None:
        """One direction has come to its end, which has been passed on."""

    def failed(self, error: StreamError, side: int | None) -> None:
        """That side has failed, or gsocks itself (None).  Stops both directions."""


class Pump:
    """Carries bytes from the stream of one side to that of the other, until it ends.

    ``sides``: the two streams; ``source``: the index of the one that is read from.
    """

    __slots__ = (
        "_carrier",
        "_readable",
        "_scratch",
        "_sides",
        "_source",
        "_taken",
        "_wait",
        "_watchers",
    )

    def __init__(
        self, carrier: Carrier, sides: tuple[NonblockingStream, NonblockingStream], source: int
    ) -> None:
        self._carrier = carrier
        self._sides = sides
        self._source = source
        self._scratch = scratch_of_this_hub()
        #: watches the source; None when the pump has stopped
        self._readable: Any = None
        #: bytes that the sink has taken; all of them have been sent when the source is read again
        self._taken = 0
        #: what it waits for while the source is not to be watched, and the watchers for that
        self._wait: Wait | None = None
        self._watchers: Any = ()

    def __repr__(self) -> str:
        if self._readable is None:
            state = "stopped"
        elif self._wait is None:
            state = "waits for its source"
        elif self._wait.seconds is not None:
            state = "waits for a time"
        else:
            state = f"waits for room for {self._taken} bytes"
        source, sink = self._sides[self._source], self._sides[1 - self._source]
        return f"<{type(self).__name__}: {source!r} -> {sink!r}, {state}>"

    def start(self) -> None:
        """Begin with the bytes that were received together with what was before the stream."""
        source = self._sides[self._source]
        try:
            self._readable = watcher = source.take_watcher()
        except StreamError as error:
            self._carrier.failed(error, self._source)
            return
        if watcher.active:
            watcher.callback, watcher.args = self, ()
        else:
            watcher.start(self)
        if source.has_prefetched:  # else the event loop calls
            self._carry()

    def take_over(self, watcher: Any) -> None:
        """Begin with an active watcher of the source, which has served another."""
        self._readable = watcher
        watcher.callback, watcher.args = self, ()

    def wait_for_room(self, taken: int) -> None:
        """Go on once the sink has sent all of the bytes that it has taken, which are so many."""
        self._taken = taken
        sink = self._sides[1 - self._source]
        self._wait_for(sink, sink.write_wait, self._flush)

    def stop(self) -> None:
        """Carry nothing any more.  Does nothing the second time."""
        if self._watchers:
            self._stop_waiting()
        if self._readable is not None:
            self._readable.close()
            self._readable = None

    def _carry(self) -> None:
        """Pass on what has arrived.  Runs in the hub, when the source has something."""
        sides, index, carrier, scratch = self._sides, self._source, self._carrier, self._scratch
        source, sink = sides[index], sides[1 - index]
        at_work = index
        try:
            while (data := source.read_nowait(scratch)) is not None:
                at_work = 1 - index
                self._taken = count = len(data)
                if count:
                    all_sent = sink.write_nowait(data, scratch)
                else:
                    all_sent = sink.write_eof_nowait(scratch)
                if count >= CHUNK:
                    self.on_bulk()
                if not all_sent:
                    self._wait_for(sink, sink.write_wait, self._flush)
                    return
                if not count:
                    at_work = index
                    watcher, self._readable = self._readable, None
                    source.watch_end(watcher, self)
                    carrier.ended()
                    return
                carrier.passed(index, count)
                if not source.has_buffered:
                    return
                if turn_is_over():
                    self._wait_for(source, NEXT_TURN, self._read_on)
                    return
                at_work = index
            if (wait := source.read_wait) is not READABLE:
                self._wait_for(source, wait, self._read_on)
        except StreamError as error:
            carrier.failed(error, at_work)
        except BaseException:  # a fault of gsocks: neither side may be left waiting
            carrier.failed(StreamClosed("stopped"), None)
            raise

    # what the watcher calls: the pump itself, which needs no bound method beside it
    __call__ = _carry

    def _end(self) -> None:
        """The end of the source has been passed on, as in ``_carry``."""
        watcher, self._readable = self._readable, None
        try:
            self._sides[self._source].watch_end(watcher, self)
        except StreamError as error:
            self._carrier.failed(error, self._source)
        else:
            self._carrier.ended()

    def broken(self, error: StreamError) -> None:
        """See :meth:`gsocks.stream.ReadsToTheEnd.broken`."""
        self._carrier.failed(error, self._source)

    def on_bulk(self) -> None:
        """A whole chunk has been read: from here on a kind of pump may carry more at once."""

    def _resume(self) -> None:
        """Watch the source again."""
        self._readable.start(self)

    def _read_on(self) -> None:
        """Read again.  Runs in the hub, when what the source waits for is there."""
        self._stop_waiting()
        self._resume()
        self._carry()

    def _flush(self) -> None:
        """Send more of what the sink has taken.  Runs in the hub, when it has room again."""
        sink = self._sides[1 - self._source]
        try:
            if not sink.flush_nowait(self._scratch):
                self._carrier.passed(self._source, 0)
                if self._wait is not (wait := sink.write_wait):
                    self._wait_for(sink, wait, self._flush)
                return
        except StreamError as error:
            self._carrier.failed(error, 1 - self._source)
            return
        except BaseException:
            self._carrier.failed(StreamClosed("stopped"), None)
            raise
        self._stop_waiting()
        self._resume()
        if not self._taken:
            self._end()
            return
        self._carrier.passed(self._source, self._taken)
        if self._sides[self._source].has_buffered:
            self._carry()

    def _wait_for(self, stream: NonblockingStream, wait: Wait, callback: Any) -> None:
        """Watch for that instead of the source."""
        self._readable.stop()
        self._stop_waiting()
        self._wait = wait
        self._watchers = watch(stream, wait, callback)

    def _stop_waiting(self) -> None:
        for watcher in self._watchers:
            watcher.close()
        self._watchers = ()
        self._wait = None
