"""One plain HTTP request of a client, through one exit or through several, until it is answered.

A request is sent again only if it may be: it is idempotent, and has no body that would have to be
stored (RFC 9110 section 9.2.2).  Then it may go over a connection that was kept, once more over a
new one if that had ended; by CONNECT through a proxy that refuses absolute form; and through
another exit if one fails, or answers with an unwanted status.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import gevent
import h11

from gsocks.access.login import Identity
from gsocks.errors import ClientError, ConnectFailed, GsocksError, NoExit
from gsocks.exits.forward import TakesAbsoluteForm
from gsocks.http.forward import is_upgrade
from gsocks.http.head import RequestTarget
from gsocks.http.message import header
from gsocks.http.origin import drain_and_close
from gsocks.http.persistence import authenticates_connection
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.http_client import Client
from gsocks.inbound.http_exchange import Exchange, RetryRules, Unanswered
from gsocks.inbound.http_pin import Pin
from gsocks.relay import Totals
from gsocks.request import Request
from gsocks.rotation.connected import HttpOutbound

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class ReceivedRequest(NamedTuple):
    """A request that may be served."""

    head: h11.Request
    target: RequestTarget
    identity: Identity

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent to a server twice: idempotent, and without a body that would
        have to be stored (RFC 9110 section 9.2.2)."""
        head = self.head
        return (
            head.method in _IDEMPOTENT
            and header(head, b"transfer-encoding") is None
            and not (header(head, b"content-length") or b"").strip(b"0")
        )


class Forwarding:
    """The attempts of one request.

    ``retry_on``: statuses after which another exit is tried.  ``pin``: that of the client's
    connection.  ``via``: the proxy's own name, for Via.
    """

    def __init__(
        self,
        connection: ClientConnection,
        client: Client,
        received: ReceivedRequest,
        request: Request,
        retry_on: frozenset[int],
        pin: Pin,
        via: str | None = None,
    ) -> None:
        self._via = via
        self._connection = connection
        self._context = connection.context
        self._client = client
        self._received = received
        self._request = request
        self._retry_on = retry_on
        self._pin = pin
        self._is_upgrade = is_upgrade(received.head)
        self._repeatable = received.is_repeatable and not self._is_upgrade
        #: whether only one exit can serve it: it is about credentials of a connection
        self._is_bound = authenticates_connection(received.head)
        #: whether an exit has given an answer that may be its own, and a better one is sought
        self._has_doubted = False
        #: names of the exits that have been tried
        self._tried: list[str] = []

    def run(self, active: ActiveRequest) -> bool:
        """Serve the request; whether a relay has taken over the connection (101)."""
        while True:
            failure = self._attempt(active)
            if isinstance(failure, bool):
                return failure
            if failure is not None:
                self._client.failed(failure)
                return False
            active = self._connection.retry_request(active)

    def _attempt(self, active: ActiveRequest) -> GsocksError | bool | None:
        """By one exit: True or False as :meth:`run`, the error that the client has to be told, or
        None if another exit is to be tried."""
        try:
            outbound = active.forward(
                self._request,
                self._client.protocol,
                method=self._received.head.method.decode("ascii"),
                failed=self._tried,
                repeatable=self._repeatable,
                tunnel=False,
                # another protocol goes through CONNECT, but where the proxy refuses that
                alone=self._is_bound or self._is_upgrade,
                pin=self._pin,
            )
        except (ConnectFailed, ClientError) as error:
            return error
        self._tried.append(outbound.name)
        self._is_bound = self._is_bound or outbound.is_pinned
        try:
            with outbound:
                exchange, totals = self._carry(outbound, active)
        except (ConnectFailed, ClientError) as error:  # of a connection instead of the first
            active.finish(error.word, str(error))
            return None if self._may_retry() else error
        except BaseException:
            active.finish("stopped")
            raise
        if exchange.switched:
            active.relay(self._client.stream(), outbound, self._connection)
            return True
        self._report(exchange, outbound)
        _finish(exchange, outbound, totals, active, self._pin)
        if exchange.unanswered is None:
            return False
        failure = exchange.refusal or totals.error or GsocksError()
        is_final = exchange.unanswered is Unanswered.FAILED and totals.side != "remote"
        return failure if is_final or not self._may_retry() else None

    def _may_retry(self) -> bool:
        """Whether another exit may be tried."""
        group = self._context.exit_group
        return (
            self._repeatable
            and not self._is_bound
            and group.may_try_again(self._request, self._tried)
        )

    def _carry(self, outbound: HttpOutbound, active: ActiveRequest) -> tuple[Exchange, Totals]:
        """By one exit, over as many of its connections as it takes.

        Raises ConnectFailed or ClientError if a new one can't be had.
        """
        exchange, totals = self._exchange(outbound, active)
        if exchange.unanswered is Unanswered.STALE:
            self._reconnect(outbound, active)
            exchange, totals = self._exchange(outbound, active)
        if exchange.unanswered is Unanswered.FORM and (proxy := outbound.http.proxy) is not None:
            exchange, totals = self._by_connect(proxy, outbound, active, exchange.status)
        active.record.up, active.record.down = totals.up, totals.down
        return exchange, totals

    def _by_connect(
        self,
        proxy: TakesAbsoluteForm,
        outbound: HttpOutbound,
        active: ActiveRequest,
        refused: int | None,
    ) -> tuple[Exchange, Totals]:
        """The request through a CONNECT by a proxy whose answer to absolute form was ``refused``.

        That was the origin server's if the same comes through CONNECT, or if CONNECT is refused.
        """
        try:
            self._reconnect(outbound, active, tunnel=True)
        except (ConnectFailed, ClientError):
            proxy.note_absolute_form(True)
            self._reconnect(outbound, active)
            return self._exchange(outbound, active)
        exchange, totals = self._exchange(outbound, active)
        if exchange.status is not None:
            proxy.note_absolute_form(exchange.status == refused)
        return exchange, totals

    def _reconnect(
        self, outbound: HttpOutbound, active: ActiveRequest, *, tunnel: bool = False
    ) -> None:
        how = "by CONNECT" if tunnel else "over a new connection"
        active.record.trace("sending it again %s of exit %s", how, outbound.name)
        outbound.reconnect(tunnel=tunnel)
        outbound.stream = self._context.quota.limited(outbound.stream, self._request)

    def _exchange(self, outbound: HttpOutbound, active: ActiveRequest) -> tuple[Exchange, Totals]:
        rules = RetryRules()
        if self._repeatable:
            rules = RetryRules(True, self._retry_on, self._may_retry, self._has_doubted)
        received = self._received
        exchange = Exchange(
            self._client,
            received.head,
            received.target,
            outbound,
            self._context.timeouts,
            rules,
            self._via,
        )
        try:
            return exchange, exchange.run()
        except BaseException:  # the listener stops; what was carried is counted all the same
            active.record.up, active.record.down = up, down = exchange.carried
            outbound.abort(up, down)
            raise

    def _report(self, exchange: Exchange, outbound: HttpOutbound) -> None:
        """Report to the exit group what the exchange says of the exit."""
        if exchange.refusal is not None:
            outbound.failed(exchange.refusal)
            if exchange.refusal.status in self._retry_on:
                outbound.unwanted()
            return
        if exchange.status is not None:
            outbound.doubted(exchange.status)
            self._has_doubted = self._has_doubted or exchange.unanswered is Unanswered.DOUBT
        if exchange.status is not None and self._retry_on:
            with suppress(NoExit):  # the exits may have been replaced meanwhile
                self._context.exit_group.report(
                    outbound.name,
                    exchange.status not in self._retry_on,
                    self._received.target.dest.host,
                )


def _finish(
    exchange: Exchange, outbound: HttpOutbound, totals: Totals, active: ActiveRequest, pin: Pin
) -> None:
    """Report an exchange and release its exit."""
    why, refusal = exchange.unanswered, exchange.refusal
    details = active.record.details
    if details is not None:
        details.status = exchange.status or (0 if refusal is None else refusal.status or 0)
    if why in (Unanswered.STATUS, Unanswered.DOUBT) and totals.error is None:
        active.finish(f"http_{exchange.status}")
    elif why is Unanswered.EXIT and refusal is not None:
        active.finish(refusal.word, str(refusal))
    else:
        active.finish(totals.word, str(totals.error or ""))
    if exchange.pins:
        pin.keep(outbound, totals.up, totals.down)
    elif exchange.reusable:
        outbound.give_back(totals.up, totals.down)
    elif exchange.clean:
        gevent.spawn(_close_origin, outbound, totals)
    else:
        outbound.abort(totals.up, totals.down)


def _close_origin(outbound: HttpOutbound, totals: Totals) -> None:
    drain_and_close(outbound.stream)
    outbound.release(totals.up, totals.down)
