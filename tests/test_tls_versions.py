"""TLS is 1.2 at least, also where the system's default is less, as with Debian's Python 3.14."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from urllib3 import HTTPSConnectionPool
from urllib3.connection import HTTPSConnection

from gsocks import exits
from gsocks.config.schema import State
from gsocks.config.store import StoreUrl
from gsocks.dns import transport
from gsocks.exits.client_tls import load
from gsocks.exits.spec import TlsOptions
from gsocks.fleet import store
from gsocks.inbound import tls
from gsocks.integrations import httpx, requests
from gsocks.settings import TlsSettings, TransportSettings
from gsocks.transport.server import ServerTransport


@pytest.fixture(autouse=True)
def lax(monkeypatch: pytest.MonkeyPatch) -> None:
    make = ssl.SSLContext.__new__

    def made(kind: type[ssl.SSLContext], *arguments: Any, **more: Any) -> ssl.SSLContext:
        context = make(kind, *arguments, **more)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return context

    monkeypatch.setattr(ssl.SSLContext, "__new__", made)


def _pool() -> Any:
    pool = requests._pool(HTTPSConnectionPool, HTTPSConnection, "127.0.0.1", 1)
    return pool.conn_kw["ssl_context"]


@pytest.mark.parametrize(
    "make",
    [
        exits.trust.__wrapped__,
        lambda: load(TlsOptions()),
        lambda: load(TlsOptions(insecure=True)),
        transport._trust.__wrapped__,
        lambda: httpx._context(verify=True),
        _pool,
    ],
    ids=["https", "an exit with options", "an insecure exit", "DNS over TLS", "httpx", "requests"],
)
def test_a_client_takes_no_older_version(make: Callable[[], ssl.SSLContext]) -> None:
    assert make().minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_listener_and_a_server_take_no_older_version(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    file = tmp_path / "both.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(file)
    assert tls.make_context(TlsSettings(cert=file)).minimum_version == ssl.TLSVersion.TLSv1_2
    server = ServerTransport(TransportSettings(kind="tls", cert=file))
    assert server._context is not None
    assert server._context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_store_is_asked_in_no_older_version() -> None:
    options = store._tls_options(State(url=StoreUrl.parse("rediss://127.0.0.1")))
    assert options["ssl_min_version"] == ssl.TLSVersion.TLSv1_2
