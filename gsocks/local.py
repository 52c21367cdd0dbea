"""The door that clients come to: SOCKS and HTTP in front, ways out behind."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

import gevent
import h11
from gevent.pool import Group
from gevent.socket import socket

from gsocks.address import Address
from gsocks.assemble import SomeExit, SomeRules, SomeUsers, make_logins
from gsocks.datagram import Associations
from gsocks.door import Door, Visit
from gsocks.errors import (
    ClientError,
    ConnectFailed,
    GsocksError,
    HandshakeTimeout,
    LimitReached,
    NoExit,
)
from gsocks.handshake import Answer, SpeaksHttp, negotiate
from gsocks.http.client import Client
from gsocks.http.exchange import Exchange
from gsocks.http.forward import forwards_left
from gsocks.http.head import Target, check_length, target
from gsocks.http.login import log_in
from gsocks.http.origin import take_leave
from gsocks.http.status import answer_to
from gsocks.limits import Limits, Timeouts, Udp
from gsocks.login import OPEN, Caller, Login
from gsocks.networks import SomeNetworks
from gsocks.observe import Observer, Record
from gsocks.relay import Totals
from gsocks.request import Command, Request
from gsocks.shares import Shares
from gsocks.stream import SocketStream, close_after_reply
from gsocks.ways_out import Way, WaysOut
from gsocks.wish import ANY, Wish

#: seconds that a client has to read a last answer before its connection is closed for good
LAST_WORDS = 2.0

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

#: clients beyond a limit that are told so at a time, in their own protocol: a page that wants one
#: connection too many sees why, while a flood is closed without a word and costs nothing
MAX_TURNED_AWAY = 64


class LocalServer(Door):
    """Serves clients that speak SOCKS or HTTP, told apart by their first byte.

    ``users``: who may come in, as names and Argon2id hashes, as a Users object, or as a Throttle
    that doors share; None leaves the door open.  ``udp``: what associations there may be.
    ``fast_open``: a client that wants to CONNECT through a gsocks server is told of success at
    once, so that its first bytes travel with its request; what then fails is a reset.
    ``retry_on``: statuses of HTTP answers that are not wanted, so that the request is put to
    another exit while there is one.  ``wish``:
    what is asked of the exit for everybody who comes; a client's own parameters in its user name
    count over it.  ``by_client``: where no session is asked for, the client's address is one.  The
    rest is as in :class:`gsocks.door.Door`.
    """

    name = "local"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: WaysOut | Iterable[SomeExit] = ("direct",),
        *,
        rules: SomeRules = None,
        users: SomeUsers = None,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        udp: Udp = Udp(),
        fast_open: bool = False,
        retry_on: Collection[int] = (),
        wish: Wish = ANY,
        by_client: bool = False,
        clients: SomeNetworks = None,
        proxy_protocol_from: SomeNetworks = None,
        shares: Shares | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(
            listener,
            exits,
            rules=rules,
            timeouts=timeouts,
            limits=limits,
            clients=clients,
            proxy_protocol_from=proxy_protocol_from,
            shares=shares,
            observer=observer,
        )
        self._logins = make_logins(users)
        self._wish = wish
        self._client_is_session = by_client
        self._http_clients: set[Client] = set()
        self._turned_away = Group()
        self._associations = Associations(udp)
        self._fast_open = fast_open
        self._retry_on = frozenset(retry_on)
        self._commands = frozenset(Command)
        if not self._associations.served:
            self._commands -= {Command.UDP_ASSOCIATE}

    def serve(self, visit: Visit) -> None:
        """Negotiate, connect, answer, relay: one request for each connection, but of HTTP many."""
        sock = visit.sock
        record = Record(self.name, str(visit.client))
        try:
            with gevent.Timeout(visit.time_left(self.timeouts.handshake), HandshakeTimeout()):
                asked = negotiate(sock, self._login(visit), self._commands)
        except ClientError as error:
            self._over(record, error.word, str(error))
        else:
            if isinstance(asked, SpeaksHttp):
                self._serve_http(visit, Client(sock, asked.said, self.limits.request_body))
                return
            visit.understood()
            request, answer = asked
            if request.command is Command.UDP_ASSOCIATE:
                carried = self._associate(visit, request, answer, record)
            else:
                client = SocketStream(sock, request.payload)
                if self._fast_open and request.command is Command.CONNECT:
                    request = request._replace(fast_open=True)
                carried = self.carry(request, answer, client, record, visit.end, sock)
            if carried:
                return
        close_after_reply(sock, LAST_WORDS)
        visit.end()

    def _login(self, visit: Visit) -> Login:
        host = visit.client.host
        wish = self._wish.over(Wish(session=host)) if self._client_is_session else self._wish
        if self._logins is None:
            return Login(wish=wish)
        return Login(self._logins.for_client(host), self._logins.users, wish)

    def _associate(self, visit: Visit, request: Request, answer: Answer, record: Record) -> bool:
        """Give the client a place to send its datagrams to, and carry them; as :meth:`carry`."""
        try:
            datagrams = self._associations.associate(visit.sock, visit.client)
        except ConnectFailed as error:
            record.user, record.command = request.user, "udp_associate"
            self._over(record, error.word, str(error))
            answer.failed(error)
            return False
        try:
            told = _Told(answer, datagrams.told)
            carried = self.carry(request, told, datagrams, record, visit.end)
        except BaseException:
            datagrams.release()
            raise
        if not carried:
            datagrams.release()
        return carried

    # --- beyond the limits ------------------------------------------------------------------

    def turn_away(self, sock: socket, error: LimitReached) -> None:
        """See :meth:`gsocks.door.Door.turn_away`; a few at a time are told why."""
        if self.stopping or len(self._turned_away) >= MAX_TURNED_AWAY:
            sock.close()
        else:
            self._turned_away.spawn(self._tell, sock, error)

    def _tell(self, sock: socket, error: LimitReached) -> None:
        """Hear what the client asks, and answer that there is no room for it."""
        try:
            gevent.with_timeout(LAST_WORDS, self._refuse_request, sock, error, timeout_value=None)
        finally:
            sock.close()

    def _refuse_request(self, sock: socket, error: LimitReached) -> None:
        try:
            # nobody's password is looked at: whoever it is, the answer is the same
            asked = negotiate(sock, OPEN, self._commands)
            if not isinstance(asked, SpeaksHttp):
                asked[1].failed(error)
            else:
                client = Client(sock, asked.said)
                client.read_request()
                client.failed(error, last=True)
        except ClientError:
            pass  # it asked for nothing that could be refused, or has gone
        close_after_reply(sock, LAST_WORDS)

    # --- HTTP -------------------------------------------------------------------------------

    def _serve_http(self, visit: Visit, client: Client) -> None:
        """Serve request after request, until one of them closes or takes over the connection."""
        self._http_clients.add(client)
        try:
            # the first head has what is left of the time that its first byte took a part of
            patience = visit.time_left(self.timeouts.handshake)
            while True:
                record = Record(self.name, str(visit.client))
                asked = self._hear(visit, client, record, patience)
                visit.understood()
                if asked is not None and self._serve_asked(visit, client, asked, record):
                    return
                if not client.reusable or self.stopping:
                    break
                # whoever has not come in yet gets no time for nothing
                if asked is not None and not self._waits_for_more(client):
                    break
                patience = self.timeouts.handshake
        finally:
            self._http_clients.discard(client)
        close_after_reply(visit.sock, LAST_WORDS)
        visit.end()

    def _waits_for_more(self, client: Client) -> bool:
        """Whether a client that has been served begins another request before it is given up."""
        return bool(
            gevent.with_timeout(self.timeouts.keep_alive, client.asks_again, timeout_value=False)
        )

    def _hear(self, visit: Visit, client: Client, record: Record, seconds: float) -> _Asked | None:
        """The next request; None if there is none to serve, after the client was told why."""
        try:
            with gevent.Timeout(seconds, HandshakeTimeout()):
                head = client.read_request()
                if head is None:
                    return None
                caller = log_in(head, self._login(visit))
                record.user = caller.user
                check_length(head, self.limits.request_body)
                return _Asked(head, target(head), caller)
        except ClientError as error:
            # Silence between two requests is how a connection ends that was kept in case.
            if client.asking or not isinstance(error, HandshakeTimeout):
                self._over(record, error.word, str(error))
                client.failed(error)
            return None

    def _serve_asked(self, visit: Visit, client: Client, asked: _Asked, record: Record) -> bool:
        """Serve one request; whether the connection is no longer HTTP, and goes on by itself."""
        if forwards_left(asked.head) == 0:
            record.dest = str(asked.target.dest)
            client.answered(*answer_to(asked.head, closing=not client.heard_out))
            self._over(record, "ok")
            return False
        user, wish = asked.caller
        request = Request(Command.CONNECT, asked.target.dest, user, wish=wish)
        if asked.head.method == b"CONNECT":
            request = request._replace(fast_open=self._fast_open)
            return self.carry(request, client, client.stream(), record, ended=visit.end)
        failed: list[str] = []
        while True:
            try:
                way = self._find_way(request, record, failed=failed)
            except (ConnectFailed, ClientError) as error:
                client.failed(error)
                return False
            failed.append(way.name)
            again = asked.repeatable and self._ways_out.may_try_again(request, failed)
            exchange, totals = self._exchange(client, asked, way, record, again)
            if exchange.switched:
                self._relay(client.stream(), way, record, visit.end)
                return True
            self._over_http(way, exchange, totals, record)
            if not exchange.unanswered:
                return False
            if not again or (totals.error is not None and totals.side != "remote"):
                client.failed(totals.error or GsocksError())
                return False
            record = Record(self.name, str(visit.client))

    def _exchange(
        self, client: Client, asked: _Asked, way: Way, record: Record, again: bool
    ) -> tuple[Exchange, Totals]:
        """Have ``way`` carry a request and its answer; ``again``: another one may be tried."""
        exchange = Exchange(
            client,
            asked.head,
            asked.target,
            way.stream,
            way.exit,
            idle=self.timeouts.idle,
            half_closed=self.timeouts.half_closed,
            unwanted=self._retry_on if again else (),
        )
        try:
            totals = exchange.run()
        except BaseException:
            way.stream.abort()
            way.release()
            self._over(record, "stopped")
            raise
        record.up, record.down = totals.up, totals.down
        if exchange.status is not None and self._retry_on:
            ok = exchange.status not in self._retry_on
            with suppress(NoExit):  # its list may be another one by now
                self._ways_out.report(way.name, ok, asked.target.dest.host)
        return exchange, totals

    def _over_http(self, way: Way, exchange: Exchange, totals: Totals, record: Record) -> None:
        """An exchange is over, and its exit has one connection less."""
        unwanted = exchange.unanswered and totals.error is None
        word = f"http_{exchange.status}" if unwanted else totals.word
        self._over(record, word, str(totals.error or ""))
        if exchange.clean:
            gevent.spawn(_take_leave, way, totals)
        else:
            way.stream.abort()
            way.release(totals.up, totals.down)

    def drain(self) -> None:
        """End the connections of HTTP clients that ask nothing at present."""
        self._turned_away.kill(block=False)
        for client in self._http_clients:
            if not client.asking:
                client.hang_up()


class _Told(NamedTuple):
    """The answer to a client that is told its own place as the bound address."""

    answer: Answer
    place: Address

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        self.answer.succeeded(self.place, via)

    def failed(self, error: GsocksError) -> None:
        self.answer.failed(error)


class _Asked(NamedTuple):
    """A request that is to be served."""

    head: h11.Request
    target: Target
    caller: Caller

    @property
    def repeatable(self) -> bool:
        """Whether it may be put to a server twice: idempotent, and with nothing to be kept for it.

        RFC 9110 section 9.2.2.
        """
        has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.head.headers
        )
        return self.head.method in _IDEMPOTENT and not has_body


def _take_leave(way: Way, totals: Totals) -> None:
    take_leave(way.stream)
    way.release(totals.up, totals.down)
