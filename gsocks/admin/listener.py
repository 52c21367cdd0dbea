"""Where the admin's requests come in: gevent's own WSGI server, with bounds."""

from __future__ import annotations

import logging
import socket as std_socket
from typing import Any, cast

from gevent.pool import Pool
from gevent.pywsgi import LoggingLogAdapter, WSGIHandler, WSGIServer

from gsocks.address import Address
from gsocks.admin.app import App

#: connections at a time; one more waits until one of them ends
MOST_CONNECTIONS = 64

#: seconds in which the next bytes of a request must come, and those of an answer go
PATIENCE = 30.0


class _Handler(WSGIHandler):
    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        sock.settimeout(PATIENCE)
        super().__init__(sock, address, server)


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
