"""HTTP proxies of ours that keep their connections, and a listener with them as exits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from gevent.event import Event
from gevent.socket import socket

from gsocks.address import Address
from gsocks.local import LocalServer
from gsocks.relay import Relay
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.settings import ReuseSettings, Timeouts
from gsocks.stream import SocketStream
from tests.support.engine import Seen, connect, running_inbound, serving
from tests.support.web import Reply, Talk, ok, talk_to

PAGE = ok(b"by proxy")


class Proxy:
    """An HTTP proxy of ours, which keeps connections open and remembers what it has heard."""

    def __init__(
        self, answer: Callable[[bytes], bytes | None], *, connects: bool, closes: bool = False
    ) -> None:
        #: what it says to a head in absolute form; None: it hangs up
        self._answer = answer
        self._connects = connects
        self._closes = closes
        #: the heads that came, of all connections
        self.heads: list[bytes] = []
        self.connections = 0

    def serve(self, sock: socket) -> None:
        self.connections += 1
        talk = Talk(sock)
        while True:
            try:
                head = talk.hear_until(b"\r\n\r\n")
            except (AssertionError, OSError):
                return
            self.heads.append(head)
            if head.startswith(b"CONNECT"):
                if not self._connects:
                    talk.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                talk.say(b"HTTP/1.1 200 OK\r\n\r\n")
                self._tunnel(sock, Address.parse(head.split()[1].decode()))
                return
            answer = self._answer(head)
            if answer is None:
                return
            talk.say(answer)
            if self._closes:
                return

    @staticmethod
    def _tunnel(sock: socket, dest: Address) -> None:
        ended = Event()
        remote = SocketStream(connect(dest))
        Relay(
            SocketStream(sock), remote, idle=60, half_closed=60, ended=lambda _: ended.set()
        ).run()
        ended.wait()

    @property
    def lines(self) -> list[bytes]:
        """The request lines that came."""
        return [head.partition(b"\r\n")[0] for head in self.heads]


@contextmanager
def proxy(
    answer: Callable[[bytes], bytes | None] | bytes = PAGE,
    *,
    connects: bool = False,
    closes: bool = False,
) -> Iterator[tuple[Proxy, Address]]:
    def fixed(_: bytes) -> bytes | None:
        assert isinstance(answer, bytes)
        return answer

    ours = Proxy(fixed if isinstance(answer, bytes) else answer, connects=connects, closes=closes)
    with serving(ours.serve) as address:
        yield ours, address


class Place:
    """A listener with these exits."""

    def __init__(self, stack: ExitStack, *urls: str, **options: object) -> None:
        self.seen = Seen()
        timeouts = Timeouts(connect=options.pop("connect", 5.0))  # type: ignore[arg-type]
        options.setdefault("timeouts", timeouts)
        reuse = options.pop("reuse", ReuseSettings())
        self.group: ExitGroup = make_exit_group(
            urls,
            ["allow all"],
            timeouts=timeouts,
            reuse=reuse,  # type: ignore[arg-type]
        )
        self.inbound = stack.enter_context(
            running_inbound(
                LocalServer(("127.0.0.1", 0), self.group, observer=self.seen, **options)  # type: ignore[arg-type]
            )
        )

    def ask(
        self,
        url: bytes = b"http://shop.example/a?b=c",
        *fields: bytes,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> Reply:
        lines = [method + b" " + url + b" HTTP/1.1", b"Host: shop.example", *fields]
        with talk_to(self.inbound) as talk:
            return talk.ask(b"\r\n".join(lines) + b"\r\n\r\n" + body, method.decode())
