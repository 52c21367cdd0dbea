"""gsocks itself, by ``python -m gsocks -c FILE``: a process for each end, as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.contenders.base import Command, Contender, Endpoints, Kind
from bench.load.route import Place
from bench.processes import ROOT

#: written as JSON, which is YAML too
_SECTION: dict[str, Any] = {
    # the target is on loopback, which is denied by default
    "rules": ["allow all"],
    "limits": {"connections": 100_000, "per_client": 100_000},
}
#: no contender writes a line for each connection
_LOG = {"level": "warning", "access": False}


class Build(NamedTuple):
    """How a build of gsocks is started."""

    #: the command line before gsocks' own arguments
    command: tuple[str, ...]
    environment: Mapping[str, str] | None = None


#: of this source tree
_HERE = Build((sys.executable, "-m", "gsocks"))


def _command(
    endpoints: Endpoints,
    role: str,
    section: dict[str, Any],
    listen: Place,
    build: Build,
    top: Mapping[str, Any] = {},
) -> Command:
    """``top``: other sections."""
    file = endpoints.folder / f"{role}.yaml"
    own = _SECTION | {"listen": f"{listen.host}:{listen.port}"} | section
    own["limits"] = _SECTION["limits"] | section.get("limits", {})
    config = {"log": _LOG, role: own, **top}
    file.write_text(json.dumps(config))
    return Command([*build.command, "-c", str(file)], listen.port, build.environment)


def _pair(
    endpoints: Endpoints,
    *,
    options: dict[str, Any] | None = None,
    local: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    build: Build = _HERE,
) -> list[Command]:
    """``options`` of the tunnel's exit, and other keys of the sections ``local`` and ``server``."""
    url = f"gsocks://{endpoints.far_seen.host}:{endpoints.far_seen.port}"
    way = {"url": url, "key_file": "gsocks.key"} | (options or {})
    # the key's file is made by the server, which is up before the local end looks for it
    keys = {"keys": {"default": {"file": "gsocks.key"}}} | (server or {})
    return [
        _command(endpoints, "server", keys, endpoints.far, build),
        _command(endpoints, "local", {"exits": [way]} | (local or {}), endpoints.inbound, build),
    ]


def _plain(endpoints: Endpoints, *, build: Build = _HERE) -> list[Command]:
    return [_command(endpoints, "local", {"exits": ["direct"]}, endpoints.inbound, build)]


def local_end(endpoints: Endpoints, exits: list[Any]) -> Command:
    """The local end alone, with those exits."""
    return _command(endpoints, "local", {"exits": exits}, endpoints.inbound, _HERE)


def gsocks_version() -> str:
    """That of this tree."""
    return _version()


def _version() -> str:
    run = subprocess.run(
        [sys.executable, "-m", "gsocks", "--version"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    return run.stdout.removeprefix("gsocks ").strip() or "of unknown version"


@cache
def _refused(**local: Any) -> str:
    """Why this gsocks does not take a key of the section ``local``; "" if it does."""
    with tempfile.TemporaryDirectory() as folder:
        near, far, seen = (Place("127.0.0.1", port) for port in (1, 2, 3))
        endpoints = Endpoints(Path(folder), near, far, seen)
        (endpoints.folder / "gsocks.key").write_text("A" * 43 + "\n")
        (endpoints.folder / "gsocks.key").chmod(0o600)
        command = _pair(endpoints, local=local)[1]
        run = subprocess.run(
            [*command.argv[:3], "check", *command.argv[3:]],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        if not run.returncode:
            return ""
        # without the folder before it, and without the keys that are known behind it
        said = run.stderr.rpartition("local.yaml: ")[2].partition(" (")[0].strip()
        return f"not in this gsocks: {said}"


def _contender(name: str, label: str, kind: Kind, set_up: Any, obstacle: Any = str) -> Contender:
    return Contender(name, label, kind, (), set_up, _version, obstacle)


GSOCKS = (
    _contender("gsocks-secretbox", "gsocks, SecretBox", Kind.PAIR, _pair),
    _contender(
        "gsocks-aegis256",
        "gsocks, AEGIS-256",
        Kind.PAIR,
        partial(_pair, options={"cipher": "aegis256"}),
    ),
    _contender("gsocks-plain", "gsocks, no tunnel", Kind.PLAIN, _plain),
)

#: what only makes a difference on a long link
GSOCKS_ON_A_LONG_LINK = (
    _contender(
        "gsocks-fast-open",
        "gsocks, fast_open",
        Kind.PAIR,
        partial(_pair, local={"fast_open": True}),
        lambda: _refused(fast_open=True),
    ),
    _contender(
        "gsocks-no-pool",
        "gsocks, without its pool",
        Kind.PAIR,
        partial(_pair, local={"pool": {"size": 0}}),
    ),
)


def gateway_of(name: str, label: str, build: Build = _HERE, **local: Any) -> Contender:
    """A rotating proxy over a list of HTTP exits; ``local``: other keys of its section."""

    def set_up(endpoints: Endpoints) -> list[Command]:
        return [gateway_command(endpoints, local, build=build)]

    return _contender(name, label, Kind.GATEWAY, set_up)


def gateway_command(
    endpoints: Endpoints,
    local: dict[str, Any],
    top: Mapping[str, Any] = {},
    build: Build = _HERE,
) -> Command:
    """A rotating proxy; ``local``: other keys of its section, ``top``: other sections."""
    file = endpoints.folder / "exits.txt"
    lines = [f"http://{host}:{port}\n" for host, port in endpoints.upstreams]
    file.write_text("".join(lines))
    section = {"exit_sources": [{"file": str(file)}]} | local
    return _command(endpoints, "local", section, endpoints.inbound, build, top)


def over_transport(kind: str, cert: Path, *, has_pool: bool) -> Contender:
    """A pair whose tunnels travel in that; without a pool each connection opens its own.

    ``cert``: a file with a certificate and its key.
    """
    transport: dict[str, Any] = {"kind": kind}
    options: dict[str, Any] = {"transport": kind}
    if kind in ("tls", "wss"):
        transport["cert"] = str(cert)
        options["ca"], options["sni"] = str(cert), "localhost"
    local = {} if has_pool else {"pool": {"size": 0}}
    set_up = partial(_pair, options=options, local=local, server={"transport": transport})
    return _contender(f"gsocks-{kind}", f"gsocks, {kind}", Kind.PAIR, set_up)


def contenders_of(build: Build) -> tuple[Contender, Contender]:
    """A pair (SecretBox) and a proxy without a tunnel, of another build of gsocks."""
    return (
        _contender("pair", "pair", Kind.PAIR, partial(_pair, build=build)),
        _contender("plain", "plain", Kind.PLAIN, partial(_plain, build=build)),
    )
