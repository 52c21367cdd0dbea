"""TLS to a proxy or a gsocks server: whom it trusts, the name it expects, its own certificate."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from gsocks.errors import ConfigError
from gsocks.exits.spec import TlsOptions
from gsocks.net.certificates import ContextOfFiles, identify
from gsocks.net.tls import TlsStream
from gsocks.stream import Stream
from gsocks.transport.tls import TlsLayer

log = logging.getLogger("gsocks.exits")

_Secured = TypeVar("_Secured", bound=TlsStream)


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
        return self.secure_as(TlsStream, stream)

    def secure_as(self, kind: type[_Secured], stream: Stream) -> _Secured:
        """The same as a stream of that ``kind``."""
        return kind(stream, self._contexts(), self._name)

    def layer(self) -> TlsLayer:
        """TLS as the lowest layer of a tunnel, before its handshake."""
        return TlsLayer(self._contexts(), self._name)


class FileContexts(ContextOfFiles):
    """Contexts by the files of ``options``.  Raises ConfigError."""

    __slots__ = ()

    def __init__(self, options: TlsOptions) -> None:
        files = (options.ca, options.cert, options.key)
        super().__init__([each for each in files if each is not None], partial(load, options), log)


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
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # some systems' default is less
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
