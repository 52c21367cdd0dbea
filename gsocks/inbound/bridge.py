"""A socket for a stream that has none: bytes inside a tunnel, or inside TLS.

    program  --- near | far  <-- Relay -->  stream

The pair is one of TCP, because AF_UNIX has no reset: there the loss of a stream would reach the
program as its end, and be taken for the whole of an answer.  And a program may do with ``near``
what it does with any connection, such as set TCP_NODELAY.  Such a pair takes 0.1 ms to make, four
times as long as ``socketpair``; a GiB through the bridge costs 0.7 s of CPU.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable

import gevent
from gevent.socket import socket

from gsocks.relay import Relay
from gsocks.stream import SocketStream, Stream

#: Seconds without a byte, while the program has its socket: its patience is its own affair, and a
#: socket without a bridge has no such bound either.  A timer can't have infinity.
_EVER = 1e9
# strangers on this machine may connect to the port, too, in the moment that it is open
_BACKLOG = 128
#: seconds without a byte in which what was written before the close has to be on its way
IO_TIMEOUT = 60.0
#: seconds in which the far end has to end, behind that
DRAIN_TIMEOUT = 2.0


class Bridge:
    """A relay between ``far`` and ``stream``.

    ``ended`` is called once, when both are closed, with the bytes from the program and to it.

    It knows nothing of ``near``: the program may forget it, and that has to be its end.
    """

    __slots__ = ("_relay",)

    def __init__(self, far: socket, stream: Stream, ended: Callable[[int, int], None]) -> None:
        self._relay = Relay(
            SocketStream(far),
            stream,
            idle=_EVER,
            half_closed=_EVER,
            ended=lambda totals: ended(totals.up, totals.down),
        )
        gevent.spawn(self._relay.run)

    def left(self) -> None:
        """The program has closed ``near``.

        From the far end that looks like a direction that has ended.  What was written before goes
        out, as from a socket that is closed; a tunnel whose far end then ends too can carry
        another stream.
        """
        self._relay.bound_by(idle=IO_TIMEOUT, half_closed=DRAIN_TIMEOUT)


def loopback_pair() -> tuple[socket, socket]:
    """Two sockets that are connected to each other, over 127.0.0.1.  Raises OSError."""
    with socket() as listener:
        # among ports that have been in use, too: each pair leaves one in TIME_WAIT
        listener.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
        near = socket()
        try:
            near.setblocking(False)
            try:
                near.connect(listener.getsockname())
            except BlockingIOError:
                pass  # the kernel completes it without a wait
            near.setblocking(True)
            far, peer = listener.accept()
            while peer != near.getsockname():  # a stranger on this machine, who was faster
                far.close()
                far, peer = listener.accept()
        except BaseException:
            near.close()
            raise
    for sock in (near, far):
        sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
    return near, far
