"""Exits that are real proxies: microsocks, dante and tinyproxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsocks import errors
from gsocks.address import Address
from gsocks.exits import Exit
from tests.support.ports import free_port
from tests.support.proxies import dante, microsocks, tinyproxy
from tests.support.proxy_exits import ask_echo, asking, leaves_nothing, to


def refused(way: Exit) -> type[errors.GsocksError]:
    with pytest.raises(errors.ConnectFailed) as caught:
        way.connect(to(Address("127.0.0.1", free_port())))
    assert "secret" not in str(caught.value)
    return type(caught.value)


@leaves_nothing
def test_microsocks_serves_and_tells_a_refusal(echo_server: Address) -> None:
    with microsocks() as proxy:
        way = asking(f"socks5://{proxy}")
        ask_echo(way, echo_server)
        assert refused(way) is errors.ConnectionRefused
        with pytest.raises(errors.ExitFailed, match="takes no user name"):
            asking(f"socks5://alice:secret@{proxy}").connect(to(echo_server))


@leaves_nothing
def test_microsocks_with_a_login_serves_those_who_know_it(echo_server: Address) -> None:
    with microsocks("alice", "secret") as proxy:
        ask_echo(asking(f"socks5://alice:secret@{proxy}"), echo_server)
        for login in ("alice:secrets@", "bob:secret@", "alice@", ""):
            assert refused(asking(f"socks5://{login}{proxy}")) is errors.ExitFailed


@leaves_nothing
def test_microsocks_resolves_the_names(echo_server: Address) -> None:
    with microsocks() as proxy:
        ask_echo(asking(f"socks5://{proxy}"), Address("localhost", echo_server.port))


@leaves_nothing
@pytest.mark.parametrize("scheme", ["socks5", "socks4a"])
def test_dante_serves_and_tells_its_bound_address(
    scheme: str, echo_server: Address, tmp_path: Path
) -> None:
    with dante(tmp_path, forbidden="127.0.0.9") as proxy:
        way = asking(f"{scheme}://{proxy}")
        bound = ask_echo(way, echo_server)
        assert bound.host == "127.0.0.1"
        assert bound.port not in (0, echo_server.port)
        five = scheme == "socks5"
        if five:  # with SOCKS4a, dante 1.4 takes the 0.0.0.1 before a name for an address
            ask_echo(way, Address("localhost", echo_server.port))
        assert refused(way) is (errors.ConnectionRefused if five else errors.ExitDoubtful)
        with pytest.raises(errors.Forbidden if five else errors.ExitDoubtful):
            way.connect(to(Address("127.0.0.9", echo_server.port)))


@leaves_nothing
def test_tinyproxy_serves_those_who_know_the_login(echo_server: Address, tmp_path: Path) -> None:
    with tinyproxy(tmp_path, "alice", "secret") as proxy:
        way = asking(f"http://alice:secret@{proxy}")
        ask_echo(way, echo_server)
        ask_echo(way, Address("localhost", echo_server.port))
        assert refused(way) is errors.ExitDoubtful  # 500: HTTP can't tell
        for login in ("alice:secrets@", ""):
            assert refused(asking(f"http://{login}{proxy}")) is errors.ExitFailed
