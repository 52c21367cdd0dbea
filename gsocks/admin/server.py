"""Where the admin's requests come in: gevent's own WSGI server, with bounds."""

from __future__ import annotations

import logging
import socket as std_socket
from contextlib import suppress
from types import TracebackType
from typing import Any, cast

import gevent
from gevent.pool import Pool
from gevent.pywsgi import LoggingLogAdapter, WSGIHandler, WSGIServer

from gsocks.address import Address
from gsocks.admin.app import App

#: connections at a time; one more waits until one of them ends
MOST_CONNECTIONS = 64

#: seconds in which the next bytes of a request must come, and those of an answer go
PATIENCE = 30.0

#: seconds from one request to the next, all in all: whoever says a byte now and then would keep
#: one of the connections for ever
LONGEST = 90.0


class _Handler(WSGIHandler):
    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        sock.settimeout(PATIENCE)
        super().__init__(sock, address, server)

    def handle(self) -> None:
        with suppress(OSError):  # a client is too slow or has gone, which is no fault of ours
            super().handle()

    def handle_one_request(self) -> Any:
        late = gevent.spawn_later(LONGEST, self._hang_up)
        try:
            return super().handle_one_request()
        finally:
            late.kill(block=False)

    def _hang_up(self) -> None:
        # not an exception, after which pywsgi would read the rest of a body for as long as it takes
        with suppress(OSError):
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

    def _handle_client_error(self, ex: Exception) -> Any:
        if isinstance(ex, OSError):
            raise ex
        return super()._handle_client_error(ex)  # type: ignore[misc]  # pywsgi's, for this


class AdminServer(WSGIServer):
    """Serves ``app`` at ``listener``, an address or a listening socket."""

    def __init__(self, listener: tuple[str, int] | std_socket.socket, app: App) -> None:
        log = logging.getLogger("gsocks.admin.http")
        super().__init__(
            listener,
            app,
            spawn=Pool(MOST_CONNECTIONS),
            handler_class=_Handler,
            log=LoggingLogAdapter(log, level=logging.DEBUG),
            error_log=LoggingLogAdapter(log, level=logging.WARNING),
        )

    @property
    def bound(self) -> Address:
        """Where it listens; known after :meth:`start`."""
        return Address.from_sockaddr(cast(tuple[str, int], self.address))
