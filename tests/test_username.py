"""User names that carry a wish: what is read, what is refused, and that nothing is read twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks.errors import AuthenticationFailed, BadParameters
from gsocks.rotation.username import LONGEST_NAME, read_parameters, split
from gsocks.wish import ANY, Wish

ROOT = Path(__file__).parent.parent
UUID = "550e8400-e29b-41d4-a716-446655440000"


def understood(name: str, *users: str) -> tuple[str, Wish]:
    user, parameters = split(name, users or None)
    return user, read_parameters(parameters)


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("alice", ANY),
        ("customer-alice", ANY),
        ("alice-session-x", Wish("x")),
        ("customer-alice-cc-DE-sessid-abcd1234-sesstime-10", Wish("abcd1234", 600.0, "de")),
        ("user-alice-country-us-session-abc123-sessionduration-30", Wish("abc123", 1800.0, "us")),
        ("alice-session-ID-lifetime-5", Wish("ID", 300.0)),
        ("alice-lifetime-30s", Wish(lifetime=30.0)),
        ("alice-sesstime-2h", Wish(lifetime=7200.0)),
        ("alice-SESSION-x-Country-No", Wish("x", country="no")),
        ("alice-tag-Mobile-tag-fast-tag-mobile", Wish(tags=("fast", "mobile"))),
        ("alice-tag-data-center-exit-Berlin-1-2", Wish(tags=("data-center",), exit="berlin-1-2")),
        (f"alice-session-{UUID}-cc-de", Wish(UUID, country="de")),
        ("alice-session-cc-cc-fr", Wish("cc", country="fr")),
        ("alice-session-" + "x" * 64, Wish("x" * 64)),
        ("alice-session-a.b_c", Wish("a.b_c")),
    ],
)
def test_a_wish_stands_behind_the_users_name(name: str, wish: Wish) -> None:
    assert understood(name, "alice", "bob") == ("alice", wish)


@pytest.mark.parametrize(
    ("name", "users", "user", "wish"),
    [
        ("web-shop-session-x", ["web", "web-shop"], "web-shop", Wish("x")),
        ("web-shop-session-x", ["web-shop", "web-shop-session-x"], "web-shop-session-x", ANY),
        ("user-1-session-x", ["user-1", "1"], "user-1", Wish("x")),
        ("customer-alice-session-x", ["customer", "alice"], "alice", Wish("x")),
        ("customer-customer-session-x", ["customer"], "customer", Wish("x")),
        ("user-session-x", ["user"], "user", Wish("x")),
        ("session-session-x", ["session"], "session", Wish("x")),
        ("Zoë-cc-de", ["Zoë"], "Zoë", Wish(country="de")),
    ],
)
def test_the_longest_beginning_that_is_a_user_is_the_user(
    name: str, users: list[str], user: str, wish: Wish
) -> None:
    assert understood(name, *users) == (user, wish)


@pytest.mark.parametrize(
    "name", ["mallory", "mallory-session-x", "alicesession-x", "Alice-session-x", "", "-", "user-"]
)
def test_where_nobody_is_meant_the_whole_name_is_taken_for_a_user(name: str) -> None:
    assert understood(name, "alice", "bob") == (name, ANY)


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("", ANY),
        ("anything", ANY),
        ("any-thing", ANY),
        ("session-x", Wish("x")),
        ("-session-x", Wish("x")),
        ("anything-session-x", Wish("x")),
        ("any-thing-CC-de-session-x", Wish("x", country="de")),
        ("customer-me-cc-DE-sessid-a", Wish("a", country="de")),
    ],
)
def test_at_an_open_door_the_name_ends_where_the_first_key_begins(name: str, wish: Wish) -> None:
    assert understood(name) == ("", wish)


@pytest.mark.parametrize(
    ("parameters", "told"),
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
        ("session-x-sessid-x", "sessid: said before"),
        ("cc-d", "cc: 'd' is not a country"),
        ("country-de-fr", "country: 'de-fr' is not a country"),
        ("lifetime-0", "lifetime: a session that ends at once is none"),
        ("lifetime-soon", "lifetime: 'soon' is not a duration"),
        ("lifetime-1e9", "lifetime: '1e9' is not a duration"),
        ("lifetime-٣", "lifetime: '٣' is not a duration"),
        ("tag-a b", "tag: 'a b' is not a tag"),
        ("exit-*", r"exit: '\*' is not the name of an exit"),
        ("tag-a-" * 43, f"a user name longer than {LONGEST_NAME} characters"),
    ],
)
def test_a_mistake_fails_the_login_and_is_told_with_the_known_keys(
    parameters: str, told: str
) -> None:
    with pytest.raises(BadParameters, match=told) as caught:
        read_parameters(parameters)
    assert isinstance(caught.value, AuthenticationFailed)
    if "longer" not in told:
        keys = "session, sessid, lifetime, sesstime, sessionduration, country, cc, tag, exit"
        assert str(caught.value).endswith(f"known keys: {keys}")


def test_a_name_longer_than_any_client_of_socks_could_send_is_nobodys() -> None:
    name = "alice-" + "-" * 100_000
    assert split(name, {"alice"}) == (name, "")


def test_the_document_tells_what_is_read() -> None:
    text = (ROOT / "docs" / "scraping.md").read_text()
    told = re.findall(r"^\| `(\S*alice\S*)` \| (.*) \|$", text, re.MULTILINE)
    assert len(told) == 7
    for name, wish in told[2:]:
        assert (name, str(understood(name, "alice")[1])) == (name, wish)
    assert understood(told[0][0], "alice") == ("alice", ANY)
    assert understood(told[1][0], "alice") == ("alice", Wish("cart7"))
    told_keys = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`.*?) \|", text, re.MULTILINE))
    )
    with pytest.raises(BadParameters) as caught:
        read_parameters("?")
    known = str(caught.value).split("known keys: ")[1].split(", ")
    assert set(known) <= set(told_keys)


words = st.from_regex(r"[A-Za-z0-9_.]{1,64}", fullmatch=True)
tags = st.from_regex(r"[a-z0-9_][a-z0-9_.]{0,20}", fullmatch=True)


@settings(derandomize=True, deadline=None)
@given(
    session=st.none() | words,
    country=st.sampled_from([None, "de", "us", "no"]),
    minutes=st.none() | st.integers(1, 10_000),
    tagged=st.lists(tags, max_size=3),
    draw=st.data(),
)
def test_what_is_written_by_the_grammar_is_read_as_it_was_meant(
    session: str | None,
    country: str | None,
    minutes: int | None,
    tagged: list[str],
    draw: st.DataObject,
) -> None:
    said = [
        (["session", "sessid", "SessID"], session),
        (["lifetime", "sesstime", "SESSIONDURATION"], minutes),
        (["country", "cc", "CC"], country),
        *((["tag", "Tag"], tag) for tag in tagged),
    ]
    parts = [f"{draw.draw(st.sampled_from(keys))}-{value}" for keys, value in said if value]
    text = "-".join(draw.draw(st.permutations(parts)))
    if len(text) <= LONGEST_NAME:
        lifetime = minutes * 60.0 if minutes else None
        wish = Wish(session, lifetime, country, tuple(sorted(set(tagged))))
        assert read_parameters(text) == wish


@settings(derandomize=True, deadline=None)
@given(
    users=st.sets(st.from_regex(r"(user-|a|b|-|tag|cc)+", fullmatch=True), min_size=1),
    name=st.from_regex(r"(user-|customer-)?(user-|a|b|-|tag|cc)*", fullmatch=True),
)
def test_no_beginning_longer_than_the_one_taken_is_a_user(users: set[str], name: str) -> None:
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


@settings(derandomize=True, deadline=None)
@given(name=st.text(max_size=80) | st.from_regex(r"(?i)\A[a-z]*(-(session|cc|tag|exit|x|))*-?\Z"))
def test_any_text_is_read_or_refused_and_no_part_of_it_is_lost(name: str) -> None:
    for users in (None, {"alice"}, {"a", "-"}):
        user, parameters = split(name, users)
        assert name.endswith(parameters)
        if users is not None:
            assert user in users or (user == name and not parameters)
        try:
            wish = read_parameters(parameters)
        except BadParameters:
            continue
        assert (wish == ANY) == (not parameters)


def test_a_lifetime_beyond_a_year_is_a_slip() -> None:
    assert read_parameters("session-x-lifetime-366d").lifetime == 366 * 86400
    for text in ("367d", "4" * 32):
        with pytest.raises(BadParameters, match="no session lasts longer than a year"):
            read_parameters(f"session-x-lifetime-{text}")
