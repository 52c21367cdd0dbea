"""The order of the rooms (docs/architecture.md), read off the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gsocks"

#: each may import only from those before it
ROOMS = [
    "errors",
    "wording",
    "units",
    "within",
    "crew",
    "address",
    "networks",
    "wish",
    "request",
    "limits",
    "crypto",
    "keyfile",
    "replay",
    "stream",
    "closing",
    "expiry",
    "pump",
    "splice",
    "bandwidth",
    "proxy_protocol",
    "rotation",
    "rotation.username",
    "login",
    "handshake",
    "tunnel",
    "pool",
    "relay",
    "bridge",
    "http",
    "http.head",
    "http.url",
    "http.body",
    "http.login",
    "http.status",
    "http.forward",
    "http.client",
    "http.origin",
    "http.exchange",
    "datagram",
    "rules",
    "users",
    "users_file",
    "throttle",
    "judge",
    "dial",
    "exits.base",
    "exits.credentials",
    "exits.url",
    "exits.udp",
    "exits.bind",
    "exits.direct",
    "exits.tunnel",
    "exits.opening",
    "exits.proxy",
    "exits.socks",
    "exits.tls",
    "exits.http",
    "exits.via",
    "exits",
    "fetch",
    "keep",
    "rotation.policy",
    "rotation.session",
    "rotation.health",
    "rotation.roster",
    "rotation.lists",
    "rotation.sources",
    "search",
    "ways_out",
    "checks",
    "shares",
    "waiting",
    "observe",
    "assemble",
    "feed",
    "supply",
    "survey",
    "door",
    "local",
    "server",
    "admin",
    "admin.token",
    "admin.tally",
    "admin.snapshot",
    "admin.metrics",
    "admin.panel",
    "admin.crew",
    "admin.app",
    "admin.listener",
    "gateway",
    "",
    "config",
    "listen",
    "supervisor",
    "service",
    "report",
    "live",
    "main",
    "__main__",
]

#: who may use a library that the others must not know
KEEPERS = {
    "nacl": {"crypto", "users"},
    "yaml": {"config"},
    "msgspec": {"config", "admin.panel"},
    "argparse": {"main"},
}

#: bytes in, bytes out: usable without an event loop
WITHOUT_GEVENT = {
    "errors",
    "address",
    "crypto",
    "replay",
    "rules",
    "wish",
    "request",
    "limits",
    "units",
    "rotation.username",
    "rotation.policy",
    "rotation.session",
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix("__init__").rstrip(".") if path.stem == "__init__" else name
        found[name] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "gsocks":
                yield from (
                    f"gsocks.{alias.name}" if (PACKAGE / f"{alias.name}.py").exists() else "gsocks"
                    for alias in node.names
                )
            else:
                yield node.module or ""


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(modules()) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_rooms_before_it(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room)])
    ours = {
        name.removeprefix("gsocks").lstrip(".")
        for name in imported(modules()[room])
        if name.split(".")[0] == "gsocks"
    }
    assert ours <= allowed


@pytest.mark.parametrize("library", KEEPERS)
def test_a_library_stays_with_its_keepers(library: str) -> None:
    users = {
        room
        for room, tree in modules().items()
        if any(name.split(".")[0] == library for name in imported(tree))
    }
    assert users <= KEEPERS[library]


@pytest.mark.parametrize("room", sorted(WITHOUT_GEVENT))
def test_a_room_without_input_or_output_does_not_import_gevent(room: str) -> None:
    assert not any(name.split(".")[0] == "gevent" for name in imported(modules()[room]))


def test_the_relay_knows_no_protocol() -> None:
    ours = {name for name in imported(modules()["relay"]) if name.startswith("gsocks")}
    assert ours == {
        "gsocks.errors",
        "gsocks.expiry",
        "gsocks.pump",
        "gsocks.splice",
        "gsocks.stream",
    }


def test_nothing_is_validated_by_assert_and_nothing_swallows_every_exception() -> None:
    for room, tree in modules().items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{room}: assert"
            if isinstance(node, ast.ExceptHandler):
                bare = node.type is None or (
                    isinstance(node.type, ast.Name)
                    and node.type.id in ("Exception", "BaseException")
                )
                tells = any(
                    isinstance(inner, ast.Raise)
                    or (
                        isinstance(inner, ast.Attribute)
                        and inner.attr in ("exception", "handle_error")
                    )
                    for inner in ast.walk(node)
                )
                assert not bare or tells, f"{room}:{node.lineno} swallows everything"


def test_the_document_lists_the_rooms_in_their_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    files = [
        name.replace(".", "/")
        + ("/__init__" if name in ("admin", "exits", "http", "rotation") else "")
        + ".py"
        for name in ROOMS
        if name
    ]
    assert [entry for entry in listed if entry in files] == files
