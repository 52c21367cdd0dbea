"""gsocks: an encrypted SOCKS5 tunnel and a rotating proxy on gevent.

    from gsocks import Gateway, Key, LocalServer, RemoteServer

    key = Key.generate()
    server = RemoteServer("127.0.0.1:0", keys={"default": key})
    server.start()
    local = LocalServer("127.0.0.1:0", [f"gsocks://{key.text()}@{server.bound}"])
    local.start()

    gateway = Gateway(["socks5://10.0.0.7:1080", "socks5://10.0.0.8:1080"])
    sock = gateway.connect("example.com", 443)

Neither importing nor using gsocks patches anything: each object runs on gevent's hub of the thread
that starts it, beside the other greenlets of that hub.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsocks.address import Address
    from gsocks.crypto import Key
    from gsocks.errors import ConfigError, GsocksError
    from gsocks.gateway import Gateway
    from gsocks.inbound.options import LocalOptions, ServerOptions
    from gsocks.local import LocalServer
    from gsocks.observe import AccessLog, Observer, Record
    from gsocks.server import RemoteServer
    from gsocks.settings import (
        CheckSettings,
        DnsSettings,
        ExpectSettings,
        HealthSettings,
        Limits,
        PoolSettings,
        SessionSettings,
        Timeouts,
        TransportSettings,
        UdpSettings,
    )

__all__ = [
    "AccessLog",
    "Address",
    "CheckSettings",
    "ConfigError",
    "DnsSettings",
    "ExpectSettings",
    "Gateway",
    "GsocksError",
    "HealthSettings",
    "Key",
    "Limits",
    "LocalOptions",
    "LocalServer",
    "Observer",
    "PoolSettings",
    "Record",
    "RemoteServer",
    "ServerOptions",
    "SessionSettings",
    "Timeouts",
    "TransportSettings",
    "UdpSettings",
]

__version__ = "0.2.0"

# Imported when they are first asked for: the program `gsocks` lies in this package too, and has to
# be ready for Ctrl-C before it imports what takes most of a second.
_MODULES = {
    "AccessLog": "observe",
    "Address": "address",
    "CheckSettings": "settings",
    "ConfigError": "errors",
    "DnsSettings": "settings",
    "ExpectSettings": "settings",
    "Gateway": "gateway",
    "GsocksError": "errors",
    "HealthSettings": "settings",
    "Key": "crypto",
    "Limits": "settings",
    "LocalOptions": "inbound.options",
    "LocalServer": "local",
    "Observer": "observe",
    "PoolSettings": "settings",
    "Record": "observe",
    "RemoteServer": "server",
    "ServerOptions": "inbound.options",
    "SessionSettings": "settings",
    "Timeouts": "settings",
    "TransportSettings": "settings",
    "UdpSettings": "settings",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
