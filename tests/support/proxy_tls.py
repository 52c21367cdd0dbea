"""Certificates for a listener with TLS, and for its clients."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import trustme

from gsocks.address import Address
from gsocks.net.tls import TlsStream
from gsocks.settings import TlsSettings
from gsocks.stream import SocketStream
from tests.support.engine import (
    connect,
)

NAME = "proxy.example"


class Files:
    """Certificates of the proxy, and of clients by an authority of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proxies, self.clients = trustme.CA(), trustme.CA()
        self.clients.cert_pem.write_to_path(folder / "clients.pem")
        self.proxies.cert_pem.write_to_path(folder / "ca.pem")
        self.renew()
        for name in ("ali", "eve"):
            issued = self.clients.issue_cert(f"{name}@corp.example", common_name=name)
            issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
        stranger = trustme.CA().issue_cert("x@corp.example", common_name="ali")
        stranger.private_key_and_cert_chain_pem.write_to_path(folder / "stranger.pem")

    def renew(self, to: Path | None = None) -> None:
        issued = self.proxies.issue_cert(NAME, "127.0.0.1")
        # as programs that renew them do
        issued.private_key_and_cert_chain_pem.write_to_path(self.folder / "new.pem")
        os.replace(self.folder / "new.pem", to or self.folder / "proxy.pem")

    def tls(self, **more: Any) -> TlsSettings:
        return TlsSettings(cert=self.folder / "proxy.pem", **more)

    def by_certificate(self, **more: Any) -> TlsSettings:
        return self.tls(client_ca=self.folder / "clients.pem", **more)

    def context(self, client: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        if client is not None:
            context.load_cert_chain(self.folder / f"{client}.pem")
        return context

    def connect(
        self, to: Address, client: str | None = None, context: ssl.SSLContext | None = None
    ) -> TlsStream:
        stream = TlsStream(SocketStream(connect(to)), context or self.context(client), NAME)
        try:
            stream.handshake()
        except BaseException:
            stream.abort()
            raise
        return stream
