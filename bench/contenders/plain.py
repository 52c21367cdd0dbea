"""SOCKS5 servers that encrypt nothing: microsocks, dante and hev in C, gost and glider in Go."""

from __future__ import annotations

import getpass
import json
import os
import re
import resource

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


_HEV_CONFIG = """
main: {{workers: {workers}, listen-address: {inbound.host}, port: {inbound.port}}}
misc: {{log-level: error, limit-nofile: {descriptors}}}
"""


def _hev(endpoints: Endpoints) -> list[Command]:
    file = endpoints.folder / "hev.yml"
    config = _HEV_CONFIG.format(
        inbound=endpoints.inbound,
        workers=len(os.sched_getaffinity(0)),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )
    file.write_text(config)
    return [Command([find("hev-socks5-server"), str(file)], endpoints.inbound.port)]


def _gost(endpoints: Endpoints) -> list[Command]:
    service = {
        "name": "plain",
        "addr": "{}:{}".format(*endpoints.inbound),
        "handler": {"type": "socks5"},
        "listener": {"type": "tcp"},
    }
    file = endpoints.folder / "gost.json"
    file.write_text(json.dumps({"log": {"level": "fatal"}, "services": [service]}))
    return [Command([find("gost"), "-C", str(file)], endpoints.inbound.port)]


def _glider(endpoints: Endpoints) -> list[Command]:
    listen = "socks5://{}:{}".format(*endpoints.inbound)
    return [Command([find("glider"), "-listen", listen], endpoints.inbound.port)]


def glider_version() -> str:
    """It stands in its help, behind other numbers with dots."""
    found = re.search(r"glider (\d[\w.]*)", said("glider", "-h"))
    return found[1] if found else "of unknown version"


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
HEV = Contender(
    "hev",
    "hev-socks5-server",
    Kind.PLAIN,
    ("hev-socks5-server",),
    _hev,
    lambda: said_version("hev-socks5-server", "--version"),
)
GOST = Contender("gost", "gost", Kind.PLAIN, ("gost",), _gost, lambda: said_version("gost", "-V"))
GLIDER = Contender("glider", "glider", Kind.PLAIN, ("glider",), _glider, glider_version)
