"""Tunnels in TLS and WebSocket between programs, with curl in front."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from gsocks.address import Address
from gsocks.transport.options import OVER_TLS, OVER_WEBSOCKET
from tests.support.program import Program, gsocks, run, sha256_of_bytes, web_server
from tests.support.proxies import haproxy
from tests.support.transports import KINDS, NAME, PATH, Certificates

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def server_config(folder: Path, kind: str, certificates: Certificates) -> Path:
    path = folder / "server.yaml"
    cert = f", cert: {certificates.server}" if kind in OVER_TLS else ""
    where = f", path: {PATH}" if kind in OVER_WEBSOCKET else ""
    path.write_text(
        "server:\n  listen: 127.0.0.1:0\n  keys: {default: {file: gsocks.key}}\n"
        f"  rules: [allow all]\n  transport: {{kind: {kind}{cert}{where}}}\n"
    )
    return path


def local_config(folder: Path, port: int, query: str) -> Path:
    path = folder / "local.yaml"
    path.write_text(
        "local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n"
        f"  exits: [{{url: 'gsocks://127.0.0.1:{port}?{query}', key_file: gsocks.key}}]\n"
    )
    return path


def curl(port: int, *arguments: str) -> str:
    done = run("curl", "-sS", "--max-time", "30", "--socks5", f"127.0.0.1:{port}", *arguments)
    return done.stdout + done.stderr


@kinds
def test_programs_serve_curl_over_each_transport(
    kind: str, certificates: Certificates, tmp_path: Path
) -> None:
    with (
        web_server() as web,
        Program("-c", server_config(tmp_path, kind, certificates)) as far,
    ):
        config = local_config(tmp_path, far.port("server"), certificates.query(kind))
        assert gsocks("check", "-c", config).returncode == 0
        with Program("-c", config) as near:
            url = f"http://127.0.0.1:{web}"
            assert curl(near.port(), f"{url}/text/there") == "there"
            size = 10_000_000
            (tmp_path / "got").write_bytes(b"")
            curl(near.port(), "-o", str(tmp_path / "got"), f"{url}/bytes/{size}")
            got = hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest()
            assert got == sha256_of_bytes(size)
            assert curl(near.port(), "-T", str(tmp_path / "got"), f"{url}/put/x") == got
        done = gsocks("check", "-c", tmp_path / "server.yaml")
        where = f" at {PATH}" if kind in OVER_WEBSOCKET else ""
        assert f"server: tunnels travel in {kind}{where}" in done.stdout


def test_a_certificate_is_read_again_at_a_reload_and_a_bad_one_refuses_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    before, after = Certificates(first), Certificates(second)
    config = server_config(tmp_path, "tls", before)
    with web_server() as web, Program("-c", config) as far:
        port = far.port("server")

        def served_by(trusted: Certificates) -> str:
            query = f"transport=tls&ca={trusted.ca}&sni={NAME}"
            with Program("-c", local_config(tmp_path, port, query)) as near:
                return curl(near.port(), f"http://127.0.0.1:{web}/text/there")

        assert served_by(before) == "there"
        before.server.write_text("no certificate")
        far.signal(signal.SIGHUP)
        far.wait_for(
            r"not reloaded, the previous config stays: server\.transport: \S+: not a certificate"
        )
        assert served_by(before) == "there"
        before.server.unlink()
        far.signal(signal.SIGHUP)
        far.wait_for(r"not reloaded, .*server\.transport\.cert: \S+ does not exist")
        assert served_by(before) == "there"
        before.server.write_bytes(after.server.read_bytes())
        far.signal(signal.SIGHUP)
        far.wait_for("reloaded: keys, users and exits")
        assert served_by(after) == "there"
        assert "there" not in served_by(before)
        assert "PRIVATE KEY" not in far.log


def test_workers_serve_by_the_certificate_of_the_last_good_reload(
    certificates: Certificates, tmp_path: Path
) -> None:
    own = Certificates(tmp_path)
    config = server_config(tmp_path, "wss", own)
    config.write_text("workers: 2\n" + config.read_text())
    with web_server() as web, Program("-c", config) as far:
        far.wait_for("server: listening", times=2)
        port = far.port("server")
        own.server.write_text("no certificate")
        parent = far.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        far.wait_for("restarting", times=2)
        far.wait_for("server: listening", times=4)
        with Program("-c", local_config(tmp_path, port, own.query("wss"))) as near:
            for _ in range(4):
                assert curl(near.port(), f"http://127.0.0.1:{web}/text/there") == "there"


def test_a_server_behind_haproxy_is_reached_by_wss(
    certificates: Certificates, tmp_path: Path
) -> None:
    with (
        web_server() as web,
        Program("-c", server_config(tmp_path, "ws", certificates)) as far,
        haproxy(tmp_path, certificates.server, Address("127.0.0.1", far.port("server"))) as front,
    ):
        with Program("-c", local_config(tmp_path, front.port, certificates.query("wss"))) as near:
            url = f"http://127.0.0.1:{web}"
            assert curl(near.port(), f"{url}/text/there") == "there"
            size = 10_000_000
            curl(near.port(), "-o", str(tmp_path / "got"), f"{url}/bytes/{size}")
            got = hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest()
            assert got == sha256_of_bytes(size)
            assert curl(near.port(), "-T", str(tmp_path / "got"), f"{url}/put/x") == got
        # and who is not a tunnel's client finds a web server there
        done = run(
            "curl", "-sS", "-i", "--cacert", str(certificates.ca), "--connect-to",
            f"{NAME}:{front.port}:127.0.0.1:{front.port}", f"https://{NAME}:{front.port}/",
        )  # fmt: skip
        assert done.stdout.startswith("HTTP/1.1 404 Not Found")
        assert "gsocks" not in done.stdout
