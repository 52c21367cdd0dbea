"""gsocks: an encrypted SOCKS5 tunnel and a rotating proxy on gevent.

    from gsocks import Key, LocalServer, RemoteServer

    key = Key.generate()
    server = RemoteServer("127.0.0.1:0", keys={"default": key})
    server.start()
    local = LocalServer("127.0.0.1:0", [f"gsocks://{key.text()}@{server.bound}"])
    local.start()

Importing it patches nothing, and neither does using it: both servers run on the hub of the
thread that starts them, beside whatever else runs there.
"""

from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.errors import ConfigError, GsocksError
from gsocks.limits import Limits, Timeouts, Udp
from gsocks.local import LocalServer
from gsocks.observe import AccessLog, Observer, Record
from gsocks.server import RemoteServer

__all__ = [
    "AccessLog",
    "Address",
    "ConfigError",
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
