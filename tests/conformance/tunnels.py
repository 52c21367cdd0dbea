"""Boxes and frames between two streams, and how many of them."""

from __future__ import annotations

import os

from tests.conformance.cases import Cases, Failed
from tests.conformance.trial import Trial, name, open_to
from tests.conformance.wire import Tunnel
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

boxes = Cases[Trial]("boxes")


def _pinged(count: int, tunnel: Tunnel) -> None:
    for _ in range(count):
        tunnel.expect_alive()


@boxes.each(header=3, tag=19)
def a_flipped_bit_in_a_box_ends_the_tunnel_in_its(trial: Trial, position: int) -> None:
    tunnel = trial.tunnel()
    sealed = bytearray(tunnel.sealed((PING, b"")))
    sealed[position] ^= 1
    tunnel.connection.send(bytes(sealed))
    tunnel.expect_given_up()


@boxes
def a_flipped_bit_in_a_body_ends_the_tunnel_and_nothing_is_done(trial: Trial) -> None:
    listener = trial.listener()
    tunnel = trial.tunnel()
    sealed = bytearray(tunnel.sealed(open_to("127.0.0.1", listener.port)))
    sealed[-1] ^= 1
    tunnel.connection.send(bytes(sealed))
    tunnel.expect_given_up()
    if listener.was_asked(0.2):
        raise Failed("no connection to the destination", "one")


@boxes
def a_box_that_comes_twice_ends_the_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    sealed = tunnel.sealed((PING, b""))
    tunnel.connection.send(sealed)
    tunnel.expect(PONG)
    tunnel.connection.send(sealed)
    tunnel.expect_given_up()


@boxes
def a_box_that_is_left_out_ends_the_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.sealed((PAD, b""))
    tunnel.send((PING, b""))
    tunnel.expect_given_up()


@boxes
def two_boxes_in_the_wrong_order_end_the_tunnel(trial: Trial) -> None:
    tunnel = trial.tunnel()
    first, second = tunnel.sealed((PAD, b"")), tunnel.sealed((PAD, b""))
    tunnel.connection.send(second + first)
    tunnel.expect_given_up()


@boxes
def what_stands_behind_a_hello_is_the_first_box_and_ends_the_tunnel(trial: Trial) -> None:
    connection = trial.connect()
    connection.send(trial.hello() + os.urandom(20))
    reply, how = connection.to_its_end()
    if reply and not 67 <= len(reply) <= 322:  # the end may overtake it
        raise Failed("a reply and the end, or the end alone", f"{len(reply)} bytes and {how}")


@boxes
def frames_may_come_byte_by_byte(trial: Trial) -> None:
    tunnel = trial.tunnel()
    for byte in tunnel.sealed((PAD, b"abc"), (PING, b"")):
        tunnel.connection.send(bytes((byte,)))
    tunnel.expect(PONG)


@boxes
def several_frames_may_come_at_once(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.send(*[(PING, b"")] * 3)
    for _ in range(3):
        tunnel.expect(PONG)


@boxes
def the_nonce_counts_beyond_one_byte_under_secretbox(trial: Trial) -> None:
    _pinged(300, trial.tunnel())


@boxes
def the_nonce_counts_beyond_one_byte_under_aegis256(trial: Trial) -> None:
    _pinged(300, trial.aegis_tunnel())


@boxes
def a_stream_is_carried_under_aegis256(trial: Trial) -> None:
    tunnel = trial.echo(trial.aegis_tunnel())
    data = os.urandom(100_000)
    tunnel.send((DATA, data[:65536]), (DATA, data[65536:]), (FIN, b""))
    tunnel.expect_data(data)
    tunnel.expect(FIN, b"")


# --- frames ---------------------------------------------------------------------------------------

frames = Cases[Trial]("frames")

BODIES = {OPENED: b"\0\x01" + bytes(6), DATA: b"x", DATAGRAM: b"\x01" + bytes(6) + b"x"}


@frames.each(no_body=0, one_byte=1, **{"127 bytes": 127, "65,536 bytes": 65536})
def ping_is_answered_by_pong_if_it_has(trial: Trial, size: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((PING, bytes(size)))
    body = tunnel.expect(PONG)
    if len(body) > 127 or any(body):
        raise Failed("PONG with 0 to 127 zeros", f"{len(body)} bytes")


@frames.each(no_body=0, one_byte=1, **{"65,536 bytes": 65536})
def pad_is_ignored_between_streams_if_it_has(trial: Trial, size: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((PAD, os.urandom(size)))
    tunnel.expect_alive()


@frames.each(**{"0x80": 0x80, "0xC1": 0xC1, "0xFF": 0xFF})
def a_type_that_is_skipped_is_ignored_between_streams(trial: Trial, kind: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((kind, b""), (kind, os.urandom(1000)))
    tunnel.expect_alive()


@frames.each(**{"0x00": 0x00, "0x0A": 0x0A, "0x7F": 0x7F})
def an_unknown_type_closes_the_tunnel(trial: Trial, kind: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((kind, b""))
    tunnel.expect_given_up()


@frames.each(OPENED=OPENED, DATA=DATA, FIN=FIN, RESET=RESET, PONG=PONG, DATAGRAM=DATAGRAM)
def between_streams_the_tunnel_is_closed_by(trial: Trial, kind: int) -> None:
    tunnel = trial.tunnel()
    tunnel.send((kind, BODIES.get(kind, b"")))
    tunnel.expect_given_up()


@frames.each(**{"65,537": 65537, "the most that a header can have": 0xFFFFFF})
def before_its_body_comes_a_frame_is_refused_whose_length_is(trial: Trial, size: int) -> None:
    tunnel = trial.tunnel()
    header = bytes((PAD,)) + size.to_bytes(3, "big")
    tunnel.connection.send(tunnel.sealing.seal(header))
    tunnel.expect_given_up()


@frames
def an_end_between_two_streams_is_met_by_an_end(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.expect_alive()
    tunnel.connection.end()
    tunnel.expect_given_up()


@frames
def an_end_in_the_middle_of_a_frame_is_met_by_an_end(trial: Trial) -> None:
    tunnel = trial.tunnel()
    tunnel.connection.send(tunnel.sealed((PING, b""))[:-1])
    tunnel.connection.end()
    tunnel.expect_given_up()


# --- bounds ---------------------------------------------------------------------------------------

bounds = Cases[Trial]("bounds")


@bounds.each(of_PADs=(PAD, PAD), of_skipped_types=(0x80, 0xFF), of_both=(PAD, 0x90))
def no_more_than_256_may_come_in_a_row(trial: Trial, kinds: tuple[int, int]) -> None:
    tunnel = trial.tunnel()
    for _ in range(2):
        tunnel.send(*[(kind, b"") for kind in kinds] * 128)
        tunnel.expect_alive()
    tunnel.send(*[(kind, b"") for kind in kinds] * 128)
    tunnel.send((PAD, b""))
    tunnel.expect_given_up()


@bounds
def no_more_than_1024_pings_may_come_between_two_streams(trial: Trial) -> None:
    tunnel = trial.tunnel()
    _pinged(1024, tunnel)
    tunnel.send((PING, b""))
    tunnel.expect_given_up()


@bounds
def pings_are_counted_anew_behind_a_stream(trial: Trial) -> None:
    tunnel = trial.tunnel()
    _pinged(1024, tunnel)
    tunnel.send((OPEN, b"\x01" + name("no name")))
    tunnel.expect_opened(0x01)
    tunnel.send((FIN, b""))
    _pinged(1024, tunnel)
    tunnel.send((PING, b""))
    tunnel.expect_given_up()


@bounds
def up_to_20_streams_are_carried_one_after_the_other(trial: Trial) -> None:
    tunnel = trial.tunnel()
    for number in range(20):
        data = b"stream %d" % number
        trial.echo(tunnel)
        tunnel.send((DATA, data), (FIN, b""))
        tunnel.expect_data(data)
        tunnel.expect(FIN, b"")


@bounds
def ten_tunnels_are_served_at_once(trial: Trial) -> None:
    tunnels = [trial.tunnel() for _ in range(10)]
    for tunnel in reversed(tunnels):
        tunnel.expect_alive()
