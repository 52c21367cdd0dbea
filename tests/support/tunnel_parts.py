"""Tunnels for tests: agreed as in life, with the other end by hand, and the hellos of strangers."""

from __future__ import annotations

import os
import select
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gevent
from gevent.socket import socket, socketpair

from gsocks.address import Address
from gsocks.crypto import REPLY_HEAD_SIZE, VERSION, Cipher, Initiator, Key, KeyRing, Session
from gsocks.replay import ReplayGuard, now_ms
from gsocks.request import Command, Request
from gsocks.stream import tune
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.frames import HEADER_SIZE
from gsocks.tunnel.server import ServerTunnel, accept_tunnel
from gsocks.tunnel.streams import TunnelStream
from tests.support import make_vectors, other_end
from tests.support.engine import read_exactly
from tests.support.stream_contract import tcp_pair

KEY, OTHER_KEY = Key(bytes(range(32))), Key(bytes(range(32, 64)))
BOTH = Cipher.SECRETBOX | Cipher.AEGIS256
DEST = Address("example.com", 443)
BOUND = Address("192.0.2.7", 50000)
CONNECT = Request(Command.CONNECT, DEST)


# --- both ends of a tunnel --------------------------------------------------------------------


def agree(near: socket, far: socket, cipher: Cipher) -> tuple[ClientTunnel, ServerTunnel]:
    """A tunnel over two connected sockets, agreed as in life."""
    guard = ReplayGuard(started_ms=0)
    accepting = gevent.spawn(accept_tunnel, far, KeyRing({"alice": KEY}), guard, BOTH)
    client = connect_tunnel(near, KEY, cipher)
    server = accepting.get()
    guard.close()
    assert client.cipher is server.cipher is cipher
    return client, server


@contextmanager
def tunnels(
    cipher: Cipher = Cipher.SECRETBOX, buffer: int | None = None
) -> Iterator[tuple[ClientTunnel, ServerTunnel]]:
    near, far = tcp_pair(buffer)
    tune(near)
    tune(far)
    client, server = agree(near, far, cipher)
    try:
        yield client, server
    finally:
        client.close()
        server.close()


def ignore_end(reusable: bool) -> None:
    """How the stream ended is not this test's matter."""


def open_stream(
    client: ClientTunnel,
    server: ServerTunnel,
    client_ended: Callable[[bool], None] = ignore_end,
    server_ended: Callable[[bool], None] = ignore_end,
) -> tuple[TunnelStream, TunnelStream]:
    opening = gevent.spawn(client.open, CONNECT)
    assert server.accept() == Request(Command.CONNECT, DEST, "alice")
    server.succeeded(BOUND)
    assert opening.get() == BOUND
    return TunnelStream(client, client_ended), TunnelStream(server, server_ended)


def sessions(cipher: Cipher = Cipher.SECRETBOX) -> tuple[Session, Session]:
    """The client's and the server's; each call the same keys, and counts that begin at 0."""
    initiator, responder, rest = make_vectors.both_parts(KEY, BOTH, 0)
    said = responder.read(rest)
    reply, far = responder.reply(cipher, features=said.features)
    return initiator.finish(reply[:REPLY_HEAD_SIZE], reply[REPLY_HEAD_SIZE:]), far


def frame(session: Session, kind: int, body: bytes = b"") -> bytes:
    """The next one, as it travels."""
    header = session.seal(bytes((kind,)) + len(body).to_bytes(3, "big"))
    return header + session.seal(body) if body else header


class ByHand(NamedTuple):
    """One end of a tunnel whose frames the test makes itself."""

    sock: socket
    session: Session

    def send(self, kind: int, body: bytes = b"") -> None:
        self.sock.sendall(frame(self.session, kind, body))

    def receive(self) -> tuple[int, bytes]:
        overhead = self.session.overhead
        header = self.session.open(read_exactly(self.sock, HEADER_SIZE + overhead))
        length = int.from_bytes(header[1:], "big")
        if not length:
            return header[0], b""
        return header[0], self.session.open(read_exactly(self.sock, length + overhead))

    def end(self) -> None:
        """No byte comes any more."""
        self.sock.shutdown(std_socket.SHUT_WR)


@contextmanager
def our_server(cipher: Cipher = Cipher.SECRETBOX) -> Iterator[tuple[ByHand, ServerTunnel]]:
    """A server's end, and the client by hand."""
    near, far = socketpair()
    at_client, at_server = sessions(cipher)
    with near, far:
        yield ByHand(near, at_client), ServerTunnel(far, at_server, "alice", KEY)


@contextmanager
def our_client(cipher: Cipher = Cipher.SECRETBOX) -> Iterator[tuple[ClientTunnel, ByHand]]:
    """A client's end, and the server by hand."""
    near, far = socketpair()
    at_client, at_server = sessions(cipher)
    with near, far:
        yield ClientTunnel(near, at_client), ByHand(far, at_server)


def is_silent(source: socket | Tunnel) -> bool:
    """Nothing waits to be read from the kernel, not even an end."""
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    return not poll.poll(0)


def opened(code: int = 0, bound: Address = BOUND) -> bytes:
    """The body of an OPENED."""
    return bytes((code,)) + bound.encode()


def changed(data: bytes, position: int) -> bytes:
    copy = bytearray(data)
    copy[position] ^= 1 << position % 8
    return bytes(copy)


def asking(command: int = 1, dest: Address = DEST) -> bytes:
    """The body of an OPEN."""
    return bytes((command,)) + dest.encode()


# --- hellos ---------------------------------------------------------------------------------

RING = KeyRing({"alice": KEY})


def hello_from(key: Key = KEY, time_ms: int | None = None, offered: Cipher = BOTH) -> bytes:
    """A new one each time."""
    return Initiator(key, offered).hello(now_ms() if time_ms is None else time_ms)


def small_order_hello() -> bytes:
    """An authentic one, of a peer with the key, with a public key that none may use."""
    point = bytes(32)
    salt = os.urandom(16)
    hint, padding, mask = other_end.hello_shape(KEY.raw(), salt)
    noise = other_end.Noise(KEY.raw())
    noise.e(point)
    payload = now_ms().to_bytes(8, "big") + bytes((VERSION, 0x01, 0)) + bytes(padding)
    return salt + hint + other_end.xor(point, mask) + noise.seal(payload)
