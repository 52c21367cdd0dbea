"""SIGINT and SIGTERM: they end a run through everything that cleans up.

A handler's exception is lost where Python can only report it: in finalizers, in callbacks of weak
references, and in the hooks of ``os.register_at_fork``, which ``logging`` has.  Coverage's tracer
drops some too (findings/coverage-gevent-interrupt.sh).  So signals are held while a process is
forked, and asked for between two steps.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)

#: the one that has come
_received: signal.Signals | None = None


class Interrupted(KeyboardInterrupt):
    """A signal ends the run."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        #: the exit status, as shells have it
        self.status = 128 + signum


def interruptible(command: Callable[[], int]) -> int:
    """Run a command line; returns its exit status, or that of the signal that has ended it."""
    handle()
    try:
        return command()
    except Interrupted as interrupted:
        print("interrupted: all processes are ended, nothing is written", file=sys.stderr)
        return interrupted.status


def handle() -> None:
    """Raise Interrupted in the main thread on each of them."""
    for signum in _ENDING:
        # which a shell has set to be ignored in what it runs in the background
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupt)


def _interrupt(number: int, _: object) -> NoReturn:
    global _received
    _received = signal.Signals(number)
    raise Interrupted(_received)


def check() -> None:
    """Raises Interrupted if a signal has come whose exception was lost."""
    if _received is not None:
        raise Interrupted(_received)


@contextlib.contextmanager
def held() -> Iterator[set[int]]:
    """They wait until the end of the block; yields the signals that are blocked outside of it."""
    before = {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)}
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
