"""A server serves peers that know a key; to all others it shows nothing, until the same moment."""

from __future__ import annotations

import logging
import os
import socket as std_socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent.socket import socket
from gevent.util import wrap_errors
from noise.connection import Keypair, NoiseConnection

from gsocks.address import Address
from gsocks.crypto import REPLY_HEAD_SIZE, VERSION, Cipher, Initiator, Key, KeyRing
from gsocks.errors import (
    BadAddress,
    CommandNotSupported,
    ExitFailed,
    GsocksError,
    LimitReached,
    StreamError,
    StreamReset,
)
from gsocks.replay import WINDOW_MS, ReplayGuard, now_ms
from gsocks.request import Command, Request
from gsocks.server import RemoteServer
from gsocks.settings import Limits, Timeouts
from gsocks.stream import reset
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.discard import discard
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.streams import TunnelStream
from tests.support import make_vectors, other_end
from tests.support.engine import (
    Seen,
    connect,
    direct,
    echo,
    eventually,
    open_descriptors,
    read_exactly,
    serving,
)
from tests.support.probing import (
    SILENCE,
    Probe,
    assert_all_see_the_same,
    garbage,
    known_greetings,
    speak,
    speak_and_end,
    speak_slowly,
)
from tests.support.stream_contract import tcp_pair
from tests.support.tunnel_parts import (
    BOTH,
    KEY,
    OTHER_KEY,
    RING,
    changed,
    hello_from,
    ignore_end,
    is_silent,
    small_order_hello,
)
from tests.support.waiting import TOO_LONG


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


# --- silence ----------------------------------------------------------------------------------


class Babbler:
    """A socket of a peer that sends faster than it is read from."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    def recv(self, size: int) -> bytes:
        self.reads -= 1
        if not self.reads:
            raise ConnectionResetError
        return bytes(size)

    def shutdown(self, how: int) -> None:
        pass

    def fileno(self) -> int:
        return -1  # as of one that is closed

    def close(self) -> None:
        pass


def test_a_stranger_that_never_stops_sending_lets_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
    ran: list[bool] = []
    gevent.spawn(ran.append, True)
    babbler = Babbler(reads=10)
    discard(babbler, TOO_LONG)  # type: ignore[arg-type]
    assert ran
    assert not babbler.reads


@pytest.mark.parametrize("seconds", [0.02, 0, -1])
def test_a_stranger_is_read_from_until_the_time_is_over(seconds: float) -> None:
    near, far = tcp_pair()
    with near, far:
        near.sendall(bytes(100_000))
        discarding = gevent.spawn(discard, far, seconds)
        assert near.recv(1) == b""  # an end, and no reset: all had been read
        near.close()
        discarding.get()
        assert far.fileno() == -1


def test_a_stranger_that_is_still_sending_when_its_time_is_over_sees_an_end_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send_for_ever() -> None:
        while True:
            near.sendall(bytes(1_000_000))

    monkeypatch.setattr("gsocks.tunnel.discard.CLOSE_GRACE", 0.05)
    near, far = tcp_pair()
    with near, far:
        near.setblocking(False)
        with pytest.raises(TimeoutError):  # gevent's BlockingIOError
            send_for_ever()
        near.setblocking(True)
        sending = gevent.spawn(wrap_errors((OSError,), send_for_ever))
        discard(far, 0)
        assert near.recv(1) == b""
        assert isinstance(sending.get(), OSError)  # it can send no more


# --- a server, probed -------------------------------------------------------------------------


@contextmanager
def inbound(
    ring: KeyRing = RING, *, cipher: Cipher = Cipher.SECRETBOX, **options: Any
) -> Iterator[RemoteServer]:
    options.setdefault("limits", Limits(connections=10_000, per_client=10_000))
    server = RemoteServer(("127.0.0.1", 0), direct(), ring, ciphers=cipher, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


def answered(server: RemoteServer, hello: bytes) -> bytes:
    """What the server says to it, which is something."""
    with connect(server.bound) as sock:
        sock.sendall(hello)
        return read_exactly(sock, REPLY_HEAD_SIZE + 3 + 16)


def test_whatever_a_prober_sends_it_sees_nothing_until_the_same_moment(nothing_left: None) -> None:
    seen = Seen()
    with inbound(timeouts=Timeouts(handshake=SILENCE), observer=seen) as server:
        # a short one, so that a probe for each of its bytes is not too much
        hello = Initiator(KEY, BOTH, salt=make_vectors.HELLO_SALT).hello(now_ms())
        assert_all_see_the_same(
            server,
            [
                *(Probe(f"{length} bytes", garbage(length)) for length in range(221)),
                *(Probe(f"cut at {at}", hello[:at]) for at in range(len(hello))),
                *(Probe(f"changed at {at}", changed(hello, at)) for at in range(len(hello))),
                *known_greetings(),
            ],
        )
        answered(server, hello)  # which all the probes have not used up
        assert {record.outcome for record in seen.all} == {"stranger", "handshake_timeout"}
    assert server.connections == 0


def test_a_peer_that_replays_a_hello_or_has_the_wrong_time_sees_the_same(
    nothing_left: None,
) -> None:
    with inbound(timeouts=Timeouts(handshake=SILENCE)) as server:
        spent = hello_from()
        answered(server, spent)
        early, late = now_ms() - WINDOW_MS - 1000, now_ms() + WINDOW_MS + 60_000
        assert_all_see_the_same(
            server,
            [
                *(Probe(f"replayed {n}", spent) for n in range(5)),
                Probe("replayed with more", spent + garbage(500)),
                *(Probe(f"replayed and cut at {n}", spent[:n]) for n in range(30, 61, 5)),
                *(Probe(f"replayed, changed at {n}", changed(spent, n)) for n in range(61)),
                Probe("made 31 s ago", hello_from(time_ms=early)),
                Probe("made in the future", hello_from(time_ms=late)),
                Probe("another key", hello_from(OTHER_KEY)),
                Probe("no cipher in common", hello_from(offered=Cipher.AEGIS256)),
                Probe("no cipher at all", hello_from(offered=Cipher(0))),
                Probe("a public key of small order", small_order_hello()),
            ],
        )


def test_how_a_prober_sends_makes_no_difference(nothing_left: None) -> None:
    with inbound(timeouts=Timeouts(handshake=SILENCE)) as server:
        spent = hello_from()
        answered(server, spent)
        probes = []
        for how in (speak, speak_and_end, speak_slowly):
            said = {
                "replayed": spent,
                "replayed and cut": spent[:50],
                "another key": hello_from(OTHER_KEY),
                "made 31 s ago": hello_from(time_ms=now_ms() - WINDOW_MS - 1000),
            }
            for length in (0, 1, 35, 36, 37, 60, 220, 5000, 1_000_000):
                said[f"{length} bytes"] = garbage(length)
            probes += [Probe(f"{name}, {how.__name__}", said[name], how) for name in said]
        assert_all_see_the_same(server, probes)


def test_a_hello_from_before_the_servers_start_is_a_strangers(nothing_left: None) -> None:
    guard = ReplayGuard(started_ms=now_ms() + 10_000)
    with inbound(guard=guard, timeouts=Timeouts(handshake=SILENCE)) as server:
        assert_all_see_the_same(server, [Probe("old", hello_from()), Probe("none", b"")])
        answered(server, hello_from(time_ms=now_ms() + 20_000))
    guard.close()


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
def test_another_prologue_is_a_strangers(nothing_left: None) -> None:
    def hello_of(prologue: bytes) -> bytes:
        private, salt = os.urandom(32), os.urandom(16)
        theirs = NoiseConnection.from_name(b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b")
        theirs.set_psks(KEY.raw())
        theirs.set_prologue(prologue)
        theirs.set_as_initiator()
        theirs.set_keypair_from_private_bytes(Keypair.EPHEMERAL, private)
        theirs.start_handshake()
        hint, padding, mask = other_end.hello_shape(KEY.raw(), salt)
        payload = now_ms().to_bytes(8, "big") + bytes((VERSION, 0x01, 0)) + bytes(padding)
        message = bytes(theirs.write_message(payload))
        return salt + hint + other_end.xor(message[:32], mask) + message[32:]

    with inbound(timeouts=Timeouts(handshake=SILENCE)) as server:
        assert_all_see_the_same(server, [Probe("another prologue", hello_of(b"gsocks/1"))])
        answered(server, hello_of(b"gsocks/2"))


def test_a_client_that_is_too_old_learns_so_at_once_and_its_connection_ends(
    nothing_left: None,
) -> None:
    seen = Seen()
    with inbound(timeouts=Timeouts(handshake=2 * TOO_LONG), observer=seen) as server:
        with connect(server.bound) as sock:
            client = other_end.Client(KEY.raw(), os.urandom(32))
            sock.sendall(client.hello(now_ms(), 0x01, version=VERSION - 1))
            agreed = client.read_reply(lambda count: read_exactly(sock, count))
            assert agreed.version == VERSION
            assert sock.recv(1) == b""
        record = seen.next()
        assert record.outcome == "protocol_violation"
        assert record.detail == "the client speaks version 1 of the protocol, at least 2 is needed"


def test_strangers_beyond_their_number_displace_the_oldest_of_them(nothing_left: None) -> None:
    seen = Seen()
    timeouts, limits = Timeouts(handshake=TOO_LONG), Limits(handshakes=3)
    with (
        inbound(timeouts=timeouts, limits=limits, observer=seen) as server,
        ExitStack() as stack,
    ):
        strangers = []
        for _ in range(4):
            strangers.append(stack.enter_context(connect(server.bound)))
            strangers[-1].sendall(garbage(100))
            assert seen.next().outcome == "stranger"
        assert strangers[0].recv(1) == b""
        assert all(map(is_silent, strangers[1:]))
        answered(server, hello_from())  # a peer that has a key is no stranger
        assert strangers[1].recv(1) == b""
        assert all(map(is_silent, strangers[2:]))
        eventually(lambda: server.connections == 2)


def test_a_stranger_is_in_the_log_without_what_it_sent(nothing_left: None) -> None:
    seen = Seen()
    with inbound(timeouts=Timeouts(handshake=SILENCE), observer=seen) as server:
        Probe("a hello of another key", hello_from(OTHER_KEY)).run(server.bound)
        record = seen.next()
        assert record.outcome == "stranger"
        assert record.detail.startswith("not the hello of a known key: it has another key, ")
        assert (record.user, record.dest) == (None, "")


# --- a server, used ---------------------------------------------------------------------------


@contextmanager
def tunnel_to(server: RemoteServer, key: Key = KEY) -> Iterator[ClientTunnel]:
    sock = connect(server.bound)
    with sock:
        yield connect_tunnel(sock, key, Cipher.SECRETBOX)


def ask(tunnel: ClientTunnel, dest: Address) -> TunnelStream:
    tunnel.open(Request(Command.CONNECT, dest))
    return TunnelStream(tunnel, ignore_end)


def echoes(stream: TunnelStream) -> bool:
    stream.write(b"is there an echo?")
    return stream.read() == b"is there an echo?"


def end(stream: TunnelStream) -> None:
    stream.write_eof()
    assert stream.read() == b""
    stream.close()


def is_over(tunnel: ClientTunnel) -> bool:
    """Whether the server has closed it, or does within the test's time."""
    try:
        return wrap_errors((StreamError,), tunnel.receive)() is not None
    finally:
        tunnel.close()


def test_a_tunnel_carries_many_streams_and_leaves_nothing(nothing_left: None) -> None:
    seen = Seen()
    with serving(echo) as echo_at, inbound(observer=seen) as server, tunnel_to(server) as tunnel:
        for _ in range(5):
            stream = ask(tunnel, echo_at)
            assert echoes(stream)
            end(stream)
            record = seen.next()
            assert (record.user, record.dest, record.outcome) == ("alice", str(echo_at), "ok")
            assert (record.up, record.down) == (17, 17)
        assert server.connections == 1
        tunnel.close()
        eventually(lambda: server.connections == 0)


@pytest.mark.parametrize("said", [b"", b"x"])
def test_a_health_check_that_only_connects_is_routine(nothing_left: None, said: bytes) -> None:
    seen = Seen()
    with inbound(observer=seen) as server, connect(server.bound) as sock:
        sock.sendall(said)
        sock.shutdown(std_socket.SHUT_WR)
        record = seen.next()
    assert (record.outcome, record.is_routine) == ("truncated", not said)


def test_a_removed_key_opens_nothing_more_but_its_open_stream_goes_on(nothing_left: None) -> None:
    with serving(echo) as echo_at, inbound(timeouts=Timeouts(handshake=SILENCE)) as server:
        with tunnel_to(server) as tunnel:
            stream = ask(tunnel, echo_at)
            assert echoes(stream)
            server.replace_keys(KeyRing({"alice": OTHER_KEY}))  # the name stays, the key does not
            assert echoes(stream)
            end(stream)
            with pytest.raises(StreamError):
                ask(tunnel, echo_at)
        with pytest.raises(ExitFailed), tunnel_to(server):
            pass
        with tunnel_to(server, OTHER_KEY) as tunnel:
            assert echoes(ask(tunnel, echo_at))


def test_an_idle_tunnel_of_a_removed_key_is_closed_and_those_of_others_are_not(
    nothing_left: None,
) -> None:
    ring = KeyRing({"alice": KEY, "bob": OTHER_KEY})
    with (
        serving(echo) as echo_at,
        inbound(ring) as server,
        tunnel_to(server) as of_alice,
        tunnel_to(server, OTHER_KEY) as of_bob,
    ):
        of_alice.ping()  # both are waited on
        of_bob.ping()
        server.replace_keys(KeyRing({"bob": OTHER_KEY}))
        assert is_over(of_alice)
        assert echoes(ask(of_bob, echo_at))


def test_a_tunnel_whose_key_is_removed_while_it_agrees_carries_nothing(nothing_left: None) -> None:
    with inbound() as server, connect(server.bound) as sock:
        initiator = Initiator(KEY, BOTH)
        hello = initiator.hello(now_ms())
        sock.sendall(hello[:-1])
        eventually(lambda: server.connections == 1)
        gevent.idle()
        server.replace_keys(KeyRing({}))
        sock.sendall(hello[-1:])
        while sock.recv(1000):
            pass
        eventually(lambda: server.connections == 0)


@pytest.mark.parametrize("pinging", [False, True])
def test_an_idle_tunnel_is_closed_when_its_time_is_over_whatever_it_is_pinged(
    pinging: bool, nothing_left: None
) -> None:
    with inbound(timeouts=Timeouts(idle=0.3)) as server:
        began = time.monotonic()
        with tunnel_to(server) as tunnel:
            while pinging:
                try:
                    tunnel.ping()
                except StreamError:
                    break
                gevent.sleep(0.02)  # a client's pause between pings
            assert is_over(tunnel)
        assert time.monotonic() - began > 0.25
        eventually(lambda: server.connections == 0)


def test_a_violation_between_two_streams_closes_the_tunnel_and_is_logged(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gsocks.server"), inbound() as server:
        with tunnel_to(server) as tunnel:
            tunnel.send(Frame.DATA, b"not asked for")
            assert is_over(tunnel)
        eventually(lambda: server.connections == 0)
    assert "a tunnel of key alice" in caplog.text
    assert "frame 0x03 between two streams" in caplog.text


def test_a_request_that_makes_no_sense_is_answered_and_logged(nothing_left: None) -> None:
    seen = Seen()
    with serving(echo) as echo_at, inbound(observer=seen) as server, tunnel_to(server) as tunnel:
        tunnel.send(Frame.OPEN, b"\x77" + echo_at.encode())
        kind, body = tunnel.receive()
        assert (kind, body[0]) == (Frame.OPENED, CommandNotSupported.code)
        tunnel.send(Frame.FIN)
        assert seen.next().outcome == "bad_command"
        tunnel.send(Frame.OPEN, b"\x01\x03\x01 \0\0")
        kind, body = tunnel.receive()
        assert (kind, body[0]) == (Frame.OPENED, BadAddress.code)
        tunnel.send(Frame.FIN)
        assert seen.next().outcome == "bad_address"
        assert echoes(ask(tunnel, echo_at))


def test_a_stream_that_is_given_up_at_either_end_leaves_nothing(nothing_left: None) -> None:
    def slam(sock: socket) -> None:
        sock.recv(1)
        reset(sock)

    with serving(slam) as slamming, inbound() as server, tunnel_to(server) as tunnel:
        stream = ask(tunnel, slamming)
        stream.write(b"x")
        with pytest.raises(StreamReset):
            stream.read()
        stream.close()
        eventually(lambda: server.connections == 0)
    ends: list[str] = []

    def note(sock: socket) -> None:
        try:
            while sock.recv(100):
                pass
            ends.append("end")
        except ConnectionResetError:
            ends.append("reset")

    with serving(note) as noting, inbound() as server, tunnel_to(server) as tunnel:
        stream = ask(tunnel, noting)
        stream.write(b"x")
        stream.abort()
        eventually(lambda: ends == ["reset"])
        eventually(lambda: server.connections == 0)


def test_a_server_that_stops_closes_idle_tunnels_and_lets_streams_end(nothing_left: None) -> None:
    with (
        serving(echo) as echo_at,
        inbound() as server,
        tunnel_to(server) as idle,
        tunnel_to(server) as busy,
    ):
        idle.ping()
        stream = ask(busy, echo_at)
        stopping = gevent.spawn(server.stop, TOO_LONG)
        assert is_over(idle)
        assert echoes(stream)
        end(stream)
        stopping.get()
        assert is_over(busy)


def test_a_server_that_stops_at_once_leaves_no_stranger_behind(nothing_left: None) -> None:
    with inbound(timeouts=Timeouts(handshake=TOO_LONG)) as server:
        waiting = [connect(server.bound) for _ in range(3)]
        waiting[0].sendall(garbage(10))
        waiting[1].sendall(garbage(100))
        eventually(lambda: server.connections == 3)
        gevent.idle()
        server.stop(0)
        assert server.connections == 0
        for sock in waiting:
            sock.close()


def test_a_server_that_stops_waits_for_no_peer_that_has_proved_nothing(nothing_left: None) -> None:
    with inbound(timeouts=Timeouts(handshake=TOO_LONG)) as server:
        waiting = [connect(server.bound) for _ in range(3)]
        waiting[0].sendall(garbage(10))
        waiting[1].sendall(garbage(100))
        waiting[2].shutdown(std_socket.SHUT_WR)
        eventually(lambda: server.connections == 3)
        gevent.idle()
        began = time.monotonic()
        server.stop(TOO_LONG)
        assert time.monotonic() - began < TOO_LONG / 4
        for sock in waiting:
            assert sock.recv(1) == b""
            sock.close()


def test_a_stopped_server_gives_back_what_it_made_itself_and_nothing_else() -> None:
    before = open_descriptors()
    with inbound() as server:
        assert open_descriptors() != before
    assert open_descriptors() == before
    server.stop(0)  # a second time is harmless
    guard = ReplayGuard(started_ms=0)  # shared with other processes, which may still need it
    with inbound(guard=guard):
        pass
    assert guard.admit(bytes(32), now_ms(), KEY.raw())
    guard.close()


def test_an_address_has_as_many_tunnels_as_it_likes_once_they_have_proved_a_key() -> None:
    limits = Limits(connections=100, per_client=2)
    with inbound(limits=limits) as server, ExitStack() as stack:
        for count in range(1, 6):
            stack.enter_context(tunnel_to(server)).ping()
            assert server.connections == count
        # of those who have proved nothing it has no more than before
        strangers = [stack.enter_context(connect(server.bound)) for _ in range(3)]
        assert strangers[0].recv(1) == b""
        assert server.connections == 7


# --- tunnels of one key -----------------------------------------------------------------------


BOTH_KEYS = KeyRing({"alice": KEY, "bob": OTHER_KEY})


@contextmanager
def several_tunnels(
    server: RemoteServer, count: int, key: Key = KEY
) -> Iterator[list[ClientTunnel]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(tunnel_to(server, key)) for _ in range(count)]
        for tunnel in opened:
            tunnel.ping()
        yield opened


def refused_for_the_limit(server: RemoteServer, key: Key = KEY) -> bool:
    """Whether a further tunnel of this key is told that there are too many, and is closed then."""
    with tunnel_to(server, key) as tunnel:
        outcome = wrap_errors((GsocksError,), tunnel.open)(Request(Command.CONNECT, NOWHERE))
        return isinstance(outcome, LimitReached) and is_over(tunnel)


NOWHERE = Address("127.0.0.1", 9)


def test_one_key_has_no_more_than_its_tunnels_and_others_are_served(nothing_left: None) -> None:
    seen = Seen()
    limits = Limits(connections=10, per_key=3, per_client=10)
    with (
        serving(echo) as echo_at,
        inbound(BOTH_KEYS, limits=limits, observer=seen) as server,
        several_tunnels(server, 3) as tunnels_of_alice,
    ):
        assert refused_for_the_limit(server)
        record = seen.next()
        assert (record.outcome, record.user) == ("limit", "alice")
        assert record.detail == "key alice has 3 tunnels open already"
        with tunnel_to(server, OTHER_KEY) as tunnel:
            assert echoes(ask(tunnel, echo_at))
        seen.next()
        tunnels_of_alice.pop().close()
        eventually(lambda: server.connections == 2)
        with tunnel_to(server) as tunnel:
            assert echoes(ask(tunnel, echo_at))


def test_one_key_of_several_has_half_of_the_tunnels() -> None:
    limits = Limits(connections=6)
    with inbound(BOTH_KEYS, limits=limits) as server, several_tunnels(server, 3):
        assert server.context.admission.handshakes == 0
        assert refused_for_the_limit(server)


def test_the_only_key_has_all_tunnels() -> None:
    with inbound(RING, limits=Limits(connections=6)) as server, several_tunnels(server, 6):
        assert server.context.admission.handshakes == 0


def test_a_tunnel_too_many_counts_as_a_handshake_and_has_no_longer() -> None:
    limits, timeouts = Limits(per_key=1), Timeouts(handshake=0.2)
    with (
        inbound(limits=limits, timeouts=timeouts) as server,
        several_tunnels(server, 1) as tunnels,
        tunnel_to(server) as surplus,
    ):
        surplus.ping()
        assert server.context.admission.handshakes == 1
        assert is_over(surplus)
        eventually(lambda: server.connections == 1)
        tunnels[0].ping()


def test_a_server_that_stops_waits_for_no_tunnel_too_many(nothing_left: None) -> None:
    with (
        inbound(limits=Limits(per_key=1)) as server,
        several_tunnels(server, 1),
        tunnel_to(server) as surplus,
    ):
        surplus.ping()
        server.stop(TOO_LONG)
        assert is_over(surplus)
