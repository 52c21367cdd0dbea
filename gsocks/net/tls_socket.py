"""A connection in TLS as a socket, for code that reads its protocol from a socket.

Once a request is understood, :func:`stream_of` makes a stream of it, as of any other socket, and
the hub carries that.
"""

from __future__ import annotations

import _socket
import socket as std_socket
import ssl
from typing import TYPE_CHECKING, Any, cast

from gsocks.errors import LayerFailed, StreamError
from gsocks.net.tls import TlsStream
from gsocks.sock import AnySocket, Socket
from gsocks.stream import Blocking, SocketStream, scratch_of_this_hub

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# the native calls, of the connection below
_shutdown, _setsockopt = _socket.socket.shutdown, _socket.socket.setsockopt


class TlsSocket(Socket):
    """The end of ``sock`` that has the certificate; it takes its descriptor.

    The handshake is that of :attr:`stream`, and comes before all else.  ``recv``, ``recv_into`` and
    ``send`` wait in the calling greenlet.  An end of the connection without that of TLS is an
    error.  All of them raise OSError.
    """

    __slots__ = ("_ahead", "_below", "stream")

    def __init__(self, sock: AnySocket, context: ssl.SSLContext) -> None:
        super().__init__(sock.family, sock.detach())
        self._below = _Below(self)
        self.stream = TlsStream(SocketStream(cast(Socket, self._below)), context, None)
        #: decrypted, and not read yet
        self._ahead = b""

    def without_tls(self) -> Socket:
        """The connection below, after a handshake that has failed; this one is closed then."""
        plain = Socket(self.family, self.detach())
        self.stream.abort()
        return plain

    def as_stream(self, pending: bytes = b"") -> TlsStream:
        """The stream, which is to be read instead of this from now on; ``pending`` comes first."""
        ahead, self._ahead = self._ahead, b""
        self.stream.unread(pending + ahead)
        return self.stream

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See :meth:`gsocks.sock.Socket.recv`."""
        if not self._ahead:
            try:
                self._ahead = self.stream.read()
            except StreamError as error:
                raise LayerFailed(error) from None
        return self._take(size, flags)

    def recv_into(self, room: WriteableBuffer, size: int = 0, flags: int = 0) -> int:
        """See :meth:`gsocks.sock.Socket.recv_into`."""
        view = memoryview(room)
        data = self.recv(size or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def receive_now(self, size: int, flags: int = 0) -> bytes:
        """See :func:`gsocks.sock.receive_now`."""
        if not self._ahead:
            try:
                data = self.stream.read_nowait(scratch_of_this_hub())
            except StreamError as error:
                raise LayerFailed(error) from None
            if data is None:
                raise BlockingIOError
            self._ahead = bytes(data)
        return self._take(size, flags)

    def _take(self, size: int, flags: int) -> bytes:
        data = self._ahead[:size]
        if not flags & std_socket.MSG_PEEK:
            self._ahead = self._ahead[size:]
        return data

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:  # noqa: ARG002
        """See :meth:`gsocks.sock.Socket.send`; takes all of it."""
        view = memoryview(data)
        try:
            self.stream.write(bytes(view))
        except StreamError as error:
            raise LayerFailed(error) from None
        return len(view)

    def shutdown(self, how: int, /) -> None:
        """End a direction; that of writing by the end of TLS, if there is room for it."""
        if how == std_socket.SHUT_WR:
            try:
                if self.stream.write_eof_nowait(scratch_of_this_hub()):
                    return
            except StreamError:
                pass  # TLS has not begun, or is broken
        _shutdown(self, how)

    def close(self) -> None:
        """Close it: after both ends of TLS cleanly, else by what the kernel does without them."""
        self._below.may_reset = False
        self.stream.close()


class _Below:
    """The connection below, as a :class:`gsocks.stream.SocketStream` uses it."""

    __slots__ = ("_owner", "may_reset")

    def __init__(self, owner: TlsSocket) -> None:
        self._owner = owner
        #: whether it is reset where a stream is aborted
        self.may_reset = True

    def fileno(self) -> int:
        return self._owner.fileno()

    def shutdown(self, how: int) -> None:
        _shutdown(self._owner, how)

    def setsockopt(self, *option: Any) -> None:
        if self.may_reset:
            _setsockopt(self._owner, *option)

    def close(self) -> None:
        Socket.close(self._owner)


def stream_of(sock: AnySocket, pending: bytes = b"") -> Blocking:
    """A client's connection as a stream, whose first bytes were read already."""
    if isinstance(sock, TlsSocket):
        return sock.as_stream(pending)
    return SocketStream(sock, pending)
