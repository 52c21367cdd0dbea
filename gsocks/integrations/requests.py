"""requests (and urllib3) with connections by a Gateway: no proxy, no port, no patching.

    gateway = Gateway(["socks5://10.0.0.7:1080", "socks5://10.0.0.8:1080"], rotate="fastest")
    web = requests.Session()
    web.mount("http://", GatewayAdapter(gateway))
    web.mount("https://", GatewayAdapter(gateway))
    page = web.get("https://shop.example/", headers={"Gateway-Session": "cart-17"})
    print(page.exit, page.text)

requests is not made for gevent, but all that it waits for is its socket, and this one is gevent's:
so it waits in its greenlet alone, also in a program where nothing is patched.  Two things would
block the whole hub, and are seen to here: names go to the exit as they are, and TLS is done by
gevent.ssl.  Each process needs a gateway of its own, and each thread.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from gevent.ssl import PROTOCOL_TLS_CLIENT, SSLContext, TLSVersion
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from gsocks.errors import ConnectTimeout, GsocksError
from gsocks.gateway import Gateway

#: for one request; it is taken out before the request leaves
SESSION = "Gateway-Session"


class GatewayAdapter(HTTPAdapter):
    """Opens its connections by ``gateway``.

    Exit selectors are those of :meth:`~gsocks.gateway.Gateway.connect`.

    A connection is kept, and with it the exit, for the next request of the same session to the
    same place.  Responses have an attribute ``exit``, the name of the exit that has served them.
    """

    def __init__(self, gateway: Gateway, *, session: str | None = None, **selectors: Any) -> None:
        self._gateway = gateway
        self._session = session
        self._selector = selectors
        self._by_session: dict[str | None, PoolManager] = {}
        super().__init__()

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        """Send by the connections of the request's session, and by no other proxy."""
        # a copy: a redirect repeats the header, and so it keeps the session
        request = request.copy()
        session = request.headers.pop(SESSION, self._session)
        self.poolmanager = self._manager(session)
        options["proxies"] = None  # whatever the environment says
        return super().send(request, *args, **options)

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """As the base class does; ``exit`` of what it makes is the exit's name."""
        response: Any = super().build_response(req, resp)
        response.exit = resp.connection.exit
        return cast(Response, response)

    def close(self) -> None:
        for manager in self._by_session.values():
            manager.clear()

    def _manager(self, session: str | None) -> PoolManager:
        """The connections of one session; those of the session that was used longest ago go."""
        manager = self._by_session.pop(session, None)
        if manager is None:
            manager = PoolManager(maxsize=10)
            opens = partial(self._gateway.connect, session=session, **self._selector)
            pools: dict[str, Any] = {
                "http": partial(_pool, HTTPConnectionPool, partial(_Plain, self._gateway, opens)),
                "https": partial(_pool, HTTPSConnectionPool, partial(_Tls, self._gateway, opens)),
            }
            manager.pool_classes_by_scheme = pools
            if len(self._by_session) >= 1000:
                self._by_session.pop(next(iter(self._by_session))).clear()
        self._by_session[session] = manager
        return manager


def _pool(kind: Any, connection: Any, host: str, port: int, **options: Any) -> HTTPConnectionPool:
    if kind is HTTPSConnectionPool:
        options["ssl_context"] = context = SSLContext(PROTOCOL_TLS_CLIENT)
        context.minimum_version = TLSVersion.TLSv1_2
        context.check_hostname = options.get("cert_reqs") != "CERT_NONE"
        context.set_alpn_protocols(["http/1.1"])
    pool: HTTPConnectionPool = kind(host, port, **options)
    pool.ConnectionCls = connection
    return pool


class _ByGateway(HTTPConnection):
    """What both kinds of urllib3's connections do in place of a lookup and a connect."""

    exit = ""

    def __init__(self, gateway: Gateway, opens: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gateway = gateway
        self._opens = opens

    def _new_conn(self) -> Any:
        try:
            sock = self._opens(self.host, self.port, timeout=self.timeout)
        except ConnectTimeout as error:
            raise ConnectTimeoutError(self, str(error)) from error
        except GsocksError as error:
            raise NewConnectionError(self, str(error)) from error
        self.exit = self._gateway.exit_of(sock)
        return sock


class _Plain(_ByGateway, HTTPConnection):
    pass


class _Tls(_ByGateway, HTTPSConnection):
    pass
