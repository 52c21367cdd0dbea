"""UDP and BIND through SOCKS proxies and chains of them, and proxies at Unix sockets."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import config, errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.unix import UnixSocketExit
from gsocks.local import LocalServer
from gsocks.net.endpoint import UnixPath
from gsocks.net.unix import listen_at
from gsocks.request import BIND, CONNECT, UDP_ASSOCIATE, Request
from gsocks.rotation.group import ExitGroup
from gsocks.service.plan import refuse_loops
from gsocks.settings import Timeouts
from tests.support.datagrams import association, udp_server, who_asks
from tests.support.engine import (
    KEY,
    Seen,
    connect,
    direct,
    echo,
    make_server,
    read_exactly,
    read_reply,
    read_to_end,
    running_inbound,
    serving,
    socks_request,
)

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

HERE = Address("127.0.0.1", 0)
PEER = Address("127.0.0.1", 4711)


def asking(url: str | dict[str, object], connect: float = 20.0) -> Any:
    return make_exit(ExitSpec.parse(url), ExitDeps(ALLOW_ALL, timeouts=Timeouts(connect=connect)))


@contextmanager
def proxy() -> Iterator[tuple[str, Seen]]:
    """Another gsocks, which is a SOCKS5 proxy to this one."""
    seen = Seen()
    with running_inbound(LocalServer(("127.0.0.1", 0), direct(), observer=seen)) as local:
        yield f"socks5://{local.bound}", seen


@contextmanager
def chains() -> Iterator[dict[str, str | dict[str, object]]]:
    """Exits that have a SOCKS5 proxy at their end, or a gsocks server."""
    with proxy() as (one, _), proxy() as (two, _), running_inbound(make_server()) as server:
        tunnel = f"gsocks://{KEY.text()}@{server.bound}"
        yield {
            "socks5": one,
            "socks5 via socks5": {"url": one, "via": two},
            "socks5 via gsocks": {"url": one, "via": tunnel},
            "gsocks via socks5": {"url": tunnel, "via": one},
            "socks5 via socks5 via socks5": {"url": one, "via": {"url": two, "via": one}},
        }


WAYS = (
    *("socks5", "socks5 via socks5", "socks5 via gsocks", "gsocks via socks5"),
    "socks5 via socks5 via socks5",
)


@pytest.mark.parametrize("way", WAYS)
def test_datagrams_go_through_it(way: str) -> None:
    with chains() as urls, udp_server("127.0.0.1", who_asks) as there:
        exit_ = asking(urls[way])
        stream = exit_.associate(Request(UDP_ASSOCIATE, UNSPECIFIED)).stream
        sources = set()
        for _ in range(3):
            stream.write(there.encode() + b"question")
            answer: bytes = stream.read()
            assert answer.startswith(there.encode())
            sources.add(answer.removeprefix(there.encode()))
        assert len(sources) == 1
        stream.write_eof()
        assert stream.read() == b""
        stream.close()
        exit_.close()


def by_socks4(urls: dict[str, str | dict[str, object]]) -> dict[str, str | dict[str, object]]:
    """The same proxies by the older protocol."""
    one = str(urls["socks5"])
    plain, named = (one.replace("socks5", each) for each in ("socks4", "socks4a"))
    return {
        "socks4": plain,
        "socks4a": named,
        "socks4a via socks4": {"url": named, "via": plain},
        "socks4 via gsocks": {"url": plain, "via": urls["socks5 via gsocks"]["via"]},  # type: ignore[index]
    }


@pytest.mark.parametrize(
    "way", [*WAYS, "socks4", "socks4a", "socks4a via socks4", "socks4 via gsocks"]
)
def test_a_peer_is_awaited_behind_it(way: str) -> None:
    with chains() as urls:
        urls |= by_socks4(urls)
        exit_ = asking(urls[way])
        awaited = exit_.bind(Request(BIND, HERE))
        with connect(awaited.bound) as peer:
            came = awaited.accept()
            assert came.bound == Address.from_sockaddr(peer.getsockname())
            peer.sendall(b"from the peer")
            assert came.stream.read() == b"from the peer"
            came.stream.write(b"from here")
            came.stream.write_eof()
            assert read_to_end(peer) == b"from here"
        assert came.stream.read() == b""
        came.stream.close()
        awaited.close()
        exit_.close()


def test_a_client_of_gsocks_has_both_by_a_proxy_behind_it() -> None:
    with proxy() as (url, behind), udp_server() as there:
        seen = Seen()
        exits = ExitGroup([asking(url)], ALLOW_ALL)
        with running_inbound(LocalServer(("127.0.0.1", 0), exits, observer=seen)) as local:
            with association(local.bound) as mine:
                mine.send(there, b"question")
                assert mine.receive() == (there, b"question")
            assert seen.next().outcome == behind.next().outcome == "ok"
            with connect(local.bound) as control:
                control.sendall(b"\x05\x01\x00\x05\x02\x00" + HERE.encode())
                assert read_exactly(control, 2) == b"\x05\x00"
                with connect(read_reply(control)) as peer:
                    assert read_reply(control) == Address.from_sockaddr(peer.getsockname())
            assert behind.next().command == seen.next().command == "bind"


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
@pytest.mark.parametrize("expected", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_client_of_gsocks_awaits_a_peer_by_a_socks4_proxy(scheme: str, expected: str) -> None:
    with proxy() as (url, behind):
        exits = ExitGroup([asking(url.replace("socks5", scheme))], ALLOW_ALL)
        with (
            running_inbound(LocalServer(("127.0.0.1", 0), exits)) as local,
            connect(local.bound) as control,
        ):
            dest = Address(expected, 0)
            control.sendall(b"\x05\x01\x00\x05\x02\x00" + dest.encode())
            assert read_exactly(control, 2) == b"\x05\x00"
            place = read_reply(control)
            with connect(place) as peer:
                assert read_reply(control) == Address.from_sockaddr(peer.getsockname())
                peer.sendall(b"hello")
                assert read_exactly(control, 5) == b"hello"
        record = behind.next()
        assert record.command == "bind"
        assert (
            record.dest
            == f"{'127.0.0.1' if scheme == 'socks4' and expected[0] == 'l' else expected}:0"
        )


def socks4_that_says(*says: bytes) -> Any:
    """A SOCKS4 proxy that answers a request so, and hangs up if it says nothing."""

    def handle(sock: socket) -> None:
        assert read_exactly(sock, 9)[:2] == b"\x04\x02"
        for each in says:
            sock.sendall(each)
        if says:
            read_to_end(sock)

    return serving(handle)


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
@pytest.mark.parametrize("says", [(b"\0\x5b" + bytes(6),), ()], ids=["91", "hangs up"])
def test_a_socks4_proxy_that_does_not_serve_bind_is_not_blamed(
    scheme: str, says: tuple[bytes, ...]
) -> None:
    with (
        socks4_that_says(*says) as address,
        pytest.raises(errors.CommandNotSupported, match="does not serve BIND, or rejects it"),
    ):
        AWAIT(asking(f"{scheme}://{address}"))


def test_a_socks4_proxy_that_names_no_address_listens_at_its_own() -> None:
    with socks4_that_says(b"\0\x5a\x12\x34\0\0\0\0", b"\0\x5a\x00\x50\xc0\0\2\1") as address:
        awaited = AWAIT(asking(f"socks4://{address}"))
        assert awaited.bound == Address(address.host, 0x1234)
        came = awaited.accept()
        assert came.bound == Address("192.0.2.1", 80)
        came.stream.abort()


def test_a_peer_that_is_not_the_expected_one_is_told_by_the_second_reply() -> None:
    with socks4_that_says(b"\0\x5a" + bytes(6), b"\0\x5b" + bytes(6)) as address:
        awaited = AWAIT(asking(f"socks4://{address}"))
        with pytest.raises(errors.ExitDoubtful, match="rejected it or failed"):
            awaited.accept()
        awaited.close()


def test_socks4_awaits_no_peer_over_ipv6() -> None:
    for scheme in ("socks4", "socks4a"):
        with pytest.raises(errors.AddressFamilyNotSupported):
            asking(f"{scheme}://127.0.0.1:9").bind(Request(BIND, Address("::1", 0)))


def test_an_awaited_peer_that_is_given_up_ends_the_waiting_at_the_proxy() -> None:
    with proxy() as (url, behind):
        awaited = asking(url).bind(Request(BIND, HERE))
        accepting = gevent.spawn(pytest.raises, errors.StreamClosed, awaited.accept)
        gevent.idle()
        awaited.close()
        accepting.get()
        with pytest.raises(errors.StreamClosed):
            awaited.accept()
        assert behind.next().command == "bind"


def test_an_association_ends_when_the_proxy_ends_it() -> None:
    with playing(b"\x05\x00\x00" + Address("127.0.0.1", 9).encode()) as (address, over):
        stream = asking(f"socks5://{address}").associate(Request(UDP_ASSOCIATE, UNSPECIFIED)).stream
        reading = gevent.spawn(stream.read)
        gevent.idle()
        assert not reading.ready()
        over.set()
        assert reading.get() == b""
        with pytest.raises(errors.StreamClosed):
            stream.write(PEER.encode() + b"late")
        stream.close()


@contextmanager
def playing(*says: bytes) -> Iterator[tuple[Address, Event]]:
    """A SOCKS5 proxy that answers the request so, and closes once the event is set."""
    over = Event()

    def handle(sock: socket) -> None:
        read_exactly(sock, 3)
        sock.sendall(b"\x05\x00")
        read_exactly(sock, 10)
        for each in says:
            sock.sendall(each)
        if says:
            over.wait()
        sock.close()

    with serving(handle) as address:
        try:
            yield address, over
        finally:
            over.set()


Ask = Callable[[Any], Any]
ASSOCIATE: Ask = lambda exit_: exit_.associate(Request(UDP_ASSOCIATE, UNSPECIFIED))  # noqa: E731
AWAIT: Ask = lambda exit_: exit_.bind(Request(BIND, HERE))  # noqa: E731
both = pytest.mark.parametrize("ask", [ASSOCIATE, AWAIT], ids=["UDP", "BIND"])


@both
@pytest.mark.parametrize("says", [(b"\x05\x07\x00\x01" + bytes(6),), ()], ids=["07", "hangs up"])
def test_a_proxy_that_does_not_serve_it_is_not_blamed(ask: Ask, says: tuple[bytes, ...]) -> None:
    """As ssh -D and microsocks: another exit may serve it."""
    with (
        playing(*says) as (address, _),
        pytest.raises(errors.CommandNotSupported, match="the proxy does not serve"),
    ):
        ask(asking(f"socks5://{address}"))


@both
def test_a_proxy_that_refuses_says_why(ask: Ask) -> None:
    with (
        playing(b"\x05\x02\x00\x01" + bytes(6)) as (address, _),
        pytest.raises(errors.Forbidden, match="forbidden by the proxy's rules"),
    ):
        ask(asking(f"socks5://{address}"))


@both
def test_a_proxy_that_is_silent_is_given_up(ask: Ask) -> None:
    with playing(b"\x05") as (address, _), pytest.raises(errors.ExitDoubtful, match="no answer"):
        ask(asking(f"socks5://{address}", connect=0.1))


def test_a_relay_at_no_port_is_the_proxys_failure() -> None:
    with (
        playing(b"\x05\x00\x00\x01" + bytes(6)) as (address, _),
        pytest.raises(errors.ExitFailed, match="no port"),
    ):
        ASSOCIATE(asking(f"socks5://{address}"))


def test_a_peer_that_does_not_come_is_told_by_the_proxys_second_reply() -> None:
    first = b"\x05\x00\x00" + PEER.encode()
    with playing(first, b"\x05\x06\x00\x01" + bytes(6)) as (address, _):
        awaited = asking(f"socks5://{address}").bind(Request(BIND, HERE))
        assert awaited.bound == PEER
        with pytest.raises(errors.ConnectTimeout):
            awaited.accept()
        awaited.close()


def test_only_the_relay_is_heard_and_only_what_is_whole() -> None:
    def nonsense(sock: socket, packet: bytes, source: tuple[str, int]) -> None:
        head = bytes(3) + PEER.encode()
        with socket(std_socket.AF_INET, std_socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            stranger.sendto(head + b"of a stranger", source)
        for each in (b"", b"?", b"\0\0\x01" + PEER.encode() + b"a fragment", head[:-1]):
            sock.sendto(each, source)
        sock.sendto(bytes(3) + b"\x03\x01a\0\x50of a name", source)
        sock.sendto(head + b"right", source)

    with (
        udp_server("127.0.0.1", nonsense) as relay,
        playing(b"\x05\x00\x00" + relay.encode()) as (address, _),
    ):
        stream = ASSOCIATE(asking(f"socks5://{address}")).stream
        stream.write(PEER.encode() + b"question")
        assert stream.read() == PEER.encode() + b"right"
        stream.abort()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("socks5s://127.0.0.1:9?insecure=true", "its datagrams would not be in its TLS"),
        ("socks5+unix:///run/none", "what leads there carries no datagrams"),
        ({"url": "socks5://127.0.0.1:9", "via": "http://127.0.0.1:9"}, "carries no datagrams"),
    ],
)
def test_datagrams_that_can_not_be_carried_are_refused_before_anything_is_asked(
    url: str | dict[str, object], told: str
) -> None:
    with pytest.raises(errors.CommandNotSupported, match=told):
        ASSOCIATE(asking(url))


@pytest.mark.parametrize("scheme", ["http", "socks4", "socks4a"])
def test_other_proxies_serve_neither_and_say_so(scheme: str) -> None:
    exits = ExitGroup([asking(f"{scheme}://127.0.0.1:9")], ALLOW_ALL)
    with pytest.raises(errors.CommandNotSupported, match="no exit serves UDP_ASSOCIATE"):
        exits.associate(Request(UDP_ASSOCIATE, UNSPECIFIED), lambda _: None, lambda _: None)


# --- Unix sockets -------------------------------------------------------------------------------


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:  # whose name is short, as those of sockets have to be
        yield Path(folder) / "proxy @ home"


def url_of(scheme: str, path: Path) -> str:
    return f"{scheme}+unix://{str(path).replace('@', '%40').replace(' ', '%20')}"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4a", "socks4", "http"])
def test_a_proxy_at_a_unix_socket_is_an_exit(scheme: str, path: Path) -> None:
    with (
        running_inbound(LocalServer(listen_at(UnixPath(str(path))), direct())),
        serving(echo) as server,
    ):
        exit_ = asking(url_of(scheme, path))
        assert exit_.label.endswith("/proxy%20%40%20home")
        for _ in range(2):
            stream = exit_.connect(Request(CONNECT, server)).stream
            stream.write(b"hello")
            stream.write_eof()
            assert stream.read() == b"hello"
            stream.close()


def test_a_client_reaches_names_by_tors_socket(path: Path) -> None:
    with (
        running_inbound(LocalServer(listen_at(UnixPath(str(path))), direct())),
        serving(echo) as server,
    ):
        exits = ExitGroup([asking(url_of("socks5", path))], ALLOW_ALL)
        with (
            running_inbound(LocalServer(("127.0.0.1", 0), exits)) as local,
            connect(local.bound) as client,
        ):
            client.sendall(socks_request(Address("localhost", server.port)))
            assert read_exactly(client, 2) == b"\x05\x00"
            assert read_reply(client)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"


@pytest.mark.parametrize("what", ["nothing", "stale", "datagrams", "folder"])
def test_a_socket_that_can_not_be_used_is_told_in_one_line(what: str, path: Path) -> None:
    told = {
        "nothing": "there is no such socket",
        "stale": "nothing listens there",
        "datagrams": "it is a socket of another kind",
        "folder": "nothing listens there",
    }[what]
    if what == "folder":
        path.mkdir()
    elif what != "nothing":
        kind = std_socket.SOCK_DGRAM if what == "datagrams" else std_socket.SOCK_STREAM
        sock = std_socket.socket(std_socket.AF_UNIX, kind)
        sock.bind(str(path))
        if what == "stale":
            sock.close()
    with pytest.raises(errors.ExitFailed) as caught:
        asking(url_of("http", path)).connect(Request(CONNECT, PEER))
    assert str(caught.value) == f"{url_of('http', path)}: {path}: {told}"
    if what == "datagrams":
        sock.close()


def test_a_program_that_accepts_slowly_is_waited_for_and_not_for_ever(path: Path) -> None:
    with (
        std_socket.socket(std_socket.AF_UNIX) as listener,
        std_socket.socket(std_socket.AF_UNIX) as first,
    ):
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        exit_ = UnixSocketExit(str(path), 0.1)
        with pytest.raises(errors.ConnectFailed, match="no program accepts there"):
            exit_.connect(Request(CONNECT, PEER))
        patient = UnixSocketExit(str(path), 20)
        connecting = gevent.spawn(patient.connect, Request(CONNECT, PEER))
        gevent.idle()
        assert not connecting.ready()
        listener.accept()[0].close()
        connecting.get().stream.abort()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("socks5+unix://run/tor", "is not the path of a socket"),
        ("socks5+unix:///run/", "is not the path of a socket"),
        ("socks5+unix:///a%0ab", "is not the path of a socket"),
        (f"socks5+unix:///{'a' * 108}", "has at most 107 bytes"),
        ("https+unix:///run/tor", "unknown scheme https[+]unix://"),
        ("gsocks+unix:///run/tor", "unknown scheme gsocks[+]unix://"),
        ({"url": "socks5+unix:///run/tor", "via": "direct"}, "via: not for a Unix socket"),
    ],
)
def test_a_path_that_is_none_is_told(url: str | dict[str, object], told: str) -> None:
    with pytest.raises(errors.ConfigError, match=told):
        ExitSpec.parse(url)


def test_an_exit_that_is_a_unix_listener_of_the_same_config_is_refused(path: Path) -> None:
    """By whatever protocol, and as the first proxy of a chain."""
    for scheme in ("socks5", "http"):
        url = url_of(scheme, path)
        for exit_ in (f'"{url}"', f'{{url: "socks5://192.0.2.1", via: "{url}"}}'):
            settings = config.parse(
                f"local: {{listen: ['unix:{path}', '127.0.0.1:0'], exits: [direct, {exit_}]}}",
                Path(),
            )
            with pytest.raises(errors.ConfigError, match=r"local\.exits\[1\]: .* is a listener of"):
                refuse_loops(settings)
    other = url_of("socks5", path.parent / "other")
    settings = config.parse(f"local: {{listen: 'unix:{path}', exits: ['{other}']}}", Path())
    refuse_loops(settings)


def test_exits_at_different_sockets_are_different() -> None:
    one, same, other = (
        ExitSpec.parse(f"socks5+unix://u:secret@/run/{name}") for name in ("one", "one", "other")
    )
    assert one == same != other
    assert one.url == "socks5+unix://u:secret@/run/one"
    assert repr(one) == "<ExitSpec socks5+unix://u:***@/run/one>"
