"""httpx with connections by a Gateway: no proxy, no port, no patching.

    gateway = Gateway(["socks5://10.0.0.7:1080", "socks5://10.0.0.8:1080"], rotate="fastest")
    web = httpx.Client(transport=GatewayTransport(gateway))
    page = web.get("https://shop.example/", extensions={"gsocks": {"session": "cart-17"}})
    print(exit_of(page), page.text)

httpx's synchronous client waits for its socket alone, which is gevent's here: so it waits in its
greenlet, also in a program where nothing is patched.  Names go to the exit as they are, and TLS is
done by gevent.ssl.  Each process needs a gateway of its own, and each thread.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore
import httpx
from gevent.socket import socket
from gevent.socket import timeout as SocketTimeout  # noqa: N812 - as the other exceptions
from gevent.ssl import PROTOCOL_TLS_CLIENT, SSLContext

from gsocks.errors import ConnectTimeout, GsocksError
from gsocks.gateway import Gateway

#: the extension of a request that has its exit selector, as of
#: :meth:`~gsocks.gateway.Gateway.connect`
EXTENSION = "gsocks"

#: selectors whose connections are kept; those that were used longest ago go
MAX_SELECTORS = 1000

#: what httpcore asks a stream for, and the name of its exit
_EXIT = "gsocks_exit"


class GatewayTransport(httpx.BaseTransport):
    """Opens its connections by ``gateway``.

    ``selector``: of all requests, as of :meth:`~gsocks.gateway.Gateway.connect`, over which a
    request's extension ``gsocks`` counts.  A connection is kept, and with it the exit, for the next
    request with the same selector to the same place.  ``verify``: whether certificates are checked,
    or a context of
    gevent.ssl.
    """

    def __init__(
        self, gateway: Gateway, *, verify: bool | SSLContext = True, **selector: Any
    ) -> None:
        self._gateway = gateway
        self._selector = selector
        self._context = _context(verify)
        self._pools: dict[object, httpcore.ConnectionPool] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; raises httpx's own exceptions."""
        selector = {**self._selector, **request.extensions.get(EXTENSION, {})}
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            answer = self._pool(selector).handle_request(sent)
        except tuple(_ERRORS) as error:
            raise _as_of_httpx(error) from error
        stream = answer.stream
        if not isinstance(stream, Iterable):
            raise TypeError("httpcore has answered with an asynchronous stream")
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(stream),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close the connections that are kept."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _pool(self, selector: Mapping[str, Any]) -> httpcore.ConnectionPool:
        key = tuple(sorted((name, repr(value)) for name, value in selector.items()))
        pool = self._pools.pop(key, None)
        if pool is None:
            if len(self._pools) >= MAX_SELECTORS:
                self._pools.pop(next(iter(self._pools))).close()
            backend = _Backend(self._gateway, selector)
            pool = httpcore.ConnectionPool(ssl_context=self._context, network_backend=backend)
        self._pools[key] = pool
        return pool


def exit_of(response: httpx.Response) -> str:
    """The name of the exit that has served a response."""
    name: str = response.extensions["network_stream"].get_extra_info(_EXIT)
    return name


def _context(verify: bool | SSLContext) -> SSLContext:
    if isinstance(verify, SSLContext):
        return verify
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if verify:
        context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Backend(httpcore.NetworkBackend):
    def __init__(self, gateway: Gateway, selector: Mapping[str, Any]) -> None:
        self._gateway = gateway
        self._selector = selector

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        del local_address, socket_options  # the exit's
        try:
            sock = self._gateway.connect(host, port, timeout=timeout, **self._selector)
        except ConnectTimeout as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except GsocksError as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(sock, self._gateway.exit_of(sock))


class _Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket, exit_: str) -> None:
        self._sock = sock
        self._exit = exit_

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._sock.settimeout(timeout)
        try:
            data: bytes = self._sock.recv(max_bytes)
        except SocketTimeout as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._sock.settimeout(timeout)
        try:
            self._sock.sendall(buffer)
        except SocketTimeout as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        self._sock.settimeout(timeout)
        try:
            secured: Any = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
        except SocketTimeout as error:
            self.close()
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(secured, self._exit)

    def get_extra_info(self, info: str) -> Any:
        if info == _EXIT:
            return self._exit
        if info == "ssl_object" and isinstance(self._sock, ssl.SSLSocket):
            return self._sock
        if info == "is_readable":  # httpcore asks it of a connection that it has kept
            return self._is_readable()
        return self._sock if info == "socket" else None

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Any:
        try:
            yield from self._stream
        except tuple(_ERRORS) as error:
            raise _as_of_httpx(error) from error

    def close(self) -> None:
        if hasattr(self._stream, "close"):
            self._stream.close()


_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}


def _as_of_httpx(error: Exception) -> httpx.TransportError:
    kind = next(made for known, made in _ERRORS.items() if isinstance(error, known))
    return kind(str(error))
