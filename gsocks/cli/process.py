"""What a process sets up before it opens connections: its log and its descriptor limit."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gevent

from gsocks import config
from gsocks.log_output import LogOutput
from gsocks.observe import JsonFormatter, TextFormatter

log = logging.getLogger("gsocks")

#: exit status after Ctrl-C, as shells have it
INTERRUPTED = 128 + signal.SIGINT


class _PlainWarnings(logging.Handler):
    """Warnings before there is a log, and of commands that have none, as their other lines are."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            print(f"gsocks: {record.getMessage()}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Write warnings to standard error, each behind ``gsocks:``, until there is a log."""
    handler = _PlainWarnings(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def log_to_stderr(settings: config.Log) -> None:
    """Write the log of gsocks to standard error, and nowhere else; drop it if that is closed.

    May be called again.
    """
    for before in log.handlers[:]:
        if isinstance(before, (_PlainWarnings, LogOutput)):
            log.removeHandler(before)
    handler = logging.NullHandler() if sys.stderr is None else LogOutput(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    log.addHandler(handler)
    log.setLevel(settings.level.upper())
    log.propagate = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt in this greenlet.

    Python raises it in whichever greenlet runs: in the hub it is printed with a traceback, and in
    the greenlet of a probe it ends that probe.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield  # ignored, as a shell has it for what runs in the background
        return
    handler = gevent.signal_handler(
        signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt
    )
    try:
        yield
    finally:
        handler.cancel()
        signal.signal(signal.SIGINT, before)


def raise_descriptor_limit() -> int:
    """Raise the limit of open descriptors to the maximum that the system allows; returns that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a sandbox forbids it
            return soft
    return hard


def check_descriptor_limit(settings: config.Config) -> None:
    """Raise the limit of open descriptors, and warn if ``limits.connections`` may need more."""
    hard = raise_descriptor_limit()
    sections = config.serving_sections(settings)
    # a proxied connection holds two
    needed = 2 * max(section.limits.connections for section in sections)
    if hard != resource.RLIM_INFINITY and needed > hard:
        log.warning(
            "limits.connections may need %d descriptors, and the system allows %d (ulimit -n)",
            needed,
            hard,
        )
