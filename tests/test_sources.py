"""Where lists of exits are, as their users write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from gsocks.errors import ConfigError
from gsocks.exits.url import ExitSpec
from gsocks.rotation.sources import FileSource, UrlSource, parse_source

BASE = Path("/etc/gsocks")


def refusal(entry: Mapping[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_source(entry, BASE)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_relative_to_the_config_and_what_its_list_names_to_the_file() -> None:
    source = parse_source({"file": "lists/a.txt"}, BASE)
    assert isinstance(source, FileSource)
    assert (source.file, source.manner.base) == (BASE / "lists/a.txt", BASE / "lists")
    assert (source.manner.scheme, dict(source.manner.given)) == ("http", {})


def test_a_url_has_its_interval_its_login_and_a_file_of_its_own_that_keeps_it() -> None:
    text = "https://joe:secret@p.example/list?secret"
    source = parse_source(
        {"url": text, "interval": "1h", "header_file": "token", "fetch_via": "socks5://h"}, BASE
    )
    assert isinstance(source, UrlSource)
    assert source.interval == 3600.0
    assert source.header_file == BASE / "token"
    assert source.fetch_via == ExitSpec.parse("socks5://h")
    assert source.manner.base is None
    assert source.cache.parent == BASE
    assert "secret" not in f"{source} {source!r}"
    other = parse_source({"url": text + "2"}, BASE)
    assert isinstance(other, UrlSource)
    assert (other.interval, other.fetch_via) == (600.0, None)
    assert other.cache != source.cache
    assert parse_source({"url": text, "cache": "kept"}, BASE).kept == BASE / "kept"


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
    manner = parse_source(entry, BASE).manner
    assert manner.scheme == "socks5"
    assert manner.given == {
        "country": "de",
        "tags": ("fast", "cheap"),
        "weight": 2.0,
        "max_connections": 5,
        "requests_per_minute": 60,
        "via": ExitSpec.parse("gsocks://h?key_file=k", BASE),
    }


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
        ({"url": "https://h:secret/"}, "url: not the URL of a list (it has no proper host"),
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
