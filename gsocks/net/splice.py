"""Splices bytes from socket to socket inside the kernel, where the program need not read them.

    source  --- splice ->  a pipe  --- splice ->  sink

The pages that the source has received are handed on to the sink.  That costs less than half of
copying them if there are many at a time, and more if there are few: so a pump copies until it has
read a full chunk at once, and again after a smaller one.  Between two calls the pipe is empty, and
any pump may use it; a pump keeps it only while its sink has no room for all bytes.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from gsocks.errors import StreamError, stream_failure
from gsocks.net.pump import Carrier, Pump
from gsocks.per_hub import PerHub
from gsocks.stream import CHUNK, NonblockingStream

#: bytes in a pipe: what an unprivileged user may ask for, and enough to be worth it
PIPE_SIZE = 1024 * 1024
#: pipes of one hub, most of which belong to sinks that have no room; beyond, bytes are copied
MAX_PIPES = 32

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe(NamedTuple):
    """A pipe, by its descriptors."""

    out: int
    into: int

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


class Pipes:
    """The empty pipes of a hub, and how many others are in use."""

    __slots__ = ("_empty", "in_use")

    def __init__(self) -> None:
        self._empty: list[Pipe] = []
        #: pipes that were taken and not given back
        self.in_use = 0

    def take(self) -> Pipe | None:
        """An empty pipe; None if MAX_PIPES are in use, or the system gives no more."""
        if not self._empty:
            if self.in_use >= MAX_PIPES:
                return None
            try:
                self._empty.append(Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)))
                fcntl.fcntl(self._empty[-1].into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:  # no descriptor, or no more memory for this user's pipes
                if not self._empty:
                    return None
        self.in_use += 1
        return self._empty.pop()

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Return a pipe; one that is not empty is closed."""
        self.in_use -= 1
        if empty:
            self._empty.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close the empty pipes; new ones are made when they are needed."""
        while self._empty:
            self._empty.pop().close()


pipes_of_this_hub = PerHub("pipes", Pipes).get


class SplicePump(Pump):
    """A :class:`gsocks.net.pump.Pump` between two sockets."""

    __slots__ = ("_bulk", "_pipe")

    def __init__(
        self, carrier: Carrier, sides: tuple[NonblockingStream, NonblockingStream], source: int
    ) -> None:
        super().__init__(carrier, sides, source)
        #: True if the last read of the source gave at least a chunk
        self._bulk = False
        #: holds the rest while the sink has no room for it
        self._pipe: Pipe | None = None

    def stop(self) -> None:
        super().stop()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipes_of_this_hub().give_back(pipe, empty=False)

    def on_bulk(self) -> None:
        if not self._bulk:
            self._bulk = True
            self._readable.callback = self._carry_bulk

    def _resume(self) -> None:
        self._readable.start(self._carry_bulk if self._bulk else self)

    def _carry_bulk(self) -> None:
        """As ``_carry``, which has read a whole chunk the last time."""
        pipe = pipes_of_this_hub().take()
        if pipe is None:
            self._taken = 0
            self._carry()
            self._bulk = self._taken >= CHUNK
        else:
            self._pipe = pipe
            self._carry_through(pipe)
        if not self._bulk and self._readable is not None:
            self._readable.callback = self

    def _carry_through(self, pipe: Pipe) -> None:
        try:
            self._taken = _splice(self._sides[self._source].fileno(), pipe.into, PIPE_SIZE)
        except StreamError as error:
            self._carrier.failed(error, self._source)
            return
        # EOF gives 0 bytes here, as no data does; the next read, which copies, tells them apart
        self._bulk = self._taken >= CHUNK
        if not self._empty(pipe) and self._pipe is not None:
            sink = self._sides[1 - self._source]
            self._wait_for(sink, sink.write_wait, self._flush)

    def _flush(self) -> None:
        if self._pipe is None:
            super()._flush()
        elif self._empty(self._pipe):
            self._stop_waiting()
            self._resume()

    def _empty(self, pipe: Pipe) -> bool:
        """Pass on what is in the pipe; True if it is empty then.  A failed sink ends the relay."""
        try:
            sent = _splice(pipe.out, self._sides[1 - self._source].fileno(), self._taken)
        except StreamError as error:
            self._carrier.failed(error, 1 - self._source)
            return False
        self._taken -= sent
        self._carrier.passed(self._source, sent)
        if self._taken:
            return False
        self._pipe = None
        pipes_of_this_hub().give_back(pipe, empty=True)
        return True


def _splice(source: int, sink: int, count: int) -> int:
    """Move up to ``count`` bytes; how many, 0 if none can be moved now.  Raises StreamError."""
    if not count:
        return 0
    try:
        return os.splice(source, sink, count, flags=_FLAGS)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise stream_failure(error) from None
