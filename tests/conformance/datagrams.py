"""UDP associations."""

from __future__ import annotations

import os
import socket

from tests.conformance.cases import Cases, Failed, NotTried
from tests.conformance.destinations import LOOPBACK
from tests.conformance.trial import NO_ADDRESS, UDP_ASSOCIATE, Trial, address, name
from tests.conformance.wire import Tunnel, named
from tests.support.other_end import (
    DATA,
    DATAGRAM,
    FIN,
    OPEN,
    OPENED,
    PAD,
    PING,
    RESET,
    read_datagram,
)

associations = Cases[Trial]("associations")


def _association(trial: Trial, dest: bytes = NO_ADDRESS, tunnel: Tunnel | None = None) -> Tunnel:
    """Raises NotTried."""
    tunnel = tunnel or trial.tunnel()
    tunnel.send((OPEN, bytes((UDP_ASSOCIATE,)) + dest))
    answer = tunnel.expect(OPENED)
    code = tunnel.read_answer(answer).code
    if code == 0x07:
        raise NotTried("the server does not serve UDP_ASSOCIATE")
    if code:
        raise Failed("OPENED with code 0x00", named(OPENED, answer))
    return tunnel


def _to(sock: socket.socket, payload: bytes, host: str = LOOPBACK) -> tuple[int, bytes]:
    """A DATAGRAM to that socket."""
    return DATAGRAM, address(host, sock.getsockname()[1]) + payload


def _come(sock: socket.socket, payload: bytes) -> tuple[str, int]:
    """That this datagram comes next; where from."""
    try:
        seen, source = sock.recvfrom(65536)
    except TimeoutError:
        raise Failed("a datagram", "none") from None
    if seen != payload:
        raise Failed(f"a datagram of {len(payload)} bytes", f"one of {len(seen)}")
    return str(source[0]), int(source[1])


def _expect_from(tunnel: Tunnel, sock: socket.socket, payload: bytes) -> None:
    """That this comes from that socket next."""
    body = tunnel.expect(DATAGRAM)
    try:
        host, port, seen = read_datagram(body)
    except ValueError as error:
        raise Failed("an address and a payload", str(error)) from None
    wanted = sock.getsockname()
    if (host, port, seen) != (*wanted, payload):
        raise Failed(
            f"{len(payload)} bytes from {wanted[0]}, port {wanted[1]}",
            f"{len(seen)} bytes from {host}, port {port}",
        )


@associations.each(no_payload=0, one_byte=1, **{"1,200 bytes": 1200, "60,000 bytes": 60_000})
def a_datagram_goes_and_its_answer_comes_with(trial: Trial, size: int) -> None:
    there, payload = trial.udp(), os.urandom(size)
    tunnel = _association(trial)
    tunnel.send(_to(there, payload))
    there.sendto(payload, _come(there, payload))
    _expect_from(tunnel, there, payload)


@associations.each(
    **{
        "a denied address": address(LOOPBACK, 0),
        "a name that is none": name("no name", 0),
        "an empty name": name("", 0),
        "a name that does not resolve": name("missing.invalid", 7),
        "an IPv6 address": b"\x04" + bytes(18),
    }
)
def the_destination_of_open_is_ignored_if_it_is(trial: Trial, dest: bytes) -> None:
    _association(trial, dest)


@associations
def a_destination_that_ends_early_closes_the_tunnel_all_the_same(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.send((OPEN, bytes((UDP_ASSOCIATE,)) + NO_ADDRESS[:-1]))
    tunnel.expect_given_up()


@associations
def a_destination_may_be_a_name(trial: Trial) -> None:
    there = trial.udp()
    tunnel = _association(trial)
    tunnel.send((DATAGRAM, name(LOOPBACK, there.getsockname()[1]) + b"question"))
    there.sendto(b"answer", _come(there, b"question"))
    _expect_from(tunnel, there, b"answer")


@associations
def what_is_no_datagram_is_dropped_and_the_association_goes_on(trial: Trial) -> None:
    there = trial.udp()
    tunnel = _association(trial)
    _, good = _to(there, b"question")
    for nonsense in (
        b"?",
        b"\x07" + good,
        good[:6],
        name("no name") + b"question",
        name("") + b"question",
        b"\x03\xff" + bytes(100),
        b"\x04" + bytes(17),
    ):
        tunnel.send((DATAGRAM, nonsense))
    tunnel.send((DATAGRAM, good))
    there.sendto(b"answer", _come(there, b"question"))
    _expect_from(tunnel, there, b"answer")


@associations
def all_datagrams_leave_from_one_port(trial: Trial) -> None:
    one, two = trial.udp(), trial.udp()
    tunnel = _association(trial)
    tunnel.send(_to(one, b"one"), _to(two, b"two"))
    ports = {_come(one, b"one")[1], _come(two, b"two")[1]}
    if len(ports) != 1:
        raise Failed("one port", f"{len(ports)}")


@associations
def answers_from_another_port_of_the_address_come_too(trial: Trial) -> None:
    there, beside = trial.udp(), trial.udp()
    tunnel = _association(trial)
    tunnel.send(_to(there, b"question"))
    beside.sendto(b"answer", _come(there, b"question"))
    _expect_from(tunnel, beside, b"answer")


@associations
def datagrams_from_an_address_that_was_not_sent_to_do_not_come(trial: Trial) -> None:
    there, stranger = trial.udp(), trial.udp("127.0.0.2")
    tunnel = _association(trial)
    tunnel.send(_to(there, b"question"))
    source = _come(there, b"question")
    stranger.sendto(b"not asked for", source)
    there.sendto(b"answer", source)
    _expect_from(tunnel, there, b"answer")


@associations
def two_associations_do_not_get_each_others_datagrams(trial: Trial) -> None:
    there = trial.udp()
    tunnels = [_association(trial) for _ in range(2)]
    for number, tunnel in enumerate(tunnels):
        payload = b"question %d" % number
        tunnel.send(_to(there, payload))
        there.sendto(payload, _come(there, payload))
    for number, tunnel in enumerate(tunnels):
        _expect_from(tunnel, there, b"question %d" % number)


@associations
def fin_ends_an_association_as_a_whole_and_the_tunnel_goes_on(trial: Trial) -> None:
    tunnel = _association(trial)
    for _ in range(2):
        tunnel.send((FIN, b""))
        tunnel.expect(FIN, b"")
        tunnel.expect_alive()
        _association(trial, tunnel=tunnel)


@associations
def padding_inside_an_association_is_ignored(trial: Trial) -> None:
    there = trial.udp()
    tunnel = _association(trial)
    tunnel.send((PAD, b"x"), (0x80, b"y"), _to(there, b"question"))
    _come(there, b"question")


@associations.each(
    DATA=(DATA, b"x"),
    PING=(PING, b""),
    DATAGRAM_without_a_body=(DATAGRAM, b""),
    FIN_with_a_body=(FIN, b"x"),
    RESET=(RESET, b""),
)
def an_association_and_its_tunnel_are_ended_by(trial: Trial, frame: tuple[int, bytes]) -> None:
    tunnel = _association(trial)
    tunnel.send(frame)
    tunnel.expect_given_up()
