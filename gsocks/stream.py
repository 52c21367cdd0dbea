"""The contract that joins the packages: bytes in order, whose end differs from a loss.

:class:`NonblockingStream` is the contract.  Its calls never wait, so that the hub can carry a
stream without a greenlet (net/pump.py).  :class:`Blocking` makes of them the calls that wait, for
code in a greenlet that reads as its protocol does: ``read``, ``write`` and ``write_eof``, which are
all that :class:`Stream` requires.

A TCP socket (:class:`SocketStream`, here), a stream in a tunnel (tunnel/), TLS (net/tls.py) and a
stream with a bandwidth limit (net/bandwidth.py) pass the same contract test.
"""

from __future__ import annotations

import os
import select
import socket as std_socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

import gevent
from gevent.hub import Waiter

from gsocks.deadline import call_with_timeout
from gsocks.errors import StreamClosed, StreamError, Truncated, stream_failure
from gsocks.per_hub import PerHub
from gsocks.sock import READ as READ
from gsocks.sock import WRITE as WRITE
from gsocks.sock import AnySocket
from gsocks.turns import give_way

#: bytes requested from the kernel at once; 64 KiB frames cost a third less CPU per GB than 16 KiB
#: ones, and buffers over 128 KiB fall to an mmap for each call (measured, docs/benchmarks.md)
CHUNK = 65536

Bytes = bytes | memoryview

NOTHING = memoryview(b"")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# A peer that lost power or its network is noticed in two minutes: while data waits to be
# acknowledged, and while a connection is silent, when it is asked after one minute and then every
# 15 s (tcp(7): TCP_USER_TIMEOUT decides, not TCP_KEEPCNT).  A minute also keeps the state of
# middleboxes alive (cloud balancers forget a silent connection after 350 s).
_ASK_AFTER, _ASK_EVERY, _GIVE_UP = 60, 15, 120_000
# names of the module, since there is a connection for each of these calls
_SOCKET, _KEEPALIVE = std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE
_TCP, _NODELAY, _USER_TIMEOUT = (
    std_socket.IPPROTO_TCP,
    std_socket.TCP_NODELAY,
    std_socket.TCP_USER_TIMEOUT,
)
_KEEPIDLE, _KEEPINTVL = std_socket.TCP_KEEPIDLE, std_socket.TCP_KEEPINTVL


class Stream(Protocol):
    """A two-way stream of bytes whose directions end one by one.

    One greenlet may read while another writes; two greenlets may not do the same.  A failure of the
    stream is raised as a :class:`gsocks.errors.StreamError`, to the reader and to the writer.
    """

    def read(self) -> bytes:
        """Wait for the next bytes; ``b""`` at the end, and again after it."""

    def write(self, data: bytes) -> None:
        """Send all of ``data``; returns when it has left, which is the backpressure."""

    def write_eof(self) -> None:
        """End this direction; the other one goes on.  A second call does nothing."""

    def abort(self) -> None:
        """Give up: the far end sees a reset, and a greenlet blocked at this end StreamClosed.

        Never raises, never blocks; does nothing after ``close`` or ``abort``.
        """

    def close(self) -> None:
        """Release the stream.

        After the end of both directions this is a clean end; before, the far end sees a
        reset.  Never raises, never blocks; does nothing after ``close`` or ``abort``.
        """


class ScratchBuffers:
    """Two buffers for the bytes in transit, which all streams of a hub share.

    The hub does one thing at a time: so an idle connection needs no buffers, and a busy one
    allocates none for each of its chunks.
    """

    __slots__ = ("areas", "plain", "rooms", "sealed")

    #: bytes in transit at once
    room = 2 * CHUNK
    #: bytes by which sealing can lengthen them, by TLS within a tunnel too
    more = 2048

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(self.room))
        #: as ``os.readv`` takes it
        self.rooms = (self.plain,)
        self.sealed = memoryview(bytearray(self.room + self.more))
        #: what tunnels know of them
        self.areas: Any = None


#: the buffers of all that this thread's hub carries
scratch_of_this_hub = PerHub("scratch", ScratchBuffers).get


class Wait(NamedTuple):
    """A condition for trying again: events of the descriptor, or a time, whichever is first."""

    #: READ, WRITE or both; 0: the descriptor does not matter
    events: int
    #: None: no time is set
    seconds: float | None


READABLE = Wait(READ, None)
WRITABLE = Wait(WRITE, None)
#: for work that is there already, and is to leave the present turn to others (gsocks/turns.py)
NEXT_TURN = Wait(0, 0.0)


class ReadsToTheEnd(Protocol):
    """What has read a stream to its end, and does not read any more."""

    def broken(self, error: StreamError) -> None:
        """The stream is broken behind that end, while it was still written to."""


class NonblockingStream:
    """A stream whose calls never block: what each kind of stream has to provide.

    The hub can carry it, so it costs no greenlet, not even a busy one.  ``abort`` and ``close``
    are those of :class:`Stream`; they must come after the end of all watchers of :meth:`fileno`.
    Every call raises StreamError where the stream is broken or closed.
    """

    __slots__ = ()

    @property
    def never_blocks(self) -> bool:
        """False for a stream whose calls do block, as of :class:`gsocks.stream.BlockingInside`."""
        return True

    def fileno(self) -> int:
        """The descriptor whose events say that there is something to read, or room to write."""
        raise NotImplementedError

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        """The next bytes; ``b""`` at the end, and again after it; None: not yet.

        They may lie in ``scratch``, and so are good until it is used again.
        """
        raise NotImplementedError

    @property
    def read_wait(self) -> Wait:
        """What to wait for after ``read_nowait`` has returned None."""
        return READABLE

    @property
    def has_buffered(self) -> bool:
        """True if a read would return data although the descriptor does not poll readable."""
        raise NotImplementedError

    @property
    def has_prefetched(self) -> bool:
        """True if the first read must not wait for the descriptor.

        Bytes were received together with what was before the stream; perhaps too few for a read.
        """
        raise NotImplementedError

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        """Take all of ``data``, ``ScratchBuffers.room`` bytes at most.

        True: it has been sent.  False: ``flush_nowait`` has to follow until it returns True,
        before anything else is written.
        """
        raise NotImplementedError

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        """End this direction; returns as :meth:`write_nowait`.  A second call does nothing."""
        raise NotImplementedError

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        """Send more of what was taken; True if all of it has been sent now."""
        raise NotImplementedError

    @property
    def write_wait(self) -> Wait:
        """What to wait for before :meth:`gsocks.stream.NonblockingStream.flush_nowait`."""
        return WRITABLE

    def take_watcher(self) -> Any:
        """A watcher of ``fileno`` for READ, which is the caller's to use and to close.

        It may be active already, with another callback.
        """
        return gevent.get_hub().loop.io(self.fileno(), READ)

    def watch_end(self, watcher: Any, reader: ReadsToTheEnd) -> None:  # noqa: ARG002
        """Take the active watcher back, since ``reader`` has read the stream to its end.

        A stream in which something may come behind the end goes on watching, and tells the reader
        if that breaks it.  Raises StreamError if it is broken already.
        """
        watcher.close()

    def abort(self) -> None:
        """See :meth:`gsocks.stream.Stream.abort`."""
        raise NotImplementedError

    def close(self) -> None:
        """See :meth:`gsocks.stream.Stream.close`."""
        raise NotImplementedError


def watch(stream: NonblockingStream, wait: Wait, callback: Callable[..., Any], *args: Any) -> Any:
    """Started watchers that call back when ``wait`` is over; they are the caller's to close."""
    loop = gevent.get_hub().loop
    watchers: list[Any] = []
    if wait.events:
        watchers.append(loop.io(stream.fileno(), wait.events))
        watchers[0].start(callback, *args)
    if wait.seconds is not None:
        timer = loop.timer(max(0.0, wait.seconds))
        timer.start(callback, *args, update=True)
        watchers.append(timer)
    return watchers


#: a greenlet that waits in a call of :class:`Blocking`, and the watchers of what it waits for
_Waiting: TypeAlias = tuple[Any, Sequence[Any]]


class Blocking(NonblockingStream):
    """The calls of :class:`Stream` that wait, made of those that don't.

    A kind of stream derives from it, initialises it, and has its ``abort`` and ``close`` call
    ``_wake()`` before they close the descriptor.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        #: the greenlets that wait now: a reader, a writer
        self._waiting: tuple[_Waiting, ...] = ()

    def read(self) -> bytes:
        """See :meth:`Stream.read`; gives way to others first if this turn has lasted long."""
        give_way()  # before it has anything in hand: a timeout that is raised here loses nothing
        scratch = scratch_of_this_hub()
        while (data := self.read_nowait(scratch)) is None:
            self._wait(self.read_wait)
        return bytes(data)

    def write(self, data: bytes) -> None:
        """See :meth:`Stream.write`.

        A greenlet that is killed or times out meanwhile aborts the stream, whose data is cut there.
        """
        if len(data) <= ScratchBuffers.room:
            if data:
                self._write(data)
            return
        rest = memoryview(data)
        while rest:
            self._write(rest[: ScratchBuffers.room])
            rest = rest[ScratchBuffers.room :]

    def write_eof(self) -> None:
        """See :meth:`Stream.write_eof`."""
        if not self.write_eof_nowait(scratch_of_this_hub()):
            self._flush()

    def _write(self, data: Bytes) -> None:
        if not self.write_nowait(data, scratch_of_this_hub()):
            self._flush()

    def _flush(self) -> None:
        scratch = scratch_of_this_hub()
        try:
            self._wait(self.write_wait)
            while not self.flush_nowait(scratch):
                self._wait(self.write_wait)
        except StreamError:
            raise
        except BaseException:
            self.abort()
            raise

    def _wait(self, wait: Wait) -> None:
        hub = gevent.get_hub()
        waiter: Any = Waiter(hub)
        if wait.seconds is None:  # as nearly always
            watcher = hub.loop.io(self.fileno(), wait.events)
            watcher.start(waiter.switch, None)
            watchers: Sequence[Any] = (watcher,)
        else:
            watchers = watch(self, wait, waiter.switch, None)
        waiting = waiter, watchers
        self._waiting += (waiting,)
        try:
            waiter.get()
        finally:
            for watcher in watchers:
                watcher.close()
            if len(self._waiting) == 1:
                self._waiting = ()
            else:
                self._waiting = tuple([other for other in self._waiting if other is not waiting])

    def _wake(self) -> None:
        """Raise StreamClosed in the greenlets that wait.  Never blocks."""
        for waiter, watchers in self._waiting:
            for watcher in watchers:
                watcher.close()
            gevent.get_hub().loop.run_callback(waiter.throw, StreamClosed("closed at this end"))


class BlockingInside(Blocking):
    """A Stream that truly blocks, behind the calls that should not: they block their greenlet.

    So that a stream made of another one (TLS, a bandwidth limit) is written once.  Only a greenlet
    may use it, never the hub.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __repr__(self) -> str:
        return f"<BlockingInside: {self._stream!r}>"

    @property
    def never_blocks(self) -> bool:
        return False

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:  # noqa: ARG002
        return self._stream.read()

    @property
    def has_buffered(self) -> bool:
        return False

    has_prefetched = has_buffered

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        self._stream.write(bytes(data))
        return True

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        self._stream.write_eof()
        return True

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        return True

    def abort(self) -> None:
        self._stream.abort()

    def close(self) -> None:
        self._stream.close()


def is_nonblocking(stream: Stream) -> TypeGuard[NonblockingStream]:
    """True if the hub can carry the stream."""
    return isinstance(stream, NonblockingStream) and stream.never_blocks


def inner_stream(stream: Stream) -> Blocking:
    """``stream`` with all calls of :class:`Blocking`, for a stream that is made of it."""
    return stream if isinstance(stream, Blocking) else BlockingInside(stream)


class StreamOver(Blocking):
    """A stream that is made of another one, ``stream``, and owns it.

    What is to be waited for, and by which descriptor, is up to the one below.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._waiting = ()  # see SocketStream
        #: None once this one is closed
        self._stream: Blocking | None = inner_stream(stream)

    @property
    def never_blocks(self) -> bool:
        return self._stream is None or self._stream.never_blocks

    def fileno(self) -> int:
        return self._open_stream().fileno()

    def take_watcher(self) -> Any:
        return self._open_stream().take_watcher()

    def watch_end(self, watcher: Any, reader: ReadsToTheEnd) -> None:
        self._open_stream().watch_end(watcher, reader)

    @property
    def read_wait(self) -> Wait:
        return self._open_stream().read_wait

    @property
    def write_wait(self) -> Wait:
        return self._open_stream().write_wait

    def _open_stream(self) -> Blocking:
        if self._stream is None:
            raise StreamClosed("closed at this end")
        return self._stream


def directions(read_ended: bool, write_ended: bool) -> str:
    """Which directions of a stream are open, for its repr."""
    if read_ended:
        return "both directions ended" if write_ended else "read ended"
    return "write ended" if write_ended else "open"


class SocketStream(Blocking):
    """A connected TCP socket as a :class:`Stream`; owns the socket.

    ``pending`` are bytes that were read together with what came before the stream (a client may
    send its request and its first payload in one write); they are read first.  ``watcher``: one of
    the socket that has served before, and is the stream's now.
    """

    __slots__ = (
        "_has_asked",
        "_pending",
        "_sock",
        "_unsent",
        "_watcher",
        "_write_ended",
        "has_buffered",
        "read_ended",
    )

    #: an attribute, not a property: it is asked for at each chunk
    has_buffered: bool

    def __init__(self, sock: AnySocket, pending: bytes = b"", watcher: Any = None) -> None:
        self._waiting = ()  # the call of super() would cost each connection as much as the rest
        self._sock: AnySocket | None = sock
        #: see take_watcher
        self._watcher = watcher
        self._pending = pending
        self.has_buffered = bool(pending)
        #: taken by write_nowait, and not sent yet
        self._unsent = NOTHING
        #: whether the end was read, be it by another one who has the descriptor
        self.read_ended = False
        self._write_ended = False
        #: whether something was written after the last read
        self._has_asked = False

    def read(self) -> bytes:
        """See :meth:`Stream.read`."""
        # Behind a write the answer is still to come: to try at once would cost more than the wait.
        if self._has_asked and not self._pending and not self.read_ended:
            self._has_asked = False
            self._wait(READABLE)  # and all others have had their turn
            data = self.read_nowait(scratch_of_this_hub())
            if data is not None:
                return bytes(data)
        return super().read()

    def write(self, data: bytes) -> None:
        """See :meth:`Blocking.write`."""
        self._has_asked = True
        super().write(data)

    @property
    def is_silent(self) -> bool:
        """True if the peer has sent nothing and has not ended its direction.  Never blocks."""
        if self._sock is None or self._pending or self.read_ended:
            return False
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def __repr__(self) -> str:
        if self._sock is None:
            return "<SocketStream: closed>"
        state = directions(self.read_ended, self._write_ended)
        return (
            f"<SocketStream: {state}, {len(self._pending)} bytes to read,"
            f" {len(self._unsent)} to send>"
        )

    # The calls below are made several times for each connection: what they share is written out in
    # each of them, because the calls would cost as much as the work.

    def fileno(self) -> int:
        sock = self._sock
        if sock is None:
            raise StreamClosed("closed at this end")
        return sock.fileno()

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        sock = self._sock
        if sock is None:
            raise StreamClosed("closed at this end")
        if self._pending:
            data, self._pending = self._pending[:CHUNK], self._pending[CHUNK:]
            self.has_buffered = bool(self._pending)
            return data
        if self.read_ended:
            return b""
        room = scratch.plain
        try:
            count = os.readv(sock.fileno(), scratch.rooms)
        except BlockingIOError:
            return None
        except OSError as error:
            raise stream_failure(error) from None
        self.read_ended = not count
        return room[:count]

    @property
    def has_prefetched(self) -> bool:
        return self.has_buffered

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        sock = self._sock
        if sock is None:
            raise StreamClosed("closed at this end")
        try:
            sent = os.write(sock.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise stream_failure(error) from None
        if sent == len(data):
            return True
        self._unsent = memoryview(bytes(data[sent:]))
        return False

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        if not self._write_ended:
            sock = self._sock
            if sock is None:
                raise StreamClosed("closed at this end")
            try:
                sock.shutdown(std_socket.SHUT_WR)
            except OSError as error:
                raise stream_failure(error) from None
            self._write_ended = True
        return True

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        self._unsent = self._unsent[send_now(self.fileno(), self._unsent) :]
        if self._unsent:
            return False
        self._unsent = NOTHING
        return True

    def keep_unsent(self, data: memoryview) -> None:
        """Have ``flush_nowait`` send that: the rest of what was sent by the descriptor."""
        self._unsent = memoryview(bytes(data))

    def take_watcher(self) -> Any:
        return self.descriptor()[1]

    def descriptor(self) -> tuple[AnySocket, Any]:
        """The socket, for who reads and writes it directly, and what ``take_watcher`` gives.

        Raises StreamClosed.
        """
        sock = self._sock or self._open_socket()
        watcher, self._watcher = self._watcher, None
        return sock, gevent.get_hub().loop.io(sock.fileno(), READ) if watcher is None else watcher

    def abort(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._let_go()
            reset(sock)

    def close(self) -> None:
        if not (self.read_ended and self._write_ended):
            self.abort()
            return
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._waiting or self._watcher is not None:
                self._let_go()
            sock.close()

    def _let_go(self) -> None:
        """Wake the greenlets that wait, and close the watcher."""
        self._wake()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def detach(self) -> AnySocket:
        """The socket, for another owner; the stream is closed then.

        Raises StreamClosed, or ValueError while there are pending bytes, which would be lost.
        """
        if self._pending:
            raise ValueError("bytes of the stream are pending")
        sock = self._open_socket()
        self._sock = None
        self._let_go()
        return sock

    def _open_socket(self) -> AnySocket:
        if self._sock is None:
            raise StreamClosed("closed at this end")
        return self._sock


class Reader:
    """Exact reads from a socket.  One recv is not one message: it may be a part, or several.

    Bytes received beyond those requested are kept for the next read; an idle reader keeps none.
    ``received``: the first ones, which were received already.
    """

    __slots__ = ("_kept", "_sock")

    def __init__(self, sock: AnySocket, received: bytes = b"") -> None:
        self._sock = sock
        self._kept = received

    def exactly(self, count: int, ahead: int = 0) -> bytes:
        """The next ``count`` bytes; up to ``ahead`` more may be fetched in the same call.

        Raises :class:`gsocks.errors.Truncated` at the end of the stream, another StreamError if
        it breaks; :attr:`at_boundary` is True if that came before the first byte.
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
        """True if every byte that was received has been returned."""
        return not self._kept

    def take_rest(self) -> bytes:
        """The bytes that were received beyond those requested."""
        rest, self._kept = self._kept, b""
        return rest


def send_all(sock: AnySocket, data: bytes) -> None:
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
    """Receive the bytes that have arrived; how many, 0 at the end, None: none yet.

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


def tune(sock: AnySocket | std_socket.socket) -> None:
    """Set the options of a TCP connection: no Nagle delay, and dead peers are noticed.

    On a listening socket: accepted sockets inherit them, which saves five calls for each.
    """
    try:
        set_option = sock.setsockopt
        set_option(_TCP, _NODELAY, 1)
        set_option(_SOCKET, _KEEPALIVE, 1)
        set_option(_TCP, _KEEPIDLE, _ASK_AFTER)
        set_option(_TCP, _KEEPINTVL, _ASK_EVERY)
        set_option(_TCP, _USER_TIMEOUT, _GIVE_UP)
    except OSError as error:
        raise stream_failure(error) from None


def reset(sock: AnySocket) -> None:
    """Close so that the peer sees RST; wakes greenlets that are blocked on the socket."""
    try:
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass  # the peer has closed first: there is no connection left to reset
    sock.close()


def hung_up(sock: AnySocket) -> bool:
    """True if the peer has ended its direction or the connection; reads nothing, never blocks."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def close_with_fin(sock: AnySocket) -> None:
    """Close so that the peer sees FIN, and no RST before it, whatever it has sent.  Never blocks.

    A close while bytes wait to be read makes the kernel send RST instead of FIN.  Does nothing the
    second time.
    """
    if sock.fileno() < 0:
        return
    try:
        sock.shutdown(std_socket.SHUT_WR)
        receive_into(sock.fileno(), scratch_of_this_hub().plain)
    except (OSError, StreamError):
        pass  # the peer has closed first
    sock.close()


def close_after_reply(sock: AnySocket, seconds: float) -> None:
    """Close so that a last reply arrives.

    A close with unread bytes in the receive buffer makes the kernel send RST, which can
    overtake the reply; so end our direction first and read on until the peer ends its own, but
    for no longer than ``seconds`` (RFC 1928 section 6 allows 10).
    """
    try:
        call_with_timeout(seconds, _end_and_drain, sock, on_timeout=None)
    finally:
        sock.close()


def _end_and_drain(sock: AnySocket) -> None:
    try:
        sock.shutdown(std_socket.SHUT_WR)
        while sock.recv(CHUNK):
            give_way()  # a peer that never stops sending must not stop other greenlets
    except OSError:
        pass  # the peer has closed first
