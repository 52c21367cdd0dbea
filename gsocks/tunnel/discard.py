"""How a stranger is left: without an answer, and like every other one."""

from __future__ import annotations

import socket as std_socket
import time

import gevent

from gsocks.deadline import call_with_timeout
from gsocks.sock import AnySocket
from gsocks.stream import CHUNK, close_with_fin
from gsocks.turns import give_way

#: seconds for a stranger that is sending to stop, once the end of its time was shown to it
CLOSE_GRACE = 1.0


def discard(sock: AnySocket, seconds: float) -> None:
    """Read on and throw away until the time is over, then end our direction; close a little later.

    Whatever a stranger sent, even if it ended its direction or is sending still, it sees the same:
    nothing, and at the same moment FIN.  Probers count bytes and time (shadowsocks-rust#292).
    A connection that is closed while bytes come is reset: so it is read from for ``CLOSE_GRACE``
    more, or until the stranger has ended its direction too.
    """
    over = time.monotonic() + seconds
    try:
        ended = call_with_timeout(seconds, _discard_to_end, sock, on_timeout=False)
        if ended:
            gevent.sleep(max(0.0, over - time.monotonic()))
        sock.shutdown(std_socket.SHUT_WR)
        if not ended:
            call_with_timeout(CLOSE_GRACE, _discard_to_end, sock, on_timeout=False)
    except OSError:
        pass  # the peer itself has reset the connection
    finally:
        close_with_fin(sock)


def _discard_to_end(sock: AnySocket) -> bool:
    """Read until the peer has ended its direction; returns True then.  Raises OSError."""
    while sock.recv(CHUNK):
        give_way()
    return True
