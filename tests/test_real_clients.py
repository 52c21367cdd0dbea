"""Those of ``make clients`` that are quick, and whose programs are small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients import commands, scripts, serving_clients
from tests.clients.client import CLIENTS
from tests.clients.scene import Scene, scene, version_of
from tests.support import needs

ADD_THEIR_ROWS = (commands, scripts, serving_clients)

QUICK = (
    "aria2", "socat", "APT", "git", "LWP (Perl)", "PHP (streams)", "Ruby (Net::HTTP)", "Tcl (http)",
    "GLib (Gio.SocketClient)", "urllib3", "pip", "mosquitto_sub", "rsync", "ssh", "msmtp",
    "Privoxy", "Tinyproxy", "HAProxy", "stunnel",
)  # fmt: skip


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("clients")) as made:
        yield made


@pytest.mark.parametrize("name", QUICK)
def test_all_lines_of_a_client_work(trials: Scene, name: str) -> None:
    client = CLIENTS[name]
    if version_of(client) is None:
        needs.missing(f"needs {name}: {client.source}")
    assert {trial.what: trial.failure for trial in trials.try_client(client)} == dict.fromkeys(
        client.lines
    )
