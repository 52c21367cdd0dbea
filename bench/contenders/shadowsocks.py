"""Shadowsocks in C (shadowsocks-libev), in Rust (shadowsocks-rust) and in Python (pproxy)."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import resource
import sys
from functools import partial

from bench.contenders.base import Command, Contender, Endpoints, Kind, find, said_version
from bench.contenders.gsocks import gsocks_version, local_end

_CHACHA = "chacha20-ietf-poly1305"
_AES = "aes-256-gcm"
#: SIP022, Shadowsocks' second edition: a key instead of a password, a salt for each session that is
#: not accepted twice
_CHACHA_2022 = "2022-blake3-chacha20-poly1305"
AES_2022 = "2022-blake3-aes-256-gcm"
_SHORT = {
    _CHACHA: "ChaCha20",
    _AES: "AES-256",
    _CHACHA_2022: "2022 ChaCha20",
    AES_2022: "2022 AES-256",
}
_PASSWORD = "a password that guards nothing but loopback"
#: 32 bytes that guard no more, for the ciphers of 2022
KEY = base64.b64encode(_PASSWORD[:32].encode()).decode()
#: descriptors: as many as the system allows, of which they would else use a part
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _files(endpoints: Endpoints, cipher: str) -> tuple[str, str]:
    """The configuration of the far end and of the near end."""
    password = KEY if cipher in (AES_2022, _CHACHA_2022) else _PASSWORD
    both = {"method": cipher, "password": password, "timeout": 600, "mode": "tcp_only"}
    far = {"server": endpoints.far.host, "server_port": endpoints.far.port}
    near = {
        "server": endpoints.far_seen.host,
        "server_port": endpoints.far_seen.port,
        "local_address": endpoints.inbound.host,
        "local_port": endpoints.inbound.port,
    }
    paths = endpoints.folder / "far.json", endpoints.folder / "near.json"
    for path, end in zip(paths, (far, near), strict=True):
        path.write_text(json.dumps(both | end | {"nofile": _DESCRIPTORS}))
    return str(paths[0]), str(paths[1])


def _in_c_or_rust(endpoints: Endpoints, *, server: str, local: str, cipher: str) -> list[Command]:
    far, near = _files(endpoints, cipher)
    return [
        Command([find(server), "-c", far], endpoints.far.port),
        Command([find(local), "-c", near], endpoints.inbound.port),
    ]


def _behind_gsocks(endpoints: Endpoints, *, server: str, cipher: str) -> list[Command]:
    """gsocks in the place of the near end."""
    far, _ = _files(endpoints, cipher)
    password = KEY if cipher in (AES_2022, _CHACHA_2022) else _PASSWORD
    to = f"{endpoints.far_seen.host}:{endpoints.far_seen.port}"
    way = {"url": f"ss://{to}", "cipher": cipher, "password": password}
    return [Command([find(server), "-c", far], endpoints.far.port), local_end(endpoints, [way])]


def _pproxy(endpoints: Endpoints) -> list[Command]:
    run = [sys.executable, "-m", "bench.contenders.run_pproxy"]
    cipher = f"ss://{_CHACHA}:{_PASSWORD.replace(' ', '-')}@"
    far = [*run, "-l", cipher + "{}:{}".format(*endpoints.far)]
    near = [*run, "-l", "socks5://{}:{}".format(*endpoints.inbound)]
    near += ["-r", cipher + "{}:{}".format(*endpoints.far_seen)]
    return [Command(far, endpoints.far.port), Command(near, endpoints.inbound.port)]


def _no_pproxy() -> str:
    if importlib.util.find_spec("pproxy") is None:
        return "not found: pproxy (pip install 'pproxy[accelerated]')"
    return ""


def _shadowsocks(name: str, label: str, server: str, local: str, cipher: str) -> Contender:
    return Contender(
        name,
        f"{label}, {_SHORT[cipher]}",
        Kind.PAIR,
        (server, local),
        partial(_in_c_or_rust, server=server, local=local, cipher=cipher),
        partial(said_version, local, "-h" if server == "ss-server" else "--version"),
    )


def _gsocks(name: str, label: str, server: str, cipher: str) -> Contender:
    return Contender(
        name,
        f"gsocks and {label}, {_SHORT[cipher]}",
        Kind.PAIR,
        (server,),
        partial(_behind_gsocks, server=server, cipher=cipher),
        gsocks_version,
    )


SHADOWSOCKS = (
    _gsocks("gsocks-ss-chacha20", "shadowsocks-libev", "ss-server", _CHACHA),
    _gsocks("gsocks-ss-aes256", "shadowsocks-libev", "ss-server", _AES),
    _gsocks("gsocks-ss-2022-aes256", "shadowsocks-rust", "ssserver", AES_2022),
    _shadowsocks("ss-libev-chacha20", "shadowsocks-libev", "ss-server", "ss-local", _CHACHA),
    _shadowsocks("ss-libev-aes256", "shadowsocks-libev", "ss-server", "ss-local", _AES),
    _shadowsocks("ss-rust-chacha20", "shadowsocks-rust", "ssserver", "sslocal", _CHACHA),
    _shadowsocks("ss-rust-aes256", "shadowsocks-rust", "ssserver", "sslocal", _AES),
    _shadowsocks("ss-rust-2022-chacha20", "shadowsocks-rust", "ssserver", "sslocal", _CHACHA_2022),
    _shadowsocks("ss-rust-2022-aes256", "shadowsocks-rust", "ssserver", "sslocal", AES_2022),
    Contender(
        "pproxy",
        f"pproxy, {_SHORT[_CHACHA]}",
        Kind.PAIR,
        (),
        _pproxy,
        lambda: importlib.metadata.version("pproxy"),
        _no_pproxy,
    ),
)
