"""Worker processes: forked, told what the parent is told, started again when they die.

The parent has no event loop.  It holds its signals back and takes them one by one, so that all
it ever does stands in one loop, and nothing of gevent is there before the fork.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from gsocks.errors import ConfigError
from gsocks.units import format_duration

#: a worker's status when it can't be what the config says; starting it again changes nothing
MISTAKE = 2

#: seconds below which a worker's life is a failed start
EARLY = 5.0
#: seconds before a failed start is repeated: the first time, and at most
FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1  # prctl(2)


def worker_count(setting: int | Literal["auto"]) -> int:
    """How many workers ``setting`` means; ``auto`` is one for each core this process may use."""
    return len(os.sched_getaffinity(0)) if setting == "auto" else setting


def run_workers(count: int, work: Callable[[int], int], *, log: logging.Logger) -> int:
    """Run ``work(index)`` in ``count`` processes until a signal ends them.

    ``work`` returns its exit status and installs the handlers it wants: SIGTERM asks it to drain,
    SIGINT to stop, SIGHUP to read its config again (ignored until there is a handler).  A worker
    that ends unasked is started again; so it should read then what may have changed since.

    The caller must have no gevent hub, no other thread and no use for SIGCHLD.  A second SIGTERM
    or SIGINT kills.  Returns 0 after a clean end, else the highest status of a worker (128 plus
    the signal that killed it).  If all workers fail at once with status 2 it gives up, and
    returns that.
    """
    _flush()  # else each child has the unwritten text as well, and writes it too
    disposition = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _Crew(count, work, mask, log).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, disposition)


@dataclass(slots=True)
class _Worker:
    index: int
    #: seconds to wait after the next failed start
    delay: float
    #: 0 while it is not running
    pid: int = 0
    #: monotonic seconds; when to start it, if it is not running
    due: float = 0.0
    started: float = 0.0
    #: whether its last life was a failed start for want of a usable config
    mistaken: bool = False


class _Crew:
    """The parent's side, while all of ``_SIGNALS`` are blocked."""

    def __init__(
        self,
        count: int,
        work: Callable[[int], int],
        mask: set[signal.Signals] | set[int],
        log: logging.Logger,
    ) -> None:
        self._workers = [_Worker(index, FIRST_DELAY) for index in range(count)]
        self._work = work
        self._mask = mask
        self._log = log
        self._libc = ctypes.CDLL(None, use_errno=True)
        #: the signal that ends the workers, once there was one
        self._ending: signal.Signals | None = None
        #: the highest status of those who ended as asked
        self._status = 0

    def run(self) -> int:
        while True:
            if self._ending is None:
                self._start_due()
            elif not self._running():
                return self._status
            signum = self._next_signal()
            if signum == signal.SIGCHLD:
                self._reap()
                if self._ending is None and all(worker.mistaken for worker in self._workers):
                    self._log.error("no worker can run with this config: giving up")
                    return MISTAKE
            elif signum == signal.SIGHUP:
                self._forward(signal.SIGHUP)
            elif signum is not None:
                self._end(signum)

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid]

    def _next_signal(self) -> signal.Signals | None:
        """The next signal, or None when a worker is due."""
        waiting = [worker.due for worker in self._workers if not worker.pid]
        if self._ending is not None or not waiting:
            return signal.Signals(signal.sigwait(_SIGNALS))
        info = signal.sigtimedwait(_SIGNALS, max(0.0, min(waiting) - time.monotonic()))
        return None if info is None else signal.Signals(info.si_signo)

    # --- starting ---------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid and worker.due <= now:
                self._start(worker, now)

    def _start(self, worker: _Worker, now: float) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._log.error("worker %d can't be started: %s", worker.index, error.strerror)
            self._put_off(worker, now)
            return
        if not pid:
            self._live(worker.index, parent)
        worker.pid, worker.started, worker.mistaken = pid, now, False

    def _live(self, index: int, parent: int) -> NoReturn:
        """The child's life.  Whatever happens in it, the parent's code is not run twice."""
        status = None
        try:
            self._leave_home(parent)
            status = self._work(index)
        except ConfigError as error:
            self._log.error("worker %d: %s", index, error)
            status = MISTAKE
        finally:
            if status is None:
                self._log.critical("worker %d failed", index, exc_info=True)
                status = 1
            try:
                _flush()
            finally:
                os._exit(status)

    def _leave_home(self, parent: int) -> None:
        # A worker without its parent could be neither drained nor replaced.
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that was set
            os._exit(1)
        # In a group of its own, or Ctrl-C on a terminal would reach it twice: directly and from
        # the parent, and the second one kills.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    # --- ending -----------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of whoever has ended; one SIGCHLD may stand for several."""
        now = time.monotonic()
        for worker in self._running():
            pid, wait_status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = 0
                self._ended(worker, pid, os.waitstatus_to_exitcode(wait_status), now)

    def _ended(self, worker: _Worker, pid: int, code: int, now: float) -> None:
        early = now - worker.started < EARLY
        worker.mistaken = early and code == MISTAKE
        if self._ending is not None:
            asked = code in (0, -signal.SIGTERM, -signal.SIGINT)
            # one that was just failing to start again has not failed to end
            if not asked and not worker.mistaken:
                self._status = max(self._status, code if code > 0 else 128 - code)
            return
        how = f"status {code}" if code >= 0 else signal.Signals(-code).name
        if early:
            self._put_off(worker, now)
        else:
            worker.due, worker.delay = now, FIRST_DELAY
        self._log.warning(
            "worker %d (process %d) ended: %s; starts again in %s",
            worker.index,
            pid,
            how,
            format_duration(worker.due - now),
        )

    def _put_off(self, worker: _Worker, now: float) -> None:
        worker.due = now + worker.delay
        worker.delay = min(2 * worker.delay, LONGEST_DELAY)

    def _end(self, signum: signal.Signals) -> None:
        if signum == self._ending or self._ending == signal.SIGINT:
            self._log.warning("%s again: killing the workers", signum.name)
            self._forward(signal.SIGKILL)
            return
        self._log.info("%s: ending the workers", signum.name)
        self._ending = signum
        self._forward(signum)

    def _forward(self, signum: signal.Signals) -> None:
        for worker in self._running():
            os.kill(worker.pid, signum)  # alive, or a zombie until it is reaped here


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
