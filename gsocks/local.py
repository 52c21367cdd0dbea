"""The listener for clients: SOCKS and HTTP in front, exits behind."""

from __future__ import annotations

import socket as std_socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.pool import Group

from gsocks.access.login import OPEN, Authenticator, Identity, VerifyPassword
from gsocks.access.username_style import SomeStyle, parse_styles
from gsocks.address import UNSPECIFIED, Address
from gsocks.deadline import call_with_timeout, call_within
from gsocks.errors import (
    ClientError,
    ConfigError,
    ConnectFailed,
    GsocksError,
    HandshakeTimeout,
    LimitReached,
    StreamError,
)
from gsocks.handshake import Answer, SpeaksHttp, negotiate
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import CLOSE_GRACE, ClientConnection
from gsocks.inbound.http_client import Client
from gsocks.inbound.http_session import HttpSession, HttpSettings
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import LocalOptions, collect
from gsocks.inbound.own_pages import OwnPages
from gsocks.inbound.straight import receive
from gsocks.inbound.straight_http import begin
from gsocks.inbound.udp import Associations
from gsocks.net.listen import is_deferred, is_local, listen_address
from gsocks.net.tls_socket import stream_of
from gsocks.observe import Record, no_trace
from gsocks.request import CONNECT, LOOK_UPS, UDP_ASSOCIATE, Command, ExitSelector, Request
from gsocks.rotation.build import SomeExit, make_authenticator
from gsocks.rotation.given_settings import given
from gsocks.rotation.group import ExitGroup
from gsocks.settings import PacSettings, TlsSettings
from gsocks.sock import AnySocket
from gsocks.stream import close_after_reply

if TYPE_CHECKING:
    from gsocks.inbound.tls import TlsFront

#: clients beyond a limit that are answered at a time, in their own protocol: a page that opens one
#: connection too many shows why, while a flood is closed without an answer and costs nothing
MAX_REFUSALS = 64


class LocalServer(Listener):
    """Serves clients that speak SOCKS or HTTP, told apart by their first byte.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`.  Options are
    given as keywords, as ``options``, or as both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.LocalOptions`.  Raises ConfigError for what can't be used,
    TypeError for an option that does not exist.
    """

    name = "local"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: LocalOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, LocalOptions, options, keywords)
        #: None: clients come without TLS
        self._tls: TlsFront | None = None
        if options.tls is not None:
            # here, since most programs do without it
            from gsocks.inbound.tls import TlsFront

            self._tls = TlsFront(given(type(self).__name__, "tls", options.tls, TlsSettings))
        is_guarded = self._tls is not None and self._tls.admits_by_certificate
        address, is_open = listen_address(listener), options.users is None and not is_guarded
        if is_open and not options.allow_anonymous and address and not is_local(address):
            raise ConfigError(
                f"{address} would be an open proxy for all machines that can reach it"
                " (give it users, or allow_anonymous=True if that is intended)"
            )
        super().__init__(listener, exits, options)
        self._logins = make_authenticator(options.users)
        self._selector = options.selector
        self._styles = parse_styles(options.username_style)
        self._client_is_session = options.by_client
        #: see gsocks.inbound.straight.StraightListener
        self.is_open = is_open and not options.by_client
        #: see LocalOptions; new connections go by it
        self.ask = options.ask
        self._prefer_login = options.prefer_login
        self._anonymous = Identity(None, options.selector)
        self._http_sessions: set[HttpSession] = set()
        self._refusals = Group()
        self._associations = Associations(options.udp)
        self._fast_open = options.fast_open
        self._http_settings = HttpSettings(
            self.limits.request_body,
            frozenset(options.retry_on),
            options.fast_open,
            options.via,
            OwnPages(options.pac, secure=self._tls is not None),
        )
        #: whether connections are accepted with their first bytes
        self._is_deferred = False
        self._commands = frozenset(Command)
        if not self._associations.served or self._tls is not None:  # datagrams would be in clear
            self._commands -= {Command.UDP_ASSOCIATE}

    def serve(self, connection: ClientConnection, received: bytes = b"") -> None:
        """Negotiate, connect, answer, relay: one request for each connection, but of HTTP many.

        ``received``: what the hub has received already.
        """
        user = None
        if self._tls is not None:
            try:
                user = self._secure(connection, self._tls)
            except (ClientError, StreamError) as error:
                connection.new_request().refused(error)
                connection.close(CLOSE_GRACE)
                return
        sock, authenticator = connection.sock, self._authenticator_of(connection.client, user)
        greeted = connection.spoke_at is not None
        began = time.monotonic() if connection.spoke_at is None else connection.spoke_at
        try:
            seconds = connection.time_left(self.timeouts.handshake)
            late = HandshakeTimeout()
            negotiated = call_within(
                seconds,
                late,
                negotiate,
                sock,
                authenticator,
                self._commands,
                received,
                greeted,
            )
        except ClientError as error:
            connection.new_request(began).refused(error)
        else:
            if isinstance(negotiated, SpeaksHttp):
                received, settings = negotiated.said, self._http_settings
                self._serve_http(HttpSession(connection, received, authenticator, settings))
                return
            connection.handshake_done()
            request, answer = negotiated
            active, connects = connection.new_request(began), request.command is CONNECT
            request = request._replace(
                fast_open=connects and self._fast_open,
                retry_on=self._http_settings.retry_on if connects else frozenset(),
                client=active.record.client,
                trace=active.record.trace,
            )
            if request.command is UDP_ASSOCIATE:
                carried = self._associate(connection, request, answer, active)
            elif request.command in LOOK_UPS:
                active.look_up(request, answer)
                carried = False
            else:
                stream = stream_of(sock, request.payload)
                carried = active.carry(request, answer, stream, connection, sock)
            if carried:
                return
        connection.close(CLOSE_GRACE)

    def _secure(self, connection: ClientConnection, front: TlsFront) -> str | None:
        """Agree on TLS; returns the user whom the client's certificate names.

        Raises ClientError, StreamError.
        """
        seconds = connection.time_left(self.timeouts.handshake)
        try:
            return call_within(seconds, HandshakeTimeout(), front.begin, connection)
        except StreamError as error:
            error.is_routine = not connection.unserved()  # as of a balancer's health check
            raise

    @property
    def is_secure(self) -> bool:
        """Whether clients come by TLS."""
        return self._tls is not None

    def replace_defaults(
        self,
        selector: ExitSelector,
        styles: SomeStyle | Sequence[SomeStyle],
        *,
        ask: bool,
        prefer_login: bool | None,
    ) -> None:
        """Have new connections begin with these options, see LocalOptions.  Raises ConfigError."""
        self._selector, self._styles = selector, parse_styles(styles)
        self._anonymous = Identity(None, selector)
        self.ask, self._prefer_login = ask, prefer_login

    def replace_tls(self, settings: TlsSettings) -> None:
        """Have new connections begin by other files.  Raises ConfigError."""
        if self._tls is not None:
            self._tls = type(self._tls)(settings)

    # --- the straight way -------------------------------------------------------------------

    def wait_for_handshake(self, connection: ClientConnection, is_balanced: bool) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.wait_for_handshake`."""
        if is_balanced or connection.trace is not no_trace or self._tls is not None:
            super().wait_for_handshake(connection, is_balanced)
        else:
            self._silent.watch(connection, receive, self, connection)
            if self._is_deferred:  # its first bytes are there, in this turn already
                receive(self, connection)

    def start(self) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.start`."""
        super().start()
        self._is_deferred = is_deferred(self.socket)

    def accept_at_once(self) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.accept_at_once`."""
        super().accept_at_once()
        self._is_deferred = False

    def _too_late(self, connection: ClientConnection) -> None:
        if connection.spoke_at is None:
            super()._too_late(connection)
        else:  # it is answered, which has to wait for it
            self.leave_straight_way(connection, b"")

    def leave_straight_way(self, connection: ClientConnection, received: bytes) -> None:
        """See :class:`gsocks.inbound.straight.StraightListener`, as for the next one."""
        is_first = connection.spoke_at is None
        if is_first and received.startswith(b"CONNECT ") and begin(self, connection, received):
            return
        self._serve_in_greenlet(connection, self.serve, received)

    def plain_request(self, dest: Address, payload: bytes, record: Record) -> Request:
        return Request(
            CONNECT,
            dest,
            None,
            payload,
            self._selector,
            self._fast_open,
            self._http_settings.retry_on,
            record.client,
        )

    def http_connect(
        self, dest: Address, payload: bytes, identity: Identity, record: Record
    ) -> Request:
        """See :class:`gsocks.inbound.straight_http.HttpListener`, as for the next one."""
        settings = self._http_settings
        return Request(
            CONNECT,
            dest,
            identity.user,
            payload,
            identity.selector,
            settings.fast_open,
            settings.retry_on,
            record.client,
        )

    @property
    def prefers_login(self) -> bool:
        """See :class:`gsocks.inbound.straight.StraightListener`."""
        told = self._prefer_login
        return (self.ask or self.context.exit_group.heeds_names) if told is None else told

    @property
    def anonymous(self) -> Identity | None:
        return self._anonymous if self.is_open and not self.ask else None

    def recalling_authenticator(self, client: Address) -> Authenticator:
        logins = self._logins
        return self._authenticator(client, None if logins is None else logins.recalling)

    def replace_pac(self, settings: PacSettings) -> None:
        """Have browsers that ask from now on be told by ``settings``.  Raises ConfigError."""
        self._http_settings = self._http_settings._replace(pages=OwnPages(settings))

    def _serve_http(self, session: HttpSession) -> None:
        self._http_sessions.add(session)
        try:
            session.run(CLOSE_GRACE)
        finally:
            self._http_sessions.discard(session)

    def authenticator_for(self, client: Address) -> Authenticator:
        """What decides whether ``client`` may come in, and as whom."""
        logins = self._logins
        if logins is None:
            return self._authenticator(client, None, prefers_login=self.prefers_login)
        return self._authenticator(client, logins.for_client)

    def _authenticator_of(self, client: Address, certified: str | None) -> Authenticator:
        """The same; ``certified``: the user whom its certificate names, who needs no password."""
        logins = self._logins
        if certified is None or (logins is not None and certified not in logins.users):
            return self.authenticator_for(client)
        open_to_all = self._authenticator(client, None, prefers_login=self.prefers_login)
        return open_to_all._replace(user=certified)

    def _authenticator(
        self,
        client: Address,
        verify_for: Callable[[str], VerifyPassword] | None,
        *,
        prefers_login: bool = False,
    ) -> Authenticator:
        host = client.host
        selector = (
            self._selector.merge(ExitSelector(session=host))
            if self._client_is_session
            else self._selector
        )
        if self._logins is None or verify_for is None:  # or its certificate is enough
            return Authenticator(
                selector=selector,
                styles=self._styles,
                asks=self.ask,
                prefers_login=prefers_login,
            )
        return Authenticator(verify_for(host), self._logins.users, selector, self._styles)

    def _associate(
        self,
        connection: ClientConnection,
        request: Request,
        answer: Answer,
        active: ActiveRequest,
    ) -> bool:
        """Open a UDP socket for the client's datagrams and carry them; as ActiveRequest.carry."""
        try:
            datagrams = self._associations.associate(
                connection.sock, connection.client, request.dest
            )
        except ConnectFailed as error:
            active.record.user, active.record.command = request.user, "udp_associate"
            active.finish(error.word, str(error))
            answer.failed(error)
            return False
        try:
            associated = _AssociateAnswer(answer, datagrams.relay_address)
            # where the client sends from is for this end alone
            request = request._replace(dest=UNSPECIFIED)
            carried = active.carry(request, associated, datagrams, connection)
        except BaseException:
            datagrams.release()
            raise
        if not carried:
            datagrams.release()
        return carried

    # --- beyond the limits ------------------------------------------------------------------

    @property
    def refusals(self) -> int:
        """How many clients beyond a limit are being answered."""
        return len(self._refusals)

    def refuse_client(self, sock: AnySocket, error: LimitReached) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.refuse_client`; answers a few at a time."""
        if self.context.stopping or len(self._refusals) >= MAX_REFUSALS:
            sock.close()
        elif self._tls is not None:  # whose agreement would cost more than all else
            super().refuse_client(sock, error)
        else:
            self._refusals.spawn(self._answer_refused, sock, error)

    def _answer_refused(self, sock: AnySocket, error: LimitReached) -> None:
        """Read the client's request, and answer that a limit is reached."""
        try:
            call_with_timeout(CLOSE_GRACE, self._refuse_request, sock, error, on_timeout=None)
        finally:
            sock.close()

    def _refuse_request(self, sock: AnySocket, error: LimitReached) -> None:
        try:
            # no password is verified: the answer is the same for every client
            negotiated = negotiate(sock, OPEN, self._commands)
            if not isinstance(negotiated, SpeaksHttp):
                negotiated[1].failed(error)
            else:
                client = Client(sock, negotiated.said)
                client.read_request()
                client.failed(error, last=True)
        except ClientError:
            pass  # it sent no request that could be refused, or hung up
        close_after_reply(sock, CLOSE_GRACE)

    def drain(self) -> None:
        """Close the connections of HTTP clients that are between two requests."""
        self._refusals.kill(block=False)
        for session in self._http_sessions:
            session.close_if_idle()


class _AssociateAnswer(NamedTuple):
    """The answer to UDP ASSOCIATE, whose bound address is where the client sends its datagrams."""

    answer: Answer
    relay_address: Address

    @property
    def protocol(self) -> str:
        return self.answer.protocol

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        self.answer.succeeded(self.relay_address, via)

    def failed(self, error: GsocksError) -> None:
        self.answer.failed(error)
