"""Sessions of a running program: its workers agree on them, a listener may have its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mirror import EXITS, exit_of
from tests.support.program import Program


@contextmanager
def running(folder: Path, settings: str) -> Iterator[Program]:
    exits = "".join(
        f"    - {{url: direct, source: {address}/32, country: {'de' if at % 2 else 'fr'}}}\n"
        for at, address in enumerate(EXITS)
    )
    path = folder / "c.yaml"
    path.write_text(f"{settings}  rules: [allow all]\n  exits:\n{exits}")
    with Program("-c", path) as program:
        yield program


def test_workers_agree_which_exit_a_session_has(tmp_path: Path, mirror: str) -> None:
    with running(tmp_path, "workers: 2\nlocal:\n  listen: 127.0.0.1:0\n") as program:
        program.wait_for(r"local: listening on ", times=2)
        port = program.port()
        had = {
            session: {exit_of(port, mirror, f"session-{session}-cc-de") for _ in range(6)}
            for session in range(10)
        }
    assert all(len(exits) == 1 for exits in had.values())
    assert 1 < len(set.union(*had.values())) <= len(EXITS) / 2
    assert set.union(*had.values()) <= set(EXITS[1::2])


def test_listeners_may_have_a_session_or_a_country_and_clients_be_sessions(
    tmp_path: Path, mirror: str
) -> None:
    of_its_own = "{address: 127.0.0.1:0, session: a}, {address: 127.0.0.1:0, country: fr}"
    settings = f"local:\n  listen: [127.0.0.1:0, {of_its_own}]\n  sessions: {{by_client: true}}\n"
    with running(tmp_path, settings) as program:
        ports = [
            int(found[1]) for found in program.wait_for(r"local: listening on \S+:(\d+) ", times=3)
        ]
        by_client, session, french = ({exit_of(port, mirror) for _ in range(5)} for port in ports)
        assert len(by_client) == len(session) == len(french) == 1
        assert french <= set(EXITS[::2])
        assert session == {exit_of(ports[0], mirror, "session-a")}
        of_others = {exit_of(ports[0], mirror, f"session-{name}") for name in range(10)}
        assert len(of_others) > 1
        assert exit_of(ports[1], mirror, "session-a-cc-fr") in EXITS[::2]
        program.wait_for(r"session=a dest=127.0.0.1:\d+ ")
        program.wait_for(r"session=127.0.0.1 dest=127.0.0.1:\d+ ")
