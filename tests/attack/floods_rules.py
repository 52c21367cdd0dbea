"""Floods of questions for the rules, of which there are many."""

from __future__ import annotations

import socket

from tests.attack.flood import Attacked, Scene, flood
from tests.attack.witness import Witness, read_exactly

#: they match nothing that is asked for
RULES = [
    f"deny host{number}.example:{1 + number % 65535} user user{number % 7}"
    for number in range(20_000)
]

#: a name with as many labels as there can be
NAME = ".".join(["a"] * 126) + ".b"


@flood("a client asks for forbidden names under 20,000 rules")
def many_rules(scene: Scene) -> Attacked:
    rules = "\n".join(f"  - {rule}" for rule in [*RULES, "deny *.b", "allow all"])
    program = scene.gsocks(f"local:\n listen: 127.0.0.1:0\n rules:\n{rules}\n")

    def ask() -> None:
        with scene.connect(program.port()) as sock:
            name = NAME.encode()
            request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x50"
            sock.sendall(b"\x05\x01\x00" + request)
            read_exactly(sock, 2)
            assert read_exactly(sock, 10)[1] == 2, "not forbidden"
            sock.shutdown(socket.SHUT_WR)

    for _ in range(4):
        scene.keep_doing(ask)
    return Attacked(program, Witness(program.port()))
