"""Whether a TCP peer's kernel acknowledges what is sent to it, as known to this kernel."""

from __future__ import annotations

import fcntl
import sys
import termios
import time

from gsocks.net.tcp_info import LAST_ACK_RECV, read_tcp_info

#: seconds by which the time since the last acknowledgement can be too short: a tick of the kernel's
#: clock
_ACK_RESOLUTION = 0.01


def is_unanswered(fd: int, since: float) -> bool:
    """True if bytes are unacknowledged, and the peer's kernel has acknowledged none ``since`` then.

    Bytes may also wait because the peer does not read them, and its window is closed; but then it
    acknowledges the probes of its window.  Between sockets that are not TCP (a chain's) there are
    no acknowledgements: there, only unsent bytes are visible.
    """
    if not _unacknowledged(fd):
        return False
    info = read_tcp_info(fd, LAST_ACK_RECV)
    if info is None:
        return True
    return time.monotonic() - info[0] / 1000 <= since + _ACK_RESOLUTION


def _unacknowledged(fd: int) -> int:
    """Bytes written to a TCP socket that its peer has not acknowledged; SIOCOUTQ of tcp(7)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
