"""Floods by clients that do nothing but use the proxy, as fast as they can."""

from __future__ import annotations

import socket

from tests.attack.flood import Attacked, Scene, flood
from tests.attack.witness import Witness, read_exactly, socks5_connect

#: a local end that goes out by itself, to loopback as well
DIRECT = "local: {listen: '127.0.0.1:0', rules: [allow all]}\n"


def _read_all(sock: socket.socket) -> None:
    while sock.recv(1 << 18):
        pass


@flood("a client uploads")
def upload(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    sink = scene.origin(_read_all)
    scene.pour(program.port(), bytes(1 << 20), lambda sock: socks5_connect(sock, "127.0.0.1", sink))
    return Attacked(program, Witness(program.port()))


@flood("a client makes short connections without pause")
def short_connections(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    closes = scene.origin(lambda sock: None)

    def one() -> None:
        with scene.connect(program.port()) as sock:
            socks5_connect(sock, "127.0.0.1", closes)

    scene.keep_doing(one)
    return Attacked(program, Witness(program.port()))


@flood("a client sends datagrams that no one can read, through eight associations")
def unreadable_datagrams(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)

    def one() -> None:
        with scene.connect(program.port()) as control, _datagrams() as sock:
            sock.connect(("127.0.0.1", _associate(control)))
            while not scene.over.is_set():
                for _ in range(1000):
                    sock.send(b"unreadable")
                scene.note_done()

    for _ in range(8):
        scene.keep_doing(one)
    return Attacked(program, Witness(program.port()))


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _associate(control: socket.socket) -> int:
    """The port of a new UDP association (RFC 1928 section 6)."""
    control.sendall(b"\5\1\0" + b"\5\3\0\1" + bytes(6))
    answer = read_exactly(control, 12)
    return int.from_bytes(answer[-2:], "big")
