"""The one contract between the rooms: bytes in order, with an end that can be told from a loss.

A plain socket (:class:`SocketStream`, here) and a stream inside a tunnel
(:class:`gsocks.tunnel.TunnelStream`) both fulfil :class:`Stream` and pass the same contract test.
"""

from __future__ import annotations

import select
import socket as std_socket
import struct
from typing import Protocol

import gevent
from gevent.socket import socket

from gsocks.errors import StreamClosed, Truncated, stream_failure

#: bytes asked of the kernel at once; 64 KiB frames cost a third less CPU per GB than 16 KiB
#: ones, and buffers over 128 KiB fall to an mmap for each call (measured, docs/benchmarks.md)
CHUNK = 65536

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# A peer that lost power or its network is noticed in 60 + 4 x 15 s while a connection is silent,
# and in two minutes while data waits to be acknowledged.  A minute also keeps the state of
# middleboxes alive (cloud balancers forget a silent connection after 350 s).
_KEEPALIVE = (
    (std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE, 1),
    (std_socket.IPPROTO_TCP, std_socket.TCP_KEEPIDLE, 60),
    (std_socket.IPPROTO_TCP, std_socket.TCP_KEEPINTVL, 15),
    (std_socket.IPPROTO_TCP, std_socket.TCP_KEEPCNT, 4),
    (std_socket.IPPROTO_TCP, std_socket.TCP_USER_TIMEOUT, 120_000),
    (std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1),
)


class Stream(Protocol):
    """A two-way stream of bytes whose directions end one by one.

    One greenlet may read while another writes; two may not do the same.  Whatever breaks the
    stream is raised as a :class:`gsocks.errors.StreamError`, to the reader and to the writer.
    """

    def read(self) -> bytes:
        """The next bytes, as soon as there are any; ``b""`` at the end, and again after it."""

    def write(self, data: bytes) -> None:
        """Send all of ``data``; returns when it is on its way, which is the backpressure."""

    def write_eof(self) -> None:
        """End this direction; the other one goes on.  A second call does nothing."""

    def abort(self) -> None:
        """Give up: the far end sees a reset, and whoever is blocked here gets StreamClosed.

        Never raises, never blocks; does nothing after ``close`` or ``abort``.
        """

    def close(self) -> None:
        """Release the stream.

        After the end of both directions this is a clean end; before, the far end sees a
        reset.  Never raises, never blocks; does nothing after ``close`` or ``abort``.
        """


class SocketStream:
    """A connected TCP socket as a :class:`Stream`; owns the socket.

    ``pending`` are bytes that were read together with what came before the stream (a client may
    send its request and its first payload in one write); they are read first.
    """

    __slots__ = ("_pending", "_read_ended", "_sock", "_write_ended")

    def __init__(self, sock: socket, pending: bytes = b"") -> None:
        self._sock: socket | None = sock
        self._pending = pending
        self._read_ended = False
        self._write_ended = False

    def read(self) -> bytes:
        sock = self._open_socket()
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        if self._read_ended:
            return b""
        try:
            data = sock.recv(CHUNK)
        except OSError as error:
            raise stream_failure(error) from None
        if not data:
            self._read_ended = True
        return data

    def write(self, data: bytes) -> None:
        send_all(self._open_socket(), data)

    def write_eof(self) -> None:
        if self._write_ended:
            return
        try:
            self._open_socket().shutdown(std_socket.SHUT_WR)
        except OSError as error:
            raise stream_failure(error) from None
        self._write_ended = True

    def abort(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            reset(sock)

    def close(self) -> None:
        if not (self._read_ended and self._write_ended):
            self.abort()
            return
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def detach(self) -> socket:
        """The socket, for another owner; the stream is closed then.

        Raises StreamClosed, or ValueError while there are pending bytes, which would be lost.
        """
        if self._pending:
            raise ValueError("bytes of the stream are pending")
        sock = self._open_socket()
        self._sock = None
        return sock

    def _open_socket(self) -> socket:
        if self._sock is None:
            raise StreamClosed("closed at this end")
        return self._sock


class Reader:
    """Exact reads from a socket.  One recv is not one message: it may be a part, or several.

    Bytes that came along with what was asked for are kept for the next read; an idle reader
    keeps none.
    """

    __slots__ = ("_kept", "_sock")

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._kept = b""

    def exactly(self, count: int, ahead: int = 0) -> bytes:
        """The next ``count`` bytes; up to ``ahead`` more may be fetched in the same call.

        Raises :class:`gsocks.errors.Truncated` at the end of the stream (:attr:`at_boundary`
        tells whether that came before the first byte), another StreamError if it breaks.
        """
        kept = self._kept
        if len(kept) < count:
            kept = self._fill(kept, count, ahead)
        if len(kept) == count:
            self._kept = b""
            return kept
        self._kept = kept[count:]
        return kept[:count]

    def _fill(self, kept: bytes, count: int, ahead: int) -> bytes:
        parts = [kept] if kept else []
        have = len(kept)
        while have < count:
            try:
                data = self._sock.recv(count - have + ahead)
            except OSError as error:
                raise stream_failure(error) from None
            if not data:
                self._kept = b"".join(parts)
                raise Truncated("the connection ended early")
            parts.append(data)
            have += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def at_boundary(self) -> bool:
        """Whether nothing has been read that was not handed out."""
        return not self._kept

    def take_rest(self) -> bytes:
        """What has been read and not been asked for."""
        rest, self._kept = self._kept, b""
        return rest


def send_all(sock: socket, data: bytes) -> None:
    """Send all of ``data``; raises StreamError.

    Without gevent's ``sendall``, which asks the kernel for SO_SNDBUF each time.
    """
    try:
        sent = sock.send(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            rest = rest[sock.send(rest) :]
    except OSError as error:
        raise stream_failure(error) from None


def tune(sock: socket | std_socket.socket) -> None:
    """What every TCP connection of gsocks wants: no Nagle delay, and dead peers noticed.

    Of a listening socket: what those that it accepts inherit, which saves six calls for each.
    """
    try:
        for level, option, value in _KEEPALIVE:
            sock.setsockopt(level, option, value)
    except OSError as error:
        raise stream_failure(error) from None


def reset(sock: socket) -> None:
    """Close so that the peer sees RST; wakes whoever is blocked on the socket."""
    try:
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass  # the peer was faster: there is no connection left to reset
    sock.close()


def hung_up(sock: socket) -> bool:
    """Whether the peer has ended its direction or the connection; reads nothing, never blocks."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def close_after_reply(sock: socket, seconds: float) -> None:
    """Close so that a last reply arrives.

    A close with unread bytes in the receive buffer makes the kernel send RST, which can
    overtake the reply; so end our direction first and read on until the peer ends its own, but
    for no longer than ``seconds`` (RFC 1928 section 6 allows 10).
    """
    try:
        gevent.with_timeout(seconds, _end_and_drain, sock, timeout_value=None)
    finally:
        sock.close()


def _end_and_drain(sock: socket) -> None:
    try:
        sock.shutdown(std_socket.SHUT_WR)
        while sock.recv(CHUNK):
            gevent.sleep(0)  # who never stops sending would stop everybody else
    except OSError:
        pass  # the peer was faster
