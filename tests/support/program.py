"""gsocks as its users run it: a process with a config file, and clients that know nothing of it.

No gevent here: what tests a proxy shouldn't share its event loop.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support import needs
from tests.support.waiting import TOO_LONG

ROOT = Path(__file__).parent.parent.parent

#: coverage.py traces no program that starts so: its hub would be several times as slow, and what it
#: finds is written to this folder, and by sqlite3
UNTRACED = ("env", "-u", "COVERAGE_PROCESS_CONFIG", "-u", "COVERAGE_PROCESS_START")


class Program:
    """``python -m gsocks`` with these arguments; its log is read as it comes.

    ``within``: the beginning of a command line by which it runs elsewhere; ``pass_fds``:
    descriptors that it inherits.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path = ROOT,
        within: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "gsocks", *map(str, arguments)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self.lines.append("(ended)")
            self._news.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """The first ``times`` lines of the log that match, as soon as they are there."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._news:
            self._news.wait_for(
                lambda: len(found()) >= times or "(ended)" in self.lines[-1:], TOO_LONG
            )
            assert len(found()) >= times, f"no {pattern!r} in:\n" + "\n".join(self.lines)
            return found()[:times]

    def port(self, inbound: str = "local") -> int:
        """The address of a listener."""
        what = {
            "local": r"local: listening on \S+:(\d+) ",
            "server": r"server: listening on \S+:(\d+) ",
        }[inbound]
        return int(self.wait_for(what)[0][1])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit status, once it has ended by itself."""
        status = self.process.wait(TOO_LONG)
        self._reader.join(TOO_LONG)
        return status

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        """Let go of its log, once it has ended."""
        self._reader.join(TOO_LONG)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TOO_LONG)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.close()
        before, traceback, behind = self.log.partition("Traceback")
        assert not traceback, before[-1000:] + traceback + behind[:10_000]


BOTH_ENDS = """
server:
  listen: 127.0.0.1:0
  keys: {default: {file: gsocks.key}}
  rules: [allow all]
"""


def write_private(path: Path, text: str) -> None:
    """Write a file that is for its owner alone, so that no warning tells of its secrets."""
    path.touch(0o600)
    path.write_text(text)


@contextmanager
def both_programs(
    folder: Path,
    *,
    server: str = "",
    local: str = "",
    top: str = "",
    rules: str = "[allow all]",
) -> Iterator[tuple[Program, Program]]:
    """A local end and a server, each in its own process; more keys for each as YAML lines."""
    write_private(
        folder / "server.yaml",
        f"{top}\nserver:\n  listen: 127.0.0.1:0\n  keys: {{default: {{file: gsocks.key}}}}\n"
        f"  rules: {rules}\n{server}",
    )
    with Program("-c", folder / "server.yaml") as far:
        write_private(folder / "local.yaml", local_config(far.port("server"), local, rules))
        with Program("-c", folder / "local.yaml") as near:
            near.port()
            yield near, far


def local_config(server_port: int, more: str = "", rules: str = "[allow all]") -> str:
    return (
        f"local:\n  listen: 127.0.0.1:0\n  rules: {rules}\n"
        f"  exits: [{{url: 'gsocks://127.0.0.1:{server_port}', key_file: gsocks.key}}]\n{more}"
    )


def run(
    *command: str | Path, stdin: str | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """A program that ends by itself."""
    name, *arguments = command
    return subprocess.run(
        [needs.program(str(name)), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        cwd=cwd,
        check=False,
    )


def gsocks(
    *arguments: str | Path, stdin: str | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "gsocks", *arguments, stdin=stdin, cwd=cwd)


# --- a web server -----------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
    """GET /text/WORD, GET /bytes/N, PUT anything: answers the SHA-256 of what it got.

    Scripts of other pages may read them.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        _, kind, what = self.path.split("/")
        if kind == "text":
            self.answer(what.encode())
            return
        size = int(what)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for chunk in chunks(size):
            self.wfile.write(chunk)

    def do_PUT(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 1 << 18))
            digest.update(data)
            left -= len(data)
        self.answer(digest.hexdigest().encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_BLOCK = hashlib.shake_128(b"gsocks").digest(1 << 18)


def chunks(size: int) -> Iterator[bytes]:
    """The content of /bytes/SIZE: no two of its blocks alike."""
    number = 0
    while size:
        part = (number.to_bytes(8, "big") + _BLOCK[8:])[: min(size, len(_BLOCK))]
        yield part
        size -= len(part)
        number += 1


def sha256_of_bytes(size: int) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(size):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def web_server(
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    pages: type[BaseHTTPRequestHandler] = Pages,
) -> Iterator[int]:
    """Serves pages from threads; gives its port."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def finish_request(self, request: Any, client: Any) -> None:
            if tls is None:
                super().finish_request(request, client)
            else:  # here and not in the listener: a slow handshake holds up its own thread only
                with tls.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, client)

    server = Server((host, 0), pages)
    # it looks so often whether it is to stop
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


# --- datagrams, and Unix sockets ---------------------------------------------------------------


def ask_udp(port: int, payload: bytes) -> bytes:
    """The answer to a datagram, which has a port of its own."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(TOO_LONG)
        sock.sendto(payload, ("127.0.0.1", port))
        return sock.recv(65535)


@contextmanager
def udp_echo() -> Iterator[int]:
    """A server in a thread that answers each datagram; gives its port."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while (found := sock.recvfrom(65535))[0] != b"end":
                sock.sendto(b"echo " + found[0], found[1])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield sock.getsockname()[1]
        with socket.socket(type=socket.SOCK_DGRAM) as last:
            last.sendto(b"end", sock.getsockname())
        thread.join(TOO_LONG)


def curl_at_path(path: Path, web: int, *more: str) -> subprocess.CompletedProcess[str]:
    """curl through a SOCKS listener at a Unix socket; gets /text/hello."""
    return run(
        "curl", "-sS", "--max-time", "20", "--proxy", f"socks5h://localhost{path}", *more,
        f"http://127.0.0.1:{web}/text/hello",
    )  # fmt: skip


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run ``work`` with 0 to ``count - 1`` at once; what went wrong in any of them."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except (Exception, AssertionError) as error:  # noqa: BLE001 - told to the caller
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TOO_LONG)
    assert not any(thread.is_alive() for thread in threads), "some never ended"
    return failures


def kill(program: Program) -> None:
    """SIGKILL, as the kernel's out-of-memory killer sends it."""
    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait()
    program.close()
