"""One request of a client: connected by an exit, answered, relayed, and reported at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, TypeVar

from gsocks.address import Address
from gsocks.errors import ClientError, ConnectFailed, GsocksError, StreamError, Withdrawn
from gsocks.handshake import Answer
from gsocks.inbound.bind import BindWaiter
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.http_pin import Pin
from gsocks.observe import Record, no_trace
from gsocks.relay import Relay, Totals
from gsocks.request import BIND, UDP_ASSOCIATE, Request
from gsocks.rotation.connected import HttpOutbound, Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.sock import AnySocket
from gsocks.stream import Stream

_Made = TypeVar("_Made", bound=Outbound)


class Endable(Protocol):
    """A client connection that ends with its relay."""

    def end(self) -> None:
        """Everything is closed."""


class ActiveRequest:
    """A request from its arrival to its line in the access log.

    It owns the record, the user's share of the quota, and the relay.  :meth:`finish` ends all
    three and is called exactly once: by the caller, or by :meth:`connect` and :meth:`carry`
    where they fail, or by the relay.
    """

    __slots__ = ("_context", "_ending", "_outbound", "_quota_user", "_relay", "record")

    _outbound: Outbound
    _relay: Relay

    def __init__(self, context: ListenerContext, record: Record) -> None:
        self._context = context
        self.record = record
        #: the user whose quota counts this request
        self._quota_user: str | None = None
        # the connection, not its bound method: one object less for each connection
        self._ending: Endable | None = None

    def __repr__(self) -> str:
        return f"<ActiveRequest {self.record!r}>"

    def carry(
        self,
        request: Request,
        answer: Answer,
        client: Stream,
        ending: Endable | None = None,
        sock: AnySocket | None = None,
        after: FirstAttempt | None = None,
    ) -> bool:
        """Connect ``request``, answer it, and relay until both directions have ended.

        ``request`` has the client and the trace of :attr:`record`.

        ``sock`` is the client's own connection where it may ask for a BIND, which it ends by
        closing that.  ``after``: what the hub has made of the first attempt to connect.

        Returns True once the relay runs by itself, which ends ``ending`` after everything is
        closed; False if the request failed, after the client was answered.
        """
        # The error itself is not returned: a caller that kept it would be in its traceback, which
        # is a cycle that only the garbage collector can free.
        try:
            waiter = None
            if request.command is BIND and sock is not None:
                waiter = BindWaiter(sock, answer)
            outbound = self.connect(request, answer.protocol, waiter, after)
        except (ConnectFailed, ClientError) as error:
            answer.failed(error)
            return False
        if not self._answered(outbound, answer.succeeded, outbound.bound, outbound.exit):
            return False
        of_datagrams = request.command is UDP_ASSOCIATE
        self.relay(client, outbound, ending, of_datagrams=of_datagrams)
        return True

    def look_up(self, request: Request, answer: Answer) -> None:
        """Have an exit look up what ``request`` asks for, and answer with that."""
        request = self._with_details(request)
        self._note_request(request, answer.protocol, "", ())
        try:
            self._acquire_quota(request)
            found = self._context.exit_group.look_up(request, self._note_exit)
            answer.succeeded(found, self.record.exit)
        except (ConnectFailed, ClientError) as error:
            self.finish(error.word, str(error))
            answer.failed(error)
        except StreamError as error:
            self.finish(f"client_{error.word}", str(error))
        except BaseException:
            self.finish("stopped")
            raise
        else:
            self.finish("ok")

    def _answered(self, outbound: Outbound, answer: Callable[..., None], *args: object) -> bool:
        """Tell the client that it is connected; False if it has disconnected, which ends it."""
        try:
            with outbound:
                answer(*args)
        except StreamError as error:
            self.finish(f"client_{error.word}", str(error))
            return False
        except BaseException:
            self.finish("stopped")
            raise
        return True

    def connect(
        self,
        request: Request,
        protocol: str,
        waiter: BindWaiter | None = None,
        after: FirstAttempt | None = None,
    ) -> Outbound:
        """An exit's connection for ``request``, which came by ``protocol``.

        ``after``: as for :meth:`gsocks.rotation.group.ExitGroup.connect`.  Raises ConnectFailed,
        ClientError; the request is finished then.
        """
        request = self._with_details(request)
        self._note_request(request, protocol, "", ())
        return self._limited(request, partial(self._connect, request, waiter, after))

    def forward(
        self,
        request: Request,
        protocol: str,
        *,
        method: str,
        failed: Collection[str],
        repeatable: bool,
        tunnel: bool,
        alone: bool,
        pin: Pin,
    ) -> HttpOutbound:
        """An exit's connection for a plain HTTP request.

        ``method``: that of HTTP.  ``failed``: names of exits that are left out.  ``repeatable``,
        ``tunnel``, ``alone``: as for :meth:`gsocks.rotation.group.ExitGroup.forward`.  ``pin``:
        that of the client's connection.  Raises as :meth:`connect` does.
        """
        request = self._with_details(request)
        self._note_request(request, protocol, method, failed)
        forward = self._context.exit_group.forward
        connect = partial(
            forward,
            request,
            self._note_exit,
            failed,
            repeatable=repeatable,
            tunnel=tunnel,
            alone=alone,
        )
        return self._limited(request, partial(self._pinned_or, connect, request, pin))

    def _pinned_or(
        self, connect: Callable[[], HttpOutbound], request: Request, pin: Pin
    ) -> HttpOutbound:
        pinned = pin.take(request, self._context.exit_group)
        if pinned is None:
            return connect()
        self._note_exit(pinned.exit)
        self.record.trace("over the connection on which the client has authenticated itself")
        return pinned

    def _note_request(
        self, request: Request, protocol: str, method: str, failed: Collection[str]
    ) -> None:
        """Put ``request`` on record."""
        record = self.record
        record.user = request.user
        record.session = request.selector.session
        record.command = request.command.word
        if request.command is not UDP_ASSOCIATE:
            record.asked = request.dest
        trace = record.trace
        if trace is not no_trace:
            wanted = str(request.selector) or "any"
            trace(
                "%s: %s %s %s, user %s, exit: %s",
                "retrying by another exit" if failed else "requested",
                protocol,
                method or record.command,
                record.dest or "-",
                request.user or "-",
                wanted,
            )

    def _with_details(self, request: Request) -> Request:
        """The request that takes its details to where they come about."""
        details = self.record.details
        if details is None or details is request.details:
            return request
        # half as long as _replace; details are the last field
        return Request(*request[:-1], details)

    def _note_failure(self, error: GsocksError) -> None:
        details = self.record.details
        if details is not None and error.status:
            details.status = error.status

    def _limited(self, request: Request, connect: Callable[[], _Made]) -> _Made:
        """What ``connect`` makes, within the user's quota; finishes the request if it fails."""
        try:
            self._acquire_quota(request)
            outbound = connect()
            with outbound:
                outbound.stream = self._context.quota.limited(outbound.stream, request)
            self.record.trace("connected by exit %s, bound to %s", outbound.name, outbound.bound)
            if self.record.details is not None:
                outbound.describe(self.record.details)
            return outbound
        except (ConnectFailed, ClientError) as error:
            self._note_failure(error)
            self.finish(error.word, self._detail(error))
            raise
        except BaseException:
            self.finish("stopped")
            raise

    def _detail(self, error: GsocksError) -> str:
        """Why it failed, with the exit if that is another one than the last, which is told of."""
        if error.at_exit in ("", self.record.exit):
            return str(error)
        return f"at exit {error.at_exit}: {error}"

    def _acquire_quota(self, request: Request) -> None:
        """Count it for its user; the second call does nothing.  Raises LimitReached."""
        if request.user is not None and self._quota_user is None:
            self._context.quota.acquire(request.user)
            self._quota_user = request.user

    def _note_exit(self, label: str) -> None:
        self.record.exit = label

    def _connect(
        self, request: Request, waiter: BindWaiter | None, after: FirstAttempt | None
    ) -> Outbound:
        record, exit_group = self.record, self._context.exit_group
        tried = self._note_exit
        if request.command is UDP_ASSOCIATE:
            return exit_group.associate(request, tried, partial(_note_first_dest, record))
        if waiter is not None:
            seconds = self._context.timeouts.bind
            return waiter.wait(partial(exit_group.bind, request, tried, seconds))
        return exit_group.connect(request, tried, after=after)

    def relay(
        self,
        client: Stream,
        outbound: Outbound,
        ending: Endable | None,
        *,
        of_datagrams: bool = False,
    ) -> None:
        """Relay between ``client`` and ``outbound``; then finish, and end ``ending``."""
        self._new_relay(client, outbound, ending).run(of_datagrams=of_datagrams)

    def _new_relay(self, client: Stream, outbound: Outbound, ending: Endable | None) -> Relay:
        timeouts = self._context.timeouts
        self._outbound = outbound
        self._ending = ending
        self._relay = relay = Relay(
            client,
            outbound.stream,
            idle=timeouts.idle,
            half_closed=timeouts.half_closed,
            ended=self,  # not a bound method: there is one for each connection, and this is smaller
            answered=outbound.answered,
        )
        outbound.carried = relay.carried
        self._context.relays.add(relay)
        return relay

    def __call__(self, totals: Totals) -> None:
        """The relay is closed."""
        up, down, error, side = totals
        if error is None:
            self._outbound.release(up, down)
        elif isinstance(error, Withdrawn):
            if error.cause is not None:
                self._outbound.failed(error.cause)
            # bytes that left with a request which was then refused went nowhere
            self._outbound.release(0, down)
        else:
            self._outbound.release(up, down, side == "remote")
        self._context.relays.discard(self._relay)
        self.record.up += up
        self.record.down += down
        if error is None:
            self.finish("ok")
        else:
            self.finish(error.word if isinstance(error, Withdrawn) else totals.word, str(error))
        if self._ending is not None:
            self._ending.end()
        self._context.note_closed()

    def refused(self, error: GsocksError) -> None:
        """Report that the client's connection led to no request, because of ``error``."""
        self.record.is_routine = error.is_routine
        self.finish(error.word, str(error))

    def finish(self, outcome: str, detail: str = "") -> None:
        """Report the end of the request; ``outcome``: the word for the access log."""
        user, self._quota_user = self._quota_user, None
        if user is not None:
            self._context.quota.release(user)
        record = self.record
        record.outcome = outcome
        record.detail = detail
        if record.trace is not no_trace:
            record.trace(
                "ended: %s, %d bytes up, %d bytes down, %.3f s",
                f"{outcome} ({detail})" if detail else outcome,
                record.up,
                record.down,
                time.monotonic() - record.start,
            )
        self._context.report(record)


def _note_first_dest(record: Record, dest: Address) -> None:
    """Of an association, whose client may send to any number of destinations."""
    if not record.dest:
        record.dest = str(dest)
