"""Rotating proxies, each as its own documentation sets it up, with the same list of exits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

from bench.contenders.base import (
    Command,
    Contender,
    Endpoints,
    Kind,
    find,
    module_version,
    said_version,
)
from bench.contenders.gsocks import gateway_of
from bench.contenders.plain import glider_version
from bench.processes import ROOT

_PROXY_CHAIN = """
const {{ Server }} = require('proxy-chain');
const exits = require('fs').readFileSync({list}, 'utf8').trim().split('\\n');
const sessions = new Map();
let turn = 0;
new Server({{
  host: '{host}', port: {port},
  prepareRequestFunction: ({{ username }}) => {{
    let exit = username && sessions.get(username);
    if (!exit) {{
      exit = exits[turn++ % exits.length];
      if (username) sessions.set(username, exit);
    }}
    return {{ upstreamProxyUrl: exit }};
  }},
}}).listen();
"""


def _urls(endpoints: Endpoints) -> list[str]:
    return [f"http://{host}:{port}" for host, port in endpoints.upstreams]


def _listed(endpoints: Endpoints) -> Path:
    file = endpoints.folder / "exits.txt"
    file.write_text("\n".join(_urls(endpoints)) + "\n")
    return file


def _glider(endpoints: Endpoints) -> list[Command]:
    file = endpoints.folder / "glider.conf"
    lines = ["listen=mixed://{}:{}".format(*endpoints.inbound), "strategy=rr"]
    lines += [f"forward={url}" for url in _urls(endpoints)]
    # as its default, but for the page, which every exit here answers itself
    file.write_text("\n".join([*lines, "check=http://site.test/#expect=200", ""]))
    return [Command([find("glider"), "-config", str(file)], endpoints.inbound.port)]


def _gost(endpoints: Endpoints) -> list[Command]:
    nodes = [
        {"name": f"n{number}", "addr": f"{host}:{port}", "connector": {"type": "http"}}
        for number, (host, port) in enumerate(endpoints.upstreams)
    ]
    selector = {"strategy": "round", "maxFails": 1, "failTimeout": "10s"}
    config = {
        "log": {"level": "fatal"},
        "services": [
            {
                "name": "gateway",
                "addr": "{}:{}".format(*endpoints.inbound),
                "handler": {"type": "auto", "chain": "exits", "retries": 2},
                "listener": {"type": "tcp"},
            }
        ],
        "chains": [
            {"name": "exits", "hops": [{"name": "hop", "selector": selector, "nodes": nodes}]}
        ],
    }
    file = endpoints.folder / "gost.json"
    file.write_text(json.dumps(config))
    return [Command([find("gost"), "-C", str(file)], endpoints.inbound.port)]


def _mubeng(endpoints: Endpoints) -> list[Command]:
    argv = [find("mubeng"), "-a", "{}:{}".format(*endpoints.inbound), "-f", str(_listed(endpoints))]
    return [Command([*argv, "-r", "1", "-m", "sequent", "-s"], endpoints.inbound.port)]


def _proxy_chain(endpoints: Endpoints) -> list[Command]:
    host, port = endpoints.inbound
    file = endpoints.folder / "gateway.js"
    script = _PROXY_CHAIN.format(list=json.dumps(str(_listed(endpoints))), host=host, port=port)
    file.write_text(script)
    folder = {"NODE_PATH": str(_node_modules())}
    return [Command([find("node"), str(file)], port, folder)]


def _node_modules() -> Path:
    return Path(os.environ.get("NODE_PATH", ROOT / "tests" / "node" / "node_modules"))


def _no_proxy_chain() -> str:
    found = (_node_modules() / "proxy-chain").is_dir()
    return "" if found else "not found: proxy-chain (npm install proxy-chain; NODE_PATH)"


def _proxy_chain_version() -> str:
    package = json.loads((_node_modules() / "proxy-chain" / "package.json").read_text())
    return str(package["version"])


def _pproxy(endpoints: Endpoints) -> list[Command]:
    argv = [sys.executable, "-m", "bench.contenders.run_pproxy"]
    argv += ["-l", "http+socks5://{}:{}".format(*endpoints.inbound), "-s", "rr"]
    for url in _urls(endpoints):
        argv += ["-r", url]
    return [Command(argv, endpoints.inbound.port)]


def _no_pproxy() -> str:
    return "" if importlib.util.find_spec("pproxy") else "not found: pproxy (pip install)"


#: gsocks with the connect probes of its exits off, for what requests cost without them
UNPROBED = gateway_of("gsocks-unprobed", "gsocks, no connect probes", checks={"connect": False})

GATEWAYS = (
    gateway_of("gsocks", "gsocks"),
    UNPROBED,
    Contender("glider", "glider", Kind.GATEWAY, ("glider",), _glider, glider_version),
    Contender("gost", "gost", Kind.GATEWAY, ("gost",), _gost, lambda: said_version("gost", "-V")),
    Contender(
        "mubeng", "mubeng", Kind.GATEWAY, ("mubeng",), _mubeng, lambda: module_version("mubeng")
    ),
    Contender(
        "proxy-chain",
        "proxy-chain",
        Kind.GATEWAY,
        ("node",),
        _proxy_chain,
        _proxy_chain_version,
        _no_proxy_chain,
    ),
    Contender(
        "pproxy",
        "pproxy",
        Kind.GATEWAY,
        (),
        _pproxy,
        lambda: importlib.metadata.version("pproxy"),
        _no_pproxy,
    ),
)
