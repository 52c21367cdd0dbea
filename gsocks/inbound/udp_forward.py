"""A static forward of datagrams: all that comes in goes to one destination, and its answers back.

    senders  --- datagrams --->  UdpForward  --- an exit for each sender --->  ``to``

Each address and port that sends is an association of its own at an exit, so that answers find the
one that asked; it ends when it has been silent for long enough, or another one needs its place.
"""

from __future__ import annotations

import socket as std_socket
import time
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any, TypeAlias

import gevent
from gevent.event import Event
from greenlet import greenlet

from gsocks.access.networks import Networks, client_prefix
from gsocks.access.per_client import PerClient
from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import BadRequest, ClientForbidden, Evicted, StreamClosed
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.admission import Admission
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.options import ForwardOptions, collect
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.silent import SilentConnections
from gsocks.inbound.unanswered import NO_ANSWER
from gsocks.lru import LruCache
from gsocks.net.datagram import MAX_DATAGRAM, address_of, split
from gsocks.net.greenlets import GreenletPool
from gsocks.net.idle import IdleTimer
from gsocks.net.local_address import ROOM, Ancillary, answering, tell_local_address
from gsocks.observe import Details, NullObserver, Record, new_connection_id, trace_of
from gsocks.request import UDP_ASSOCIATE, Request
from gsocks.rotation.build import SomeExit, make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Limits
from gsocks.sock import READ
from gsocks.stream import scratch_of_this_hub
from gsocks.turns import turn_is_over

#: datagrams that are received in one turn of the loop at most
_AT_ONCE = 64

#: bytes for which a datagram counts beside its own, of which it may have none
_COST = 64

#: sources of answers that are remembered
_MAX_SOURCES = 64

#: what tells one sender from another: of a forward its socket address, and the address of this
#: machine to which it has sent
_Key: TypeAlias = Hashable


class SenderDatagrams:
    """One sender's datagrams through a forward, as a :class:`gsocks.stream.Stream` of them.

    ``client``: the sender's address; ``back``: what makes an answer leave from where it has sent
    to; ``source``: the socket address that answers go to.  The stream ends after ``bound`` seconds
    without a datagram in either direction.
    """

    __slots__ = (
        "_error",
        "_expiry",
        "_forward",
        "_is_ended",
        "_news",
        "_queue",
        "_queued",
        "awaits_answer",
        "back",
        "bound",
        "client",
        "greenlet",
        "is_active",
        "is_carried",
        "key",
        "last_byte",
        "prefix",
        "retry_at",
        "source",
        "user",
    )

    #: bytes that wait until the exit takes them; what comes beyond is dropped
    max_queued = 128 * 1024

    def __init__(
        self,
        forward: SenderListener,
        key: _Key,
        client: Address,
        source: Any,
        back: Ancillary,
        user: str | None = None,
    ) -> None:
        self._forward = forward
        self.key = key
        self.client = client
        #: by which the sender is counted
        self.prefix = client_prefix(client.host)
        #: these may change with each datagram
        self.source = source
        self.back = back
        self.user = user
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._news = Event()
        #: whether it has come to its proper end
        self._is_ended = False
        #: why it was given up
        self._error: StreamClosed | None = None
        #: whether the sender's last datagram is still without an answer
        self.awaits_answer = False
        #: whether it is being connected, or relayed
        self.is_active = False
        #: whether the relay has begun
        self.is_carried = False
        #: that which connects it
        self.greenlet: greenlet | None = None
        #: monotonic seconds before which no exit is asked again; None: none has failed
        self.retry_at: float | None = None
        self.bound = forward.udp.idle
        #: monotonic seconds when the last datagram passed
        self.last_byte = time.monotonic()
        self._expiry = IdleTimer(self)
        self._expiry.restart()

    def __repr__(self) -> str:
        state = "closed" if self.is_over else "open"
        return f"<SenderDatagrams of {self.client}, {len(self._queue)} waiting, {state}>"

    @property
    def is_over(self) -> bool:
        """Whether its datagrams are not carried any more."""
        return self._is_ended or self._error is not None

    def received(self, payload: bytes) -> None:
        """The sender has sent a datagram.  Never blocks."""
        self.last_byte = time.monotonic()
        cost = len(payload) + _COST
        if self.is_over or self._queued + cost > self.max_queued:
            return
        if self._forward.queued + cost > self._forward.max_queued:
            return
        self.awaits_answer = True
        self._count(cost)
        self._queue.append(payload)
        self._news.set()

    def drop(self) -> None:
        """Forget what waits."""
        self.awaits_answer = False
        self._queue.clear()
        self._count(-self._queued)

    def _count(self, cost: int) -> None:
        self._queued += cost
        self._forward.queued += cost

    def finish(self) -> None:
        """Bring it to its proper end.  Never blocks; does nothing once it is over."""
        if not self.is_over:
            self._is_ended = True
            self._let_go()

    def give_up(self, reason: str) -> None:
        """Have its relay fail.  Never blocks; does nothing the second time."""
        if self._error is None:
            self._error = StreamClosed(reason)
            self.drop()
            self._let_go()

    def _let_go(self) -> None:
        self._expiry.stop()
        self._news.set()

    def on_idle(self) -> None:
        """See :class:`gsocks.net.idle.IdleWatched`."""
        self._forward.fell_silent(self)

    # --- see Stream, and Endable ------------------------------------------------------------

    def read(self) -> bytes:
        self.is_carried = True
        while not self._queue:
            if self._error is not None:
                raise StreamClosed(str(self._error))
            if self._is_ended:
                return b""
            self._news.clear()
            self._news.wait()
        payload = self._queue.popleft()
        self._count(-len(payload) - _COST)
        return self._forward.head + payload

    def write(self, datagram: bytes) -> None:
        if self._error is not None:
            raise StreamClosed(str(self._error))
        try:
            head, payload = split(datagram)
        except BadRequest:
            return
        if self._forward.is_destination(head):
            self.note_answer()
            self._forward.answer(self, payload, self.back)

    def note_answer(self) -> None:
        """An answer to the sender has come."""
        self.last_byte = time.monotonic()
        self.awaits_answer = False

    def write_eof(self) -> None:
        """The exit has ended the association."""
        self.finish()

    def abort(self) -> None:
        self.give_up("closed at this end")

    close = abort

    def end(self) -> None:
        """The relay has ended."""
        self._forward.ended(self)


class SenderListener:
    """What comes to ``sock``, a bound UDP socket that it owns, as an association of each sender.

    ``exits`` and ``options`` are as of :class:`gsocks.forward.ForwardServer`.
    """

    name = "forward"
    #: the kind of its senders, and how a request of theirs is answered
    sender_kind: type[SenderDatagrams] = SenderDatagrams
    protocol_answer = NO_ANSWER
    #: seconds that a stop waits for answers at most, and without being told how long
    max_stop, stop_timeout = 2.0, 1.0
    #: bytes of all senders that wait; what comes beyond is dropped
    max_queued = 16 * 1024 * 1024
    #: seconds after a failure in which a sender's datagrams are dropped, and no exit is asked
    pause = 1.0
    #: in front of what a sender has sent, in wire form
    head = b""
    #: the destination in the access log; empty: the first one that is sent to
    dest = ""

    def __init__(
        self,
        sock: std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit],
        options: ForwardOptions,
    ) -> None:
        self._bound = Address.from_sockaddr(sock.getsockname())
        sock.setblocking(False)
        self._sock = sock
        self._selector = options.selector
        self.udp = options.udp
        self._clients = Networks.of(options.clients)
        timeouts = self.timeouts = options.timeouts
        limits = options.limits
        #: what its requests use
        self.context = ListenerContext(
            self.name,
            make_exit_group(exits, options.rules, timeouts=timeouts),
            Admission(limits),
            SilentConnections(timeouts.handshake, _never),
            UserQuota(limits) if options.quota is None else options.quota,
            timeouts,
            options.observer or NullObserver(),
        )
        #: bytes of all senders that wait
        self.queued = 0
        self._senders: dict[_Key, SenderDatagrams] = {}
        #: the same; of each client those that have been silent for longest first
        self._held: PerClient[str, SenderDatagrams] = PerClient()
        #: those, and those that have yet to end
        self._alive: set[SenderDatagrams] = set()
        #: bytes of what the kernel tells beside a datagram
        self._room = 0
        self._watcher: Any = None
        self._greenlets = GreenletPool()
        #: set while no sender is alive
        self._none_left = Event()
        self._none_left.set()

    def replace_limits(self, limits: Limits) -> None:
        """Have new senders admitted by ``limits``; those that are served are not affected."""
        self.context.admission.replace_limits(limits)

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """See :meth:`gsocks.inbound.context.Inbound.start`."""
        if tell_local_address(self._sock):
            self._room = ROOM
        self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), READ)
        self._watcher.start(self._on_readable)
        self.context.exit_group.start()

    @property
    def bound(self) -> Address:
        """The address of its socket."""
        return self._bound

    @property
    def connections(self) -> int:
        """How many associations there are."""
        return len(self._senders)

    def stop(self, timeout: float | None = None) -> None:
        """Take no new sender, and end the others once their last datagrams are answered.

        Those that still wait after ``timeout`` seconds (default 1), or 2, are given up.
        """
        self.context.stopping = True
        for sender in list(self._senders.values()):
            if not sender.awaits_answer:
                self._let_go(sender)
        seconds = self.stop_timeout if timeout is None else timeout
        if not self._none_left.wait(min(seconds, self.max_stop)):
            for sender in list(self._senders.values()):
                self._let_go(sender)
            self._greenlets.kill()
            self.context.abort_relays(StreamClosed("stopped"))
            self._none_left.wait()
        self._greenlets.close()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
            self.context.exit_group.close()
        self._sock.close()

    # --- what senders send ------------------------------------------------------------------

    def _on_readable(self) -> None:
        """Runs in the hub."""
        room = scratch_of_this_hub().plain[:MAX_DATAGRAM]
        for _ in range(_AT_ONCE):
            try:
                size, told, _, source = self._sock.recvmsg_into((room,), self._room)
            except OSError:  # there is none, or no memory for it
                return
            self.arrived(bytes(room[:size]), source, told)
            if turn_is_over():
                return

    def arrived(self, packet: bytes, source: Any, told: Ancillary) -> None:
        """A packet has come from the socket address ``source``; has :meth:`take` called."""
        raise NotImplementedError

    def take(
        self, key: _Key, source: Any, back: Ancillary, datagram: bytes, user: str | None = None
    ) -> SenderDatagrams | None:
        """Take a datagram of the sender that ``key`` tells from others; None: it is not taken."""
        sender = self._senders.get(key) or self._new_sender(key, source, back, user)
        if sender is not None:
            sender.source, sender.back = source, back
            sender.received(datagram)
            self._touch(sender)
            if sender.retry_at is not None:
                self._try_again(sender)
        return sender

    def _new_sender(
        self, key: _Key, source: Any, back: Ancillary, user: str | None
    ) -> SenderDatagrams | None:
        """None if its datagrams are not taken."""
        client = Address.from_sockaddr(source)
        if self.context.stopping:
            return None
        if self._clients is not None and client.host not in self._clients:
            error = ClientForbidden("in none of the networks that may come in")
            error.is_routine = True  # who forges his address would fill the log
            ActiveRequest(self.context, self._new_record(client)).refused(error)
            return None
        sender = self.sender_kind(self, key, client, source, back, user)
        if len(self._senders) >= self.udp.associations:
            self._evict(next(self._held.held_by_most(sender.prefix)))
        self._senders[key] = sender
        self._held.add(sender.prefix, sender)
        self._alive.add(sender)
        self._none_left.clear()
        self._begin(sender)
        return sender

    def _new_record(self, client: Address) -> Record:
        connection_id = new_connection_id()
        record = Record(self.name, str(client), connection_id, trace_of(connection_id))
        if self.context.wants_details:
            record.details = Details(self.context.wants_story)
        record.dest = self.dest
        return record

    def _touch(self, sender: SenderDatagrams) -> None:
        """A datagram of ``sender``, or for it, has passed."""
        if self._held.discard(sender.prefix, sender):
            self._held.add(sender.prefix, sender)

    # --- what comes back --------------------------------------------------------------------

    def is_destination(self, head: bytes) -> bool:  # noqa: ARG002
        """Whether an answer from that address, in wire form, is for its sender."""
        return True

    def answer(self, sender: SenderDatagrams, payload: bytes, back: Ancillary) -> None:
        """Send an answer to ``sender``.  Never blocks: what there is no room for, is dropped."""
        try:
            self._sock.sendmsg((payload,), back, 0, sender.source)
        except OSError:
            pass  # no room, too long, or the sender is gone
        self._touch(sender)
        if self.context.stopping:
            self._let_go(sender)

    # --- associations -----------------------------------------------------------------------

    def _begin(self, sender: SenderDatagrams) -> None:
        sender.is_active, sender.retry_at = True, None
        self._greenlets.spawn(self._carry, sender)

    def _try_again(self, sender: SenderDatagrams) -> None:
        """Ask the exits again, unless they have just failed."""
        if sender.retry_at is not None and time.monotonic() >= sender.retry_at:
            self._begin(sender)
        else:
            sender.drop()

    def _carry(self, sender: SenderDatagrams) -> None:
        """Have an exit carry the datagrams of ``sender``."""
        carried = False
        try:
            if not sender.is_over:
                sender.greenlet = gevent.getcurrent()
                carried = self._carried(sender)
        finally:
            sender.greenlet = None
            if not carried and not sender.is_carried:  # else the relay tells of its end
                self._failed(sender)

    def _carried(self, sender: SenderDatagrams) -> bool:
        """See :meth:`gsocks.inbound.active_request.ActiveRequest.carry`."""
        active = ActiveRequest(self.context, self._new_record(sender.client))
        record = active.record
        request = Request(
            UDP_ASSOCIATE,
            UNSPECIFIED,
            sender.user,
            selector=self._selector,
            client=record.client,
            trace=record.trace,
        )
        return active.carry(request, self.protocol_answer, sender, sender)

    def _failed(self, sender: SenderDatagrams) -> None:
        """No exit carries it; for a while none is asked again."""
        sender.is_active = False
        sender.drop()
        sender.retry_at = time.monotonic() + self.pause
        if sender.is_over or self.context.stopping:
            self._let_go(sender)

    def ended(self, sender: SenderDatagrams) -> None:
        """The relay of ``sender`` has ended."""
        sender.is_active = False
        self._let_go(sender)

    def fell_silent(self, sender: SenderDatagrams) -> None:
        """No datagram has passed for so long that its association ends."""
        self._let_go(sender)

    def _evict(self, sender: SenderDatagrams) -> None:
        """End it for another one."""
        reason = "silent for longest, and its place was needed"
        sender.give_up(reason)
        self._let_go(sender)
        if sender.greenlet is not None and not sender.is_carried:
            gevent.get_hub().loop.run_callback(self._interrupt, sender, reason)

    def _interrupt(self, sender: SenderDatagrams, reason: str) -> None:
        if sender.greenlet is not None and not sender.is_carried:
            sender.greenlet.throw(Evicted(reason))

    def _let_go(self, sender: SenderDatagrams) -> None:
        """Forget ``sender``, whose relay ends if it has one.  May be called again."""
        sender.finish()
        if self._senders.get(sender.key) is sender:
            del self._senders[sender.key]
            self._held.remove(sender.prefix, sender)
        if not sender.is_active:
            self._alive.discard(sender)
            if not self._alive:
                self._none_left.set()


class UdpForward(SenderListener):
    """Sends what comes to ``sock``, a bound UDP socket that it owns, to ``to``.

    ``exits`` and options are as of :class:`gsocks.forward.ForwardServer`.
    """

    def __init__(
        self,
        sock: std_socket.socket,
        to: Address,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: ForwardOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ForwardOptions, options, keywords)
        options.check_reach(Address.from_sockaddr(sock.getsockname()), to)
        super().__init__(sock, exits, options)
        self._to = to
        self.head, self.dest = to.encode(), str(to)
        #: whether answers come from the destination, by their addresses in wire form
        self._answers: LruCache[bytes, bool] = LruCache(_MAX_SOURCES)

    def __repr__(self) -> str:
        return f"<UdpForward {self.bound} to {self._to}, {self.connections} associations>"

    def arrived(self, packet: bytes, source: Any, told: Ancillary) -> None:
        """See :meth:`SenderListener.arrived`."""
        back = answering(told)
        self.take((source, back[0][2] if back else b""), source, back, packet)

    def is_destination(self, head: bytes) -> bool:
        """Whether an answer from that address, in wire form, is one of the destination.

        Where that is written as a name, only the exit knows its address; the port is known.
        """
        known = self._answers.get(head)
        if known is None:
            source, to = address_of(head), self._to
            is_host = source is not None and (to.ip is None or source.host == to.host)
            known = self._answers[head] = is_host and source is not None and source.port == to.port
        return known


def _never(_: object) -> None:
    """No connection waits for its client here."""
