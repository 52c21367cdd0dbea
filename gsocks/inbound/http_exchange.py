"""One request to its origin server, and the answer back.

    client  --- request -->  origin      a greenlet of its own
    client  <-- answer ----  origin      the calling greenlet

Neither is held as a whole anywhere.  Both flow at once, since an answer may come before the end
of its request: 100 (Continue), or a refusal of what is too long.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from http import HTTPStatus

import gevent
import h11

from gsocks.errors import (
    ClientError,
    GsocksError,
    HalfClosedTimeout,
    IdleTimeout,
    StreamError,
)
from gsocks.expiry import Expiry
from gsocks.http.client import Client, Event
from gsocks.http.forward import informational, to_client, to_origin
from gsocks.http.head import Target
from gsocks.http.origin import Origin
from gsocks.relay import Totals
from gsocks.stream import Stream

# Reads from one side before others have their turn, as in gsocks.relay.
_TURN = 16


class Exchange:
    """Carries one request and its answer between ``client`` and ``stream``.

    ``via``: the label of the exit that serves it.  ``unwanted``: statuses of answers that are not
    passed on, since another exit may have a better one.  ``idle``: seconds without a byte in either
    direction after which it is given up; ``half_closed``: the same once the client has ended its
    direction behind the request.
    """

    def __init__(
        self,
        client: Client,
        request: h11.Request,
        target: Target,
        stream: Stream,
        via: str,
        *,
        idle: float,
        half_closed: float,
        unwanted: Container[int] = (),
    ) -> None:
        self._client = client
        self._client_knows_1xx = request.http_version >= b"1.1"  # RFC 9110 section 15.2
        self._stream = stream
        self._origin = Origin(stream, to_origin(request, target))
        self._via = via
        self._unwanted = unwanted
        self._idle = idle
        self._half_closed = half_closed
        self._expiry = Expiry(self)
        self._waits_for = "remote"
        self._answering = False
        self._answered = False
        self._over = False
        #: the status of the server's answer; None before it
        self.status: int | None = None
        self._error: GsocksError | None = None
        self._side = ""
        #: monotonic seconds
        self.last_byte = time.monotonic()

    def run(self) -> Totals:
        """Carry both to their ends, or as far as they come.

        A client that has been told nothing yet (:attr:`unanswered`) is the caller's to answer.
        Bytes are counted at the origin's side, with the heads.
        """
        self._expiry.restart()
        uploader = gevent.spawn(self._pass_request)
        try:
            self._pass_answer()
        finally:
            self._over = True
            uploader.kill()
            self._expiry.stop()
        if self._error is not None and self._answering:
            self._client.abort()
        return Totals(self._origin.sent, self._origin.received, self._error, self._side)

    # --- the two directions -----------------------------------------------------------------

    def _pass_request(self) -> None:
        """The request; and behind its end, whether the client is still there."""
        turns = 0
        try:
            parts = self._client.parts_at_hand()
            while self._send(parts):
                if self._client.heard_out:
                    self._client.wait()
                    if self._client.ended:
                        self._expiry.restart()
                    return
                parts = self._client.read_body()
                turns += 1
                if turns % _TURN == 0:
                    gevent.sleep(0)
        except ClientError as error:
            self._fail(error)
        except StreamError as error:
            self._fail(error, "client")

    def _send(self, parts: Sequence[Event]) -> bool:
        """Whether the server takes more.

        One that doesn't may have answered already; so its failure is for the other direction to
        find, behind all that it has said.
        """
        try:
            self._origin.send(parts)
        except StreamError:
            return False
        self.last_byte = time.monotonic()
        return True

    def _pass_answer(self) -> None:
        turns = 0
        try:
            while not self._answered:
                parts = self._origin.receive()
                self._waits_for = "client"
                self._answer(parts)
                self._waits_for = "remote"
                self.last_byte = time.monotonic()
                turns += 1
                if turns % _TURN == 0:
                    gevent.sleep(0)
        except StreamError as error:
            self._fail(error, self._waits_for)

    def _answer(self, parts: Sequence[Event]) -> None:
        """Give the client what the server said, in one write."""
        passed: list[Event] = []
        behind = b""
        for part in parts:
            if isinstance(part, h11.InformationalResponse):
                if part.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                    self._answering = self._answered = True
                    behind = self._origin.take_rest()
                if self._client_knows_1xx:
                    passed.append(informational(part))
            elif isinstance(part, h11.Response):
                self.status = part.status_code
                if self.status in self._unwanted:
                    self._answered = True
                    return
                self._answering = True
                # Whoever is answered early may or may not send the rest of its request.
                closing = not self._client.heard_out
                passed.append(to_client(part, self._via, closing=closing))
            else:
                self._answered = isinstance(part, h11.EndOfMessage)
                passed.append(part)
        self._client.send(passed, behind)

    # --- how it ends ------------------------------------------------------------------------

    @property
    def switched(self) -> bool:
        """Whether both sides went over to another protocol (101), which is for a relay."""
        return self._origin.switched and self._error is None

    @property
    def unanswered(self) -> bool:
        """Whether the client has been told nothing of the answer, or there is none."""
        return not self._answering

    @property
    def clean(self) -> bool:
        """Whether the server was asked all and has answered all."""
        return self._error is None and self._client.heard_out and self._answering

    @property
    def bound(self) -> float:
        """How long both may be silent now, in seconds."""
        return self._half_closed if self._client.ended else self._idle

    def expire(self) -> None:
        """The silence has lasted for :attr:`bound`.  Runs in the hub."""
        kind = HalfClosedTimeout if self._client.ended else IdleTimeout
        self._fail(kind(f"silent for {self.bound:g} s"))
        if self._answering or self._waits_for == "client":
            self._client.abort()

    def _fail(self, error: GsocksError, side: str = "") -> None:
        """Give up; the first reason counts.  Whoever waits for the server is woken by it."""
        if self._over:
            return
        if self._error is None:
            self._error = error
            self._side = side
        self._stream.abort()
