"""Proxies for the tests of the exits: Debian's own, honest ones of ours, and players of parts."""

from __future__ import annotations

import os
import random
import signal
import socket as std_socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from select import select
from typing import Any, NamedTuple

import gevent
import pytest
import trustme
from gevent import subprocess
from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import create_connection, socket

from gsocks.address import Address
from gsocks.errors import StreamError
from gsocks.exits.handshake import Opening
from gsocks.net.tls import TlsStream
from gsocks.relay import Relay
from gsocks.stream import SocketStream, Stream, tune
from tests.support import needs
from tests.support.engine import connect, serving
from tests.support.ports import free_port
from tests.support.waiting import TOO_LONG

# --- Debian's ---------------------------------------------------------------------------------


#: by the port that each listens on
_processes: dict[int, Any] = {}


def send_signal(proxy: Address, number: signal.Signals) -> None:
    """SIGSTOP: it is silent from now on; SIGCONT: it goes on; SIGKILL: nothing listens there."""
    os.killpg(_processes[proxy.port].pid, number)
    if number is signal.SIGKILL:
        _processes[proxy.port].wait()


@contextmanager
def _running(
    package: str, program: str, *arguments: str, port: int, gently: bool = False
) -> Iterator[Address]:
    """A program that listens on ``port`` of loopback, and is killed at the end.

    ``gently``: it has to clear up behind itself first.
    """
    path = needs.program(program, package)
    process = _processes[port] = subprocess.Popen(
        [path, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stderr = process.stderr
    assert stderr is not None
    try:
        deadline = time.monotonic() + TOO_LONG
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"{program} did not start: {stderr.read().decode()}")
            gevent.sleep(0.01)
        yield Address("127.0.0.1", port)
    finally:
        if gently and process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(TOO_LONG)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own group, and dante is a family
            process.wait()
        stderr.close()


def _listens(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def microsocks(
    user: str | None = None, password: str | None = None, port: int | None = None
) -> Iterator[Address]:
    port = port or free_port()
    login = ["-u", user, "-P", password] if user and password else []
    with _running(
        "microsocks", "microsocks", "-i", "127.0.0.1", "-p", str(port), *login, port=port
    ) as address:
        yield address


@contextmanager
def dante(folder: Path, forbidden: str) -> Iterator[Address]:
    """A SOCKS4a and SOCKS5 server whose rules forbid one address."""
    port = free_port()
    config = folder / "danted.conf"
    users = "user.privileged: root\nuser.unprivileged: nobody\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"internal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\n"
        f"socksmethod: none\nclientmethod: none\n{users}"
        "client pass { from: 0/0 to: 0/0 }\n"
        f"socks block {{ from: 0/0 to: {forbidden}/32 }}\n"
        "socks pass { from: 0/0 to: 0/0 }\n"
    )
    with _running("dante-server", "danted", "-f", str(config), port=port) as address:
        yield address


@contextmanager
def tinyproxy(
    folder: Path, user: str | None = None, password: str | None = None
) -> Iterator[Address]:
    port = free_port()
    login = f"BasicAuth {user} {password}\n" if user else ""
    config = folder / f"tinyproxy-{port}.conf"
    config.write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\n{login}")
    with _running("tinyproxy", "tinyproxy", "-d", "-c", str(config), port=port) as address:
        yield address


@contextmanager
def squid(folder: Path, *lines: str) -> Iterator[Address]:
    """squid with the configuration that Debian installs, and ``lines`` before it."""
    port = free_port()
    default = Path("/etc/squid/squid.conf")
    needs.program("squid")
    config = folder / f"squid-{port}.conf"
    config.write_text(
        "\n".join([*lines, default.read_text().replace("http_port 3128", "")])
        + f"\nhttp_port 127.0.0.1:{port}\npid_filename {folder}/squid-{port}.pid\n"
        "access_log none\ncache_log /dev/null\nnetdb_filename none\npinger_enable off\n"
        "shutdown_lifetime 0 seconds\n"
    )
    # -n: the name of its shared memory, which it removes at its end, for several at a time
    arguments = ("-N", "-n", f"test{port}", "-f", str(config))
    with _running("squid", "squid", *arguments, port=port, gently=True) as address:
        yield address


@contextmanager
def stunnel(folder: Path, cert: Path, to: Address, *lines: str) -> Iterator[Address]:
    """TLS in front of another proxy, with a certificate and its key, and with more ``lines``."""
    port = free_port()
    config = folder / f"stunnel-{port}.conf"
    config.write_text(
        "foreground = yes\npid =\nsyslog = no\n[proxy]\n"
        f"accept = 127.0.0.1:{port}\nconnect = {to}\ncert = {cert}\n"
        + "".join(f"{line}\n" for line in lines)
    )
    with _running("stunnel4", "stunnel4", str(config), port=port) as address:
        yield address


@contextmanager
def haproxy(folder: Path, cert: Path, to: Address) -> Iterator[Address]:
    """HAProxy, which ends TLS with a certificate and its key, and asks a server of HTTP behind."""
    port = free_port()
    config = folder / f"haproxy-{port}.cfg"
    config.write_text(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n"
        "  timeout server 60s\n  timeout tunnel 60s\n"
        f"frontend web\n  bind 127.0.0.1:{port} ssl crt {cert} alpn http/1.1\n"
        f"  default_backend tunnels\nbackend tunnels\n  server gsocks {to}\n"
    )
    with _running("haproxy", "haproxy", "-db", "-f", str(config), port=port) as address:
        yield address


# --- honest ones of ours ----------------------------------------------------------------------


@cache
def authority() -> trustme.CA:
    """Whom the tests trust.  Made once: keys take their time."""
    return trustme.CA()


@cache
def certified(*names: str) -> ssl.SSLContext:
    """What a TLS server for ``names`` needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


@cache
def trusting() -> ssl.SSLContext:
    """A client's context that trusts only the tests' authority."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def _until(stream: Stream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        part = stream.read()
        if not part:
            raise StreamError("hung up")
        data += part
    return data


def _relay(client: Stream, dest: Address) -> None:
    _carry(client, SocketStream(connect(dest)))


def _carry(client: Stream, remote: Stream) -> None:
    ended = Event()
    Relay(client, remote, idle=60, half_closed=60, ended=lambda _: ended.set()).run()
    ended.wait()


def _serve_http(client: Stream) -> None:
    """CONNECT alone, as many proxies have it."""
    method, target = _until(client, b"\r\n\r\n").split()[:2]
    if method != b"CONNECT":
        client.write(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        client.write_eof()
        return
    client.write(b"HTTP/1.1 200 OK\r\n\r\n")
    _relay(client, Address.parse(target.decode()))


def _serve_socks4a(client: Stream) -> None:
    """Destinations are IPv4 addresses, and clients have no names."""
    request = _until(client, b"\0")
    client.write(b"\0\x5a" + bytes(6))
    ip = ".".join(map(str, request[4:8]))
    _relay(client, Address(ip, int.from_bytes(request[2:4], "big")))


def _serve_trojan(client: Stream) -> None:
    """CONNECT alone, whatever the password."""
    opening = Opening(client)
    opening.exactly(56 + 2 + 1, "the password")
    dest = Address.read(lambda count: opening.exactly(count, "the destination"))
    opening.exactly(2, "the request")
    _relay(opening.rest(), dest)


_SERVERS: dict[str, Callable[[Stream], None]] = {
    "http": _serve_http,
    "https": _serve_http,
    "socks4a": _serve_socks4a,
    "trojan": _serve_trojan,
}


@contextmanager
def honest(kind: str) -> Iterator[Address]:
    """A proxy of ours that speaks one of these, in its simplest form."""

    def handle(sock: socket) -> None:
        tune(sock)
        stream: Stream = SocketStream(sock)
        try:
            if kind in ("https", "trojan"):
                secured = TlsStream(stream, certified("127.0.0.1"), None)
                secured.handshake()
                stream = secured
            _SERVERS[kind](stream)
        except StreamError:
            stream.abort()

    with serving(handle) as address:
        yield address


# --- players of parts ---------------------------------------------------------------------------


class Line(NamedTuple):
    """What the proxy hears, and what it answers."""

    hears: bytes
    says: bytes


Speak = Callable[[Stream, bytes], None]


def play(stream: Stream, part: Sequence[Line], speak: Speak) -> None:
    """Be a proxy that hears exactly what stands in ``part``, and answers it.

    Behind what it does not answer more may come at once, which is left in the stream.
    """
    heard = b""
    for line in part:
        while len(heard) < len(line.hears):
            data = stream.read()
            if not data:
                raise StreamError(f"hung up behind {heard!r}, before {line.hears!r}")
            heard += data
        assert heard.startswith(line.hears)
        heard = heard[len(line.hears) :]
        assert not (heard and line.says)
        speak(stream, line.says)
    if heard:
        assert isinstance(stream, TlsStream)
        stream.unread(heard)


def at_once(stream: Stream, data: bytes) -> None:
    stream.write(data)


def byte_by_byte(stream: Stream, data: bytes) -> None:
    for start in range(len(data)):
        stream.write(data[start : start + 1])
        gevent.sleep(0)


class UpTo:
    """Speaks until ``count`` bytes are said in all, does ``then``, and is done."""

    def __init__(self, count: int, then: Callable[[Stream], object]) -> None:
        self._left = count
        self._then = then

    def __call__(self, stream: Stream, data: bytes) -> None:
        stream.write(data[: self._left])
        self._left -= len(data)
        if self._left < 0:
            self._then(stream)
            raise StreamError("the part is over")


def hang(stream: Stream) -> None:
    """Say nothing more, and wait until the other side gives up."""
    while stream.read():
        pass


@contextmanager
def stage(
    handle: Callable[[Stream], object], tls: ssl.SSLContext | None = None
) -> Iterator[Address]:
    """A server whose connections are handled as Streams, and closed behind that."""

    def serve(sock: socket) -> None:
        tune(sock)
        stream: Stream = SocketStream(sock)
        try:
            if tls is not None:
                secured = TlsStream(stream, tls, None)
                secured.handshake()
                stream = secured
            handle(stream)
        except StreamError:
            pass  # the part is over, or the exit gave up, which is its right in these tests

    with serving(serve) as address:
        yield address


@contextmanager
def unreachable() -> Iterator[Address]:
    """A port whose listener has a full backlog: the kernel drops each SYN that comes there."""
    with std_socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as full:
        address = Address.from_sockaddr(listener.getsockname())
        while True:
            sock = full.enter_context(std_socket.socket())
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect((address.host, address.port))
            if not select([], [sock], [], 0.2)[1]:
                yield address
                return


# --- one that changes its mind ------------------------------------------------------------------


class Mood(NamedTuple):
    """What a proxy does wrong, and where."""

    what: str
    step: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


WELL = Mood("well")

#: every way to fail before success is told
FAILURES = [
    Mood(what, step)
    for step in ("accept", "greeting", "login", "reply")
    for what in ("hang", "garbage", "close", "reset")
]


class Moody:
    """A SOCKS5 proxy of ours that is in some mood, and can be away."""

    def __init__(self, mood: Mood = WELL, source: str = "") -> None:
        self.mood = mood
        #: the address from which it reaches destinations; empty: whatever the kernel takes
        self.source = source
        #: connections that came, and user names
        self.asked = 0
        self.users: list[str] = []
        #: destinations that say nothing
        self.blackholes: set[Address] = set()
        #: whether it looks names up, which takes long where there is no network
        self.knows_names = True
        self._port = free_port()
        self._server: StreamServer | None = None
        self._open: set[Stream] = set()

    def __enter__(self) -> Moody:
        self.come()
        return self

    def __exit__(self, *_: object) -> None:
        self.go()

    @property
    def url(self) -> str:
        return f"socks5://user:pass@127.0.0.1:{self._port}"

    @property
    def is_away(self) -> bool:
        """Whether it does not serve at present."""
        return self._server is None or self.mood is not WELL

    def come(self) -> None:
        """Listen."""
        if self._server is None:
            self._server = StreamServer(("127.0.0.1", self._port), self._serve, backlog=1024)
            self._server.start()

    def go(self) -> None:
        """Listen no longer, and reset every connection."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        for stream in list(self._open):
            stream.abort()

    def _serve(self, sock: socket, _: object) -> None:
        tune(sock)
        stream = SocketStream(sock)
        self.asked += 1
        self._open.add(stream)
        try:
            self._be_a_proxy(stream)
        except (StreamError, OSError):
            stream.abort()  # by its mood, or by the other side's
        finally:
            self._open.discard(stream)

    def _be_a_proxy(self, stream: Stream) -> None:
        opening = Opening(stream)
        self._say(stream, "accept", b"")
        _, count = opening.exactly(2, "")
        methods = opening.exactly(count, "")
        if b"\x02" in methods:
            self._say(stream, "greeting", b"\x05\x02")
            user = opening.exactly(opening.exactly(2, "")[1], "").decode()
            opening.exactly(opening.exactly(1, "")[0], "")
            self.users.append(user)
            self._say(stream, "login", b"\x01\x00")
        else:
            self._say(stream, "greeting", b"\x05\x00")
        opening.exactly(3, "")
        dest = Address.read(lambda count: opening.exactly(count, ""))
        if dest in self.blackholes:
            hang(stream)
            raise StreamError("no client waits any more")
        self._say(stream, "reply", b"")
        if not self.knows_names and dest.ip is None:
            stream.write(_UNREACHABLE)
            raise StreamError("a name")
        if self.mood.what == "lie":
            stream.write(_SUCCESS)
            if self.mood.step == "silent":
                hang(stream)
            stream.close()
            return
        remote = SocketStream(
            create_connection((dest.host, dest.port), source_address=(self.source, 0))
        )
        self._open.add(remote)
        try:
            stream.write(_SUCCESS)
            if self.mood.what == "die":
                stream.write(remote.read()[:1000])
                remote.abort()
                raise StreamError("dead")
            _carry(stream, remote)
        except BaseException:
            remote.abort()
            raise
        finally:
            self._open.discard(remote)

    def _say(self, stream: Stream, step: str, data: bytes) -> None:
        if self.mood.step != step:
            stream.write(data)
            return
        if self.mood.what == "hang":
            hang(stream)
        elif self.mood.what == "garbage":
            stream.write(_NOISE)
            hang(stream)
        elif self.mood.what == "close":
            stream.write_eof()
        raise StreamError(self.mood.what)


_SUCCESS = b"\x05\x00\x00\x01" + bytes(6)
_UNREACHABLE = b"\x05\x04\x00\x01" + bytes(6)
_NOISE = b"\xee" + random.Random(1).randbytes(300)
