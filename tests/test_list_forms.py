"""The forms that public lists and other tools' files of proxies have, one by one."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from gsocks.errors import ConfigError
from gsocks.exits.spec import TlsOptions
from gsocks.rotation.lists import ListOptions, parse_list, read_list

HERE = ListOptions(base=Path("/etc/gsocks"))
A, B = "192.0.2.1", "198.51.100.2"
HTTP_A, SOCKS_B = f"http://{A}:8080", f"socks5://{B}:1080"


def found(raw: str | bytes, scheme: str = "http") -> list[str]:
    """URL and country of each exit."""
    data = raw.encode() if isinstance(raw, str) else raw
    exits = parse_list(data, ListOptions(scheme, base=Path())).exits
    return [f"{spec.url} {spec.country or ''}".strip() for spec in exits]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"http://{A}:8080:alice:secret", f"http://alice:secret@{A}:8080"),
        (f"socks5://alice:secret:{A}:1080", f"socks5://alice:secret@{A}:1080"),
        (f"http://{A}:8080@alice:secret", f"http://alice:secret@{A}:8080"),
        (f"{A} 8080", HTTP_A),
        (f"{A}\t8080", HTTP_A),
        (f"{A},8080", HTTP_A),
        (f"{A}:8080,", HTTP_A),
        (f'"{HTTP_A}",', HTTP_A),
        (f"{A} 8080 alice secret", f"http://alice:secret@{A}:8080"),
        (f"{A},8080,alice,secret", f"http://alice:secret@{A}:8080"),
        (f"{A}:8080 alice:secret", f"http://alice:secret@{A}:8080"),
        (f"socks5 {B} 1080 alice secret", f"socks5://alice:secret@{B}:1080"),
        ("socks5 proxyhost 1080", "socks5://proxyhost:1080"),
        (f"http://{A}:80@p.example:8080", f"http://{A}:80@p.example:8080"),
        (f"socks5:{B}:1080", SOCKS_B),
        ("2001:db8::7,8080", "http://[2001:db8::7]:8080"),
        (f"{A}:8080:Germany", f"{HTTP_A} de"),
        (f"{A}:8080:DE", f"{HTTP_A} de"),
        (f"{A}:8080:United States", f"{HTTP_A} us"),
        (f"{A}:8080|Germany", f"{HTTP_A} de"),
        ("proxy.example:8080:Germany", "http://proxy.example:8080 de"),
        (f"{A}:8080 | Viet Nam | elite | 120 ms", f"{HTTP_A} vn"),
        (f"{A}:8080 US-N-S! +", f"{HTTP_A} us"),
        (f"{B}:3128 DE-H", f"http://{B}:3128 de"),
        (f"{B}:1080 SOCKS5 elite", SOCKS_B),
        (f"{A}:8080 elite 120ms", HTTP_A),
        (f"{B}:1080:alice:secret SOCKS5", f"socks5://alice:secret@{B}:1080"),
        (f"{A}:8080:alice:secret elite DE", f"http://alice:secret@{A}:8080 de"),
        (f"{A}:8080:alice:secret | United States", f"http://alice:secret@{A}:8080 us"),
        (f"{A}:8080:alice:secret, US", f"http://alice:secret@{A}:8080 us"),
        (f"http://{A}:8080:alice:secret socks5", f"http://alice:secret@{A}:8080"),
        (f"{A}:8080:alice:our secret", f"http://alice:our%20secret@{A}:8080"),
        (f"{A} 8080 alice secret DE", f"http://alice:secret@{A}:8080 de"),
        (f"{A}:8080:alice:secret,DE", f"http://alice:secret%2CDE@{A}:8080"),
        (f"{A}:8080 \U0001f1e9\U0001f1ea Germany", f"{HTTP_A} de"),
        (f"\U0001f1e9\U0001f1ea {A}:8080", f"{HTTP_A} de"),
        (f"\U0001f1e9\U0001f1ea DE {A}:8080 - elite", f"{HTTP_A} de"),
        (f"United States {HTTP_A}", f"{HTTP_A} us"),
        (f"US | SOCKS5 | {B}:1080", f"{SOCKS_B} us"),
        (f"{HTTP_A}#\U0001f1e9\U0001f1ea Frankfurt 1", f"{HTTP_A} de"),
        (f"{SOCKS_B}#@channel", SOCKS_B),
        (f"http://alice:se#cret@{A}:8080", f"http://alice:se%23cret@{A}:8080"),
        (f"- {HTTP_A}", HTTP_A),
        (f"- {A}:8080:alice:secret", f"http://alice:secret@{A}:8080"),
        (f"* {A} 8080", HTTP_A),
        (f"* socks5://alice:secret@{B}:1080", f"socks5://alice:secret@{B}:1080"),
        (f"'{A}:8080',", HTTP_A),
        (f'"http://alice:secret@{A}:8080",', f"http://alice:secret@{A}:8080"),
        (f"socks://{B}:1080#b", SOCKS_B),
        (f"socks://YWxpY2U6c2VjcmV0@{B}:1080#b", f"socks5://alice:secret@{B}:1080"),
        (f"socks://YWxpY2U6c2VjcmV0MTI@{B}:1080#b", f"socks5://alice:secret12@{B}:1080"),
        (f"socks://Og==@{B}:1080", SOCKS_B),
        ("p.webshare.io:80:joe-de-rotate:pw", "http://joe-de-rotate:pw@p.webshare.io:80"),
    ],
)
def test_a_line_of_a_public_list_is_read(line: str, expected: str) -> None:
    assert found(line) == [expected]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{A}:8080 hunter2", "what stands behind host and port is no note"),
        (f"{A}:8080:hunter2", "not an exit"),
        ("socks5", "not an exit"),
        ("proxyhost:8080:DE", "not an exit"),
        (f"vmess://hunter2@{A}:443", "unknown scheme vmess://"),
        (f"raw {A} 8080 alice hunter2", "raw is no kind of exit"),
        (f"hunter2 {A}:8080", "not an exit"),
        (f"DE vless {A}:8080", "vless is no kind of exit"),
        (f"{A}:8080 vless", "vless is no kind of exit"),
        (f"{A}:8080:trojan", "password: a trojan exit needs a password"),
        (f"trojan://hunter2@{A}:443?type=ws&path=%2Fx#n", "needs what is not supported (type=)"),
        (f"trojan://{A}:443#n", "password: a trojan exit needs a password"),
        ("Proxy list (#400) updated at hunter2", "not an exit"),
        (b"192.0.2.1:8080:joe:hunter2\xf4", "has a byte that is not UTF-8"),
    ],
)
def test_a_line_that_may_mean_something_else_is_skipped(line: str | bytes, why: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    (skipped,) = read_list(raw, HERE).skipped
    assert skipped.reason.startswith(why)
    assert "hunter2" not in skipped.reason


CLASH = f"""\
port: 7890
proxies:
  - {{name: a, type: socks5, server: {B}, port: 1080}}
  - name: "\U0001f1e9\U0001f1ea b"
    type: http
    server: {A}
    port: 8080
"""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"IP Address,Port,Country\n{A},8080,Germany\n", [f"{HTTP_A} de"]),
        (f'"Country","Port","IP Address"\n"DE","8080","{A}"\n', [f"{HTTP_A} de"]),
        (f"Updated today\n\nIP;Port\n{A};8080\n", [HTTP_A]),
        (f"proxy,country\n{HTTP_A},DE\n{SOCKS_B},US\n", [f"{HTTP_A} de", f"{SOCKS_B} us"]),
        (f"{A},8080\n{B},3128\n", [HTTP_A, f"http://{B}:3128"]),
        (
            f'{{"ip": "{A}", "port": 8080}}\n{{"ip": "{B}", "port": 80}}\n',
            [HTTP_A, f"http://{B}:80"],
        ),
        (json.dumps({"ip": A, "port": 8080}), [HTTP_A]),
        (json.dumps({"http": [f"{A}:8080"], "socks5": [f"{B}:1080"]}), [HTTP_A, SOCKS_B]),
        (json.dumps([{"ip": f"{A}:8080"}]), [HTTP_A]),
        (
            json.dumps([{"host": A, "port": 8080, "geolocation": {"country": {"iso_code": "DE"}}}]),
            [f"{HTTP_A} de"],
        ),
        (json.dumps([{"ip": A, "port": 8080, "country": {"name": "Germany"}}]), [f"{HTTP_A} de"]),
        (json.dumps([{"proxy": f"{B}:1080", "protocol": "socks5"}]), [SOCKS_B]),
        (
            f"strict_chain\nproxy_dns\ntcp_read_time_out 15000\n[ProxyList]\n# c\n"
            f"socks5\t{B}\t1080\talice\tsecret\nhttp {A} 8080\nsocks4 \t127.0.0.1 9050\n",
            [f"socks5://alice:secret@{B}:1080", HTTP_A, "socks4a://127.0.0.1:9050"],
        ),
        (f"- {HTTP_A}\n- {SOCKS_B}\n", [HTTP_A, SOCKS_B]),
        (CLASH, [SOCKS_B, f"{HTTP_A} de"]),
        (f"- type: http\n  server: {A}\n  port: 8080\n", [HTTP_A]),
        (base64.b64encode(f"{HTTP_A}\n{SOCKS_B}#b\n".encode()), [HTTP_A, SOCKS_B]),
        (
            json.dumps(
                {
                    "mode": "x",
                    "data": [{"type": "https", "hostname": A, "port": "8080", "cc": "DE"}],
                }
            ),
            [f"{HTTP_A} de"],
        ),
        (
            json.dumps(
                {"k2": {"type": 3, "address": B, "port": 1080, "proxyDNS": True}, "mode": "x"}
            ),
            [SOCKS_B],
        ),
        (
            json.dumps(
                {"results": [{"username": "u", "password": "p", "proxy_address": None, "port": 80}]}
            ),
            ["http://u:p@p.webshare.io:80"],
        ),
        (f"\ufeff{A}:8080\u00a0\r\n\ufeff{B}:3128\r\n", [HTTP_A, f"http://{B}:3128"]),
        (f"{A}:8080\r\n{B}:3128\r\n".encode("utf-16"), [HTTP_A, f"http://{B}:3128"]),
        (f"{A}:8080\n# C\xf4te\n{B}:3128\n".encode("latin-1"), [HTTP_A, f"http://{B}:3128"]),
    ],
)
def test_a_document_of_a_public_list_or_another_tool_is_read(
    raw: str | bytes, expected: list[str]
) -> None:
    assert found(raw) == expected


@pytest.mark.parametrize("more", ["", "#", "#b", "#bc"])
def test_a_list_in_base64_needs_no_padding(more: str) -> None:
    packed = base64.b64encode(f"{HTTP_A}\n{SOCKS_B}{more}".encode()).rstrip(b"=")
    assert found(packed) == [HTTP_A, SOCKS_B]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "http", "tls": True}, f"https://{A}:443"),
        ({"type": "http", "tls": "true"}, f"https://{A}:443"),
        ({"type": "socks5", "tls": True}, f"socks5s://{A}:443"),
        ({"type": "http", "tls": False}, f"http://{A}:443"),
        ({"proto": "socks5", "type": "elite"}, f"socks5://{A}:443"),
        ({"proto": "socks4"}, f"socks4://{A}:443"),
        ({"proto": "socks4a"}, f"socks4a://{A}:443"),
        ({"type": "socks", "version": "4"}, f"socks4://{A}:443"),
        ({"type": "socks", "version": "4a"}, f"socks4a://{A}:443"),
        ({"proto": "http", "type": "transparent"}, f"http://{A}:443"),
        ({"type": 5}, f"socks5://{A}:443"),
        ({"type": "socks"}, f"socks5://{A}:443"),
        ({"type": 2, "proxyDNS": False}, f"https://{A}:443"),
        ({"protocols": [{"type": "socks4", "tls": False}]}, f"socks4://{A}:443"),
    ],
)
def test_an_object_names_its_kind(fields: dict[str, object], expected: str) -> None:
    assert found(json.dumps([{"ip": A, "port": 443, **fields}])) == [expected]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"type": "vmess"}, "type: vmess is no kind of exit"),
        ({"type": "vless"}, "type: vless is no kind of exit"),
        ({"type": "trojan", "network": "ws"}, "network: a transport that is not supported"),
        ({"type": "trojan", "network": "grpc"}, "network: a transport that is not supported"),
        ({"type": "trojan", "transport": {"type": "ws"}}, "transport: a transport that is not"),
        ({"type": "trojan", "tls": {"enabled": False}}, "tls: trojan without TLS"),
        ({"type": "trojan", "reality-opts": {"x": 1}}, "reality-opts: is not supported"),
        ({"type": "trojan", "ss-opts": {"enabled": True}}, "ss-opts: is not supported"),
        ({"type": "hunter2"}, "type: a kind of proxy that is not known"),
        ({"protocol": True}, "protocol: a kind of proxy that is not known"),
        ({"type": "socks4", "tls": True}, "tls: SOCKS4 within TLS is no kind of exit"),
        ({"method": "rc4-md5"}, "cipher: not a method of Shadowsocks that is supported"),
        ({"type": "ss", "cipher": "aes-256-gcm", "plugin": "obfs"}, "needs a plugin"),
        ({"uuid": "x"}, "no kind is named, and it has fields of a kind"),
        ({"type": 6, "proxyDNS": True}, "type: pac is no kind of exit"),
    ],
)
def test_an_unknown_kind_is_never_read_as_http(fields: dict[str, object], why: str) -> None:
    item = {"server": A, "port": 443, "password": "hunter2", **fields}
    (skipped,) = read_list(json.dumps({"proxies": [item]}).encode(), HERE).skipped
    assert skipped.place == "entry 1"
    assert skipped.reason.startswith(why)
    assert "hunter2" not in skipped.reason


@pytest.mark.parametrize(
    ("fields", "tls"),
    [
        ({"type": "http", "tls": True, "skip-cert-verify": True}, TlsOptions(insecure=True)),
        ({"type": "http", "tls": True, "skip-cert-verify": False}, None),
        ({"type": "http", "tls": True, "sni": "x.example"}, TlsOptions(sni="x.example")),
        ({"type": "http", "tls": True, "servername": "x.example"}, TlsOptions(sni="x.example")),
        (
            {
                "type": "http",
                "tls": {"enabled": True, "server_name": "x.example", "insecure": True},
            },
            TlsOptions(insecure=True, sni="x.example"),
        ),
        ({"type": "http", "skip-cert-verify": True, "sni": "x.example"}, None),
    ],
)
def test_tls_to_a_proxy_is_checked_as_its_entry_says(
    fields: dict[str, object], tls: TlsOptions | None
) -> None:
    (spec,) = parse_list(json.dumps([{"ip": A, "port": 443, **fields}]).encode(), HERE).exits
    assert spec.tls == tls


def test_what_stands_beside_lists_under_their_kinds_is_no_entry() -> None:
    document = {"http": [f"{A}:8080"], "checked": ["today"], "socks5": "none"}
    listed = read_list(json.dumps(document).encode(), HERE)
    assert [str(spec) for spec in listed.exits] == [HTTP_A]
    assert not listed.skipped


def test_the_servers_of_sip008_are_read() -> None:
    server = {"server": A, "server_port": 8388, "password": "hunter2", "method": "aes-256-gcm"}
    extras = {"id": "27b8a625", "remarks": "a server", "plugin": "", "plugin_opts": ""}
    servers = [server, {**server, **extras, "server": B}, {**server, "plugin": "v2ray-plugin"}]
    listed = read_list(json.dumps({"version": 1, "servers": servers}).encode(), HERE)
    assert [spec.url for spec in listed.exits] == [
        f"ss://aes-256-gcm:hunter2@{host}:8388" for host in (A, B)
    ]
    assert listed.skipped == (("entry 3", "needs a plugin of Shadowsocks, and none is supported"),)


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ({"type": "ss", "cipher": "aes-128-gcm", "password": "p w"}, "aes-128-gcm:p%20w"),
        ({"type": "ss", "cipher": "AEAD_AES_256_GCM", "password": "p"}, "aes-256-gcm:p"),
        ({"type": "shadowsocks", "method": "aes-128-gcm", "password": "p"}, "aes-128-gcm:p"),
    ],
)
def test_an_entry_of_clash_or_sing_box_is_a_shadowsocks_server(
    entry: dict[str, object], url: str
) -> None:
    item = {"name": "a node", "server": A, "port": 8388, "udp": True, **entry}
    (spec,) = read_list(json.dumps({"proxies": [item]}).encode(), HERE).exits
    assert spec.url == f"ss://{url}@{A}:8388"


@pytest.mark.parametrize(
    "line",
    [
        f"ss://YWVzLTI1Ni1nY206cHc@{A}:8388/?outline=1#berlin",
        f"ss://aes-256-gcm:pw@{A}:8388#berlin",
        f"ss://{base64.b64encode(f'aes-256-gcm:pw@{A}:8388'.encode()).decode()}#berlin",
    ],
)
def test_a_line_may_be_any_form_of_a_shadowsocks_url(line: str) -> None:
    (spec,) = read_list(line.encode(), HERE).exits
    assert (spec.url, spec.name) == (f"ss://aes-256-gcm:pw@{A}:8388", "berlin")


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ({"type": "trojan", "password": "p w"}, f"p%20w@{A}:443"),
        ({"type": "trojan", "password": "p", "network": "tcp", "udp": True}, f"p@{A}:443"),
        (
            {"type": "trojan", "password": "p", "sni": "x.example", "skip-cert-verify": True},
            f"p@{A}:443?insecure=true&sni=x.example",
        ),
        ({"type": "trojan", "password": "p", "ss-opts": {"enabled": False}}, f"p@{A}:443"),
        (
            {
                "type": "trojan",
                "password": "p",
                "tls": {"enabled": True, "server_name": "x.example", "reality": {"enabled": False}},
                "transport": {},
            },
            f"p@{A}:443?sni=x.example",
        ),
    ],
)
def test_an_entry_of_clash_or_sing_box_is_a_trojan_server(
    entry: dict[str, object], url: str
) -> None:
    item = {"name": "a node", "server": A, "port": 443, **entry}
    (spec,) = read_list(json.dumps({"proxies": [item]}).encode(), HERE).exits
    assert spec.url == f"trojan://{url}"


def test_a_subscription_in_base64_may_have_trojan_servers() -> None:
    lines = (
        f"trojan://p%40w@{A}:443?security=tls&sni=x.example&type=tcp#berlin\n"
        f"trojan://pw@{A}:443?type=ws#x\n"
        f"trojan://pw@[2001:db8::7]:443#%F0%9F%87%A9%F0%9F%87%AA%20b\n"
    )
    listed = read_list(base64.b64encode(lines.encode()), HERE)
    assert [spec.url for spec in listed.exits] == [
        f"trojan://p%40w@{A}:443?sni=x.example",
        "trojan://pw@[2001:db8::7]:443",
    ]
    assert [(spec.name, spec.country) for spec in listed.exits] == [("berlin", None), (None, "de")]
    assert listed.skipped == (("line 2", "needs what is not supported (type=)"),)


def test_a_subscription_in_base64_may_have_shadowsocks_servers() -> None:
    lines = f"ss://YWVzLTI1Ni1nY206cHc=@{A}:8388#x%20y\nvmess://hunter2\n"
    listed = read_list(base64.b64encode(lines.encode()), HERE)
    assert [spec.url for spec in listed.exits] == [f"ss://aes-256-gcm:pw@{A}:8388"]
    assert len(listed.skipped) == 1


def test_a_byte_that_is_not_utf_8_spoils_its_own_entry_only() -> None:
    rows = f"ip,port\n{A},8080\n192.0.2.9,\xff80\n{B},80\n".encode("latin-1")
    listed = read_list(rows, HERE)
    assert [spec.host for spec in listed.exits] == [A, B]
    assert listed.skipped == (("line 3", "has a byte that is not UTF-8"),)


def test_a_kind_above_a_list_of_json_counts_for_its_entries() -> None:
    raw = json.dumps({"socks4": [f"{A}:1080"], "vmess": [f"{B}:443"], "count": 2})
    listed = read_list(raw.encode(), HERE)
    assert [spec.scheme for spec in listed.exits] == ["socks4"]
    assert listed.skipped == (("vmess entry 1", "vmess is no kind of exit"),)


def test_a_structure_as_text_in_csv_is_no_kind() -> None:
    row = f'{A},4153,"[ProtocolDataType(type=socks4, port=4153, tls=true)]",TH'
    listed = read_list(f"ip,port,protocols,isocode\n{B},1080,socks5,DE\n{row}\n".encode(), HERE)
    assert [spec.url for spec in listed.exits] == [SOCKS_B]
    assert [place for place, _ in listed.skipped] == ["line 3"]


@pytest.mark.parametrize(
    "text",
    [
        "proxies:\n" + "[" * 100_000,
        "proxies:\n  - &a [x]\n  - *b\n",
        "proxies:\n"
        + "".join(f" - &a{n} [{f'*a{n - 1},' * 10 if n else 'x'}]\n" for n in range(9)),
        "proxies:\n  - {name: hunter2, name: hunter2}\n",
    ],
)
def test_yaml_without_bounds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no list of exits") as caught:
        parse_list(text.encode(), HERE)
    assert "hunter2" not in str(caught.value)
