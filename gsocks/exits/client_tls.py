"""TLS to a proxy or a gsocks server: whom it trusts, the name it expects, and its own certificate.

The files are read again when they have changed, since certificates are renewed while a program
runs.  A new connection then goes by the new ones; files that can't be used leave the previous ones
in force.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from gsocks.errors import ConfigError
from gsocks.exits.spec import TlsOptions
from gsocks.net.certificates import identify
from gsocks.net.tls import TlsStream
from gsocks.stream import Stream
from gsocks.transport.tls import TlsLayer

log = logging.getLogger("gsocks.exits")

#: device, inode, size and time of change of each file
_Stamps = tuple[tuple[int, int, int, int], ...]


class ClientTls:
    """Secures connections to one proxy, whose certificate must be for ``name``.

    ``contexts`` returns the context for a new connection.  It is called here too, so that this
    raises ConfigError for files that can't be used.
    """

    __slots__ = ("_contexts", "_name")

    def __init__(self, name: str, contexts: Callable[[], ssl.SSLContext]) -> None:
        self._name = name
        self._contexts = contexts
        contexts()

    def secure(self, stream: Stream) -> TlsStream:
        """TLS over ``stream``, before its handshake."""
        return TlsStream(stream, self._contexts(), self._name)

    def layer(self) -> TlsLayer:
        """TLS as the lowest layer of a tunnel, before its handshake."""
        return TlsLayer(self._contexts(), self._name)


class FileContexts:
    """Contexts by the files of ``options``, which are read again when they have changed."""

    __slots__ = ("_context", "_options", "_stamps")

    def __init__(self, options: TlsOptions) -> None:
        """Raises ConfigError."""
        self._options = options
        self._stamps = _stamps(options)
        self._context = load(options)

    def __call__(self) -> ssl.SSLContext:
        """The context of the files as they are now, or as they last could be used."""
        stamps = _stamps(self._options)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = load(self._options)
            except ConfigError as error:
                log.warning("the previous TLS files stay in use: %s", error)
        return self._context


def load(options: TlsOptions) -> ssl.SSLContext:
    """A context for clients.  Raises ConfigError, which names a file and never what is in it."""
    if options.insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = _trusting(options.ca)
    if options.cert is not None:
        identify(context, options.cert, options.key)
    return prepared(context, options.alpn)


def prepared(context: ssl.SSLContext, alpn: Sequence[str] | None = None) -> ssl.SSLContext:
    """``context`` as a client of HTTP/1.1 has it, or one that offers the protocols ``alpn``."""
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.3 has none either
    protocols = ("http/1.1",) if alpn is None else alpn
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def _trusting(ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:  # an OSError too; its text may quote the file
        raise ConfigError(f"{ca}: has no certificates in PEM") from None
    except OSError as error:
        raise ConfigError(f"{ca}: {error.strerror}") from None


def _stamps(options: TlsOptions) -> _Stamps:
    files = (options.ca, options.cert, options.key)
    return tuple(_stamp(path) for path in files if path is not None)


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
