"""The two sides of real clients: the listeners they connect to, and the servers they request.

The listeners are processes of their own, local -> tunnel -> server, so nothing here needs gevent.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import trustme
import websockets.asyncio.server

from tests.support.newcomers import cheap
from tests.support.program import Program, both_programs
from tests.support.waiting import TOO_LONG

NAME, PASSWORD = "ali", "open-sesame"

#: how it ends if a client closes while the other side still says good-bye, as TLS and ssh do
GONE_EARLY = "(ok|client_reset)"

#: real clients, browsers above all, ask for more than the test wants: nothing leaves this machine
LOOPBACK_ONLY = "[allow loopback, allow localhost, allow *.invalid, deny all]"


def chromium_options(folder: Path) -> list[str]:
    """Those by which Chromium prints a page and asks for nothing of its own."""
    return [
        "--headless",
        "--no-sandbox",  # which root can't have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--ignore-certificate-errors",  # it trusts the system's authorities only
        f"--user-data-dir={folder}",
        "--dump-dom",
    ]


# --- listeners ---------------------------------------------------------------------------------


class Listener:
    """A local end; its exit is the tunnel."""

    def __init__(self, program: Program, login: bool) -> None:
        self._program = program
        self.port = program.port()
        self.at = f"127.0.0.1:{self.port}"
        #: the user whom its access log names
        self.user = NAME if login else "-"
        #: the same for the options of clients: ``name:password``, or nothing
        self.credentials = f"{NAME}:{PASSWORD}" if login else ""

    def url(self, scheme: str) -> str:
        """As clients are told of a proxy."""
        return f"{scheme}://{self.credentials}{'@' if self.credentials else ''}{self.at}"

    def carried(self, dest: str, outcome: str = "ok", command: str = "connect") -> None:
        """Wait until the access log tells of a connection to ``dest``, made by this user."""
        shown = "" if command == "connect" else f"command={command} "
        reached = r"exit=gsocks://" if outcome.startswith(("ok", "(ok")) else ""
        self._program.wait_for(
            rf"gsocks\.access: .* user={self.user} {shown}dest={re.escape(dest)} {reached}"
            rf".*outcome={outcome}( |$)"
        )

    def refused(self, word: str) -> None:
        """Wait until the access log tells of a client that was not let in."""
        self._program.wait_for(rf"gsocks\.access: .* outcome={word}( |$)")


class Listeners(NamedTuple):
    """Two local ends of one server."""

    open: Listener
    #: asks for a password
    guarded: Listener


USERS = f"  users: {{{NAME}: '{cheap(PASSWORD.encode())}'}}\n"


@contextmanager
def both_inbounds(folder: Path) -> Iterator[Listeners]:
    """Local ends with and without users, both with the same server behind them."""
    with both_programs(folder, rules=LOOPBACK_ONLY) as (near, _):
        config = folder / "guarded.yaml"
        config.write_text((folder / "local.yaml").read_text() + USERS)
        with Program("-c", config) as guarded:
            yield Listeners(Listener(near, login=False), Listener(guarded, login=True))


@contextmanager
def guarded_inbound(folder: Path) -> Iterator[Listener]:
    """One with users, for those who fail to log in: that is remembered for a while."""
    with both_programs(folder, rules=LOOPBACK_ONLY, local=USERS) as (near, _):
        yield Listener(near, login=True)


# --- servers ------------------------------------------------------------------------------------


class Certified:
    """What TLS on loopback needs at both sides."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self._certificate = authority.issue_cert("localhost", "127.0.0.1")
        #: who has to be trusted, as a file of PEM
        self.authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.authority)

    def server(self) -> ssl.SSLContext:
        """For a server that is called localhost or 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        """Trusts no other authority."""
        return ssl.create_default_context(cafile=self.authority)


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Runs ``serve`` in a thread for each connection; gives the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(TOO_LONG)
            serve(self.request)

    with _Tcp(("127.0.0.1", 0), Handler) as server, ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        stack.callback(server.shutdown)
        yield server.server_address[1]


def answer_with_digest(sock: socket.socket) -> None:
    """Read to the end, and only then answer: what a client without half-close never sees."""
    digest = hashlib.sha256()
    while data := sock.recv(65536):
        digest.update(data)
    sock.sendall(digest.hexdigest().encode())


@contextmanager
def http2_server(certified: Certified) -> Iterator[int]:
    """Speaks HTTP/2 and nothing else, over TLS; every page says ``two``."""
    context = certified.server()
    context.set_alpn_protocols(["h2"])

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as sock:
            config = h2.config.H2Configuration(client_side=False)
            http = h2.connection.H2Connection(config)
            http.initiate_connection()
            sock.sendall(http.data_to_send())
            while data := sock.recv(65536):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        http.send_headers(event.stream_id, [(":status", "200")])
                        http.send_data(event.stream_id, b"two", end_stream=True)
                sock.sendall(http.data_to_send())

    with tcp_server(serve) as port:
        yield port


@contextmanager
def websocket_echo(certified: Certified | None = None) -> Iterator[int]:
    """Echoes messages, over TLS if it is certified.

    In one thread, as OpenSSL lets no two of them use a connection: see the client in
    test_real_python.py.
    """

    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        async with websockets.asyncio.server.serve(
            echo,
            "127.0.0.1",
            0,
            ssl=certified.server() if certified else None,
            open_timeout=TOO_LONG,
            close_timeout=TOO_LONG,
            ping_interval=None,
        ) as server:
            started.set_result((server.sockets[0].getsockname()[1], loop, stop))
            await stop.wait()

    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(asyncio.run, serve())
        port, loop, stop = started.result(TOO_LONG)
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(stop.set)
            ended.result(TOO_LONG)
