"""SOCKS5 servers in C that encrypt nothing: microsocks and dante."""

from __future__ import annotations

import getpass

from bench.contenders.base import (
    Command,
    Contender,
    Ground,
    Kind,
    find,
    packaged_version,
    said,
    said_version,
)

_DANTE_CONFIG = """
errorlog: stderr
internal: {door.host} port = {door.port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 command: connect }}
"""


def _microsocks(ground: Ground) -> list[Command]:
    argv = [find("microsocks"), "-i", ground.door.host, "-p", str(ground.door.port)]
    # Debian's 1.0.3 can't be told not to print a line for each connection
    if "-q" in said("microsocks", "-h"):
        argv.append("-q")
    return [Command(argv, ground.door.port)]


def _sockd() -> str:
    """dante's server has another name in Debian."""
    return "danted" if find("danted") else "sockd"


def _dante(ground: Ground) -> list[Command]:
    file = ground.folder / "sockd.conf"
    file.write_text(_DANTE_CONFIG.format(door=ground.door, user=getpass.getuser()))
    argv = [find(_sockd()), "-f", str(file), "-p", str(ground.folder / "sockd.pid")]
    return [Command(argv, ground.door.port)]


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
