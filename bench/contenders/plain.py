"""SOCKS5 servers in C that encrypt nothing: microsocks and dante."""

from __future__ import annotations

import getpass

from bench.contenders.base import (
    Command,
    Contender,
    Endpoints,
    Kind,
    find,
    packaged_version,
    said,
    said_version,
)

_DANTE_CONFIG = """
errorlog: stderr
internal: {inbound.host} port = {inbound.port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 command: connect }}
"""


def _microsocks(endpoints: Endpoints) -> list[Command]:
    argv = [find("microsocks"), "-i", endpoints.inbound.host, "-p", str(endpoints.inbound.port)]
    # Debian's 1.0.3 can't be told not to print a line for each connection
    if "-q" in said("microsocks", "-h"):
        argv.append("-q")
    return [Command(argv, endpoints.inbound.port)]


def _sockd() -> str:
    """dante's server has another name in Debian."""
    return "danted" if find("danted") else "sockd"


def _dante(endpoints: Endpoints) -> list[Command]:
    file = endpoints.folder / "sockd.conf"
    file.write_text(_DANTE_CONFIG.format(inbound=endpoints.inbound, user=getpass.getuser()))
    argv = [find(_sockd()), "-f", str(file), "-p", str(endpoints.folder / "sockd.pid")]
    return [Command(argv, endpoints.inbound.port)]


MICROSOCKS = Contender(
    "microsocks",
    "microsocks",
    Kind.PLAIN,
    ("microsocks",),
    _microsocks,
    lambda: packaged_version("microsocks"),
)
DANTE = Contender(
    "dante",
    "dante",
    Kind.PLAIN,
    (_sockd(),),
    _dante,
    lambda: said_version(_sockd(), "-v"),
)
