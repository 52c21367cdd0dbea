"""TLS to an exit, and the stream that it makes."""

from __future__ import annotations

import os
import socket as std_socket
import ssl
from collections.abc import Callable, Iterator

import gevent
import pytest
import trustme
from gevent.event import AsyncResult
from gevent.select import select
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.exits import ExitDeps, ExitSpec, make_exit, trust
from gsocks.exits.handshake import resumed
from gsocks.net.resolve import Resolver
from gsocks.net.tls import TlsStream
from gsocks.settings import Timeouts
from gsocks.stream import Bytes, ScratchBuffers, SocketStream, Stream, scratch_of_this_hub
from tests.support.engine import serving
from tests.support.names import NamesBy
from tests.support.proxies import authority, certified, hang, trusting
from tests.support.proxy_exits import DEST, PASSWORD, asking, leaves_nothing, to
from tests.support.stream_contract import StreamContract, read_to_end, tcp_pair


def tls_pair(
    near: Stream, far: Stream, server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[TlsStream, TlsStream]:
    secured, accepting = TlsStream(near, client, "127.0.0.1"), TlsStream(far, server, None)
    handshake = gevent.spawn(accepting.handshake)
    secured.handshake()
    handshake.get()
    return secured, accepting


class TestTlsStream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair())
        pair = tls_pair(near, far, certified("127.0.0.1"), trusting())
        yield pair
        for stream in pair:
            stream.close()


class CountedReads(SocketStream):
    """Counts its reads."""

    count = 0

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        self.count += 1
        return super().read_nowait(scratch)


def test_tickets_without_end_are_read_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    context = certified("127.0.0.1")  # which others use as well
    monkeypatch.setattr(context, "num_tickets", 1500)  # some 380 kB
    near, far = tcp_pair()
    below = CountedReads(near)
    client, server = tls_pair(below, SocketStream(far), context, trusting())
    scratch = scratch_of_this_hub()
    writing = gevent.spawn(server.write, b"x")
    turns = 0
    while True:
        select([near], [], [])
        below.count = 0
        data = client.read_nowait(scratch)
        assert below.count <= 1
        if data is not None:
            break
        turns += 1
    assert bytes(data) == b"x"
    assert turns > 1
    writing.get()
    client.abort()
    server.abort()


class TestTlsStreamAtTheServersEnd(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair(buffer=4096))
        client, server = tls_pair(near, far, certified("127.0.0.1"), trusting())
        yield server, client
        client.close()
        server.close()

    big = 2 * 1024 * 1024


class TestTls12Stream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair())
        context = ssl.create_default_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        authority().configure_trust(context)
        pair = tls_pair(near, far, certified("127.0.0.1"), context)
        yield pair
        for stream in pair:
            stream.close()


class TestResumedStream(StreamContract):
    """A stream of which something was read ahead, and has been read again since."""

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        near, far = map(SocketStream, tcp_pair())
        pair = resumed(near, b"ahead"), resumed(far, b"ahead")
        assert [stream.read() for stream in pair] == [b"ahead", b"ahead"]
        yield pair
        for stream in pair:
            stream.close()


@leaves_nothing
def test_what_was_read_ahead_is_read_first_and_goes_with_the_stream() -> None:
    near, far = map(SocketStream, tcp_pair())
    far.write(b" and more")
    far.write_eof()
    stream = resumed(near, b"ahead")
    assert read_to_end(stream) == b"ahead and more"
    far.abort()
    near.abort()
    near, far = map(SocketStream, tcp_pair())
    stream = resumed(near, b"ahead")
    stream.write_eof()
    stream.close()  # unread, so this is no clean end
    with pytest.raises(errors.StreamError):
        read_to_end(far)
        far.write(b"x")
        far.read()
    with pytest.raises(errors.StreamClosed):
        stream.read()
    far.abort()


def test_nothing_read_ahead_leaves_the_stream_as_it_is() -> None:
    near, far = map(SocketStream, tcp_pair())
    assert resumed(near, b"") is near
    near.abort()
    far.abort()


@leaves_nothing
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_another_implementation_of_tls_sees_our_end_and_we_see_its(version: str) -> None:
    """The standard library's own sockets, in a thread of their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    sent = os.urandom(1_000_000)
    with std_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> tuple[str | None, bytes]:
            sock, _ = listener.accept()
            with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
                data = b""
                while part := tls.recv(65536):
                    data += part
                name = tls.version()
                tls.sendall(data)
                tls.unwrap()
                return name, data

        serving_it = gevent.get_hub().threadpool.spawn(serve)
        stream = TlsStream(connected(listener.getsockname()), trusting(), "127.0.0.1")
        stream.handshake()
        stream.write(sent)
        stream.write_eof()
        assert read_to_end(stream) == sent
        stream.close()
        served = serving_it.get()
    assert served is not None
    name, received = served
    assert received == sent
    assert name == version.replace("_", ".")


def connected(to: tuple[str, int]) -> SocketStream:
    sock = socket()
    sock.connect(to)
    return SocketStream(sock)


@leaves_nothing
@pytest.mark.parametrize("cut", ["FIN", "RST", "garbage"])
def test_tls_that_ends_without_its_end_is_a_failure(cut: str) -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    other.write(b"something")
    if cut == "FIN":
        far.write_eof()
    assert stream.read() == b"something"
    if cut == "RST":
        far.abort()
    elif cut == "garbage":
        far.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    kind = {"FIN": errors.Truncated, "RST": errors.StreamReset, "garbage": errors.TlsFailed}
    with pytest.raises(kind[cut]) as caught:
        stream.read()
    assert type(caught.value) is kind[cut]
    stream.abort()
    far.abort()


@leaves_nothing
def test_after_its_end_tls_takes_no_more_data() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    stream.write_eof()
    with pytest.raises(errors.StreamError):
        stream.write(b"too late")
    stream.abort()
    other.abort()


@leaves_nothing
def test_a_far_end_that_does_not_close_is_waited_for_behind_the_scene(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.net.tls.CLOSE_GRACE", 0.05)
    near, far = map(SocketStream, tcp_pair())
    context = certified("127.0.0.1")
    stream, other = tls_pair(near, far, context, trusting())
    stream.write_eof()
    assert other.read() == b""
    other._engine.unwrap()  # close_notify without the end of the connection
    other._send_made()
    assert stream.read() == b""
    stream.close()
    with pytest.raises(errors.StreamReset):  # after a while
        while True:
            far.read()
            far.write(b"x")
            gevent.sleep(0.001)  # as a peer that sends little by little
    far.abort()


@leaves_nothing
def test_a_far_end_that_resets_behind_its_end_does_no_harm() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    stream.write_eof()
    assert other.read() == b""
    other._engine.unwrap()
    other._send_made()
    assert stream.read() == b""
    far.abort()
    stream.close()


@leaves_nothing
def test_tls_can_not_end_before_it_has_begun() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream = TlsStream(near, trusting(), "127.0.0.1")
    with pytest.raises(errors.StreamError, match="TLS failed"):
        stream.write_eof()
    stream.abort()
    far.abort()


class Deaf(SocketStream):
    """A stream that takes one write, and no more."""

    def write(self, data: bytes) -> None:
        super().write(data)
        self.write = self.refuse  # type: ignore[method-assign]

    def refuse(self, data: bytes) -> None:
        raise errors.StreamReset("connection reset by peer")


@leaves_nothing
def test_a_distrusted_far_end_that_is_gone_is_still_told_of_as_distrusted() -> None:
    near, far = tcp_pair()
    accepting = gevent.spawn(tls_server(certified("127.0.0.2")), far)
    stream = TlsStream(Deaf(near), trusting(), "127.0.0.1")
    with pytest.raises(errors.StreamError, match="can't be trusted"):
        stream.handshake()
    stream.abort()
    accepting.join()
    far.close()


def https_failure(handle: Callable[[socket], object], host: str = "127.0.0.1") -> str:
    with serving(handle) as address:
        way = asking(f"https://al:{PASSWORD.replace(' ', '%20')}@{host}:{address.port}")
        with pytest.raises(errors.ExitFailed) as caught:
            way.connect(to(DEST))
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def tls_server(context: ssl.SSLContext) -> Callable[[socket], None]:
    def handle(sock: socket) -> None:
        stream = TlsStream(SocketStream(sock), context, None)
        try:
            stream.handshake()
            hang(stream)
        except errors.StreamError:
            pass  # the exit has hung up

    return handle


@leaves_nothing
def test_a_certificate_for_another_host_is_refused() -> None:
    assert "can't be trusted: IP address mismatch" in https_failure(
        tls_server(certified("127.0.0.2", "localhost"))
    )


@leaves_nothing
def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    told: AsyncResult[str] = AsyncResult()

    def handle(sock: socket) -> None:
        with pytest.raises(errors.StreamError) as caught:
            TlsStream(SocketStream(sock), context, None).handshake()
        told.set(str(caught.value))

    assert "can't be trusted: " in https_failure(handle)
    assert told.get() == "TLS failed: tlsv1 alert unknown ca"


@leaves_nothing
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 no\r\n\r\n", b"\x05\xff", bytes(100), b"\x15\x03"])
def test_what_speaks_no_tls_is_the_exits_failure(says: bytes) -> None:
    def handle(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(says)
        sock.shutdown(std_socket.SHUT_WR)
        sock.recv(65536)

    message = https_failure(handle)
    assert "speak TLS" in message or "ended without the end of TLS" in message


@leaves_nothing
def test_tls_is_told_for_whom_it_is_meant() -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("proxy.example").configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)
    spec = ExitSpec.parse("https://proxy.example:8443")
    with serving(tls_server(context)) as address:
        named = ExitDeps(
            ALLOW_ALL,
            Resolver(NamesBy(lambda _: ["127.0.0.1"])),
            timeouts=Timeouts(connect=0.3),
            trust=trusting,
        )
        spec = ExitSpec.parse(f"https://proxy.example:{address.port}")
        with pytest.raises(errors.ExitFailed, match="no answer"):
            make_exit(spec, named).connect(to(DEST))
    assert names == ["proxy.example"]


def test_https_trusts_the_systems_authorities_and_checks_names() -> None:
    context = trust()
    assert context is trust()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
