"""Streams: their data and their ends, and what may not stand inside them."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.conformance.cases import Cases, Failed
from tests.conformance.trial import Trial, name, open_to
from tests.conformance.tunnels import BODIES
from tests.conformance.wire import Connection, Ended, Tunnel, named
from tests.support.other_end import (
    DATA,
    DATAGRAM,
    FIN,
    OPEN,
    OPENED,
    PAD,
    PING,
    PONG,
    RESET,
)

streams = Cases[Trial]("streams")

IN_A_STREAM = {OPEN: b"\x01\x01\x7f\0\0\x01\0\x50", **BODIES}


def _expect_reset(destination: Connection, expected: str) -> None:
    data, how = destination.to_its_end()
    if how != "RST":
        raise Failed(expected, f"{len(data)} bytes and {how}")


@streams
def data_is_delivered_in_both_directions(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((DATA, b"question"))
    destination.expect(b"question")
    destination.send(b"answer")
    tunnel.expect_data(b"answer")


@streams.each(one_byte=1, **{"65,536 bytes": 65536})
def a_frame_may_carry(trial: Trial, size: int) -> None:
    tunnel = trial.echo()
    data = os.urandom(size)
    tunnel.send((DATA, data))
    tunnel.expect_data(data)


@streams
def a_megabyte_comes_back_as_it_was_sent(trial: Trial) -> None:
    tunnel = trial.echo()
    data = os.urandom(1_000_000)
    came = b""
    for start in range(0, len(data), 50_000):
        tunnel.send((DATA, data[start : start + 50_000]))
        while len(came) < start:  # an echo may not read on before it is read from
            came += tunnel.expect(DATA)
    tunnel.send((FIN, b""))
    while len(came) < len(data):
        came += tunnel.expect(DATA)
    tunnel.expect(FIN, b"")
    if came != data:
        raise Failed("what was sent", "other bytes")


@streams
def the_end_of_the_clients_direction_leaves_the_other_open(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((DATA, b"question"), (FIN, b""))
    destination.expect(b"question")
    destination.expect_end("EOF")
    for _ in range(3):
        destination.send(b"answer")
        tunnel.expect_data(b"answer")
    destination.end()
    tunnel.expect(FIN, b"")
    tunnel.expect_alive()


@streams
def the_end_of_the_destinations_direction_leaves_the_other_open(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    destination.send(b"greeting")
    destination.end()
    tunnel.expect_data(b"greeting")
    tunnel.expect(FIN, b"")
    for _ in range(3):
        tunnel.send((DATA, b"more"))
        destination.expect(b"more")
    tunnel.send((FIN, b""))
    destination.expect_end("EOF")
    tunnel.expect_alive()


@streams
def early_data_behind_open_is_delivered(trial: Trial) -> None:
    tunnel = trial.tunnel()
    place = trial.target.echo
    tunnel.send(open_to(*place), (DATA, b"early"), (FIN, b""))
    tunnel.expect_opened()
    tunnel.expect_data(b"early")
    tunnel.expect(FIN, b"")
    tunnel.expect_alive()


@streams
def the_next_open_may_stand_right_behind_the_fin_of_a_refused_one(trial: Trial) -> None:
    tunnel = trial.tunnel()
    refused = (OPEN, b"\x01" + name("no name"))
    tunnel.send(*[refused, (DATA, b"discarded"), (PAD, b"x"), (0x80, b"y"), (FIN, b"")] * 3)
    for _ in range(3):
        tunnel.expect_opened(0x01)
    tunnel.expect_alive()


@streams
def reset_behind_a_refusal_ends_the_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.send((OPEN, b"\x01" + name("no name")), (RESET, b""))
    tunnel.expect_opened(0x01)
    tunnel.expect_given_up()


@streams.each(OPEN=OPEN, PING=PING, DATAGRAM=DATAGRAM, OPENED=OPENED)
def behind_a_refusal_and_before_fin_the_tunnel_is_closed_by(trial: Trial, kind: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((OPEN, b"\x01" + name("no name")))
    tunnel.expect_opened(0x01)
    tunnel.send((kind, IN_A_STREAM.get(kind, b"")))
    tunnel.expect_given_up()


@streams.each(
    OPEN=OPEN,
    OPENED=OPENED,
    PING=PING,
    PONG=PONG,
    DATAGRAM=DATAGRAM,
    an_unknown_type=0x0A,
)
def inside_a_stream_the_tunnel_is_closed_and_the_destination_reset_by(
    trial: Trial, kind: int
) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((kind, IN_A_STREAM.get(kind, b"")))
    tunnel.expect_given_up()
    _expect_reset(destination, "a reset of the destination")


@streams.each(DATA_without_a_body=(DATA, b""), FIN_with_a_body=(FIN, b"x"))
def the_tunnel_is_closed_by(trial: Trial, frame: tuple[int, bytes]) -> None:
    tunnel, destination = trial.stream()
    tunnel.send(frame)
    tunnel.expect_given_up()
    _expect_reset(destination, "a reset of the destination")


@streams
def padding_inside_a_stream_is_ignored(trial: Trial) -> None:
    tunnel = trial.echo()
    for number in range(3):
        data = b"data %d" % number
        tunnel.send((PAD, os.urandom(100)), (0x80, b""), (0xFF, os.urandom(300)), (DATA, data))
        tunnel.expect_data(data)


@streams
def a_client_may_pad_behind_its_fin(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((FIN, b""), (PAD, b"x"), (0x80, b"y"))
    destination.expect_end("EOF")
    tunnel.send((PAD, b""))
    destination.send(b"answer")
    tunnel.expect_data(b"answer")
    destination.end()
    tunnel.expect(FIN, b"")
    tunnel.expect_alive()


@streams.each(DATA=DATA, RESET=RESET, FIN=FIN, an_unknown_type=0x0A)
def behind_the_clients_fin_the_tunnel_is_not_used_again_after(trial: Trial, kind: int) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((FIN, b""), (kind, IN_A_STREAM.get(kind, b"")))
    destination.expect_end("EOF", "RST")
    try:
        destination.end()
    except Ended:
        pass  # the server has noticed it already
    # an end that reads nothing behind FIN notices it when both directions have ended
    kind_seen, body = _seen_behind(tunnel, FIN)
    if kind_seen is not None:
        raise Failed("the end of the tunnel", named(kind_seen, body))


def _seen_behind(tunnel: Tunnel, *expected: int) -> tuple[int | None, bytes]:
    """The first frame that is none of these, and no RESET; None if the tunnel ends instead."""
    try:
        while True:
            kind, body = tunnel.receive()
            if kind not in (*expected, RESET):
                return kind, body
    except Ended:
        return None, b""


@streams
def reset_resets_the_destination_and_ends_the_tunnel(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((DATA, b"before"), (RESET, b""))
    _expect_reset(destination, "a reset of the destination")
    tunnel.expect_given_up()


@streams
def reset_may_have_a_body(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((RESET, b"ignored"))
    _expect_reset(destination, "a reset of the destination")
    tunnel.expect_given_up()


@streams
def a_reset_of_the_destination_comes_as_reset_and_not_as_fin(trial: Trial) -> None:
    tunnel, destination = trial.stream()
    destination.reset()
    try:
        kind, body = tunnel.receive()
    except Ended as ended:
        if str(ended) == "RST":
            return  # by which RESET may be overtaken
        raise Failed("RESET", str(ended)) from None
    if kind != RESET:
        raise Failed("RESET", named(kind, body))
    tunnel.expect_given_up()


@streams.each(EOF=Connection.end, RST=Connection.reset)
def the_destination_is_reset_if_the_tunnel_ends_inside_a_stream_by(
    trial: Trial, end: Callable[[Connection], None]
) -> None:
    tunnel, destination = trial.stream()
    tunnel.send((DATA, b"before"))
    destination.expect(b"before")
    end(tunnel.connection)
    _expect_reset(destination, "a reset of the destination")
