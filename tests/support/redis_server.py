"""A real Redis or Valkey for tests: killed, frozen, flushed and started anew."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import trustme

from tests.support import needs
from tests.support.ports import free_port
from tests.support.waiting import TOO_LONG, eventually


class RedisServer:
    """The server, empty at each start.  ``REDIS_SERVER`` names another program than Debian's."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        #: 0: it has none
        self.tls_port = 0
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Any:
        return redis.Redis(port=self.port, socket_timeout=TOO_LONG, **options)

    def start(self, *more: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        program = os.environ.get("REDIS_SERVER") or needs.program("redis-server")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        self._process = subprocess.Popen(
            [program, *options, str(self._folder), *self._options, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "it has ended at once"
        with socket.socket() as sock:
            sock.settimeout(1)
            try:
                sock.connect(("127.0.0.1", self.port))
                sock.sendall(b"PING\r\n")
                return bool(sock.recv(64))
            except OSError:
                time.sleep(0.01)
                return False

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.kill()


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def tls_server(
    folder: Path, authority: trustme.CA, names: Sequence[str] = ("127.0.0.1",)
) -> Iterator[tuple[RedisServer, int]]:
    """A server, and a second port of it that has TLS, and asks for certificates of clients."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with redis_server(
        folder, "--tls-port", str(port), *tls_options(folder, authority, names)
    ) as of:
        yield of, port


def tls_options(
    folder: Path, authority: trustme.CA, names: Sequence[str] = ("127.0.0.1",)
) -> list[str]:
    """Of a server for ``names``: its certificate, and whose certificates clients have to show."""
    cert, trusted = folder / "server.pem", folder / "ca.pem"
    authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(cert))
    authority.cert_pem.write_to_path(str(trusted))
    return [
        "--tls-cert-file", str(cert), "--tls-key-file", str(cert), "--tls-ca-cert-file",
        str(trusted), "--tls-auth-clients", "yes",
    ]  # fmt: skip


@contextmanager
def cluster(
    folder: Path, nodes: int = 3, authority: trustme.CA | None = None
) -> Iterator[Sequence[RedisServer]]:
    """A cluster of masters, each with its part of the slots.

    With an ``authority`` the nodes tell each other and clients of ports that have TLS, which
    :attr:`RedisServer.tls_port` is.
    """
    servers: list[RedisServer] = []
    try:
        for number in range(nodes):
            bus, of_node, tls_port, tls = free_port(), folder / str(number), 0, []
            if authority is not None:
                of_node.mkdir(parents=True)
                tls_port = free_port()
                tls = ["--tls-port", str(tls_port), "--tls-cluster", "yes"]
                tls += tls_options(of_node, authority)
            servers.append(
                RedisServer(
                    of_node, "--cluster-enabled", "yes", "--cluster-port", str(bus),
                    "--cluster-node-timeout", "2000", *tls,
                )
            )  # fmt: skip
            servers[-1].tls_port = tls_port
            bounds = (16384 * number // nodes, 16384 * (number + 1) // nodes - 1)
            servers[-1].client().execute_command("CLUSTER", "ADDSLOTSRANGE", *bounds)
            if number:
                first = servers[0]
                bus_of_first = first._options[first._options.index("--cluster-port") + 1]
                port = first.tls_port or first.port
                meet = ("CLUSTER", "MEET", "127.0.0.1", port, bus_of_first)
                servers[-1].client().execute_command(*meet)
        eventually(lambda: all(_is_whole(server, nodes) for server in servers))
        yield servers
    finally:
        for server in servers:
            server.close()


def _is_whole(server: RedisServer, nodes: int) -> bool:
    time.sleep(0.02)
    info = server.client().execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % nodes in info


@contextmanager
def sentinel(folder: Path, master: RedisServer) -> Iterator[RedisServer]:
    """A Sentinel that watches ``master`` by the name ``main``, and decides alone."""
    server = RedisServer.__new__(RedisServer)
    server.port = free_port()
    folder.mkdir(parents=True)
    server._folder, server._options = folder, ()
    server._process = _run_sentinel(folder, master.port, "--port", str(server.port))
    try:
        eventually(server._answers)
        yield server
    finally:
        server.close()


@contextmanager
def tls_sentinel(folder: Path, master: int, authority: trustme.CA) -> Iterator[int]:
    """The same in TLS alone, as it asks the master that has TLS at a port; gives its own port."""
    folder.mkdir(parents=True)
    port = free_port()
    options = tls_options(folder, authority)
    process = _run_sentinel(
        folder, master, "--port", "0", "--tls-port", str(port), "--tls-replication", "yes", *options
    )
    try:
        eventually(lambda: _accepts(port))
        yield port
    finally:
        process.kill()
        process.wait()


def _run_sentinel(folder: Path, master: int, *options: str) -> subprocess.Popen[bytes]:
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {master} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
    )
    program = os.environ.get("REDIS_SERVER") or needs.program("redis-server")
    return subprocess.Popen(
        [program, str(config), *options, "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        if sock.connect_ex(("127.0.0.1", port)):
            time.sleep(0.01)
            return False
        return True
