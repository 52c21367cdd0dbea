"""Mistakes in the arguments of LocalServer, RemoteServer and Gateway: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gsocks import ConfigError, Gateway, Key, LocalServer, RemoteServer
from gsocks.address import Address
from gsocks.net.listen import listen

EXIT = "expected direct, a URL such as socks5://10.0.0.7:1080, or an object"
LISTEN = " is not an address to listen on (expected e.g. 127.0.0.1:1080, "
HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10


def local(*arguments: Any, **options: Any) -> Callable[[], object]:
    return lambda: LocalServer(*(arguments or ("127.0.0.1:0",)), **options)


def gateway(*arguments: Any, **options: Any) -> Callable[[], object]:
    return lambda: Gateway(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (local(limits={"connections": 5}), TypeError, "LocalServer: limits takes Limits, not dict"),
        (local(timeouts=5), TypeError, "LocalServer: timeouts takes Timeouts, not int"),
        (local(limit=5), TypeError, "LocalServer has no option limit (did you mean limits?)"),
        (gateway(checks={}), TypeError, "Gateway: checks takes CheckSettings, not dict"),
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
