"""Floods of names: such as are never answered, and such as have thousands of addresses."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections import deque

from tests.attack.flood import Attacked, Scene, flood
from tests.attack.witness import Witness, read_exactly

#: what the hostile client has under way at a time
AT_ONCE = 500

#: from where it connects
CLIENT = "127.0.0.2"

#: answered with 127.0.0.1, which may not be kept, so that each request looks it up
LIVE = "live.example"

_A = struct.pack("!HH", 1, 1)


#: the first is 127.0.0.1
_RECORDS = b"".join(
    b"\xc0\x0c" + _A + struct.pack("!IH", 0, 4) + bytes((127, number >> 8, number & 255, 1))
    for number in range(4000)
)


def answer(question: bytes, connected: bool) -> bytes | None:
    """What the name server says: nothing about the names below silent.example."""
    end = question.index(b"\0", 12) + 5
    name, kind = question[12 : end - 4].lower(), question[end - 4 : end]
    if name.endswith(b"\6silent\7example\0"):
        return None
    count = 0 if kind != _A else 4000 if name.endswith(b"\3big\7example\0") else 1
    truncated = count > 1 and not connected
    flags = 0x8380 if truncated else 0x8180
    records = b"" if truncated else _RECORDS[: len(_RECORDS) // 4000 * count]
    head = question[:2] + struct.pack("!HHHHH", flags, 1, 0 if truncated else count, 0, 0)
    return head + question[12:end] + records


class NameServer:
    """Answers in threads."""

    def __init__(self) -> None:
        while True:
            self._connections = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self.port: int = self._connections.getsockname()[1]
            self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            # a thread among others is slow, and must not lose what comes meanwhile
            self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            try:
                self._datagrams.bind(("127.0.0.1", self.port))
            except OSError:
                self._connections.close()
                self._datagrams.close()
            else:
                break
        for serve in (self._serve_datagrams, self._serve_connections):
            threading.Thread(target=serve, daemon=True).start()

    def _serve_datagrams(self) -> None:
        while True:
            question, peer = self._datagrams.recvfrom(512)
            said = answer(question, connected=False)
            if said is not None:
                self._datagrams.sendto(said, peer)

    def _serve_connections(self) -> None:
        while True:
            accepted, _ = self._connections.accept()
            with accepted, contextlib.suppress(OSError):
                size = int.from_bytes(read_exactly(accepted, 2), "big")
                said = answer(read_exactly(accepted, size), connected=True)
                if said is not None:
                    accepted.sendall(len(said).to_bytes(2, "big") + said)


def ask(scene: Scene, port: int, name: str, user: str | None = None) -> socket.socket:
    """Request a name, as a user whose password is "secret", and leave it at that."""
    sock = scene.connect(port, CLIENT)
    if user is not None:
        login = b"\x01" + bytes((len(user),)) + user.encode() + b"\x06secret"
        sock.sendall(b"\x05\x01\x02" + login)
        read_exactly(sock, 2 + 2)
    request = b"\x05\x01\x00\x03" + bytes((len(name),)) + name.encode() + b"\x00\x09"
    sock.sendall(request if user is not None else b"\x05\x01\x00" + request)
    return sock


def config(more: str = "") -> str:
    """Of a gsocks that asks a name server of its own."""
    return (
        "local: {listen: '127.0.0.1:0', rules: [allow all], limits: {per_client: 2000}"
        f"{more}}}\n"
        f"dns: {{servers: ['127.0.0.1:{NameServer().port}'], min_ttl: 1ms}}\n"
    )


def ask_for_silent_names(scene: Scene, port: int, user: str | None = None) -> None:
    """Have ``AT_ONCE`` names under way that are never answered, and ask for others and leave."""
    numbers = itertools.count()
    under_way: deque[socket.socket] = deque()

    def one() -> socket.socket:
        return ask(scene, port, f"n{next(numbers)}.silent.example", user)

    def ask_one() -> None:
        under_way.append(one())
        if len(under_way) > AT_ONCE:
            with under_way.popleft() as oldest:
                read_exactly(oldest, 10 if user is not None else 2 + 10)

    def ask_and_leave() -> None:
        with one() as sock:
            if user is None:
                read_exactly(sock, 2)

    scene.keep_doing(ask_one)
    scene.keep_doing(ask_and_leave)


@flood(f"a client asks for names that are never answered, {AT_ONCE} of them at a time")
def silent_names(scene: Scene) -> Attacked:
    program = scene.gsocks(config())
    ask_for_silent_names(scene, program.port())
    return Attacked(program, Witness(program.port(), host=LIVE))


@flood("a client has names looked up that have 4,000 addresses each")
def big_answers(scene: Scene) -> Attacked:
    program = scene.gsocks(config())
    numbers = itertools.count()

    def ask_one() -> None:
        with ask(scene, program.port(), f"n{next(numbers)}.big.example") as sock:
            read_exactly(sock, 2 + 10)

    for _ in range(4):
        scene.keep_doing(ask_one)
    return Attacked(program, Witness(program.port(), host=LIVE))
