"""From socket to socket inside the kernel: bytes that nobody looks at need not come to us.

    source  --- splice ->  a pipe  --- splice ->  sink

The pages that the source has received are handed on to the sink.  That costs less than half of
copying them if there are many at a time, and more if there are few: so a pump copies until it has
found much at once, and again when it finds little.  Between two calls the pipe is empty, and
anybody may use it; only while a sink has no room for all of it does its pump keep it.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple
from weakref import WeakKeyDictionary

import gevent
from gevent.hub import Hub

from gsocks.errors import StreamError, stream_failure
from gsocks.pump import Carrier, Pump
from gsocks.stream import CHUNK, Pollable, SocketStream

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

    __slots__ = ("_empty", "_in_use")

    def __init__(self) -> None:
        self._empty: list[Pipe] = []
        self._in_use = 0

    def take(self) -> Pipe | None:
        """An empty pipe; None if there are too many."""
        if not self._empty:
            if self._in_use >= MAX_PIPES:
                return None
            try:
                self._empty.append(Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)))
                fcntl.fcntl(self._empty[-1].into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:  # no descriptor, or no more memory for this user's pipes
                if not self._empty:
                    return None
        self._in_use += 1
        return self._empty.pop()

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """A pipe that is not used any more."""
        self._in_use -= 1
        if empty:
            self._empty.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close those that are empty; others are made when they are needed."""
        while self._empty:
            self._empty.pop().close()


#: of each thread's hub
_pipes: WeakKeyDictionary[Hub, Pipes] = WeakKeyDictionary()


def pipes_of_this_hub() -> Pipes:
    return _pipes.setdefault(gevent.get_hub(), Pipes())


class SplicePump(Pump):
    """A :class:`gsocks.pump.Pump` between two sockets."""

    __slots__ = ("_much", "_pipe")

    def __init__(self, carrier: Carrier, sides: tuple[Pollable, Pollable], source: int) -> None:
        super().__init__(carrier, sides, source)
        #: whether the source had much to give when it was asked last
        self._much = False
        #: what holds the rest while the sink has no room for it
        self._pipe: Pipe | None = None

    def stop(self) -> None:
        super().stop()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipes_of_this_hub().give_back(pipe, empty=False)

    def _carry(self) -> None:
        pipe = pipes_of_this_hub().take() if self._much else None
        if pipe is not None:
            self._pipe = pipe
            self._carry_through(pipe)
        else:
            self._taken = 0
            super()._carry()
            self._much = self._taken >= CHUNK

    def _carry_through(self, pipe: Pipe) -> None:
        try:
            self._taken = _splice(self._sides[self._source].fileno(), pipe.into, PIPE_SIZE)
        except StreamError as error:
            self._carrier.failed(error, self._source)
            return
        # an end looks like nothing here, and is told when it is copied
        self._much = self._taken >= CHUNK
        if not self._empty(pipe) and self._pipe is not None:
            self._wait_for_room(self._sides[1 - self._source])

    def _flush(self) -> None:
        if self._pipe is None:
            super()._flush()
        elif self._empty(self._pipe):
            self._read_on()

    def _empty(self, pipe: Pipe) -> bool:
        """Pass on what is in the pipe; whether that was all.  If the sink fails, all is over."""
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


def pump_between(carrier: Carrier, sides: tuple[Pollable, Pollable], source: int) -> Pump:
    """The pump for these two streams."""
    sockets = all(isinstance(stream, SocketStream) for stream in sides)
    return (SplicePump if sockets else Pump)(carrier, sides, source)
