"""Shadowsocks: keys, streams and datagrams, of both editions."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import blake3
import gevent
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gsocks.address import Address
from gsocks.crypto import Area
from gsocks.errors import (
    BadAddress,
    ConfigError,
    ProtocolViolation,
    Stranger,
    StreamClosed,
    StreamError,
    Tampered,
    Truncated,
)
from gsocks.shadowsocks import ciphers, keys, methods
from gsocks.shadowsocks import stream as streams
from gsocks.shadowsocks.accept import Accepted, Guards, SaltGuard, ServerKeys, accept
from gsocks.shadowsocks.methods import METHODS, Method, key_from_password, keys_of, method_named
from gsocks.shadowsocks.packet import ClientPackets, ServerPackets, Window
from gsocks.shadowsocks.stream import ClientStream
from gsocks.stream import SocketStream, Stream, scratch_of_this_hub
from tests.support.stream_contract import (
    StreamContract,
    end_both_directions,
    read_exactly,
    read_to_end,
    tcp_pair,
)

pytestmark = pytest.mark.usefixtures("never_hangs")

DEST = Address("example.com", 443)
AEAD = METHODS["chacha20-ietf-poly1305"]
OF_2022 = METHODS["2022-blake3-aes-256-gcm"]


def psk(method: Method, fill: int = 7) -> str:
    return base64.b64encode(bytes((fill,)) * method.key_size).decode() if method.is_2022 else "p4ss"


@contextmanager
def guarding(server: ServerKeys) -> Iterator[Guards]:
    with closing(Guards.of(server)) as guards:
        yield guards


# --- keys -------------------------------------------------------------------------------------


def test_a_key_is_made_of_a_password_as_openssl_does() -> None:
    first = hashlib.md5(b"hunter2").digest()
    second = hashlib.md5(first + b"hunter2").digest()
    assert key_from_password("hunter2", 32) == first + second
    assert key_from_password("hunter2", 16) == first
    assert first.hex() == "2ab96390c7dbe3439de74d0c9b0b1767"


def test_the_subkey_of_2017_is_hkdf_with_sha_1() -> None:
    theirs = HKDF(SHA1(), 32, salt=bytes(range(32)), info=b"ss-subkey").derive(bytes(32))
    assert keys.subkey(METHODS["aes-256-gcm"], bytes(32), bytes(range(32))) == theirs
    # RFC 5869, test case 4
    made = keys.hkdf_sha1(b"\x0b" * 11, bytes(range(13)), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), 42)
    assert made.hex() == (
        "085a01ea1b10f36933068b56efa5ad81a4f14b822f5b091568a9cdd4f155fda2c22e422478d305f3f896"
    )


def test_the_subkey_of_2022_is_that_of_blake3() -> None:
    made = keys.subkey(OF_2022, bytes(32), bytes(range(32)))
    hasher = blake3.blake3(derive_key_context="shadowsocks 2022 session subkey")
    assert made == hasher.update(bytes(32) + bytes(range(32))).digest()
    small = METHODS["2022-blake3-aes-128-gcm"]
    assert len(keys.subkey(small, bytes(16), bytes(16))) == 16


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("", "the password is empty"),
        ("hunter2!", "is not base64"),
        (base64.b64encode(bytes(16)).decode(), "has 32 bytes, this one has 16"),
        (":".join([psk(OF_2022)] * 9), "more than 8 keys"),
        ("x" * 2000, "longer than 1024 bytes"),
    ],
)
def test_a_key_of_2022_is_base64_of_its_length(password: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        keys_of(OF_2022, password)
    assert "hunter2" not in str(raised.value)


def test_keys_may_be_written_in_either_alphabet_and_without_padding() -> None:
    raw = bytes([251]) * 32
    for text in (base64.b64encode(raw), base64.urlsafe_b64encode(raw).rstrip(b"=")):
        assert keys_of(OF_2022, text.decode()) == (raw,)


def test_chacha_of_2022_takes_one_key_only() -> None:
    method = METHODS["2022-blake3-chacha20-poly1305"]
    with pytest.raises(ConfigError, match="knows no users"):
        keys_of(method, f"{psk(method)}:{psk(method, 8)}")


@pytest.mark.parametrize("name", ["rc4-md5", "aes-256-cfb", "plain", ""])
def test_a_method_without_authentication_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a method of Shadowsocks that is supported"):
        method_named(name)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_is_installed", lambda package: False)
    for method in (OF_2022, METHODS["aes-128-gcm"]):
        with pytest.raises(ConfigError, match=r"pip install 'gsocks\[shadowsocks\]'"):
            methods.check_packages(method)
    methods.check_packages(AEAD)  # which PyNaCl has


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
@pytest.mark.parametrize("size", [1, 16, 256, 257, 16383])
def test_what_is_sealed_is_opened_and_nothing_else(method: Method, size: int) -> None:
    key, data = os.urandom(method.key_size), os.urandom(size)
    sealing, opening = ciphers.sealer(method, key), ciphers.opener(method, key)
    for _ in range(3):
        assert opening.open(sealing.seal(data)) == data
    sealed = bytearray(sealing.seal(data))
    sealed[size // 2] ^= 1
    with pytest.raises(Tampered):
        opening.open(bytes(sealed))


def test_chacha_of_libsodium_and_of_openssl_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5000)
    theirs = ciphers.sealer(AEAD, bytes(32)).seal(data)
    monkeypatch.setattr(ciphers, "_engine", lambda *_: None)
    assert ciphers.sealer(AEAD, bytes(32)).seal(data) == theirs
    assert ciphers.opener(AEAD, bytes(32)).open(theirs) == data


def test_a_cryptography_that_can_only_copy_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        """AESGCM as it was before version 47."""

        def __init__(self, key: bytes) -> None:
            aead = AESGCM(key)
            self.encrypt, self.decrypt = aead.encrypt, aead.decrypt

    data = os.urandom(5000)
    theirs = ciphers.sealer(OF_2022, bytes(32)).seal(data)
    monkeypatch.setattr(ciphers, "_engine", lambda _, key: Old(key))
    assert ciphers.sealer(OF_2022, bytes(32)).seal(data) == theirs
    assert ciphers.opener(OF_2022, bytes(32)).open(theirs) == data


# --- streams ----------------------------------------------------------------------------------


@contextmanager
def streaming(
    method: Method, buffer: int | None = None, payload: bytes = b""
) -> Iterator[tuple[ClientStream, Accepted]]:
    """A client's stream, and what the server has made of it."""
    near, far = tcp_pair(buffer)
    server = ServerKeys(method, psk(method))
    with guarding(server) as guards:
        client = ClientStream(SocketStream(near), method, keys_of(method, psk(method)), DEST)
        accepting = gevent.spawn(accept, far, server, guards)
        if payload:
            client.write(payload)
        else:
            client.ask()
        accepted = accepting.get()
        yield client, accepted
        client.abort()
        accepted.stream.abort()


class _Contract(StreamContract):
    method = AEAD
    buffer: int | None = None
    seen_from_server = False

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        with streaming(self.method, self.buffer) as (client, accepted):
            # the server's head has gone, as in most connections
            yield (accepted.stream, client) if self.seen_from_server else (client, accepted.stream)


class TestStreamOf2017(_Contract):
    pass


class TestStreamOf2022(_Contract):
    method = OF_2022


class TestStreamOf2022SeenFromTheServer(_Contract):
    method = METHODS["2022-blake3-chacha20-poly1305"]
    seen_from_server = True


class TestStreamOf2017WithSmallBuffers(_Contract):
    method = METHODS["aes-128-gcm"]
    buffer = 4096
    big = 2 * 1024 * 1024
    seen_from_server = True


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
@pytest.mark.parametrize("size", [0, 1, 16100, 70_000])
def test_a_request_and_its_first_bytes_are_read(method: Method, size: int) -> None:
    payload = os.urandom(size)
    with streaming(method, payload=payload) as (client, accepted):
        assert accepted.dest == DEST
        assert accepted.user.name == "shadowsocks"
        assert read_exactly(accepted.stream, size) == payload
        accepted.stream.write(payload + b"!")
        assert read_exactly(client, size + 1) == payload + b"!"


def test_a_stream_that_ends_within_a_chunk_is_truncated() -> None:
    with streaming(AEAD) as (client, accepted):
        accepted.stream.write(b"all of it")
        assert client.read() == b"all of it"
        inner = accepted.stream._open_stream()
        inner.write(bytes(10))
        inner.write_eof()
        with pytest.raises(Truncated, match="within a chunk"):
            client.read()


@pytest.mark.parametrize("method", [AEAD, OF_2022])
def test_bytes_that_are_changed_break_the_stream_behind_those_that_are_good(
    method: Method,
) -> None:
    with streaming(method) as (client, accepted):
        stream = accepted.stream
        stream.write(b"good")
        stream._open_stream().write(bytes(50))
        assert client.read() == b"good"
        with pytest.raises(Tampered):
            client.read()
        with pytest.raises(Tampered):
            client.read()


def test_a_response_to_another_request_is_refused() -> None:
    with streaming(OF_2022) as (client, accepted):
        accepted.stream._request_salt = bytes(32)
        accepted.stream.write(b"x")
        with pytest.raises(Tampered, match="another request"):
            client.read()


def test_a_response_of_another_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with streaming(OF_2022) as (client, accepted):
        accepted.stream.write(b"x")
        monkeypatch.setattr(streams, "now", lambda: int(time.time()) + 31)
        with pytest.raises(ProtocolViolation, match="another time"):
            client.read()


def test_chunks_of_more_than_their_bound_are_refused() -> None:
    with streaming(AEAD) as (client, accepted):
        accepted.stream.write(b"x")
        assert client.read() == b"x"
        sealer = accepted.stream._sealer
        assert sealer is not None
        accepted.stream._open_stream().write(sealer.seal(b"\x40\x00"))
        with pytest.raises(ProtocolViolation, match="16384 bytes"):
            client.read()


def test_chunks_without_a_byte_may_not_come_without_end() -> None:
    with streaming(AEAD) as (client, accepted):
        accepted.stream.write(b"x")
        assert client.read() == b"x"
        sealer = accepted.stream._sealer
        assert sealer is not None
        empty = b"".join(sealer.seal(bytes(2)) + sealer.seal(b"") for _ in range(300))
        accepted.stream._open_stream().write(empty)
        with pytest.raises(ProtocolViolation, match="without a byte"):
            client.read()


def test_many_small_chunks_are_read_in_several_steps() -> None:
    with streaming(AEAD) as (client, accepted):
        accepted.stream.write(b"x")
        assert client.read() == b"x"
        sealer = accepted.stream._sealer
        assert sealer is not None
        many = b"".join(sealer.seal(b"\0\1") + sealer.seal(b"y") for _ in range(200))
        accepted.stream._open_stream().write(many)
        first = client.read_nowait(scratch_of_this_hub())
        assert first is not None
        assert len(first) == streams.MAX_CHUNKS_AT_ONCE
        assert client.has_buffered
        assert read_exactly(client, 200 - len(first)) == b"y" * (200 - len(first))


def test_a_repr_shows_no_key() -> None:
    with streaming(OF_2022) as (client, accepted):
        for shown in map(repr, (client, accepted, accepted.user, ServerKeys(AEAD, "p4ss"))):
            assert "p4ss" not in shown
            assert "\\x07" not in shown


def test_a_stream_over_one_that_is_no_socket_carries_both_directions() -> None:
    with streaming(AEAD) as (outer, accepted):
        near = ClientStream(outer, OF_2022, keys_of(OF_2022, psk(OF_2022)), DEST)
        data = os.urandom(300_000)
        near.write(data)
        near.write_eof()
        # what the inner server would relay to the next one
        sent = read_to_end(accepted.stream)
        there, here = tcp_pair()
        with there, here, guarding(ServerKeys(OF_2022, psk(OF_2022))) as guards:
            writing = gevent.spawn(there.sendall, sent)
            inner = accept(here, ServerKeys(OF_2022, psk(OF_2022)), guards)
            assert inner.dest == DEST
            assert read_exactly(inner.stream, len(data)) == data
            writing.get()
            inner.stream.write(b"back")
            accepted.stream.write(there.recv(1000))
            assert near.read() == b"back"
            inner.stream.abort()


# --- whom a server accepts --------------------------------------------------------------------


def head_of(
    method: Method, password: str, payload: bytes = b"hello", dest: Address = DEST
) -> bytes:
    """What a client sends first."""
    near, far = tcp_pair()
    with near, far:
        client = ClientStream(SocketStream(near), method, keys_of(method, password), dest)
        client.write(payload)
        head: bytes = far.recv(65536)
        client.abort()
    return head


def said(server: ServerKeys, guards: Guards, data: bytes) -> Accepted:
    """What a server makes of that, behind which its client ends."""
    near, far = tcp_pair()
    with near:
        near.sendall(data)
        near.shutdown(1)
        try:
            accepted = accept(far, server, guards)
        except BaseException:
            far.close()
            raise
        accepted.stream.abort()
        return accepted


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_head_is_accepted_once(method: Method) -> None:
    server = ServerKeys(method, psk(method))
    with guarding(server) as guards:
        head = head_of(method, psk(method))
        assert said(server, guards, head).dest == DEST
        for again in (head, head + b"more"):
            with pytest.raises(Stranger, match="a salt seen before"):
                said(server, guards, again)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_head_that_is_changed_anywhere_is_a_strangers(method: Method) -> None:
    server = ServerKeys(method, psk(method))
    head = head_of(method, psk(method), b"x")
    with guarding(server) as guards:
        for at in range(len(head)):
            data = bytearray(head)
            data[at] ^= 1
            with pytest.raises((Stranger, StreamError)):
                said(server, guards, bytes(data))


@pytest.mark.parametrize("method", [AEAD, OF_2022])
def test_what_a_server_has_sent_is_no_beginning_of_a_client(method: Method) -> None:
    server = ServerKeys(method, psk(method))
    with guarding(server) as guards:
        near, far = tcp_pair()
        near.sendall(head_of(method, psk(method)))
        accepted = accept(far, server, guards)
        accepted.stream.write(b"\x01\x7f\x00\x00\x01\x00\x50 as a request would begin")
        reflected = near.recv(1000)
        near.close()
        accepted.stream.abort()
        with pytest.raises(Stranger):
            said(server, guards, reflected)


@pytest.mark.parametrize("skew", [-31, 31])
def test_a_head_of_2022_of_another_time_is_a_strangers(
    skew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerKeys(OF_2022, psk(OF_2022))
    with guarding(server) as guards:
        with monkeypatch.context() as patch:
            patch.setattr(streams, "now", lambda: int(time.time()) + skew)
            head = head_of(OF_2022, psk(OF_2022))
        with pytest.raises(Stranger, match="another time"):
            said(server, guards, head)


def test_a_head_of_2022_has_to_come_in_one_read() -> None:
    server = ServerKeys(OF_2022, psk(OF_2022))
    head = head_of(OF_2022, psk(OF_2022))
    with guarding(server) as guards, pytest.raises(Stranger, match="less than a header"):
        said(server, guards, head[:58])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (DEST.encode() + b"\0\0", "neither padding nor payload"),
        (DEST.encode() + b"\0\5" + bytes(4), "beyond its bound"),
        (DEST.encode() + (901).to_bytes(2, "big") + bytes(901), "beyond its bound"),
        (DEST.encode(), "ends early"),
        (DEST.encode()[:5], "ends early"),
        (b"\x05\x00", "address type 0x05"),
        (b"", "ends early"),
    ],
)
def test_a_request_of_2022_keeps_to_its_header(asked: bytes, why: str) -> None:
    server, key = ServerKeys(OF_2022, psk(OF_2022)), keys_of(OF_2022, psk(OF_2022))[0]
    salt = os.urandom(32)
    sealer = ciphers.sealer(OF_2022, keys.subkey(OF_2022, key, salt))
    fixed = b"\0" + int(time.time()).to_bytes(8, "big") + len(asked).to_bytes(2, "big")
    with guarding(server) as guards, pytest.raises(Stranger, match=why):
        said(server, guards, salt + sealer.seal(fixed) + sealer.seal(asked))


def test_a_destination_that_is_none_is_told_as_such() -> None:
    server = ServerKeys(AEAD, "p4ss")
    with guarding(server) as guards, pytest.raises(BadAddress):
        said(server, guards, head_of(AEAD, "p4ss", dest=Address("a b", 80)))


def test_an_address_of_2017_may_come_in_several_chunks() -> None:
    server, key = ServerKeys(AEAD, "p4ss"), key_from_password("p4ss", 32)
    salt = os.urandom(32)
    sealer = ciphers.sealer(AEAD, keys.subkey(AEAD, key, salt))
    data = salt
    for byte in DEST.encode() + b"xy":
        data += sealer.seal(b"\0\1") + sealer.seal(bytes((byte,)))
    with guarding(server) as guards:
        assert said(server, guards, data).dest == DEST


@pytest.mark.parametrize("method", [AEAD, OF_2022])
def test_a_client_is_known_by_its_users_key(method: Method) -> None:
    if method.is_2022:
        server = ServerKeys(method, psk(method), {"ann": psk(method, 1), "bob": psk(method, 2)})
        passwords = {name: f"{psk(method)}:{psk(method, n)}" for n, name in enumerate("xab")}
        of_bob, of_none = passwords["b"], psk(method)
    else:
        server = ServerKeys(method, None, {"ann": "one", "bob": "two"})
        of_bob, of_none = "two", "three"
    with guarding(server) as guards:
        assert said(server, guards, head_of(method, of_bob)).user.name == "bob"
        with pytest.raises(Stranger):
            said(server, guards, head_of(method, of_none))


@pytest.mark.parametrize(
    ("method", "password", "users", "why"),
    [
        ("aes-256-gcm", None, {}, "needs a password"),
        ("aes-256-gcm", "x", {"ann": "y"}, "no password besides theirs"),
        ("aes-256-gcm", None, {str(n): str(n) for n in range(65)}, "more than 64 users"),
        ("aes-256-gcm", None, {"ann": "x", "bob": "x"}, "the same password"),
        (OF_2022.name, None, {"ann": psk(OF_2022)}, "needs a password"),
        (OF_2022.name, psk(OF_2022), {"ann": psk(OF_2022)}, "has the password of the listener"),
        (OF_2022.name, f"{psk(OF_2022)}:{psk(OF_2022, 1)}", {}, "one key is needed"),
        ("2022-blake3-chacha20-poly1305", psk(OF_2022), {"a": psk(OF_2022, 1)}, "knows no users"),
    ],
)
def test_passwords_and_users_have_to_go_together(
    method: str, password: str | None, users: dict[str, str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        ServerKeys(METHODS[method], password, users)


def test_of_too_many_salts_the_oldest_are_forgotten_and_none_is_refused() -> None:
    with closing(SaltGuard(keys=1, capacity=16)) as guard:
        salts = [os.urandom(32) for _ in range(40)]
        assert not guard.admit(salts[0], 10_000, b"k", 10_000)  # from before it was made
    with closing(SaltGuard(0, keys=1, capacity=16)) as guard:
        assert all(guard.admit(salt, 10_000 + n, b"k", 10_000 + n) for n, salt in enumerate(salts))
        assert not guard.admit(salts[-1], 10_050, b"k", 10_050)
        assert guard.admit(salts[0], 10_051, b"k", 10_051)


# --- datagrams --------------------------------------------------------------------------------

DATAGRAM = Address("192.0.2.1", 53).encode() + b"question"
NAMED = DEST.encode() + b"to a name"
BACK = Address("192.0.2.1", 53).encode() + b"answer"


@contextmanager
def packets(method: Method) -> Iterator[tuple[ClientPackets, ServerPackets]]:
    server = ServerKeys(method, psk(method))
    with guarding(server) as guards:
        yield ClientPackets(method, keys_of(method, psk(method))), ServerPackets(server, guards)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_datagrams_go_there_and_back_and_each_counts_once(method: Method) -> None:
    with packets(method) as (client, server):
        for datagram in (DATAGRAM, NAMED):
            packet = client.seal(datagram)
            opened = server.open(packet, "here")
            assert opened is not None
            assert opened[1] == datagram
            assert server.open(packet, "here") is None
            assert server.open(packet, "elsewhere") is None
            answer = opened[0].seal(BACK)
            assert client.open(answer) == BACK
            if method.is_2022:
                assert client.open(answer) is None
        # what comes from a name comes from no address
        assert opened is not None
        assert client.open(opened[0].seal(NAMED)) is None


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_datagram_that_is_changed_anywhere_is_dropped(method: Method) -> None:
    with packets(method) as (client, server):
        packet = client.seal(DATAGRAM)
        for at in range(len(packet)):
            changed = bytearray(packet)
            changed[at] ^= 1
            assert server.open(bytes(changed), "here") is None
            assert server.open(packet[:at], "here") is None
        opened = server.open(packet, "here")
        assert opened is not None
        answer = opened[0].seal(BACK)
        for at in range(len(answer)):
            changed = bytearray(answer)
            changed[at] ^= 1
            assert client.open(bytes(changed)) is None
            assert client.open(answer[:at]) is None
        assert client.open(answer) == BACK


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.is_2022], ids=str)
def test_a_datagram_of_2022_of_another_time_is_dropped(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    with packets(method) as (client, server):
        packet = client.seal(DATAGRAM)
        monkeypatch.setattr(streams, "now", lambda: int(time.time()) + 31)
        assert server.open(packet, "here") is None


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.is_2022], ids=str)
def test_a_session_of_2022_outlives_a_change_of_its_clients_address(method: Method) -> None:
    with packets(method) as (client, server):
        one = server.open(client.seal(DATAGRAM), "here")
        other = server.open(client.seal(DATAGRAM), "elsewhere")
        assert one is not None
        assert other is not None
        assert one[0].session == other[0].session


def test_a_third_session_of_a_server_has_to_wait_until_the_first_is_old() -> None:
    with packets(OF_2022) as (client, server):
        answers = []
        for _ in range(3):
            other = ServerPackets(ServerKeys(OF_2022, psk(OF_2022)), server._guards)
            opened = other.open(client.seal(DATAGRAM), "here")
            assert opened is not None
            answers.append(client.open(opened[0].seal(BACK)))
        assert answers == [BACK, BACK, None]


def test_a_user_is_known_by_the_identity_in_a_datagram() -> None:
    server = ServerKeys(OF_2022, psk(OF_2022), {"ann": psk(OF_2022, 1)})
    with guarding(server) as guards:
        inbound = ServerPackets(server, guards)
        ann = ClientPackets(OF_2022, keys_of(OF_2022, f"{psk(OF_2022)}:{psk(OF_2022, 1)}"))
        opened = inbound.open(ann.seal(DATAGRAM), "here")
        assert opened is not None
        assert opened[0].user.name == "ann"
        assert ann.open(opened[0].seal(BACK)) == BACK
        for other in (psk(OF_2022), f"{psk(OF_2022)}:{psk(OF_2022, 2)}"):
            stranger = ClientPackets(OF_2022, keys_of(OF_2022, other))
            assert inbound.open(stranger.seal(DATAGRAM), "here") is None


def test_a_window_takes_each_number_once_and_none_from_far_behind() -> None:
    window = Window()
    assert [window.admit(n) for n in (0, 0, 5, 3, 3, 5, 1)] == [
        *(True, False, True, True, False, False, True)
    ]
    assert window.admit(5000)
    assert [window.admit(n) for n in (5000 - Window.size, 5000 - Window.size + 1, 5)] == [
        *(False, True, False)
    ]
    assert window.admit(2**64 - 1)


def test_the_ends_of_a_stream_are_told_apart_from_its_release() -> None:
    with streaming(OF_2022) as (client, accepted):
        end_both_directions(client, accepted.stream)
        client.close()
        with pytest.raises(StreamClosed):
            client.read()


@pytest.mark.parametrize("name", ["aes-256-gcm", "chacha20-ietf-poly1305"])
@pytest.mark.parametrize("size", [0, 2, 256, 257, 1000])
def test_what_is_sealed_in_a_buffer_is_opened_there_and_nothing_beyond_its_ends(
    name: str, size: int
) -> None:
    method, data = METHODS[name], bytes(size)
    key, sealed, plain = bytes(method.key_size), Area(bytearray(1100)), Area(bytearray(1050))
    sealer, opener = ciphers.sealer(method, key), ciphers.opener(method, key)
    for start in (-1, 1100 - size - 15):
        with pytest.raises(ValueError, match="1100 bytes"):
            sealer.seal_at(sealed, start, data)
    end = sealer.seal_at(sealed, 7, data)
    assert bytes(sealed.view[7:end]) == ciphers.sealer(method, key).seal(data)
    length = end - 7
    for to, start, count in ((-1, 7, length), (1051 - size, 7, length), (0, 1101 - length, length)):
        with pytest.raises(ValueError, match=" bytes for "):
            opener.open_at(plain, to, sealed, start, count)
    with pytest.raises(ValueError, match=" bytes for "):
        opener.open_at(plain, 0, sealed, 7, 15)
    plain.view[:] = b"x" * 1050
    opener.open_at(plain, 9, sealed, 7, length)
    assert bytes(plain.view) == b"x" * 9 + data + b"x" * (1041 - size)
