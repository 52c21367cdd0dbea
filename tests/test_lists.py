"""Lists of exits as people and providers write them, and what is no list."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.errors import ConfigError
from gsocks.exits.url import ExitSpec
from gsocks.rotation import lists
from gsocks.rotation.lists import Manner, parse_list

HERE = Manner(base=Path("/etc/gsocks"))


def the_exit(line: str, scheme: str = "http") -> ExitSpec:
    found = parse_list(line.encode(), Manner(scheme, base=Path("/etc/gsocks")))
    assert not found.left_out, found.left_out
    (spec,) = found.exits
    return spec


def labels(text: str) -> list[str]:
    return [spec.label for spec in parse_list(text.encode(), HERE).exits]


def reason(line: str) -> str:
    """Why ``line`` is left out."""
    found = parse_list(f"10.9.9.9:80\n{line}\n".encode(), HERE)
    (left_out,) = found.left_out
    assert left_out.place == "line 2"
    return left_out.reason


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
        ("socks4://10.0.0.7", ExitSpec("socks4a", "10.0.0.7", 1080)),
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
    first, second, third = parse_list(raw, Manner(given=given, base=Path())).exits
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
    assert found.repeated == 2


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
        ("socks5://joe:hunter2:10.0.0.7:1080", "what stands behind socks5:// is not HOST:PORT"),
        ("ftp://joe:hunter2@10.0.0.7:21", "unknown scheme ftp://"),
        ("10.0.0.7:8080 weigth=2", "weigth: unknown key (did you mean weight?)"),
        ("10.0.0.7:8080 weight=none", "weight: this value is not a weight"),
        ("10.0.0.7:8080 weight=1 weight=2", "weight: stands here twice"),
        ("x" * 5000, "longer than 4096 characters"),
        ("10.0.0.7:8080:joe:hunter2\x07", "password: is not printable text"),
        ("us:8080 country=de:joe:hunter2", "country: this value is not a country"),
        ("10.0.0.7:8080 tags=joe:hunter2", "tags: this value is not a word"),
        ("10.0.0.7:8080 weight=1joe:hunter2", "weight: this value is not a weight"),
        ("10.0.0.7:8080 name=it's:hunter2", "name: this value is not a word"),
    ],
)
def test_a_bad_line_is_left_out_by_its_number_and_nothing_of_it_is_told(
    line: str, why: str
) -> None:
    told = reason(line)
    assert told.startswith(why)
    assert "hunter2" not in told


def test_ten_thousand_lines_are_read_in_well_under_a_second() -> None:
    raw = "\n".join(f"10.{n >> 8}.{n & 255}.7:8080:user{n}:password" for n in range(10_000))
    began = time.process_time()
    found = parse_list(raw.encode(), HERE)
    assert time.process_time() - began < 1.0  # 0.18 s where this was written
    assert len(found.exits) == 10_000


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
    began = time.process_time()
    assert len(parse_list(raw.encode(), HERE).exits) == 1
    assert time.process_time() - began < 2.0


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
        ("socks4", "http", "socks4a"),
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


def test_a_bad_entry_is_left_out_by_its_number() -> None:
    raw = b'["10.0.0.7:80", 7, {"host": "hunter2"}, {"host": "h", "port": "hunter2"}, ["h", 80]]'
    found = parse_list(raw, HERE)
    assert [left_out.place for left_out in found.left_out] == [f"entry {n}" for n in (2, 3, 4, 5)]
    assert "hunter2" not in str(found.left_out)


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_csv_has_these_names_in_its_first_line(comma: str) -> None:
    text = (
        'ip,port,username,password,country\n10.0.0.7,8080,joe,"p:w",DE\nhunter2,,\na\rb,1\n%s,1\n'
        % ("x" * 200_000)
    )
    found = parse_list(text.replace(",", comma).encode(), HERE)
    assert found.exits == (WITH_LOGIN,)
    assert found.exits[0].country == "de"
    assert [left_out.place for left_out in found.left_out] == ["line 3", "line 4", "line 5"]


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
        (b"\xff\xfe1\0", "no list of exits (not UTF-8)"),
        (b'{"error": "hunter2"}', "no list of exits (JSON without a list under proxies"),
        (b'{"data": 7}', "no list of exits (JSON without a list"),
        (b'["10.0.0.7:80", ', "no list of exits (begins as JSON, and isn't)"),
        (b'["' + b"[" * 100_000, "no list of exits (begins as JSON"),
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
    monkeypatch.setattr(lists, "LARGEST", 1024)
    monkeypatch.setattr(lists, "MOST_EXITS", 10)
    assert refusal(b"#" * 1025) == "larger than 1KiB"
    lines = [f"10.0.0.{n}:80" for n in range(11)]
    assert len(parse_list("\n".join(lines[:10]).encode(), HERE).exits) == 10
    assert refusal("\n".join(lines).encode()) == "more than 10 entries"


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
    found = parse_list(f"10.0.0.7:80\n{line}\n".encode(), Manner())
    assert [left_out.reason for left_out in found.left_out] == [
        "a list from a URL can't say direct or name a key_file"
    ]


def test_what_its_reader_has_it_reached_through_is_no_say_of_a_list() -> None:
    via = ExitSpec.parse("gsocks://h?key_file=k")
    found = parse_list(b"10.0.0.7:80\n", Manner(given={"via": via}))
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
