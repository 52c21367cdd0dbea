"""Clients of a gateway: so many requests, so many at once, each timed, failures counted."""

from __future__ import annotations

import select
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Sequence
from itertools import count, cycle
from typing import NamedTuple

from bench.gateway.upstreams import BODY
from bench.load.route import Place
from bench.processes import Failed

#: what is sent, and whether the bytes that came back are the whole answer to it
Step = tuple[bytes, Callable[[bytes], bool]]
#: a client's requests on one connection; it is sent each answer
Talk = Generator[Step, bytes, None]

#: seconds in which a request must be answered, or it has failed
PATIENCE = 15.0
#: seconds for all of them
LONGEST = 120.0
#: that are asked for
SITES = 50

_END = b"\r\n\r\n"
_GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
_CONNECT = b"CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n%s\r\n"


class Result(NamedTuple):
    """What a load has seen."""

    #: seconds of each request that was answered, in rising order
    times: list[float]
    failures: int
    #: of the whole load
    seconds: float

    @property
    def requests(self) -> int:
        return len(self.times) + self.failures

    def percentile(self, share: float) -> float:
        """Seconds in which that share of the answered requests was done; raises Failed if none."""
        if not self.times:
            raise Failed("answered no request")
        return self.times[min(len(self.times) - 1, int(len(self.times) * share))]


class _Refused(Exception):
    """The answer is a failure."""


# --- what clients say -----------------------------------------------------------------------


def by_connect(site: bytes, user: str = "") -> Talk:
    """CONNECT, and a small GET behind it."""
    login = b""
    if user:
        login = b"Proxy-Authorization: Basic %s\r\n" % b64encode(user.encode() + b":x")
    answer = yield _CONNECT % (site, site, login), _is_head
    if not answer.split(b" ", 2)[1].startswith(b"2"):
        raise _Refused
    yield from _get(_GET % site)


def by_socks5(site: bytes, _user: str = "") -> Talk:
    """SOCKS5 by name, and a small GET behind it."""
    if (yield b"\x05\x01\x00", lambda data: len(data) >= 2) != b"\x05\x00":
        raise _Refused
    request = b"\x05\x01\x00\x03" + bytes((len(site),)) + site + (443).to_bytes(2, "big")
    answer = yield request, _is_reply
    if answer[1]:
        raise _Refused
    yield from _get(_GET % site)


def by_absolute_form(site: bytes, _user: str = "") -> Talk:
    """One request in absolute form; the connection is kept for the next one."""
    yield from _get(b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\n\r\n" % (site, site))


def _get(request: bytes) -> Talk:
    answer = yield request, lambda data: data.endswith(BODY) or _is_failure(data)
    if not answer.endswith(BODY):
        raise _Refused


def _is_head(data: bytes) -> bool:
    return _END in data


def _is_failure(data: bytes) -> bool:
    return _END in data and not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))


def _is_reply(data: bytes) -> bool:
    """Whether a reply of SOCKS5 is whole; a failure is from its second byte on."""
    if len(data) < 2 or not data[1]:
        sizes = {1: 10, 3: 7 + (data[4] if len(data) > 4 else 255), 4: 22}
        return len(data) > 4 and len(data) >= sizes.get(data[3], 10)
    return True


# --- many at once ---------------------------------------------------------------------------


class _Client:
    """One connection, with the request that is under way on it."""

    __slots__ = ("began", "data", "is_whole", "sock", "talk")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def begin(self, talk: Talk, began: float) -> None:
        self.talk, self.began, self.data = talk, began, b""
        words, self.is_whole = next(talk)
        self.sock.send(words)

    def go_on(self) -> bool:
        """Something can be read; True: the request is answered.  Raises OSError, _Refused."""
        data = self.sock.recv(65536)
        if not data:
            raise _Refused
        self.data += data
        if not self.is_whole(self.data):
            return False
        try:
            words, self.is_whole = self.talk.send(self.data)
        except StopIteration:
            return True
        self.data = b""
        self.sock.send(words)
        return False


def site_of(number: int, exits: int) -> int:
    """The site of a request.

    ``exits``: there are so many, and each gets another site each time that it is its turn; 0:
    whatever falls to it, which of 200 exits is the same one each time.
    """
    return (number + (number // exits if exits else 0)) % SITES


def load(
    gateway: Place,
    talk: Callable[[bytes, str], Talk],
    requests: int,
    *,
    at_once: int,
    keep: bool = False,
    users: int = 0,
    others: Sequence[Place] = (),
    exits: int = 0,
) -> Result:
    """Send so many requests, each to another site; ``keep``: more than one on a connection.

    ``users``: each request has one of so many user names with sessions; 0: none.  ``others``: more
    gateways, to which connections are made in turns.  ``exits``: see
    :func:`site_of`.
    """
    gateways = cycle((gateway, *others))
    poll = select.epoll()
    clients: dict[int, _Client] = {}
    idle: dict[int, _Client] = {}
    times: list[float] = []
    numbers = count()
    begun = failures = 0
    started = time.perf_counter()

    def end(client: _Client, *, answered: bool) -> None:
        del clients[client.sock.fileno()]
        if answered and keep:
            idle[client.sock.fileno()] = client
        else:
            close(client)

    def close(client: _Client) -> None:
        poll.unregister(client.sock.fileno())
        client.sock.close()

    try:
        while len(times) + failures < requests:
            while begun < requests and len(clients) < at_once:
                begun += 1
                number = next(numbers)
                user = f"scraper-session-s{number % users}" if users else ""
                client = idle.popitem()[1] if idle else _connected(next(gateways), poll)
                clients[client.sock.fileno()] = client
                try:
                    words = talk(b"site%d.test" % site_of(number, exits), user)
                    client.begin(words, time.perf_counter())
                except OSError:
                    failures += 1
                    end(client, answered=False)
            ready = poll.poll(1.0)
            now = time.perf_counter()
            if now - started > LONGEST:
                raise Failed(f"answered {len(times)} of {requests} requests in {LONGEST:g} s")
            for descriptor, _ in ready:
                if descriptor in idle:  # the gateway has closed it
                    close(idle.pop(descriptor))
                if descriptor not in clients:
                    continue
                current = clients[descriptor]
                try:
                    if not current.go_on():
                        continue
                    times.append(now - current.began)
                    end(current, answered=True)
                except (OSError, _Refused):
                    failures += 1
                    end(current, answered=False)
            for current in [one for one in clients.values() if now - one.began > PATIENCE]:
                failures += 1
                end(current, answered=False)
    finally:
        poll.close()
        for client in (*clients.values(), *idle.values()):
            client.sock.close()
    return Result(sorted(times), failures, time.perf_counter() - started)


def _connected(gateway: Place, poll: select.epoll) -> _Client:
    sock = socket.create_connection(gateway, timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    poll.register(sock.fileno(), select.EPOLLIN)
    return _Client(sock)
