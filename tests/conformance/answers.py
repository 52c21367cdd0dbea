"""What a server answers to an OPEN."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from tests.conformance.cases import Cases, Failed, NotTried
from tests.conformance.destinations import LOOPBACK
from tests.conformance.trial import BIND, CONNECT, UDP_ASSOCIATE, Trial, address, name
from tests.conformance.wire import Bound, Tunnel, named
from tests.support.other_end import DATA, FIN, OPEN, OPENED

answers = Cases[Trial]("answers")

_SOMEWHERE = address("192.0.2.1", 80)
_NO_NAME = name("no name")


def _expect_refusal(trial: Trial, body: bytes, *codes: int) -> None:
    """That one of these codes is the answer, and that the tunnel goes on."""
    tunnel = trial.tunnel()
    tunnel.send((OPEN, body))
    seen = tunnel.expect(OPENED)
    if tunnel.read_answer(seen).code not in codes:
        wanted = " or ".join(f"{code:#04x}" for code in codes)
        raise Failed(f"OPENED with code {wanted}", named(OPENED, seen))
    tunnel.send((FIN, b""))
    tunnel.expect_alive()


@answers.each(**{"0x00": 0x00, "0x04": 0x04, "0xFF": 0xFF})
def code_0x07_answers_the_unknown_command(trial: Trial, command: int) -> None:
    _expect_refusal(trial, bytes((command,)) + _SOMEWHERE, 0x07)


@answers.each(**{"0x00": 0x00, "0x02": 0x02, "0x05": 0x05})
def code_0x18_answers_the_unknown_address_type(trial: Trial, kind: int) -> None:
    _expect_refusal(trial, bytes((CONNECT, kind)) + bytes(20), 0x18)


@answers.each(BIND=BIND, UDP_ASSOCIATE=UDP_ASSOCIATE, an_unknown_command=0x77)
def code_0x18_answers_an_unknown_address_type_of(trial: Trial, command: int) -> None:
    _expect_refusal(trial, bytes((command, 0x05)), 0x18)


@answers.each(
    **{
        "of length 0": "",
        "with a blank": "no name",
        "with a slash": "a/b",
        "with a NUL": "a\0b",
        "with an empty label": "a..b",
        "that begins with a dot": ".a",
        "of hyphens alone": "-",
        "127.1": "127.1",
        "0x7f000001": "0x7f000001",
        "that ends in a number": "example.5",
        "fe80::1%lo": "fe80::1%lo",
    }
)
def code_0x01_answers_the_name(trial: Trial, text: str) -> None:
    _expect_refusal(trial, bytes((CONNECT,)) + name(text), 0x01)


@answers
def an_invalid_name_goes_before_an_unknown_command(trial: Trial) -> None:
    _expect_refusal(trial, b"\x77" + _NO_NAME, 0x01)


@answers
def a_connect_to_port_0_is_refused(trial: Trial) -> None:
    _expect_refusal(trial, bytes((CONNECT,)) + address("192.0.2.1", 0), 0x01, 0x02)


@answers
def an_open_that_ends_early_anywhere_closes_the_tunnel(trial: Trial) -> None:
    for whole in (_SOMEWHERE, name("example.com"), address("2001:db8::1", 80)):
        # the last of them lacks the last byte of the port
        for count in (0, 1, 2, 3, 4, len(whole) - 1, len(whole)):
            tunnel = trial.tunnel()
            tunnel.send((OPEN, (bytes((CONNECT,)) + whole)[:count]))
            tunnel.expect_given_up()


@answers
def an_unknown_command_that_ends_early_closes_the_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.send((OPEN, b"\x77" + _NO_NAME[:-1]))
    tunnel.expect_given_up()


@answers.each(none=0, **{"127 bytes": 127, "60,000 bytes": 60_000})
def behind_the_address_of_open_there_may_be(trial: Trial, size: int) -> None:
    _expect_refusal(trial, bytes((CONNECT,)) + _NO_NAME + os.urandom(size), 0x01)


@answers
def nothing_listens_there_is_told_as_0x05(trial: Trial) -> None:
    place = trial.nothing_listens()
    _expect_refusal(trial, bytes((CONNECT,)) + address(*place), 0x05)


@answers
def a_name_that_does_not_resolve_is_told_as_0x14(trial: Trial) -> None:
    # by its low nibble, where the server's resolver tells no more
    _expect_refusal(trial, bytes((CONNECT,)) + name("missing.invalid"), 0x14, 0x04)


@answers
def after_refusals_of_all_kinds_a_stream_is_carried_in_the_same_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    for body, code in (
        (bytes((CONNECT,)) + _NO_NAME, 0x01),
        (b"\x77" + _SOMEWHERE, 0x07),
        (bytes((CONNECT, 0x05)), 0x18),
    ):
        tunnel.send((OPEN, body), (DATA, b"early"), (FIN, b""))
        tunnel.expect_opened(code)
    trial.echo(tunnel)
    tunnel.send((DATA, b"carried"), (FIN, b""))
    tunnel.expect_data(b"carried")
    tunnel.expect(FIN, b"")


@answers.each(
    **{
        "127.0.0.1 as a name": lambda port: name("127.0.0.1", port),
        "::ffff:127.0.0.1": lambda port: b"\x04" + _mapped() + port.to_bytes(2, "big"),
        "::ffff:127.0.0.1 as a name": lambda port: name("::ffff:127.0.0.1", port),
    }
)
def the_loopback_address_is_meant_by(trial: Trial, form: Callable[[int], bytes]) -> None:
    listener = trial.listener()
    tunnel = trial.tunnel()
    tunnel.send((OPEN, bytes((CONNECT,)) + form(listener.port)))
    tunnel.expect_opened()
    listener.accept().sock.close()


def _mapped() -> bytes:
    return socket.inet_pton(socket.AF_INET6, f"::ffff:{LOOPBACK}")


@answers.each(upper_case="LOCALHOST", a_dot_at_its_end="localhost.")
def a_name_may_have(trial: Trial, text: str) -> None:
    listener = trial.listener()
    codes = []
    for spelling in ("localhost", text):
        tunnel = trial.tunnel()
        tunnel.send((OPEN, bytes((CONNECT,)) + name(spelling, listener.port)))
        codes.append(tunnel.read_answer(tunnel.expect(OPENED)).code)
    if codes[0]:
        raise NotTried(f"the server answers {codes[0]:#04x} for localhost")
    if codes[1]:
        raise Failed("the same destination", f"OPENED with code {codes[1]:#04x}")


@answers
def opened_tells_the_address_from_which_the_destination_was_reached(trial: Trial) -> None:
    listener = trial.listener()
    tunnel = trial.tunnel()
    tunnel.send((OPEN, bytes((CONNECT,)) + address(LOOPBACK, listener.port)))
    bound = tunnel.expect_opened()
    with listener.accept().sock as sock:
        seen = sock.getpeername()
    if (bound.host, bound.port) != seen:
        raise Failed(f"{seen[0]}, port {seen[1]}", f"{bound.host}, port {bound.port}")


# --- BIND -----------------------------------------------------------------------------------------

bind = Cases[Trial]("bind")


def _awaiting(trial: Trial, expected: bytes) -> tuple[Tunnel, Bound]:
    """A tunnel in which a peer is awaited, and where.  Raises NotTried."""
    trial.need_own_machine()
    tunnel = trial.tunnel()
    tunnel.send((OPEN, bytes((BIND,)) + expected))
    answer = tunnel.expect(OPENED)
    bound = tunnel.read_answer(answer)
    if bound.code == 0x07:
        raise NotTried("the server does not serve BIND")
    if bound.code:
        raise Failed("OPENED with code 0x00", named(OPENED, answer))
    return tunnel, bound


@bind
def a_peer_is_awaited_and_both_talk(trial: Trial) -> None:
    tunnel, place = _awaiting(trial, address(LOOPBACK, 0))
    peer = trial.connect((place.host, place.port))
    came = tunnel.expect_opened()
    if (came.host, came.port) != peer.sock.getsockname():
        raise Failed("the address of the peer", f"{came.host}, port {came.port}")
    peer.send(b"from the peer")
    tunnel.expect_data(b"from the peer")
    tunnel.send((DATA, b"from the client"), (FIN, b""))
    peer.expect(b"from the client")
    peer.expect_end("EOF")
    peer.end()
    tunnel.expect(FIN, b"")
    tunnel.expect_alive()


@bind
def the_server_listens_at_its_address_towards_the_peer(trial: Trial) -> None:
    _, place = _awaiting(trial, address(LOOPBACK, 20))
    if place.host != LOOPBACK or not place.port:
        raise Failed(f"{LOOPBACK} and a port", f"{place.host}, port {place.port}")


@bind
def the_port_of_the_expected_peer_has_no_meaning(trial: Trial) -> None:
    tunnel, place = _awaiting(trial, address(LOOPBACK, 20))
    trial.connect((place.host, place.port))
    tunnel.expect_opened()


@bind
def what_the_client_sends_while_it_waits_is_delivered(trial: Trial) -> None:
    tunnel, place = _awaiting(trial, address(LOOPBACK, 0))
    tunnel.send((DATA, b"early"))
    peer = trial.connect((place.host, place.port))
    tunnel.expect_opened()
    tunnel.send((DATA, b" and late"), (FIN, b""))
    peer.expect(b"early and late")
    peer.expect_end("EOF")


@bind
def another_peer_is_reset_and_the_expected_one_is_awaited_on(trial: Trial) -> None:
    tunnel, place = _awaiting(trial, address("127.0.0.2", 0))
    for _ in range(2):
        trial.connect((place.host, place.port), source="127.0.0.3").expect_end("RST")
    trial.connect((place.host, place.port), source="127.0.0.2")
    came = tunnel.expect_opened()
    if came.host != "127.0.0.2":
        raise Failed("127.0.0.2", came.host)


@bind
def a_client_that_stops_waiting_ends_the_listening(trial: Trial) -> None:
    tunnel, place = _awaiting(trial, address(LOOPBACK, 0))
    tunnel.connection.sock.close()
    try:
        trial.connect((place.host, place.port)).expect_end("RST", "EOF")
    except ConnectionRefusedError:
        pass  # nothing listens any more; what the kernel takes until then must lead nowhere
