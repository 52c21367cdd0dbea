"""Credentials that pass a client's wish on to a gateway: what is filled in, what is a mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from engine import connect, read_exactly, running_door, serving
from gevent.socket import socket
from hypothesis import given, settings
from hypothesis import strategies as st
from newcomers import USERS, login

from gsocks.address import Address
from gsocks.assemble import make_ways_out
from gsocks.errors import ConfigError
from gsocks.exits import ExitSpec
from gsocks.exits.credentials import Credentials, Filled, plain
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.throttle import Throttle
from gsocks.wish import ANY, Wish

DEST = Address("192.0.2.1", 80)
WORD = "[a-z2-7]{8}"
GATEWAY = "customer-me-cc-{country}-sessid-{session}"


def request(wish: Wish = ANY, user: str | None = None) -> Request:
    return Request(Command.CONNECT, DEST, user, wish=wish)


# --- what is filled in ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "wish", "user", "filled"),
    [
        ("me", Wish("x"), "alice", "me"),
        (GATEWAY, Wish("Cart7", country="fr"), None, "customer-me-cc-fr-sessid-Cart7"),
        (GATEWAY, Wish("Cart7"), None, "customer-me-cc-de-sessid-Cart7"),
        ("{COUNTRY}_{session}", Wish("x", country="fr"), None, "FR_x"),
        ("{COUNTRY}", ANY, None, "DE"),
        ("{session}{session}", Wish("x"), None, "xx"),
        ("me-{user}-{session}", Wish("x"), "alice", "me-alice-x"),
        ("me-{user}", ANY, None, "me-nobody"),
        ("{session}", Wish("x" * 64), None, "x" * 64),
    ],
)
def test_what_the_client_asks_for_stands_in_its_place(
    template: str, wish: Wish, user: str | None, filled: str
) -> None:
    asked = request(wish, user)
    assert Credentials(template, "pw", "de").filled(asked) == (filled, "pw")
    assert Credentials("me", template, "de").filled(asked) == ("me", filled)


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
    word = plain(name)
    assert re.fullmatch(WORD, word)
    assert (
        Credentials("{session}-{user}").filled(request(Wish(name), name)).user == f"{word}-{word}"
    )


def test_the_word_is_the_same_in_every_process_and_each_name_has_its_own() -> None:
    assert plain("browser-1") == "edotkw6i"
    assert len({plain(f"browser-{number}") for number in range(1000)}) == 1000


@settings(derandomize=True, deadline=None)
@given(session=st.text(max_size=80), user=st.none() | st.text(max_size=80))
def test_nothing_that_is_filled_in_breaks_the_name(session: str, user: str | None) -> None:
    filled = Credentials("me-{session}-{user}", "{session}:{user}").filled(
        request(Wish(session), user)
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
    (member,) = make_ways_out([entry]).roster
    assert member.fulfils(Wish(country="fr")) is serves
    assert member.fulfils(Wish(country="de"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"user": "me-{sesion}"},
            "user: has a word in braces that is none of {session} {country} {COUNTRY} {user}",
        ),
        ({"user": "me-{}"}, "user: has a word in braces"),
        (
            {"user": "me-{country}"},
            "country: missing (the credentials pass the country on, and not every client asks",
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


# --- at the gateway ---------------------------------------------------------------------------


class Gateway:
    """A proxy of ours that keeps the credentials which it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes]] = []

    def let_in(self, name: str, password: bytes) -> bool:
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
            at = stack.enter_context(running_door(far)).bound
        url = f"{scheme}://{credentials}@{at}?country=de"
        near = LocalServer(("127.0.0.1", 0), [url], rules=["allow all"], **options)
        yield stack.enter_context(running_door(near))


def ask(door: LocalServer, dest: Address, name: bytes = b"", password: bytes = b"") -> None:
    with connect(door.bound) as sock:
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
    with in_front_of(gateway, scheme, f"{GATEWAY}{password}", users=USERS) as door:
        ask(door, dest, b"alice-session-cart7-cc-fr", b"secret")
        ask(door, dest, b"bob-cc-us", b"hidden")
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
        at = stack.enter_context(running_door(far)).bound
        ways = make_ways_out([f"socks5://me-{{session}}:pw@{at}"], ["allow all"])
        door = stack.enter_context(running_door(LocalServer(("127.0.0.1", 0), ways)))
        for _ in range(2):
            ask(door, dest, b"session-x")
        ways.rotate(None, "x")
        for _ in range(2):
            ask(door, dest, b"session-x")
    before, same, after, still = (name for name, _ in gateway.shown)
    assert before == same == "me-x"
    assert after == still
    assert re.fullmatch(f"me-{WORD}", after)


@pytest.mark.usefixtures("never_hangs", "nothing_left")
def test_a_gateway_on_the_way_to_an_exit_is_shown_the_same(gateway: Gateway, dest: Address) -> None:
    with ExitStack() as stack:
        far = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=Throttle(gateway.let_in))
        at = stack.enter_context(running_door(far)).bound
        last = stack.enter_context(running_door(LocalServer(("127.0.0.1", 0), rules=["allow all"])))
        entry = {"url": f"socks5://{last.bound}", "via": f"http://me-{{session}}:pw@{at}"}
        near = LocalServer(("127.0.0.1", 0), [entry], rules=["allow all"])
        door = stack.enter_context(running_door(near))
        ask(door, dest, b"session-x")
    assert gateway.shown == [("me-x", b"pw")]
