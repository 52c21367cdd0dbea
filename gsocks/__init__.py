"""gsocks: an encrypted SOCKS5 tunnel and a rotating proxy on gevent.

    from gsocks import Key, LocalServer, RemoteServer

    key = Key.generate()
    server = RemoteServer("127.0.0.1:0", keys={"default": key})
    server.start()
    local = LocalServer("127.0.0.1:0", [f"gsocks://{key.text()}@{server.bound}"])
    local.start()

    gateway = Gateway(["socks5://10.0.0.7:1080", "socks5://10.0.0.8:1080"])
    sock = gateway.connect("example.com", 443)

Importing it patches nothing, and neither does using it: all of them run on the hub of the thread
that starts them, beside whatever else runs there.
"""

from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.errors import ConfigError, GsocksError
from gsocks.gateway import Gateway
from gsocks.limits import Limits, Timeouts, Udp
from gsocks.local import LocalServer
from gsocks.observe import AccessLog, Observer, Record
from gsocks.server import RemoteServer

__all__ = [
    "AccessLog",
    "Address",
    "ConfigError",
    "Gateway",
    "GsocksError",
    "Key",
    "Limits",
    "LocalServer",
    "Observer",
    "Record",
    "RemoteServer",
    "Timeouts",
    "Udp",
]

__version__ = "0.1.0"
