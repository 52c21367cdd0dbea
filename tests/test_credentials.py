"""Credentials that pass a client's exit selector on to a provider: substitution and mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent.socket import socket
from hypothesis import given
from hypothesis import strategies as st

from gsocks import config
from gsocks.access.throttle import Throttle
from gsocks.access.username_style import STYLES
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.exits import ExitSpec
from gsocks.exits.credentials import Credentials, Filled, partition
from gsocks.local import LocalServer
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.lists import ListOptions, parse_list
from tests.support.engine import connect, read_exactly, running_inbound, serving
from tests.support.newcomers import USERS, login

DOCUMENT = (Path(__file__).parent.parent / "docs" / "providers.md").read_text()
DEST = Address("192.0.2.1", 80)
WORD = "[a-z2-7]{8}"
GATEWAY = "customer-me-cc-{country}-sessid-{session}"


def request(selector: ExitSelector = ANY, user: str | None = None) -> Request:
    return Request(Command.CONNECT, DEST, user, selector=selector)


# --- what is filled in ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "selector", "user", "filled"),
    [
        ("me", ExitSelector("x"), "alice", "me"),
        (GATEWAY, ExitSelector("Cart7", country="fr"), None, "customer-me-cc-fr-sessid-Cart7"),
        (GATEWAY, ExitSelector("Cart7"), None, "customer-me-cc-de-sessid-Cart7"),
        ("{COUNTRY}_{session}", ExitSelector("x", country="fr"), None, "FR_x"),
        ("{COUNTRY}", ANY, None, "DE"),
        ("{session}{session}", ExitSelector("x"), None, "xx"),
        ("me-{user}-{session}", ExitSelector("x"), "alice", "me-alice-x"),
        ("me-{user}", ANY, None, "me-nobody"),
        ("{session}", ExitSelector("x" * 64), None, "x" * 64),
        ("{session:1-25:word}", ExitSelector("my_cart"), None, "my_cart"),
        ("{session:word}-{session:4}", ExitSelector("cart"), None, "cart-cart"),
        ("{user:3-8:lower}", ANY, "alice", "alice"),
        ("{lifetime}", ExitSelector(lifetime=90.0), None, "90s"),
        ("{lifetime}", ExitSelector(lifetime=600.0), None, "10m"),
        ("{lifetime}", ExitSelector(lifetime=7200.0), None, "2h"),
        ("{lifetime}", ExitSelector(lifetime=7 * 86400.0), None, "7d"),
        ("{lifetime}", ExitSelector(lifetime=0.25), None, "1s"),
        ("{lifetime:m}", ExitSelector(lifetime=90.0), None, "2"),
        ("{lifetime:s}-{lifetime:h}", ExitSelector(lifetime=90.0), None, "90-1"),
        ("{lifetime:m:3-1440}", ExitSelector(lifetime=90.0), None, "3"),
        ("{lifetime:m:3-1440}", ExitSelector(lifetime=7 * 86400.0), None, "1440"),
        ("{lifetime}-{lifetime:m:3-30}", ANY, None, "1d-30"),
        ("me{?-{session}}{?-{lifetime:m}}", ANY, None, "me"),
        ("me{?-{session}-{lifetime:m}}", ExitSelector("x"), None, "me"),
        ("me{?-{session}-{lifetime:m}}", ExitSelector("x", 60.0), None, "me-x-1"),
        ("me{?-{user}}", ANY, None, "me"),
        ("me{?-cc-{COUNTRY}}", ExitSelector(country="fr"), None, "me-cc-FR"),
    ],
)
def test_what_the_client_asks_for_stands_in_its_place(
    template: str, selector: ExitSelector, user: str | None, filled: str
) -> None:
    asked = request(selector, user)
    assert Credentials(template, "pw", "de").filled(asked) == (filled, "pw")
    assert Credentials("me", template, "de").filled(asked) == ("me", filled)


def test_a_part_for_a_country_is_left_out_without_one() -> None:
    template = "me{?-cc-{country}}{?;{session}}"
    assert Credentials(template).filled(request()).user == "me"
    assert Credentials(template, country="de").filled(request()).user == "me-cc-de"
    spec = ExitSpec.parse({"url": "socks5://h", "user": template})
    assert spec.any_country
    assert spec.label == "socks5://***@h:1080"
    assert ExitSpec.parse(spec.url) == spec


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ("8", "[a-z2-7]{8}"),
        ("6-10", "[a-z2-7]{8}"),
        ("10-12", "[a-z2-7]{10}"),
        ("4", "[a-z2-7]{4}"),
        ("64:word", "[a-z2-7]{64}"),
        ("upper", "[A-Z2-7]{8}"),
        ("digits:5", "[0-9]{5}"),
        ("64:digits", "[0-9]{64}"),
        ("64:letters", "[a-z]{64}"),
        ("8:hex", "[0-9a-f]{8}"),
        ("lower", "[a-z2-7]{8}"),
    ],
)
def test_a_session_that_does_not_fit_becomes_a_word_that_does(form: str, fits: str) -> None:
    credentials = Credentials(f"{{session:{form}}}")
    first, again, other, new, newer = (
        credentials.filled(request(ExitSelector(session))).user
        for session in ("a.b", "a.b", "a.c", None, None)
    )
    assert first == again
    assert len({first, other, new, newer}) == 4
    assert all(re.fullmatch(fits, word) for word in (first, other, new))
    assert credentials.filled(request(ExitSelector(first))).user == first


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("me:pw:x", ("me", "pw:x")),
        ("me-{session:8}:pw{lifetime:m:1-3}", ("me-{session:8}", "pw{lifetime:m:1-3}")),
        ("me{?-{lifetime:m}}:{session:8}", ("me{?-{lifetime:m}}", "{session:8}")),
        ("me-{x:y}:z", ("me-{x", "y}:z")),
        ("{session:8}", ("{session:8}", "")),
    ],
)
def test_a_colon_in_a_place_does_not_end_the_user(text: str, parts: tuple[str, str]) -> None:
    user, colon, password = partition(text)
    assert (user, password) == parts
    assert user + colon + password == text
    if colon and "{x" not in text:
        for line in (f"http://{text}@10.0.0.7:80", f"10.0.0.7:80:{text}", f"{text}@10.0.0.7:80"):
            (spec,) = parse_list(line.encode(), ListOptions()).exits
            assert (spec.user, spec.password) == parts
        assert ExitSpec.parse(f"http://{text}@h:1").user == parts[0]


@pytest.mark.parametrize(
    ("template", "rotates"),
    [("me", False), ("me-{user}", False), ("me-{session:8}", True), ("me{?-{session}}", True)],
)
def test_without_a_session_a_gateway_rotates_where_there_is_a_place_for_one(
    template: str, rotates: bool
) -> None:
    for credentials in (Credentials(template), Credentials("me", template)):
        assert credentials.differ_each_time(request()) is rotates
        assert not credentials.differ_each_time(request(ExitSelector("x")))


def test_without_a_session_each_request_has_a_new_one_in_both_places() -> None:
    credentials = Credentials("me-{session}", "pw_{session}")
    made = [credentials.filled(request()) for _ in range(100)]
    words = {user.removeprefix("me-") for user, _ in made}
    assert len(words) == 100
    assert all(re.fullmatch(WORD, word) for word in words)
    assert all(
        filled == (f"me-{word}", f"pw_{word}") for filled in made for word in [filled.user[3:]]
    )


@pytest.mark.parametrize(
    "name", ["a-b", "a.b", "a_b", "2001:db8::1", "zoë", "x" * 65, "", "a b", "{x}"]
)
def test_what_could_be_read_as_more_becomes_one_word(name: str) -> None:
    word = Credentials("{session}").filled(request(ExitSelector(name))).user
    assert re.fullmatch(WORD, word)
    assert (
        Credentials("{session}-{user}").filled(request(ExitSelector(name), name)).user
        == f"{word}-{word}"
    )


def test_the_word_is_the_same_in_every_process_and_each_name_has_its_own() -> None:
    def word(name: str, place: str = "{session}") -> str:
        return Credentials(place).filled(request(ExitSelector(name))).user

    assert word("browser-1") == "edotkw6i"
    assert word("browser-1", "{session:5:digits}") == "72299"
    assert word("browser-1", "{session:6-10:upper}") == "EDOTKW6I"
    assert len({word(f"browser-{number}") for number in range(1000)}) == 1000


@given(session=st.text(max_size=80), user=st.none() | st.text(max_size=80))
def test_nothing_that_is_filled_in_breaks_the_name(session: str, user: str | None) -> None:
    filled = Credentials("me-{session}-{user}", "{session}:{user}").filled(
        request(ExitSelector(session), user)
    )
    assert re.fullmatch("me-[A-Za-z0-9]{1,64}-[A-Za-z0-9]{1,64}", filled.user)
    assert filled.password == filled.user[3:].replace("-", ":")


# --- as it stands in a config -----------------------------------------------------------------


def test_a_label_shows_the_places_and_not_what_is_filled_in() -> None:
    url = f"http://{GATEWAY}:pw@gate.example:7777?country=de"
    spec = ExitSpec.parse(url)
    assert spec.label == f"http://{GATEWAY}:***@gate.example:7777"
    assert ExitSpec.parse(f"{spec.url}?country=de") == spec


@pytest.mark.parametrize(
    ("user", "password", "serves"),
    [
        ("me-{country}", "pw", True),
        ("me", "pw_{COUNTRY}", True),
        ("me-{session}-{user}", "{session}", False),
        ("me", "{cc}", False),
    ],
)
def test_an_exit_that_passes_the_country_on_serves_every_country(
    user: str, password: str, serves: bool
) -> None:
    entry = {"url": "socks5://h", "user": user, "password": password, "country": "de"}
    assert ExitSpec.parse(entry).any_country is serves
    (member,) = make_exit_group([entry]).roster
    assert member.matches(ExitSelector(country="fr")) is serves
    assert member.matches(ExitSelector(country="de"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"user": "me-{sesion}"},
            "user: has a word in braces that is none of {session} {country} {COUNTRY} {user} {li",
        ),
        ({"user": "me-{}"}, "user: has a word in braces"),
        ({"user": "me-{?x}"}, "user: has a word in braces"),
        ({"user": "me{?-{sesion}}"}, "user: has a word in braces"),
        ({"user": "{session:65}"}, "user: a format of {session} is not a length of 1 to 64"),
        ({"user": "{session:9-8}"}, "user: a format of {session} is not a length"),
        ({"user": "{session:8:9}"}, "user: a format of {session} is not a length"),
        ({"user": "{user:klingon}"}, "user: a format of {user} is not a length"),
        ({"user": "m", "password": "{session:sesion}"}, "password: a format of {session} is"),
        ({"user": "{country:2}"}, "user: {country} has no format"),
        ({"user": "{lifetime:w}"}, "user: a format of {lifetime} is not a unit"),
        ({"user": "{lifetime:m:1}"}, "user: a format of {lifetime} is not a unit"),
        ({"user": "{lifetime:m:5-3}"}, "user: the bounds of {lifetime} are not two numbers"),
        ({"user": "x" * 250 + "{session:6}"}, "user: can become longer than 255 bytes"),
        ({"user": "x" * 256}, "user: is longer than 255 bytes"),
        (
            {"user": "me-{country}"},
            "country: missing (the credentials pass the country on, and not every client sel",
        ),
        ({"user": "me", "password": "{COUNTRY}"}, "country: missing"),
        ({"user": "x" * 192 + "{session}"}, "user: can become longer than 255 bytes"),
        ({"user": "m", "password": "{user}" * 4}, "password: can become longer than 255 bytes"),
    ],
)
def test_a_mistake_is_told_and_shows_no_secret(options: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExitSpec.parse({"url": "socks5://h", **options})
    assert str(caught.value).startswith(told)
    assert "sesion" not in str(caught.value)


def test_braces_in_a_password_that_name_no_place_are_its_own() -> None:
    spec = ExitSpec.parse({"url": "socks5://h", "user": "me", "password": "{x}{}{"})
    assert Credentials("me", spec.password or "").filled(request()) == Filled("me", "{x}{}{")
    ExitSpec.parse({"url": "socks5://h", "user": "x" * 191 + "{session}"})
    ExitSpec.parse({"url": "socks5://h", "user": "x" * 247 + "{session:8}"})


def test_http_carries_a_place_with_a_colon_and_no_other() -> None:
    ExitSpec.parse({"url": "http://h:1", "user": "me-{session:8}{?-{lifetime:m}}"})
    with pytest.raises(ConfigError, match="HTTP can't carry a user name with a colon"):
        ExitSpec.parse({"url": "http://h:1", "user": "me:{session:8}"})


# --- at the gateway ---------------------------------------------------------------------------


class Gateway:
    """A proxy of ours that keeps the credentials which it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes]] = []

    def let_in(self, name: str, password: bytes, client: str) -> bool:
        self.shown.append((name, password))
        return True

    def serve_socks4(self, sock: socket) -> None:
        with sock:
            read_exactly(sock, 8)
            name = b""
            while (byte := read_exactly(sock, 1)) != b"\0":
                name += byte
            self.shown.append((name.decode(), b""))
            sock.sendall(b"\0\x5a" + bytes(6))


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@contextmanager
def in_front_of(
    gateway: Gateway, scheme: str, credentials: str, **options: Any
) -> Iterator[LocalServer]:
    with ExitStack() as stack:
        if scheme == "socks4a":
            at = stack.enter_context(serving(gateway.serve_socks4))
        else:
            far = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=Throttle(gateway.let_in))
            at = stack.enter_context(running_inbound(far)).bound
        url = f"{scheme}://{credentials}@{at}?country=de"
        near = LocalServer(("127.0.0.1", 0), [url], rules=["allow all"], **options)
        yield stack.enter_context(running_inbound(near))


def ask(inbound: LocalServer, dest: Address, name: bytes = b"", password: bytes = b"") -> None:
    with connect(inbound.bound) as sock:
        hello = b"\x05\x02\x00\x02" + login(name, password)[3:]
        sock.sendall(hello + b"\x05\x01\x00" + dest.encode())
        assert read_exactly(sock, 6) == b"\x05\x02\x01\x00\x05\x00"


@pytest.fixture
def dest(echo_server: Address) -> Address:
    return echo_server


@pytest.mark.usefixtures("never_hangs", "nothing_left")
@pytest.mark.parametrize("scheme", ["socks5", "socks4a", "http"])
def test_a_gateway_is_shown_what_each_client_asks_for(
    scheme: str, gateway: Gateway, dest: Address
) -> None:
    password = "" if scheme == "socks4a" else ":pw_{user}"
    with in_front_of(gateway, scheme, f"{GATEWAY}{password}", users=USERS) as inbound:
        ask(inbound, dest, b"alice-session-cart7-cc-fr", b"secret")
        ask(inbound, dest, b"bob-cc-us", b"hidden")
    (first, second) = gateway.shown
    assert first[0] == "customer-me-cc-fr-sessid-cart7"
    assert re.fullmatch(f"customer-me-cc-us-sessid-{WORD}", second[0])
    if password:
        assert (first[1], second[1]) == (b"pw_alice", b"pw_bob")


@pytest.mark.usefixtures("never_hangs", "nothing_left")
def test_a_session_that_begins_again_has_another_name_at_the_gateway(
    gateway: Gateway, dest: Address
) -> None:
    with ExitStack() as stack:
        far = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=Throttle(gateway.let_in))
        at = stack.enter_context(running_inbound(far)).bound
        ways = make_exit_group([f"socks5://me-{{session}}:pw@{at}"], ["allow all"])
        inbound = stack.enter_context(running_inbound(LocalServer(("127.0.0.1", 0), ways)))
        for _ in range(2):
            ask(inbound, dest, b"session-x")
        ways.rotate(None, "x")
        for _ in range(2):
            ask(inbound, dest, b"session-x")
    before, same, after, still = (name for name, _ in gateway.shown)
    assert before == same == "me-x"
    assert after == still
    assert re.fullmatch(f"me-{WORD}", after)


@pytest.mark.usefixtures("never_hangs", "nothing_left")
def test_a_gateway_on_the_way_to_an_exit_is_shown_the_same(gateway: Gateway, dest: Address) -> None:
    with ExitStack() as stack:
        far = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=Throttle(gateway.let_in))
        at = stack.enter_context(running_inbound(far)).bound
        last = stack.enter_context(
            running_inbound(LocalServer(("127.0.0.1", 0), rules=["allow all"]))
        )
        entry = {"url": f"socks5://{last.bound}", "via": f"http://me-{{session}}:pw@{at}"}
        near = LocalServer(("127.0.0.1", 0), [entry], rules=["allow all"])
        inbound = stack.enter_context(running_inbound(near))
        ask(inbound, dest, b"session-x")
    assert gateway.shown == [("me-x", b"pw")]


# --- providers --------------------------------------------------------------------------------


PROVIDERS = re.findall(
    r"^\| ([A-Z].*?) \| `(http://\S+)@\S+?` \| `(\S+)` \| `(\S+)` \|$", DOCUMENT, re.MULTILINE
)


@pytest.mark.usefixtures("never_hangs", "nothing_left")
@pytest.mark.parametrize(("provider", "exit_", "name", "expected"), PROVIDERS)
def test_the_gateway_of_a_provider_gets_what_the_document_says(
    provider: str, exit_: str, name: str, expected: str, gateway: Gateway, dest: Address
) -> None:
    with ExitStack() as stack:
        far = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=Throttle(gateway.let_in))
        at = stack.enter_context(running_inbound(far)).bound
        text = f'local:\n  listen: 127.0.0.1:0\n  exits:\n    - url: "{exit_}@{at}"\n'
        section = config.parse(text, Path()).local
        assert section is not None
        near = LocalServer(("127.0.0.1", 0), section.exits, rules=["allow all"])
        inbound = stack.enter_context(running_inbound(near))
        ask(inbound, dest, name.encode())
        ask(inbound, dest, name.encode())
        ask(inbound, dest)
    user, _, password = expected.partition(":")
    assert gateway.shown[:2] == [(user, password.encode())] * 2
    # without parameters there is no country, and a new session where there is a place for one
    rotated = gateway.shown[2][0] + ":" + gateway.shown[2][1].decode()
    assert "country" not in rotated
    assert "-cc-" not in rotated
    assert rotated != expected


def test_every_provider_with_a_style_is_a_row_of_the_document() -> None:
    rows = {provider.partition(",")[0].replace(" ", "").lower() for provider, *_ in PROVIDERS}
    assert rows == set(STYLES) - {"standard"}
