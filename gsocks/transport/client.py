"""The layers of a tunnel to a server, as its exit's URL says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gsocks.errors import TlsFailed
from gsocks.transport.layers import LayeredSocket
from gsocks.transport.tls import TlsLayer

#: what WebSocket is a part of, as ALPN calls it
_HTTP = "http/1.1"


class WebSocketRequest(NamedTuple):
    """What a WebSocket is asked for with."""

    #: the value of Host
    host: str
    path: str


class ClientTransport:
    """Adds the layers to connections: TLS, which ``secure`` makes, and above it a WebSocket.

    Either may be None, and is left out then.
    """

    __slots__ = ("_request", "_secure")

    def __init__(
        self, secure: Callable[[], TlsLayer] | None, request: WebSocketRequest | None
    ) -> None:
        self._secure = secure
        self._request = request

    def begin(self, sock: LayeredSocket) -> None:
        """Agree on each layer with the server, under the caller's timeout.  Raises StreamError."""
        if self._secure is not None:
            tls = self._secure()
            sock.begin(tls)
            if self._request is not None and tls.protocol not in (None, _HTTP):
                raise TlsFailed(f"the far end has selected {tls.protocol}, which has no WebSocket")
        if self._request is not None:
            # here, since most programs do without WebSocket
            from gsocks.transport.websocket import WebSocketClient

            sock.begin(WebSocketClient(*self._request, sock.layer))
