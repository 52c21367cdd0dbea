"""The layers of the tunnels that a server accepts, as its config says."""

from __future__ import annotations

import ssl

from gsocks.net.certificates import identify
from gsocks.settings import TransportSettings
from gsocks.transport.layers import LayeredSocket
from gsocks.transport.options import OVER_WEBSOCKET, check
from gsocks.transport.tls import TlsLayer


class ServerTransport:
    """Adds the layers to accepted connections.

    Reads the certificate.  Raises ConfigError: a Mistake in the settings, or one that names a file.
    """

    __slots__ = ("_context", "_path")

    def __init__(self, settings: TransportSettings) -> None:
        check(settings)
        self._context: ssl.SSLContext | None = None
        if settings.cert is not None:
            self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.3 has none either
            identify(context, settings.cert, settings.key)
            if settings.alpn:
                context.set_alpn_protocols(settings.alpn)
        self._path = settings.path if settings.kind in OVER_WEBSOCKET else None

    @property
    def has_layers(self) -> bool:
        """False for TCP, to which nothing is added."""
        return self._context is not None or self._path is not None

    def begin(self, sock: LayeredSocket) -> None:
        """Agree on each layer with the client, under the caller's timeout.

        Raises StreamError, ClientError; the client has been answered then.
        """
        if self._context is not None:
            sock.begin(TlsLayer(self._context, None))
        if self._path is not None:
            # here, since most programs do without WebSocket
            from gsocks.transport.websocket import WebSocketServer

            sock.begin(WebSocketServer(self._path, sock.layer))
