"""Worker processes: forked, signalled like their parent, and restarted when they die.

The parent has no event loop.  It blocks its signals and takes them one by one, so that all that it
ever does stands in one loop, and nothing of gevent exists before the fork.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from gsocks.backoff import Backoff
from gsocks.errors import ConfigError
from gsocks.service.child import die_with_parent
from gsocks.service.notify import Heartbeats, Notifier
from gsocks.units import format_duration

#: exit status of a mistake in the command line or the config, as argparse has it; restarting a
#: worker that exits with it would change nothing
MISTAKE = 2

#: seconds; a worker that exits earlier has failed to start
MIN_UPTIME = 5.0
#: seconds before a failed start is retried: the first time, and the maximum
FIRST_DELAY = 1.0
MAX_DELAY = 30.0

#: seconds between two looks whether all workers serve
READY_EVERY = 0.05

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def worker_count(setting: int | Literal["auto"]) -> int:
    """How many workers ``setting`` means; ``auto`` is one for each core this process may use."""
    return len(os.sched_getaffinity(0)) if setting == "auto" else setting


def run_workers(
    count: int,
    work: Callable[[int], int],
    *,
    log: logging.Logger,
    reload: Callable[[], bool] = lambda: True,
    stopping: Callable[[], object] = lambda: None,
    notifier: Notifier | None = None,
    heartbeats: Heartbeats | None = None,
) -> int:
    """Run ``work(index)`` in ``count`` processes until a signal stops them.

    ``work`` returns its exit status and installs its own signal handlers: SIGTERM means drain,
    SIGINT stop, SIGHUP reload.  SIGHUP is blocked until the worker calls :func:`accept_reloads`, so
    that none is missed while it starts.

    ``reload`` is called in the parent at each SIGHUP, which is forwarded to the workers if it
    returns True.  What it changes in memory is what workers that are started later find.  A worker
    that exits without a signal is restarted.  ``stopping`` is called in the parent when the workers
    are told to stop.

    ``notifier``: is told when all workers serve, and that the parent lives; a worker whose
    ``heartbeats`` have stopped for as long as the watchdog allows is killed, and restarted.

    The caller must have no gevent hub, no other thread and no use for SIGCHLD.  A second SIGTERM
    or SIGINT kills the workers.  Returns 0 after a clean stop, else the highest status of a worker
    (128 plus the signal that killed it).  If all workers fail early with status 2, the supervisor
    gives up and returns that.
    """
    _flush()  # else each child inherits the unwritten text, and writes it too
    disposition = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        supervisor = _Supervisor(count, work, mask, log, reload, stopping)
        supervisor.notifier = notifier or Notifier()
        supervisor.heartbeats = heartbeats or Heartbeats(count)
        return supervisor.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, disposition)


def accept_reloads() -> None:
    """Unblock SIGHUP in a worker, whose handler is installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@dataclass(slots=True)
class _Worker:
    index: int
    #: failed starts in a row
    failures: int = 0
    #: 0 while it is not running
    pid: int = 0
    #: monotonic seconds; when to start it, if it is not running
    due: float = 0.0
    started: float = 0.0
    #: whether its last start failed with status MISTAKE
    mistaken: bool = False


class _Supervisor:
    """The parent's side, while all of ``_SIGNALS`` are blocked."""

    def __init__(
        self,
        count: int,
        work: Callable[[int], int],
        mask: set[signal.Signals] | set[int],
        log: logging.Logger,
        reload: Callable[[], bool],
        stopping: Callable[[], object],
    ) -> None:
        self._workers = [_Worker(index) for index in range(count)]
        self._work = work
        self._mask = mask
        self._log = log
        self._reload = reload
        self._on_stop = stopping
        self.notifier = Notifier()
        self.heartbeats = Heartbeats(count)
        #: whether the notifier knows that all workers serve
        self._told_ready = False
        #: the signal that stops the workers, once there was one
        self._stopping: signal.Signals | None = None
        #: the highest status of the workers that exited after it
        self._status = 0

    def run(self) -> int:
        while True:
            if self._stopping is None:
                self._start_due()
            elif not self._running():
                return self._status
            self._notify()
            signum = self._next_signal()
            if signum == signal.SIGCHLD:
                self._reap()
                if self._stopping is None and all(worker.mistaken for worker in self._workers):
                    self._log.error("no worker can run with this config: giving up")
                    return MISTAKE
            elif signum == signal.SIGHUP:
                self.notifier.reloading()
                if self._reload():
                    self._forward(signal.SIGHUP)
                self._told_ready = False
            elif signum is not None:
                self._stop(signum)

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid]

    def _next_signal(self) -> signal.Signals | None:
        """The next signal, or None when a worker is due."""
        waiting = [worker.due for worker in self._workers if not worker.pid]
        now = time.monotonic()
        seconds = [] if self._stopping is not None else [each - now for each in waiting]
        if self.notifier.interval is not None:
            seconds.append(self.notifier.interval)
        if not self._told_ready and self._stopping is None:
            seconds.append(READY_EVERY)
        if not seconds:
            return signal.Signals(signal.sigwait(_SIGNALS))
        info = signal.sigtimedwait(_SIGNALS, max(0.0, min(seconds)))
        return None if info is None else signal.Signals(info.si_signo)

    def _notify(self) -> None:
        """Tell the notifier of what it does not know yet, and end workers that hang."""
        self.notifier.alive()
        if self._stopping is not None:
            return
        if not self._told_ready and self.heartbeats.all_serve:
            self._told_ready = True
            self.notifier.ready(f"serving with {len(self._workers)} workers")
        limit = self.notifier.watchdog
        for worker in self._running() if limit is not None else ():
            last = self.heartbeats.last(worker.index)
            if last and limit is not None and time.monotonic() - last > limit:
                self._log.error("worker %d hangs for %.0f s: killing it", worker.index, limit)
                self.heartbeats.forget(worker.index)
                os.kill(worker.pid, signal.SIGKILL)

    # --- starting ---------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid and worker.due <= now:
                self._start(worker, now)

    def _start(self, worker: _Worker, now: float) -> None:
        parent = os.getpid()
        self.heartbeats.forget(worker.index)
        try:
            pid = os.fork()
        except OSError as error:
            self._log.error("worker %d can't be started: %s", worker.index, error.strerror)
            self._retry_later(worker, now)
            return
        if not pid:
            self._run_worker(worker.index, parent)
        worker.pid, worker.started, worker.mistaken = pid, now, False

    def _run_worker(self, index: int, parent: int) -> NoReturn:
        """The child's side.  Whatever happens in it, the parent's code is not run twice."""
        status = None
        try:
            self._prepare_child(parent)
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
                logging.shutdown()
            finally:
                os._exit(status)

    def _prepare_child(self, parent: int) -> None:
        # A worker without its parent could be neither drained nor restarted.
        die_with_parent(parent, signal.SIGKILL)
        # In a process group of its own, or Ctrl-C on a terminal would reach it twice: directly and
        # by way of the parent, and the second signal kills.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {*self._mask, signal.SIGHUP})

    # --- exiting ----------------------------------------------------------------------------

    def _reap(self) -> None:
        """Collect the status of each worker that has exited; one SIGCHLD may stand for several."""
        now = time.monotonic()
        for worker in self._running():
            pid, wait_status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = 0
                self._exited(worker, pid, os.waitstatus_to_exitcode(wait_status), now)

    def _exited(self, worker: _Worker, pid: int, code: int, now: float) -> None:
        early = now - worker.started < MIN_UPTIME
        worker.mistaken = early and code == MISTAKE
        if self._stopping is not None:
            clean = code in (0, -signal.SIGTERM, -signal.SIGINT)
            # a worker whose restart was just failing has not failed to stop
            if not clean and not worker.mistaken:
                self._status = max(self._status, code if code > 0 else 128 - code)
            return
        how = f"status {code}" if code >= 0 else signal.Signals(-code).name
        if early:
            self._retry_later(worker, now)
        else:
            worker.due, worker.failures = now, 0
        self._log.warning(
            "worker %d (pid %d) exited with %s, restarting in %s",
            worker.index,
            pid,
            how,
            format_duration(worker.due - now),
        )

    def _retry_later(self, worker: _Worker, now: float) -> None:
        worker.due = now + Backoff(FIRST_DELAY, MAX_DELAY).bound(worker.failures)
        worker.failures += 1

    def _stop(self, signum: signal.Signals) -> None:
        if signum == self._stopping or self._stopping == signal.SIGINT:
            self._log.warning("%s again: killing the workers", signum.name)
            self._forward(signal.SIGKILL)
            return
        self._log.info("%s: shutting down the workers", signum.name)
        self.notifier.stopping("shutting down the workers")
        if self._stopping is None:
            self._on_stop()
        self._stopping = signum
        self._forward(signum)

    def _forward(self, signum: signal.Signals) -> None:
        for worker in self._running():
            os.kill(worker.pid, signum)  # alive, or a zombie until it is reaped here


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
