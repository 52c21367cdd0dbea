"""The two pipes: what happens between the answer to a request and the end of its connection.

    client  --- up -->   remote
    client  <-- down --  remote

A pipe reads here and writes there; a write that has to wait is the backpressure.  The end of one
direction is passed on as its end, and the other one goes on (half-close).  A failure anywhere
resets both sides, so that nobody takes a loss for an end.

Any two Streams get two greenlets, in which that can be read below.  Where both can do without
(Pollable: a socket, a stream in a tunnel), the hub carries them: gsocks/pump.py does the same as
``_pipe``, and a connection that waits has no greenlet.  So the relay's end is told by a call, not
by a return.  It knows nothing of SOCKS, of sealing or of the config.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, cast

import gevent

from gsocks.errors import GsocksError, HalfClosedTimeout, IdleTimeout, StreamClosed, StreamError
from gsocks.expiry import Expiry
from gsocks.pump import Pump
from gsocks.splice import pump_between
from gsocks.stream import Pollable, Stream, can_poll

_CLIENT, _REMOTE = 0, 1
_SIDES = (_CLIENT, _REMOTE)
_NAMES = ("client", "remote")

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
        "_pumps",
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
        #: None once it was called
        self._ended: Callable[[Totals], None] | None = ended
        self._pipes = 2
        self._pumps: tuple[Pump, ...] = ()
        self._error: StreamError | None = None
        self._side = ""
        self._expiry = Expiry(self)
        #: bytes up, bytes down: by the side that they came from
        self.carried = [0, 0]
        #: monotonic seconds
        self.last_byte = time.monotonic()

    def run(self) -> None:
        """Start both pipes; one of them may run in the calling greenlet."""
        self._expiry.restart()
        client, remote = self._streams
        if can_poll(client) and can_poll(remote):
            sides = cast(tuple[Pollable, Pollable], self._streams)
            self._pumps = tuple([pump_between(self, sides, source) for source in _SIDES])
            for pump in self._pumps:
                pump.start()
        else:
            gevent.spawn(self._pipe, _REMOTE, _CLIENT)
            self._pipe(_CLIENT, _REMOTE)

    def abort(self, error: StreamError, side: str = "") -> None:
        """Reset both sides; the first reason counts.  Never blocks; the pipes end by it."""
        if self._error is None:
            self._error = error
            self._side = side
        pumps, self._pumps = self._pumps, ()
        for pump in pumps:
            pump.stop()
        for stream in self._streams:
            stream.abort()
        if pumps and self._pipes:
            self._pipes = 0
            self._over()

    def bound_by(self, *, idle: float, half_closed: float) -> None:
        """Have these bounds from now on.  Does nothing after the end."""
        self._idle = idle
        self._half_closed = half_closed
        if self._pipes:
            self._expiry.restart()

    @property
    def bound(self) -> float:
        """How long the connection may be silent now, in seconds."""
        return self._idle if self._pipes == 2 else self._half_closed

    def expire(self) -> None:
        """The silence has lasted for :attr:`bound`."""
        kind = IdleTimeout if self._pipes == 2 else HalfClosedTimeout
        self.abort(kind(f"silent for {self.bound:g} s"))

    # --- by greenlets -----------------------------------------------------------------------

    def _pipe(self, source: int, sink: int) -> None:
        read, write = self._streams[source].read, self._streams[sink].write
        at_work = source
        chunks = 0
        try:
            while data := read():
                at_work = sink
                write(data)
                self.passed(source, len(data))
                # nothing is held while the next read waits, which may be for hours
                del data
                at_work = source
                chunks += 1
                if chunks % _TURN == 0:
                    gevent.sleep(0)
            at_work = sink
            self._streams[sink].write_eof()
        except StreamError as error:
            self.failed(error, at_work)
        except BaseException:  # killed from outside, or a fault of ours: nobody may wait for us
            self.failed(StreamClosed("stopped"), None)
            raise
        finally:
            self.ended()

    # --- by the hub, see gsocks.pump.Carrier ------------------------------------------------

    def passed(self, source: int, count: int) -> None:
        """Bytes from that side are on their way."""
        self.carried[source] += count
        self.last_byte = time.monotonic()

    def failed(self, error: StreamError, side: int | None) -> None:
        """That side has failed, or we."""
        self.abort(error, "" if side is None else _NAMES[side])

    # --- the end ----------------------------------------------------------------------------

    def ended(self) -> None:
        """One pipe has ended."""
        self._pipes -= 1
        if self._pipes:
            self._expiry.restart()
        else:
            self._over()

    def _over(self) -> None:
        self._pumps = ()
        self._expiry.stop()
        for stream in self._streams:
            stream.close()
        up, down = self.carried
        # A closure and a traceback are likely to know this relay.  If it went on knowing them, only
        # the garbage collector could let all of it go.
        ended, error = self._ended, self._error
        self._ended = self._error = None
        if ended is not None:
            ended(Totals(up, down, error, self._side))
