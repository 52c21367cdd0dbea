"""The country of an address, by a package's data and by a file of one's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gsocks.errors import ConfigError
from gsocks.rotation.geo import Countries, open_countries
from tests.support.mmdb import write_mmdb

RECORDS: dict[str, object] = {
    "193.0.0.0/21": {"country": {"iso_code": "NL"}},  # GeoLite2, DB-IP
    "5.9.0.0/16": {"country": "DE"},  # IPinfo
    "2a01:4f8::/32": {"country_code": "FI"},  # ip-location-db
    "8.8.8.0/24": {"registered_country": {"iso_code": "US"}},
    "9.9.9.0/24": {"country": {"iso_code": "??"}},
    "10.0.0.0/8": {"country": "FR"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "country.mmdb"
    write_mmdb(path, RECORDS)
    return path


@contextmanager
def opened(file: Path | None) -> Iterator[Countries]:
    countries = open_countries(file)
    assert countries is not None
    with closing(countries):
        yield countries


def test_the_package_knows_addresses_of_both_versions() -> None:
    with opened(None) as countries:
        # of the RIPE NCC itself
        assert countries.of("193.0.6.139") == "nl"
        assert countries.of("2001:67c:2e8:22::c100:68b") is not None
        unknown = ("10.0.0.1", "127.0.0.1", "::1", "203.0.113.7", "x")
        assert [countries.of(text) for text in unknown] == [None] * 5


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iptocc", None)
    assert open_countries(None) is None


def test_a_file_counts_instead_in_whatever_words_its_maker_has(file: Path) -> None:
    with opened(file) as countries:
        addresses = ("193.0.6.139", "5.9.1.1", "2a01:4f8::1", "8.8.8.8", "9.9.9.9", "1.1.1.1")
        assert list(map(countries.of, addresses)) == ["nl", "de", "fi", "us", None, None]
        assert countries.of("10.1.2.3") is None


def test_a_file_is_read_again_when_it_has_changed(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(file) as countries:
        assert countries.of("5.9.1.1") == "de"
        write_mmdb(file.with_name("new"), {"5.9.0.0/16": {"country": "AT"}})
        file.with_name("new").replace(file)
        assert countries.of("5.9.1.1") == "at"
        with caplog.at_level(logging.ERROR, logger="gsocks.rotation"):
            file.with_name("bad").write_bytes(b"gone")
            file.with_name("bad").replace(file)
            assert [countries.of("5.9.1.1") for _ in range(3)] == ["at"] * 3
    assert caplog.messages == [f"{file}: not a file in the MMDB format (keeping the previous one)"]


def test_a_file_that_is_damaged_while_it_is_open_ends_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(file) as countries:
        assert countries.of("5.9.1.1") == "de"
        file.write_bytes(b"\xff" * 40)  # in place, which would kill a process that has mapped it
        with caplog.at_level(logging.CRITICAL, logger="gsocks.rotation"):
            assert countries.of("5.9.1.1") in (None, "de")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "not a file in the MMDB format"), (b"x" * 5000, "not a file in the MMDB format")],
)
def test_a_file_that_is_no_database_is_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.mmdb"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_countries(path)
    assert str(caught.value) == f"{path}: {why}"


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.mmdb"
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_countries(path)


def test_a_file_needs_its_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(ConfigError, match=r"needs maxminddb \(pip install 'gsocks\[geo\]'\)"):
        open_countries(file)
