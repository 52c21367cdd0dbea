"""What the tests of the engine stand on: targets, clients, tunnels, both ends at once."""

from __future__ import annotations

import gc
import hashlib
import os
import socket as std_socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple, TypeVar

import gevent
from gevent import subprocess
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from gevent.server import StreamServer
from gevent.socket import create_connection, socket

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.crypto import Cipher, Key, KeyRing
from gsocks.errors import GsocksError
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.exits.tunnel import TunnelExit
from gsocks.inbound.listener import Listener
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.observe import Record
from gsocks.replay import ReplayGuard
from gsocks.request import Request
from gsocks.rotation.group import ExitGroup
from gsocks.server import RemoteServer
from gsocks.settings import Limits, PoolSettings, Timeouts
from gsocks.stream import SocketStream, reset
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.server import ServerTunnel, accept_tunnel
from tests.support import ports, waiting
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG

KEY = Key(bytes(range(32)))


def eventually(condition: Callable[[], object], within: float = TOO_LONG / 2) -> None:
    """Poll as :func:`waiting.eventually` does, while other greenlets run."""
    waiting.eventually(condition, within, gevent.sleep)


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# --- what is open -----------------------------------------------------------------------------


def living_greenlets() -> list[Any]:
    """Those of this thread's hub: a thread that another test has left may have its own."""
    gc.collect()
    hub = gevent.get_hub()
    return [
        each
        for each in gc.get_objects()
        if isinstance(each, gevent.Greenlet) and not each.dead and each.parent is hub
    ]


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        if ports.holds(int(fd)):
            continue
        try:
            what = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the listing's own
        if not what.startswith(("anon_inode:", "/dev/")):  # the event loop's and its threads'
            found.add(what)
    return found


# --- targets ----------------------------------------------------------------------------------


@contextmanager
def serving(handle: Callable[[socket], object]) -> Iterator[Address]:
    """A TCP server on loopback; ``handle`` runs for each connection, which it may lose."""

    def serve(sock: socket, _: object) -> None:
        try:
            handle(sock)
        except OSError:
            pass  # the other side gave up, which is its right in these tests

    server = StreamServer(("127.0.0.1", 0), serve, backlog=1024)
    server.start()
    try:
        yield Address("127.0.0.1", server.socket.getsockname()[1])
    finally:
        server.stop()


def echo(sock: socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)
        del data  # hold nothing while nothing comes, so that tests can count who does
    sock.shutdown(std_socket.SHUT_WR)


# --- clients ----------------------------------------------------------------------------------


class Refused(Exception):
    """The SOCKS reply was not success; its argument is REP."""


def connect(to: Address, timeout: float = TOO_LONG) -> socket:
    return create_connection((to.host, to.port), timeout=timeout)


def read_exactly(sock: socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError(f"ended {count - len(data)} bytes early")
        data += part
    return data


def read_to_end(sock: socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def socks_request(dest: Address) -> bytes:
    """Greeting and request, as one write."""
    return b"\x05\x01\x00" + b"\x05\x01\x00" + dest.encode()


def read_answer(sock: socket) -> Address:
    """The method and the reply; returns the bound address, raises Refused."""
    assert read_exactly(sock, 2) == b"\x05\x00"
    return read_reply(sock)


def read_reply(sock: socket) -> Address:
    """The address in a reply; raises Refused."""
    version, reply, reserved = read_exactly(sock, 3)
    assert (version, reserved) == (5, 0)
    bound = Address.read(lambda count: read_exactly(sock, count))
    if reply:
        raise Refused(reply)
    return bound


def through(inbound: Address, dest: Address, payload: bytes = b"") -> socket:
    """A connection to ``dest`` through the SOCKS listener."""
    sock = connect(inbound)
    try:
        sock.sendall(socks_request(dest) + payload)
        read_answer(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def ask_echo(inbound: Address, echo_at: Address, data: bytes) -> bytes:
    """Send ``data`` to an echo server through the listener and end; returns what came back.

    Raises what either direction met: the kernel tells of a reset once, to the first who asks,
    and to the other it looks like an end.
    """
    with through(inbound, echo_at) as sock:
        sender = gevent.spawn(send_and_end, sock, data)
        try:
            answer = read_to_end(sock)
            failure = sender.get()
        finally:
            sender.kill()
    if failure is not None:
        raise failure
    return answer


def send_and_end(sock: socket, data: bytes) -> OSError | None:
    """Send all of it and end that direction; what the kernel reports instead."""
    try:
        sock.sendall(data)
        sock.shutdown(std_socket.SHUT_WR)
    except OSError as error:
        return error
    return None


def is_reset(sock: socket) -> bool:
    """Whether the connection ends by RST, whatever came before; False at a clean end."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def send_reset(sock: socket) -> None:
    reset(sock)


# --- tunnels ----------------------------------------------------------------------------------


def tunnel_pair(buffer: int | None = None) -> tuple[ClientTunnel, ServerTunnel]:
    """Both ends of one tunnel, agreed over loopback."""
    near, far = tcp_pair(buffer)
    with closing(ReplayGuard(0)) as guard:
        accepting = gevent.spawn(
            accept_tunnel, far, KeyRing({"default": KEY}), guard, Cipher.SECRETBOX
        )
        try:
            return connect_tunnel(near, KEY, Cipher.SECRETBOX), accepting.get()
        except BaseException:
            accepting.kill()
            near.close()
            far.close()
            raise


# --- both ends --------------------------------------------------------------------------------


class Seen:
    """An Observer that keeps every record, and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.all: list[Record] = []
        self._new: Queue[Record] = Queue()

    def ended(self, record: Record) -> None:
        self.all.append(record)
        self._new.put_nowait(record)

    def next(self) -> Record:
        return self._new.get(timeout=TOO_LONG)

    @property
    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.all]


def direct(rules: Rules = ALLOW_ALL) -> ExitGroup:
    return ExitGroup([DirectExit(Dialer(rules, Resolver()))], rules)


class QuickExit:
    """An exit that connects at once, to a peer that has ended already."""

    def __init__(self, label: str) -> None:
        self.label = label

    def close(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        near, far = tcp_pair()
        far.close()
        return Connected(SocketStream(near), request.dest)


class FakeExit:
    """An exit that fails as a test wants it to, or hangs until a test lets it fail."""

    def __init__(self, label: str, failure: BaseException | None = None) -> None:
        self.label = label
        self.asked = Event()
        #: how many requests came
        self.requests = 0
        #: how many times it was closed
        self.closed = 0
        self._failure = failure
        self._may_fail = Event()

    def close(self) -> None:
        self.closed += 1

    def fail(self, failure: BaseException) -> None:
        self._failure = failure
        self._may_fail.set()

    def connect(self, request: Request) -> Connected:
        self.requests += 1
        self.asked.set()
        if self._failure is None:
            self._may_fail.wait()
        assert self._failure is not None
        raise self._failure


_Inbound = TypeVar("_Inbound", bound=Listener)


@contextmanager
def running_inbound(inbound: _Inbound) -> Iterator[_Inbound]:
    inbound.start()
    try:
        yield inbound
    finally:
        inbound.stop(0)


MakeLocal = Callable[..., LocalServer]


@contextmanager
def local_listeners(seen: Seen) -> Iterator[MakeLocal]:
    """What starts local listeners, by default with an exit of their own; they stop at the end."""
    with ExitStack() as stack:

        def make(exit_group: ExitGroup | None = None, **options: Any) -> LocalServer:
            inbound = LocalServer(
                ("127.0.0.1", 0), exit_group or direct(), observer=seen, **options
            )
            return stack.enter_context(running_inbound(inbound))

        yield make


def make_server(
    listener: tuple[str, int] | std_socket.socket = ("127.0.0.1", 0),
    exit_group: ExitGroup | None = None,
    **options: Any,
) -> RemoteServer:
    return RemoteServer(listener, exit_group or direct(), {"default": KEY}, **options)


def make_exit(server: Address, *, pool_size: int = 8, **options: Any) -> TunnelExit:
    pool = PoolSettings(size=pool_size)
    return TunnelExit(server, KEY, Dialer(ALLOW_ALL, Resolver()), pool=pool, **options)


class Ends(NamedTuple):
    """A client's side and a server's, running."""

    local: LocalServer
    exit: TunnelExit
    server: RemoteServer
    #: the records of each listener's observer
    at_local: Seen
    at_server: Seen


@contextmanager
def both_ends(
    *,
    pool_size: int = 8,
    timeouts: Timeouts = Timeouts(),
    limits: Limits = Limits(),
    exit_group: ExitGroup | None = None,
) -> Iterator[Ends]:
    at_local, at_server = Seen(), Seen()
    server = make_server(
        exit_group=exit_group, timeouts=timeouts, limits=limits, observer=at_server
    )
    server.start()
    way = make_exit(server.bound, pool_size=pool_size)
    local = LocalServer(
        ("127.0.0.1", 0),
        ExitGroup([way], ALLOW_ALL, timeout=timeouts.connect),
        timeouts=timeouts,
        limits=limits,
        observer=at_local,
    )
    local.start()
    way.pool.wake()
    try:
        yield Ends(local, way, server, at_local, at_server)
    finally:
        local.stop(0)
        server.stop(0)


# --- in between -------------------------------------------------------------------------------


class Forwarder:
    """A TCP forwarder that can fall silent, as a path does whose middlebox forgot it."""

    def __init__(self, to: Address) -> None:
        self._to = to
        self._flowing = Event()
        self._flowing.set()
        self._sockets: set[socket] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve, backlog=1024)
        #: how many connections came
        self.connections = 0
        #: "up" and "down" in the order in which they took turns, over all connections
        self.turns: list[str] = []
        self._flip = ""

    def __enter__(self) -> Forwarder:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self.cut()

    @property
    def bound(self) -> Address:
        return Address("127.0.0.1", self._server.socket.getsockname()[1])

    def fall_silent(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def flip_a_bit(self, direction: str) -> None:
        """Change the last bit of what comes next, "up" or "down"."""
        self._flip = direction

    def cut(self) -> None:
        """Reset every connection."""
        self._flowing.set()
        for sock in list(self._sockets):
            reset(sock)

    def _serve(self, near: socket, _: object) -> None:
        self.connections += 1
        try:
            far = connect(self._to)
        except OSError:
            return
        self._sockets |= {near, far}
        back = gevent.spawn(self._copy, far, near, "down")
        self._copy(near, far, "up")
        back.join()
        self._sockets -= {near, far}
        far.close()

    def _copy(self, source: socket, sink: socket, turn: str) -> None:
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                if self.turns[-1:] != [turn]:
                    self.turns.append(turn)
                if self._flip == turn:
                    self._flip = ""
                    data = data[:-1] + bytes((data[-1] ^ 1,))
                sink.sendall(data)
            self._flowing.wait()
            sink.shutdown(std_socket.SHUT_WR)
        except OSError:
            reset(source)
            reset(sink)


# --- in another process -----------------------------------------------------------------------

_SERVER = """
import sys, gevent
from gsocks.crypto import Key
from gsocks.server import RemoteServer
server = RemoteServer(("127.0.0.1", int(sys.argv[1])), ["direct"],
                      {"default": Key(bytes(range(32)))}, rules=["allow all"])
server.start()
print(server.bound.port, flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)  # until the test that started it is gone
"""


@contextmanager
def running(script: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program in its own process, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def printed_address(process: subprocess.Popen[bytes]) -> Address:
    """Where the program listens, which prints its port first."""
    assert process.stdout is not None
    return Address("127.0.0.1", int(process.stdout.readline()))


@contextmanager
def server_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], Address]]:
    """A RemoteServer in its own process."""
    with running(_SERVER, str(port)) as process:
        yield process, printed_address(process)


_T = TypeVar("_T")


def value_of(result: AsyncResult[_T], timeout: float = TOO_LONG) -> _T:
    """Wait until it is set."""
    value = result.get(timeout=timeout)
    assert value is not None
    return value


def gather(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run all at once; what each returned, or what it raised."""
    greenlets = [gevent.spawn(_outcome, call) for call in calls]
    gevent.joinall(greenlets)
    return [greenlet.value for greenlet in greenlets]


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (OSError, EOFError, Refused, GsocksError) as error:
        return error
