"""The configuration file: its values, and the messages about its mistakes."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from yaml import CBaseLoader

from gsocks import config, yaml_tree
from gsocks.access.networks import Networks
from gsocks.address import Address
from gsocks.config import Config, KeySource, ListenAddress, Local, Server, load
from gsocks.config.yaml import read_yaml
from gsocks.dns.name_server import NameServer, Transport
from gsocks.errors import ConfigError
from gsocks.exits.spec import DIRECT, ExitSpec
from gsocks.http.url import WebUrl
from gsocks.request import ExitSelector
from gsocks.settings import (
    CheckSettings,
    DnsSettings,
    ExpectSettings,
    HealthSettings,
    Limits,
    PoolSettings,
    ReuseSettings,
    SessionSettings,
    Timeouts,
    TransportSettings,
    UdpSettings,
)

ROOT = Path(__file__).parent.parent

KEY = base64.urlsafe_b64encode(bytes(range(216, 248))).decode().rstrip("=")
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(100, 132))).decode().rstrip("=")
HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10

DEFAULT = """\
# both ends in one file, and the zero-edit default: keys are made on first start
server:
  listen: 127.0.0.1:8388
  keys: {default: {file: gsocks.key}}       # created with mode 0600 if missing
local:
  listen: 127.0.0.1:1080                    # one address or a list
  exits:
    - url: gsocks://127.0.0.1:8388
      key_file: gsocks.key
"""

ALL_KEYS = """\
# all of the keys; either section may have any of them, except that users belong to local and keys to server
workers: 1                                  # or auto: one process per core, sharing the port
log: {level: info, format: text, access: true}
local:
  listen: ["127.0.0.1:1080", "[::1]:1080"]
  users: {alice: "$argon2id$..."}           # gsocks passwd; refused: an open listener on a non-loopback address without users
  exits:                                    # a plain URL or a mapping
    - direct
    - direct://?source=203.0.113.0/28       # rotates its source address
    - gsocks://KEY@vps.example.com:8388
    - url: socks5://user:pass@10.0.0.7:1080 # also socks4a://, http://, https://
      weight: 2
      tags: [de, residential]
      max_connections: 50
  exit_sources: [{file: proxies.txt}]
  rotate: round_robin
  rules: [deny private, allow *.example.com:443, allow all]
  limits: {connections: 10000, per_client: 256}
  timeouts: {handshake: 10s, connect: 10s, idle: 10m, half_closed: 60s}
  pool: {size: 8, max_idle: 5m, max_age: 1h, max_volume: 64GiB}
""".replace("$argon2id$...", HASH).replace("KEY", KEY)  # noqa: E501


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "proxies.txt").touch()
    return tmp_path


def parse(text: str, base: Path = ROOT) -> Config:
    return config.parse(text, base)


def local(settings: str, base: Path = ROOT) -> Local:
    """The section local that has ``settings`` and an address."""
    lines = "".join(f"  {line}\n" for line in settings.splitlines())
    found = parse(f"local:\n  listen: 127.0.0.1:0\n{lines}", base).local
    assert found is not None
    return found


def refusal(text: str, base: Path = ROOT) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, base)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.yaml: ")
    return message.removeprefix("config.yaml: ")


def local_refusal(settings: str, base: Path = ROOT) -> str:
    with pytest.raises(ConfigError) as caught:
        local(settings, base)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("config.yaml: ")


# --- its values ----------------------------------------------------------------------------


def test_the_zero_edit_default_is_both_ends(base: Path) -> None:
    found = parse(DEFAULT, base)
    assert found.workers == 1
    assert found.local == Local(
        listen=config.ListenAddresses([ListenAddress(Address("127.0.0.1", 1080))]),
        exits=config.Exits(
            [ExitSpec("gsocks", "127.0.0.1", 8388, key_file=base / "gsocks.key")],
        ),
    )
    assert found.server == Server(
        listen=config.Addresses([Address("127.0.0.1", 8388)]),
        keys=config.KeySources(default=KeySource(file=base / "gsocks.key")),
    )
    assert found.server.exits == (DIRECT,)


def test_the_example_is_the_zero_edit_default() -> None:
    assert load(ROOT / "config.example.yaml") == parse(DEFAULT)


def test_every_key_of_the_design_is_read(base: Path) -> None:
    found = parse(ALL_KEYS, base)
    assert found.log == config.Log(level="info", format="text", access=True)
    section = found.local
    assert section is not None
    assert section.addresses == (Address("127.0.0.1", 1080), Address("::1", 1080))
    assert section.users == {"alice": HASH}
    assert section.exits == (
        DIRECT,
        ExitSpec.parse("direct://?source=203.0.113.0/28"),
        ExitSpec.parse(f"gsocks://{KEY}@vps.example.com:8388"),
        ExitSpec.parse("socks5://user:pass@10.0.0.7:1080"),
    )
    proxy = section.exits[3]
    assert (proxy.weight, proxy.tags, proxy.max_connections) == (2.0, ("de", "residential"), 50)
    assert [source.kept for source in section.exit_sources] == [base / "proxies.txt"]
    assert section.rotate == "round_robin"
    assert section.rules == ("deny private", "allow *.example.com:443", "allow all")
    assert section.limits == Limits(connections=10_000, per_client=256)
    assert section.timeouts == Timeouts()
    assert section.pool == PoolSettings()


def test_a_server_takes_the_same_keys_as_local(base: Path) -> None:
    text = ALL_KEYS.replace("local:", "server:")
    text = re.sub("  users: .*", f"  keys: {{laptop: {KEY}}}", text)
    found = parse(text, base).server
    other = parse(ALL_KEYS, base).local
    assert found is not None
    assert other is not None
    for name in config.Section.__struct_fields__:
        assert getattr(found, name) == getattr(other, name)


def test_the_defaults_are_those_of_programs() -> None:
    section = local("")
    assert section.limits == Limits()
    assert section.timeouts == Timeouts()
    assert section.pool == PoolSettings()
    assert section.health == HealthSettings()
    assert section.checks == CheckSettings()
    assert section.udp == UdpSettings()
    assert section.sessions == SessionSettings()
    assert section.exits == (DIRECT,)
    assert section.rules is None
    assert section.users == {}
    assert not section.allow_anonymous
    assert not section.fast_open


def test_a_key_is_a_file_or_a_text() -> None:
    text = f"""
server:
  listen: 127.0.0.1:8388
  keys:
    a: {{file: a.key}}
    b: {{key: {KEY}=}}
    c: {OTHER_KEY}
"""
    found = parse(text).server
    assert found is not None
    assert found.keys == {
        "a": KeySource(file=ROOT / "a.key"),
        "b": KeySource(key=KEY),
        "c": KeySource(key=OTHER_KEY),
    }


def test_values_are_read_as_their_place_means_them() -> None:
    found = parse(
        f"""
workers: auto
log: {{access: false}}
local:
  listen: localhost:1080
  users: {{on: "{HASH}", 2024-01-01: "{HASH}"}}
  exits:
    - {{url: socks5://10.0.0.7, country: NO, user: 0123, password: 1:30, tags: [yes, 7]}}
  timeouts: {{idle: 90, connect: 1.5}}
  pool: {{size: 0}}
"""
    )
    assert found.workers == "auto"
    assert not found.log.access
    assert found.local is not None
    assert found.local.listen == (ListenAddress(Address("127.0.0.1", 1080)),)
    assert set(found.local.users) == {"on", "2024-01-01"}
    (proxy,) = found.local.exits
    assert (proxy.user, proxy.password, proxy.country) == ("0123", "1:30", "no")
    assert proxy.tags == ("yes", "7")
    assert (found.local.timeouts.idle, found.local.timeouts.connect) == (90.0, 1.5)
    assert found.local.pool.size == 0


def test_an_anchor_may_be_used_again() -> None:
    found = parse(
        f"""
local: {{listen: 127.0.0.1:1, timeouts: &t {{idle: 1m}}, exits: &e [socks5://h]}}
server: {{listen: 127.0.0.1:2, timeouts: *t, exits: *e, keys: {{a: {KEY}}}}}
"""
    )
    assert found.local is not None
    assert found.server is not None
    assert found.local.timeouts == found.server.timeouts
    assert found.local.exits == found.server.exits


def test_a_source_of_exits_keeps_direct_out(base: Path) -> None:
    assert local("exit_sources: [{file: proxies.txt}]", base).exits == ()
    assert local("exits: [direct]\nexit_sources: [{file: proxies.txt}]", base).exits == (DIRECT,)


@pytest.mark.parametrize("port", [0, 1080])
def test_port_0_may_stand_in_a_list_twice_but_no_other(port: int) -> None:
    text = f'local: {{listen: ["127.0.0.1:{port}", "127.0.0.1:{port}"]}}'
    if port:
        assert refusal(text) == "local.listen[1]: duplicate address 127.0.0.1:1080"
    else:
        parse(text)


def test_a_listener_may_have_an_exit_selector() -> None:
    found = parse("""
local:
  listen:
    - 127.0.0.1:1080
    - {address: 127.0.0.1:1081, session: browser-1, country: NO, lifetime: 30m}
    - {address: "[::1]:1081", tags: [Mobile, fast, mobile], exit: Berlin-1}
    - {address: "[::1]:1082", tags: mobile}
""").local
    assert found is not None
    assert found.listen == (
        ListenAddress(Address("127.0.0.1", 1080)),
        ListenAddress(Address("127.0.0.1", 1081), ExitSelector("browser-1", 1800.0, "no")),
        ListenAddress(Address("::1", 1081), ExitSelector(tags=("fast", "mobile"), exit="berlin-1")),
        ListenAddress(Address("::1", 1082), ExitSelector(tags=("mobile",))),
    )
    one = parse("local: {listen: {address: 127.0.0.1:1081, session: a}}").local
    assert one is not None
    assert one.listen == (ListenAddress(Address("127.0.0.1", 1081), ExitSelector("a")),)


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("{address: 127.0.0.1:1, sesion: a}", ".sesion: unknown key (did you mean session?)"),
        ("{session: a}", ".address: missing (expected e.g. 127.0.0.1:1081)"),
        ("{address: 127.0.0.1:1, ask: maybe}", ".ask: 'maybe' is not true or false"),
        (
            "{address: 127.0.0.1:1, prefer_login: maybe}",
            ".prefer_login: 'maybe' is not true or false",
        ),
        ("{address: localhost, session: a}", ".address: 'localhost' is not an address to listen"),
        ("{address: 127.0.0.1:1, session: a b}", ".session: 'a b' is not a session"),
        ("{address: 127.0.0.1:1, session: [a]}", ".session: a list is not a session"),
        ("{address: 127.0.0.1:1, lifetime: soon}", ".lifetime: 'soon' is not a duration"),
        ("{address: 127.0.0.1:1, strict: very}", ".strict: 'very' is not true or false"),
        ("{address: 127.0.0.1:1, country: ger}", ".country: 'ger' is not a country"),
        ("{address: 127.0.0.1:1, tags: [a b]}", ".tags: 'a b' is not a tag"),
        ("{address: 127.0.0.1:1, tags: {a: b}}", ".tags: a mapping is not a tag"),
        ("{address: 127.0.0.1:1, exit: '*'}", ".exit: '*' is not the name of an exit"),
        ("{address: 0.0.0.0:1}", ": 0.0.0.0:1 would be an open proxy"),
        ("[{address: 127.0.0.1:1}, 127.0.0.1:1]", "[1]: duplicate address 127.0.0.1:1"),
    ],
)
def test_a_mistake_in_a_listener_is_named_by_its_place(listen: str, message: str) -> None:
    assert refusal(f"local: {{listen: {listen}}}").startswith(f"local.listen{message}")


def test_a_server_has_no_exit_selectors() -> None:
    for listen in ("{address: 127.0.0.1:1}", "[{address: 127.0.0.1:1}]"):
        at = "[0]" if listen.startswith("[") else ""
        assert refusal(f"server: {{listen: {listen}, keys: {{a: {KEY}}}}}").startswith(
            f"server.listen{at}: a mapping is not an address to listen on"
        )


def test_connections_are_kept_as_the_file_says() -> None:
    found = local("reuse: {per_exit: 0, total: 2, max_idle: 1m}").reuse
    assert found == ReuseSettings(per_exit=0, total=2, max_idle=60)
    assert local("").reuse == ReuseSettings(per_exit=8, total=512, max_idle=30)
    assert refusal("local: {listen: 127.0.0.1:1, reuse: {per_exit: -1}}") == (
        "local.reuse.per_exit: '-1' is not a whole number from 0"
    )
    assert refusal("local: {listen: 127.0.0.1:1, reuse: {max_idle: 0}}").startswith(
        "local.reuse.max_idle: '0' is not a duration above zero"
    )
    assert refusal(f"server: {{listen: 127.0.0.1:1, keys: {{a: {KEY}}}, reuse: {{}}}}") == (
        "server.reuse: not a key of this section (only of local)"
    )


def test_sessions_have_the_lifetimes_of_the_file() -> None:
    found = local("sessions: {idle: 1m, longest: 2h, by_client: true, strict: true}").sessions
    assert found == SessionSettings(idle=60, longest=7200, by_client=True, strict=True)
    assert refusal("local: {listen: 127.0.0.1:1, sessions: {idle: 0}}").startswith(
        "local.sessions.idle: '0' is not a duration above zero"
    )
    assert refusal(f"server: {{listen: 127.0.0.1:1, keys: {{a: {KEY}}}, sessions: {{}}}}") == (
        "server.sessions: not a key of this section (only of local)"
    )


@pytest.mark.parametrize(
    ("listen", "others", "asks"),
    [
        ("{address: 127.0.0.1:1}", "", False),
        ("{address: 127.0.0.1:1, ask: true}", "", True),
        ("{address: 127.0.0.1:1}", "ask: true", True),
        ("{address: 127.0.0.1:1, ask: false}", "ask: true", False),
        ("127.0.0.1:1", "ask: false, sessions: {strict: true}", False),
        ("{address: 127.0.0.1:1}", "sessions: {strict: true}", True),
        ("127.0.0.1:1", "exits: [direct, 'socks5://u-{session}:p@h']", True),
        ("127.0.0.1:1", "exits: ['http://u:{session}@h:1']", True),
        ("127.0.0.1:1", "exits: [{url: 'socks5://h', via: 'http://u-{session}:p@h:1'}]", True),
        ("127.0.0.1:1", "exits: ['socks5://u-{session:8}:p@h']", True),
        ("127.0.0.1:1", "exits: ['socks5://u{?-{session}}:p@h']", False),
        ("127.0.0.1:1", "exits: ['socks5://u-{user}:p@h']", False),
        ("{address: 127.0.0.1:1, ask: false}", "sessions: {strict: true}", False),
        ("{address: 127.0.0.1:1, session: a}", "sessions: {strict: true}", False),
        ("127.0.0.1:1", "sessions: {strict: true, by_client: true}", False),
    ],
)
def test_a_listener_asks_if_told_to_or_where_a_session_is_expected(
    listen: str, others: str, asks: bool
) -> None:
    local = parse(f"local: {{listen: {listen}, {others}}}").local
    assert local is not None
    assert local.asks(local.listen[0]) is asks


@pytest.mark.parametrize(
    ("listen", "others", "told"),
    [
        ("127.0.0.1:1", "", None),
        ("{address: 127.0.0.1:1}", "prefer_login: true", True),
        ("{address: 127.0.0.1:1, prefer_login: false}", "prefer_login: true", False),
        ("{address: 127.0.0.1:1, prefer_login: true}", "", True),
    ],
)
def test_a_listener_prefers_a_login_if_told_to_and_else_its_exits_decide(
    listen: str, others: str, told: bool | None
) -> None:
    local = parse(f"local: {{listen: {listen}, {others}}}").local
    assert local is not None
    assert local.prefers_login(local.listen[0]) is told


def test_a_listener_that_other_machines_reach_needs_users_or_allow_anonymous() -> None:
    text = "local: {listen: ['127.0.0.1:1', '0.0.0.0:1080'], %s}"
    assert refusal(text % "") == (
        "local.listen: 0.0.0.0:1080 would be an open proxy for all machines that can reach it"
        " (add users, or allow_anonymous: true if that is intended)"
    )
    parse(text % "allow_anonymous: true")
    parse(text % f'users: {{alice: "{HASH}"}}')
    parse("local: {listen: ['127.1.2.3:1', '[::1]:1']}")


def test_a_file_of_users_does_as_well_as_users(base: Path) -> None:
    (base / "users.txt").touch()
    text = "local: {listen: 0.0.0.0:1080, users_file: users.txt, limits: {per_user: 5}}"
    found = parse(text, base).local
    assert found is not None
    assert found.users_file == base / "users.txt"
    assert (
        refusal(text) == f"local.users_file: {ROOT / 'users.txt'} does not exist, or is not a file"
    )


def test_a_limit_for_each_key_is_a_servers() -> None:
    assert refusal("local: {listen: 127.0.0.1:1, limits: {per_key: 5}}") == (
        "local.limits.per_key: only a server has keys"
    )
    parse(f"server: {{listen: 127.0.0.1:1, limits: {{per_key: 5}}, keys: {{a: {KEY}}}}}")


def served_by(transport: str) -> str:
    keys = f"keys: {{a: {KEY}}}"
    return f"server: {{listen: 127.0.0.1:1, {keys}, transport: {{{transport}}}}}"


def test_a_server_has_its_transport_with_files_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    (tmp_path / "c.key").touch()
    for text, expected in (
        ("", TransportSettings()),
        ("kind: ws, path: /a?b", TransportSettings(kind="ws", path="/a?b")),
        ("kind: tls, cert: c.pem", TransportSettings(kind="tls", cert=tmp_path / "c.pem")),
        (
            "kind: wss, cert: c.pem, key: c.key, alpn: [h2, http/1.1]",
            TransportSettings(
                kind="wss",
                cert=tmp_path / "c.pem",
                key=tmp_path / "c.key",
                alpn=("h2", "http/1.1"),
            ),
        ),
        ("kind: tls, cert: c.pem, alpn: []", TransportSettings(
            kind="tls", cert=tmp_path / "c.pem", alpn=())),
    ):  # fmt: skip
        server = parse(served_by(text), tmp_path).server
        assert server is not None
        assert server.transport == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: quic", "kind: 'quic' is not a transport (known: tcp, tls, ws, wss)"),
        ("kind: tls", "cert: missing (tls needs a certificate)"),
        ("kind: wss", "cert: missing (wss needs a certificate)"),
        ("kind: ws, alpn: []", "alpn: not for ws (only for tls and wss)"),
        ("path: /x", "path: not for tcp (only for ws and wss)"),
        ("kind: ws, path: x", "path: 'x' is not the path of a URL (expected e.g. /updates)"),
        (
            "kind: ws, path: '/a b'",
            "path: '/a b' is not the path of a URL (expected e.g. /updates)",
        ),
        (
            "kind: tls, alpn: [a b]",
            "alpn: a list is not a list of protocols (expected e.g. http/1.",
        ),
        ("kind: tls, cert: no.pem", f"cert: {ROOT / 'no.pem'} does not exist, or is not a file"),
        ("knid: tls", "knid: unknown key (did you mean kind?)"),
    ],
)
def test_a_mistake_in_the_transport_is_told_with_its_place(text: str, message: str) -> None:
    assert refusal(served_by(text)).startswith(f"server.transport.{message}")


def test_a_reload_takes_the_transport_and_needs_no_restart(tmp_path: Path) -> None:
    before, after = parse(served_by("kind: ws")), parse(served_by("kind: ws, path: /new"))
    merged = config.reloaded(before, after)
    assert merged.server is not None
    assert merged.server.transport.path == "/new"
    assert config.needing_restart(merged, after) == []


@pytest.mark.parametrize(
    ("before", "after", "ignored"),
    [
        ("127.0.0.1:1", "['127.0.0.1:2', 'unix:/run/x']", []),
        ("127.0.0.1:1", "{address: 127.0.0.1:1, country: de}", []),
        ("127.0.0.1:1", "systemd:x", ["local.listen"]),
        ("['systemd:x', '127.0.0.1:1']", "127.0.0.1:1", ["local.listen"]),
        ("['systemd:x', '127.0.0.1:1']", "['systemd:x', '127.0.0.1:2']", []),
        ("127.0.0.1:1", "{address: 127.0.0.1:1, tls: false}", ["local.listen"]),
    ],
)
def test_a_reload_takes_addresses_but_not_what_only_a_start_is_given(
    before: str, after: str, ignored: list[str]
) -> None:
    running, found = (parse(f"local: {{listen: {each}}}") for each in (before, after))
    assert config.needing_restart(running, found) == ignored


def test_a_limit_for_each_user_needs_users() -> None:
    for limit in ("per_user: 5", "bandwidth_per_user: 1MB"):
        text = "local: {listen: 127.0.0.1:1, limits: {%s}, %s}"
        assert refusal(text % (limit, "")) == (
            f"local.limits.{limit.split(':')[0]}: needs users, whom it limits"
        )
        parse(text % (limit, f'users: {{alice: "{HASH}"}}'))
        parse(f"server: {{listen: 127.0.0.1:1, limits: {{{limit}}}, keys: {{a: {KEY}}}}}")


def test_associations_have_the_bounds_of_the_file() -> None:
    found = local(
        "udp: {advertise: '::ffff:203.0.113.7', ports: 40000-40999, associations: 0,"
        " per_client: 3, idle: 2m}"
    ).udp
    assert found == UdpSettings(
        advertise="203.0.113.7", ports=(40000, 40999), associations=0, per_client=3, idle=120.0
    )
    assert local("udp: {advertise: '2001:DB8::7', ports: 1-1}").udp == UdpSettings(
        advertise="2001:db8::7", ports=(1, 1)
    )


@pytest.mark.parametrize(
    "address", ["here.example", "0.0.0.0", "'::'", "''", "[]", "'fe80::1%eth0'"]
)
def test_an_advertised_address_is_one_that_clients_can_send_to(address: str) -> None:
    assert re.fullmatch(
        r"local\.udp\.advertise: .* is not an IP address \(expected e\.g\. 203\.0\.113\.7\)",
        local_refusal(f"udp: {{advertise: {address}}}"),
    )


@pytest.mark.parametrize("ports", ["40000", "0-9", "9-8", "1-65536", "1-2-3", "a-b", "[1, 2]", "-"])
def test_ports_are_a_range_of_those_that_there_are(ports: str) -> None:
    assert re.fullmatch(
        r"local\.udp\.ports: .* is not a range of ports \(expected e\.g\. 40000-40999\)",
        local_refusal(f"udp: {{ports: {ports}}}"),
    )


def test_limits_and_networks_are_read_as_the_runtime_wants_them() -> None:
    found = local(
        "clients: [10.0.0.0/8, '::1']\n"
        "proxy_protocol_from: [127.0.0.1]\n"
        "limits: {handshakes: 7, per_user: 3, request_body: 1MB, bandwidth_per_connection: 64KiB/s,"
        " bandwidth_per_user: 10MB}\n"
        f"users: {{alice: '{HASH}'}}"
    )
    assert found.clients == Networks(["10.0.0.0/8", "::1"])
    assert found.proxy_protocol_from == Networks(["127.0.0.1"])
    assert found.limits == Limits(
        handshakes=7,
        per_user=3,
        request_body=1_000_000,
        bandwidth_per_connection=65536.0,
        bandwidth_per_user=1e7,
    )
    assert local("").clients is local("").proxy_protocol_from is None


def test_health_and_checks_are_read_as_the_runtime_wants_them() -> None:
    found = local(
        "health: {failures: 5, base: 1m, longest: 10m, unproven: 1, max_ejected: 25%}\n"
        "checks: {urls: [http://a.example/, https://b.example/x?y], interval: 1m, timeout: 5s,"
        " expect: {status: 204, pattern: 'ip|addr', json: geo.ip}}"
    )
    assert found.health == HealthSettings(
        failures=5, base=60.0, longest=600.0, unproven=1, max_ejected=0.25
    )
    assert found.checks == CheckSettings(
        urls=(WebUrl.parse("http://a.example/"), WebUrl.parse("https://b.example/x?y")),
        interval=60.0,
        timeout=5.0,
        expect=ExpectSettings(status=204, pattern="ip|addr", json="geo.ip"),
    )


# --- secrets --------------------------------------------------------------------------------


def test_a_config_does_not_show_its_secrets(base: Path) -> None:
    text = f"{ALL_KEYS}server:\n  listen: 127.0.0.1:1\n  keys: {{a: {OTHER_KEY}}}\n"
    text = text.replace("user:pass@", "user:hunter2@")
    found = parse(text, base)
    for shown in (repr(found), str(found), f"{found}", repr(found.local), repr(found.server)):
        for secret in (KEY, OTHER_KEY, HASH, "hunter2"):
            assert secret not in shown
    assert "socks5://user:***@10.0.0.7:1080" in repr(found)
    assert "alice" in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "local: {listen: 127.0.0.1:1, exits: ['socks5://u:hunter2']}",
        "local: {listen: 127.0.0.1:1, exits: 'socks5://u:hunter2@h'}",
        "local: {listen: 127.0.0.1:1, exits: [{socks5://u:hunter2@h: {weight: 1}}]}",
        "local: {listen: 127.0.0.1:1, exits: [[socks5://u:hunter2@h]]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, user: u, password: [hunter2]}]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, password: *hunter2 }]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, password: !hunter2 }]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, password: !hunter2!x y}]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, password: &hunter2}]}",
        "local: {listen: 127.0.0.1:1, exits: [{url: socks5://h, password: &h*hunter2 x}]}",
        "local: {listen: 127.0.0.1:1, exits: {socks5://u:hunter2@h: 1, socks5://u:hunter2@h: 2}}",
        "local: {listen: socks5://u:hunter2@h}",
        "local: {listen: 127.0.0.1:1, users: {alice: hunter2}}",
        "local: {listen: 127.0.0.1:1, users: {'alice:hunter2': x}}",
        "local: {listen: 127.0.0.1:1, users: hunter2@}",
        "server: {listen: 127.0.0.1:1, keys: {a: hunter2}}",
        "server: {listen: 127.0.0.1:1, keys: {a: {key: hunter2}}}",
        f"server: {{listen: 127.0.0.1:1, keys: {KEY}}}",
        f"server: {{listen: 127.0.0.1:1, keys: {{a: {{{KEY}: 1}}}}}}",
        f"server: {{listen: 127.0.0.1:1, keys: {{a: {{file: x, key: {KEY}}}}}}}",
        f"server: {{listen: {KEY}, keys: {{a: b}}}}",
        f"server: {{listen: 127.0.0.1:1, keys: {{a: {KEY}, b: {KEY}}}}}",
        f"server: {{listen: 127.0.0.1:1, {KEY}: a}}",
        f"{KEY}: {{}}",
        f"[{KEY}]",
        f"{KEY}",
    ],
)
@pytest.mark.parametrize("loader", [CBaseLoader, yaml_tree._PythonLoader])
def test_no_mistake_repeats_a_secret(
    text: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_tree, "_Loader", loader)
    message = refusal(text)
    assert "hunter2" not in message
    assert KEY not in message


# --- mistakes, by their place ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "timeouts: {idle: ten minutes}",
            "local.timeouts.idle: 'ten minutes' is not a duration"
            " (expected e.g. 30s, 10m or 1h30m)",
        ),
        (
            "timeouts: {idle: 0s}",
            "local.timeouts.idle: '0s' is not a duration above zero (expected e.g. 30s or 10m)",
        ),
        (
            "timeouts: {idle: [1s]}",
            "local.timeouts.idle: a list is not a duration above zero (expected e.g. 30s or 10m)",
        ),
        ("timeouts: 10s", "local.timeouts: '10s' is not a mapping"),
        ("timeouts:", "local.timeouts: an empty value is not a mapping"),
        ("lisen: 127.0.0.1:1", "local.lisen: unknown key (did you mean listen?)"),
        ("timeouts: {idel: 1s}", "local.timeouts.idel: unknown key (did you mean idle?)"),
        (
            "limits: {sockets: 1}",
            "local.limits.sockets: unknown key (known: connections, per_client, per_key,"
            " handshakes, per_user, request_body, bandwidth_per_connection, bandwidth_per_user)",
        ),
        ("keys: {}", "local.keys: not a key of this section (only of server)"),
        ("dns: {}", "local.dns: not a key of this section (it belongs to the top level)"),
        ("limits: {handshakes: 0}", "local.limits.handshakes: '0' is not a whole number from 1"),
        ("limits: {per_user: many}", "local.limits.per_user: 'many' is not a whole number from 1"),
        (
            "limits: {request_body: 10Mb}",
            "local.limits.request_body: '10Mb' is not a size (expected e.g. 64KiB or 10MB)",
        ),
        (
            "limits: {bandwidth_per_connection: 10Mb}",
            "local.limits.bandwidth_per_connection: '10Mb' is not a rate"
            " (expected e.g. 64KiB/s or 10MB/s)",
        ),
        (
            "limits: {bandwidth_per_user: [1MB]}",
            "local.limits.bandwidth_per_user: a list is not a rate"
            " (expected e.g. 64KiB/s or 10MB/s)",
        ),
        (
            "limits: {bandwidth_per_user: 0}",
            "local.limits.bandwidth_per_user: '0' is less than 1KiB/s, the minimum",
        ),
        ("clients: 10.0.0.0/8", "local.clients: '10.0.0.0/8' is not a list"),
        (
            "clients: []",
            "local.clients: needs a network (expected e.g. 10.0.0.0/8 or ::1)",
        ),
        (
            "clients: ['::1', 10.0.0.1/8]",
            "local.clients[1]: '10.0.0.1/8' has host bits set (did you mean 10.0.0.0/8?)",
        ),
        (
            "clients: [example.com]",
            "local.clients[0]: 'example.com' is not an address or a network"
            " (expected e.g. 10.0.0.0/8 or ::1)",
        ),
        (
            "proxy_protocol_from: [[127.0.0.1]]",
            "local.proxy_protocol_from[0]: a list is not an address or a network",
        ),
        (
            "timeouts: {pool: {size: 1}}",
            "local.timeouts.pool: not a key of this section"
            " (only of local, server, forwards, redirect or dns_listener)",
        ),
        (
            "limits: {connections: 0}",
            "local.limits.connections: '0' is not a whole number from 1",
        ),
        (
            "limits: {per_client: many}",
            "local.limits.per_client: 'many' is not a whole number from 1",
        ),
        ("health: {failures: 0}", "local.health.failures: '0' is not a whole number from 1"),
        (
            "health: {base: soon}",
            "local.health.base: 'soon' is not a duration (expected e.g. 30s, 10m or 1h30m)",
        ),
        ("health: {unproven: 0}", "local.health.unproven: '0' is not a whole number from 1"),
        (
            "health: {max_ejected: 0.5}",
            "local.health.max_ejected: '0.5' is not a share (expected e.g. 50%)",
        ),
        (
            "health: {max_ejected: 101%}",
            "local.health.max_ejected: '101%' is not a share (expected e.g. 50%)",
        ),
        (
            "checks: {urls: https://a.example/}",
            "local.checks.urls: 'https://a.example/' is not a list",
        ),
        (
            "checks: {urls: [https://a.example/, a.example]}",
            "local.checks.urls[1]: not an http:// or https:// URL:"
            " expected e.g. https://example.com/list",
        ),
        (
            "checks: {urls: [https://a.example/?s3cret, https://a.example/?s3cret]}",
            "local.checks.urls[1]: duplicate URL https://a.example/...",
        ),
        (
            "checks: {expect: {status: 99}}",
            "local.checks.expect.status: '99' is not a status from 100 to 599",
        ),
        (
            "checks: {expect: {pattern: 'a('}}",
            "local.checks.expect.pattern: 'a(' is not a regular expression"
            " (missing ), unterminated subpattern at position 1)",
        ),
        (
            "checks: {expect: {json: a..b}}",
            "local.checks.expect.json: 'a..b' is not a field (expected e.g. ip, or geo.ip)",
        ),
        (
            "checks: {connect: perhaps}",
            "local.checks.connect: 'perhaps' is not true or false",
        ),
        (
            "checks: {interval: 0}",
            "local.checks.interval: '0' is not a duration above zero (expected e.g. 30s or 10m)",
        ),
        ("pool: {size: -1}", "local.pool.size: '-1' is not a whole number from 0"),
        (
            "allow_anonymous: maybe",
            "local.allow_anonymous: 'maybe' is not true or false",
        ),
        ("fast_open: soon", "local.fast_open: 'soon' is not true or false"),
        (
            "rotate: robin",
            "local.rotate: 'robin' is not a policy (known: round_robin, random, weighted,"
            " least_connections, fastest, least_recent)",
        ),
        ("rules: deny private", "local.rules: 'deny private' is not a list"),
        ("rules: null", "local.rules: 'null' is not a list"),
        (
            "rules: []",
            "local.rules: needs a rule (left out, it denies private ranges and allows the rest)",
        ),
        ("rules: [{a: b}]", "local.rules[0]: a mapping is not a rule (put quotes around it)"),
        ("exits: direct", "local.exits: 'direct' is not a list"),
        ("exits: []", "local.exits: needs an exit (left out, it is direct)"),
        (
            "exits: [[direct]]",
            "local.exits[0]: a list is not an exit (expected e.g. socks5://10.0.0.7:1080)",
        ),
        (
            "exits: [direct, socks5://h, direct]",
            "local.exits[2]: duplicate exit direct (use weight for a larger share)",
        ),
        (
            "exits: [direct://?name=a, socks5://h, socks5://h:1?name=A]",
            "local.exits[2].name: duplicate name a",
        ),
        (
            "exits: [direct, {url: 'http://h'}]",
            "local.exits[1].url: http:// needs a port (proxies often use 3128 or 8080)",
        ),
        (
            "exits: [{url: direct, weight: heavy}]",
            "local.exits[0].weight: 'heavy' is not a weight (expected a number from 0.001 to 1000)",
        ),
        (
            "exits: [{url: socks5://h, via: {url: 'gsocks://h'}}]",
            "local.exits[0].via.key_file: a gsocks exit needs a key or a key_file",
        ),
        (
            "exits: [{url: socks5://h, country: Norway}]",
            "local.exits[0].country: 'Norway' is not a country"
            " (expected a two-letter code such as de)",
        ),
        ("exit_sources: proxies.txt", "local.exit_sources: 'proxies.txt' is not a list"),
        (
            "exit_sources: [proxies.txt]",
            "local.exit_sources[0]: 'proxies.txt' is not a mapping"
            " (expected e.g. file: proxies.txt)",
        ),
        (
            "exit_sources: [{}]",
            "local.exit_sources[0]: has either a file or a url, and needs one",
        ),
        ("exit_sources: []", "local.exits: needs an exit (left out, it is direct)"),
        (
            'exit_sources: [{file: ""}]',
            "local.exit_sources[0].file: an empty value is not the path of a file",
        ),
        (
            'exit_sources: [{file: "a\\0b"}]',
            "local.exit_sources[0].file: 'a\\x00b' is not the path of a file",
        ),
        (
            "users: {alice: secret}",
            "local.users.alice: not the hash of a password (expected what gsocks passwd prints)",
        ),
        (
            "users: {al.ice: secret}",
            "local.users['al.ice']: not the hash of a password"
            " (expected what gsocks passwd prints)",
        ),
        (
            'users: {"": secret}',
            "local.users: a name that is empty, not printable or longer than 255 bytes",
        ),
        ("users: {'a:b': x}", "local.users: a user name can't hold a colon (HTTP ends it there)"),
        ("users: [alice]", "local.users: a list is not a mapping of names"),
    ],
)
def test_a_mistake_is_named_by_its_place_its_value_and_what_was_expected(
    settings: str, message: str
) -> None:
    assert local_refusal(settings) == message


@pytest.mark.parametrize(
    "address",
    ["1080", ":1080", "127.0.0.1", "*:1080", "proxy.lan:1080", "::1:1080"]
    + ["127.0.0.1:x", "[fe80::1%eth0]:1", "[127.0.0.1]:1", ""],
)
@pytest.mark.parametrize(("form", "where"), [("'%s'", ""), ("['[::1]:1', '%s']", "[1]")])
def test_a_listener_has_an_ip_address_and_a_port(address: str, form: str, where: str) -> None:
    message = refusal(f"local: {{listen: {form.replace('%s', address)}}}")
    assert message.startswith(f"local.listen{where}: ")
    assert message.endswith(
        " is not an address to listen on (expected e.g. 127.0.0.1:1080, [::1]:1080 or 0.0.0.0:1080)"
    )


def test_a_port_that_is_too_high_is_named() -> None:
    message = refusal("local: {listen: '127.0.0.1:99999'}")
    assert message == "local.listen: port 99999 is not between 0 and 65535"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log: {}", "needs local, server, forwards, redirect or dns_listener"),
        ("local: {}", "local.listen: missing"),
        ("local: {listen: []}", "local.listen: needs an address (expected e.g. 127.0.0.1:1080)"),
        ("local:", "local: an empty value is not a mapping"),
        ("server: {listen: 127.0.0.1:1}", "server.keys: missing"),
        (
            "server: {listen: 127.0.0.1:1, keys: {}}",
            "server.keys: needs a key (expected e.g. default: {file: gsocks.key})",
        ),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: {}}}",
            "server.keys.a: needs either a file or a key",
        ),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: {flie: x}}}",
            "server.keys.a.flie: unknown key (did you mean file?)",
        ),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: {file: []}}}",
            "server.keys.a.file: a list is not the path of a file",
        ),
        (
            "server: {listen: 127.0.0.1:1, keys: {a: {file: k}, b: {file: k}}}",
            "server.keys.b: duplicate key: the same as a",
        ),
        (
            "server: {listen: 127.0.0.1:1, users: {}}",
            "server.users: not a key of this section (only of local)",
        ),
        (
            f"local: {{listen: 127.0.0.1:1}}\nserver: {{listen: 127.0.0.1:1, keys: {{a: {KEY}}}}}",
            "server.listen: duplicate address 127.0.0.1:1: local listens there",
        ),
        (
            "local: {listen: 127.0.0.1:1}\nadmin: {listen: 127.0.0.1:1}",
            "admin.listen: duplicate address 127.0.0.1:1: local listens there",
        ),
        (
            "local: {listen: 127.0.0.1:1}\nadmin: {listen: 127.0.0.1:2}\n"
            "health: {listen: [127.0.0.1:3, 127.0.0.1:2]}",
            "health.listen: duplicate address 127.0.0.1:2: admin listens there",
        ),
        (
            "exits: [direct]",
            "exits: not a key of this section"
            " (only of local, server, forwards, redirect or dns_listener)",
        ),
        ("lokal: {}", "lokal: unknown key (did you mean local?)"),
        ("workers: 0", "workers: '0' is not auto or a whole number from 1 to 1024"),
        ("workers: 1025", "workers: '1025' is not auto or a whole number from 1 to 1024"),
        (
            "log: {level: verbose}",
            "log.level: 'verbose' is not a level (known: debug, info, warning, error)",
        ),
        ("log: {format: xml}", "log.format: 'xml' is not a format (known: text, json)"),
        ("log: {access: sometimes}", "log.access: 'sometimes' is not true or false"),
    ],
)
def test_so_is_one_outside_of_local(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("key", ["a - at `$[0].local", "a - at `$[0].local`", "`$`"])
def test_a_key_that_looks_like_the_place_of_a_mistake_is_unknown(key: str) -> None:
    """msgspec reports a mistake's place in its message, behind the unknown key."""
    for text in (f"local: {{listen: 127.0.0.1:1}}\n'{key}': 1", f"'{key}': 1"):
        assert refusal(text).startswith("a key that is not known here (known: workers, log, ")
    text = f"local: {{listen: 127.0.0.1:1, timeouts: {{'{key}': 1}}}}"
    assert refusal(text).startswith("local.timeouts: a key that is not known here (known: ")


def test_the_first_mistake_of_several_is_reported() -> None:
    text = "local: {rotate: a, listen: 1, oops: 1}\nworkers: 0"
    assert refusal(text).startswith("local.rotate: ")


def test_a_bad_rule_is_named() -> None:
    message = local_refusal("rules: [allow all, permit all]")
    assert message.startswith("local.rules[1]: ")
    assert "permit all" in message


def test_a_source_that_is_not_there_is_named(base: Path) -> None:
    settings = "exit_sources: [{file: proxies.txt}, {file: %s}]"
    assert local_refusal(settings % "gone.txt", base) == (
        f"local.exit_sources[1]: {base}/gone.txt does not exist, or is not a file"
    )
    assert local_refusal(settings % ".", base).endswith("does not exist, or is not a file")
    assert local_refusal(settings % ("x" * 300), base).endswith(": File name too long")


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("local: {listen: '127.0.0.1:0', exits: ['socks5://u:p@127.0.0.1:9']}", True),
        ("local: {listen: '127.0.0.1:0', exits: ['socks5://u:ge%2Fheim@h:1']}", True),
        (f"server: {{listen: '127.0.0.1:0', keys: {{me: '{KEY}'}}}}", True),
        (f"server:\n  listen: 127.0.0.1:0\n  keys:\n    me: {KEY}\n", True),
        ("server: {listen: '127.0.0.1:0', keys: {me: {file: me.key}}}", False),
        ("local: {listen: '127.0.0.1:0', exits: ['http://h:1'], rules: ['allow all']}", False),
    ],
)
def test_a_config_with_secrets_that_others_may_read_is_warned_of(
    text: str, is_secret: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(0o644)
    load(path)
    assert ("has secrets and can be read by others" in caplog.text) == is_secret


def load_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("workers: 0")
    assert load_refusal(path) == "workers: '0' is not auto or a whole number from 1 to 1024"


def test_files_are_relative_to_the_config(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "gsocks.yaml").write_text(DEFAULT)
    monkeypatch.chdir(base)
    found = load(Path("gsocks.yaml")).server
    assert found is not None
    assert found.keys["default"].file == base / "gsocks.key"


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_mistake(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(DEFAULT, encoding=codec)
    assert load(path).workers == 1


@pytest.mark.parametrize("mode", [0o602, 0o666])
def test_a_config_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(DEFAULT)
    path.chmod(mode)
    assert load_refusal(path) == ("can be written by others than its owner (chmod go-w mends it)")
    path.chmod(0o644)
    assert load(path).workers == 1


def test_a_missing_file_or_a_folder_is_reported(tmp_path: Path) -> None:
    assert load_refusal(tmp_path / "gone.yaml") == "No such file or directory"
    assert load_refusal(tmp_path) == "Is a directory"


def test_a_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(DEFAULT)
    path.chmod(0)
    script = """
import os, sys
from pathlib import Path
from gsocks import config, errors
if os.getuid() == 0:
    os.chdir(sys.argv[1])
    os.setresuid(65534, 65534, 65534)
try:
    config.load(Path("c.yaml"))
except errors.ConfigError as error:
    print(error)
"""
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "c.yaml: Permission denied\n"


def test_a_file_that_is_not_utf8_is_reported_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"local:\n  listen: \xe4\n")
    assert load_refusal(path) == "line 2: not UTF-8"
    path.write_bytes(b"\xff\xfea")
    assert load_refusal(path) == "begins as UTF-16 and is not"


def test_a_file_that_is_too_large_is_refused_and_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    assert load_refusal(path).startswith("larger than 4MiB, which no configuration needs (")
    assert load_refusal(Path("/dev/zero")).startswith("larger than 4MiB")


# --- YAML -----------------------------------------------------------------------------------

ESCAPE = "a quoted text with an escape (\\) that YAML doesn't know"

BEHIND = "text behind the end of a value (the whole of it needs quotes)"

COLON = "a colon is not expected here (a text with one needs quotes)"


@pytest.mark.parametrize("loader", [CBaseLoader, yaml_tree._PythonLoader])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty (expected local, server, forwards, redirect or dns_listener)"),
        ("# nothing\n", "empty (expected local, server, forwards, redirect or dns_listener)"),
        ("---\n", "empty (expected local, server, forwards, redirect or dns_listener)"),
        ("{}", "empty (expected local, server, forwards, redirect or dns_listener)"),
        (
            "hello",
            "'hello' is not a mapping (expected local, server, forwards, redirect or dns_listener)",
        ),
        (
            "- local",
            "a list is not a mapping (expected local, server, forwards, redirect or dns_listener)",
        ),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document (---) in one file"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: duplicate key 'a'"),
        ("local: {listen: 1, listen: 2}", "line 1, column 20: duplicate key 'listen'"),
        ("rules: [*example]", "line 1, column 9: a word that begins with * needs quotes"),
        ("a: !secret x", "line 1, column 4: a word that begins with ! needs quotes"),
        ("a: !!python/name:os.system", "line 1, column 4: a word that begins with ! needs quotes"),
        ("[a, b]: 1", "line 1, column 1: a key that is not a word"),
        ("a: &a [*a]", "line 1, column 8: a word that begins with * needs quotes"),
        ("a: \0", "line 1: a character (U+0000) that YAML doesn't allow"),
        ("a: 1\nb: \x1b[0m", "line 2: a character (U+001B) that YAML doesn't allow"),
        ("a: \ud800", "line 1: a character (U+D800) that YAML doesn't allow"),
        ("a: " + "[" * 100_000, "line 1, column 35: nested more than 32 deep"),
        ("- " * 100_000, "line 1, column 65: nested more than 32 deep"),
        ("? " * 100_000, "line 1, column 65: nested more than 32 deep"),
    ],
)
def test_unsupported_yaml_is_reported_by_its_line(
    text: str, message: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_tree, "_Loader", loader)
    assert refusal(text) == message


@pytest.mark.parametrize("loader", [CBaseLoader, yaml_tree._PythonLoader])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        # quotes
        ("a: 'x", "line 1, column 4: a quotation mark (') that is never closed"),
        ('a: "x\nb: 1', 'line 1, column 4: a quotation mark (") that is never closed'),
        ('a: "\\', 'line 1, column 4: a quotation mark (") that is never closed'),
        ('a: "\\q"', f"line 1, column 4: {ESCAPE}"),
        ('a: "\\xzz"', f"line 1, column 4: {ESCAPE}"),
        ('a: "\\ud800"', f"line 1, column 4: {ESCAPE}"),
        ('a: "\\U00110000"', f"line 1, column 4: {ESCAPE}"),
        ("a: 'x\n---\n'", "line 2, column 1: --- begins a line of a quoted text"),
        ('a: "x\n...\n"', "line 2, column 1: ... begins a line of a quoted text"),
        ("a: 'b' c", f"line 1, column 8: {BEHIND}"),
        ('"a" b: c', f"line 1, column 5: {BEHIND}"),
        # brackets
        ("a: [1, 2", "line 1, column 4: [ is never closed"),
        ("a: {b: 1\n", "line 1, column 4: { is never closed"),
        ("a: [", "line 1, column 5: [ or { is never closed"),
        ("a: [b, {c: {\n\n# d\n", "line 3, column 4: [ or { is never closed"),
        ("a: [}", "line 1, column 5: } is not expected here"),
        ("a: ]", "line 1, column 4: ] is not expected here"),
        ("a: {b: 1,, c: 2}", "line 1, column 10: , is not expected here"),
        ("a: [b\nc: 1", "line 2, column 2: expected , or ]"),
        ("a: [[b] c]", "line 1, column 9: expected , or ]"),
        ("a: {b: [c] d: 1}", "line 1, column 12: expected , or }"),
        ("a: [b] c", f"line 1, column 8: {BEHIND}"),
        # indentation, keys and items
        ("local:\n\tlisten: 1", "line 2, column 1: a tab, where YAML allows only spaces"),
        ("a: |\n\tb", "line 2, column 1: a tab, where YAML allows only spaces"),
        ("a:\n  b: 1\n c: 2\n", "line 3, column 2: indented unlike the lines above it"),
        ("- a\nb: 1", "line 2, column 1: indented unlike the lines above it"),
        ("a: b: c", f"line 1, column 5: {COLON}"),
        ("a: 1 b: 2", f"line 1, column 7: {COLON}"),
        (": a", f"line 1, column 1: {COLON}"),
        ("a: 1\r\nb: \u00fc: d", f"line 2, column 5: {COLON}"),
        ("a: 1\nb\nc: 2", "line 2, column 1: a key without a colon and a space behind it"),
        ("a: - b", "line 1, column 4: - is not expected here"),
        # words that need quotes
        ("a: @b", "line 1, column 4: a word that begins with @ needs quotes"),
        ("a: `b", "line 1, column 4: a word that begins with ` needs quotes"),
        ("a: %b", "line 1, column 4: a word that begins with % needs quotes"),
        ("a: &", "line 1, column 4: a word that begins with & needs quotes"),
        ("a: *\u00e4", "line 1, column 4: a word that begins with * needs quotes"),
        ("a: *!secret", "line 1, column 4: a word that begins with * needs quotes"),
        ("a: !b!c", "line 1, column 4: a word that begins with ! needs quotes"),
        ("a: !<b", "line 1, column 4: a word that begins with ! needs quotes"),
        ("a: !%zz", "line 1, column 4: a word that begins with ! needs quotes"),
        ("a: |b", "line 1, column 4: a word that begins with | needs quotes"),
        ("a: >0", "line 1, column 4: a word that begins with > needs quotes"),
        # around the document
        ("%YAML 1.2", "empty (expected local, server, forwards, redirect or dns_listener)"),
        ("%YAML 2.0\n---\na: 1", "line 1, column 1: a word that begins with % needs quotes"),
        ("#\n%FOO\n---\na: 1", "line 2, column 1: a word that begins with % needs quotes"),
        ("%YAML 1.1\n%YAML 1.1\n---\n", "line 2, column 1: a word that begins with % needs quotes"),
        ("a: 1\n...\n%YAML 1.1\n", "line 3, column 1: a word that begins with % needs quotes"),
        ("%YAML 1.1\na: 1", "line 2, column 1: text outside of the document"),
        ("a: 1\n...\nb: 2", "line 3, column 1: text outside of the document"),
        # the first mistake in the file, however far a loader looks ahead
        ("{a: 1, a: 2, @}", "line 1, column 8: duplicate key 'a'"),
        ("[a, *b, @]", "line 1, column 5: a word that begins with * needs quotes"),
    ],
)
def test_a_yaml_mistake_is_reported_in_the_same_words_by_each_loader(
    text: str, message: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_tree, "_Loader", loader)
    assert refusal(text) == message


@pytest.mark.parametrize("loader", [CBaseLoader, yaml_tree._PythonLoader])
@pytest.mark.parametrize("version", ["1.1", "1.2 # as it was written"])
def test_a_file_may_say_which_yaml_it_is_written_in(
    version: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_tree, "_Loader", loader)
    assert read_yaml(f"# c\n%YAML {version}\n---\na: 1\n") == {"a": "1"}


def test_aliases_of_aliases_do_not_multiply_without_bound() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert refusal("\n".join(lines)).endswith(": more than 1,000,000 values")


def test_a_large_list_of_exits_is_read() -> None:
    exits = "\n".join(f"- socks5://user{n}:pass@10.0.0.7:1080" for n in range(20_000))
    assert len(local(f"exits:\n{exits}").exits) == 20_000


def test_pyyaml_without_libyaml_will_do() -> None:
    script = """
import sys, yaml
del yaml.CBaseLoader
from pathlib import Path
from gsocks import config
from gsocks.yaml_tree import _Loader, _PythonLoader
assert _Loader is _PythonLoader
config.load(Path(sys.argv[1]))
"""
    example = str(ROOT / "config.example.yaml")
    subprocess.run([sys.executable, "-c", script, example], check=True)


# --- the outbound address -----------------------------------------------------------------------


def test_pages_for_the_outbound_address_and_a_file_of_countries(tmp_path: Path) -> None:
    (tmp_path / "c.mmdb").touch()
    text = (
        "local: {listen: 127.0.0.1:1080, checks:"
        " {ip_urls: [https://ip.example/], ip_interval: 1h, geo_file: c.mmdb}}"
    )
    found = config.parse(text, tmp_path).local
    assert found is not None
    assert [url.host for url in found.checks.ip_urls] == ["ip.example"]
    assert (found.checks.ip_interval, found.checks.geo_file) == (3600.0, tmp_path / "c.mmdb")


@pytest.mark.parametrize(
    ("checks", "mistake"),
    [
        ("ip_urls: [x]", "local.checks.ip_urls[0]: not an http:// or https:// URL: "),
        ("ip_interval: 0s", "local.checks.ip_interval: '0s' is not a duration above zero"),
        ("geo_file: none.mmdb", "local.checks.geo_file: "),
    ],
)
def test_mistakes_about_the_outbound_address(tmp_path: Path, checks: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(f"local: {{listen: 127.0.0.1:1080, checks: {{{checks}}}}}", tmp_path)
    assert mistake in str(caught.value)


# --- dns ------------------------------------------------------------------------------------


def dns(settings: str) -> DnsSettings:
    return parse(f"local: {{listen: 127.0.0.1:0}}\ndns: {settings}").dns


def test_dns_has_defaults_that_follow_the_system() -> None:
    found = parse("local: {listen: 127.0.0.1:0}").dns
    assert (found.servers, found.search) == ((), None)


def test_dns_names_servers_and_search_domains() -> None:
    found = dns(
        '{servers: [9.9.9.9, "tls://[2620:fe::fe]#dns.quad9.net"], search: [Corp.example.]}'
    )
    assert found.servers == (
        NameServer("9.9.9.9"),
        NameServer("2620:fe::fe", 853, Transport.TLS, "dns.quad9.net"),
    )
    assert found.search == ("corp.example",)
    assert dns("{search: []}").search == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{servers: []}", "dns.servers: needs a name server"),
        ("{servers: 9.9.9.9}", "dns.servers: '9.9.9.9' is not a list"),
        (
            "{servers: [dns.quad9.net]}",
            "dns.servers[0]: 'dns.quad9.net' is not a name server: a name server needs an IP",
        ),
        ("{servers: [9.9.9.9, 9.9.9.9:53]}", "dns.servers[1]: duplicate name server 9.9.9.9"),
        ("{servers: [[9.9.9.9]]}", "dns.servers[0]: a list is not a name server: expected e.g."),
        ("{search: [10.0.0.1]}", "dns.search[0]: '10.0.0.1' is not a domain"),
        ("{search: ['']}", "dns.search[0]: an empty value is not a domain"),
        ("{server: [9.9.9.9]}", "dns.server: unknown key (did you mean servers?)"),
        ("{cache_size: 0}", "dns.cache_size: '0' is not a whole number from 1"),
    ],
)
def test_a_mistake_in_dns_is_named(settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dns(settings)
    assert str(caught.value).removeprefix("config.yaml: ").startswith(message)
