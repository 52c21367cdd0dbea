"""Floods by clients that connect and say nothing, or as little as they can."""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Callable

from tests.attack.flood import PATIENT, Attacked, Scene, flood
from tests.attack.witness import Witness

#: connections that are held at a time: as many as there may be handshakes by default
HELD = 1000

FIVE_ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 7))

#: of a balancer, which announces clients of one IPv6 /64
BALANCER = "127.0.0.7"

LOCAL = f"local: {{listen: '127.0.0.1:0', rules: [allow all], proxy_protocol_from: [{BALANCER}]}}\n"

SERVER = f"""
server:
  listen: 127.0.0.1:0
  keys: {{default: {{file: gsocks.key}}}}
  rules: [allow all]
  proxy_protocol_from: [{BALANCER}]
"""

_numbers = itertools.count(1)


def _announce_one_of_a_64(sock: socket.socket) -> None:
    number = next(_numbers)
    host = f"2001:db8:1:2:{number >> 16 & 0xFFFF:x}::{number & 0xFFFF:x}"
    sock.sendall(f"PROXY TCP6 {host} 2001:db8::1 {number % 60000 + 1} 1080\r\n".encode())


def _nothing(_: socket.socket) -> None:
    pass


def _hold(
    scene: Scene,
    port: int,
    sources: tuple[str, ...],
    greet: Callable[[socket.socket], object] = _nothing,
) -> None:
    """Hold HELD connections; open another one without pause, for which the oldest is closed."""
    held: deque[socket.socket] = deque()
    source = itertools.cycle(sources)

    def renew_one() -> None:
        held.append(scene.connect(port, next(source)))
        greet(held[-1])
        if len(held) > HELD:
            held.popleft().close()

    scene.keep_doing(renew_one)


def _local(scene: Scene) -> tuple[int, Attacked]:
    program = scene.gsocks(LOCAL)
    return program.port(), Attacked(program, Witness(program.port()))


def _server(scene: Scene) -> tuple[int, Attacked]:
    """A server, whose witness opens a tunnel for each of its requests."""
    server = scene.gsocks(SERVER)
    local = scene.gsocks(
        f"local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  pool: {{size: 0}}\n  {PATIENT}\n"
        f"  exits: [{{url: 'gsocks://127.0.0.1:{server.port('server')}', key_file: gsocks.key}}]\n"
    )
    return server.port("server"), Attacked(server, Witness(local.port()))


@flood("five addresses renew 1,000 silent connections at a local end")
def silent_at_local(scene: Scene) -> Attacked:
    port, attacked = _local(scene)
    _hold(scene, port, FIVE_ADDRESSES)
    return attacked


@flood("one IPv6 /64 renews 1,000 silent connections at a local end")
def silent_64_at_local(scene: Scene) -> Attacked:
    port, attacked = _local(scene)
    _hold(scene, port, (BALANCER,), _announce_one_of_a_64)
    return attacked


@flood("five addresses renew 1,000 silent connections at a server")
def silent_at_server(scene: Scene) -> Attacked:
    port, attacked = _server(scene)
    _hold(scene, port, FIVE_ADDRESSES)
    return attacked


@flood("one IPv6 /64 renews 1,000 silent connections at a server")
def silent_64_at_server(scene: Scene) -> Attacked:
    port, attacked = _server(scene)
    _hold(scene, port, (BALANCER,), _announce_one_of_a_64)
    return attacked


@flood("1,000 addresses send half a request each")
def half_requests(scene: Scene) -> Attacked:
    port, attacked = _local(scene)
    sources = tuple(f"127.1.{number >> 8}.{number & 0xFF}" for number in range(1, HELD + 1))
    _hold(scene, port, sources, lambda sock: sock.sendall(b"GET http://x/ HTTP/1.1\r\nHost:"))
    return attacked


@flood("a thousand peers send random bytes to a server, and wait")
def strangers(scene: Scene) -> Attacked:
    port, attacked = _server(scene)
    sources = tuple(f"127.1.{number >> 8}.{number & 0xFF}" for number in range(1, HELD + 1))
    _hold(scene, port, sources, lambda sock: sock.sendall(bytes(400)))
    return attacked
