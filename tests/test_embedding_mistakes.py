"""Mistakes in the arguments of LocalServer, RemoteServer and Gateway: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gsocks import ConfigError, Gateway, Key, LocalServer, RemoteServer, Timeouts
from gsocks.address import Address
from gsocks.net.listen import listen

EXIT = "expected direct, a URL such as socks5://10.0.0.7:1080, or an object"
LISTEN = " is not an address to listen on (expected e.g. 127.0.0.1:1080, "
HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10


BAD_IDLE: Any = "y"


def local(*arguments: Any, **options: Any) -> Callable[[], object]:
    return lambda: LocalServer(*(arguments or ("127.0.0.1:0",)), **options)


def gateway(*arguments: Any, **options: Any) -> Callable[[], object]:
    return lambda: Gateway(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (local(limits=[5]), TypeError, "LocalServer: limits takes Limits, not list"),
        (
            local(limits={"connection": 5}),
            TypeError,
            "LocalServer: limits has no option",
        ),
        (
            local(timeouts={"idle": "x"}),
            ConfigError,
            "LocalServer: timeouts.idle: 'x' is",
        ),
        (local(timeouts=Timeouts(idle=BAD_IDLE)), ConfigError, "LocalServer: timeouts.idle: 'y'"),
        (local(limits={"connections": True}), ConfigError, "LocalServer: limits.connections: true"),
        (
            local(clients="10.0.0.0/8"),
            ConfigError,
            "LocalServer: clients: '10.0.0.0/8' is not",
        ),
        (local(retry_on=429), ConfigError, "LocalServer: retry_on: 429 is not a list of statuses"),
        (local(users="alice"), ConfigError, "a text is not the users (expected names and their"),
        (gateway(rules="allow all"), ConfigError, "'allow all' is not a list of rules (expected"),
        (gateway(timeouts={"connect": []}), ConfigError, "Gateway: timeouts.connect: a list is no"),
        (gateway(health={"failurs": 3}), TypeError, "Gateway: health has no option failurs (did"),
        (local(timeouts=5), TypeError, "LocalServer: timeouts takes Timeouts, not int"),
        (local(limit=5), TypeError, "LocalServer has no option limit (did you mean limits?)"),
        (gateway(checks=3), TypeError, "Gateway: checks takes CheckSettings, not int"),
        (gateway(rotat="random"), TypeError, "Gateway has no option rotat (did you mean rotate?)"),
        (local("127.0.0.1"), ConfigError, f"'127.0.0.1'{LISTEN}"),
        (local("proxy.example:1080"), ConfigError, f"'proxy.example:1080'{LISTEN}"),
        (local("127.0.0.1:99999"), ConfigError, "port 99999 is not between 0 and 65535"),
        (local(1080), TypeError, "a listener takes an address or a socket, not 1080"),
        (local("127.0.0.1:0", None), ConfigError, "None is not a list of exits"),
        (local("127.0.0.1:0", "direct"), ConfigError, "'direct' is not a list of exits"),
        (local("127.0.0.1:0", [3]), ConfigError, f"3 is not an exit ({EXIT}"),
        (gateway(None), ConfigError, "None is not a list of exits"),
        (gateway([3]), ConfigError, f"3 is not an exit ({EXIT}"),
    ],
)
def test_a_mistake_is_told_in_one_clear_line(
    make: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_may_be_mappings_as_in_a_config() -> None:
    server = LocalServer("127.0.0.1:0", timeouts={"connect": "5s"}, limits={"connections": 7})
    assert (server.timeouts.connect, server.timeouts.idle) == (5.0, 600.0)
    assert server.limits.connections == 7
    made = Gateway(timeouts={"connect": "5s", "idle": 60}, pool={"size": 0})
    assert made.exit_group.timeout == 5.0
    minute: Any = "1m"
    assert LocalServer("127.0.0.1:0", timeouts=Timeouts(idle=minute)).timeouts.idle == 60.0


def test_a_text_where_a_selector_wants_tags_is_refused() -> None:
    with pytest.raises(ConfigError, match="'de' is not a list of tags"):
        Gateway().connect("example.com", 443, tags="de")


@pytest.mark.parametrize("address", ["0.0.0.0:0", ("", 0), "[::]:0"])
def test_a_listener_that_other_machines_can_reach_needs_users(address: Any) -> None:
    with pytest.raises(ConfigError, match=r"would be an open proxy .*allow_anonymous=True"):
        LocalServer(address)
    LocalServer(address, users={"alice": HASH})
    LocalServer(address, allow_anonymous=True)
    RemoteServer(address, keys={"me": Key.generate()})


def test_a_socket_that_other_machines_can_reach_needs_users_too() -> None:
    with listen(Address("0.0.0.0", 0)) as sock, pytest.raises(ConfigError, match="open proxy"):
        LocalServer(sock)
