"""Floods by strangers of listeners that ask for a secret: Shadowsocks, TLS before `local`; and of
the DNS listener, which asks for none."""

from __future__ import annotations

import os
import socket

import dns.message
import trustme

from tests.attack.flood import PATIENT, Attacked, Scene, flood
from tests.attack.floods_transport import client_hello
from tests.attack.witness import Witness
from tests.support.program import Program

_SHADOWSOCKS = """
local:
  listen: 127.0.0.1:0
  rules: [allow all]
server:
  shadowsocks: {listen: 127.0.0.1:0, method: chacha20-ietf-poly1305, password: secret}
"""

_TLS = """
local:
  listen: [127.0.0.1:0, {{address: 127.0.0.1:0, tls: false}}]
  rules: [allow all]
  tls: {{cert: server.pem}}
  {patient}
"""

_DNS = """
local: {listen: 127.0.0.1:0, rules: [allow all]}
dns_listener: {listen: 127.0.0.1:0, server: "127.0.0.1:9"}
"""


def _port(program: Program, pattern: str) -> int:
    return int(program.wait_for(pattern)[0][1])


def _shadowsocks(scene: Scene) -> tuple[int, Attacked]:
    """A server with another listener in its process, whose client is the witness."""
    program = scene.gsocks(_SHADOWSOCKS)
    port = _port(program, r"server: listening on \S+:(\d+) \(Shadowsocks\)")
    return port, Attacked(program, Witness(program.port()))


@flood("strangers send a Shadowsocks listener random bytes without pause")
def shadowsocks_strangers(scene: Scene) -> Attacked:
    port, attacked = _shadowsocks(scene)

    def knock() -> None:
        with scene.connect(port) as sock:
            sock.sendall(os.urandom(200))

    scene.keep_doing(knock)
    return attacked


@flood("a stranger sends a Shadowsocks listener one endless stream of random bytes")
def shadowsocks_stream(scene: Scene) -> Attacked:
    port, attacked = _shadowsocks(scene)
    scene.pour(port, os.urandom(65536))
    return attacked


def _send_to(scene: Scene, port: int, packets: list[bytes]) -> None:
    """Send datagrams there without pause, from an address of its own each time."""

    def send() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port))
            for packet in packets:
                sock.send(packet)

    scene.keep_doing(send)


@flood("strangers send a Shadowsocks listener random datagrams without pause")
def shadowsocks_datagrams(scene: Scene) -> Attacked:
    port, attacked = _shadowsocks(scene)
    _send_to(scene, port, [os.urandom(200) for _ in range(32)])
    return attacked


@flood("a stranger begins TLS with a local end without pause")
def local_tls_hellos(scene: Scene) -> Attacked:
    issued = trustme.CA().issue_cert("proxy.example")
    issued.private_key_and_cert_chain_pem.write_to_path(scene.folder / "server.pem")
    program = scene.gsocks(_TLS.format(patient=PATIENT))
    port = _port(program, r"local: listening on \S+:(\d+) \(.*in TLS\)")
    plain = _port(program, r"local: listening on \S+:(\d+) \(SOCKS5, SOCKS4, HTTP\)")
    hello = client_hello()

    def begin() -> None:
        with scene.connect(port) as sock:
            sock.sendall(hello)
            sock.recv(4096)

    scene.keep_doing(begin)
    return Attacked(program, Witness(plain))


def _dns(scene: Scene) -> tuple[int, Attacked]:
    program = scene.gsocks(_DNS)
    port = _port(program, r"dns_listener: listening on \S+:(\d+) ")
    return port, Attacked(program, Witness(program.port()))


@flood("strangers ask a DNS listener for names that no exit has an answer to")
def dns_questions(scene: Scene) -> Attacked:
    port, attacked = _dns(scene)
    asked = [dns.message.make_query(f"{n}.example.com", "A").to_wire() for n in range(64)]
    _send_to(scene, port, asked)
    return attacked


@flood("strangers send a DNS listener random datagrams without pause")
def dns_nonsense(scene: Scene) -> Attacked:
    port, attacked = _dns(scene)
    head = b"\x12\x34\1\0\0\1\0\0\0\0\0\0"
    _send_to(scene, port, [head + os.urandom(400) for _ in range(32)])
    return attacked
