"""A client and a server of HTTP, in the tests' own hands: every byte is said and heard as is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h11
from gevent.event import Event
from gevent.queue import Queue
from gevent.socket import SHUT_WR, socket

from gsocks.address import Address
from gsocks.local import LocalServer
from tests.support.engine import Seen, connect, serving
from tests.support.waiting import TOO_LONG


@dataclass(frozen=True)
class Reply:
    """An answer as a client of HTTP/1.1 understands it."""

    status: int
    #: in their order, with names in small letters
    fields: list[tuple[str, str]]
    body: bytes
    #: the statuses of the 1xx answers before it
    before: list[int]

    def __getitem__(self, name: str) -> str:
        """All values of one field, as one."""
        return ", ".join(value for found, value in self.fields if found == name)

    def __contains__(self, name: object) -> bool:
        return any(found == name for found, _ in self.fields)


class Talk:
    """One end of a connection: a client's, or a server's that has heard ``head``."""

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.head = b""
        self.over = Event()
        self._ahead = b""

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.over.set()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, data: bytes, method: str = "GET") -> Reply:
        self.say(data)
        return self.hear(method)

    def hear(self, method: str = "GET") -> Reply:
        """The next answer, to a request of that method."""
        http = h11.Connection(h11.CLIENT)
        upgrade = [("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "x")]
        http.send(h11.Request(method=method, target="/", headers=upgrade))
        http.send(h11.EndOfMessage())
        if self._ahead:
            http.receive_data(self._ahead)
        before, body = [], b""
        head: h11.Response | h11.InformationalResponse | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(self.sock.recv(65536))
            elif isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                before.append(event.status_code)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, (h11.Response, h11.InformationalResponse)):
                head = event
            else:  # the end, or what follows is no longer HTTP
                assert head is not None
                assert isinstance(event, h11.EndOfMessage) or event is h11.PAUSED
                self._ahead = http.trailing_data[0]
                fields = [(name.decode(), value.decode()) for name, value in head.headers]
                return Reply(head.status_code, fields, body, before)

    def hear_exactly(self, data: bytes) -> None:
        """The next bytes are these."""
        assert self.hear_bytes(len(data)) == data

    def hear_until(self, end: bytes) -> bytes:
        """What is heard up to ``end``."""
        while end not in self._ahead:
            part = self.sock.recv(65536)
            assert part, self._ahead
            self._ahead += part
        heard, _, self._ahead = self._ahead.partition(end)
        return heard + end

    def hear_bytes(self, count: int) -> bytes:
        """The next bytes, so many."""
        while len(self._ahead) < count:
            part = self.sock.recv(65536)
            assert part, self._ahead
            self._ahead += part
        heard, self._ahead = self._ahead[:count], self._ahead[count:]
        return heard

    def hear_body(self) -> bytes:
        """The body of the request whose head was heard."""
        http = h11.Connection(h11.SERVER)
        http.receive_data(self.head + self._ahead)
        body = b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(self.sock.recv(65536))
            elif isinstance(event, h11.Data):
                body += event.data
        self._ahead = http.trailing_data[0]
        return body

    def hear_end(self) -> None:
        """The listener closes the connection, and sends nothing before."""
        assert self._ahead == b""
        assert self.sock.recv(65536) == b""


class Web:
    """A running web server."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.host = str(address).encode()
        self.url = b"http://" + self.host
        #: the heads that came
        self.heads: list[bytes] = []
        self.connections: Queue[Talk] = Queue()

    def next(self) -> Talk:
        """The next connection that has asked something."""
        return self.connections.get(timeout=TOO_LONG)


def ok(body: bytes, *fields: bytes) -> bytes:
    """A plain answer."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextmanager
def web(answer: bytes | Callable[[Talk], object] | None = None) -> Iterator[Web]:
    """A web server that says ``answer`` to every head and hangs up, or does with it what it does.

    None: each connection is the test's to play.
    """

    def serve(sock: socket) -> None:
        talk = Talk(sock)
        talk.head = talk.hear_until(b"\r\n\r\n")
        running.heads.append(talk.head)
        if answer is None:
            running.connections.put(talk)
            talk.over.wait()
        elif isinstance(answer, bytes):
            sock.sendall(answer)
            # a close with unread bytes, a body's, would be a reset: an answer that was cut
            sock.shutdown(SHUT_WR)
            while sock.recv(65536):
                pass
        else:
            answer(talk)

    with serving(serve) as address:
        running = Web(address)
        yield running
        while running.connections.qsize():  # which no test has taken
            running.next().over.set()


@contextmanager
def http_inbound(**options: Any) -> Iterator[tuple[LocalServer, Seen]]:
    """A listener whose exit is direct, and the records of its observer."""
    seen = Seen()
    inbound = LocalServer(("127.0.0.1", 0), rules=["allow all"], observer=seen, **options)
    inbound.start()
    try:
        yield inbound, seen
    finally:
        inbound.stop(0)


def talk_to(inbound: LocalServer) -> Talk:
    return Talk(connect(inbound.bound))


def get(origin: Web, path: bytes = b"/", *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request as a proxy is asked it."""
    lines = [method + b" " + origin.url + path + b" HTTP/1.1", b"Host: " + origin.host, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"
