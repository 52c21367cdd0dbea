"""A fleet as it is deployed: gateways as programs, a real HAProxy before them, paths to the store.

The balancer has the config of deploy/fleet, but for its ports and how often it looks.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nacl.pwhash
from gevent.server import StreamServer

from gsocks.address import Address
from tests.support import needs
from tests.support.engine import Forwarder, connect, eventually, read_to_end
from tests.support.ports import free_port
from tests.support.program import ROOT, UNTRACED, Program

CONFIG = """
workers: {workers}
state: {{url: '{store}', gateway: {name}}}
health: {{listen: '127.0.0.1:{health}', drain_notice: {notice}}}
admin: {{listen: '127.0.0.1:{admin}'}}
local:
  listen: '127.0.0.1:{port}'
  proxy_protocol_from: [127.0.0.0/8]
  rules: [allow all]
{local}
"""

#: the password of each user of :func:`write_users`
PASSWORD = "x"


class GatewayProgram:
    """A gateway at ports of its own, which are the same at each start.

    ``store``: the URL of the store; ``local``: more lines of its section.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        store: str,
        local: str,
        *,
        workers: int = 2,
        notice: str = "1s",
    ) -> None:
        self.name = name
        self.port, self.health, self.admin = free_port(), free_port(), free_port()
        self.workers = workers
        self.path = folder / f"{name}.yaml"
        self._folder = folder
        self.path.write_text(
            CONFIG.format(
                workers=workers, store=store, name=name, health=self.health, admin=self.admin,
                notice=notice, port=self.port, local=local,
            )
        )  # fmt: skip
        self.path.chmod(0o600)  # its exits have passwords
        self.program: Program | None = None
        #: lines of this life that were looked at, and those of them that tell of no connection
        self._read = 0
        self._said: list[str] = []
        #: the lines of all that have ended
        self._lines: list[str] = []

    def start(self) -> None:
        """Start it; :meth:`wait_until_ready` waits for it."""
        self.program = Program("-c", self.path, within=UNTRACED)
        self._read, self._said = 0, []

    def wait_until_ready(self) -> None:
        """Until it says that it takes requests; other greenlets go on meanwhile."""
        eventually(lambda: self.count(r"local: listening on ") >= self.workers)
        eventually(lambda: self.ask_health("/readyz")[0] == 200)

    @property
    def lines(self) -> list[str]:
        """Its log, that of its former lives too."""
        own = self.program.lines if self.program is not None else []
        return [*self._lines, *own]

    def count(self, pattern: str) -> int:
        """How often its log says so in this life, beside the lines of connections."""
        lines = self._program.lines
        new = lines[self._read :]
        self._read += len(new)
        self._said += [line for line in new if " gsocks.access" not in line]
        return sum(bool(re.search(pattern, line)) for line in self._said)

    @property
    def _program(self) -> Program:
        assert self.program is not None, "it does not run"
        return self.program

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._program.signal(number)

    def wait_until_ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        program = self._program
        eventually(lambda: program.process.poll() is not None)
        self._let_go()
        return program.process.returncode

    def kill(self) -> None:
        """SIGKILL; its workers end with it."""
        self._program.process.kill()
        self.wait_until_ended()

    def _let_go(self) -> None:
        program, self.program = self._program, None
        # until its workers have ended too, which have the other end of the pipe
        eventually(lambda: "(ended)" in program.lines[-1:])
        program.close()
        self._lines += program.lines

    def close(self) -> None:
        """End it, if it runs."""
        if self.program is not None:
            self.kill()

    # --- what it tells ------------------------------------------------------------------------

    def ask_health(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer of the health listener; 0: it does not listen."""
        try:
            return _ask(self.health, f"GET {path} HTTP/1.1\r\nHost: x\r\n")
        except OSError:
            return 0, ""

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """An answer of the admin; None if a worker has ended meanwhile, or none has begun."""
        token = (self._folder / "admin.token").read_text().strip()
        text = "" if body is None else json.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        try:
            status, answer = _ask(self.admin, head, text)
        except OSError:
            return None
        assert status < 300, f"{method} {path}: {status} {answer}"
        return json.loads(answer) if answer else {}


def _ask(port: int, head: str, body: str = "") -> tuple[int, str]:
    with connect(Address("127.0.0.1", port)) as sock:
        sock.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        answer = read_to_end(sock).decode()
    if not answer:
        raise ConnectionResetError
    first, _, text = answer.partition("\r\n\r\n")
    return int(first.split(" ", 2)[1]), text


def write_users(folder: Path, names: Sequence[str]) -> None:
    """A users file of the cheapest hashes, as nothing here is about them."""
    made = nacl.pwhash.argon2id.str(PASSWORD.encode(), opslimit=1, memlimit=8192).decode()
    path = folder / "users"
    path.write_text("".join(f"{name}:{made}\n" for name in names))
    path.chmod(0o600)


class PathToStore(Forwarder):
    """A gateway's way to the store, which can be parted and mended at the same address."""

    def part(self) -> None:
        """Reset all connections, and refuse others."""
        self._port = self.bound.port
        self._server.stop()
        self.cut()

    def mend(self) -> None:
        """Connect again."""
        self._server = StreamServer(("127.0.0.1", self._port), self._serve, backlog=1024)
        self._server.start()


# --- the balancer -----------------------------------------------------------------------------


def balancer_config(port: int, gateways: Sequence[GatewayProgram], every: str) -> str:
    """deploy/fleet/haproxy.cfg, for gateways on this machine that are looked at so often."""
    text = (ROOT / "deploy" / "fleet" / "haproxy.cfg").read_text()
    text = re.sub(r"resolvers containers\n(    .*\n)+", "", text)
    text = re.sub(r"frontend metrics\n(    .*\n)+", "", text)
    text = re.sub(r"    stats socket .*\n", "", text)
    text = text.replace("maxconn 20000", "maxconn 4000")  # for which a test may have descriptors
    text = text.replace(" resolvers containers init-addr libc,none", "")
    text = text.replace("bind :1080", f"bind 127.0.0.1:{port}")
    # each request by another gateway than the one before: so it is hardest
    text = text.replace("balance leastconn", "balance roundrobin")
    text = text.replace("check port 9091 inter 1s", f"check inter {every}")
    for number, gateway in enumerate(gateways, 1):
        text = text.replace(
            f"server gateway{number} gateway{number}:1080",
            f"server gateway{number} 127.0.0.1:{gateway.port} port {gateway.health}",
        )
    return text


@contextmanager
def balancer(
    folder: Path, gateways: Sequence[GatewayProgram], every: str = "200ms"
) -> Iterator[Address]:
    """HAProxy before three gateways that run; gives its address."""
    port = free_port()
    path = folder / "haproxy.cfg"
    path.write_text(balancer_config(port, gateways, every))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [needs.program("haproxy"), "-db", "-f", str(path)], stdout=log, stderr=log
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, (folder / "haproxy.log").read_text()
            try:
                connect(Address("127.0.0.1", port)).close()
            except OSError:
                return False
            return True

        eventually(listens)
        yield Address("127.0.0.1", port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running(gateways: Sequence[GatewayProgram]) -> Iterator[None]:
    """All of them, ready; none of their logs has a traceback at the end."""
    try:
        for each in gateways:
            each.start()
        for each in gateways:
            each.wait_until_ready()
        yield
    finally:
        for each in gateways:
            each.close()
    for each in gateways:
        text = "\n".join(each.lines)
        before, traceback, behind = text.partition("Traceback")
        assert not traceback, before[-1000:] + traceback + behind[:10_000]
