"""What a listener does when accept() fails for want of descriptors or memory.

A connection that can't be accepted would wait in the kernel's queue, and the listening socket stay
readable, so that the event loop spins.  So one descriptor is held in reserve: given up, it lets
the listener accept the connection that has waited longest.  If none can be evicted for it, it is
closed, which tells the client sooner than a timeout would.  Without a reserve, accepting pauses.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from enum import Enum, auto

log = logging.getLogger("gsocks.inbound")

# Out of descriptors, in this process or in the system: the reserve helps.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# Out of what other connections will return: waiting helps.
_EXHAUSTED = (*_NO_DESCRIPTOR, errno.ENOBUFS, errno.ENOMEM)


class Reaction(Enum):
    """What to do about a failed accept()."""

    #: the reserve has been given up: accept one connection, close it or another one, and take a
    #: reserve again
    USE_RESERVE = auto()
    #: stop accepting for a while
    PAUSE = auto()
    #: the listening socket itself is closed
    RAISE = auto()
    #: the client was gone before it was accepted (ECONNABORTED and its like)
    IGNORE = auto()


class AcceptGuard:
    """Holds the reserve of one listener and logs why it can't accept.

    ``clock`` gives monotonic seconds.
    """

    #: seconds between two log lines
    log_interval = 10.0

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._logged_at = -self.log_interval
        self._reserve: int | None = None

    def __repr__(self) -> str:
        return f"<AcceptGuard of {self._name}, {'holds a' if self.has_reserve else 'no'} reserve>"

    @property
    def has_reserve(self) -> bool:
        """Whether a descriptor is held."""
        return self._reserve is not None

    def take_reserve(self) -> None:
        """Hold a descriptor, unless one is held already or none is free."""
        if self._reserve is None:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                pass  # the next failure finds no reserve, and accepting pauses

    def give_up_reserve(self) -> bool:
        """Free the descriptor; returns whether one was held."""
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            os.close(reserve)
        return reserve is not None

    def reaction(self, error: OSError) -> Reaction:
        """What to do about ``error``; for USE_RESERVE the reserve is given up already."""
        if error.errno in _NO_DESCRIPTOR and self.give_up_reserve():
            return Reaction.USE_RESERVE
        if error.errno in _EXHAUSTED:
            return Reaction.PAUSE
        return Reaction.RAISE if error.errno == errno.EBADF else Reaction.IGNORE

    def log_failure(self, error: OSError, connections: int, consequence: str) -> None:
        """Log ``error``, at most once in :attr:`log_interval`."""
        now = self._clock()
        if now - self._logged_at > self.log_interval:
            self._logged_at = now
            log.error(
                "%s can't accept: %s, with %d connections open; %s",
                self._name,
                error.strerror,
                connections,
                consequence,
            )
