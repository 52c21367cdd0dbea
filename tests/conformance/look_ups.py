"""What a server answers to look-ups, which are a feature."""

from __future__ import annotations

import ipaddress

from tests.conformance.cases import Cases, Failed, NotTried
from tests.conformance.destinations import LOOPBACK
from tests.conformance.trial import RESOLVE, RESOLVE_PTR, Trial, address, name
from tests.conformance.wire import Tunnel, named
from tests.support.other_end import DATA, FIN, OPEN, OPENED

look_ups = Cases[Trial]("lookups")

_BOTH = {"RESOLVE": RESOLVE, "RESOLVE_PTR": RESOLVE_PTR}


def _look_up(tunnel: Tunnel, body: bytes) -> tuple[int, str, int]:
    """The answer; the client's direction has ended then."""
    tunnel.send((OPEN, body))
    answer = tunnel.read_answer(tunnel.expect(OPENED))
    tunnel.send((FIN, b""))
    tunnel.expect_alive()
    return answer


def _expect_code(tunnel: Tunnel, body: bytes, *codes: int) -> None:
    code = _look_up(tunnel, body)[0]
    if code not in codes:
        wanted = " or ".join(f"{each:#04x}" for each in codes)
        raise Failed(f"OPENED with code {wanted}", f"{code:#04x}")


@look_ups.each(**_BOTH)
def code_0x07_answers_where_the_feature_was_not_chosen(trial: Trial, command: int) -> None:
    _expect_code(trial.tunnel(), bytes((command,)) + address("192.0.2.1", 0), 0x07)


@look_ups
def a_name_has_an_address_and_the_port_is_0(trial: Trial) -> None:
    code, host, port = _look_up(trial.looking_up(), bytes((RESOLVE,)) + name("localhost", 42))
    if code:
        raise NotTried(f"the server answers {code:#04x} for localhost")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise Failed("an address", host) from None
    if port:
        raise Failed("port 0", f"port {port}")


@look_ups
def an_address_is_its_own_answer(trial: Trial) -> None:
    trial.need_own_machine()
    code, *found = _look_up(trial.looking_up(), bytes((RESOLVE,)) + address(LOOPBACK, 0))
    if (code, *found) != (0, LOOPBACK, 0):
        raise Failed(f"{LOOPBACK}, port 0", f"code {code:#04x}, {found[0]}, port {found[1]}")


@look_ups
def a_name_that_does_not_resolve_is_told_as_0x14(trial: Trial) -> None:
    _expect_code(trial.looking_up(), bytes((RESOLVE,)) + name("missing.invalid", 0), 0x14, 0x04)


@look_ups
def the_name_of_a_name_is_refused_as_0x01(trial: Trial) -> None:
    _expect_code(trial.looking_up(), bytes((RESOLVE_PTR,)) + name("example.com", 0), 0x01)


@look_ups
def an_open_that_ends_early_closes_the_tunnel(trial: Trial) -> None:
    tunnel = trial.looking_up()
    tunnel.send((OPEN, bytes((RESOLVE,)) + name("example.com", 0)[:-1]))
    tunnel.expect_given_up()


@look_ups
def what_stands_between_open_and_fin_is_discarded_and_a_stream_may_follow(trial: Trial) -> None:
    tunnel = trial.looking_up()
    tunnel.send((OPEN, bytes((RESOLVE,)) + name("localhost", 0)), (DATA, b"early"), (FIN, b""))
    seen = tunnel.expect(OPENED)
    if tunnel.read_answer(seen).code not in (0x00, 0x02, 0x04, 0x14):
        raise Failed("an address of localhost", named(OPENED, seen))
    trial.echo(tunnel)
    tunnel.send((DATA, b"carried"), (FIN, b""))
    tunnel.expect_data(b"carried")
    tunnel.expect(FIN, b"")
