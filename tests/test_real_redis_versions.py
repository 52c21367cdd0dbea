"""Two versions of gsocks at one store: they understand each other, or leave each other alone."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gsocks.fleet.hybrid_clock import HybridClock
from gsocks.fleet.store import Store
from tests.support.fleets import Gateway, becomes, gateways, settings
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def names(gateway: Gateway) -> set[str]:
    return {each["gateway"] for each in gateway.fleet.listing()["members"]}


def test_gateways_whose_keys_have_another_layout_share_a_store_and_nothing_else(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def key(store: Store, *parts: str) -> str:
        layout = "2" if store._settings.gateway == "newer" else "1"
        return ":".join((store._settings.prefix, layout, *parts))

    monkeypatch.setattr(Store, "key", key)
    of = settings(server.url)
    newer = Gateway(of, name="newer")
    try:
        with gateways(of) as (one, two):
            newer.group.ban("e0", 60.0)
            one.group.ban("e1", 60.0)
            becomes(lambda: two.state("e1") == "banned")
            one.group.rotate(None, "cart")
            had = one.request("cart")
            becomes(lambda: two.group.sessions.exit_of(("", "cart"), time.monotonic()) == had)
            assert newer.fleet.sync.wait(5.0)
            assert (two.state("e0"), newer.state("e1")) == ("unproven", "unproven")
            layouts = {name.split(b":")[1] for name in server.client().keys("gsocks:*")}
            assert layouts == {b"1", b"2"}
            assert names(newer) == {"newer"}
            assert names(one) == {"gw0", "gw1"}
    finally:
        newer.close()
    assert not complaints(caplog)
    assert not server.client().keys("gsocks:*:member:*")  # each has taken its own leave


def test_what_a_newer_version_adds_is_passed_over_and_the_rest_is_taken(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    client, clock = server.client(), HybridClock("ffffffff")
    label = {"label": "http://exit0"}

    def write(kind: str, name: str, value: object) -> None:
        client.set(f"gsocks:1:r:local:{kind}:{name}", clock.now() + json.dumps(value), px=60_000)

    until = int(time.time()) + 600
    write("ban", "e0", {**label, "banned": until, "reason": "of version 9"})
    write("ban", "e1", ["another", "form"])
    write("colour", "e2", {"is": "red"})
    client.rpush("gsocks:1:r:local:ban:e3", "a list, where a text was")
    member = {"gateway": "newer", "version": "9.0", "zone": "b"}
    client.set("gsocks:1:member:ffffffff", json.dumps(member), px=60_000)
    client.set("gsocks:1:member:eeeeeeee", "[]", px=60_000)
    with gateways(settings(server.url)) as (one, two):
        assert [one.state(f"e{n}") for n in range(4)] == ["banned", *["unproven"] * 3]
        becomes(lambda: names(one) == {"gw0", "gw1", "newer"})
        for message in _newer_messages(clock, label, until):
            client.publish("gsocks:1:news", message)
        becomes(lambda: one.state("e2") == two.state("e2") == "banned")
        # and it goes on among its own
        two.group.ban("e3", 60.0)
        becomes(lambda: one.state("e3") == "banned")
    assert [each for each in complaints(caplog) if "refused" not in each] == []


def _newer_messages(clock: HybridClock, label: dict[str, str], until: int) -> Iterator[bytes]:
    """What a later version says, what none says, and at last what this one understands."""
    news: dict[str, Any] = {"node": "ffffffff", "gateway": "newer", "era": 3}
    yield b"\xff\x00 no message"
    yield json.dumps({**news, "records": "none"}).encode()
    yield json.dumps({**news, "parts": {"colours": [1], "member": ["another form"]}}).encode()
    of_e2 = json.dumps({**label, "label": "http://exit2", "banned": until, "reason": "x"})
    records = [
        ["local", "colour", "e2", clock.now(), '{"is": "blue"}', until, "one more"],
        ["elsewhere", "ban", "e1", clock.now(), of_e2, until],
        ["local", "ban", "e2", clock.now(), of_e2, until, {"more": 1}],
    ]
    yield json.dumps({**news, "records": records}).encode()
