"""Whether a TCP peer's kernel acknowledges what is sent to it, as known to this kernel."""

from __future__ import annotations

import fcntl
import socket as std_socket
import sys
import termios
import time

#: tcpi_last_ack_recv in struct tcp_info (linux/tcp.h): milliseconds, a 32-bit word
_LAST_ACK_RECV, _WORD = 56, 4
#: seconds by which that can be too short: a tick of the kernel's clock
_ACK_RESOLUTION = 0.01


def is_unanswered(fd: int, since: float) -> bool:
    """True if bytes are unacknowledged, and the peer's kernel has acknowledged none ``since`` then.

    Bytes may also wait because the peer does not read them, and its window is closed; but then it
    acknowledges the probes of its window.  Between sockets that are not TCP (a chain's) there are
    no acknowledgements: there, only unsent bytes are visible.
    """
    if not _unacknowledged(fd):
        return False
    sock = std_socket.socket(fileno=fd)
    try:
        info = sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_INFO, _LAST_ACK_RECV + _WORD)
    except OSError:
        return True
    finally:
        sock.detach()
    since_ack = int.from_bytes(info[_LAST_ACK_RECV:], sys.byteorder) / 1000
    return time.monotonic() - since_ack <= since + _ACK_RESOLUTION


def _unacknowledged(fd: int) -> int:
    """Bytes written to a TCP socket that its peer has not acknowledged; SIOCOUTQ of tcp(7)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
