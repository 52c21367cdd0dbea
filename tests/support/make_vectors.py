"""Captures whole sessions of our two ends, with fixed keys, into tests/vectors; and agreements of
each with an end of another version.

Run it after a change to the wire, which needs a new prologue, and copy the worked example of
docs/protocol.md from what it wrote:

    python -m tests.support.make_vectors
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import gevent
from gevent.socket import socket, socketpair
from gevent.util import wrap_errors
from nacl.bindings import crypto_scalarmult_base

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import (
    FEATURES,
    HELLO_HEAD_SIZE,
    REPLY_HEAD_SIZE,
    SALT_SIZE,
    VERSION,
    Cipher,
    Initiator,
    Key,
    KeyRing,
    Responder,
    Session,
    agreed_version,
    preferred,
)
from gsocks.errors import ConnectFailed, ConnectionRefused
from gsocks.request import LOOK_UPS, Command, Request
from gsocks.stream import CHUNK
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import SKIPPED, Frame
from gsocks.tunnel.server import ServerTunnel
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream
from tests.support import other_end

VECTORS = Path(__file__).parent.parent / "vectors"

KEY = bytes(range(32))
TIME_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
BOUND = Address("192.0.2.7", 50000)


def seeded(label: str, number: int) -> bytes:
    """32 bytes that can be derived again."""
    return hashlib.sha256(f"{label} {number}".encode()).digest()


CLIENT_PRIVATE = seeded("client", 0)
SERVER_PRIVATE = seeded("server", 0)
# the first that lead to 5 and 3 bytes of padding: short enough to print, and not none
HELLO_SALT = seeded("hello salt", 33)[:SALT_SIZE]
REPLY_SALT = seeded("reply salt", 852)[:SALT_SIZE]

#: each session's file, what the client offers and what the server has
SESSIONS = {
    "session.json": (Cipher.SECRETBOX, Cipher.SECRETBOX | Cipher.AEGIS256),
    "session-aegis256.json": (
        Cipher.SECRETBOX | Cipher.AEGIS256,
        Cipher.SECRETBOX | Cipher.AEGIS256,
    ),
}


class Offer(NamedTuple):
    """What a hello offers; and the version of the reply, if our server does not choose that."""

    version: int
    ciphers: int
    features: int
    replied: int | None = None


#: the file of the agreements, and what they are of
AGREEMENTS_FILE = "agreements.json"
AGREEMENTS = {
    "a client of a later version, with ciphers and features that the server does not know": Offer(
        VERSION + 1, 0xF1, 0xA4
    ),
    "a client that is too old": Offer(VERSION - 1, 0x01, 0x00),
    "a client with a feature that the server has, and others": Offer(VERSION, 0x03, 0xFF),
    "a server that is too new": Offer(VERSION, 0x03, 0x01, VERSION + 1),
}


class PaddedClient(ClientTunnel):
    def padding(self) -> bytes:
        return bytes(6)


class PaddedServer(ServerTunnel):
    def padding(self) -> bytes:
        return bytes(2)


class Wire:
    """Stands between the two ends; notes what passes, and what it means."""

    def __init__(self) -> None:
        self.client_end, self._client = socketpair()
        self.server_end, self._server = socketpair()
        self.frames: list[dict[str, Any]] = []

    def pass_up(self, kind: Frame | str, **means: object) -> None:
        self._pass(self._client, self._server, "client", kind, means)

    def pass_down(self, kind: Frame | str, **means: object) -> None:
        self._pass(self._server, self._client, "server", kind, means)

    def _pass(
        self, source: socket, sink: socket, sender: str, kind: Frame | str, means: dict[str, Any]
    ) -> None:
        # a frame leaves in one write, and a socketpair delivers a small one in one piece
        sealed = source.recv(CHUNK)
        sink.sendall(sealed)
        name = kind.name if isinstance(kind, Frame) else kind
        self.frames.append({"from": sender, "type": name, **means, "hex": sealed.hex()})

    def close(self) -> None:
        for sock in (self.client_end, self._client, self.server_end, self._server):
            sock.close()


def both_parts(
    key: Key, offered: Cipher, time_ms: int, name: str = "alice"
) -> tuple[Initiator, Responder, bytes]:
    """The two ends of an agreement that is the same each time, and the rest of the hello."""
    initiator = Initiator(key, offered, CLIENT_PRIVATE, HELLO_SALT)
    hello = initiator.hello(time_ms)
    head, rest = hello[:HELLO_HEAD_SIZE], hello[HELLO_HEAD_SIZE:]
    (found,) = KeyRing({name: key}).candidates(head)
    padding, public = found.rest - (11 + 16), crypto_scalarmult_base(CLIENT_PRIVATE)
    return initiator, Responder(name, key, public, padding, SERVER_PRIVATE, REPLY_SALT), rest


def capture(offered: Cipher, supported: Cipher) -> dict[str, Any]:
    """One session: the agreement, streams of all kinds and a ping."""
    initiator, responder, rest = both_parts(Key(KEY), offered, TIME_MS)
    hello = Initiator(Key(KEY), offered, CLIENT_PRIVATE, HELLO_SALT).hello(TIME_MS)
    said = responder.read(rest)
    chosen = Cipher.AEGIS256 if said.offered & supported & Cipher.AEGIS256 else Cipher.SECRETBOX
    reply, server_session = responder.reply(chosen, features=said.features)
    client_session = initiator.finish(reply[:REPLY_HEAD_SIZE], reply[REPLY_HEAD_SIZE:])
    return {
        "about": "A session of gsocks/2 (docs/protocol.md); by tests/support/make_vectors.py",
        "key": KEY.hex(),
        "client_private": CLIENT_PRIVATE.hex(),
        "client_public": crypto_scalarmult_base(CLIENT_PRIVATE).hex(),
        "server_private": SERVER_PRIVATE.hex(),
        "server_public": crypto_scalarmult_base(SERVER_PRIVATE).hex(),
        "hello_salt": HELLO_SALT.hex(),
        "reply_salt": REPLY_SALT.hex(),
        "time_ms": TIME_MS,
        "version": VERSION,
        "offered": int(offered),
        "chosen": int(chosen),
        "offered_features": int(FEATURES),
        "chosen_features": int(said.features),
        "hello_padding": len(rest) - (11 + 16),
        "reply_padding": len(reply) - (16 + 32 + 3 + 16),
        "hello": hello.hex(),
        "reply": reply.hex(),
        "frames": _converse(client_session, server_session),
    }


def _converse(client_session: Session, server_session: Session) -> list[dict[str, Any]]:
    wire = Wire()
    client = PaddedClient(wire.client_end, client_session)
    server = PaddedServer(wire.server_end, server_session, "default", Key(KEY))
    try:
        _stream_to_a_name(wire, client, server)
        _ping(wire, client, server)
        _refused_stream(wire, client, server)
        _association(wire, client, server)
        _bind(wire, client, server)
        _look_ups(wire, client, server)
        _stream_that_is_reset(wire, client, server)
    finally:
        wire.close()
    return wire.frames


def _open(
    wire: Wire,
    client: ClientTunnel,
    server: ServerTunnel,
    dest: Address,
    command: Command = Command.CONNECT,
) -> gevent.Greenlet[..., Any]:
    # a refusal is the greenlet's result, not its failure
    asking = client.look_up if command in LOOK_UPS else client.open
    call = wrap_errors((ConnectFailed,), asking)
    opening = gevent.spawn(call, Request(command, dest))
    gevent.idle()
    wire.pass_up(Frame.OPEN, command=int(command), host=dest.host, port=dest.port, padding=6)
    request = server.accept()
    if request is None or (request.command, request.dest) != (command, dest):
        raise RuntimeError(f"{dest} was asked for and {request} came")
    return opening


def _opened(
    wire: Wire, client: ClientTunnel, server: ServerTunnel, dest: Address
) -> tuple[TunnelStream, TunnelStream]:
    opening = _open(wire, client, server, dest)
    server.succeeded(BOUND)
    wire.pass_down(Frame.OPENED, code=0, host=BOUND.host, port=BOUND.port, padding=2)
    opening.get()
    return TunnelStream(client, ignore_end), TunnelStream(server, ignore_end)


def ignore_end(reusable: bool) -> None:
    """How the stream ended is not this file's matter."""


def _stream_to_a_name(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    near, far = _opened(wire, client, server, Address("example.com", 443))
    near.write(b"question")
    wire.pass_up(Frame.DATA, data=b"question".hex())
    far.read()
    client.send(Frame.PAD, bytes(3))
    wire.pass_up(Frame.PAD, padding=3)
    far.write(b"answer")
    wire.pass_down(Frame.DATA, data=b"answer".hex())
    near.read()
    _end(wire, near, far)


def _ping(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    pinging, accepting = gevent.spawn(client.ping), gevent.spawn(server.accept)
    gevent.idle()
    wire.pass_up(Frame.PING, padding=6)
    gevent.idle()
    wire.pass_down(Frame.PONG, padding=2)
    pinging.get()
    accepting.kill()


def _refused_stream(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    opening = _open(wire, client, server, Address("2001:db8::1", 80))
    server.failed(ConnectionRefused())
    code = ConnectionRefused.code
    wire.pass_down(Frame.OPENED, code=code, host="0.0.0.0", port=0, padding=2)
    opening.get()
    wire.pass_up(Frame.FIN)


def _association(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    opening = _open(wire, client, server, UNSPECIFIED, Command.UDP_ASSOCIATE)
    server.succeeded(UNSPECIFIED)
    wire.pass_down(Frame.OPENED, code=0, host=UNSPECIFIED.host, port=0, padding=2)
    opening.get()
    near, far = TunnelDatagrams(client, ignore_end), TunnelDatagrams(server, ignore_end)
    for dest, payload in (
        (Address("dns.example", 53), b"question"),
        (Address("2001:db8::1", 53), b""),
    ):
        near.write(dest.encode() + payload)
        wire.pass_up(Frame.DATAGRAM, host=dest.host, port=dest.port, data=payload.hex())
        far.read()
    source = Address("192.0.2.53", 53)
    far.write(source.encode() + b"answer")
    wire.pass_down(Frame.DATAGRAM, host=source.host, port=source.port, data=b"answer".hex())
    near.read()
    _end(wire, near, far)


def _bind(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    opening = _open(wire, client, server, Address("192.0.2.1", 20), Command.BIND)
    peer = Address("192.0.2.1", 50001)
    for address in (BOUND, peer):
        server.succeeded(address)
        wire.pass_down(Frame.OPENED, code=0, host=address.host, port=address.port, padding=2)
    opening.get()
    client.opened_again()
    _end(wire, TunnelStream(client, ignore_end), TunnelStream(server, ignore_end))


def _look_ups(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    name, address = Address("example.com", 0), Address("192.0.2.7", 0)
    for command, asked, found in (
        (Command.RESOLVE, name, address),
        (Command.RESOLVE_PTR, address, name),
    ):
        opening = _open(wire, client, server, asked, command)
        server.looked_up(found)
        wire.pass_down(Frame.OPENED, code=0, host=found.host, port=0, padding=2)
        if opening.get() != found:
            raise RuntimeError(f"{found} was told and another one came")
        wire.pass_up(Frame.FIN)


def _end(
    wire: Wire, near: TunnelStream | TunnelDatagrams, far: TunnelStream | TunnelDatagrams
) -> None:
    near.write_eof()
    wire.pass_up(Frame.FIN)
    far.read()
    far.write_eof()
    wire.pass_down(Frame.FIN)
    near.read()
    near.close()
    far.close()


def _stream_that_is_reset(wire: Wire, client: ClientTunnel, server: ServerTunnel) -> None:
    near, far = _opened(wire, client, server, Address("192.0.2.1", 22))
    near.write_eof()
    wire.pass_up(Frame.FIN)
    far.read()
    far.write(b"half-closed")
    wire.pass_down(Frame.DATA, data=b"half-closed".hex())
    near.read()
    server.send(cast(Frame, SKIPPED), b"of a later version")
    wire.pass_down("SKIPPED", number=SKIPPED, data=b"of a later version".hex())
    far.abort()
    wire.pass_down(Frame.RESET)


def capture_agreements() -> dict[str, Any]:
    """Hellos that are not of our client's making, with our server's replies, and a reply that is
    not of our server's making, to our client's hello."""
    return {
        "about": "Agreements of gsocks/2 (docs/protocol.md); by tests/support/make_vectors.py",
        "key": KEY.hex(),
        "client_private": CLIENT_PRIVATE.hex(),
        "server_private": SERVER_PRIVATE.hex(),
        "hello_salt": HELLO_SALT.hex(),
        "reply_salt": REPLY_SALT.hex(),
        "time_ms": TIME_MS,
        "agreements": [{"of": of, **_agree(offer)} for of, offer in AGREEMENTS.items()],
    }


def _agree(offer: Offer) -> dict[str, Any]:
    if offer.replied is None:
        theirs = other_end.Client(KEY, CLIENT_PRIVATE, HELLO_SALT)
        hello = theirs.hello(TIME_MS, offer.ciphers, offer.version, offer.features)
        chosen, replied, features, reply = our_reply(hello)
    else:
        ours = Initiator(Key(KEY), Cipher(offer.ciphers), CLIENT_PRIVATE, HELLO_SALT)
        hello = ours.hello(TIME_MS)
        answering = other_end.Server(KEY, SERVER_PRIVATE, REPLY_SALT)
        answering.read_hello(other_end.Taker(hello))
        chosen, replied, features = Cipher.AEGIS256, offer.replied, 0
        reply, _, _ = answering.reply(chosen, replied)
    return {
        "version": offer.version,
        "offered": offer.ciphers,
        "offered_features": offer.features,
        "hello": hello.hex(),
        "reply_version": replied,
        "chosen": int(chosen),
        "chosen_features": features,
        "reply": reply.hex(),
    }


def our_reply(hello: bytes) -> tuple[Cipher, int, int, bytes]:
    """What our server chooses: the cipher, the version and the features; and its reply."""
    head, rest = hello[:HELLO_HEAD_SIZE], hello[HELLO_HEAD_SIZE:]
    public, padding = crypto_scalarmult_base(CLIENT_PRIVATE), len(rest) - (11 + 16)
    if not KeyRing({"default": Key(KEY)}).candidates(head):
        raise RuntimeError("a hello of another key")
    responder = Responder("default", Key(KEY), public, padding, SERVER_PRIVATE, REPLY_SALT)
    said = responder.read(rest)
    chosen, version = preferred(said.offered), agreed_version(said.version)
    if chosen is None:
        raise RuntimeError("no cipher in common")
    reply, _ = responder.reply(chosen, version, said.features)
    return chosen, version, int(said.features), reply


def main() -> None:
    """Write every session, and the agreements."""
    captured = {name: capture(*ciphers) for name, ciphers in SESSIONS.items()}
    captured[AGREEMENTS_FILE] = capture_agreements()
    for name, content in captured.items():
        (VECTORS / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
