"""HTTP proxies that get plain requests in absolute form (RFC 9112 section 3.2.2).

squid's default configuration refuses CONNECT to port 80, as large providers do: there absolute form
is the only one.  Other proxies serve CONNECT alone.  Which form a proxy takes shows by its answers:
one that may be a refusal is compared with what comes through a CONNECT by the same proxy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable
from http.client import BAD_GATEWAY

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
from gsocks.exits.base import Exit
from gsocks.exits.client_tls import ClientTls
from gsocks.exits.credentials import Credentials, Filled
from gsocks.exits.forward import HttpConnection, tunnel_key
from gsocks.exits.http import HttpExit, basic
from gsocks.exits.http_refusal import own_failure
from gsocks.http.message import header
from gsocks.request import Request

#: statuses by which proxies refuse absolute form; origin servers have them too
REFUSALS = frozenset({400, 403, 404, 405, 501})
#: proxies that go by the URL of each request, as RFC 9112 section 3.2.2 has it: how the fields that
#: name them in their own answers begin
_BY_EACH_URL = ((b"server", b"squid"), (b"x-squid-error", b"ERR_"))
#: another one; not Tomcat, whose name begins so as well
_APACHE = re.compile(rb"Apache(?:[/ ].*)?")
#: RFC 6761 section 6.4
_NOWHERE = ".invalid"
#: seconds for which a proxy that has refused absolute form gets CONNECT
REFUSED_FOR = 3600.0


class HttpForwardExit(HttpExit):
    """An HTTP proxy that gets plain requests in absolute form, as long as it takes them."""

    __slots__ = ("_goes_by_each_url", "_refused_until", "_taken")

    # spelled out, since a list makes 100,000 of them: *args and **keywords take twice the time
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
        super().__init__(
            proxy,
            through,
            label=label,
            credentials=credentials,
            tls=tls,
            timeout=timeout,
            reach_timeout=reach_timeout,
        )
        self._taken = False
        self._refused_until = 0.0
        self._goes_by_each_url: bool | None = None

    @property
    def goes_by_each_url(self) -> bool | None:
        """Whether one connection carries requests to any server; None: not known yet."""
        return self._goes_by_each_url

    def note_each_url(self, goes: bool) -> None:
        """It goes by the URL of each request, or is not to be taken for a proxy that does."""
        self._goes_by_each_url = goes

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
        """One server's, unless the proxy is known to go by each URL: some, pproxy and proxy.py
        among them, remain with the first server and send it all that follows, whatever its URL."""
        known = self.identity(request)
        if known is None:
            return None
        return ("absolute", None if self._goes_by_each_url else request.dest, known)

    def _refused(self, answer: h11.Response, dest: Address, login: Filled | None) -> ConnectFailed:
        # Only what no server can have said: none has that name, and a connection on which
        # nothing was asked before leads to none.
        if dest.host.endswith(_NOWHERE):
            self.note_each_url(_goes_by_each_url(answer))
        return super()._refused(answer, dest, login)

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


def _goes_by_each_url(refusal: h11.Response) -> bool:
    """Whether a proxy that refuses so to connect to a name that does not exist is one of those."""
    if any((header(refusal, name) or b"").startswith(word) for name, word in _BY_EACH_URL):
        return True
    # an Apache that is a web server and no proxy says 400 or 405
    server = header(refusal, b"server") or b""
    return refusal.status_code == BAD_GATEWAY and _APACHE.fullmatch(server) is not None
