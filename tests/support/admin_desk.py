"""A listener with exits and its admin API, in the tests' own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.admin.api import Api
from gsocks.admin.app import App
from gsocks.admin.commands import Commands
from gsocks.admin.counters import ConnectionCounters
from gsocks.admin.history import AskedHistory
from gsocks.admin.peers import Peers
from gsocks.admin.routes import Role
from gsocks.admin.server import AdminServer
from gsocks.admin.token import Token, Tokens
from gsocks.exits.direct import DirectExit
from gsocks.local import LocalServer
from gsocks.loop_lag import LoopLag
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from tests.support.engine import Seen, connect, read_to_end, running_inbound

TOKEN = "abcdefghijklmnopqrstuvwxyz"


VIEWER = "0123456789abcdefghij"


TOKENS = Tokens([Token.of("admin", Role.OPERATOR, TOKEN), Token.of("eve", Role.VIEWER, VIEWER)])


def direct(name: str, **how: Any) -> Offer:
    return Offer(DirectExit(Dialer(ALLOW_ALL, Resolver()), f"direct {name}"), name=name, **how)


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Desk:
    """A listener with exits, and the admin API beside it."""

    def __init__(
        self,
        *offers: Offer,
        others: tuple[Path, ...] = (),
        history: AskedHistory | None = None,
    ) -> None:
        self.counters = ConnectionCounters(Seen())
        self.ways = ExitGroup(offers, ALLOW_ALL, random=Random(1))
        self.inbound = LocalServer(("127.0.0.1", 0), self.ways, observer=self.counters)
        self.lag = LoopLag(lambda _: None)
        self.commands = Commands([self.inbound], {"local": self.ways}, self.counters, self.lag)
        self.api = Api(self.commands, Peers(others), history)
        self.app = App(self.api, TOKENS, b"k" * 32, Peers(others), sleep=lambda _: None)
        self.server = AdminServer(("127.0.0.1", 0), self.app)

    def raw(self, data: bytes) -> Answer:
        with connect(self.server.bound) as sock:
            sock.sendall(data)
            head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return Answer(int(first.split()[1]), fields, body)

    def ask(self, method: str, target: str, body: object = None, token: str = TOKEN) -> Answer:
        sent = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {token}\r\nContent-Length: {len(sent)}\r\n\r\n"
        return self.raw(head.encode() + sent)

    def get(self, target: str) -> Any:
        answer = self.ask("GET", target)
        assert answer.status == 200, answer
        return answer.said

    def post(self, target: str, body: object = None) -> Answer:
        return self.ask("POST", target, body)

    def used(self, selector: ExitSelector = ANY, dest: Address | None = None) -> str:
        request = Request(Command.CONNECT, dest or self.server.bound, selector=selector)
        way = self.ways.connect(request, lambda _: None)
        way.answered()
        way.stream.abort()
        way.release()
        return way.name


def open_desk(*offers: Offer, **options: Any) -> Iterator[Desk]:
    desk = Desk(*(offers or (direct("a", country="de", tags=("x",)), direct("b"))), **options)
    with running_inbound(desk.inbound):
        desk.server.start()
        yield desk
        desk.server.stop(0)


def token_in(folder: Path) -> Path:
    """A file with the token, for commands that ask a desk."""
    file = folder / "admin.token"
    file.touch(0o600)
    file.write_text(TOKEN)
    return file
