"""HTTP proxies that get plain requests in absolute form (RFC 9112 section 3.2.2).

squid's default configuration refuses CONNECT to port 80, as large providers do: there absolute form
is the only one.  Other proxies serve CONNECT alone.  Which form a proxy takes shows by its answers:
one that may be a refusal is compared with what comes through a CONNECT by the same proxy.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

import h11

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    ConnectFailed,
    ExitDoubtful,
    ExitFailed,
    Fault,
    Forbidden,
    StreamError,
)
from gsocks.exits.forward import HttpConnection, tunnel_key
from gsocks.exits.http import HttpExit, basic
from gsocks.exits.http_refusal import own_failure
from gsocks.request import Request

#: statuses by which proxies refuse absolute form; origin servers have them too
REFUSALS = frozenset({400, 403, 404, 405, 501})
#: seconds for which a proxy that has refused absolute form gets CONNECT
REFUSED_FOR = 3600.0


class HttpForwardExit(HttpExit):
    """An HTTP proxy that gets plain requests in absolute form, as long as it takes them."""

    __slots__ = ("_refused_until", "_taken")

    # the constructor of HttpExit need not know of these
    def __init__(self, *args: object, **keywords: object) -> None:
        super().__init__(*args, **keywords)  # type: ignore[arg-type]
        self._taken = False
        self._refused_until = 0.0

    @property
    def takes_absolute_form(self) -> bool | None:
        """None: not known yet."""
        if self._refused_until > time.monotonic():
            return False
        return self._taken or None

    def note_absolute_form(self, taken: bool) -> None:
        """It has taken a request in absolute form, or refused one."""
        self._taken = taken
        self._refused_until = 0.0 if taken else time.monotonic() + REFUSED_FOR

    def forward_key(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Forwards.forward_key`."""
        if self.takes_absolute_form is False:
            return tunnel_key(self, request)
        return self._absolute_key(request)

    def _absolute_key(self, request: Request) -> Hashable:
        """One server's: some proxies, pproxy and proxy.py among them, remain with the first one and
        send it all that follows, whatever its URL is."""
        known = self.identity(request)
        return None if known is None else ("absolute", request.dest, known)

    def forward(
        self, request: Request, *, tunnel: bool = False, once: bool = False, alone: bool = False
    ) -> HttpConnection:
        """See :meth:`gsocks.exits.forward.Forwards.forward`."""
        known = self.takes_absolute_form
        if tunnel or known is False or alone or (once and known is None):
            try:
                connected = self.connect(request)
            except (Forbidden, ExitFailed):
                if tunnel or known is False:
                    raise
            else:
                return HttpConnection(*connected, request, key=tunnel_key(self, request))
        login = self._login(request)
        stream = self._reach(request)
        try:
            secured = self._greet(stream, login)
        except (StreamError, ConnectFailed) as error:
            stream.abort()
            raise ExitFailed(f"{self.label}: {error}") from None
        except BaseException:  # timed out or killed
            stream.abort()
            raise
        return HttpConnection(
            secured,
            UNSPECIFIED,
            request,
            key=self._absolute_key(request),
            proxy=self,
            authorization=None if login is None else basic(login),
        )

    def failure_in(self, answer: h11.Response, dest: Address) -> ConnectFailed | None:
        """Why the proxy itself did not serve a request for ``dest``, if ``answer`` says that.

        A doubt at the most: a hostile server may talk as a proxy does, 407 included, and proxies
        pass that on.
        """
        had_credentials = self._credentials is not None
        failure = own_failure(answer, dest, had_credentials=had_credentials)
        if failure is None:
            return None
        if failure.fault is Fault.EXIT:
            status = failure.status
            failure = ExitDoubtful(str(failure))
            failure.status = status
        return failure.of(self.label)
