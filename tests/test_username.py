"""User names with an exit selector: which are accepted, which refused, and how each is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.access.username import MAX_NAME, read_parameters, split
from gsocks.errors import AuthenticationFailed, BadParameters
from gsocks.request import ANY, ExitSelector

ROOT = Path(__file__).parent.parent
UUID = "550e8400-e29b-41d4-a716-446655440000"


def parsed(name: str, *users: str) -> tuple[str, ExitSelector]:
    user, parameters = split(name, users or None)
    return user, read_parameters(parameters)


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("alice", ANY),
        ("customer-alice", ANY),
        ("alice-session-x", ExitSelector("x")),
        ("customer-alice-cc-DE-sessid-abcd1234-sesstime-10", ExitSelector("abcd1234", 600.0, "de")),
        (
            "user-alice-country-us-session-abc123-sessionduration-30",
            ExitSelector("abc123", 1800.0, "us"),
        ),
        ("alice-session-ID-lifetime-5", ExitSelector("ID", 300.0)),
        ("alice-lifetime-30s", ExitSelector(lifetime=30.0)),
        ("alice-sesstime-2h", ExitSelector(lifetime=7200.0)),
        ("alice-SESSION-x-Country-No", ExitSelector("x", country="no")),
        ("alice-tag-Mobile-tag-fast-tag-mobile", ExitSelector(tags=("fast", "mobile"))),
        (
            "alice-tag-data-center-exit-Berlin-1-2",
            ExitSelector(tags=("data-center",), exit="berlin-1-2"),
        ),
        (f"alice-session-{UUID}-cc-de", ExitSelector(UUID, country="de")),
        ("alice-session-cc-cc-fr", ExitSelector("cc", country="fr")),
        ("alice-session-" + "x" * 64, ExitSelector("x" * 64)),
        ("alice-session-a.b_c", ExitSelector("a.b_c")),
        ("alice-session-x-strict", ExitSelector("x", strict=True)),
        ("alice-Strict-session-x-cc-de", ExitSelector("x", country="de", strict=True)),
        ("alice-session-strict", ExitSelector("strict")),
    ],
)
def test_a_selector_stands_behind_the_user_name(name: str, selector: ExitSelector) -> None:
    assert parsed(name, "alice", "bob") == ("alice", selector)


@pytest.mark.parametrize(
    ("name", "users", "user", "selector"),
    [
        ("web-shop-session-x", ["web", "web-shop"], "web-shop", ExitSelector("x")),
        ("web-shop-session-x", ["web-shop", "web-shop-session-x"], "web-shop-session-x", ANY),
        ("user-1-session-x", ["user-1", "1"], "user-1", ExitSelector("x")),
        ("customer-alice-session-x", ["customer", "alice"], "alice", ExitSelector("x")),
        ("customer-customer-session-x", ["customer"], "customer", ExitSelector("x")),
        ("user-session-x", ["user"], "user", ExitSelector("x")),
        ("session-session-x", ["session"], "session", ExitSelector("x")),
        ("Zoë-cc-de", ["Zoë"], "Zoë", ExitSelector(country="de")),
    ],
)
def test_the_longest_prefix_that_is_a_user_is_the_user(
    name: str, users: list[str], user: str, selector: ExitSelector
) -> None:
    assert parsed(name, *users) == (user, selector)


@pytest.mark.parametrize(
    "name", ["mallory", "mallory-session-x", "alicesession-x", "Alice-session-x", "", "-", "user-"]
)
def test_without_a_known_user_the_whole_name_is_the_user(name: str) -> None:
    assert parsed(name, "alice", "bob") == (name, ANY)


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("", ANY),
        ("anything", ANY),
        ("any-thing", ANY),
        ("session-x", ExitSelector("x")),
        ("-session-x", ExitSelector("x")),
        ("anything-session-x", ExitSelector("x")),
        ("any-thing-CC-de-session-x", ExitSelector("x", country="de")),
        ("customer-me-cc-DE-sessid-a", ExitSelector("a", country="de")),
    ],
)
def test_without_authentication_the_name_ends_where_the_first_key_begins(
    name: str, selector: ExitSelector
) -> None:
    assert parsed(name) == ("", selector)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("sesion-x", r"'sesion' is not a key \(did you mean session\?\)"),
        ("x", "'x' is not a key"),
        ("-", "an empty value is not a key"),
        ("session", "session: an empty value is not a session"),
        ("session-", "session: an empty value is not a session"),
        ("session--x", "session: '-x' has a hyphen"),
        ("session-x-contry-de", "session: 'x-contry-de' has a hyphen"),
        ("session-x y", "session: 'x y' is not a session"),
        ("session-ü", "session: 'ü' is not a session"),
        ("session-" + "x" * 65, "session: this value is not a session"),
        ("session-x-sessid-x", "sessid: duplicate"),
        ("strict-yes", "'yes' is not a key"),
        ("cc-d", "cc: 'd' is not a country"),
        ("country-de-fr", "country: 'de-fr' is not a country"),
        ("lifetime-0", "lifetime: a session needs a lifetime above zero"),
        ("lifetime-soon", "lifetime: 'soon' is not a duration"),
        ("lifetime-1e9", "lifetime: '1e9' is not a duration"),
        ("lifetime-٣", "lifetime: '٣' is not a duration"),
        ("tag-a b", "tag: 'a b' is not a tag"),
        ("exit-*", r"exit: '\*' is not the name of an exit"),
        ("tag-a-" * 43, f"a user name longer than {MAX_NAME} characters"),
    ],
)
def test_a_mistake_fails_the_login_with_a_list_of_the_known_keys(
    parameters: str, message: str
) -> None:
    with pytest.raises(BadParameters, match=message) as caught:
        read_parameters(parameters)
    assert isinstance(caught.value, AuthenticationFailed)
    if "longer" not in message:
        keys = (
            "session, sessid, lifetime, sesstime, sessionduration, country, cc, tag, exit, strict"
        )
        assert str(caught.value).endswith(f"known keys: {keys}")


def test_a_name_longer_than_socks_clients_can_send_is_unknown() -> None:
    name = "alice-" + "-" * 100_000
    assert split(name, {"alice"}) == (name, "")


def test_the_examples_of_the_document_are_read_as_it_says() -> None:
    text = (ROOT / "docs" / "scraping.md").read_text()
    examples = re.findall(r"^\| `(\S*alice\S*)` \| (.*) \|$", text, re.MULTILINE)
    assert len(examples) == 8
    for name, selector in examples[2:]:
        assert (name, str(parsed(name, "alice")[1])) == (name, selector)
    assert parsed(examples[0][0], "alice") == ("alice", ANY)
    assert parsed(examples[1][0], "alice") == ("alice", ExitSelector("cart7"))
    documented_keys = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`.*?) \|", text, re.MULTILINE))
    )
    with pytest.raises(BadParameters) as caught:
        read_parameters("?")
    known = str(caught.value).split("known keys: ")[1].split(", ")
    assert set(known) <= set(documented_keys)


words = st.from_regex(r"[A-Za-z0-9_.]{1,64}", fullmatch=True)
tags = st.from_regex(r"[a-z0-9_][a-z0-9_.]{0,20}", fullmatch=True)


@given(
    session=st.none() | words,
    country=st.sampled_from([None, "de", "us", "no"]),
    minutes=st.none() | st.integers(1, 10_000),
    tagged=st.lists(tags, max_size=3),
    draw=st.data(),
)
def test_a_name_written_by_the_grammar_is_read_back(
    session: str | None,
    country: str | None,
    minutes: int | None,
    tagged: list[str],
    draw: st.DataObject,
) -> None:
    written = [
        (["session", "sessid", "SessID"], session),
        (["lifetime", "sesstime", "SESSIONDURATION"], minutes),
        (["country", "cc", "CC"], country),
        *((["tag", "Tag"], tag) for tag in tagged),
    ]
    parts = [f"{draw.draw(st.sampled_from(keys))}-{value}" for keys, value in written if value]
    text = "-".join(draw.draw(st.permutations(parts)))
    if len(text) <= MAX_NAME:
        lifetime = minutes * 60.0 if minutes else None
        selector = ExitSelector(session, lifetime, country, tuple(sorted(set(tagged))))
        assert read_parameters(text) == selector


@given(
    users=st.sets(st.from_regex(r"(user-|a|b|-|tag|cc)+", fullmatch=True), min_size=1),
    name=st.from_regex(r"(user-|customer-)?(user-|a|b|-|tag|cc)*", fullmatch=True),
)
def test_no_longer_prefix_is_a_user(users: set[str], name: str) -> None:
    meant = {
        prefix + user: user
        for prefix in ("user-", "customer-", "")
        for user in users
        if (name + "-").startswith(prefix + user + "-")
    }
    user, parameters = split(name, users)
    if not meant:
        assert (user, parameters) == (name, "")
    else:
        longest = max(meant, key=len)
        assert (user, parameters) == (meant[longest], name[len(longest) + 1 :])


@given(name=st.text(max_size=80) | st.from_regex(r"(?i)\A[a-z]*(-(session|cc|tag|exit|x|))*-?\Z"))
def test_any_text_is_read_or_refused_and_no_part_of_it_is_lost(name: str) -> None:
    for users in (None, {"alice"}, {"a", "-"}):
        user, parameters = split(name, users)
        assert name.endswith(parameters)
        if users is not None:
            assert user in users or (user == name and not parameters)
        try:
            selector = read_parameters(parameters)
        except BadParameters:
            continue
        assert (selector == ANY) == (not parameters)


def test_a_lifetime_beyond_a_year_is_refused() -> None:
    assert read_parameters("session-x-lifetime-366d").lifetime == 366 * 86400
    for text in ("367d", "4" * 32):
        with pytest.raises(BadParameters, match="a session lasts a year at the most"):
            read_parameters(f"session-x-lifetime-{text}")
