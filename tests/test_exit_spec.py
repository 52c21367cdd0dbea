"""An exit as its user writes it, what it says, and that its secrets stay where they are."""

import base64
import hashlib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.exits.spec import DIRECT, ExitSpec, TlsOptions, TransportOptions, derived_name

RAW_KEY = bytes(range(216, 248))
KEY = base64.urlsafe_b64encode(RAW_KEY).decode().rstrip("=")
STANDARD_KEY = base64.b64encode(RAW_KEY).decode()
BASE = Path("/etc/gsocks")

parse = ExitSpec.parse


def refusal(entry: str | Mapping[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(entry, BASE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("direct", DIRECT),
        ("direct://", DIRECT),
        (
            "direct://?source=203.0.113.0/28",
            ExitSpec("direct", source=ip_network("203.0.113.0/28")),
        ),
        ("direct://?source=2001:DB8::/64", ExitSpec("direct", source=ip_network("2001:db8::/64"))),
        ("direct://?source=203.0.113.7", ExitSpec("direct", source=ip_network("203.0.113.7/32"))),
        (
            f"gsocks://{KEY}@vps.example.com:8388",
            ExitSpec("gsocks", "vps.example.com", 8388, key=KEY),
        ),
        (f"gsocks://{KEY}@h:443?transport=tcp", ExitSpec("gsocks", "h", 443, key=KEY)),
        (
            f"gsocks://{KEY}@h:443?transport=tls",
            ExitSpec("gsocks", "h", 443, key=KEY, transport=TransportOptions("tls")),
        ),
        (
            f"gsocks://{KEY}@h:443?transport=tls&sni=CDN.example&ca=/ca&alpn=h2,http/1.1",
            ExitSpec(
                *("gsocks", "h", 443),
                key=KEY,
                tls=TlsOptions(Path("/ca"), sni="cdn.example", alpn=("h2", "http/1.1")),
                transport=TransportOptions("tls"),
            ),
        ),
        (
            f"gsocks://{KEY}@h:443?transport=wss&path=/a%26b%3Fc&host_header=www.h:8443&alpn=",
            ExitSpec(
                *("gsocks", "h", 443),
                key=KEY,
                tls=TlsOptions(alpn=()),
                transport=TransportOptions("wss", "/a&b?c", "www.h:8443"),
            ),
        ),
        (
            f"gsocks://{KEY}@h:80?transport=ws",
            ExitSpec("gsocks", "h", 80, key=KEY, transport=TransportOptions("ws")),
        ),
        (f"gsocks://{KEY}@vps.example.com", ExitSpec("gsocks", "vps.example.com", 8388, key=KEY)),
        (
            "socks5://user:pass@10.0.0.7:1081",
            ExitSpec("socks5", "10.0.0.7", 1081, user="user", password="pass"),
        ),
        ("socks5://10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("socks5://10.0.0.7/", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("SOCKS5://Proxy.Example.COM", ExitSpec("socks5", "proxy.example.com", 1080)),
        ("socks5h://10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("socks4a://joe@10.0.0.7", ExitSpec("socks4a", "10.0.0.7", 1080, user="joe")),
        ("socks4://joe@10.0.0.7", ExitSpec("socks4", "10.0.0.7", 1080, user="joe")),
        ("http://10.0.0.7:3128", ExitSpec("http", "10.0.0.7", 3128)),
        ("https://p.example:443/", ExitSpec("https", "p.example", 443)),
        ("socks5://[2001:DB8::1]:1081", ExitSpec("socks5", "2001:db8::1", 1081)),
        ("socks5://[2001:db8::1]", ExitSpec("socks5", "2001:db8::1", 1080)),
        ("socks5://@10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("socks5://u:@10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080, user="u", password="")),
        (
            "socks5://u%40corp:p%3Aq%2F%C3%A9@10.0.0.7",
            ExitSpec("socks5", "10.0.0.7", 1080, user="u@corp", password="p:q/é"),
        ),
    ],
)
def test_a_url_says_what_the_exit_is(url: str, expected: ExitSpec) -> None:
    assert parse(url) == expected
    assert parse({"url": url}) == expected


def test_a_password_may_hold_whatever_ends_other_parts_of_a_url() -> None:
    spec = parse("socks5://user:p@ss/w?rd#:1@10.0.0.7:1081")
    assert (spec.user, spec.password, spec.port) == ("user", "p@ss/w?rd#:1", 1081)


@pytest.mark.parametrize(
    "text", [KEY, KEY + "=", STANDARD_KEY, STANDARD_KEY.rstrip("="), quote(STANDARD_KEY, safe="")]
)
def test_a_key_is_the_same_in_either_alphabet_with_or_without_padding(text: str) -> None:
    assert "+" in STANDARD_KEY
    assert "/" in STANDARD_KEY
    assert parse(f"gsocks://{text}@vps.example.com").key == KEY


def test_a_mapping_adds_what_a_url_has_no_place_for() -> None:
    spec = parse(
        {
            "url": "socks5://user:pass@10.0.0.7:1080",
            "weight": 2,
            "tags": ["DE", "residential", "de"],
            "country": "DE",
            "max_connections": 50,
        }
    )
    assert spec == parse("socks5://user:pass@10.0.0.7:1080")
    assert (spec.weight, spec.tags, spec.country, spec.max_connections) == (
        2.0,
        ("de", "residential"),
        "de",
        50,
    )


def test_options_may_follow_the_url_as_its_query() -> None:
    spec = parse(
        "socks5://u:p@10.0.0.7:1080?weight=0.5&tags=de,residential&country=de&max_connections=9"
    )
    assert (spec.weight, spec.tags, spec.country, spec.max_connections) == (
        0.5,
        ("de", "residential"),
        "de",
        9,
    )


def test_an_exit_may_have_a_name_and_so_many_requests_a_minute() -> None:
    spec = parse("socks5://10.0.0.7?name=Berlin-1&requests_per_minute=90")
    assert (spec.name, spec.requests_per_minute) == ("berlin-1", 90)
    assert parse("socks5://10.0.0.7").name is None


def test_a_derived_name_is_the_same_in_every_process_and_tells_nothing_of_a_password() -> None:
    assert derived_name("direct") == hashlib.blake2b(b"direct", digest_size=4).hexdigest()
    one, other = parse("socks5://u:p@10.0.0.7"), parse("socks5://u:q@10.0.0.7")
    assert derived_name(one.label) == derived_name(other.label)


def test_credentials_may_stand_beside_the_url() -> None:
    assert parse({"url": "http://h:1", "user": "u", "password": "p@:/"}) == ExitSpec(
        "http", "h", 1, user="u", password="p@:/"
    )
    assert parse({"url": "gsocks://h", "key": STANDARD_KEY}).key == KEY


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("gsocks.key", BASE / "gsocks.key"),
        ("/run/gsocks.key", Path("/run/gsocks.key")),
        (Path("keys/a"), BASE / "keys/a"),
    ],
)
def test_a_key_file_is_relative_to_the_config(written: object, found: Path) -> None:
    assert parse({"url": "gsocks://h", "key_file": written}, BASE).key_file == found


def test_a_key_file_may_be_under_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joe")
    assert parse("gsocks://h?key_file=~/k", BASE).key_file == Path("/home/joe/k")


def test_a_cipher_may_be_asked_for() -> None:
    assert parse(f"gsocks://{KEY}@h").cipher == "secretbox"
    assert parse(f"gsocks://{KEY}@h?cipher=aegis256").cipher == "aegis256"


def test_an_exit_may_be_reached_through_another() -> None:
    by_url = parse({"url": "socks5://far", "via": f"gsocks://{KEY}@near"})
    by_mapping = parse({"url": "socks5://far", "via": {"url": "gsocks://near", "key": KEY}})
    assert by_url == by_mapping
    assert by_url.via is not None
    assert by_url.via.address == Address("near", 8388)
    assert by_url.label == "socks5://far:1080 via gsocks://near:8388"


# --- which exit it is -----------------------------------------------------------------------


def test_other_credentials_are_another_exit() -> None:
    urls = [
        "socks5://10.0.0.7",
        "socks5://u@10.0.0.7",
        "socks5://u:p@10.0.0.7",
        "socks5://u:q@10.0.0.7",
        "socks5://v:p@10.0.0.7",
        "http://u:p@10.0.0.7:1080",
        f"gsocks://{KEY}@10.0.0.7:1080",
        "gsocks://10.0.0.7:1080?key_file=k",
        f"gsocks://{KEY}@10.0.0.7:1080?cipher=aegis256",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=ws",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=ws&path=/x",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=ws&host_header=x",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=wss",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=wss&alpn=x",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=wss&cert=x",
        f"gsocks://{KEY}@10.0.0.7:1080?transport=wss&cert=x&cert_key=y",
        "socks5://u:p@10.0.0.7?via=socks5://10.0.0.8",
        "direct",
        "direct://?source=10.0.0.0/8",
    ]
    specs = [parse(url) for url in urls]
    assert len(set(specs)) == len(urls)
    assert len({spec.url for spec in specs}) == len(urls)


def test_how_an_exit_is_used_does_not_make_it_another() -> None:
    plain = parse("socks5://10.0.0.7")
    used = parse(
        "socks5://10.0.0.7?name=n&weight=3&tags=a&country=de&max_connections=1&requests_per_minute=9"
    )
    assert plain == used
    assert hash(plain) == hash(used)
    assert plain.url == used.url


# No braces: what is to be filled in may need a country, which says how an exit is used and is no
# part of its URL.
texts = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="{}"), max_size=60)
proxies = st.builds(
    ExitSpec,
    st.sampled_from(["socks5", "http", "https"]),
    st.sampled_from(["10.0.0.7", "2001:db8::1", "proxy.example.com"]),
    st.integers(1, 65535),
    user=texts.filter(lambda text: ":" not in text),
    password=st.none() | texts,
).filter(lambda spec: bool(spec.user or spec.password))


@given(proxies, st.none() | proxies)
def test_the_whole_url_is_read_back_as_the_same_exit(spec: ExitSpec, via: ExitSpec | None) -> None:
    spec = spec.replaced(via=via)
    assert parse(spec.url) == spec
    assert parse(spec.url).url == spec.url


@pytest.mark.parametrize(
    "url",
    [
        "direct",
        "direct://?source=203.0.113.0/28",
        f"gsocks://{KEY}@h?cipher=aegis256",
        f"gsocks://{KEY}@h?transport=wss&path=/a%3Fb%26c&host_header=x:1&insecure=true&alpn=a,b",
        f"gsocks://{KEY}@h?transport=tls&sni=s&ca=/a%20b&cert=/c&cert_key=/k&alpn=",
        "gsocks://h?key_file=/a%20b/c",
    ],
)
def test_so_is_that_of_the_other_kinds(url: str) -> None:
    assert parse(parse(url).url) == parse(url)


# --- what is shown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("direct", "direct"),
        ("direct://?source=203.0.113.0/28", "direct://?source=203.0.113.0/28"),
        (f"gsocks://{KEY}@vps.example.com", "gsocks://vps.example.com:8388"),
        ("socks5://user:hunter2@10.0.0.7", "socks5://user:***@10.0.0.7:1080"),
        ("socks5://u%40corp:hunter2@[::1]", "socks5://u%40corp:***@[::1]:1080"),
        ("socks4a://joe@10.0.0.7", "socks4a://joe@10.0.0.7:1080"),
        ("socks4://joe@10.0.0.7", "socks4://joe@10.0.0.7:1080"),
        ("http://hunter2@10.0.0.7:80", "http://***@10.0.0.7:80"),  # an API key
        ("https://hunter2:@10.0.0.7:443", "https://***@10.0.0.7:443"),
        ("socks5://hunter2:@10.0.0.7", "socks5://***@10.0.0.7:1080"),
        ("http://10.0.0.7:80", "http://10.0.0.7:80"),
    ],
)
def test_the_label_names_the_exit_and_hides_its_secret(url: str, label: str) -> None:
    spec = parse(url)
    assert spec.label == str(spec) == f"{spec}" == label
    assert repr(spec) == f"<ExitSpec {label}>"


@pytest.mark.parametrize(
    "entry",
    [
        "socks5://user:hunter2:10.0.0.7:1080",
        "socks5://user:hunter2@",
        "socks5://user:hunter2@10.0.0.7:99999",
        "socks5://user:hunter2@10.0.0.7:port",
        "socks5://user:hunter2",
        "socks5://hunter2:123456",
        "socks5://10.0.0.7:1080@user:hunter2",
        "socks5://user:hunter2@bad..host:1",
        "socks5://user:hunter2@10.0.0.7?hunter2",
        "socks5://user:hunter2@10.0.0.7?weight=x&hunter2=1",
        "socks5://user:hunter2%ff@10.0.0.7",
        f"socks5://user:hunter2{'x' * 255}@10.0.0.7",
        "socks5://user:hunter2%00@10.0.0.7",
        "socks4a://user:hunter2@10.0.0.7",
        "direct://user:hunter2@",
        "direct://hunter2",
        "gsocks://hunter2@h",
        "gsocks://hunter2%ff@h",
        "gsocks://hunter2",
        "user:hunter2@socks5://h",
        "user:hunter2@10.0.0.7:1080",
        "hunter2",
        {"socks5://user:hunter2@10.0.0.7": {}},
        {"url": "socks5://user:hunter2@10.0.0.7", "weight": "hunter2@x"},
        {"url": "socks5://user:hunter2@10.0.0.7", "password": "hunter2"},
        {"url": "gsocks://h", "key": "hunter2"},
        {"url": "gsocks://h", "via": "socks5://user:hunter2"},
        {"url": ["socks5://user:hunter2@h"]},
        {"url": "socks5://h", "password": "hunter2"},
        {"url": "socks5://h", "user": "u", "password": "hunter2\n"},
    ],
)
def test_no_mistake_repeats_a_secret(entry: str | dict[str, object]) -> None:
    message = refusal(entry)
    assert "hunter2" not in message
    assert "123456" not in message


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "sock5://10.0.0.7",
            "unknown scheme sock5:// (did you mean socks5?)"
            " (known: direct, gsocks, socks5, socks5s, socks4, socks4a, http, https, ss, trojan)",
        ),
        (
            "ftp://10.0.0.7",
            "unknown scheme ftp://"
            " (known: direct, gsocks, socks5, socks5s, socks4, socks4a, http, https, ss, trojan)",
        ),
        (
            "10.0.0.7:1080",
            "not an exit (expected direct, or a URL such as socks5://10.0.0.7:1080)",
        ),
        ("http://10.0.0.7", "http:// needs a port (proxies often use 3128 or 8080)"),
        ("socks5://10.0.0.7:0", "the port behind socks5:// is not between 1 and 65535"),
        ("socks5://a..b", "the host behind socks5:// is neither a name nor an IP address"),
        (
            "socks5://2001:db8::1",
            "what stands behind socks5:// is not HOST:PORT"
            " (user and password end with an @, an IPv6 address stands in brackets)",
        ),
        ("direct://h", "direct has no host (expected direct or direct://?source=NETWORK)"),
        (
            "direct://?source=203.0.113.5/28",
            "source: '203.0.113.5/28' has host bits set (did you mean 203.0.113.0/28?)",
        ),
        (
            "direct://?source=eth0",
            "source: 'eth0' is not an address or a network (expected e.g. 10.0.0.0/8 or ::1)",
        ),
        (
            "direct://u@",
            "user: not for direct (only for socks5, socks5s, socks4, socks4a, http, https)",
        ),
        (
            "gsocks://h",
            "key_file: a gsocks exit needs a key or a key_file",
        ),
        (
            {"url": f"gsocks://{KEY}@h", "key_file": "k"},
            "key_file: a gsocks exit needs a key or a key_file, and not both",
        ),
        ("socks5://h?key_file=k", "key_file: not for socks5 (only for gsocks)"),
        (
            "socks4a://u:p@h",
            "password: not for socks4a (only for socks5, socks5s, http, https, ss, trojan)",
        ),
        (
            "socks4://u:p@h",
            "password: not for socks4 (only for socks5, socks5s, http, https, ss, trojan)",
        ),
        ("http://u%3Av:p@h:1", "user: HTTP can't carry a user name with a colon"),
        ("socks5://h?weight=1&weight=2", "weight stands twice behind the ?"),
        (
            "socks5://h?wait=1",
            "unknown option behind the ? (known: source, interface, mark, cipher, transport,"
            " path, host_header, insecure, sni, alpn, name, weight, tags, country,"
            " max_connections,"
            " requests_per_minute, bytes_per_day, bytes_per_month, cost_per_gb, cost_per_month,"
            " key_file, ca, cert, cert_key, via)",
        ),
        ({"url": "socks5://h", "wieght": 1}, "wieght: unknown key (did you mean weight?)"),
        (
            {"url": "socks5://h", 7: 1},
            "a key that is not known here (known: url, user, password, key, key_env, key_command,"
            " source, interface, mark, cipher, transport,"
            " path, host_header, insecure, sni, alpn, name, weight, tags, country,"
            " max_connections, requests_per_minute, bytes_per_day, bytes_per_month, cost_per_gb,"
            " cost_per_month, key_file, ca, cert, cert_key, via)",
        ),
        ({"weight": 1}, "url: missing (expected e.g. socks5://10.0.0.7:1080)"),
        ({"url": "http://h"}, "url: http:// needs a port (proxies often use 3128 or 8080)"),
        (
            {"url": "socks5://h?weight=1", "weight": 1},
            "weight: duplicate: it is in the url too (leave one out)",
        ),
        ({"url": "socks5://h", "password": "p"}, "password: needs a user"),
        (
            {"url": "socks5://h", "user": 7},
            "user: is not printable text (in YAML, quotes make it text)",
        ),
        (
            {"url": "gsocks://h", "key": 7},
            "key: is not text (in YAML, put quotes around it)",
        ),
        (
            {"url": "gsocks://h", "key_file": ""},
            "key_file: an empty value is not the path of a file",
        ),
        (
            f"gsocks://{KEY}@h?transport=quic",
            "transport: 'quic' is not a transport (known: tcp, tls, ws, wss)",
        ),
        (
            f"gsocks://{KEY}@h?sni=x",
            "sni: not for transport tcp (only for tls and wss)",
        ),
        (
            {"url": f"gsocks://{KEY}@h?transport=ws", "ca": "x"},
            "ca: not for transport ws (only for tls and wss)",
        ),
        (
            f"gsocks://{KEY}@h?transport=tls&path=/x",
            "path: not for transport tls (only for ws and wss)",
        ),
        (
            f"gsocks://{KEY}@h?transport=ws&path=x",
            "path: 'x' is not the path of a URL (expected e.g. /updates)",
        ),
        (
            {"url": f"gsocks://{KEY}@h", "transport": "wss", "path": "/a b"},
            "path: '/a b' is not the path of a URL (expected e.g. /updates)",
        ),
        (
            f"gsocks://{KEY}@h?transport=ws&host_header=a%0d%0ab",
            "host_header: 'a\\r\\nb' is not a host (expected e.g. www.example.com)",
        ),
        (
            {"url": f"gsocks://{KEY}@h", "transport": "tls", "alpn": ["h2", ""]},
            "alpn: a list is not a list of protocols (expected e.g. http/1.1)",
        ),
        (
            {"url": f"gsocks://{KEY}@h", "transport": "tls", "cert_key": "x"},
            "cert_key: needs a cert",
        ),
        ("https://h:1?cert_key=x", "cert_key: not for https (only for gsocks)"),
        ("socks5://h?transport=tls", "transport: not for socks5 (only for gsocks)"),
        (
            {"url": f"gsocks://{KEY}@h", "cipher": "rot13"},
            "cipher: 'rot13' is not a cipher (known: secretbox, aegis256)",
        ),
        (
            {"url": "direct", "country": False},
            "country: false is not a country"
            " (expected a two-letter code such as de; in YAML, put quotes around it)",
        ),
        (
            {"url": "direct", "country": "Germany"},
            "country: 'Germany' is not a country (expected a two-letter code such as de)",
        ),
        (
            {"url": "direct", "tags": 5},
            "tags: 5 is not a list of words (expected e.g. [de, residential])",
        ),
        (
            {"url": "direct", "tags": [True]},
            "tags: true is not a tag"
            " (expected a word such as residential; in YAML, put quotes around it)",
        ),
        (
            {"url": "direct", "via": "socks5://h"},
            "via: not for direct"
            " (only for gsocks, socks5, socks5s, socks4, socks4a, http, https, ss, trojan)",
        ),
        (
            {"url": "socks5://h", "via": 7},
            "via: not an exit (expected e.g. socks5://10.0.0.7:1080)",
        ),
        (
            {"url": "socks5://h", "via": "http://h"},
            "via: http:// needs a port (proxies often use 3128 or 8080)",
        ),
        (
            {"url": "socks5://h", "via": {"url": "socks5://h", "weight": 0}},
            "via.weight: 0 is not a weight (expected a number from 0.001 to 1000)",
        ),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(
    entry: str | dict[str, object], message: str
) -> None:
    assert refusal(entry) == message


@pytest.mark.parametrize("weight", [0, -1, "x", "", "nan", "inf", "1e999", True, [2], None])
def test_a_weight_is_a_number_above_zero(weight: object) -> None:
    assert refusal({"url": "direct", "weight": weight}).startswith("weight: ")


@pytest.mark.parametrize("count", [0, -1, "x", "1.5", 1.5, True, [2], None])
def test_a_count_is_a_whole_number_from_one(count: object) -> None:
    for option in ("max_connections", "requests_per_minute"):
        assert refusal({"url": "direct", option: count}).startswith(f"{option}: ")


@pytest.mark.parametrize("name", ["", "two words", "-dash", "x" * 65, 7, True, None, ["a"]])
def test_a_name_is_a_word(name: object) -> None:
    assert refusal({"url": "direct", "name": name}).startswith("name: ")


def test_a_chain_of_exits_has_an_end() -> None:
    entry: dict[str, object] = {"url": "socks5://h"}
    for _ in range(7):
        entry = {"url": "socks5://h", "via": entry}
    assert parse(entry).label.count(" via ") == 7
    assert "more than 8 exits" in refusal({"url": "socks5://h", "via": entry})
    assert "more than 8 exits" in refusal("socks5://h?via=" * 100_000 + "direct")


def test_an_interface_with_a_character_of_urls_in_its_name_is_written_as_it_is_read() -> None:
    spec = ExitSpec.parse("direct://?source=2001:db8::/64&interface=w%40n")
    assert spec.interface == "w@n"
    assert spec.url == "direct://?source=2001:db8::/64&interface=w%40n"
    assert ExitSpec.parse(spec.url) == spec
