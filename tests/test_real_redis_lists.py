"""Lists of exits are fetched by one gateway for all, with a real Redis and a real web server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.fleet.lists import SharedLists
from gsocks.rotation.sources import parse_source
from gsocks.rotation.watch import ExitListWatcher
from tests.support.fleets import becomes, settings
from tests.support.redis_server import RedisServer, redis_server
from tests.support.web import Talk, Web, ok, web

LIST = b"http://user:hush-hush@192.0.2.1:8080\n" + b"".join(
    b"http://192.0.2.%d:8080\n" % number for number in range(2, 200)
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


class Provider:
    """A web server with a list, which may fail."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_broken = False
        self.list = LIST

    def __call__(self, talk: Talk) -> None:
        self.asked += 1
        broken = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        talk.say(broken if self.is_broken else ok(self.list, b"Connection: close"))


class Gateways:
    """Gateways that have the same list, each with a folder of its own."""

    def __init__(self, folder: Path, url: str, origin: Web) -> None:
        self._folder, self._url, self._origin = folder, url, origin
        self.key = folder / "shared.key"
        self.key.write_text(Key.generate().text() + "\n")
        self.key.chmod(0o600)
        self._watchers: list[ExitListWatcher] = []

    def begin(self, name: str, **more: Any) -> Sequence[ExitSpec]:
        """The exits with which a gateway starts.  Raises ConfigError."""
        folder = self._folder / name
        folder.mkdir()
        self.source = parse_source({"url": f"http://{self._origin.address}/list", **more}, folder)
        sharing = SharedLists(settings(self._url, shared_key_file=self.key))
        self._watchers.append(ExitListWatcher([], [self.source], sharing=sharing))
        return self._watchers[-1].begin()

    def reload(self, at: int) -> None:
        source = self._watchers[at]._watchers[0].spec
        self._watchers[at].replace([], [source])

    def close(self) -> None:
        for each in self._watchers:
            each.close()


@pytest.fixture
def provider() -> Iterator[tuple[Provider, Web]]:
    provider = Provider()
    with web(provider) as origin:
        yield provider, origin


@pytest.fixture
def found(
    tmp_path: Path, server: RedisServer, provider: tuple[Provider, Web]
) -> Iterator[Gateways]:
    gateways = Gateways(tmp_path, server.url, provider[1])
    yield gateways
    gateways.close()


def test_a_list_is_fetched_once_and_the_store_has_no_password(
    found: Gateways, provider: tuple[Provider, Web], server: RedisServer
) -> None:
    lists = [found.begin(f"gw{number}") for number in range(3)]
    assert [len(each) for each in lists] == [199] * 3
    assert provider[0].asked == 1
    client = server.client()
    (name,) = client.keys("gsocks:1:list:*")
    assert 86_000_000 < client.pttl(name) <= 86_400_000
    stored = client.get(name)
    assert b"hush" not in stored
    assert b"192.0.2" not in stored
    assert len(stored) < len(LIST) / 2
    assert not client.keys("gsocks:1:fetching:*")


def test_of_gateways_that_begin_at_once_one_fetches(
    found: Gateways, provider: tuple[Provider, Web]
) -> None:
    begun = [gevent.spawn(found.begin, f"gw{number}") for number in range(4)]
    assert [len(each.get()) for each in begun] == [199] * 4
    assert provider[0].asked == 1


def test_a_gateway_that_can_not_fetch_uses_what_another_one_has_fetched(
    found: Gateways, provider: tuple[Provider, Web], caplog: pytest.LogCaptureFixture
) -> None:
    found.begin("one", interval="1s")
    provider[0].is_broken = True
    gevent.sleep(1.1)  # it is no more fresh
    assert len(found.begin("two", interval="1s")) == 199
    assert [each for each in caplog.messages if "503" in each]


def test_a_reload_fetches_anew(
    found: Gateways, provider: tuple[Provider, Web], server: RedisServer
) -> None:
    found.begin("one")
    found.begin("two")
    provider[0].list = b"http://192.0.2.7:1\n"
    (name,) = server.client().keys("gsocks:1:list:*")
    before = server.client().get(name)
    found.reload(1)  # which goes on with the exits of before meanwhile
    becomes(lambda: server.client().get(name) != before)
    assert provider[0].asked == 2
    assert len(found.begin("three")) == 1
    assert provider[0].asked == 2


def test_with_another_key_a_gateway_fetches_itself(
    found: Gateways, provider: tuple[Provider, Web]
) -> None:
    found.begin("one")
    found.key.write_text(Key.generate().text() + "\n")
    assert len(found.begin("two")) == 199
    assert provider[0].asked == 2


def test_without_the_store_each_gateway_fetches_and_tells_it_once(
    tmp_path: Path, provider: tuple[Provider, Web], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    gateways = Gateways(tmp_path, "redis://127.0.0.1:9", provider[1])
    try:
        for name in ("one", "two"):
            assert len(gateways.begin(name)) == 199
        assert provider[0].asked == 2
        gateways.reload(0)
        told = [each for each in caplog.messages if "lists are fetched by each" in each]
        assert len(told) == 2  # one of each gateway
    finally:
        gateways.close()


def test_a_list_whose_one_fetch_fails_is_fetched_by_the_next(
    found: Gateways, provider: tuple[Provider, Web]
) -> None:
    provider[0].is_broken = True
    with pytest.raises(ConfigError, match="503"):
        found.begin("one")
    provider[0].is_broken = False
    assert len(found.begin("two")) == 199
