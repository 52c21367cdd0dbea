"""One request to its origin server, and the answer back.

    client  --- request -->  origin      a greenlet of its own, if the request has a body
    client  <-- answer ----  origin      the calling greenlet

Neither is held as a whole anywhere.  Both flow at once, since an answer may come before the end
of its request: 100 (Continue), or a refusal of what is too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from enum import Enum
from http.client import SWITCHING_PROTOCOLS
from typing import Any, NamedTuple

import gevent
import h11

from gsocks.errors import (
    ClientError,
    ConnectFailed,
    ExitDoubtful,
    GsocksError,
    HalfClosedTimeout,
    IdleTimeout,
    PeerVanished,
    StreamError,
)
from gsocks.exits.absolute import REFUSALS
from gsocks.http.forward import informational, to_client, to_origin
from gsocks.http.head import Event, RequestTarget, wants_trailers
from gsocks.http.message import header
from gsocks.http.origin import Origin
from gsocks.http.persistence import authenticates_connection
from gsocks.inbound.http_client import Client
from gsocks.net.idle import IdleTimer
from gsocks.relay import Totals
from gsocks.rotation.connected import HttpOutbound
from gsocks.rotation.host_limits import BARRING
from gsocks.settings import Timeouts
from gsocks.stream import is_nonblocking

#: statuses of proxies that can't reach a server; servers that fail have them too
DOUBTFUL = frozenset({502, 503, 504})

#: seconds in which the far machine has to acknowledge a request over a connection that was kept
ACKNOWLEDGED_WITHIN = 2.0


class Unanswered(Enum):
    """Why the client has been sent no part of an answer, although the exchange is over."""

    #: the connection failed, or the request did
    FAILED = "failed"
    #: a connection that was kept had ended before
    STALE = "stale"
    #: the answer may mean that the exit takes no request in absolute form
    FORM = "form"
    #: the answer says that the exit has not served the request
    EXIT = "exit"
    #: the answer has a status after which another exit is tried
    STATUS = "status"
    #: the answer may be that of a proxy which can't reach the server, or the server's own
    DOUBT = "doubt"


class RetryRules(NamedTuple):
    """What an exchange may do with an answer; the request may be sent twice if it does."""

    #: whether the request may be sent again to the same exit
    repeatable: bool = False
    #: statuses of answers that are not passed on if another exit may be tried
    unwanted: Container[int] = ()
    #: whether another exit may be tried
    may_retry: Callable[[], bool] = bool
    #: whether another exit has given such an answer as :data:`DOUBTFUL` already
    doubted: bool = False


class Exchange:
    """Carries one request and its answer between ``client`` and ``outbound``.

    ``timeouts.idle``: seconds without a byte in either direction after which it is given up;
    ``half_closed``: the same once the client has ended its direction behind the request;
    ``connect``: an exit has half of it for the beginning of its answer, and after that one that has
    worked before is asked whether it answers at all.  ``via``: the proxy's own name, for Via.
    """

    def __init__(
        self,
        client: Client,
        request: h11.Request,
        target: RequestTarget,
        outbound: HttpOutbound,
        timeouts: Timeouts,
        rules: RetryRules,
        via: str | None = None,
    ) -> None:
        self._client = client
        self._via = via
        self._takes_trailers = wants_trailers(request)
        self._client_knows_1xx = request.http_version >= b"1.1"  # RFC 9110 section 15.2
        self._outbound = outbound
        self._http = http = outbound.http
        self._dest = target.dest
        self._authenticates = authenticates_connection(request)
        self._is_pinned = outbound.is_pinned
        own = self._authenticates or self._is_pinned
        self._persistent = http.key is not None and not own
        sent = to_origin(
            request,
            target,
            absolute=http.proxy is not None,
            authorization=http.authorization,
            persistent=self._persistent or own,
            via=via,
        )
        self._origin = Origin(outbound.stream, sent)
        self._timeouts = timeouts
        self._rules = rules
        self._expiry = IdleTimer(self)
        self._waits_for = "remote"
        self._answering = False
        self._answered = False
        self._over = False
        #: whether the far machine has acknowledged a request over a connection that was kept
        self._acknowledged = False
        #: asks whether the exit still answers
        self._checker: gevent.Greenlet[[], None] | None = None
        #: watches the client once its request has been read
        self._watcher: Any = None
        #: whether all of the request has been sent
        self._asked = False
        #: seconds for the first byte of an answer; None: no bound of its own
        self._first_byte_within = self._first_bound()
        #: the status of the server's answer; None before it
        self.status: int | None = None
        #: why the exit itself has not served the request, if it says so
        self.refusal: ConnectFailed | None = None
        self._why = Unanswered.FAILED
        self._error: GsocksError | None = None
        self._side = ""
        #: monotonic seconds
        self.last_byte = time.monotonic()

    def run(self) -> Totals:
        """Carry both to their ends, or as far as they come.

        The caller answers a client that has received nothing yet (:attr:`unanswered`).  Bytes are
        those of :attr:`carried`.
        """
        self._expiry.restart()
        uploader = None
        try:
            if self._client.heard_out:
                self._send(self._client.parts_at_hand())
                self._watch_client()
            else:
                uploader = gevent.spawn(self._pass_request)
            self._pass_answer()
        finally:
            self._over = True
            if uploader is not None:
                uploader.kill()
            if self._checker is not None:
                self._checker.kill(block=False)
            self._stop_watching()
            self._expiry.stop()
        if self._error is not None and self._answering:
            self._client.abort()
        return Totals(*self.carried, self._error, self._side)

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes to the origin server and from it until now, with the heads."""
        return self._origin.sent, self._origin.received

    # --- the two directions -----------------------------------------------------------------

    def _pass_request(self) -> None:
        """A request whose body has not arrived as a whole yet."""
        try:
            parts = self._client.parts_at_hand()
            while self._send(parts) and not self._asked:
                parts = self._client.read_body()
            if self._asked:
                self._watch_client()
        except ClientError as error:
            self._fail(error)
        except StreamError as error:
            self._fail(error, "client")

    def _watch_client(self) -> None:
        """Notice, behind the end of the request, when the client is gone."""
        self._watcher = self._client.watch(self._hear_client)

    def _hear_client(self) -> None:
        """The client has sent something, ended its direction or reset it.  Runs in the hub."""
        self._stop_watching()
        try:
            if self._client.has_hung_up():
                self._expiry.restart()
        except StreamError as error:
            self._fail(error, "client")

    def _stop_watching(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def _send(self, parts: Sequence[Event]) -> bool:
        """Whether the server takes more.

        One that doesn't may have answered already; so its failure is for the other direction to
        find, behind all that it has said.
        """
        heard_out = self._client.heard_out
        try:
            self._origin.send(parts)
        except StreamError:
            return False
        self._asked = heard_out
        self.last_byte = time.monotonic()
        return True

    def _pass_answer(self) -> None:
        try:
            while not self._answered:
                parts = self._origin.receive()
                self._first_byte_within = None
                self._waits_for = "client"
                self._answer(parts)
                self._waits_for = "remote"
                self.last_byte = time.monotonic()
        except StreamError as error:
            self._fail(error, self._waits_for)

    def _answer(self, parts: Sequence[Event]) -> None:
        """Give the client what the server said, in one write."""
        passed: list[Event] = []
        behind = b""
        for part in parts:
            if type(part) is h11.InformationalResponse:
                if part.status_code == SWITCHING_PROTOCOLS:
                    self._answering = self._answered = True
                    behind = self._origin.take_rest()
                if self._client_knows_1xx:
                    passed.append(informational(part))
            elif type(part) is h11.Response:
                self.status = part.status_code
                if self.status in BARRING:
                    self._outbound.refused(self.status, _retry_after(part))
                if self._is_withheld(part):
                    self._answered = True
                    return
                self._answering = True
                self._outbound.responded(part.status_code)
                # A client that is answered early may or may not send the rest of its request.
                closing = not self._client.heard_out
                passed.append(
                    to_client(
                        part,
                        self._outbound.exit,
                        closing=closing,
                        trailers=self._takes_trailers,
                        own_name=self._via,
                    )
                )
            else:
                self._answered = type(part) is h11.EndOfMessage
                passed.append(part)
        self._client.send(passed, behind)

    def _is_withheld(self, answer: h11.Response) -> bool:
        """Whether the client does not get this answer, because there may be a better one."""
        proxy, status, rules = self._http.proxy, answer.status_code, self._rules
        if proxy is not None:
            self.refusal = proxy.failure_in(answer, self._dest)
            if self.refusal is not None:
                self._why = Unanswered.EXIT
                return True
            if proxy.takes_absolute_form is None:
                if status not in REFUSALS:
                    proxy.note_absolute_form(True)
                elif rules.repeatable:
                    self._why = Unanswered.FORM
                    return True
        if status in rules.unwanted and rules.may_retry():
            self._why = Unanswered.STATUS
            return True
        if proxy is not None and status in DOUBTFUL and not rules.doubted and rules.may_retry():
            self._why = Unanswered.DOUBT
            return True
        return False

    # --- how it ends ------------------------------------------------------------------------

    @property
    def switched(self) -> bool:
        """Whether both sides went over to another protocol (101), which is for a relay."""
        return self._origin.switched and self._error is None

    @property
    def unanswered(self) -> Unanswered | None:
        """Why no part of an answer has been sent to the client; None if one has."""
        return None if self._answering else self._why

    @property
    def clean(self) -> bool:
        """Whether request and answer have both been carried to their ends."""
        return self._error is None and self._client.heard_out and self._answering

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request, of any client."""
        return self._persistent and not self._origin.authenticates and self._may_continue

    @property
    def pins(self) -> bool:
        """Whether it may carry another request of this client, which has authenticated itself on
        it or is about to do so."""
        return (self._authenticates or self._is_pinned) and self._may_continue

    @property
    def _may_continue(self) -> bool:
        """Whether this request is over in both directions, and its answer has ended where both
        sides know it."""
        stream = self._outbound.stream
        return (
            self.clean
            and self._asked
            and self._origin.reusable
            and is_nonblocking(stream)
            and not stream.has_buffered
        )

    @property
    def bound(self) -> float:
        """How long both may be silent now, in seconds."""
        if self._first_byte_within is not None:
            return self._first_byte_within
        return self._timeouts.half_closed if self._client.ended else self._timeouts.idle

    def _first_bound(self) -> float | None:
        """How long the first byte of the answer may take; see :meth:`on_idle`."""
        return ACKNOWLEDGED_WITHIN if self._http.reused else self._exit_bound()

    def _exit_bound(self) -> float | None:
        """How long it may take until the exit itself is doubted."""
        return None if self._http.proxy is None else self._timeouts.connect / 2

    def on_idle(self) -> None:
        """The silence has lasted for :attr:`bound`.  Runs in the hub."""
        first, self._first_byte_within = self._first_byte_within, None
        if first is not None:
            self._doubt(first)
            return
        kind = HalfClosedTimeout if self._client.ended else IdleTimeout
        self._fail(kind(f"silent for {self.bound:g} s"))
        if self._answering or self._waits_for == "client":
            self._client.abort()

    def _doubt(self, seconds: float) -> None:
        """The first byte has not come for so long; the server may be slow."""
        if self._http.reused and not self._acknowledged:
            # If its kernel has not even acknowledged the request, the path is dead without a word:
            # a middlebox has forgotten it, or the machine is gone.
            self._acknowledged = not self._http.is_unacknowledged(self.last_byte)
            if self._acknowledged:
                self._first_byte_within = self._exit_bound()
            else:
                self._fail(PeerVanished("a connection that was kept is dead"), "remote")
        elif not self._outbound.is_proven and self._rules.may_retry():
            self._leave(ExitDoubtful(f"{self._outbound.exit}: no answer in {seconds:g} s"))
        else:
            self._checker = gevent.spawn(self._check_exit)
        if not self._over:
            self._expiry.restart()

    def _check_exit(self) -> None:
        """Tell a slow server from an exit that has fallen silent."""
        error = self._outbound.fault()
        if error is not None and not self._origin.received and not self._over:
            self._leave(ExitDoubtful(f"fell silent: {error}"))

    def _leave(self, refusal: ConnectFailed) -> None:
        """Give the exit up, because of ``refusal``, for another one."""
        self.refusal = refusal
        self._why = Unanswered.EXIT
        self._fail(refusal, "remote")

    def _fail(self, error: GsocksError, side: str = "") -> None:
        """Give up; the first reason counts.  Wakes a greenlet that waits for the server."""
        if self._over:
            return
        if self._error is None:
            self._error = error
            self._side = side
            was_kept = self._http.reused and not self._origin.received and side == "remote"
            if was_kept and self._rules.repeatable:
                self._why = Unanswered.STALE
        self._stop_watching()
        self._outbound.stream.abort()


def _retry_after(answer: h11.Response) -> str | None:
    value = header(answer, b"retry-after")
    return None if value is None else value.decode("latin-1")
