"""gsocks as a service: what its supervisor hears, on a root that is read-only, without rights."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsocks.crypto import Key
from tests.support import needs
from tests.support.program import ROOT, UNTRACED, Program, run
from tests.support.waiting import TOO_LONG

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


class Supervisor:
    """Hears what a service says, as systemd does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._sock.settimeout(TOO_LONG)

    def wait_for(self, word: str) -> str:
        while True:
            said = self._sock.recv(4096).decode()
            if word in said.split("\n"):
                return said

    def environment(self, **more: str) -> list[str]:
        variables = {"NOTIFY_SOCKET": str(self.path), **more}
        return ["env", *(f"{name}={value}" for name, value in variables.items())]

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_supervisor_hears_of_readiness_life_reloads_and_the_end(
    workers: int, tmp_path: Path, supervisor: Supervisor
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"workers: {workers}\nlocal: {{listen: 127.0.0.1:0}}\n")
    within = supervisor.environment(WATCHDOG_USEC="300000")
    with Program("-c", path, within=within) as program:
        assert "STATUS=serving" in supervisor.wait_for("READY=1")
        program.port()
        supervisor.wait_for("WATCHDOG=1")
        program.signal(signal.SIGHUP)
        assert re.search(r"MONOTONIC_USEC=\d+", supervisor.wait_for("RELOADING=1"))
        supervisor.wait_for("READY=1")
        program.signal(signal.SIGTERM)
        supervisor.wait_for("STOPPING=1")
        assert program.end() == 0


def test_a_worker_that_hangs_is_killed_and_started_again(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("workers: 2\nlocal: {listen: 127.0.0.1:0}\n")
    with Program("-c", path, within=supervisor.environment(WATCHDOG_USEC="600000")) as program:
        supervisor.wait_for("READY=1")
        children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGSTOP)
        program.wait_for(r"worker \d hangs for 1 s: killing it")
        program.wait_for(r"worker \d \(pid \d+\) exited with SIGKILL, restarting")


# read-only, not hidden: the test's own folder or the checkout may be below one of them
SANDBOX = """
for folder in /tmp /var/tmp; do
    mount --bind $folder $folder; mount -o remount,ro,bind $folder
done
mount -o remount,ro,bind /
exec setpriv --bounding-set -all --inh-caps -all --no-new-privs "$@"
"""


def test_it_starts_on_a_root_that_is_read_only_without_folder_or_capability(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    needs.root()
    (tmp_path / "gsocks.key").write_text(Key.generate().text())
    (tmp_path / "gsocks.key").chmod(0o600)
    path = tmp_path / "c.yaml"
    path.write_text(
        "workers: 2\nserver: {listen: 127.0.0.1:0, keys: {me: {file: gsocks.key}}}\n"
        "local: {listen: 127.0.0.1:0}\n"
    )
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", SANDBOX, "sh"]
    within = [*UNTRACED, *unshare, *supervisor.environment(TMPDIR="/nowhere")]
    with Program("-c", path, cwd=Path("/"), within=within) as program:
        program.wait_for("no folder can be written")
        supervisor.wait_for("READY=1")
        assert program.port("server")
        program.signal(signal.SIGTERM)
        assert program.end() == 0


def test_a_full_disk_at_the_first_start_leaves_no_empty_key_and_is_told(tmp_path: Path) -> None:
    needs.root()
    (tmp_path / "disk").mkdir()
    config = "server: {listen: 127.0.0.1:0, keys: {me: {file: gsocks.key}}}"
    full = (
        f"mount -t tmpfs -o size=4k none {tmp_path}/disk; cd {tmp_path}/disk\n"
        f"ln -s {tmp_path}/c.yaml c.yaml; dd if=/dev/zero of=fill bs=4096 count=2 2>/dev/null ||:\n"
        f"{sys.executable} -m gsocks -c c.yaml; echo status $?; ls -A\n"
    )
    (tmp_path / "c.yaml").write_text(config)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", full],
        capture_output=True, text=True, timeout=TOO_LONG, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "gsocks.key: a key can't be kept there: no space left on device" in done.stderr
    assert done.stdout.split() == ["status", "2", "c.yaml", "fill"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_sandboxed_and_has_no_mistake(unit: Path, tmp_path: Path) -> None:
    found = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
    assert found.returncode == 0, found.stdout[-500:]
    # a program that is there
    text = unit.read_text().replace("/usr/bin/gsocks", "/bin/true").replace("man:gsocks(1)", "")
    name = unit.name.replace("@", "@one")
    (tmp_path / name).write_text(text)
    verified = run("systemd-analyze", "verify", tmp_path / name)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_units_wait_for_the_time_and_say_when_they_are_ready() -> None:
    assert len(UNITS) == 2
    for unit in UNITS:
        text = unit.read_text()
        assert re.search(r"^After=.*\btime-sync\.target", text, re.MULTILINE)
        assert "\nType=notify\n" in text
        assert re.search(r"^WatchdogSec=\d+", text, re.MULTILINE)
        assert re.search(r"^StateDirectory=gsocks$", text, re.MULTILINE)


def test_a_reload_says_what_changed_and_takes_rules_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = (
        "local: {{listen: '127.0.0.1:0', rules: [{0}], limits: {{connections: {1}}}, tries: {2}}}"
    )
    path.write_text(text.format("allow all", 100, 3))
    with Program("-c", path) as program:
        port = program.port()
        path.write_text(text.format("deny all", 50, 2) + "\nworkers: 3\n")
        program.signal(signal.SIGHUP)
        program.wait_for(r"changed: .*local\.tries.*local\.rules.*local\.limits\.connections")
        program.wait_for("a restart is needed for workers")
        program.wait_for("reloaded")
        done = run("curl", "-sS", "--socks5-hostname", f"127.0.0.1:{port}", "http://127.0.0.1:9/")
        assert done.returncode
        program.wait_for(r"outcome=forbidden")


def test_a_server_that_has_another_key_is_told_at_the_start_by_the_exits_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.yaml").write_text(
        f"server: {{listen: '127.0.0.1:0', keys: {{me: {Key.generate().text()}}}}}"
    )
    with Program("-c", tmp_path / "s.yaml") as server:
        port = server.port("server")
        (tmp_path / "l.yaml").write_text(
            "local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  timeouts: {exit: 1s}\n"
            "  exits: ["
            f"{{url: 'gsocks://{Key.generate().text()}@127.0.0.1:{port}', name: home}}]\n"
        )
        with Program("-c", tmp_path / "l.yaml") as near:
            near.wait_for(r"error gsocks: local: exit home: no answer in 1 s: another key")
            proxy = f"127.0.0.1:{near.port()}"
            done = run("curl", "-sS", "-x", proxy, "-w", "%{http_code} %{time_total}", "http://h/")
            code, seconds = done.stdout.split()[-2:]
            assert code == "502"
            assert float(seconds) < 0.5
            near.wait_for(r"outcome=exit_unproven detail=.*another key")
            near.signal(signal.SIGINT)
            server.signal(signal.SIGINT)
            server.wait_for(r"stranger.*not the hello of a known key: it has another key")
