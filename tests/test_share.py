"""gsocks share: the URL of a server, for the other end."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gsocks.crypto import Key
from gsocks.exits.spec import ExitSpec
from gsocks.main import main

pytestmark = pytest.mark.usefixtures("own_log")

KEY = Key(bytes(range(32))).text()


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(
        f"server: {{listen: 0.0.0.0:8388, keys: {{me: {KEY}}}, transport: {{kind: ws, path: /u}}}}"
    )
    path.chmod(0o600)
    return path


def test_its_url_is_what_a_local_end_takes(server: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "-c", str(server), "--host", "vps.example"]) == 0
    printed = capfd.readouterr()
    spec = ExitSpec.parse(printed.out.strip())
    assert (spec.host, spec.port, spec.key) == ("vps.example", 8388, KEY)
    assert spec.transport is not None
    assert (spec.transport.kind, spec.transport.path) == ("ws", "/u")
    assert "safe channel" in printed.err


def test_another_port_and_an_address_of_ipv6_may_be_where_clients_reach_it(
    server: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for host, found in (("h:443", "h:443"), ("2001:db8::1", "[2001:db8::1]:8388")):
        main(["share", "-c", str(server), "--host", host])
        assert f"@{found}?" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "a b"], "--host: "),
        ([], "where do clients reach the server?"),
        (["--key", "mee", "--host", "h"], "no key is called 'mee' (did you mean me?)"),
    ],
)
def test_a_mistake_is_one_clear_line(
    server: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["share", "-c", str(server), *arguments]) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert KEY not in printed.out + printed.err


def test_a_file_gets_it_for_its_owner_only(server: Path, tmp_path: Path) -> None:
    for name in ("url.txt", "code.svg", "code.png"):
        file = tmp_path / name
        assert main(["share", "-c", str(server), "--host", "h", "-o", str(file)]) == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KEY in (tmp_path / "url.txt").read_text()
    assert (tmp_path / "code.svg").read_text().startswith("<?xml")
    assert (tmp_path / "code.png").read_bytes().startswith(b"\x89PNG")


def test_a_key_file_is_enough(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k").write_text(KEY)
    (tmp_path / "k").chmod(0o600)
    assert main(["share", "--key-file", str(tmp_path / "k"), "--host", "h"]) == 0
    assert capfd.readouterr().out == f"gsocks://{KEY}@h:8388\n"
