"""The direction of imports between packages (docs/architecture.md), read off the source."""

from __future__ import annotations

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gsocks"

#: Packages, and modules that stand beside them; each row may import only from the rows below it,
#: and the entries of one row not from each other.
LAYERS = [
    {"__main__"},
    {"main"},
    {"cli"},
    {"service"},
    {"", "integrations"},  # gsocks itself: what `import gsocks` offers; adapters for libraries
    {
        "local",
        "server",
        "forward",
        "redirect",
        "dns_listener",
        "gateway",
        "admin",
        "admin_client",
        "fleet",
    },
    {"inbound", "config", "history"},
    {"rotation"},
    {"exits"},
    {"relay", "transport"},
    {"pool"},
    {"ageing", "shadowsocks"},
    {"handshake", "net"},
    {"tunnel", "access"},
    {"request", "settings"},
    {"http", "dns", "keyfile", "key_origin", "link", "units", "yaml_tree"},
    {"crypto", "stream", "address", "messages", "loop_lag", "sqlite_file"},
    {
        "replay",
        "observe",
        "events",
        "histograms",
        "log_output",
        "errors",
        "files",
        "backoff",
        "lru",
        "deadline",
        "turns",
        "sock",
        "netlink",
    },
    {"per_hub", "tuples"},
]

#: the modules that may use a library which the others must not know
USERS_OF = {
    "nacl": {"crypto", "access.users", "shadowsocks.ciphers"},
    "yaml": {"config.yaml", "yaml_tree"},
    "wsproto": {"transport.websocket"},
    "redis": {"fleet.store"},
    "argparse": {"main", "cli.commands", "cli.completion", "cli.history_commands", "cli.parser"},
    "cryptography": {"shadowsocks.ciphers", "shadowsocks.keys"},
    "blake3": {"shadowsocks.keys"},
    "dns": {"dns_listener.wire"},
}

#: bytes in, bytes out: usable without an event loop
WITHOUT_GEVENT = {
    "errors",
    "backoff",
    "lru",
    "address",
    "crypto",
    "replay",
    "request",
    "settings",
    "transport.options",
    "units",
    "access.rules",
    "access.username",
    "rotation.evidence",
    "rotation.health",
    "rotation.indexed",
    "rotation.member",
    "rotation.policy",
    "rotation.ring",
    "rotation.roster",
    "rotation.session",
    "rotation.views",
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Each module of gsocks by its name without ``gsocks.``; a package by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text())
    return found


@functools.cache
def imported(module: str) -> frozenset[str]:
    """The full names of all modules that ``module`` imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                is_module = submodule.removeprefix("gsocks.") in modules()
                names.add(submodule if is_module else source)
    return frozenset(names)


def own_imports(module: str) -> set[str]:
    """The modules of gsocks that ``module`` imports, without ``gsocks.``."""
    return {
        name.removeprefix("gsocks").removeprefix(".")
        for name in imported(module)
        if name == "gsocks" or name.startswith("gsocks.")
    }


def package_of(module: str) -> str:
    return module.partition(".")[0]


def row_of(module: str) -> int:
    return next(row for row, packages in enumerate(LAYERS) if package_of(module) in packages)


def test_every_package_has_its_row() -> None:
    rows = [package for packages in LAYERS for package in packages]
    assert sorted(rows) == sorted({package_of(module) for module in modules()})


@pytest.mark.parametrize("package", [package for row in LAYERS for package in sorted(row)])
def test_a_package_imports_only_from_the_rows_below_it(package: str) -> None:
    upward = {
        (module, used)
        for module in modules()
        if package_of(module) == package
        for used in own_imports(module)
        if package_of(used) != package and row_of(used) <= row_of(module)
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: own_imports(module) - {module} for module in modules()}
    # raises CycleError, which names the circle
    assert set(TopologicalSorter(graph).static_order()) == set(modules())


@pytest.mark.parametrize("library", USERS_OF)
def test_a_library_is_used_only_where_it_is_meant_to_be(library: str) -> None:
    users = {
        module
        for module in modules()
        if any(name.partition(".")[0] == library for name in imported(module))
    }
    assert users == USERS_OF[library]


@pytest.mark.parametrize("module", sorted(WITHOUT_GEVENT))
def test_a_module_without_input_or_output_does_not_import_gevent(module: str) -> None:
    assert not any(name.partition(".")[0] == "gevent" for name in imported(module))


def test_the_relay_knows_no_protocol() -> None:
    assert {package_of(module) for module in own_imports("relay")} == {
        "errors",
        "net",
        "stream",
        "tuples",
        "turns",
    }


def test_nothing_is_validated_by_assert_and_nothing_swallows_every_exception() -> None:
    for module, tree in modules().items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{module}: assert"
            if isinstance(node, ast.ExceptHandler):
                bare = node.type is None or (
                    isinstance(node.type, ast.Name)
                    and node.type.id in ("Exception", "BaseException")
                )
                reports = any(
                    isinstance(inner, ast.Raise)
                    or (
                        isinstance(inner, ast.Attribute)
                        and inner.attr in ("exception", "handle_error")
                    )
                    for inner in ast.walk(node)
                )
                assert not bare or reports, f"{module}:{node.lineno} swallows everything"


def test_what_several_files_of_tests_use_lies_in_support() -> None:
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not source.startswith("tests.test_"), f"{path.name} imports {source}"


def test_the_document_lists_every_package_in_the_order_of_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## Packages")[2].partition("## Glossary")[0]
    rows = [line.partition("|")[2].partition("|")[0] for line in table.splitlines()]
    listed = [package.strip("/") for row in rows for package in re.findall("`([a-z_]+/?)`", row)]
    packages = [package for row in LAYERS for package in row if package not in ("", "__main__")]
    assert sorted(listed) == sorted(packages)
    assert sorted(listed, key=row_of) == listed


def test_the_document_is_two_screens_with_ten_rows_of_packages_and_twenty_of_words() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    _, packages, words = re.split("## Packages|## Glossary", text)
    rows = [
        sum(line.startswith("| ") for line in part.splitlines()) - 1 for part in (packages, words)
    ]
    assert rows == [10, 20]
    assert len(text.splitlines()) <= 120


def test_the_decisions_are_numbered_without_a_gap() -> None:
    found = sorted(path.name[:4] for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert found == [f"{number:04}" for number in range(1, len(found) + 1)]


def test_the_document_links_every_decision() -> None:
    folder = ROOT / "docs" / "adr"
    linked = set(re.findall(r"\]\((\d{4}[a-z0-9-]*\.md)\)", (folder / "README.md").read_text()))
    assert linked == {path.name for path in folder.glob("[0-9]*.md")}
