"""Lists of exits as people and providers write them, and what is no list."""

from __future__ import annotations

import codecs
import json
import random
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.rotation import list_entries, lists
from gsocks.rotation.list_entries import MAX_YAML, SPOILED, entries
from gsocks.rotation.lists import ListOptions, parse_list
from tests.support.waiting import cpu_seconds

HERE = ListOptions(base=Path("/etc/gsocks"))


def the_exit(line: str, scheme: str = "http") -> ExitSpec:
    found = parse_list(line.encode(), ListOptions(scheme, base=Path("/etc/gsocks")))
    assert not found.skipped, found.skipped
    (spec,) = found.exits
    return spec


def labels(text: str) -> list[str]:
    return [spec.label for spec in parse_list(text.encode(), HERE).exits]


def reason(line: str) -> str:
    """Why ``line`` is skipped."""
    found = parse_list(f"10.9.9.9:80\n{line}\n".encode(), HERE)
    (skipped,) = found.skipped
    assert skipped.place == "line 2"
    return skipped.reason


def refusal(raw: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_list(raw, HERE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- lines ----------------------------------------------------------------------------------

PLAIN = ExitSpec("http", "10.0.0.7", 8080)
WITH_LOGIN = ExitSpec("http", "10.0.0.7", 8080, user="joe", password="p:w")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("10.0.0.7:8080", PLAIN),
        ("http://10.0.0.7:8080/", PLAIN),
        ("10.0.0.7:8080:joe:p:w", WITH_LOGIN),
        ("joe:p:w:10.0.0.7:8080", WITH_LOGIN),
        ("joe:p:w@10.0.0.7:8080", WITH_LOGIN),
        ("joe:p%3Aw@10.0.0.7:8080", WITH_LOGIN),
        ("10.0.0.7:8080@joe:p:w", WITH_LOGIN),
        ("http://joe:p:w@10.0.0.7:8080", WITH_LOGIN),
        ("joe@10.0.0.7:8080", ExitSpec("http", "10.0.0.7", 8080, user="joe")),
        ("10.0.0.7:8080:joe:", ExitSpec("http", "10.0.0.7", 8080, user="joe", password="")),
        ("10.0.0.7:8080:joe:p@w", ExitSpec("http", "10.0.0.7", 8080, user="joe", password="p@w")),
        ("10.0.0.7:8080:joe:50%", ExitSpec("http", "10.0.0.7", 8080, user="joe", password="50%")),
        ("10.0.0.7:8080:joe:p?w", ExitSpec("http", "10.0.0.7", 8080, user="joe", password="p?w")),
        ("joe:p@w:10.0.0.7:8080", ExitSpec("http", "10.0.0.7", 8080, user="joe", password="p@w")),
        ("gw.example.com:22225", ExitSpec("http", "gw.example.com", 22225)),
        ("[2001:DB8::7]:8080", ExitSpec("http", "2001:db8::7", 8080)),
        (
            "[2001:db8::7]:8080:joe:pw",
            ExitSpec("http", "2001:db8::7", 8080, user="joe", password="pw"),
        ),
        (
            "joe:pw:[2001:db8::7]:8080",
            ExitSpec("http", "2001:db8::7", 8080, user="joe", password="pw"),
        ),
        ("socks5://10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("socks5h://10.0.0.7", ExitSpec("socks5", "10.0.0.7", 1080)),
        ("socks4://10.0.0.7", ExitSpec("socks4", "10.0.0.7", 1080)),
        ("direct", ExitSpec("direct")),
        (
            "gsocks://vps.example.com?key_file=k",
            ExitSpec("gsocks", "vps.example.com", 8388, key_file=Path("/etc/gsocks/k")),
        ),
    ],
)
def test_a_line_may_have_any_of_the_common_forms(line: str, expected: ExitSpec) -> None:
    assert the_exit(line) == expected


@pytest.mark.parametrize(
    ("line", "host", "user"),
    [
        ("10.0.0.7:80:10.0.0.8:81", "10.0.0.7", "10.0.0.8"),
        ("10.0.0.7:80@10.0.0.8:81", "10.0.0.8", "10.0.0.7"),
        ("joe:1234:10.0.0.8:81", "10.0.0.8", "joe"),
        ("joe:1234:gw.example.com:81", "gw.example.com", "joe"),
        ("gw.example.com:81:joe:1234", "gw.example.com", "joe"),
        ("10.0.0.7:80:gw.example.com:81", "10.0.0.7", "gw.example.com"),
        ("gw:81:joe:1234", "gw", "joe"),
        ("joe:99999:gw:81", "gw", "joe"),
    ],
)
def test_of_two_parts_that_could_be_the_place_the_likelier_one_is(
    line: str, host: str, user: str
) -> None:
    spec = the_exit(line)
    assert (spec.host, spec.user) == (host, user)


def test_a_list_says_what_lines_without_a_scheme_are() -> None:
    assert the_exit("10.0.0.7:1080:joe:pw", "socks5").scheme == "socks5"
    assert the_exit("joe:pw@10.0.0.7:1080", "socks5").scheme == "socks5"
    assert the_exit("http://10.0.0.7:1080", "socks5").scheme == "http"


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.7:8080 country=de tags=fast,cheap weight=2 name=Berlin",
        "10.0.0.7:8080\tcountry=de   tags=fast,cheap weight=2 name=Berlin  # ours",
        "10.0.0.7:8080?country=de&tags=fast,cheap&weight=2&name=Berlin",
        "http://10.0.0.7:8080 country=de tags=fast,cheap weight=2 name=Berlin",
        "10.0.0.7:8080?country=de tags=fast,cheap weight=2 name=Berlin",
    ],
)
def test_options_may_stand_behind_an_entry(line: str) -> None:
    spec = the_exit(line)
    assert spec == PLAIN
    assert (spec.country, spec.tags, spec.weight, spec.name) == (
        "de",
        ("fast", "cheap"),
        2.0,
        "berlin",
    )


def test_options_may_stand_behind_a_login_too() -> None:
    for line in ("10.0.0.7:8080:joe:p:w country=de", "joe:p:w@10.0.0.7:8080?country=de"):
        spec = the_exit(line)
        assert (spec, spec.country) == (WITH_LOGIN, "de")


def test_what_all_have_gives_way_to_what_one_says_and_tags_add_up() -> None:
    via = ExitSpec.parse("socks5://10.0.0.1")
    given = {"tags": ("all",), "country": "de", "weight": 3.0, "via": via}
    raw = b"10.0.0.7:80\n10.0.0.8:80 tags=one country=at via=socks5://10.0.0.2\ndirect\n"
    first, second, third = parse_list(raw, ListOptions(given=given, base=Path())).exits
    assert (first.tags, first.country, first.weight, first.via) == (("all",), "de", 3.0, via)
    assert (second.tags, second.country, second.weight) == (("all", "one"), "at", 3.0)
    assert second.via == ExitSpec.parse("socks5://10.0.0.2")
    assert (third.tags, third.via) == (("all",), None)


def test_comments_blank_lines_a_byte_order_mark_and_crlf_say_nothing() -> None:
    text = "\ufeff# ours\r\n\r\n  10.0.0.7:80  \r\n\t# no\r\n10.0.0.8:80 # the other\r\n"
    assert labels(text) == ["http://10.0.0.7:80", "http://10.0.0.8:80"]


def test_an_exit_that_stands_there_again_counts_once() -> None:
    found = parse_list(b"10.0.0.7:80\nhttp://10.0.0.7:80/\n10.0.0.8:80\n10.0.0.7:80\n", HERE)
    assert [spec.host for spec in found.exits] == ["10.0.0.7", "10.0.0.8"]
    assert found.duplicates == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("10.0.0.7", "not an exit (expected e.g. 10.0.0.7:8080"),
        ("10.0.0.7:99999", "the port behind http:// is not between 1 and 65535"),
        ("10.0.0.7:0:joe:hunter2", "not an exit"),
        ("10.0.0.7:8080:hunter2", "not an exit"),
        ("joe:hunter2:hunter2:hunter2", "not an exit"),
        ("joe:hunter2@", "not an exit"),
        ("2001:db8::7:8080:joe:hunter2", "not an exit"),
        ("socks5://joe:hunter2:10.0.0.7:x", "what stands behind socks5:// is not HOST:PORT"),
        ("ftp://joe:hunter2@10.0.0.7:21", "unknown scheme ftp://"),
        ("10.0.0.7:8080 weigth=2", "weigth: unknown key (did you mean weight?)"),
        ("10.0.0.7:8080 weight=none", "weight: this value is not a weight"),
        ("10.0.0.7:8080 weight=1 weight=2", "weight: stands here twice"),
        ("x" * 5000, "longer than 4096 characters"),
        ("10.0.0.7:8080:joe:hunter2\x07", "password: is not printable text"),
        ("us:8080 country=de:joe:hunter2", "country: this value is not a country"),
        ("10.0.0.7:8080 tags=joe:hunter2", "tags: this value is not a tag"),
        ("10.0.0.7:8080 weight=1joe:hunter2", "weight: this value is not a weight"),
        ("10.0.0.7:8080 name=it's:hunter2", "name: this value is not the name of an exit"),
    ],
)
def test_a_bad_line_is_skipped_by_its_number_and_nothing_of_it_is_told(line: str, why: str) -> None:
    told = reason(line)
    assert told.startswith(why)
    assert "hunter2" not in told


def list_of(count: int) -> bytes:
    lines = [f"10.{n >> 8}.{n & 255}.7:8080:user{n}:password" for n in range(count)]
    return "\n".join(lines).encode()


def test_ten_times_the_lines_take_ten_times_as_long_to_read() -> None:
    short = cpu_seconds(lambda: parse_list(list_of(1000), HERE))
    long = cpu_seconds(lambda: parse_list(list_of(10_000), HERE))
    assert long < 40 * short  # 100 times, if each line were compared with all others


def test_no_line_takes_long_however_it_is_made() -> None:
    hostile = [
        "a:" * 2000,
        " " * 4000 + "=",
        "a= " * 1300 + "x",
        "@" * 4000,
        "[" * 4000,
        ":" * 4000,
    ]
    hostile = [line for line in hostile for _ in range(20)]
    raw = "\n".join(["10.0.0.7:80", *hostile, "a" + " " * 1_000_000 + "#a", "=" * 1_000_000])
    assert len(parse_list(raw.encode(), HERE).exits) == 1
    taken = cpu_seconds(lambda: parse_list(raw.encode(), HERE))
    assert taken < 10 * cpu_seconds(lambda: parse_list(list_of(10_000), HERE))


# --- JSON and CSV -----------------------------------------------------------------------------


def test_json_may_be_a_list_of_lines() -> None:
    assert labels('\n["10.0.0.7:80", "socks5://10.0.0.8"]') == [
        "http://10.0.0.7:80",
        "socks5://10.0.0.8:1080",
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"host": "10.0.0.7", "port": 8080, "user": "joe", "password": "p:w", "country": "DE"},
        {"ip": "10.0.0.7", "port": "8080", "login": "joe", "pass": "p:w", "country_code": "de"},
        {
            "id": "d-10513",
            "username": "joe",
            "password": "p:w",
            "proxy_address": "10.0.0.7",
            "port": 8080,
            "valid": True,
            "country_code": "DE",
            "city_name": None,
        },
        {
            "IP": "10.0.0.7",
            "Port": 8080,
            "Username": "joe",
            "Password": "p:w",
            "protocols": ["http"],
            "country": "Germany",
            "cc": "DE",
            "name": "Berlin, fast",
        },
        {"url": "http://joe:p:w@10.0.0.7:8080", "country": "de"},
        {"proxy": "10.0.0.7:8080:joe:p:w", "country": "de"},
        {"proxy": "joe:p:w@10.0.0.7:8080", "country": "de", "type": "residential"},
    ],
)
def test_an_object_may_have_the_names_that_providers_use(item: dict[str, object]) -> None:
    spec = the_exit(json.dumps([item]))
    assert (spec, spec.country) == (WITH_LOGIN, "de")


@pytest.mark.parametrize("wrapped", ['{"results": %s}', '{"ok": true, "data": {"proxies": %s}}'])
def test_the_list_may_be_wrapped(wrapped: str) -> None:
    assert labels(wrapped % '["10.0.0.7:80"]') == ["http://10.0.0.7:80"]


@pytest.mark.parametrize(
    ("said", "default", "scheme"),
    [
        ("SOCKS5", "http", "socks5"),
        ("socks4", "http", "socks4"),
        ("socks4a", "http", "socks4a"),
        (["socks4", "socks5"], "http", "socks5"),
        ("https", "http", "http"),
        ("https", "https", "https"),
        ("https", "socks5", "http"),
        ("residential", "socks5", "socks5"),
        (None, "socks5", "socks5"),
    ],
)
def test_an_object_says_its_kind_as_providers_do(said: object, default: str, scheme: str) -> None:
    item = {"ip": "10.0.0.7", "port": 80, "protocol": said}
    assert the_exit(json.dumps([item]), default).scheme == scheme


def test_an_object_may_have_an_ipv6_address_and_a_password_of_digits() -> None:
    spec = the_exit('[{"ip": "2001:db8::7", "port": 80, "user": "joe", "password": 123}]')
    assert (spec.host, spec.password) == ("2001:db8::7", "123")


def test_a_bad_entry_is_skipped_by_its_number() -> None:
    raw = b'["10.0.0.7:80", 7, {"host": "hunter2"}, {"host": "h", "port": "hunter2"}, ["h", 80]]'
    found = parse_list(raw, HERE)
    assert [skipped.place for skipped in found.skipped] == [f"entry {n}" for n in (2, 3, 4, 5)]
    assert "hunter2" not in str(found.skipped)


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_csv_has_these_names_in_its_first_line(comma: str) -> None:
    text = (
        'ip,port,username,password,country\n10.0.0.7,8080,joe,"p:w",DE\nhunter2,,\na\rb,1\n%s,1\n'
        % ("x" * 200_000)
    )
    found = parse_list(text.replace(",", comma).encode(), HERE)
    assert found.exits == (WITH_LOGIN,)
    assert found.exits[0].country == "de"
    assert [skipped.place for skipped in found.skipped] == ["line 3", "line 4", "line 5"]


# --- what is no list ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no exit in it"),
        (b"\n# nothing yet\n", "no exit in it"),
        (b"[]", "no exit in it"),
        (b"ip,port\n", "no exit in it"),
        (b"\n<!DOCTYPE html><html>", "no list of exits (looks like a web page)"),
        (b"\x7fELF\x02\x01\x01\0\0", "no list of exits (not text)"),
        (b"\xff\xfe1\0", "no list of exits (line 1: not an exit"),
        (b"\xf4hunter2", "no list of exits (line 1: has a byte that is not UTF-8)"),
        (b'{"error": "hunter2"}', "no list of exits (JSON without a list under proxies"),
        (b'{"data": 7}', "no list of exits (JSON without a list"),
        (b'["10.0.0.7:80", ', "no list of exits (begins as JSON, and isn't)"),
        (b'["' + b"[" * 100_000, "no list of exits (begins as JSON"),
        (b"proxies:\n- a: [hunter2\n", "no list of exits (begins as YAML, and isn't: line 3)"),
        (b"[[" * 50_000, "no list of exits (line 1: longer than"),
        (b"{" + b'"data":{' * 50_000, "no list of exits (begins as JSON"),
        (b"quota hunter2\nexceeded\n", "no list of exits (line 1: not an exit (expected"),
    ],
)
def test_what_is_no_list_is_refused_as_a_whole(raw: bytes, why: str) -> None:
    told = refusal(raw)
    assert told.startswith(why)
    assert "hunter2" not in told


def test_a_list_has_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_SIZE", 1024)
    monkeypatch.setattr(lists, "MAX_EXITS", 10)
    assert refusal(b"#" * 1025) == "larger than 1KiB"
    lines = [f"10.0.0.{n}:80" for n in range(11)]
    assert len(parse_list("\n".join(lines[:10]).encode(), HERE).exits) == 10
    assert refusal("\n".join(lines).encode()) == "more than 10 entries"


def test_yaml_has_a_lower_bound_which_other_forms_do_not_have() -> None:
    entry = "{url: '10.0.0.7:80'}"
    listed = f"proxies: [{entry}" + f",{entry}" * 100
    assert parse_list(f"{listed}]".encode(), HERE).duplicates == 100
    blanks = " " * MAX_YAML
    why = "larger than 1MiB, which is the most for YAML (lines, CSV and JSON may be larger)"
    assert refusal(f"{listed}{blanks}]".encode()) == why
    assert parse_list(f"10.0.0.7:80\n{blanks}".encode(), HERE).exits


def test_bytes_that_are_no_text_do_not_hold_the_interpreter() -> None:
    raw = random.Random(1).randbytes(8_000_000).replace(b"\0", b"")
    rounds = 0
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        reader = threading.Thread(target=lambda: next(entries(raw, 1)))
        reader.start()
        while reader.is_alive():
            time.sleep(0)  # another thread's turn
            rounds += 1
    finally:
        sys.setswitchinterval(before)
    # twenty if it is one piece
    assert rounds > 50


@given(st.binary(), st.integers(1, 5))
def test_bytes_that_are_read_in_pieces_are_the_same_text(raw: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_entries, "_PIECE", size)
        try:
            found = list_entries._text(raw)
        except ConfigError:
            found = None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16" if wide else "utf-8", "replace")
    for char in "\ufeff\u200b\u200c\u200d\u2060":
        text = text.replace(char, "")
    assert found == (None if "\0" in text else text.replace("\ufffd", SPOILED))


@pytest.mark.parametrize(
    "line",
    [
        "direct",
        "direct://?source=10.0.0.0/8",
        "gsocks://h?key_file=/etc/shadow",
        "socks5://h?via=direct",
        "socks5://h via=gsocks://h?key_file=/etc/shadow",
    ],
)
def test_a_list_from_elsewhere_has_no_say_over_this_machine(line: str) -> None:
    found = parse_list(f"10.0.0.7:80\n{line}\n".encode(), ListOptions())
    assert [skipped.reason for skipped in found.skipped] == [
        "a list from a URL can't say direct or name a key_file"
    ]


@pytest.mark.parametrize(
    "line", ["socks5+unix:///run/tor/socks", "socks5://9.9.9.9 via=http+unix:///run/docker.sock"]
)
def test_a_list_from_elsewhere_names_no_unix_socket(line: str) -> None:
    for options in (ListOptions(), ListOptions(public=True)):
        found = parse_list(f"9.9.9.9:80\n{line}\n".encode(), options)
        assert [skipped.reason for skipped in found.skipped] == [
            "a list from a URL can't name a Unix socket"
        ]


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.7:80",
        "socks5://[::1]:1080",
        "169.254.169.254:80",
        "http://localhost:80",
        "socks5://9.9.9.9 via=http://127.0.0.1:80",
        "socks5://10.0.0.7 via=http://9.9.9.9:80",
        "http://0.0.0.0:80",
        "http://[::ffff:127.0.0.1]:80",
        "http://metadata.google.internal:80",
    ],
)
def test_a_list_from_a_public_url_has_no_say_over_the_private_network(line: str) -> None:
    raw = f"9.9.9.9:80\nproxy.example:80\nsocks5://9.9.9.9 via=http://9.9.9.8:80\n{line}\n"
    found = parse_list(raw.encode(), ListOptions(public=True))
    assert [spec.public for spec in found.exits] == [True] * 3
    assert found.skipped == (
        (
            "line 4",
            "a private address, or one of this machine, in a list from a public URL"
            " (private: true allows them)",
        ),
    )
    everything = parse_list(raw.encode(), ListOptions())
    assert [spec.public for spec in everything.exits] == [False] * 4


@pytest.mark.parametrize(
    "line", ["gsocks://{key}@9.9.9.9", "9.9.9.9:80 via=gsocks://{key}@9.9.9.8"]
)
@pytest.mark.parametrize("public", [False, True])
def test_a_list_from_a_url_names_gsocks_servers_only_if_its_source_says_so(
    line: str, public: bool
) -> None:
    raw = f"9.9.9.9:80\n{line.format(key=Key(bytes(32)).text())}\n".encode()
    found = parse_list(raw, ListOptions(public=public))
    assert found.skipped == (
        ("line 2", "a gsocks server in a list from a URL (gsocks: true allows them)"),
    )
    assert len(parse_list(raw, ListOptions(public=public, gsocks=True)).exits) == 2
    assert len(parse_list(raw, ListOptions(base=Path("/etc/gsocks"))).exits) == 2


def test_an_exit_of_a_list_from_a_public_url_weighs_no_more_than_others() -> None:
    raw = b"9.9.9.9:80 weight=1000\n9.9.9.8:80 weight=0.5\n9.9.9.7:80\n9.9.9.6:80 weight=1e308\n"
    found = parse_list(raw, ListOptions(public=True))
    assert [spec.weight for spec in found.exits] == [1.0, 0.5, 1.0]
    assert [skipped.place for skipped in found.skipped] == ["line 4"]
    heavy = parse_list(raw, ListOptions(given={"weight": 3.0}, public=True))
    assert [spec.weight for spec in heavy.exits] == [3.0, 0.5, 3.0]
    own = parse_list(raw, ListOptions())
    assert [spec.weight for spec in own.exits] == [1000.0, 0.5, 1.0]


def test_a_list_names_no_private_address_behind_its_readers_proxy_either() -> None:
    via = ExitSpec.parse("http://10.0.0.1:80")
    given = {"via": via}
    with pytest.raises(
        ConfigError, match="a private address, or one of this machine, in a list from a public URL"
    ):
        parse_list(b"10.0.0.7:80", ListOptions(given=given, public=True))
    (found,) = parse_list(b"10.0.0.7:80", ListOptions(given=given)).exits
    assert found.via is via
    options = ListOptions(given=given, public=True)
    (found,) = parse_list(b"9.9.9.9:80", options).exits
    assert not found.public  # the operator's own proxy is reached wherever it is
    (found,) = parse_list(b"http://9.9.9.9:80 via=http://9.9.9.8:80", options).exits
    assert found.public


def test_what_its_reader_has_it_reached_through_is_no_say_of_a_list() -> None:
    via = ExitSpec.parse("gsocks://h?key_file=k")
    found = parse_list(b"10.0.0.7:80\n", ListOptions(given={"via": via}))
    assert found.exits[0].via is via


@given(st.sampled_from(["", "10.0.0.7:80\n", "ip,port\n10.0.0.7,80\n", "["]), st.text(max_size=200))
def test_any_text_is_a_list_or_refused(begin: str, text: str) -> None:
    try:
        parse_list((begin + text).encode("utf-8", "surrogatepass"), HERE)
    except ConfigError:
        pass


parts = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), min_size=1, max_size=9)


@given(
    parts.filter(lambda user: not set(user) & set(":{")), parts.filter(lambda word: "{" not in word)
)
def test_any_login_comes_through_behind_its_place(user: str, password: str) -> None:
    spec = the_exit(f"10.0.0.7:80:{user}:{password}")
    assert (spec.host, spec.user, spec.password) == ("10.0.0.7", user, password)
