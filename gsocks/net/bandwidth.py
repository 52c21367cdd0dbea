"""Bandwidth limits: a token bucket, and a Stream that waits for its tokens.

Tokens are taken before the bytes pass on, and a stream that takes more than there are owes them:
its wait is as long as the bucket needs to fill its debt.  So the streams that share a bucket pass
in the order in which they took, and many short connections get no more than one long one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from gsocks.stream import (
    NOTHING,
    Blocking,
    Bytes,
    ScratchBuffers,
    Stream,
    StreamOver,
    Wait,
)

#: seconds of its rate that gather in an unused bucket: a page comes at full speed
BURST_SECONDS = 1.0

#: seconds of a rate that pass at once.  A slow stream moves in small steps: neither its ends nor
#: the relay's timers take it for dead, and the streams that share a bucket have their turns.
STEP_SECONDS = 0.1

#: bytes that are not divided any further
MIN_STEP = 1024


class Bucket:
    """Tokens for bytes, which come at ``rate`` a second; no more than ``burst`` gather.

    ``clock`` returns monotonic seconds.  The bucket is full at first.
    """

    __slots__ = ("_burst", "_clock", "_then", "_tokens", "carried", "rate")

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
        #: all bytes for which tokens were taken
        self.carried = 0

    @property
    def owes(self) -> bool:
        """Whether more tokens were taken than there were, as of the last time."""
        return self._tokens < 0

    def change(self, rate: float) -> None:
        """Fill at another rate from now on, and have no more than a second of it at hand."""
        self.take(0)
        self.rate, self._burst = rate, rate * BURST_SECONDS
        self._tokens = min(self._tokens, self._burst)

    def take(self, count: int) -> float:
        """Take tokens for ``count`` bytes; returns the seconds after which these may pass."""
        now = self._clock()
        gathered = min(self._burst, self._tokens + (now - self._then) * self.rate)
        self._tokens = gathered - count
        self._then = now
        self.carried += count
        return max(0.0, -self._tokens / self.rate)


class LimitedStream(StreamOver):
    """A :class:`gsocks.stream.Stream` that takes tokens for all that it carries; owns ``stream``.

    ``reads`` and ``writes`` are the buckets of each direction, one or more; the slowest counts.
    ``whole``: nothing is divided, because each read and each write is a datagram.
    """

    __slots__ = (
        "_charged",
        "_flushing",
        "_held",
        "_read_time",
        "_reads",
        "_step",
        "_unsent",
        "_write_time",
        "_writes",
    )

    def __init__(
        self,
        stream: Stream,
        reads: Sequence[Bucket],
        writes: Sequence[Bucket],
        *,
        whole: bool = False,
    ) -> None:
        super().__init__(stream)
        self._reads = reads
        self._writes = writes
        slowest = min(bucket.rate for bucket in (*reads, *writes))
        self._step = sys.maxsize if whole else max(MIN_STEP, int(slowest * STEP_SECONDS))
        #: read from the stream, and not returned yet; of that so much has its tokens, and may pass
        #: at that time, in monotonic seconds
        self._held = NOTHING
        self._charged = 0
        self._read_time = 0.0
        #: taken to be written, and not passed on yet; the next step has its tokens, and may pass
        #: at that time
        self._unsent = NOTHING
        self._write_time = 0.0
        #: whether the stream has taken a step that it could not send at once
        self._flushing = False

    def __repr__(self) -> str:
        return f"<LimitedStream: {self._stream!r} in steps of {self._step} bytes>"

    # --- reading ------------------------------------------------------------------------------

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        stream = self._open_stream()
        if self._charged:
            return None if time.monotonic() < self._read_time else self._release_step()
        data: Bytes | None = self._held or stream.read_nowait(scratch)
        if not data:
            return data
        step = data[: self._step]
        seconds = _take(self._reads, len(step))
        if not seconds and len(step) == len(data):
            self._held = NOTHING
            return data
        if not self._held:
            self._held = memoryview(bytes(data))
        self._charged = len(step)
        self._read_time = time.monotonic() + seconds
        return None if seconds else self._release_step()

    def _release_step(self) -> Bytes:
        step, self._held = self._held[: self._charged], self._held[self._charged :]
        self._charged = 0
        return step

    @property
    def read_wait(self) -> Wait:
        if self._charged:
            return Wait(0, self._read_time - time.monotonic())
        return self._open_stream().read_wait

    @property
    def has_buffered(self) -> bool:
        return bool(self._held) or self._open_stream().has_buffered

    @property
    def has_prefetched(self) -> bool:
        return bool(self._held) or self._open_stream().has_prefetched

    # --- writing ------------------------------------------------------------------------------

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        stream = self._open_stream()
        step = data[: self._step]
        seconds = _take(self._writes, len(step))
        if not seconds and len(step) == len(data):
            self._flushing = not stream.write_nowait(data, scratch)
            return not self._flushing
        self._unsent = memoryview(bytes(data))
        self._write_time = time.monotonic() + seconds
        return not seconds and self.flush_nowait(scratch)

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        stream = self._open_stream()
        if self._flushing and not stream.flush_nowait(scratch):
            return False
        self._flushing = False
        while self._unsent:
            if time.monotonic() < self._write_time:
                return False
            step, self._unsent = self._unsent[: self._step], self._unsent[self._step :]
            self._charge_next_step()
            if not stream.write_nowait(step, scratch):
                self._flushing = True
                return False
        return True

    def _charge_next_step(self) -> None:
        if self._unsent:
            seconds = _take(self._writes, len(self._unsent[: self._step]))
            self._write_time = time.monotonic() + seconds

    @property
    def write_wait(self) -> Wait:
        if self._flushing:
            return self._open_stream().write_wait
        return Wait(0, self._write_time - time.monotonic())

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        self._flushing = not self._open_stream().write_eof_nowait(scratch)
        return not self._flushing

    # --- the end ------------------------------------------------------------------------------

    def abort(self) -> None:
        if (stream := self._release()) is not None:
            stream.abort()

    def close(self) -> None:
        held = bool(self._held)
        if (stream := self._release()) is not None:
            if held:
                stream.abort()
            else:
                stream.close()

    def _release(self) -> Blocking | None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._held = self._unsent = NOTHING
            self._charged = 0
            self._wake()
        return stream


def _take(buckets: Sequence[Bucket], count: int) -> float:
    """Tokens from each, also where another bucket makes the bytes wait longer."""
    return max([bucket.take(count) for bucket in buckets])
