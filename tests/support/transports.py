"""Tunnels over each transport, and what TLS needs for that."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import trustme
from gevent.socket import socket

from gsocks.crypto import Cipher, KeyRing
from gsocks.replay import ReplayGuard
from gsocks.settings import TransportSettings
from gsocks.stream import tune
from gsocks.transport.client import ClientTransport, WebSocketRequest
from gsocks.transport.layers import LayeredSocket
from gsocks.transport.options import OVER_TLS, OVER_WEBSOCKET
from gsocks.transport.server import ServerTransport
from gsocks.transport.tls import TlsLayer
from gsocks.transport.tunnels import LayeredClientTunnel, LayeredServerTunnel
from gsocks.tunnel.client import connect_tunnel
from gsocks.tunnel.server import accept_tunnel
from tests.support.stream_contract import tcp_pair
from tests.support.tunnel_parts import BOTH, KEY

#: those with layers
KINDS = ("tls", "ws", "wss")
#: what the certificate is for, and where the WebSocket is
NAME, PATH = "tunnel.example", "/updates"


class Certificates:
    """An authority, and the certificate of a server, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        #: who has to be trusted
        self.ca = folder / "ca.pem"
        #: the server's certificate with its key
        self.server = folder / "server.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        issued = self.authority.issue_cert(NAME, "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(self.server)

    def settings(self, kind: str) -> TransportSettings:
        """Those of a server."""
        return TransportSettings(
            kind=kind,  # type: ignore[arg-type] # one of KINDS
            cert=self.server if kind in OVER_TLS else None,
            path=PATH if kind in OVER_WEBSOCKET else "/",
        )

    def query(self, kind: str) -> str:
        """The same for the URL of an exit."""
        tls = f"&ca={self.ca}&sni={NAME}" if kind in OVER_TLS else ""
        return f"transport={kind}{tls}" + (f"&path={PATH}" if kind in OVER_WEBSOCKET else "")

    def client(self, kind: str) -> ClientTransport:
        """The client's end."""
        context = ssl.create_default_context(cafile=self.ca)
        return ClientTransport(
            (lambda: TlsLayer(context, NAME)) if kind in OVER_TLS else None,
            WebSocketRequest(NAME, PATH) if kind in OVER_WEBSOCKET else None,
        )


def layered_pair(
    kind: str, certificates: Certificates, near: socket, far: socket
) -> tuple[LayeredSocket, LayeredSocket]:
    """Two connected sockets, a client's and a server's, with the layers of a transport."""
    client, server = LayeredSocket(near), LayeredSocket(far)
    accepting = gevent.spawn(ServerTransport(certificates.settings(kind)).begin, server)
    certificates.client(kind).begin(client)
    accepting.get()
    return client, server


@contextmanager
def layered_tunnels(
    kind: str,
    certificates: Certificates,
    cipher: Cipher = Cipher.SECRETBOX,
    buffer: int | None = None,
) -> Iterator[tuple[LayeredClientTunnel, LayeredServerTunnel]]:
    """Both ends of a tunnel, agreed as in life."""
    sockets = tcp_pair(buffer)
    for sock in sockets:
        tune(sock)
    near, far = layered_pair(kind, certificates, *sockets)
    guard = ReplayGuard(started_ms=0)
    accepting = gevent.spawn(
        accept_tunnel, far, KeyRing({"alice": KEY}), guard, BOTH, LayeredServerTunnel
    )
    client = connect_tunnel(near, KEY, cipher, LayeredClientTunnel)
    server = accepting.get()
    guard.close()
    assert isinstance(client, LayeredClientTunnel)
    assert isinstance(server, LayeredServerTunnel)
    try:
        yield client, server
    finally:
        client.close()
        server.close()
