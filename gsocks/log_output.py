"""Writes the log to a descriptor without ever waiting for its reader.

A pipe that is not read has room for 64 KiB, 416 access lines, and so have a terminal after Ctrl-S
and the journal's socket: with a blocking write the next line would stop the event loop.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

#: bytes that wait for the reader at most; further lines are dropped
MAX_PENDING = 1 << 20

#: seconds for the reader to take what is pending when the process ends
FLUSH_TIMEOUT = 1.0

#: writes without waiting; returns how many bytes; raises BlockingIOError if there is no room
_Write: TypeAlias = Callable[[bytes], int]


class LogOutput(logging.Handler):
    """Writes each record as a line to a descriptor, at once where it has room for it.

    What it has no room for is written by a thread, which exists only meanwhile.  Lines that are
    dropped are counted, and a line tells how many as soon as there is room again.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._write = _write_without_waiting(fd)
        #: lines dropped since the start
        self.dropped = 0
        #: of these, not yet told of in the log
        self._untold = 0
        # the lock of Handler won't do: logging.shutdown() holds it while it waits for flush()
        self._lock = threading.Lock()
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it for the thread, or drop it.  Never blocks."""
        try:
            line = self._line(record)
        except (TypeError, ValueError):  # arguments that don't fit; as logging has it
            self.handleError(record)
            return
        with self._lock:
            if self._thread is None:
                self._write_or_keep(line)
            elif self._pending_bytes + len(line) > MAX_PENDING:
                self._drop(1)
            else:
                self._keep(line)

    def flush(self) -> None:
        """Give the reader ``FLUSH_TIMEOUT`` to take what is pending."""
        thread = self._thread
        if thread is not None:
            thread.join(FLUSH_TIMEOUT)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode("utf-8", "backslashreplace")

    # --- under the lock -----------------------------------------------------------------------

    def _write_or_keep(self, line: bytes) -> None:
        untold = self._untold
        if untold:
            line = self._line(self._note()) + line
        try:
            written = self._write(line)
        except BlockingIOError:
            written = 0
        except OSError:  # its reader is gone, or the disk is full
            self._untold = untold
            self._drop(1)
            return
        if written < len(line):
            self._keep(line[written:])
            self._thread = threading.Thread(target=self._drain, name="gsocks-log", daemon=True)
            self._thread.start()

    def _keep(self, line: bytes) -> None:
        self._pending.append(line)
        self._pending_bytes += len(line)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _write_pending(self) -> bool:
        """Write what there is room for; False when everything is written."""
        while self._pending or self._untold:
            if not self._pending:
                self._keep(self._line(self._note()))
            line = self._pending.popleft()
            self._pending_bytes -= len(line)
            try:
                written = self._write(line)
            except BlockingIOError:
                written = 0
            except OSError:
                self._drop(1 + len(self._pending))
                self._pending.clear()
                self._pending_bytes = 0
                return False
            if written < len(line):
                self._pending.appendleft(line[written:])
                self._pending_bytes += len(line) - written
                return True
        return False

    def _note(self) -> logging.LogRecord:
        dropped, self._untold = self._untold, 0
        message = "%d lines of the log were dropped: it was not read in time, or the disk is full"
        return logging.LogRecord("gsocks", logging.WARNING, __file__, 0, message, (dropped,), None)

    # --- in the thread --------------------------------------------------------------------------

    def _drain(self) -> None:
        # a signal that comes here would not wake the thread of the event loop
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while True:
            poll.poll()
            with self._lock:
                if not self._write_pending():
                    self._thread = None
                    return

    # --- in a child process -----------------------------------------------------------------------

    def _after_fork(self) -> None:
        """The parent writes what is pending; its thread and its lock do not exist here."""
        self._lock = threading.Lock()
        self._pending.clear()
        self._pending_bytes = self.dropped = self._untold = 0
        self._thread = None


def dropped_lines() -> int:
    """How many lines the log of gsocks has dropped in this process."""
    outputs = logging.getLogger("gsocks").handlers
    return sum(each.dropped for each in outputs if isinstance(each, LogOutput))


def _write_without_waiting(fd: int) -> _Write:
    """How to write to ``fd`` without waiting and without a change for others that share it.

    O_NONBLOCK would be theirs too: it belongs to what was opened, not to the descriptor.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        # of its own, since it is closed with the object; MSG_DONTWAIT holds for one call
        sock = socket.socket(fileno=os.dup(fd))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT)
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return lambda data: os.write(fd, data)
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # another user's: it is asked first, and takes so much at least
        return lambda data: _write_if_ready(fd, data[: select.PIPE_BUF])
    return lambda data: os.write(own, data)


def _write_if_ready(fd: int, data: bytes) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(fd, data)
