"""A listener for DNS: UDP and TCP at one address, whose questions go through exits.

    client  --- UDP, TCP --->  DnsServer  --- a name server's TCP, through an exit --->  servers

No question leaves this machine in any other way, whatever fails.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import gevent
from gevent.event import Event

from gsocks.access.networks import Networks, client_prefix
from gsocks.address import Address
from gsocks.deadline import call_with_timeout, call_within
from gsocks.dns_listener.cache import Cache
from gsocks.dns_listener.resolver import Resolver, Waiter
from gsocks.dns_listener.upstream import Upstream
from gsocks.dns_listener.wire import LARGEST, LARGEST_QUERY, BadQuery, read_query
from gsocks.errors import (
    BadRequest,
    ClientForbidden,
    ClientGone,
    Evicted,
    GsocksError,
    HandshakeTimeout,
    StreamClosed,
    StreamError,
)
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.admission import Admission
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import DnsOptions, collect
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.silent import SilentConnections
from gsocks.inbound.unanswered import NoAnswer
from gsocks.net.listen import listen_address
from gsocks.net.local_address import ROOM, Ancillary, answering, tell_local_address
from gsocks.observe import Details, NullObserver, Record, new_connection_id, trace_of
from gsocks.request import CONNECT, Request
from gsocks.rotation.build import SomeExit, make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.sock import READ, Socket
from gsocks.stream import Reader, SocketStream, close_with_fin, scratch_of_this_hub, send_all
from gsocks.turns import turn_is_over

#: what the listener is called in the access log
NAME = "dns"

#: datagrams that are received in one turn of the loop at most
_AT_ONCE = 64

#: look-ups that wait for their greenlets, from which on no datagram is read in this turn
_MAX_UNBEGUN = 4

#: seconds that a stop waits for answers that are due, and for connections to end
MAX_STOP = 2.0

#: questions of one connection of a client that wait for answers, before it is read on
_MAX_AHEAD = 32


class ResolverOfExits(Resolver):
    """A resolver whose questions go through exits, which listeners may share.

    ``servers``: name servers, of which the first that answers is believed; ``exits`` and
    ``options`` are as of :class:`DnsServer`.
    """

    def __init__(
        self,
        servers: Sequence[Address],
        exits: ExitGroup | Iterable[SomeExit],
        options: DnsOptions,
    ) -> None:
        super().__init__(
            Upstream(servers, self._carry),
            Cache(options.cache_size),
            timeout=options.timeout,
            waiting=options.waiting,
            per_client=options.waiting_per_client,
        )
        self._selector = options.selector
        limits, timeouts = options.limits, options.timeouts
        #: what the connections to name servers use
        self._context = ListenerContext(
            NAME,
            make_exit_group(exits, options.rules, timeouts=timeouts),
            Admission(limits),
            SilentConnections(timeouts.handshake, _never),
            UserQuota(limits) if options.quota is None else options.quota,
            timeouts,
            options.observer or NullObserver(),
        )
        #: how many listeners use it
        self._users = 0

    def start(self) -> None:
        """A listener begins to use it."""
        if not self._users:
            self._context.exit_group.start()
        self._users += 1

    def stop(self, timeout: float) -> None:
        """A listener uses it no more; the last one ends its connections within that time."""
        self._users -= 1
        if self._users:
            return
        self.none_waits.wait(min(timeout, MAX_STOP))
        self.close()
        context = self._context
        context.stopping = True
        if not context.all_closed.wait(min(timeout, MAX_STOP)):
            context.abort_relays(StreamClosed("stopped"))
        self.end()
        context.exit_group.close()

    def _carry(self, server: Address, sock: Socket, connected: Any) -> None:
        """See :data:`gsocks.dns_listener.upstream.Carry`."""
        self._context.note_opened()
        record = new_record(self._context)
        active = ActiveRequest(self._context, record)
        request = Request(CONNECT, server, selector=self._selector, trace=record.trace)
        carried = False
        try:
            carried = active.carry(request, _Answer(connected), SocketStream(sock))
        finally:
            if not carried:
                sock.close()
                self._context.note_closed()


class _Answer(NoAnswer):
    """Tells a connection to a name server that an exit has connected it."""

    __slots__ = ("_connected",)

    def __init__(self, connected: Any) -> None:
        super().__init__(NAME)
        self._connected = connected

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        """See :class:`gsocks.handshake.Answer`."""
        self._connected()


class DnsServer(Listener):
    """Answers questions that come to ``listener``, by TCP, and to ``sock``, a bound UDP socket of
    the same address that it owns.

    ``servers``: the name servers that are asked.  ``exits`` are as in
    :class:`gsocks.inbound.listener.Listener`.  Options are given as keywords, as ``options``, or as
    both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.DnsOptions`.  ``resolver``: one that other listeners share.

    Raises ConfigError for what can't be used, TypeError for an option that does not exist.
    """

    name = NAME

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        sock: std_socket.socket,
        servers: Sequence[Address],
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: DnsOptions | None = None,
        resolver: ResolverOfExits | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, DnsOptions, options, keywords)
        options.check_reach(listen_address(listener))
        exits = make_exit_group(exits, options.rules, timeouts=options.timeouts)
        super().__init__(listener, exits, options)
        sock.setblocking(False)
        self._datagrams = sock
        self._clients = Networks.of(options.clients)
        self.resolver = ResolverOfExits(servers, exits, options) if resolver is None else resolver
        #: connections of clients
        self._tcp: set[_TcpClient] = set()
        #: bytes of what the kernel tells beside a datagram
        self._room = 0
        self._udp_watcher: Any = None

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.start`."""
        super().start()
        self.resolver.start()
        if tell_local_address(self._datagrams):
            self._room = ROOM
        self._udp_watcher = gevent.get_hub().loop.io(self._datagrams.fileno(), READ)
        self._udp_watcher.start(self._on_readable)

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.stop`."""
        if self._udp_watcher is not None:
            self._udp_watcher.close()
            self._udp_watcher = None
            self.resolver.stop(self.stop_timeout if timeout is None else timeout)
        self._datagrams.close()
        super().stop(timeout)

    # --- UDP, in the hub --------------------------------------------------------------------

    def _on_readable(self) -> None:
        room = scratch_of_this_hub().plain[: LARGEST_QUERY + 1]
        for _ in range(_AT_ONCE):
            try:
                size, told, _, source = self._datagrams.recvmsg_into((room,), self._room)
            except OSError:  # there is none, or no memory for it
                return
            self._arrived(bytes(room[:size]), source, answering(told))
            if turn_is_over() or self.resolver.unbegun >= _MAX_UNBEGUN:
                return

    def _arrived(self, packet: bytes, source: Any, back: Ancillary) -> None:
        client = Address.from_sockaddr(source)
        if self._clients is not None and client.host not in self._clients:
            # who forges his address would fill the log
            self._tell(client, ClientForbidden("in none of the networks that may come in"))
            return
        try:
            query = read_query(packet)
        except BadQuery as bad:
            self._tell(client, BadRequest(str(bad)))
            self._send(source, back, bad.reply)
            return
        deliver = partial(self._send, source, back)
        self.resolver.ask(query, query.size, client_prefix(client.host), deliver)

    def _tell(self, client: Address, error: GsocksError) -> None:
        """Report, at debug level, what a datagram led to that has no question."""
        error.is_routine = True
        record = new_record(self.context, str(client))
        ActiveRequest(self.context, record).refused(error)

    def _send(self, source: Any, back: Ancillary, message: bytes) -> None:
        """Send an answer.  Never blocks: what there is no room for, is dropped."""
        if message and self._datagrams.fileno() >= 0:
            try:
                self._datagrams.sendmsg((message,), back, 0, source)
            except OSError:
                pass  # no room, too long for the way, or the client is gone

    # --- TCP, in a greenlet of each connection ------------------------------------------------

    def serve(self, connection: ClientConnection) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.serve`."""
        client = _TcpClient(self, connection)
        self._tcp.add(client)
        try:
            client.run()
        except (BadRequest, HandshakeTimeout, Evicted) as error:
            connection.new_request().refused(error)
        finally:
            self._tcp.discard(client)
            client.close()

    def spawn_sender(self, function: Callable[[], None]) -> None:
        """Have answers sent in a greenlet beside that which reads questions."""
        self._greenlets.spawn(function)

    def drain(self) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.drain`."""
        for client in self._tcp:
            client.finish()


class _TcpClient:
    """A client's connection: its questions, as it sends them, and their answers, as they come."""

    #: seconds that a client has to take its answers, and to send the rest of a question
    patience = 10.0

    def __init__(self, server: DnsServer, connection: ClientConnection) -> None:
        self._server = server
        self._connection = connection
        self._sock = connection.sock
        self._waiting: dict[Waiter, None] = {}
        #: answers that have yet to be sent, and whether a greenlet sends them
        self._answers: list[bytes] = []
        self._is_sending = False
        self._changed = Event()
        self._closed = False

    def run(self) -> None:
        """Read questions until the client says no more, and all are answered.

        Raises BadRequest, HandshakeTimeout.
        """
        try:
            self._read()
        except BadRequest:
            self._drain()  # the client is told why, and what it has asked before is answered
            raise
        except StreamError:
            pass  # the client is gone
        else:
            self._drain()

    def _read(self) -> None:
        """Read questions until the client says no more.  Raises as :meth:`run`, and StreamError."""
        reader = Reader(self._sock)
        connection, timeouts = self._connection, self._server.timeouts
        seconds = connection.time_left(timeouts.handshake)
        while (message := self._message(reader, seconds)) is not None:
            connection.handshake_done()
            connection.busy()
            self._take(message)
            while len(self._waiting) + len(self._answers) >= _MAX_AHEAD:
                if not self._wait_for_change():
                    return
            if not self._waiting and reader.at_boundary:
                connection.idle()
            seconds = timeouts.idle

    def _drain(self) -> None:
        """Have what is asked answered."""
        while self._waiting or self._answers or self._is_sending:
            if not self._wait_for_change():
                return

    def _message(self, reader: Reader, seconds: float) -> bytes | None:
        """The next message; None at the end.  Raises as :meth:`run`, and StreamError."""
        late = HandshakeTimeout("no question in time")
        try:
            head = call_within(seconds, late, reader.exactly, 2, LARGEST_QUERY)
        except (StreamError, HandshakeTimeout) as error:
            is_end = isinstance(error, StreamError) and reader.at_boundary
            if is_end or self._connection.requests:
                return None
            raise
        self._connection.requests += 1
        size = int.from_bytes(head, "big")
        if size > LARGEST_QUERY:
            raise BadRequest(f"a question of {size} bytes, more than {LARGEST_QUERY}")
        return call_within(self.patience, late, reader.exactly, size, LARGEST_QUERY)

    def _take(self, message: bytes) -> None:
        try:
            query = read_query(message)
        except BadQuery as bad:
            if bad.reply:
                self._deliver(bad.reply)
            raise BadRequest(str(bad)) from None
        waiter: Waiter | None = None

        def deliver(answer: bytes) -> None:
            if waiter is not None:
                self._waiting.pop(waiter, None)
            self._deliver(answer)

        prefix = client_prefix(self._connection.client.host)
        waiter = self._server.resolver.ask(query, LARGEST, prefix, deliver)
        if waiter is not None:
            self._waiting[waiter] = None

    def _deliver(self, message: bytes) -> None:
        """Have an answer sent.  Never blocks."""
        if self._closed:
            return
        self._answers.append(len(message).to_bytes(2, "big") + message)
        if not self._is_sending:
            self._is_sending = True
            self._server.spawn_sender(self._send)

    def _send(self) -> None:
        try:
            while self._answers and not self._closed:
                data = b"".join(self._answers)
                self._answers.clear()
                late = ClientGone("takes no answers")
                call_within(self.patience, late, send_all, self._sock, data)
                self._changed.set()
        except (StreamError, ClientGone):
            self._closed = True
        finally:
            self._is_sending = False
            self._changed.set()

    def _wait_for_change(self) -> bool:
        """Wait until an answer was sent; False if none will be."""
        self._changed.clear()
        if self._closed:
            return False
        return bool(call_with_timeout(self.patience, self._changed.wait, on_timeout=False))

    def finish(self) -> None:
        """Take no more questions; what is asked already is answered.  Never blocks."""
        try:
            self._sock.shutdown(std_socket.SHUT_RD)
        except OSError:
            pass  # the client is gone

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        for waiter in self._waiting:
            self._server.resolver.forget(waiter)
        self._waiting.clear()
        close_with_fin(self._sock)
        self._connection.end()


def new_record(context: ListenerContext, client: str = "") -> Record:
    """A record of what has no connection of a client."""
    connection_id = new_connection_id()
    record = Record(context.name, client, connection_id, trace_of(connection_id))
    if context.wants_details:
        record.details = Details(context.wants_story)
    return record


def _never(_: object) -> None:
    """No connection waits for its client here."""
