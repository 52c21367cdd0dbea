"""What strangers send to find out what listens, and that all of them see the same."""

from __future__ import annotations

import random
import socket as std_socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import gevent
from gevent.pool import Pool as GreenletPool
from gevent.socket import socket

from gsocks.address import Address
from gsocks.inbound.listener import Listener
from tests.support.engine import (
    connect,
)

#: seconds that the probed servers keep silent
SILENCE = 0.5


class Ending(NamedTuple):
    received: bytes
    kind: str
    #: from before the connect
    seconds: float


def speak(sock: socket, data: bytes) -> None:
    sock.sendall(data)


def speak_and_end(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


def speak_slowly(sock: socket, data: bytes) -> None:
    """In eight pieces over most of the silence."""
    size = len(data) // 8 + 1
    for start in range(0, len(data), size):
        sock.sendall(data[start : start + size])
        gevent.sleep(SILENCE / 10)


class Probe(NamedTuple):
    name: str
    data: bytes
    how: Callable[[socket, bytes], None] = speak

    def run(self, at: Address) -> Ending:
        began = time.monotonic()
        with connect(at) as sock:
            self.how(sock, self.data)
            received = b""
            try:
                while part := sock.recv(65536):
                    received += part
                kind = "end"
            except ConnectionResetError:
                kind = "reset"
            return Ending(received, kind, time.monotonic() - began)


def assert_all_see_the_same(server: Listener, probes: Iterable[Probe]) -> None:
    """Nothing, and its end as an end, when the time is over."""
    # in batches, so that this process has time to notice each end when it comes
    endings = GreenletPool(100).map(lambda probe: (probe.name, probe.run(server.bound)), probes)
    assert {(each.received, each.kind) for _, each in endings} == {(b"", "end")}
    durations = {name: each.seconds for name, each in endings}
    early = {name: each for name, each in durations.items() if each < SILENCE - 0.05}
    late = {name: each for name, each in durations.items() if each > SILENCE + 1.5}
    assert (early, late) == ({}, {})


def garbage(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def known_greetings() -> Iterator[Probe]:
    yield Probe("HTTP", b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
    yield Probe("SOCKS", b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
    yield Probe("TLS", bytes.fromhex("1603010200010001fc0303") + garbage(506))
    yield Probe("SSH", b"SSH-2.0-OpenSSH_9.6\r\n")
