"""The two pipes: what happens between the answer to a request and the end of its connection.

    client  --- up -->   remote
    client  <-- down --  remote

A pipe reads here and writes there; a write that has to wait is the backpressure.  The end of one
direction is passed on as its end, and the other one goes on (half-close).  A failure anywhere
resets both sides, so that a truncated transfer is never mistaken for a clean EOF.

Any two Streams get two greenlets, in which that can be read below.  Where both are
NonblockingStreams (a socket, a stream in a tunnel), the hub carries them: net/pump.py, and for two
sockets net/socket_pair.py, do what ``_pipe`` does, and a connection that waits has no greenlet.  So
the end of the relay is reported by a callback, not by a return.  The relay does not depend on
SOCKS, encryption or the configuration.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import gevent

from gsocks.errors import GsocksError, HalfClosedTimeout, IdleTimeout, StreamClosed, StreamError
from gsocks.net.idle import Sweep, sweep_for
from gsocks.net.pump import Pump
from gsocks.net.socket_pair import SocketPair, carriers_between
from gsocks.stream import NonblockingStream, Stream, is_nonblocking
from gsocks.tuples import new_tuple
from gsocks.turns import give_way

_CLIENT, _REMOTE = 0, 1
_SIDES = (_CLIENT, _REMOTE)
_NAMES = ("client", "remote")


# Bytes that a pipe writes at once.  A write that blocks reports nothing before its end: with a
# whole chunk of 64 KiB, a slow reader would be taken for an idle one.
_PIECE = 4096


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
    ``ended`` is called exactly once, when everything is closed; ``answered`` at the first byte that
    comes from the remote.  Neither may block.
    """

    __slots__ = (
        "_answered",
        "_ended",
        "_error",
        "_half_closed",
        "_pipes",
        "_pumps",
        "_side",
        "_streams",
        "_sweep",
        "bound",
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
        answered: Callable[[], None] | None = None,
    ) -> None:
        self._streams: tuple[Stream, Stream] = (client, remote)
        self._half_closed = half_closed
        #: how long the connection may be silent now, in seconds
        self.bound = idle
        #: None after the call
        self._ended: Callable[[Totals], None] | None = ended
        #: None after the call
        self._answered = answered
        self._pipes = 2
        self._pumps: tuple[Pump | SocketPair, ...] = ()
        self._error: StreamError | None = None
        self._side = ""
        #: looks whether it is idle, until its end
        self._sweep: Sweep | None = None
        #: bytes up, bytes down: by the side that they came from
        self.carried = [0, 0]
        #: monotonic seconds
        self.last_byte = time.monotonic()

    def __repr__(self) -> str:
        state = ("ended", "one direction open", "both directions open")[self._pipes]
        up, down = self.carried
        parts = self._pumps or self._streams
        return f"<Relay: {state}, {up} bytes up, {down} down; {'; '.join(map(repr, parts))}>"

    def run(self, *, of_datagrams: bool = False) -> None:
        """Start both pipes; one of them may run in the calling greenlet.

        ``of_datagrams``: what is read at once is a datagram, and is written at once.
        """
        client, remote = self._streams
        if is_nonblocking(client) and is_nonblocking(remote):
            self.start((client, remote))
        else:
            self._sweep = sweep_for(self, self._sweep)
            most = sys.maxsize if of_datagrams else _PIECE
            gevent.spawn(self._pipe, _REMOTE, _CLIENT, most)
            self._pipe(_CLIENT, _REMOTE, most)

    def start(self, sides: tuple[NonblockingStream, NonblockingStream]) -> None:
        """Have the hub carry ``sides``, its streams, which it can.  Never blocks."""
        # one tuple for it and its pumps: these are the streams that it was made with
        self._streams = sides  # type: ignore[assignment]
        self._sweep = sweep_for(self, self._sweep)
        self._pumps = carriers_between(self, sides)
        for pump in self._pumps:
            pump.start()

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
        self._half_closed = half_closed
        self.bound = idle if self._pipes == 2 else half_closed
        if self._pipes:
            self._sweep = sweep_for(self, self._sweep)

    def on_idle(self) -> None:
        """The silence has lasted for :attr:`bound`."""
        kind = IdleTimeout if self._pipes == 2 else HalfClosedTimeout
        self.abort(kind(f"silent for {self.bound:g} s"))

    # --- by greenlets -----------------------------------------------------------------------

    def _pipe(self, source: int, sink: int, most: int) -> None:
        """Carry bytes from one side to the other, ``most`` of them in a write."""
        read, write = self._streams[source].read, self._streams[sink].write
        at_work = source
        try:
            while data := read():
                at_work = sink
                for start in range(0, len(data), most):
                    piece = data[start : start + most]
                    write(piece)
                    self.passed(source, len(piece))
                # hold no chunk while the next read waits, which may be for hours
                del data, piece
                at_work = source
                # A socket that is always ready never makes its greenlet wait, so one fast download
                # would stop every other connection.
                give_way()
            at_work = sink
            self._streams[sink].write_eof()
        except StreamError as error:
            self.failed(error, at_work)
        except BaseException:  # killed from outside, or a bug: no greenlet may wait for this one
            self.failed(StreamClosed("stopped"), None)
            raise
        finally:
            self.ended()

    # --- by the hub, see gsocks.net.pump.Carrier ------------------------------------------------

    def passed(self, source: int, count: int) -> None:
        """Bytes from that side are on their way."""
        self.carried[source] += count
        self.last_byte = time.monotonic()
        if source and self._answered is not None:
            answered, self._answered = self._answered, None
            answered()

    def failed(self, error: StreamError, side: int | None) -> None:
        """That side has failed; None: the relay itself."""
        self.abort(error, "" if side is None else _NAMES[side])

    # --- the end ----------------------------------------------------------------------------

    def ended(self) -> None:
        """One pipe has ended."""
        self._pipes -= 1
        if self._pipes:
            self.bound = self._half_closed
            self._sweep = sweep_for(self, self._sweep)
        else:
            self._over()

    def _over(self) -> None:
        self._pumps = ()
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            sweep.discard(self)
        for stream in self._streams:
            stream.close()
        up, down = self.carried
        # A closure and a traceback are likely to refer to this relay.  If it kept its references to
        # them, only the garbage collector could free that cycle.
        ended, error = self._ended, self._error
        self._ended = self._error = self._answered = None
        if ended is not None:
            ended(new_tuple(Totals, (up, down, error, self._side)))
