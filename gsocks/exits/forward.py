"""HTTP requests through exits: which connection carries one, and in which form.

An HTTP proxy gets a request in absolute form (RFC 9112 section 3.2.2).  Through every other exit a
connection leads to the origin server, which gets the request in origin form.  Only a connection
to a proxy that is known to go by the URL of each request carries requests to a second server.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import h11

from gsocks.address import Address
from gsocks.errors import ConnectFailed, StreamError
from gsocks.exits.base import Exit
from gsocks.net.acknowledged import is_unanswered
from gsocks.request import Request
from gsocks.stream import SocketStream, Stream, is_nonblocking, scratch_of_this_hub


class HttpConnection:
    """A connection that carries HTTP requests, one at a time.

    ``key``: requests of the same key may use the same connection of an exit; None: it is for one
    request only.  ``proxy``: the HTTP proxy that takes requests in absolute form; None: the
    connection leads to the origin server.  ``authorization``: the Proxy-Authorization for that
    proxy.
    """

    __slots__ = ("authorization", "bound", "kept_at", "key", "proxy", "request", "reused", "stream")

    def __init__(
        self,
        stream: Stream,
        bound: Address,
        request: Request,
        *,
        key: Hashable = None,
        proxy: TakesAbsoluteForm | None = None,
        authorization: str | None = None,
    ) -> None:
        self.stream = stream
        #: the address from which the destination is reached
        self.bound = bound
        #: what it was opened for, or taken for later
        self.request = request
        self.key = key
        self.proxy = proxy
        self.authorization = authorization
        #: whether it has carried a request before
        self.reused = False
        #: since when it is idle; monotonic seconds
        self.kept_at = 0.0

    def __repr__(self) -> str:
        use = "reused" if self.reused else "new"
        return f"<HttpConnection: {use}, {'not ' if self.proxy is None else ''}in absolute form>"

    def renew_key(self, exit_: Exit) -> None:
        """Take what has been learned of the proxy since it was opened."""
        if self.proxy is not None and self.key is not None and self.proxy.goes_by_each_url:
            self.key = key_for(exit_, self.request)

    @property
    def shows_connection(self) -> bool:
        """Whether having it shows that the exit has just connected to the destination."""
        return not self.reused and self.proxy is None

    def is_unacknowledged(self, since: float) -> bool:
        """Whether not even the kernel of the far machine has heard what was sent; ``since``: when,
        in monotonic seconds."""
        stream = self.stream
        return is_nonblocking(stream) and is_unanswered(stream.fileno(), since)

    @property
    def is_dead(self) -> bool:
        """Whether an idle one can't carry a request: it has ended, or something was sent over it
        that was not requested.  Never blocks."""
        stream = self.stream
        if isinstance(stream, SocketStream):
            return not stream.is_silent
        if not is_nonblocking(stream):
            return True
        try:
            return stream.read_nowait(scratch_of_this_hub()) is not None
        except StreamError:
            return True


class TakesAbsoluteForm(Protocol):
    """An HTTP proxy, which may or may not take requests in absolute form."""

    @property
    def takes_absolute_form(self) -> bool | None:
        """None: not known yet."""

    @property
    def goes_by_each_url(self) -> bool | None:
        """Whether one connection carries requests to any server; None: not known yet."""

    def note_each_url(self, goes: bool) -> None:
        """It goes by the URL of each request, or is not to be taken for a proxy that does."""

    def note_absolute_form(self, taken: bool) -> None:
        """It has taken a request in absolute form, or refused one."""

    def failure_in(self, answer: h11.Response, dest: Address) -> ConnectFailed | None:
        """Why the proxy itself did not serve a request for ``dest``, if ``answer`` says that."""


class Forwards(Protocol):
    """An exit with connections of its own for HTTP requests."""

    def forward(
        self, request: Request, *, tunnel: bool = False, once: bool = False, alone: bool = False
    ) -> HttpConnection:
        """A new connection for an HTTP request to ``request.dest``.

        ``tunnel``: one to the origin server.  ``once``: for a request that may not be sent again,
        so that it begins in the form that can do no harm.  ``alone``: for a client that
        authenticates its connection, so that it leads to the origin server if that is possible: not
        every proxy keeps its own connection for such a client.  Raises as
        :meth:`gsocks.exits.base.Exit.connect` does.
        """

    def forward_key(self, request: Request) -> Hashable:
        """The ``key`` of the connections that may carry ``request``; None: of none."""


class Identifies(Protocol):
    """An exit that tells what of a request, beside its destination, makes a difference to it."""

    def identity(self, request: Request) -> Hashable:
        """Equal for requests that it treats alike; None: it treats no two of them alike."""


def identity(exit_: Exit, request: Request) -> Hashable:
    """What of ``request``, beside its destination, makes a difference to ``exit_``, or None."""
    own: Callable[[Request], Hashable] | None = getattr(exit_, "identity", None)
    return (request.user, request.selector) if own is None else own(request)


def key_for(exit_: Exit, request: Request) -> Hashable:
    """The ``key`` of the connections of ``exit_`` that may carry ``request``; None: of none."""
    own: Callable[[Request], Hashable] | None = getattr(exit_, "forward_key", None)
    return tunnel_key(exit_, request) if own is None else own(request)


def tunnel_key(exit_: Exit, request: Request) -> Hashable:
    """The ``key`` of connections to the origin server; None: they are for one request only."""
    known = identity(exit_, request)
    return None if known is None else (request.dest, known)


def open_connection(
    exit_: Exit,
    request: Request,
    *,
    tunnel: bool = False,
    once: bool = False,
    alone: bool = False,
) -> HttpConnection:
    """A new connection of ``exit_`` for an HTTP request; as :meth:`Forwards.forward`."""
    # isinstance() of a protocol takes as long as thirty calls
    forward: Callable[..., HttpConnection] | None = getattr(exit_, "forward", None)
    if forward is not None:
        return forward(request, tunnel=tunnel, once=once, alone=alone)
    connected = exit_.connect(request)
    return HttpConnection(*connected, request, key=tunnel_key(exit_, request))
