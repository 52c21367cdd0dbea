"""The fuzz targets: each holds for its seeds and changes of them, and notices a fault.

The fuzzer itself runs by ``make fuzz``; here the targets are shown to be worth its time.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import gsocks.access.username
import gsocks.address
import gsocks.config.store
import gsocks.config.yaml
import gsocks.dns.message
import gsocks.dns_listener.wire
import gsocks.exits.trojan
import gsocks.handshake
import gsocks.http.response
import gsocks.inbound.http_client
import gsocks.net.datagram
import gsocks.net.proxy_protocol
import gsocks.rotation.lists
import gsocks.shadowsocks.accept
import gsocks.transport.websocket
import gsocks.tunnel.server
import gsocks.tunnel.taker
from fuzz.__main__ import TARGETS, words_file
from gsocks.address import UNSPECIFIED
from gsocks.crypto import Cipher
from gsocks.exits.spec import ExitSpec
from gsocks.http.body import Sized

pytestmark = pytest.mark.usefixtures("never_hangs")

#: for each target
CHANGES = 60


def target(name: str) -> ModuleType:
    return importlib.import_module(f"fuzz.{name}")


def look_at_seeds(name: str) -> None:
    for seed in target(name).SEEDS:
        target(name).check(seed)


def changed(seed: bytes, words: list[bytes], choose: random.Random) -> bytes:
    """A piece of it replaced by another, or by one of the words."""
    at, gone = choose.randrange(len(seed) + 1), choose.choice((0, 0, 1, 4))
    new = choose.choice([*words, choose.randbytes(1), b""])
    return seed[:at] + new + seed[at + gone :]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds_and_what_is_near_them(name: str) -> None:
    look_at_seeds(name)
    choose = random.Random(name)
    module = target(name)
    for _ in range(CHANGES):
        said = changed(choose.choice(module.SEEDS), module.WORDS, choose)
        module.check(changed(said, module.WORDS, choose))


def read_one_port_further(exactly: Callable[[int], bytes]) -> gsocks.address.Address:
    host, port = gsocks.address.Address.read(exactly)
    return gsocks.address.Address(host, port + 1)


class Further(gsocks.address.Address):
    read = staticmethod(read_one_port_further)


def take_what_there_is(taker: Any, count: int) -> bytes:
    start, taker._at = taker._at, taker._at + count
    taken: bytes = taker._body[start : taker._at]
    return taken


#: for each target something in gsocks, and what stands there in a gsocks with a fault
FAULTS: dict[str, tuple[object, str, object]] = {
    "socks5": (gsocks.handshake, "Address", Further),
    "socks4": (gsocks.handshake, "_MAX_STRING", 1000),
    "proxy_header": (gsocks.net.proxy_protocol, "MAX_LINE", 1000),
    "datagram": (gsocks.net.datagram, "_canonical", lambda head: head),
    "frames": (gsocks.tunnel.taker.Taker, "__call__", take_what_there_is),
    "hello": (gsocks.tunnel.server, "preferred", lambda offer: Cipher.SECRETBOX),
    "http_requests": (gsocks.inbound.http_client, "check_framing", lambda request: None),
    "http_answers": (gsocks.http.response, "body_of_response", lambda *head, **_: Sized(5)),
    "dns_answer": (gsocks.dns.message._Records, "_ip", lambda *_: UNSPECIFIED.ip),
    "dns_question": (gsocks.dns_listener.wire._Records, "lifetime", lambda *_: -1),
    "username": (gsocks.access.username, "parse_duration", lambda text: 1.0),
    "exit_list": (gsocks.rotation.lists, "_check_foreign", lambda spec, *_: spec),
    "websocket": (gsocks.transport.websocket, "_has", lambda *_: True),
    "config_text": (gsocks.config.yaml, "_BREAKS", {}),
    "shadowsocks": (gsocks.shadowsocks.accept, "MAX_PADDING", 10_000),
    "trojan": (gsocks.exits.trojan, "_CRLF", b"\r\r"),
    "store_url": (gsocks.config.store, "_hidden", lambda text: text),
    "exit_url": (ExitSpec, "__repr__", lambda spec: f"<{spec.password}>"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_notices_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[name])
    with pytest.raises((AssertionError, OSError)):
        look_at_seeds(name)


def test_words_are_written_as_the_fuzzer_reads_them() -> None:
    assert words_file([b"\0a", b'"']) == '"\\x00\\x61"\n"\\x22"\n'
