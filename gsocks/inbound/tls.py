"""TLS in front of a listener: an HTTPS proxy, as browsers know it, and SOCKS in TLS.

A client may show a certificate, and is the user of that name then.  A client that comes without
TLS is told so, as far as its protocol has a word for it.
"""

from __future__ import annotations

import logging
import socket as std_socket
import ssl
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gsocks.errors import (
    AuthenticationFailed,
    BadRequest,
    ConfigError,
    StreamError,
    Truncated,
    stream_failure,
)
from gsocks.handshake import disconnected, printable
from gsocks.http.token import TCHARS
from gsocks.inbound.connection import ClientConnection
from gsocks.net.certificates import ContextOfFiles, identify, trust
from gsocks.net.tls_socket import TlsSocket
from gsocks.settings import TlsSettings
from gsocks.stream import send_all

log = logging.getLogger("gsocks.inbound")

_HANDSHAKE = 0x16  # RFC 8446 section 5.1
_HTTP_FIRST_BYTES = frozenset(TCHARS.encode("ascii"))

_IS_TLS = (
    "this port takes TLS only (an https:// proxy in browsers, curl --proxy https://...,"
    " socks5s:// for SOCKS)"
)
#: protocols that come without TLS by mistake: first byte, name, the word for no
_PLAIN = {
    0x05: ("SOCKS5", b"\x05\xff"),  # RFC 1928 section 3: no acceptable methods
    0x04: ("SOCKS4", b"\x00\x5b" + bytes(6)),
}
_HTTP_ANSWER = (
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n"
    "Proxy-Status: gsocks; error=http_request_error\r\n\r\n{}"
)

#: bytes of a user's name (RFC 1929)
_MAX_NAME = 255


class TlsFront:
    """Agrees on TLS with accepted connections.

    Reads the files, and again when they have changed.  Raises ConfigError, which names a file and
    never what is in it.
    """

    __slots__ = ("_contexts", "_settings")

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        files = (settings.cert, settings.key, settings.client_ca)
        self._contexts = ContextOfFiles(
            [Path(each) for each in files if each is not None], partial(make_context, settings), log
        )

    @property
    def admits_by_certificate(self) -> bool:
        """Whether each client has shown a certificate that is trusted."""
        return self._settings.client_ca is not None and self._settings.client_cert == "required"

    def begin(self, connection: ClientConnection) -> str | None:
        """Agree on TLS with the client, under the caller's timeout; its socket is a TlsSocket then.

        Returns the name in the client's certificate; None if it has shown none.  Raises
        ClientError, after a client without TLS was told of its mistake, and StreamError.
        """
        self._check_first_byte(connection)
        secured = connection.sock = TlsSocket(connection.sock, self._contexts())
        try:
            secured.stream.handshake()
        except StreamError:
            # whose reason was sent by TLS, and is to arrive
            connection.sock = secured.without_tls()
            raise
        certificate = secured.stream.peer_certificate
        return user_of(certificate) if certificate else None

    def _check_first_byte(self, connection: ClientConnection) -> None:
        sock = connection.sock
        try:
            first = sock.recv(1, std_socket.MSG_PEEK)
        except OSError as error:
            raise disconnected(stream_failure(error), has_spoken=False) from None
        if not first:
            raise disconnected(Truncated("the connection ended early"), has_spoken=False)
        if first[0] == _HANDSHAKE:
            return
        name, answer = _PLAIN.get(first[0], ("", b""))
        if first[0] in _HTTP_FIRST_BYTES:
            text = f"400 Bad Request: {_IS_TLS}\n"
            name, answer = "HTTP", _HTTP_ANSWER.format(len(text), text).encode("ascii")
        try:
            send_all(sock, answer)
        except StreamError:
            pass  # it is gone, which makes no difference
        what = f"speaks {name} without TLS" if name else f"begins with {first[0]:#04x}, no TLS"
        raise BadRequest(f"{what}: {_IS_TLS}")


def make_context(settings: TlsSettings) -> ssl.SSLContext:
    """The context of a listener.  Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.3 has none either
    identify(context, Path(settings.cert), None if settings.key is None else Path(settings.key))
    context.set_alpn_protocols(["http/1.1"])
    if settings.client_ca is not None:
        trust(context, Path(settings.client_ca))
        required = settings.client_cert == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    elif settings.client_cert != "required":
        raise ConfigError("client_cert: needs client_ca, by which they are verified")
    return context


def user_of(certificate: dict[str, Any]) -> str:
    """The user whom a client's certificate names: its common name, or else its first alternative
    name (RFC 5280 section 4.2.1.6) that is an e-mail address, a name of the DNS or a URI.

    Raises AuthenticationFailed for one that names no user, or several.
    """
    names = [value for kind, value in _attributes(certificate) if kind == "commonName"]
    if len(names) > 1:
        raise AuthenticationFailed("its certificate has several common names")
    names += [
        value
        for kind, value in certificate.get("subjectAltName", ())
        if kind in ("email", "DNS", "URI")
    ]
    if not names:
        raise AuthenticationFailed("its certificate names no user")
    name = names[0].encode("utf-8", "backslashreplace")
    if not name or len(name) > _MAX_NAME or printable(name) != names[0]:
        raise AuthenticationFailed("its certificate has a name that no user can have")
    return str(names[0])


def _attributes(certificate: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Those of its subject."""
    return (each for relative in certificate.get("subject", ()) for each in relative)
