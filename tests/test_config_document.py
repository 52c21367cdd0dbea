"""docs/config.md and the JSON schema are generated from the structs of the config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gsocks import config
from gsocks.config import convert, document
from gsocks.errors import ConfigError
from gsocks.exits import spec
from gsocks.rotation import sources

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10

#: sections that make a difference by being there
OPTIONAL = (
    *("local", "server", "redirect", "dns_listener", "admin", "health"),
    *("state", "requests", "tracing", "tls"),
)

VALIDATOR = Draft202012Validator(document.schema())


def mistakes(text: str) -> list[str]:
    """The places of the mistakes that an editor marks, and what is wrong there."""
    found = VALIDATOR.iter_errors(yaml.safe_load(text))
    return [f"{error.json_path}: {error.message}" for error in found]


def examples() -> Iterator[Any]:
    yield pytest.param((ROOT / "config.example.yaml").read_text(), id="config.example.yaml")
    for path in DOCUMENTS:
        blocks = re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        yield from (pytest.param(text, id=f"{path.name}-{n}") for n, text in enumerate(blocks))


def test_the_document_has_the_tables_that_the_generator_writes() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    assert document.with_tables(text) == text, "run python -m gsocks.config.document"


def test_the_schema_is_what_the_generator_writes() -> None:
    text = (ROOT / "docs" / "config.schema.json").read_text()
    assert document.schema_text() == text, "run python -m gsocks.config.document"


def test_a_document_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="the markers of the keys are missing"):
        document.with_tables("# The config file\n")


def test_the_schema_is_one_of_draft_2020_12() -> None:
    Draft202012Validator.check_schema(document.schema())


def test_every_key_is_described() -> None:
    def described(schema: Any, at: str) -> Iterator[str]:
        for name, part in schema.get("properties", {}).items():
            if not part["description"].endswith("."):
                yield f"{at}.{name}"
        for name, part in schema.get("$defs", {}).items():
            yield from described(part, name)

    assert list(described(document.schema(), "config")) == []


@pytest.mark.parametrize("text", list(examples()))
def test_every_example_is_valid(text: str) -> None:
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "settings",
    [
        "timeouts: {idle: 90, connect: 1.5, drain: 1h30m, bind: 250ms}",
        "limits: {request_body: 100MB, bandwidth_per_connection: 64KiB/s}",
        "limits: {request_body: 4096, bandwidth_per_connection: 2048}",
        "health: {max_ejected: 100%}",
        "exits: [direct, {url: direct, source: 203.0.113.0/28}]",
        "exits: [{url: 'socks5://h', weight: 0.5, tags: [7, de], name: 12, via: {url: direct}}]",
        "exit_sources: [{url: 'https://provider.example/list', interval: 10m, weight: 2}]",
        "exit_sources: [{file: proxies.txt, scheme: socks5, via: 'http://h:1'}]",
        "retry_on: [403, 429]",
        "checks: {urls: ['http://a.example/', 'https://b.example/'], expect: {status: 204}}",
        "checks: {expect: {pattern: 'a|b', json: geo.ip}, connect: true}",
        "udp: {ports: 40000-40999, associations: 0, advertise: 203.0.113.7}",
        f"users: {{alice: '{HASH}'}}",
        "listen: unix:/run/gsocks.sock",
        "listen: ['unix:run/s?mode=660', {address: 'systemd:a.socket', ask: true}, 'systemd:']",
    ],
)
def test_what_gsocks_reads_is_valid(settings: str, tmp_path: Path) -> None:
    (tmp_path / "proxies.txt").touch()
    listen = "" if settings.startswith("listen:") else "  listen: 127.0.0.1:1080\n"
    text = f"local:\n{listen}  {settings}\n"
    config.parse(text, tmp_path)
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "forwards: [{listen: 127.0.0.1:1, to: 'a:1'}, {listen: 'unix:/s', to: '[::1]:1'}]",
        "forwards: {routes: [{listen: '[::1]:1-3', to: 'a:1-3', udp: true, exit: b}], tries: 2}",
        "forwards: {routes: [{listen: 'systemd:a', to: 'a:1'}], udp: {idle: 5s}, exits: [direct]}",
    ],
)
def test_so_are_forwards(text: str, tmp_path: Path) -> None:
    config.parse(text, tmp_path)
    assert mistakes(text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("log: {}", "$"),
        ("local: {}", "$.local"),
        ("local:", "$.local"),
        ("lokal: {}", "$"),
        ("local: {listen: 127.0.0.1:1}\nworkers: 0", "$.workers"),
        ("local: {listen: 127.0.0.1:1}\nworkers: many", "$.workers"),
        ("local: {listen: 127.0.0.1:1}\nlog: {level: verbose}", "$.log.level"),
        ("local: {listen: 127.0.0.1:1}\nlog: {access: sometimes}", "$.log.access"),
        ("local: {listen: 127.0.0.1}", "$.local.listen"),
        ("local: {listen: []}", "$.local.listen"),
        ("local: {listen: {session: a}}", "$.local.listen"),
        ("local: {listen: 127.0.0.1:1, keys: {a: k}}", "$.local"),
        ("local: {listen: 127.0.0.1:1, rotate: fast}", "$.local.rotate"),
        ("local: {listen: 127.0.0.1:1, tries: 11}", "$.local.tries"),
        ("local: {listen: 127.0.0.1:1, clients: []}", "$.local.clients"),
        ("local: {listen: 127.0.0.1:1, rules: [permit all]}", "$.local.rules[0]"),
        ("local: {listen: 127.0.0.1:1, users: {alice: secret}}", "$.local.users.alice"),
        ("local: {listen: 127.0.0.1:1, retry_on: [200]}", "$.local.retry_on[0]"),
        ("local: {listen: 127.0.0.1:1, timeouts: {idel: 1m}}", "$.local.timeouts"),
        ("local: {listen: 127.0.0.1:1, timeouts: {idle: soon}}", "$.local.timeouts.idle"),
        ("local: {listen: 127.0.0.1:1, timeouts: {idle: 0}}", "$.local.timeouts.idle"),
        ("local: {listen: 127.0.0.1:1, limits: {per_user: 0}}", "$.local.limits.per_user"),
        (
            "local: {listen: 127.0.0.1:1, limits: {request_body: big}}",
            "$.local.limits.request_body",
        ),
        ("local: {listen: 127.0.0.1:1, health: {max_ejected: 0.5}}", "$.local.health.max_ejected"),
        ("local: {listen: 127.0.0.1:1, exits: direct}", "$.local.exits"),
        ("local: {listen: 127.0.0.1:1, exits: [{weight: 2}]}", "$.local.exits[0]"),
        ("local: {listen: 127.0.0.1:1, exits: [{url: direct, wieght: 2}]}", "$.local.exits[0]"),
        ("local: {listen: 127.0.0.1:1, exit_sources: [{}]}", "$.local.exit_sources[0]"),
        (
            "local: {listen: 127.0.0.1:1, exit_sources: [{file: a, url: 'http://b/'}]}",
            "$.local.exit_sources[0]",
        ),
        ("server: {listen: 127.0.0.1:1}", "$.server"),
        ("server: {listen: 127.0.0.1:1, keys: {}}", "$.server.keys"),
        ("server: {listen: 127.0.0.1:1, keys: {a: {file: k, key: k}}}", "$.server.keys.a"),
        ("server: {listen: 127.0.0.1:1, keys: {a: k}, sessions: {}}", "$.server"),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: k}, transport: {kind: quic}}",
            "$.server.transport.kind",
        ),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: k}, transport: {kind: ws, path: x}}",
            "$.server.transport.path",
        ),
        ("local: {listen: 'unix:/s?mode=rw'}", "$.local.listen"),
        ("forwards: []", "$.forwards"),
        ("forwards: [{listen: 127.0.0.1:1}]", "$.forwards"),
        ("forwards: {routes: []}", "$.forwards"),
    ],
)
def test_a_mistake_is_marked_at_its_place_and_refused_by_gsocks(text: str, place: str) -> None:
    assert {mistake.partition(": ")[0] for mistake in mistakes(text)} == {place}
    with pytest.raises(ConfigError):
        config.parse(text, ROOT)


@pytest.mark.parametrize(
    "settings",
    [
        "transport: {kind: ws, path: '/a?b=c'}",
        "transport: {kind: tls, cert: c.pem, alpn: [h2, http/1.1]}",
        "transport: {kind: wss, cert: c.pem, key: c.pem, alpn: []}",
        "exits: ['gsocks://K@h:1?transport=wss', {url: 'gsocks://h', key: K, transport: ws}]",
        "exits: [{url: 'gsocks://h', key: K, transport: wss, alpn: [x], cert: c, cert_key: k}]",
    ],
)
def test_what_gsocks_reads_of_transports_is_valid(settings: str, tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    settings = settings.replace("K@", f"{key}@").replace("key: K", f"key: {key}")
    text = f"server:\n  listen: 127.0.0.1:1080\n  keys: {{a: b{key[1:]}}}\n  {settings}\n"
    config.parse(text, tmp_path)
    assert mistakes(text) == []


def test_mappings_with_parsers_of_their_own_have_all_their_keys() -> None:
    def names(struct: Any) -> set[str]:
        return {key.name for key in document.keys_of(struct)}

    assert names(document.ExitKeys) == {"url", *spec._OPTIONS}
    assert names(document.ExitSourceKeys) == set(sources.KEYS)
    assert names(document.ListenKeys) == {"address", *convert.LISTEN_KEYS}
    assert names(document.RouteKeys) == {"listen", "to", *convert.ROUTE_KEYS}


def test_the_defaults_of_the_schema_are_those_of_gsocks(tmp_path: Path) -> None:
    """A config that spells out every default is the config without them."""
    schema = document.schema()

    def defaults(part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        found = {}
        for name, each in part.get("properties", {}).items():
            if "default" in each:
                found[name] = each["default"]
            elif "$ref" in each and name not in OPTIONAL:
                found[name] = defaults(each)
        return found

    local = {"listen": "127.0.0.1:1080", **defaults({"$ref": "#/$defs/Local"})}
    tree = {**defaults(schema), "local": local, "admin": defaults({"$ref": "#/$defs/Admin"})}
    assert config.parse(json.dumps(tree), tmp_path) == config.parse(
        "local: {listen: 127.0.0.1:1080}\nadmin: {}", tmp_path
    )
