"""So many bytes a second: a token bucket, and a Stream that waits for its tokens.

Tokens are taken before the bytes pass on, and whoever takes more than there are owes them: its
wait is as long as the bucket needs to fill its debt.  So those who share a bucket pass in the
order in which they came, and many short connections get no more than one long one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from gevent.event import Event

from gsocks.errors import StreamClosed
from gsocks.stream import Stream

#: seconds of its rate that gather in a bucket which nobody uses: a page comes at full speed
BURST_SECONDS = 1.0

#: seconds of a rate that pass at once.  A slow stream moves in small steps: neither its ends nor
#: the relay's timers take it for dead, and those who share a bucket have their turns.
STEP_SECONDS = 0.1

#: bytes that are no more divided
SMALLEST_STEP = 1024


class Bucket:
    """Tokens for bytes, which come at ``rate`` a second; no more than ``burst`` gather.

    ``clock`` tells monotonic seconds.  It is full at first.
    """

    __slots__ = ("_burst", "_clock", "_then", "_tokens", "rate")

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._burst = rate * BURST_SECONDS if burst is None else burst
        self._clock = clock
        self._tokens = self._burst
        self._then = clock()

    def take(self, count: int) -> float:
        """Take tokens for ``count`` bytes; the seconds after which these may pass."""
        now = self._clock()
        gathered = min(self._burst, self._tokens + (now - self._then) * self.rate)
        self._tokens = gathered - count
        self._then = now
        return max(0.0, -self._tokens / self.rate)


class LimitedStream:
    """A :class:`gsocks.stream.Stream` that takes tokens for all that it carries; owns ``stream``.

    ``reads`` and ``writes`` are the buckets of each direction, one or more; the slowest counts.
    ``whole``: nothing is divided, because each read and each write is a datagram.
    """

    __slots__ = ("_held", "_reads", "_released", "_step", "_stream", "_writes")

    def __init__(
        self,
        stream: Stream,
        reads: Sequence[Bucket],
        writes: Sequence[Bucket],
        *,
        whole: bool = False,
    ) -> None:
        self._stream = stream
        self._reads = reads
        self._writes = writes
        slowest = min(bucket.rate for bucket in (*reads, *writes))
        self._step = sys.maxsize if whole else max(SMALLEST_STEP, int(slowest * STEP_SECONDS))
        #: read from the stream, and not yet handed out
        self._held = b""
        #: wakes those who wait for their tokens
        self._released = Event()

    def read(self) -> bytes:
        data = self._held or self._stream.read()
        data, self._held = data[: self._step], data[self._step :]
        if data:
            self._wait(self._reads, len(data))
        return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), self._step):
            part = data[start : start + self._step]
            self._wait(self._writes, len(part))
            self._stream.write(part)

    def write_eof(self) -> None:
        self._stream.write_eof()

    def abort(self) -> None:
        self._release()
        self._stream.abort()

    def close(self) -> None:
        self._release()
        self._stream.close()

    def _release(self) -> None:
        self._held = b""
        self._released.set()

    def _wait(self, buckets: Sequence[Bucket], count: int) -> None:
        # from each, also where another one makes us wait longer
        seconds = max([bucket.take(count) for bucket in buckets])
        if seconds > 0 and self._released.wait(seconds):
            raise StreamClosed("closed at this end")
