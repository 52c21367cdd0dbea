"""The requests that one HTTP client sends over one connection, one after another."""

from __future__ import annotations

from typing import NamedTuple

from gsocks.access.login import Authenticator
from gsocks.deadline import call_with_timeout, call_within
from gsocks.errors import AuthenticationFailed, BadRequest, ClientError, HandshakeTimeout
from gsocks.http.forward import forwards_left
from gsocks.http.head import check_length, target
from gsocks.http.status import answer_to
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.http_auth import log_in
from gsocks.inbound.http_client import Client
from gsocks.inbound.http_forward import Forwarding, ReceivedRequest
from gsocks.inbound.http_pin import Pin
from gsocks.inbound.own_pages import OwnAnswer, OwnPages
from gsocks.request import CONNECT, Request
from gsocks.turns import give_way


class HttpSettings(NamedTuple):
    """What the HTTP sessions of one listener have in common."""

    #: bytes of the body of one request; None: no bound
    max_body: int | None
    #: statuses of answers after which a request is sent through another exit
    retry_on: frozenset[int]
    #: whether a CONNECT may be answered before it is connected
    fast_open: bool
    #: the proxy's own name in Via; None: it has none
    via: str | None
    #: what it answers to browsers that take it for a web server
    pages: OwnPages


class HttpSession:
    """Serves the HTTP client behind ``connection``, whose first bytes ``received`` holds."""

    def __init__(
        self,
        connection: ClientConnection,
        received: bytes,
        authenticator: Authenticator,
        settings: HttpSettings,
    ) -> None:
        self._context = connection.context
        self._connection = connection
        self._authenticator = authenticator
        self._settings = settings
        self._pin = Pin()
        self._client = Client(connection.sock, received, settings.max_body)
        #: instead of an error, where a browser takes the proxy for a web server
        self._own_answer: OwnAnswer | None = None

    def __repr__(self) -> str:
        return f"<HttpSession of {self._connection!r}>"

    def run(self, grace: float) -> None:
        """Serve request after request, then close the connection.

        ``grace``: seconds for the client to read the last answer.  A relay that has taken over the
        connection (CONNECT, 101) closes it by itself, later.
        """
        try:
            if self._run():
                return
        finally:
            self._pin.close()
        self._connection.close(grace)

    def _run(self) -> bool:
        """Whether a relay has taken over the connection."""
        client, timeouts = self._client, self._context.timeouts
        # of this time a part has passed until the first byte
        seconds = self._connection.time_left(timeouts.handshake)
        while True:
            active = self._connection.next_request()
            received = self._receive(active, seconds)
            if received is not None:  # else it has yet to log in, or its connection ends
                self._connection.handshake_done()
                if self._serve(received, active):
                    return True
            if not client.reusable or self._context.stopping:
                return False
            give_way()  # a client may have sent thousands of requests, which are answered at once
            # a client that has not logged in gets no keep_alive
            if received is not None and not self._next_begins():
                return False
            seconds = timeouts.handshake

    def close_if_idle(self) -> None:
        """Read no further request, unless one has begun to come."""
        if not self._client.asking:
            self._client.hang_up()

    def _next_begins(self) -> bool:
        """Wait for another request; whether one begins within ``timeouts.keep_alive``."""
        keep_alive = self._context.timeouts.keep_alive
        self._connection.idle()
        try:
            return call_with_timeout(keep_alive, self._client.asks_again, on_timeout=False)
        finally:
            self._connection.busy()

    def _receive(self, active: ActiveRequest, seconds: float) -> ReceivedRequest | None:
        """The next request; None if there is none to serve, after the client was answered."""
        client = self._client
        try:
            if client.has_head and not self._authenticator.required:  # nothing to wait for
                return self._read(active)
            return call_within(seconds, HandshakeTimeout(), self._read, active)
        except ClientError as error:
            # silence between two requests is the usual end of a kept-alive connection
            own, self._own_answer = self._own_answer, None
            if own is not None:
                active.finish(own.outcome, own.detail)
                client.answered(own.response, own.body)
            elif client.asking or not isinstance(error, HandshakeTimeout):
                active.finish(error.word, str(error))
                client.failed(error)
            return None

    def _read(self, active: ActiveRequest) -> ReceivedRequest | None:
        head = self._client.read_request()
        if head is None:
            return None
        try:
            identity = log_in(head, self._authenticator)
            active.record.user = identity.user
            check_length(head, self._settings.max_body)
            return ReceivedRequest(head, target(head), identity)
        except (AuthenticationFailed, BadRequest):
            self._own_answer = self._settings.pages.answer(head, self._connection.sock)
            raise

    def _serve(self, received: ReceivedRequest, active: ActiveRequest) -> bool:
        """Serve one request; whether a relay has taken over the connection."""
        client, connection = self._client, self._connection
        if forwards_left(received.head) == 0:
            active.record.dest = str(received.target.dest)
            client.answered(*answer_to(received.head, closing=not client.heard_out))
            active.finish("ok")
            return False
        user, selector = received.identity
        tunnelled = received.head.method == b"CONNECT"
        retry_on, record = self._settings.retry_on, active.record
        request = Request(
            CONNECT,
            received.target.dest,
            user,
            b"",
            selector,
            tunnelled and self._settings.fast_open,
            retry_on,
            record.client,
            record.trace,
        )
        if tunnelled:
            return active.carry(request, client, client.stream(), connection)
        via = self._settings.via
        forwarding = Forwarding(connection, client, received, request, retry_on, self._pin, via)
        return forwarding.run(active)
