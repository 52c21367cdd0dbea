"""sing-box, as a pair by Shadowsocks 2022 and as a SOCKS5 server alone."""

from __future__ import annotations

import json
from typing import Any

from bench.contenders.base import Command, Contender, Endpoints, Kind, find, module_version
from bench.contenders.shadowsocks import AES_2022, KEY
from bench.load.route import Place

_CIPHER = {"type": "shadowsocks", "network": "tcp", "method": AES_2022, "password": KEY}


def _command(
    endpoints: Endpoints, name: str, place: Place, inbound: dict[str, Any], outbound: dict[str, Any]
) -> Command:
    listen = {"listen": place.host, "listen_port": place.port}
    config = {
        "log": {"disabled": True},
        "inbounds": [inbound | listen],
        "outbounds": [outbound],
    }
    file = endpoints.folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return Command([find("sing-box"), "run", "-c", str(file)], place.port)


def _pair(endpoints: Endpoints) -> list[Command]:
    host, port = endpoints.far_seen
    server = _CIPHER | {"server": host, "server_port": port}
    return [
        _command(endpoints, "far", endpoints.far, _CIPHER, {"type": "direct"}),
        _command(endpoints, "near", endpoints.inbound, {"type": "socks"}, server),
    ]


def _plain(endpoints: Endpoints) -> list[Command]:
    return [_command(endpoints, "plain", endpoints.inbound, {"type": "socks"}, {"type": "direct"})]


def _version() -> str:
    return module_version("sing-box")


SING_BOX_PAIR = Contender(
    "sing-box-2022", "sing-box, 2022 AES-256", Kind.PAIR, ("sing-box",), _pair, _version
)
SING_BOX = Contender("sing-box", "sing-box", Kind.PLAIN, ("sing-box",), _plain, _version)
