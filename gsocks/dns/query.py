"""One look-up: the addresses of a name, or its pointers, from the first name server that answers.

A and AAAA are asked for at once.  A name server that stays silent is not waited for: the next one
is asked too, and whichever answers first is believed.  All of it has one bound.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from select import POLLIN
from typing import NamedTuple

from gevent.select import poll
from gevent.socket import socket, wait_read

from gsocks.address import IPAddress
from gsocks.deadline import call_with_timeout
from gsocks.dns.message import (
    AAAA,
    MAX_ADDRESSES,
    NO_ERROR,
    NO_SUCH_NAME,
    PTR,
    A,
    Answer,
    BadMessage,
    Question,
    encode_name,
    ident_of,
    read_answer,
)
from gsocks.dns.name_server import NameServer, Transport
from gsocks.dns.transport import Connections, datagram_socket
from gsocks.errors import ConnectFailed, HostUnreachable, OutOfResources, connect_failure
from gsocks.turns import give_way

#: seconds that addresses of one family wait for those of the other, which some name servers never
#: answer
OTHER_FAMILY = 0.3
#: seconds for which addresses are kept if those of the other family are not known
INCOMPLETE_TTL = 30
#: answers to a question that were never asked, after which it is asked over TCP, where they can't
#: be guessed
MAX_FORGED = 3
#: datagrams that are read before other greenlets have their turn
_IN_A_ROW = 8
_MAX_DATAGRAM = 4096  # ours allow 512, RFC 1035 section 2.3.4


class Found(NamedTuple):
    """What the DNS says about a name or an address."""

    #: at most ``MAX_ADDRESSES``; none if there is no such name, or it has none
    addresses: tuple[IPAddress, ...]
    #: seconds for which that may be kept; None if no name server said it
    ttl: float | None
    #: of an address: the names that it has
    names: tuple[str, ...] = ()


class ServerList:
    """Name servers in the order in which they are asked.

    A silent one goes behind the others, once another one has answered the same question: that a
    name is not answered says nothing about a name server.
    """

    #: seconds after which one look-up tries it again
    retry_after = 30.0

    def __init__(self, servers: Sequence[NameServer], now: Callable[[], float]) -> None:
        self._servers = tuple(servers)
        self._now = now
        #: when those that were silent are tried again
        self._silent: dict[NameServer, float] = {}

    def in_order(self) -> list[NameServer]:
        """All of them; one whose time has come is first again, for this look-up alone."""
        if not self._silent:
            return list(self._servers)
        now = self._now()
        for server, at in self._silent.items():
            if at <= now:
                self._silent[server] = now + self.retry_after
                return [server, *(each for each in self._servers if each is not server)]
        return sorted(self._servers, key=self._silent.__contains__)

    def note(self, silent: Sequence[NameServer], answered: NameServer) -> None:
        """``answered`` has answered what ``silent`` were asked before it."""
        self._silent.pop(answered, None)
        for server in silent:
            self._silent.setdefault(server, self._now() + self.retry_after)


class Query:
    """Looks up what one name has of each of ``kinds``."""

    __slots__ = (
        "_asked",
        "_connections",
        "_end",
        "_failure",
        "_forged",
        "_idents",
        "_name",
        "_open",
        "_pending",
        "_refused",
        "_servers",
        "_settled",
        "_timeout",
    )

    def __init__(
        self,
        name: str,
        servers: ServerList,
        connections: Connections,
        timeout: float,
        longest: float,
        kinds: tuple[int, ...] = (A, AAAA),
    ) -> None:
        """``timeout``: seconds until the next server is asked too; ``longest``: for all of it.

        Raises BadName.
        """
        wire = encode_name(name)
        self._name = name
        self._servers = servers
        self._connections = connections
        self._timeout = timeout
        self._end = time.monotonic() + longest
        # one ID each, which a stranger has to guess with the port of the socket (RFC 5452)
        #: the questions without an answer
        self._pending = {
            kind: Question(int.from_bytes(os.urandom(2), "big"), wire, kind) for kind in kinds
        }
        self._idents = {question.ident for question in self._pending.values()}
        self._settled: dict[int, Answer] = {}
        #: the servers that were asked, and their sockets by descriptor
        self._asked: list[NameServer] = []
        self._open: dict[int, tuple[socket, NameServer]] = {}
        #: the questions that each server has refused to answer
        self._refused: dict[NameServer, set[int]] = {}
        self._forged = 0
        self._failure: ConnectFailed | None = None

    def run(self) -> Found:
        """The addresses of the name, IPv6 first, or the names that it points to.

        Raises HostUnreachable if no name server answers, OutOfResources.
        """
        try:
            for server, seconds in self._attempts():
                if self._refuses(server):
                    continue
                self._ask(server, seconds)
                self._listen(time.monotonic() + seconds)
                if not self._pending or time.monotonic() >= self._end:
                    break
        finally:
            for sock, _ in self._open.values():
                sock.close()
            self._open.clear()
        return self._found()

    def _attempts(self) -> Iterator[tuple[NameServer, float]]:
        """The servers, and for how long each is waited for; twice as long the second time."""
        servers = self._servers.in_order()
        for factor in (1, 2):
            for server in servers:
                yield server, self._timeout * factor
        # what is left of the time belongs to those that were asked
        yield servers[0], max(0.0, self._end - time.monotonic())

    # --- asking ---------------------------------------------------------------------------------

    def _ask(self, server: NameServer, seconds: float) -> None:
        questions = list(self._pending.values())
        if server not in self._asked:
            self._asked.append(server)
        if server.transport is not Transport.PLAIN:
            self._ask_connected(server, questions, seconds)
            return
        try:
            sock = self._socket_to(server)
            for question in questions:
                sock.send(question.encode())
        except BlockingIOError:
            pass  # lost, as a datagram may be
        except OSError as error:
            self._refuse(server, error)

    def _socket_to(self, server: NameServer) -> socket:
        for sock, other in self._open.values():
            if other is server:
                return sock
        sock = datagram_socket(server)
        self._open[sock.fileno()] = sock, server
        return sock

    def _ask_connected(self, server: NameServer, questions: list[Question], seconds: float) -> None:
        """Ask over a connection, which is waited for."""
        seconds = min(seconds, self._end - time.monotonic())
        try:
            messages = call_with_timeout(
                max(0.0, seconds), self._connections.exchange, server, questions, on_timeout=None
            )
        except OSError as error:
            self._refuse(server, error)
            return
        for message in messages or ():
            for question in questions:
                self._hear(message, question, server, connected=True)

    def _refuse(self, server: NameServer, error: OSError) -> None:
        self._failure = connect_failure(error)
        self._refused.setdefault(server, set()).update(self._pending)

    # --- hearing --------------------------------------------------------------------------------

    def _listen(self, until: float) -> None:
        """Hear what the servers say, until nothing more is to be expected before that time."""
        until = min(until, self._end)
        while self._pending and not all(self._refuses(each) for _, each in self._open.values()):
            if any(answer.addresses for answer in self._settled.values()):
                until = self._end = min(until, time.monotonic() + OTHER_FAMILY, self._end)
            seconds = until - time.monotonic()
            if seconds <= 0:
                return
            for fd in self._readable(seconds):
                self._receive(*self._open[fd])
            give_way()

    def _refuses(self, server: NameServer) -> bool:
        return self._refused.get(server, set()) >= set(self._pending)

    def _readable(self, seconds: float) -> list[int]:
        if len(self._open) == 1:
            (fd,) = self._open
            return [] if call_with_timeout(seconds, wait_read, fd, on_timeout=True) else [fd]
        sockets = poll()
        for fd in self._open:
            sockets.register(fd, POLLIN)
        return [fd for fd, _ in sockets.poll(seconds * 1000)]

    def _receive(self, sock: socket, server: NameServer) -> None:
        for _ in range(_IN_A_ROW):
            try:
                message = sock.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:  # such as: no server at that port
                self._refuse(server, error)
                return
            for question in list(self._pending.values()):
                if self._hear(message, question, server):
                    break
            else:
                self._note_unexpected(message, server)

    def _note_unexpected(self, message: bytes, server: NameServer) -> None:
        if ident_of(message) in self._idents:
            return  # what was answered already, by this server or another one
        self._forged += 1
        if self._forged == MAX_FORGED:
            self._ask_connected(server, list(self._pending.values()), self._timeout)

    def _hear(
        self, message: bytes, question: Question, server: NameServer, *, connected: bool = False
    ) -> bool:
        """Take what ``message`` says to ``question``; whether it is an answer to it."""
        if question.kind not in self._pending:
            return False
        try:
            answer = read_answer(message, question)
        except BadMessage:
            return False
        if answer is None:
            return False
        if answer.truncated:
            if not connected:
                self._ask_connected(server, [question], self._timeout)
        elif answer.rcode in (NO_ERROR, NO_SUCH_NAME):
            self._settle(question.kind, answer, server)
        else:
            self._refused.setdefault(server, set()).add(question.kind)
        return True

    def _settle(self, kind: int, answer: Answer, server: NameServer) -> None:
        before = self._asked[: self._asked.index(server)]
        self._servers.note([each for each in before if each not in self._refused], server)
        self._settled[kind] = answer
        del self._pending[kind]
        if answer.rcode == NO_SUCH_NAME:  # whatever was asked for, RFC 8020
            self._pending.clear()

    # --- the result -----------------------------------------------------------------------------

    def _found(self) -> Found:
        half = MAX_ADDRESSES // 2
        answers = (self._settled.get(kind) for kind in (AAAA, A))
        sixes, fours = (() if each is None else each.addresses for each in answers)
        addresses = (
            *sixes[: max(half, MAX_ADDRESSES - len(fours))],
            *fours[: max(half, MAX_ADDRESSES - len(sixes))],
        )
        if not addresses and self._pending:
            raise self._unanswered()
        ttls = [
            each.ttl
            for each in self._settled.values()
            if each.ttl is not None and (each.addresses or not addresses)
        ]
        if self._pending:
            ttls.append(INCOMPLETE_TTL)
        pointers = self._settled.get(PTR)
        names = () if pointers is None else pointers.names
        return Found(tuple(dict.fromkeys(addresses)), min(ttls, default=None), names)

    def _unanswered(self) -> ConnectFailed:
        if isinstance(self._failure, OutOfResources):
            return OutOfResources(f"{self._name}: {self._failure}")
        refused = any(self._refused.values())
        how = "answers" if refused else "has answered in time"
        return HostUnreachable(f"{self._name}: no name server {how}")
