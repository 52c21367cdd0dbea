"""The two pipes: what happens between the answer to a request and the end of its connection.

    client  --- up -->   remote
    client  <-- down --  remote

Each pipe is one greenlet that reads here and writes there; a write that blocks is the
backpressure.  The end of one direction is passed on as its end, and the other one goes on
(half-close).  A failure anywhere resets both sides, so that nobody takes a loss for an end.

The relay knows nothing of SOCKS, of sealing or of the config: it sees two Streams.  Its end is
told by a call, not by a return: so whoever started it may go away, and a pipe that waits could
give its greenlet back and be started again by its socket, with no change around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import gevent

from gsocks.errors import GsocksError, HalfClosedTimeout, IdleTimeout, StreamClosed, StreamError
from gsocks.stream import Stream

_CLIENT, _REMOTE = 0, 1
_SIDES = ("client", "remote")

# Chunks that a pipe carries before it lets others run.  A socket that is always ready never
# makes its greenlet wait, so one fast download would stop every other connection.
_TURN = 16


class Totals(NamedTuple):
    """What a relay carried, and how it ended."""

    #: bytes from the client to the remote
    up: int
    #: bytes from the remote to the client
    down: int
    #: None: both directions came to their proper end
    error: GsocksError | None
    #: the side where ``error`` arose: "client", "remote", or "" for neither
    side: str

    @property
    def word(self) -> str:
        """The outcome for the access log: ``ok``, ``client_reset``, ``idle_timeout``..."""
        if self.error is None:
            return "ok"
        return f"{self.side}_{self.error.word}" if self.side else self.error.word


class Relay:
    """Carries bytes between two streams until both directions have ended; then closes them.

    ``idle``: seconds without a byte in either direction after which both sides are reset.
    ``half_closed``: the same bound once one direction has ended.
    ``ended`` is called exactly once, when everything is closed; it must not block.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_expiry",
        "_half_closed",
        "_idle",
        "_pipes",
        "_side",
        "_streams",
        "carried",
        "last_byte",
    )

    def __init__(
        self,
        client: Stream,
        remote: Stream,
        *,
        idle: float,
        half_closed: float,
        ended: Callable[[Totals], None],
    ) -> None:
        self._streams = (client, remote)
        self._idle = idle
        self._half_closed = half_closed
        self._ended = ended
        self._pipes = 2
        self._error: StreamError | None = None
        self._side = ""
        self._expiry = Expiry(self)
        #: bytes up, bytes down: by the side that they came from
        self.carried = [0, 0]
        #: monotonic seconds
        self.last_byte = time.monotonic()

    def run(self) -> None:
        """Start both pipes; one of them runs in the calling greenlet."""
        self._expiry.restart(self.bound)
        gevent.spawn(self._pipe, _REMOTE, _CLIENT)
        self._pipe(_CLIENT, _REMOTE)

    def abort(self, error: StreamError, side: str = "") -> None:
        """Reset both sides; the first reason counts.  Never blocks; the pipes end by it."""
        if self._error is None:
            self._error = error
            self._side = side
        for stream in self._streams:
            stream.abort()

    def bound_by(self, *, idle: float, half_closed: float) -> None:
        """Have these bounds from now on.  Does nothing after the end."""
        self._idle = idle
        self._half_closed = half_closed
        if self._pipes:
            self._expiry.restart(self.bound)

    @property
    def bound(self) -> float:
        """How long the connection may be silent now, in seconds."""
        return self._idle if self._pipes == 2 else self._half_closed

    def expire(self) -> None:
        """The silence has lasted for :attr:`bound`."""
        kind = IdleTimeout if self._pipes == 2 else HalfClosedTimeout
        self.abort(kind(f"silent for {self.bound:g} s"))

    def _pipe(self, source: int, sink: int) -> None:
        read, write = self._streams[source].read, self._streams[sink].write
        at_work = source
        chunks = 0
        try:
            while data := read():
                at_work = sink
                write(data)
                self.carried[source] += len(data)
                self.last_byte = time.monotonic()
                # nothing is held while the next read waits, which may be for hours
                del data
                at_work = source
                chunks += 1
                if chunks % _TURN == 0:
                    gevent.sleep(0)
            at_work = sink
            self._streams[sink].write_eof()
        except StreamError as error:
            self.abort(error, _SIDES[at_work])
        except BaseException:  # killed from outside, or a fault of ours: nobody may wait for us
            self.abort(StreamClosed("stopped"))
            raise
        finally:
            self._pipe_ended()

    def _pipe_ended(self) -> None:
        self._pipes -= 1
        if self._pipes:
            self._expiry.restart(self.bound)
            return
        self._expiry.stop()
        for stream in self._streams:
            stream.close()
        up, down = self.carried
        self._ended(Totals(up, down, self._error, self._side))


class Expiring(Protocol):
    """What may be silent for so long."""

    @property
    def last_byte(self) -> float:
        """Monotonic seconds."""

    @property
    def bound(self) -> float:
        """How long it may be silent now, in seconds."""

    def expire(self) -> None:
        """It was.  Runs in the hub, where nothing may block."""


class Expiry:
    """One timeout for a connection, which traffic in either direction puts off.

    A byte costs it nothing: only when the time is over does it look when the last one came,
    and waits for what is left.
    """

    __slots__ = ("_timeout", "_watched")

    def __init__(self, watched: Expiring) -> None:
        self._watched = watched
        self._timeout: _Look | None = None

    def restart(self, seconds: float) -> None:
        """Look again after so long."""
        self.stop()
        # always a new one: a gevent.Timeout keeps the time that it was made with
        self._timeout = _Look(seconds, self)
        self._timeout.start()

    def stop(self) -> None:
        """Look no more.  Does nothing the second time."""
        timeout, self._timeout = self._timeout, None
        if timeout is not None:
            timeout.close()

    def look(self) -> None:
        """Runs in the hub, where nothing may block."""
        silent = time.monotonic() - self._watched.last_byte
        if silent < self._watched.bound:
            self.restart(self._watched.bound - silent)
        else:
            self._watched.expire()


class _Look(gevent.Timeout):
    """A timeout that is raised in no greenlet: neither pipe may be in the way of the other.

    Thrown into the middle of a write it would cut a frame in two, though bytes may just have
    come the other way.
    """

    def __init__(self, seconds: float, expiry: Expiry) -> None:
        super().__init__(seconds)
        self._expiry = expiry

    def _on_expiration(self, _greenlet: object, _error: object) -> None:
        # gevent's hook for subclasses
        self._expiry.look()
