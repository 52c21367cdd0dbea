"""Floods by strangers that speak the transport of a server, and know no key."""

from __future__ import annotations

import socket
import ssl

import trustme
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Ping

from tests.attack.flood import PATIENT, Attacked, Scene, flood
from tests.attack.witness import Witness

_REQUEST = (
    b"GET /updates HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _server(scene: Scene, transport: str, options: str) -> tuple[int, Attacked]:
    """A server, whose witness opens a tunnel for each of its requests."""
    server = scene.gsocks(
        "server:\n  listen: 127.0.0.1:0\n  keys: {default: {file: gsocks.key}}\n"
        f"  rules: [allow all]\n  transport: {{{transport}}}\n"
    )
    port = server.port("server")
    local = scene.gsocks(
        f"local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  pool: {{size: 0}}\n  {PATIENT}\n"
        f"  exits: [{{url: 'gsocks://127.0.0.1:{port}', key_file: gsocks.key, {options}}}]\n"
    )
    return port, Attacked(server, Witness(local.port()))


def _upgrade(sock: socket.socket) -> None:
    sock.sendall(_REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = sock.recv(1)
        if not part:
            raise ConnectionResetError
        head += part


def _by_websocket(scene: Scene, said: bytes) -> Attacked:
    port, attacked = _server(scene, "kind: ws, path: /updates", "transport: ws, path: /updates")
    scene.pour(port, said, _upgrade)
    return attacked


@flood("a stranger sends a WebSocket frames of one byte without end")
def websocket_tiny_frames(scene: Scene) -> Attacked:
    return _by_websocket(scene, Connection(ConnectionType.CLIENT).send(BytesMessage(b"x")) * 10_000)


@flood("a stranger sends a WebSocket pings without end")
def websocket_pings(scene: Scene) -> Attacked:
    return _by_websocket(scene, Connection(ConnectionType.CLIENT).send(Ping(bytes(125))) * 1000)


@flood("a stranger asks a WebSocket's server for pages without pause")
def websocket_pages(scene: Scene) -> Attacked:
    port, attacked = _server(scene, "kind: ws, path: /updates", "transport: ws, path: /updates")

    def ask() -> None:
        with scene.connect(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            while sock.recv(4096):
                pass

    scene.keep_doing(ask)
    return attacked


@flood("a stranger begins TLS without pause")
def tls_hellos(scene: Scene) -> Attacked:
    authority = trustme.CA()
    issued = authority.issue_cert("tunnel.example")
    issued.private_key_and_cert_chain_pem.write_to_path(scene.folder / "server.pem")
    port, attacked = _server(scene, "kind: tls, cert: server.pem", "transport: tls, insecure: true")
    hello = client_hello()

    def begin() -> None:
        with scene.connect(port) as sock:
            sock.sendall(hello)
            sock.recv(4096)

    scene.keep_doing(begin)
    return attacked


def client_hello() -> bytes:
    """The first message of a client of TLS."""
    arrived, made = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.wrap_bio(arrived, made, server_hostname="tunnel.example").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return made.read()
