"""While one peer floods gsocks, another client is served, and signals are obeyed."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.attack.flood import Flood, Scene, floods, under
from tests.support.waiting import eventually

#: of the other client, at least
REQUESTS = 20


@pytest.mark.parametrize("flood", floods(), ids=lambda flood: flood.name)
def test_another_client_is_served_and_signals_are_obeyed(flood: Flood, tmp_path: Path) -> None:
    with under(flood.start, tmp_path) as (scene, attacked):
        eventually(lambda: scene.done)
        testimony, flooded = attacked.ask(scene, REQUESTS)
        assert testimony.failures == []
        assert testimony.served >= REQUESTS
        assert flooded  # it was no calm that let the other client in
        program = attacked.program
        program.signal(signal.SIGTERM)
        program.wait_for("shutting down, draining")
        program.signal(signal.SIGINT)
        # it may be drained already, and be killed while it exits
        assert program.end() in (0, -signal.SIGINT)


def test_what_drains_a_connection_has_ended_before_its_descriptor_may_be_another_ones(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            sock = scene.connect(silent.getsockname()[1])
            with scene.drained(sock):
                assert any(thread.is_alive() for thread in scene._threads)
            assert not any(thread.is_alive() for thread in scene._threads)
    finally:
        scene.close()
