"""Both ends in one gsocks process, for tests of the program."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.support.ports import free_port
from tests.support.program import (
    Program,
    run,
)
from tests.support.waiting import TOO_LONG

ONE_PROCESS = """
server:
  listen: 127.0.0.1:{server}
  keys: {{default: {{file: gsocks.key}}}}
  rules: [allow all]
local:
  listen: 127.0.0.1:{local}
  rules: [allow all]
  exits:
    - url: gsocks://127.0.0.1:{server}
      key_file: gsocks.key
"""


def write_config(folder: Path, more: str = "") -> Path:
    path = folder / "config.yaml"
    text = ONE_PROCESS.format(server=free_port(), local=free_port())
    path.write_text(more + text)
    return path


def curl(port: int, web: int, word: str = "hello", *more: str) -> subprocess.CompletedProcess[str]:
    return run(
        "curl", "-sS", "--max-time", "20", "--socks5-hostname", f"127.0.0.1:{port}",
        *more, f"http://127.0.0.1:{web}/text/{word}",
    )  # fmt: skip


class Held:
    """A connection through a local end that stays open until :meth:`close`."""

    def __init__(self, port: int) -> None:
        self.target = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG)
        host, to = self.target.getsockname()
        self.client.sendall(b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(host))
        self.client.sendall(to.to_bytes(2, "big"))
        self.target.settimeout(TOO_LONG)
        self.far, _ = self.target.accept()
        self.far.settimeout(TOO_LONG)
        got = b""
        while len(got) < 12:
            got += self.client.recv(12 - len(got))
        assert got[:4] == b"\x05\x00\x05\x00"

    def echo(self, data: bytes = b"ping") -> None:
        self.client.sendall(data)
        assert self.far.recv(100) == data
        self.far.sendall(data)
        assert self.client.recv(100) == data

    def close(self) -> None:
        self.client.close()
        self.far.close()
        self.target.close()


def workers_of(program: Program) -> list[int]:
    pid = program.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
