"""The one contract between the rooms: bytes in order, with an end that can be told from a loss.

A plain socket (:class:`SocketStream`, here) and a stream inside a tunnel
(:class:`gsocks.tunnel.TunnelStream`) both fulfil :class:`Stream` and pass the same contract test.
"""

from __future__ import annotations

import os
import select
import socket as std_socket
import struct
from typing import Protocol, TypeGuard

import gevent
from gevent.socket import socket

from gsocks.errors import StreamClosed, Truncated, stream_failure

#: bytes asked of the kernel at once; 64 KiB frames cost a third less CPU per GB than 16 KiB
#: ones, and buffers over 128 KiB fall to an mmap for each call (measured, docs/benchmarks.md)
CHUNK = 65536

Bytes = bytes | memoryview

NOTHING = memoryview(b"")

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


class Workbench:
    """Room for the bytes that are just being carried, which all streams of a hub share.

    The hub does one thing at a time: so an idle connection needs no buffers, and a busy one makes
    none for each of its chunks.
    """

    __slots__ = ("plain", "sealed")

    #: bytes that are carried at once at most
    room = 2 * CHUNK
    #: bytes by which sealing can lengthen them
    more = 1024

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(self.room))
        self.sealed = memoryview(bytearray(self.room + self.more))


class Pollable:
    """A Stream that can also be carried by the hub, where nothing may block: see gsocks/pump.py.

    So it costs no greenlet, not even while it has much to do.  Whoever uses these calls uses no
    others but ``abort`` and ``close``, which must come after the end of all watchers of
    :meth:`fileno`.  They raise what their blocking twins raise.
    """

    __slots__ = ()

    #: False where a kind of stream can't after all
    pollable = True

    def fileno(self) -> int:
        """What to watch: there may be something to read, or room to write."""
        raise NotImplementedError

    def read_nowait(self, bench: Workbench) -> Bytes | None:
        """The next bytes; ``b""`` at the end; None: nothing yet.

        They may lie on the bench, and so are good until it is used again.
        """
        raise NotImplementedError

    @property
    def at_hand(self) -> bool:
        """Whether there is something to read that the descriptor does not tell of."""
        raise NotImplementedError

    @property
    def read_ahead(self) -> bool:
        """Whether bytes have come together with what was before the stream; perhaps too few."""
        raise NotImplementedError

    def write_nowait(self, data: Bytes, bench: Workbench) -> bool:
        """Take all of ``data``; whether it is on its way, else :meth:`flush_nowait` follows."""
        raise NotImplementedError

    def write_eof_nowait(self, bench: Workbench) -> bool:
        """End this direction; as :meth:`write_nowait`."""
        raise NotImplementedError

    def flush_nowait(self) -> bool:
        """Send more of what was taken; whether all is on its way now."""
        raise NotImplementedError


def can_poll(stream: Stream) -> TypeGuard[Pollable]:
    """Whether the hub can carry it."""
    return isinstance(stream, Pollable) and stream.pollable


class SocketStream(Pollable):
    """A connected TCP socket as a :class:`Stream`; owns the socket.

    ``pending`` are bytes that were read together with what came before the stream (a client may
    send its request and its first payload in one write); they are read first.
    """

    __slots__ = ("_pending", "_read_ended", "_sock", "_unsent", "_write_ended")

    def __init__(self, sock: socket, pending: bytes = b"") -> None:
        self._sock: socket | None = sock
        self._pending = pending
        #: taken by write_nowait, and not on its way yet
        self._unsent = NOTHING
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

    # --- carried by the hub -----------------------------------------------------------------

    def fileno(self) -> int:
        return self._open_socket().fileno()

    def read_nowait(self, bench: Workbench) -> Bytes | None:
        fd = self.fileno()
        if self._pending:
            data, self._pending = self._pending[:CHUNK], self._pending[CHUNK:]
            return data
        if self._read_ended:
            return b""
        count = receive_into(fd, bench.plain)
        if count is None:
            return None
        self._read_ended = not count
        return bench.plain[:count]

    @property
    def at_hand(self) -> bool:
        return bool(self._pending)

    read_ahead = at_hand

    def write_nowait(self, data: Bytes, bench: Workbench) -> bool:  # noqa: ARG002
        sent = send_now(self.fileno(), data)
        if sent == len(data):
            return True
        self._unsent = memoryview(bytes(data[sent:]))
        return False

    def write_eof_nowait(self, bench: Workbench) -> bool:  # noqa: ARG002
        self.write_eof()
        return True

    def flush_nowait(self) -> bool:
        self._unsent = self._unsent[send_now(self.fileno(), self._unsent) :]
        if self._unsent:
            return False
        self._unsent = NOTHING
        return True

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

        Raises :class:`gsocks.errors.Truncated` at the end of the stream, another StreamError if
        it breaks; :attr:`at_boundary` tells whether that came before the first byte.
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
                self._kept = b"".join(parts)
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

    def keep(self, data: Bytes) -> None:
        """What somebody else has read from the socket, and is to be read next."""
        self._kept = bytes(data)


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


def receive_into(fd: int, room: memoryview) -> int | None:
    """Receive what there is; how many bytes, 0 at the end, None: nothing yet.

    Never blocks; raises StreamError.
    """
    try:
        return os.readv(fd, (room,))
    except BlockingIOError:
        return None
    except OSError as error:
        raise stream_failure(error) from None


def send_now(fd: int, data: Bytes) -> int:
    """Send as much of ``data`` as there is room for; how many bytes.

    Never blocks; raises StreamError.
    """
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
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
