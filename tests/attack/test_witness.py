"""The other client of a gsocks under attack: what it tells can be relied on."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from tests.attack import witness
from tests.attack.witness import ENOUGH, Witness, read_exactly
from tests.support.program import Program
from tests.support.waiting import TOO_LONG, eventually

#: SO_LINGER: a close resets the connection
_RESET = struct.pack("ii", 1, 0)


def test_its_origin_ends_without_a_traceback_when_its_listener_is_closed() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.close()
    witness._answer(listener)


def test_its_origin_serves_on_after_a_connection_that_was_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        threading.Thread(target=witness._answer, args=(listener,), daemon=True).start()
        with socket.create_connection(listener.getsockname(), TOO_LONG) as sock:
            sock.sendall(b"?")
            assert read_exactly(sock, 1) == b"!"
        listener.shutdown(socket.SHUT_RDWR)


def test_it_asks_on_for_as_long_as_the_block_takes(tmp_path: Path) -> None:
    config = tmp_path / "gsocks.yaml"
    config.write_text("local: {listen: '127.0.0.1:0', rules: [allow all]}\n")
    with Program("-c", config) as program:
        with Witness(program.port()).asking(1) as asking:
            program.wait_for("gsocks.access", times=3)
        assert asking.testimony.served >= 3
        assert asking.testimony.failures == []


def test_it_ends_by_itself_when_it_is_not_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Witness(port).asking(20) as asking:
        eventually(lambda: asking.ended)
    assert asking.testimony.ms == []
    assert len(asking.testimony.failures) == ENOUGH
