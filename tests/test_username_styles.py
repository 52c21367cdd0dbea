"""Styles of user names: what the clients of providers send, styles of one's own, their mistakes."""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks import config
from gsocks.access.login import Authenticator, Identity
from gsocks.access.username import read_credentials, read_parameters
from gsocks.access.username_style import STYLES, UserNameStyle, parse_style, parse_styles
from gsocks.address import Address
from gsocks.errors import AuthenticationFailed, BadParameters, ConfigError
from gsocks.local import LocalServer
from gsocks.request import ExitSelector
from tests.support.engine import Seen, connect, read_exactly, read_to_end, running_inbound
from tests.support.newcomers import USERS, login

DOCUMENT = (Path(__file__).parent.parent / "docs" / "providers.md").read_text()
EXAMPLES = re.findall(r"^\| `(\w+)` \| `(\S+):(\S+)` \| (.*) \|$", DOCUMENT, re.MULTILINE)


def log_in(
    styles: Any, name: str, password: str, users: tuple[str, ...] = ("alice",), right: str = "pw"
) -> Identity:
    """The identity of a client, whose password must be right."""

    def verify(user: str, given: bytes) -> bool:
        return user in users and given == right.encode()

    return Authenticator(verify, users, styles=parse_styles(styles)).authenticate(
        name, password.encode()
    )


def open_to_all(styles: Any, name: str, password: str) -> ExitSelector:
    """The selector of a client of a listener without users."""
    authenticator = Authenticator(styles=parse_styles(styles))
    return authenticator.authenticate(name, password.encode()).selector


# --- what providers' clients send -------------------------------------------------------------


@pytest.mark.parametrize(("style", "name", "password", "selector"), EXAMPLES)
def test_the_examples_of_the_document_are_read_as_it_says(
    style: str, name: str, password: str, selector: str
) -> None:
    user, found = log_in(style, name, password)
    assert (user, str(found)) == ("alice", selector)
    assert open_to_all(style, name, password) == found
    # the same by a list of styles, at whatever place in it
    if style != "evomi":  # which reads what iproyal does
        others = [each for each in STYLES if each not in (style, "evomi")]
        assert log_in([*others[:3], style], name, password) == (user, found)


def test_the_document_has_an_example_of_every_style() -> None:
    assert {style for style, *_ in EXAMPLES} == set(STYLES)


@pytest.mark.parametrize(
    ("styles", "name", "password", "user", "selector"),
    [
        ("oxylabs", "alice", "pw", "alice", ""),
        ("iproyal", "alice", "pw", "alice", ""),
        ("oxylabs", "customer-a-cc-b-cc-DE", "pw", "a-cc-b", "country de"),
        ("webscrapingapi", "username=a+country=b+country=us", "pw", "a+country=b", "country us"),
        ("dataimpulse", "a__cr.b__cr.de", "pw", "a__cr.b", "country de"),
        ("webscrapingapi", "alice+country=random", "pw", "alice", ""),
        ("webscrapingapi", "alice+strict+session=a-b.c", "pw", "alice", "session a-b.c, strict"),
        ("dataimpulse", "alice__tag.a.b;cr.de", "pw", "alice", "country de, tags a.b"),
        ("iproyal", "alice", "pw_tag-a_b_SESSION-x", "alice", "session x, tags a_b"),
        ("iproyal", "alice", "pw_strict_session-x", "alice", "session x, strict"),
        ("oxylabs", "alice-sessid_oneip-x-strict", "pw", "alice", "session x, strict"),
        (
            ["standard", "iproyal"],
            "alice-session-x",
            "pw_country-us",
            "alice",
            "session x, country us",
        ),
        (["standard", "iproyal"], "alice-session-x", "pw_session-y", "alice", "session x"),
        (["brightdata", "standard"], "customer-alice", "pw", "alice", ""),
        (["standard", "oxylabs"], "alice-city-rome", "pw", "alice", "tags rome"),
    ],
)
def test_credentials_are_taken_apart(
    styles: Any, name: str, password: str, user: str, selector: str
) -> None:
    users = ("alice", "a-cc-b", "a+country=b", "a__cr.b")
    found = log_in(styles, name, password, users)
    assert (found.user, str(found.selector)) == (user, selector)


@pytest.mark.parametrize(
    ("style", "name", "password", "message"),
    [
        ("oxylabs", "alice-sesid-x", "pw", r"'sesid' is not a key \(did you mean sessid\?\)"),
        (
            "webscrapingapi",
            "alice+contry=de",
            "pw",
            r"'contry' is not a key \(did you mean country",
        ),
        ("webscrapingapi", "alice+session=x+contry=de", "pw", r"'x\+contry=de' has a \+, which"),
        ("webscrapingapi", "alice+country", "pw", "country: an empty value is not a country"),
        ("webscrapingapi", "alice+strict=yes", "pw", "strict: has no value"),
        ("brightdata", "brd-customer-alice-route_err-block", "pw", "'route_err' is not a key"),
        ("brightdata", "alice-city-a b", "pw", "city: 'a b' is not a tag"),
        ("soax", "alice-sessionlength-0", "pw", "sessionlength: a session needs a lifetime"),
        ("dataimpulse", "alice__sessttl.soon", "pw", "sessttl: 'soon' is not a duration"),
        ("oxylabs", "alice-sessid-x-sessid_oneip-y", "pw", "sessid_oneip: duplicate"),
        ("iproyal", "alice", "pw_session-x y", "behind a password: session: not valid; known keys"),
        ("iproyal", "alice", "pw_session-x_y-z", "behind a password: session: not valid"),
        ("iproyal", "alice", "pw_session-" + "x" * 250, "longer than 255 characters"),
        (["standard", "oxylabs"], "alice-sesid-x", "pw", "'sesid' is not a key"),
    ],
)
def test_a_mistake_fails_the_login_once_the_password_is_right(
    style: Any, name: str, password: str, message: str
) -> None:
    with pytest.raises(BadParameters, match=message):
        log_in(style, name, password)
    with pytest.raises(AuthenticationFailed) as caught:
        log_in(style, name, password, right="another")
    assert not isinstance(caught.value, BadParameters)
    assert str(caught.value) == "no user 'alice' with that password"


@pytest.mark.parametrize(
    "password", ["hunter2_session-hunt er", "hunter2_hunter-x", "hunter2_session-x_hunter-2"]
)
def test_no_message_has_a_part_of_a_password(password: str) -> None:
    for right in ("hunter2", "another"):
        with pytest.raises(AuthenticationFailed) as caught:
            log_in("iproyal", "alice", password, right=right)
        assert "hunt" not in str(caught.value)


def test_without_users_no_message_has_a_part_of_a_password() -> None:
    with pytest.raises(BadParameters, match="session: not valid") as caught:
        open_to_all("iproyal", "", "hunter2_session-hunt er")
    assert "hunt" not in str(caught.value)


@given(
    name=st.text(alphabet="ab-_=+.;", max_size=40) | st.text(max_size=300),
    password=st.binary(max_size=300) | st.from_regex(rb"\A[a-z]*(_(session|cc|x)(-|_)?)*\Z"),
    styles=st.lists(st.sampled_from(list(STYLES.values())), min_size=1, max_size=3),
)
def test_any_credentials_are_read_or_refused(
    name: str, password: bytes, styles: list[UserNameStyle]
) -> None:
    for users in (None, {"a", "a-b", "a_b"}):
        found = read_credentials(name, password, users, styles)
        assert password.startswith(found.password)
        assert found.user in ("",) if users is None else found.user in name
        assert isinstance(found.selector, ExitSelector | BadParameters)


words = st.from_regex(r"[A-Za-z0-9]{1,12}", fullmatch=True)


@given(
    style=st.sampled_from(list(STYLES.values())),
    session=words,
    country=st.sampled_from(["de", "US"]),
    tags=st.lists(words, max_size=3),
    draw=st.data(),
)
def test_what_is_written_in_a_style_is_read_back(
    style: UserNameStyle, session: str, country: str, tags: list[str], draw: st.DataObject
) -> None:
    meant = [("session", session), ("country", country), *(("tag", tag) for tag in tags)]
    pairs = []
    for meaning, value in meant:
        known = [key for key, each in style.keys.items() if each == meaning]
        pairs.append(f"{draw.draw(st.sampled_from(known))}{style.values}{value}")
    pairs.extend(draw.draw(st.sampled_from([[], ["strict"]])))
    text = style.pairs.join(draw.draw(st.permutations(pairs)))
    selector = read_parameters(text, style)
    lowered = tuple(sorted({tag.lower() for tag in tags}))
    assert selector[:1] + selector[2:] == (
        session,
        country.lower(),
        lowered,
        None,
        "strict" in pairs,
    )
    name, password = ("alice", b"pw" + style.start.encode() + text.encode())
    if not style.in_password:
        name, password = (f"alice{style.start}{text}", b"pw")
    assert read_credentials(name, password, {"alice"}, [style]) == ("alice", b"pw", selector)


# --- styles of one's own ----------------------------------------------------------------------


def test_the_styles_of_the_document_are_those_of_a_config() -> None:
    first, own = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[:2]
    local = config.parse(first, Path()).local
    assert local is not None
    assert local.username_style == (STYLES["oxylabs"],)
    assert [each.username_style for each in local.listen] == [
        None,
        (STYLES["standard"], STYLES["iproyal"]),
    ]
    local = config.parse(own, Path()).local
    assert local is not None
    assert local.username_style is not None
    (credentials,) = re.findall(r"takes `(\w+)` with the password `(\S+)`", DOCUMENT)
    user, found = log_in(list(local.username_style), *credentials)
    assert (user, str(found)) == ("alice", "session x1, lifetime 1m30s, country de")
    assert str(log_in(list(local.username_style), "alice", "pw_pool=a_b_os=linux")[1]) == "tags a_b"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "oxylab",
            "'oxylab' is not a style of user names (did you mean oxylabs?) (known: standard,",
        ),
        (7, "7 is not a style of user names (known: "),
        ([], "needs 1 to 8 styles"),
        (["standard"] * 9, "needs 1 to 8 styles"),
        (["standard", "standard"], "[1]: duplicate style"),
        ({"pair": "_"}, "pair: unknown key (did you mean pairs?)"),
        ({"pairs": "a"}, "pairs: 'a' is not a separator"),
        ({"pairs": ":"}, "pairs: ':' is not a separator"),
        ({"pairs": ""}, "pairs: an empty value is not a separator"),
        ({"values": "-----"}, "values: '-----' is not a separator"),
        ({"prefixes": "a b"}, "prefixes: 'a b' is not a prefix"),
        ({"prefixes": ["x"] * 9}, "prefixes: more than 8 prefixes"),
        ({"place": "head"}, "place: 'head' is not a place (known: user, password)"),
        ({"lifetime_unit": "h"}, "lifetime_unit: 'h' is not a unit (known: seconds, minutes)"),
        ({"keys": "x"}, "keys: 'x' is not a mapping"),
        ({"keys": {"x": "y"}}, "keys.x: 'y' is not a meaning (known: session, strict_session,"),
        ({"keys": {"a b": "tag"}}, "keys: 'a b' is not a key"),
        ({"keys": {f"k{n}": "tag" for n in range(65)}}, "keys: more than 64 keys"),
        ({"pairs": "_", "keys": {"a_b": "tag"}}, "keys: 'a_b' has a separator in it"),
    ],
)
def test_a_mistake_in_a_style_is_told(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_styles(value)
    assert str(caught.value).startswith(message)


def test_a_style_may_separate_all_by_the_same_sign() -> None:
    style = parse_style({"pairs": "_", "values": "_"})
    assert log_in(style, "alice_session_x_cc_de", "pw").selector == ExitSelector("x", country="de")
    assert open_to_all(style, "x_y_session_a", "") == ExitSelector("a")


# --- at a listener ----------------------------------------------------------------------------


@pytest.mark.usefixtures("never_hangs", "nothing_left")
@pytest.mark.parametrize("protocol", ["SOCKS5", "HTTP"])
def test_a_listener_takes_the_styles_of_its_clients_and_logs_no_password(
    protocol: str, echo_server: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    observer = Seen()
    near = LocalServer(
        ("127.0.0.1", 0),
        rules=["allow all"],
        users=USERS,
        username_style=["standard", "iproyal"],
        observer=observer,
    )
    with running_inbound(near) as inbound:
        for password in (b"secret_session-cart7", b"secret_session-cart 7"):
            with connect(inbound.bound) as sock:
                if protocol == "HTTP":
                    basic = b64encode(b"alice-strict:" + password)
                    sock.sendall(
                        b"CONNECT %s HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic %s\r\n\r\n"
                        % (str(echo_server).encode(), basic)
                    )
                    right, wrong = b"HTTP/1.1 200", b"HTTP/1.1 407"
                else:
                    sock.sendall(login(b"alice-strict", password))
                    right, wrong = b"\x05\x02\x01\x00", b"\x05\x02\x01\x01"
                    if b" " not in password:
                        sock.sendall(b"\x05\x01\x00" + echo_server.encode())
                expected = wrong if b" " in password else right
                assert read_exactly(sock, len(expected)) == expected
                if expected is wrong:
                    read_to_end(sock)
            observer.next()
    right_one, wrong_one = observer.all
    assert (right_one.user, right_one.session) == ("alice", "cart7")
    assert wrong_one.outcome == "bad_parameters"
    assert wrong_one.detail.startswith("behind a password: session: not valid")
    assert "secret" not in caplog.text + str([record.fields() for record in observer.all])
