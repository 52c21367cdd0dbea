"""Where lists of exits are, as their users write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.rotation.lists import parse_list
from gsocks.rotation.sources import FileSource, UrlSource, parse_source
from tests.support.network import ip, private_network

BASE = Path("/etc/gsocks")


def refusal(entry: Mapping[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_source(entry, BASE)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_relative_to_the_config_and_what_its_list_names_to_the_file() -> None:
    source = parse_source({"file": "lists/a.txt"}, BASE)
    assert isinstance(source, FileSource)
    assert (source.file, source.options.base) == (BASE / "lists/a.txt", BASE / "lists")
    assert (source.options.scheme, dict(source.options.given)) == ("http", {})


def test_a_url_has_its_interval_its_login_and_a_file_of_its_own_that_keeps_it() -> None:
    text = "https://joe:secret@p.example/list?secret"
    source = parse_source(
        {"url": text, "interval": "1h", "header_file": "token", "fetch_via": "socks5://h"}, BASE
    )
    assert isinstance(source, UrlSource)
    assert source.interval == 3600.0
    assert source.header_file == BASE / "token"
    assert source.fetch_via == ExitSpec.parse("socks5://h")
    assert source.options.base is None
    assert source.cache.parent == BASE
    assert "secret" not in f"{source} {source!r}"
    other = parse_source({"url": text + "2"}, BASE)
    assert isinstance(other, UrlSource)
    assert (other.interval, other.fetch_via) == (600.0, None)
    assert other.cache != source.cache
    assert parse_source({"url": text, "cache": "kept"}, BASE).kept == BASE / "kept"


@pytest.mark.parametrize(
    ("url", "options", "public"),
    [
        ("https://p.example/list", {}, True),
        ("http://192.168.0.7/list", {}, False),
        ("http://[::1]:8080/list", {}, False),
        ("http://localhost/list", {}, False),
        ("http://9.9.9.9/list", {}, True),
        ("https://p.example/list", {"private": "true"}, False),
        ("http://127.0.0.1/list", {"private": False}, True),
    ],
)
def test_a_list_from_a_public_url_has_public_exits_unless_the_config_allows_others(
    url: str, options: dict[str, object], public: bool
) -> None:
    assert parse_source({"url": url, **options}, BASE).options.public is public


def test_a_list_at_a_public_address_of_this_machine_is_as_public() -> None:
    with private_network():
        ip("addr add 9.9.9.9/32 dev card")
        options = parse_source({"url": "http://9.9.9.9/list"}, BASE).options
        assert options.public
        with pytest.raises(
            ConfigError,
            match="a private address, or one of this machine, in a list from a public URL",
        ):
            parse_list(b"9.9.9.9:80", options)


def test_all_exits_of_a_source_may_have_options_in_common() -> None:
    entry = {
        "file": "a",
        "scheme": "socks5",
        "country": "DE",
        "tags": ["Fast", "cheap"],
        "weight": "2",
        "max_connections": "5",
        "requests_per_minute": 60,
        "via": {"url": "gsocks://h", "key_file": "k"},
    }
    options = parse_source(entry, BASE).options
    assert options.scheme == "socks5"
    assert options.given == {
        "country": "de",
        "tags": ("fast", "cheap"),
        "weight": 2.0,
        "max_connections": 5,
        "requests_per_minute": 60,
        "via": ExitSpec.parse("gsocks://h?key_file=k", BASE),
    }


def test_a_source_needs_the_files_that_its_user_has_to_write() -> None:
    url = "https://p.example/list"
    assert parse_source({"file": "a"}, BASE).needs == (BASE / "a",)
    assert parse_source({"url": url}, BASE).needs == ()
    assert parse_source({"url": url, "header_file": "token"}, BASE).needs == (BASE / "token",)


def test_sources_are_equal_if_they_say_the_same() -> None:
    entry = {"file": "a", "tags": "x"}
    assert parse_source(entry, BASE) == parse_source(entry, BASE)
    assert parse_source(entry, BASE) != parse_source({**entry, "tags": "y"}, BASE)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "has either a file or a url, and needs one"),
        ({"file": "a", "url": "https://h/"}, "has either a file or a url, and needs one"),
        ({"flie": "a"}, "flie: unknown key (did you mean file?)"),
        ({"file": "a", "interval": "1m"}, "interval: only for a url"),
        ({"file": "a", "name": "x"}, "name: unknown key (known: file, url, scheme, weight, tags,"),
        ({"url": "secret"}, "url: not the URL of a list (expected e.g. https://example.com/list)"),
        ({"url": 7}, "url: not the URL of a list (expected"),
        ({"url": "https://h:secret/"}, "url: not the URL of a list (its host or port is invalid"),
        ({"url": "https://h/", "interval": "soon"}, "interval: 'soon' is not a duration"),
        ({"url": "https://h/", "interval": "10ms"}, "interval: '10ms' is less than a second"),
        ({"url": "https://h/", "interval": ["1m"]}, "interval: an empty value is not a duration"),
        ({"url": "https://h/", "cache": ""}, "cache: an empty value is not the path of a file"),
        ({"url": "https://h/", "header_file": 7}, "header_file: 7 is not the path of a file"),
        ({"url": "https://h/", "fetch_via": 7}, "fetch_via: not an exit (expected"),
        ({"url": "https://h/", "fetch_via": "http://h"}, "fetch_via: http:// needs a port"),
        ({"file": "a", "scheme": "sock5"}, "scheme: 'sock5' is no kind of proxy (did you mean"),
        ({"file": "a", "scheme": "direct"}, "scheme: 'direct' is no kind of proxy (known: socks5,"),
        ({"file": "a", "weight": 0}, "weight: 0 is not a weight"),
        ({"file": "a", "via": "socks5://joe:secret"}, "via: what stands behind socks5://"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(
    entry: Mapping[str, object], message: str
) -> None:
    assert refusal(entry).startswith(message)
