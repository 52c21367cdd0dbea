"""What both servers share: accept, admit, serve in greenlets, drain and stop.

local.py and server.py say how a client is understood.
"""

from __future__ import annotations

import socket as std_socket
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

import gevent
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks.access.networks import Networks
from gsocks.address import Address
from gsocks.deadline import call_within
from gsocks.errors import (
    ClientError,
    ClientForbidden,
    ConnectFailed,
    Evicted,
    HandshakeTimeout,
    LimitReached,
    LoopDetected,
    OutOfResources,
    StreamClosed,
    StreamError,
)
from gsocks.inbound.accept_guard import AcceptGuard, Reaction
from gsocks.inbound.admission import Admission
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.options import ListenerOptions
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.silent import SilentConnections
from gsocks.net.greenlets import GreenletPool
from gsocks.net.listen import is_deferred, listen_address, stop_deferring
from gsocks.net.proxy_protocol import read_header
from gsocks.net.socket_owner import has_request_sockets
from gsocks.net.unix import UnixAddress, UnixClient
from gsocks.observe import NullObserver
from gsocks.rotation.build import SomeExit, make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Limits
from gsocks.sock import AnySocket, Socket
from gsocks.stream import close_with_fin, tune

#: connections that are accepted in one turn of the loop, and that may wait for their greenlet
MAX_ACCEPT = 100

#: seconds that a listener stays open at most for clients whose first bytes the kernel awaits; it
#: hands over each of them one second after it came, and the time of a packet to it and back
DEFERRED_GRACE = 2.0

#: seconds until the kernel, which reports no event of it, is asked again whether there are any
_DEFERRED_STEP = 0.05

#: a connection, and the address of its client
_Accepted: TypeAlias = tuple[Socket, tuple[str, int]]


class Listener(StreamServer):
    """A gevent StreamServer in front of exits.

    ``listener``: ``(host, port)``, ``"host:port"`` or a listening socket; port 0 takes a free
    one, and :attr:`bound` is the address after :meth:`start`.  ``exits`` are as in the config, or
    are an ExitGroup, which several listeners may share.

    Raises ConfigError for what can't be used.
    """

    #: connections that wait to be accepted; the kernel caps it at net.core.somaxconn
    backlog = 1024
    #: seconds between two attempts to accept while descriptors have run out
    accept_pause = 0.25
    #: what the listener is called in the access log
    name = "inbound"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit],
        options: ListenerOptions,
    ) -> None:
        address = listen_address(listener)
        if address is not None and isinstance(listener, (str, tuple)):
            listener = (address.host, address.port)
        super().__init__(listener, spawn=None)  # the hub admits; greenlets of the pool serve
        #: whether it is at a Unix socket, whose clients have users and no addresses
        self._is_unix = getattr(listener, "family", None) == std_socket.AF_UNIX
        if isinstance(listener, std_socket.socket):
            listener.setblocking(False)  # gevent accepts until the queue is empty
            if not self._is_unix:
                tune(listener)
        timeouts = self.timeouts = options.timeouts
        limits = self.limits = options.limits
        self._balancers = Networks.of(options.proxy_protocol_from)
        #: connections whose request or key is still to come, and which have no greenlet
        self._silent = SilentConnections(timeouts.handshake, self._too_late)
        #: what its connections and requests use
        self.context = ListenerContext(
            self.name,
            make_exit_group(exits, options.rules, timeouts=timeouts),
            # who may open the file of a Unix socket, may come in
            Admission(limits, None if self._is_unix else Networks.of(options.clients)),
            self._silent,
            UserQuota(limits) if options.quota is None else options.quota,
            timeouts,
            options.observer or NullObserver(),
        )
        #: of the listening socket
        self._family = int(std_socket.AF_INET)
        #: makes the address of a client of what is accepted with its connection
        self._client_of: Callable[[Any], Address] = Address.from_sockaddr
        if self._is_unix:
            # in place of the methods, so that a connection of TCP need not ask of which kind it is
            self._accept = self._accept_unix  # type: ignore[method-assign]
            self._client_of = UnixClient._make
        #: how many are accepted in one turn.  To find that there is none costs an exception, and
        #: the loop calls again while there is one: so no more are looked for than twice what came
        #: last
        self._at_once = 1
        #: for when descriptors run out
        self.accept_guard = AcceptGuard(self.name)
        self._greenlets = GreenletPool()
        #: connections that have spoken, and whose greenlet has yet to begin
        self._unbegun = 0
        # so that a connection's turn comes before so many others that it would be evicted
        self.max_accept = min(MAX_ACCEPT, max(1, limits.handshakes // 4))

    def __repr__(self) -> str:
        # not gevent's, whose words depend on what it is made of
        where = self.bound if self.started else "not listening"
        admission = self.context.admission
        return (
            f"<{type(self).__name__} {where}, {admission.connections} connections,"
            f" {admission.handshakes} in handshake, {len(self.context.relays)} relays>"
        )

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and serve, from greenlets of this thread's hub; returns at once."""
        super().start()
        self._family = int(self.socket.family)
        self.context.exit_group.own_listeners.add(self.socket)
        self.accept_guard.take_reserve()
        self.context.exit_group.start()

    @classmethod
    def get_listener(cls, *address: Any, **options: Any) -> socket:
        """A listening socket, whose options accepted sockets inherit.  gevent's hook."""
        listener: socket = super().get_listener(*address, **options)
        tune(listener)
        return listener

    @property
    def bound(self) -> Address:
        """Where it listens; known after :meth:`start`."""
        if self._is_unix:
            return UnixAddress.of_listener(str(self.address))
        return Address.from_sockaddr(cast(tuple[str, int], self.address))

    @property
    def connections(self) -> int:
        """How many are open."""
        return self.context.admission.connections

    def replace_limits(self, limits: Limits) -> None:
        """Have newcomers admitted by ``limits``; open connections are not affected."""
        self.limits = limits
        self.max_accept = min(MAX_ACCEPT, max(1, limits.handshakes // 4))
        self.context.admission.replace_limits(limits)

    def retire(self) -> None:
        """Stop listening, while what is open goes on; :meth:`stop` has to end it some time.

        Waits for up to :data:`DEFERRED_GRACE`.
        """
        self._await_deferred(DEFERRED_GRACE)
        if self.started:
            self._accept_the_rest()
            self.context.exit_group.own_listeners.remove(self.socket)
        self.close()
        self.accept_guard.give_up_reserve()

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening; reset what is still open after ``timeout`` seconds (default 1)."""
        if timeout:
            self._await_deferred(min(timeout, DEFERRED_GRACE))
        if self.started and timeout:
            self._accept_the_rest()
        self.context.stopping = True
        if self.started:
            self.context.exit_group.own_listeners.remove(self.socket)
        self.close()
        self.accept_guard.give_up_reserve()
        self.drain()
        all_closed = self.context.all_closed
        if not all_closed.wait(self.stop_timeout if timeout is None else timeout):
            self._silent.close()
            self.context.stop_connecting()
            self._greenlets.kill()
            self.context.abort_relays(StreamClosed("stopped"))
            all_closed.wait()
        self._greenlets.close()
        self.context.exit_group.close()

    def _await_deferred(self, seconds: float) -> None:
        """Go on until no client is connected that the kernel keeps to itself: it would reset them
        with the listener."""
        if not self.started or not is_deferred(self.socket):
            return
        self.accept_at_once()
        until = time.monotonic() + seconds
        # another call of stop() may close it meanwhile
        while self.started and has_request_sockets(self.bound) and time.monotonic() < until:
            gevent.sleep(_DEFERRED_STEP)

    def accept_at_once(self) -> None:
        """Have the kernel hand over clients that have said nothing yet."""
        stop_deferring(self.socket)

    def _accept_the_rest(self) -> None:
        """Accept those that wait in the kernel's queue, which would be reset with it."""
        try:
            for _ in range(self.backlog):
                accepted = self._accept()
                if accepted is None:
                    break
                self.handle(*accepted)
        except OSError:
            pass  # they are as lost as without the attempt

    def drain(self) -> None:
        """Called once when stopping: close connections that are idle."""

    # --- accepting --------------------------------------------------------------------------

    def do_read(self) -> Any:
        """Accept and handle what waits to be accepted.

        gevent's hook, which returns a connection there, for gevent to handle it in four more calls.

        No more are accepted than can be served: those that come faster wait in the kernel's queue,
        not here, where each newcomer could evict one whose turn has not come.
        """
        came = 0
        while came < self._at_once and self._unbegun < self.max_accept:
            try:
                accepted = self._accept()
            except OSError as error:
                accepted = self._accept_failed(error)
            if accepted is None:
                self._at_once = max(1, came)
                return
            came += 1
            self.handle(*accepted)
        self._at_once = min(2 * came, self.max_accept) or 1

    def _accept_failed(self, error: OSError) -> _Accepted | None:
        """React; returns what was accepted all the same.  Raises what can't be mended."""
        reaction = self.accept_guard.reaction(error)
        if reaction is Reaction.USE_RESERVE:
            return self._accept_by_reserve(error)
        if reaction is Reaction.PAUSE:
            self._pause_accepting(error)
        elif reaction is Reaction.RAISE:
            raise error
        return None

    def _accept(self) -> _Accepted | None:
        """The connection that has waited longest; None if there is none.  Raises OSError."""
        try:
            descriptor, sockaddr = self.socket._accept()  # type: ignore[attr-defined] # native
        except BlockingIOError:
            return None
        return Socket(self._family, descriptor), sockaddr

    def _accept_unix(self) -> _Accepted | None:
        """The same at a Unix socket."""
        accepted = Listener._accept(self)
        return None if accepted is None else (accepted[0], UnixClient.of_peer(accepted[0]))

    def _accept_by_reserve(self, error: OSError) -> _Accepted | None:
        """Accept by the descriptor of the reserve; evict for another one, or refuse the client."""
        try:
            accepted = self._accept()
        except OSError:
            accepted = None  # another thread took the descriptor, or another process the client
        if accepted is not None:
            sock, sockaddr = accepted
            connection = ClientConnection(self.context, sock, self._client_of(sockaddr))
            has_room = self.context.admission.make_room(connection.client.host)
            consequence = "evicting silent ones" if has_room else "closing new ones"
            self.accept_guard.log_failure(error, self.connections, consequence)
            if not has_room:
                sock.close()
                connection.new_request().finish(OutOfResources.word, error.strerror or "")
                accepted = None
        self.accept_guard.take_reserve()
        return accepted

    def _pause_accepting(self, error: OSError) -> None:
        consequence = f"retrying every {self.accept_pause:g} s"
        self.accept_guard.log_failure(error, self.connections, consequence)
        self.stop_accepting()
        gevent.spawn_later(self.accept_pause, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self.started:
            self.accept_guard.take_reserve()
            self.start_accepting()

    def handle(self, sock: AnySocket, sockaddr: tuple[str, int]) -> None:
        """Admit one connection; gevent calls it in the hub, where nothing may block."""
        connection = ClientConnection(self.context, sock, self._client_of(sockaddr))
        if self.context.exit_group.own_listeners.comes_back(connection.client, sock):
            self._refuse(connection, LoopDetected("this is a connection of its own, to an exit"))
            return
        is_balanced = self._balancers is not None and connection.client.host in self._balancers
        try:
            connection.admit(behind_balancer=is_balanced)
        except (ClientForbidden, LimitReached) as error:
            self._refuse(connection, error)
        else:
            self.wait_for_handshake(connection, is_balanced)

    def wait_for_handshake(self, connection: ClientConnection, is_balanced: bool) -> None:
        """Begin to serve a connection once it can be read.

        ``is_balanced``: its client has to be announced by a balancer.
        """
        serve = self._serve_balanced if is_balanced else self.serve
        self._silent.watch(connection, self._serve_in_greenlet, connection, serve)

    def _serve_in_greenlet(
        self, connection: ClientConnection, serve: Callable[..., None], *args: object
    ) -> None:
        self._silent.discard(connection)
        self._unbegun += 1
        self._greenlets.spawn(self._begin, connection, serve, *args)

    def _begin(
        self, connection: ClientConnection, serve: Callable[..., None], *args: object
    ) -> None:
        self._unbegun -= 1
        _guarded(connection, serve, connection, *args)

    def _too_late(self, connection: ClientConnection) -> None:
        connection.new_request().refused(HandshakeTimeout("said nothing"))
        connection.close()

    def _refuse(self, connection: ClientConnection, error: ClientError | ConnectFailed) -> None:
        connection.new_request().refused(error)
        if isinstance(error, LimitReached):
            self.refuse_client(connection.sock, error)
        else:
            close_with_fin(connection.sock)

    def refuse_client(self, sock: AnySocket, error: LimitReached) -> None:  # noqa: ARG002
        """Close a connection beyond a limit; may answer the client first, but must not block."""
        close_with_fin(sock)

    def do_close(self, *args: object) -> None:
        """gevent would close the socket when ``handle`` returns; the ClientConnection owns it."""

    # --- serving ----------------------------------------------------------------------------

    def serve(self, connection: ClientConnection) -> None:
        """Understand the client and carry its requests; ends the connection, now or later."""
        raise NotImplementedError

    def _serve_balanced(self, connection: ClientConnection) -> None:
        """Serve the client that a balancer's header announces."""
        try:
            seconds = connection.time_left(self.timeouts.handshake)
            client = call_within(seconds, HandshakeTimeout(), read_header, connection.sock)
            connection.count_for(client or connection.client)
        except (ClientError, LimitReached) as error:
            connection.end()
            self._refuse(connection, error)
        else:
            self.serve(connection)

    def spawn(
        self, connection: ClientConnection, function: Callable[..., None], *args: object
    ) -> None:
        """Serve a part of ``connection`` in a greenlet; the connection is closed if that fails."""
        self._greenlets.spawn(_guarded, connection, function, *args)


def _guarded(connection: ClientConnection, function: Callable[..., None], *args: object) -> None:
    if not connection.begin():
        error = Evicted("before its turn came")
        error.is_routine = True  # as of one that has said nothing
        connection.new_request().refused(error)
        return
    try:
        function(*args)
    except BaseException as error:
        connection.close()
        # killed by stop(), or a fault of gsocks
        if not isinstance(error, (StreamError, Evicted)):
            raise
    finally:
        connection.finish()
