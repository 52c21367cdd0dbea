"""User names with misspelt parameters at a listener without users: told once, and counted."""

from __future__ import annotations

import logging

import pytest

from gsocks.access import login
from gsocks.access.login import Authenticator
from gsocks.access.misspelt import IgnoredNames, misspelt
from gsocks.access.username_style import STANDARD, STYLES
from gsocks.request import ANY


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> IgnoredNames:
    names = IgnoredNames()
    monkeypatch.setattr(login, "ignored_names", names)
    return names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sesion-abc", "session"),
        ("alice-sesion-abc", "session"),
        ("alice-Sessoin-abc", "session"),
        ("sesid-7", "sessid"),
        ("contry-de", "country"),
        ("me-counrty-de", "country"),
        ("tags-fast", "tag"),
        ("alice-stric", "strict"),
    ],
)
def test_a_misspelt_key_is_recognised(name: str, meant: str) -> None:
    assert f"did you mean {meant}?" in misspelt(name, (STANDARD,))


@pytest.mark.parametrize(
    "name",
    ["", "root", "www-data", "alice", "john.doe", "svc-web-1", "sesion", "my-lifetime", "a-b-c-d"],
)
def test_a_name_that_is_like_no_key_is_nothing_to_tell(name: str) -> None:
    assert misspelt(name, (STANDARD,)) == ""


def test_each_style_has_its_own_separators_and_keys() -> None:
    assert "did you mean session?" in misspelt("u__sesion.7;cr.de", (STYLES["dataimpulse"],))
    assert "did you mean city?" in misspelt("me-citty-paris", (STYLES["oxylabs"],))
    assert misspelt("me_sesion-7", (STYLES["evomi"],)) == ""  # what is in a password stays there


def test_it_is_told_once_for_each_name_and_counted_each_time(
    ignored: IgnoredNames, caplog: pytest.LogCaptureFixture
) -> None:
    for password in (b"x", b""):
        for name in ("sesion-abc", "sesion-abc", "contry-de"):
            assert Authenticator().authenticate(name, password).selector is ANY
    assert caplog.messages == [
        "the user name 'sesion-abc' selects nothing: 'sesion' is not a key (did you mean session?)",
        "the user name 'contry-de' selects nothing: 'contry' is not a key (did you mean country?)",
    ]
    assert ignored.count == 6


def test_so_is_a_name_without_a_password_whose_parameters_can_not_be_read(
    ignored: IgnoredNames, caplog: pytest.LogCaptureFixture
) -> None:
    assert Authenticator().authenticate("session-a-contry-de", b"").selector is ANY
    (told,) = caplog.messages
    assert told.startswith("the user name 'session-a-contry-de' selects nothing: ")
    assert ignored.count == 1


@pytest.mark.parametrize("name", ["", "root", "session-abc", "alice-country-de"])
def test_what_is_read_or_means_nothing_is_not_told(
    ignored: IgnoredNames, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    Authenticator().authenticate(name, b"x")
    assert not caplog.messages
    assert not ignored.count


def test_strangers_fill_neither_the_log_nor_the_memory(
    ignored: IgnoredNames, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            Authenticator().authenticate(f"sesion-{number}", b"x")
    assert len(caplog.messages) == ignored.max_told + 1
    assert caplog.messages[-1] == "further user names that select nothing are only counted"
    assert ignored.count == 1000


def test_a_name_can_forge_no_line_and_show_no_key(
    ignored: IgnoredNames, caplog: pytest.LogCaptureFixture
) -> None:
    Authenticator().authenticate("sesion-" + "A" * 43, b"x")
    Authenticator().authenticate("sesion-\\n2026 warning", b"x")
    assert "A" * 43 not in caplog.text
    assert all("\n" not in line for line in caplog.messages)
    assert ignored.count == 2
