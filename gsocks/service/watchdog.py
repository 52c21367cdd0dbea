"""Names the culprit of a turn of the loop that takes long, from a thread of its own.

While the turn goes on nothing else runs in the loop's thread, so only another thread can see what
it is at.  The thread looks every 50 ms whether a turn goes on, and sleeps while the loop is idle.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NamedTuple

import gsocks
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import ClientConnection
from gsocks.loop_lag import LONG_TURN, LoopLag
from gsocks.messages import plural
from gsocks.observe import Record
from gsocks.rotation.member import Member
from gsocks.rotation.sources import FileSource, UrlSource

log = logging.getLogger("gsocks.loop")

#: seconds between two looks; twice in the shortest turn that is reported
LOOK_EVERY = LONG_TURN / 2

#: seconds of a turn that is reported before it ends: it may never
STUCK = 5.0

#: seconds between two reports; turns that are long meanwhile are counted in the next one
REPORT_EVERY = 10.0

_PACKAGE = Path(gsocks.__file__).parent


class Sample(NamedTuple):
    """What a turn was at."""

    #: the turn's begin, by which it is known
    began: float
    culprit: str


class Watchdog:
    """Watches the loop of the thread that makes it; reports its long turns in the log."""

    def __init__(self) -> None:
        self.lag = LoopLag(self._turn_was_long)
        self._clock = self.lag.clock
        self._loop_thread = threading.get_ident()
        self._cpu_clock = time.pthread_getcpuclockid(self._loop_thread)
        #: CPU seconds of the loop's thread at the latest look that found no long turn
        self._cpu = 0.0
        self._sample = Sample(0.0, "")
        #: the begin of the turn that was reported before its end
        self._stuck_since = 0.0
        #: when the latest report was written, in monotonic seconds, and the turns since
        self._reported = -REPORT_EVERY
        self._unreported = 0
        self._stopping = False
        #: gets an item when a turn begins after the loop was idle
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gsocks-watchdog", daemon=True)

    def start(self) -> None:
        """Measure and watch from here on."""
        self.lag.start()
        self._thread.start()

    def stop(self) -> None:
        """Measure no more, and end the thread."""
        self.lag.stop()
        self._stopping = True
        self._wake.put(None)
        self._thread.join()

    # --- in the loop's thread -----------------------------------------------------------------

    def _turn_was_long(self, seconds: float) -> None:
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY:
            self._unreported += 1
            return
        sample, others, self._unreported = self._sample, self._unreported, 0
        self._reported = now
        seen = sample.began == self._clock.began
        log.warning(
            "event loop blocked for %.0f ms (%.0f ms of CPU): %s%s",
            1000 * seconds,
            1000 * min(seconds, max(0.0, time.thread_time() - self._cpu)),
            sample.culprit if seen else "unknown",
            f" ({plural(others, 'other time')} since the last report)" if others else "",
        )

    # --- in the thread of the watchdog --------------------------------------------------------

    def _run(self) -> None:
        # a signal that comes here would not wake the loop's thread
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        seen = 0.0
        while not self._stopping:
            began = self._clock.began
            if began > self.lag.ended and time.perf_counter() - began >= LOOK_EVERY:
                self._look_at(began)
            else:
                self._cpu = time.clock_gettime(self._cpu_clock)
                if began == seen and began <= self.lag.ended:
                    self._sleep_while_idle(began)
            seen = began
            try:
                self._wake.get(timeout=LOOK_EVERY)
            except Empty:
                continue

    def _sleep_while_idle(self, began: float) -> None:
        self._clock.wake = lambda: self._wake.put(None)
        if self._clock.began == began:  # else a turn may have begun without the call
            self._wake.get()

    def _look_at(self, began: float) -> None:
        seconds = time.perf_counter() - began
        stuck = seconds >= STUCK and self._stuck_since != began
        if self._sample.began == began and not stuck:
            return
        culprit = culprit_of(sys._current_frames().get(self._loop_thread))
        if self._clock.began != began:
            return  # the turn has ended meanwhile
        self._sample = Sample(began, culprit)
        if stuck:
            self._stuck_since = began
            log.error("event loop blocked for %.0f s and still is: %s", seconds, culprit)


# --- what a frame is at -----------------------------------------------------------------------


def culprit_of(frame: FrameType | None) -> str:
    """Where in gsocks a thread is, and for whom where that can be known: client, exit, list.

    No destination, and nothing secret.
    """
    frames = list(_outward(frame))
    if not frames:
        return "not in Python"
    own = [each for each in frames if _is_own(each)]
    at = _place(frames[0])
    if own and own[0] is not frames[0]:
        at = f"{at} for {_place(own[0])}"
    return ", ".join([at, *_beneficiaries(own)])


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_own(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(_PACKAGE)


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(_PACKAGE.parent if _is_own(frame) else path.parent.parent)
    return f"{shown}:{frame.f_lineno} ({frame.f_code.co_name})"


def _beneficiaries(frames: Sequence[FrameType]) -> Iterator[str]:
    """For whom the frames are at work: one of each kind, from the innermost frame that has one."""
    found: dict[str, str] = {}
    for frame in frames:
        for value in list(frame.f_locals.values()):
            # an object may have no attribute yet: the thread is in its __init__
            with suppress(AttributeError):
                for kind, text in _named(value):
                    found.setdefault(kind, text)
    yield from (f"{kind} {text}" for kind, text in sorted(found.items()))


def _named(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, ActiveRequest):
        value = value.record
    if isinstance(value, Record):
        yield "client", f"{value.client} ({value.id})"
        if value.exit:
            yield "exit", value.exit
    elif isinstance(value, ClientConnection):
        yield "client", f"{value.client} ({value.id})"
    elif isinstance(value, Member):
        yield "exit", value.name
    elif isinstance(value, (FileSource, UrlSource)):
        yield "list", str(value)
