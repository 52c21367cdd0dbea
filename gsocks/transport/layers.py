"""Layers between a tunnel and its descriptor: bytes in, and other bytes out.

    tunnel  -- boxes -->  WebSocket  -- messages -->  TLS  -- records -->  descriptor

A layer never waits.  It has the two calls by which a tunnel receives and sends over a descriptor
alone (:func:`gsocks.stream.receive_into`, :func:`gsocks.stream.send_now`), so that the hub carries
a tunnel over layers like any other.  :class:`LayeredSocket` has the calls that wait.

What a layer has received may be more than was asked for, and the descriptor does not poll readable
for it: then :attr:`Layer.has_backlog` is True.  What it has made of bytes may be more than there is
room for: then it takes one byte less than all of them, and takes that when the rest has left.  So
its user, which still has a byte to send, waits for room and calls again.
"""

from __future__ import annotations

import socket as std_socket
from typing import TYPE_CHECKING, Any, Protocol

from gsocks.errors import LayerFailed, StreamError, stream_failure
from gsocks.sock import READ, WRITE, AnySocket, Socket
from gsocks.stream import NOTHING, Bytes, receive_into, scratch_of_this_hub, send_now
from gsocks.turns import give_way

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class Below(Protocol):
    """What a layer receives from and sends to: another layer, or the descriptor itself."""

    @property
    def has_backlog(self) -> bool:
        """True if a call may receive something although the descriptor does not poll readable."""

    def receive_some(self, fd: int, room: memoryview, /) -> int | None:
        """See :func:`gsocks.stream.receive_into`; None may have used up the backlog."""

    def send_some(self, fd: int, data: Bytes, /) -> int:
        """See :func:`gsocks.stream.send_now`."""

    def farewell(self, fd: int, /) -> None:
        """Say that nothing follows, if that can leave at once.  Never raises, never waits."""


class _Descriptor:
    """The descriptor itself, whose farewell is its FIN."""

    __slots__ = ()

    has_backlog = False
    receive_some = staticmethod(receive_into)
    send_some = staticmethod(send_now)

    def farewell(self, fd: int, /) -> None:
        """See :meth:`Below.farewell`."""


BARE: Below = _Descriptor()


class Layer:
    """One layer of a connection, over ``below``."""

    __slots__ = ("_below", "_failure", "_is_held", "_is_over", "_owed", "has_backlog")

    def __init__(self, below: Below = BARE) -> None:
        self._below = below
        #: see :attr:`Below.has_backlog`
        self.has_backlog = False
        #: made, and not taken below yet
        self._owed: Bytes = NOTHING
        #: whether the last byte of what was to be sent is among them, and was not taken yet
        self._is_held = False
        #: whether nothing follows from the far end
        self._is_over = False
        #: what broke the layer, behind all that was received before
        self._failure: StreamError | None = None

    def begin(self, fd: int) -> int:
        """Take the handshake as far as it goes: the events to wait for next, 0 at its end.

        Raises StreamError, ClientError; the far end has been told what it is to know then.
        """
        raise NotImplementedError

    def receive_some(self, fd: int, room: memoryview) -> int | None:
        """See :meth:`Below.receive_some`."""
        raise NotImplementedError

    def send_some(self, fd: int, data: Bytes) -> int:
        """See :meth:`Below.send_some`: of ``data`` that was not taken, the same has to follow."""
        taken = 0
        if not self._flush(fd):
            return 0
        if self._is_held:
            self._is_held = False
            taken, data = 1, data[1:]
            if not data:
                return taken
        made = self._make(data)
        self._owed = made[self._below.send_some(fd, made) :] or NOTHING
        self._is_held = bool(self._owed)
        return taken + len(data) - self._is_held

    def farewell(self, fd: int) -> None:
        """See :meth:`Below.farewell`."""
        try:
            if self._flush(fd):
                self._below.send_some(fd, self._make_farewell())
        except StreamError:
            pass  # the connection has broken, which needs no farewell
        self._below.farewell(fd)

    # --- for the kinds of layers --------------------------------------------------------------

    def _make(self, data: Bytes) -> memoryview:
        """What is sent below for ``data``, behind what is to be said anyway.  Raises StreamError"""
        raise NotImplementedError

    def _make_farewell(self) -> Bytes:
        """The last that is sent below.  Raises StreamError."""
        raise NotImplementedError

    def _make_answer(self) -> Bytes:
        """What is to be said to what was received, such as the answer to a ping; may be nothing."""
        raise NotImplementedError

    def _flush(self, fd: int) -> bool:
        """Send what is owed; True if that has left.  Raises StreamError."""
        if self._owed:
            self._owed = self._owed[self._below.send_some(fd, self._owed) :] or NOTHING
        return not self._owed

    def _answer(self, fd: int) -> bool:
        """Send what is to be said; True if it has left.

        Raises StreamError.
        """
        if not self._flush(fd):
            return False
        self._owed = self._make_answer()
        return self._flush(fd)

    def _received(self, fd: int, filled: int) -> int | None:
        """What :meth:`receive_some` returns, or raises, after it has received so many bytes."""
        try:
            self._answer(fd)
        except StreamError:
            pass  # as the next call is told, behind what was received before
        if not filled:
            if self._failure is not None:
                raise self._failure
            return 0 if self._is_over else None
        if self._is_over or self._failure is not None:
            self.has_backlog = True
        return filled


class LayeredSocket(Socket):
    """A connected socket with layers: it takes the descriptor of ``sock``, which it owns then.

    ``recv``, ``recv_into`` and ``send`` wait in the calling greenlet.  ``shutdown`` and ``close``
    say farewell first, unless the connection is to be reset.  All of them raise OSError.
    """

    __slots__ = ("_is_to_part", "layer")

    def __init__(self, sock: AnySocket) -> None:
        super().__init__(sock.family, sock.detach())
        #: the uppermost layer
        self.layer: Below = BARE
        #: whether a farewell is due
        self._is_to_part = True

    def begin(self, layer: Layer) -> None:
        """Put ``layer``, which is over the present one, on top once its handshake has succeeded.

        Waits for the far end.  Raises StreamError, ClientError; the socket is the caller's to close
        then.
        """
        try:
            while events := layer.begin(self.fileno()):
                self._wait(events)
        except OSError as error:  # closed meanwhile
            raise stream_failure(error) from None
        self.layer = layer

    def recv(self, size: int, flags: int = 0, /) -> bytes:  # noqa: ARG002
        """See :meth:`gsocks.sock.Socket.recv`."""
        room = bytearray(size)
        return bytes(room[: self.recv_into(room)])

    def recv_into(self, room: WriteableBuffer, size: int = 0, flags: int = 0) -> int:  # noqa: ARG002
        """See :meth:`gsocks.sock.Socket.recv_into`."""
        view = memoryview(room)
        try:
            while (count := self.layer.receive_some(self.fileno(), view)) is None:
                if self.layer.has_backlog:
                    give_way()
                else:
                    self._wait(READ)
        except StreamError as error:
            raise LayerFailed(error) from None
        return count

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:  # noqa: ARG002
        """See :meth:`gsocks.sock.Socket.send`."""
        view = memoryview(data)
        try:
            while not (sent := self.layer.send_some(self.fileno(), view)):
                self._wait(WRITE)
        except StreamError as error:
            raise LayerFailed(error) from None
        return sent

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """As that of any socket."""
        if (level, option) == (std_socket.SOL_SOCKET, std_socket.SO_LINGER):
            self._is_to_part = False  # it is about to be reset
        super().setsockopt(level, option, *value)

    def shutdown(self, how: int, /) -> None:
        """End a direction."""
        if how != std_socket.SHUT_RD:
            self._part()
        super().shutdown(how)

    def close(self) -> None:
        """See :meth:`gsocks.sock.Socket.close`."""
        if self._part():
            # unread, what a layer has for itself would make the kernel send RST, and no farewell
            try:
                receive_into(self.fileno(), scratch_of_this_hub().plain)
            except StreamError:
                pass  # the peer has closed first
        super().close()

    def _part(self) -> bool:
        """Say farewell if that is due; whether it was."""
        is_to_part, self._is_to_part = self._is_to_part and self.fileno() >= 0, False
        if is_to_part:
            self.layer.farewell(self.fileno())
        return is_to_part
