"""The HTTP server of the admin API: gevent's own WSGI server, with bounds."""

from __future__ import annotations

import io
import logging
import socket as std_socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from types import TracebackType
from typing import Any, Protocol

import gevent
from gevent.pool import Pool
from gevent.pywsgi import (  # type: ignore[attr-defined]  # two that its stubs leave out
    MAX_REQUEST_LINE,
    LoggingLogAdapter,
    WSGIHandler,
    WSGIServer,
    _InvalidClientInput,
)

from gsocks.address import Address
from gsocks.admin.problems import PROBLEM, ApiError
from gsocks.admin.wsgi import AUTHENTICATED, ENDLESS, TARGET, Environ, StartResponse, start
from gsocks.http.status import reason_phrase
from gsocks.net.unix import UnixAddress
from gsocks.turns import give_way

log = logging.getLogger("gsocks.admin.http")

#: connections that have shown the token, at a time; one more waits until one of them is closed
MAX_CONNECTIONS = 64

#: connections that have not; one more takes the place of the oldest
MAX_STRANGERS = 64

#: seconds in which a connection has to show the token
STRANGER_SECONDS = 10.0

#: seconds without progress of a read or a write
IO_TIMEOUT = 30.0

#: seconds for a request and its response together: a client that sends a byte now and then would
#: keep its connection for ever
MAX_REQUEST_SECONDS = 90.0

#: seconds in which a client has to read what an endless response tells it
STREAM_TIMEOUT = 10.0

#: seconds without a byte, and bytes, that a client may go on sending after its request was refused
LINGER_SECONDS, LINGER_BYTES = 2.0, 1 << 20

#: what pywsgi refuses before there is a request for the application, or because that has failed
_REFUSALS = {
    each.status.value: each
    for each in (
        ApiError(HTTPStatus.BAD_REQUEST, "what was sent is not HTTP/1.1"),
        ApiError(
            HTTPStatus.REQUEST_URI_TOO_LONG,
            f"the first line has more than {MAX_REQUEST_LINE - 1} bytes",
        ),
        ApiError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "more than 100 fields, or one of more than 65536 bytes",
        ),
        ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "gsocks has a fault, which its log tells"),
    )
}

_CLOSE = ("Connection", "close")


class App(Protocol):
    """A WSGI application (PEP 3333)."""

    def __call__(self, environ: Environ, start_response: StartResponse, /) -> Iterable[bytes]: ...


class _InTurns(io.RawIOBase):
    """What a client sends; others have their turn however fast that is."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        #: whether more was wanted than the client has sent
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        give_way()
        count: int = self._sock.recv_into(buffer)
        self.has_ended = not count
        return count


class _Handler(WSGIHandler):
    def __init__(self, sock: Any, address: Any, server: AdminServer) -> None:
        sock.settimeout(IO_TIMEOUT)
        super().__init__(sock, address, server)
        self.rfile.close()  # a reader of the socket, which stays open
        self._sent = _InTurns(sock)
        self.rfile = io.BufferedReader(self._sent)
        self._late: gevent.Greenlet[..., object] | None = None
        self._strangers = server.strangers
        self._strangers[self] = None
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.hang_up()

    def get_environ(self) -> Any:
        return {
            **super().get_environ(),
            AUTHENTICATED: self._authenticated,
            ENDLESS: self._go_on,
            TARGET: self.path,
        }

    def _authenticated(self) -> None:
        self._strangers.pop(self, None)

    def _go_on(self) -> None:
        """The response has no end, and each part of it has to be read soon."""
        if self._late is not None:
            self._late.kill(block=False)
        self.socket.settimeout(STREAM_TIMEOUT)
        # so that a client that reads nothing is behind by seconds, and not by what a buffer takes
        with suppress(OSError):
            self.socket.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_SNDBUF, 65536)

    def handle(self) -> None:
        late = gevent.spawn_later(STRANGER_SECONDS, self._hang_up_as_stranger)
        try:
            with suppress(OSError):  # the client is too slow or has closed the connection
                super().handle()
        finally:
            self._strangers.pop(self, None)
            late.kill(block=False)

    def handle_one_request(self) -> Any:
        late = self._late = gevent.spawn_later(MAX_REQUEST_SECONDS, self.hang_up)
        try:
            found = super().handle_one_request()
            if isinstance(found, tuple):  # a status, and pywsgi's own response
                self._refuse(_REFUSALS[int(found[0])])
                return None
        finally:
            late.kill(block=False)
        # a stranger has one request
        return None if found is True and self in self._strangers else found

    def read_request(self, raw_requestline: str) -> Any:
        """See pywsgi, which takes the end of the connection for the end of a head.

        A head without its end is no request (RFC 9112, 8).  Raises OSError then.
        """
        found = super().read_request(raw_requestline)
        if self._sent.has_ended:
            raise ConnectionAbortedError("the head of a request has no end")
        return found

    def _refuse(self, error: ApiError) -> None:
        """Answer what is not a request, and read on, as the client may still be sending.

        A close would have the kernel reset the connection, and the client lose the response.
        """
        body = error.as_json()
        self.socket.sendall(
            f"HTTP/1.1 {error.status.value} {reason_phrase(error.status)}\r\n"
            f"Content-Type: {PROBLEM}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        self.socket.shutdown(std_socket.SHUT_WR)
        self.socket.settimeout(LINGER_SECONDS)
        left = LINGER_BYTES
        while left > 0 and (read := self.rfile.read1(65536)):
            left -= len(read)

    def _hang_up_as_stranger(self) -> None:
        if self in self._strangers:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection, whatever its greenlet waits for."""
        # not an exception, after which pywsgi would read the rest of the body without a time limit
        with suppress(OSError, AttributeError):  # pywsgi has closed and forgotten it already
            self.socket.shutdown(std_socket.SHUT_RDWR)

    def handle_error(
        self,
        t: type[BaseException] | None,
        v: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(v, OSError):
            raise v
        super().handle_error(t, v, tb)

    def log_error(self, *_: object) -> None:
        # pywsgi's own line has the socket and what the client sent, both as a repr
        who = self.client_address
        client = Address.from_sockaddr(who) if isinstance(who, tuple) else "a Unix socket"
        log.warning("invalid HTTP request from %s", client)

    def _handle_client_error(self, ex: Exception) -> Any:
        if isinstance(ex, OSError) and not isinstance(ex, _InvalidClientInput):
            raise ex
        too_long: str = getattr(self.headers, "status", "")
        # the first of which pywsgi would print with a traceback
        if isinstance(ex, HTTPException) or too_long:
            self.log_error()
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE.value, b""
        return super()._handle_client_error(ex)  # type: ignore[misc]  # pywsgi's, for this

    def _send_error_response_if_possible(self, error_code: int) -> None:
        if self.response_length:
            self.close_connection = True
            return
        error = _REFUSALS[error_code]
        body = error.as_json()
        start(self.start_response, error.status, PROBLEM, len(body), [_CLOSE])
        self.write(b"" if self.command == "HEAD" else body)


class AdminServer(WSGIServer):
    """Serves ``app`` at ``listener``, an address or a listening socket."""

    def __init__(
        self, listener: tuple[str, int] | std_socket.socket, app: Callable[..., Iterable[bytes]]
    ) -> None:
        #: connections that have not shown the token, the oldest first
        self.strangers: dict[_Handler, None] = {}
        super().__init__(
            listener,
            app,
            # with a place for the one that takes a stranger's
            spawn=Pool(MAX_CONNECTIONS + MAX_STRANGERS + 1),
            handler_class=_Handler,
            log=LoggingLogAdapter(log, level=logging.DEBUG),
            error_log=LoggingLogAdapter(log, level=logging.WARNING),
        )

    @property
    def bound(self) -> Address:
        """Where it listens; known after ``start()``."""
        if not isinstance(self.address, tuple):
            return UnixAddress.of_listener(self.address)
        return Address.from_sockaddr(self.address)
