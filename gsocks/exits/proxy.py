"""The base of exits through a proxy: connect to the proxy, then have it connect.

The proxy is reached through another exit, which is ``direct`` unless a chain is configured.  So a
handshake runs over any Stream and needs no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from gsocks.address import Address
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    ConnectFailed,
    ExitDoubtful,
    ExitFailed,
    ExitHungUp,
    GsocksError,
    LimitReached,
    LoopDetected,
    OutOfResources,
    StreamError,
    TlsFailed,
)
from gsocks.exits.base import Connected, Exit
from gsocks.exits.client_tls import ClientTls
from gsocks.exits.credentials import Credentials, Filled
from gsocks.exits.direct import DirectExit
from gsocks.exits.forward import identity
from gsocks.exits.proxy_attempt import Progress, ProxyAttempt
from gsocks.request import CONNECT, Request
from gsocks.stream import Stream

_LATE = object()

T = TypeVar("T")


class _Progress:
    """See :class:`gsocks.exits.proxy_attempt.Progress`."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False


class ProxyExit:
    """The common part of all proxy exits; a subclass has the handshake of its protocol.

    ``through``: the exit by which the proxy is reached, which its owner starts and closes.
    ``credentials``: for the proxy; None for a proxy without.  ``tls``: what the proxy speaks its
    protocol in; None: TCP alone.  ``timeout``: seconds from the
    connection to the proxy until the destination is connected; ``reach_timeout``: seconds for each
    part of the handshake that is the proxy's alone (``through`` has its own bound).
    """

    __slots__ = (
        "_credentials",
        "_proxy",
        "_reach_timeout",
        "_through",
        "_timeout",
        "_tls",
        "label",
    )

    def __init__(
        self,
        proxy: Address,
        through: Exit,
        *,
        label: str,
        credentials: Credentials | None = None,
        tls: ClientTls | None = None,
        timeout: float = 10.0,
        reach_timeout: float = 3.0,
    ) -> None:
        self._proxy = proxy
        self._credentials = credentials
        self._tls = tls
        self._through = through
        self._timeout = timeout
        self._reach_timeout = reach_timeout
        self.label = label

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        return self._within(self._connect, request)

    def _within(self, step: Callable[[Request, Progress], T], request: Request) -> T:
        """What ``step`` returns for ``request``, which has the time of a connection."""
        progress = _Progress()
        made = call_with_timeout(self._timeout, step, request, progress, on_timeout=None)
        if made is None:
            raise self.late(progress)
        return made

    def begin(
        self, request: Request, done: Callable[[Connected | GsocksError], None]
    ) -> ProxyAttempt | None:
        """See :meth:`gsocks.exits.base.Begins.begin`."""
        through = self._through
        if self._tls is not None or not isinstance(through, DirectExit):
            return None
        attempt = self._attempt(request, done)
        if attempt is None:
            return None
        try:
            if not through.begin_stream(attempt, self._proxy, request.user):
                return None
        except GsocksError as error:
            raise self.unreached(error) from None
        attempt.begun_all()
        return attempt

    def _attempt(
        self,
        request: Request,  # noqa: ARG002
        done: Callable[[Connected | GsocksError], None],  # noqa: ARG002
    ) -> ProxyAttempt | None:
        """The messages of the handshake for ``request``; None: the hub can't carry it."""
        return None

    def identity(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Identifies.identity`: the credentials, and what makes a
        difference on the way to the proxy."""
        login: Filled | tuple[()] = ()
        if self._credentials is not None:
            if self._credentials.differ_each_time(request):
                return None
            login = self._credentials.filled(request)
        nearer = identity(self._through, request)
        return None if nearer is None else (login, nearer)

    def close(self) -> None:
        """Does nothing: no connection is kept idle."""

    def _greet(self, stream: Stream, login: Filled | None) -> Stream:  # noqa: ARG002
        """The part of the handshake before the request: its failure is never the destination's.

        ``stream`` is the connection to the proxy, which the caller aborts; ``login``: the
        credentials for this request.  Returns the stream for the request.  Raises ConnectFailed
        or StreamError.
        """
        return self._secured(stream)

    def _secured(self, stream: Stream) -> Stream:
        """``stream`` in TLS, if the proxy speaks that.  Raises as :meth:`_greet`."""
        if self._tls is None:
            return stream
        secured = self._tls.secure(stream)
        self._in_time(secured.handshake)
        return secured

    def _in_time(self, step: Callable[..., object], *args: object) -> None:
        """Do a step of :meth:`_greet`.  Raises what it raises, and ExitFailed if it takes long."""
        if call_with_timeout(self._reach_timeout, step, *args, on_timeout=_LATE) is _LATE:
            raise self._late_greeting()

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        """Have the proxy connect to ``dest``.  Raises ConnectFailed or StreamError."""
        raise NotImplementedError

    def _connect(self, request: Request, progress: Progress) -> Connected:
        login = self._login(request)
        return self.converse(self._reach(request), request.dest, login, progress)

    def converse(
        self, stream: Stream, dest: Address, login: Filled | None, progress: Progress
    ) -> Connected:
        """See :class:`gsocks.exits.proxy_attempt.AskingExit`, as for the methods below."""
        try:
            greeted = self._greet(stream, login)
            progress.asked = True
            return self._ask(greeted, dest, login)
        except (StreamError, ConnectFailed) as error:
            stream.abort()
            raise self.broken(error, progress) from None
        except BaseException:  # timed out or killed
            stream.abort()
            raise

    def broken(self, error: GsocksError, progress: Progress) -> GsocksError:
        if isinstance(error, ConnectFailed):
            return error.of(self.label)
        # Many proxies close the connection when they can't reach a destination.  An alert of
        # TLS 1.3 may come as late: the proxy wants a certificate.
        late = progress.asked and not isinstance(error, TlsFailed)
        return (ExitHungUp if late else ExitFailed)(f"{self.label}: {error}")

    def late(self, progress: Progress) -> GsocksError:
        kind = ExitDoubtful if progress.asked else ExitFailed
        return kind(f"{self.label}: no answer within {self._timeout:g} s")

    def late_greeting(self) -> GsocksError:
        return self._late_greeting().of(self.label)

    def _late_greeting(self) -> GsocksError:
        return ExitFailed(f"no handshake within {self._reach_timeout:g} s")

    def _login(self, request: Request) -> Filled | None:
        """The credentials for a request."""
        return None if self._credentials is None else self._credentials.filled(request)

    def _reach(self, request: Request) -> Stream:
        # with the same selector, in case the other exit is a proxy too
        nearer = Request(CONNECT, self._proxy, request.user, selector=request.selector)
        through = self._through
        try:
            if isinstance(through, DirectExit):  # as nearly always
                return through.stream_to(nearer)
            return through.connect(nearer).stream
        except GsocksError as error:
            raise self.unreached(error) from None

    def unreached(self, error: GsocksError) -> GsocksError:
        if isinstance(error, LimitReached | OutOfResources):  # mostly limits of this machine
            return error
        if isinstance(error, LoopDetected):
            return error.of(self.label)
        # every other failure is not the destination's
        return ExitFailed(f"{self.label}: {error}")
