"""Floods by the holder of a key at a server, by docs/protocol.md alone."""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Iterator

from tests.attack.flood import PATIENT, Attacked, Scene, flood
from tests.attack.witness import Witness, read_exactly
from tests.support import other_end
from tests.support.other_end import DATA, FIN, OPEN, PAD, PING, SECRETBOX, Boxes

#: frames that are sealed before they are sent at once
_BATCH = 500

ALICE, MALLORY = bytes(range(32)), bytes(range(32, 64))
#: nothing listens there
_CLOSED = other_end.connect_to("127.0.0.1", 1)

Frames = Iterator[tuple[int, bytes]]


def _text(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode()


def _attacked(scene: Scene, frames: Callable[[], Frames]) -> Attacked:
    """A server, another of its clients, and mallory, who sends these frames again and again."""
    keys = f"{{alice: '{_text(ALICE)}', mallory: '{_text(MALLORY)}'}}"
    server = scene.gsocks(
        f"server: {{listen: '127.0.0.1:0', rules: [deny 127.0.0.1:1, allow all], keys: {keys}}}\n"
    )
    port = server.port("server")
    exit_ = f"gsocks://{_text(ALICE).rstrip('=')}@127.0.0.1:{port}"
    local = scene.gsocks(
        f"local: {{listen: '127.0.0.1:0', rules: [allow all], exits: ['{exit_}'], {PATIENT}}}\n"
    )

    def one_tunnel() -> None:
        with scene.connect(port) as sock:
            client = other_end.Client(MALLORY, os.urandom(32))
            sock.sendall(client.hello(time.time_ns() // 1_000_000, SECRETBOX))
            sealing = client.read_reply(lambda count: read_exactly(sock, count)).sealing
            with scene.drained(sock):
                _send(scene, sock, sealing, frames())

    scene.keep_doing(one_tunnel)
    return Attacked(server, Witness(local.port()))


def _send(scene: Scene, sock: socket.socket, sealing: Boxes, frames: Frames) -> None:
    while not scene.over.is_set():
        sock.sendall(b"".join(sealing.frame(*next(frames)) for _ in range(_BATCH)))
        scene.note_done()


def _repeat(*frames: tuple[int, bytes]) -> Frames:
    while True:
        yield from frames


def _begin(first: tuple[int, bytes], *then: tuple[int, bytes]) -> Frames:
    yield first
    yield from _repeat(*then)


@flood("the holder of a key sends PADs")
def pads(scene: Scene) -> Attacked:
    return _attacked(scene, lambda: _repeat((PAD, b"")))


@flood("the holder of a key sends PINGs, and PADs between them")
def pings(scene: Scene) -> Attacked:
    return _attacked(scene, lambda: _repeat((PAD, b""), (PING, b"")))


@flood("the holder of a key sends requests that are denied")
def denied_requests(scene: Scene) -> Attacked:
    return _attacked(scene, lambda: _repeat((OPEN, _CLOSED), (FIN, b"")))


@flood("the holder of a key sends data behind a refusal")
def data_behind_a_refusal(scene: Scene) -> Attacked:
    return _attacked(scene, lambda: _begin((OPEN, _CLOSED), (DATA, b"x")))


@flood("the holder of a key sends data in frames of one byte")
def small_frames(scene: Scene) -> Attacked:
    def sink(sock: socket.socket) -> None:
        while sock.recv(1 << 18):
            pass

    to_sink = other_end.connect_to("127.0.0.1", scene.origin(sink))
    return _attacked(scene, lambda: _begin((OPEN, to_sink), (DATA, b"x")))
