"""Proxies as exits: honest ones, and those that fail at every step in every way."""

from __future__ import annotations

import random
from contextlib import ExitStack

import gevent
import pytest
from gevent.event import Event

from gsocks import errors
from gsocks.address import Address
from gsocks.exits import Exit, ExitSpec, make_exit
from gsocks.exits.chain import Detour
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import ProxyAttempt
from gsocks.exits.socks import Socks5Exit
from gsocks.exits.tunnel import TunnelExit
from gsocks.settings import Timeouts
from gsocks.stream import Stream
from tests.support.engine import KEY, FakeExit
from tests.support.ports import free_port
from tests.support.proxies import (
    Line,
    Speak,
    UpTo,
    at_once,
    byte_by_byte,
    hang,
    play,
    stage,
    unreachable,
)
from tests.support.proxy_exits import (
    BASIC,
    DEST,
    LOGIN,
    PARTS,
    PASSWORD,
    RFC1929,
    UNANSWERED,
    Part,
    asking,
    attempt,
    connect_by_hub,
    deps,
    failure,
    leaves_nothing,
    to,
)
from tests.support.stream_contract import read_to_end

every_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
_ALL = PARTS | UNANSWERED
every_part_of_all = pytest.mark.parametrize("part", _ALL.values(), ids=_ALL)
#: those with TLS are left to greenlets
BY_HUB = {name: part for name, part in PARTS.items() if part.tls is None}
every_part_by_hub = pytest.mark.parametrize("part", BY_HUB.values(), ids=BY_HUB)


@leaves_nothing
@every_part_of_all
@pytest.mark.parametrize("speak", [at_once, byte_by_byte])
def test_a_proxy_is_understood_however_its_words_arrive(part: Part, speak: Speak) -> None:
    def handle(stream: Stream) -> None:
        play(stream, part.lines, speak)
        data = read_to_end(stream)
        stream.write(data[::-1])
        stream.write_eof()

    with stage(handle, part.tls) as proxy:
        stream = attempt(part, proxy)
        stream.write(b"payload")
        stream.write_eof()
        assert read_to_end(stream) == b"daolyap"
        stream.close()


@leaves_nothing
@every_part_of_all
def test_payload_that_comes_with_the_reply_is_not_lost(part: Part) -> None:
    def speak(stream: Stream, data: bytes) -> None:
        stream.write(data + b"SSH-2.0-first words" if data == part.lines[-1].says else data)

    def handle(stream: Stream) -> None:
        play(stream, part.lines, speak)
        stream.write_eof()
        read_to_end(stream)

    with stage(handle, part.tls) as proxy:
        stream = attempt(part, proxy)
        assert read_to_end(stream) == b"SSH-2.0-first words"
        stream.write_eof()
        stream.close()


@leaves_nothing
@every_part_by_hub
def test_a_proxy_that_answers_as_hoped_for_is_asked_without_a_greenlet(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_greenlet(*_: object) -> None:
        raise AssertionError("a greenlet takes over")

    monkeypatch.setattr(ProxyAttempt, "go_on", no_greenlet)
    with stage(lambda stream: play(stream, part.lines, at_once)) as proxy:
        exit_ = asking(part.url(proxy))
        assert isinstance(exit_, ProxyExit)
        connected = connect_by_hub(exit_, to(part.dest))
        assert connected.bound == part.bound
        connected.stream.abort()


@leaves_nothing
@every_part_by_hub
@pytest.mark.parametrize("at", ["the connection", "an answer"])
def test_a_cancelled_attempt_is_not_told_and_leaves_nothing(part: Part, at: str) -> None:
    asked, hung_up = Event(), Event()

    def handle(stream: Stream) -> None:
        lines = (Line(part.lines[0].hears, part.lines[0].says[:1]),)
        play(stream, lines, at_once)
        asked.set()
        try:
            stream.read()
        except errors.StreamError:
            pass
        hung_up.set()

    with stage(handle) as proxy:
        exit_ = asking(part.url(proxy))
        assert isinstance(exit_, ProxyExit)
        attempt = exit_.begin(to(part.dest), lambda _: pytest.fail("was told"))
        assert attempt is not None
        if at == "an answer":
            asked.wait()
            gevent.sleep(0)
        attempt.cancel()
        attempt.cancel()
        if at == "an answer":
            hung_up.wait()


@leaves_nothing
@every_part
@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_proxy_that_hangs_up_anywhere_is_the_exits_failure(part: Part, end: str) -> None:
    def hang_up(stream: Stream) -> None:
        if end == "RST":
            stream.abort()

    for said in range(part.length):

        def handle(stream: Stream, said: int = said) -> None:
            play(stream, part.lines, UpTo(said, then=hang_up))

        # once it was asked, it may be the destination's failure that is told so
        asked = said >= part.length - len(part.lines[-1].says)
        with stage(handle, part.tls) as proxy:
            expected = errors.ExitHungUp if asked else errors.ExitFailed
            assert type(failure(part, proxy)) is expected


@leaves_nothing
@every_part
def test_a_proxy_that_falls_silent_has_failed_by_itself_unless_it_was_asked(part: Part) -> None:
    with ExitStack() as stages:
        attempts = []
        for said in range(part.length):

            def handle(stream: Stream, said: int = said) -> None:
                play(stream, part.lines, UpTo(said, then=hang))

            proxy = stages.enter_context(stage(handle, part.tls))
            attempts.append(gevent.spawn(failure, part, proxy, connect=1.0))
        for said, each in enumerate(gevent.joinall(attempts, raise_error=True)):
            # once it was asked, it may be waiting for a destination that is silent
            asked = said >= part.length - len(part.lines[-1].says)
            expected = errors.ExitDoubtful if asked else errors.ExitFailed
            assert type(each.value) is expected
            assert "no answer within 1 s" in str(each.value)


@leaves_nothing
@pytest.mark.parametrize("step", ["greeting", "login"])
def test_the_socks5_handshake_has_the_bound_of_the_exit_itself(step: str) -> None:
    with stage(lambda stream: play(stream, lines, at_once)) as proxy:
        lines = [Line(b"\x05\x01\x02", b"")]
        if step == "login":
            lines = [Line(b"\x05\x01\x02", b"\x05\x02"), Line(RFC1929, b"")]
        lines.append(Line(b"never comes", b""))
        with pytest.raises(errors.ExitFailed, match=r"no handshake within 0\.3 s") as caught:
            asking(f"socks5://{LOGIN}{proxy}", reach=0.3).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed


@leaves_nothing
@pytest.mark.parametrize(
    "url", ["socks5://{}", "socks4a://{}", "http://{}", "https://{}", "trojan://pw@{}"]
)
def test_a_proxy_whose_tcp_handshake_never_ends_has_failed_by_itself(url: str) -> None:
    with unreachable() as proxy, pytest.raises(errors.ExitFailed) as caught:
        asking(url.format(proxy), connect=20.0, reach=0.2).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed
    assert "no answer within 0.2 s" in str(caught.value)


@leaves_nothing
def test_a_tls_handshake_that_never_ends_is_the_proxys_own_failure() -> None:
    with stage(hang) as proxy, pytest.raises(errors.ExitFailed) as caught:
        asking(f"https://{proxy}", reach=0.2).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed
    assert "no handshake within 0.2 s" in str(caught.value)


@leaves_nothing
def test_the_first_hop_of_a_chain_has_the_same_bound_and_so_has_a_gsocks_server() -> None:
    with unreachable() as proxy:
        for last in ("socks5://192.0.2.1:1080", f"gsocks://{KEY.text()}@192.0.2.1:8388"):
            spec = ExitSpec.parse({"url": last, "via": f"http://{proxy}"})
            chain = make_exit(spec, deps(reach=0.2))
            with pytest.raises(errors.ExitFailed, match=r"no answer within 0\.2 s") as caught:
                chain.connect(to(DEST))
            assert type(caught.value) is errors.ExitFailed
            chain.close()
        server = asking(f"gsocks://{KEY.text()}@{proxy}", reach=0.2)
        with pytest.raises(errors.ExitFailed, match=r"no answer (in|within) 0\.2 s"):
            server.connect(to(DEST))
        server.close()


def test_no_exit_has_longer_to_be_reached_than_a_request_has() -> None:
    assert deps(connect=2.0, reach=3.0).reach_timeout == 2.0
    assert deps(connect=20.0, reach=3.0).reach_timeout == 3.0


@leaves_nothing
@every_part
def test_killed_anywhere_it_leaves_nothing(part: Part) -> None:
    for said in range(part.length):
        silent = Event()

        def handle(stream: Stream, said: int = said, silent: Event = silent) -> None:
            def fall_silent(stream: Stream) -> None:
                silent.set()
                hang(stream)

            play(stream, part.lines, UpTo(said, then=fall_silent))

        with stage(handle, part.tls) as proxy:
            attempting = gevent.spawn(attempt, part, proxy)
            silent.wait()
            attempting.kill()


@leaves_nothing
@every_part
def test_the_callers_timeout_passes_through(part: Part) -> None:
    with (
        stage(hang, part.tls) as proxy,
        pytest.raises(gevent.Timeout) as caught,
        gevent.Timeout(0.05) as ours,
    ):
        attempt(part, proxy)
    assert caught.value is ours


@leaves_nothing
@every_part
def test_a_proxy_that_is_not_there_is_the_exits_failure(part: Part) -> None:
    error = failure(part, Address("127.0.0.1", free_port()))
    assert type(error) is errors.ExitFailed
    assert "Connection refused" in str(error)


@leaves_nothing
@pytest.mark.parametrize("lack", [errors.OutOfResources, errors.LimitReached])
def test_what_this_machine_lacks_is_not_the_exits_failure(lack: type[errors.ConnectFailed]) -> None:
    proxy, through = Address("127.0.0.1", 1), FakeExit("direct", lack("no descriptor is left"))
    ways: list[Exit] = [
        Socks5Exit(proxy, through, label="socks5"),
        TunnelExit(proxy, KEY, Detour(through, Timeouts())),
    ]
    for way in ways:
        with pytest.raises(lack):
            way.connect(to(DEST))
        way.close()


_GARBAGE = {
    "an HTTP server": b"HTTP/1.1 301 Moved\r\nContent-Length: 3\r\n\r\nno\n",
    "an SSH server": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS server": bytes.fromhex("15030100020246"),
    "zeros": bytes(400),
    "ones": b"\xff" * 400,
    "an endless line": b"HTTP/1.1 200 " + b"x" * 100_000,
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X-More: of this\r\n" * 10_000,
    "what costs h11 a second for each KiB": (
        b"HTTP/1.1 200 OK\r\nX:" + b" " * 12_000 + b"\0\r\n\r\n"
    ),
    "endless patience": b"HTTP/1.1 100 Wait\r\n\r\n" * 10_000,
    "noise": random.Random(1).randbytes(400),
    "a SOCKS5 server": b"\x05\x07",
}


@leaves_nothing
@every_part
@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE)
def test_garbage_is_the_exits_failure(part: Part, garbage: bytes) -> None:
    def handle(stream: Stream) -> None:
        stream.write(garbage)
        hang(stream)

    with stage(handle, part.tls) as proxy:
        assert type(failure(part, proxy)) is errors.ExitFailed


@leaves_nothing
@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_success_that_was_a_lie_is_an_end_of_the_stream(end: str) -> None:
    def handle(stream: Stream) -> None:
        play(stream, PARTS["socks5"].lines, at_once)
        if end == "RST":
            stream.abort()

    with stage(handle) as proxy:
        stream = attempt(PARTS["socks5"], proxy)
        if end == "RST":
            with pytest.raises(errors.StreamReset):
                stream.read()
        else:
            assert stream.read() == b""
        stream.close()


def test_nothing_that_stands_for_an_exit_shows_its_password() -> None:
    for part in PARTS.values():
        way = asking(part.url(Address("127.0.0.1", 1)))
        assert PASSWORD not in repr(way) + way.label
        assert BASIC not in repr(way)
