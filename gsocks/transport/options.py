"""What a config and an exit's URL say about transports: the text of each option, and its bounds."""

from __future__ import annotations

import re

from gsocks.messages import Mistake, shown
from gsocks.settings import TransportSettings

#: all transports; those with TLS, and with WebSocket
KINDS = ("tcp", "tls", "ws", "wss")
OVER_TLS = ("tls", "wss")
OVER_WEBSOCKET = ("ws", "wss")

# what a request line can carry; a fragment never leaves a browser
_PATH = re.compile(r"/[!\"$-~]{0,1023}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PROTOCOL = re.compile(r"[!-+\--~]{1,255}")
#: protocols of ALPN that one end offers
_MOST_PROTOCOLS = 16


def parse_kind(value: object) -> str:
    """A transport.  Raises ValueError, as the functions below."""
    if isinstance(value, str) and value in KINDS:
        return value
    raise ValueError(f"{shown(value)} is not a transport (known: {', '.join(KINDS)})")


def parse_url_path(value: object) -> str:
    """The path of a WebSocket, with a query or without."""
    if isinstance(value, str) and _PATH.fullmatch(value):
        return value
    raise ValueError(f"{shown(value)} is not the path of a URL (expected e.g. /updates)")


def parse_host(value: object) -> str:
    """The value of Host."""
    if isinstance(value, str) and _HOST.fullmatch(value):
        return value
    raise ValueError(f"{shown(value)} is not a host (expected e.g. www.example.com)")


def parse_alpn(value: object) -> tuple[str, ...]:
    """The protocols that ALPN offers: a list, or text with commas.  None: nothing is offered."""
    words = value.split(",") if isinstance(value, str) and value else value or ()
    if (
        isinstance(words, list | tuple)
        and len(words) <= _MOST_PROTOCOLS
        and all(isinstance(word, str) and _PROTOCOL.fullmatch(word) for word in words)
    ):
        return tuple(words)
    raise ValueError(f"{shown(value)} is not a list of protocols (expected e.g. http/1.1)")


def check(settings: TransportSettings) -> None:
    """Raises Mistake for options of a server that are not its transport's, or are missing."""
    kind, default = settings.kind, TransportSettings()
    if kind in OVER_TLS:
        if settings.cert is None:
            raise Mistake(f"missing ({kind} needs a certificate)", ".cert")
    else:
        for name in ("cert", "key", "alpn"):
            _check_unset(settings, name, default, OVER_TLS)
    if kind not in OVER_WEBSOCKET:
        _check_unset(settings, "path", default, OVER_WEBSOCKET)


def _check_unset(
    settings: TransportSettings, name: str, default: TransportSettings, only: tuple[str, ...]
) -> None:
    if getattr(settings, name) != getattr(default, name):
        raise Mistake(f"not for {settings.kind} (only for {' and '.join(only)})", f".{name}")
